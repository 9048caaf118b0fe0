"""README: its code runs, its numbers are the ones the seed's test holds, its links lead somewhere."""
import re
from pathlib import Path

import pytest
import torch
from helpers import tiny_model
from test_seed import REPORT
from torch import nn

import fasterai_sched as fs

ROOT = Path(__file__).parents[1]
README = (ROOT/'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.S)

@pytest.mark.parametrize('code', BLOCKS)
def test_code_is_python(code): compile(code, 'README.md', 'exec')

def test_a_plain_training_loop_stays_sparse(capsys):
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 3))
    make,steps = BLOCKS[1].split('# in your training loop\n')
    space = dict(model=model, nn=nn)
    exec('from fasterai_sched import *\n' + make, space)
    opt = torch.optim.Adam(model.parameters())
    for _ in range(3):
        nn.functional.cross_entropy(model(torch.randn(8, 2, 6, 6)), torch.randint(0, 3, (8,))).backward()
        for line in steps.strip().splitlines():
            if 'apply_masks' in line: opt.step()
            exec(line, space)
    assert sum(int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, nn.Linear)) == 300 # of 600, exactly
    assert 'Overall              all             600        300           50.00%' in capsys.readouterr().out

def test_a_loop_along_a_schedule_by_gradients():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [(torch.randn(8, 2, 6, 6), torch.randint(0, 3, (8,))) for _ in range(5)]
    exec('from fasterai_sched import *\n' + BLOCKS[2], dict(model=model, nn=nn, batches=batches, optimizer=torch.optim.Adam(model.parameters())))
    assert [int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, nn.Linear)] == [518, 21] # floors of 576 and 24

def test_the_one_line_use(capsys):
    from fastai.vision.all import CrossEntropyLossFlat, Learner
    from helpers import tiny_dls
    call = re.search(r'learn\.fit\(.*\)', BLOCKS[0])[0]
    learn = Learner(tiny_dls(), tiny_model(), loss_func=CrossEntropyLossFlat())
    with learn.no_bar(): exec('from fasterai_sched import *\n' + call, dict(learn=learn))
    assert 'Overall              all             432        388           89.81%' in capsys.readouterr().out

def test_the_lines_of_works_with(tmp_path):
    from fastai.vision.all import CancelFitException
    from helpers import Spy, tiny_learner, zeros
    from torch.optim.swa_utils import AveragedModel
    learn = tiny_learner(path=tmp_path)
    def stop(learn):
        if learn.epoch == 4: raise CancelFitException
    learn.fit(10, cbs=[fs.SparsifyCallback(90, verbose=False), Spy('before_epoch', stop)])
    learn.save('epoch3')
    resume,keep,two,average = BLOCKS[3].split('\n\n')
    learn = tiny_learner(path=tmp_path)
    space = dict(learn=learn, SparsifyCallback=fs.SparsifyCallback, nn=nn, average=AveragedModel(tiny_model(1)), sp_cb=fs.SparsifyCallback(50))
    exec(resume, space)
    assert zeros(learn.model) == [97, 291]
    exec(keep, space)
    assert zeros(learn.model) == [97, 291]
    exec(two, space)
    assert zeros(learn.model, (nn.Conv2d, nn.Linear)) == [97, 291, 9] and 'sparsity_2' in learn.recorder.metric_names
    tiny_learner().fit(1, cbs=space['sp_cb'])
    exec(average, space)
    assert zeros(space['average'].module) == [54, 162]

def test_the_table_is_that_of_the_page():
    "The accuracies are those of the tutorial's last epochs, which `make demo` repeats"
    page = (ROOT/'nbs'/'01_tutorial.schedules.ipynb').read_text(encoding='utf-8')
    ends = re.findall(r'<td>9</td>.*?<td>\d\.\d+</td>.*?<td>\d\.\d+</td>.*?<td>(\d\.\d+)</td>', page, re.S)
    table = re.findall(r'\| ([\d.]+)% \| [\d.]+% \|', README)
    assert len(table) == 4 and [f'{float(e):.2%}' for e in dict.fromkeys(ends)][:4] == [f'{t}%' for t in table]

def test_the_report_shown_is_the_seeds():
    shown = [l.rstrip() for l in README.splitlines() if re.match(r'(Layer \d|Overall  ).*%$', l)]
    assert shown and set(shown) <= {l.rstrip() for l in REPORT.splitlines()}

def test_the_plan_shown_is_the_plan():
    from fastai.vision.all import CrossEntropyLossFlat, resnet18, vision_learner
    from helpers import tiny_dls
    dls = tiny_dls(n=11, n_valid=1, bs=1, channels=3)
    learn = vision_learner(dls, resnet18, pretrained=False, n_out=10, loss_func=CrossEntropyLossFlat(), normalize=False)
    learn.unfreeze()
    with torch.no_grad():
        for p in learn.model.parameters(): p[p == 0] = 1e-6 # kaiming_normal_ may draw a 0, which counts
    call = re.search(r'`(SparsifyCallback\(90, schedule=iterative.*?\))`', README)[1]
    shown = re.search(r'```\n(Layer     Name .*?)```', README, re.S)[1].splitlines()
    plan = str(eval(call, vars(fs)).plan(learn, 10)).splitlines()
    assert [l for l in shown if l != '...'] == [l for l in plan if l in shown] and len(shown) == 9

def test_links_lead_somewhere():
    for path in re.findall(r'\]\((?!https?://)([^)#]+)\)', README): assert (ROOT/path).exists(), path

def test_what_the_zeros_are_worth_in_a_file():
    import gzip
    import io
    from torchvision.models import resnet18
    torch.manual_seed(0)
    fs.Sparsifier(model := resnet18()).sparsify_model(90)
    torch.save(model.state_dict(), f := io.BytesIO())
    dense,packed = len(f.getvalue())/1e6,len(gzip.compress(f.getvalue()))/1e6
    assert f'(ResNet-18 at 90%: {dense:.1f} MB, and {packed:.1f} MB after `gzip`)' in README

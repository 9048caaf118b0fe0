"""README: its code runs, its numbers are the ones the seed's test holds, its links lead somewhere."""
import json
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from fastai.vision.all import accuracy
from helpers import Spy, tiny_dls, tiny_learner, tiny_model, zeros
from test_seed import REPORT
from torch import nn

import fasterai_sched as fs

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'nbs'))
import run_pages

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
    call = re.search(r'learn\.fit\(.*\)', BLOCKS[0], re.S)[0]
    learn = Learner(tiny_dls(), tiny_model(), loss_func=CrossEntropyLossFlat())
    with learn.no_bar(): exec('from fasterai_sched import *\n' + call, dict(learn=learn))
    assert 'Overall              all             432        388           89.81%' in capsys.readouterr().out

def test_a_schedule_gets_a_name(monkeypatch):
    line, = re.findall(r"`(from fasterai_sched.schedules import schedules; .*?)`", README)
    monkeypatch.setattr(fs.schedules, 'schedules', {**fs.schedules.schedules})
    exec(line, {**vars(fs), 'f':lambda start, end, pos: end*pos})
    assert fs.SparsifyCallback(90, schedule='mine').schedule(0, 90, .5) == 45

def test_the_lines_of_works_with(tmp_path):
    from fastai.vision.all import CancelFitException
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
    "Its means and deviations are those of the tutorial's comparison"
    page = json.loads((ROOT/'nbs'/'01_tutorial.schedules.ipynb').read_text(encoding='utf-8'))
    output, = [o for c in page['cells'] if 'table = compare_schedules' in ''.join(c['source']) for o in c['outputs'] if 'text/plain' in o['data'] and 'recovery' in ''.join(o['data']['text/plain'])]
    rows = [l.split() for l in ''.join(output['data']['text/plain']).splitlines()[2:]]
    shown = re.findall(r'\| `?(\w+)`? \| ([\d.]+)% ± ([\d.]+)% \| ([\d.]+)% \| (\d*) \|', README)
    assert len(rows) == 4 and [(n, f'{float(a):.2%}', f'{float(d):.2%}', f'{float(s):.2f}', r.removesuffix('.0').replace('NaN', '')) for n,a,d,s,r in rows] == [(n, f'{a}%', f'{d}%', s, r) for n,a,d,s,r in shown]

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

@pytest.mark.parametrize('name', run_pages.PICTURES)
def test_the_picture_is_that_of_the_page(name):
    assert f'(nbs/images/{name})' in README and (ROOT/'nbs/images'/name).read_bytes() == run_pages.picture(name)

def test_the_line_that_leaves_the_last_layer_dense():
    from fastai.vision.all import CrossEntropyLossFlat, resnet18, vision_learner
    words = re.search(r"`(layer_type=\(nn.Conv2d, nn.Linear\), exclude='1.8')`", README)[1]
    learn = vision_learner(tiny_dls(channels=3), resnet18, pretrained=False, n_out=3, loss_func=CrossEntropyLossFlat(), normalize=False)
    learn.unfreeze()
    selected = eval(f'SparsifyCallback(90, {words})', {**vars(fs), 'nn':nn}).plan(learn, 1).to_df().name.tolist()
    assert [n for n,m in learn.model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))] == [*selected, '1.8'] and '1.4' in selected

def test_links_lead_somewhere():
    for path in re.findall(r'\]\((?!https?://)([^)#]+)\)', README): assert (ROOT/path).exists(), path

def test_what_the_zeros_are_worth_in_a_file(tmp_path):
    from torchvision.models import resnet18
    torch.manual_seed(0)
    fs.Sparsifier(model := resnet18()).sparsify_model(90)
    torch.save(model.state_dict(), tmp_path/'dense')
    dense,sparse = (tmp_path/'dense').stat().st_size/1e6,fs.save_sparse(model, tmp_path/'sparse')/1e6
    assert f'(ResNet-18 at 90%: {dense:.1f} MB, and {sparse:.1f} MB with [`save_sparse`]' in README and sparse < dense/5

def test_the_file_without_zeros(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = tiny_learner()
    learn.fit(1, cbs=fs.SparsifyCallback(90, verbose=False))
    exec(re.search(r'```python\n(save_sparse\(.*?)```', README, re.S)[1], {**vars(fs), 'learn':learn})
    assert (tmp_path/'model.safetensors').exists() and zeros(learn.model) == [97, 291]

def test_schedules_compared():
    code = re.search(r'```python\n(def make_learn.*?)```', README, re.S)[1]
    space = {**vars(fs), 'vision_learner':lambda dls, *_, metrics: tiny_learner(dls=dls, metrics=metrics), 'get_dls':tiny_dls, 'resnet18':None, 'accuracy':accuracy}
    exec(code.replace('n_epoch=10', 'n_epoch=2').replace('compare_schedules(', 'df = compare_schedules(').replace('n_seeds=3', 'n_seeds=1, progress=False'), space)
    assert space['df'].index.tolist() == ['dense', 'one_shot', 'iterative', 'agp'] and space['df'].sparsity[1:].round(1).tolist() == [89.8]*3

def test_the_pictures_named_are_there():
    learn = tiny_learner()
    learn.fit(2, cbs=[sp_cb := fs.SparsifyCallback(90, verbose=False), fs.ShowSparsityCallback()])
    for name in re.findall(r'\| `sp_cb\.(plot\w*)\(\)`', README): assert len(getattr(sp_cb, name)(ax=plt.subplots()[1]).get_legend_handles_labels()[0]) or name == 'plot_layers'
    assert len(re.findall(r'\| `sp_cb\.(plot\w*)\(\)`', README)) == 3

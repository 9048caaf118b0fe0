"""README: its code runs, its numbers are the ones the seed's test holds, its links lead somewhere."""
import re
from pathlib import Path

import pytest
import torch
from helpers import tiny_model
from test_seed import REPORT
from torch import nn

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

def test_the_one_line_use(capsys):
    from fastai.vision.all import CrossEntropyLossFlat, Learner
    from helpers import tiny_dls
    call = re.search(r'learn\.fit\(.*\)', BLOCKS[0])[0]
    learn = Learner(tiny_dls(), tiny_model(), loss_func=CrossEntropyLossFlat())
    with learn.no_bar(): exec('from fasterai_sched import *\n' + call, dict(learn=learn))
    assert 'Overall              all             432        388           89.81%' in capsys.readouterr().out

def test_the_report_shown_is_the_seeds():
    shown = [l.rstrip() for l in README.splitlines() if re.match(r'Layer \d|Overall  ', l)]
    assert shown and set(shown) <= {l.rstrip() for l in REPORT.splitlines()}

def test_links_lead_somewhere():
    for path in re.findall(r'\]\((?!https?://)([^)#]+)\)', README): assert (ROOT/path).exists(), path

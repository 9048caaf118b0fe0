"""The tutorial this library grew from: every line it prints, to the character."""
import re
from functools import partial

import pytest
import torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, accuracy, resnet18, vision_learner

from fasterai_sched import SparsifyCallback, agp, iterative, large_final, one_shot, sparsity_report

REPORT = '''
Sparsity Report:
--------------------------------------------------------------------------------
Layer                Type            Params     Zeros      Sparsity@@
--------------------------------------------------------------------------------
Layer 2              Conv2d          9,408      8,467         90.00%
Layer 8              Conv2d          36,864     33,177        90.00%
Layer 11             Conv2d          36,864     33,177        90.00%
Layer 14             Conv2d          36,864     33,177        90.00%
Layer 17             Conv2d          36,864     33,177        90.00%
Layer 21             Conv2d          73,728     66,355        90.00%
Layer 24             Conv2d          147,456    132,710       90.00%
Layer 27             Conv2d          8,192      7,372         89.99%
Layer 30             Conv2d          147,456    132,710       90.00%
Layer 33             Conv2d          147,456    132,710       90.00%
Layer 37             Conv2d          294,912    265,420       90.00%
Layer 40             Conv2d          589,824    530,841       90.00%
Layer 43             Conv2d          32,768     29,491        90.00%
Layer 46             Conv2d          589,824    530,841       90.00%
Layer 49             Conv2d          589,824    530,841       90.00%
Layer 53             Conv2d          1,179,648  1,061,683     90.00%
Layer 56             Conv2d          2,359,296  2,123,366     90.00%
Layer 59             Conv2d          131,072    117,964       90.00%
Layer 62             Conv2d          2,359,296  2,123,366     90.00%
Layer 65             Conv2d          2,359,296  2,123,366     90.00%
--------------------------------------------------------------------------------
Overall              all             11,166,912 10,050,211    90.00%
'''.replace('@', ' ') # the seed's header ends in two spaces

def transcript(epochs, final):
    lines = ['Pruning of weight until a sparsity of [90]%', 'Saving Weights at epoch 0']
    lines += [f'Sparsity at the end of epoch {i}: [{s}]%' for i,s in enumerate(epochs)]
    return '\n'.join([*lines, f'Final Sparsity: [{final}]%', REPORT])

SEED = {
    'one_shot':     (one_shot,  [0.0, 0.0, 0.0, 0.0, 90.0, 90.0, 90.0, 90.0, 90.0, 90.0], '90'),
    'iterative':    (iterative, [0.0, 0.0, 30.0, 30.0, 60.0, 60.0, 60.0, 90.0, 90.0, 90.0], '90.0'),
    'agp':          (agp, [0.0, 0.0, 29.71, 52.03, 68.03, 78.75, 85.25, 88.59, 89.82, 90.0], '90.0'),
    'five steps':   (partial(iterative, n_steps=5), [0.0, 0.0, 18.0, 36.0, 36.0, 54.0, 72.0, 72.0, 90.0, 90.0], '90.0')}

@pytest.fixture(scope='module')
def dls():
    g = torch.Generator().manual_seed(0)
    data = lambda n: list(zip(torch.randn(n, 3, 32, 32, generator=g), torch.randint(0, 2, (n,), generator=g)))
    dls = DataLoaders.from_dsets(data(8), data(4), bs=4, num_workers=0, device='cpu')
    dls.c = 2
    return dls

@pytest.mark.parametrize('name', SEED)
def test_every_printed_line_is_the_seeds(name, dls, capsys):
    schedule,epochs,final = SEED[name]
    learn = vision_learner(dls, resnet18, metrics=accuracy, pretrained=False, normalize=False, loss_func=CrossEntropyLossFlat(), n_out=2)
    learn.unfreeze()
    learn.remove_cb(learn.progress)
    rows = []
    learn.logger = rows.append
    sp_cb = SparsifyCallback(sparsity=90, granularity='weight', context='local', criteria=large_final, schedule=schedule)
    learn.fit(10, cbs=sp_cb)
    assert capsys.readouterr().out == transcript(epochs, final)
    # the table's column and the history have the same numbers, and the model too
    col = learn.recorder.metric_names.index('sparsity')
    assert [round(r[col], 2) for r in rows] == epochs
    assert sp_cb.history.query('kind == "epoch"').measured.round(2).tolist() == epochs
    assert str(sparsity_report(learn.model)) == REPORT.split('Report:\n')[1].rstrip('\n')
    assert sum(int((m.weight == 0).sum()) for m in learn.model.modules() if isinstance(m, torch.nn.Conv2d)) == 10_050_211

def test_the_report_above_is_the_floors():
    rows = re.findall(r'^Layer \d+ +Conv2d +([\d,]+) +([\d,]+)', REPORT, re.M)
    counts = [(int(p.replace(',', '')), int(z.replace(',', ''))) for p,z in rows]
    assert len(counts) == 20
    assert all(z == p*90//100 for p,z in counts)
    assert (sum(p for p,_ in counts), sum(z for _,z in counts)) == (11_166_912, 10_050_211)

"""The benchmarks: README carries the tables that their figures make; what they measure is what they say."""
import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_model
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT/'benchmarks'))
import accuracy  # noqa: E402
import run       # noqa: E402

README = (ROOT/'README.md').read_text(encoding='utf-8')
FIGURES,ACCURACY = (json.loads((ROOT/f'benchmarks/{n}.json').read_text()) for n in ('run', 'accuracy'))

def test_readme_carries_the_table_of_costs(): assert '\n'.join(run.table(FIGURES)) in README
def test_readme_carries_the_table_of_accuracies(): assert '\n'.join(accuracy.table(ACCURACY)) in README

def test_every_run_is_there_and_ours_hit_their_target_to_the_weight():
    assert {(r['who'], r['target'], r['context'], r['seed']) for r in ACCURACY} == set(accuracy.wanted())
    for r in ACCURACY:
        if r['who'] in accuracy.OURS: # floors of a layer each, or of all together
            assert 0 <= r['target']*r['weights']/100 - r['zeros'] < (20 if r['context'] == 'local' else 1)

def test_an_idx_file_is_read(tmp_path):
    x = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    with gzip.open(tmp_path/'x.gz', 'wb') as f: f.write(bytes([0, 0, 8, 3]) + np.array(x.shape, '>i4').tobytes() + x.tobytes())
    assert (accuracy.idx(tmp_path/'x.gz') == x).all()

def write(folder, kind, n):
    "Images whose class can be seen"
    y = (np.arange(n)%10).astype(np.uint8)
    x = np.zeros((n, 28, 28), np.uint8) + 25*y[:, None, None]
    for name,a in ((f'{kind}-images-idx3', x), (f'{kind}-labels-idx1', y)):
        with gzip.open(folder/f'{name}-ubyte.gz', 'wb') as f: f.write(bytes([0, 0, 8, a.ndim]) + np.array(a.shape, '>i4').tobytes() + a.tobytes())

def test_accuracy_runs_stops_and_goes_on(tmp_path, monkeypatch, capsys):
    write(tmp_path, 'train', 64)
    write(tmp_path, 't10k', 32)
    keys = [('dense', 0, '-', 0), ('agp', 90, 'global', 0)]
    monkeypatch.setattr(sys, 'argv', ['accuracy.py', '--data', str(tmp_path), '--out', str(tmp_path/'a.json'), '--epochs', '1'])
    for n in (1, 2):
        monkeypatch.setattr(accuracy, 'wanted', lambda n=n: keys[:n])
        accuracy.main()
        assert len(json.loads((tmp_path/'a.json').read_text())) == n
    first,second = json.loads((tmp_path/'a.json').read_text())
    assert first['zeros'] == 0 and second['zeros'] == 10_050_220 and 0 <= first['accuracy'] <= 100
    assert capsys.readouterr().out.count('| agp | 90 % | global |') == 1

def test_accuracy_says_where_the_images_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['accuracy.py', '--data', str(tmp_path), '--out', str(tmp_path/'a.json')])
    with pytest.raises(SystemExit, match='apt install dataset-fashion-mnist'): accuracy.main()

@pytest.mark.parametrize('who', [run.Ours, run.Torch])
@pytest.mark.parametrize('context', ['local', 'global'])
def test_what_is_compared_does_the_same(who, context):
    model = tiny_model()
    one = who(model, context, nn.Conv2d)
    one.to(80)
    one.to(90)
    assert abs(run.percent(model, nn.Conv2d) - 90) < .5

def test_time_is_taken_once_and_the_methods_are_as_before():
    class A:
        def f(self): return self.g()
        def g(self): return sum(range(100_000))
    class B(A): pass
    spent,old = Counter(),A.f
    undo = run.timed(B, ['f', 'g'], spent, 'x')
    B().f()
    whole = spent['x']
    undo()
    assert whole > 0 and A.f is old and 'f' not in vars(B) and B().f() == A().f()
    B().f()
    assert spent['x'] == whole

def test_a_fit_is_timed():
    from fasterai_sched import Sparsifier, SparsifyCallback
    r = run.fit_with(SparsifyCallback(50, verbose=False, rewind_epoch=None), (SparsifyCallback,), Sparsifier, ['mask_grads'], 1, 2)
    assert r['steps'] == 2 and 0 < r['passes'] < r['inside'] < r['training']
    assert '__call__' not in vars(SparsifyCallback)

def test_growth_is_measured():
    took = run.update_of(nn.Sequential(nn.Linear(64, 64, bias=False)), 2)
    assert len(took) == 2 and min(took) > 0

def test_imports_are_timed(): assert set(run.imports(1)) == {'fastai', 'ours'}

def test_nothing_is_written_by_what_only_prints(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['run.py', '--table'])
    before = (ROOT/'benchmarks/run.json').read_bytes()
    monkeypatch.setattr(run, 'draw', None)
    run.main()
    assert (ROOT/'benchmarks/run.json').read_bytes() == before and capsys.readouterr().out.strip() in README

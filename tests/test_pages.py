"""Every code cell of every page runs, on fewer digits and in fewer epochs than the page shows."""
import json
import re
from pathlib import Path

import pytest
import sklearn.datasets

PAGES = sorted((Path(__file__).parents[1]/'nbs').glob('*.ipynb'))

def cells(page, kind): return [c for c in json.loads(page.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]

@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_the_code_of_the_page_runs(page, monkeypatch):
    whole = sklearn.datasets.load_digits()
    n = 200 if 'schedules' in page.stem else None # a ResNet gets one batch of 128 an epoch
    few = type(whole)(images=whole.images[:n], target=whole.target[:n])
    monkeypatch.setattr(sklearn.datasets, 'load_digits', lambda: few)
    space = {'__name__':'__main__'}
    for i,c in enumerate(cells(page, 'code')):
        code = re.sub(r'^(n_epoch|n_seeds) = \d+$', lambda m: f'{m[1]} = {dict(n_epoch=3, n_seeds=2)[m[1]]}', ''.join(c['source']), flags=re.M)
        exec(compile(code, f'{page.name} code cell {i}', 'exec'), space)

@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_the_page_is_stored_as_executed_and_without_errors(page):
    code = cells(page, 'code')
    assert any(c['outputs'] for c in code)
    for c in code:
        assert all(o['output_type'] != 'error' for o in c['outputs'])
        # a cell that ends in a value shows it; one that ends in an assignment, an import, a def or a call that prints may not
        last = ''.join(c['source']).splitlines()[-1]
        if last.endswith(';') or last.startswith(('report', 'per_epoch', 'steps', 'refused')): assert c['outputs'], last

def test_there_is_a_page(): assert PAGES

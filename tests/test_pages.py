"""Every code cell of every page runs, on fewer digits than the page shows."""
import json
from pathlib import Path

import pytest
import sklearn.datasets

PAGES = sorted((Path(__file__).parents[1]/'nbs').glob('*.ipynb'))

def cells(page, kind): return [c for c in json.loads(page.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]

@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_the_code_of_the_page_runs(page, monkeypatch):
    whole = sklearn.datasets.load_digits()
    few = type(whole)(images=whole.images[:200], target=whole.target[:200]) # one batch of 128 an epoch
    monkeypatch.setattr(sklearn.datasets, 'load_digits', lambda: few)
    space = {'__name__':'__main__'}
    for i,c in enumerate(cells(page, 'code')): exec(compile(''.join(c['source']), f'{page.name} code cell {i}', 'exec'), space)

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

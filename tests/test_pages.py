"""Every code cell of every page runs, in a notebook's kernel, on fewer digits and in fewer epochs than the page shows, and gives what the page has stored, in kind."""
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NBS = Path(__file__).parents[1]/'nbs'
PAGES = sorted(NBS.glob('*.ipynb'))
FEWER = dict(n_epoch=3, n_seeds=2)
sys.path.insert(0, str(NBS))
from run_pages import strip # noqa: E402

# a ResNet gets one batch of 128 digits an epoch; a process a core
BEFORE = '''import sklearn.datasets, torch
torch.set_num_threads(1)
n,whole = {n},sklearn.datasets.load_digits()
few = type(whole)(data=whole.data[:n], images=whole.images[:n], target=whole.target[:n])
sklearn.datasets.load_digits = lambda: few'''

def read(page): return nbformat.read(page, as_version=4)
def code(nb): return [c for c in nb.cells if c.cell_type == 'code']

def shortened(page):
    "The page as the tests run it"
    nb = read(page)
    for c in code(nb): c.source = re.sub(r'^(n_epoch|n_seeds) = \d+$', lambda m: f'{m[1]} = {FEWER[m[1]]}', c.source, flags=re.M)
    nb.cells.insert(0, nbformat.v4.new_code_cell(BEFORE.format(n=200 if page.stem == '01_tutorial.schedules' else None)))
    return nb

def kinds(c):
    "What a cell shows: the kinds of data of each output, and of streams their names"
    return [o.name if o.output_type == 'stream' else o.output_type if o.output_type == 'error' else sorted(o.data) for o in c.outputs]

def test_there_are_pages(): assert len(PAGES) >= 15

@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_the_page_runs_and_shows_what_is_stored_in_kind(page):
    stored,nb = code(read(page)),shortened(page)
    NotebookClient(nb, timeout=300, kernel_name='python3', resources={'metadata':{'path':str(NBS)}}).execute()
    for was,now in zip(stored, code(strip(nb))[1:], strict=True): assert kinds(was) == kinds(now), was.source

@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_the_page_is_stored_stripped_and_skips_nothing(page):
    nb = read(page)
    assert nb == strip(read(page)) and any(c.outputs for c in code(nb))
    for c in code(nb):
        assert 'error' not in kinds(c) and not re.search(r'skip_exec|eval:\s*false', c.source)
        for o in c.outputs: assert not re.search(r'/(home|root|tmp|work|usr)/| at 0x[0-9a-f]{6}', str(o.get('text', '')) + str({k:v for k,v in o.get('data', {}).items() if k.startswith('text/')})), c.source

@pytest.mark.parametrize('page', [p for p in PAGES if not p.stem.startswith('2')], ids=lambda p: p.stem)
def test_the_page_opens_with_what_its_reader_can_do_afterwards_and_asserts(page):
    text,*_ = [c.source for c in read(page).cells if c.cell_type == 'markdown']
    assert re.match(r'# .+\n\n> .+', text) and 'After this page you can' in '\n'.join(c.source for c in read(page).cells[:2])
    assert sum('assert ' in c.source for c in code(read(page))) >= 3

def test_a_page_with_other_output_is_told():
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1 + 1'), nbformat.v4.new_code_cell('print(3)')])
    NotebookClient(nb, kernel_name='python3').execute()
    assert [kinds(c) for c in code(nb)] == [[['text/plain']], ['stdout']]

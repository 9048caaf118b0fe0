"""Every row of the contract in every column it has to do with; and that the contract notices a callback that breaks it."""
from pathlib import Path

import pytest
import torch
from contract import ROWS, table
from world import COLUMNS, faults

from fasterai_sched import Sparsifier, SparsifyCallback

# the cells of a row are of one run of it, and so of one process
CELLS = [pytest.param(row, column, id=f'{row.group}: {row.name} - {COLUMNS[column]}', marks=pytest.mark.xdist_group(f'{row.group}: {row.name}'))
         for row in ROWS for column in COLUMNS if column in row.applies]

@pytest.mark.parametrize('row,column', CELLS)
def test_contract(row, column): assert not faults(row)[column]

def test_rows_have_names_of_their_own(): assert len({(r.group, r.name) for r in ROWS}) == len(ROWS)

def test_the_table_of_the_docs_is_made_from_the_rows():
    page = Path(__file__).parents[1]/'nbs'/'guarantees.md'
    assert page.read_text(encoding='utf-8') == '\n'.join(table()) + '\n', 'make it again: make docs-run'

# -- a callback that breaks the contract is found out ------------------------------------------------------------------------------

def no_mask_after_the_step(m): m.setattr(SparsifyCallback, 'after_step', lambda self: setattr(self, '_stepping', False))
def print_the_target(m): m.setattr(SparsifyCallback, '_measured', lambda self, rep: self._in_force)
def buffers(m):
    setup = SparsifyCallback._setup
    def with_buffers(self):
        setup(self)
        for l in self.sparsifier.layers: l.module.register_buffer('_mask', torch.ones_like(l.weight))
    m.setattr(SparsifyCallback, '_setup', with_buffers)
def run_in_validation(m):
    m.setattr(SparsifyCallback, '_predicting', False)
    m.setattr(SparsifyCallback, 'before_validate', lambda self: self.before_train())
def masters_forgotten(m): m.setattr('fasterai_sched.callback.find_masters', lambda *args: {})
def momentum_stays(m): m.setattr(Sparsifier, 'mask_state', lambda self, state: None)

FAULTS = [(no_mask_after_the_step, 'an optimizer that adds noise to every weight', 'zero'), (masters_forgotten, 'fp32 masters of a bf16 model', 'averages'), (print_the_target, 'fit', 'numbers'),
          (buffers, 'fit', 'state'), (run_in_validation, 'validate', 'inert'), (run_in_validation, 'validate', 'prints'),
          (momentum_stays, 'Adam', 'averages'), (momentum_stays, 'OptimWrapper(AdamW)', 'averages')]

@pytest.mark.parametrize('break_it,name,column', FAULTS, ids=lambda x: getattr(x, '__name__', x))
def test_a_broken_callback_is_caught(break_it, name, column, monkeypatch):
    row = next(r for r in ROWS if r.name == name)
    assert not faults(row)[column]
    break_it(monkeypatch)
    assert faults.__wrapped__(row)[column]

"""DistributedDataParallel: two ranks on the CPU, with weights, data and random states of their own, must prune as one."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_worker import EPOCHS, ITEMS, PATIENCE, TARGET, bits
from helpers import tiny_model, zeros

import fasterai_sched
from fasterai_sched import criterias
from fasterai_sched.budgets import contexts

pytestmark = pytest.mark.xdist_group('ranks') # one launch for all

HERE,ROOT = Path(__file__).parent,Path(fasterai_sched.__file__).parents[1]
N = 108, 324 # weights of the two convolutions
DUE = [0, 15, 15, 30], [45, 45, 60, 60] # percent, at each step of each epoch; an epoch is validated at its last
DUE_FORWARD = [f for due in DUE for f in [*((True, d) for d in due), (False, due[-1])]]

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "One launch for all: to import fastai twice takes longer than the fits"
    folder = tmp_path_factory.mktemp('ranks')
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', HERE/'distributed_worker.py', folder]
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONPATH':str(ROOT)}
    done = subprocess.run(cmd, env=env, capture_output=True, text=True, timeout=PATIENCE + 30)
    done.folder = folder
    return done

@pytest.fixture
def ranks(run, criterion, context):
    "What the two saw of one fit"
    if run.returncode: pytest.fail('the ranks did not finish: see test_both_ranks_finish', pytrace=False)
    return [json.loads((run.folder/f'rank{r}.json').read_text())[f'{criterion}-{context}'] for r in range(2)]

def each_fit(f): return pytest.mark.parametrize('context', contexts)(pytest.mark.parametrize('criterion', criterias)(f))

def exact(zeros, percent, context):
    "Whether there are as many as asked: in each layer, or in all"
    return zeros == [percent*n//100 for n in N] if context == 'local' else sum(zeros) == percent*sum(N)//100

def test_both_ranks_finish(run): assert run.returncode == 0, run.stderr[-6000:]

@each_fit
def test_the_ranks_are_two_and_differ(ranks):
    a,b = ranks
    assert [r['world'] for r in ranks] == [['gloo', 2, 0], ['gloo', 2, 1]]
    assert {e['model'] for r in ranks for e in r['epochs']} == {'DistributedDataParallel'}
    assert a['start'] != b['start']
    mine,other = [{x for f in r['forwards'] if f['training'] for x in f['items']} for r in ranks]
    assert len(mine | other) == ITEMS
    for f,g in zip(a['forwards'], b['forwards']): assert not set(f['items']) & set(g['items'])

@each_fit
def test_weights_and_masks_are_the_same_bits(ranks):
    a,b = ranks
    for e,f in zip(a['epochs'], b['epochs'], strict=True): assert e['weights'] == f['weights'] and e['masks'] == f['masks']
    assert len({e['weights']['3.weight'] for e in a['epochs']}) == EPOCHS # and they train

@each_fit
def test_names_are_those_of_the_plain_model(ranks):
    for e in [e for r in ranks for e in r['epochs']]:
        assert e['report'] == ['0', '3']
        assert list(e['masks']) == [n for n,z in zip('03', e['zeros']) if z]

@each_fit
def test_asked_is_applied_is_reported(ranks, context):
    for r in ranks:
        assert all(exact(e['zeros'], due[-1], context) for e,due in zip(r['epochs'], DUE, strict=True))
        assert r['column'] == [100*sum(e['zeros'])/sum(N) for e in r['epochs']]

@each_fit
def test_pruned_is_zero_at_each_forward(ranks, context):
    for r in ranks:
        for f,(training,due) in zip(r['forwards'], DUE_FORWARD, strict=True):
            assert f['training'] == training and exact(f['zeros'], due, context) and f['loud'] == 0

@each_fit
def test_only_rank_0_prints(ranks):
    a,b = ranks
    assert [l for l in a['out'].splitlines() if l.startswith('Sparsity at')] == [
        f'Sparsity at the end of epoch {i}: [{round(v, 2)}]%' for i,v in enumerate(a['column'])]
    assert a['out'].splitlines()[-1].startswith('Overall')
    assert b['out'] == ''

@each_fit
def test_the_weights_load_into_a_plain_model(run, ranks, criterion, context):
    for i,r in enumerate(ranks):
        model = tiny_model(seed=2)
        model.load_state_dict(torch.load(run.folder/f'{criterion}-{context}-rank{i}.pth', weights_only=True))
        assert bits(model.named_parameters()) == r['epochs'][-1]['weights'] and exact(zeros(model), TARGET, context)

"""N:M patterns and blocks: exact in every group of every layer type, on the way and at the end of a real fit."""
import warnings
from itertools import product
from math import floor

import pytest
import torch
from fastai.vision.all import Adam
from helpers import Spy, tiny_dls, tiny_learner
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fasterai_sched import Criteria, Granularities, Sparsifier, SparsifyCallback, criterias, is_nm, sparsity_report
from fasterai_sched.budgets import contexts
from fasterai_sched.granularity import as_nm
from fasterai_sched.masks import lowest_of_each, n_pruned

PATTERNS = [(2, 4), (1, 4), (4, 8), (3, 4), (1, 2), (1, 3), (5, 7)]
TYPES = {nn.Linear:lambda m: nn.Linear(2*m, 3), nn.Conv1d:lambda m: nn.Conv1d(2*m, 3, 3), nn.Conv2d:lambda m: nn.Conv2d(2*m, 3, (2, 3)), nn.Conv3d:lambda m: nn.Conv3d(m, 2, 2),
         nn.ConvTranspose1d:lambda m: nn.ConvTranspose1d(2*m, 3, 3), nn.ConvTranspose2d:lambda m: nn.ConvTranspose2d(2*m, 3, 2), nn.ConvTranspose3d:lambda m: nn.ConvTranspose3d(m, 2, 2)}
KINDS = {'random':torch.randn_like, 'tied':lambda w: torch.randn_like(w).round(), 'constant':lambda w: torch.full_like(w, .3)}

def blocks(m, w=None):
    "The weights with the input channels last, found without the library"
    w = m.weight.detach() if w is None else w
    return w.movedim(0 if 'Transpose' in type(m).__name__ else 1, -1)
def zeros_of_each(m, group): return (blocks(m) == 0).unflatten(-1, (-1, group)).sum(-1)
def fill(m, kind):
    m.weight.data = KINDS[kind](m.weight)
    if kind == 'tied': m.weight.data[m.weight == 0] = 1
    return m

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('nm', PATTERNS)
@pytest.mark.parametrize('t', TYPES)
def test_every_group_has_exactly_that_many_zeros_and_they_are_the_lowest(t, nm, kind):
    n,m = nm
    layer = fill(TYPES[t](m), kind)
    before = blocks(layer).clone().unflatten(-1, (-1, m))
    sp = Sparsifier(nn.Sequential(layer), nm=nm, layer_type=t)
    sp.sparsify_model(100*(m - n)/m)
    assert (zeros_of_each(layer, m) == m - n).all() and is_nm(layer, nm) and sp.sparsity == pytest.approx(100*(m - n)/m)
    after = blocks(layer).unflatten(-1, (-1, m))
    low,high = before.abs().masked_fill(after != 0, -1).amax(-1),before.abs().masked_fill(after == 0, 9).amin(-1)
    assert (low <= high).all() and torch.equal(before[after != 0], after[after != 0])
    if kind == 'constant': assert (after[..., :m-n] == 0).all() # by position

@pytest.mark.parametrize('context', contexts)
@pytest.mark.parametrize('nm', PATTERNS)
def test_on_the_way_the_floor_of_the_blocks_conforms_and_the_others_are_dense(nm, context):
    n,m = nm
    sp = Sparsifier(nn.Sequential(TYPES[nn.Conv2d](m), nn.Conv2d(2*m, 2, 2)), context=context, nm=nm)
    full,total = 100*(m - n)/m,sum(l.numel for l in sp.layers)//m
    for part in (0, .1, .33, .5, .9, 1, .4, 1):
        sp.sparsify_model(full*part)
        for l in sp.layers: l.weight.data[(l.weight == 0) & (True if l.keep is None else l.keep)] = .01 # what came back trains
        each = [zeros_of_each(l.module, m) for l in sp.layers]
        assert all(set(e.flatten().tolist()) <= {0, m - n} for e in each)
        done = [int((e > 0).sum()) for e in each]
        assert done == [l.dead for l in sp.layers]
        if context == 'local': assert done == [floor(part*l.n + 1e-9) for l in sp.layers]
        elif context == 'global': assert sum(done) == floor(part*total + 1e-9)
        else: assert sum(done) == n_pruned(full*part, total*m)//(m - n)
    assert all(is_nm(l.module, nm) for l in sp.layers)

def test_the_blocks_that_lose_least_go_first():
    m = nn.Linear(8, 2, bias=False)
    m.weight.data = torch.tensor([[1., 9, 1, 9, 4, 4, 5, 5], [3, 3, 7, 7, .5, 8, 8, 8]]) # they cost 2, 8, 6 and 8.5
    sp = Sparsifier(nn.Sequential(m), nm=True, layer_type=nn.Linear)
    sp.sparsify_model(12.5)
    assert m.weight.tolist() == [[0, 9, 0, 9, 4, 4, 5, 5], [3, 3, 7, 7, .5, 8, 8, 8]]
    sp.sparsify_model(25)
    assert m.weight.tolist() == [[0, 9, 0, 9, 4, 4, 5, 5], [0, 0, 7, 7, .5, 8, 8, 8]]

@given(data=st.data())
def test_the_lowest_of_each_group_are_those_of_a_sort(data):
    m,k = data.draw(st.integers(1, 8)),None
    k = data.draw(st.integers(0, m))
    rows = data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=m, max_size=m), min_size=1, max_size=5))
    cost,low = lowest_of_each(torch.tensor(rows).float(), 1, k)
    for r,c,l in zip(rows, cost.flatten().tolist(), low.tolist()):
        order = sorted(range(m), key=lambda i: r[i])[:k]
        assert c == sum(r[i] for i in order) and {i for i in range(m) if l[i]} == set(order)

@pytest.mark.parametrize('name', criterias)
def test_any_criterion_makes_the_pattern(name):
    sp = Sparsifier(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(4, 5)), nm=(1, 4), criteria=name, layer_type=nn.Linear)
    for l in sp.layers:
        l.weight.grad = torch.randn_like(l.weight)
        if sp.criteria.needs_data: l.inputs = torch.rand_like(l.weight)
    sp.collect_grads()
    sp.sparsify_model(75)
    assert all((zeros_of_each(l.module, 4) == 3).all() for l in sp.layers)

def test_what_is_pruned_of_a_block_stays_pruned():
    m = fill(nn.Linear(8, 4), 'random')
    sp = Sparsifier(nn.Sequential(m), nm=True, layer_type=nn.Linear)
    sp.sparsify_model(25)
    first = m.weight == 0
    m.weight.data = torch.where(first, 0, torch.randn_like(m.weight))
    sp.sparsify_model(50)
    assert (m.weight[first] == 0).all() and (zeros_of_each(m, 4) == 2).all()

def test_a_model_that_has_the_pattern_keeps_it():
    m = fill(nn.Linear(8, 4), 'random')
    Sparsifier(nn.Sequential(m), nm=True, layer_type=nn.Linear).sparsify_model(50)
    zero = m.weight == 0
    sp = Sparsifier(nn.Sequential(m), nm=True, layer_type=nn.Linear)
    assert sp.layers[0].dead == 8 and torch.equal(~sp.masks['0'], zero)
    m.weight.data = torch.randn_like(m.weight)
    sp.apply_masks()
    assert torch.equal(m.weight == 0, zero)

def test_blocks_with_more_zeros_than_asked_hold_them_all():
    m = nn.Linear(4, 3, bias=False)
    m.weight.data = torch.tensor([[0., 0, 0, 1], [0, 2, 3, 4], [5, 6, 7, 8]])
    with pytest.warns(UserWarning, match='1 single zeros outside of wholly zero groups'): sp = Sparsifier(nn.Sequential(m), nm=True, layer_type=nn.Linear)
    assert sp.layers[0].dead == 1 and sp.sparsity == 25
    sp.sparsify_model(50)
    assert m.weight.tolist() == [[0, 0, 0, 1], [0, 0, 3, 4], [0, 0, 7, 8]] and sp.sparsity == 100*7/12

# -- in a fit --------------------------------------------------------------------------------------------------------------------

class Net(nn.Module):
    "Every kind of layer that may have a pattern, and a stem that can't"
    def __init__(self):
        super().__init__()
        self.stem,self.conv,self.one,self.three,self.head = nn.Conv2d(2, 8, 3, padding=1),nn.Conv2d(8, 8, 3),nn.Conv1d(8, 8, 2),nn.Conv3d(8, 4, 1),nn.Linear(60, 3)
    def forward(self, x):
        x = self.conv(self.stem(x).relu()).relu()
        x = self.one(x.flatten(2)).relu()
        return self.head(self.three(x[..., None, None]).flatten(1).relu())

MANY = nn.Conv1d,nn.Conv2d,nn.Conv3d,nn.Linear

@pytest.mark.parametrize('context', contexts)
@pytest.mark.parametrize('nm,schedule', [((2, 4), 'agp'), ((1, 4), 'lin'), ((2, 4), 'cyclic'), ((1, 4), 'ac_dc')])
def test_at_the_end_of_a_fit_every_block_conforms(nm, schedule, context, capsys):
    cb = SparsifyCallback(nm=nm, schedule=schedule, context=context, layer_type=MANY)
    learn = tiny_learner(Net(), opt_func=Adam, wd=.1)
    exact = Spy('after_pred', lambda l: cb.sparsifier is None or all(not l.weight[~l.keep].any() for l in cb.sparsifier.layers if l.keep is not None))
    with pytest.warns(UserWarning, match=r"Left dense, as nm=\(\d, 4\) does not fit: stem \(2 input channels are no multiple of 4\)"): learn.fit(3, cbs=[cb, exact])
    m,full = learn.model,100*(nm[1] - nm[0])//nm[1]
    assert all(exact.seen) and m.stem.weight.all()
    for l in (m.conv, m.one, m.three, m.head): assert is_nm(l, nm) and (schedule in ('cyclic', 'ac_dc') or (zeros_of_each(l, nm[1]) == nm[1] - nm[0]).all())
    rep = cb.sparsifier.report()
    assert [r.name for r in rep.rows] == ['conv', 'one', 'three', 'head'] and rep.sparsity >= full
    html = rep._repr_html_()
    assert f'{nm[0]}:{nm[1]} holds in 4 of 4 layers' in html and 'stem is left dense: 2 input channels are no multiple of 4' in html
    out = capsys.readouterr().out
    assert f'Pruning of {nm[0]}:{nm[1]} weights until a sparsity of [{full}]%' in out and f'Final Sparsity: [{full}' in out

def test_the_pattern_is_a_target_of_its_own(capsys):
    for kwargs in (dict(), dict(sparsity=66.67), dict(sparsity=200/3)):
        cb = SparsifyCallback(nm=(1, 3), schedule='one_shot', **kwargs)
        learn = tiny_learner(nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 3, 2), nn.Flatten(), nn.Linear(75, 3)))
        with pytest.warns(UserWarning, match='Left dense'): learn.fit(2, cbs=cb)
        assert int((learn.model[1].weight == 0).sum()) == 48 and is_nm(learn.model[1], (1, 3))

@pytest.mark.parametrize('kwargs,match', [
    (dict(sparsity=90, nm=True), r'sparsity=90: an N:M pattern of \(2, 4\) has a sparsity of 50'), (dict(sparsity=[50, 25], nm=True), 'sparsity=25: an N:M pattern'),
    (dict(nm=(4, 2)), r'nm=\(4, 2\) must be \(n, m\) with 0 < n < m'), (dict(nm=(0, 4)), 'must be'), (dict(nm=(2, 4, 8)), 'must be'), (dict(nm='2:4'), "nm='2:4' must be"), (dict(nm=(2., 4)), 'must be'),
    (dict(nm=True, granularity='filter'), "granularity='filter' does not go with it"), (dict(nm=True, granularity=(2, 2)), r'granularity=\(2, 2\) does not go with it'),
    (dict(nm=True, round_to=8), 'round_to=8 does not go with nm'), (dict(nm=True, start_sparsity=60), r'start_sparsity=60 is above what an N:M pattern of \(2, 4\) prunes, 50%')])
def test_patterns_that_make_no_sense_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match): SparsifyCallback(**kwargs)

def test_patterns_no_layer_can_have_are_refused_before_training():
    learn = tiny_learner()
    with pytest.raises(ValueError, match=r'nm=\(2, 4\) does not fit any layer: 0 \(2 input channels are no multiple of 4\); 3 \(6 input'): learn.fit(1, cbs=SparsifyCallback(nm=True))
    with pytest.raises(ValueError, match=r"nm=\(1, 3\) does not fit the layers named: 0 \(2 input channels are no multiple of 3\)"): learn.fit(1, cbs=SparsifyCallback(nm=(1, 3), layers=['0', '3']))
    with pytest.raises(ValueError, match='Embedding has no input channels'): Sparsifier(nn.Sequential(nn.Embedding(4, 4)), nm=True, layer_type=nn.Embedding)
    with pytest.raises(ValueError, match=r'sparsity=60 is above what an N:M pattern of \(2, 4\) prunes, 50%'): Sparsifier(nn.Sequential(nn.Linear(4, 4)), nm=True, layer_type=nn.Linear).sparsify_model(60)
    assert as_nm(True) == (2, 4) and as_nm([1, 4]) == (1, 4) and as_nm(False) is as_nm(None) is None

def test_attention_and_rnns_may_have_patterns():
    m = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.LSTM(8, 4)])
    sp = Sparsifier(m, nm=True, layer_type=(nn.MultiheadAttention, nn.RNNBase))
    sp.sparsify_model(50)
    assert [l.name for l in sp.layers] == ['0.in_proj_weight', '1.weight_ih_l0', '1.weight_hh_l0'] and all(is_nm(l.module, (2, 4), l.weight) for l in sp.layers)

def test_conformity_can_be_asked_of_any_layer():
    m = nn.Linear(4, 1)
    for row,nm,yes in (([1., 0, 1, 0], (2, 4), True), ([1, 1, 1, 0], (2, 4), False), ([0, 0, 0, 0], (2, 4), True), ([0, 1, 1, 0], (1, 2), True), ([0, 0, 1, 1], (1, 2), False)):
        m.weight.data = torch.tensor([row]).float()
        assert is_nm(m, nm) is yes
    assert not is_nm(m, (1, 3)) and not is_nm(nn.Embedding(4, 4))
    for bad,match in ((nn.Sequential(m), 'Sequential has no weight of its own'), (nn.LSTM(4, 4), 'LSTM has no weight of its own')):
        with pytest.raises(ValueError, match=match): is_nm(bad)
    with pytest.raises(ValueError, match='nm=False is no pattern'): is_nm(m, False)

def test_channels_last_weights_get_the_same_pattern():
    a = nn.Sequential(nn.Conv2d(8, 4, 3))
    b = nn.Sequential(nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    b.load_state_dict(a.state_dict())
    for m in (a, b):
        sp = Sparsifier(m, nm=True)
        for s in (20, 50, 30, 50): sp.sparsify_model(s)
    assert torch.equal(a[0].weight, b[0].weight) and is_nm(b[0])

# -- blocks ----------------------------------------------------------------------------------------------------------------------

def brute_blocks(m, size):
    "{block: the indices of its weights}, block sizes along output, input, space"
    w,out,inp = m.weight,Granularities.out_dim(m) or 1,Granularities.in_dim(m) or 2
    order = [out-1, inp-1, *(d for d in range(w.ndim) if d not in (out-1, inp-1))]
    per = {d:s for d,s in zip(order, size)}
    groups = {}
    for at in product(*map(range, w.shape)): groups.setdefault(tuple(i//per.get(d, 1) for d,i in enumerate(at)), []).append(at)
    return groups

@pytest.mark.parametrize('size', [(4, 1), (2, 2), (1, 4), (2,), (1, 2, 2), (4, 4, 2)])
@pytest.mark.parametrize('make', [lambda: nn.Linear(8, 8), lambda: nn.Conv1d(8, 4, 2), lambda: nn.Conv2d(4, 8, 2), lambda: nn.ConvTranspose2d(4, 8, 2), lambda: nn.Embedding(8, 4), lambda: nn.Conv3d(4, 4, 2)])
def test_blocks_live_or_die_together(make, size):
    m = make()
    if len(size) > m.weight.ndim: return pytest.raises(ValueError, Sparsifier, nn.Sequential(m), size, layer_type=type(m))
    groups = brute_blocks(m, size)
    scores = {b:sum(float(m.weight.detach()[i].abs()) for i in at)/len(at) for b,at in groups.items()}
    sp = Sparsifier(nn.Sequential(m), size, layer_type=type(m))
    assert sp.layers[0].n == len(groups)
    for s in (30, 60, 45):
        sp.sparsify_model(s)
        m.weight.data[(m.weight == 0) & sp.masks.get('0', torch.ones_like(m.weight) == 1)] = .01 # what came back trains
        gone = {b for b,at in groups.items() if not any(float(m.weight.detach()[i]) for i in at)}
        assert len(gone) == n_pruned(s, len(groups)) and int((m.weight == 0).sum()) == len(gone)*sp.layers[0].size
        if s == 60: assert max(scores[b] for b in gone) <= min(scores[b] for b in groups if b not in gone) + 1e-6
    for keep in sp.masks.values(): assert keep.shape == m.weight.shape and torch.equal(m.weight != 0, keep)

def test_blocks_in_a_fit(capsys):
    cb = SparsifyCallback(50, (3, 2), schedule='lin')
    learn = tiny_learner(opt_func=Adam, wd=.1)
    learn.fit(2, cbs=cb)
    assert 'Pruning of 3x2 blocks until a sparsity of [50]%' in capsys.readouterr().out
    for m in (learn.model[0], learn.model[3]):
        each = (m.weight == 0).unflatten(0, (-1, 3)).unflatten(2, (-1, 2)).sum((1, 3))
        assert set(each.flatten().tolist()) == {0, 6} and (each == 6).sum() == each.numel()//2

@pytest.mark.parametrize('granularity,match', [((0, 1), 'a block is its size'), ((1, 1), 'a block is its size'), ((), 'a block is'), ((2.5,), 'a block is'), ((True, 2), 'a block is'), (3, 'granularity=3 must be a name')])
def test_blocks_that_make_no_sense_are_refused(granularity, match):
    with pytest.raises(ValueError, match=match): SparsifyCallback(50, granularity)

def test_layers_whose_size_is_no_multiple_are_left_dense_and_named():
    with pytest.warns(UserWarning, match=r"Left dense, as granularity=\(4, 1\) does not fit: 0 \(6 output channels are no multiple of 4\)"):
        sp = Sparsifier(nn.Sequential(nn.Conv2d(2, 6, 3), nn.Conv2d(6, 8, 3)), (4, 1))
    assert [l.name for l in sp.layers] == ['1'] and sp.left_out == {'0':'6 output channels are no multiple of 4'}
    with pytest.raises(ValueError, match=r'granularity=\(1, 1, 2\) does not fit any layer: 0 \(3 along space are no multiple of 2\)'): Sparsifier(nn.Sequential(nn.Conv2d(2, 6, 3)), (1, 1, 2))
    with pytest.raises(ValueError, match='a block of 3 dimensions does not fit its 2'): Sparsifier(nn.Sequential(nn.Linear(2, 6)), (1, 2, 2), layer_type=nn.Linear)

def test_zero_blocks_at_the_start_count_as_pruned():
    m = nn.Linear(4, 4)
    m.weight.data[:2, :2] = 0
    sp = Sparsifier(nn.Sequential(m), (2, 2), layer_type=nn.Linear)
    assert sp.layers[0].dead == 1 and sp.sparsity == 25 and not sp.sparsify_model(25)

def test_a_criterion_sees_each_weight_once():
    seen = []
    Sparsifier(nn.Sequential(nn.Linear(4, 4)), (2, 2), criteria=Criteria(lambda w: seen.append(w.numel()) or w.abs()), layer_type=nn.Linear).sparsify_model(50)
    assert seen == [16]

def test_a_plain_report_of_the_pattern():
    m = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    sp = Sparsifier(m, nm=True, layer_type=nn.Linear, layers='0')
    sp.sparsify_model(25)
    assert '2:4 holds in 0 of 1 layers, and not yet in 0' in sp.report()._repr_html_() and '2:4' not in str(sp.report())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert sparsity_report(m, nn.Linear).zeros == 8

def test_dls_are_tiny(): assert len(tiny_dls().train) == 4

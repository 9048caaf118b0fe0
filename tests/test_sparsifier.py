"""Sparsifier: zeros in the weights = the floor = the masks = the report, for everything there is, and nothing else is touched."""
import copy
import random as pyrandom
import warnings
from collections import OrderedDict
from fractions import Fraction
from math import floor, inf, nan

import numpy as np
import pytest
import torch
from helpers import SEVERAL
from hypothesis import given, strategies as st
from torch import nn, tensor
from torch.nn.utils import parametrizations, prune

from fasterai_sched.criteria import Criteria, Normalizer, criterias
from fasterai_sched.granularity import Granularities
from fasterai_sched.schedules import agp, lin
from fasterai_sched.budgets import contexts
from fasterai_sched.sparsifier import Sparsifier

pairs = {nn.Conv2d:lambda: (nn.Conv2d(3, 8, (2, 5)), nn.Conv2d(8, 5, 2)),
         nn.ConvTranspose2d:lambda: (nn.ConvTranspose2d(3, 8, (2, 5)), nn.ConvTranspose2d(8, 5, 2)),
         nn.Conv1d:lambda: (nn.Conv1d(3, 8, 5), nn.Conv1d(8, 5, 3)), nn.Linear:lambda: (nn.Linear(3, 8), nn.Linear(8, 5)),
         nn.ConvTranspose1d:lambda: (nn.ConvTranspose1d(3, 8, 5), nn.ConvTranspose1d(8, 5, 3)), nn.Embedding:lambda: (nn.Embedding(8, 3), nn.Embedding(5, 8)),
         nn.Conv3d:lambda: (nn.Conv3d(3, 4, (2, 2, 3)), nn.Conv3d(4, 5, 2)),
         nn.ConvTranspose3d:lambda: (nn.ConvTranspose3d(3, 4, (2, 2, 3)), nn.ConvTranspose3d(4, 5, 2))}
table = [(t, g) for t,row in Granularities._granularities.items() for g in row if t not in SEVERAL]

def linear(*rows):
    "A linear layer of these weights, a row a unit"
    m = nn.Linear(len(rows[0]), len(rows), bias=False)
    m.weight.data = tensor(rows, dtype=torch.float32)
    return m

def net(*layers): return nn.Sequential(*(linear(l) if isinstance(l, list) else l for l in layers))
def sparsifier(*layers, **kwargs): return Sparsifier(net(*layers), layer_type=kwargs.pop('layer_type', nn.Linear), **kwargs)
def weights(sp): return [l.weight.detach().flatten().tolist() for l in sp.layers]
def zeros(sp): return [int((l.weight == 0).sum()) for l in sp.layers]
def dead(sp): return [0 if l.mask is None else int((~l.mask).sum()) for l in sp.layers]
def exact(s, n): return floor(Fraction(str(s))*n/100)

def feed(sp, g=None):
    "What a criterion needs beside the weights, made up"
    for l in sp.layers:
        if sp.criteria.needs_grad: l.weight.grad = torch.randn(l.weight.shape, generator=g).to(l.weight.dtype)
        if sp.criteria.needs_data: l.inputs = torch.rand(l.weight.shape, generator=g) + .1
    sp.collect_grads()
    for l in sp.layers: l.weight.grad = None

def within(sp, target, context):
    "Whether as many are pruned as asked: groups in each layer, in all layers, or as many weights as whole groups make of them"
    if context == 'local': return dead(sp) == [exact(target, l.n) for l in sp.layers]
    if context == 'global': return sum(dead(sp)) == exact(target, sum(l.n for l in sp.layers))
    short = exact(target, sum(l.numel for l in sp.layers)) - sum(d*l.size for d,l in zip(dead(sp), sp.layers))
    return 0 <= short < max(l.size for l in sp.layers)

def train(sp, seed=0):
    "New values wherever they may be, none of them 0"
    g = torch.Generator().manual_seed(seed)
    for l in sp.layers: l.weight.data = (torch.rand(l.weight.shape, generator=g) + .1)*(1 if l.mask is None else l.mask)
    feed(sp, g)

def scores_now(sp):
    "The scores that the next move will see"
    g = torch.Generator()
    g.set_state(sp.generator.get_state())
    return [l.scores(sp.criteria, g)[0].flatten() for l in sp.layers]

# -- exact, and the right ones ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('context', contexts)
@pytest.mark.parametrize('t,g', table)
def test_zeros_are_the_floor_and_the_lowest_whatever_the_criterion(t, g, context):
    for name in criterias:
        sp = sparsifier(*pairs[t](), granularity=g, context=context, criteria=name, layer_type=t)
        for i,target in enumerate((0, .3, 37.5, 90, 100)):
            train(sp, i)
            scores, before = scores_now(sp), [torch.ones(l.n, dtype=torch.bool) if l.mask is None else l.mask.flatten() for l in sp.layers]
            sp.sparsify_model(target)
            after, rep = [torch.ones(l.n, dtype=torch.bool) if l.mask is None else l.mask.flatten() for l in sp.layers], sp.report()
            assert within(sp, target, context), name
            assert zeros(sp) == [d*l.weight.numel()//l.n for d,l in zip(dead(sp), sp.layers)] == [r.zeros for r in rep.rows], name
            assert abs(sp.sparsity - rep.sparsity) < 1e-9
            if context == 'global': scores, before, after = ([torch.cat(x)] for x in (scores, before, after))
            for s,b,a in zip(scores, before, after):
                assert not (a & ~b).any(), name
                if (b & ~a).any() and a.any(): assert s[b & ~a].max() <= s[a].min(), name

signed = [n for n,c in criterias.items() if not c.needs_rng and (n.startswith('small') or 'increase' in n or n == 'movement_pruning')]

def test_there_are_six_signed_criteria_and_random_ones_may_be_the_seventh(): assert len(signed) == 6 and criterias['random'].needs_rng

@pytest.mark.parametrize('name', [*signed, 'minus random'])
def test_signed_scores_of_layers_of_two_scales_are_one_order(name):
    "What a sort of both layers' scores, written out here, would prune"
    by_hand = dict(small_final=lambda w, r, g: -w.abs(), small_init=lambda w, r, g: -r.abs(), small_init_small_final=lambda w, r, g: -torch.max(w.abs(), r.abs()),
                   magnitude_increase=lambda w, r, g: w.abs() - r.abs(), updating_magnitude_increase=lambda w, r, g: w.abs() - r.abs(), movement_pruning=lambda w, r, g: -w*g)
    by_hand['minus random'] = lambda w, r, g: g
    g = torch.Generator().manual_seed(5)
    grads = []
    c = Criteria(lambda w, gen: next(draws), needs_rng=True) if name == 'minus random' else name
    sp = sparsifier(nn.Linear(20, 10), nn.Linear(10, 15), context='global', criteria=c)
    for l,scale in zip(sp.layers, (1, 100)): # the references, and then the weights
        l.ref = torch.randn(l.weight.shape, generator=g)*scale
        l.weight.data = torch.randn(l.weight.shape, generator=g)*scale
        l.weight.grad = torch.randn(l.weight.shape, generator=g)*scale
        grads.append(l.weight.grad.clone())
    draws = iter(grads)
    sp.collect_grads()
    scores = torch.cat([by_hand[name](l.weight.detach(), l.ref, x).flatten() for l,x in zip(sp.layers, grads)])
    assert (scores < 0).any()
    sp.sparsify_model(40)
    expected = torch.zeros(350, dtype=torch.bool)
    expected[scores.argsort(stable=True)[:140]] = True
    assert torch.equal(torch.cat([(torch.zeros_like(l.weight) == 1 if l.mask is None else ~l.mask).flatten() for l in sp.layers]), expected)

@pytest.mark.parametrize('context', contexts)
@pytest.mark.parametrize('t,g', table)
def test_ties_are_broken_by_position_and_counts_stay_exact(t, g, context):
    sp = sparsifier(*pairs[t](), granularity=g, context=context, layer_type=t)
    for l in sp.layers: nn.init.constant_(l.weight, -.25)
    n = [l.n for l in sp.layers]
    for target in (10, 37.5, 50, 62.5, 99):
        sp.sparsify_model(target)
        k = exact(target, sum(n))
        assert within(sp, target, context)
        if context == 'global': assert dead(sp) == [min(k, n[0]), max(k - n[0], 0)]
        for l,d in zip(sp.layers, dead(sp)): assert d == 0 or l.mask.flatten().tolist() == [False]*d + [True]*(l.n - d)

@pytest.mark.parametrize('context,target,expected', [
    ('local',  0,   [[1, -2, 3, -4], [.5, .6, 5, 6]]), ('local',  24.9, [[1, -2, 3, -4], [.5, .6, 5, 6]]),
    ('local',  25,  [[0, -2, 3, -4], [0, .6, 5, 6]]),  ('local',  50,   [[0, 0, 3, -4], [0, 0, 5, 6]]),
    ('local',  90,  [[0, 0, 0, -4], [0, 0, 0, 6]]),    ('local',  100,  [[0, 0, 0, 0], [0, 0, 0, 0]]),
    ('global', 12.4, [[1, -2, 3, -4], [.5, .6, 5, 6]]), ('global', 25,   [[1, -2, 3, -4], [0, 0, 5, 6]]),
    ('global', 50,  [[0, -0, 3, -4], [0, 0, 5, 6]]),   ('global', 75,   [[0, 0, 0, 0], [0, 0, 5, 6]]),
    ('global', 90,  [[0, 0, 0, 0], [0, 0, 0, 6]]),     ('global', 100,  [[0, 0, 0, 0], [0, 0, 0, 0]])])
def test_these_weights_are_left(context, target, expected):
    sp = sparsifier([1, -2, 3, -4], [.5, .6, 5, 6], context=context)
    sp.sparsify_model(target)
    assert [np.float32(w).tolist() for w in weights(sp)] == [np.float32(w).tolist() for w in expected]

def test_global_counts_groups_of_any_size():
    sp = Sparsifier(nn.Sequential(linear([1], [4]), linear([2, 2, 2], [3, 3, 3])), 'row', 'global', layer_type=nn.Linear)
    sp.sparsify_model(50)
    assert weights(sp) == [[0, 4], [0, 0, 0, 3, 3, 3]]
    assert (dead(sp), zeros(sp), sp.sparsity) == ([1, 1], [1, 3], 50)

def test_a_normalizer_makes_small_layers_count_under_global():
    sp = sparsifier([1, 2, 3, 4], [100, 200, 300, 400], context='global', criteria=Criteria(torch.abs, normalizer=Normalizer.max))
    sp.sparsify_model(50)
    assert weights(sp) == [[0, 0, 3, 4], [0, 0, 300, 400]]

@pytest.mark.parametrize('target,left', [(99.9, 3), (100, 0), (0, 3)])
@pytest.mark.parametrize('context', contexts)
def test_a_layer_of_one_weight_is_defined(target, left, context):
    sp = sparsifier([3.], context=context)
    sp.sparsify_model(target)
    assert weights(sp) == [[left]]

tenths = st.integers(0, 1000).map(lambda i: i/10)

@given(n_in=st.integers(1, 9), n_out=st.integers(1, 9), target=tenths, levels=st.integers(1, 4), data=st.data())
def test_any_size_any_target_any_ties(n_in, n_out, target, levels, data):
    g, context = data.draw(st.sampled_from(list(Granularities.allowed_granularities(nn.Linear)))), data.draw(st.sampled_from(list(contexts)))
    sp = Sparsifier(nn.Sequential(nn.Linear(n_in, n_out), nn.Linear(n_out, n_in)), g, context, layer_type=nn.Linear)
    for l in sp.layers: l.weight.data = torch.randint(1, levels + 1, l.weight.shape).float()
    sp.sparsify_model(target)
    assert within(sp, target, context)
    assert zeros(sp) == [d*l.size for d,l in zip(dead(sp), sp.layers)]

@given(start=st.lists(st.sampled_from([0., 0., 1., 2.]), min_size=1, max_size=12).filter(any),
       targets=st.lists(st.integers(0, 100), min_size=1, max_size=6))
def test_zeros_at_the_start_stay_until_the_targets_fall_then_counts_are_exact(start, targets):
    sp, n, fallen = sparsifier(start), len(start), False
    for i,target in enumerate(targets):
        fallen |= i > 0 and target < targets[i-1]
        sp.sparsify_model(target)
        assert dead(sp) == [exact(target, n) if fallen else max(exact(target, n), start.count(0))]
        train(sp, i)
        assert zeros(sp) == dead(sp)

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize('name', list(criterias))
def test_weights_of_any_precision_are_pruned_exactly_and_keep_it(name, dtype):
    sp = Sparsifier(nn.Sequential(nn.Linear(17, 9), nn.Linear(9, 7)).to(dtype), criteria=name, layer_type=nn.Linear)
    feed(sp)
    sp.sparsify_model(37.5)
    assert zeros(sp) == [57, 23]
    assert {l.weight.dtype for l in sp.layers} == {dtype}

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_prune_the_right_ones(dtype):
    sp = sparsifier([5, 1, 7, 2, 6, 3, 4], criteria=lambda w: w.abs().to(dtype))
    sp.sparsify_model(50)
    assert weights(sp) == [[5, 0, 7, 0, 6, 0, 4]]

@pytest.mark.parametrize('g', list(Granularities.allowed_granularities(nn.Conv2d)))
@pytest.mark.parametrize('context', contexts)
def test_channels_last_makes_no_difference(g, context):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 2))
    last  = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    sps   = [Sparsifier(m, g, context) for m in (plain, last)]
    for target in (40, 70, 20, 60):
        for sp in sps: sp.sparsify_model(target)
        assert all(torch.equal(a.weight, b.weight) for a,b in zip(plain, last))
        assert all(torch.equal(sps[0].masks[n], m) for n,m in sps[1].masks.items())
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)

@pytest.mark.parametrize('name', list(criterias))
def test_two_runs_prune_the_same(name):
    torch.manual_seed(3)
    m = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 4))
    a, b = (Sparsifier(copy.deepcopy(m), criteria=name, layer_type=nn.Linear) for _ in range(2))
    for sp in (a, b):
        feed(sp, torch.Generator().manual_seed(1))
        sp.sparsify_model(30)
        train(sp)
        sp.sparsify_model(60)
    assert weights(a) == weights(b)

# -- up, down and again ----------------------------------------------------------------------------------------------------------

def test_whether_a_mask_moved_is_told():
    sp = sparsifier([1, 2, 3, 4])
    assert [sp.sparsify_model(s) for s in (0, 20, 25, 25, 30, 50, 25, 25, 0)] == [False, False, True, False, False, True, True, False, True]

def test_what_is_pruned_stays_pruned_while_the_target_rises():
    sp = sparsifier([1, 2, 3, 4])
    sp.sparsify_model(50)
    sp.layers[0].weight.data = tensor([[9., 9, 1, 2]])
    sp.sparsify_model(75)
    assert weights(sp) == [[0, 0, 0, 2]]

def test_weights_come_back_at_zero_and_the_last_first():
    sp = sparsifier([1, 2, 3, 4])
    sp.sparsify_model(75)
    sp.sparsify_model(25)
    assert weights(sp) == [[0, 0, 0, 4]]
    assert sp.masks['0'].tolist() == [[False, True, True, True]]
    train(sp)
    assert zeros(sp) == [1]

def test_a_target_of_zero_brings_everything_back():
    sp = sparsifier([1, 2, 3, 4])
    sp.sparsify_model(75)
    sp.sparsify_model(0)
    assert sp.masks == {} and sp.sparsity == 0

@pytest.mark.parametrize('context', contexts)
def test_asked_again_after_training_the_zeros_are_there_again(context):
    sp = sparsifier([1, 2, 3, 4], [1, 2, 3, 4], context=context)
    sp.sparsify_model(50)
    for l in sp.layers: nn.init.ones_(l.weight) # an optimizer that knows nothing of masks
    sp.sparsify_model(50)
    assert weights(sp) == [[0, 0, 1, 1]]*2 and [r.zeros for r in sp.report().rows] == dead(sp)

@pytest.mark.parametrize('context', contexts)
def test_asked_again_after_one_layer_was_pruned_more_the_count_is_what_was_asked(context):
    sp = sparsifier([1, 2, 3, 4], [5, 6, 7, 8], context=context)
    sp.sparsify_model(50)
    sp.sparsify_layer('1', 75)
    sp.sparsify_model(50)
    assert sp.sparsity == 50

def test_a_sparse_model_keeps_its_zeros_at_a_lower_target_and_falls_exactly_after():
    sp = sparsifier([0, 0, 0, 4])
    assert (dead(sp), sp.sparsity) == ([3], 75)
    assert not sp.sparsify_model(50)
    assert dead(sp) == [3]
    assert sp.sparsify_model(25)
    assert dead(sp) == [1] and sp.masks['0'].tolist() == [[False, True, True, True]]

def test_a_sparse_model_falls_exactly_even_where_the_fall_is_less_than_a_group():
    sp = sparsifier([0, 0, 0, 4])
    sp.sparsify_model(60)
    sp.sparsify_model(55)
    assert dead(sp) == [2]

def test_zeros_at_the_start_are_counted_layer_by_layer():
    sp = sparsifier([0, 0, 3, 4], [1, 2, 3, 4])
    sp.sparsify_model(25)
    assert weights(sp) == [[0, 0, 3, 4], [0, 2, 3, 4]]

def test_zeros_at_the_start_are_part_of_a_global_budget():
    sp = sparsifier([0, 0, 3, 4], [1, 2, 5, 6], context='global')
    sp.sparsify_model(50)
    assert weights(sp) == [[0, 0, 3, 4], [0, 0, 5, 6]]

def test_only_groups_that_are_wholly_zero_count_as_pruned():
    sp = Sparsifier(nn.Sequential(linear([0, 0], [0, 1], [2, 2])), 'row', layer_type=nn.Linear)
    assert dead(sp) == [1] and sp.masks['0'].tolist() == [[False], [True], [True]]

@pytest.mark.parametrize('context', contexts)
def test_a_wholly_zero_tensor_warns_and_stays_trainable(context):
    with pytest.warns(UserWarning, match="weights of layer '1' are all zero: taken for an initialisation"):
        sp = sparsifier([1, 2, 3, 4], [0, 0, 0, 0], context=context)
    assert sp.masks == {}
    train(sp)
    assert zeros(sp) == [0, 0]
    sp.sparsify_model(50)
    assert sum(zeros(sp)) == 4

def test_a_model_without_zeros_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        sparsifier([1, 2, 3, 4]).sparsify_model(100)

@pytest.mark.parametrize('name', [n for n,c in criterias.items() if c.needs_ref])
def test_the_reference_is_of_the_start_or_of_the_last_move(name):
    sp = sparsifier([1, 2, 3, 4], criteria=name)
    sp.layers[0].weight.data = tensor([[4., 3, 2, 1]])
    assert sp.layers[0].ref.tolist() == [[1, 2, 3, 4]]
    sp.sparsify_model(25)
    assert torch.equal(sp.layers[0].ref, sp.layers[0].weight) == sp.criteria.needs_update
    assert sp.layers[0].ref.data_ptr() != sp.layers[0].weight.data_ptr()

def test_a_criterion_that_compares_with_the_start_prunes_these():
    sp = sparsifier([1, 2, 3, 4], criteria='movement')
    sp.layers[0].weight.data = tensor([[1.5, 5., 3.1, -4]]) # moved by .5, 3, .1, 8
    sp.sparsify_model(50)
    assert weights(sp) == [[0, 5, 0, -4]]

def test_a_pruned_weight_is_exactly_zero_even_where_it_was_infinite():
    sp = sparsifier([inf, -inf, 2, 3], criteria='small_final')
    sp.sparsify_model(50)
    assert weights(sp) == [[0, 0, 2, 3]]

# -- round_to --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('round_to,left', [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (8, 8), (16, 10)])
def test_round_to_rounds_up_the_groups_kept_and_keeps_the_highest(round_to, left):
    sp = sparsifier([5, 9, 2, 7, 1, 10, 3, 8, 4, 6])
    sp.sparsify_model(90, round_to)
    assert sorted(w for w in weights(sp)[0] if w) == list(range(11 - left, 11))

def test_round_to_under_global_keeps_the_highest_of_each_layer():
    sp = sparsifier([3, 2, 1, 4], context='global')
    sp.sparsify_model(75, round_to=2)
    assert weights(sp) == [[3, 0, 0, 4]]

def test_round_to_under_global_rounds_each_layer():
    sp = sparsifier([8, 1, 7, 2], [4, 6, 5, 3], [.1, .2, .3, .4], context='global')
    sp.sparsify_model(75, round_to=2) # 9 of 12: 7, 8 and 6 are kept, and 5 to make it two of a layer
    assert weights(sp) == [[8, 0, 7, 0], [0, 6, 5, 0], [0, 0, 0, 0]]

@given(data=st.data(), round_to=st.integers(1, 5), target=st.integers(0, 100))
def test_round_to_under_global_does_not_depend_on_the_order_of_layers(data, round_to, target):
    sizes = data.draw(st.lists(st.integers(1, 8), min_size=2, max_size=4))
    values = data.draw(st.permutations(range(1, sum(sizes) + 1)))
    rows = [[values.pop() for _ in range(n)] for n in sizes]
    sps = [sparsifier(*r, context='global') for r in (rows, rows[::-1])]
    for sp in sps: sp.sparsify_model(target, round_to)
    assert weights(sps[0]) == weights(sps[1])[::-1]
    for r,w in zip(rows, weights(sps[0])):
        kept = [x for x in w if x]
        assert kept == [] or len(kept) == len(r) or len(kept) % round_to == 0
        assert sorted(kept) == sorted(r)[len(r) - len(kept):]

@pytest.mark.parametrize('context', contexts)
def test_round_to_holds_while_the_target_rises_and_falls(context):
    sp = Sparsifier(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3)), 'filter', context)
    for i,target in enumerate((10, 30, 55, 80, 95, 60, 20, 70)):
        train(sp, i)
        old = dead(sp)
        sp.sparsify_model(target, round_to=8)
        assert all((l.n - d) % 8 == 0 for l,d in zip(sp.layers, dead(sp)))
        assert sum(dead(sp)) <= exact(target, 40)
        if target in (30, 55, 80, 95): assert all(a <= b for a,b in zip(old, dead(sp)))

@pytest.mark.parametrize('round_to', [0, -8, 8., True, '8'])
def test_what_is_no_multiple_is_refused(round_to):
    sp = sparsifier([1, 2, 3, 4])
    for f in (lambda: sp.sparsify_model(50, round_to), lambda: sp.sparsify_layer('0', 50, round_to)):
        with pytest.raises(ValueError, match=f'round_to={round_to!r} must be a whole number of at least 1, or None'): f()
    assert weights(sp) == [[1, 2, 3, 4]]

# -- one value a layer -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('sparsity,expected', [
    ([25, 50], [1, 2]), ((100, 0), [4, 0]), ({'1':75}, [0, 3]), ({'1':25, '0':50}, [2, 1]), ({}, [0, 0]),
    (np.float32(50), [2, 2]), (np.int64(25), [1, 1]), (50., [2, 2])])
def test_sparsity_is_a_number_a_list_or_a_dict(sparsity, expected):
    sp = sparsifier([1, 2, 3, 4], [5, 6, 7, 8])
    sp.sparsify_model(sparsity)
    assert zeros(sp) == dead(sp) == expected

@pytest.mark.parametrize('sparsity,message', [
    ([50], r"sparsity=\[50\] has 1 values for 2 selected layers: \['enc', 'dec'\]"), ([1, 2, 3], 'sparsity=.* has 3 values for 2'),
    ([], 'sparsity=.* has 0 values for 2'),
    ({'encc':50}, r"sparsity names 'encc', which is not selected; close: \['enc'"), ({'xyz':50}, r"names 'xyz'.*\['enc', 'dec'\]"),
    ({0:50}, 'sparsity names 0'), ({'act':50}, "sparsity names 'act', which is not selected"),
    ([50, 101], "sparsity of 'dec'=101 is outside 0 to 100"), ({'enc':-1}, "sparsity of 'enc'=-1 is outside"),
    ([50, None], "sparsity of 'dec'=None is not a number"),
    (101, 'sparsity=101 is outside 0 to 100; a sparsity is a percentage'), (-.1, r'sparsity=-0\.1 is outside'),
    (nan, 'sparsity=nan is outside'), (inf, 'sparsity=inf is outside'), (True, 'sparsity=True is not a number'),
    ('50', "sparsity='50' is not a number"), (None, 'sparsity=None is not a number')])
def test_a_sparsity_that_makes_no_sense_is_refused_and_nothing_is_pruned(sparsity, message):
    sp = Sparsifier(nn.Sequential(OrderedDict(enc=linear([1, 2, 3]), act=nn.ReLU(), dec=linear([1, 2, 3]))), layer_type=nn.Linear)
    with pytest.raises(ValueError, match=message): sp.sparsify_model(sparsity)
    assert zeros(sp) == [0, 0]

@pytest.mark.parametrize('sparsity', [[50, 50], {'0':50}])
def test_one_value_a_layer_contradicts_global(sparsity):
    with pytest.raises(ValueError, match=r"sparsity=.* has one value a layer, and context='global' one budget .* use context='local'"):
        sparsifier([1, 2], [3, 4], context='global').sparsify_model(sparsity)

@pytest.mark.parametrize('context', contexts)
@pytest.mark.parametrize('by_name', [True, False])
def test_one_layer_can_be_pruned_by_itself(by_name, context):
    sp = sparsifier([1, 2, 3, 4], [5, 6, 7, 8], context=context)
    assert sp.sparsify_layer('1' if by_name else sp.model[1], 50) is True
    assert weights(sp) == [[1, 2, 3, 4], [0, 0, 7, 8]]
    assert sp.sparsify_layer('1', 25) is True
    assert dead(sp) == [0, 1]
    assert sp.sparsify_layer(sp.model[0], 90, round_to=3) is True
    assert dead(sp) == [1, 1]

def test_a_layer_that_is_not_selected_is_refused():
    sp = sparsifier([1, 2], nn.ReLU(), [3, 4])
    for m,name in (('2x', '2x'), (sp.model[1], 'ReLU'), (nn.Linear(2, 2), 'Linear')):
        with pytest.raises(ValueError, match=rf"{name} is not a selected layer; these are: \['0', '2'\]"): sp.sparsify_layer(m, 50)
    with pytest.raises(ValueError, match='sparsity=150 is outside'): sp.sparsify_layer('0', 150)

# -- which layers ----------------------------------------------------------------------------------------------------------------

def mixed():
    body = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU())
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(1, 2, 3), norm=nn.BatchNorm2d(2), body=body, head=nn.Linear(2, 3)))

@pytest.mark.parametrize('kwargs,names', [
    ({}, ['stem', 'body.0']), (dict(layer_type=nn.Linear), ['head']),
    (dict(layer_type=(nn.Linear, nn.Conv2d)), ['stem', 'body.0', 'head']),
    (dict(layers=['body.0']), ['body.0']), (dict(layers=['body.0', 'stem']), ['stem', 'body.0'])])
def test_these_layers_are_selected_in_model_order(kwargs, names): assert [l.name for l in Sparsifier(mixed(), **kwargs).layers] == names

@pytest.mark.parametrize('kwargs,message', [
    (dict(layers=['steem']), r"names 'steem': there is no such layer; close: \['stem'"),
    (dict(layers=['qqq']), r"names 'qqq': there is no such layer; close: \['stem', 'body\.0'\]"),
    (dict(layers=['head']), "names 'head', which is a Linear, and layer_type=Conv2d; add its type"), (dict(layers=[]), 'No layer is selected'),
    (dict(layer_type=nn.Conv1d), r"layer_type=Conv1d: there is none in this Sequential; it has \{'Conv2d': 2, 'Linear': 1\}"),
    (dict(layer_type=(nn.Conv1d, nn.ConvTranspose2d)), 'layer_type=Conv1d or ConvTranspose2d: there is none'),
    (dict(layer_type='Conv2d'), "layer_type='Conv2d' must be a class of layers"), (dict(layer_type=nn.Conv2d(1, 1, 1)), 'must be a class'),
    (dict(layer_type=nn.Bilinear), 'Bilinear has no granularities'),
    (dict(granularity='filters'), r"granularity='filters' is not one of Conv2d's; choose from \['weight'"),
    (dict(granularity='kernel', layer_type=(nn.Conv2d, nn.Linear)), "granularity='kernel' is not one of Linear's"),
    (dict(context='globl'), r"context='globl' is not one of \['local', 'global', 'uniform', 'erk', 'lamp'\]"),
    (dict(criteria='large'), "criteria='large' is not a criterion; choose from"),
    (dict(nm=True), r'nm=\(2, 4\) does not fit any layer: stem \(1 input channels are no multiple of 4\); body.0 \(2 input channels'), (dict(nm=3), 'nm=3 must be \\(n, m\\) with 0 < n < m'),
    (dict(nm=(2, 4), granularity='filter'), "nm=.* is a pattern of single weights: granularity='filter' does not go with it")])
def test_a_word_that_makes_no_sense_is_refused_by_the_constructor(kwargs, message):
    with pytest.raises(ValueError, match=message): Sparsifier(mixed(), **kwargs)

def test_a_model_without_weights_says_so():
    with pytest.raises(ValueError, match='there is none in this ReLU; it has no layer with a weight matrix'): Sparsifier(nn.ReLU())

def test_a_subclass_of_the_layer_type_is_selected():
    class Mine(nn.Linear): pass
    sp = sparsifier(Mine(4, 2))
    sp.sparsify_model(50)
    assert zeros(sp) == [4]

def tied():
    m = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    m[2].weight = m[0].weight
    return m

@pytest.mark.parametrize('context', contexts)
def test_tied_weights_are_one(context):
    sp = Sparsifier(tied(), context=context, layer_type=nn.Linear)
    assert [l.name for l in sp.layers] == ['0', '3']
    sp.sparsify_model(75)
    assert (sum(zeros(sp)), sp.report().params, sp.report().zeros) == (24, 32, 24)
    assert sp.model[2].weight is sp.model[0].weight

def test_a_module_used_twice_is_one():
    l = nn.Linear(4, 4)
    assert [x.name for x in Sparsifier(nn.Sequential(l, l), layer_type=nn.Linear).layers] == ['0']

def test_naming_both_of_two_tied_layers_is_refused():
    with pytest.raises(ValueError, match="Layers '0' and '2' share their weight: name one of them"):
        Sparsifier(tied(), layer_type=nn.Linear, layers=['0', '2'])

@pytest.mark.parametrize('wrap', [
    parametrizations.spectral_norm, parametrizations.weight_norm, parametrizations.orthogonal, nn.utils.spectral_norm, nn.utils.weight_norm,
    lambda m: prune.l1_unstructured(m, 'weight', amount=.5)])
@pytest.mark.filterwarnings('ignore:.*weight_norm.* is deprecated')
def test_a_computed_weight_is_refused_by_its_layers_name(wrap):
    m = nn.Sequential(nn.Linear(4, 4), wrap(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"The weight of layer '1' \(.*Linear\) is computed from others.*leave the layer out"):
        Sparsifier(m, layer_type=nn.Linear)
    sp = Sparsifier(m, layer_type=nn.Linear, layers=['0'])
    sp.sparsify_model(50)
    assert zeros(sp) == [8]

def test_a_layer_without_shape_yet_is_refused():
    with pytest.raises(ValueError, match=r"Layer '1' \(LazyLinear\) is not initialized: run the"): sparsifier([1, 2], nn.LazyLinear(3))

@pytest.mark.parametrize('context', contexts)
def test_nan_weights_are_refused_by_their_layers_name_and_may_be_mended(context):
    sp = sparsifier([1, 2, 3, 4], [5, nan, 7, 8], context=context)
    with pytest.raises(ValueError, match="criteria=large_final gives NaN for layer '1'"): sp.sparsify_model(50)
    sp.layers[1].weight.data[0, 1] = 6
    sp.sparsify_model(50)
    assert sum(zeros(sp)) == sum(dead(sp)) == 4

@pytest.mark.parametrize('row', [[inf, -inf, 1, 2], [inf, inf, inf, 2]])
def test_infinite_weights_are_only_large(row):
    sp = sparsifier(row)
    sp.sparsify_model(25)
    assert dead(sp) == [1] and sp.masks['0'].flatten().tolist()[2:] == ([False, True] if row[2] == 1 else [True, False])

# -- frozen layers ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('context', contexts)
def test_frozen_layers_are_left_alone(context):
    sp = sparsifier([1, 2, 3, 4], [5, 6, 7, 8], context=context)
    sp.model[0].requires_grad_(False)
    assert [l.name for l in sp.refresh_frozen()] == ['0']
    sp.sparsify_model(50)
    assert weights(sp) == [[1, 2, 3, 4], [0, 0, 7, 8]]
    assert ([r.frozen for r in sp.report().rows], sp.report().sparsity, sp.sparsity) == ([True, False], 50, 50)
    assert [l.name for l in sp.active] == ['1']
    assert sp.refresh_frozen() == []

@pytest.mark.parametrize('context', contexts)
def test_layers_that_thaw_join_in_and_their_zeros_count(context):
    sp = sparsifier([0, 2, 3, 4], [5, 6, 7, 8], context=context)
    sp.model[0].requires_grad_(False)
    sp.refresh_frozen()
    sp.sparsify_model(50)
    sp.model[0].weight.data[0, 1] = 0
    sp.model[0].requires_grad_(True)
    assert [l.name for l in sp.refresh_frozen()] == ['0'] and dead(sp) == [2, 2]
    sp.sparsify_model(75)
    assert (zeros(sp) if context == 'local' else sum(zeros(sp))) == ([3, 3] if context == 'local' else 6)

def test_a_list_still_has_a_value_for_each_selected_layer_when_some_are_frozen():
    sp = sparsifier([1, 2, 3, 4], [5, 6, 7, 8])
    sp.model[0].requires_grad_(False)
    sp.refresh_frozen()
    sp.sparsify_model([25, 75])
    assert zeros(sp) == [0, 3]

def test_with_everything_frozen_nothing_moves():
    sp = sparsifier([1, 2, 3, 4])
    sp.model.requires_grad_(False)
    sp.refresh_frozen()
    assert sp.sparsify_model(50) is False
    assert (weights(sp), sp.sparsity) == ([[1, 2, 3, 4]], 0)

# -- nothing else is touched -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('context', contexts)
@pytest.mark.parametrize('name', list(criterias))
def test_of_the_model_only_values_of_selected_weights_change(name, context):
    m = mixed()
    before, params, keys = copy.deepcopy(m.state_dict()), dict(m.named_parameters()), list(vars(m.stem))
    sp = Sparsifier(m, criteria=name, context=context)
    feed(sp)
    sp.sparsify_model(50)
    sp.sparsify_model(20)
    assert list(m.state_dict()) == list(before)
    assert all(p is params[n] and p.requires_grad and p.is_leaf and p.grad is None for n,p in m.named_parameters())
    assert {n for n,v in m.state_dict().items() if not torch.equal(v, before[n])} <= {'stem.weight', 'body.0.weight'}
    assert list(vars(m.stem)) == keys and not hasattr(m.stem, 'parametrizations')
    for l in m.modules(): assert not any(hooks for n,hooks in vars(l).items() if n.endswith('_hooks') and not isinstance(hooks, bool))
    assert sum(1 for _ in m.buffers()) == 3 # the batch norm's

@pytest.mark.parametrize('name', list(criterias))
def test_the_global_random_state_is_untouched(name):
    m = mixed()
    before = torch.get_rng_state(), pyrandom.getstate(), np.random.get_state()[1].tolist()
    sp = Sparsifier(m, criteria=name)
    feed(sp, torch.Generator())
    sp.sparsify_model(50)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (pyrandom.getstate(), np.random.get_state()[1].tolist()) == before[1:]

def test_the_sparse_model_loads_into_a_plain_one(tmp_path):
    sp = Sparsifier(mixed())
    sp.sparsify_model(50)
    sp.save_model(tmp_path/'sparse.pth')
    plain = mixed()
    plain.load_state_dict(torch.load(tmp_path/'sparse.pth', weights_only=True), strict=True)
    assert all(torch.equal(a, b) for a,b in zip(plain.state_dict().values(), sp.model.state_dict().values()))
    assert int((plain.stem.weight == 0).sum()) == 9

# -- masks on what the optimizer sees --------------------------------------------------------------------------------------------

def test_masks_are_bool_by_layer_name_without_the_dense_ones():
    sp = Sparsifier(mixed(), 'filter')
    sp.sparsify_model({'stem':50})
    assert list(sp.masks) == ['stem']
    assert (sp.masks['stem'].dtype, sp.masks['stem'].shape) == (torch.bool, (2, 1, 1, 1))

def test_masks_zero_weights_gradients_and_averages():
    sp = Sparsifier(nn.Sequential(linear([1, 1], [2, 2]), linear([3, 4])), 'row', layer_type=nn.Linear)
    sp.sparsify_model([50, 0])
    for l in sp.layers: l.weight.data, l.weight.grad = torch.ones_like(l.weight), torch.ones_like(l.weight)
    state = {l.weight: dict(step=tensor(3.), avg=torch.ones_like(l.weight), n=3) for l in sp.layers}
    sp.apply_masks()
    sp.mask_grads()
    sp.mask_state(state)
    a, b = (l.weight for l in sp.layers)
    for x in (a, a.grad, state[a]['avg']): assert x.tolist() == [[0, 0], [1, 1]]
    for x in (b, b.grad, state[b]['avg']): assert x.tolist() == [[1, 1]]
    assert (state[a]['step'], state[a]['n']) == (3, 3)

def test_weights_without_gradient_or_average_are_no_error():
    sp = sparsifier([1, 2, 3, 4])
    sp.sparsify_model(50)
    sp.mask_grads()
    sp.mask_state({})
    assert sp.layers[0].weight.grad is None

def test_print_sparsity_prints_the_report(capsys):
    sp = sparsifier([1, 2, 3, 4])
    sp.sparsify_model(50)
    sp.print_sparsity()
    assert capsys.readouterr().out == f'\nSparsity Report:\n{sp.report()}\n'

def test_nothing_else_prints(capsys):
    sp = sparsifier([1, 2, 3, 4])
    sp.sparsify_model(50)
    sp.sparsify_layer('0', 75)
    assert capsys.readouterr() == ('', '')

@pytest.mark.parametrize('other', [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize('anywhere', [False, True])
def test_layers_of_several_precisions_share_a_budget_by_their_values(other, anywhere, monkeypatch):
    import fasterai_sched.lowest as lowest
    if anywhere: monkeypatch.setattr(lowest, '_on_cpu', lowest._anywhere)
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(50, 40, bias=False), nn.Linear(40, 30, bias=False).to(other))
    flat = torch.cat([l.weight.detach().abs().double().flatten() for l in m])
    goes = torch.zeros(3200, dtype=torch.bool)
    goes[flat.argsort(stable=True)[:1600]] = True
    sp = Sparsifier(m, context='global', layer_type=nn.Linear)
    for s in (10, 10.2, 50): sp.sparsify_model(s)
    assert [l.dead for l in sp.layers] == [int(goes[:2000].sum()), int(goes[2000:].sum())]
    assert torch.equal(torch.cat([(l.weight == 0).flatten() for l in m]), goes)

@pytest.mark.parametrize('context,s', [('global', 20.5), ('uniform', 20.5), ('lamp', 20.5), ('global', 80), ('uniform', 80), ('erk', 80), ('lamp', 80)])
def test_nan_in_one_of_the_layers_that_share_changes_none(context, s):
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(50, 400, bias=False), nn.Linear(400, 30, bias=False))
    sp = Sparsifier(m, context=context, layer_type=nn.Linear)
    sp.sparsify_model(20)
    w = m[1].weight.data.view(-1)
    i,was = int(w.abs().argmax()),{k:v.clone() for k,v in sp.masks.items()}
    w[i],first = float('nan'),m[0].weight.clone()
    with pytest.raises(ValueError, match="NaN for layer '1'"): sp.sparsify_model(s)
    assert torch.equal(m[0].weight, first) and all(torch.equal(v, was[k]) for k,v in sp.masks.items())
    w[i] = .5
    sp.sparsify_model(s)
    assert sum(int((~v).sum()) for v in sp.masks.values()) == sum(l.dead for l in sp.layers) == int(s/100*32_000)

def test_masks_that_were_given_out_stay_as_they_are():
    sp = Sparsifier(nn.Sequential(nn.Linear(100, 100, bias=False)), layer_type=nn.Linear)
    sp.sparsify_model(50)
    before = sp.masks['0']
    for s in (50.1, 60): sp.sparsify_model(s)
    assert int((~before).sum()) == 5000 and int((~sp.masks['0']).sum()) == 6000

# -- a fraction for a percentage ---------------------------------------------------------------------------------------------------

def of_sparsities(*sparsities, ask='sparsify_model', look=Sparsifier.report):
    "What one Sparsifier warns of, asked for these and looked at"
    s = Sparsifier(nn.Sequential(nn.Linear(40, 50)), layer_type=nn.Linear)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        for x in sparsities: getattr(s, ask)(*(['0'] if ask == 'sparsify_layer' else []), x)
        assert not warned
        look(s)
    return [str(w.message) for w in warned]

def test_a_report_on_what_was_asked_in_fractions_says_so():
    assert of_sparsities(.8) == ['The highest sparsity asked so far is 0.8%: a sparsity is a percentage, 0 to 100. Was 80 meant?']
    assert len(of_sparsities([.95])) == len(of_sparsities(0, {'0':.5})) == len(of_sparsities(.25, ask='sparsify_layer')) == len(of_sparsities(.8, look=Sparsifier.print_sparsity)) == 1
    assert len(of_sparsities(*(agp(0, .9, i/10) for i in range(11)))) == 1

def test_what_a_schedule_passes_through_is_not_warned_of():
    assert not of_sparsities(0) and not of_sparsities(1) and not of_sparsities(*(lin(0, 50, i/100) for i in range(101))) and not of_sparsities(30, .5)

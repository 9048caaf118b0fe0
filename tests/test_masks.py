"""Masks: counts to the unit, ties by position, pruned stays pruned."""
from fractions import Fraction
from math import floor, inf

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import tensor

from fasterai_sched.masks import drop, hold, keep_masks, n_pruned, round_kept

T, F = True, False
picked = [0., -0., 1., -1., 1.5, 2., -2., inf, -inf, 1e-45, -1e-45, 1e-40, 3e38, -3e38]
values = st.sampled_from(picked) | st.floats(width=32, allow_nan=False)
layers = st.lists(st.lists(values, min_size=1, max_size=12), min_size=1, max_size=4)

def brute(scores, masks, k):
    "The same by a stable sort of everything, in Python: what is kept of each layer"
    flat = [(m is None or bool(m.flatten()[i]), v, (j, i))
            for j,(s,m) in enumerate(zip(scores, masks)) for i,v in enumerate(s.flatten().tolist())]
    pruned = {at for _,_,at in sorted(flat, key=lambda t: (t[0], t[0] and t[1]))[:k]}
    return [tensor([(j, i) not in pruned for i in range(s.numel())]).view(s.shape) for j,s in enumerate(scores)]

def same(a, b): return len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x,y in zip(a, b))
def n_false(masks): return sum(int((~m).sum()) for m in masks)
def nones(scores): return [None]*len(scores)

# -- counts ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('sparsity,n,k', [
    (0, 100, 0), (100, 100, 100), (100, 1, 1), (99.99, 1, 0), (0, 1, 0), (50, 1, 0), (50, 3, 1), (50, 0, 0), (100, 0, 0), (1, 99, 0),
    (1, 100, 1), (29, 100, 29), (57, 100, 57), (58, 100, 58), (100*.29, 100, 29), (100/3, 3, 1), (200/3, 3, 2), (100/7, 7, 1),
    (28.99, 100, 28), (37.5, 8, 3), (37.49, 8, 2), (90, 9408, 8467), (90, 8192, 7372), (90, 11166912, 10050220), (99.99, 10000, 9999),
    (.01, 10000, 1), (1/3, 300, 1)])
def test_the_floor_of_what_is_asked_is_pruned(sparsity, n, k): assert n_pruned(sparsity, n) == k

@pytest.mark.parametrize('kind', [int, float, np.float64, np.float32, np.int64, tensor])
def test_the_kind_of_number_makes_no_difference(kind):
    k = n_pruned(kind(90), 11166912)
    assert k == 10050220 and isinstance(k, int)

@pytest.mark.parametrize('p', range(101))
def test_whole_percents_of_a_hundred_are_themselves(p):
    assert n_pruned(p, 100) == n_pruned(float(p), 100) == n_pruned(p/100*100, 100) == n_pruned(100*(p/100), 100) == p

@given(hundredths=st.integers(0, 10000), n=st.integers(0, 10**8))
def test_a_percentage_of_two_decimals_is_floored_exactly(hundredths, n):
    assert n_pruned(hundredths/100, n) == floor(Fraction(hundredths, 10000)*n)

@given(sparsity=st.floats(0, 100), n=st.integers(0, 10**9))
def test_any_percentage_is_floored_but_for_the_last_bits(sparsity, n):
    exact = Fraction(sparsity)*n/100
    assert floor(exact) <= n_pruned(sparsity, n) <= floor(exact + Fraction(n, 10**13)) # that is 1e-11 points

@given(k=st.integers(0, 10**6), n=st.integers(1, 10**6))
def test_a_count_comes_back_from_its_percentage(k, n):
    k = min(k, n)
    assert n_pruned(100*k/n, n) == n_pruned(k/n*100, n) == k

@given(a=st.floats(0, 100), b=st.floats(0, 100), n=st.integers(0, 10**6))
def test_more_sparsity_never_prunes_less(a, b, n): assert n_pruned(min(a, b), n) <= n_pruned(max(a, b), n)

@pytest.mark.parametrize('k,n,round_to,rounded', [
    (0, 8, 4, 0), (1, 8, 4, 0), (3, 8, 4, 0), (4, 8, 4, 4),
    (5, 8, 4, 4), (7, 8, 4, 4), (8, 8, 4, 8), (6, 10, 4, 6), (7, 10, 4, 6), (5, 10, 4, 2),
    (1, 10, 4, 0), (3, 10, 8, 2), (1, 10, 8, 0), (9, 10, 16, 0), (10, 10, 16, 10), (5, 10, 1, 5), (0, 1, 8, 0), (1, 1, 8, 1)])
def test_what_is_kept_is_rounded_up_to_a_multiple(k, n, round_to, rounded): assert round_kept(k, n, round_to) == rounded

@given(k=st.integers(0, 200), n=st.integers(1, 200), round_to=st.integers(1, 64))
def test_rounding_keeps_the_next_multiple_or_all(k, n, round_to):
    k = min(k, n)
    kept = n - round_kept(k, n, round_to)
    assert n - k <= kept <= n
    assert kept == n or kept % round_to == 0 and kept - (n - k) < round_to

# -- which -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('scores,k,kept', [
    ([.1, .4, .2, .3],    0, [T, T, T, T]),
    ([.1, .4, .2, .3],    1, [F, T, T, T]),
    ([.1, .4, .2, .3],    2, [F, T, F, T]),
    ([.1, .4, .2, .3],    3, [F, T, F, F]),
    ([.1, .4, .2, .3],    4, [F, F, F, F]),
    ([1., 1., 1., 1.],    2, [F, F, T, T]),
    ([2., 1., 1., 1.],    2, [T, F, F, T]),
    ([1., 2., 1., 2.],    3, [F, F, F, T]),
    ([-1., 1., -2., 2.],  2, [F, T, F, T]),
    ([0., -0., 0., -0.],  2, [F, F, T, T]),
    ([-0., 0., -0., -1.], 2, [F, T, T, F]),
    ([inf, 1., -inf, 2.], 2, [T, F, F, T]),
    ([inf, inf, 1., inf], 3, [F, F, F, T]),
    ([0., 3e-45, 1e-45, 6e-45], 2, [F, T, F, T]),
    ([1e-45, -1e-45, 0., 1.],   2, [T, F, F, T])])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_lowest_go_and_equal_ones_by_position(scores, k, kept, dtype):
    (mask,) = keep_masks([tensor(scores, dtype=dtype)], [None], k)
    assert mask.dtype == torch.bool and mask.tolist() == kept

def test_a_budget_is_shared_by_all_layers_and_ties_go_in_their_order():
    a, b = keep_masks([tensor([1., 3., 2.]), tensor([[2., 0.], [2., 5.]])], [None, None], 4)
    assert a.tolist() == [F, T, F] and b.tolist() == [[F, F], [T, T]]

def test_what_is_pruned_stays_pruned_whatever_its_score():
    assert keep_masks([tensor([9., 1., 2., 8.])], [tensor([F, T, T, T])], 2)[0].tolist() == [F, F, T, T]

def test_a_smaller_budget_brings_the_last_back():
    assert keep_masks([tensor([9., 1., 2., 8.])], [tensor([F, F, T, F])], 1)[0].tolist() == [F, T, T, T]
    a, b = keep_masks([tensor([0., 0., 0.]), tensor([9., 9.])], [tensor([F, F, T]), tensor([F, F])], 1)
    assert a.tolist() == [F, T, T] and b.tolist() == [T, T]

def test_the_masks_given_are_not_changed():
    for k in (0, 1, 3):
        mask = tensor([F, F, T, T])
        (out,) = keep_masks([tensor([1., 2., 3., 4.])], [mask], k)
        assert mask.tolist() == [F, F, T, T] and out is not mask

def test_the_scores_given_are_not_changed():
    scores = tensor([-0., 1., 0.])
    keep_masks([scores], [None], 1)
    assert scores.signbit().tolist() == [T, F, F]

@given(rows=layers, data=st.data(), double=st.booleans())
def test_masks_are_those_of_a_stable_sort(rows, data, double):
    scores = [tensor(r, dtype=torch.float64 if double else torch.float32) for r in rows]
    n = sum(map(len, rows))
    k = data.draw(st.integers(0, n))
    first = keep_masks(scores, nones(scores), k)
    assert same(first, brute(scores, nones(scores), k))
    assert n_false(first) == k
    more = data.draw(st.integers(k, n))
    again = [s.flip(0) for s in scores] # other scores: the weights have been trained on
    second = keep_masks(again, first, more)
    assert same(second, brute(again, first, more))
    assert n_false(second) == more
    assert not any((new & ~old).any() for old,new in zip(first, second))

@given(rows=layers, data=st.data())
def test_a_falling_budget_leaves_exactly_that_many_and_returns_the_last(rows, data):
    scores = [tensor(r) for r in rows]
    k = data.draw(st.integers(0, sum(map(len, rows))))
    first = keep_masks(scores, nones(scores), k)
    less = data.draw(st.integers(0, k))
    second = keep_masks(scores, first, less)
    dead = torch.cat(first).logical_not().nonzero().flatten().tolist()
    assert torch.cat(second).logical_not().nonzero().flatten().tolist() == dead[:less]

@pytest.mark.parametrize('kind', ['random', 'tied', 'constant', 'zero', 'denormal', 'infinite', 'negative', 'mixed zeros', 'descending'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_large_layers_are_those_of_a_stable_sort_too(kind, dtype):
    x = torch.randn(997, dtype=dtype)
    x = {'random':x, 'tied':x.mul(2).round(), 'constant':torch.full_like(x, -.1), 'zero':x*0, 'denormal':x*torch.finfo(dtype).tiny/8,
         'infinite':torch.where(x.abs() > 1, x*inf, x), 'negative':-x.abs(), 'mixed zeros':torch.where(x > 1, x, x*0),
         'descending':x.sort(descending=True).values}[kind]
    scores = [x[:400].view(4, 100), x[400:403], x[403:].view(2, 297)]
    for k in (0, 1, 2, 498, 995, 996, 997): assert same(keep_masks(scores, nones(scores), k), brute(scores, nones(scores), k))

def test_layers_of_two_precisions_share_a_budget():
    scores = [tensor([1., 3.]), tensor([2., 1. + 1e-12, 4.], dtype=torch.float64)]
    assert [m.tolist() for m in keep_masks(scores, [None, None], 2)] == [[F, T], [T, F, T]]

@pytest.mark.parametrize('prune', [5, 23, 40])
def test_memory_layout_makes_no_difference(prune):
    plain = [torch.randint(0, 9, (2, 3, 2, 2)).float(), torch.randint(0, 9, (3, 2, 2, 2)).float()]
    last  = [s.contiguous(memory_format=torch.channels_last) for s in plain]
    masks, masks_last = (keep_masks(s, [None, None], prune) for s in (plain, last))
    assert same(masks, masks_last)
    assert same(keep_masks(plain, masks, 41), keep_masks(last, [m.contiguous(memory_format=torch.channels_last) for m in masks], 41))
    assert same(keep_masks(plain, masks, 2), keep_masks(last, masks_last, 2))

def test_weights_of_a_channels_last_layer_come_back_beside_a_layer_with_none_pruned():
    scores = [torch.rand(2, 3, 2, 2).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    masks = keep_masks(scores, [None, torch.zeros(2, 3, 2, 2, dtype=torch.bool)], 20)
    assert [n_false([m]) for m in masks] == [0, 20]

# -- zeros -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('threads', [1, 8])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_is_not_kept_is_zero_whatever_it_was(dtype, threads, monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    t = tensor([1., inf, float('nan'), -inf, -2., 1e-6, float('nan')], dtype=dtype)
    keep = tensor([T, F, F, F, T, T, T])
    before = t.clone()
    hold(t, keep)
    assert torch.equal(t[:6], torch.where(keep, before, 0)[:6]) and t[6].isnan()

@pytest.mark.parametrize('threads', [1, 8])
def test_groups_and_any_memory_format_are_held(threads, monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    for shape in ((4, 3, 2, 2), (4, 1, 1, 1), (1, 3, 1, 1)):
        keep = torch.rand(shape) > .5
        for t in (torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)):
            expected = t*keep
            hold(t, keep)
            assert torch.equal(t, expected)

def test_a_few_are_dropped():
    p = torch.nn.Parameter(torch.ones(2, 3))
    drop(p, tensor([1, 5]))
    assert p.tolist() == [[1, 0, 1], [1, 1, 0]]

"""Budgets: what each layer has to give, by hand and against brute force; totals exact in weights."""
import warnings
from fractions import Fraction
from math import floor, prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, tensor

from fasterai_sched import Context, Sparsifier, SparsifyCallback, contexts
from fasterai_sched.budgets import allot, as_context, erk, lamp, pool
from fasterai_sched.masks import keep_masks

both = nn.Conv2d,nn.Linear

def linear(row):
    m = nn.Linear(len(row), 1, bias=False)
    m.weight.data = tensor([row], dtype=torch.float32)
    return m
def sparsifier(*rows, **kwargs): return Sparsifier(nn.Sequential(*map(linear, rows)), layer_type=nn.Linear, **kwargs)
def dead(sp): return [l.dead for l in sp.layers]
def weights(sp): return [l.weight.detach().flatten().tolist() for l in sp.layers]
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 4, 1), nn.Flatten(), nn.Linear(16, 10))
def shapes(m): return [tuple(l.weight.shape) for l in m if isinstance(l, both)]

# -- densities -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('shape,density', [((64, 3, 7, 7), 81/9408), ((10, 20), 30/200), ((5, 1), 6/5)])
def test_erk_is_the_sum_over_the_product(shape, density): assert erk(shape) == pytest.approx(density)

@pytest.mark.parametrize('s', [1, 10, 29, 50, 77.7, 90, 99, 100])
def test_erk_shares_out_what_the_paper_says(s):
    "1 - scale*(sum of dims)/(product), the scale such that the total is right, layers that would be denser than dense kept whole"
    sp = Sparsifier(net(), context='erk', layer_type=both)
    sp.sparsify_model(s)
    n = [prod(x) for x in shapes(sp.model)]
    raw,dense = [erk(x) for x in shapes(sp.model)],set()
    while True: # Evci et al., appendix: layers of a density above 1 are set to 1, and the scale is found again
        free = [i for i in range(len(n)) if i not in dense]
        scale = (sum(n)*(1 - s/100) - sum(n[i] for i in dense))/sum(raw[i]*n[i] for i in free)
        if not (more := {i for i in free if raw[i]*scale > 1}): break
        dense |= more
    expected = [0 if i in dense else n[i]*(1 - raw[i]*scale) for i in range(len(n))]
    assert sum(dead(sp)) == floor(Fraction(str(s))*sum(n)/100)
    assert all(abs(d - e) <= 1 for d,e in zip(dead(sp), expected))

def test_uniform_is_local_with_an_exact_total():
    sp = sparsifier([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3], context='uniform')
    sp.sparsify_model(50) # 2.5, 3.5 and 1.5 of 15: 7 in all; half up, in model order, as far as it goes
    assert dead(sp) == [3, 3, 1]
    local = sparsifier([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3])
    local.sparsify_model(50)
    assert dead(local) == [2, 3, 1]

layer = st.tuples(st.integers(1, 60), st.sampled_from([1, 1, 2, 3]), st.floats(.01, 5), st.integers(0, 5), st.floats(.5, 1))

@given(layers=st.lists(layer, min_size=1, max_size=6), data=st.data(), one_size=st.booleans())
def test_shares_are_within_bounds_monotone_and_make_the_total(layers, data, one_size):
    n,sizes,densities,least,most = map(list, zip(*layers))
    if one_size: sizes = [sizes[0]]*len(sizes)
    least = [min(a, b) for a,b in zip(least, n)]
    most  = [max(int(f*b), a) for f,b,a in zip(most, n, least)]
    w = [a*b for a,b in zip(n, sizes)]
    lo,hi = (sum(k*s for k,s in zip(ks, sizes)) for ks in (least, most))
    a,b = sorted(data.draw(st.lists(st.integers(lo, hi), min_size=2, max_size=2)))
    few,many = allot(densities, w, sizes, least, most, a),allot(densities, w, sizes, least, most, b)
    for ks,total in ((few, a), (many, b)):
        assert all(x <= k <= y for x,k,y in zip(least, ks, most))
        short = total - sum(k*s for k,s in zip(ks, sizes))
        assert 0 <= short < max(sizes)
    assert all(x <= y for x,y in zip(few, many)) # what is pruned need not come back when more is asked

@given(n=st.lists(st.integers(1, 200), min_size=1, max_size=6), s=st.integers(0, 100))
def test_equal_densities_are_rounded_to_within_one(n, s):
    total = s*sum(n)//100
    ks = allot([1.]*len(n), n, [1]*len(n), [0]*len(n), n, total)
    assert sum(ks) == total and all(abs(k - s*x/100) <= 1 for k,x in zip(ks, n))

# -- LAMP ------------------------------------------------------------------------------------------------------------------------

def test_lamp_scores_by_hand():
    assert lamp(tensor([1., 2., 3.])).tolist() == pytest.approx([1/14, 4/13, 1])
    assert lamp(tensor([1., 1.])).tolist() == pytest.approx([1/2, 1])    # equal ones by position
    assert lamp(tensor([-1., 0., 2.])).tolist() == pytest.approx([0, 1/10, 1]) # moved up by 1
    assert lamp(tensor([0., 0.])).tolist() == [0, 0] and lamp(tensor([])).tolist() == []
    assert lamp(tensor([1., float('inf')])).tolist() == pytest.approx([0, 1])

def test_the_scale_of_a_layer_makes_no_difference_to_lamp():
    rows = [.1, .5, .2, .9], [100, 400, 300, 200]
    sps = [sparsifier(rows[0], [x*f for x in rows[1]], context='lamp') for f in (1, .001, 1000)]
    for sp in sps: sp.sparsify_model(50)
    assert dead(sps[0]) == dead(sps[1]) == dead(sps[2])

@given(rows=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=8, unique=True), min_size=1, max_size=4), s=st.integers(0, 100))
def test_lamp_prunes_what_a_sort_of_its_scores_would(rows, s):
    sp = sparsifier(*rows, context='lamp')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        sp.sparsify_model(s)
    score = {(i, w): w*w/sum(v*v for v in r if v >= w) for i,r in enumerate(rows) for w in r}
    k = s*len(score)//100
    order = sorted(score.values())
    gone = {(i, w) for i,(r,left) in enumerate(zip(rows, weights(sp))) for w in r if w not in left}
    assert len(gone) == k and (k == 0 or max(score[g] for g in gone) <= order[k-1]*(1 + 1e-9))

# -- together --------------------------------------------------------------------------------------------------------------------

scores = st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=6), min_size=1, max_size=4)

@given(rows=scores, data=st.data())
def test_a_pool_with_limits_is_a_sort_that_passes_over_full_layers(rows, data):
    caps = [data.draw(st.integers(0, len(r))) for r in rows]
    k = data.draw(st.integers(0, sum(caps)))
    out = pool(contexts['global'], [tensor(r).float() for r in rows], [None]*len(rows), [1]*len(rows), caps, k)
    left,gone = list(caps),set()
    for _,i,j in sorted((v, i, j) for i,r in enumerate(rows) for j,v in enumerate(r)):
        if len(gone) < k and left[i]: gone.add((i, j)); left[i] -= 1
    assert {(i, j) for i,m in enumerate(out) for j,x in enumerate(m.tolist()) if not x} == gone

@given(rows=scores, sizes=st.lists(st.integers(1, 4), min_size=4, max_size=4), data=st.data())
def test_a_budget_of_weights_is_spent_in_order_until_the_next_group_is_too_large(rows, sizes, data):
    sizes = sizes[:len(rows)]
    budget = data.draw(st.integers(0, sum(len(r)*s for r,s in zip(rows, sizes))))
    out = pool(Context(), [tensor(r).float() for r in rows], [None]*len(rows), sizes, [len(r) for r in rows], budget)
    spent,gone = 0,set()
    for _,i,j in sorted((v, i, j) for i,r in enumerate(rows) for j,v in enumerate(r)):
        if len(set(sizes)) > 1 and spent + sizes[i] > budget or len(set(sizes)) == 1 and len(gone) == budget//sizes[0]: break
        spent += sizes[i]; gone.add((i, j))
    assert {(i, j) for i,m in enumerate(out) for j,x in enumerate(m.tolist()) if not x} == gone

@pytest.mark.parametrize('context', [c for c in contexts if c != 'local'])
@pytest.mark.parametrize('granularity', ['weight', 'filter', 'kernel'])
def test_up_and_down_totals_are_exact_and_what_is_pruned_stays(context, granularity):
    sp = Sparsifier(net()[:3], granularity, context)
    size = [l.size for l in sp.layers]
    last = None
    for s in (0, 13, 40, 41, 77, 99, 100, 60, 59.9, 20, 50, 0):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            sp.sparsify_model(s)
        total = sum(l.n for l in sp.layers) if context == 'global' else sum(l.numel for l in sp.layers)
        got = sum(l.dead*(1 if context == 'global' else l.size) for l in sp.layers)
        short = floor(Fraction(str(s))*total/100) - got
        assert short == 0 if context == 'global' or granularity == 'weight' else 0 <= short < max(size)
        masks = [torch.ones(l.n, dtype=torch.bool) if l.mask is None else l.mask.flatten() for l in sp.layers]
        if last: assert all(not (m & ~n).any() if s > last[0] else not (n & ~m).any() for n,m in zip(last[1], masks))
        last = s,masks

@pytest.mark.parametrize('context', ['uniform', 'erk'])
def test_the_way_there_makes_no_difference(context):
    a,b = (Sparsifier(net(), context=context, layer_type=both) for _ in range(2))
    for s in range(0, 96, 5): a.sparsify_model(s)
    b.sparsify_model(95)
    assert dead(a) == dead(b) == [k for k in b.counts(95).values()]

def test_equal_layers_share_alike():
    m = nn.Sequential(*[nn.Linear(7, 7) for _ in range(5)])
    sp = Sparsifier(m, context='erk', layer_type=nn.Linear)
    for s in (10, 33, 90):
        sp.sparsify_model(s)
        assert max(dead(sp)) - min(dead(sp)) <= 1 and sorted(dead(sp), reverse=True) == dead(sp)

# -- limits ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('context', [c for c in contexts if c != 'local'])
def test_no_layer_gives_more_than_its_limit_and_the_others_make_up_for_it(context):
    sp = sparsifier([1]*10, [100]*10, [1000]*10, context=context, max_sparsity=70)
    sp.sparsify_model(60)
    assert max(dead(sp)) <= 7 and sum(dead(sp)) == 18
    sp.sparsify_model(70)
    assert dead(sp) == [7, 7, 7]

def test_limits_by_rule():
    sp = sparsifier([1]*10, [1]*10, [1000]*10, context='global', max_sparsity={'0':20, '1':90})
    sp.sparsify_model(50)
    assert dead(sp) == [2, 9, 4]

def test_under_global_the_lowest_that_may_go_do():
    sp = sparsifier([1, 2, 3, 4], [5, 6, 7, 8], context='global', max_sparsity=50)
    sp.sparsify_model(25)
    assert weights(sp) == [[0, 0, 3, 4], [5, 6, 7, 8]]
    sp.sparsify_model(50)
    assert weights(sp) == [[0, 0, 3, 4], [0, 0, 7, 8]]

def test_zeros_above_the_limit_stay():
    sp = sparsifier([0, 0, 0, 4], [5, 6, 7, 8], context='global', max_sparsity=50)
    sp.sparsify_model(50)
    assert weights(sp) == [[0, 0, 0, 4], [0, 6, 7, 8]]

def test_what_is_beyond_the_limits_is_refused():
    with pytest.raises(ValueError, match=r"sparsity=80 can't be reached with max_sparsity=70: 70% is the most"): sparsifier([1]*10, [2]*10, context='global', max_sparsity=70).sparsify_model(80)
    with pytest.raises(ValueError, match=r"sparsity=80 can't be reached with max_sparsity=\{'0': 10\}: 55% is the most"): sparsifier([1]*10, [2]*10, context='erk', max_sparsity={'0':10}).sparsify_model(80)

@pytest.mark.parametrize('kwargs,match', [
    (dict(max_sparsity=50), "max_sparsity=50 is of no use with context='local'"), (dict(max_sparsity=101, context='global'), 'max_sparsity=101 is outside 0 to 100'),
    (dict(max_sparsity=.9, context='global'), 'max_sparsity=0.9 is below 1%.*did you mean 90'), (dict(max_sparsity={'0':'x'}, context='global'), "max_sparsity='x' is not a number"),
    (dict(max_sparsity={3:50}, context='global'), '3 is no rule'), (dict(context='lmap'), r"context='lmap' is not one of \['local', 'global', 'uniform', 'erk', 'lamp'\]")])
def test_limits_and_contexts_that_make_no_sense_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match): sparsifier([1, 2], **kwargs)
    with pytest.raises(ValueError, match=match): SparsifyCallback(50, **kwargs)

@pytest.mark.parametrize('limits,match', [({'nope':50}, "max_sparsity names 'nope': there is no such layer; close:"), ({'*':50, '?':20}, "more than one of the rules matches '0'")])
def test_a_rule_of_no_use_is_refused_here_too(limits, match):
    with pytest.raises(ValueError, match=match): sparsifier([1, 2], context='global', max_sparsity=limits)

def test_a_layer_that_is_emptied_is_warned_of_once():
    sp = sparsifier([1, 2], [3, 4, 5, 6], context='global')
    with pytest.warns(UserWarning, match="Nothing is left of 0: context='global' gives them no weight. max_sparsity=99"): sp.sparsify_model(40)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        sp.sparsify_model(50)
        sparsifier([1, 2], [3], context='global').sparsify_model(100) # that was asked

# -- one's own -------------------------------------------------------------------------------------------------------------------

def test_a_context_of_ones_own():
    sp = sparsifier([1]*10, [1]*10, context=Context(density=lambda shape: 1 + (shape[1] == 10)))
    sp.sparsify_model(50)
    assert dead(sp) == [5, 5]
    m = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 20))
    sp = Sparsifier(m, context=Context(density=lambda shape: 2. if shape[0] == 10 else 1.), layer_type=nn.Linear)
    sp.sparsify_model(60) # 100 and 200 weights, densities 2x and x: 400x = 120
    assert dead(sp) == [40, 140]
    sp = sparsifier([1, 2, 3, 4], [10, 20, 30, 40], context=Context(rescale=lambda s: s/s.max()))
    sp.sparsify_model(50)
    assert dead(sp) == [2, 2]

def test_a_context_that_contradicts_itself_is_refused():
    for kwargs in (dict(rescale=lamp), dict(in_groups=True)):
        with pytest.raises(ValueError, match='density tells how many weights of each layer go: it excludes rescale and in_groups'): Context(density=erk, **kwargs)
    for kwargs in (dict(rescale=lamp), dict(density=erk)):
        with pytest.raises(ValueError, match='together=False gives each layer the sparsity asked: it excludes density and rescale'): Context(together=False, **kwargs)
    for n in ('density', 'rescale'):
        with pytest.raises(ValueError, match=f'{n}=5 must be a function, or None'): Context(**{n:5})
    with pytest.raises(ValueError, match=r'one of your own is Context\(density=...\) or Context\(rescale=...\)'): as_context(lambda s: s)
    assert as_context('erk') is contexts['erk'] and as_context(contexts['erk']) is contexts['erk']

@pytest.mark.parametrize('context,match', [
    (Context(density=lambda s: 0), r"density gives 0 for layer '0', whose weight has the shape \(1, 2\): it must be above 0 and finite"), (Context(density=lambda s: float('nan')), 'density gives nan'),
    (Context(density=lambda s: float('inf')), 'density gives inf'), (Context(density=lambda w: w.abs()), "density fails for layer '0', whose weight has the shape .*AttributeError"),
    (Context(rescale=lambda s: s.norm()), r"rescale must give as many scores as it gets: 2 of layer '0', got \(\)"), (Context(rescale=lambda s: 3.), 'got float'), (Context(rescale=lambda s: s[:1]), r'got \(1,\)'),
    (Context(rescale=lambda s: s*float('nan')), "rescale must keep the order of scores, which it gets ascending: those of layer '0' came back otherwise, or as NaN"), (Context(rescale=lambda s: -s), 'must keep the order'),
    (Context(rescale=lambda s: s@s@s), "rescale fails for the scores of layer '0': RuntimeError")])
def test_a_context_that_fails_says_so_and_prunes_nothing(context, match):
    sp = sparsifier([1, 2], [3, 4], context=context)
    with pytest.raises(ValueError, match=match): sp.sparsify_model(50)
    assert weights(sp) == [[1, 2], [3, 4]]

def test_a_context_works_with_layers_that_are_empty_already():
    sp = sparsifier([1, 2], [30, 40, 50, 60], context=Context(rescale=lambda s: s*(1 if s.max() > 9 else .001)))
    for s in (34, 50, 84, 100): sp.sparsify_model(s)
    assert dead(sp) == [2, 4]
    m = nn.Sequential(nn.Linear(3, 0), nn.Linear(3, 4))
    sp = Sparsifier(m, context='erk', layer_type=nn.Linear)
    sp.sparsify_model(50)
    assert dead(sp)[-1] == 6

def test_a_limit_that_only_frozen_layers_make_up_for_is_kept_to():
    sp = sparsifier([1]*10, [2]*10, context='global', max_sparsity={'0':30})
    sp.model[1].requires_grad_(False)
    sp.refresh_frozen()
    sp.sparsify_model(60)
    assert dead(sp) == [3, 0]
    sp.model[1].requires_grad_(True)
    sp.refresh_frozen()
    sp.sparsify_model(60)
    assert dead(sp) == [3, 9]

# -- what comes back -------------------------------------------------------------------------------------------------------------

def test_those_with_the_largest_gradient_come_back():
    scores,mask = [tensor([0.]*5)],[tensor([False, False, True, False, False])]
    back = [tensor([.5, 2, 9, .5, 1])]
    assert keep_masks(scores, mask, 3, back)[0].tolist() == [False, True, True, False, False]
    assert keep_masks(scores, mask, 2, back)[0].tolist() == [False, True, True, False, True]
    assert keep_masks(scores, mask, 1, back)[0].tolist() == [False, True, True, True, True] # of equal ones the last

@given(n=st.integers(1, 12), data=st.data())
def test_as_many_come_back_as_asked_and_the_highest(n, data):
    mask = tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    back = tensor(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))).float()
    d = int((~mask).sum())
    k = data.draw(st.integers(0, d))
    (out,) = keep_masks([torch.zeros(n)], [mask], k, [back])
    assert int((~out).sum()) == k and not (mask & ~out).any()
    returned = out & ~mask
    if returned.any() and k: assert back[returned].min() >= back[~out].max()

@pytest.mark.parametrize('context', contexts)
def test_gradients_choose_in_every_context(context):
    sp = sparsifier([1, 2, 3, 4], [1.5, 2.5, 3.5, 4.5], context=context)
    sp.sparsify_model(75)
    for l in sp.layers: l.weight.grad = tensor([[3., 1, 2, 0]])
    sp.sparsify_model(50)
    gone = [(~l.mask).flatten().tolist() for l in sp.layers]
    assert sum(map(sum, gone)) == 4 and all(l.weight[~l.mask].count_nonzero() == 0 for l in sp.layers)
    assert not any(g[0] for g in gone if sum(g) < 3) # the first has the largest gradient

def test_a_gradient_that_is_not_finite_chooses_nothing():
    sp = sparsifier([1, 2, 3, 4])
    sp.sparsify_model(75)
    sp.layers[0].weight.grad = tensor([[float('nan'), 9, 2, 0]])
    sp.sparsify_model(50)
    assert sp.layers[0].mask.tolist() == [[False, False, True, True]] # the last by position

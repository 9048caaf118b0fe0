"""Criteria: which weights matter, by hand, on four of them."""
import pytest
import torch
from hypothesis import given, strategies as st
from torch import tensor

from fasterai_sched.criteria import Criteria, Normalizer, Reducer, as_criteria, available_criterias, criterias, large_final, random

w   = tensor([.1, -.4, .2, -.3])
ref = tensor([.5, -.1, -.3, .2])
grad = tensor([1., -.5, -2., .1]) # for criteria that score by it
seen = tensor([3., 1., 2., .5])   # what comes in, for those that multiply by it

# Of w and ref (or grad, or seen), by hand. Nothing is said of random but its range
scores = {
    'large_final':            [.1, .4, .2, .3],
    'squared_final':          [.01, .16, .04, .09],
    'small_final':            [-.1, -.4, -.2, -.3],
    'large_init':             [.5, .1, .3, .2],
    'small_init':             [-.5, -.1, -.3, -.2],
    'large_init_large_final': [.1, .1, .2, .2],
    'small_init_small_final': [-.5, -.4, -.3, -.3],
    'magnitude_increase':     [-.4, .3, -.1, .1],
    'movement':               [.4, .3, .5, .5],
    'movmag':                 [.04, .12, .1, .15],
    'taylor':                 [.1, .2, .4, .03],
    'movement_pruning':       [-.1, -.2, .4, .03],
    'wanda':                  [.3, .4, .4, .15]}
scores |= {f'updating_{n}': scores[n] for n in ('magnitude_increase', 'movement', 'movmag')}

normalizers = {n:getattr(Normalizer, n) for n in vars(Normalizer) if not n.startswith('_')}
reducers    = {n:getattr(Reducer, n) for n in vars(Reducer) if not n.startswith('_')}

def score(c, w, ref=ref, grad=grad, seen=seen, **kwargs):
    "Of a criterion, or its name, with what it needs"
    c = criterias.get(c, c) if isinstance(c, str) else c
    return c(w, ref if c.needs_ref else None, generator=gen() if c.needs_rng else None, grad=grad if c.needs_grad else None, scale=seen if c.needs_data else None, **kwargs)

def gen(seed=0): return torch.Generator().manual_seed(seed)
def order(x): return x.argsort(stable=True).tolist()
def close(a, b): return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), atol=1e-6)

# -- the registry ----------------------------------------------------------------------------------------------------------------

def test_the_expectations_cover_the_registry():
    assert set(scores) | {'random'} == set(criterias)
    assert available_criterias() == list(criterias)

@pytest.mark.parametrize('name', list(scores))
def test_the_scores_are_these(name): assert close(score(name, w), scores[name])

@pytest.mark.parametrize('name,highest', [
    ('large_final', [1, 3]), ('squared_final', [1, 3]), ('small_final', [0, 2]), ('large_init', [0, 2]), ('small_init', [1, 3]),
    ('large_init_large_final', [2, 3]), ('small_init_small_final', [2, 3]), ('magnitude_increase', [1, 3]), ('movement', [2, 3]),
    ('movmag', [1, 3]), ('taylor', [1, 2]), ('movement_pruning', [2, 3]), ('wanda', [1, 2])])
def test_these_two_are_kept(name, highest): assert sorted(score(name, w).topk(2).indices.tolist()) == highest

@pytest.mark.parametrize('name', list(criterias))
def test_scores_have_the_weights_shape_and_no_gradient(name):
    p = torch.nn.Parameter(torch.randn(2, 3, 4))
    s = score(name, p, *torch.randn(3, 2, 3, 4))
    assert (s.shape, s.dtype, s.requires_grad) == (p.shape, torch.float32, False)

@pytest.mark.parametrize('name', list(criterias))
def test_weights_and_reference_are_left_as_they_are(name):
    a, b, g, x = w.clone(), ref.clone(), grad.clone(), seen.clone()
    score(name, a, b, g, x).add_(1)
    assert torch.equal(b, ref) and torch.equal(g, grad) and torch.equal(x, seen)
    score(name, a, b, g, x)
    assert torch.equal(a, w)

@pytest.mark.parametrize('name', list(criterias))
def test_groups_get_the_mean_of_their_weights(name):
    p, *more = torch.randn(4, 3, 2, 2)
    single, groups = score(name, p, *more), score(name, p, *more, dim=[2, 3])
    assert groups.shape == (3, 1, 1)
    assert close(groups.flatten(), single.flatten(1).mean(1))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', list(criterias))
def test_half_precision_is_scored_in_float32(name, dtype):
    s = score(name, w.to(dtype), ref.to(dtype), grad.to(dtype))
    assert s.dtype == torch.float32
    assert torch.equal(s, score(name, w.to(dtype).float(), ref.to(dtype).float(), grad.to(dtype).float()))

def test_half_precision_does_not_tie_what_differs():
    p = tensor([2e-5, 1e-5], dtype=torch.float16)                      # both squares are 0 in float16
    assert order(criterias['squared_final'](p)) == [1, 0]
    p = tensor([[1., 1 + 2**-7], [1, 1]], dtype=torch.bfloat16)        # both means are 1 in bfloat16
    assert order(large_final(p, dim=[2]).flatten()) == [1, 0]

@pytest.mark.parametrize('name', list(scores))
def test_double_precision_stays(name): assert score(name, w.double(), ref.double(), grad.double()).dtype == torch.float64

@pytest.mark.parametrize('name', [n for n,c in criterias.items() if c.needs_ref])
def test_a_missing_reference_is_named(name):
    with pytest.raises(ValueError, match=rf'Criteria\({name}\) compares with a reference: give `ref`'): criterias[name](w)

@pytest.mark.parametrize('name,what', [(n, 'scores by gradients: give `grad`') for n,c in criterias.items() if c.needs_grad] + [(n, 'multiplies by a statistic of the inputs: give `scale`') for n,c in criterias.items() if c.needs_data])
def test_a_missing_gradient_and_missing_inputs_are_named(name, what):
    with pytest.raises(ValueError, match=rf'Criteria\({name}\) {what}'): criterias[name](w)

@pytest.mark.parametrize('name', list(criterias))
def test_a_criterion_says_what_it_needs(name):
    c = criterias[name]
    assert c.needs_update == name.startswith('updating_')
    assert c.needs_init == (not c.needs_update and ('init' in name or name in ('magnitude_increase', 'movement', 'movmag')))
    assert c.needs_ref == (c.needs_init or c.needs_update)
    assert c.needs_rng == (name == 'random') and c.needs_data == (name == 'wanda')
    assert c.needs_grad == (name in ('taylor', 'movement_pruning')) and c.accumulate == (name == 'movement_pruning')

# -- random ----------------------------------------------------------------------------------------------------------------------

def test_random_draws_the_same_from_the_same_seed():
    assert torch.equal(random(w, generator=gen(1)), random(w, generator=gen(1)))
    assert not torch.equal(random(w, generator=gen(1)), random(w, generator=gen(2)))

def test_random_draws_anew_at_each_call():
    g = gen()
    assert not torch.equal(random(w, generator=g), random(w, generator=g))

def test_random_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    s = random(torch.ones(1000), generator=gen())
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 <= s.min() and s.max() < 1 and s.mean() == pytest.approx(.5, abs=.05)

def test_random_without_its_generator_is_refused():
    with pytest.raises(ValueError, match='generator'): random(w)

# -- reducers and normalizers ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('f,dim,expected', [
    (Reducer.sum, [0], [[1, 2, 3], [4, 5, 9]]), (Reducer.sum, [1], [[5, 7, 12]]), (Reducer.sum, [2], [[6], [18]]),
    (Reducer.sum, [1, 2], [[24]]),
    (Reducer.mean, (0,), [[1, 2, 3], [4, 5, 9]]), (Reducer.mean, [1], [[2.5, 3.5, 6]]), (Reducer.mean, (2,), [[2], [6]]),
    (Reducer.mean, [1, 2], [[4]])])
def test_a_groups_score_is_this(f, dim, expected): assert f(tensor([[1., 2, 3], [4, 5, 9]]), dim).tolist() == expected

@pytest.mark.parametrize('name', list(reducers))
def test_a_reducer_is_the_one_used(name):
    assert torch.equal(Criteria(torch.abs, reducer=reducers[name])(w.view(2, 2), dim=[2]), reducers[name](w.view(2, 2).abs(), [2]))

def test_mean_is_the_reducer_unless_another_is_given(): assert close(Criteria(torch.abs)(w.view(2, 2), dim=[2]), [[.25], [.25]])

@pytest.mark.parametrize('name,expected', [
    ('sum', [.1, -.4, .2, .3]), ('mean', [.4, -1.6, .8, 1.2]), ('max', [.25, -1, .5, .75]), ('standardization', [5/7, 0, 6/7, 1]),
    ('gaussian', [.1856953, -1.6712580, .5570860, .9284767])]) # mean .5, variance 29/4
def test_normalized_scores_are_these(name, expected): assert close(normalizers[name](tensor([1., -4, 2, 3])), expected)

@pytest.mark.parametrize('name', list(normalizers))
@pytest.mark.parametrize('c', [0., .1, -.1, 1., 1e-40, 1e-45, -1e-42, 1e30])
@pytest.mark.parametrize('n', [1, 3, 1000])
def test_constant_scores_stay_constant_and_finite(name, c, n):
    s = normalizers[name](torch.full((n,), c))
    assert s.isfinite().all() and s.unique().numel() == 1

@pytest.mark.parametrize('n', [1, 3, 1000])
@pytest.mark.parametrize('c', [0., .1, -.3, 1e30])
def test_constant_scores_have_no_deviation(c, n): assert Normalizer.gaussian(torch.full((n,), c)).tolist() == [0.]*n

@pytest.mark.parametrize('name', list(normalizers))
@given(row=st.lists(st.integers(-50, 50), min_size=1, max_size=20), scale=st.sampled_from([1e-20, 1e-3, 1., 1e20]))
def test_a_normalizer_keeps_the_order(name, row, scale):
    s = tensor(row)*scale
    assert order(normalizers[name](s)) == order(s) == sorted(range(len(row)), key=lambda i: row[i])

@pytest.mark.parametrize('name', list(normalizers))
def test_a_criterion_normalizes_after_reducing(name):
    c = Criteria(torch.square, normalizer=normalizers[name])
    assert torch.equal(c(w.view(2, 2), dim=[2]), normalizers[name](torch.square(w.view(2, 2)).mean(1, keepdim=True)))

def test_normalizers_make_layers_compare():
    c = Criteria(torch.abs, normalizer=Normalizer.max)
    assert close(c(w*100), c(w))

# -- one's own -------------------------------------------------------------------------------------------------------------------

def test_a_function_is_a_criterion():
    c = as_criteria(lambda x: -(x - .2).abs())
    assert isinstance(c, Criteria)
    assert close(c(w), [-.1, -.6, 0, -.5])

def test_a_criterion_and_its_name_are_the_same():
    for n,c in criterias.items(): assert as_criteria(n) is as_criteria(c) is c

def test_a_function_of_two_arguments_is_asked_what_the_second_is():
    with pytest.raises(ValueError, match=r'takes two arguments: say which the second is, with Criteria\(f, needs_grad=True\) for the gradient, or needs_rng=True'): as_criteria(lambda w, g: w*g)
    assert as_criteria(torch.abs) and as_criteria(lambda w, p=2: w.abs()**p)

@pytest.mark.parametrize('c', ['large', None, 3, [large_final]])
def test_what_is_no_criterion_is_refused_with_the_choices(c):
    with pytest.raises(ValueError, match=r"criteria=.* is not a criterion; choose from \['random', .*or give a"): as_criteria(c)

@pytest.mark.parametrize('name', list(criterias))
def test_a_criterion_prints_as_its_name(name): assert repr(criterias[name]) == f'Criteria({name})' and criterias[name].__name__ == name

def test_ones_own_criterion_prints_as_its_function():
    def mine(x): return x
    assert repr(Criteria(mine)) == 'Criteria(mine)'

@pytest.mark.parametrize('kwargs,message', [
    (dict(f='abs'), "f must be a function of a weight tensor, such as torch.abs, got 'abs'"),
    (dict(f=None), 'f must be a function of a weight tensor'),
    (dict(f=torch.abs, needs_init=True, needs_update=True), 'needs_init=True and needs_update=True exclude each other'),
    (dict(f=torch.abs, output_fn=torch.sub), 'needs_init=True or needs_update=True'),
    (dict(f=torch.abs, return_init=True), 'needs_init=True or needs_update=True'),
    (dict(f=torch.abs, needs_init=True, output_fn=torch.sub, return_init=True), 'output_fn and return_init=True exclude each other'),
    (dict(f=torch.mul, needs_grad=True, needs_init=True), 'needs_grad=True excludes needs_init'), (dict(f=torch.mul, needs_grad=True, needs_rng=True), 'needs_grad=True excludes'),
    (dict(f=torch.abs, accumulate=True), 'accumulate=True .* goes with needs_grad=True'), (dict(f=torch.abs, needs_data=True, data_fn='l1'), r"data_fn='l1' is not .* choose from \['l2_norm', 'max', 'mean'\]"),
    (dict(f=torch.abs, scale=3), 'scale=3 must be a dict of layers'), (dict(f=torch.abs, scale={}, needs_data=True), 'takes the place of needs_data=True')])
def test_a_criterion_that_contradicts_itself_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message): Criteria(**kwargs)

@pytest.mark.parametrize('f,got', [(torch.sum, r'\(\)'), (lambda x: x[:2], r'\(2,\)'), (lambda x: 1., '1.0'), (lambda x: None, 'None'), (lambda x: x.numpy(), 'ndarray')])
def test_scores_of_another_shape_are_refused(f, got):
    with pytest.raises(ValueError, match=rf'must give a score for each weight, shape \(4,\), got {got}'): Criteria(f)(w)

@pytest.mark.parametrize('f', [lambda x: x > 0, lambda x: x.sign().long()])
def test_whole_numbers_and_truths_are_scores_too(f):
    s = Criteria(f)(w)
    assert s.dtype == torch.float32 and s.tolist() == f(w).float().tolist()

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_come_as_float32(dtype): assert Criteria(lambda x: x.to(dtype))(w).dtype == torch.float32

def test_the_output_function_gets_the_scores_and_the_references():
    c = Criteria(torch.abs, needs_update=True, output_fn=lambda a, b: a/b)
    assert close(c(w, ref), [.2, 4, 2/3, 1.5])

def test_a_criterion_may_draw():
    c = Criteria(lambda x, g: x.abs() + 0*torch.rand(x.shape, generator=g), needs_rng=True)
    assert close(c(w, generator=gen()), w.abs())

def test_a_criterion_of_weights_and_gradients():
    c = Criteria(lambda w, g: w - g, needs_grad=True)
    assert close(c(w, grad=grad), w - grad)

def test_factors_multiply_before_groups_are_made():
    c = Criteria(torch.abs, needs_data=True)
    assert close(c(w.view(2, 2), dim=[2], scale=tensor([[10., 1]])), [[.7], [1.15]])

"""Criteria by gradients, and what comes back by them: the gradients of training, whole, unscaled, not clipped and not masked."""
import warnings
from functools import partial

import pytest
import torch
from fastai.vision.all import Adam, Callback, CancelBatchException, CancelStepException, GradientAccumulation, GradientClip, SGD, ShortEpochCallback
from helpers import Spy, convs, tiny_dls, tiny_learner, tiny_model, zeros
from torch import nn

from fasterai_sched import Criteria, Schedule, Sparsifier, SparsifyCallback, criterias, movement_pruning, one_shot, sched_oneshot, taylor

by_grad = [n for n,c in criterias.items() if c.needs_grad]

def still(**kwargs):
    "A learner whose weights do not move, nor do its batches"
    learn = tiny_learner(opt_func=partial(SGD, mom=0), lr=0, wd=0, **kwargs)
    learn.dls.train.shuffle = False
    return learn

class Scaled(Callback):
    "What MixedPrecision does with a GradScaler, which does nothing without a GPU: scales the loss, unscales before the step, skips a step that overflows"
    order = 10
    def __init__(self, scale=1024., overflow=()): self.scale,self.overflow,self.n = scale,overflow,0
    def before_backward(self): self.learn.loss_grad = self.loss_grad*self.scale
    def before_step(self):
        self.n += 1
        for p in self.model.parameters():
            if p.grad is not None: p.grad.div_(self.scale) if self.n not in self.overflow else p.grad.fill_(float('inf'))
        if self.n in self.overflow: raise CancelStepException

def heard(*cbs, criteria=movement_pruning, n=2, **kwargs):
    "What the layers have heard at the end"
    learn,cb = still(**kwargs),SparsifyCallback(0, criteria=criteria, verbose=False) # prunes nothing, and listens
    learn.fit(n, cbs=[cb, *cbs])
    return [l.heard for l in cb.sparsifier.layers]

def close(a, b, factor=1.): return all(torch.allclose(x, y*factor, rtol=1e-4, atol=1e-9) for x,y in zip(a, b, strict=True))

# -- which gradients ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', by_grad)
def test_they_are_the_gradients_of_the_loss(name):
    learn,c = still(),criterias[name]
    sums = [0, 0]
    for _ in range(2):
        for xb,yb in learn.dls.train:
            model = tiny_model()
            learn.loss_func(model(xb), yb).backward()
            for i,m in enumerate(convs(model)): sums[i] = sums[i]*c.accumulate + c.f(m.weight, m.weight.grad).detach()
    assert close(heard(criteria=name), sums)

@pytest.mark.parametrize('cb', [GradientClip(1e-3), Scaled(), Scaled(2.**20), Spy('after_backward', lambda l: None)], ids=['clipped', 'scaled', 'scaled much', 'nothing'])
@pytest.mark.parametrize('name', by_grad)
def test_neither_clipping_nor_a_scaled_loss_makes_a_difference(name, cb): assert close(heard(cb, criteria=name), heard(criteria=name))

@pytest.mark.parametrize('name', by_grad)
def test_a_step_that_overflows_is_not_heard(name):
    whole,less = heard(criteria=name, n=1),heard(Scaled(overflow=[2, 3]), criteria=name, n=1)
    assert all(h.isfinite().all() for h in less)
    if name == 'taylor': assert close(less, whole) # the last step counts
    else:
        without = [a - b for a,b in zip(whole, [sum(x) for x in zip(*[step(i) for i in (1, 2)])])]
        assert close(less, without)

def step(i):
    "What movement_pruning hears in the i-th batch"
    learn,model = still(),tiny_model()
    for j,(xb,yb) in enumerate(learn.dls.train):
        if i == j: learn.loss_func(model(xb), yb).backward()
    return [-(m.weight*m.weight.grad).detach() for m in convs(model)]

def test_accumulated_gradients_are_heard_once_a_step():
    "Four batches make two steps of their means"
    assert close(heard(GradientAccumulation(20)), heard(), .5)
    last = [(a + b)/2 for a,b in zip(step(2), step(3))]
    assert close(heard(GradientAccumulation(20), criteria=taylor), [x.abs() for x in last])

@pytest.mark.parametrize('name', by_grad)
def test_the_gradients_of_pruned_weights_are_heard_too_and_don_t_count_in_a_norm(name):
    cb = SparsifyCallback(50, criteria=Criteria(lambda w, g: g.abs(), needs_grad=True, accumulate=criterias[name].accumulate), schedule=one_shot, start_epoch=1)
    learn,norms = still(),[]
    class Norm(GradientClip):
        def before_step(self): norms.append(float(nn.utils.clip_grad_norm_(self.parameters(), 1e9)))
    alive = Spy('after_backward', lambda l: sum(float((p.grad*cb.sparsifier.held().get(n, torch.tensor(1.)).expand_as(p)).square().sum()) for n,p in l.model.named_parameters())**.5, order=90)
    learn.fit(3, cbs=[cb, Norm(), alive])
    for l in cb.sparsifier.layers: assert l.heard[~l.keep].count_nonzero() > .5*int((~l.keep).sum())
    assert norms[5:] == pytest.approx(alive.seen[5:], rel=1e-5)

def test_accumulation_keeps_pruned_gradients_dense_until_the_step():
    cb = SparsifyCallback(50, criteria=Criteria(lambda w, g: g.abs(), needs_grad=True), schedule=one_shot, start_epoch=0, end_epoch=1)
    learn = still()
    dense = Spy('before_step', lambda l: [m.weight.grad.abs().clone() for m in convs(l.model)], order=10.4)
    learn.fit(2, cbs=[cb, GradientAccumulation(20), dense])
    assert close([l.heard for l in cb.sparsifier.layers], dense.seen[-1])
    masked = [m.weight.grad for m in convs(learn.model)]
    assert all(g is None or not g[~l.keep].any() for g,l in zip(masked, cb.sparsifier.layers))

# -- what they prune -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('context', ['local', 'global'])
@pytest.mark.parametrize('name', by_grad)
def test_in_a_fit_the_lowest_of_what_was_heard_go(name, context):
    cb = SparsifyCallback(80, criteria=name, context=context, schedule='lin')
    learn,log = tiny_learner(opt_func=Adam),[]
    def before(l): log.append([(l.heard.clone() if l.heard is not None else None, None if l.mask is None else l.mask.clone()) for l in cb.sparsifier.layers] if cb.sparsifier else None)
    def after(l):
        if not l.training or cb.sparsifier is None or log[-1] is None or log[-1][0][0] is None: return
        rows = list(zip(log[-1], cb.sparsifier.layers))
        if context == 'global': rows = [((torch.cat([h.flatten() for (h,_),_ in rows]), None if any(m is None for (_,m),_ in rows) else torch.cat([m.flatten() for (_,m),_ in rows])),
                                         torch.cat([(torch.ones_like(l.weight) == 1 if l.mask is None else l.mask).flatten() for _,l in rows]))]
        else: rows = [((h.flatten(), None if m is None else m.flatten()), l.mask.flatten()) for (h,m),l in rows]
        for (h,was),now in rows:
            new = ~now if was is None else was & ~now
            if new.any(): assert h[new].max() <= h[now].min(); seen.append(1)
    seen = []
    learn.fit(2, cbs=[cb, Spy('before_batch', before, order=54), Spy('before_batch', after, order=56)])
    assert len(seen) >= 6 and (zeros(learn.model) == [86, 259] if context == 'local' else sum(zeros(learn.model)) == 345)

def test_snip_prunes_at_the_first_gradient_and_not_before(capsys):
    cb = SparsifyCallback(50, criteria=taylor, schedule=Schedule(sched_oneshot))
    learn = tiny_learner()
    first = Spy('after_pred', lambda l: sum(zeros(l.model)) if l.training else None)
    raw = Spy('after_backward', lambda l: [(m.weight*m.weight.grad).abs().detach().clone() for m in convs(l.model)], order=0)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.fit(1, cbs=[cb, first, raw])
    assert [s for s in first.seen if s is not None] == [0, 216, 216, 216] and zeros(learn.model) == [54, 162]
    for l,s in zip(cb.sparsifier.layers, raw.seen[0]): assert s[~l.mask].max() <= s[l.mask].min()
    assert cb.history.query('kind == "masks"').step.tolist() == [1]
    assert 'Sparsity at the end of epoch 0: [50.0]%' in capsys.readouterr().out

class NoLoss(Callback):
    "The first batches say nothing"
    order = 5
    def __init__(self, n): self.n = n
    def after_backward(self):
        self.n -= 1
        if self.n >= 0:
            for p in self.model.parameters(): p.grad.zero_()

def test_gradients_of_zero_are_waited_out_and_it_is_said():
    cb = SparsifyCallback(50, criteria=taylor, schedule=Schedule(sched_oneshot))
    learn = tiny_learner()
    with pytest.warns(UserWarning, match='The masks wait for a gradient, by which criteria=taylor scores: nothing more is pruned until there is one') as w: learn.fit(1, cbs=[cb, NoLoss(2)])
    assert cb.history.query('kind == "masks"').step.tolist() == [3] and zeros(learn.model) == [54, 162] and len([x for x in w if 'wait' in str(x.message)]) == 1

class Idle(nn.Module):
    "A layer that is never used"
    def __init__(self):
        super().__init__()
        self.conv,self.idle,self.head = nn.Conv2d(2, 6, 3),nn.Conv2d(2, 6, 3),nn.Linear(96, 3)
    def forward(self, x): return self.head(self.conv(x).flatten(1).relu())

def test_a_layer_that_never_gets_a_gradient_goes_by_position_and_it_is_said():
    cb = SparsifyCallback(50, criteria=taylor, schedule=Schedule(sched_oneshot))
    learn = tiny_learner(Idle())
    with pytest.warns(UserWarning, match="Layer 'idle' has had no gradient but zeros, and the criterion scores by it: its weights go by position"): learn.fit(1, cbs=cb)
    assert zeros(learn.model) == [54, 54] and cb.sparsifier.layers[1].mask.flatten().tolist() == [False]*54 + [True]*54

def moves(cb): return [(r.step, r.measured) for r in cb.history.query('kind == "masks"').itertuples()]

def test_a_layer_of_no_use_is_waited_for_ten_steps_and_no_longer():
    cb = SparsifyCallback(50, criteria=taylor, schedule='lin')
    learn = tiny_learner(Idle(), dls=tiny_dls(n=200))
    with pytest.warns(UserWarning, match="Layer 'idle' has had no gradient but zeros"): learn.fit(1, cbs=cb)
    steps = [s for s,_ in moves(cb)]
    assert steps[0] == 11 and steps == list(range(11, 21)) and zeros(learn.model) == [54, 54]

class TwoHeads(nn.Module):
    "One is used in every other batch"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.i = nn.Linear(72, 3),nn.Linear(72, 3),0
    def forward(self, x):
        self.i += self.training
        return (self.a if self.i % 2 else self.b)(x.flatten(1))

@pytest.mark.parametrize('name', by_grad)
def test_a_layer_that_is_left_out_of_a_step_keeps_what_it_has_heard(name):
    cb = SparsifyCallback(50, criteria=name, schedule='lin', layer_type=nn.Linear)
    learn = tiny_learner(TwoHeads(), dls=tiny_dls(n=80))
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*has had no gradient')
        learn.fit(1, cbs=cb)
    assert [s for s,_ in moves(cb)] == list(range(2, 9)) and zeros(learn.model, nn.Linear) == [108, 108]

def test_an_empty_layer_is_not_waited_for():
    model = tiny_model()
    nn.init.zeros_(model[0].weight)
    cb = SparsifyCallback(90, criteria=taylor, schedule='lin', keep_zeros=True, context='global')
    learn = tiny_learner(model)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*Nothing is left')
        learn.fit(2, cbs=cb)
    assert [s for s,_ in moves(cb)] == [s for s,_ in moves(cb) if s] and len(moves(cb)) >= 5 and sum(zeros(learn.model)) == 388

@pytest.mark.parametrize('f', [lambda w, g: g, lambda w, g: w])
@pytest.mark.parametrize('accumulate', [False, True])
def test_a_criterion_that_gives_back_what_it_got_changes_nothing(f, accumulate):
    def run(*cbs):
        learn = still()
        seen = Spy('after_backward', lambda l: [(m.weight.detach().clone(), m.weight.grad.clone()) for m in convs(l.model)], order=0)
        learn.fit(2, cbs=[seen, *cbs])
        return seen.seen
    a,b = run(),run(SparsifyCallback(0, criteria=Criteria(f, needs_grad=True, accumulate=accumulate), verbose=False))
    assert all(torch.equal(x, y) for p,q in zip(a, b, strict=True) for m,n in zip(p, q) for x,y in zip(m, n))

def test_a_fit_without_a_gradient_prunes_nothing_and_says_so():
    learn = tiny_learner()
    def cancel(l):
        if l.training: raise CancelBatchException
    with pytest.warns(UserWarning, match='The masks wait for a gradient'): learn.fit(1, cbs=[SparsifyCallback(50, criteria=taylor), Spy('after_pred', cancel)])
    assert zeros(learn.model) == [0, 0]

@pytest.mark.parametrize('name', [*by_grad, 'wanda'])
def test_an_epoch_cut_short_ends_at_its_target(name):
    learn = tiny_learner()
    learn.fit(2, cbs=[SparsifyCallback(50, criteria=name, schedule='lin'), ShortEpochCallback(pct=.3)])
    assert zeros(learn.model) == [54, 162]

@pytest.mark.parametrize('name', by_grad)
def test_each_fit_hears_anew(name):
    learn,cb = tiny_learner(),SparsifyCallback(50, criteria=name)
    learn.fit(1, cbs=cb)
    first = cb.sparsifier
    learn.fit(1, cbs=cb)
    assert cb.sparsifier is not first and all(a.heard is not b.heard for a,b in zip(first.layers, cb.sparsifier.layers))

def test_fp32_masters_are_heard():
    from contract import Masters
    class World: weights,masters = None,None
    learn = tiny_learner(tiny_model().bfloat16())
    World.weights = list(learn.model.parameters())
    cb = SparsifyCallback(50, criteria=movement_pruning, schedule='lin')
    learn.fit(2, cbs=[cb, Masters(World)])
    assert zeros(learn.model) == [54, 162] and all(l.heard.dtype == torch.float32 for l in cb.sparsifier.layers)

# -- without fastai ------------------------------------------------------------------------------------------------------------------

def loop(sp, model, n=3, collect=True):
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    for i in range(n):
        nn.functional.cross_entropy(model(torch.randn(8, 2, 6, 6)), torch.randint(0, 3, (8,))).backward()
        if collect: sp.collect_grads()
        sp.sparsify_model(20*(i + 1))
        sp.mask_grads()
        opt.step()
        sp.apply_masks()
        opt.zero_grad()

@pytest.mark.parametrize('name', by_grad)
def test_a_loop_of_ones_own_collects_gradients(name):
    model = tiny_model()
    loop(Sparsifier(model, criteria=name), model)
    assert zeros(model) == [64, 194]

@pytest.mark.parametrize('name', by_grad)
def test_a_loop_that_does_not_is_told(name):
    model = tiny_model()
    with pytest.raises(ValueError, match=rf'criteria={name} scores by gradients, and has had none: call collect_grads\(\) after loss.backward\(\)'): loop(Sparsifier(model, criteria=name), model, collect=False)

def test_a_loss_that_was_scaled_is_divided_out():
    a,b = (Sparsifier(tiny_model(), criteria=movement_pruning) for _ in range(2))
    for l,m in zip(a.layers, b.layers):
        l.weight.grad = torch.randn_like(l.weight)
        m.weight.grad = l.weight.grad*256
    a.collect_grads()
    b.collect_grads(256)
    assert all(torch.equal(l.heard, m.heard) for l,m in zip(a.layers, b.layers))

def test_a_criterion_that_fails_on_gradients_is_refused_before_training():
    learn = tiny_learner()
    with pytest.raises(ValueError, match="criteria=<lambda> fails for layer '0': ValueError: .*must give a score for each weight"): learn.fit(1, cbs=SparsifyCallback(50, criteria=Criteria(lambda w, g: g.sum(), needs_grad=True)))
    assert zeros(learn.model) == [0, 0]

def test_nan_gradients_are_named():
    sp = Sparsifier(tiny_model(), criteria=taylor)
    for l in sp.layers: l.weight.grad = torch.full_like(l.weight, float('nan'))
    sp.collect_grads()
    with pytest.raises(ValueError, match="criteria=taylor gives NaN for layer '0': are its weights and gradients finite?"): sp.sparsify_model(50)

# -- what comes back -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('schedule', ['dsd', 'cyclic', 'ac_dc'])
@pytest.mark.parametrize('others', [[], [GradientClip(.01)], [GradientAccumulation(20)]], ids=['plain', 'clipped', 'accumulated'])
def test_in_a_fit_those_with_the_largest_gradient_come_back(schedule, others):
    cb = SparsifyCallback(90, schedule=schedule)
    learn,log = tiny_learner(dls=tiny_dls(n=120), opt_func=Adam),[]
    def look(l): return [(m.weight.grad.abs().clone(), None if h.mask is None else h.mask.clone()) for m,h in zip(convs(l.model), cb.sparsifier.layers)]
    before = Spy('before_step', lambda l: log.append(look(l)), order=10.4)
    def after(l):
        for (g,was),h in zip(log[-1], cb.sparsifier.layers):
            now = torch.ones_like(g) == 1 if h.mask is None else h.mask
            if was is None or not (now & ~was).any(): continue
            returned,gone = now & ~was,~now
            assert not h.weight[returned].any() and not any(v[returned].any() for v in l.opt.state[h.weight].values() if isinstance(v, torch.Tensor) and v.shape == g.shape)
            if gone.any(): assert g[returned].min() >= g[gone].max()
            seen.append(int(returned.sum()))
    seen = []
    learn.fit(3, cbs=[cb, before, Spy('before_step', after, order=10.6), *others])
    assert len(seen) >= (4 if schedule != 'dsd' else 10) and (schedule == 'ac_dc' or any(0 < s < 90 for s in seen))

def test_what_came_back_has_a_gradient_and_moves_in_the_same_step():
    cb = SparsifyCallback(90, schedule=lambda s, e, p: e if p < .5 else 30)
    learn = tiny_learner()
    with pytest.warns(UserWarning, match='ends at'): cb = SparsifyCallback(90, schedule=lambda s, e, p: e if p < .5 else 30)
    count = Spy('after_batch', lambda l: (sum(zeros(l.model)), sum(h.gone for h in cb.sparsifier.layers)) if l.training else None)
    learn.fit(2, cbs=[cb, count])
    steps = [c for c in count.seen if c]
    assert steps[2] == (388, 388) and steps[3][1] == 32 + 97 and steps[3][0] < 250

def test_where_there_is_no_step_they_come_back_by_position():
    with pytest.warns(UserWarning, match='ends at'): cb = SparsifyCallback(90, schedule=lambda s, e, p: e if p < .5 else 30)
    learn = tiny_learner()
    learn.fit(2, cbs=[cb, ShortEpochCallback(pct=.3)]) # two batches of four: the fall comes at an epoch's end
    for l in cb.sparsifier.layers:
        gone = (~l.mask).flatten().nonzero().flatten()
        assert len(gone) == int(.3*l.n)

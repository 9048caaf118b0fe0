"""What is not done: passes that are provably not needed, moves between updates; and that nothing is lost by it."""
import warnings
from functools import partial

import pytest
import torch
from fastai.callback.training import BnFreeze
from fastai.vision.all import (Adam, Callback, CSVLogger, GradientAccumulation, GradientClip, Lamb, Learner, MixUp, OptimWrapper, QHAdam, RAdam, RMSProp, SaveModelCallback, SGD, ranger)
from helpers import Spy, convs, tiny_dls, tiny_learner, tiny_model, zeros
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fasterai_sched.lowest as lowest_module
import fasterai_sched.sparsifier as module
from fasterai_sched import Sparsifier, SparsifyCallback, agp, one_shot
from fasterai_sched.optim import keeps_zeros

aten = torch.ops.aten
SAFE = {'Adam':Adam, 'Adam with l2':partial(Adam, decouple_wd=False), 'SGD':SGD, 'SGD with momentum':partial(SGD, mom=.9), 'RMSProp':RMSProp, 'RAdam':RAdam, 'QHAdam':QHAdam,
        'torch SGD':partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9, nesterov=True)), 'torch Adam':partial(OptimWrapper, opt=partial(torch.optim.Adam, amsgrad=True)), 'torch AdamW':partial(OptimWrapper, opt=torch.optim.AdamW),
        'torch RMSprop':partial(OptimWrapper, opt=torch.optim.RMSprop)}
OTHER = {'Lamb':Lamb, 'ranger':ranger, 'Adam without eps':partial(Adam, eps=0.), 'torch Adam without eps':partial(OptimWrapper, opt=partial(torch.optim.Adam, eps=0.)), 'torch Adagrad':partial(OptimWrapper, opt=torch.optim.Adagrad)}

class Passes:
    "Counts what is zeroed as a whole: `hold` as the sparsifier calls it, by what it is called for"
    def __init__(self, monkeypatch):
        self.n = dict(weights=0, grads=0)
        real = {k:getattr(Sparsifier, k) for k in ('apply_masks', 'mask_grads')}
        monkeypatch.setattr(Sparsifier, 'apply_masks', lambda sp, *args: self.count('weights') or real['apply_masks'](sp, *args))
        monkeypatch.setattr(Sparsifier, 'mask_grads', lambda sp: self.count('grads') or real['mask_grads'](sp))
    def count(self, k): self.n[k] += 1

def watched(opt, **kwargs):
    "A learner whose model itself sees to it that pruned is zero at every forward, with no callback that looks on"
    learn,seen = tiny_learner(opt_func=opt, wd=.1, dls=tiny_dls(n=120), **kwargs),[]
    def look(m, args):
        cb = next((cb for cb in learn.cbs if isinstance(cb, SparsifyCallback)), None)
        if cb is None or cb.sparsifier is None: return
        state = getattr(learn.opt, 'opt', learn.opt).state
        for l in cb.sparsifier.layers:
            if l.mask is None: continue
            seen.append(not l.weight[~l.mask].any() and not any(v[~l.mask].any() for v in state.get(l.weight, {}).values() if isinstance(v, torch.Tensor) and v.shape == l.mask.shape))
    learn.model.register_forward_pre_hook(look)
    return learn,seen

@pytest.mark.parametrize('name', SAFE)
def test_no_pass_over_the_weights_is_made_after_a_step_that_keeps_zeros(name, monkeypatch):
    passes,(learn,seen) = Passes(monkeypatch),watched(SAFE[name])
    learn.fit(3, cbs=SparsifyCallback(90, verbose=False))
    assert keeps_zeros(learn.opt) and seen and all(seen) and zeros(learn.model) == [97, 291]
    assert passes.n['grads'] == 36 and passes.n['weights'] <= 3*3 # a few an epoch, and none a step

@pytest.mark.parametrize('name', OTHER)
def test_one_is_made_after_any_other(name, monkeypatch):
    passes,(learn,seen) = Passes(monkeypatch),watched(OTHER[name])
    learn.fit(3, cbs=SparsifyCallback(90, verbose=False))
    assert not keeps_zeros(learn.opt) and all(seen) and zeros(learn.model) == [97, 291] and passes.n['weights'] >= 36

class Mine(Callback):
    "Writes to the weights, unseen by tensor versions"
    def __init__(self, event): setattr(self, event, self.write)
    def write(self):
        for m in convs(self.model): m.weight.data.add_(1e-3)

@pytest.mark.parametrize('event', ['before_step', 'after_step', 'after_batch'])
def test_a_callback_of_ones_own_may_write_to_weights(event, monkeypatch):
    passes,(learn,seen) = Passes(monkeypatch),watched(Adam)
    cb = SparsifyCallback(90, verbose=False)
    learn.fit(3, cbs=[cb, Mine(event)])
    assert passes.n['weights'] >= 36 and [l.dead for l in cb.sparsifier.layers] == [97, 291]
    if event != 'after_batch': assert all(seen) and zeros(learn.model) == [97, 291]

def test_masks_only_grow_whatever_is_written_to_weights():
    learn,last = tiny_learner(),{}
    cb = SparsifyCallback(90, schedule='lin', verbose=False)
    def grown(l):
        for h in cb.sparsifier.layers if cb.sparsifier else []:
            if h.mask is None: continue
            assert h.name not in last or not (h.mask & ~last[h.name]).any()
            last[h.name] = h.mask.clone()
    learn.fit(4, cbs=[cb, Mine('after_batch'), Spy('before_batch', grown, order=56)])
    assert [l.dead for l in cb.sparsifier.layers] == [97, 291]

@pytest.mark.parametrize('others', [[BnFreeze], [MixUp], [CSVLogger], [SaveModelCallback], [partial(GradientAccumulation, 20)]], ids=lambda o: getattr(o[0], '__name__', 'accumulation'))
def test_fastais_callbacks_are_trusted(others, monkeypatch, tmp_path):
    passes,(learn,seen) = Passes(monkeypatch),watched(Adam, path=tmp_path)
    learn.fit(3, cbs=[SparsifyCallback(90, verbose=False), *[o() for o in others]])
    assert all(seen) and zeros(learn.model) == [97, 291] and passes.n['weights'] <= 12

def test_but_not_one_that_may_make_every_gradient_nan(monkeypatch):
    passes,(learn,_) = Passes(monkeypatch),watched(Adam)
    learn.fit(1, cbs=[SparsifyCallback(50, schedule='lin', verbose=False), GradientClip(1.)])
    assert passes.n['weights'] >= 12

def test_a_move_that_prunes_few_touches_few(monkeypatch):
    "Neither the weights nor what the optimizer holds of them are gone over as a whole"
    big = nn.Sequential(nn.Conv2d(2, 200, 3), nn.ReLU(), nn.Conv2d(200, 100, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(100, 3))
    learn = tiny_learner(big, dls=tiny_dls(n=200), opt_func=Adam)
    cb,held = SparsifyCallback(20, schedule='lin', verbose=False),[]
    import fasterai_sched.held as h
    real = h.hold
    monkeypatch.setattr(h, 'hold', lambda t, keep: held.append(t.numel()) or real(t, keep))
    learn.fit(1, cbs=cb)
    assert len(cb.history.query('kind == "masks"')) == 20 and [l.dead for l in cb.sparsifier.layers] == [720, 36_000]
    assert sum(n > 1000 for n in held) <= 12 # when it begins and ends, and not at each of twenty moves

# -- update_every --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('every,n', [(1, 24), (2, 12), (5, 5), (7, 4), (100, 2)])
def test_masks_move_every_so_many_batches_at_the_end_of_an_epoch_and_at_the_end(every, n):
    cb = SparsifyCallback(90, schedule='lin', update_every=every, verbose=False)
    learn = tiny_learner(dls=tiny_dls(n=120))
    learn.fit(2, cbs=cb)
    steps = cb.history.query('kind == "masks"').step.tolist()
    assert steps == sorted({*range(every, 25, every), 12, 24}) and zeros(learn.model) == [97, 291]
    rows = cb.history.query('kind == "epoch"')
    assert rows.target.tolist() == [45, 90] and rows.measured.tolist() == [100*(48 + 145)/432, 100*388/432]
    assert len(steps) >= n

def test_the_last_batch_trains_at_the_target():
    cb = SparsifyCallback(90, schedule='lin', update_every=5, verbose=False)
    learn = tiny_learner(dls=tiny_dls(n=120))
    seen = Spy('after_pred', lambda l: sum(zeros(l.model)) if l.training else None)
    learn.fit(1, cbs=[cb, seen])
    assert [s for s in seen.seen if s is not None][-1] == 388

@pytest.mark.parametrize('every', [0, -1, 1.5, None, True])
def test_what_is_no_number_of_batches_is_refused(every):
    with pytest.raises(ValueError, match=f'update_every={every!r} must be a whole number of at least 1'): SparsifyCallback(90, update_every=every)

def test_a_schedule_that_rests_costs_nothing_but_masking(monkeypatch):
    scored = []
    real = module.Sparsifier.sparsify_model
    monkeypatch.setattr(module.Sparsifier, 'sparsify_model', lambda sp, *args, **kwargs: scored.append(1) or real(sp, *args, **kwargs))
    tiny_learner(dls=tiny_dls(n=120)).fit(4, cbs=SparsifyCallback(90, schedule=one_shot, verbose=False))
    assert len(scored) == 2 # at the first batch, and when it jumps

class Syncs(TorchDispatchMode):
    "What a device would have to be waited for"
    def __init__(self, seen): super().__init__(); self.seen = seen
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select) or func is aten.index.Tensor: self.seen.append(str(func))
        return func(*args, **(kwargs or {}))

@pytest.mark.parametrize('trusted', [True, False])
@pytest.mark.parametrize('granularity', ['weight', 'filter'])
def test_no_device_is_waited_for_in_a_step_in_which_no_mask_moves(granularity, trusted, monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 64) # torch masks then, as on a GPU, and not numpy
    monkeypatch.setattr(lowest_module, '_on_cpu', lowest_module._anywhere)
    if not trusted: monkeypatch.setattr(SparsifyCallback, '_zeros_stay', property(lambda self: False))
    cb,calls,real = SparsifyCallback(50, granularity, schedule='iterative', verbose=False),[],SparsifyCallback.__call__
    def watched(self, event):
        seen = []
        with Syncs(seen): real(self, event)
        if event in ('before_batch', 'after_backward', 'before_step', 'after_step') and self.learn.training: calls.append((self.epoch*self.n_iter + self.iter + 1, event, seen))
    monkeypatch.setattr(SparsifyCallback, '__call__', watched)
    tiny_learner(dls=tiny_dls(n=120), opt_func=Adam).fit(5, cbs=cb)
    moved = set(cb.history.query('kind == "masks"').step)
    assert len(moved) == 3 and len(calls) == 4*60
    assert [c for c in calls if c[2] and c[0] not in moved] == []
    assert {c[0] for c in calls if c[2]} == moved # and the watch would have seen one

def test_agp_and_its_model_are_the_same_with_and_without_the_passes(monkeypatch):
    def run(trust):
        if not trust: monkeypatch.setattr(SparsifyCallback, '_zeros_stay', property(lambda self: False))
        torch.manual_seed(3)
        learn = tiny_learner(tiny_model(), dls=tiny_dls(n=120), opt_func=Adam)
        learn.dls.train.shuffle = False
        learn.fit(3, cbs=SparsifyCallback(90, schedule=agp, verbose=False))
        return [m.weight.detach().clone() for m in convs(learn.model)]
    assert all(torch.equal(a, b) for a,b in zip(run(True), run(False)))

# -- what is not taken for granted -----------------------------------------------------------------------------------------------------------

def hooked(learn, cb):
    "Whether pruned weights, and their averages, are 0 at each forward pass, seen by nobody"
    seen = []
    def look(m, args):
        if cb.sparsifier is None or not m.training: return
        state = getattr(learn.opt, 'opt', learn.opt).state
        for l in cb.sparsifier.layers:
            if l.keep is None: continue
            gone = ~l.keep.expand_as(l.weight)
            seen.append((not l.weight[gone].any(), not any(v[gone].any() for v in state.get(l.weight, {}).values() if isinstance(v, torch.Tensor) and v.shape == gone.shape)))
    learn.model.register_forward_pre_hook(look)
    return seen

@torch.no_grad()
def push(self):
    for p in self.learn.model.parameters(): p.add_(1e-3)

def push_grads(self):
    for p in self.learn.model.parameters(): p.grad.add_(1e-2)

class Noisy(Learner):
    def _step(self):
        super()._step()
        with torch.no_grad():
            for p in self.model.parameters(): p.add_(1e-3)

def wrap_step(opt):
    real = opt.step
    def step(*args, **kwargs):
        real(*args, **kwargs)
        with torch.no_grad():
            for g in opt.param_groups:
                for p in g['params']: p.add_(1e-3)
    opt.step = step

@pytest.mark.parametrize('what', ['event', 'learner', 'patched learner', 'wrapped step', 'hooked step', 'callback'])
def test_what_may_write_to_weights_is_not_trusted(what):
    torch_opt = partial(OptimWrapper, opt=torch.optim.Adam)
    learn = tiny_learner(dls=tiny_dls(n=80), opt_func=torch_opt if what == 'hooked step' else Adam)
    if what == 'learner': learn.__class__ = Noisy
    if what == 'patched learner': learn._step = partial(Noisy._step, learn)
    learn.create_opt()
    if what == 'wrapped step': wrap_step(learn.opt)
    if what == 'hooked step': learn.opt.opt.register_step_post_hook(lambda opt, *_: [p.data.add_(1e-3) for g in opt.param_groups for p in g['params']])
    if what == 'patched learner': learn._step = lambda: (learn.opt.step(), push(learn))
    push_learn = type('O', (), dict(learn=learn))
    if what == 'patched learner': learn._step = lambda: (learn.opt.step(), push(push_learn))
    cb = SparsifyCallback(80, end_epoch=1, verbose=False)
    seen = hooked(learn, cb)
    extra = dict(event=[Callback(after_step=push)], callback=[Spy('after_step', lambda l: push(push_learn))]).get(what, [])
    if 'learner' in what or 'step' in what: learn.create_opt = lambda: None # the one that is there
    learn.fit(2, cbs=[cb, *extra])
    assert seen and all(w for w,_ in seen) and [l.dead for l in cb.sparsifier.layers] == [86, 259]

@pytest.mark.parametrize('opt', [Adam, partial(SGD, mom=.9)])
@pytest.mark.parametrize('cb', [lambda: Callback(before_step=push_grads), lambda: Spy('before_step', lambda l: [p.grad.add_(1e-2) for p in l.model.parameters()] and None, order=60)])
def test_averages_that_another_has_filled_are_emptied_at_the_next_move(opt, cb):
    learn,mine,late = tiny_learner(dls=tiny_dls(n=80), opt_func=opt),SparsifyCallback(80, schedule='lin', verbose=False),[]
    def look(l):
        if not l.training or not mine._moved: return
        late.append(any(v[~x.keep].any() for x in mine.sparsifier.layers for v in l.opt.state[x.weight].values() if isinstance(v, torch.Tensor) and v.shape == x.keep.shape))
    learn.fit(1, cbs=[mine, cb(), Spy('before_batch', look, order=56)])
    assert len(late) == 8 and not any(late) # right after a move

def test_a_parameter_that_lies_where_a_selected_one_does_is_seen():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.h = nn.Conv2d(2, 2, 3, padding=1),nn.Conv2d(2, 2, 3, padding=1),nn.Linear(2, 3)
            self.b.weight.data = self.a.weight.data
        def forward(self, x): return self.h(self.b(self.a(x).relu()).mean((2, 3)))
    learn,cb = tiny_learner(Both(), dls=tiny_dls(n=80), opt_func=Adam),SparsifyCallback(80, layers='a', verbose=False)
    seen = hooked(learn, cb)
    learn.fit(2, cbs=cb)
    assert seen and all(w for w,_ in seen)

@pytest.mark.parametrize('every', [1, 3, 6, 7, 100])
@pytest.mark.parametrize('acc', [0, 40])
def test_what_comes_back_is_chosen_by_the_gradient_whenever_masks_move(every, acc):
    import fasterai_sched.moves as moves
    by,dense,shrink,step = [],[],moves.Budget._shrunk,SparsifyCallback._with_gradients
    def shrunk(self, k, round_to):
        by.append(bool(dense))
        return shrink(self, k, round_to)
    def with_gradients(self):
        dense.append(1)
        step(self)
        dense.clear()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(moves.Budget, '_shrunk', shrunk)
        m.setattr(SparsifyCallback, '_with_gradients', with_gradients)
        cb = SparsifyCallback(80, schedule='dsd', update_every=every, verbose=False)
        tiny_learner(dls=tiny_dls(n=160), opt_func=Adam).fit(3, cbs=[cb, *([GradientAccumulation(acc)] if acc else [])])
    assert by and [l.dead for l in cb.sparsifier.layers] == [0, 0]
    # a step of several batches: what the last of an epoch adds is caught up with when it has ended, and then there is no gradient
    assert all(by) if not acc else by.count(False) <= 4 if every < 100 else not any(by)

@pytest.mark.parametrize('every', [1, 2, 3])
def test_masks_stay_as_they_are_amid_an_accumulated_step(every):
    learn,cb,seen = tiny_learner(dls=tiny_dls(n=160)),SparsifyCallback(80, schedule='lin', update_every=every, verbose=False),[]
    learn.fit(2, cbs=[cb, GradientAccumulation(40), Spy('before_batch', lambda l: seen.append((l.iter, [x.dead for x in cb.sparsifier.layers])) if l.training else None, order=56)])
    groups = [[d for i,d in seen[j:j + 4]] for j in range(0, len(seen), 4)] # four batches of 10 a step
    assert len(seen) == 32 and all(g[0] == x for g in groups for x in g)

def test_plan_and_warnings_know_of_update_every():
    from fasterai_sched import Schedule
    from fasterai_sched.schedules import sched_lin
    learn = tiny_learner(dls=tiny_dls(n=100))
    cb = SparsifyCallback(80, schedule=Schedule(sched_lin, start_pct=.5, end_pct=.6), update_every=7, verbose=False)
    plan = cb.plan(learn, 2)
    learn.fit(2, cbs=cb)
    assert (plan.last_move, plan.recovery) == (14, 6) and cb.history.query('kind == "masks"').step.tolist() == [14]
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='lth=True rewinds')
        tiny_learner(dls=tiny_dls(n=100)).fit(3, cbs=SparsifyCallback(80, lth=True, update_every=10, verbose=False))
    with pytest.warns(UserWarning, match='30 times'): tiny_learner(dls=tiny_dls(n=100)).fit(3, cbs=SparsifyCallback(80, schedule='lin', lth=True, verbose=False))

def test_the_target_of_end_epoch_is_that_of_its_last_batch():
    cb,seen = SparsifyCallback(60, schedule='lin', end_epoch=2, update_every=7, verbose=False),[]
    tiny_learner(dls=tiny_dls(n=80)).fit(3, cbs=[cb, Spy('after_pred', lambda l: seen.append(sum(x.dead for x in cb.sparsifier.layers)) if l.training else None)])
    assert seen[15] == 64 + 194 and seen[13] == seen[14] < seen[15]

"""SparsifyCallback: each option, each promise of a fit, on nets that train in a blink."""
import pickle
import random
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (Adam, CancelBatchException, CancelEpochException, CancelFitException, CancelTrainException,
    CSVLogger, EarlyStoppingCallback, GradientAccumulation, GradientClip, Interpretation, OptimWrapper, Recorder, SaveModelCallback, SchedCos, SchedPoly, SGD, ShortEpochCallback,
    combine_scheds, load_learner, sched_cos, sched_exp, sched_lin, sched_no)
from helpers import SEVERAL, Spy, convs, image_learner, tiny_dls, tiny_learner, tiny_model, zeros
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fasterai_sched as fs
from fasterai_sched import SparsifyCallback, agp, criterias, iterative, one_shot, sparsity_report
from fasterai_sched.doubts import warn_of_loose
from fasterai_sched.layers import loose_zeros
from fasterai_sched.masks import n_pruned
from fasterai_sched.schedules import schedules
from fasterai_sched.budgets import contexts

N = 108, 324 # weights of the two convolutions

def fit(cb, n=2, learn=None, **kwargs):
    learn = learn or tiny_learner()
    learn.fit(n, cbs=cb, **kwargs)
    return learn

def lines(capsys): return capsys.readouterr().out.splitlines()
def epoch_lines(capsys): return [l.split(': ')[1] for l in lines(capsys) if l.startswith('Sparsity at')]
def column(learn): return [v[learn.recorder.metric_names.index('sparsity') - 1] for v in learn.recorder.values]

# -- asked = applied = reported ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('context', contexts)
@pytest.mark.parametrize('criterion', criterias)
@pytest.mark.parametrize('schedule', schedules)
def test_asked_is_applied_is_reported(schedule, criterion, context, capsys):
    cb = SparsifyCallback(37, context=context, criteria=criterion, schedule=schedule)
    learn = fit(cb)
    asked = 0 if schedule == 'dsd' else 37
    floors = [asked*n//100 for n in N] if context == 'local' else asked*sum(N)//100
    gone = [l.gone for l in cb.sparsifier.layers]
    assert (gone if context == 'local' else sum(gone)) == floors
    if schedule not in ('dsd', 'cyclic', 'ac_dc'): # what came back to life may be at 0 by itself for want of a gradient
        assert (zeros(learn.model) if context == 'local' else sum(zeros(learn.model))) == floors
    total = sum(zeros(learn.model))
    out = lines(capsys)
    assert f'Sparsity at the end of epoch 1: [{round(100*total/432, 2)}]%' in out
    assert column(learn)[-1] == cb.history.measured.iloc[-1] == sparsity_report(learn.model).sparsity == 100*total/432
    assert out[-1].split() == ['Overall', 'all', '432', str(total), f'{100*total/432:.2f}%']
    assert any(l.startswith(f'Final Sparsity: [{"37" if schedule in ("one_shot", "ac_dc") else float(asked)}]%') for l in out)

@pytest.mark.parametrize('layer,granularity', [(t,g) for t,table in fs.Granularities._granularities.items() for g in table if t not in SEVERAL])
def test_every_granularity_of_every_layer_type_trains_at_its_floor(layer, granularity):
    space = int(layer.__name__[-2]) if 'Conv' in layer.__name__ else 0
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer,self.head = layer(2, 6, 3) if space else layer(72, 6),nn.LazyLinear(3)
        def forward(self, x):
            if space == 1: x = x.flatten(2)
            if space == 3: x = x[:, :, None].expand(-1, -1, 3, -1, -1)
            if not space: x = x.flatten(1)
            if layer is nn.Embedding: x = (x > 0).long()*torch.arange(72)
            return self.head(self.layer(x).relu().flatten(1))
    net = Net()
    net(torch.randn(1, 2, 6, 6))
    cb = SparsifyCallback({'layer':60}, granularity, layer_type=layer, schedule='lin') # by name: the head is a Linear too
    learn = fit(cb, learn=tiny_learner(net))
    l = cb.sparsifier.layers[0]
    assert int((learn.model.layer.weight == 0).sum()) == n_pruned(60, l.n)*l.size == round(column(learn)[-1]/100*l.weight.numel())

@given(target=st.one_of(st.integers(0, 100), st.floats(1, 100)), n_epoch=st.integers(1, 3), n_batch=st.integers(1, 4),
       schedule=st.sampled_from(['one_shot', 'iterative', 'agp', 'one_cycle', 'cos', 'lin']), context=st.sampled_from(list(contexts)))
def test_any_target_is_exact_on_the_last_batch(target, n_epoch, n_batch, schedule, context):
    cb = SparsifyCallback(target, context=context, schedule=schedule, verbose=False)
    learn = fit(cb, n_epoch, tiny_learner(dls=tiny_dls(n=2*n_batch, n_valid=2, bs=2, size=3)))
    if context == 'local': assert zeros(learn.model) == [n_pruned(target, n) for n in N]
    else: assert sum(zeros(learn.model)) == n_pruned(target, sum(N))

def test_a_rows_metrics_belong_to_its_sparsity():
    spy = Spy('after_pred', lambda l: None if l.training else sum(zeros(l.model))/4.32)
    learn = tiny_learner()
    learn.fit(6, cbs=[SparsifyCallback(90), spy])
    in_validation = [s for s in spy.seen if s is not None]
    assert in_validation == pytest.approx(column(learn))
    assert column(learn)[0] == 0 and column(learn)[-1] == 100*(97 + 291)/432

@pytest.mark.parametrize('opt', [Adam, partial(SGD, mom=.9), partial(OptimWrapper, opt=torch.optim.AdamW), partial(OptimWrapper, opt=torch.optim.SGD)])
def test_pruned_is_zero_at_every_forward_and_so_are_its_averages(opt):
    cb = SparsifyCallback(80)
    def check(learn):
        masks = cb.sparsifier.masks
        state = getattr(learn.opt, 'opt', learn.opt).state
        for n,m in learn.model.named_modules():
            if n not in masks: continue
            dead = ~masks[n].expand_as(m.weight)
            assert not m.weight[dead].any()
            for v in state.get(m.weight, {}).values():
                if isinstance(v, torch.Tensor) and v.shape == m.weight.shape: assert not v[dead].any()
        return sum(map(len, masks.values()))
    spy = Spy('after_pred', check)
    learn = tiny_learner(opt_func=opt, wd=.1)
    learn.fit(3, cbs=[cb, spy])
    assert max(spy.seen) > 0 and zeros(learn.model) == [86, 259]

def test_the_model_is_touched_in_values_only():
    learn = tiny_learner()
    keys,params,hooks = list(learn.model.state_dict()),[id(p) for p in learn.model.parameters()],lambda: [len(m._forward_hooks) for m in learn.model.modules()]
    before = hooks()
    spy = Spy('after_batch', lambda l: (list(l.model.state_dict()) == keys, hooks() == before))
    learn.fit(2, cbs=[SparsifyCallback(50), spy])
    assert set(spy.seen) == {(True, True)}
    assert list(learn.model.state_dict()) == keys and [id(p) for p in learn.model.parameters()] == params
    tiny_model(seed=1).load_state_dict(learn.model.state_dict(), strict=True)

def test_the_random_state_is_the_users():
    def run(cbs):
        random.seed(3); torch.manual_seed(3); np.random.seed(3)
        learn = tiny_learner()
        order = Spy('before_batch', lambda l: l.xb[0].sum().item() if l.training else None)
        learn.fit(2, cbs=[order, *cbs])
        return order.seen, torch.rand(1).item(), np.random.rand()
    assert run([]) == run([SparsifyCallback(50, criteria='random')])

# -- both vocabularies -------------------------------------------------------------------------------------------------------------

def test_the_older_words_mean_the_same():
    old = SparsifyCallback(end_sparsity=50, start_sparsity=10, sched_func=sched_lin, start_epoch=1, end_epoch=3)
    learn = fit(old, 4)
    assert [round(c, 1) for c in column(learn)] == [9.7, 29.9, 50, 50] # floors: 10+32, 32+97, 54+162 of 432
    new = SparsifyCallback(50, start_sparsity=10, schedule=sched_lin, start_epoch=1, end_epoch=3)
    assert column(fit(new, 4)) == column(learn)

def test_start_epoch_leaves_the_epochs_before_dense_and_prunes_on_its_first_batch():
    cb = SparsifyCallback(50, schedule=one_shot, start_epoch=3)
    learn = fit(cb, 5)
    assert column(learn) == [0, 0, 0, 50, 50]
    moves = cb.history.query('kind == "masks"')
    assert moves.step.tolist() == [13] and moves.epoch.tolist() == [3]

def test_end_epoch_reaches_the_target_on_the_last_batch_before_it():
    cb = SparsifyCallback(50, schedule=sched_lin, end_epoch=2)
    fit(cb, 4)
    moves = cb.history.query('kind == "masks"')
    assert moves.step.iloc[-1] == 8 and moves.measured.iloc[-1] == 50 and moves.measured.iloc[-2] < 50

def test_start_sparsity_is_in_force_before_the_window():
    assert column(fit(SparsifyCallback(50, start_sparsity=25, schedule=one_shot, start_epoch=2), 4)) == [25, 25, 50, 50]

@pytest.mark.parametrize('schedule,last', [(sched_lin, 80), (sched_cos, 80), (SchedCos(0, 80), 80), (SchedPoly(0, 80, 2), 80),
    (combine_scheds([.5, .5], [SchedCos(0, 40), SchedCos(40, 80)]), 80), (partial(iterative, n_steps=5), 80), (lambda s,e,p: e*p**2, 80), (lambda p: 80*p, 80),
    (partial(sched_lin), 80), ('agp', 80)])
def test_any_schedule_is_taken_bare(schedule, last):
    cb = SparsifyCallback(80, schedule=schedule)
    learn = fit(cb)
    assert zeros(learn.model) == [86, 259] and round(cb.history.target.iloc[-1], 9) == last

def test_schedules_that_need_a_start_take_one():
    assert column(fit(SparsifyCallback(50, schedule=sched_no, start_sparsity=25))) == [25, 25]
    assert column(fit(SparsifyCallback(50, schedule=sched_exp, start_sparsity=1)))[-1] == 50

def test_a_one_argument_schedule_brings_its_target(capsys):
    fit(SparsifyCallback(schedule=SchedCos(0, 50)))
    assert lines(capsys)[0] == 'Pruning of weight until a sparsity of [50.0]%'

@pytest.mark.parametrize('sparsity,shown', [([25, 50], '[25, 50]'), ((25, 50), '[25, 50]'), ({'0':25, '3':50}, '[25, 50]'), ({'3':50}, '[50]')])
def test_a_target_a_layer(sparsity, shown, capsys):
    learn = fit(SparsifyCallback(sparsity, schedule=one_shot))
    out = lines(capsys)
    assert zeros(learn.model) == [27 if len(sparsity) == 2 else 0, 162]
    assert out[0] == f'Pruning of weight until a sparsity of {shown}%' and f'Final Sparsity: {shown}%' in out
    each = '[25.0, 50.0]' if len(sparsity) == 2 else '[50.0]'
    assert f'Sparsity at the end of epoch 1: {each}%' in out
    assert sum(l.startswith('Layer ') and 'Conv2d' in l for l in out) == len(sparsity)

# -- what is refused, before anything is trained -----------------------------------------------------------------------------------

BAD = [ # arguments, what the message says
    (dict(sparsity=.9), r'sparsity=0\.9 .*percentage.*did you mean sparsity=90'), (dict(sparsity=True), r'sparsity=True .*percentage, 0 to 100'),
    (dict(sparsity=float('nan')), r'sparsity=nan .*0 to 100'), (dict(sparsity=-1), r'sparsity=-1 .*0 to 100'), (dict(sparsity=101), r'sparsity=101 .*0 to 100'),
    (dict(sparsity='90'), r"sparsity='90' .*percentage"), (dict(), r'sparsity=None: give the target'), (dict(sparsity=[]), r'sparsity=\[\] is empty'),
    (dict(sparsity=[50, .5]), r'sparsity=0\.5'), (dict(sparsity={'0':.5}), r'sparsity=0\.5'), (dict(sparsity=90, start_sparsity=.5), r'start_sparsity=0\.5'),
    (dict(sparsity=90, end_sparsity=80), r'sparsity=90 and end_sparsity=80 are two words'),
    (dict(sparsity=90, schedule=agp, sched_func=sched_cos), r'schedule=agp and sched_func=sched_cos are two words'),
    (dict(sparsity=90, schedule='agpp'), r"schedule='agpp' .*one_shot.*agp"), (dict(sparsity=90, schedule=3), r'schedule=3 .*one_shot'),
    (dict(sparsity=90, schedule=sched_exp), r'sched_exp fails at 0.*start_sparsity=1'), (dict(sparsity=90, schedule=sched_no), r'sched_no never leaves 0.*start_sparsity'),
    (dict(sparsity=85, schedule=lambda s,e,p: e*p/100), r'schedule=<lambda> ends at \[0.85\], and not at sparsity=85: what it returns is a percentage'), (dict(sparsity=85, schedule=lambda s,e,p: p), r'ends at \[1.0\], and not'),
    (dict(schedule=lambda pos: .85*pos), r'schedule=<lambda> ends at 0.85: what it returns is a percentage, 0 to 100; did you mean 85\?'), (dict(sparsity=85, schedule=SchedCos(0, 1)), r'ends at 1: what it returns is a percentage, 0 to 100; did you mean 100'),
    (dict(sparsity=90, schedule=lambda s,e,p: 2*e*p), r'gives .*% at .*0 to 100'), (dict(sparsity=90, schedule=SchedCos(0, 80)), r'sparsity=90 but .* ends at 80'),
    (dict(sparsity=[50, 50], schedule=SchedCos(0, 50)), r'has its own target'), (dict(sparsity=90, start_sparsity=5, schedule=SchedCos(5, 90)), r'start_sparsity=5'),
    (dict(sparsity=90, schedule=partial(agp, n_steps=5)), r'n_steps'), (dict(sparsity=90, schedule=partial(iterative, n_steps=0)), r'n_steps must be .*got 0'),
    (dict(sparsity=90, granularity='wieght'), r"granularity='wieght' .*weight.*filter"), (dict(sparsity=90, context='globl'), r"context='globl' .*local.*global"),
    (dict(sparsity=90, criteria='large'), r"criteria='large' .*large_final"), (dict(sparsity=90, layer_type=nn.Bilinear), r'Bilinear has no granularities.*Conv2d'),
    (dict(sparsity=90, layer_type='Conv2d'), r"layer_type='Conv2d' must be a class"), (dict(sparsity=90, layer_type=nn.Linear, granularity='kernel'), r"'kernel' .*Linear.*row"),
    (dict(sparsity=[50, 60], context='global'), r"\[50, 60\].*context='local'"), (dict(sparsity={'0':60}, context='global'), r"context='local'"),
    (dict(sparsity=90, round_to=0), r'round_to=0 .*at least 1'), (dict(sparsity=90, round_to=2.5), r'round_to=2\.5'), (dict(sparsity=90, nm=True), r'sparsity=90: an N:M pattern of \(2, 4\) has a sparsity of 50; give that, or leave it out'),
    (dict(sparsity=90, start_epoch=-1), r'start_epoch=-1'), (dict(sparsity=90, start_epoch=1.5), r'start_epoch=1\.5'), (dict(sparsity=90, end_epoch=0), r'end_epoch=0'),
    (dict(sparsity=90, start_epoch=3, end_epoch=3), r'end_epoch=3 must come after start_epoch=3'), (dict(sparsity=90, rewind_epoch=-1), r'rewind_epoch=-1'),
    (dict(sparsity=90, rewind_epoch=None, lth=True), r'lth=True needs .*rewind_epoch=None'), (dict(sparsity=90, rewind_epoch=None, reset_end=True), r'reset_end=True'),
    (dict(sparsity=90, rewind_epoch=None, save_tickets=True), r'save_tickets=True'), (dict(sparsity=90, model='body'), r"model='body'"),
]

@pytest.mark.parametrize('kwargs,match', BAD, ids=[m for _,m in BAD])
def test_bad_arguments_are_refused_in_the_constructor(kwargs, match):
    with pytest.raises(ValueError, match=match): SparsifyCallback(**kwargs)

class NoConv(nn.Sequential):
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(72, 3))

def with_norm(norm):
    m = tiny_model()
    norm(m[3])
    return m

BAD_FITS = [
    (dict(sparsity=90), NoConv, r"layer_type=Conv2d: there is none in this NoConv; it has .*'Linear': 1"),
    (dict(sparsity={'33':90}), tiny_model, r"sparsity or layers names '33': there is no such layer; close: .*'3'"), (dict(sparsity={'7':90}), tiny_model, r"names '7', which is a Linear, and layer_type=Conv2d"),
    (dict(sparsity=[90]), tiny_model, r"sparsity=\[90\] has 1 values for 2 selected layers: \['0', '3'\]"), (dict(sparsity=[90]*3), tiny_model, r'3 values for 2 selected'),
    (dict(sparsity=90), lambda: with_norm(nn.utils.spectral_norm), r"layer '3' \(.*computed"), (dict(sparsity=90), lambda: with_norm(nn.utils.parametrizations.weight_norm), r"layer '3'"),
    (dict(sparsity=90), lambda: with_norm(nn.utils.parametrizations.spectral_norm), r"layer '3'"),
    (dict(sparsity=90, start_epoch=2), tiny_model, r'start_epoch=2 is beyond this fit of 2 epochs'), (dict(sparsity=90, end_epoch=3), tiny_model, r'end_epoch=3 is beyond'),
    (dict(sparsity=90, schedule=one_shot, end_epoch=1), tiny_model, r'end_epoch=1 comes before the schedule starts.*start_epoch'),
    (dict(sparsity=90, rewind_epoch=2), tiny_model, r'rewind_epoch=2 is beyond'), (dict(sparsity=90, rewind_epoch=1, lth=True), tiny_model, r'rewind_epoch=1 comes after pruning'),
    (dict(sparsity=90, model=tiny_model()), tiny_model, r'model= has no parameter in common'),
]

@pytest.mark.parametrize('kwargs,make,match', BAD_FITS, ids=[m for *_,m in BAD_FITS])
def test_what_only_a_fit_can_refuse_it_refuses_before_the_first_batch(kwargs, make, match):
    learn = tiny_learner(make())
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(ValueError, match=match): learn.fit(2, cbs=SparsifyCallback(**kwargs))
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    learn.fit(1) # and the learner is as good as before
    assert 'sparsity' not in learn.recorder.metric_names

def test_the_same_instance_twice_is_refused():
    cb = SparsifyCallback(50)
    with pytest.raises(ValueError, match='in the learner twice'): tiny_learner(cbs=cb).fit(1, cbs=cb)

# -- zeros that were there before --------------------------------------------------------------------------------------------------

def test_a_second_fit_keeps_the_zeros_of_the_first():
    learn = fit(SparsifyCallback(80, schedule=one_shot))
    first = [m.weight == 0 for m in convs(learn.model)]
    cb = SparsifyCallback(90)
    spy = Spy('after_pred', lambda l: [bool(((m.weight == 0) | ~z).all()) for m,z in zip(convs(l.model), first)])
    learn.fit(3, cbs=[cb, spy])
    assert all(map(all, spy.seen)) and zeros(learn.model) == [97, 291]
    assert column(learn)[0] == 100*(86 + 259)/432

def test_the_same_callback_serves_again():
    cb,learn = SparsifyCallback(80),tiny_learner()
    learn.add_cb(cb)
    learn.fit(2); learn.fit(2)
    assert zeros(learn.model) == [86, 259] and cb.history.epoch.max() == 1

def test_a_model_above_the_target_stays_there_and_it_is_said(capsys):
    learn = fit(SparsifyCallback(80, schedule=one_shot))
    capsys.readouterr()
    fit(SparsifyCallback(50, schedule=one_shot), learn=learn)
    assert zeros(learn.model) == [86, 259] and column(learn) == [100*345/432]*2
    assert 'Final Sparsity: [50]% (measured [79.86]%)' in lines(capsys)

def test_once_the_schedule_falls_its_value_holds():
    learn = fit(SparsifyCallback(80, schedule=one_shot))
    cb = SparsifyCallback(40, start_sparsity=60, schedule=sched_lin)
    fit(cb, learn=learn)
    assert sum(l.dead for l in cb.sparsifier.layers) == 43 + 129

def test_dsd_comes_back_as_far_as_it_says():
    cb = SparsifyCallback(80, schedule='dsd')
    spy = Spy('after_batch', lambda l: (l.epoch*4 + l.iter + 1, cb.sparsifier.sparsity) if l.training else None)
    learn = tiny_learner()
    learn.fit(2, cbs=[cb, spy])
    exact = {i: 100*sum(n_pruned(80*(1 - np.cos(2*np.pi*i/8))/2, n) for n in N)/432 for i in range(1, 9)}
    assert {k:v for k,v in filter(None, spy.seen)} == pytest.approx(exact)
    assert exact[4] > 79 and cb.sparsifier.masks == {}

def test_a_zero_tensor_is_an_initialisation():
    model = tiny_model()
    nn.init.zeros_(model[3].weight)
    cb = SparsifyCallback(50, schedule='lin')
    with pytest.warns(UserWarning, match="layer '3' are all zero"): fit(cb, learn=tiny_learner(model))
    assert [l.dead for l in cb.sparsifier.layers] == [54, 162] and int((model[3].weight != 0).sum()) > 0

# -- frozen layers -----------------------------------------------------------------------------------------------------------------

def frozen_first(model): model[0].weight.requires_grad_(False); return model

def test_frozen_layers_are_left_alone_and_listed(capsys):
    learn = tiny_learner(frozen_first(tiny_model()), splitter=lambda m: [p for p in m.parameters() if p.requires_grad])
    fit(SparsifyCallback(50), learn=learn)
    assert zeros(learn.model) == [0, 162] and column(learn)[-1] == 50
    out = lines(capsys)
    assert any(l.startswith('Layer 1') and l.endswith('frozen') for l in out) and out[-1].split()[2:4] == ['324', '162']

def test_a_layer_that_thaws_joins_in():
    learn = tiny_learner(frozen_first(tiny_model()))
    thaw = Spy('before_epoch', lambda l: l.model[0].weight.requires_grad_(l.epoch > 0))
    learn.fit(2, cbs=[SparsifyCallback(50, schedule=one_shot, start_epoch=0), thaw])
    assert zeros(learn.model) == [54, 162]

def split(m): return [list(m[:7].parameters()), list(m[7].parameters())]

def test_fine_tune_prunes_in_its_second_phase_and_says_so_once(capsys):
    learn = tiny_learner(splitter=split, train_bn=False)
    with pytest.warns(UserWarning, match='none of the 2 selected layers trains') as record:
        learn.fine_tune(3, freeze_epochs=2, cbs=SparsifyCallback(50, schedule=one_shot, start_epoch=2))
    assert len([w for w in record if 'SparsifyCallback' in str(w.message)]) == 1
    assert epoch_lines(capsys) == ['[0.0]%', '[0.0]%', '[50.0]%'] and column(learn) == [0, 0, 50]

def test_a_fit_with_nothing_to_prune_is_plain(capsys):
    learn = tiny_learner(splitter=split, train_bn=False)
    learn.freeze()
    with pytest.warns(UserWarning, match='does nothing'): fit(SparsifyCallback(50), learn=learn)
    assert lines(capsys) == [] and 'sparsity' not in learn.recorder.metric_names

# -- only training prunes ----------------------------------------------------------------------------------------------------------

ELSEWHERE = dict(validate=lambda l: l.validate(), get_preds=lambda l: l.get_preds(), predict=lambda l: l.predict(np.zeros((8, 8, 3), np.uint8)),
    tta=lambda l: l.tta(n=2), show_results=lambda l: l.show_results(), summary=lambda l: l.summary(), interpret=lambda l: Interpretation.from_learner(l),
    lr_find=lambda l: l.lr_find(num_it=5, show_plot=False, suggest_funcs=None))

@pytest.mark.parametrize('after', ['no fit', 'a fit', 'an interrupted fit'])
@pytest.mark.parametrize('what', ELSEWHERE)
def test_only_training_prunes(what, after, capsys, tmp_path):
    cb = SparsifyCallback(50, schedule=one_shot)
    learn = image_learner(cbs=cb, path=tmp_path)
    learn.fit(1) if after == 'a fit' else interrupt(learn, 'after_backward', at=1) if after == 'an interrupted fit' else learn.create_opt()
    capsys.readouterr()
    state,rows = {k:v.clone() for k,v in learn.model.state_dict().items()},len(cb.history)
    ELSEWHERE[what](learn)
    assert capsys.readouterr().out == '' and len(cb.history) == rows
    assert all(torch.equal(v, state[k]) for k,v in learn.model.state_dict().items())
    assert len(learn.validate()) == 2 and 'sparsity' not in learn.recorder.metric_names
    learn.fit(1)
    assert zeros(learn.model) == [54] and column(learn) == [50]

def interrupt(learn, event, exc=KeyboardInterrupt, at=2):
    def stop(l):
        if l.training and l.iter == at: raise exc('stop')
    try: learn.fit(2, cbs=Spy(event, stop))
    except (KeyboardInterrupt, RuntimeError, CancelBatchException): pass # fastai does not catch the last in after_batch

@pytest.mark.parametrize('exc', [KeyboardInterrupt, RuntimeError, CancelFitException, CancelEpochException, CancelTrainException, CancelBatchException])
@pytest.mark.parametrize('event', ['before_batch', 'after_backward', 'after_step', 'after_batch'])
def test_after_an_interruption_the_next_fit_just_works(event, exc, tmp_path):
    cb = SparsifyCallback(50, schedule='lin')
    learn = tiny_learner(cbs=cb, path=tmp_path)
    keys = list(learn.model.state_dict())
    interrupt(learn, event, exc)
    assert list(learn.model.state_dict()) == keys
    learn.fit(2)
    assert zeros(learn.model) == [54, 162] and column(learn)[-1] == 50
    learn.remove_cb(cb)
    learn.fit(1)
    assert 'sparsity' not in learn.recorder.metric_names and len(learn.recorder.values[0]) == 3

@pytest.mark.parametrize('exc', [CancelFitException, CancelEpochException, CancelTrainException])
def test_a_fit_cancelled_before_its_first_batch_reports_what_it_is(exc, capsys):
    learn = tiny_learner()
    def cancel(l):
        if l.training: raise exc('stop')
    learn.fit(1, cbs=[SparsifyCallback(50), Spy('before_batch', cancel, order=0)])
    out = lines(capsys)
    measured = 50 if exc is CancelTrainException else 0 # validation comes next, and its row says 50
    assert out[-1].split()[3] == str(432*measured//100) and zeros(learn.model) == [108*measured//100, 324*measured//100]

def test_a_refused_fit_leaves_validation_as_it_was():
    learn = tiny_learner(cbs=SparsifyCallback({'9':50}))
    with pytest.raises(ValueError, match="names '9'"): learn.fit(1)
    assert len(learn.validate()) == 2

def test_given_twice_the_learner_is_left_without_it_and_works():
    cb = SparsifyCallback(50)
    learn = tiny_learner(cbs=cb)
    with pytest.raises(ValueError, match='twice'): learn.fit(1, cbs=cb)
    learn.fit(1)
    assert zeros(learn.model) == [0, 0] and len(learn.validate()) == 2

def test_layers_that_freeze_midway_keep_their_zeros_and_the_rows_their_width(capsys):
    learn,rows = tiny_learner(),[]
    learn.logger = rows.append
    freeze = Spy('before_epoch', lambda l: [m.weight.requires_grad_(l.epoch == 0) for m in convs(l.model)])
    with pytest.warns(UserWarning, match='nothing for now'): learn.fit(3, cbs=[SparsifyCallback(50, schedule=one_shot, start_epoch=0), freeze])
    assert zeros(learn.model) == [54, 162] and all(len(r) == len(learn.recorder.metric_names) for r in rows)
    assert sum(l.endswith('frozen') for l in lines(capsys)) == 2

def test_an_inert_fit_by_name_has_no_column():
    learn = tiny_learner(frozen_first(tiny_model()))
    with pytest.warns(UserWarning, match='does nothing'): fit(SparsifyCallback({'0':50}), learn=learn)
    assert 'sparsity' not in learn.recorder.metric_names

def test_zeros_found_at_the_start_have_no_averages_either():
    learn = tiny_learner()
    learn.fit(1)
    fs.Sparsifier(learn.model).sparsify_model(70)
    learn.fit(2, cbs=SparsifyCallback(50, schedule='lin'))
    for m in convs(learn.model):
        for k in ('grad_avg', 'sqr_avg'): assert not learn.opt.state[m.weight][k][m.weight == 0].any()

def test_a_short_epochs_row_has_the_sparsity_in_its_column(tmp_path):
    learn = tiny_learner(path=tmp_path)
    learn.fit(2, cbs=[SparsifyCallback(50, schedule='lin'), ShortEpochCallback(pct=.5), CSVLogger()])
    assert pd.read_csv(tmp_path/'history.csv').sparsity.tolist() == [25, 50]

def test_a_dicts_order_is_that_of_what_is_printed(capsys):
    fit(SparsifyCallback({'3':50, '0':25}, schedule='lin'))
    out = lines(capsys)
    assert 'Sparsity at the end of epoch 1: [50.0, 25.0]%' in out and 'Final Sparsity: [50.0, 25.0]%' in out

@pytest.mark.parametrize('criterion,match', [(lambda w: w.abs().sum(), r'criteria=.* fails for layer \'0\'.*a score for each weight'), (lambda w: w*float('nan'), r'gives NaN for layer'),
    (lambda w: 1/0, r"fails for layer '0': ZeroDivisionError")])
def test_a_criterion_that_fails_is_found_before_training(criterion, match):
    learn = tiny_learner()
    before = learn.model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=match): fit(SparsifyCallback(50, criteria=criterion), learn=learn)
    assert torch.equal(learn.model[0].weight, before)

def test_a_fit_that_ends_before_its_rewind_epoch_says_so():
    stop = Spy('after_epoch', lambda l: (_ for _ in ()).throw(CancelFitException()))
    with pytest.warns(UserWarning, match='ended before rewind_epoch=2'): tiny_learner().fit(4, cbs=[SparsifyCallback(50, rewind_epoch=2, reset_end=True), stop])

def test_rewinding_a_part_rewinds_the_whole_model(tmp_path):
    model = nn.Sequential(tiny_model()[:3], tiny_model()[3:])
    learn = tiny_learner(model, path=tmp_path)
    saved = {k:v.clone() for k,v in model.state_dict().items()}
    cb = SparsifyCallback(50, model=model[1], save_tickets=True)
    fit(cb, learn=learn)
    cb.rewind()
    ticket = torch.load(tmp_path/'models'/'winning_ticket_50.00.pth', weights_only=True)
    for k,v in model.state_dict().items():
        assert torch.equal(v, saved[k]*cb.sparsifier.masks['3'] if k == '1.3.weight' else saved[k]) and torch.equal(v, ticket[k])

def test_an_interruption_between_an_epochs_report_and_the_next_epoch(capsys):
    cb = SparsifyCallback(50)
    learn = tiny_learner(cbs=cb, bar=True)
    def stop(l):
        if l.epoch == 0: raise KeyboardInterrupt
    try: learn.fit(2, cbs=Spy('after_epoch', stop))
    except KeyboardInterrupt: pass
    learn.fit(1); learn.fit(1)
    assert zeros(learn.model) == [54, 162] and column(learn) == [50]

# -- with other callbacks ----------------------------------------------------------------------------------------------------------

def test_accumulated_gradients_move_the_masks_once_a_step():
    cb = SparsifyCallback(50, schedule='lin')
    spy = Spy('after_backward', lambda l: cb.sparsifier.sparsity)
    learn = tiny_learner()
    learn.fit(2, cbs=[cb, spy, GradientAccumulation(20)])
    assert spy.seen[0] == spy.seen[1] < spy.seen[2] == spy.seen[3] and zeros(learn.model) == [54, 162]

def test_what_is_left_of_accumulated_gradients_leaves_no_weight_unmasked():
    learn = tiny_learner()
    learn.fit(2, cbs=[SparsifyCallback(50, schedule='lin'), GradientAccumulation(30)])
    assert zeros(learn.model) == [54, 162]

def test_clipping_counts_only_what_lives():
    cb = SparsifyCallback(90, schedule=one_shot, start_epoch=0)
    def dead_norm(l): return sum(float(m.weight.grad[~cb.sparsifier.masks[n]].abs().sum()) for n,m in l.model.named_modules() if n in cb.sparsifier.masks)
    spy = Spy('before_step', dead_norm, order=0) # before GradientClip
    learn = tiny_learner()
    learn.fit(1, cbs=[cb, spy, GradientClip(.1)])
    assert spy.seen == [0.]*4

def test_an_epoch_cut_short_catches_up_before_validation():
    learn = tiny_learner()
    learn.fit(2, cbs=[SparsifyCallback(50, schedule='lin'), ShortEpochCallback(pct=.5, short_valid=False)])
    assert [v[-1] for v in learn.recorder.values] == pytest.approx([100*(27 + 81)/432, 50]) # such a row has no train_loss

def losses(*values): return Spy('after_epoch', lambda l: l.recorder.values[-1].__setitem__(1, float(values[l.epoch])), order=54) # a made-up valid_loss

def test_the_best_model_is_the_best_of_the_sparsest(tmp_path, capsys):
    learn,states = tiny_learner(path=tmp_path),[]
    keep = Spy('after_epoch', lambda l: states.append(l.model[0].weight.detach().clone()), order=56)
    learn.fit(6, cbs=[SparsifyCallback(60, schedule=one_shot), losses(1, 2, 5, 3, 4, 4), keep, SaveModelCallback()]) # sparse from epoch 2 on
    assert torch.equal(learn.model[0].weight, states[3]) and zeros(learn.model) == [64, 194]
    assert 'Final Sparsity: [60]%' in lines(capsys)

def test_early_stopping_waits_for_the_sparsest(tmp_path):
    learn = tiny_learner(path=tmp_path)
    learn.fit(8, cbs=[SparsifyCallback(60, schedule=one_shot, start_epoch=2), losses(1, 2, 3, 4, 5, 6, 7, 8), EarlyStoppingCallback(patience=2)])
    assert learn.epoch == 4 and zeros(learn.model) == [64, 194] # best at epoch 2, the first sparse one

def test_a_model_reloaded_from_elsewhere_is_reported_as_it_is(tmp_path, capsys):
    learn = tiny_learner(path=tmp_path)
    learn.fit(3, cbs=[SparsifyCallback(60, schedule='lin'), Spy('after_epoch', lambda l: l.save('first') if l.epoch == 0 else None),
                      Spy('after_fit', lambda l: l.load('first') and None)])
    out = lines(capsys)
    assert zeros(learn.model) == [21, 64] and 'Final Sparsity: [60.0]% (measured [19.68]%)' in out and out[-1].split()[3] == '85'

def test_save_model_can_watch_the_column(tmp_path):
    learn = tiny_learner(path=tmp_path)
    learn.fit(3, cbs=[SparsifyCallback(60, schedule='lin'), SaveModelCallback(monitor='sparsity', comp=np.greater)])
    assert zeros(learn.model) == [64, 194]

def test_the_csv_has_the_column(tmp_path):
    learn = tiny_learner(path=tmp_path)
    learn.fit(2, cbs=[SparsifyCallback(50, schedule='lin'), CSVLogger()])
    df = pd.read_csv(tmp_path/'history.csv')
    assert list(df) == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'sparsity', 'time'] and df.sparsity.tolist() == column(learn)

@pytest.mark.parametrize('recorder', [Recorder(train_metrics=True), Recorder(add_time=False), None])
def test_any_recorder_or_none_will_do(recorder, capsys):
    learn = tiny_learner()
    learn.remove_cb(learn.recorder)
    if recorder is not None: learn.add_cb(recorder)
    rows = []
    learn.logger = rows.append
    fit(SparsifyCallback(50), learn=learn)
    assert zeros(learn.model) == [54, 162] and len(epoch_lines(capsys)) == 2
    if recorder is not None: assert all(len(r) == len(learn.recorder.metric_names) for r in rows) and rows[-1][learn.recorder.metric_names.index('sparsity')] == 50

def test_the_header_has_the_column(capsys):
    learn = tiny_learner(bar=True)
    fit(SparsifyCallback(50), learn=learn)
    assert 'epoch     train_loss  valid_loss  accuracy  sparsity  time' in capsys.readouterr().out

def test_resuming_meets_the_same_targets_and_prints_only_its_epochs(tmp_path, capsys):
    whole = SparsifyCallback(90)
    fit(whole, 4)
    learn = tiny_learner(path=tmp_path)
    learn.fit(4, cbs=[SparsifyCallback(90), Spy('after_epoch', lambda l: l.save('half') if l.epoch == 1 else None, order=56)])
    again = tiny_learner(path=tmp_path)
    again.load('half')
    held = [m.weight == 0 for m in convs(again.model)]
    capsys.readouterr()
    cb = SparsifyCallback(90)
    again.fit(4, cbs=cb, start_epoch=2)
    assert [l for l in lines(capsys) if 'epoch' in l] == ['Sparsity at the end of epoch 2: [87.04]%', 'Sparsity at the end of epoch 3: [89.81]%']
    pick = lambda h: h[h.epoch >= 2][['step', 'kind', 'target', 'measured']].values.tolist()
    assert pick(cb.history) == pick(whole.history)
    assert all(bool((m.weight[z] == 0).all()) for m,z in zip(convs(again.model), held))

@pytest.mark.parametrize('context', contexts)
@pytest.mark.parametrize('schedule', schedules)
def test_any_schedule_resumes_where_it_was(schedule, context, tmp_path):
    whole,cb = (SparsifyCallback(80, schedule=schedule, context=context) for _ in range(2))
    learn = tiny_learner(path=tmp_path)
    learn.fit(4, cbs=[whole, Spy('after_epoch', lambda l: l.save(f'{l.epoch}'), order=56)])
    for start in (1, 2, 3):
        again = tiny_learner(path=tmp_path)
        again.load(f'{start - 1}')
        again.fit(4, cbs=cb, start_epoch=start)
        unbroken = whole.history[whole.history.epoch >= start]
        assert cb.history[['step', 'kind', 'target']].values.tolist() == unbroken[['step', 'kind', 'target']].values.tolist()
        assert cb.sparsifier.sparsity == whole.sparsifier.sparsity

def test_another_process_resumes(tmp_path):
    learn = tiny_learner(path=tmp_path)
    cb = SparsifyCallback(90)
    learn.fit(4, cbs=[cb, Spy('after_epoch', lambda l: l.save('half') if l.epoch == 1 else None, order=56)])
    code = f'''from fasterai_sched import SparsifyCallback
from helpers import tiny_learner
learn = tiny_learner(path={str(tmp_path)!r})
learn.load('half')
cb = SparsifyCallback(90)
learn.fit(4, start_epoch=2, cbs=cb)
cb.history.to_json({str(tmp_path/'history.json')!r})'''
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parent, capture_output=True, timeout=120)
    there = pd.read_json(tmp_path/'history.json')
    here = cb.history[cb.history.epoch >= 2]
    assert there[['step', 'kind']].values.tolist() == here[['step', 'kind']].values.tolist()
    assert there[['target', 'measured']].values == pytest.approx(here[['target', 'measured']].values, abs=1e-6) # as many digits as the JSON has

def test_export_carries_the_callback_and_leaves_the_masks(tmp_path):
    power = 2
    cb = SparsifyCallback(50, schedule=lambda s,e,p: s + (e - s)*p**power)
    learn = image_learner(cbs=cb, path=tmp_path)
    learn.fit(1)
    learn.export('with.pkl')
    back = load_learner(tmp_path/'with.pkl')
    assert back.sparsify.sparsifier is None and zeros(back.model) == [54] and len(back.sparsify.history) == len(cb.history)
    back.dls = image_learner().dls
    back.fit(1)
    assert zeros(back.model) == [54]
    learn.remove_cb(cb)
    learn.export('without.pkl')
    assert (tmp_path/'with.pkl').stat().st_size - (tmp_path/'without.pkl').stat().st_size < 8_000

# -- rewinding ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('rewind_epoch', [0, 1])
def test_rewind_gives_the_saved_values_to_what_survives(rewind_epoch):
    saved,learn = {},tiny_learner()
    spy = Spy('before_train', lambda l: saved.update({k:v.clone() for k,v in l.model.state_dict().items()}) if l.epoch == rewind_epoch else None, order=0)
    cb = SparsifyCallback(50, schedule=one_shot, start_epoch=1, rewind_epoch=rewind_epoch)
    learn.fit(2, cbs=[cb, spy])
    masks = {f'{n}.weight':m for n,m in cb.sparsifier.masks.items()}
    cb.rewind()
    for k,v in learn.model.state_dict().items(): assert torch.equal(v, saved[k]*masks[k] if k in masks else saved[k])
    assert zeros(learn.model) == [54, 162] and not any('grad_avg' in s for s in learn.opt.state.values())

class Every(nn.Module):
    "A layer of each kind that has parameters or statistics, and that the incumbent can't rewind"
    def __init__(self):
        super().__init__()
        self.conv,self.bn,self.act,self.group = nn.Conv2d(2, 6, 3),nn.BatchNorm2d(6),nn.PReLU(6),nn.GroupNorm(2, 6)
        self.words,self.rnn,self.rms,self.plain,self.head = nn.Embedding(5, 6),nn.GRU(6, 6, batch_first=True),nn.RMSNorm(6),nn.BatchNorm1d(6, affine=False),nn.Linear(6, 3, bias=False)
        self.own = nn.Parameter(torch.ones(6))
    def forward(self, x):
        x = self.group(self.act(self.bn(self.conv(x)))).flatten(2).transpose(1, 2)
        x = self.rnn(x + self.words(x[..., 0].long().clamp(0, 4)))[0][:, -1]
        return self.head(self.plain(self.rms(x))*self.own)

@pytest.mark.parametrize('how', ['lth', 'reset_end', 'by hand'])
@pytest.mark.parametrize('granularity', ['weight', 'filter'])
def test_every_kind_of_layer_goes_back(granularity, how, tmp_path):
    learn,saved = tiny_learner(Every(), path=tmp_path),{}
    start = Spy('before_train', lambda l: saved.update({k:v.clone() for k,v in l.model.state_dict().items()}) if l.epoch == 1 else None, order=0)
    cb = SparsifyCallback(50, granularity, schedule=fs.Schedule(fs.sched_oneshot, start_pct=1 - 1e-9), rewind_epoch=1, save_tickets=True, **({how:True} if how != 'by hand' else {}))
    # with lth the masks move, and all goes back, in the last step, which is not taken
    still = Spy('before_step', lambda l: l.opt.set_hypers(lr=0., wd=0., mom=0.) if l.epoch == 3 and l.iter == 3 else None, order=54)
    freeze = Spy('before_batch', lambda l: [m.eval() for m in l.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if l.training and l.epoch == 3 and l.iter == 3 else None, order=56)
    learn.fit(4, cbs=[cb, start, *([still, freeze] if how == 'lth' else [])])
    if how == 'by hand': cb.rewind()
    held = cb.sparsifier.held()
    ticket = torch.load(tmp_path/'models'/'winning_ticket_50.00.pth', weights_only=True)
    assert set(held) == ({'conv.weight'} if granularity == 'weight' else {'conv.weight', 'conv.bias', 'bn.weight', 'bn.bias'})
    for k,v in learn.model.state_dict().items():
        was = torch.where(held[k].expand_as(v), saved[k], 0) if k in held else saved[k]
        assert torch.equal(v, was) and torch.equal(ticket[k], was), k
    if how != 'lth': assert not any(isinstance(v, torch.Tensor) for s in learn.opt.state.values() for v in s.values())

def test_nothing_saved_nothing_printed_nothing_to_rewind(capsys):
    cb = SparsifyCallback(50, rewind_epoch=None)
    fit(cb)
    assert not any('Saving' in l for l in lines(capsys))
    with pytest.raises(RuntimeError, match='rewind_epoch=None'): cb.rewind()

def lazy_head(): return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.LazyLinear(3))

def test_a_lazy_head_is_no_hindrance_but_to_a_rewind(capsys):
    learn,sp_cb = tiny_learner(lazy_head()),SparsifyCallback(50)
    with pytest.warns(UserWarning, match=r"No weights are saved at epoch 0: \['2.weight', '2.bias'\] are not initialized. Run the model once"): learn.fit(1, cbs=sp_cb)
    assert 'Saving' not in capsys.readouterr().out and zeros(learn.model) == [36]
    with pytest.raises(RuntimeError, match='No weights are saved'): sp_cb.rewind()
    learn = tiny_learner(lazy_head())
    learn.fit(2, cbs=SparsifyCallback(50, rewind_epoch=1, reset_end=True, schedule=one_shot)) # by then it is
    assert zeros(learn.model) == [36]

@pytest.mark.parametrize('kwargs,match', [(dict(lth=True), r"lth=True needs the weights of rewind_epoch=0, and \['2.weight', '2.bias'\] are not initialized"),
                                          (dict(layer_type=nn.Linear), r"Layer '2' \(LazyLinear\) is not initialized: run the model once")])
def test_a_lazy_layer_is_refused_where_its_weights_are_needed(kwargs, match):
    with pytest.raises(ValueError, match=match): tiny_learner(lazy_head()).fit(1, cbs=SparsifyCallback(50, schedule=one_shot, **kwargs))

def test_a_ticket_is_written_once(tmp_path, capsys):
    fit(SparsifyCallback(60, schedule=iterative, lth=True, save_tickets=True), 5, tiny_learner(path=tmp_path))
    assert sum(l.startswith('Saving ticket') for l in lines(capsys)) == 3 == len(list(tmp_path.rglob('*.pth')))

def test_outputs_of_the_last_layer_are_warned_of():
    with pytest.warns(UserWarning, match="granularity='filter' removes whole outputs of '7', the last layer: if those are the model's, leave it out with exclude='7'"): fit(SparsifyCallback(50, 'filter', layer_type=(nn.Conv2d, nn.Linear)))
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*removes whole outputs')
        fit(SparsifyCallback(50, 'filter'))
        fit(SparsifyCallback(50, 'filter', layer_type=(nn.Conv2d, nn.Linear), exclude='7'))
        fit(SparsifyCallback(50, 'column', layer_type=nn.Linear))

def test_notes_are_printed_after_the_report(capsys):
    fit(SparsifyCallback(nm=(1, 3)), learn=tiny_learner(nn.Sequential(nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 2), nn.Flatten(), nn.Linear(27, 3))))
    assert lines(capsys)[-2:] == ['1:3 holds in 1 of 1 layers', '0 is left dense: 2 input channels are no multiple of 3']

def test_a_plot_begins_where_the_fit_does():
    cb = SparsifyCallback(50, schedule=one_shot, start_epoch=2)
    fit(cb, 4)
    x,y = cb.plot()[0].get_lines()[0].get_data()
    assert (x[0], y[0]) == (0, 0) and list(x[1:]) == cb.history.step.tolist()
    cb = SparsifyCallback(50, start_sparsity=20, schedule='lin')
    fit(cb, 2)
    assert cb.plot()[0].get_lines()[0].get_ydata()[0] == 20

@pytest.mark.parametrize('granularity', ['weight', 'filter'])
@pytest.mark.parametrize('schedule', ['cyclic', 'ac_dc', 'dsd'])
def test_a_fit_resumed_after_a_fall_holds_no_more_than_is_asked(schedule, granularity, tmp_path):
    make = lambda: tiny_learner(path=tmp_path, dls=tiny_dls(n=30))
    whole = SparsifyCallback(60, granularity, schedule=schedule, verbose=False)
    count = lambda cb: Spy('after_batch', lambda l: tuple(h.dead for h in cb.sparsifier.layers) if l.training else None)
    seen = count(whole)
    make().fit(6, cbs=[whole, seen])
    asked = [s for s in seen.seen if s]
    for at in range(1, 6):
        learn = make()
        def stop(l, at=at):
            if l.epoch == at: raise CancelFitException
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            learn.fit(6, cbs=[SparsifyCallback(60, granularity, schedule=schedule, verbose=False), Spy('before_epoch', stop, order=0)])
            learn.save('part')
            again,rest = make(),SparsifyCallback(60, granularity, schedule=schedule, verbose=False)
            again.load('part')
            seen = count(rest)
            again.fit(6, start_epoch=at, cbs=[rest, seen])
        assert [s for s in seen.seen if s] == asked[3*at:]

@pytest.mark.parametrize('context', contexts)
def test_callbacks_and_sparsifiers_can_be_pickled(context):
    pickle.loads(pickle.dumps(SparsifyCallback(50, context=context)))
    sp = pickle.loads(pickle.dumps(fs.Sparsifier(tiny_model(), context=context)))
    sp.sparsify_model(50)
    assert sum(l.dead for l in sp.layers) == 216

def test_in_fine_tune_a_limit_of_the_head_does_not_stop_the_first_phase():
    learn = tiny_learner(splitter=split, train_bn=False)
    learn.fine_tune(2, cbs=SparsifyCallback(60, layer_type=(nn.Conv2d, nn.Linear), context='global', max_sparsity={'7':30}))
    assert sum(zeros(learn.model, (nn.Conv2d, nn.Linear))) == 270 and zeros(learn.model, nn.Linear)[0] <= 5

def test_reset_end_leaves_the_ticket():
    learn = tiny_learner()
    first = learn.model[0].weight.detach().clone()
    cb = SparsifyCallback(50, reset_end=True)
    fit(cb, learn=learn)
    assert torch.equal(learn.model[0].weight, first*cb.sparsifier.masks['0']) and zeros(learn.model) == [54, 162]

def test_lth_rewinds_at_each_jump_and_saves_each_ticket(tmp_path, capsys):
    learn = tiny_learner(path=tmp_path)
    first = learn.model[0].weight.detach().clone()
    cb = SparsifyCallback(60, schedule=iterative, lth=True, save_tickets=True)
    at_moves = Spy('before_batch', lambda l: bool(((l.model[0].weight == first) | (l.model[0].weight == 0)).all()) if l.training else None)
    learn.fit(5, cbs=[cb, at_moves])
    moves = cb.history.query('kind == "masks"')
    steps = moves.step.tolist()
    assert len(moves) == 3 and [at_moves.seen[s-1 + (s-1)//4] for s in steps] == [True]*3  # one validation batch an epoch
    names = sorted(p.name for p in (tmp_path/'models').glob('*.pth'))
    assert names == sorted(f'winning_ticket_{m:.2f}.pth' for m in moves.measured)
    for m,name in zip(moves.measured, sorted(names)):
        plain = tiny_model(seed=9)
        plain.load_state_dict(torch.load(tmp_path/'models'/name, weights_only=True), strict=True)
        assert sparsity_report(plain).sparsity == m and bool(((plain[0].weight == first) | (plain[0].weight == 0)).all())
    assert sum('Resetting Weights to their epoch 0 values' in l for l in lines(capsys)) == 3

def test_one_process_writes_the_tickets(tmp_path, monkeypatch, capsys):
    import fasterai_sched.callback as module
    monkeypatch.setattr(module, 'rank_distrib', lambda: 1)
    fit(SparsifyCallback(80, schedule=one_shot, lth=True, save_tickets=True), 2, tiny_learner(path=tmp_path))
    assert not list(tmp_path.rglob('*.pth')) and capsys.readouterr().out == ''

def test_a_gradual_lottery_ticket_is_warned_of():
    with pytest.warns(UserWarning, match='lth=True rewinds each time the masks grow: 1[0-9] times'): fit(SparsifyCallback(50, schedule='lin', lth=True), 4)

def test_a_resume_beyond_the_rewind_epoch_is_refused():
    with pytest.raises(ValueError, match='reset_end=True needs the weights of rewind_epoch=0, and this fit begins at epoch 1'):
        fit(SparsifyCallback(50, reset_end=True), start_epoch=1)

# -- the other options -------------------------------------------------------------------------------------------------------------

def test_model_confines_it_to_a_part():
    model = nn.Sequential(tiny_model()[:3], tiny_model()[3:])
    learn = fit(SparsifyCallback(50, model=model[1]), learn=tiny_learner(model))
    assert zeros(learn.model) == [0, 162] and learn.model is model

def test_round_to_keeps_multiples():
    learn = fit(SparsifyCallback(60, 'filter', round_to=4, schedule=one_shot))
    assert zeros(learn.model) == [2*18, 2*54] # 3.6 of 6 filters -> 3; 3 kept -> 4

def test_layer_types_together():
    learn = fit(SparsifyCallback(50, layer_type=(nn.Conv2d, nn.Linear)))
    assert zeros(learn.model, (nn.Conv2d, nn.Linear)) == [54, 162, 9]

def test_two_callbacks_each_with_its_layers():
    learn = tiny_learner()
    learn.fit(2, cbs=[SparsifyCallback(50), SparsifyCallback(33, layer_type=nn.Linear)])
    assert zeros(learn.model, (nn.Conv2d, nn.Linear)) == [54, 162, 5]
    names,row = list(learn.recorder.metric_names),learn.recorder.values[-1]
    assert names[-3:] == ['sparsity', 'sparsity_2', 'time'] and list(row[-2:]) == [50, 500/18]

def test_two_callbacks_with_one_layer_are_refused():
    learn = tiny_learner()
    with pytest.raises(ValueError, match=r"Two SparsifyCallbacks select the same layers, \['3'\]"):
        learn.fit(2, cbs=[SparsifyCallback({'3':50}), SparsifyCallback(50, layer_type=nn.Conv2d)])
    learn.fit(1, cbs=SparsifyCallback(50))
    assert zeros(learn.model) == [54, 162]

# -- keep what is zero -------------------------------------------------------------------------------------------------------------

def sparse_model(dead=()):
    model = tiny_model()
    fs.Sparsifier(model).sparsify_model({'0':80, '3':25})
    for i in dead: nn.init.zeros_(model[i].weight)
    return model

@pytest.mark.parametrize('context', contexts)
@pytest.mark.parametrize('dead,n', [((), [86, 81]), ((3,), [86, 324])])
def test_keep_zeros_keeps_them_and_prunes_nothing_more(dead, n, context, capsys):
    cb = SparsifyCallback(keep_zeros=True, context=context)
    learn = fit(cb, learn=tiny_learner(sparse_model(dead)))
    share = round(100*sum(n)/432, 2)
    assert zeros(learn.model) == n and [round(c, 2) for c in column(learn)] == [share]*2
    out = lines(capsys)
    assert out[0] == f'Keeping the zeros of weight: a sparsity of [{share}]%' and f'Final Sparsity: [{share}]%' in out
    assert (cb.history.target - cb.history.measured).abs().max() < 1e-9 and cb.history.kind.unique().tolist() == ['epoch']

def test_keep_zeros_and_a_target_prune_further_and_keep_an_empty_layer():
    learn = fit(SparsifyCallback(50, keep_zeros=True), learn=tiny_learner(sparse_model(dead=[3])))
    assert zeros(learn.model) == [86, 324]

def test_keep_zeros_of_a_dense_model_keeps_it_dense():
    assert zeros(fit(SparsifyCallback(keep_zeros=True)).model) == [0, 0]

@pytest.mark.parametrize('word', [dict(schedule=agp), dict(sched_func='lin'), dict(start_sparsity=10), dict(start_epoch=1), dict(end_epoch=2), dict(round_to=4), dict(lth=True)], ids=lambda w: next(iter(w)))
def test_keep_zeros_alone_has_no_use_for_a_schedule(word):
    with pytest.raises(ValueError, match=f'{"schedule" if "sched_func" in word else next(iter(word))}=.* of no use with keep_zeros=True alone.*give a sparsity'):
        SparsifyCallback(keep_zeros=True, **word)

# -- averages ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('wrap', [lambda m: m, nn.DataParallel, torch.optim.swa_utils.AveragedModel, lambda m: torch.compile(m, backend='eager'), lambda m: m.state_dict()])
def test_masks_apply_to_any_copy_of_the_model(wrap):
    cb = SparsifyCallback(50)
    fit(cb)
    plain = tiny_model(seed=1)
    kept = {k:v.clone() for k,v in plain.state_dict().items()}
    cb.sparsifier.apply_masks(copy := wrap(plain))
    state = {k.replace('module.', '').replace('_orig_mod.', ''):v for k,v in (copy if isinstance(copy, dict) else copy.state_dict()).items()}
    for k,v in kept.items():
        mask = cb.sparsifier.masks.get(k.removesuffix('.weight')) if k.endswith('weight') else None
        assert torch.equal(state[k], v if mask is None else v*mask)

def test_masks_refuse_another_model():
    cb = SparsifyCallback(50)
    fit(cb)
    with pytest.raises(ValueError, match=r"model=Linear is no copy of the sparse model: its '0.weight' is missing"): cb.sparsifier.apply_masks(nn.Linear(2, 2))
    other = tiny_model()
    other[3] = nn.Conv2d(6, 5, 3)
    before = other[0].weight.clone()
    with pytest.raises(ValueError, match=r"its '3.weight' has shape \(5, 6, 3, 3\) and not \(6, 6, 3, 3\)"): cb.sparsifier.apply_masks(other)
    assert torch.equal(before, other[0].weight) # nothing is done by halves

def test_an_interruption_after_the_last_epoch_leaves_nothing():
    cb = SparsifyCallback(50)
    learn = tiny_learner(cbs=cb)
    for event,at in dict(after_epoch=90, after_fit=80).items():
        def stop(l): raise KeyboardInterrupt
        try: learn.fit(1, cbs=Spy(event, stop, order=at))
        except KeyboardInterrupt: pass
        learn.fit(1)
        assert column(learn) == [50]
    learn.remove_cb(cb)
    assert not [k for k in vars(learn) if 'spars' in k or '_all' in k] and len(learn.cbs) == 3

def test_a_criterion_of_ones_own():
    learn = tiny_learner(lr=0.) # so that what is left is what was there
    w = learn.model[3].weight
    was = w.detach().clone().flatten()
    fit(SparsifyCallback(50, criteria=lambda w: w, schedule=one_shot, start_epoch=1), learn=learn)
    assert zeros(learn.model) == [54, 162] and w.flatten().nonzero()[:,0].tolist() == was.topk(162).indices.sort().values.tolist()

@pytest.mark.parametrize('how', ['verbose=False', 'no_logging'])
def test_silence(how, capsys):
    learn = tiny_learner()
    cb = SparsifyCallback(50, verbose=how != 'verbose=False')
    if how == 'no_logging':
        with learn.no_logging(): learn.fit(1, cbs=cb)
    else: learn.fit(1, cbs=cb)
    assert capsys.readouterr().out == '' and zeros(learn.model) == [54, 162]

def test_nothing_asked_nothing_done(capsys):
    learn = fit(SparsifyCallback(0))
    assert zeros(learn.model) == [0, 0] and epoch_lines(capsys) == ['[0.0]%']*2

def test_history_and_plot_are_there_after_the_fit():
    cb = SparsifyCallback(50, schedule=one_shot)
    fit(cb, 4)
    assert list(cb.history) == ['step', 'epoch', 'kind', 'target', 'measured']
    assert cb.history.values.tolist() == [[4, 0, 'epoch', 0., 0.], [8, 1, 'masks', 50., 50.], [8, 1, 'epoch', 50., 50.], [12, 2, 'epoch', 50., 50.], [16, 3, 'epoch', 50., 50.]]
    ax = cb.plot()[0]
    assert ax.get_lines()[0].get_ydata().tolist() == [0, *cb.history.target] and cb.plot(ax=ax) is ax

def test_two_learners_share_a_schedule_and_a_criterion():
    s,c = partial(iterative, n_steps=4),fs.Criteria(torch.square)
    a,b = SparsifyCallback(50, schedule=s, criteria=c),SparsifyCallback(70, schedule=s, criteria=c)
    la,lb = tiny_learner(),tiny_learner()
    la.fit(2, cbs=[a, Spy('after_epoch', lambda _: fit(b, 1, lb))])
    assert zeros(la.model) == [54, 162] and zeros(lb.model) == [75, 226]

def test_masks_go_with_the_callback():
    import gc
    import weakref
    cb = SparsifyCallback(50)
    learn = fit(cb)
    held = [weakref.ref(l.keep) for l in cb.sparsifier.layers]
    del cb
    gc.collect()
    assert held and all(r() is None for r in held) and zeros(learn.model) == [54, 162]

def test_layer_types_may_be_a_list():
    learn = fit(SparsifyCallback(50, layer_type=[nn.Conv2d, nn.Linear]))
    assert zeros(learn.model, (nn.Conv2d, nn.Linear)) == [54, 162, 9]

# -- what others do amid a fit -----------------------------------------------------------------------------------------------------

def amid(event, f, order=70):
    "Calls `f(learn)` at an event, but not from within itself"
    cb = Spy(event, lambda l: None, order=order)
    def call():
        if cb.busy or (event == 'after_epoch' and cb.learn.lock.locked()): return
        cb.busy = True
        try: f(cb.learn)
        finally: cb.busy = False
    cb.busy = False
    setattr(cb, event, call)
    return cb

def exact_at_every_forward(cb):
    return Spy('after_pred', lambda l: cb.sparsifier is None or all(not p[~keep.expand_as(p)].any() for p,keep in cb.sparsifier._held(cb.sparsifier.layers)), order=80)

@pytest.mark.parametrize('order', [30, 57, 70, 99])
@pytest.mark.parametrize('what', ['validate', 'get_preds'])
def test_a_validation_amid_a_fit_leaves_the_column(what, order, capsys):
    learn,cb = tiny_learner(),SparsifyCallback(60)
    learn.fit(3, cbs=[cb, amid('after_epoch', lambda l: getattr(l, what)(), order)])
    assert zeros(learn.model) == [64, 194]
    assert epoch_lines(capsys) == [f'[{round(m, 2)}]%' for m in cb.history.query('kind == "epoch"').measured] and cb.history.measured.iloc[-1] == 100*258/432
    assert 'sparsity' in learn.recorder.metric_names # its rows, fastai has thrown away: a validation begins them anew

@pytest.mark.parametrize('what', ['validate', 'get_preds'])
@pytest.mark.parametrize('event', ['before_epoch', 'before_train', 'before_batch', 'after_batch', 'after_train', 'after_validate', 'after_epoch'])
def test_a_validation_amid_a_fit_leaves_its_epochs_and_its_steps(event, what):
    # fastai is at epoch 0 then, and trains no more of this one
    look = amid(event, lambda l: getattr(l, what)() if l.training or 'batch' not in event else None, order=0)
    plain,cb = (SparsifyCallback(80, verbose=False) for _ in range(2))
    tiny_learner().fit(3, cbs=plain)
    assert not [m for m in said(lambda: tiny_learner().fit(3, cbs=[cb, look])) if 'ended' in m]
    of = lambda c: c.history.query('kind == "epoch"')[['step', 'epoch', 'target', 'measured']].values.tolist()
    assert of(cb) == of(plain) and cb.history.step.is_monotonic_increasing
    axs = cb.plot()
    assert (np.diff(axs[1].lines[0].get_xdata()) > 0).all()

def test_a_callback_that_comes_in_anothers_epoch_knows_which_it_is():
    learn,cb = tiny_learner(),SparsifyCallback(80, verbose=False)
    learn.fit(4, cbs=Spy('before_epoch', lambda l: l.add_cb(cb) if l.epoch == 2 and cb not in l.cbs else None, order=0))
    assert cb.history.query('kind == "epoch"')[['step', 'epoch']].values.tolist() == [[12, 2], [16, 3]]

def test_a_layer_initialized_with_zeros_is_one_in_a_resume_too():
    learn = tiny_learner()
    with torch.no_grad(): learn.model[0].weight.zero_()
    warned = said(lambda: learn.fit(4, start_epoch=2, cbs=SparsifyCallback(60, context='erk', schedule='lin')))
    assert any('are all zero: taken for an initialisation' in m for m in warned) and zeros(learn.model)[0] < 108

def test_weights_loaded_amid_a_fit_are_pruned_before_the_next_forward(tmp_path):
    for event in ('after_epoch', 'after_batch', 'before_validate'):
        learn,cb = tiny_learner(path=tmp_path),SparsifyCallback(60, end_epoch=2)
        learn.save('dense')
        spy = exact_at_every_forward(cb)
        learn.fit(4, cbs=[cb, spy, amid(event, lambda l, cb=cb, event=event: l.load('dense') if cb.sparsifier and (l.training or event != 'after_batch') else None, order=50 if event == 'before_validate' else 70)])
        assert all(spy.seen) and column(learn)[-1] == 100*258/432

def test_an_optimizer_stepped_by_another_callback_leaves_no_weight_unmasked():
    class Own(Spy):
        def after_loss(self):
            if not self.training: return
            self.learn.loss_grad.backward(); self.opt.step(); self.opt.zero_grad()
            raise CancelBatchException
    learn,cb = tiny_learner(opt_func=partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9))),SparsifyCallback(60)
    spy = exact_at_every_forward(cb)
    learn.fit(4, cbs=[cb, spy, Own('after_epoch', lambda l: None, order=20)])
    assert all(spy.seen) and zeros(learn.model) == [64, 194]

def test_a_cancelled_fit_does_not_use_what_an_interrupted_one_left(tmp_path, capsys):
    learn,cb = tiny_learner(path=tmp_path),SparsifyCallback(60, schedule='lin')
    learn.save('dense')
    learn.add_cb(cb)
    def stop(l):
        if l.epoch == 1: raise KeyboardInterrupt
    try: learn.fit(3, cbs=Spy('after_batch', stop))
    except KeyboardInterrupt: pass
    learn.load('dense')
    capsys.readouterr()
    def cancel(l): raise CancelFitException
    learn.fit(1, cbs=Spy('before_fit', cancel, order=20))
    assert zeros(learn.model) == [0, 0] and capsys.readouterr().out == ''

def test_a_callback_added_amid_a_fit_joins_in():
    learn = tiny_learner()
    learn.fit(4, cbs=Spy('after_epoch', lambda l: l.add_cb(SparsifyCallback(60)) if l.epoch == 0 else None))
    assert zeros(learn.model) == [64, 194]
    learn.remove_cb(learn.sparsify)
    assert [type(cb).__name__ for cb in learn.cbs] == ['TrainEvalCallback', 'Recorder', 'CastToTensor']

def test_infinite_gradients_of_pruned_weights_leave_no_nan_there():
    learn,cb = tiny_learner(),SparsifyCallback(60, schedule=one_shot)
    learn.fit(2, cbs=[cb, Spy('after_backward', lambda l: [m.weight.grad.fill_(float('inf')) for m in convs(l.model)] if cb.sparsifier and cb.sparsifier.masks else None, order=5)])
    for n,keep in cb.sparsifier.masks.items():
        for v in learn.opt.state[learn.model[int(n)].weight].values():
            if isinstance(v, torch.Tensor) and v.shape == keep.shape: assert not v[~keep].any()

def test_the_slow_weights_of_lookahead_are_pruned_too():
    from fastai.optimizer import Lookahead
    learn,cb = tiny_learner(opt_func=lambda p, **kw: Lookahead(SGD(p, **kw), k=2)),SparsifyCallback(90, schedule=one_shot)
    learn.fit(3, cbs=cb)
    slow = {id(p):s for ps,ss in zip(learn.opt.param_lists, learn.opt.slow_weights) for p,s in zip(ps, ss)}
    for l in cb.sparsifier.layers: assert not slow[id(l.weight)][~l.mask].any()

# -- two callbacks, and the ways back ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('how', ['lth', 'reset_end', 'by hand'])
def test_what_one_callback_rewinds_stays_pruned_by_the_other(how, capsys):
    a,b = SparsifyCallback(60, schedule=one_shot),SparsifyCallback(50, layer_type=nn.Linear, schedule=iterative, **({how:True} if how != 'by hand' else {}))
    spy = exact_at_every_forward(a)
    learn = fit([a, b, spy], 4)
    if how == 'by hand': b.rewind()
    assert all(spy.seen) and zeros(learn.model) == [64, 194] and zeros(learn.model, nn.Linear) == [9]
    reports = [l.split()[-3:] for l in lines(capsys) if l.startswith('Overall')]
    assert reports == [['432', '258', '59.72%'], ['18', '9', '50.00%']]

def test_each_ticket_has_a_name_of_its_own_and_all_masks(tmp_path):
    fit([SparsifyCallback(50, save_tickets=True), SparsifyCallback(50, layer_type=nn.Linear, save_tickets=True)], 2, tiny_learner(path=tmp_path))
    tickets = sorted(tmp_path.rglob('*.pth'))
    assert [t.name for t in tickets] == ['winning_ticket_2_50.00.pth', 'winning_ticket_50.00.pth']
    for t in tickets:
        model = tiny_model()
        model.load_state_dict(torch.load(t, weights_only=True))
        assert zeros(model, (nn.Conv2d, nn.Linear)) == [54, 162, 9]

def test_a_folder_that_cannot_be_is_found_before_training(tmp_path):
    (tmp_path/'models').write_text('a file')
    learn = tiny_learner(path=tmp_path)
    with pytest.raises(FileExistsError): learn.fit(1, cbs=SparsifyCallback(50, save_tickets=True))
    assert zeros(learn.model) == [0, 0]

def test_a_rewind_clears_the_optimizer_of_now():
    learn,cb = tiny_learner(),SparsifyCallback(60, schedule=fs.Schedule(fs.sched_oneshot, start_pct=.75), lth=True)
    def anew(l):
        state = l.opt.state_dict()
        l.create_opt()
        l.opt.load_state_dict(state)
    held = Spy('before_batch', lambda l: sum(len(l.opt.state.get(m.weight, {})) for m in convs(l.model)) if l.training else None, order=56)
    learn.fit(2, cbs=[cb, Spy('after_train', anew, order=1), held])
    held = [h for h in held.seen if h is not None]
    assert [i for i,h in enumerate(held) if h == 0] == [0, 5] # before the first step, and at the sixth, that prunes
    cb.rewind()

def test_masters_are_rewound_with_the_model():
    from contract import Masters
    class World: weights,masters = None,None
    learn,cb = tiny_learner(tiny_model().bfloat16(), lr=1e-3),SparsifyCallback(60, schedule=one_shot, lth=True)
    World.weights = list(learn.model.parameters())
    start = [m.weight.detach().clone() for m in convs(learn.model)]
    far = Spy('after_batch', lambda l: max(float((m.weight - s)[m.weight != 0].abs().max()) for m,s in zip(convs(l.model), start)) if l.training else None)
    learn.fit(2, cbs=[cb, Masters(World), far])
    steps = [s for s in far.seen if s is not None]
    assert steps[2] > .002 and steps[3] < .002 # Adam's step is lr: rewound at the fourth

def test_keep_zeros_keeps_them_when_the_schedule_falls():
    model = sparse_model()
    before = [m.weight == 0 for m in convs(model)]
    cb = SparsifyCallback(90, keep_zeros=True, schedule='dsd')
    learn = fit(cb, 4, tiny_learner(model))
    assert all(not m.weight[z].any() for m,z in zip(convs(learn.model), before))
    assert [int((~m).sum()) for m in cb.sparsifier.masks.values()] == [86, 81]

def test_an_average_of_layers_with_confusing_names():
    class Confusing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv,self.module = nn.Conv2d(2, 2, 3),nn.Module()
            self.module.conv = nn.Conv2d(2, 2, 3)
    sp = fs.Sparsifier(Confusing())
    sp.sparsify_layer('conv', 50)
    for wrap in (lambda m: m, torch.optim.swa_utils.AveragedModel, lambda m: m.state_dict()):
        plain = Confusing()
        sp.apply_masks(wrap(plain) if wrap(plain) is plain else (copy := wrap(plain)))
        model = plain if wrap(plain) is plain or isinstance(copy, dict) else copy.module
        assert zeros(model) == [18, 0]

@pytest.mark.parametrize('target,shown', [(np.int64(90), '[90]'), (np.float32(37.5), '[37.5]'), (np.uint8(30), '[30]'), (torch.tensor(90), '[90]'), (np.array([50, 60]), '[50, 60]'),
                                          (torch.tensor([50, 60]), '[50, 60]'), ((50, 60), '[50, 60]')], ids=str)
def test_numbers_of_any_library(target, shown, capsys):
    fit(SparsifyCallback(target, start_epoch=np.int64(1), end_epoch=np.int64(2), start_sparsity=np.uint8(10), rewind_epoch=np.int64(0), round_to=np.int64(1)))
    assert f'Pruning of weight until a sparsity of {shown}%' in capsys.readouterr().out

# -- what a user might not notice --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('schedule', [one_shot, iterative, agp])
def test_early_stopping_waits_until_the_target_is_in_force(schedule, tmp_path):
    learn = tiny_learner(path=tmp_path)
    learn.fit(10, cbs=[SparsifyCallback(90, schedule=schedule, verbose=False), EarlyStoppingCallback(monitor='valid_loss', patience=1, min_delta=100.)])
    assert zeros(learn.model) == [97, 291] and len(learn.recorder.values) == {one_shot:6, iterative:9, agp:10}[schedule]

def test_a_fit_that_ends_before_its_schedule_says_so():
    def stop(l):
        if l.epoch == 2: raise CancelFitException
    with pytest.warns(UserWarning, match=r'ended before its schedule did: at \[0\]%, and not at \[90\]%'):
        fit([SparsifyCallback(90, schedule=one_shot), Spy('before_epoch', stop)], 8)

def test_a_schedule_that_ends_elsewhere_is_warned_of():
    with pytest.warns(UserWarning, match=r'ends at \[40\]%, and not at sparsity=80: let its function return `end` at pos=1, or give sparsity=40$'): SparsifyCallback(80, schedule=lambda s, e, p: 40)
    with pytest.warns(UserWarning, match=r'ends at \[40, 40\]%, and not at sparsity=\[80, 70\].*pos=1$'): SparsifyCallback([80, 70], schedule=lambda s, e, p: 40)

def said(f):
    "What it warns of"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        f()
    return [str(w.message) for w in warned if issubclass(w.category, UserWarning)]

def loose(learn, *cbs, n=1): return [m for m in said(lambda: learn.fit(n, cbs=cbs)) if 'Zeros train again' in m]

def sparse_head(percent=50):
    learn = tiny_learner()
    fs.Sparsifier(learn.model, layer_type=nn.Linear).sparsify_model(percent)
    return learn

@pytest.mark.parametrize('options', [dict(keep_zeros=True), dict(sparsity=50), dict(sparsity={'0':50})], ids=str)
def test_zeros_of_layers_that_are_not_selected_train_again_and_are_named_once(options):
    learn = sparse_head()
    assert loose(learn, SparsifyCallback(**options, verbose=False), n=2) == ["Zeros train again in layers that are not selected: 7 (9 of 18). To keep them, select these layers too, or add "
                                                                         "SparsifyCallback(keep_zeros=True, layer_type=nn.Linear, layers=['7'])"]
    assert zeros(learn.model, nn.Linear) == [0]

def test_what_it_names_then_keeps_them():
    learn = sparse_head()
    message, = loose(learn, SparsifyCallback(50))
    learn = sparse_head()
    assert not loose(learn, SparsifyCallback(50), eval(message.split(' or add ')[1], dict(SparsifyCallback=SparsifyCallback, nn=nn))) and zeros(learn.model, nn.Linear) == [9]
    assert not loose(sparse_head(), SparsifyCallback(keep_zeros=True, layer_type=nn.Module))

def test_zeros_that_do_not_train_or_are_an_initialisation_are_not_named():
    learn = sparse_head()
    learn.model[7].requires_grad_(False)
    assert not loose(learn, SparsifyCallback(50)) and zeros(learn.model, nn.Linear) == [9]
    assert not loose(sparse_head(100), SparsifyCallback(50)) and not loose(tiny_learner(), SparsifyCallback(50))
    assert not loose_zeros(nn.ModuleList([nn.Embedding(6, 3, padding_idx=0), nn.Linear(20, 1)]), [])

def test_the_types_it_names_are_to_be_had():
    learn = tiny_learner()
    learn.model.append(attention := nn.MultiheadAttention(3, 1))
    with torch.no_grad(): attention.out_proj.weight[0] = attention.in_proj_weight[0] = 0
    with pytest.warns(UserWarning, match=r'layer_type=\(nn.MultiheadAttention, nn.Linear\)'): warn_of_loose(learn.model, [])

def doubts(learn, at=2, n=4, **words): return [m for m in said(lambda: learn.fit(n, cbs=SparsifyCallback(**{'sparsity':50, 'schedule':'lin', **words}), start_epoch=at)) if m.startswith('The fit starts')]

def with_zeros(percent, layer_type=nn.Conv2d, **kwargs):
    learn = tiny_learner()
    fs.Sparsifier(learn.model, layer_type=layer_type, **kwargs).sparsify_model(percent)
    return learn

def test_a_fit_that_starts_amid_its_schedule_and_finds_other_zeros_says_so():
    before = 'The fit starts at epoch 2, where the schedule is at [25.0]%, and [{}]% is zero{}. Are these the weights of after epoch 1, and is 4 the number of epochs in all, as it was before? '
    missing,ahead = 'The first batch prunes what is missing','Nothing is pruned until the schedule is above that'
    assert doubts(tiny_learner()) == [before.format(0.0, '') + missing] and doubts(with_zeros(12)) == [before.format(11.57, '') + missing]
    assert doubts(with_zeros(45)) == [before.format(44.68, '') + ahead]
    assert doubts(with_zeros(25, layers='0')) == [before.format(6.25, ', too little in 3') + missing]
    assert not doubts(with_zeros(25)) and doubts(with_zeros(30)) == [before.format(29.86, '') + ahead] # of the end of epoch 1, and from the midst of epoch 2
    assert not doubts(tiny_learner(), 1, schedule=one_shot) and not doubts(tiny_learner(), start_epoch=2) # at 0 until then

def test_a_fit_that_skips_all_its_epochs_says_so():
    learn = tiny_learner()
    for first in (3, 4):
        with pytest.warns(UserWarning, match=f'start_epoch={first} leaves none of 3 epochs to train: to resume, give fit the number of epochs in all'): learn.fit(3, start_epoch=first, cbs=SparsifyCallback(50))
    learn = tiny_learner(cbs=SparsifyCallback(50, schedule=one_shot))
    assert said(lambda: (learn.validate(), learn.fit(3, start_epoch=1))) == []

@pytest.mark.parametrize('words', [dict(context=c, granularity=g) for c in contexts for g in ('weight', 'row', 'kernel', 'filter')] + [dict(sparsity=80, context='global', granularity='filter'), dict(sparsity=None, nm=(1, 2), context='global', schedule='one_shot'), dict(round_to=4), dict(update_every=3), dict(granularity='filter'), dict(schedule='dsd'), dict(schedule='ac_dc'), dict(criteria='taylor'),
                                   dict(sparsity=[30, 60]), dict(context='lamp', round_to=4), dict(keep_zeros=True)], ids=str)
def test_a_true_resume_is_not_in_doubt(words):
    def stop(l):
        if l.epoch == 2: raise CancelFitException
    learn = tiny_learner()
    learn.fit(4, cbs=[SparsifyCallback(**{'sparsity':50, 'schedule':'lin', **words}), Spy('before_epoch', stop)])
    again = tiny_learner(learn.model)
    assert not doubts(again, **words)

def test_a_layer_that_is_pruned_wholly_stays_so_in_a_resume():
    def stop(l):
        if l.epoch == 4: raise CancelFitException
    learn,words = tiny_learner(),dict(granularity='filter', context='global', schedule='lin')
    with torch.no_grad(): learn.model[0].weight *= 1e-6
    learn.fit(6, cbs=[SparsifyCallback(80, **words), Spy('before_epoch', stop)])
    assert zeros(learn.model)[0] == 108
    cb = SparsifyCallback(80, **words)
    assert not said(lambda: learn.fit(6, start_epoch=4, cbs=cb)) and zeros(learn.model)[0] == 108 and sum(l.dead for l in cb.sparsifier.layers) == 12*80//100
    learn.fit(2, cbs=(falls := SparsifyCallback(80, **{**words, 'schedule':'dsd'}))) # a fit of its own takes it for an initialization, as before
    assert learn.model[0].weight.any() and not falls.keep_zeros

def test_what_is_zero_already_is_told_and_more_than_is_asked_warned_of(capsys):
    learn = with_zeros(25)
    assert not said(lambda: learn.fit(1, cbs=SparsifyCallback(50)))
    assert lines(capsys)[:2] == ['Pruning of weight until a sparsity of [50]%', 'Zero already: [25.0]%, which counts and stays (to resume a fit, give start_epoch to fit)']
    assert said(lambda: learn.fit(1, cbs=SparsifyCallback(30))) == ['sparsity=[30] is less than what is zero already, [50.0]%: nothing is pruned, and nothing comes back']
    assert zeros(learn.model) == [54, 162] and not said(lambda: learn.fit(2, cbs=SparsifyCallback(70, schedule='dsd')))
    tiny_learner().fit(1, cbs=SparsifyCallback(50))
    assert not [l for l in lines(capsys)[-12:] if 'already' in l]

def test_layers_that_thaw_amid_a_fit_are_no_resume():
    learn = tiny_learner()
    for c in convs(learn.model): c.requires_grad_(False)
    def thaw(l):
        if l.epoch == 2:
            for c in convs(l.model): c.requires_grad_(True)
    assert not [m for m in said(lambda: learn.fit(4, cbs=[SparsifyCallback(50, schedule='lin'), Spy('before_epoch', thaw)])) if 'The fit starts' in m]
    assert zeros(learn.model) == [54, 162]

def test_keeping_the_zeros_of_a_dense_model_is_warned_of():
    with pytest.warns(UserWarning, match='nothing is zero'): fit(SparsifyCallback(keep_zeros=True))

def test_save_model_masks_what_it_saves(tmp_path):
    sp = fs.Sparsifier(model := tiny_model())
    sp.sparsify_model(50)
    with torch.no_grad(): model[0].weight.add_(1)
    sp.save_model(tmp_path/'m.pth')
    assert int((torch.load(tmp_path/'m.pth', weights_only=True)['0.weight'] == 0).sum()) == 54

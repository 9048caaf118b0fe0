"""Schedules compared: equal beginnings, equal budget, and a table that is counted."""
from functools import partial
import random
import warnings
import weakref

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import CancelEpochException, CancelFitException, Metric, Recorder
from helpers import Spy, tiny_dls, tiny_learner, tiny_model
from torch import nn

from fasterai_sched import SparsifyCallback, agp, compare_schedules, iterative, one_shot

def net(): return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))

made = []
def make():
    "A learner that remembers what it began with"
    torch.manual_seed(int(torch.randint(1000, ()))) # from the seed of the run
    learn = tiny_learner(net())
    made.append((learn, learn.model[0].weight.detach().clone()))
    return learn

def compare(schedules=(one_shot, agp), n_epoch=4, sparsity=50, **kwargs):
    made.clear()
    return compare_schedules(make, schedules, n_epoch, sparsity, **{'n_seeds':2, 'progress':False, 'draw':False, **kwargs})

def test_a_row_a_schedule_with_means_deviations_and_what_was_counted():
    df = compare()
    assert list(df.columns) == ['accuracy', 'deviation', 'sparsity', 'recovery'] and df.index.tolist() == ['dense', 'one_shot', 'agp'] and df.index.name == 'schedule'
    runs = pd.DataFrame(df.attrs['runs'])
    assert list(runs.columns) == ['schedule', 'seed', 'epoch', 'sparsity', 'accuracy'] and len(runs) == 3*2*4
    last = runs[runs.epoch == 3].groupby('schedule', sort=False).accuracy
    assert df.accuracy.equals(last.mean()) and df.deviation.equals(last.std().rename('deviation'))
    assert df.sparsity.tolist() == [0, 50, 50] and np.isnan(df.recovery.dense)
    assert df.recovery['one_shot'] == 16 - 8 and df.recovery['agp'] == 0
    assert runs[(runs.schedule == 'one_shot') & (runs.seed == 1)].sparsity.tolist() == [0, 50, 50, 50]

def test_all_begin_alike_and_see_the_same_data_each_seed_another():
    compare(verbose=False)
    begins = [w for _,w in made[1:]] # the first is for the checks
    assert all(torch.equal(w, begins[0]) for w in begins[:3]) and all(torch.equal(w, begins[3]) for w in begins[3:]) and not torch.equal(begins[0], begins[3])
    assert len(begins) == 6

def test_the_same_data_are_in_the_same_order_for_all():
    dls,orders = tiny_dls(),[]
    def fit(learn, n_epoch, cbs):
        orders.append([x.sum().item() for x,_ in learn.dls.train])
        learn.fit(n_epoch, cbs=cbs)
    compare_schedules(lambda: tiny_learner(tiny_model(), dls=dls), [agp, one_shot], 2, 50, n_seeds=2, fit=fit, draw=False, progress=False)
    assert orders[0] == orders[1] == orders[2] != orders[3] == orders[4] == orders[5]

def test_it_repeats_to_the_digit_and_leaves_the_random_state():
    states = random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state()
    first = compare()
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1] and torch.equal(torch.get_rng_state(), states[2])
    torch.rand(7)
    pd.testing.assert_frame_equal(first, compare())

@pytest.mark.parametrize('schedules,names', [
    (agp, ['agp']), ('lin', ['lin']), ([iterative, partial(iterative, n_steps=5)], ['iterative', 'iterative(n_steps=5)']),
    ([lambda start, end, pos: end*pos]*2, ['<lambda>', '<lambda> #2']), ({'mine':agp, 'by name':'cos'}, ['mine', 'by name'])])
def test_schedules_of_any_kind_have_names(schedules, names):
    df = compare(schedules, 3, dense=False, n_seeds=1)
    assert df.index.tolist() == names and (df.sparsity == 50).all() and df.deviation.isna().all()

def test_what_a_sparsify_callback_takes_goes_through():
    df = compare(['agp'], 4, 50, layer_type=nn.Linear, end_epoch=2, dense=True)
    assert df.recovery['agp'] == 8 and df.sparsity.tolist() == [0, 50]

def test_another_metric_and_another_way_to_train():
    seen = []
    df = compare(metric='valid_loss', fit=lambda learn, n_epoch, cbs: (seen.append(len(cbs)), learn.fit_one_cycle(n_epoch, 1e-3, cbs=cbs)))
    assert df.columns[0] == 'valid_loss' and seen == [0, 1, 1]*2
    assert compare_schedules(lambda: tiny_learner(metrics=[]), ['agp'], 2, 50, n_seeds=1, draw=False, progress=False).columns[0] == 'valid_loss'

def test_a_make_learn_that_seeds_is_told_that_its_deviations_leave_something_out():
    def seeded():
        torch.manual_seed(7)
        return tiny_learner(net())
    words = dict(n_epoch=1, sparsity=50, draw=False, progress=False)
    with pytest.warns(UserWarning, match='seeded.* sets a seed itself, so each of its networks begins with the same weights') as warned: compare_schedules(seeded, ['agp'], n_seeds=3, **words)
    assert len([w for w in warned if 'sets a seed' in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings('error', '.*sets a seed')
        compare_schedules(seeded, ['agp'], n_seeds=1, **words)
        compare_schedules(lambda: tiny_learner(net()), ['agp'], n_seeds=3, **words)

@pytest.mark.parametrize('value', [None, 'high', [.1, .2]])
def test_a_metric_that_is_no_number_is_named(value):
    class Odd(Metric):
        name = 'odd'
        def reset(self): pass
        def accumulate(self, learn): pass
        @property
        def value(self): return value
    with pytest.raises(ValueError, match="metric='odd' gives .* which is no number to compare by: choose another, such as metric='valid_loss'"):
        compare_schedules(lambda: tiny_learner(net(), metrics=[Odd()]), ['agp'], 2, 50, draw=False, progress=False)

def test_of_a_fit_that_is_cancelled_in_an_epoch_the_last_whole_one_counts():
    def stop(l):
        if l.training and l.train_iter == 10: raise CancelFitException # of 4 an epoch
    fit = lambda learn, n_epoch, cbs: learn.fit(n_epoch, cbs=[*cbs, Spy('after_batch', stop)])
    df = compare('lin', 4, fit=fit, dense=False, n_seeds=1)
    assert df.sparsity.tolist() == [25.] and pd.DataFrame(df.attrs['runs']).epoch.tolist() == [0, 1]

def test_it_draws_sparsity_and_metric():
    compare(draw=True)
    assert len(plt.get_fignums()) == 1
    axs = plt.subplots(2)[1]
    compare(draw=True, ax=axs)
    assert [l.get_label() for l in axs[0].lines] == ['dense', 'one_shot', 'agp'] and axs[1].get_ylabel() == 'accuracy' and axs[1].collections
    plt.close('all')
    compare()
    assert not plt.get_fignums()

def test_silent_a_bar_or_all_of_it(capsys):
    compare()
    assert capsys.readouterr().out == ''
    compare(progress=True)
    out = capsys.readouterr().out
    assert '100.00% [6/6' in out and 'Sparsity' not in out
    compare(verbose=True)
    assert capsys.readouterr().out.count('Final Sparsity: [50') == 4

@pytest.mark.parametrize('kwargs,message', [
    (dict(n_seeds=0), 'n_seeds=0 must be a whole number'), (dict(n_seeds=None), 'n_seeds=0 must be'), (dict(schedules=[]), r'schedules=\[\]: there is none'), (dict(metric='f1'), "metric='f1' is not one of the learner's: choose from \\['accuracy'"),
    (dict(schedules={'dense':agp}), "'dense' is the name"), (dict(schedules=['agg']), "schedule='agg' is not a schedule"), (dict(sparsity=.5), 'sparsity=0.5'),
    (dict(end_epoch=9), 'one_shot: end_epoch=9'), (dict(granularity='nope'), "granularity='nope'"), (dict(layer_type=nn.LSTM), 'layer_type=LSTM: there is none'), (dict(n_epoch=0), 'n_epoch=0'),
    (dict(schedule=agp), "schedule= can't be given here"), (dict(end_sparsity=9), "end_sparsity= can't be given here.*give sparsity="), (dict(schedules={'mine':None}), 'schedule=None is not a schedule'), (dict(model=nn.ReLU()), 'model= .*give layers='), (dict(data=iter([])), 'data= is an iterator'),
    (dict(draw=True, ax=3), 'ax=3 must be two axes')])
def test_what_cannot_be_done_is_said_before_any_training(kwargs, message):
    def fit(*_): raise AssertionError('trained')
    with pytest.raises(ValueError, match=message): compare(**{'fit':fit, **kwargs})

@pytest.mark.parametrize('make_learn,message', [(3, 'must be a function'), (lambda: None, 'gives NoneType: it must make a Learner')])
def test_make_learn_must_make_learners(make_learn, message):
    with pytest.raises(ValueError, match=message): compare_schedules(make_learn, ['agp'], 2)
    with pytest.raises(ValueError, match='must be a function'): compare_schedules(tiny_learner(), ['agp'], 2)

def test_a_model_that_was_trained_before_is_not_trained_again():
    learn = tiny_learner()
    with pytest.raises(ValueError, match='gives a model that it has given before'): compare_schedules(lambda: learn, ['agp'], 2, progress=False)
    assert not hasattr(learn.recorder, 'values') # not once

def test_a_learner_without_recorder_has_nothing_to_compare_by():
    def make():
        learn = tiny_learner()
        learn.remove_cb(Recorder)
        return learn
    with pytest.raises(ValueError, match="without fastai's Recorder"): compare_schedules(make, ['agp'], 2)

def test_runs_that_end_early_count_as_far_as_they_came():
    def stop(at): return lambda: tiny_learner(cbs=Spy('before_epoch', lambda l: cancel() if l.epoch == at else None))
    def cancel(): raise CancelFitException
    kwargs = dict(n_epoch=4, sparsity=50, n_seeds=1, draw=False, progress=False)
    with pytest.warns(UserWarning, match='ended before its schedule'): df = compare_schedules(stop(3), ['lin'], **kwargs)
    assert df.sparsity['lin'] == 100*(int(.75*.5*108) + int(.75*.5*324))/432
    with pytest.raises(RuntimeError, match='The fit with no schedule ended before its first epoch'): compare_schedules(stop(0), ['lin'], **kwargs)

def named(name):
    def f(x, y): return (x.argmax(1) == y).float().mean()
    f.__name__ = name
    return f

def few(make_learn, schedules=('agp',), **kwargs): return compare_schedules(make_learn, list(schedules), 2, 50, **{'n_seeds':1, 'draw':False, 'progress':False, **kwargs})

@pytest.mark.parametrize('name', ['schedule', 'seed', 'epoch', 'sparsity', 'deviation', 'recovery'])
def test_a_metric_by_a_name_of_the_tables_own_is_refused_and_not_chosen(name):
    with pytest.raises(ValueError, match=f"metric='{name}' is what this table calls"): few(lambda: tiny_learner(metrics=named(name)), metric=name)
    df = few(lambda: tiny_learner(metrics=named(name)))
    assert df.columns[0] == 'valid_loss' and df.sparsity.tolist() == [0, 50]

@pytest.mark.parametrize('set_up,column', [
    (dict(train_metrics=True), 'valid_accuracy'), (dict(valid_metrics=False), 'train_loss'), (dict(train_metrics=True, valid_metrics=False), 'accuracy')])
def test_metrics_are_called_as_in_fastais_table(set_up, column):
    def make():
        learn = tiny_learner()
        for k,v in set_up.items(): setattr(learn.recorder, k, v)
        return learn
    assert few(make).columns[0] == column

def test_without_validation_the_training_loss_is_compared():
    assert few(lambda: tiny_learner(dls=tiny_dls(n_valid=0))).columns[0] == 'train_loss'

def test_a_learner_with_a_callback_of_its_own_is_refused():
    with pytest.raises(ValueError, match='gives a Learner with a SparsifyCallback'): few(lambda: tiny_learner(cbs=SparsifyCallback(50)))

def test_sparsity_is_that_of_the_schedules_own_callback():
    other = lambda learn, n, cbs: learn.fit(n, cbs=[SparsifyCallback(90, layer_type=nn.Linear, verbose=False), *cbs])
    runs = pd.DataFrame(few(tiny_learner, fit=other).attrs['runs'])
    assert runs.sparsity.tolist()[-1] == 50 and runs.sparsity.tolist()[:2] == [0, 0]

def test_a_fit_that_ends_amid_an_epoch_has_no_steps_left_and_a_cancelled_epoch_no_row():
    def stop(l):
        if l.training and l.epoch == 1 and l.iter == 3: raise CancelFitException
    assert few(lambda: tiny_learner(cbs=Spy('before_batch', stop)), ['lin']).recovery['lin'] == 0
    def skip(l):
        if l.epoch == 0: raise CancelEpochException
    assert [r['epoch'] for r in few(lambda: tiny_learner(cbs=Spy('before_epoch', skip))).attrs['runs']] == [1, 1]

def test_how_to_train_is_no_option_of_the_callback():
    with pytest.raises(ValueError, match=r'lr= is no argument of SparsifyCallback; how to train is told by fit='): few(tiny_learner, lr=3)

def test_a_fit_that_leaves_the_callbacks_out_is_told():
    with pytest.raises(RuntimeError, match='fit= must give the callbacks'): few(tiny_learner, fit=lambda learn, n, cbs: learn.fit(n))

def test_models_are_let_go():
    alive,models = [],weakref.WeakSet()
    def make():
        alive.append(len(models))
        models.add((learn := tiny_learner()).model)
        return learn
    few(make, ['agp', 'lin', 'cos'], n_seeds=2)
    assert max(alive) <= 2

"""WHAT WAS: a fit's pictures after it, while it goes on, and layer by layer."""
import pickle
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelEpochException
from fastai.callback.schedule import lr_find # noqa: F401
from fastai.learner import Recorder
from helpers import Spy, tiny_dls, tiny_learner

import fasterai_sched.live
from fasterai_sched import ShowSparsityCallback, SparsifyCallback, agp, iterative, one_shot

def fit(n_epoch=4, learn=None, cbs=(), **kwargs):
    cb = SparsifyCallback(**{'sparsity':50, 'schedule':one_shot, 'verbose':False, **kwargs})
    learn = learn or tiny_learner()
    learn.fit(n_epoch, cbs=[cb, *cbs])
    return cb,learn

def heat(cb):
    mesh = cb.plot_layers().collections[0]
    return mesh.get_coordinates()[0, :, 0].tolist(),mesh.get_array().tolist()

def test_a_run_is_drawn_with_the_losses_and_metrics_of_fastais_table():
    cb,learn = fit()
    sparsity,loss,metric = cb.plot()
    rec = learn.recorder
    assert loss.lines[0].get_xdata().tolist() == list(range(1, 17)) and np.allclose(loss.lines[0].get_ydata(), [float(l) for l in rec.losses])
    assert loss.lines[1].get_xdata().tolist() == [4, 8, 12, 16] and loss.lines[1].get_ydata().tolist() == [v[1] for v in rec.values]
    assert metric.get_ylabel() == 'accuracy' and np.allclose(metric.lines[0].get_ydata(), [v[2] for v in rec.values])
    assert [l.get_label() for l in metric.lines if l.get_label()[0] != '_'] == ['accuracy'] # and not our own column

def test_losses_are_where_their_batches_were_though_epochs_end_early_and_others_validate():
    def stop(l):
        if l.training and l.epoch == 1 and l.iter == 2: raise CancelEpochException
    cb,_ = fit(3, cbs=[Spy('before_batch', stop)])
    assert cb.plot()[1].lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5, 6, 9, 10, 11, 12]
    class Validates(Callback):
        order = 80
        def after_epoch(self):
            if not self.learn.lock.locked() and self.epoch == 0: self.learn.validate()
    cb,learn = fit(3, cbs=[Validates()])
    assert cb.plot()[1].lines[0].get_xdata().tolist() == list(range(1, 13)) and np.allclose(cb.plot()[1].lines[0].get_ydata()[4:], [float(l) for l in learn.recorder.losses])

def test_losses_of_an_epoch_that_does_not_end_are_there_too():
    def stop(l):
        if l.training and l.epoch == 1 and l.iter == 2: raise KeyboardInterrupt
    cb,learn = SparsifyCallback(50, schedule=one_shot, verbose=False),tiny_learner()
    with pytest.raises(KeyboardInterrupt): learn.fit(3, cbs=[cb, Spy('before_batch', stop)])
    assert cb.plot()[1].lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert pickle.loads(pickle.dumps(cb._record)).plot()[1].lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5, 6]

def test_metrics_may_be_called_anything():
    def step(x, y): return (x.argmax(1) == y).float().mean()
    cb,_ = fit(2, tiny_learner(metrics=step))
    assert [ax.get_ylabel() for ax in cb.plot()] == ['sparsity (%)', 'loss', 'step']

def test_it_is_of_the_last_fit():
    cb,learn = fit(2)
    learn.fit(3, cbs=cb)
    sparsity,loss,metric = cb.plot()
    assert len(loss.lines[0].get_xdata()) == 12 and len(metric.lines[0].get_xdata()) == 3

def test_a_fit_without_validation_or_recorder_or_that_goes_on_is_drawn_too():
    cb,_ = fit(2, tiny_learner(metrics=[], dls=tiny_dls(n_valid=0)))
    assert [ax.get_ylabel() for ax in cb.plot()] == ['sparsity (%)', 'loss'] and len(cb.plot()[1].lines[:-2]) == 1
    learn = tiny_learner()
    learn.remove_cb(Recorder)
    cb,_ = fit(2, learn)
    assert [ax.get_ylabel() for ax in cb.plot()] == ['sparsity (%)']
    cb = SparsifyCallback(50, verbose=False)
    tiny_learner().fit(4, start_epoch=2, cbs=cb)
    assert cb.plot()[1].lines[0].get_xdata().tolist() == list(range(9, 17)) and cb.plot()[2].lines[0].get_xdata().tolist() == [12, 16]

def test_before_any_fit_there_is_nothing_to_draw_and_it_says_so():
    cb = SparsifyCallback(50)
    assert not len(cb.history)
    for draw in (cb.plot, cb.plot_layers, cb.plot_weights):
        with pytest.raises(RuntimeError, match='nothing to draw yet'): draw()

def test_layers_over_time_change_where_the_masks_did():
    assert heat(fit()[0]) == ([0, 4, 7, 8, 12, 16], [[0, 0, 50, 50, 50]]*2)
    steps,(first,second) = heat(fit(schedule=iterative, sparsity=90)[0])
    cb = fit(schedule=iterative, sparsity=90)[0]
    jumps = cb.history.query('kind == "masks"').step.tolist()
    for before,after in zip([0, *jumps], jumps): assert first[steps.index(after) - 1] > first[steps.index(after - 1) - 1] if after - 1 else True, before

@pytest.mark.parametrize('words', [dict(schedule=partial(iterative, n_steps=6), end_epoch=5), dict(schedule='agp', update_every=5), dict(schedule='ac_dc'), dict(schedule='lin'), dict(schedule='one_shot')])
def test_layers_are_drawn_at_each_step_as_they_were_counted_then(words):
    counts,cb = [],SparsifyCallback(90, verbose=False, **words)
    def count(learn): counts.append([100*l.gone/l.numel for l in cb.sparsifier.layers]) if learn.training else None
    tiny_learner(dls=tiny_dls(140)).fit(6, cbs=[cb, Spy('after_batch', count)])
    steps,rows = heat(cb)
    drawn = [[next(row[i] for i in range(len(row)) if steps[i] < s <= steps[i + 1]) for row in rows] for s in range(1, len(counts) + 1)]
    assert len(counts) == 84 and np.allclose(drawn, counts)

def test_layers_may_differ():
    cb,learn = fit(context='global', schedule=agp)
    _,rows = heat(cb)
    counted = [100*float((learn.model[i].weight == 0).float().mean()) for i in (0, 3)]
    assert [r[-1] for r in rows] == pytest.approx(counted) and counted[0] != counted[1]

def test_a_long_fit_is_looked_at_a_hundred_times_and_at_the_ends_of_epochs():
    cb,_ = fit(100, schedule=agp)
    steps,_ = heat(cb)
    assert len(cb.history) > 200 and 100 <= len(steps) <= 310 and steps[-1] == 400

def test_weights_of_rewind_epoch_and_now():
    cb,learn = fit()
    start = cb._snapshot.weights
    before,after = cb.plot_weights().containers
    assert sum(b.get_height() for b in before) == 432 and sum(b.get_height() for b in after) == 216
    ax = cb.plot_weights('0', bins=7)
    before,after = ax.containers
    assert ax.get_title() == '0' and not cb.plot_weights().get_title()
    assert len(before) == 7 and sum(b.get_height() for b in before) == 108
    at = [b.get_x() for b in before] + [before[-1].get_x() + before[-1].get_width()]
    assert np.histogram(start['0.weight'].numpy(), at)[0].sum() == 108
    with pytest.raises(ValueError, match=r"layer='7' was not selected; these were: \['0', '3'\]"): cb.plot_weights('7')
    assert len(fit(rewind_epoch=None)[0].plot_weights().containers) == 1

# -- live ------------------------------------------------------------------------------------------------------------------------

class Screen:
    "What a notebook would show: each picture, and each that takes its place"
    def __init__(self): self.shown,self.updated = [],[]
    def display(self, fig, display_id=None): self.shown.append([ax.get_ylabel() for ax in fig.axes]); return self
    def update(self, fig): self.updated.append(len(fig.axes[0].lines[1].get_xdata()))

@pytest.fixture
def screen(monkeypatch):
    import IPython.display
    s = Screen()
    monkeypatch.setattr(fasterai_sched.live, 'in_notebook', lambda: True)
    monkeypatch.setattr(IPython.display, 'display', s.display)
    return s

def test_a_fit_is_drawn_after_each_epoch_in_place(screen):
    learn = tiny_learner()
    for again in (1, 2):
        fit(3, learn, [ShowSparsityCallback()])
        assert screen.shown == [['sparsity (%)', 'loss', 'accuracy']]*again and screen.updated == [2, 3]*again
    assert not plt.get_fignums()

def test_predictions_amid_a_fit_are_not_drawn(screen):
    fit(3, cbs=[Spy('after_epoch', lambda l: None if l.lock.locked() else l.validate(), order=90), ShowSparsityCallback()])
    assert len(screen.shown) == 1 and screen.updated == [2, 3]

def test_in_a_terminal_it_does_nothing():
    cb,_ = fit(2, cbs=[ShowSparsityCallback()])
    assert not plt.get_fignums() and len(cb.history.query('kind == "epoch"')) == 2

def test_without_a_sparsify_callback_it_says_so_but_not_to_lr_find():
    with pytest.raises(ValueError, match='there is none in this fit'): tiny_learner().fit(1, cbs=ShowSparsityCallback())
    learn = tiny_learner(cbs=ShowSparsityCallback())
    learn.validate()
    learn.lr_find(show_plot=False, num_it=4)

def test_it_is_trusted_to_leave_weights_alone():
    seen = Spy('after_batch', lambda l: l.sparsify._zeros_stay if l.training else None)
    seen.__class__ = type('Plain', (Spy,), {'__module__':'fastai.test'})
    sure = []
    cb = SparsifyCallback(50, verbose=False)
    class Look(ShowSparsityCallback):
        def after_epoch(self): sure.append(cb._zeros_stay)
    Look.__module__ = 'fasterai_sched.live'
    tiny_learner().fit(1, cbs=[cb, Look()])
    assert sure == [True] and torch.is_grad_enabled()

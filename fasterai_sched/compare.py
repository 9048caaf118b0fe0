"""WHICH: several schedules at equal budget, and what each comes to."""

from __future__ import annotations
from contextlib import contextmanager, nullcontext
import gc
import inspect
import random
import warnings
from weakref import ref

import numpy as np
import torch
from torch import nn

from .callback import SparsifyCallback
from .options import check_whole
from .plots import as_axes, plot_runs
from .report import sparsity_report
from .schedules import agp, by_name, iterative, one_shot

__all__ = ['compare_schedules']

@contextmanager
def _seeded(seed):
    "What is random begins at `seed`, and afterwards goes on from where it was"
    states = random.getstate(),np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try: yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])

OWN = ('schedule', 'seed', 'epoch', 'sparsity', 'deviation', 'recovery') # what our tables call theirs

def _metric_of(learn, metric):
    "The metric to compare by, as fastai's table calls it; ValueError for one that is not there"
    rec,names = learn.recorder,[m.name for m in learn.metrics]
    validates = rec.valid_metrics and len(learn.dls.loaders) > 1 and len(learn.dls.valid)
    if rec.train_metrics and rec.valid_metrics: names = [f'{w}_{n}' for w in (('valid', 'train') if validates else ('train',)) for n in [*names, 'loss']]
    else: names = [*names, *(['valid_loss'] if validates else []), 'train_loss'] if validates or rec.train_metrics else ['train_loss']
    if metric is None: metric = next(n for n in names if n not in OWN)
    if metric not in names: raise ValueError(f"metric={metric!r} is not one of the learner's: choose from {names}")
    if metric in OWN: raise ValueError(f"metric={metric!r} is what this table calls something of its own: give the metric another name")
    return metric

class _Maker:
    "Makes learners, and sees to it that they are fresh and get the same data in the same order"
    def __init__(self, make_learn): self.make_learn,self.seen,self.drawn = make_learn,[],{}

    def __call__(self, seed):
        learn = self.make_learn()
        state = torch.get_rng_state().numpy().tobytes()
        if self.drawn.setdefault(state, seed) not in (seed, None):
            self.drawn[state] = None # said once
            warnings.warn(f"make_learn={self.make_learn!r} sets a seed itself, so each of its networks begins with the same weights and deviations leave that out: let it not call set_seed")
        if not hasattr(learn, 'fit') or not hasattr(learn, 'dls'): raise ValueError(f"make_learn={self.make_learn!r} gives {type(learn).__name__}: it must make a Learner")
        if not hasattr(learn, 'recorder'): raise ValueError(f"make_learn={self.make_learn!r} gives a Learner without fastai's Recorder: there is nothing to compare by")
        if any(isinstance(cb, SparsifyCallback) for cb in learn.cbs): raise ValueError(f"make_learn={self.make_learn!r} gives a Learner with a SparsifyCallback, which the dense one would have too: leave it out, or add it in fit=")
        if any(r() is learn.model for r in self.seen): raise ValueError(f"make_learn={self.make_learn!r} gives a model that it has given before: make a fresh one each time")
        self.seen.append(ref(learn.model))
        for dl in getattr(learn.dls, 'loaders', ()):
            if hasattr(dl, 'rng'): dl.rng = random.Random(seed) # whether or not the data are made anew
        return learn

def _check(learn, cbs, n_epoch, metric):
    "Try all that a fit would complain of, on a learner that is not trained; which metric it is"
    for name,cb in cbs.items():
        if problems := cb.plan(learn, n_epoch).problems: raise ValueError(f"{name}: {'; '.join(problems)}")
    return _metric_of(learn, metric)

def _fit(learn, n_epoch, cbs): learn.fit(n_epoch, cbs=cbs)

def _number(metric, v):
    try: return float(v)
    except (TypeError, ValueError) as e: raise ValueError(f"metric={metric!r} gives {v!r}, which is no number to compare by: choose another, such as metric='valid_loss'") from e

def _run(learn, cb, fit, n_epoch, metric, layer_type, verbose):
    "Train once: a row an epoch, the final sparsity, and the steps after the masks moved last"
    with nullcontext() if verbose else learn.no_bar(), nullcontext() if verbose else learn.no_logging(): fit(learn, n_epoch, [] if cb is None else [cb])
    rec = learn.recorder
    shown = [(i, dict(zip(rec.metric_names[1:], v))) for i,v in enumerate(rec.values)]
    if not any(metric in r for _,r in shown): raise RuntimeError(f"The fit with {'no schedule' if cb is None else cb.schedule.__name__} ended before its first epoch did")
    if cb is not None and cb.sparsifier is None: raise RuntimeError("fit= must give the callbacks that it gets, its third argument, to the learner's fit")
    history = None if cb is None else cb.history
    measured = {} if cb is None else {e:m for e,m in history.query('kind == "epoch"')[['epoch', 'measured']].values}
    rows = [dict(epoch=i, sparsity=measured.get(i, 0.), **{metric:_number(metric, r[metric])}) for i,r in shown if metric in r] # a cancelled epoch has none
    if cb is None: return rows,sparsity_report(learn.model, layer_type, whole=False).sparsity,None
    moves = history.query('kind == "masks"').step
    return rows,rows[-1]['sparsity'],history.step.max() - moves.max() if len(moves) else None

def compare_schedules(
    make_learn,        # A function without arguments that makes a fresh Learner, and best its data too. Called once to look, and once a run, right after the seed is set: it sets none itself
    schedules=(one_shot, iterative, agp), # What to compare: schedules or their names, or a dict of them by names of your own
    n_epoch:int=10,    # Epochs of each run
    sparsity=90,       # Target, as for `SparsifyCallback`
    *,
    n_seeds:int=3,     # Runs of each schedule, from other seeds: 0, 1, ... Each seed is the same initialization and order of data for all
    dense:bool=True,   # Train a dense network too, as long as the others
    metric:str=None,   # Compare by this metric of the learner, or 'valid_loss'; None: the first there is
    fit=_fit,          # How to train: a function of (learn, n_epoch, cbs), such as `lambda learn, n, cbs: learn.fit_one_cycle(n, 1e-3, cbs=cbs)`
    draw:bool=True,    # Draw sparsity and metric over epochs: the mean, and the deviation as a band
    ax=None,           # Two matplotlib axes to draw on; new ones if None
    progress:bool=True, # Show a bar of the runs, if they are not `verbose`
    verbose:bool=False, # Let each run show its table and print
    **kwargs           # Passed to `SparsifyCallback`: granularity, context, end_epoch ...
):                     # A DataFrame, a row a schedule: mean and deviation of the metric of the last epoch, sparsity as counted, steps left to recover after the masks moved last. `.attrs['runs']` is a list of dicts, one an epoch of each run, counted from 0: `pd.DataFrame` takes it
    """Which schedule is best for this network? Train it with each, at equal budget and from equal beginnings. Means that are apart by less than their deviations tell nothing: take more seeds.
    Raises ValueError before any training for whatever can't be done as asked"""
    import pandas as pd
    from fastprogress.fastprogress import progress_bar
    if not callable(make_learn) or hasattr(make_learn, 'fit'): raise ValueError(f"make_learn={make_learn!r} must be a function that makes a Learner: one that is trained can't begin anew")
    check_whole('n_seeds', 0 if n_seeds is None else n_seeds, 1)
    if isinstance(schedules, str) or callable(schedules): schedules = [schedules]
    named = by_name(schedules)
    if not named: raise ValueError(f"schedules={schedules!r}: there is none to compare")
    if dense and 'dense' in named: raise ValueError("'dense' is the name of the network that is not pruned: give this schedule another, or dense=False")
    for k,by in dict(schedule='schedules', sched_func='schedules', end_sparsity='sparsity', model='layers').items():
        if k in kwargs: raise ValueError(f"{k}= can't be given here, where there are several learners: give {by}=")
    for k in kwargs.keys() - inspect.signature(SparsifyCallback.__init__).parameters.keys():
        raise ValueError(f"{k}= is no argument of SparsifyCallback; how to train is told by fit=, such as fit=lambda learn, n_epoch, cbs: learn.fit(n_epoch, 1e-3, cbs=cbs)")
    if hasattr(kwargs.get('data'), '__next__'): raise ValueError("data= is an iterator, and would be used up by the first run: give a list or a DataLoader")
    if draw and ax is not None: as_axes(ax, 2)
    make = lambda name: SparsifyCallback(sparsity, schedule=named[name], verbose=verbose, **kwargs) if name in named else None
    maker = _Maker(make_learn)
    with _seeded(0): first = maker(0) # only to look at: not even looking may change how the others begin
    metric = _check(first, {n:make(n) for n in named}, n_epoch, metric)
    todo,epochs,ends = [(seed, name) for seed in range(n_seeds) for name in ([*(['dense'] if dense else []), *named])],[],[]
    for seed,name in progress_bar(todo) if progress and not verbose else todo:
        with _seeded(seed): rows,*end = _run(maker(seed), make(name), fit, n_epoch, metric, kwargs.get('layer_type', nn.Conv2d), verbose)
        epochs += [dict(schedule=name, seed=seed, **r) for r in rows]
        gc.collect() # learners refer to themselves, and would be kept
        ends.append((name, rows[-1][metric], *end))
    of = pd.DataFrame(ends, columns=['schedule', metric, 'sparsity', 'recovery']).groupby('schedule', sort=False)
    df = pd.DataFrame({metric:of[metric].mean(), 'deviation':of[metric].std(), 'sparsity':of.sparsity.mean(), 'recovery':of.recovery.mean()})
    df.attrs['runs'] = epochs
    if draw: plot_runs(dict(list(pd.DataFrame(epochs).groupby('schedule', sort=False))), metric, ax)
    return df

"""LOOK: schedule curves and a run's history, drawn with matplotlib. Each takes `ax` and returns the axes."""

from __future__ import annotations
import numpy as np

__all__ = ['plot_curves', 'plot_history', 'plot_runs']

def _axes(ax, figsize=(7,4)):
    import matplotlib.pyplot as plt
    if ax is None: ax = plt.subplots(figsize=figsize)[1]
    for side in ('top', 'right'): ax.spines[side].set_visible(False)
    ax.grid(axis='y', alpha=.3)
    return ax

def _percent_axis(ax): ax.set(ylabel='sparsity (%)', ylim=(-3, 103))

def plot_curves(
    curves:dict,      # Name -> function of the fraction of training done, 0 to 1, giving percent
    n_epoch:int=None, # Label the x-axis in epochs of such a fit; None: in fractions of training
    n_points:int=1001, # Points a curve
    ax=None,          # Matplotlib axes to draw on; new ones if None
    **kwargs          # Passed to `ax.plot`
):                    # The axes
    "Draw sparsity over training, a curve a name"
    ax = _axes(ax)
    pcts = np.linspace(0, 1, n_points)
    for name,f in curves.items(): ax.plot(pcts*(n_epoch or 1), [float(f(p)) for p in pcts.tolist()], **{'label':name, 'lw':2, **kwargs})
    ax.set_xlabel('epoch' if n_epoch else 'fraction of training')
    if n_epoch: ax.set_xticks(range(0, n_epoch + 1, max(1, n_epoch//10)))
    _percent_axis(ax)
    ax.legend(frameon=False)
    return ax

def plot_history(
    history,      # DataFrame with columns step, epoch, target, measured and kind ('masks' or 'epoch')
    ax=None,      # Matplotlib axes to draw on; new ones if None
    begin:tuple=None, # (step, target in percent) in force before the first row
    **kwargs      # Passed to `ax.plot`
):                # The axes
    "Draw a run: the target at each move of the masks, what was measured then, and at each epoch's end"
    ax = _axes(ax)
    epochs = history[history.kind == 'epoch']
    first = [] if begin is None else [begin]
    ax.plot([*(s for s,_ in first), *history.step], [*(t for _,t in first), *history.target], drawstyle='steps-post', **{'label':'target', 'lw':2, 'alpha':.6, **kwargs})
    ax.plot(epochs.step, epochs.measured, 'o', label='measured at the end of an epoch')
    for x in epochs.step: ax.axvline(x, color='grey', ls=':', lw=.8, alpha=.5)
    ax.set_xlabel('step')
    _percent_axis(ax)
    ax.legend(frameon=False)
    return ax

def plot_runs(
    runs:dict,          # Name -> DataFrame with columns epoch, sparsity (percent) and one named `metric`
    metric:str='accuracy', # The column to draw below
    axs=None            # Two matplotlib axes; new ones, one above the other, if None
):                      # The two axes
    "Compare runs: sparsity over epochs, and a metric below on the same x-axis"
    import matplotlib.pyplot as plt
    if axs is None: axs = plt.subplots(2, 1, figsize=(7,7), sharex=True)[1]
    for ax,col in zip(axs, ('sparsity', metric)):
        _axes(ax)
        for name,df in runs.items(): ax.plot(df.epoch, df[col], 'o-', ms=4, label=name)
        ax.set_ylabel(col)
    _percent_axis(axs[0])
    axs[0].legend(frameon=False)
    axs[1].set_xlabel('epoch')
    return axs

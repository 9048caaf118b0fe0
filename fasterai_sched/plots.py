"""LOOK: schedules, runs, layers and weights, drawn with matplotlib. Each takes `ax`, returns the axes, and is read on white and on black."""

from __future__ import annotations
import numpy as np

__all__ = ['as_axes', 'plot_curves', 'plot_history', 'plot_run', 'plot_runs', 'plot_layers', 'plot_weights']

# at a contrast of at least 3 with white and with a notebook's black, and apart from each other without red and green too
COLORS = ['#3d85c6', '#c2691d', '#379a4b', '#b25fbf', '#d65050', '#8a8a22', '#2a9797', '#a0785a']
GREY   = '#7a7a7a' # of text: at 4

def as_axes(
    ax,        # What was given as `ax`
    least=1,   # How many there must be,
    most=None  # and may be at most; None: any number
):             # An array of them
    "One or several as several; ValueError for anything else"
    axs = np.ravel(ax)
    if not all(hasattr(a, 'spines') for a in axs) or not least <= len(axs) <= (most or len(axs)):
        raise ValueError(f"ax={ax!r} must be {'two axes, one for the sparsity, one for the metric' if least == 2 else 'matplotlib axes'}, as plt.subplots({least if least > 1 else ''})[1] is, or None for new ones")
    return axs

def _style(ax):
    "Grey words on whatever is behind them"
    for side,spine in ax.spines.items():
        spine.set_color(GREY)
        if side in ('top', 'right'): spine.set_visible(False)
    ax.tick_params(colors=GREY)
    for text in (ax.xaxis.label, ax.yaxis.label, ax.title): text.set_color(GREY)
    return ax

def _new(n=1, figsize=(7,4), **kwargs):
    "Axes on a figure that lets through what is behind it"
    from cycler import cycler
    import matplotlib.pyplot as plt
    fig,axs = plt.subplots(n, 1, figsize=figsize, squeeze=False, layout='constrained', **kwargs)
    fig.patch.set_alpha(0)
    for ax in axs[:,0]:
        ax.patch.set_alpha(0)
        ax.set_prop_cycle(cycler(linestyle=['-', '--'])*cycler(color=COLORS))
    return axs[:,0]

def _one(ax, **kwargs):
    ax, = _new(**kwargs) if ax is None else as_axes(ax, 1, 1)
    return _style(ax)

def _axes(ax, **kwargs):
    ax = _one(ax, **kwargs)
    ax.grid(axis='y', color=GREY, alpha=.25)
    return ax

def _legend(ax, **kwargs):
    if ax.get_legend_handles_labels()[1]: ax.legend(frameon=False, labelcolor=GREY, **kwargs)

def _shown(name): return name.lstrip('_') or name # matplotlib leaves what begins with _ out of a legend, and fastai's rmse is called so

def _percent_axis(ax): ax.set(ylabel='sparsity (%)', ylim=(-3, 103))

def plot_curves(
    curves:dict,      # Name -> function of the fraction of training done, 0 to 1, giving percent
    n_epoch:int=None, # Label the x-axis in epochs of such a fit; None: in fractions of training
    n_points:int=1001, # Points a curve
    ax=None,          # Matplotlib axes to draw on; new ones if None
    **kwargs          # Passed to `ax.plot`
):                    # The axes
    "Draw sparsity over training, a curve a name"
    beside,ax = ax is None and len(curves) > 5,_axes(ax)
    pcts = np.linspace(0, 1, n_points)
    for name,f in curves.items(): ax.plot(pcts*(n_epoch or 1), [float(f(p)) for p in pcts.tolist()], **{'label':_shown(name), 'lw':2, **kwargs})
    ax.set_xlabel('epoch' if n_epoch else 'fraction of training')
    if n_epoch: ax.set_xticks(range(0, n_epoch + 1, max(1, n_epoch//10)))
    _percent_axis(ax)
    _legend(ax, **(dict(loc='center left', bbox_to_anchor=(1, .5)) if beside else {})) # of so many not on them
    return ax

def _mark_epochs(ax, steps):
    for x in steps: ax.axvline(x, color=GREY, ls=':', lw=.8, alpha=.5)

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
    _mark_epochs(ax, epochs.step)
    ax.set_xlabel('step')
    _percent_axis(ax)
    _legend(ax)
    return ax

def plot_run(
    history,      # As for `plot_history`
    losses,       # (step, training loss, smoothed) of each batch
    table,        # DataFrame of what fastai's table shows, a row an epoch, indexed by step (`valid_loss` and metrics; `train_loss` is not drawn)
    ax=None,      # Matplotlib axes to draw on, the first for the sparsity, then for losses and for metrics, fewer if some are not wanted; None: new ones, for what there is
    begin:tuple=None, # As for `plot_history`
    **kwargs      # Passed to `ax.plot` for the target
):                # The axes, as an array
    "Draw a run on one x-axis: sparsity, below it training and validation loss, below that the metrics, and where epochs end"
    metrics = [c for c in table.columns if c not in ('train_loss', 'valid_loss') and table[c].notna().any()]
    draw = [lambda ax: plot_history(history, ax, begin, **kwargs)]
    if len(losses): draw.append(lambda ax: _plot_losses(ax, losses, table))
    if metrics:     draw.append(lambda ax: _plot_columns(ax, table, metrics))
    axs = _new(len(draw), (7, 1.5 + 2*len(draw)), sharex=True) if ax is None else as_axes(ax)
    for f,ax in zip(draw, axs): f(ax)
    for ax in axs[1:]:
        _mark_epochs(_axes(ax), table.index)
        _legend(ax)
    for ax in axs[:-1]: ax.set_xlabel('')
    axs[-1].set_xlabel('step')
    return axs

def _plot_losses(ax, losses, table):
    ax.plot(*zip(*losses), label='training')
    if 'valid_loss' in table and table.valid_loss.notna().any(): ax.plot(table.index, table.valid_loss, 'o-', ms=4, label='validation')
    ax.set_ylabel('loss')

def _plot_columns(ax, table, names):
    for n in names: ax.plot(table.index, table[n], 'o-', ms=4, label=_shown(n))
    ax.set_ylabel(names[0] if len(names) == 1 else 'metrics')

def plot_runs(
    runs:dict,          # Name -> DataFrame with columns epoch (from 0), sparsity (percent) and one named `metric`; where epochs repeat, in several runs, their mean and deviation
    metric:str='accuracy', # The column to draw below
    ax=None             # Two matplotlib axes; new ones, one above the other, if None
):                      # The two axes
    "Compare runs: sparsity over epochs, and a metric below on the same x-axis"
    axs = _new(2, (7,7), sharex=True) if ax is None else as_axes(ax, 2)
    for ax,col in zip(axs, ('sparsity', metric)):
        _axes(ax)
        for name,df in runs.items():
            of = df.groupby('epoch')[col]
            mean,std = of.mean(),of.std().fillna(0)
            line, = ax.plot(mean.index + 1, mean, 'o-', ms=4, label=_shown(name))
            if std.any(): ax.fill_between(mean.index + 1, mean - std, mean + std, color=line.get_color(), alpha=.2, lw=0)
        ax.set_ylabel(col)
    _percent_axis(axs[0])
    _legend(axs[0])
    axs[1].xaxis.get_major_locator().set_params(integer=True)
    axs[1].set_xlabel('epochs done')
    return axs

def plot_layers(
    steps,    # The step from which on each column holds, and at the end the last step: one more than columns
    sparsity, # Percent: a row a layer, a column a time
    names,    # Of the layers
    ax=None,  # Matplotlib axes to draw on; new ones if None
    **kwargs  # Passed to `ax.pcolormesh`
):            # The axes
    "Draw how sparse each layer is over time, as a heat map, the first layer at the top"
    n = len(names)
    ax = _one(ax, figsize=(7, 1.5 + min(.25*n, 8)))
    mesh = ax.pcolormesh(steps, np.arange(n + 1), np.asarray(sparsity), **{'vmin':0, 'vmax':100, 'cmap':'viridis', **kwargs})
    every = -(-n//40)
    ax.set_yticks(np.arange(0, n, every) + .5, names[::every], fontsize='small')
    ax.invert_yaxis()
    ax.set_xlabel('step')
    bar = ax.figure.colorbar(mesh, ax=ax)
    _style(bar.ax)
    bar.set_label('sparsity (%)', color=GREY)
    bar.outline.set_edgecolor(GREY)
    return ax

def _numbers(x):
    "An array, a tensor, several, or a model's weights, as one row of floats; what is not finite can't be drawn"
    if hasattr(x, 'parameters'): x = [p for p in x.parameters() if p.ndim > 1]
    if isinstance(x, (list, tuple)): return np.concatenate([np.zeros(0), *map(_numbers, x)])
    x = np.asarray(x.detach().cpu().double() if hasattr(x, 'detach') else x, dtype=float).ravel()
    return x[np.isfinite(x)]

def plot_weights(
    before,      # Weights: a tensor, an array, a list of such, or a model, whose weights of two or more dimensions are meant; None: none
    after,       # The same weights later. Those that are 0 are counted in the legend, and not drawn
    bins:int=None, # Bars; None: 100, and fewer of few weights
    ax=None,     # Matplotlib axes to draw on; new ones if None
    **kwargs     # Passed to `ax.hist` for both
):               # The axes
    "Draw which weights there were, and which are left, as distributions; raises ValueError if there are none"
    now = _numbers(after)
    if not len(now): raise ValueError(f"after={type(after).__name__}: there are no weights in it that could be drawn")
    ax = _axes(ax)
    kept = now[now != 0]
    was = kept if before is None else _numbers(before)
    at = np.histogram_bin_edges(np.concatenate([was, kept]), min(100, max(10, round(len(now)**.5))) if bins is None else bins)
    if before is not None: ax.hist(was, at, **{'color':GREY, 'alpha':.5, 'label':'before', **kwargs})
    ax.hist(kept, at, **{'color':COLORS[0], 'alpha':.8, 'label':f'after, but for {100*(1 - len(kept)/max(len(now), 1)):.2f}% that are 0', **kwargs})
    ax.set(xlabel='weight', ylabel='weights')
    _legend(ax)
    return ax

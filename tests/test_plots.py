"""Plots: each returns its axes, draws on the ones it is given, and shows the numbers it got."""
import matplotlib.pyplot as plt
import pandas as pd
import pytest

import numpy as np
import torch
from matplotlib.colors import to_rgb

from fasterai_sched.plots import COLORS, GREY, plot_curves, plot_history, plot_layers, plot_run, plot_runs, plot_weights

history = pd.DataFrame([(1, 0, 30., 29.9, 'masks'), (4, 0, 60., 59.8, 'masks'), (5, 0, 60., 59.7, 'epoch'), (8, 1, 90., 89.9, 'masks'),
                        (10, 1, 90., 89.8, 'epoch')], columns=['step', 'epoch', 'target', 'measured', 'kind'])
runs    = {n: pd.DataFrame(dict(epoch=[0, 1, 2], sparsity=s, accuracy=a, valid_loss=l)) for n,s,a,l in
           [('dense', [0, 0, 0], [.5, .7, .9], [3, 2, 1]), ('agp', [30, 60, 90], [.5, .6, .8], [4, 3, 2])]}

def xy(line): return [list(map(float, d)) for d in line.get_data()]
def legend(ax): return [t.get_text() for t in ax.get_legend().get_texts()]
def heat(**kwargs): return plot_layers([0, 4, 8, 10], [[0, 30, 60], [0, 50, 90]], ['0', '3'], **kwargs)
def curves(ax=None, **kwargs): return plot_curves({'half':lambda p: 50*p, 'int':lambda p: 90}, ax=ax, **kwargs)

@pytest.mark.parametrize('draw', [curves, lambda ax=None: plot_history(history, ax=ax), lambda ax=None: heat(ax=ax), lambda ax=None: plot_weights([1., 2], [1., 0], ax=ax)])
def test_it_draws_on_the_axes_it_is_given_and_returns_them(draw):
    assert isinstance(draw(), plt.Axes)
    ax = plt.subplots()[1]
    assert draw(ax=ax) is ax and (ax.lines or ax.collections or ax.patches)
    assert len(plt.get_fignums()) == 2 # one for the first, one of our own

@pytest.mark.parametrize('draw', [curves, lambda: plot_history(history), lambda: plot_runs(runs)[0]])
def test_the_sparsity_axis_shows_all_of_0_to_100(draw):
    ax = draw()
    assert ax.get_ylabel() in ('sparsity (%)', 'sparsity')
    assert ax.get_ylim()[0] < 0 and ax.get_ylim()[1] > 100
    assert not ax.spines['top'].get_visible() and not ax.spines['right'].get_visible()

def test_a_curve_a_name_over_the_fraction_of_training():
    ax = curves(n_points=3)
    assert [(l.get_label(), xy(l)) for l in ax.lines] == [('half', [[0, .5, 1], [0, 25, 50]]), ('int', [[0, .5, 1], [90, 90, 90]])]
    assert (ax.get_xlabel(), legend(ax)) == ('fraction of training', ['half', 'int'])

def test_a_curve_over_epochs():
    ax = curves(n_epoch=4, n_points=3)
    assert xy(ax.lines[0]) == [[0, 2, 4], [0, 25, 50]]
    assert (ax.get_xlabel(), ax.get_xticks().tolist()) == ('epoch', [0, 1, 2, 3, 4])

def test_more_curves_than_colours_are_told_apart():
    ax = plot_curves({str(i):lambda p: p for i in range(2*len(COLORS))})
    assert len({(l.get_color(), l.get_linestyle()) for l in ax.lines}) == 2*len(COLORS)

def test_the_legend_of_many_curves_is_beside_them():
    def box(n):
        ax = plot_curves({str(i):lambda p: p for i in range(n)})
        ax.figure.canvas.draw()
        return ax.get_legend().get_window_extent(), ax.get_window_extent()
    for n in (5, 9):
        words,lines = box(n)
        assert (words.x0 >= lines.x1) == (n == 9)

def test_many_epochs_have_few_ticks(): assert curves(n_epoch=100).get_xticks().tolist() == list(range(0, 101, 10))

def test_a_curve_has_a_thousand_points_and_both_ends():
    x, y = xy(curves().lines[0])
    assert (len(x), x[0], x[-1], y[-1]) == (1001, 0, 1, 50)

@pytest.mark.parametrize('draw', [curves, lambda **kw: plot_history(history, **kw)])
def test_keywords_reach_the_line(draw):
    l = draw(color='red', lw=5, label='mine').lines[0]
    assert (l.get_color(), l.get_linewidth(), l.get_label()) == ('red', 5, 'mine')

def test_a_history_shows_targets_as_steps_and_what_was_measured_as_points():
    ax = plot_history(history)
    target, measured, *ends = ax.lines
    assert xy(target) == [[1, 4, 5, 8, 10], [30, 60, 60, 90, 90]] and target.get_drawstyle() == 'steps-post'
    assert xy(measured) == [[5, 10], [59.7, 89.8]] and (measured.get_marker(), measured.get_linestyle()) == ('o', 'None')
    assert [l.get_xdata()[0] for l in ends] == [5, 10]
    assert (ax.get_xlabel(), legend(ax)) == ('step', ['target', 'measured at the end of an epoch'])

def test_runs_share_their_epochs_sparsity_above_and_a_metric_below():
    above, below = plot_runs(runs)
    assert [(l.get_label(), xy(l)) for l in above.lines] == [('dense', [[1, 2, 3], [0, 0, 0]]), ('agp', [[1, 2, 3], [30, 60, 90]])]
    assert [xy(l)[1] for l in below.lines] == [[.5, .7, .9], [.5, .6, .8]]
    assert (below.get_ylabel(), below.get_xlabel(), legend(above)) == ('accuracy', 'epochs done', ['dense', 'agp'])

def test_runs_show_the_metric_asked_on_the_axes_given():
    axs = plt.subplots(1, 2)[1]
    assert list(plot_runs(runs, 'valid_loss', axs)) == list(axs)
    assert axs[1].get_ylabel() == 'valid_loss' and [xy(l)[1] for l in axs[1].lines] == [[3, 2, 1], [4, 3, 2]]

def table(**columns): return pd.DataFrame(columns, index=[5, 10])
losses = [(i, 3 - .2*i) for i in range(1, 11)]

def test_a_run_shows_sparsity_losses_and_metrics_on_one_x_axis():
    axs = plot_run(history, losses, table(train_loss=[2., 1], valid_loss=[2.5, 1.5], accuracy=[.5, .7], error=[.5, .3]))
    assert [ax.get_ylabel() for ax in axs] == ['sparsity (%)', 'loss', 'metrics'] and [ax.get_xlabel() for ax in axs] == ['', '', 'step']
    assert len({ax.get_xlim() for ax in axs}) == 1
    assert xy(axs[0].lines[0]) == xy(plot_history(history).lines[0])
    assert xy(axs[1].lines[0]) == [[float(i) for i,_ in losses], [l for _,l in losses]] and xy(axs[1].lines[1]) == [[5, 10], [2.5, 1.5]]
    assert [xy(l)[1] for l in axs[2].lines[:2]] == [[.5, .7], [.5, .3]]
    assert [legend(ax) for ax in axs] == [['target', 'measured at the end of an epoch'], ['training', 'validation'], ['accuracy', 'error']]
    for ax in axs: assert [l.get_xdata()[0] for l in ax.lines if l.get_linestyle() == ':'] == [5, 10] # where epochs end

@pytest.mark.parametrize('columns,losses,labels', [
    ({}, [], ['sparsity (%)']), (dict(valid_loss=[np.nan]*2), losses, ['sparsity (%)', 'loss']), (dict(accuracy=[.1, .2]), losses, ['sparsity (%)', 'loss', 'accuracy']),
    (dict(train_loss=[2, 1], valid_loss=[2, 1]), losses, ['sparsity (%)', 'loss'])])
def test_a_run_has_as_many_axes_as_there_is_to_draw(columns, losses, labels):
    assert [ax.get_ylabel() for ax in plot_run(history, losses, table(**columns))] == labels

def test_a_run_draws_on_the_axes_it_is_given():
    axs = plt.subplots(2)[1]
    drawn = plot_run(history, losses, table(accuracy=[.1, .2]), ax=axs)
    assert list(drawn) == list(axs) and [ax.get_ylabel() for ax in axs] == ['sparsity (%)', 'loss']
    ax = plt.subplots()[1]
    assert list(plot_run(history, losses, table(), ax=ax)) == [ax]

@pytest.mark.parametrize('ax', [3, 'left', [None, None], plt])
@pytest.mark.parametrize('draw', [curves, lambda ax: plot_history(history, ax=ax), lambda ax: heat(ax=ax), lambda ax: plot_weights([1., 2], [1., 0], ax=ax),
                                  lambda ax: plot_run(history, losses, table(), ax=ax), lambda ax: plot_runs(runs, ax=ax)])
def test_what_are_no_axes_is_told(draw, ax):
    with pytest.raises(ValueError, match=r'ax=.* as plt.subplots\(2?\)\[1\] is, or None for new ones'): draw(ax=ax)

def test_one_picture_takes_one_pair_of_axes_and_runs_take_two():
    one,two = plt.subplots()[1],plt.subplots(2)[1]
    with pytest.raises(ValueError, match='must be matplotlib axes'): curves(ax=two)
    with pytest.raises(ValueError, match='must be two axes, one for the sparsity'): plot_runs(runs, ax=one)
    assert curves(ax=two[:1]) is two[0]

def test_names_that_begin_with_an_underscore_are_in_the_legend_too():
    assert legend(plot_curves({'_mine':lambda p: 50, '_':lambda p: 90, 'lin':lambda p: 90*p})) == ['mine', 'lin']
    assert legend(plot_run(history, losses, table(_rmse=[.1, .2], mae=[.1, .2]))[2]) == ['rmse', 'mae']
    assert legend(plot_runs({f'_{n}':df for n,df in runs.items()})[0]) == ['dense', 'agp']

@pytest.mark.parametrize('nothing', [[], torch.zeros(0), torch.nn.ReLU(), [float('nan')]], ids=str)
def test_no_weights_can_not_be_drawn_and_no_axes_are_made(nothing):
    with pytest.raises(ValueError, match='there are no weights in it that could be drawn'): plot_weights(None, nothing)
    assert not plt.get_fignums()

def test_several_runs_of_a_kind_are_a_mean_and_a_band():
    axs = plot_runs({'agp':pd.DataFrame(dict(epoch=[0, 1]*2, sparsity=[30, 90]*2, accuracy=[.4, .8, .6, .8]))})
    assert xy(axs[1].lines[0]) == [[1, 2], [.5, .8]] and not axs[0].collections
    band = axs[1].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(.5 - .02**.5) and band[:, 1].max() == pytest.approx(.8)

def test_layers_by_time_first_layer_on_top():
    ax = heat()
    mesh = ax.collections[0]
    assert mesh.get_array().tolist() == [[0, 30, 60], [0, 50, 90]] and mesh.get_clim() == (0, 100)
    assert mesh.get_coordinates()[0, :, 0].tolist() == [0, 4, 8, 10]
    assert [t.get_text() for t in ax.get_yticklabels()] == ['0', '3'] and ax.yaxis_inverted() and ax.get_xlabel() == 'step'
    assert heat(cmap='magma').collections[0].get_cmap().name == 'magma'

def test_of_many_layers_some_are_named():
    ax = plot_layers([0, 1], [[0]]*100, [str(i) for i in range(100)])
    assert [t.get_text() for t in ax.get_yticklabels()][:3] == ['0', '3', '6']

def test_weights_before_and_after_zeros_counted_and_not_drawn():
    before = torch.linspace(-1, 1, 200, requires_grad=True)
    ax = plot_weights(before, torch.where(before.abs() < .5, 0, before), bins=20)
    was, now = ax.containers
    assert sum(b.get_height() for b in was) == 200 and sum(b.get_height() for b in now) == 100
    assert [b.get_x() for b in was] == [b.get_x() for b in now] and now[10].get_height() == 0
    assert legend(ax) == ['before', 'after, but for 50.00% that are 0']
    assert [len(plot_weights(None, torch.linspace(1, 2, n)).containers[0]) for n in (9, 400, 100_000)] == [10, 20, 100]

@pytest.mark.parametrize('after', [[1., 0, 2], np.array([1, 0, 2]), [torch.ones(1), torch.tensor([0, 2.]).bfloat16()], torch.zeros(3)])
def test_weights_may_be_several_and_of_any_kind(after):
    ax = plot_weights(None, after)
    assert legend(ax) == [f"after, but for {'100.00' if torch.is_tensor(after) else '33.33'}% that are 0"]

def test_a_models_weights_are_all_of_two_or_more_dimensions_and_finite():
    m = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Conv2d(1, 2, 3))
    with torch.no_grad(): m[0].weight[0, :2] = torch.tensor([float('nan'), float('inf')])
    before, after = plot_weights(m, m).containers
    assert sum(b.get_height() for b in before) == sum(b.get_height() for b in after) == 20 + 18 - 2

# -- on white and on black -------------------------------------------------------------------------------------------------------

def luminance(color):
    "Relative, by WCAG 2"
    return sum(w*(c/12.92 if c <= .04045 else ((c + .055)/1.055)**2.4) for w,c in zip((.2126, .7152, .0722), to_rgb(color)))
def contrast(a, b):
    low, high = sorted([luminance(a), luminance(b)])
    return (high + .05)/(low + .05)

@pytest.mark.parametrize('behind', ['#ffffff', '#1e1e1e', '#1e2129', '#111111'])
def test_words_and_lines_are_seen_on(behind):
    assert contrast(GREY, behind) > 3.7
    assert min(contrast(c, behind) for c in COLORS) >= 3

@pytest.mark.parametrize('draw', [curves, lambda: plot_history(history), lambda: plot_runs(runs)[0], heat, lambda: plot_weights([1., 2], [1., 0]),
                                  lambda: plot_run(history, losses, table(accuracy=[.1, .2]))[2]])
def test_new_axes_let_through_what_is_behind_and_their_words_are_grey(draw):
    ax = draw()
    assert ax.figure.patch.get_alpha() == 0 and ax.patch.get_alpha() == 0
    words = [ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels(), *(ax.get_legend().get_texts() if ax.get_legend() else [])]
    assert {to_rgb(t.get_color()) for t in words} == {to_rgb(GREY)}

@pytest.mark.parametrize('draw', [curves, heat, lambda ax: plot_history(history, ax=ax)])
def test_axes_of_ones_own_keep_their_background_and_colours(draw):
    ax = plt.subplots()[1]
    draw(ax=ax)
    assert ax.figure.patch.get_alpha() != 0
    if ax.lines: assert ax.lines[0].get_color() == 'C0' or to_rgb(ax.lines[0].get_color()) == to_rgb('C0')

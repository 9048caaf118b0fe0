"""Plots: each returns its axes, draws on the ones it is given, and shows the numbers it got."""
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from fasterai_sched.plots import plot_curves, plot_history, plot_runs

history = pd.DataFrame([(1, 0, 30., 29.9, 'masks'), (4, 0, 60., 59.8, 'masks'), (5, 0, 60., 59.7, 'epoch'), (8, 1, 90., 89.9, 'masks'),
                        (10, 1, 90., 89.8, 'epoch')], columns=['step', 'epoch', 'target', 'measured', 'kind'])
runs    = {n: pd.DataFrame(dict(epoch=[0, 1, 2], sparsity=s, accuracy=a, valid_loss=l)) for n,s,a,l in
           [('dense', [0, 0, 0], [.5, .7, .9], [3, 2, 1]), ('agp', [30, 60, 90], [.5, .6, .8], [4, 3, 2])]}

def xy(line): return [list(map(float, d)) for d in line.get_data()]
def legend(ax): return [t.get_text() for t in ax.get_legend().get_texts()]
def curves(ax=None, **kwargs): return plot_curves({'half':lambda p: 50*p, 'int':lambda p: 90}, ax=ax, **kwargs)

@pytest.mark.parametrize('draw', [curves, lambda ax=None: plot_history(history, ax=ax)])
def test_it_draws_on_the_axes_it_is_given_and_returns_them(draw):
    assert isinstance(draw(), plt.Axes)
    ax = plt.subplots()[1]
    assert draw(ax=ax) is ax and ax.lines
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
    assert [(l.get_label(), xy(l)) for l in above.lines] == [('dense', [[0, 1, 2], [0, 0, 0]]), ('agp', [[0, 1, 2], [30, 60, 90]])]
    assert [xy(l)[1] for l in below.lines] == [[.5, .7, .9], [.5, .6, .8]]
    assert (below.get_ylabel(), below.get_xlabel(), legend(above)) == ('accuracy', 'epoch', ['dense', 'agp'])

def test_runs_show_the_metric_asked_on_the_axes_given():
    axs = plt.subplots(1, 2)[1]
    assert plot_runs(runs, 'valid_loss', axs) is axs
    assert axs[1].get_ylabel() == 'valid_loss' and [xy(l)[1] for l in axs[1].lines] == [[3, 2, 1], [4, 3, 2]]

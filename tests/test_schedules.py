"""Schedules: what each is worth at every epoch, what `as_schedule` takes, what `check_schedule` refuses."""
import math
from dataclasses import FrozenInstanceError
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fastai.callback.schedule import SchedCos, SchedExp, SchedLin, SchedPoly, combine_scheds, sched_cos, sched_exp, sched_lin, sched_no
from hypothesis import given, strategies as st

from fasterai_sched.schedules import (Schedule, ac_dc, agp, as_schedule, available_schedules, check_schedule, cos, cyclic, dsd, is_absolute, iterative,
    lin, one_cycle, one_shot, plot_schedules, sched_agp, sched_cos as our_cos, sched_acdc, sched_cyclic, sched_dsd, sched_iterative, sched_lin as our_lin,
    sched_onecycle, sched_oneshot, schedules, windowed)

falling  = 'dsd','cyclic','ac_dc' # somewhere
rising   = [n for n in schedules if n not in falling]
percents = st.floats(0, 100, allow_subnormal=False)
fracs    = st.floats(0, 1)

def epochs(s, start=0, end=90, n=10): return [s(start, end, (e+1)/n) for e in range(n)]
def cube(s, e, p): return s + (e-s)*p**3

# -- values ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('schedule,expected', [
    (one_shot,                      [0, 0, 0, 0, 90, 90, 90, 90, 90, 90]),
    (iterative,                     [0, 0, 30, 30, 60, 60, 60, 90, 90, 90]),
    (agp,                           [0, 0, 29.71, 52.03, 68.03, 78.75, 85.25, 88.59, 89.82, 90]),
    (partial(iterative, n_steps=5), [0, 0, 18, 36, 36, 54, 72, 72, 90, 90]),
    (lin,                           [9, 18, 27, 36, 45, 54, 63, 72, 81, 90]),
    (cos,                           [2.20, 8.59, 18.55, 31.09, 45, 58.91, 71.45, 81.41, 87.80, 90]),
    (dsd,                           [8.59, 31.09, 58.91, 81.41, 90, 81.41, 58.91, 31.09, 8.59, 0]),
    (cyclic,                        [0, 0, 68.03, 88.59, 29.71, 78.75, 89.82, 52.03, 85.25, 90]),
    (partial(cyclic, n_cycles=2),   [0, 0, 52.03, 78.75, 88.59, 90, 52.03, 78.75, 88.59, 90]),
    (partial(ac_dc, n_cycles=2),    [0, 0, 90, 90, 0, 0, 0, 90, 90, 90]),
    (ac_dc,                         [0, 0, 90, 0, 0, 90, 0, 0, 90, 90]),
    (one_cycle,                     [0.90, 3.53, 12.77, 36.13, 65.82, 82.54, 88.06, 89.54, 89.91, 90])])
def test_ten_epochs_to_ninety_percent(schedule, expected):
    assert epochs(as_schedule(schedule)) == pytest.approx(expected, abs=.0051)

@pytest.mark.parametrize('f,args,expected', [
    (sched_oneshot,   (0, 90, 0),    90),
    (sched_iterative, (0, 90, 0),    0),
    (sched_iterative, (0, 90, .01),  30),
    (sched_iterative, (0, 90, 1/3),  30),
    (sched_iterative, (0, 90, .34),  60),
    (sched_iterative, (30, 90, 1/3), 50),
    (sched_iterative, (0, 80, 1),    80),
    (sched_agp,       (0, 80, 0),    0),
    (sched_agp,       (0, 80, .5),   70),          # 80*(1 - 1/8)
    (sched_agp,       (20, 100, .5), 90),          # 100 - 80/8
    (sched_onecycle,  (0, 100, 0),   0.24734526),  # 100*(1+exp(-8))/(1+exp(6))
    (sched_onecycle,  (0, 100, 3/7), 50.01677313), # 100*(1+exp(-8))/2
    (sched_onecycle,  (0, 100, 1),   100),
    (our_cos,   (10, 90, .5),  50),
    (our_cos,   (0, 100, 1/3), 25),
    (our_lin,   (20, 60, .25), 30),
    (sched_dsd,       (0, 100, .25), 50),
    (sched_dsd,       (10, 90, .5),  90),
    (sched_dsd,       (10, 90, 1),   10),
    (sched_cyclic,    (10, 90, 0),   10),
    (sched_cyclic,    (10, 90, 1/3), 90),
    (sched_cyclic,    (10, 90, .5),  80),
    (sched_cyclic,    (10, 90, 2/3), 90),
    (sched_acdc,      (10, 90, 0),   10),
    (sched_acdc,      (10, 90, .1),  90),
    (sched_acdc,      (10, 90, .2),  90),
    (sched_acdc,      (10, 90, .21), 10),
    (sched_acdc,      (10, 90, .4),  10),
    (sched_acdc,      (10, 90, .41), 90)])
def test_the_functions_give_these_values(f, args, expected): assert f(*args) == pytest.approx(expected, abs=1e-8)

def test_agp_is_the_papers_formula():
    for p in np.linspace(0, 1, 11): assert sched_agp(5., 80., p) == pytest.approx(80 + (5-80)*(1-p)**3, abs=1e-12)

def test_agp_on_a_thousandth_of_the_fit_is_the_cubic():
    for i in range(1, 1001):
        x = max((i/1000 - .2)/.8, 0)
        assert agp(0, 90, i/1000) == pytest.approx(90*(1 - (1-x)**3), abs=1e-9)

@pytest.mark.parametrize('ours,theirs', [(our_cos, sched_cos), (our_lin, sched_lin), (cos, sched_cos), (lin, sched_lin)])
@given(start=percents, end=percents, pos=fracs)
def test_cos_and_lin_are_fastais(ours, theirs, start, end, pos):
    assert ours(start, end, pos) == pytest.approx(theirs(start, end, pos), abs=1e-12)

# -- both ends -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('n', [1, 3, 10, 1000])
@pytest.mark.parametrize('target', [90, 33.3, 100, .1])
@pytest.mark.parametrize('start', [0, 10, .3])
@pytest.mark.parametrize('name', list(schedules))
def test_the_last_batch_has_the_end_value_exactly(name, start, target, n):
    last = [schedules[name](start, target, (i+1)/n) for i in range(n)][-1]
    assert last == (start if name == 'dsd' else target)

@pytest.mark.parametrize('name', list(schedules))
@given(start=percents, end=percents)
def test_the_end_value_is_reached_exactly_from_any_start(name, start, end):
    assert schedules[name](start, end, 1.) == (start if name == 'dsd' else end)

@pytest.mark.parametrize('name', rising)
@given(start=percents, end=percents, a=fracs, b=fracs)
def test_a_rising_schedule_never_falls_and_stays_between_its_ends(name, start, end, a, b):
    (start, end), (a, b) = sorted((start, end)), sorted((a, b))
    va, vb = schedules[name](start, end, a), schedules[name](start, end, b)
    assert start - 1e-9 <= va <= vb + 1e-9 <= end + 2e-9

@given(a=fracs, b=fracs)
def test_dsd_rises_to_the_middle_and_falls_from_there(a, b):
    a, b = sorted((a/2, b/2))
    assert dsd(0, 90, a) <= dsd(0, 90, b) + 1e-9
    assert dsd(0, 90, 1-a) <= dsd(0, 90, 1-b) + 1e-9

@given(n_cycles=st.integers(1, 9), pct=fracs, start=percents, end=percents)
def test_cycles_are_agp_again_and_again_and_phases_are_two_in_turn(n_cycles, pct, start, end):
    s = partial(sched_cyclic, n_cycles=n_cycles)
    for i in range(n_cycles):
        assert s(start, end, (i + 1)/n_cycles) == end
        if 1e-6 < pct < 1 - 1e-6: assert s(start, end, (i + pct)/n_cycles) == pytest.approx(sched_agp(start, end, pct), abs=1e-6)
    parts = 2*n_cycles - 1
    for i in range(parts):
        for p in (pct, 1.) if 1e-6 < pct else (1.,): assert sched_acdc(start, end, (i + p)/parts, n_cycles=n_cycles) == (start if i % 2 else end)

@pytest.mark.parametrize('f', [sched_cyclic, sched_acdc])
@pytest.mark.parametrize('n', [0, 1.5, -1])
def test_a_number_of_cycles_that_is_none_is_refused(f, n):
    with pytest.raises(ValueError, match=f'n_cycles must be a whole number of at least 1, got {n}'): f(0, 90, .5, n_cycles=n)

@pytest.mark.parametrize('name', list(schedules))
def test_every_built_in_passes_its_own_check(name): assert check_schedule(schedules[name], 0, 90) is None

@given(n_steps=st.integers(1, 50), pct=fracs)
def test_iterative_takes_as_many_equal_steps_as_asked(n_steps, pct):
    s = as_schedule(partial(iterative, n_steps=n_steps))
    due = s(0, 100, pct)*n_steps/100
    assert due == pytest.approx(round(due), abs=1e-9)
    assert len({s(0, 100, i/1000) for i in range(1001)}) == n_steps + 1

def test_iterative_does_not_jump_a_step_early_where_binary_fractions_round_up():
    assert math.ceil((.8 - .2)/.8*4) == 4 # this is the trap
    assert as_schedule(partial(iterative, n_steps=4))(0, 80, .8) == 60
    assert as_schedule(partial(iterative, n_steps=4))(0, 80, .801) == 80

# -- Schedule --------------------------------------------------------------------------------------------------------------------

def test_one_shot_gives_back_the_int_it_was_given():
    assert type(one_shot(0, 90, 1.)) is int and type(one_shot(0, 90, .5)) is int
    assert type(one_shot(0, 90., 1.)) is float

@pytest.mark.parametrize('name', rising)
def test_progress_goes_to_one(name):
    s = schedules[name]
    assert s.progress(1.) == 1.
    assert s.progress(.7) == pytest.approx(s(0, 90, .7)/90)

def test_progress_of_agp(): assert agp.progress(.6) == pytest.approx(.875)

def test_the_window_takes_in_its_start():
    assert one_shot(0, 90, .5) == 90
    assert one_shot(0, 90, math.nextafter(.5, 0)) == 0
    assert Schedule(sched_oneshot)(0, 90, 0) == 90

def test_the_position_counts_from_the_windows_start_to_its_end():
    s = Schedule(our_lin, .2, .6)
    assert [s(10, 90, p) for p in (0, .1, .2, .3, .4, .6, .8, 1)] == pytest.approx([10, 10, 10, 30, 50, 90, 90, 90])
    assert s(10, 90, .6) == s(10, 90, 1.) == 90

def test_start_val_and_end_val_cut_out_a_part_of_the_way():
    s = Schedule(our_lin, .5, 1., start_val=.25, end_val=.75)
    assert [s(0, 80, p) for p in (0, .49, .5, .75, 1)] == [20, 20, 20, 40, 60]
    assert [s(20, 60, p) for p in (0, 1)] == [30, 50]

def test_keywords_reach_the_function():
    assert iterative(0, 90, .3, n_steps=5) == 18
    assert one_cycle(0, 100, 0, α=10, β=5) == pytest.approx(100*(1 + math.exp(-5))/(1 + math.exp(5)))

@pytest.mark.parametrize('field', ['sched_func', 'start_pct', 'end_pct', 'start_val', 'end_val'])
def test_a_schedule_is_frozen(field):
    with pytest.raises(FrozenInstanceError): setattr(agp, field, .5)

def test_a_schedule_has_no_state(): assert [agp(0, 90, p) for p in (.9, .3, .9, .3)] == [agp(0, 90, .9), agp(0, 90, .3)]*2

@pytest.mark.parametrize('window', [(-.1, 1), (0, 1.1), (.5, .5), (.6, .4), (math.nan, 1), (0, math.nan)])
def test_a_window_outside_training_is_refused(window):
    with pytest.raises(ValueError, match=r'0 <= start_pct < end_pct <= 1, got start_pct=.*, end_pct='): Schedule(sched_agp, *window)

@pytest.mark.parametrize('f', [None, 90, 'agp'])
def test_a_schedule_of_what_is_no_function_is_refused(f):
    with pytest.raises(ValueError, match=f'sched_func must be a function of .start, end, pos., got {f!r}'): Schedule(f)

def test_available_schedules_are_the_registrys():
    assert available_schedules() == list(schedules) == ['one_shot', 'iterative', 'agp', 'one_cycle', 'cos', 'lin', 'dsd', 'cyclic', 'ac_dc']

@pytest.mark.parametrize('name', list(schedules))
def test_a_built_in_is_called_by_its_name(name): assert schedules[name].__name__ == name

# -- as_schedule -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', list(schedules))
def test_a_schedule_and_its_name_are_the_same(name): assert as_schedule(name) is as_schedule(schedules[name]) is schedules[name]

@pytest.mark.parametrize('f,start,end,half', [
    (sched_lin, 0, 90, 45), (sched_cos, 0, 90, 45), (sched_exp, 1, 81, 9), (sched_no, 40, 90, 40),
    (lambda start, end, pos: start + (end-start)*pos**2, 10, 90, 30),
    (lambda start, end, pos, power=3: start + (end-start)*pos**power, 0, 80, 10),
    (lambda start=0, end=1, pos=0: end*pos, 0, 90, 45),
    (lambda *args: args[1]*args[2], 0, 90, 45),
    (cube, 0, 80, 10), (partial(sched_agp), 0, 80, 70), (partial(sched_iterative, n_steps=2), 0, 80, 40)])
def test_a_function_of_start_end_and_position_is_a_schedule(f, start, end, half):
    s = as_schedule(f)
    assert isinstance(s, Schedule) and not is_absolute(s)
    assert (s.start_pct, s.end_pct) == (0, 1)
    assert s(start, end, .5) == pytest.approx(half)
    assert s(start, end, .5) == f(start, end, .5)

@pytest.mark.parametrize('f,half', [
    (SchedCos(0, 90), 45), (SchedLin(0, 80), 40), (SchedExp(1, 81), 9), (SchedPoly(0, 80, 2), 20),
    (combine_scheds([.5, .5], [SchedCos(0, 60), SchedLin(60, 90)]), 60),
    (lambda pos: 90*pos, 45), (lambda pos, power=2: 80*pos**power, 20), (partial(sched_agp, 0, 80), 70)])
def test_a_function_of_the_position_is_a_schedule_of_percentages(f, half):
    s = as_schedule(f)
    assert is_absolute(s)
    assert s(0, 7, .5) == s(3, 100, .5) == pytest.approx(half) # whatever start and end are

def test_a_partial_of_a_schedule_keeps_its_window():
    s = as_schedule(partial(iterative, n_steps=5))
    assert (s.start_pct, s.end_pct, s.__name__) == (.2, 1, 'iterative(n_steps=5)')
    assert iterative.sched_func is sched_iterative
    assert as_schedule(partial(Schedule(sched_iterative, .5, .6), n_steps=2))(0, 90, .55) == 45

def test_a_partial_of_a_partial_is_a_schedule():
    assert epochs(as_schedule(partial(partial(iterative, n_steps=2), n_steps=5))) == epochs(as_schedule(partial(iterative, n_steps=5)))

@pytest.mark.parametrize('f', ['agpp', '', None, 3, .5, [agp], lambda: 0, lambda a, b: a, lambda s, e, p, *, k: s, partial(iterative, 0)])
def test_what_is_no_schedule_is_refused_with_the_choices(f):
    with pytest.raises(ValueError, match=r'is not a schedule\. Choose from .*agp.*function of \(start, end, pos\)'): as_schedule(f)

@pytest.mark.parametrize('f,name', [
    (agp, 'agp'), (sched_agp, 'agp'), (Schedule(sched_agp, .5), 'agp'), (sched_cos, 'sched_cos'), (cube, 'cube'),
    (lambda s, e, p: s, '<lambda>'), (partial(iterative, n_steps=5), 'iterative(n_steps=5)'), (partial(sched_agp, 0, 90), 'agp(0, 90)')])
def test_a_schedule_has_a_name(f, name): assert as_schedule(f).__name__ == name

# -- windowed --------------------------------------------------------------------------------------------------------------------

def test_a_moved_start_is_just_after():
    s = windowed(one_shot, 3/10)
    assert s(0, 90, .3) == s(0, 90, (2*7 + 7)/(10*7)) == 0
    assert s(0, 90, math.nextafter(.3, 1)) == s(0, 90, .30001) == 90

@pytest.mark.parametrize('n_iter', [1, 3, 7, 30, 937])
@pytest.mark.parametrize('n_epoch', [1, 3, 7, 10, 49])
def test_the_epochs_before_the_window_are_dense_to_their_last_batch(n_epoch, n_iter):
    for first in range(n_epoch):
        s, at = windowed(one_shot, first/n_epoch), lambda e, i: (e*n_iter + i + 1)/(n_epoch*n_iter)
        assert s(0, 90, at(first, 0)) == 90
        if first: assert s(0, 90, at(first - 1, n_iter - 1)) == 0

@pytest.mark.parametrize('name', list(schedules))
@pytest.mark.parametrize('n_iter', [1, 3, 937])
def test_a_moved_end_is_reached_exactly_on_the_last_batch_before_it(name, n_iter):
    for end in range(4, 11):
        s = windowed(schedules[name], 3/10, end/10)
        expected = 0 if name == 'dsd' else 90
        assert s(0, 90, ((end-1)*n_iter + n_iter)/(10*n_iter)) == expected
        assert s(0, 90, 1.) == expected

def test_a_moved_end_alone_leaves_the_start():
    s = windowed(agp, end=.8)
    assert (s.start_pct, s.end_pct) == (.2, .8)
    assert s(0, 80, .5) == pytest.approx(70)

def test_an_unmoved_schedule_is_itself(): assert windowed(agp) is agp

def test_a_window_that_is_empty_is_refused():
    with pytest.raises(ValueError, match='start_pct < end_pct'): windowed(agp, .8, .8)

# -- check_schedule --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('f,start,end,message', [
    (sched_exp,                      0, 90, r'schedule=sched_exp fails at 0 of training, from 0% to 90%: ZeroDiv.*start_sparsity=1'),
    (sched_no,                       0, 90, r'schedule=sched_no never leaves 0 on its way to 90%; .*start_sparsity=1'),
    (lambda s, e, p: 2*e*p,          0, 90, r'schedule=<lambda> gives 100\.\d*% at 0\.\d* of training; .*0 to 100'),
    (lambda s, e, p: e*(1.1*p - .1), 0, 90, r'schedule=<lambda> gives -9% at 0 of training; .*0 to 100'),
    (lambda s, e, p: math.nan,       0, 90, r'schedule=<lambda> gives nan% at 0 of training; .*0 to 100'),
    (lambda s, e, p: math.inf,       0, 90, r'schedule=<lambda> gives inf% at 0 of training'),
    (lambda s, e, p: None,           0, 90, r'schedule=<lambda> fails at 0 of training.*TypeError'),
    (SchedCos(0, 80),                0, 90, r'sparsity=90 but schedule=sched_cos ends at 80%.*give sparsity=80, or a function of'),
    (SchedPoly(0, 100, 2),           0, 90, r'sparsity=90 but schedule=SchedPoly ends at 100%.*give sparsity=100'),
    (partial(agp, n_steps=5),        0, 90, r"schedule=agp\(n_steps=5\) fails at 0\.2 of training.*unexpected keyword argument 'n_steps'"),
    (partial(iterative, n_steps=0),  0, 90, r'schedule=iterative\(n_steps=0\) fails.*n_steps must be a whole number of at least 1, got 0'),
    (partial(iterative, n_steps=1.5), 5, 90, r'n_steps must be a whole number of at least 1, got 1\.5')])
def test_a_schedule_that_cannot_work_is_refused(f, start, end, message):
    with pytest.raises(ValueError, match=message): check_schedule(as_schedule(f), start, end)

@pytest.mark.parametrize('f', [partial(agp, n_steps=5), partial(iterative, n_steps=0), lambda s, e, p: None])
def test_a_higher_start_is_not_advised_where_it_would_not_help(f):
    with pytest.raises(ValueError) as e: check_schedule(as_schedule(f), 0, 90)
    assert 'start_sparsity' not in str(e.value)

@pytest.mark.parametrize('f,start,end', [
    (agp, 0, 100), (sched_exp, 1, 90), (sched_no, 40, 40), (sched_no, 0, 0), (sched_lin, 90, 10), (SchedCos(0, 90), 0, 90),
    (SchedPoly(0, 90, 2), 0, 90), (combine_scheds([.3, .7], [SchedCos(0, 60), SchedLin(60, 90)]), 0, 90),
    (combine_scheds([.2, .5, .3], [SchedLin(0, 9), SchedCos(9, 5), SchedLin(5, 50)]), 0, 50)])
def test_a_schedule_that_works_is_let_through(f, start, end): assert check_schedule(as_schedule(f), start, end) is None

@pytest.mark.parametrize('n_steps', [0, -1, 2.5])
def test_sched_iterative_refuses_what_is_no_number_of_steps(n_steps):
    with pytest.raises(ValueError, match=f'n_steps must be a whole number .* 1, got {n_steps}'): sched_iterative(0, 90, .5, n_steps)

# -- plots -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', list(schedules))
def test_plot_draws_the_schedule_and_returns_the_axes(name):
    ax = schedules[name].plot(90)
    assert isinstance(ax, plt.Axes)
    (line,) = ax.lines
    assert line.get_label() == name
    x, y = line.get_data()
    assert (x[0], x[-1]) == (0, 1)
    assert y.tolist() == pytest.approx([schedules[name](0., 90, p) for p in x.tolist()])

def test_plot_draws_on_the_axes_it_is_given():
    ax = plt.subplots()[1]
    assert agp.plot(ax=ax, color='red') is ax
    assert ax.lines[0].get_color() == 'red'
    assert ax.lines[0].get_ydata()[-1] == 100

def test_plot_schedules_draws_the_seeds_last_figure():
    ax = plot_schedules(start_epoch=3)
    assert [l.get_label() for l in ax.lines] == ['one_shot', 'iterative', 'agp']
    assert (ax.get_xlabel(), ax.get_ylabel()) == ('epoch', 'sparsity (%)')
    one, three, cubic = (dict(zip(l.get_xdata().round(2).tolist(), l.get_ydata().tolist())) for l in ax.lines)
    for curve in (one, three, cubic):
        assert len(curve) == 1001
        assert {v for x,v in curve.items() if x <= 3} == {0}
        assert curve[10] == 90
    assert {v for x,v in one.items() if x > 3} == {90}
    # seven epochs in three steps: jumps after 3, 3+7/3 and 3+14/3
    assert [three[x] for x in (3.01, 5.33, 5.34, 7.66, 7.67)] == pytest.approx([30, 30, 60, 60, 90])
    # 90*(1 - (1 - (x-3)/7)**3)
    assert [cubic[x] for x in (4, 6.5, 9)] == pytest.approx([33.3236, 78.75, 89.7376], abs=1e-4)

def test_plot_schedules_draws_any_schedule_in_any_window():
    ax = plot_schedules('lin', SchedCos(0, 80), sparsity=80, n_epoch=4, start_epoch=1, end_epoch=3)
    for l in ax.lines: assert np.interp([1, 2, 3, 4], *l.get_data()) == pytest.approx([0, 40, 80, 80])

def test_plot_schedules_leaves_the_windows_alone_when_asked():
    assert np.interp([4.9, 5.01], *plot_schedules(one_shot, start_epoch=None).lines[0].get_data()) == pytest.approx([0, 90])

def test_plot_schedules_takes_names_of_ones_own():
    ax = plot_schedules({'mine':lambda s, e, p: e*p, 'as published':'agp'})
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['mine', 'as published'] and ax.lines[0].get_ydata()[[0, 500, -1]] == pytest.approx([0, 45, 90])
    assert [l.get_label() for l in plot_schedules(agp, {'mine':lambda s, e, p: e*p}).lines] == ['mine', 'agp'] and not plot_schedules({}).lines
    with pytest.raises(ValueError, match='did you mean sparsity=90'): plot_schedules(agp, sparsity=.9)

def test_plot_schedules_starts_where_it_is_told():
    assert plot_schedules(lin, start_sparsity=50, start_epoch=0).lines[0].get_ydata()[[0, 500, -1]] == pytest.approx([50, 70, 90])

@pytest.mark.parametrize('scheds', [
    (lambda s, e, p: e*p, lambda s, e, p: e*p*p), (agp, Schedule(sched_agp, .5)), (SchedCos(0, 90), SchedLin(0, 90))])
def test_plot_schedules_draws_a_curve_a_schedule_even_where_names_are_the_same(scheds):
    ax = plot_schedules(*scheds, start_epoch=None)
    assert len(ax.lines) == len(ax.get_legend().get_texts()) == 2
    assert not np.allclose(ax.lines[0].get_ydata(), ax.lines[1].get_ydata())

def test_plot_schedules_refuses_what_a_fit_would():
    with pytest.raises(ValueError, match='schedule=sched_no never leaves 0'): plot_schedules(sched_no)
    with pytest.raises(ValueError, match='is not a schedule'): plot_schedules('agpp')

def test_a_list_of_schedules_is_drawn_like_its_members():
    from fasterai_sched import plot_schedules
    labels = lambda ax: [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels(plot_schedules([agp, cos])) == labels(plot_schedules(agp, cos)) == ['agp', 'cos']

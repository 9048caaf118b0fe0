"""WHEN: the fraction of training done -> the sparsity due. Pure functions of position, and a frozen `Schedule` around them."""

from __future__ import annotations
import inspect, math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

__all__ = ['Schedule', 'sched_oneshot', 'sched_iterative', 'sched_agp', 'sched_onecycle', 'sched_dsd', 'sched_cyclic', 'sched_acdc',
           'one_shot', 'iterative', 'agp', 'one_cycle', 'cos', 'lin', 'dsd', 'cyclic', 'ac_dc', 'schedules', 'available_schedules',
           'as_schedule', 'windowed', 'plot_schedules']

def _between(start, end, p):
    "The value a fraction `p` of the way from `start` to `end`; exactly `end` at 1, where `start + (end-start)` may be one bit off"
    return float(end) if p == 1 else start + p*(end - start)

def sched_oneshot(
    start:float, # Sparsity before, in percent
    end:float,   # Sparsity after, in percent
    pos:float    # Position in the window, 0 to 1
) -> float:      # Sparsity at `pos`, in percent
    "All at once: `end`, from the window's start on"
    return end

def sched_iterative(
    start:float,  # Sparsity before, in percent
    end:float,    # Sparsity after, in percent
    pos:float,    # Position in the window, 0 to 1
    n_steps:int=3 # Number of equal jumps, at least 1
) -> float:       # Sparsity at `pos`, in percent
    "`n_steps` equal jumps: prune, fine-tune, repeat (Han et al. 2015)"
    if n_steps < 1 or n_steps != int(n_steps): raise ValueError(f"n_steps must be a whole number of at least 1, got {n_steps!r}")
    # 1e-9: in binary 0.75*4 may come out as 3.0000000000000004, which is still the third step and not the fourth
    return _between(start, end, min(max(math.ceil(pos*n_steps - 1e-9), 0), n_steps)/n_steps)

def sched_agp(
    start:float, # Sparsity before, in percent
    end:float,   # Sparsity after, in percent
    pos:float    # Position in the window, 0 to 1
) -> float:      # Sparsity at `pos`, in percent
    "Automated gradual pruning: `end + (start-end)*(1-pos)**3` (Zhu and Gupta 2017, equation 1)"
    return _between(start, end, 1 - (1-pos)**3)

def sched_onecycle(
    start:float,   # Sparsity before, in percent
    end:float,     # Sparsity after, in percent
    pos:float,     # Position in the window, 0 to 1
    α:float=14,    # Steepness of the logistic curve
    β:float=6      # Its offset: the larger, the later it rises
) -> float:        # Sparsity at `pos`, in percent
    "One-cycle pruning: a logistic curve, `start + (end-start)*(1+exp(β-α))/(1+exp(β-α*pos))` (Hubens et al. 2021, equation 3)"
    return _between(start, end, (1 + math.exp(β-α))/(1 + math.exp(β-α*pos)))

def sched_cos(start, end, pos):
    "Half a cosine from `start` to `end`, as fastai's"
    return _between(start, end, (1 - math.cos(math.pi*pos))/2)

def sched_lin(start, end, pos):
    "A straight line from `start` to `end`, as fastai's"
    return _between(start, end, pos)

def sched_dsd(
    start:float, # Sparsity before and after, in percent
    end:float,   # Sparsity half-way, in percent
    pos:float    # Position in the window, 0 to 1
) -> float:      # Sparsity at `pos`, in percent
    "Dense-sparse-dense: up to `end` by half a cosine, and back to `start` by another (after Han et al. 2017)"
    return _between(start, end, (1 - math.cos(2*math.pi*pos))/2)

def _phase(pos, n):
    "Which of `n` equal parts of the window `pos` is in, from 1, and how far: a boundary ends the part before it, and 0 is before the first"
    i = min(max(math.ceil(pos*n - 1e-9), 0), n)
    return i,1. if abs(pos*n - i) <= 1e-9 else pos*n - i + 1

def sched_cyclic(
    start:float,   # Sparsity before, in percent
    end:float,     # Sparsity after each cycle, in percent
    pos:float,     # Position in the window, 0 to 1
    n_cycles:int=3 # Number of equal cycles, at least 1
) -> float:        # Sparsity at `pos`, in percent
    "Cyclical pruning: automated gradual pruning again and again, each time from `start` (Srinivas et al. 2022)"
    if n_cycles < 1 or n_cycles != int(n_cycles): raise ValueError(f"n_cycles must be a whole number of at least 1, got {n_cycles!r}")
    i,part = _phase(pos, n_cycles)
    return sched_agp(start, end, part) if i else start

def sched_acdc(
    start:float,   # Sparsity before and in the dense phases, in percent
    end:float,     # Sparsity in the sparse phases and after, in percent
    pos:float,     # Position in the window, 0 to 1
    n_cycles:int=3 # Number of sparse phases, at least 1; between two of them lies a dense one, and all take equally long
) -> float:        # Sparsity at `pos`, in percent
    "AC/DC: phases at `end` and phases at `start` in turn, the first and the last at `end` (Peste et al. 2021)"
    if n_cycles < 1 or n_cycles != int(n_cycles): raise ValueError(f"n_cycles must be a whole number of at least 1, got {n_cycles!r}")
    return end if _phase(pos, 2*n_cycles - 1)[0] % 2 else start

@dataclass(frozen=True)
class Schedule:
    "A schedule function and the window of training in which it runs; `schedule(start, end, pct)` is the sparsity due at `pct`"
    sched_func:Callable  # `f(start, end, pos)` with `pos` in 0..1 over the window, such as fastai's `sched_cos`
    start_pct:float=0.   # Where the window starts, as a fraction of training
    end_pct:float=1.     # Where it ends
    start_val:float=0.   # Where the function starts, as a fraction of the way from `start` to `end`
    end_val:float=1.     # Where it ends

    def __post_init__(self):
        if not callable(self.sched_func): raise ValueError(f"sched_func must be a function of (start, end, pos), got {self.sched_func!r}")
        if not 0 <= self.start_pct < self.end_pct <= 1:
            raise ValueError(f"A Schedule needs 0 <= start_pct < end_pct <= 1, got start_pct={self.start_pct!r}, end_pct={self.end_pct!r}")

    @property
    def __name__(self): return _name(self.sched_func)

    def __call__(self,
        start:float, # Sparsity at the start, in percent
        end:float,   # Target sparsity, in percent
        pct:float,   # Fraction of training done, 0 to 1
        **kwargs     # Passed to `sched_func`
    ) -> float:      # Sparsity due at `pct`, in percent
        "The sparsity due when a fraction `pct` of training is done"
        # start and end go through as they are where they can: one_shot gives back the very 90 it was given
        a = start if self.start_val == 0 else _between(start, end, self.start_val)
        b = end   if self.end_val   == 1 else _between(start, end, self.end_val)
        if pct < self.start_pct: return a
        return self.sched_func(a, b, min((pct - self.start_pct)/(self.end_pct - self.start_pct), 1.), **kwargs)

    def progress(self,
        pct:float # Fraction of training done, 0 to 1
    ) -> float:   # 0 at the start, 1 at the target
        "The fraction of the way to the target at `pct`"
        return self(0., 1., pct)

    def plot(self,
        target:float=100., # Target sparsity, in percent
        ax=None,           # Matplotlib axes to draw on; new ones if None
        **kwargs           # Passed to `ax.plot`
    ):                     # The axes
        "Draw the sparsity due over training"
        from .plots import plot_curves
        return plot_curves({self.__name__: lambda pct: self(0., target, pct)}, ax=ax, **kwargs)

one_shot  = Schedule(sched_oneshot,   start_pct=0.5)
iterative = Schedule(sched_iterative, start_pct=0.2)
agp       = Schedule(sched_agp,       start_pct=0.2)
one_cycle = Schedule(sched_onecycle)
cos       = Schedule(sched_cos)
lin       = Schedule(sched_lin)
dsd       = Schedule(sched_dsd)
cyclic    = Schedule(sched_cyclic,    start_pct=0.2)
ac_dc     = Schedule(sched_acdc,      start_pct=0.2)

# Every built-in by name. Users may add their own; docs and tests read it.
schedules = dict(one_shot=one_shot, iterative=iterative, agp=agp, one_cycle=one_cycle, cos=cos, lin=lin, dsd=dsd, cyclic=cyclic, ac_dc=ac_dc)

def available_schedules() -> list[str]:
    "The names of the schedules there are"
    return list(schedules)

def _name(f):
    "What to call `f` in a message or a legend"
    if isinstance(f, partial): return f"{_name(f.func)}({', '.join([*map(repr, f.args), *(f'{k}={v!r}' for k,v in f.keywords.items())])})"
    for n,s in schedules.items():
        if f is s or f is s.sched_func: return n
    if getattr(f, '__module__', '').startswith('fastai.'): # an annealer is an object around a function, or a function inside another
        if callable(getattr(f, 'f', None)): return _name(f.f)
        if '.<locals>.' in getattr(f, '__qualname__', ''): return f.__qualname__.split('.')[0]
    return getattr(f, '__name__', type(f).__name__).lstrip('_')

class _Absolute:
    "A one-argument annealer as `f(start, end, pos)`: its values are percentages already"
    def __init__(self, f): self.f = f
    @property
    def __name__(self): return _name(self.f)
    def __call__(self, start, end, pos): return self.f(pos)

def _n_args(f):
    "1 for an annealer `f(pos)`, 3 for a schedule function `f(start, end, pos)`, None for neither"
    try: sig = inspect.signature(f)
    except (TypeError, ValueError): return None
    def takes(n):
        try: sig.bind(*range(n))
        except TypeError: return False
        return True
    needed = sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in sig.parameters.values())
    return 1 if takes(1) and needed == 1 else 3 if takes(3) else 1 if takes(1) else None

def is_absolute(
    schedule:Schedule # The schedule
) -> bool:            # Whether its values are percentages whatever the target is
    "Whether `schedule` was made from a one-argument annealer"
    return isinstance(schedule.sched_func, _Absolute)

def as_schedule(
    f # A `Schedule`, a name from `available_schedules()`, `f(start, end, pos)`, a one-argument annealer `f(pos)`, or a `partial` of any
) -> Schedule: # The same as a `Schedule`; raises ValueError for anything else
    "`f` as a `Schedule`, whatever kind of schedule it is"
    if isinstance(f, Schedule): return f
    if isinstance(f, str) and f in schedules: return schedules[f]
    # partial(iterative, n_steps=5) keeps iterative's window, so the keywords move inside
    if isinstance(f, partial) and isinstance(f.func, Schedule) and not f.args:
        return replace(f.func, sched_func=partial(f.func.sched_func, **f.keywords))
    n = _n_args(f) if callable(f) else None
    if n is None: raise ValueError(f"schedule={f!r} is not a schedule. Choose from {available_schedules()}, or give a function of "
                                   "(start, end, pos) such as fastai's sched_cos, or of (pos) such as SchedCos(0, 90)")
    return Schedule(f if n == 3 else _Absolute(f))

def by_name(
    scheds # What `as_schedule` takes, several; or a dict of such by names of one's own, or such dicts among them
) -> dict: # Name -> `Schedule`
    "Schedules by their names, in their order; two of one name are told apart"
    if isinstance(scheds, dict): return {n:as_schedule(s) for n,s in scheds.items()}
    named = {n:s for d in scheds if isinstance(d, dict) for n,s in by_name(d).items()}
    for s in (as_schedule(s) for s in scheds if not isinstance(s, dict)):
        same = sum(n.split(' #')[0] == s.__name__ for n in named)
        named[f'{s.__name__} #{same + 1}' if same else s.__name__] = s
    return named

def windowed(
    schedule:Schedule, # The schedule
    start:float=None,  # Its window starts just after this fraction of training; None: where the schedule says
    end:float=None     # Its window ends at this fraction of training; None: where the schedule says
) -> Schedule:         # `schedule` in that window
    "`schedule` moved to another window"
    # Whoever starts at epoch 3 wants epochs 0, 1, 2 dense to their last batch, which sits at exactly 3/n_epoch: hence just after
    if start is not None: schedule = replace(schedule, start_pct=math.nextafter(start, 1.), end_pct=schedule.end_pct if end is None else end)
    elif end is not None: schedule = replace(schedule, end_pct=end)
    return schedule

def check_schedule(
    schedule:Schedule, # The schedule
    start:float,       # Sparsity at the start, in percent
    end:float          # Target sparsity, in percent
):
    "Refuse, with a ValueError, a schedule that fails, leaves 0..100 or never prunes on its way from `start` to `end`"
    name = f"schedule={schedule.__name__}"
    higher = "give it a start above 0, such as start_sparsity=1" if start == 0 else "check its arguments"
    values = []
    for pos in np.linspace(0, 1, 1001).tolist():
        try: v = float(schedule(start, end, pos))
        except Exception as e:
            raise ValueError(f"{name} fails at {pos:g} of training, from {start}% to {end}%: {type(e).__name__}: {e}; "
                             f"{higher if isinstance(e, ZeroDivisionError) else 'check its arguments'}") from e
        if not -1e-9 <= v <= 100 + 1e-9: raise ValueError(f"{name} gives {round(v, 6):.10g}% at {pos:g} of training; a sparsity is a percentage, 0 to 100")
        values.append(v)
    if end > 0 and max(values) == 0: raise ValueError(f"{name} never leaves 0 on its way to {end}%; {higher}")
    if is_absolute(schedule) and abs(values[-1] - end) > 1e-6:
        raise ValueError(f"sparsity={end} but {name} ends at {values[-1]:g}%: a one-argument schedule has its own target; "
                         f"give sparsity={values[-1]:g}, or a function of (start, end, pos)")

def plot_schedules(
    *scheds,             # The schedules to draw, or a dict of them by names of your own; `one_shot`, `iterative` and `agp` if none is given
    sparsity:float=90,   # Target sparsity, in percent
    start_sparsity:float=0, # Sparsity at the start, in percent
    n_epoch:int=10,      # Epochs of the fit
    start_epoch:int=None, # First epoch that prunes; None: where each schedule says
    end_epoch:int=None,  # First epoch at the target; None: where each schedule says
    ax=None,             # Matplotlib axes to draw on; new ones if None
    **kwargs             # Passed to `ax.plot`
):                       # The axes
    "Draw how the sparsity rises over a fit of `n_epoch` epochs, a curve a schedule"
    from .plots import plot_curves
    if len(scheds) == 1 and isinstance(scheds[0], (list, tuple)): scheds = scheds[0]
    if start_epoch is not None and start_epoch >= n_epoch: raise ValueError(f"start_epoch={start_epoch} is beyond a fit of n_epoch={n_epoch} epochs")
    if 0 < sparsity < 1: raise ValueError(f"sparsity={sparsity!r} is below 1%; a sparsity is a percentage, 0 to 100: did you mean sparsity={100*sparsity:g}?")
    def curve(s):
        s = windowed(s, None if start_epoch is None else start_epoch/n_epoch, None if end_epoch is None else end_epoch/n_epoch)
        check_schedule(s, start_sparsity, sparsity)
        return lambda pct: s(start_sparsity, sparsity, pct)
    return plot_curves({n:curve(s) for n,s in by_name(scheds or (one_shot, iterative, agp)).items()}, ax=ax, n_epoch=n_epoch, **kwargs)

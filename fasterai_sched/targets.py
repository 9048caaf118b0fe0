"""ASKED: the sparsity that is wanted, in any of its forms, and what of it is due at each point of a fit."""

from __future__ import annotations
from dataclasses import dataclass, replace
from numbers import Integral
import warnings

import numpy as np

from .layers import check_rules, value_of_each
from .options import check_percent
from .schedules import check_schedule, is_absolute, windowed

__all__ = ['Target', 'as_lists', 'brackets', 'check_target', 'plain_numbers', 'snapped', 'update_times']

def check_target(name, value):
    "ValueError unless `value` is a percentage; 0.9 was probably meant to be 90"
    check_percent(name, value)
    if 0 < float(value) < 1:
        raise ValueError(f"{name}={value!r} is below 1%; a sparsity is a percentage, 0 to 100: did you mean {name}={float(value)*100:g}?")

def as_lists(x):
    "An array, a tensor or fastcore's `L` as a list, or as a number where it is one"
    if hasattr(x, 'tolist') and not isinstance(x, np.generic): return x.tolist()
    return list(x) if type(x).__name__ == 'L' else x

def plain_numbers(x):
    "A target of Python's own numbers: numpy's overflow, and don't print the same"
    if isinstance(x, slice): return slice(*map(plain_numbers, (x.start, x.stop)))
    if isinstance(x, dict): return {k:plain_numbers(v) for k,v in x.items()}
    if isinstance(x, (list, tuple)): return [plain_numbers(v) for v in x]
    return x if x is None else int(x) if isinstance(x, Integral) else float(x)

def snapped(x, to):
    "A target all of whose values are about `to`, exactly there: 66.67 for 1:3"
    if isinstance(x, dict): return {k:snapped(v, to) for k,v in x.items()}
    if isinstance(x, (list, tuple)): return [snapped(v, to) for v in x]
    return slice(to, to) if isinstance(x, slice) else x if x == to else to

def _values(x):
    if isinstance(x, slice): return [x.start, x.stop]
    return list(x.values()) if isinstance(x, dict) else list(x) if isinstance(x, (list, tuple)) else [x]

def update_times(
    n_epoch:int, # Epochs of a fit
    n_iter:int,  # and batches in each
    every:int    # Masks move at every so many-th batch
) -> list:       # Counted from 1; the last is the fit's last
    "The batches at which masks may move: multiples of `every`, and the last of each epoch"
    return [s for s in range(1, n_epoch*n_iter + 1) if not s%every or not s%n_iter]

def brackets(x):
    "`[90]`, `[29.71]`, `[10, 20.0]`: an int as it is, a float with two decimals at most"
    return str([v if isinstance(v, int) else round(float(v), 2) for v in _values(x)])

def _check_percent(schedule, name, asked):
    "ValueError for an annealer that ends at a fraction; and at 1 where that is not `asked`"
    try: end = float(schedule(0, 100, 1.))
    except Exception: return # what fails is told by `check_schedule`
    if 0 < end < 1 or end == 1 and 1 not in asked: raise ValueError(f"schedule={name} ends at {end:g}: what it returns is a percentage, 0 to 100; did you mean {100*end:g}?")

@dataclass(frozen=True)
class Target:
    "A sparsity and its schedule"
    sparsity:object   # Percent: a number, a list (one a layer), a dict of rules or of layer names, or a slice over parameter groups
    schedule:object   # A function of (start, end, pct)
    start:float = 0   # Percent, in force before the schedule starts

    def check(self,
        options # `Options`: what of its words has to do with the target
    ):
        "ValueError for what makes no sense whatever the model"
        target,name = self.sparsity,getattr(self.schedule, '__name__', self.schedule)
        if isinstance(target, slice) and (target.step is not None or None in _values(target)):
            raise ValueError(f"sparsity={target!r}: give a first and a last percentage, such as slice(30, 90)")
        if isinstance(target, (list, tuple, dict, slice)):
            if not _values(target): raise ValueError(f"sparsity={target!r} is empty: give a percentage a layer")
            if options.budget.together: raise ValueError(f"sparsity={target!r} has one value a layer, and context={options.context!r} one budget for all: use context='local'")
            if is_absolute(self.schedule): raise ValueError(f"schedule={name} has its own target, and sparsity={target!r} one a layer: "
                                                            "give a function of (start, end, pos)")
        if isinstance(target, dict): check_rules('sparsity', target)
        check_target('start_sparsity', self.start)
        if is_absolute(self.schedule): _check_percent(self.schedule, name, _values(target))
        for v in _values(target): check_target('sparsity', v)
        if options.nm:
            for v in _values(target):
                if abs(v - options.full) > .01: raise ValueError(f"sparsity={v!r}: an N:M pattern of {options.nm} has a sparsity of {options.full:g}; give that, or leave it out")
            if self.start > options.full: raise ValueError(f"start_sparsity={self.start!r} is above what an N:M pattern of {options.nm} prunes, {options.full:g}%")
        if is_absolute(self.schedule) and self.start: raise ValueError(f"start_sparsity={self.start!r}: schedule={name} has its own start")
        for v in dict.fromkeys(_values(plain_numbers(target))): check_schedule(self.schedule, plain_numbers(self.start), v)
        ends = [plain_numbers(self.schedule(plain_numbers(self.start), v, 1.)) for v in _values(plain_numbers(target))]
        if any(0 < e <= 1 < v and abs(e - self.start) > 1e-6 for e,v in zip(ends, _values(target))):
            raise ValueError(f"schedule={name} ends at {brackets(ends)}, and not at sparsity={target!r}: what it returns is a percentage, 0 to 100; let it return `end` at pos=1")
        if any(abs(e - v) > 1e-6 and abs(e - self.start) > 1e-6 for e,v in zip(ends, _values(target))):
            warnings.warn(f"schedule={name} ends at {brackets(ends)}%, and not at sparsity={target!r}: let its function return `end` at pos=1"
                          f"{f', or give sparsity={round(ends[0], 2):g}' if len(ends) == 1 and ends[0] else ''}")

    def of_layers(self,
        layers, # The selected ones
        groups  # The optimizer's parameter groups
    ) -> Target:
        "With rules and slices resolved to layer names"
        if isinstance(self.sparsity, dict): return replace(self, sparsity=value_of_each(self.sparsity, layers, 'sparsity'))
        if not isinstance(self.sparsity, slice): return self
        group = {id(p):i for i,g in enumerate(groups) for p in g}
        held = sorted({group[id(l.weight)] for l in layers}) # a group without such layers has no step of its own
        steps = np.linspace(self.sparsity.start, self.sparsity.stop, len(held)).tolist() if len(held) > 1 else [self.sparsity.stop]
        if len(held) == 1: warnings.warn(f"sparsity={self.sparsity!r} goes over parameter groups, and all selected layers are in one: they are at {self.sparsity.stop}%")
        return replace(self, sparsity={l.name:steps[held.index(group[id(l.weight)])] for l in layers})

    def in_window(self,
        n:int,         # Epochs of the fit
        start:int=None, # First epoch that prunes, instead of the schedule's own start
        end:int=None    # First epoch at the target, instead of the schedule's own end
    ) -> Target:
        "With the schedule between two epochs; raises ValueError for a window that is not inside of the fit"
        if start is not None and start >= n: raise ValueError(f"start_epoch={start} is beyond this fit of {n} epochs, 0 to {n-1} "
                                                                "(a schedule is over the epochs of one fit: to stop early, stop a longer one; the two phases of fine_tune are two)")
        if end is not None and end > n: raise ValueError(f"end_epoch={end} is beyond this fit of {n} epochs: the last it may be is {n} "
                                                         "(a schedule is over the epochs of one fit: to stop early, stop a longer one; the two phases of fine_tune are two)")
        if start is not None and end is None and start/n >= self.schedule.end_pct:
            raise ValueError(f"start_epoch={start} comes after the schedule ends, at {self.schedule.end_pct:.0%} of {n} epochs: give end_epoch too")
        if end is not None and start is None and end/n <= self.schedule.start_pct:
            raise ValueError(f"end_epoch={end} comes before the schedule starts, at {self.schedule.start_pct:.0%} of {n} epochs: give start_epoch too")
        return replace(self, schedule=windowed(self.schedule, None if start is None else start/n, None if end is None else end/n))

    def like(self, f):
        "`f` of the percentage, or of each of the list or dict, that `sparsity` is"
        x = self.sparsity
        return {k:f(v) for k,v in x.items()} if isinstance(x, dict) else [f(v) for v in x] if isinstance(x, (list, tuple)) else f(x)

    def of_each(self,
        by_name # {layer name: x}, in model order
    ) -> list:  # Empty where there is one target for all
        "x of each layer, in the order of the list or dict"
        if isinstance(self.sparsity, dict): return [by_name[n] for n in self.sparsity]
        return list(by_name.values()) if isinstance(self.sparsity, (list, tuple)) else []

    def due(self,
        pct:float # Position in the fit, 0 to 1
    ):            # In the form that `sparsity` has
        "The sparsity due"
        def at(end):
            s = self.schedule(self.start, end, pct)
            if not isinstance(s, int): s = float(s)
            return min(max(s, 0), 100) if -1e-9 <= s <= 100 + 1e-9 else s # what is further out is refused by the sparsifier
        return self.like(at)

    def fallen(self,
        steps:int, # of so many
        n:int      # steps of the fit
    ) -> bool:
        "Whether it falls somewhere in the first `steps`"
        dues = [_values(self.due(i/n)) for i in range(1, steps + 1)]
        return any(b < a for x,y in zip(dues, dues[1:]) for a,b in zip(x, y))

    def last_move(self,
        times:list # Steps of the fit at which it is looked at, see `update_times`
    ) -> int:      # 0: it is the same at all of them
        "The one of these steps from which on the sparsity due stays what it is at the end"
        end,back = self.due(1.),[*reversed(times), 0]
        return next((now for now,before in zip(back, back[1:]) if self.due(before/times[-1]) != end), 0)

    def n_moves(self,
        times:list # As for `last_move`
    ) -> int:
        "At how many of these steps something else is due than at the one before"
        return sum(self.due(a/times[-1]) != self.due(b/times[-1]) for a,b in zip([0, *times], times))

"""IN DOUBT: what can be done, and may not be what was meant. Each warns, once a fit."""

from __future__ import annotations
import warnings

from torch import nn

from .granularity import Granularities
from .layers import loose_zeros
from .targets import brackets

__all__ = ['warn_of_head', 'warn_of_loose', 'warn_of_beginning', 'warn_of_more']

def warn_of_head(
    model,      # The whole model
    layers,     # `Held` weights that are pruned
    granularity # in such groups
):
    "Output channels of the last layer may be what the model is there for"
    weights = [m for m in model.modules() if any(w.ndim > 1 for w in m._parameters.values() if w is not None)]
    head = [l.name for l in layers if l.of_channels and l.module is weights[-1]]
    if head: warnings.warn(f"granularity={granularity!r} removes whole outputs of {head[0]!r}, the last layer: if those are the model's, leave it out with exclude={head[0]!r}")

def _type_of(m):
    "What to write for the type of a layer: attention's projections are of one that torch does not export"
    t = next(t for t in type(m).__mro__ if getattr(nn, t.__name__, None) is t or t in Granularities.available_modules())
    return f"{'nn.' if t.__module__.startswith('torch.nn.') else ''}{t.__name__}"

def warn_of_loose(
    model, # The whole model
    held   # Its weights whose zeros are held
):
    "Zeros of other layers, of an earlier fit for instance, train again"
    loose = loose_zeros(model, held)
    if not loose: return
    types = list(dict.fromkeys(_type_of(f.module) for f,_ in loose))
    kind  = types[0] if len(types) == 1 else f"({', '.join(types)})"
    warnings.warn(f"Zeros train again in layers that are not selected: {', '.join(f'{f.name} ({z:,} of {f.weight.numel():,})' for f,z in loose)}. "
                  f"To keep them, select these layers too, or add SparsifyCallback(keep_zeros=True, layer_type={kind}, layers={[f.name for f,_ in loose]})")

def _lacking(sparsifier, due, round_to, fallen):
    "Names of layers that have fewer zeros than is due; all of them where only scores tell how many each should have"
    of = sparsifier.counts(due, round_to, fallen)
    if None not in of.values(): return [l.name for l in sparsifier.active if of[l.name] > l.dead]
    in_groups = sparsifier.options.budget.in_groups
    return list(of) if not round_to and sparsifier.total(due, fallen) > sum(l.dead + 1 if in_groups else l.gone + l.size for l in sparsifier.active) else []

def _units(sparsifier):
    "(how much of it is pruned, how much there is, how much a group is) of each layer that trains: in weights, or in groups where the sparsity asked is of those"
    o = sparsifier.options
    return [(l.dead, l.n, 1) if o.budget.in_groups and not o.nm else (l.gone, l.numel, l.size) for l in sparsifier.active]

def warn_of_beginning(
    sparsifier,   # The sparsifier, which has found the zeros there are
    due,          # The sparsity due when the fit begins, as `Target.due` gives it
    percent:float, # and that of all layers together
    epoch:int,    # That epoch: the `start_epoch` of the fit
    n_epoch:int,  # Epochs in all
    round_to:int, # Multiple for the groups kept, or None
    fallen:bool   # Whether the schedule has fallen until then
):
    "A fit that goes on in the midst of a schedule should find the zeros of then"
    lacking,units = _lacking(sparsifier, due, round_to, fallen),_units(sparsifier)
    there,step = (100*sum(u[i] for u in units)/max(sum(u[1] for u in units), 1) for i in (0, 2)) # a step: a group a layer
    if not lacking and (fallen or there <= percent + step): return
    some = f", too little in {', '.join(lacking)}" if 0 < len(lacking) < len(sparsifier.active) else ''
    then = 'The first batch prunes what is missing' if lacking else 'Nothing is pruned until the schedule is above that'
    warnings.warn(f"The fit starts at epoch {epoch}, where the schedule is at {brackets(due)}%, and {brackets(there)}% is zero{some}. Are these the weights of after epoch {epoch - 1}, "
                  f"and is {n_epoch} the number of epochs in all, as it was before? {then}")

def warn_of_more(
    sparsifier, # The sparsifier, which has found the zeros there are
    sparsity,   # What is asked, for the message
    asked       # Percent of all weights at some points of the fit
):
    "A lower sparsity than there is brings nothing back"
    there = sparsifier.sparsity
    if max(asked) < there - 100*sum(l.size for l in sparsifier.active)/max(sum(l.numel for l in sparsifier.active), 1):
        warnings.warn(f"sparsity={brackets(sparsity)} is less than what is zero already, {brackets(there)}%: nothing is pruned, and nothing comes back")

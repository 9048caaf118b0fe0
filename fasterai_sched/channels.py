"""AFTER: the batch norm that a layer alone feeds. A dead output channel takes its part of it along, or it would go on emitting a constant."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .untouched import untouched

__all__ = ['batch_norms']

def batch_norms(
    model:nn.Module # Any model; it is traced with torch.fx, and not run
) -> tuple:         # {name of a layer: name of the batch norm}, {names of layers of which it isn't certain}, whether the graph tells
    "The batch norm that each layer alone feeds, and that nothing else feeds: from the graph, or, of a model that can't be traced, by rule"
    if not any(isinstance(m, _BatchNorm) for m in model.modules()): return {},set(),True
    try:
        with untouched(model): graph = torch.fx.Tracer().trace(model)
    except Exception: return *_by_rule(model),False # data-dependent code, hooks, arguments that are no tensors: whatever stops the tracer
    mods,calls = dict(model.named_modules()),[n.target for n in graph.nodes if n.op == 'call_module']
    alone = lambda n: n.op == 'call_module' and calls.count(n.target) == 1 and sum(m is mods[n.target] for m in mods.values()) == 1
    found,unsure = {},set()
    for n in graph.nodes:
        if n.op != 'call_module' or not _width(mods[n.target]): continue
        norms = [u for u in n.users if u.op == 'call_module' and isinstance(mods[u.target], _BatchNorm)]
        if len(norms) == len(n.users) == 1 and alone(n) and alone(norms[0]) and _fits(mods[n.target], mods[norms[0].target]): found[n.target] = norms[0].target
        elif norms: unsure.add(n.target)
    return found,unsure,True

def _width(m): return getattr(m, 'out_channels', getattr(m, 'out_features', None))
def _fits(m, norm): return isinstance(norm, _BatchNorm) and norm.num_features == _width(m)

def _by_rule(model):
    "The next in a plain `nn.Sequential`, or a sibling `bn1` that comes after `conv1` (before it, it is that of a pre-activation), where the widths match"
    found = {}
    for parent,p in model.named_modules():
        at,children = parent + '.' if parent else '',dict(p.named_children())
        names = list(children)
        for n,after in zip(names, [*names[1:], None]):
            if getattr(type(p), 'forward', None) is not nn.Sequential.forward: after = n.replace('conv', 'bn') if 'conv' in n else None # a scripted one has none
            if after in names[names.index(n):] and _fits(children[n], children[after]): found[at + n] = at + after
    return found,{n for n,m in model.named_modules() if _width(m) and n not in found}

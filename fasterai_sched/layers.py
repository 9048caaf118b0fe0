"""WHERE: rules -> the layers of a model that are made sparse."""

from __future__ import annotations
from difflib import get_close_matches
from fnmatch import fnmatchcase
import re

from torch import nn
from torch.nn.parameter import is_lazy

from .granularity import Granularities
from .report import n_zeros, type_name, weight_types, weights_of

__all__ = ['Found', 'check_rules', 'by_rule', 'value_of_each', 'find', 'loose_zeros', 'fitting', 'select']

class Found:
    "A weight that rules found, in its layer"
    def __init__(self, name, index, module, attr):
        self.name   = name if attr == 'weight' else f'{name}.{attr}'.lstrip('.') # the layer's, or that of one of its weights
        self.index  = index  # the layer's place in `model.modules()`
        self.module = module
        self.attr   = attr   # what the layer calls this weight

    @property
    def weight(self): return getattr(self.module, self.attr)
    @property
    def key(self):
        "The weight's name in the model's `state_dict`"
        return f'{self.name}.weight'.lstrip('.') if self.attr == 'weight' else self.name

def _is_rule(r): return isinstance(r, (str, re.Pattern, nn.Module)) or callable(r)
def _as_list(rules): return [] if rules is None else list(rules) if isinstance(rules, (list, tuple, set, dict)) else [rules]

def check_rules(name, rules):
    "ValueError unless `rules` is None, a rule or several"
    for r in _as_list(rules):
        if not _is_rule(r): raise ValueError(f"{name}={rules!r}: {r!r} is no rule; give names, globs ('*.downsample.*'), compiled regular expressions, "
                                            "layers or their types, or functions of (name, layer)")

def _matches(rule, f):
    if isinstance(rule, type): return isinstance(f.module, rule)
    if isinstance(rule, nn.Module): return any(m is f.module for m in rule.modules())
    if isinstance(rule, str): return rule == f.name or fnmatchcase(f.name, rule)
    if isinstance(rule, re.Pattern): return bool(rule.search(f.name))
    try: return bool(rule(f.name, f.module))
    except Exception as e: raise ValueError(f"the rule {_said(rule)} fails for layer {f.name!r}: {type(e).__name__}: {e}; it is called with a layer's name and the layer") from e

def _said(rule):
    if isinstance(rule, (type, nn.Module)): return (rule if isinstance(rule, type) else type(rule)).__name__
    return repr(rule.pattern if isinstance(rule, re.Pattern) else getattr(rule, '__name__', rule))

def find(
    model:nn.Module, # Any model
    layer_type,      # A type of layer, or a tuple of types; `nn.Module` is every type that has granularities
    layers=None,     # Rules for the names of layers; None: all
    exclude=None     # Rules for those to leave out
) -> list[Found]:
    "Every weight of the layers of these types that the rules let through, in model order"
    types = Granularities.available_modules() if layer_type is nn.Module else layer_type
    every = [Found(n, i, m, attr) for i,(n,m) in enumerate(model.named_modules()) if isinstance(m, types) for attr in weights_of(m) or ('weight',)]
    any_of = lambda rules, f: any(_matches(r, f) for r in _as_list(rules))
    return [f for f in every if (layers is None or any_of(layers, f)) and not any_of(exclude, f)]

def loose_zeros(
    model:nn.Module, # Any model
    held,            # Its weights whose zeros are held
    share:float=.05  # Of so small a part of a weight zeros are not looked at. An embedding's padding, which does not train, never is
) -> list:           # (`Found`, how many of it are 0)
    "The weights that train, have zeros, and are not held: their zeros train again. A wholly zero one is an initialisation"
    seen,out = {id(w) for w in held},[]
    for f in find(model, nn.Module):
        w = f.module._parameters.get(f.attr) # and not `f.weight`: to look at what is computed is to compute it
        if w is None or not w.requires_grad or id(w) in seen or is_lazy(w): continue
        seen.add(id(w))
        zeros = n_zeros(w) - (w.shape[1] if getattr(f.module, 'padding_idx', None) is not None and f.attr == 'weight' else 0)
        if share*w.numel() < zeros < w.numel(): out.append((f, zeros))
    return out

def by_rule(
    rules,      # The keys of a dict, say
    found,      # What they choose among
    what:str,   # The argument they were given as, for messages
    model=None, # To tell a layer of another type from none at all
    layer_type=None
) -> dict:      # rule -> [Found]
    "What each rule finds; raises ValueError for one that finds nothing, and for two that find the same"
    names = [f.name for f in found]
    out = {r: [f for f in found if _matches(r, f)] for r in _as_list(rules)}
    for r,fs in out.items():
        if fs: continue
        other = dict(model.named_modules()).get(r) if model is not None and isinstance(r, str) else None
        if other is not None and weights_of(other): raise ValueError(f"{what} names {r!r}, which is a {type(other).__name__}, and "
            f"layer_type={type_name(layer_type)}; " + ("add its type: layer_type=(nn.Conv2d, nn.Linear), say" if isinstance(other, Granularities.available_modules())
                                                       else "that type is never pruned: leave the name out"))
        raise ValueError(f"{what} names {_said(r)}: there is no such layer; {_close(r, names, model, layer_type)}")
    return out

def _close(rule, names, model, layer_type):
    "The names like `rule`, of layers that `layer_type` leaves out too, or all there are, for a message"
    like = lambda names: get_close_matches(rule, names, 3) if isinstance(rule, str) else []
    others = {} if model is None else {f.name:f for f in find(model, nn.Module) if f.name not in names}
    left_out = ', '.join(f'{n!r} (a {type(others[n].module).__name__})' for n in like(others))
    close = like(names) or ([] if left_out else names)
    shown = [f"close: {close[:8]}{f' and {len(close) - 8} more' if len(close) > 8 else ''}"] if close else []
    return '; '.join([*shown, *([f'close, and left out by layer_type={type_name(layer_type)}: {left_out}'] if left_out else [])])

def value_of_each(
    values:dict, # {rule: value}
    found,       # What the rules choose among
    what:str     # The argument they were given as, for messages
) -> dict:       # {name: value}
    "The value that the rules give to each, a name before any other; raises ValueError for a rule that finds nothing, and for two that find the same"
    out,rules = {},by_rule(values, found, what)
    for rule,fs in rules.items():
        for f in fs:
            if f.name in rules and f.name != rule: continue # it is named, which says more than a pattern
            if f.name in out: raise ValueError(f"{what}={values!r}: more than one of the rules matches {f.name!r}; let one do so, or name it")
            out[f.name] = values[rule]
    return out

def fitting(
    found:list,         # Of `Found`
    granularity='weight', # As for `Granularities.cut`
    nm:tuple=None       # As for `Granularities.cut`
) -> tuple:             # [(found, its cut)], {name of what can't be cut so: why}
    "Those that can be cut into such groups, and those whose size does not fit; raises ValueError for a granularity that a layer's type does not have"
    fit,rest = [],{}
    for f in found:
        try: fit.append((f, Granularities.cut(f.module, f.weight, granularity, nm)))
        except ValueError as e:
            if isinstance(granularity, str) and nm is None: raise
            rest[f.name] = str(e)
    return fit,rest

def select(
    model:nn.Module, # Any model
    layer_type,      # As for `find`
    layers=None,     # As for `find`
    exclude=None,    # As for `find`
    granularity='weight', # As for `Granularities.cut`
    nm:tuple=None    # As for `Granularities.cut`
) -> tuple:          # [(found, its cut)], each weight once; {name of a layer that can't be cut so: why}
    "The weights to make sparse; raises ValueError for no layer, for a rule without use, and for a weight that can't be made sparse"
    every = find(model, layer_type)
    if not every: raise ValueError(f"layer_type={type_name(layer_type)}: there is none in this {type(model).__name__}; it has {weight_types(model)}")
    by_rule(layers,  every, 'sparsity or layers', model, layer_type)
    by_rule(exclude, every, 'exclude', model, layer_type)
    found,seen = [],{}
    for f in find(model, layer_type, layers, exclude):
        _check_weight(f)
        first = seen.setdefault(id(f.weight), f)
        if first is f: found.append(f)
        elif {first.name, f.name} <= {r for r in _as_list(layers) if isinstance(r, str)}: raise ValueError(f"Layers {first.name!r} and {f.name!r} share their weight: name one of them")
    if not found: raise ValueError(f"No layer is selected: layers={layers!r} and exclude={exclude!r} leave none of {[f.name for f in every]}")
    fit,rest = fitting(found, granularity, nm)
    named = {r:rest[r] for r in _as_list(layers) if isinstance(r, str) and r in rest}
    if named or not fit: raise ValueError(f"{f'nm={nm}' if nm else f'granularity={granularity!r}'} does not fit {'the layers named' if named else 'any layer'}: "
                                          f"{'; '.join(f'{n} ({why})' for n,why in (named or rest).items())}")
    return fit,rest

def _check_weight(f):
    w = f.module._parameters.get(f.attr)
    if not isinstance(w, nn.Parameter): raise ValueError(f"The weight of layer {f.name!r} ({type(f.module).__name__}) is computed from others (spectral_norm, weight_norm "
                                                         "or another parametrization), so zeros in it would not last. Remove that first, or leave the layer out")
    if is_lazy(w): raise ValueError(f"Layer {f.name!r} ({type(f.module).__name__}) is not initialized: run the model once on a batch first")

"""HOW MUCH: a model -> its zeros, counted. A table as text, as HTML and as a DataFrame."""

from __future__ import annotations
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from torch import Tensor, nn

from .disk import n_bytes

__all__ = ['Report', 'Row', 'n_zeros', 'weights_of', 'sparsity_report']

def n_zeros(t:Tensor) -> int:
    "How many elements of `t` are exactly 0"
    # numpy, by way of bools, is three times as fast as torch's count of floats
    if t.device.type == 'cpu' and t.dtype in (torch.float32, torch.float64) and type(t) in (Tensor, nn.Parameter) and not t.is_neg(): return t.numel() - int(np.count_nonzero(t.detach().numpy() != 0))
    if t.is_floating_point() and t.itemsize == 1: t = t.float() # torch counts nothing of 8 bits
    return t.numel() - int(t.count_nonzero())

def percent(part, whole):
    "`part` of `whole` in percent; 0 of nothing is 0"
    return 100*part/whole if whole else 0.

@dataclass(frozen=True)
class Row:
    "One layer's count"
    name:str          # As in `model.named_modules()`
    index:int         # Its place in `model.modules()`: the N of `Layer N`
    type:str          # Class name
    params:int        # Weights, without biases
    zeros:int         # Weights that are exactly 0
    frozen:bool=False # Whether the layer does not train; frozen layers are listed and not added up

    @property
    def sparsity(self): return percent(self.zeros, self.params)

def _bar(sparsity):
    "A bar for a table cell, filled as far as the weights are zero, in colours that are seen on white and on black"
    return ('<div style="width:100px;height:.7em;border:1px solid #808080;border-radius:2px;overflow:hidden">'
            f'<div style="width:{sparsity:.2f}%;height:100%;background:#3d85c6"></div></div>')

def _on_disk(dense, sparse):
    "How large the model's file is, in words"
    scale,unit = (1e6, 'MB') if dense >= 1e6 else (1e3, 'kB')
    return f'The whole model on disk, without headers: {dense/scale:,.1f} {unit} as it is, {sparse/scale:,.1f} {unit} ({percent(sparse, dense):.0f}%) with save_sparse'

_line = "{:<20} {:<15} {:<10} {:<10} {}".format

@dataclass(frozen=True)
class Report:
    "What is zero in a model: a row a layer, and `Overall`, the sum over those rows that train. What else the model has is not in it, and named under the table in a notebook"
    rows:tuple           # Of `Row`
    unselected:tuple=()  # Large weights that no row counts, each more than 1% of the model's: (name, number of weights)
    notes:tuple=()       # What else there is to know, a sentence each; shown under the table in a notebook
    why:str='they are not selected' # Why no row counts those
    sizes:tuple=None     # Bytes of the whole model: as it is, and as `save_sparse` would write it; None: not looked at

    @property
    def params(self): return sum(r.params for r in self.rows if not r.frozen)
    @property
    def zeros(self): return sum(r.zeros for r in self.rows if not r.frozen)
    @property
    def sparsity(self):
        "Of all layers that train, in percent"
        return percent(self.zeros, self.params)

    def __str__(self):
        rule = '-'*80
        cells = [_line(f'Layer {r.index}', r.type, f'{r.params:,}', f'{r.zeros:,}', f"{'frozen':>9}" if r.frozen else f'{r.sparsity:>8.2f}%')
                 for r in self.rows]
        overall = _line('Overall', 'all', f'{self.params:,}', f'{self.zeros:,}', f'{self.sparsity:>8.2f}%')
        return '\n'.join([rule, _line('Layer', 'Type', 'Params', 'Zeros', f"{'Sparsity':<10}"), rule, *cells, rule, overall])
    __repr__ = __str__

    def _repr_html_(self):
        def tr(*cells, tag='td'): return '<tr>' + ''.join(f'<{tag} style="text-align:{"left" if i < 3 else "right"}">{c}</{tag}>' for i,c in enumerate(cells)) + '</tr>'
        head = tr('Layer', 'Name', 'Type', 'Params', 'Zeros', 'Sparsity', '', tag='th')
        body = [tr(f'Layer {r.index}', escape(r.name), escape(r.type), f'{r.params:,}', f'{r.zeros:,}', *(('frozen', '') if r.frozen else (f'{r.sparsity:.2f}%', _bar(r.sparsity))))
                for r in self.rows]
        foot = tr('Overall', '', 'all', f'{self.params:,}', f'{self.zeros:,}', f'{self.sparsity:.2f}%', _bar(self.sparsity), tag='th')
        rest = ', '.join(f'{escape(n)} ({p:,})' for n,p in self.unselected)
        notes = [*([f'Not counted above, as {self.why}: {rest}'] if rest else []), *map(escape, self.notes), *([_on_disk(*self.sizes)] if self.sizes else [])]
        return f'<table><thead>{head}</thead><tbody>{"".join(body)}</tbody><tfoot>{foot}</tfoot></table>' + ''.join(f'<p>{n}</p>' for n in notes)

    def to_df(self):
        "A DataFrame, a row a layer: name, index, type, params, zeros, sparsity (percent), frozen"
        import pandas as pd
        cols = ['name', 'index', 'type', 'params', 'zeros', 'sparsity', 'frozen']
        return pd.DataFrame([[getattr(r, c) for c in cols] for r in self.rows], columns=cols)

def weights_of(m:nn.Module) -> dict:
    "A layer's own weights by what it calls them: `weight`, or what it has in its place (attention's `in_proj_weight`, an RNN's `weight_ih_l0` ...)"
    # a parametrization's weight is not looked at: to look is to compute, and may change buffers. torch's pruning leaves a plain tensor
    own = dict(m._parameters.items()) # a scripted layer's are no dict
    w = own.get('weight', m.__dict__.get('weight'))
    if isinstance(w, Tensor): return {'weight':w}
    return {n:p for n,p in own.items() if p is not None and 'weight' in n and p.ndim > 1}

def _unselected(model, counted, share=0.01):
    "Parameters of two or more dimensions that hold over `share` of the model's, are not `counted`, and are not bias or norm"
    params = [(n, p) for n,p in model.named_parameters() if p.ndim > 1]
    total = sum(p.numel() for _,p in params)
    return tuple((n, p.numel()) for n,p in params if id(p) not in counted and p.numel() > share*total)

@torch.no_grad()
def sparsity_report(
    model:nn.Module,         # Any model; nothing of it is changed
    layer_type=nn.Conv2d,    # Type of layer to count, or a tuple of types; `nn.Module` counts every layer's weight of two or more dimensions
    names=None,              # Count only the layers of these names; None: all of that type
    frozen=(),               # Names to list as frozen, outside the sum
    whole=None               # The model whose file is meant, if that is more than `model`; False: don't look at sizes
) -> Report:                 # Prints as a table of text; a table with names and bars in a notebook; `.to_df()`
    "Count the zeros in the layers of a model. A weight that two layers share is counted once, one that is computed (spectral_norm) not at all; raises ValueError if there is no such layer"
    rows,seen = [],set()
    for i,(n,m) in enumerate(model.named_modules()):
        if not isinstance(m, layer_type): continue
        for attr,w in weights_of(m).items():
            name = n if attr == 'weight' else f'{n}.{attr}'.lstrip('.')
            if id(w) in seen or (layer_type is nn.Module and w.ndim < 2 if names is None else name not in names): continue
            seen.add(id(w))
            rows.append(Row(name, i, type(m).__name__, w.numel(), n_zeros(w), name in frozen))
    if not rows: raise ValueError(f"No {type_name(layer_type)} with a weight in this {type(model).__name__}; it has {weight_types(model)}")
    why = Report.why if names is not None else 'only weights of layers are' if layer_type is nn.Module else f'only {type_name(layer_type)} is'
    return Report(tuple(rows), _unselected(model, seen), why=why, sizes=None if whole is False else n_bytes(model if whole is None else whole))

def type_name(layer_type):
    "The name of a layer type, or of each of a tuple"
    return ' or '.join(t.__name__ for t in layer_type) if isinstance(layer_type, tuple) else layer_type.__name__

def weight_types(model):
    "What has a weight of two or more dimensions in `model`, for messages: type name -> how many"
    types = [type(m).__name__ for m in model.modules() if any(getattr(w, 'ndim', 0) > 1 for w in weights_of(m).values())]
    return {t: types.count(t) for t in dict.fromkeys(types)} or 'no layer with a weight matrix'

"""SHAPE: how a weight tensor is cut into groups that live or die together. One table a layer type, open for new types."""

from __future__ import annotations
from dataclasses import dataclass
from math import prod
from numbers import Integral

from torch import Tensor, nn

__all__ = ['Granularities', 'Cut', 'as_nm', 'is_nm']

# A group is what the listed dimensions span together. They are counted from 1, as in fasterai; 0 spans nothing: single weights.
def _conv(out, inp, *space):
    "A convolution's, from where its weight has the output, the input and space; the last two of space are height and width"
    dims = lambda *ds: tuple(sorted(ds)) if len(ds) > 1 else ds[0]
    plain = {'weight':0, 'shared_weight':out, 'channel':inp}
    whole = {'kernel':dims(*space), 'filter':dims(inp, *space), 'shared_channel':dims(out, inp)}
    ends = {'shared_kernel':dims(out, *space), 'layer':dims(out, inp, *space)}
    if len(space) == 1: return {**plain, **whole, **ends}
    h,w = space[-2:]
    slices = {'shared_column':dims(out, h), 'shared_row':dims(out, w), 'vertical_slice':dims(inp, h), 'horizontal_slice':dims(inp, w),
              'shared_vertical_slice':dims(out, inp, h), 'shared_horizontal_slice':dims(out, inp, w)}
    return {**plain, 'column':h, 'row':w, **whole, **slices, **ends}

_conv1d = {**_conv(1, 2, 3), 'column':1, 'row':2} # fasterai's words for shared_weight and channel
_linear = {'weight':0, 'column':1, 'row':2, 'filter':2, 'layer':(1,2)} # weight: out, in; what feeds one output is its filter
_matrix = {'weight':0, 'column':1, 'row':2, 'layer':(1,2)}             # an Embedding's entries and features

@dataclass(frozen=True)
class Cut:
    "A weight as groups of one size"
    shape:tuple      # The weight's, with blocks as dimensions of their own
    dims:tuple       # Those that a group spans, counted from 1; (0,) for single weights
    nm:tuple=None    # (n, m): of a group's m weights n stay; None: a group goes whole
    plain:bool=True  # Whether `shape` is the weight's own

    @property
    def span(self):
        "Weights in a group"
        return prod(self.shape[d-1] for d in self.dims if d)
    @property
    def size(self):
        "Weights of a group that go when it is pruned"
        return self.span - self.nm[0] if self.nm else self.span
    @property
    def n(self):
        "Groups"
        return prod(self.shape)//self.span

    def view(self,
        t:Tensor # Of the weight's shape, in any memory format
    ) -> Tensor: # The same memory, in `shape`
        "See `t` as groups"
        return t if self.plain else t.view(self.shape)

    def spread(self,
        t:Tensor,    # A value a group: `shape`, with the dimensions of a group 1
        shape:tuple  # The weight's
    ) -> Tensor:     # That broadcasts to the weight
        "A group's value for each of its weights"
        return t if self.plain else t.expand(self.shape).reshape(shape)

def as_nm(
    nm # False or None: no pattern; True: 2:4; (n, m)
) -> tuple|None:
    "`nm` as (n, m) or None; raises ValueError for anything else"
    if nm is None or nm is False: return None
    if nm is True: return 2,4
    whole = isinstance(nm, (tuple, list)) and len(nm) == 2 and all(isinstance(x, Integral) and not isinstance(x, bool) for x in nm)
    if not whole or not 0 < nm[0] < nm[1]: raise ValueError(f"nm={nm!r} must be (n, m) with 0 < n < m, such as (2, 4) to keep 2 of 4; True for 2:4, or False")
    return int(nm[0]),int(nm[1])

def is_nm(
    m:nn.Module,   # A layer with a `weight`
    nm=(2,4),      # (n, m)
    weight:Tensor=None # One of its weights, where it has several; None: its `weight`
) -> bool:
    "Whether of each m weights in a row along the input channels no more than n are nonzero; False for a layer whose channels are no multiple of m"
    nm = as_nm(nm)
    if nm is None: raise ValueError("nm=False is no pattern: give (n, m), such as (2, 4)")
    weight = m._parameters.get('weight') if weight is None else weight
    if weight is None: raise ValueError(f"{type(m).__name__} has no weight of its own: give a layer, or one of its weights as weight=")
    try: cut = Granularities.cut(m, weight, 'weight', nm)
    except ValueError: return False
    return bool(((cut.view(weight.detach()) != 0).sum(cut.dims[0] - 1) <= cut.nm[0]).all())

class Granularities:
    "The ways to cut the weights of each layer type into groups"
    _granularities = {nn.Conv2d:_conv(1, 2, 3, 4), nn.ConvTranspose2d:_conv(2, 1, 3, 4), nn.Conv1d:_conv1d, nn.Linear:_linear,
                      nn.Conv3d:_conv(1, 2, 3, 4, 5), nn.ConvTranspose1d:_conv(2, 1, 3), nn.ConvTranspose3d:_conv(2, 1, 3, 4, 5), nn.Embedding:_matrix,
                      nn.MultiheadAttention:_linear, nn.RNNBase:_linear} # in_proj_weight, the gates

    @classmethod
    def allowed_granularities(cls,
        m:nn.Module|type # A layer, or its type
    ) -> dict:           # Granularity -> dimension(s) of the weight that a group spans, counted from 1 (0: none)
        "The granularities of a layer's type, or of the nearest base class that has some; raises ValueError where there is none"
        t = m if isinstance(m, type) else type(m)
        for base in t.__mro__:
            if base in cls._granularities: return cls._granularities[base]
        raise ValueError(f"{t.__name__} has no granularities; layer types that do: {[t.__name__ for t in cls.available_modules()]}. "
                         f"Add it with Granularities.add_granularity({t.__name__}, {{'weight': 0, ...}})")

    @classmethod
    def get_dim(cls,
        m:nn.Module|type, # A layer, or its type
        g:str             # Granularity, one of `allowed_granularities(m)`
    ) -> list[int]:       # The dimensions a group spans, counted from 1; [0] for single weights
        "The dimensions that a group of granularity `g` spans; raises ValueError with the choices for an unknown one"
        table = cls.allowed_granularities(m)
        if not isinstance(g, str) or g not in table:
            t = m if isinstance(m, type) else type(m)
            raise ValueError(f"granularity={g!r} is not one of {t.__name__}'s; choose from {list(table)}")
        return list(table[g]) if isinstance(table[g], (tuple, list)) else [table[g]]

    @classmethod
    def out_dim(cls,
        m:nn.Module|type # A layer, or its type
    ) -> int|None:       # Counted from 1; None where the type has no `filter`
        "The dimension of the weight that counts output channels: the one that a filter does not span"
        spanned = cls._spanned(m, 'filter')
        return next((d for d in range(1, max(spanned) + 2) if d not in spanned), None) if spanned else None

    @classmethod
    def in_dim(cls,
        m:nn.Module|type # A layer, or its type
    ) -> int|None:       # Counted from 1; None where the type has neither `channel` nor a `filter` of one dimension
        "The dimension of the weight that counts input channels: what a `channel` spans, or the `filter` of a matrix"
        return next((d[0] for g in ('channel', 'filter') if len(d := cls._spanned(m, g)) == 1), None)

    @classmethod
    def _spanned(cls, m, g):
        d = cls.allowed_granularities(m).get(g, ())
        return tuple(d) if isinstance(d, (tuple, list)) else (d,)

    @classmethod
    def cut(cls,
        m:nn.Module,      # The layer
        weight:Tensor,    # Its weight, or one of them
        g,                # One of `allowed_granularities(m)`, or a block: its size along output channels, input channels and space, 1 where it isn't said
        nm:tuple=None     # (n, m) for an N:M pattern along the input channels
    ) -> Cut:
        "The groups of a weight; raises ValueError with the reason where it can't be cut so"
        shape,out,inp = tuple(weight.shape),cls.out_dim(m),cls.in_dim(m)
        if nm is not None:
            if inp is None: raise ValueError(f"{type(m).__name__} has no input channels")
            if shape[inp-1] % nm[1]: raise ValueError(f"{shape[inp-1]} input channels are no multiple of {nm[1]}")
            return Cut((*shape[:inp-1], shape[inp-1]//nm[1], nm[1], *shape[inp:]), (inp + 1,), nm, False)
        if isinstance(g, str): return Cut(shape, tuple(cls.get_dim(m, g)))
        first = [d for d in (out, inp) if d] if out and inp else [1, 2]
        order = [*first, *(d for d in range(1, len(shape) + 1) if d not in first)] # of the block's sizes
        if len(g) > len(shape): raise ValueError(f"a block of {len(g)} dimensions does not fit its {len(shape)}")
        size,seen,dims = dict(zip(order, g)),[],[]
        for d,s in enumerate(shape, 1):
            b = size.get(d, 1)
            if s % b: raise ValueError(f"{s} {dict(zip(order, ('output channels', 'input channels'))).get(d, 'along space')} are no multiple of {b}")
            seen += [s] if b == 1 else [s//b, b]
            if b > 1: dims.append(len(seen))
        return Cut(tuple(seen), tuple(dims), None, False)

    @classmethod
    def check(cls,
        m:type, # A layer type; `nn.Module` is any
        g       # A granularity
    ):
        "ValueError for a granularity that no layer of the type could have"
        if isinstance(g, (tuple, list)):
            if not g or not all(isinstance(b, Integral) and not isinstance(b, bool) and b > 0 for b in g) or max(g) == 1:
                raise ValueError(f"granularity={g!r}: a block is its size along output channels, input channels and space, such as (4, 1)")
        elif m is not nn.Module: cls.get_dim(m, g)

    @classmethod
    def available_modules(cls) -> tuple: # Layer types, for `isinstance`
        "The layer types that have granularities"
        return tuple(cls._granularities)

    @classmethod
    def available_granularities(cls) -> list[str]: # Names
        "Every granularity that some layer type has"
        return list(dict.fromkeys(g for table in cls._granularities.values() for g in table))

    @classmethod
    def add_granularity(cls,
        m_type:type, # The layer type; its instances hold their weights in `weight`
        g:dict       # Granularity -> dimension(s) of the weight that a group spans, counted from 1 (0: none)
    ):
        "Add a layer type, or replace its table; it holds for subclasses too"
        if not (isinstance(m_type, type) and issubclass(m_type, nn.Module)): raise ValueError(f"m_type must be a class of layers, got {m_type!r}")
        if not isinstance(g, dict) or not g: raise ValueError(f"g must be a dict such as {{'weight': 0, 'row': 2}}, got {g!r}")
        for name,dim in g.items():
            dims = dim if isinstance(dim, (tuple, list)) else (dim,)
            whole = all(isinstance(d, int) and not isinstance(d, bool) for d in dims)
            if not (whole and (tuple(dims) == (0,) or dims and min(dims) > 0 and len(set(dims)) == len(dims))):
                raise ValueError(f"g[{name!r}]={dim!r} must be 0, or the dimension(s) that a group spans, counted from 1, such as 2 or (2, 3)")
        cls._granularities[m_type] = dict(g)

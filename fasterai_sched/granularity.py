"""SHAPE: how a weight tensor is cut into groups that live or die together. One table a layer type, open for new types."""

from __future__ import annotations
from torch import nn

__all__ = ['Granularities']

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
_matrix = {'weight':0, 'column':1, 'row':2, 'layer':(1,2)}             # an Embedding's entries and features, attention's in_proj_weight, an RNN's gates

class Granularities:
    "The ways to cut the weights of each layer type into groups"
    _granularities = {nn.Conv2d:_conv(1, 2, 3, 4), nn.ConvTranspose2d:_conv(2, 1, 3, 4), nn.Conv1d:_conv1d, nn.Linear:_linear,
                      nn.Conv3d:_conv(1, 2, 3, 4, 5), nn.ConvTranspose1d:_conv(2, 1, 3), nn.ConvTranspose3d:_conv(2, 1, 3, 4, 5), nn.Embedding:_matrix,
                      nn.MultiheadAttention:_matrix, nn.RNNBase:_matrix}

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
        spanned = cls.allowed_granularities(m).get('filter')
        if spanned is None: return None
        spanned = spanned if isinstance(spanned, (tuple, list)) else (spanned,)
        return next(d for d in range(1, max(spanned) + 2) if d not in spanned)

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

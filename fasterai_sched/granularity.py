"""SHAPE: how a weight tensor is cut into groups that live or die together. One table a layer type, open for new types."""

from __future__ import annotations
from torch import nn

__all__ = ['Granularities']

# A group is what is left when the listed dimensions are put together. They are counted from 1, as in fasterai; 0 puts nothing together.
_conv2d = {           # weight: out, in, height, width
    'weight':0, 'shared_weight':1, 'channel':2, 'column':3, 'row':4, 'kernel':(3,4), 'filter':(2,3,4),
    'shared_channel':(1,2), 'shared_column':(1,3), 'shared_row':(1,4), 'vertical_slice':(2,3), 'horizontal_slice':(2,4),
    'shared_vertical_slice':(1,2,3), 'shared_horizontal_slice':(1,2,4), 'shared_kernel':(1,3,4), 'layer':(1,2,3,4)}
_conv_transpose2d = { # weight: in, out, height, width
    'weight':0, 'shared_weight':2, 'channel':1, 'column':3, 'row':4, 'kernel':(3,4), 'filter':(1,3,4),
    'shared_channel':(1,2), 'shared_column':(2,3), 'shared_row':(2,4), 'vertical_slice':(1,3), 'horizontal_slice':(1,4),
    'shared_vertical_slice':(1,2,3), 'shared_horizontal_slice':(1,2,4), 'shared_kernel':(2,3,4), 'layer':(1,2,3,4)}
_conv1d = {           # weight: out, in, width; column and row are fasterai's words for shared_weight and channel
    'weight':0, 'shared_weight':1, 'channel':2, 'column':1, 'row':2, 'kernel':3, 'filter':(2,3),
    'shared_channel':(1,2), 'shared_kernel':(1,3), 'layer':(1,2,3)}
_linear = {           # weight: out, in
    'weight':0, 'column':1, 'row':2, 'layer':(1,2)}

class Granularities:
    "The ways to cut the weights of each layer type into groups"
    _granularities = {nn.Conv2d:_conv2d, nn.ConvTranspose2d:_conv_transpose2d, nn.Conv1d:_conv1d, nn.Linear:_linear}

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

"""HOW: the words for what is pruned, checked as far as that needs no model."""

from __future__ import annotations
from dataclasses import dataclass
from numbers import Integral, Real

from torch import nn

from .budgets import as_context
from .criteria import as_criteria, large_final
from .granularity import Granularities, as_nm
from .layers import check_rules

__all__ = ['Options', 'check_percent', 'check_whole', 'check_round_to']

def check_percent(name, value):
    "ValueError unless `value` is a number from 0 to 100"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}={value!r} is not a number; a sparsity is a percentage, 0 to 100")
    if not 0 <= float(value) <= 100: raise ValueError(f"{name}={value!r} is outside 0 to 100; a sparsity is a percentage")

def check_whole(name, value, least=0):
    "ValueError unless `value` is None or a whole number"
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < least):
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}, or None")

def check_round_to(round_to):
    "ValueError unless `round_to` is None or a whole number of at least 1"
    check_whole('round_to', round_to, 1)

def iter_of(x):
    "`iter(x)`, or None where there is none"
    try: return iter(x)
    except TypeError: return None

@dataclass
class Options:
    "What `Sparsifier` is told beside the model; raises ValueError for words that no model could make sense of"
    granularity:object='weight'  # A name, or the size of a block
    context:object='local'       # A name, or a `Context`
    criteria:object=large_final  # A name, a `Criteria`, or a function of a weight tensor
    nm:object=False              # False, True for 2:4, or (n, m)
    layer_type:object=nn.Conv2d  # A type of layer, or several
    layers:object=None           # Rules for layers
    exclude:object=None          # Rules for layers
    keep_zeros:bool=False        # Whether a wholly zero weight stays so
    max_sparsity:object=None     # Percent, or {rule: percent}
    data:object=None             # Batches for calibration
    recalibrate:bool=True        # Whether calibration is repeated at each move

    def __post_init__(self):
        if isinstance(self.layer_type, list): self.layer_type = tuple(self.layer_type)
        if not isinstance(self.granularity, (str, tuple, list)): raise ValueError(f"granularity={self.granularity!r} must be a name, such as 'weight', or the size of a block, such as (4, 1)")
        for t in self.layer_type if isinstance(self.layer_type, tuple) else (self.layer_type,):
            if not (isinstance(t, type) and issubclass(t, nn.Module)):
                raise ValueError(f"layer_type={self.layer_type!r} must be a class of layers such as nn.Conv2d, or a tuple of them")
            Granularities.check(t, self.granularity)
        self.budget = as_context(self.context)
        self.criteria = as_criteria(self.criteria)
        self.nm = as_nm(self.nm)
        if self.nm and self.granularity != 'weight': raise ValueError(f"nm={self.nm!r} is a pattern of single weights: granularity={self.granularity!r} does not go with it")
        for n in ('layers', 'exclude'): check_rules(n, getattr(self, n))
        self._check_max()
        for n,given in dict(data=self.data is not None, recalibrate=not self.recalibrate).items():
            if given and not self.criteria.needs_data: raise ValueError(f"{n}= is for criteria that look at inputs, such as wanda: criteria={self.criteria.__name__} does not")
        if self.data is not None and iter_of(self.data) is self.data: self.data = list(self.data) # it could be read once only

    def _check_max(self):
        if self.max_sparsity is None: return
        if not self.budget.together: raise ValueError(f"max_sparsity={self.max_sparsity!r} is of no use with context={self.context!r}, where each layer is at the sparsity asked")
        if self.max_sparsity == {}: raise ValueError("max_sparsity={} is empty: give a percentage, or {rule: percentage}")
        if isinstance(self.max_sparsity, dict): check_rules('max_sparsity', self.max_sparsity)
        for v in self.max_sparsity.values() if isinstance(self.max_sparsity, dict) else [self.max_sparsity]:
            check_percent('max_sparsity', v)
            if 0 < float(v) < 1: raise ValueError(f"max_sparsity={v!r} is below 1%; a sparsity is a percentage, 0 to 100: did you mean {float(v)*100:g}?")

    @property
    def full(self):
        "The sparsity at which all is pruned that may be, in percent: that of an N:M pattern, else 100"
        if not self.nm: return 100
        n,m = self.nm
        return 100*(m - n)//m if 100*(m - n) % m == 0 else 100*(m - n)/m

    @property
    def given(self):
        "The argument that says how weights are cut, for messages"
        return f'nm={self.nm}' if self.nm else f'granularity={self.granularity!r}'

    @property
    def said(self):
        "The granularity in words"
        if self.nm: return f'{self.nm[0]}:{self.nm[1]} weights'
        return self.granularity if isinstance(self.granularity, str) else f"{'x'.join(map(str, self.granularity))} blocks"

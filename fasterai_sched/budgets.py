"""HOW MANY OF EACH: one sparsity -> what each layer has to give. One table of contexts, open for one's own."""

from __future__ import annotations
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from .masks import at_most, keep_masks

__all__ = ['Context', 'contexts', 'as_context', 'allot', 'pool', 'erk', 'lamp']

@dataclass(frozen=True)
class Context:
    "How layers share a sparsity: each for itself, by a density of each, or by all of their scores together"
    together:bool=True     # Whether there is one budget for all layers
    density:Callable=None  # Weight's shape -> how dense the layer is to be, in proportion to the others; None: by score
    rescale:Callable=None  # The scores of a layer's living groups -> scores that compare with other layers'; None: as they are
    in_groups:bool=False   # Whether the budget counts groups, and not weights

    def __post_init__(self):
        if self.density and (self.rescale or not self.together): raise ValueError("density tells how many of each layer go: it excludes rescale and together=False")

    @property
    def by_score(self):
        "Whether only scores tell how many of each layer go"
        return self.together and self.density is None

def erk(
    shape:tuple # A weight's
) -> float:     # Its density, but for a factor that all layers share
    "Erdős-Rényi-Kernel: the sum of a weight's dimensions over their product (Evci et al. 2020). Small layers stay denser"
    return sum(shape)/prod(shape)

def lamp(
    scores:Tensor # Of the living groups of a layer, flat
) -> Tensor:      # Float64, in the same order
    "Layer-adaptive: each score squared, over the sum of the squares that are not lower (Lee et al. 2021); negative scores are moved up to 0 first"
    s = scores.double().nan_to_num(posinf=torch.finfo(torch.float32).max, neginf=-torch.finfo(torch.float32).max)
    s = (s - s.min().clamp_max(0)).square() if len(s) else s
    value,order = s.sort(stable=True)
    above = value.flip(0).cumsum(0).flip(0)
    return torch.empty_like(s).scatter_(0, order, value/above.clamp_min(torch.finfo(s.dtype).tiny))

# Every context by name; docs and tests read it. `global` is the one whose budget counts groups, as in fasterai
contexts = {'local':Context(together=False), 'global':Context(in_groups=True), 'uniform':Context(density=lambda shape: 1.), 'erk':Context(density=erk), 'lamp':Context(rescale=lamp)}

def as_context(
    c # A `Context`, or a name from `contexts`
) -> Context:
    "`c` as a `Context`; raises ValueError with the choices for anything else"
    if isinstance(c, Context): return c
    if isinstance(c, str) and c in contexts: return contexts[c]
    raise ValueError(f"context={c!r} is not one of {list(contexts)}")

def allot(
    densities:list[float], # How dense each layer is to be, in proportion
    weights:list[int],     # Weights of each layer
    sizes:list[int],       # Weights in a group of each
    least:list[int],       # Groups of each that are to be pruned at least
    most:list[int],        # and at most
    total:int              # Weights to prune in all
) -> list[int]:            # Groups of each
    "Whole groups, rounded from what the densities say, that make `total` weights, or as little less as a group is large. A larger total takes no group back"
    d,w,s,lo,hi = (np.array(x, dtype=float) for x in (densities, weights, sizes, least, most))
    def counts(scale): return np.clip(np.floor(w*(1 - scale*d)/s + .5), lo, hi)
    # the scale at which they are `total`: between two neighbouring floats those groups go that no density tells apart
    many,few = 0.,1/d.min()
    if s@counts(many) <= total: return [int(k) for k in counts(many)]
    while many < (mid := (many + few)/2) < few:
        if s@counts(mid) > total: many = mid
        else: few = mid
    ks,more = counts(few),counts(many)
    left = total - s@ks
    for i in np.flatnonzero(more > ks): # in model order
        take = min(more[i] - ks[i], max(left, 0)//s[i])
        ks[i],left = ks[i] + take,left - take*s[i]
    return [int(k) for k in ks]

def pool(
    context:Context,         # One by score
    scores:list[Tensor],     # The scores of each layer's groups
    masks:list[Tensor|None], # What each layer keeps so far; None: all
    sizes:list[int],         # Weights in a group of each layer
    most:list[int],          # Groups of each that may be pruned at most
    budget:int,              # Groups or weights to prune in all, as the context counts
    back:list[Tensor]=None   # As for `keep_masks`
) -> list[Tensor]:           # What each layer keeps now
    "Prune the lowest of all layers together, but of each no more than `most`; or, where the budget is smaller than what is pruned, bring groups back"
    masks = [torch.ones(s.shape, dtype=torch.bool, device=s.device) if m is None else m for s,m in zip(scores, masks)]
    # what is beyond a layer's `most` is out of the choice, as if it were pruned already
    last = [m if hi >= m.numel() else keep_masks([s], [m], max(hi, m.numel() - int(m.count_nonzero())))[0] for s,m,hi in zip(scores, masks, most)]
    spared = [None if l is m else l for l,m in zip(last, masks)]
    choice = [m if o is None else m & ~o for m,o in zip(masks, spared)]
    shared = scores if context.rescale is None else [_rescaled(context.rescale, s, m) for s,m in zip(scores, masks)]
    weights = sum(int(o.count_nonzero())*z for o,z in zip(spared, sizes) if o is not None)
    groups  = sum(int(o.count_nonzero()) for o in spared if o is not None)
    k = budget + groups if context.in_groups else at_most(shared, choice, sizes, budget + weights, back)
    out = keep_masks(shared, choice, min(k, sum(m.numel() for m in masks)), back)
    out = [m if o is None else m | o for m,o in zip(out, spared)]
    if context.rescale is None: return out
    # a rescaled score may tie with its neighbour's where the score does not: each layer's own scores have the last word
    return [keep_masks([s], [m], o.numel() - int(o.count_nonzero()), None if back is None else [back[i]])[0] for i,(s,m,o) in enumerate(zip(scores, masks, out))]

def _rescaled(f, scores, mask):
    out = torch.zeros(scores.shape, dtype=torch.float64, device=scores.device)
    out[mask] = f(scores[mask]).double()
    return out

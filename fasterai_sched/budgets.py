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
    rescale:Callable=None  # The scores of a layer's living groups, ascending -> as many that compare with other layers', ascending too; None: as they are
    in_groups:bool=False   # Whether the budget counts groups, and not weights; not with `density`

    def __post_init__(self):
        for n in ('density', 'rescale'):
            f = getattr(self, n)
            if f is not None and not callable(f): raise ValueError(f"{n}={f!r} must be a function, or None")
        if self.density and (self.rescale or self.in_groups): raise ValueError("density tells how many weights of each layer go: it excludes rescale and in_groups")
        if not self.together and (self.density or self.rescale): raise ValueError("together=False gives each layer the sparsity asked: it excludes density and rescale")

    @property
    def by_score(self):
        "Whether only scores tell how many of each layer go"
        return self.together and self.density is None

    def dense(self,
        shape:tuple, # A weight's
        name:str     # Its layer's, for messages
    ) -> float:
        "`density`; raises ValueError for what is no density"
        try: d = float(self.density(shape))
        except Exception as e: raise ValueError(f"density fails for layer {name!r}, whose weight has the shape {shape}: {type(e).__name__}: {e}") from e
        if not 0 < d < float('inf'): raise ValueError(f"density gives {d:g} for layer {name!r}, whose weight has the shape {shape}: it must be above 0 and finite")
        return d

    def scores(self,
        ascending:Tensor, # A layer's, sorted
        name:str          # Its name, for messages
    ) -> Tensor:          # Float64
        "`rescale`; raises ValueError for what does not go on ascending"
        if self.rescale is None or not len(ascending): return ascending.double()
        try: out = self.rescale(ascending)
        except Exception as e: raise ValueError(f"rescale fails for the scores of layer {name!r}: {type(e).__name__}: {e}") from e
        if not isinstance(out, Tensor) or out.shape != ascending.shape:
            raise ValueError(f"rescale must give as many scores as it gets: {len(ascending)} of layer {name!r}, got {tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__}")
        out = out.double()
        if not (out[1:] >= out[:-1]).all() or out.isnan().any(): raise ValueError(f"rescale must keep the order of scores, which it gets ascending: those of layer {name!r} came back otherwise, or as NaN")
        return out

def even(
    shape:tuple # A weight's
) -> float:
    "The same density everywhere"
    return 1.

def erk(
    shape:tuple # A weight's
) -> float:     # Its density, but for a factor that all layers share
    "Erdős-Rényi-Kernel: the sum of a weight's dimensions over their product (Evci et al. 2020). Small layers stay denser"
    return sum(shape)/prod(shape)

def lamp(
    scores:Tensor # Of the living groups of a layer, ascending
) -> Tensor:      # Float64
    "Layer-adaptive: each score squared, over the sum of the squares from it on (Lee et al. 2021); negative scores are moved up to 0 first"
    top = torch.finfo(torch.float32).max
    s = scores.double().nan_to_num(posinf=top, neginf=-top)
    s = (s - s[:1].clamp_max(0)).square()
    return s/s.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(s.dtype).tiny)

# Every context by name; docs and tests read it. `global` is the one whose budget counts groups, as in fasterai
contexts = {'local':Context(together=False), 'global':Context(in_groups=True), 'uniform':Context(density=even), 'erk':Context(density=erk), 'lamp':Context(rescale=lamp)}

def as_context(
    c # A `Context`, or a name from `contexts`
) -> Context:
    "`c` as a `Context`; raises ValueError with the choices for anything else"
    if isinstance(c, Context): return c
    if isinstance(c, str) and c in contexts: return contexts[c]
    raise ValueError(f"context={c!r} is not one of {list(contexts)}; one of your own is Context(density=...) or Context(rescale=...)")

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
    back:list[Tensor]=None,  # As for `keep_masks`
    names:list[str]=None     # The layers', for messages
) -> list[Tensor]:           # What each layer keeps now
    "Prune the lowest of all layers together, but of each no more than `most`; or, where the budget is smaller than what is pruned, bring groups back"
    masks = [torch.ones(s.shape, dtype=torch.bool, device=s.device) if m is None else m for s,m in zip(scores, masks)]
    # what is beyond a layer's `most` is out of the choice, as if it were pruned already
    last = [m if hi >= m.numel() else keep_masks([s], [m], max(hi, m.numel() - int(m.count_nonzero())))[0] for s,m,hi in zip(scores, masks, most)]
    spared = [None if l is m else l for l,m in zip(last, masks)]
    choice = [m if o is None else m & ~o for m,o in zip(masks, spared)]
    if context.rescale is not None and back is None: return _by_rank(context, scores, masks, choice, sizes, budget, names)
    weights = sum(int(o.count_nonzero())*z for o,z in zip(spared, sizes) if o is not None)
    groups  = sum(int(o.count_nonzero()) for o in spared if o is not None)
    k = budget + groups if context.in_groups else at_most(scores, choice, sizes, budget + weights, back)
    out = keep_masks(scores, choice, min(k, sum(m.numel() for m in masks)), back)
    return [m if o is None else m | o for m,o in zip(out, spared)]

def _by_rank(context, scores, masks, choice, sizes, budget, names):
    "How many of each layer go is told by its rescaled scores in ascending order; which, by the scores themselves"
    ranks = [context.scores(s[m].sort().values, n)[:int(c.count_nonzero())] for s,m,c,n in zip(scores, masks, choice, names or range(len(masks)))]
    dead = [m.numel() - int(m.count_nonzero()) for m in masks]
    left = budget - sum(d*(1 if context.in_groups else z) for d,z in zip(dead, sizes))
    k = at_most(ranks, [None]*len(ranks), [1]*len(ranks) if context.in_groups else sizes, left)
    out = keep_masks(ranks, [None]*len(ranks), min(k, sum(map(len, ranks))))
    return [keep_masks([s], [m], d + len(r) - int(o.count_nonzero()))[0] for s,m,d,r,o in zip(scores, masks, dead, ranks, out)]

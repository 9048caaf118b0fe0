"""HOW MANY: scores and a budget -> masks of what is kept. Every count in the library is made here."""

from __future__ import annotations
import math

import numpy as np
import torch
from torch import Tensor

__all__ = ['n_pruned', 'round_kept', 'keep_masks']

def n_pruned(
    sparsity:float, # In percent, 0 to 100
    n:int           # Number of groups
) -> int:           # `floor(sparsity/100*n)`
    "How many of `n` groups a sparsity prunes: as many as it says and never more"
    # 29% of 100 may come as 28.999999999999996: a schedule's arithmetic is good to about 1e-13 percentage points
    return min(max(math.floor((float(sparsity) + 1e-12)*n/100), 0), n)

def round_kept(
    k:int,       # Number of groups to prune
    n:int,       # Number of groups
    round_to:int # The number kept becomes a multiple of this
) -> int:        # Number of groups to prune then; `k` or fewer
    "Prune fewer, so that the number of groups kept is a multiple of `round_to`, or all of them"
    return n - min(math.ceil((n - k)/round_to)*round_to, n)

def _ordered(i:Tensor) -> Tensor:
    "The bits of floats, as integers that sort as the floats do; and back"
    return i ^ ((i >> (8*i.itemsize - 1)) & torch.iinfo(i.dtype).max)

def _kth_smallest(x:Tensor, k:int) -> Tensor:
    "The `k`-th smallest of `x`, counted from 1"
    if x.device.type != 'cpu': return x.kthvalue(k).values
    # on the CPU torch.kthvalue takes 20 times as long; numpy's partition is fastest on integers
    keys = _ordered(x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)).numpy()
    return _ordered(torch.from_numpy(np.partition(keys, k-1)[k-1:k])).view(x.dtype)[0]

def _lowest(x:Tensor, k:int) -> Tensor:
    "True at the `k` smallest of `x`; equal ones by position, the first first"
    if k == 0: return torch.zeros_like(x, dtype=torch.bool)
    if k == len(x): return torch.ones_like(x, dtype=torch.bool)
    t = _kth_smallest(x, k)
    low,ties = x < t, (x == t).nonzero().flatten()
    low[ties[:k - int(low.sum())]] = True
    return low

def keep_masks(
    scores:list[Tensor],     # The scores of each layer's groups, any shape; NaN is not allowed
    masks:list[Tensor|None], # What each layer keeps so far, bool, same shapes; None: all
    k:int                    # How many groups to prune in all, those already pruned included
) -> list[Tensor]:           # What each layer keeps now, bool: exactly `k` are False
    "Prune down to `k`: what is pruned stays pruned, then the lowest scores go, equal ones by position; a smaller `k` brings the last back"
    alive = [None if m is None else m.flatten().nonzero().flatten() for m in masks]
    dead  = sum(s.numel() - len(a) for s,a in zip(scores, alive) if a is not None)
    if k < dead: return _revive(masks, scores, dead - k)
    # adding 0 turns -0. into 0., which is equal but has other bits
    flat = [s.flatten() if a is None else s.flatten()[a] for s,a in zip(scores, alive)]
    lows = _lowest(torch.cat([f.to(flat[0].device) for f in flat]).add_(0.), k - dead).split([len(f) for f in flat])
    def keep(s, a, low):
        if a is None: return ~low.view(s.shape)
        out = torch.zeros(s.numel(), dtype=torch.bool, device=s.device)
        out[a] = ~low.to(s.device)
        return out.view(s.shape)
    return [keep(s, a, low) for s,a,low in zip(scores, alive, lows)]

def _revive(masks, scores, n):
    "Bring back the last `n` by position of what `masks` have pruned"
    out = [torch.ones(s.shape, dtype=torch.bool, device=s.device) if m is None else m.clone(memory_format=torch.contiguous_format) for s,m in zip(scores, masks)]
    for m in reversed(out):
        back = (~m.flatten()).nonzero().flatten()
        back = back[max(len(back) - n, 0):]
        m.view(-1)[back] = True
        n -= len(back)
    return out

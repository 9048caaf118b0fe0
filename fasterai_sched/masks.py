"""HOW MANY: scores and a budget -> masks of what is kept. Every count in the library is made here."""

from __future__ import annotations
import math

import numpy as np
import torch
from torch import Tensor

__all__ = ['n_pruned', 'round_kept', 'keep_masks', 'at_most', 'lowest_of_each']

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

def _those(scores, masks, kept):
    "The places and the scores, flat and one after the other, of what `masks` keep (or prune)"
    at = [None if m is None and kept else (m if kept else ~m).flatten().nonzero().flatten() if m is not None else torch.empty(0, dtype=torch.long, device=s.device)
          for s,m in zip(scores, masks)]
    # adding 0 turns -0. into 0., which is equal but has other bits
    flat = [s.flatten() if a is None else s.flatten()[a] for s,a in zip(scores, at)]
    return at,[len(f) for f in flat],torch.cat([f.to(flat[0].device) for f in flat]).add_(0.)

def keep_masks(
    scores:list[Tensor],     # The scores of each layer's groups, any shape; NaN is not allowed
    masks:list[Tensor|None], # What each layer keeps so far, bool, same shapes; None: all
    k:int,                   # How many groups to prune in all, those already pruned included
    back:list[Tensor]=None   # Scores by which pruned groups come back, the highest first; None: by position, the last first
) -> list[Tensor]:           # What each layer keeps now, bool: exactly `k` are False
    "Prune down to `k`: what is pruned stays pruned, then the lowest scores go, equal ones by position; a smaller `k` brings groups back"
    dead = sum(0 if m is None else m.numel() - int(m.count_nonzero()) for m in masks)
    if k < dead: return _revive(masks, scores, dead - k, back)
    at,sizes,flat = _those(scores, masks, True)
    def keep(s, a, low):
        if a is None: return ~low.view(s.shape)
        out = torch.zeros(s.numel(), dtype=torch.bool, device=s.device)
        out[a] = ~low.to(s.device)
        return out.view(s.shape)
    return [keep(s, a, low) for s,a,low in zip(scores, at, _lowest(flat, k - dead).split(sizes))]

def _revive(masks, scores, n, back):
    "Bring back `n` of what `masks` have pruned"
    out = [torch.ones(s.shape, dtype=torch.bool, device=s.device) if m is None else m.clone(memory_format=torch.contiguous_format) for s,m in zip(scores, masks)]
    at,sizes,flat = _those([torch.zeros_like(s) for s in scores] if back is None else back, masks, False)
    # the highest of what is there, equal ones the last first: the lowest of it turned about
    for m,a,high in zip(out, at, _lowest(-flat.flip(0), n).flip(0).split(sizes)): m.view(-1)[a[high.to(m.device)]] = True
    return out

def at_most(
    scores:list[Tensor],     # As for `keep_masks`
    masks:list[Tensor|None], # As for `keep_masks`
    sizes:list[int],         # Weights in a group of each layer
    budget:int,              # How many weights may be pruned in all, those already pruned included
    back:list[Tensor]=None   # As for `keep_masks`
) -> int:                    # How many groups may then
    "How many groups, in the order in which `keep_masks` takes them, a number of weights is enough for"
    dead = [0 if m is None else m.numel() - int(m.count_nonzero()) for m in masks]
    if len(set(sizes)) == 1: return budget//sizes[0]
    left = budget - sum(d*s for d,s in zip(dead, sizes))
    if left >= 0:
        _,ns,flat = _those(scores, masks, True)
        order = flat.argsort(stable=True)
    else: # they come back until few enough are pruned
        _,ns,flat = _those([torch.zeros_like(s) for s in scores] if back is None else back, masks, False)
        order = len(flat) - 1 - (-flat.flip(0)).argsort(stable=True)
    each = torch.tensor(sizes, device=flat.device).repeat_interleave(torch.tensor(ns, device=flat.device))[order].cumsum(0)
    if left >= 0: return sum(dead) + int((each <= left).sum())
    return sum(dead) - min(int((each < -left).sum()) + 1, len(each))

def lowest_of_each(
    scores:Tensor, # A score for each weight
    dim:int,       # The dimension along which a group lies
    k:int          # How many of each group go
) -> tuple[Tensor,Tensor]: # What the `k` lowest of each group add up to, `dim` 1; True at those
    "The lowest of each group, equal ones by position: the pattern of N:M, and what it costs"
    value,order = scores.sort(dim=dim, stable=True)
    low = torch.zeros_like(scores, dtype=torch.bool).scatter_(dim, order.narrow(dim, 0, k), True)
    return value.narrow(dim, 0, k).sum(dim, keepdim=True),low

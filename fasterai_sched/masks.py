"""HOW MANY: scores and a budget -> masks of what is kept. Every count in the library is made here."""

from __future__ import annotations
import math

import numpy as np
import torch
from torch import Tensor

from .lowest import Part, as_ints, lowest

__all__ = ['n_pruned', 'round_kept', 'keep_masks', 'at_most', 'lowest_of_each', 'hold', 'drop']

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

def keep_masks(
    scores:list[Tensor],     # The scores of each layer's groups, any shape; NaN is not allowed
    masks:list[Tensor|None], # What each layer keeps so far, bool, same shapes; None: all
    k:int,                   # How many groups to prune in all, those already pruned included
    back:list[Tensor]=None   # Scores by which pruned groups come back, the highest first; None: by position, the last first
) -> list[Tensor]:           # What each layer keeps now, bool: exactly `k` are False
    "Prune down to `k`: what is pruned stays pruned, then the lowest scores go, equal ones by position; a smaller `k` brings groups back"
    dead = [0 if m is None else m.numel() - int(m.count_nonzero()) for m in masks]
    if k < sum(dead): return _revive(masks, scores, sum(dead) - k, back)
    parts = [Part(s, m, alive=s.numel() - d) for s,m,d in zip(scores, masks, dead)]
    return [p.keep.view(s.shape) for p,s in zip(lowest(parts, k - sum(dead)), scores)]

def _revive(masks, scores, n, back):
    "Bring back the `n` highest of what `masks` have pruned, equal ones the last first: the lowest of what is pruned, turned about"
    turned = lambda x: x.reshape(-1).flip(0)
    dead  = [torch.zeros(s.shape, dtype=torch.bool, device=s.device) if m is None else ~m for s,m in zip(scores, masks)]
    parts = [Part(-turned(s), turned(d)) for s,d in zip(scores if back is None else back, dead)] if back is not None else [Part(torch.zeros(s.numel(), device=s.device), turned(d)) for s,d in zip(scores, dead)]
    return [~turned(p.keep).view(s.shape) for p,s in zip(reversed(lowest(parts[::-1], n)), scores)]

def _those(scores, masks, kept):
    "How many of each layer `masks` keep (or prune), and their scores, flat and one after the other"
    flat = [s.flatten()[(m if kept else ~m).flatten()] if m is not None else s.flatten() if kept else s.new_empty(0) for s,m in zip(scores, masks)]
    return [len(f) for f in flat],torch.cat([f.to(flat[0].device) for f in flat])

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
        ns,flat = _those(scores, masks, True)
        order = flat.argsort(stable=True)
    else: # they come back until few enough are pruned
        ns,flat = _those([torch.zeros_like(s) for s in scores] if back is None else back, masks, False)
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

@torch.no_grad()
def hold(
    t:Tensor,   # Any floating tensor, in any memory format
    keep:Tensor # Bool, on its device, broadcasts to it
):
    "Zero what is not kept, in place: NaN and infinity too, as it is the bits that are multiplied"
    bits = as_ints(t.detach())
    # one thread of numpy does this as fast as four of torch
    if t.device.type == 'cpu' and torch.get_num_threads() <= 4: np.multiply(bits.numpy(), keep.numpy(), out=bits.numpy())
    else: bits.mul_(keep)

@torch.no_grad()
def drop(
    t:Tensor,     # Any floating tensor, contiguous
    places:Tensor # Of its elements, counted flat
):
    "Zero these few, in place"
    t.detach().view(-1)[places.to(t.device)] = 0

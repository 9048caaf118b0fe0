"""WHICH GO: the k lowest of some scores among what lives, exactly, and hardly slower than the scores can be read."""

from __future__ import annotations
from dataclasses import dataclass
from math import gcd, inf, sqrt

import numpy as np
import torch
from torch import Tensor

__all__ = ['NotANumber', 'Part', 'Pruned', 'as_ints', 'lowest']

CHUNK = 1 << 17 # elements looked at together: they stay in the cache from one operation to the next
SMALL = 1 << 15 # elements that are rather sorted than sampled
RUN   = 16      # elements looked at in each place of a sample: as many as come from memory with one

class NotANumber(ValueError):
    "A score is NaN"
    def __init__(self,
        part:int # Whose: its place among the parts
    ):
        super().__init__(f"a score of part {part} is NaN")
        self.part = part

class Part:
    "The scores of one layer, of which those that are pruned don't count"
    def __init__(self,
        scores:Tensor,        # Any shape; float32 or float64, or any floating type if `magnitude`
        keep:Tensor=None,     # What lives, bool, same shape; None: all
        magnitude:bool=False, # Whether the scores are the magnitudes of these floats, and not the floats
        alive:int=None,       # How many live; None: to be counted
        zero:bool=False,      # Whether what goes is set to 0, in `scores` itself, and where it is little, in `keep`, too. They are magnitudes and contiguous then
        clean:bool=False      # Whether what is pruned is known to be 0
    ):
        self.scores,self.magnitude,self.zero,self.clean,self.n = scores.detach().reshape(-1),magnitude,zero,clean,scores.numel()
        self.keep  = None if keep is None else keep.reshape(-1)
        self.alive = alive if alive is not None else self.n if keep is None else int(keep.count_nonzero())

    def as_floats(self):
        "The same as scores that compare with those of another type; not pruned in place"
        x = self.scores.abs() if self.magnitude else self.scores
        return Part(x.double(), self.keep, alive=self.alive)

@dataclass
class Pruned:
    "A part when some of it has gone"
    keep:Tensor        # What lives, bool, flat
    n:int              # How many went
    zero:bool          # Whether all that is pruned is 0 now
    places:Tensor=None # Which, if they are few; None: not told

def lowest(
    parts:list[Part], # Whose scores are compared with one another; equal ones by position, the first first
    k:int             # How many go, of all that live
) -> list[Pruned]:
    "Prune the `k` lowest of what lives; raises NotANumber, having changed nothing, where a score is NaN"
    if k == 0: return [Pruned(torch.ones(p.n, dtype=torch.bool, device=p.scores.device) if p.keep is None else p.keep.clone(), 0, False, torch.empty(0, dtype=torch.long)) for p in parts]
    if len({(p.magnitude, p.scores.dtype) for p in parts}) > 1: parts = [p.as_floats() for p in parts]
    return _on_cpu(parts, k) if all(p.scores.device.type == 'cpu' for p in parts) else _anywhere(parts, k)

# -- on the CPU: a sample tells between which two scores the threshold should be, and only what is there is looked at closely ----

def _as_floats(i, dtype): return torch.from_numpy(i).view(dtype)
def as_ints(
    x:Tensor # Of floats
) -> Tensor: # A view
    "Its bits, as integers"
    return x.view({2:torch.int16, 4:torch.int32, 8:torch.int64}[x.itemsize])
_INF = {d:int(as_ints(torch.tensor(inf, dtype=d))) for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)} # its bits

class _Chunks:
    "A part for numpy and torch, each of which does what it does faster"
    def __init__(self, part):
        self.x,self.magnitude,self.zero,self.clean,self.n,self.alive = part.scores,part.magnitude,part.zero,part.clean,part.n,part.alive
        self.keep = None if part.keep is None else part.keep.numpy()
        # the bits of magnitudes are integers that sort as they do, in any precision
        self.keys = (as_ints(self.x) if self.magnitude else self.x).numpy()
        self.top  = np.iinfo(self.keys.dtype).max if self.magnitude else None
        self.inf  = _INF[self.x.dtype] if self.magnitude else inf
        self.nan  = False # whether it has seen one: its bits are above those of infinity, and it is not below it

    def values(self, at, out=None):
        "Of a slice or some places what sorts as the scores do"
        return np.bitwise_and(self.keys[at], self.top, out=out) if self.magnitude else self.keys[at]

    def sample(self, step):
        "What lives of a few elements in every `step`"
        while gcd(step, 210*max(self.n, 1)) > 1: step += 1 # in step with no dimension
        rows = self.n//step
        runs = lambda x: x[:rows*step].reshape(rows, step)[:, :RUN].reshape(-1)
        values = runs(self.keys) & self.top if self.magnitude else runs(self.keys)
        return values if self.keep is None else values[runs(self.keep)]

    def scan(self, low, high):
        "How many are above `high` (if there is a `low`), and the places and values of those that are above `low` and not above `high`"
        m = min(CHUNK, self.n)
        buf,between,count,places,values = np.empty(m, self.keys.dtype),np.empty(m, bool),0,[],[]
        self.new = None if low is None else np.empty(self.n, bool) # of what is above `high` it is sure that it stays
        for i in range(0, max(self.n, 1), CHUNK):
            at = slice(i, min(i + CHUNK, self.n))
            m  = at.stop - i
            a,b = self.values(at, buf[:m]),between[:m]
            if m and not a.max() <= self.inf: self.nan = True
            if low is None: # what goes is among few, and all others stay
                if high is None: b[:] = True
                else: np.less_equal(a, high, out=b)
                if self.keep is not None: b &= self.keep[at]
            else:
                up = self.new[at]
                np.greater(a, low, out=b)
                if high is None: up[:] = False
                else: np.greater(a, high, out=up)
                b ^= up
                if self.keep is not None and not self.clean: # what is 0 is not above `low`
                    b &= self.keep[at]
                    up &= self.keep[at]
                count += int(np.count_nonzero(up))
            j = b.nonzero()[0]
            values.append(a[j])
            j += i
            places.append(j)
        return count,np.concatenate(places),np.concatenate(values)

    def prune_few(self, goes):
        "What is at these places goes"
        keep = np.ones(self.n, bool) if self.keep is None else self.keep if self.zero else self.keep.copy()
        keep[goes] = False
        if self.zero: self.keys[goes] = 0
        return Pruned(torch.from_numpy(keep), len(goes), self.zero and self.clean, torch.from_numpy(goes))

    def prune(self, t, places, over, stays, n):
        "Of what the scan has seen at `places` goes what is not over `t`, but for what is at `stays`: with all that was below, `n`"
        keep = self.new
        keep[places] = over
        keep[stays]  = True
        if self.zero and self.clean: # to shrink what is small to 0 in place is fastest
            saved,limit = self.keys[stays],_as_floats(np.array([t]), self.x.dtype).item()
            torch.hardshrink(self.x, limit, out=self.x)
            self.keys[stays] = saved
        elif self.zero: np.multiply(self.keys, keep, out=self.keys)
        return Pruned(torch.from_numpy(keep), n, self.zero)

def _brackets(chunks, k, n):
    "(low, high): the `k`-th lowest of `n` should be above the one and not above the other; ever wider, None for no limit"
    size = sum(c.n for c in chunks)
    runs = min(max((size + 3*n) >> 11, 1 << 8), 1 << 13) # the more lives, the more a narrow bracket saves
    sample = np.sort(np.concatenate([c.sample(max(size//runs, 4*RUN)) for c in chunks])) if size > SMALL else ()
    m = len(sample)
    for wide in (2.2, 10, 40) if m >= 64 else ():
        margin = wide*sqrt(k/n*(1 - k/n)*m) + 2
        lo,hi = int(k/n*m - margin),int(k/n*m + margin) + 1
        # just below what the sample says; no magnitude is below 0, and then there is no limit
        low = None if lo < m >> 5 or chunks[0].magnitude and not sample[lo] else sample[lo] - 1 if chunks[0].magnitude else np.nextafter(sample[lo], -inf, dtype=sample.dtype)
        yield low,None if hi >= m else sample[hi]
    yield None,None

def _on_cpu(parts, k):
    chunks = [_Chunks(p) for p in parts]
    n = sum(c.alive for c in chunks)
    for low,high in _brackets(chunks, k, n):
        scans = [c.scan(low, high) for c in chunks]
        for i,c in enumerate(chunks):
            if c.nan: raise NotANumber(i)
        within,above = sum(len(places) for _,places,_ in scans),sum(count for count,_,_ in scans)
        below = 0 if low is None else n - above - within
        if below < k <= below + within: break
    values = np.concatenate([v for _,_,v in scans])
    t = values[0] if (values == values[0]).all() else np.partition(values, k - below - 1)[k - below - 1]
    n_same = int(np.count_nonzero(values == t))
    ties,out = k - below - int(np.count_nonzero(values < t)),[] # of those that are `t`, so many go
    for c,(above,places,values) in zip(chunks, scans):
        under = values <= t
        same  = places[values == t] if ties < n_same else places[:0] # if all of them go, they need not be told apart
        stays,ties = same[ties:],max(ties - len(same), 0)
        if low is None: out.append(c.prune_few(places[under] if not len(same) else np.concatenate([places[values < t], same[:len(same) - len(stays)]])))
        else: out.append(c.prune(t, places, ~under, stays, c.alive - above - len(places) + int(np.count_nonzero(under)) - len(stays)))
    return out

# -- anywhere: histograms of the upper and the lower half of the keys ------------------------------------------------------------

def _keys(p):
    "Integers that sort as the scores do"
    if p.magnitude: return (i := as_ints(p.scores)) & torch.iinfo(i.dtype).max
    i = as_ints(p.scores + 0.) # -0. is 0.
    return i ^ ((i >> (8*i.itemsize - 1)) & torch.iinfo(i.dtype).max)

def _anywhere(parts, k):
    "The same with torch, on any device: no score is sorted, and none leaves the device"
    for i,p in enumerate(parts):
        if p.scores.sum().isnan() and p.scores.isnan().any(): raise NotANumber(i)
    keys = [_keys(p) for p in parts]
    bits,t,below = 8*keys[0].itemsize,0,0
    for shift in range(bits - 16, -1, -16): # 16 bits at a time, from the top
        hist = sum(_histogram(p, x, shift, t).to(keys[0].device) for p,x in zip(parts, keys)).cumsum(0)
        digit = int(torch.searchsorted(hist, k - below))
        below += int(hist[digit-1]) if digit else 0
        t = (t << 16) | digit if shift < bits - 16 else digit - (1 << 15)
    ties,out = k - below,[]
    for p,x in zip(parts, keys):
        live = torch.ones_like(x, dtype=torch.bool) if p.keep is None else p.keep
        same = ((x == t) & live).nonzero().flatten()
        keep = live & (x > t)
        keep[same[ties:]] = True
        ties = max(ties - len(same), 0)
        out.append(Pruned(keep, p.alive - int(keep.count_nonzero()), False))
    return out

def _histogram(p, x, shift, t):
    "How many living keys that begin as `t` have each value of the 16 bits from `shift` on"
    top = shift + 16 == 8*x.itemsize
    digit = (x >> shift).to(torch.int32) + (1 << 15) if top else ((x >> shift) & 0xffff).to(torch.int32)
    out = torch.zeros_like(x, dtype=torch.bool) if p.keep is None else ~p.keep
    if not top: out = out | ((x >> (shift + 16)) != t)
    return torch.bincount(digit.masked_fill_(out, 1 << 16), minlength=(1 << 16) + 1)[:1 << 16]

"""MOVED: layers that share one sparsity, from the masks they have to the masks that are due."""

from __future__ import annotations
from dataclasses import replace
import warnings

import torch

from .budgets import allot, pool
from .held import Held
from .lowest import NotANumber, lowest
from .masks import keep_masks, n_pruned, round_kept
from .options import Options
from .report import n_zeros

__all__ = ['Budget']

class Budget:
    "One layer, or all that train where the context gives them one budget; and what was asked of them last"
    asked = None # (percent, how many were pruned then, round_to)
    def __init__(self,
        layers:list[Held],  # In model order
        options:Options,    # How they are pruned
        alone:bool,         # Whether it is one layer for itself, in whatever context
        partial:bool=False  # Whether there are more layers, which do not train for now
    ):
        self.partial = partial
        self.layers,self.options,self.context,self.alone = layers,options,options.budget,alone
        self.in_groups,self.emptied = alone or options.budget.in_groups,set() # else it counts weights

    # -- how many ----------------------------------------------------------------------------------------------------------------

    def _sum(self, what): return sum(getattr(l, what)*(1 if self.in_groups else l.size) for l in self.layers)
    @property
    def pruned(self): return self._sum('dead')

    def wanted(self,
        s:float,      # Percent
        round_to:int, # Multiple for the groups kept, or None
        kept=None     # Groups of each layer that are to stay zero; None: those that are now
    ) -> int:
        "How many groups (or weights) a sparsity prunes, never fewer than are to stay zero; raises ValueError where `max_sparsity` is in the way"
        unit,o = 'n' if self.in_groups else 'numel',self.options
        n = sum(getattr(l, unit) for l in self.layers)
        # of an N:M pattern all groups are done at its own sparsity
        k = n_pruned(100*s/o.full if self.in_groups else s, n)
        kept = self._sum('kept') if kept is None else sum(x*(1 if self.in_groups else l.size) for l,x in zip(self.layers, kept))
        if self.alone: return max(round_kept(k, n, round_to) if round_to else k, kept)
        if o.max_sparsity is not None:
            top = sum(l.limit*getattr(l, unit) for l in self.layers)/n
            if s > top + 1e-9 and not self.partial: raise ValueError(f"sparsity={s!r} can't be reached with max_sparsity={o.max_sparsity!r}: {top:g}% is the most")
            k = min(k, sum(max(l.most, l.dead)*(1 if self.in_groups else l.size) for l in self.layers))
        return max(k, kept)

    def grows(self, s):
        "Whether such a sparsity prunes more than is pruned"
        return self.wanted(s, None) > self.pruned
    def falls(self, s):
        "Whether less is asked than was last"
        return self.asked is not None and s < self.asked[0]

    def counts(self,
        s:float,      # Percent
        round_to:int, # Multiple for the groups kept, or None
        fallen:bool   # Whether the schedule has fallen by then, so that zeros of the start may come back
    ) -> list:        # Groups of each layer; None where only scores will tell
        "What such a sparsity prunes, from the zeros there were at the start"
        kept = [0 if fallen and not self.options.keep_zeros else l.kept for l in self.layers]
        k = self.wanted(s, round_to, kept)
        if self.alone: return [k]
        if self.context.by_score: return [None]*len(self.layers)
        ks = self._allotted(k, [(o, max(l.most, o)) for l,o in zip(self.layers, kept)])
        return [max(round_kept(x, l.n, round_to), o) for l,x,o in zip(self.layers, ks, kept)] if round_to else ks

    def _allotted(self, total, bounds):
        "Groups of each layer, by the densities of the context"
        each = [self.context.dense(tuple(l.weight.shape), l.name) if l.n else 1. for l in self.layers]
        return allot(each, [l.numel for l in self.layers], [l.size for l in self.layers], *zip(*bounds), total)

    # -- which -------------------------------------------------------------------------------------------------------------------

    def move(self,
        s:float,                  # Percent
        round_to:int,             # Multiple for the groups kept, or None
        generator:torch.Generator, # For a criterion that draws
        clean:bool=False          # Whether pruned weights are known to be 0
    ) -> bool:                    # Whether any mask is another now
        "Bring the masks to `s` percent"
        # what was zero before stays so until the schedule itself falls
        falls = self.falls(s)
        if falls and not self.options.keep_zeros:
            for l in self.layers: l.kept = 0
        k,before = self.wanted(s, round_to),[l.dead for l in self.layers]
        # what does not fit whole groups, or is rounded, leaves less pruned than `k`: a fall never prunes more
        if self.asked != (s, self.pruned, round_to) and (k < self.pruned or (self.context.density if falls else k > self.pruned)):
            for l in self.layers: l.fresh,l.done = None,False
            if falls or k < self.pruned:
                for l,mask in zip(self.layers, self._shrunk(k, round_to)): l.set_mask(mask)
            else: self._grow(k, round_to, generator, clean)
        self.asked = s,self.pruned,round_to
        if not self.alone: self._warn_of_empty(before)
        return before != [l.dead for l in self.layers]

    def _grow(self, k, round_to, generator, clean):
        "Prune down to `k`"
        ls,context = self.layers,self.context
        direct = self.alone or context.by_score and context.in_groups and context.rescale is None and not round_to and all(l.most >= l.n for l in ls)
        parts,lows = zip(*[l.part(self.options.criteria, generator, direct, clean) for l in ls]) # in place only what is chosen at once: NaN in a layer is found before any is changed
        if direct: gone = self._lowest(parts, k - sum(l.dead for l in ls), ls)
        else:
            if context.by_score: ks = [n_zeros(m) for m in pool(context, [l.shaped(p, self.options.criteria) for p,l in zip(parts, ls)], [l.mask for l in ls], [l.size for l in ls], [max(l.most, l.dead) for l in ls], k, names=[l.name for l in ls])]
            else: ks = self._allotted(k, [(l.dead, max(l.most, l.dead)) for l in ls])
            if round_to: ks = [max(round_kept(n, l.n, round_to), l.dead) for n,l in zip(ks, ls)] # each from where it was: rounding keeps the highest of what would have gone
            gone = [self._lowest([p], n - l.dead, [l])[0] for p,n,l in zip(parts, ks, ls)]
        for l,g,low in zip(ls, gone, lows):
            places = g.places if l.single else None
            if g.n: l.set_mask(g.keep.view(l.shape), low, l.dead + g.n, places)
            else: l.fresh = places
            l.done = g.zero

    def _lowest(self, parts, k, layers):
        try: return lowest(parts, k)
        except NotANumber as e: raise layers[e.part].is_nan(self.options.criteria) from e

    def _shrunk(self, k, round_to):
        "The same with fewer pruned: groups come back, those with the largest gradient first, but not those that are to be kept"
        ls = self.layers
        scores = [torch.zeros(l.shape, device=l.weight.device) for l in ls]
        back = [l.grad_of_groups() for l in ls]
        if any(b is None for b in back): back = scores
        kept  = [l.first if l.kept else None for l in ls]
        masks = [l.mask if f is None else l.mask | f for l,f in zip(ls, kept)]
        out = self._returned(k, scores, masks, back)
        if round_to and not self.alone:
            ks  = [max(round_kept(n_zeros(m) + l.kept, l.n, round_to), l.kept) - l.kept for l,m in zip(ls, out)]
            out = [keep_masks([sc], [m], k, [b])[0] for sc,m,k,b in zip(scores, masks, ks, back)]
        return [m if f is None else m & ~f for m,f in zip(out, kept)]

    def _returned(self, k, scores, masks, back):
        "Masks with `k` pruned in all, as the context has it, of what is not to be kept"
        ls = self.layers
        if self.alone: return keep_masks(scores, masks, k - self._sum('kept'), back)
        if self.context.by_score: return pool(replace(self.context, rescale=None), scores, masks, [l.size for l in ls], [l.n for l in ls], k - self._sum('kept'), back)
        ks = self._allotted(k, [(l.kept, max(l.most, l.dead)) for l in ls])
        return [keep_masks([sc], [m], min(n, l.dead) - l.kept, [b])[0] for l,sc,m,n,b in zip(ls, scores, masks, ks, back)]

    def _warn_of_empty(self, before):
        empty = [l.name for l,d in zip(self.layers, before) if l.dead == l.n > d and not self.options.nm and l.name not in self.emptied]
        if not empty or all(l.dead == l.n for l in self.layers): return
        self.emptied.update(empty)
        warnings.warn(f"Nothing is left of {', '.join(empty)}: context={self.options.context!r} gives them no weight. max_sparsity=99, say, keeps some of each layer")

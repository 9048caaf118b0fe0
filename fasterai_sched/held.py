"""HELD: one selected weight in its groups, the mask on it, and all that the mask holds at 0."""

from __future__ import annotations
import warnings

import torch
from torch import Tensor

from .granularity import Cut, Granularities
from .layers import Found
from .lowest import Part
from .masks import drop, hold, lowest_of_each
from .report import n_zeros

__all__ = ['Held']

class Held(Found):
    "A selected weight and what is known about it"
    def __init__(self,
        found:Found, # The weight
        cut:Cut      # Its groups
    ):
        self.__dict__.update(vars(found))
        self.cut    = cut
        self.mask   = None  # which groups are kept, bool, the scores' shape; None: all
        self.keep   = None  # which weights are, bool, broadcasts to the weight: `mask` itself, but for blocks and N:M
        self.dead   = 0     # groups that `mask` prunes
        self.most   = cut.n # groups that it may prune at most
        self.limit  = 100   # and that in percent
        self.kept   = 0     # groups that were zero at the start: they stay so until the schedule falls
        self.first  = None  # those groups
        self.ref    = None  # what the criterion compares with
        self.heard  = None  # a score for each weight, from the gradients so far
        self.inputs = None  # a factor for the scores, from the inputs; broadcasts to the weight
        self.done   = False # whether the last move has set the weights to 0 that it pruned
        self.fresh  = None  # the places of the weights that the last move pruned, flat, where they were few; None: not known
        self.frozen = False
        self.after  = []    # (parameter, its values when each channel died): the bias and the batch norm of whole output channels
        self.scale  = None  # which of them is the batch norm's weight
        self.norm   = None  # where channels may happen to die: the batch norm that takes the bias away again
        self.voiced = None  # and which channels have a weight left; None: all
        self.out    = Granularities.out_dim(self.module) if self.attr == 'weight' else None # the dimension of its output channels
        self.of_channels = self.out is not None and cut.plain and cut.dims != (0,) and set(range(1, self.weight.ndim + 1)) - set(cut.dims) <= {self.out}

    @property
    def dim(self): return list(self.cut.dims)
    @property
    def single(self):
        "Whether its groups are single weights, each for itself"
        return self.cut.plain and self.cut.dims == (0,)
    @property
    def n(self): return self.cut.n
    @property
    def size(self): return self.cut.size
    @property
    def numel(self): return self.weight.numel()

    @property
    def biased(self):
        "Whether its channels may happen to die, and leave a bias alone. A grouped transposed convolution has other channels than its weight"
        bias = None if self.of_channels or self.out is None else self.module._parameters.get('bias')
        return bias is not None and bias.shape == (self.weight.shape[self.out - 1],)

    @property
    def gone(self):
        "Weights that the mask prunes; a group of an N:M pattern may have had more zeros from the start than the pattern asks for"
        return 0 if self.mask is None else n_zeros(self.keep) if self.cut.nm else self.dead*self.size

    @property
    def alive(self):
        "Which output channels are, where groups are whole channels; a grouped transposed convolution has several a group"
        if self.mask is None or not self.after: return None
        each = self.mask.flatten()
        return each.expand(len(self.after[0][0])) if len(each) == 1 else each.repeat(len(self.after[0][0])//len(each))

    @property
    def held(self):
        "(parameter, what of it is kept, bool) of all that the mask holds at 0"
        if self.mask is None: return []
        return [(self.weight, self.keep), *((p, self.alive) for p,_ in self.after if p.requires_grad)]

    # -- which go ----------------------------------------------------------------------------------------------------------------

    def part(self,
        criteria,                  # A `Criteria`
        generator:torch.Generator, # For one that draws
        own:bool,                  # Whether what goes may be pruned in place: weight and mask
        clean:bool                 # Whether pruned weights are known to be 0
    ) -> tuple:                    # What `lowest` chooses from; of an N:M pattern also which weight of each group would go
        "What the groups are worth; raises ValueError, naming the layer, where the criterion fails"
        if criteria.by_magnitude and self.inputs is None and self.single:
            return Part(self.weight, self.mask, True, self.n - self.dead, own and self.weight.is_contiguous(), clean),None
        scores,low = self.scores(criteria, generator)
        return Part(scores, self.mask, alive=self.n - self.dead),low

    @property
    def shape(self):
        "Of its scores and its mask"
        return [1 if d in self.dim else n for d,n in enumerate(self.cut.shape, 1)]

    def shaped(self, part, criteria):
        "The scores of a `Part` of it as floats, in their shape; raises ValueError for NaN"
        x = part.scores.abs().float() if part.magnitude and part.scores.itemsize < 8 else part.scores.abs() if part.magnitude else part.scores
        if x.sum().isnan() and x.isnan().any(): raise self.is_nan(criteria)
        return x.view(self.shape)

    def is_nan(self, criteria):
        "The error for scores that are no numbers"
        return ValueError(f"criteria={criteria.__name__} gives NaN for layer {self.name!r}: are its weights{' and gradients' if criteria.needs_grad else ''} finite?")

    def scores(self,
        criteria,                 # A `Criteria`
        generator:torch.Generator # For one that draws
    ) -> tuple:                   # Its groups' scores; of an N:M pattern also which weight of each group would go
        "What the groups are worth; raises ValueError, naming the layer, where the criterion fails or gives NaN"
        see = self.cut.view
        try:
            if criteria.needs_grad: single = self._of_gradients()
            else: single = criteria.single(see(self.weight), None if self.ref is None else see(self.ref), generator)
            factors = None if self.inputs is None else see(self.inputs.expand(self.weight.shape))
            scores = criteria.grouped(single, (0,) if self.cut.nm else self.dim, factors)
        except Exception as e: raise ValueError(f"criteria={criteria.__name__} fails for layer {self.name!r}: {type(e).__name__}: {e}") from e
        if scores.sum().isnan() and scores.isnan().any(): raise self.is_nan(criteria)
        return lowest_of_each(scores, self.dim[0] - 1, self.size) if self.cut.nm else (scores, None)

    @property
    def is_deaf(self):
        "Whether it has had no gradient yet but zeros"
        return self.heard is None or not self.heard.any()

    def _of_gradients(self):
        if self.is_deaf: warnings.warn(f"Layer {self.name!r} has had no gradient but zeros, and the criterion scores by it: its weights go by position")
        return torch.zeros(self.cut.shape, device=self.weight.device) if self.heard is None else self.cut.view(self.heard)

    def hear(self,
        criteria,    # A `Criteria` that needs gradients
        grad:Tensor, # Of this step
    ):
        "Score the weights by their gradient; raises ValueError, naming the layer, where the criterion fails"
        try: now = criteria.single(self.weight, grad=grad)
        except Exception as e: raise ValueError(f"criteria={criteria.__name__} fails for layer {self.name!r}: {type(e).__name__}: {e}") from e
        if self.heard is None: self.heard = torch.empty_like(now).copy_(now) # a criterion may give back what it got
        elif criteria.accumulate: self.heard.add_(now)
        else: self.heard = torch.where(now.any(), now, self.heard) # a layer that was left out of a step has zeros there

    def grad_of_groups(self) -> Tensor|None: # The scores' shape; None where there is no gradient, or one that is not finite
        "How large the gradient of each group is now"
        g = self.weight.grad
        if g is None or not g.isfinite().all(): return None
        g = self.cut.view(g.detach()).abs().float()
        return g if self.dim == [0] else g.mean([d-1 for d in self.dim], keepdim=True)

    def zero(self,
        t:Tensor=None, # The optimizer's copy of the weight, or what it holds about it; None: the weight, and what dies with its channels
        fresh:bool=False # Only where the last move has pruned: the rest is 0 already
    ):
        "Zero what the mask does not keep"
        if self.mask is None or t is None and fresh and self.done: return
        if fresh and self.fresh is not None and (t is None or t.is_contiguous()) and self.weight.is_contiguous(): return drop(self.weight if t is None else t, self.fresh)
        if t is not None: return hold(t, self.keep)
        for p,keep in self.held: hold(p, keep)

    def zero_like(self,
        p:Tensor,    # One of what it holds,
        keep:Tensor, # and what of that is kept: see `held`
        t:Tensor,    # What an optimizer has of `p`: a copy, an average
        fresh:bool   # As for `zero`
    ):
        "Zero in `t` what is pruned of `p`"
        if p is self.weight: self.zero(t, fresh)
        else: hold(t, keep)

    # -- the mask ----------------------------------------------------------------------------------------------------------------

    def set_mask(self,
        mask:Tensor,     # Which groups are kept, the scores' shape
        low:Tensor=None, # N:M: which weights of a group go when it is pruned, `cut.shape`
        dead:int=None,   # How many are not; None: to be counted
        fresh:Tensor=None # The places of the weights that are pruned now and were not before, if known
    ):
        "Hold these groups at 0. What died with a channel and what returns with it comes along"
        before = self.alive
        self.keep = self.cut.spread(mask, self.weight.shape) if self.cut.nm is None else self._pattern(mask, low)
        self.dead = n_zeros(mask) if dead is None else dead
        self.mask,self.fresh = mask,fresh
        if not self.dead: self.mask = self.keep = None
        if self.after: self._bury(before)
        self.voiced = None if self.norm is None or self.mask is None else self._voiced()

    def _voiced(self):
        rows = self.keep.movedim(self.out - 1, 0).flatten(1).expand(self.weight.shape[self.out - 1], -1)
        some = rows[:, :64].any(1) # nearly all have one among their first
        rest = (~some).nonzero().flatten()
        if len(rest): some[rest] = rows[rest].any(1)
        return None if some.all() else some

    def still(self,
        masters # id of a parameter -> the optimizer's own copy of it
    ):
        "Of a channel without weights the bias is all there is, and to a batch norm that takes means away it is nothing: its gradient is rounding error, and an Adam would follow it far"
        if self.voiced is None or not self.norm.training: return
        bias = self.module.bias
        for p in (bias, masters.get(id(bias), bias)):
            if p.grad is not None: hold(p.grad, self.voiced)

    def _pattern(self, mask, low):
        "Of groups that were pruned before, what was; of the others, `low`"
        spared = torch.ones(self.cut.shape, dtype=torch.bool, device=mask.device) if low is None else ~low
        if self.mask is not None: spared = torch.where(self.mask, spared, self.cut.view(self.keep))
        return (mask | spared).reshape(self.weight.shape).contiguous()

    @torch.no_grad()
    def _bury(self, before):
        "Keep what the channels that died had in their bias and batch norm, and give it back to those that return"
        after = self.alive
        for p,was in self.after:
            every = torch.ones(len(p), dtype=torch.bool, device=p.device)
            old,now = (every if a is None else a.to(p.device) for a in (before, after))
            died,back = old & ~now,now & ~old
            was[died] = p[died]
            # weights come back at 0, and what then would get no gradient would never train: a scale of 0 (it died in an earlier
            # fit) comes back as 1, and a bias that a ReLU would cut off with its sign changed
            p[back] = torch.where(was == 0, 1, was)[back] if p is self.scale else was.abs().clamp_min(1e-3)[back]

    def adopt_zeros(self,
        keep_empty:bool, # Whether a wholly zero weight is pruned, and not an initialisation
        said:str         # The granularity, for a message
    ):
        "Groups that are zero count as pruned: of an N:M pattern, those that have as many zeros as it asks for"
        zero = self.cut.view(self.weight.detach() == 0)
        dims = tuple(d-1 for d in self.dim if d)
        gone = zero if not dims else zero.sum(dims, keepdim=True) >= self.size if self.cut.nm else zero.all(dims, keepdim=True)
        self.mask = self.keep = self.first = self.fresh = self.voiced = None
        self.kept = self.dead = 0
        if zero.all() and not keep_empty:
            return warnings.warn(f"The weights of layer {self.name!r} are all zero: taken for an initialisation, they stay trainable (keep_zeros=True keeps them)")
        self.set_mask((~gone).contiguous(), zero if self.cut.nm else None)
        self.kept,self.first = self.dead,None if self.mask is None else ~self.mask
        single = int((zero if self.keep is None else zero & self.cut.view(self.keep)).count_nonzero())
        if dims and single > .01*self.numel:
            warnings.warn(f"Layer {self.name!r} has {single:,} single zeros outside of wholly zero groups: with granularity={said!r} they train")

"""WHICH: weights, and what they are compared with -> importance scores; the lowest are pruned. Pure functions."""

from __future__ import annotations
from collections.abc import Callable
import inspect

import torch
from torch import Tensor

__all__ = ['Criteria', 'Reducer', 'Normalizer', 'random', 'large_final', 'squared_final', 'small_final', 'large_init', 'small_init',
           'large_init_large_final', 'small_init_small_final', 'magnitude_increase', 'movement', 'movmag', 'updating_magnitude_increase',
           'updating_movement', 'updating_movmag', 'taylor', 'movement_pruning', 'wanda', 'criterias', 'available_criterias', 'as_criteria', 'data_fns']

# Statistics of the inputs that a weight meets, by name: fasterai's. `fasterai_sched.signals` computes them
data_fns = ('l2_norm', 'max', 'mean')

class Reducer:
    "How the scores of a group's weights become one score. `dim` is counted from 1, as in `Granularities`"
    @staticmethod
    def sum(scores:Tensor, dim) -> Tensor:
        "The sum over each group"
        return scores if list(dim) == [0] else scores.sum([d-1 for d in dim], keepdim=True)
    @staticmethod
    def mean(scores:Tensor, dim) -> Tensor:
        "The mean over each group"
        return scores if list(dim) == [0] else scores.mean([d-1 for d in dim], keepdim=True)

# By magnitude, so that signed scores keep their order, and never by zero
def _div(scores, by): return scores/by.clamp_min(torch.finfo(scores.dtype).tiny)

class Normalizer:
    "How the scores of a layer are scaled, so that those of different layers compare under `context='global'`. None changes their order"
    @staticmethod
    def sum(scores:Tensor) -> Tensor:
        "Divide by the sum of magnitudes"
        return _div(scores, scores.abs().sum())
    @staticmethod
    def mean(scores:Tensor) -> Tensor:
        "Divide by the mean magnitude"
        return _div(scores, scores.abs().mean())
    @staticmethod
    def max(scores:Tensor) -> Tensor:
        "Divide by the largest magnitude"
        return _div(scores, scores.abs().max())
    @staticmethod
    def standardization(scores:Tensor) -> Tensor:
        "Stretch to 0..1"
        return _div(scores - scores.min(), scores.max() - scores.min())
    @staticmethod
    def gaussian(scores:Tensor) -> Tensor:
        "Shift to mean 0, scale to deviation 1"
        scores = scores - scores.min() # equal scores are exactly 0 then, whatever their mean rounds to
        return _div(scores - scores.mean(), scores.std(correction=0))

class Criteria:
    "Importance scores from weights: `output_fn(f(weights), f(reference))`, reduced over each group, then normalized. The lowest are pruned"
    def __init__(self,
        f:Callable,                   # Weights -> scores, elementwise, such as `torch.abs`
        reducer:Callable=Reducer.mean, # (scores, dim) -> one score a group, dimensions kept as 1
        normalizer:Callable=None,     # A layer's scores -> the same, scaled; None: as they are
        needs_init:bool=False,        # Compare with the weights the fit began with (those of `rewind_epoch`)
        needs_update:bool=False,      # Compare with the weights when the masks last moved
        output_fn:Callable=None,      # (f(weights), f(reference)) -> scores; None: the first
        return_init:bool=False,       # Score by f(reference) alone
        scale:dict=None,              # {layer, or its name: a factor for each of its input channels}, by which scores are multiplied; layers not named: 1
        needs_data:bool=False,        # Multiply by a statistic of the inputs that each weight meets, found on training batches
        data_fn:str='l2_norm',        # That statistic: a name from `data_fns`
        *,
        needs_rng:bool=False,         # Give `f` a second argument, a seeded `torch.Generator` on the CPU
        needs_grad:bool=False,        # Give `f` a second argument, the weights' gradient, not yet masked nor clipped
        accumulate:bool=False         # With `needs_grad`: sum the scores over the steps of the fit; else the last step's count
    ):
        if not callable(f): raise ValueError(f"f must be a function of a weight tensor, such as torch.abs, got {f!r}")
        if needs_init and needs_update: raise ValueError("needs_init=True and needs_update=True exclude each other: there is one reference")
        if (output_fn or return_init) and not (needs_init or needs_update):
            raise ValueError("output_fn and return_init compare with a reference: say which with needs_init=True or needs_update=True")
        if output_fn and return_init: raise ValueError("output_fn and return_init=True exclude each other: one or the other gives the scores")
        if needs_grad and (needs_init or needs_update or needs_rng): raise ValueError("needs_grad=True excludes needs_init, needs_update and needs_rng: `f` gets weights and gradient")
        if accumulate and not needs_grad: raise ValueError("accumulate=True sums what gradients say: it goes with needs_grad=True")
        if data_fn not in data_fns: raise ValueError(f"data_fn={data_fn!r} is not a statistic of inputs; choose from {list(data_fns)}")
        if scale is not None and (needs_data or not isinstance(scale, dict)): raise ValueError(f"scale={scale!r} must be a dict of layers, and takes the place of needs_data=True")
        self.f,self.reducer,self.normalizer,self.needs_init,self.needs_update = f,reducer,normalizer,needs_init,needs_update
        self.output_fn,self.return_init,self.scale,self.needs_data,self.data_fn = output_fn,return_init,scale,needs_data,data_fn
        self.needs_rng,self.needs_grad,self.accumulate = needs_rng,needs_grad,accumulate

    @property
    def needs_ref(self):
        "Whether there is a reference to compare with"
        return self.needs_init or self.needs_update

    @property
    def by_magnitude(self):
        "Whether single weights go by their magnitude alone"
        return self.f is torch.abs and self.normalizer is None and not (self.needs_ref or self.needs_data or self.scale)

    @property
    def __name__(self): return next((n for n,c in criterias.items() if c is self), getattr(self.f, '__name__', type(self.f).__name__))
    def __repr__(self): return f"Criteria({self.__name__})"

    @torch.no_grad()
    def __call__(self,
        weight:Tensor,                  # A layer's weights, any floating type
        ref:Tensor=None,                # The weights to compare with, same shape; needed if `needs_ref`
        dim=(0,),                       # Dimensions that a group spans, counted from 1, as `Granularities.get_dim` gives them
        generator:torch.Generator=None, # For a criterion that draws
        *,
        grad:Tensor=None,               # The weights' gradient, same shape; needed if `needs_grad`
        scale:Tensor=None               # Factors that broadcast to the weight; needed if `needs_data`
    ) -> Tensor:                        # Scores, float32 (or float64), the weight's shape with the group's dimensions 1
        "A score for each group of `weight`"
        if self.needs_data and scale is None: raise ValueError(f"{self!r} multiplies by a statistic of the inputs: give `scale`")
        return self.grouped(self.single(weight, ref, generator, grad), dim, scale)

    @torch.no_grad()
    def single(self,
        weight:Tensor,                  # A layer's weights
        ref:Tensor=None,                # The weights to compare with
        generator:torch.Generator=None, # For a criterion that draws
        grad:Tensor=None                # The weights' gradient
    ) -> Tensor:                        # The weight's shape; float32 or float64
        "The first half of a call: a score for each weight; raises ValueError for what it needs and did not get, and for scores of another shape"
        for needed,got,what,name in ((self.needs_ref, ref, 'compares with a reference', 'ref'), (self.needs_grad, grad, 'scores by gradients', 'grad')):
            if needed and got is None: raise ValueError(f"{self!r} {what}: give `{name}`")
        if self.needs_rng and generator is None: raise ValueError(f"{self!r} draws: give `generator`, a seeded torch.Generator")
        more = (generator,) if self.needs_rng else (_wide(grad),) if self.needs_grad else ()
        scores = None if self.return_init else self.f(_wide(weight), *more)
        if self.return_init: scores = self.f(_wide(ref), *more)
        elif self.output_fn: scores = self.output_fn(scores, self.f(_wide(ref), *more))
        if not isinstance(scores, Tensor) or scores.shape != weight.shape:
            raise ValueError(f"{self!r} must give a score for each weight, shape {tuple(weight.shape)}, "
                             f"got {tuple(scores.shape) if isinstance(scores, Tensor) else scores if isinstance(scores, (int, float)) or scores is None else type(scores).__name__}")
        return scores if scores.dtype in (torch.float32, torch.float64) else scores.float()

    @torch.no_grad()
    def grouped(self,
        scores:Tensor,    # A score for each weight
        dim=(0,),         # Dimensions that a group spans, counted from 1
        scale:Tensor=None # Factors that broadcast to `scores`; None: 1
    ) -> Tensor:          # The scores' shape with the group's dimensions 1
        "The second half of a call: from the weights' scores to their groups', normalized"
        if scale is not None: scores = scores*scale
        scores = self.reducer(scores, dim)
        return scores if self.normalizer is None else self.normalizer(scores)

def _wide(w):
    # a bfloat16 weight is a float32 too, and half the scores would tie if they were computed in its own precision
    return w.detach().float() if w.dtype in (torch.float16, torch.bfloat16) else w.detach()

def _neg_abs(w):      return -w.abs()
def _same(w):         return w
def _neg_max(a, b):   return -torch.max(a, b)
def _distance(w, r):  return (w - r).abs()
def _movmag(w, r):    return (w*(w - r)).abs()
def _draw(w, g):      return torch.rand(w.shape, generator=g).to(w.device)
def _saliency(w, g):  return (w*g).abs()
def _descent(w, g):   return -w*g

random                      = Criteria(_draw, needs_rng=True)
large_final                 = Criteria(torch.abs)
squared_final               = Criteria(torch.square)
small_final                 = Criteria(_neg_abs)
large_init                  = Criteria(torch.abs, needs_init=True, return_init=True)
small_init                  = Criteria(_neg_abs,  needs_init=True, return_init=True)
large_init_large_final      = Criteria(torch.abs, needs_init=True, output_fn=torch.min)
small_init_small_final      = Criteria(torch.abs, needs_init=True, output_fn=_neg_max)
magnitude_increase          = Criteria(torch.abs, needs_init=True, output_fn=torch.sub)
movement                    = Criteria(_same,     needs_init=True, output_fn=_distance)
movmag                      = Criteria(_same,     needs_init=True, output_fn=_movmag)
updating_magnitude_increase = Criteria(torch.abs, needs_update=True, output_fn=torch.sub)
updating_movement           = Criteria(_same,     needs_update=True, output_fn=_distance)
updating_movmag             = Criteria(_same,     needs_update=True, output_fn=_movmag)
taylor                      = Criteria(_saliency, needs_grad=True)                  # SNIP (Lee et al. 2019), |w*g|: what the loss would change by, to first order
movement_pruning            = Criteria(_descent,  needs_grad=True, accumulate=True) # Sanh et al. 2020: the sum of -w*g, large where weights move away from 0
wanda                       = Criteria(torch.abs, needs_data=True)                  # Sun et al. 2023: |w| times the norm of its input

# Every built-in by name, with what it keeps. Users may add their own; docs and tests read it.
criterias = dict(random=random, large_final=large_final, squared_final=squared_final, small_final=small_final, large_init=large_init,
    small_init=small_init, large_init_large_final=large_init_large_final, small_init_small_final=small_init_small_final,
    magnitude_increase=magnitude_increase, movement=movement, movmag=movmag, updating_magnitude_increase=updating_magnitude_increase,
    updating_movement=updating_movement, updating_movmag=updating_movmag, taylor=taylor, movement_pruning=movement_pruning, wanda=wanda)

def available_criterias() -> list[str]:
    "The names of the criteria there are"
    return list(criterias)

def _takes(f, n):
    try: inspect.signature(f).bind(*range(n))
    except TypeError: return False
    except ValueError: return n == 1 # a builtin that tells nothing
    return True

def as_criteria(
    c            # A `Criteria`, a name from `available_criterias()`, or a function of a weight tensor
) -> Criteria:   # The same as a `Criteria`; raises ValueError for anything else
    "`c` as a `Criteria`"
    if isinstance(c, Criteria): return c
    if isinstance(c, str) and c in criterias: return criterias[c]
    if callable(c) and not isinstance(c, type):
        if not _takes(c, 1) and _takes(c, 2): raise ValueError(f"criteria={c!r} takes two arguments: say which the second is, with Criteria(f, needs_grad=True) for the gradient, or needs_rng=True for a generator")
        return Criteria(c)
    raise ValueError(f"criteria={c!r} is not a criterion; choose from {available_criterias()}, or give a function of a weight tensor")

"""STEPPED: what an optimizer holds of the weights beside them: averages, slow weights, copies in fp32. fastai's optimizers and torch's in its wrapper."""

from __future__ import annotations

from torch import nn

__all__ = ['find_masters', 'state_of', 'slow_weights']

def _lists(opt): return [p for g in opt.param_lists for p in g]

def find_masters(
    opt,             # The learner's optimizer
    splitter,        # The learner's
    model:nn.Module, # Its whole model
    weights          # Parameters that are selected
) -> dict:           # {id of a parameter: the copy}; empty where the optimizer steps the parameters themselves
    "The copies that the optimizer steps in the parameters' stead (fp32 masters)"
    stepped = _lists(opt)
    if {id(w) for w in weights} & {id(p) for p in stepped}: return {}
    own = [p for g in splitter(model) for p in ([g] if isinstance(g, nn.Parameter) else g)]
    if len(own) != len(stepped): own = [p for p in own if p.requires_grad]
    return {id(p):q for p,q in zip(own, stepped) if p.shape == q.shape} if len(own) == len(stepped) else {}

def state_of(
    opt    # The learner's optimizer
) -> dict: # parameter -> {name: what is held about it}
    "An optimizer's state by parameter, inside of fastai's wrapper or not"
    return opt.opt.state if hasattr(opt, 'opt') else opt.state

def slow_weights(
    opt    # The learner's optimizer
) -> dict: # id of a parameter -> tensor
    "The weights that Lookahead falls back on"
    return {id(p):s for ps,ss in zip(opt.param_lists, getattr(opt, 'slow_weights', None) or ()) for p,s in zip(ps, ss)}

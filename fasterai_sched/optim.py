"""STEPPED: what an optimizer holds of the weights beside them: averages, slow weights, copies in fp32. fastai's optimizers and torch's in its wrapper."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ['find_masters', 'state_of', 'slow_weights', 'shares_memory', 'keeps_zeros']

# Steps of fastai's that leave a weight at 0 whose gradient and averages are 0
_STEPS = {'weight_decay', 'l2_reg', 'average_grad', 'average_sqr_grad', 'step_stat', 'sgd_step', 'momentum_step', 'rms_prop_step', 'adam_step', 'radam_step', 'qhadam_step'}

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

def shares_memory(
    weights, # Parameters that are selected
    model:nn.Module # The whole model
) -> bool:
    "Whether another parameter lies where one of them does: what is written to that is written to this"
    mine = {id(w) for w in weights}
    at = {w.untyped_storage().data_ptr() for w in weights}
    return any(id(p) not in mine and not is_lazy(p) and p.untyped_storage().data_ptr() in at for p in model.parameters()) # a lazy one has no memory yet

def keeps_zeros(
    opt     # The learner's optimizer
) -> bool:
    "Whether it is known to leave a weight at 0 whose gradient and averages are 0: no mask needs to be applied after its step then"
    inner = getattr(opt, 'opt', None)
    if any('step' in vars(o) for o in (opt, inner) if o is not None): return False # somebody has wrapped it
    if any(getattr(inner, f'_optimizer_step_{n}_hooks', None) for n in ('pre', 'post')): return False
    if inner is not None: return type(inner) in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop) and all(g.get('eps', 1) > 0 for g in inner.param_groups)
    known = lambda f, names: getattr(f, '__module__', '') == 'fastai.optimizer' and getattr(f, '__name__', '') in names
    return known(type(opt), {'Optimizer'}) and all(known(getattr(f, 'func', f), _STEPS) for f in opt.cbs) and all(h.get('eps', 1) > 0 for h in opt.hypers) # some are partials

"""NO TRACE: a model that is run or traced for a look, and is afterwards as it was."""

from __future__ import annotations
from contextlib import contextmanager, nullcontext
import random

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ['untouched', 'evaluated', 'as_found']

def _content(x):
    "How to put back what a mutable attribute holds, or None"
    if isinstance(x, Tensor):
        was = x.detach().clone()
        return lambda: x.detach().copy_(was) # so that no gradient is asked for
    if isinstance(x, list):
        was = list(x)
        return lambda: x.__setitem__(slice(None), was)
    if isinstance(x, (dict, set)):
        was = x.copy()
        return lambda: (x.clear(), x.update(was))

@contextmanager
def untouched(
    model:nn.Module # Any model; its Parameters are not looked after
):
    "Whatever happens to the model inside, afterwards its attributes, buffers and modes are what they were, and so are the random states"
    mods = list(model.modules())
    was = [(vars(m), dict(vars(m))) for m in mods] # an RNN of AWD_LSTM keeps its hidden state as an attribute
    back = [f for m in mods for k,v in vars(m).items() if k not in ('_parameters', '_modules') and (f := _content(v))]
    back += [_content(b) for b in model.buffers()]
    gpus,states = sorted({p.device.index for p in model.parameters() if p.is_cuda}),(random.getstate(), np.random.get_state())
    try:
        with torch.random.fork_rng(devices=gpus): yield
    finally:
        for now,before in was:
            for k in now.keys() - before.keys(): del now[k]
            now.update(before)
        with torch.no_grad():
            for f in back: f()
        random.setstate(states[0])
        np.random.set_state(states[1])

@contextmanager
def evaluated(
    model:nn.Module # Any model
):
    "The model in evaluation mode, without gradients and not compiled; afterwards as it was"
    eager = torch.compiler.set_stance('force_eager') if hasattr(torch.compiler, 'set_stance') else nullcontext() # hooks would make it compile again
    with untouched(model), torch.no_grad(), eager:
        for m in model.modules(): m.training = False
        try: yield
        finally: torch.clear_autocast_cache() # it holds low-precision copies of weights that may change before the next forward pass

@contextmanager
def as_found(
    data # Anything that can be iterated over
):
    "Whatever iterating `data` changes of it (a DataLoader's order is drawn) is changed back"
    was = dict(vars(data)) if hasattr(data, '__dict__') else {}
    drawn = [(v.setstate, v.getstate()) for v in was.values() if isinstance(v, random.Random)] + [(v.set_state, v.get_state()) for v in was.values() if isinstance(v, torch.Generator)]
    try: yield
    finally:
        if was: vars(data).update(was)
        for put,state in drawn: put(state)

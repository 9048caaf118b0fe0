"""HEARD: what training batches tell of a layer beside its weights: a statistic of the inputs that each weight meets."""

from __future__ import annotations
from contextlib import contextmanager, nullcontext
import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .granularity import Granularities

__all__ = ['Inputs', 'uses', 'as_batches', 'undisturbed', 'of_channels']

def _transposed(f): return lambda m, x, w: f(x, w, None, m.stride, m.padding, m.output_padding, m.groups, m.dilation)

# How a layer uses its weight: f(layer, input, weight), linear in both. Users may add their own
uses = {nn.Linear:lambda m, x, w: F.linear(x, w), nn.Embedding:lambda m, x, w: F.embedding(x, w), nn.ConvTranspose1d:_transposed(F.conv_transpose1d),
        nn.ConvTranspose2d:_transposed(F.conv_transpose2d), nn.ConvTranspose3d:_transposed(F.conv_transpose3d),
        **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), lambda m, x, w: m._conv_forward(x, w, None))} # which knows of padding_mode

def _use(m): return next((uses[t] for t in type(m).__mro__ if t in uses), None)

@contextmanager
def undisturbed(
    model:nn.Module # Any model
):
    "The model in evaluation mode and without gradients; afterwards everything is as it was: modes, attributes, buffers, random states"
    mods,buffers = list(model.modules()),[(b, b.clone()) for b in model.buffers()]
    was = [dict(vars(m)) for m in mods] # an RNN of AWD_LSTM keeps its hidden state as an attribute
    gpus = {p.device.index for p in model.parameters() if p.is_cuda}
    states = random.getstate(),np.random.get_state()
    eager = torch.compiler.set_stance('force_eager') if hasattr(torch.compiler, 'set_stance') else nullcontext() # hooks would recompile
    try:
        with torch.random.fork_rng(devices=sorted(gpus)), torch.no_grad(), eager:
            for m in mods: m.training = False
            yield
    finally:
        for m,d in zip(mods, was):
            for k in vars(m).keys() - d.keys(): del vars(m)[k]
            vars(m).update(d)
        with torch.no_grad():
            for b,v in buffers: b.copy_(v)
        random.setstate(states[0])
        np.random.set_state(states[1])

@contextmanager
def _as_found(data):
    "Whatever iterating `data` changes of it (a DataLoader's order is drawn) is changed back"
    was = dict(vars(data)) if hasattr(data, '__dict__') else {}
    drawn = [(v.setstate, v.getstate()) for v in was.values() if isinstance(v, random.Random)] + [(v.set_state, v.get_state()) for v in was.values() if isinstance(v, torch.Generator)]
    try: yield
    finally:
        if was: vars(data).update(was)
        for put,state in drawn: put(state)

def as_batches(
    data # One tensor, or batches: tensors, tuples whose last is the target and is left out, dicts of the model's arguments
):       # Iterator of (positional arguments, named arguments) for the model
    "The inputs of a model, from a DataLoader or a list"
    for b in [data] if isinstance(data, Tensor) else data:
        if isinstance(b, dict): yield (),b
        elif isinstance(b, (tuple, list)): yield tuple(b[:max(getattr(data, 'n_inp', len(b) - 1), 1)]),{}
        else: yield (b,),{}

def of_channels(
    f,       # `Held`
    v:Tensor # A value for each input channel
) -> Tensor: # Broadcasts to the weight
    "A value for each input channel, as a factor for the weights that read it"
    w,out,inp = f.weight,Granularities.out_dim(f.module),Granularities.in_dim(f.module)
    reads = w.shape[inp-1] if inp else 0
    groups = v.numel()//reads if v.ndim == 1 and reads and v.numel() % reads == 0 else 0
    if not groups or groups > 1 and (not out or out > inp or w.shape[out-1] % groups):
        raise ValueError(f"Layer {f.name!r} ({type(f.module).__name__}) reads {reads or 'no'} input channels: it can't be scaled by values of shape {tuple(v.shape)}")
    shape = [1]*w.ndim
    shape[inp-1] = reads
    if groups > 1: shape[out-1] = groups
    return v.view(shape) if groups == 1 else v.view(shape).repeat_interleave(w.shape[out-1]//groups, out-1)

class Inputs:
    "A statistic of what each weight of some layers is multiplied with, over batches"
    def __init__(self,
        layers:list, # Of `Held`; raises ValueError for a type of layer that is not in `uses`
        data_fn:str  # 'l2_norm': the root of the sum of squares; 'mean': the mean magnitude; 'max': the largest magnitude of an input channel
    ):
        for l in layers:
            if l.attr != 'weight' or _use(l.module) is None: raise ValueError(f"What comes into the weights of layer {l.name!r} ({type(l.module).__name__}) is not known; types for which it is: "
                                                                             f"{[t.__name__ for t in uses]}. Leave it out with exclude=, or add its type to fasterai_sched.signals.uses")
        self.layers,self.data_fn = layers,data_fn
        self.sums = {l:None for l in layers}
        self.counts = {l:None for l in layers}

    def hear(self,
        model:nn.Module, # Its layers' inputs are looked at while it runs on the batches, undisturbed
        data             # As for `as_batches`
    ):
        "Add the inputs of these batches"
        with undisturbed(model), _as_found(data):
            device = next(model.parameters()).device
            hooks = [l.module.register_forward_pre_hook(lambda m, args, kwargs, l=l: self._add(l, (args or tuple(kwargs.values()))[0]), with_kwargs=True) for l in self.layers]
            try:
                for args,kwargs in as_batches(data):
                    model(*(_to(x, device) for x in args), **{k:_to(x, device) for k,x in kwargs.items()})
            finally:
                for h in hooks: h.remove()
        unheard = [l.name for l in self.layers if self.sums[l] is None]
        if unheard: raise ValueError(f"Nothing came into layers {unheard} on the batches for calibration: leave them out with exclude=, or give other batches as data=")

    def _add(self, l, x):
        x = x.detach()
        with torch.autocast(x.device.type, enabled=False): new,n = (self._largest(l, x), None) if self.data_fn == 'max' else self._summed(l, x)
        was = self.sums[l]
        self.sums[l] = new if was is None else torch.maximum(was, new) if self.data_fn == 'max' else was + new
        if n is not None: self.counts[l] = n if self.counts[l] is None else self.counts[l] + n

    def _largest(self, l, x):
        if not x.is_floating_point(): raise ValueError(f"data_fn='max' takes the largest input of a channel, and layer {l.name!r} has none")
        channel = x.ndim - 1 if isinstance(l.module, nn.Linear) else x.ndim - l.weight.ndim + 1
        return x.float().abs().transpose(0, channel).flatten(1).amax(1)

    def _summed(self, l, x):
        "Sums over all that each weight meets, and how much that is: the gradients of the layer's summed output on those inputs"
        m,w,mean = l.module,l.weight,self.data_fn == 'mean'
        if x.is_floating_point(): x = x.float().abs() if mean else x.float().square() # an Embedding's input is one-hot, and its own square
        shape,out,groups = list(w.shape),Granularities.out_dim(m),getattr(m, 'groups', 1)
        if isinstance(m, nn.modules.conv._ConvTransposeNd): shape[out-1],groups = 1,1 # every output of a group meets the same
        elif out: shape[out-1] = groups
        with torch.enable_grad():
            one = torch.zeros(shape, device=w.device, requires_grad=True)
            sums = [torch.autograd.grad(_use(m)(m, v, one).sum(), one)[0] for v in ((x, torch.ones_like(x)) if mean else (x,))]
        if groups > 1: sums = [s.repeat_interleave(w.shape[out-1]//groups, out-1) for s in sums]
        return sums[0],sums[1] if mean else None

    def reduce(self,
        f # (tensor, 'sum' or 'max') -> in place, the same on every process
    ):
        "Put together what several processes have heard"
        for l in self.layers:
            f(self.sums[l], 'max' if self.data_fn == 'max' else 'sum')
            if self.counts[l] is not None: f(self.counts[l], 'sum')

    def factors(self) -> dict: # {layer: a tensor that broadcasts to its weight}
        "The statistic"
        if self.data_fn == 'max': return {l:of_channels(l, s) for l,s in self.sums.items()}
        if self.data_fn == 'mean': return {l:s/self.counts[l].clamp_min(1) for l,s in self.sums.items()}
        return {l:s.sqrt() for l,s in self.sums.items()}

def _to(x, device): return x.to(device) if isinstance(x, Tensor) else x

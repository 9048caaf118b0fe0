"""HEARD: what training batches tell of a layer beside its weights: a statistic of the inputs that each weight meets."""

from __future__ import annotations
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .granularity import Granularities
from .untouched import as_found, evaluated

__all__ = ['Inputs', 'uses', 'as_batches', 'of_channels']

def _transposed(f): return lambda m, x, w: f(x, w, None, m.stride, m.padding, m.output_padding, m.groups, m.dilation)

# How a layer uses its weight: f(layer, input, weight), linear in both. Users may add their own
uses = {nn.Linear:lambda m, x, w: F.linear(x, w), nn.Embedding:lambda m, x, w: F.embedding(x, w), nn.ConvTranspose1d:_transposed(F.conv_transpose1d),
        nn.ConvTranspose2d:_transposed(F.conv_transpose2d), nn.ConvTranspose3d:_transposed(F.conv_transpose3d),
        **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), lambda m, x, w: m._conv_forward(x, w, None))} # which knows of padding_mode

def _use(m): return next((uses[t] for t in type(m).__mro__ if t in uses), None)

def as_batches(
    data # One tensor, or batches: tensors, tuples whose last is the target and is left out, dicts of the model's arguments
):       # Iterator of (positional arguments, named arguments) for the model
    "The inputs of a model, from a DataLoader or a list; raises ValueError for what holds no batches"
    if not isinstance(data, Iterable) or isinstance(data, (str, dict)): raise ValueError(f"data={data!r} must be a tensor, or batches as a DataLoader or a list holds them")
    none = True
    for b in [data] if isinstance(data, Tensor) else data:
        none = False
        if isinstance(b, dict): yield (),b
        elif isinstance(b, (tuple, list)) and b: yield tuple(b[:max(getattr(data, 'n_inp', len(b) - 1), 1)]),{}
        elif isinstance(b, Tensor): yield (b,),{}
        else: raise ValueError(f"data={type(data).__name__} holds {b!r}, which is no batch: give tensors, tuples of inputs and a target, or dicts of the model's arguments")
    if none: raise ValueError(f"data={type(data).__name__} gave no batch (a generator can be read once only: give a list)")

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
            if data_fn == 'max' and isinstance(l.module, nn.Embedding): raise ValueError(f"data_fn='max' takes the largest input of a channel, and layer {l.name!r}, an Embedding, has none")
        self.layers,self.data_fn = layers,data_fn
        self.sums,self.counts = dict.fromkeys(layers),dict.fromkeys(layers)

    def hear(self,
        model:nn.Module, # Its layers' inputs are looked at while it runs on the batches, and leaves no trace
        data             # As for `as_batches`
    ):
        "Add the inputs of these batches; raises ValueError for data that the model can't be run on, and for layers nothing comes into"
        where = {}
        for m in model.modules(): # a weight that two layers share meets what comes into both
            for p in m._parameters.values(): where.setdefault(id(p), []).append(m)
        with evaluated(model), as_found(data):
            device = next(model.parameters()).device
            hooks = [m.register_forward_pre_hook(lambda m, args, kwargs, l=l: self._add(l, m, args, kwargs), with_kwargs=True) for l in self.layers for m in where.get(id(l.weight), []) if _use(m)]
            try:
                for args,kwargs in as_batches(data):
                    args,kwargs = [_to(x, device) for x in args],{k:_to(x, device) for k,x in kwargs.items()}
                    try: model(*args, **kwargs)
                    except ValueError: raise
                    except Exception as e: raise ValueError(f"data={type(data).__name__}: the model can't be run on what it holds, {_shapes(args, kwargs)}: {type(e).__name__}: {e}") from e
            finally:
                for h in hooks: h.remove()
        unheard = [l.name for l in self.layers if self.sums[l] is None]
        if unheard: raise ValueError(f"Nothing came into layers {unheard} when the model was run in evaluation mode: it does not call them then (attention does not call its out_proj), "
                                     "so a criterion that looks at inputs can't score them. Leave them out with exclude=")

    def _add(self, l, m, args, kwargs):
        if len(args) + len(kwargs) > 1: raise ValueError(f"Layer {l.name!r} ({type(m).__name__}) is called with more than its input, so what its weights meet is not known: leave it out with exclude=")
        x = (args or tuple(kwargs.values()))[0].detach()
        with torch.autocast(x.device.type, enabled=False): new,n = (self._largest(l, x), None) if self.data_fn == 'max' else self._summed(l, m, x)
        was = self.sums[l]
        self.sums[l] = new if was is None else torch.maximum(was, new) if self.data_fn == 'max' else was + new
        if n is not None: self.counts[l] = n if self.counts[l] is None else self.counts[l] + n

    def _largest(self, l, x):
        channel = x.ndim - 1 if isinstance(l.module, nn.Linear) else x.ndim - l.weight.ndim + 1
        return x.float().abs().transpose(0, channel).flatten(1).amax(1)

    def _summed(self, l, m, x):
        "Sums over all that each weight meets, and how much that is: the gradients of the layer's summed output on those inputs"
        w,mean = l.weight,self.data_fn == 'mean'
        tokens = not x.is_floating_point() # an Embedding's input is one-hot, and its own square
        if not tokens: x = x.float().abs() if mean else x.float().square()
        shape,out,groups = list(w.shape),Granularities.out_dim(m),getattr(m, 'groups', 1)
        if isinstance(m, nn.modules.conv._ConvTransposeNd): shape[out-1],groups = 1,1 # every output of a group meets the same
        elif out: shape[out-1] = groups
        with torch.enable_grad():
            one = torch.zeros(shape, device=w.device, requires_grad=True)
            sums = [torch.autograd.grad(_use(m)(m, v, one).sum(), one)[0] for v in ((x, torch.ones_like(x)) if mean and not tokens else (x,))]
        if groups > 1: sums = [s.repeat_interleave(w.shape[out-1]//groups, out-1) for s in sums]
        if not mean: return sums[0],None
        return sums[0],torch.full_like(sums[0], x.numel()) if tokens else sums[1]

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
def _shapes(args, kwargs): return ', '.join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in (*args, *kwargs.values()))

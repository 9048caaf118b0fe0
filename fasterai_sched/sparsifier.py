"""The one object with state: the chosen layers of a model, their masks and their reference weights. Needs no fastai."""

from __future__ import annotations
from dataclasses import replace
from difflib import get_close_matches
from math import prod
from numbers import Integral, Real
import warnings

import torch
from torch import Tensor, nn

from .criteria import as_criteria, large_final
from .channels import batch_norms
from .granularity import Granularities
from .layers import Found, check_rules, select
from .masks import keep_masks, n_pruned, round_kept
from .report import n_zeros, sparsity_report

__all__ = ['Sparsifier', 'contexts']

contexts = ('local', 'global')

def check_percent(name, value):
    "ValueError unless `value` is a number from 0 to 100"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}={value!r} is not a number; a sparsity is a percentage, 0 to 100")
    if not 0 <= float(value) <= 100: raise ValueError(f"{name}={value!r} is outside 0 to 100; a sparsity is a percentage")

def check_choices(granularity, context, layer_type, round_to, nm):
    "ValueError for words that no model could make sense of"
    types = layer_type if isinstance(layer_type, tuple) else (layer_type,)
    for t in types:
        if not (isinstance(t, type) and issubclass(t, nn.Module)):
            raise ValueError(f"layer_type={layer_type!r} must be a class of layers such as nn.Conv2d, or a tuple of them")
        if t is not nn.Module: Granularities.get_dim(t, granularity)
    if context not in contexts: raise ValueError(f"context={context!r} is not one of {list(contexts)}")
    check_round_to(round_to)
    if nm: raise ValueError(f"nm={nm!r}: N:M patterns are not supported; leave nm=False (and give layer_type by name: nm comes before it)")

def check_round_to(round_to):
    "ValueError unless `round_to` is None or a whole number of at least 1"
    if round_to is not None and (isinstance(round_to, bool) or not isinstance(round_to, Integral) or round_to < 1):
        raise ValueError(f"round_to={round_to!r} must be a whole number of at least 1, or None")

class _Layer(Found):
    "A selected weight and what is held about it"
    def __init__(self, found, granularity):
        self.__dict__.update(vars(found))
        self.dim    = Granularities.get_dim(self.module, granularity)
        self.mask   = None  # what is kept, bool, the scores' shape; None: all
        self.dead   = 0     # groups that `mask` prunes
        self.kept   = 0     # groups that were zero at the start: they stay so until the schedule falls
        self.first  = None  # those groups
        self.ref    = None  # what the criterion compares with
        self.frozen = False
        self.after  = []    # (parameter, its values when each channel died): the bias and the batch norm of whole output channels
        self.scale  = None  # which of them is the batch norm's weight
        out = Granularities.out_dim(self.module) if self.attr == 'weight' else None
        self.of_channels = out is not None and self.dim != [0] and set(range(1, self.weight.ndim + 1)) - set(self.dim) <= {out}

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
        return [(self.weight, self.mask), *((p, self.alive) for p,_ in self.after if p.requires_grad)]

    @property
    def size(self): return prod(self.weight.shape[d-1] for d in self.dim if d) # weights in a group
    @property
    def n(self): return self.weight.numel()//self.size                         # groups

class Sparsifier:
    "Makes the layers of a model sparse, and keeps them so. What is asked is what is applied: counts are exact"
    _versions = None # of what is held at 0, when it was made so last
    unsure = () # names of layers whose batch norm is left alone, because it isn't certain that they alone feed it
    def __init__(self,
        model:nn.Module,            # The model; only the values of its selected weights are changed
        granularity:str='weight',   # What is removed as one: see `Granularities`
        context:str='local',        # 'local': each layer at the sparsity asked; 'global': all layers together
        criteria=large_final,       # What is kept: a `Criteria`, its name, or a function of a weight tensor
        nm:bool=False,              # Not supported; here for the order of arguments
        layer_type=nn.Conv2d,       # Type of the layers to make sparse, or a tuple of types
        *,
        layers=None,                # Which of them: names, globs, regular expressions, types, functions of (name, layer), one or a list; None: all
        exclude=None,               # Which of them not, by the same rules
        keep_zeros:bool=False       # Whether a wholly zero weight is pruned and stays so, and not an initialisation to train
    ):
        "Raises ValueError for an unknown word, for no layer of that type, and for a weight that is computed (spectral_norm, weight_norm)"
        if isinstance(layer_type, list): layer_type = tuple(layer_type)
        check_choices(granularity, context, layer_type, None, nm)
        for n,v in dict(layers=layers, exclude=exclude).items(): check_rules(n, v)
        self.model,self.granularity,self.context,self.layer_type = model,granularity,context,layer_type
        self.criteria,self.keep_zeros = as_criteria(criteria),keep_zeros
        self.generator = torch.Generator().manual_seed(42) # its own, so that the global random state stays as it was
        self.layers    = [_Layer(f, granularity) for f in select(model, layer_type, layers, exclude)]
        self.masters   = {} # id of a parameter -> the optimizer's own copy of it, where it steps one (fp32 masters)
        self._asked    = {} # layer name, or None for all of them -> (percent, groups to prune) asked last
        self._find_what_follows()
        for l in self.layers: self._adopt_zeros(l)
        self.save_refs()

    # -- which layers ------------------------------------------------------------------------------------------------------------

    def _find_what_follows(self):
        "Of layers whose groups are whole output channels: the bias, and the batch norm that they alone feed"
        if not any(l.of_channels for l in self.layers): return
        norms,unsure = batch_norms(self.model)
        owners = [id(p) for m in self.model.modules() for p in m._parameters.values() if p is not None]
        self.unsure = tuple(l.name for l in self.layers if l.of_channels and l.name in unsure)
        for l in self.layers:
            if not l.of_channels: continue
            norm = self.model.get_submodule(norms[l.name]) if l.name in norms else None
            params = [m._parameters.get(n) for m,n in ((l.module, 'bias'), (norm, 'weight'), (norm, 'bias')) if m is not None]
            l.after = [(p, p.detach().clone()) for p in params if p is not None and owners.count(id(p)) == 1]
            l.scale = norm.weight if norm is not None else None

    @property
    def active(self): return [l for l in self.layers if not l.frozen]

    def refresh_frozen(self):
        "Look again which layers train. Frozen ones are left alone; zeros of those that thaw count as pruned"
        changed = [l for l in self.layers if l.frozen == l.weight.requires_grad]
        for l in changed:
            l.frozen = not l.frozen
            if not l.frozen: self._adopt_zeros(l)
        if changed: self._asked.clear()
        return changed

    def _adopt_zeros(self, l):
        "Groups that are wholly zero count as pruned"
        alive = l.weight.detach() != 0
        if l.dim != [0]: alive = alive.any(dim=tuple(d-1 for d in l.dim), keepdim=True)
        self._set_mask(l, alive.contiguous())
        if l.dead == l.n and not self.keep_zeros:
            warnings.warn(f"The weights of layer {l.name!r} are all zero: taken for an initialisation, they stay trainable (keep_zeros=True keeps them)")
            l.mask,l.dead = None,0
        l.kept,l.first = l.dead,None if l.mask is None else ~l.mask
        single = n_zeros(l.weight) - l.dead*l.size
        if l.dim != [0] and single > .01*l.weight.numel():
            warnings.warn(f"Layer {l.name!r} has {single:,} single zeros outside of wholly zero groups: with granularity={self.granularity!r} they train")

    def save_refs(self):
        "Take the weights as they are for the ones that criteria compare with"
        for l in self.layers: l.ref = l.weight.detach().clone() if self.criteria.needs_ref else None

    # -- how many, and which -----------------------------------------------------------------------------------------------------

    def due(self, sparsity):
        "{layer: percent} from a percentage, a list or a dict"
        if isinstance(sparsity, dict):
            named = {l.name:l for l in self.layers}
            for n in sparsity:
                if n not in named: raise ValueError(f"sparsity names {n!r}, which is not selected; close: {get_close_matches(str(n), named) or list(named)}")
            due = {named[n]:s for n,s in sparsity.items()}
        elif isinstance(sparsity, (list, tuple)):
            if len(sparsity) != len(self.layers): raise ValueError(f"sparsity={sparsity!r} has {len(sparsity)} values for {len(self.layers)} selected layers: "
                                                                   f"{[l.name for l in self.layers]}")
            due = dict(zip(self.layers, sparsity))
        else: due = {l:sparsity for l in self.layers}
        if isinstance(sparsity, (dict, list, tuple)) and self.context == 'global':
            raise ValueError(f"sparsity={sparsity!r} has one value a layer, and context='global' one budget for all: use context='local'")
        for l,s in due.items(): check_percent(f'sparsity of {l.name!r}' if isinstance(sparsity, (dict, list, tuple)) else 'sparsity', s)
        return due

    def _scores(self, l):
        try: scores = self.criteria(l.weight, l.ref, l.dim, self.generator)
        except Exception as e: raise ValueError(f"criteria={self.criteria.__name__} fails for layer {l.name!r}: {type(e).__name__}: {e}") from e
        if scores.sum().isnan() and scores.isnan().any():
            raise ValueError(f"criteria={self.criteria.__name__} gives NaN for layer {l.name!r}: are its weights finite?")
        return scores

    def check_criteria(self):
        "Score every layer once, for nothing: ValueError now rather than in the midst of training"
        state = self.generator.get_state()
        for l in self.layers: self._scores(l)
        self.generator.set_state(state)

    def _set_mask(self, l, keep):
        before = l.alive
        l.dead = n_zeros(keep)
        l.mask = keep if l.dead else None
        if l.after: self._bury(l, before)

    @torch.no_grad()
    def _bury(self, l, before):
        "Keep what the channels that died had in their bias and batch norm, and give it back to those that return"
        after = l.alive
        for p,was in l.after:
            every = torch.ones(len(p), dtype=torch.bool, device=p.device)
            old,now = (every if a is None else a.to(p.device) for a in (before, after))
            died,back = old & ~now,now & ~old
            was[died] = p[died]
            # weights come back at 0, and what then would get no gradient would never train: a scale of 0 (it died in an earlier
            # fit) comes back as 1, and a bias that a ReLU would cut off with its sign changed
            p[back] = torch.where(was == 0, 1, was)[back] if p is l.scale else was.abs().clamp_min(1e-3)[back]

    def _sparsify(self, key, layers, s, round_to):
        "Bring `layers`, as one budget, to `s` percent; whether their masks moved"
        n,dead = sum(l.n for l in layers), sum(l.dead for l in layers)
        last = self._asked.get(key)
        # what was zero before stays so until the schedule itself falls
        if last and s < last[0] and not self.keep_zeros:
            for l in layers: l.kept = 0
        k = n_pruned(s, n)
        if round_to and key is not None: k = round_kept(k, n, round_to)
        k = max(k, sum(l.kept for l in layers))
        if k == dead or round_to and key is None and last == (s, dead, round_to):
            self._asked[key] = (s, dead, round_to)
            self._zero(layers)
            return False
        scores,before = [self._scores(l) for l in layers],[l.mask for l in layers]
        masks = keep_masks(scores, before, k) if k > dead else self._revive(scores, layers, k)
        if round_to and key is None: # each layer from where it was: rounding keeps the highest of what would have gone
            ks = [max(round_kept(n_zeros(m), l.n, round_to), l.kept) for m,l in zip(masks, layers)]
            masks = [keep_masks([sc], [b], k)[0] for sc,b,k in zip(scores, before, ks)]
        for l,keep in zip(layers, masks): self._set_mask(l, keep)
        self._asked[key] = (s, sum(l.dead for l in layers), round_to)
        self._after_move(layers)
        return True

    def _revive(self, scores, layers, k):
        "Bring groups back, but not those that are to be kept"
        kept = [l.first if l.kept else None for l in layers]
        masks = keep_masks(scores, [l.mask if f is None else l.mask | f for l,f in zip(layers, kept)], k - sum(l.kept for l in layers))
        return [m if f is None else m & ~f for m,f in zip(masks, kept)]

    def _after_move(self, layers):
        self._zero(layers)
        if self.criteria.needs_update:
            for l in layers: l.ref = l.weight.detach().clone()

    def sparsify_model(self,
        sparsity,          # Percent, 0 to 100: one number, a list (one a selected layer, in model order) or a dict of layer names
        round_to:int=None  # Make the number of groups kept in a layer a multiple of this, or all
    ) -> bool:             # Whether any mask moved
        "Prune to `floor(sparsity/100*groups)`, in each layer or in all; a lower sparsity than the last brings weights back, at 0"
        check_round_to(round_to)
        due = {l:s for l,s in self.due(sparsity).items() if not l.frozen}
        if not due: return False
        if self.context == 'global': return self._sparsify(None, list(due), next(iter(due.values())), round_to)
        return any([self._sparsify(l.name, [l], s, round_to) for l,s in due.items()])

    def resume(self,
        sparsity # Percent, a list or a dict, as for `sparsify_model`
    ):
        "Take `sparsity` for what was asked last, changing nothing: if the next is lower, weights come back"
        due = self.due(sparsity)
        self._asked = {None:(max(due.values()), None, None)} if self.context == 'global' else {l.name:(s, None, None) for l,s in due.items()}

    def sparsify_layer(self,
        m,                 # A selected layer, or its name (of a layer of several weights, one's: 'rnn.weight_hh_l0')
        sparsity:float,    # Percent, 0 to 100
        round_to:int=None  # Make the number of groups kept a multiple of this, or all
    ) -> bool:             # Whether its mask moved
        "Prune one layer, by itself in any context"
        check_round_to(round_to)
        check_percent('sparsity', sparsity)
        l = next((l for l in self.layers if l.module is m or l.name == m), None)
        if l is None: raise ValueError(f"{m if isinstance(m, str) else type(m).__name__} is not a selected layer; "
                                       f"these are: {[l.name for l in self.layers]}")
        return self._sparsify(l.name, [l], sparsity, round_to)

    # -- keeping it so -----------------------------------------------------------------------------------------------------------

    @property
    def masks(self) -> dict[str,Tensor]:
        "What is kept, by layer name: bool, on the weight's device, its shape with a group's dimensions 1; layers with nothing pruned are left out"
        return {l.name:l.mask for l in self.layers if l.mask is not None}

    def _held(self, layers):
        "(parameter or the optimizer's copy of it, what of it is kept) of all that is held at 0"
        for l in layers:
            for p,keep in l.held:
                yield p,keep
                if id(p) in self.masters: yield self.masters[id(p)],keep

    @torch.no_grad()
    def _zero(self, layers):
        for p,keep in self._held(layers): p.masked_fill_(~keep, 0) # and not `mul_`: inf times 0 is NaN

    def held(self) -> dict:
        "What the masks keep, by the parameter's name: of weights, and of the bias and batch norm of whole output channels"
        names = {id(p):n for n,p in self.model.named_parameters()}
        return {names[id(p)]:keep for l in self.layers for p,keep in l.held}

    @torch.no_grad()
    def apply_masks(self,
        model=None # An average or another copy of the model, or its `state_dict`; None: the model itself
    ):
        "Zero the pruned weights. An average over steps (EMA, SWA) of weights that were pruned on the way is as sparse as the model again"
        if model is None:
            self._zero(self.layers)
            self._versions = self._now()
            return
        own,named = dict(self.model.named_parameters()),model if isinstance(model, dict) else dict(model.named_parameters(remove_duplicate=False))
        held = self.held()
        # DistributedDataParallel, torch.compile and AveragedModel put something before every name
        first = next(iter(own))
        before = next((p for p in sorted((n.removesuffix(first) for n in named if n.endswith(first)), key=len) if all(p + k in named for k in own)), '')
        for k in held:
            v = named.get(before + k)
            if v is None or v.shape != own[k].shape:
                raise ValueError(f"model={type(model).__name__} is no copy of the sparse model: its {k!r} "
                                 + ("is missing" if v is None else f"has shape {tuple(v.shape)} and not {tuple(own[k].shape)}"))
        for k,keep in held.items(): named[before + k].masked_fill_(~keep.to(named[before + k].device), 0)

    def _now(self): return [(id(p), p._version) for l in self.layers for p,_ in l.held]

    def apply_masks_if_touched(self) -> bool: # Whether they were
        "Zero the pruned weights if something has written to the parameters since that was done last: loaded them, say"
        if self._versions == self._now(): return False
        self.apply_masks()
        return True

    @torch.no_grad()
    def mask_grads(self):
        "Zero the gradients of pruned weights"
        for p,keep in self._held(self.layers):
            if p.grad is not None: p.grad.masked_fill_(~keep, 0) # an infinite gradient is no reason for a NaN

    @torch.no_grad()
    def mask_state(self,
        state,   # Parameter -> dict of what an optimizer holds about it
        more=()  # id of a parameter -> one more tensor that it holds
    ):
        "Zero what an optimizer has averaged for pruned weights"
        for p,keep in self._held(self.layers):
            for v in [*state.get(p, {}).values(), *([more[id(p)]] if id(p) in more else [])]:
                if isinstance(v, Tensor) and v.shape == p.shape: v.masked_fill_(~keep, 0)

    # -- how much ----------------------------------------------------------------------------------------------------------------

    @property
    def sparsity(self):
        "What the masks prune of the layers that train, in percent of their weights"
        return 100*sum(l.dead*l.size for l in self.active)/max(sum(l.weight.numel() for l in self.active), 1)

    def report(self):
        "The selected layers' zeros, counted: a `Report`"
        rep = sparsity_report(self.model, nn.Module, [l.name for l in self.layers], [l.name for l in self.layers if l.frozen])
        if not self.unsure: return rep
        return replace(rep, notes=(f"The batch norm behind {', '.join(self.unsure)} is left alone, because something else may feed it or read the layer: "
                                   "a channel that is dead there may still emit a constant",))

    def print_sparsity(self):
        "Print the report"
        print(f'\nSparsity Report:\n{self.report()}')

    def save_model(self,
        path # File to write
    ):
        "Save the model's `state_dict`, pruned weights 0: it loads into a plain model, with `weights_only=True`"
        self.apply_masks()
        torch.save(self.model.state_dict(), path)

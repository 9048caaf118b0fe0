"""The one object with state: the chosen layers of a model, their masks and their reference weights. Needs no fastai."""

from __future__ import annotations
from dataclasses import replace
from difflib import get_close_matches
import warnings

import torch
from torch import Tensor, nn

from .channels import batch_norms
from .criteria import large_final
from .granularity import is_nm
from .held import Held
from .layers import select, value_of_each
from .masks import hold, n_pruned
from .moves import Budget
from .options import Options, check_percent, check_round_to
from .report import sparsity_report
from .signals import Inputs, of_channels

__all__ = ['Sparsifier']

class Sparsifier:
    "Makes the layers of a model sparse, and keeps them so. What is asked is what is applied: counts are exact"
    _versions = None # of what is held at 0, when it was made so last
    unsure = () # names of layers whose batch norm is left alone, because it isn't certain that they alone feed it
    sync = None # how what is heard becomes the same on every process: see `Inputs.reduce`
    whole = None # the model that `model` is a part of, to be run for calibration
    in_percent,_most_asked = False,0 # whether sparsities are known to be percentages, and the highest so far: a schedule passes through 0.8
    patience,_steps_heard = 10,0 # steps in which a layer without gradient is waited for, and those that had any
    def __init__(self,
        model:nn.Module,            # The model; only the values of its selected weights are changed
        granularity:str='weight',   # What is removed as one: see `Granularities`; or the size of a block: (4, 1) is 4 output channels by 1 input channel
        context:str='local',        # 'local': each layer at the sparsity asked; 'global': all layers together; 'uniform', 'erk', 'lamp': see `contexts`
        criteria=large_final,       # What is kept: a `Criteria`, its name, or a function of a weight tensor
        nm:bool|tuple=False,        # (n, m): keep n of each m weights along the input channels; True: 2:4. The sparsity is 100*(1 - n/m) then
        layer_type=nn.Conv2d,       # Type of the layers to make sparse, or a tuple of types
        data=None,                  # For criteria that look at inputs: a tensor, or batches as a DataLoader gives them, on which to calibrate
        *,
        layers=None,                # Which of them: names, globs, regular expressions, types, functions of (name, layer), one or a list; None: all
        exclude=None,               # Which of them not, by the same rules
        keep_zeros:bool=False,      # Whether a wholly zero weight is pruned and stays so, and not an initialisation to train
        max_sparsity=None,          # Of no layer prune more than this, in percent, however many others go: a number, or a dict of rules. Not with 'local'
        recalibrate:bool=True       # Look at the inputs again each time the masks grow; False: once
    ):
        "Raises ValueError for an unknown word, for no layer of that type, and for a weight that is computed (spectral_norm, weight_norm)"
        if not isinstance(model, nn.Module): raise ValueError(f"model={model!r} must be an nn.Module")
        o = self.options = Options(granularity, context, criteria, nm, layer_type, layers, exclude, keep_zeros, max_sparsity, data, recalibrate)
        self.model,self.granularity,self.context,self.layer_type = model,granularity,context,o.layer_type
        self.criteria,self.keep_zeros = o.criteria,keep_zeros
        self.generator = torch.Generator().manual_seed(42) # its own, so that the global random state stays as it was
        found,self.left_out = select(model, o.layer_type, layers, exclude, granularity, o.nm)
        self.layers    = [Held(f, cut) for f,cut in found]
        self.masters   = {} # id of a parameter -> the optimizer's own copy of it, where it steps one (fp32 masters)
        self._budgets  = {} # layer name, or None for all that train -> `Budget`
        if self.left_out: warnings.warn(f"Left dense, as {o.given} does not fit: {'; '.join(f'{n} ({why})' for n,why in self.left_out.items())}")
        self._find_limits()
        self._find_what_follows()
        for l in self.layers: self._adopt_zeros(l)
        self.save_refs()

    # -- which layers ------------------------------------------------------------------------------------------------------------

    def _find_limits(self):
        "How many groups of each layer may go at most, and which factors its scores get"
        o = self.options
        each = value_of_each(o.max_sparsity, self.layers, 'max_sparsity') if isinstance(o.max_sparsity, dict) else {}
        for l in self.layers:
            l.limit = min(each.get(l.name, o.full if o.max_sparsity is None or each else o.max_sparsity), o.full)
            l.most  = n_pruned(100*l.limit/o.full, l.n)
        for k,v in (self.criteria.scale or {}).items():
            found = [l for l in self.layers if (l.name == k or l.name.rpartition('.')[0] == k and l.attr != 'weight' if isinstance(k, str) else l.module is k)]
            if not found: raise ValueError(f"scale names {k if isinstance(k, str) else type(k).__name__!r}, which is not a selected layer; these are: {[l.name for l in self.layers]}")
            try: v = torch.as_tensor(v, dtype=torch.float32)
            except Exception as e: raise ValueError(f"scale of {found[0].name!r}={v!r} must be a number for each input channel") from e
            for l in found: l.inputs = of_channels(l, v.to(l.weight.device))

    def _find_what_follows(self):
        "Of layers whose groups are whole output channels: the bias, and the batch norm that they alone feed. Of others that have a bias: that batch norm"
        if not any(l.of_channels or l.biased for l in self.layers): return
        norms,unsure,traced = batch_norms(self.model)
        owners = [id(p) for m in self.model.modules() for p in m._parameters.values() if p is not None]
        alone  = lambda p: p is not None and owners.count(id(p)) == 1
        self.unsure = tuple(l.name for l in self.layers if l.of_channels and l.name in unsure)
        for l in self.layers:
            norm = self.model.get_submodule(norms[l.name]) if l.name in norms else None
            if l.of_channels:
                params = [m._parameters.get(n) for m,n in ((l.module, 'bias'), (norm, 'weight'), (norm, 'bias')) if m is not None]
                l.after = [(p, p.detach().clone()) for p in params if alone(p)]
                l.scale = norm.weight if norm is not None else None
            elif l.biased and traced and alone(l.module.bias): l.norm = norm

    @property
    def active(self): return [l for l in self.layers if not l.frozen]

    def refresh_frozen(self):
        "Look again which layers train. Frozen ones are left alone; zeros of those that thaw count as pruned"
        changed = [l for l in self.layers if l.frozen == l.weight.requires_grad]
        for l in changed:
            l.frozen = not l.frozen
            if not l.frozen: self._adopt_zeros(l)
        if changed: self._budgets.clear()
        return changed

    @property
    def is_deaf(self):
        "Whether its criterion scores by gradients, and there were none yet"
        return self.criteria.needs_grad and all(l.heard is None for l in self.active)

    def _adopt_zeros(self, l): l.adopt_zeros(self.keep_zeros, self.options.said)

    def save_refs(self):
        "Take the weights as they are for the ones that criteria compare with"
        for l in self.layers: l.ref = l.weight.detach().clone() if self.criteria.needs_ref else None

    # -- what is heard -----------------------------------------------------------------------------------------------------------

    def collect_grads(self,
        loss_scale:float=1. # What the loss was multiplied with, where it was (mixed precision)
    ):
        "For criteria that score by gradients: take those of now. Call it once a step, after `loss.backward()` and before the gradients are clipped or masked"
        if not self.criteria.needs_grad: return
        for l in self.active:
            p = self.masters.get(id(l.weight), l.weight)
            g = l.weight.grad if p.grad is None else p.grad
            if g is None: continue
            l.hear(self.criteria, g if loss_scale == 1 else g/loss_scale)
        if any(l.heard is not None for l in self.active): self._steps_heard += 1

    def calibrate(self,
        data # A tensor, or batches: tensors, tuples whose last is the target and is left out, dicts of the model's arguments
    ):
        "For criteria that look at inputs: run the model on these batches, in evaluation mode, leaving no trace in it; raises ValueError for layers nothing comes into"
        if not self.criteria.needs_data: raise ValueError(f"criteria={self.criteria.__name__} does not look at inputs: there is nothing to calibrate")
        inputs = Inputs(self.active, self.criteria.data_fn)
        inputs.hear(self.model if self.whole is None else self.whole, data)
        if self.sync is not None: inputs.reduce(self.sync)
        for l,f in inputs.factors().items(): l.inputs = f

    def grows(self, sparsity):
        "Whether such a sparsity, as for `sparsify_model`, prunes more than is pruned"
        return any(b.grows(s) for b,s in self._asked(sparsity))

    def falls(self, sparsity):
        "Whether such a sparsity, as for `sparsify_model`, is lower than the last: what comes back is chosen by the gradients, if there are some"
        return any(b.falls(s) for b,s in self._asked(sparsity))

    def awaits_grad(self, sparsity):
        "Whether such a sparsity, as for `sparsify_model`, prunes more, by gradients, and a layer had none yet but zeros. It is waited for, but not for long: it may be of no use to the model"
        if not self.criteria.needs_grad or self._steps_heard > self.patience: return False
        return any(b.grows(s) and any(l.is_deaf for l in b.layers if l.dead < l.n) for b,s in self._asked(sparsity))

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
                                                                   f"{[l.name for l in self.layers]}" + (f"; left dense: {list(self.left_out)}" if self.left_out else ''))
            due = dict(zip(self.layers, sparsity))
        else: due = {l:sparsity for l in self.layers}
        if isinstance(sparsity, (dict, list, tuple)) and self.options.budget.together:
            raise ValueError(f"sparsity={sparsity!r} has one value a layer, and context={self.context!r} one budget for all: use context='local'")
        for l,s in due.items():
            name = f'sparsity of {l.name!r}' if isinstance(sparsity, (dict, list, tuple)) else 'sparsity'
            check_percent(name, s)
            if s > self.options.full + 1e-6: raise ValueError(f"{name}={s!r} is above what an N:M pattern of {self.options.nm} prunes, {self.options.full:g}%")
        return due

    def _asked(self, sparsity):
        "[(`Budget`, percent)]"
        due = {l:s for l,s in self.due(sparsity).items() if not l.frozen}
        if not due: return []
        if self.options.budget.together: return [(self._budget(None, list(due)), next(iter(due.values())))]
        return [(self._budget(l.name, [l]), s) for l,s in due.items()]

    def _budget(self, key, layers):
        if key not in self._budgets: self._budgets[key] = Budget(layers, self.options, key is not None, len(layers) < len(self.layers))
        return self._budgets[key]

    def check_criteria(self):
        "Score every layer once, for nothing: ValueError now rather than in the midst of training"
        c,state = self.criteria,self.generator.get_state()
        if c.needs_data: self.check_inputs()
        for l in self.layers:
            if not c.needs_grad: l.scores(c, self.generator)
            else:
                try: c.single(l.weight, grad=torch.zeros_like(l.weight))
                except Exception as e: raise ValueError(f"criteria={c.__name__} fails for layer {l.name!r}: {type(e).__name__}: {e}") from e
        self.generator.set_state(state)

    def check_inputs(self, data=None):
        "ValueError where the criterion could not look at what comes into the layers: of their types; and, where there are batches, of the model on them"
        data = self.options.data if data is None else data
        inputs = Inputs(self.active or self.layers, self.criteria.data_fn)
        if data is not None: inputs.hear(self.model if self.whole is None else self.whole, data)

    def _check_round_to(self, round_to):
        check_round_to(round_to)
        if round_to and self.options.nm: raise ValueError(f"round_to={round_to!r} does not go with nm={self.options.nm!r}, a pattern of its own")

    def _bring(self, budget, s, round_to, clean=False):
        "Move the masks of a budget; whether they moved"
        after = [(p, p.detach().clone()) for l in budget.layers for p,_ in l.after if id(p) in self.masters]
        moved = budget.move(s, round_to, self.generator, clean)
        with torch.no_grad():
            for p,was in after: self.masters[id(p)][p != was] = p[p != was].to(self.masters[id(p)]) # what returns with a channel: the optimizer would write its own copy over it
        for l in budget.layers:
            if moved or not clean: self._zero(l, moved and (l.done or clean))
        if moved and self.criteria.needs_update:
            for l in budget.layers: l.ref = l.weight.detach().clone()
        return moved

    def sparsify_model(self,
        sparsity,          # Percent, 0 to 100: one number, a list (one a selected layer, in model order) or a dict of layer names
        round_to:int=None, # Make the number of groups kept in a layer a multiple of this, or all
        data=None,         # For criteria that look at inputs: batches to calibrate on now; None: those of the constructor
        clean:bool=False   # Whether it is known that nothing has written to pruned weights since `apply_masks` zeroed them last
    ) -> bool:             # Whether any mask moved
        """Prune to `floor(sparsity/100*groups)`, in each layer or in all; a lower sparsity than the last brings weights back, at 0: those with the largest gradient,
        where there are gradients that were not masked yet, else the last by position"""
        self._check_round_to(round_to)
        asked = self._asked(sparsity)
        self._most_asked = max([self._most_asked, *(float(s) for _,s in asked)])
        self._listen(asked, data)
        moved = [self._bring(b, s, round_to, clean) for b,s in asked]
        self._versions = self._now()
        return any(moved)

    def _listen(self, asked, data):
        "Calibrate, if masks are to grow by what comes into the layers; raises ValueError where they can't for want of batches or gradients"
        c = self.criteria
        if data is not None and not c.needs_data: raise ValueError(f"data= is for criteria that look at inputs, such as wanda: criteria={c.__name__} does not")
        if not (c.needs_data or c.needs_grad) or not any(b.grows(s) for b,s in asked): return
        if self.is_deaf: raise ValueError(f"criteria={c.__name__} scores by gradients, and has had none: call collect_grads() after loss.backward()")
        known = all(l.inputs is not None for l in self.active)
        if not c.needs_data or data is None and known and (not self.options.recalibrate or self.options.data is None): return
        if data is None and self.options.data is None: raise ValueError(f"criteria={c.__name__} looks at what comes into the layers: give data=, or call calibrate(batches)")
        self.calibrate(self.options.data if data is None else data)

    def counts(self,
        sparsity,          # As for `sparsify_model`
        round_to:int=None, # As for `sparsify_model`
        fallen:bool=False  # Whether it comes after a higher one, so that zeros of the start may come back
    ) -> dict:             # {layer name: groups}; None for a layer of which only scores will tell; layers that do not train are left out
        "How many groups of each layer such a sparsity prunes, with nothing pruned so far but the zeros it started with"
        check_round_to(round_to)
        return {l.name:k for b,s in self._asked(sparsity) for l,k in zip(b.layers, b.counts(s, round_to, fallen))}

    def total(self,
        sparsity,         # As for `sparsify_model`
        fallen:bool=False # As for `counts`
    ) -> int:
        "How many groups of all layers together such a sparsity prunes; or weights, where the context counts those"
        return sum(b.wanted(s, None, [0]*len(b.layers) if fallen and not self.keep_zeros else None) for b,s in self._asked(sparsity))

    def resume(self,
        sparsity,         # Percent, a list or a dict, as for `sparsify_model`
        round_to:int=None, # As for `sparsify_model`
        fallen:bool=False # Whether there was a higher one before: no more zeros are held then than it asks for, as some may be weights that have come back
    ):
        "Take `sparsity` for what was asked last: if the next is lower, weights come back"
        for b,s in self._asked(sparsity):
            b.asked = s,None,None
            if not fallen or self.keep_zeros: continue
            for l in b.layers: l.kept = 0
            if b.pruned > b.wanted(s, round_to): self._bring(b, s, round_to)

    def sparsify_layer(self,
        m,                 # A selected layer, or its name (of a layer of several weights, one's: 'rnn.weight_hh_l0')
        sparsity:float,    # Percent, 0 to 100
        round_to:int=None  # Make the number of groups kept a multiple of this, or all
    ) -> bool:             # Whether its mask moved
        "Prune one layer, by itself in any context"
        self._check_round_to(round_to)
        check_percent('sparsity', sparsity)
        l = next((l for l in self.layers if l.module is m or l.name == m), None)
        if l is None: raise ValueError(f"{m if isinstance(m, str) else type(m).__name__} is not a selected layer; "
                                       f"these are: {[l.name for l in self.layers]}")
        budget,self._most_asked = self._budget(l.name, [l]),max(self._most_asked, float(sparsity))
        self._listen([(budget, sparsity)], None)
        return self._bring(budget, sparsity, round_to)

    # -- keeping it so -----------------------------------------------------------------------------------------------------------

    @property
    def masks(self) -> dict[str,Tensor]:
        "What is kept, by layer name: bool, on the weight's device, and broadcasts to it (its shape with a group's dimensions 1, but for blocks and N:M); layers with nothing pruned are left out. Copies: they stay as they are when the masks move"
        return {l.name:l.keep.clone() for l in self.layers if l.keep is not None}

    def _held(self, layers):
        "(parameter or the optimizer's copy of it, what of it is kept) of all that is held at 0"
        for l in layers:
            for p,keep in l.held:
                yield p,keep
                if id(p) in self.masters: yield self.masters[id(p)],keep

    def _zero(self, l, fresh=False):
        l.zero(fresh=fresh)
        for p,keep in l.held:
            if id(p) in self.masters: l.zero_like(p, keep, self.masters[id(p)], fresh)

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
            for l in self.layers: self._zero(l)
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
        for k,keep in held.items(): hold(named[before + k], keep.to(named[before + k].device))

    def _now(self): return [(id(p), p._version) for l in self.layers for p,_ in l.held]

    def trust_masks(self):
        "Take what has been written to the parameters for something that leaves zeros alone"
        self._versions = self._now()

    def apply_masks_if_touched(self) -> bool: # Whether they were
        "Zero the pruned weights if something has written to the parameters since that was done last: loaded them, say"
        if self._versions == self._now(): return False
        self.apply_masks()
        return True

    @torch.no_grad()
    def mask_grads(self):
        "Zero the gradients of pruned weights, and of the biases of channels that have no weights left in front of a batch norm that trains"
        for p,keep in self._held(self.layers):
            if p.grad is not None: hold(p.grad, keep) # an infinite gradient is no reason for a NaN
        for l in self.layers: l.still(self.masters)

    @torch.no_grad()
    def mask_state(self,
        state,           # Parameter -> dict of what an optimizer holds about it
        more=(),         # id of a parameter -> one more tensor that it holds
        fresh:bool=False # Only of what the last move has pruned: of the rest it holds 0 already
    ):
        "Zero what an optimizer has averaged for pruned weights"
        for l in self.layers:
            for p,keep in l.held:
                for q in (p, self.masters[id(p)]) if id(p) in self.masters else (p,):
                    for v in [*state.get(q, {}).values(), *([more[id(q)]] if id(q) in more else [])]:
                        if isinstance(v, Tensor) and v.shape == p.shape and v.is_floating_point(): l.zero_like(p, keep, v, fresh)

    # -- how much ----------------------------------------------------------------------------------------------------------------

    @property
    def sparsity(self):
        "What the masks prune of the layers that train, in percent of their weights"
        return 100*sum(l.gone for l in self.active)/max(sum(l.numel for l in self.active), 1)

    def report(self,
        sizes:bool=True # Whether to look at what the whole model takes on disk, too
    ):
        "The selected layers' zeros, counted: a `Report`"
        if 0 < self._most_asked < 1 and not self.in_percent:
            warnings.warn(f"The highest sparsity asked so far is {self._most_asked:g}%: a sparsity is a percentage, 0 to 100. Was {100*self._most_asked:g} meant?")
        names,frozen = ([l.name for l in ls] for ls in (self.layers, [l for l in self.layers if l.frozen]))
        return replace(sparsity_report(self.model, nn.Module, names, frozen, self.whole if sizes else False), notes=tuple(self._notes()))

    def _notes(self):
        "What a table does not say"
        if self.unsure: yield (f"The batch norm behind {', '.join(self.unsure)} is left alone, because something else may feed it or read the layer: "
                               "a channel that is dead there may still emit a constant")
        if nm := self.options.nm:
            rest = [l.name for l in self.layers if not is_nm(l.module, nm, l.weight)]
            yield f"{nm[0]}:{nm[1]} holds in {len(self.layers) - len(rest)} of {len(self.layers)} layers" + (f", and not yet in {', '.join(rest)}" if rest else '')
        for n,why in self.left_out.items(): yield f"{n} is left dense: {why}"

    def print_sparsity(self):
        "Print the report"
        print(f'\nSparsity Report:\n{self.report()}')

    def save_model(self,
        path # File to write
    ):
        "Save the model's `state_dict`, pruned weights 0: it loads into a plain model, with `weights_only=True`"
        self.apply_masks()
        torch.save(self.model.state_dict(), path)

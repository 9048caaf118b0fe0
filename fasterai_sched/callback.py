"""fastai's events -> the sparsifier. The only module that imports fastai, and the only one that prints."""

from __future__ import annotations
from dataclasses import replace
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from fastai.callback.core import Callback, event
from fastai.callback.fp16 import MixedPrecision, ModelToHalf, NonNativeMixedPrecision
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.imports import noop # the one `no_logging` sets, and not fastcore's
from fastai.learner import Learner, SkipToEpoch
from fastai.torch_core import get_model, num_distrib, rank_distrib
from fastcore.imports import in_notebook

from .column import Column
from .criteria import large_final
from .doubts import warn_of_beginning, warn_of_head, warn_of_loose, warn_of_more
from .history import History
from .layers import find, fitting
from .optim import find_masters, keeps_zeros, shares_memory, slow_weights, state_of
from .options import Options, check_round_to, check_whole
from .plan import Plan, make_plan
from .report import sparsity_report
from .schedules import agp, as_schedule, is_absolute
from .sparsifier import Sparsifier
from .targets import Target, as_lists, brackets, plain_numbers, snapped, update_times
from .tickets import Rewinds, Snapshot, uninitialized
from . import plots

__all__ = ['SparsifyCallback']

_agp = replace(agp) # equal to agp and not agp itself: tells whether `schedule` was given

def _either(new, old, **words):
    "The one of two words for the same thing that was given; ValueError if both were"
    said = lambda v: getattr(v, '__name__', repr(v))
    if new is not None and old is not None: raise ValueError(f"{' and '.join(f'{k}={said(v)}' for k,v in words.items())} are two words for one thing: give one")
    return old if new is None else new

def _check_unused(**words):
    "ValueError if any is given that only pruning has a use for"
    for k,v in words.items():
        if v not in (None, 0, False): raise ValueError(f"{k}={v!r} is of no use with keep_zeros=True alone, which prunes nothing more: give a sparsity too, or leave it out")

def _unwrap(model):
    "The model inside what DistributedDataParallel and torch.compile wrap around it"
    while (inner := get_model(getattr(model, '_orig_mod', model))) is not model: model = inner
    return model

class _BeforeAll(Callback):
    "The beginning of a SparsifyCallback's fit, and of each of its epochs, before another callback may cancel it. Comes to a learner and goes with its callback"
    order = -1000
    def __init__(self, begin_fit, begin_epoch): self.begin_fit,self.begin_epoch = begin_fit,begin_epoch
    def before_fit(self): self.begin_fit()
    def before_epoch(self): self.begin_epoch()

class _AfterAll(Callback):
    "The end of it, after SaveModel (61) has reloaded its best"
    order = 1000
    def __init__(self, end): self.end = end
    def after_fit(self): self.end()

class _BeforeClip(Callback):
    "Between them, of a step: gradients are whole (GradientAccumulation is 6) and unscaled (MixedPrecision 10), not yet clipped (11), and, where they are wanted dense, not masked"
    order = MixedPrecision.order + .5
    def __init__(self, see): self.see = see
    def before_step(self): self.see()

# what is between a gradient and the weights that have made their step
_STEPPING = ('_do_one_batch', '_do_grad_opt', '_backward', '_step')
_EVENTS = {n for n in dir(event) if not n.startswith('_')}

def _is_plain(learn):
    "Whether the learner steps as fastai's does"
    return all(getattr(type(learn), n) is getattr(Learner, n) and n not in vars(learn) for n in _STEPPING)

def _leaves_weights(cb):
    "Whether it is known of a callback that it writes neither to weights nor to gradients, but for a factor: most of fastai's, and ours"
    if isinstance(cb, SparsifyCallback): return True
    if isinstance(cb, (GradientClip, NonNativeMixedPrecision, ModelToHalf)): return False # a norm of NaN makes every gradient NaN
    return type(cb).__module__.startswith(('fastai.', f'{__package__}.')) and not _EVENTS & vars(cb).keys() # `Callback(after_step=f)` is fastai's too

def _as_float(v):
    "What fastai logs, a number, a tensor, None or something else, as a number, or NaN"
    try: return float(v)
    except (TypeError, ValueError): return float('nan')

def _all_reduce(t, how):
    "In place, over the processes"
    torch.distributed.all_reduce(t, torch.distributed.ReduceOp.MAX if how == 'max' else torch.distributed.ReduceOp.SUM)

class SparsifyCallback(Callback):
    "Train a sparse model: at each step as sparse as `schedule` says, at the end exactly as sparse as was asked"
    order,run_valid,remove_on_fetch,_only_train_loop = 55,False,True,True # after Recorder (50), before what writes its table (60)
    _stateattrs = ('sparsifier','_snapshot','_peers','data')              # what `learn.export` leaves behind
    sparsifier = target = data = _snapshot = _due = _epoch_report = _learn = _later = _looked = _ticket = None
    _fresh = _on = _announced = _warned = _moving = _moved = _closed = _stepping = _waited = _waits = _unchecked = _shared = False
    _peers,_settled,_epoch,_column = (),0,0,Column(None)

    def __init__(self,
        sparsity=None,            # Target in percent, 0 to 100: a number; a list, one a selected layer in model order; a dict of rules (see `layers`), which
                                  # select; a slice from the first to the last of the optimizer's parameter groups, in even steps
        granularity:str='weight', # What is removed as one: 'weight', 'filter', ...; see `Granularities`. A block by its size: (4, 1) is 4 output channels by 1 input channel
        context:str='local',      # 'local': each layer at the target; 'global': all layers together; 'uniform', 'erk', 'lamp': shared out, the total exact in weights
        criteria=large_final,     # What is kept: a `Criteria`, its name, or a function of a weight tensor
        schedule=_agp,            # When: a `Schedule`, its name, fastai's `sched_*`, a `partial`, a lambda of (start, end, pos) or of (pos)
        lth:bool=False,           # Rewind the weights to those of `rewind_epoch` each time the masks grow (lottery tickets)
        rewind_epoch:int=0,       # Save the weights before this epoch's first batch, for `rewind()`; None: don't
        reset_end:bool=False,     # Rewind once, after the fit
        save_tickets:bool=False,  # Write the ticket, a `state_dict`, to `learn.model_dir`: each time `lth` rewinds, and after the fit
        model:nn.Module=None,     # The part of the model to make sparse; None: `learn.model`
        round_to:int=None,        # Make the number of groups kept in a layer a multiple of this, or all
        nm:bool|tuple=False,      # (n, m): keep n of each m weights along the input channels; True: 2:4. `sparsity` is 100*(1 - n/m) then, or left out
        layer_type=nn.Conv2d,     # Type of the layers to make sparse, or a tuple of types
        *,
        start_sparsity:float=0,   # In percent: in force until the schedule starts
        end_sparsity=None,        # The older word for `sparsity`
        start_epoch:int=None,     # First epoch that prunes, instead of the schedule's own start
        end_epoch:int=None,       # The first epoch at the target, which is reached on the last batch before it, instead of the schedule's own end: 6 moves the masks up to the end of epoch 5
        sched_func=None,          # The older word for `schedule`
        layers=None,              # Which of the layers: names, globs ('layer4.*'), compiled regular expressions, types, functions of (name, layer); one or a list
        exclude=None,             # Which of them not, by the same rules
        update_every:int=1,       # Move the masks at every so many-th batch of the fit only, and at the last of each epoch, where the target is exact all the same
        max_sparsity=None,        # Of no layer prune more than this, in percent, however many others go: a number, or a dict of rules. Not with 'local'
        data=None,                # For criteria that look at inputs (wanda): batches to calibrate on, as a DataLoader gives them; None: the training batch at hand
        recalibrate:bool=True,    # Look at the inputs again each time the masks grow; False: once
        keep_zeros:bool=False,    # Keep all that is 0 when the fit begins, wholly zero layers too. Without a sparsity: and prune nothing more
        verbose:bool=True         # Print the sparsity of each epoch and the report (the table's column is there anyway)
    ):
        "Raises ValueError, here or before the first batch, for whatever can't be done as asked"
        super().__init__()
        target = as_lists(_either(sparsity, end_sparsity, sparsity=sparsity, end_sparsity=end_sparsity))
        sched  = _either(None if schedule is _agp else schedule, sched_func, schedule=schedule, sched_func=sched_func)
        select = list(target) if isinstance(target, dict) else layers
        if isinstance(target, dict) and layers is not None: raise ValueError(f"layers={layers!r}: the keys of sparsity={target!r} select already")
        self.schedule = as_schedule(agp if sched is None else sched)
        self.options  = o = Options(granularity, context, criteria, nm, layer_type, select, exclude, keep_zeros, max_sparsity, data, recalibrate)
        if target is None and is_absolute(self.schedule): target = self.schedule(0, 100, 1.)
        if target is None and o.nm: target = o.full
        if target is not None: Target(target, self.schedule, start_sparsity).check(o)
        elif not keep_zeros: raise ValueError("sparsity=None: give the target in percent, such as sparsity=90, or keep_zeros=True to keep what is zero")
        else: _check_unused(schedule=sched, start_sparsity=start_sparsity, start_epoch=start_epoch, end_epoch=end_epoch, round_to=round_to, lth=lth, max_sparsity=max_sparsity, data=data)
        check_round_to(round_to)
        if round_to and o.nm: raise ValueError(f"round_to={round_to!r} does not go with nm={o.nm!r}, a pattern of its own")
        for n,v in dict(rewind_epoch=rewind_epoch, start_epoch=start_epoch).items(): check_whole(n, v)
        check_whole('end_epoch', end_epoch, 1)
        if update_every is None: raise ValueError("update_every=None must be a whole number of at least 1")
        check_whole('update_every', update_every, 1)
        if end_epoch is not None and start_epoch is not None and end_epoch <= start_epoch:
            raise ValueError(f"end_epoch={end_epoch} must come after start_epoch={start_epoch}")
        self._rewinds = Rewinds(lth, rewind_epoch, reset_end, save_tickets)
        if model is not None and not isinstance(model, nn.Module): raise ValueError(f"model={model!r} must be an nn.Module, or None for the learner's")
        if o.nm and target is not None: target = snapped(target, o.full)
        self.sparsity,self.start_sparsity,self.start_epoch,self.end_epoch = plain_numbers(target),plain_numbers(start_sparsity),start_epoch,end_epoch
        self.granularity,self.context,self.criteria,self.layer_type = granularity,context,o.criteria,o.layer_type
        self.layers,self.exclude,self.keep_zeros,self.data,self.round_to,self.verbose = select,exclude,keep_zeros,o.data,round_to,verbose
        self.lth,self.rewind_epoch,self.reset_end,self.save_tickets,self.update_every = lth,rewind_epoch,reset_end,save_tickets,update_every
        o.data = None # it does not travel with `learn.export`
        self.sparse_model,self._record = model,History() # not `model`: that would hide learn.model
        self._companions = [_BeforeAll(self._begin_fit, self._begin_epoch), _BeforeClip(self._with_gradients), _AfterAll(self._end_fit)]

    # -- a fit begins ------------------------------------------------------------------------------------------------------------

    @property
    def learn(self):
        "The learner. Set when the callback comes to one and when it goes, in whatever way: its companions do the same"
        return self._learn
    @learn.setter
    def learn(self, learn):
        for cb in self._companions:
            while self._learn is not None and cb in self._learn.cbs: self._learn.remove_cb(cb)
            if learn is not None: learn.add_cb(cb)
        self._learn,self._epoch = learn,0 if learn is None else vars(learn).get('epoch', 0) # it may come amid a fit

    # validate, get_preds and their kin hold the learner's lock, and may come from another callback in the midst of a fit
    @property
    def _predicting(self): return self.learn.lock.locked()
    @property
    def _finding_lr(self): return hasattr(self.learn, 'lr_finder')
    @property
    def _quiet(self): return not self.verbose or self.learn.logger is noop or rank_distrib() > 0

    def _print(self, s):
        if not self._quiet: print(s)

    @property
    def _first(self):
        "The fit's `start_epoch`"
        return max((cb._skip_to for cb in self.learn.cbs if isinstance(cb, SkipToEpoch)), default=0)

    @property
    def _resumes(self):
        "Whether the fit begins here, and with a later epoch than its first"
        return self._epoch and not getattr(self.learn, 'train_iter', 0) and self._first

    def _begin_epoch(self):
        "A validation amid a fit leaves the learner at epoch 0, until its next epoch begins"
        if not self._predicting: self._epoch = self.learn.epoch

    def _begin_fit(self):
        "Start anew, whatever became of the last fit"
        if self._predicting: return
        self._fresh,self._column = True,Column(getattr(self.learn, 'recorder', None))
        self._on = self._announced = self._warned = self._moved = self._waited = self._waits = False
        self._looked = None

    def before_fit(self):
        "Claim the column before the table's header is written"
        if self._predicting: return
        if sum(cb is self for cb in self.learn.cbs) > 1:
            self.learn.cbs.remove(self) # fastai takes away one more: the learner is left without, and works
            raise ValueError("This SparsifyCallback is in the learner twice: give it to Learner(cbs=) or to fit(cbs=), or make a second one")
        if self._first and self._first >= self.n_epoch: warnings.warn(f"start_epoch={self._first} leaves none of {self.n_epoch} epochs to train: to resume, give fit the number of epochs in all, those before included")
        if not self._finding_lr and self._may_train(): self._column.claim()

    def _may_train(self):
        "Whether a layer that would be selected trains; no errors yet"
        found = [f for f in find(self._part, self.layer_type, self.layers, self.exclude) if (w := f.module._parameters.get(f.attr)) is not None and not is_lazy(w)]
        return any(f.weight.requires_grad for f,_ in fitting(found, self.granularity, self.options.nm)[0])

    def before_validate(self):
        "Give the column back if nothing was trained before: this is no fit"
        if self._on: self._settle()
        if self._fresh: self._column.give_back()

    def before_epoch(self):
        if not self._predicting: self._on = False # on when it trains: skipped epochs don't

    def before_train(self):
        "The fit's first: choose the layers, check, announce"
        if self._finding_lr: return
        for cb in self.learn.cbs: # all of them, before one of them changes anything
            if isinstance(cb, SparsifyCallback) and (cb._fresh or cb.sparsifier is None): cb._setup()
        sp = self.sparsifier
        if thawed := sp.refresh_frozen(): self._due = None
        self._shared = shares_memory([l.weight for l in sp.layers], self._whole)
        sp.masters = find_masters(self.learn.opt, self.learn.splitter, self._whole, [l.weight for l in sp.layers])
        if self._mask_weights() or thawed: self._mask_state() # of weights that another callback has loaded, and of zeros found at the start
        self._column.keep()
        self._on,self._epoch_report = bool(sp.active),None
        if not self._on:
            if not self._warned: warnings.warn(f"SparsifyCallback does nothing for now: none of the {len(sp.layers)} selected layers trains (all are frozen)")
            self._warned = True
            return
        if not self._announced: self._announce()
        if self._epoch == self.rewind_epoch:
            if lazy := uninitialized(self._whole): warnings.warn(f"No weights are saved at epoch {self._epoch}: {lazy} are not initialized. Run the model once on a batch first")
            else:
                self._print(f'Saving Weights at epoch {self._epoch}')
                self._snapshot = Snapshot(self._whole, self.learn)
            sp.save_refs()

    @property
    def _whole(self): return _unwrap(self.learn.model)
    @property
    def _part(self): return self._whole if self.sparse_model is None else _unwrap(self.sparse_model)

    def _setup(self):
        mine = set(map(id, self._whole.parameters()))
        if not any(id(p) in mine for p in self._part.parameters()): raise ValueError("model= has no parameter in common with the learner's model")
        self.sparsifier = self._make(self._part, self._whole, self._resumes and self.options.budget.by_score) # which may have emptied a layer
        self.target = self._target(self.sparsifier, self.learn.opt.param_lists)
        self.sparsifier.check_criteria()          # a criterion that fails is found here, before anything is trained
        if self.sparsity is not None: warn_of_head(self._whole, self.sparsifier.layers, self.granularity)
        if num_distrib() > 1: self.sparsifier.sync = _all_reduce
        if self.sparsity is None and not self.sparsifier.masks: warnings.warn("keep_zeros=True, and nothing is zero in the selected layers: was a model to be loaded?")
        self._check_overlap()
        self._closed = False
        self._fresh,self._due,self._later,self._snapshot,self._record,self._moving,self._unchecked,self._ticket = False,None,None,None,History(),True,True,None

    def _make(self, model, whole, keep_empty=False):
        o = self.options
        sp = Sparsifier(model, o.granularity, o.context, o.criteria, o.nm or False, o.layer_type, self.data, layers=o.layers, exclude=o.exclude, keep_zeros=o.keep_zeros or keep_empty,
                        max_sparsity=o.max_sparsity, recalibrate=o.recalibrate)
        sp.keep_zeros = sp.options.keep_zeros = o.keep_zeros # what was empty is held, and may come back when the schedule falls
        sp.whole,sp.in_percent = whole,True
        return sp

    def _target(self, sparsifier, groups):
        "What is asked of these layers; raises ValueError for a list of the wrong length, and for a rule of no use"
        target = Target(0 if self.sparsity is None else self.sparsity, self.schedule, self.start_sparsity).of_layers(sparsifier.layers, groups)
        sparsifier.due(target.sparsity)
        return target

    def _check_overlap(self):
        self._peers = [cb for cb in self.learn.cbs if isinstance(cb, SparsifyCallback) and (cb is self or not cb._fresh and cb.sparsifier is not None)]
        for cb in self._peers: cb._peers = self._peers
        mine = {id(l.weight):l.name for l in self.sparsifier.layers}
        for cb in self._peers:
            if cb is self: continue
            both = [mine[id(l.weight)] for l in cb.sparsifier.layers if id(l.weight) in mine]
            if both: raise ValueError(f"Two SparsifyCallbacks select the same layers, {both}: give each its own, by layer_type= or a dict of names as sparsity=")

    def _announce(self):
        n = len(self.learn.dls.train)
        self.target = self._within(self.target, self._epoch, self.n_epoch, n, self._whole)
        self._settled = self.target.last_move(self._times(self.n_epoch, n))
        self.sparsifier.counts(self.target.due(1.), self.round_to) # raises for what max_sparsity does not allow
        self._check_round_to()
        self._check_calibration(self._times(self.n_epoch, n))
        self._record = History(self._epoch*n, self.n_epoch*n, self._asked_percent(self.target.due(self._epoch/self.n_epoch)), self.sparsifier.layers,
                               getattr(getattr(self.learn, 'recorder', None), 'losses', ()))
        if self.save_tickets: self._ticket_path.parent.mkdir(parents=True, exist_ok=True) # now, and not after all the training
        already = self._check_beginning(n) if self.sparsity is not None else 0
        if not any(cb._announced for cb in self._peers): warn_of_loose(self._whole, [l.weight for cb in self._peers for l in cb.sparsifier.layers])
        if self.sparsity is None: self._print(f'Keeping the zeros of {self.options.said}: a sparsity of {brackets(self.sparsifier.sparsity)}%')
        else: self._print(f'Pruning of {self.options.said} until a sparsity of {brackets(self.target.sparsity)}%')
        if already: self._print(f'Zero already: {brackets(already)}%, which counts and stays (to resume a fit, give start_epoch to fit)')
        self._announced = True

    def _check_beginning(self, n):
        "Go on in the midst of a schedule, where the fit began with a later epoch, or the layers have thawed; from the zeros that are there"
        sp,at,there = self.sparsifier,lambda x: self._asked_percent(self.target.due(x/self.n_epoch)),self.sparsifier.sparsity
        due,fallen = self.target.due(self._epoch/self.n_epoch),self.target.fallen(self._epoch*n, self.n_epoch*n)
        if self._resumes: warn_of_beginning(sp, due, at(self._epoch), self._epoch, self.n_epoch, self.round_to, fallen)
        elif there: warn_of_more(sp, self.target.sparsity, [at(self._epoch + (self.n_epoch - self._epoch)*i/100) for i in range(101)])
        if self._epoch: sp.resume(due, self.round_to, fallen)
        return there if there >= 1 and not self._resumes else 0

    def _check_round_to(self):
        "It must leave something to prune"
        layers = self.sparsifier.active
        if self.round_to and all(l.n <= self.round_to for l in layers): raise ValueError(
            f"round_to={self.round_to!r} keeps all groups of every layer: they have {', '.join(f'{l.name} {l.n}' for l in layers[:8])}{' ...' if len(layers) > 8 else ''}")

    def _times(self, n_epoch, n_iter): return update_times(n_epoch, n_iter, self.update_every)

    def _check_calibration(self, times):
        "Batches of one's own are looked at each time the masks grow: that may be at every batch"
        if self.data is None or not self.options.recalibrate or not hasattr(self.data, '__len__'): return
        moves,n = self.target.n_moves(times),times[-1]
        if moves*len(self.data) > 2*n: warnings.warn(f"The {len(self.data)} batches of data= are looked at each time the masks grow, {moves} times with schedule={self.schedule.__name__}: "
                                                     f"{moves*len(self.data):,} forward passes beside the {n:,} of training. recalibrate=False looks once")

    def _within(self, target, first, n_epoch, n_iter, whole):
        "The target in the window of such a fit; raises ValueError for what does not fit into it"
        target = target.in_window(n_epoch, self.start_epoch, self.end_epoch)
        self._rewinds.check(target, first, n_epoch, self._times(n_epoch, n_iter), whole)
        return target

    def plan(self,
        learn,       # The learner that is to be trained; nothing of it is changed
        n_epoch:int  # Epochs of the fit
    ) -> Plan:       # Prints as a table; `.to_df()`
        "What a fit of so many epochs would prune: what is due at each epoch's end, how much that is of each layer, and how many steps are left to recover"
        check_whole('n_epoch', n_epoch, 1)
        if n_epoch is None or not hasattr(learn, 'dls'): raise ValueError(f"plan({type(learn).__name__}, n_epoch={n_epoch}) takes a Learner, and the number of epochs it is to be trained for")
        whole,n_iter,problems = _unwrap(learn.model),len(learn.dls.train),[]
        model = whole if self.sparse_model is None else _unwrap(self.sparse_model)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter('always')
            sp = self._make(model, whole)
            sp.refresh_frozen()
            groups = learn.splitter(whole) if learn.opt is None else learn.opt.param_lists
            target = self._target(sp, [groups] if isinstance(groups[0], nn.Parameter) else groups)
            try: target = self._within(target, 0, n_epoch, n_iter, whole)
            except ValueError as e: problems.append(str(e))
            try: sp.check_criteria()
            except ValueError as e: problems.append(str(e))
        if any(isinstance(cb, GradientAccumulation) for cb in learn.cbs): warned.append(warnings.WarningMessage('A step is a batch here, and with GradientAccumulation the optimizer takes fewer', UserWarning, '', 0))
        unselected = sparsity_report(model, nn.Module, [l.name for l in sp.layers], whole=False).unselected
        return make_plan(sp, target, n_epoch, self._times(n_epoch, n_iter), self.round_to, unselected, [str(w.message) for w in warned], problems, self.sparsity is not None)

    # -- a step ------------------------------------------------------------------------------------------------------------------

    @property
    def _in_force(self):
        "The sparsity asked last; before the first batch, what the epoch began with; where zeros are only kept, theirs"
        if self.sparsity is None: return self.sparsifier.sparsity
        return self.target.due(self._epoch/self.n_epoch) if self._due is None else self._due

    def _move(self, pct, step):
        "Bring the masks to what is due"
        due,sp,data = self.target.due(pct),self.sparsifier,None
        if due == self._due: return
        if (self.criteria.needs_grad or self.criteria.needs_data) and sp.grows(due):
            if sp.is_deaf: return self._wait('a gradient')
            if self.criteria.needs_data and self.data is None: data = self._batch
            if data == []: return self._wait('a batch')
        self._due,grown,sure = due,sp.sparsity,self._zeros_stay
        if not sp.sparsify_model(due, self.round_to, data, clean=sure): return
        self._mask_state(fresh=sure)
        self._moved,self._ticket,grown = True,None,sp.sparsity > grown
        self._log_row(step, 'masks', sp.sparsity)
        if self.lth and grown: self._rewind_to_ticket()

    @property
    def _batch(self):
        "The training batch at hand, to calibrate on"
        xb = getattr(self.learn, 'xb', (None,))
        return [] if xb[0] is None else [(*xb, None)]

    def _wait(self, what):
        self._waits = True
        if not self._waited: warnings.warn(f"The masks wait for {what}, by which criteria={self.criteria.__name__} scores: nothing more is pruned until there is one")
        self._waited = True

    def _mask_weights(self):
        "Zero the pruned weights, unless it is sure that they are; whether that was done"
        if self._zeros_stay and not self._stepping: return self.sparsifier.apply_masks_if_touched()
        self.sparsifier.apply_masks()
        return True

    def _settle(self):
        "Zero what another callback has left nonzero: it has cancelled our after_step, loaded weights, or stepped by itself"
        if self._stepping: self.sparsifier.apply_masks()
        if self.sparsifier.apply_masks_if_touched() or self._stepping: self._mask_state()
        self._stepping = False

    def before_batch(self):
        "Prune for the step about to be taken, once a step"
        if not self._on: return
        self._settle()
        if self._unchecked: self._check_inputs()
        if not self._moving and self._later is None: return
        step = self._epoch*self.n_iter + min(self.iter + 1, self.n_iter) # a dataloader may give more than its length says
        if self._moving and not self._is_time(step): return
        pct = step/(self.n_epoch*self.n_iter)
        due,sp = self.target.due(pct),self.sparsifier
        self._later = (pct, step) if due != self._due and (sp.falls(due) or sp.awaits_grad(due)) else None
        if not self._later: self._move(pct, step)

    def _is_time(self, step):
        "Whether a batch, the first since the last step, is one at which masks may move: a multiple of `update_every` has come, or the epoch ends, or they wait"
        last = step - 1 if self._looked is None else self._looked
        waits,self._moving,self._waits,self._looked = self._waits,False,False,step
        return waits or step//self.update_every > last//self.update_every or self.iter + 1 >= self.n_iter

    def _check_inputs(self):
        "Whether the criterion can look at what comes into the layers, on the first batch and before anything is trained"
        self._unchecked = False
        if self.criteria.needs_data and self.data is None and (batch := self._batch): self.sparsifier.check_inputs(batch)

    @property
    def _wants_dense(self): return self.criteria.needs_grad and self.sparsity is not None or self._later is not None

    def after_backward(self):
        "Before GradientClip: the averages of pruned weights stay 0, and the norm counts what lives"
        if self._on and not self._wants_dense: self.sparsifier.mask_grads()

    def _with_gradients(self):
        "The same a little later where gradients are wanted dense: to score by, or for what comes back to be chosen"
        if not self._on or not self._wants_dense: return
        sp,later,self._later = self.sparsifier,self._later,None
        sp.collect_grads()
        if later: self._wait('a gradient') if sp.awaits_grad(self.target.due(later[0])) else self._move(*later)
        sp.mask_grads()

    def before_step(self):
        "Remember that the weights are about to change"
        self._stepping = self._moving = True

    def after_step(self):
        "Whatever the optimizer did, unless it is sure to have left zeros alone"
        if self._on: self.sparsifier.trust_masks() if self._zeros_stay else self.sparsifier.apply_masks()
        self._stepping,self._moving = False,True

    @property
    def _zeros_stay(self):
        "Whether nothing writes to pruned weights between two forward passes: the optimizer would not, and the callbacks are fastai's (but for those that may) and ours"
        learn,sp = self.learn,self.sparsifier
        return not sp.masters and not self._shared and _is_plain(learn) and keeps_zeros(learn.opt) and all(map(_leaves_weights, learn.cbs))

    # -- an epoch ends -----------------------------------------------------------------------------------------------------------

    def after_train(self):
        "Catch up if batches were skipped, then see that pruned is zero"
        if not self._on: return
        self._later = None
        self._move((self._epoch + 1)/self.n_epoch, (self._epoch + 1)*len(self.learn.dls.train))
        self._mask_weights()

    def _measure(self):
        if self._epoch_report is None: self._epoch_report = self.sparsifier.report(sizes=False)
        return self._epoch_report

    def after_validate(self):
        "Put the measured sparsity in the table's row"
        if self._column.name and not self._fresh and not self._predicting: self._column.fill(self._measure().sparsity)

    def after_epoch(self):
        "Print the same number"
        if self._predicting or not self._on: return
        if self._stepping: self._epoch_report = None # an epoch cancelled in the midst of a step
        self._settle()
        rep = self._measure()
        self._print(f'Sparsity at the end of epoch {self._epoch}: {brackets(self._measured(rep))}%')
        end = (self._epoch + 1)*len(self.learn.dls.train)
        self._record.hear(getattr(getattr(self.learn, 'recorder', None), 'losses', ()), end)
        self._log_row(end, 'epoch', rep.sparsity, self._table_row())
        if self._moved or end < self._settled: self._restart_trackers()
        self._on = self._moved = False

    def _restart_trackers(self):
        "The best so far is not of the sparsity that was asked: what SaveModel, EarlyStopping and ReduceLROnPlateau keep starts anew"
        for cb in self.learn.cbs:
            if {'best', 'comp'} <= vars(cb).keys(): cb.best = float('inf') if cb.comp == np.less else -float('inf')

    def after_cancel_fit(self):
        if self._on: self.sparsifier.apply_masks()

    def _measured(self, rep):
        "The measured sparsity in the form of `sparsity`: of all layers, or of each"
        by_name = {r.name:r.sparsity for r in rep.rows}
        return self.target.of_each(by_name) or rep.sparsity

    # -- a fit ends --------------------------------------------------------------------------------------------------------------

    def _end_fit(self):
        "Report on the model the user is left with"
        if self._predicting: return
        if self._announced:
            self._column.keep()
            for cb in self._peers: cb._close() # what any of them rewinds is rewound before the first reports
        announced,self._announced,self._fresh,self._column = self._announced,False,False,Column(None)
        if not announced: return
        if self._in_force != (last := self.target.due(1.)) and self.sparsity is not None:
            warnings.warn(f"The fit ended before its schedule did: at {brackets(self._in_force)}%, and not at {brackets(last)}%")
        if self._quiet: return
        rep = self.sparsifier.report()
        off = f' (measured {brackets(self._measured(rep))}%)' if self._is_off(rep) else ''
        print(f'Final Sparsity: {brackets(self._in_force)}%{off}')
        if not in_notebook(): return print('\n'.join(['', 'Sparsity Report:', str(rep), *rep.notes]))
        from IPython.display import display
        print('\nSparsity Report:')
        display(rep)

    def _close(self):
        "Tickets, once a fit"
        self._on = False
        if self._closed or not self._announced: return
        self._closed = True
        if (self.save_tickets or self.reset_end) and self._snapshot is None:
            return warnings.warn(f"The fit ended before rewind_epoch={self.rewind_epoch}: no weights are saved, so there is nothing to rewind to and no ticket")
        if self.save_tickets: self._save_ticket()
        if self.reset_end: self.rewind()

    def _is_off(self, rep):
        "Whether the count differs from what is due by more than one group a layer"
        return abs(rep.zeros - self._asked_percent(self._in_force)*rep.params/100) > sum(l.size for l in self.sparsifier.active)

    def _asked_percent(self, due):
        "Of all layers that train and are asked for something"
        if not isinstance(due, (dict, list, tuple)): return float(due)
        each = [(float(s), l.numel) for l,s in self.sparsifier.due(due).items() if not l.frozen]
        return sum(s*n for s,n in each)/max(sum(n for _,n in each), 1)

    # -- afterwards --------------------------------------------------------------------------------------------------------------

    def _mask_state(self, fresh=False):
        "Zero what the optimizer holds for pruned weights: averages, and the slow weights of Lookahead"
        self.sparsifier.mask_state(state_of(self.learn.opt), slow_weights(self.learn.opt), fresh)

    def rewind(self):
        "Put the model back to the weights saved at `rewind_epoch`, pruned ones 0: the lottery ticket. The optimizer forgets its averages"
        if self._snapshot is None:
            raise RuntimeError(f"No weights are saved: rewind_epoch={self.rewind_epoch!r}, and no fit with this callback has trained that epoch")
        self._snapshot.rewind([cb.sparsifier for cb in self._peers])

    @property
    def _ticket_path(self):
        return self.learn.path/self.learn.model_dir/f'winning_ticket{self._column.suffix}_{self.sparsifier.sparsity:.2f}.pth'

    def _save_ticket(self):
        if rank_distrib() or self._ticket == self._ticket_path: return # one process writes, and once
        self._ticket = self._ticket_path
        self._print(f'Saving ticket {self._ticket_path.name}')
        self._snapshot.save(self._ticket_path, [cb.sparsifier for cb in self._peers])

    def _rewind_to_ticket(self):
        self._print(f'Resetting Weights to their epoch {self.rewind_epoch} values')
        self.rewind()
        if self.save_tickets: self._save_ticket()

    def _table_row(self):
        "What fastai's table says of this epoch, but for our own columns"
        rec,ours = getattr(self.learn, 'recorder', None),[cb._column.name for cb in self._peers]
        if not getattr(rec, 'values', None): return {}
        return {n:_as_float(v) for n,v in zip(rec.metric_names[1:], rec.values[-1]) if n not in ours}

    def _log_row(self, step, kind, measured, row=None):
        self._record.add(step, self._epoch, kind, self._asked_percent(self._in_force), measured, self.sparsifier.layers, row)

    def _check_drawable(self):
        if self.sparsifier is None: raise RuntimeError("There is nothing to draw yet: no fit with this callback has begun")

    @property
    def history(self):
        "The last fit as a DataFrame: step, epoch, kind ('masks' moved, or the end of an 'epoch'), target and measured, both in percent"
        return self._record.to_df()

    def plot(self,
        ax=None, # Matplotlib axes to draw on: one, for the sparsity alone, or several; new ones if None
        **kwargs # Passed to `ax.plot` for the target
    ):           # The axes, as an array; the one that was given
        "Draw the last fit on one x-axis: the target and what was measured, training and validation loss, the metrics, and where epochs end. Raises RuntimeError before there was a fit"
        self._check_drawable()
        return self._record.plot(ax, **kwargs)

    def plot_layers(self,
        ax=None, # Matplotlib axes to draw on; new ones if None
        **kwargs # Passed to `ax.pcolormesh`
    ):           # The axes
        "Draw how sparse each layer was over the last fit, as a heat map; raises RuntimeError before there was a fit"
        return self._record.plot_layers(ax, **kwargs)

    def plot_weights(self,
        layer:str=None, # Of which layer; None: of all selected ones together
        ax=None,        # Matplotlib axes to draw on; new ones if None
        **kwargs        # Passed to `plots.plot_weights`
    ):                  # The axes
        "Draw the weights of `rewind_epoch`, if this fit has saved them, and those of now as distributions; raises RuntimeError before there was a fit, ValueError for a layer that was not selected"
        self._check_drawable()
        layers = [l for l in self.sparsifier.layers if layer in (None, l.name)]
        if not layers: raise ValueError(f"layer={layer!r} was not selected; these were: {[l.name for l in self.sparsifier.layers]}")
        before = None if self._snapshot is None else [self._snapshot.of(l.weight) for l in layers]
        ax = plots.plot_weights(before, [l.weight for l in layers], ax=ax, **kwargs)
        if layer is not None: ax.set_title(layer)
        return ax

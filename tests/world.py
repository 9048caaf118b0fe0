"""What the contract with fastai is tested with: a World lets a row's action happen, and finds what is not true in it, by column."""
import copy
import gc
import io
import re
import tempfile
import traceback
import warnings
import weakref
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from fastai.optimizer import OptimWrapper
from fastai.vision.all import Callback
from helpers import tiny_learner
from torch import nn

from fasterai_sched import SparsifyCallback, agp, large_final

COLUMNS = dict(
    numbers   = "asked = applied = reported",
    zero      = "pruned weights are exactly 0",
    averages  = "their averages in the optimizer are 0",
    state     = "`state_dict()` keeps its keys",
    same      = "the Parameters are the same objects",
    prints    = "prints training only",
    inert     = "changes nothing without training",
    next_fit  = "the next fit just works",
    freed     = "masks go with the callback")

def pruned(cb): return [(l, ~cb.sparsifier.masks[l.name].expand_as(l.weight)) for l in cb.sparsifier.layers if l.name in cb.sparsifier.masks]
def sparsifiers(learn): return [cb for cb in learn.cbs if isinstance(cb, SparsifyCallback)]
def bare(model):
    "The model inside of its wrappers"
    for name in ('_orig_mod', 'module'): model = getattr(model, name, model)
    return model

def selected(cb, model):
    "The layers that are selected and train, found without the library: name -> weight"
    found = {id(m.weight):(n, m.weight) for n,m in reversed(list(bare(model).named_modules())) if isinstance(m, cb.layer_type) and m.weight.requires_grad
             and (not isinstance(cb.sparsity, dict) or n in cb.sparsity)}
    return {n:w for n,w in reversed(found.values())}

def plain_keys(model): return [k.replace('_orig_mod.', '') for k in model.state_dict()]
def count_hooks(model): return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
def zeros(ws): return {n:int((w == 0).sum()) for n,w in ws.items()}

class Witness(Callback):
    "Sees every fit from inside, after SparsifyCallback (55) and before the table is written (60)"
    order = 59
    def __init__(self, world): self.world = world

    @property
    def at_work(self): return [cb for cb in sparsifiers(self.learn) if cb.sparsifier is not None and cb in self.trained] if self.on else []

    def before_fit(self): self.on,self.trained,self.found = False,[],None
    def before_train(self):
        if hasattr(self.learn, 'lr_finder'): return
        if self.found is None: self.found = {cb:self.at_start(cb) for cb in sparsifiers(self.learn)}
        self.on,self.whole = True,False
        self.trained = [cb for cb in sparsifiers(self.learn) if selected(cb, self.model)]
        if self.trained: self.world.trained += 1

    def at_start(self, cb):
        "The zeros a fit begins with; a layer of nothing else is an initialisation"
        ws = selected(cb, self.model)
        return {n:z for n,z in zeros(ws).items() if z < ws[n].numel() or cb.keep_zeros}

    def after_train(self): self.whole = True
    def after_pred(self):
        for cb in self.at_work:
            for l,dead in pruned(cb): self.world.expect('zero', not l.weight[dead].any(), f'{l.name} at a forward pass, training={self.training}')
        self.world.look(self.learn, hooks=self.training)

    def after_batch(self):
        if not self.training: return
        for cb in self.at_work:
            state = self.opt.opt.state if isinstance(self.opt, OptimWrapper) else self.opt.state
            masters = dict(zip(map(id, self.world.weights), self.world.masters)) if self.world.masters else {}
            for l,dead in pruned(cb):
                self.world.expect('zero', not l.weight[dead].any(), f'{l.name} after a batch')
                for k,v in state.get(masters.get(id(l.weight), l.weight), {}).items():
                    if isinstance(v, torch.Tensor) and v.shape == l.weight.shape: self.world.expect('averages', not v[dead].any(), f'{k} of {l.name}')

    def after_epoch(self):
        "What is asked is found from the schedule, what is applied from the weights, what is reported from the row"
        self.world.look(self.learn, hooks=self.on)
        if not self.trained or not self.on or not self.whole: return
        names,log = list(self.recorder.metric_names),list(self.recorder.log)
        for i,cb in enumerate(self.trained):
            ws = selected(cb, self.model)
            now = zeros(ws)
            if cb.sparsity is None: asked = {n:self.found[cb].get(n, 0) for n in ws}
            else: asked = {n: max(self.world.floor(cb, n, (self.epoch + 1)/self.n_epoch, w), self.found[cb].get(n, 0)) for n,w in ws.items()}
            if cb.context != 'local': now,asked = sum(now.values()),max(self.world.floor(cb, None, (self.epoch + 1)/self.n_epoch, *ws.values()), sum(self.found[cb].values()))
            self.world.expect('numbers', asked == now, f'epoch {self.epoch}: asked {asked}, applied {now}')
            share = 100*sum(zeros(ws).values())/sum(w.numel() for w in ws.values())
            column = f'sparsity_{i+1}' if i else 'sparsity'
            self.world.expect('numbers', column in names and log[names.index(column)] == share, f'epoch {self.epoch}: applied {share}, the row says {dict(zip(names, log))}')
            each = [100*zeros(ws)[n]/ws[n].numel() for n in cb.sparsity] if isinstance(cb.sparsity, dict) else [share]
            if cb.verbose: self.world.shares.append([round(s, 2) for s in each])
        self.on = False

class Last(Callback):
    "What a fit leaves, after all others"
    order = 2000
    def __init__(self, world): self.world = world
    def after_fit(self):
        w = self.world.witness
        for cb in w.trained:
            if cb.verbose: self.world.finals.append(sum(zeros(selected(cb, self.model)).values()))
        w.trained = []

class World:
    "A learner, a callback and what becomes of them"
    def __init__(self, row, path):
        self.faults,self.path,self.row = {c:[] for c in COLUMNS},Path(path),row
        self.shares,self.finals,self.trained,self.masters = [],[],0,None
        self.out = io.StringIO()
        torch.manual_seed(0)
        self.learn = row.make(path=self.path)
        self.weights = [p for p in self.learn.model.parameters() if isinstance(p, nn.Parameter)]
        self.keys,self.ids = plain_keys(self.learn.model),[id(p) for p in self.weights]
        self.hooks = count_hooks(bare(self.learn.model))
        self.witness,self.last = Witness(self),Last(self)
        self.learn.add_cbs([self.witness, self.last])
        self.cb = self.new()

    def new(self, sparsity=None, **kwargs):
        "A fresh callback, as the row has it"
        kwargs = {'sparsity':60, 'schedule':agp, 'criteria':large_final, **self.row.kwargs, **kwargs}
        return SparsifyCallback(**{**kwargs, 'sparsity':kwargs['sparsity'] if sparsity is None else sparsity})
    def fit(self, *cbs, n=3, cb=None, **kwargs): self.learn.fit(n, cbs=[cb or self.cb, *cbs], **kwargs)
    def expect(self, column, ok, what):
        if not ok: self.faults[column].append(what)
    def look(self, learn, hooks=True):
        "At what must be the same at any moment; fastai's summary has hooks of its own"
        model = bare(learn.model)
        self.expect('state', plain_keys(model) == self.keys, 'other keys')
        self.expect('same', [id(p) for p in model.parameters() if isinstance(p, nn.Parameter)] == self.ids, 'other Parameters')
        if hooks: self.expect('state', count_hooks(model) == self.hooks, 'hooks on the model')

    @staticmethod
    def floor(cb, name, pct, *ws):
        "How many weights a schedule asks for at `pct`, with no help from the library's counting"
        end = cb.sparsity[name] if isinstance(cb.sparsity, dict) else cb.sparsity
        return int(cb.schedule(cb.start_sparsity, end, pct)/100*sum(w.numel() for w in ws) + 1e-9)

    def zeros(self): return sum(zeros(selected(self.cb, self.learn.model)).values())
    def raises(self, exc, f, *args, **kwargs):
        "`f` must raise `exc`, as it would without the callback"
        try: f(*args, **kwargs)
        except exc: return
        raise AssertionError(f'{exc.__name__} was not raised')
    def holds(self, file, n):
        "The saved weights load into a plain model and have `n` zeros"
        plain = self.row.make(path=self.path).model
        saved = torch.load(self.path/file, weights_only=True) if not isinstance(file, dict) else file
        plain.load_state_dict(saved.get('model', saved), strict=True)
        got = sum(zeros(selected(self.cb, plain)).values())
        self.expect('numbers', got == n, f'{file} has {got} zeros, and {n} were reported')

    def untouched(self, f):
        "`f` trains nothing: all stays as it was"
        def state():
            cb = self.cb
            masks = {} if cb.sparsifier is None else {k:v.clone() for k,v in cb.sparsifier.masks.items()}
            return copy.deepcopy(bare(self.learn.model).state_dict()),masks,cb.history.to_dict(),[type(c) for c in self.learn.cbs]
        before,printed = state(),self.out.tell()
        f()
        after = state()
        for was,now in zip(before[:2], after[:2]):
            self.expect('inert', list(was) == list(now) and all(torch.equal(was[k], now[k]) for k in was), 'weights, statistics or masks changed')
        self.expect('inert', before[2:] == after[2:], 'the history or the list of callbacks changed')
        said = re.sub(r'\x1b.*', '', self.out.getvalue()[printed:])
        self.expect('prints', not re.search('parsity|Prun|Weights', said), f'printed {said!r}')

    def go(self):
        with redirect_stdout(self.out), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            cbs = [type(cb) for cb in self.learn.cbs]
            self.row.act(self)
            self.look(self.learn)
            left = [cb for cb in self.learn.cbs if cb not in sparsifiers(self.learn) and cb not in [c for s in sparsifiers(self.learn) for c in s._companions]]
            self.expect('next_fit', cbs == [type(cb) for cb in left], f'callbacks left over: {left}')
            self.printed()
            if not self.row.last: self.again()
            self.free()

    def printed(self):
        "A line for each epoch, with the row's number, and a report for each fit, with what it left"
        out = self.out.getvalue()
        lines = [list(map(float, x.split(', '))) for x in re.findall(r'Sparsity at the end of epoch \d+: \[([\d., ]+)\]%', out)]
        reports = [int(x.replace(',', '')) for x in re.findall(r'Overall +all +[\d,]+ +([\d,]+)', out)]
        if self.row.whole:
            self.expect('numbers', lines == self.shares, f'printed {lines}, the rows say {self.shares}')
            self.expect('numbers', reports == self.finals, f'the reports say {reports}, the fits left {self.finals}')
        self.expect('prints', len(lines) <= self.trained*2 and (self.trained or not out.count('parsity')), f'{len(lines)} lines for {self.trained} epochs')

    def again(self):
        "A fit with a fresh callback, one with the same, and a plain one"
        for cb in (self.new(schedule='lin'), self.cb):
            self.learn.remove_cbs(sparsifiers(self.learn))
            self.learn.fit(1, cbs=cb)
            self.expect('next_fit', 'sparsity' in self.learn.recorder.metric_names, 'no column in the next fit')
        self.learn.remove_cbs(sparsifiers(self.learn))
        self.learn.fit(1)
        self.expect('next_fit', not any('sparsity' in n for n in self.learn.recorder.metric_names), 'a column in a plain fit')
        self.expect('next_fit', not [k for k in vars(self.learn) if 'sparsi' in k or '_all' in k], 'attributes left on the learner')
        self.look(self.learn)

    def free(self):
        self.learn.remove_cbs(sparsifiers(self.learn))
        held = [] if self.cb.sparsifier is None else [weakref.ref(m) for m in self.cb.sparsifier.masks.values()]
        self.witness.trained,self.witness.found,self.cb = [],{},None
        gc.collect()
        self.expect('freed', all(r() is None for r in held), 'masks are still held')

@dataclass(frozen=True)
class Row:
    group:str            # What it belongs to
    name:str             # The user's action
    act:object           # What it does, with a World
    make:object = tiny_learner
    kwargs:dict = None   # More for SparsifyCallback
    columns:tuple = None # What applies; None: all but `inert`
    whole:bool = True    # Whether every epoch and fit that began has ended
    last:bool = False    # Whether the model is past training afterwards
    def __post_init__(self): object.__setattr__(self, 'kwargs', self.kwargs or {})
    def __hash__(self): return hash((self.group, self.name))
    @property
    def applies(self): return self.columns or tuple(c for c in COLUMNS if c != 'inert')

@lru_cache(maxsize=None)
def faults(row):
    "What a row's World finds wrong, by column"
    with tempfile.TemporaryDirectory() as path:
        world = World(row, path)
        try: world.go()
        except Exception as e: # what stops a row fails all of its columns, and the others still run
            stop = f'stopped by {type(e).__name__} at line {traceback.extract_tb(e.__traceback__)[-1].lineno}: {e}'
            for column in row.applies: world.expect(column, False, stop)
        return world.faults

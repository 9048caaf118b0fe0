"""What a user does with one learner, in any order: after each step, and from inside of every fit, what was promised is looked for."""
import copy
import math
import re
import tempfile
import warnings
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import torch
from fastai.vision.all import (Adam, Callback, CancelBackwardException, CancelBatchException, CancelEpochException, CancelFitException,
    CancelStepException, CancelTrainException, CancelValidException, DataLoaders, EarlyStoppingCallback, GradientAccumulation, GradientClip,
    Optimizer, OptimWrapper, SaveModelCallback, SGD, load_learner, ranger, sgd_step)
from helpers import tiny_learner, tiny_model
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from torch import nn

from fasterai_sched import SparsifyCallback, criterias, sparsity_report
from fasterai_sched.schedules import schedules
from fasterai_sched.budgets import contexts

class Items(list):
    "A data set that `learn.export` can empty"
    def new_empty(self): return Items()

def nano_dls():
    "Two training batches of two 3-pixel images, and one of validation"
    g = torch.Generator().manual_seed(0)
    data = [Items(zip(torch.randn(n, 2, 3, 3, generator=g), torch.arange(n) % 3)) for n in (4, 2)]
    dls = DataLoaders.from_dsets(*data, bs=2, num_workers=0, device='cpu')
    dls.c = 3
    return dls

def split(m): return [list(m[:7].parameters()), list(m[7:].parameters())]
def quiet(log): pass
def langevin(p, lr, **kwargs): p.data.add_(torch.randn_like(p), alpha=.1*lr) # moves all, whatever its gradient

BOTH = (nn.Conv2d, nn.Linear)
OPTS = [Adam, partial(SGD, mom=.9), partial(ranger, k=2), partial(OptimWrapper, opt=torch.optim.AdamW),
        partial(Optimizer, cbs=[langevin, sgd_step])]
FITS = ['fit', 'fit_one_cycle', 'fit_flat_cos']
WITH = dict(save=SaveModelCallback, early=EarlyStoppingCallback, accumulate=partial(GradientAccumulation, 3),
            clip=partial(GradientClip, .1))
EVENTS = '''before_fit before_epoch before_train before_batch after_pred after_loss before_backward after_backward before_step after_step
    after_batch after_train before_validate after_validate after_epoch after_fit'''.split()
ERRORS = [KeyboardInterrupt, CancelFitException, CancelEpochException, CancelTrainException, CancelBatchException, # and, with less to them,
    ValueError, CancelValidException, CancelBackwardException, CancelStepException]
# these fail by themselves where a row is cut short, or a fit has no first epoch
FASTAIS = 'Exception occured in `(Recorder|SaveModelCallback|EarlyStoppingCallback)`'
WARNINGS = ('are all zero: taken for an initialisation|single zeros outside of wholly zero groups|none of the . selected layers trains'
            '|and nothing is zero in the selected layers|ended before its schedule did|Nothing is left of|has had no gradient|The masks wait for a gradient|removes whole outputs of|Zeros train again in|is less than what is zero already')

class Told:
    "A SparsifyCallback, and what it was told"
    def __init__(self, pick, sparsity=None, **kwargs):
        self.granularity,self.layer_type = pick
        self.sparsity,self.start,self.schedule = sparsity,kwargs.get('start_sparsity', 0),kwargs.get('schedule')
        self.context,self.keep_zeros = kwargs.get('context', 'local'),kwargs.get('keep_zeros', False)
        self.verbose = kwargs.get('verbose', True)
        self.kwargs = dict(sparsity=sparsity, granularity=self.granularity, layer_type=self.layer_type, **kwargs)
        self.cb = SparsifyCallback(**self.kwargs)
    def __repr__(self): return f"Told({', '.join(f'{k}={v!r}' for k,v in self.kwargs.items())})"
    @property
    def types(self): return self.layer_type if isinstance(self.layer_type, tuple) else (self.layer_type,)
    def due(self, pct): return 0 if self.sparsity is None else schedules[self.schedule](self.start, self.sparsity, pct)
    def groups(self, w): return w.reshape(-1, 1) if self.granularity == 'weight' else w.flatten(1)

PICKS = [('weight', nn.Conv2d), ('filter', nn.Conv2d), ('weight', BOTH), ('filter', BOTH), ('weight', nn.Linear), ('row', nn.Linear)]
AFTER = {'0':['0.bias', '1.weight', '1.bias'], '3':['3.bias'], '7':['7.bias']} # what goes with a whole output channel

def told(picks=PICKS):
    "Any callback of these granularities and layer types"
    return st.builds(Told, st.sampled_from(picks), st.one_of(st.integers(0, 100), st.sampled_from([12.5, 33.3, 99.9])),
                     context=st.sampled_from(list(contexts)), criteria=st.sampled_from(list(criterias)),
                     schedule=st.sampled_from(list(schedules)), start_sparsity=st.sampled_from([0, 0, 30]),
                     keep_zeros=st.sampled_from([False, False, True]), verbose=st.sampled_from([True, True, False]))

class Watch:
    "One callback in one fit: what it selects, what it finds, what it may do"
    def __init__(self, told, model):
        self.told,self.cb,self.rows,self.params = told,told.cb,[],dict(model.named_parameters())
        self.selected = {n:m for n,m in model.named_modules() if isinstance(m, told.layer_type)}
        self.layers   = {n:m for n,m in self.selected.items() if m.weight.requires_grad}
        self.zero     = {n:m.weight.detach() == 0 for n,m in self.layers.items()}
        self.ever     = {n:torch.zeros_like(z) for n,z in self.zero.items()} # pruned at some time of the fit
        self.dead     = {n:int(told.groups(z).all(1).sum()) for n,z in self.zero.items()}
        self.begins   = {n for n,z in self.zero.items() if z.all() and not told.keep_zeros} # an initialisation
        for n in self.begins: self.dead[n] = 0

    def pruned(self, n):
        "Where layer `n` is pruned: masks cover groups"
        mask = self.cb.sparsifier.masks.get(n)
        return torch.zeros_like(self.selected[n].weight, dtype=torch.bool) if mask is None else ~mask.expand_as(self.selected[n].weight)

    def held(self, n):
        "(name of a parameter, where it is to be 0) of all that layer `n` holds"
        p = self.pruned(n)
        yield f'{n}.weight',p
        if self.told.granularity != 'weight' and n in self.layers: yield from ((k, p.flatten(1).all(1)) for k in AFTER[n])

    def broken(self, opt=None):
        "What is pruned and not 0, and averages of it"
        state = getattr(opt, 'opt', opt).state if opt else {}
        for n in self.selected:
            for k,p in self.held(n):
                if self.params[k][p].any(): yield f'{k} is pruned and not 0'
                if n not in self.layers: continue
                for a,v in state.get(self.params[k], {}).items():
                    if isinstance(v, torch.Tensor) and v.shape == p.shape and v[p].any(): yield f'{k} is pruned and its {a} not 0'
            if n in self.layers: self.ever[n] |= self.pruned(n)

    @property
    def sparsity(self):
        weights = [m.weight for m in self.layers.values()]
        return 100*sum(int((w == 0).sum()) for w in weights)/sum(w.numel() for w in weights)

    def asked(self, epoch, n_epoch, n_iter, every):
        "(layers, numbers of groups that may be pruned in them) after an epoch"
        due = [self.told.due(i/(n_epoch*n_iter)) for i in range(1, (epoch + 1)*n_iter + 1)]
        fell = any(b < a for a,b in zip(due, due[1:])) and not self.told.keep_zeros
        n = {l:len(self.told.groups(z)) for l,z in self.zero.items()}
        for ls in [[l] for l in n] if self.told.context == 'local' else [list(n)]:
            size = {l:1 if self.told.context in ('local', 'global') else z.numel()//n[l] for l,z in self.zero.items()} # other contexts count weights
            k,dead = math.floor(round(due[-1]*sum(n[l]*size[l] for l in ls)/100, 9)),sum(self.dead[l]*size[l] for l in ls)
            # what was zero stays so while the schedule rises; where steps were left out, a fall may not have been seen
            may = [k]*fell + [max(k, dead)]*(not fell or not every)
            yield ls,size,[m for k in may for m in range(k - max(size.values()) + 1, k + 1)]

    def wrong(self, *args):
        "What is not as asked after an epoch"
        for ls,size,may in self.asked(*args):
            k = sum(int(self.told.groups(self.pruned(l)).all(1).sum())*size[l] for l in ls)
            if k not in may: yield f'layers {ls}: {k} are pruned and not {may}'
        for n,m in self.layers.items():
            own = self.zero[n] if n in self.begins or self.told.granularity != 'weight' else torch.zeros_like(self.zero[n])
            if ((m.weight == 0) & ~self.pruned(n) & ~self.ever[n] & ~own).any(): yield f'layer {n}: zeros that nobody asked for'

class Witness(Callback):
    "Looks on, after the callbacks have acted"
    order = 59
    def __init__(self, watches, every):
        self.watches,self.every,self.broken,self.begun,self.models = watches,every,[],False,[]
        self.trained = self.validated = self.validating = None
    def look(self, opt=None):
        if self.begun: self.broken += [f'epoch {self.epoch}: {b}' for w in self.watches for b in w.broken(opt)]
    def before_train(self): self.begun = self.trained = True
    def before_batch(self): self.look()
    def after_pred(self):
        self.look()
        if not self.training: self.validating = [w.sparsity for w in self.watches]
    def after_step(self): self.look(self.learn.opt)
    def after_validate(self): self.validated = True
    def after_epoch(self):
        self.look()
        names = list(self.recorder.metric_names)
        for i,w in enumerate(self.watches):
            if self.trained: w.rows.append(w.sparsity)
            if not (self.trained and self.validated): continue
            col = f'sparsity_{i+1}' if i else 'sparsity'
            row = self.recorder.values[-1][names.index(col) - 1] if col in names else None
            true = row == w.sparsity and (not self.validating or row == self.validating[i])
            if not true: self.broken.append(f'epoch {self.epoch}: {col} is {row}, counted {w.sparsity}')
            self.broken += [f'epoch {self.epoch}: {b}' for b in w.wrong(self.epoch, self.n_epoch, len(self.dls.train), self.every())]
        self.trained = self.validated = self.validating = None
        self.models.append(values(self.learn))

class Stop(Callback):
    "Raises `error` at some of the times that `event` comes, before or after the callback"
    def __init__(self, event, at, error, order):
        self.event,self.at,self.error,self.order,self.times,self.raised = event,at,error,order,-1,False
        setattr(self, event, self.count)
    def __repr__(self): return f'Stop({self.event!r}, {self.at}, {self.error.__name__}, {self.order})'
    def count(self):
        self.times += 1
        if self.times not in self.at: return
        self.raised = True
        raise self.error('as told')

class MadeUpLosses(Callback):
    "Makes up validation losses, not ever better ones"
    order = 54
    def after_epoch(self):
        row = self.recorder.values[-1]
        if len(row) > 1: row[1] = [2., 3., 1.][self.epoch]

def values(learn): return {k:v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k,v in a.items())
def users(warned): return [str(w.message) for w in warned if issubclass(w.category, UserWarning)]
def lines(w): return [f'Sparsity at the end of epoch {e}: [{round(s, 2)}]%' for e,s in enumerate(w.rows)] if w.told.verbose else []

class Soak(RuleBasedStateMachine):
    "One learner and its user"
    @initialize(opt=st.sampled_from(OPTS), frozen=st.sampled_from([False, False, True]), t=st.one_of(st.none(), told()))
    def start(self, opt, frozen=False, t=None):
        torch.manual_seed(0)
        self.dir = tempfile.TemporaryDirectory()
        self.learn = tiny_learner(dls=nano_dls(), loss_func=nn.CrossEntropyLoss(), splitter=split, opt_func=opt, path=Path(self.dir.name))
        self.learn.logger = quiet
        self.fresh,self.attached,self.last,self.done,self.saved = tiny_model(seed=1),None,None,None,None
        if frozen: self.learn.freeze()
        self.cbs,self.shape = self.callbacks(),self.looks()
        if t: self.attach(t)

    # what no callback may change
    def callbacks(self): return sorted(type(cb).__name__ for cb in self.learn.cbs)
    def looks(self):
        m = self.learn.model
        return (list(m.state_dict()), [(id(p), p.requires_grad, p._backward_hooks) for p in m.parameters()],
                [(type(s), sorted(vars(s)), *[len(v) for k,v in vars(s).items() if k.endswith('_hooks')]) for s in m.modules()],
                len(self.learn.metrics))

    def teardown(self):
        if hasattr(self, 'dir'): self.dir.cleanup()

    # -- fits ----------------------------------------------------------------------------------------------------------------------

    def train(self, given=(), how='fit', n=1, others=(), stop=None, then=None):
        "A fit, and what is to be seen of it"
        self.done = None
        self.fit(given, how, n, others, stop)
        if then: self.no_training(then)

    def fit(self, given, how, n_epoch, others, stop):
        learn,mine = self.learn,[t for t in (self.attached, *given) if t]
        if mine: self.last = mine[-1]
        watches = [Watch(t, learn.model) for t in mine]
        active = [w for w in watches if w.layers]
        clash = len(mine) == 2 and bool(set(mine[0].types) & set(mine[1].types))
        witness = Witness(active, lambda: 'accumulate' not in others and not (stop and stop.raised))
        before,out,error = values(learn),StringIO(),None
        held  = {m for w in watches for m in w.selected.values()}
        loose = [m for m in learn.model.modules() if isinstance(m, BOTH) and m not in held and m.weight.requires_grad and .05 < (m.weight == 0).double().mean() < 1]
        cbs = [MadeUpLosses(), *[WITH[o]() for o in others], *[t.cb for t in given], witness, *[stop]*bool(stop)]
        with redirect_stdout(out), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter('always')
            try: getattr(learn, how)(n_epoch, cbs=cbs)
            except (Exception, KeyboardInterrupt) as e: error = e
        if clash:
            assert isinstance(error, ValueError) and 'select the same layers' in str(error) and same(values(learn), before)
            return
        assert not witness.broken, '\n'.join(witness.broken[:5])
        warned = users(warned)
        odd = [w for w in warned if not re.search(WARNINGS, w)]
        assert not odd, odd
        if error and not (stop and stop.raised and (isinstance(error, stop.error) or re.search(FASTAIS, str(error.args)))): raise error
        if 'save' not in others:
            if not witness.begun: assert same(values(learn), before)
            elif not error: assert not [b for w in active for b in w.broken()]
        assert bool(loose) >= any('Zeros train again' in w for w in warned)
        if not (stop and stop.raised):
            assert bool(loose and active) == any('Zeros train again' in w for w in warned)
            self.check_whole(watches, witness, out.getvalue(), warned, others, n_epoch)

    def check_whole(self, watches, witness, out, warned, others, n_epoch):
        "A fit to its end: its rows, its lines, its history, the model it leaves"
        learn,said,active = self.learn,out.splitlines(),witness.watches
        n = len(learn.recorder.values)
        assert n == n_epoch or 'early' in others and n < n_epoch
        assert not any('ended before' in w for w in warned)
        self.check_best(witness, others, n_epoch)
        assert [c for c in learn.recorder.metric_names if 'sparsity' in c] == ['sparsity', 'sparsity_2'][:len(active)]
        assert sum('selected layers trains' in w for w in warned) == len(watches) - len(active)
        assert sorted(l for l in said if l.startswith('Sparsity at')) == sorted(l for w in active for l in lines(w))
        loud = [w for w in active if w.told.verbose]
        for begin in ('Final Sparsity: [', ('Pruning of', 'Keeping the zeros')): assert sum(l.startswith(begin) for l in said) == len(loud)
        count = lambda w: [str(sum(int(f(m.weight)) for m in w.layers.values())) for f in (torch.numel, lambda x: (x == 0).sum())]
        assert sorted(l.replace(',', '').split()[2:4] for l in said if l.startswith('Overall')) == sorted(map(count, loud))
        if not loud: assert all(l.startswith(('Better model', 'No improvement')) for l in said), out
        if active: self.done = active[-1]
        for w in active:
            epochs = w.cb.history
            epochs = epochs[epochs.kind == 'epoch']
            assert len(w.rows) == n and epochs.measured.tolist() == w.rows and not list(w.broken())
            if w.told.sparsity is None: continue
            assert epochs.target.tolist() == pytest.approx([float(w.told.due((e + 1)/n_epoch)) for e in range(n)])

    def check_best(self, witness, others, n_epoch):
        "What SaveModel leaves, and when EarlyStopping stops: they choose among the epochs at the final sparsity"
        n,losses = len(witness.models),[row[1] for row in self.learn.recorder.values]
        n_iter = len(self.learn.dls.train)
        settled = lambda t, e: len({t.due(i/(n_epoch*n_iter)) for i in range((e + 1)*n_iter, n_epoch*n_iter + 1)}) == 1
        first = {w:next(e for e in range(n_epoch) if settled(w.told, e)) for w in witness.watches}
        start = max(first.values(), default=0)
        assert start < n
        # where the zeros were there before, the last epoch on the way may be among them
        if start and not any(f == start and w.rows[start] != w.rows[start-1] for w,f in first.items()): return
        best  = losses.index(min(losses[start:]), start)
        worse = [e for e in range(start + 1, n) if losses[e] >= min(losses[start:e])]
        if 'save' in others: assert same(values(self.learn), witness.models[best]), f'epoch {best} was the best, and is not what is left'
        if 'early' in others: assert worse in ([[n - 1]] if n < n_epoch else [[], [n - 1]]), f'{n} of {n_epoch} epochs, {worse} no better'

    any_fit = dict(how=st.sampled_from(FITS), n=st.sampled_from([1, 1, 1, 2, 2, 3]),
                   others=st.lists(st.sampled_from(list(WITH)), unique=True, max_size=3),
                   then=st.sampled_from([None, None, None, 'validate', 'get_preds', 'export', 'lr_find']))
    stops = st.builds(Stop, st.sampled_from(EVENTS), st.sets(st.integers(0, 3), min_size=1, max_size=2),
                      st.sampled_from(ERRORS), st.sampled_from([0, 70]))

    def beside(self, t, n):
        "`t`, but in a long fit not beside the attached one if they clash: that is soon over"
        return [t] if n == 1 or not self.attached or not set(t.types) & set(self.attached.types) else []

    @rule(**any_fit, t=told())
    def fit_with_a_new_callback(self, t, **fit): self.train(self.beside(t, fit['n']), **fit)

    @precondition(lambda self: self.last and not self.attached)
    @rule(**any_fit, stop=st.one_of(st.none(), stops))
    def fit_with_the_last_callback(self, **fit): self.train([self.last], **fit)

    @rule(**any_fit, pick=st.sampled_from(PICKS))
    def fit_and_keep_zeros(self, pick, **fit): self.train(self.beside(Told(pick, keep_zeros=True), fit['n']), **fit)

    @rule(**any_fit)
    def fit_with_what_is_there(self, **fit): self.train(**fit)

    @precondition(lambda self: not self.attached)
    @rule(**any_fit, a=told(PICKS[:2]), b=told(PICKS[4:]))
    def fit_with_two(self, a, b, **fit): self.train([a, b], **fit)

    @rule(**any_fit, t=told(), stop=stops)
    def fit_and_be_interrupted(self, t, **fit): self.train(self.beside(t, 2), **fit)

    # -- between fits --------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.attached)
    @rule(t=st.one_of(told(), st.builds(Told, st.sampled_from(PICKS), keep_zeros=st.just(True))))
    def attach_one(self, t): self.attach(t)
    def attach(self, t):
        self.learn.add_cb(t.cb)
        self.attached = self.last = t
        self.detached,self.cbs = self.cbs,self.callbacks()
        assert self.learn.sparsify is t.cb

    @precondition(lambda self: self.attached)
    @rule()
    def detach(self):
        self.learn.remove_cb(self.attached.cb)
        self.attached,self.cbs = None,self.detached

    @rule(what=st.sampled_from(['validate', 'get_preds', 'lr_find', 'export', 'save']))
    def only_look(self, what): self.no_training(what)
    def no_training(self, what):
        learn,out = self.learn,StringIO()
        if learn.opt is None: learn.create_opt()
        rows = lambda: [t.cb.history.values.tolist() for t in (self.attached, self.last) if t]
        before,history = values(learn),rows()
        with redirect_stdout(out), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter('always')
            if what == 'validate': assert len(learn.validate()) == 2
            elif what == 'get_preds': assert len(learn.get_preds()) == 2
            elif what == 'lr_find': learn.lr_find(num_it=6, stop_div=False, show_plot=False, suggest_funcs=None)
            elif what == 'save': self.saved = learn.save('soak').stem,learn.opt_func,before
        assert out.getvalue() == '' and not users(warned) and same(values(learn), before) and rows() == history
        if what not in ('save', 'export'): assert not [c for c in learn.recorder.metric_names if 'sparsity' in c]
        if what == 'export': self.check_export()

    def check_export(self):
        self.done = None
        self.learn.export('soak.pkl')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            back = load_learner(self.learn.path/'soak.pkl')
        assert same(values(back), values(self.learn)) and sorted(type(cb).__name__ for cb in back.cbs) == self.cbs
        assert all(cb.sparsifier is None for cb in back.cbs if isinstance(cb, SparsifyCallback))

    @rule(what=st.sampled_from(['optimizer', 'optimizer', 'freeze', 'freeze', 'unfreeze', 'copy', 'load', 'rewind']),
          opt=st.sampled_from(OPTS))
    def change(self, what, opt):
        learn,state,done,self.done = self.learn,values(self.learn),self.done,None
        if what == 'optimizer': learn.opt,learn.opt_func = None,opt
        elif what == 'copy': learn.model,learn.opt = copy.deepcopy(learn.model),None
        elif what == 'load' and self.saved:
            name,opt_func,state = self.saved
            learn.load(name, with_opt=opt_func is learn.opt_func)
        elif what == 'rewind' and done:
            done.cb.rewind()
            assert not list(done.broken(learn.opt))
            return
        elif what in ('freeze', 'unfreeze'): getattr(learn, what)()
        assert same(values(learn), state)
        self.shape = self.looks()

    # -- after every step ----------------------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_left_over(self):
        assert self.callbacks() == self.cbs and self.looks() == self.shape
        assert all(any(v is cb for cb in self.learn.cbs) for v in vars(self.learn).values() if isinstance(v, Callback))
        assert not self.attached or any(cb is self.attached.cb for cb in self.learn.cbs)

    @invariant()
    def it_loads_into_a_plain_model(self):
        self.fresh.load_state_dict(self.learn.model.state_dict(), strict=True)
        assert all(bool(v.isfinite().all()) for v in self.fresh.state_dict().values())

    @invariant()
    def the_report_counts(self):
        count = sum(int((m.weight == 0).sum()) for m in self.learn.model.modules() if isinstance(m, BOTH))
        assert sparsity_report(self.learn.model, BOTH).zeros == count

# -- and so they do ----------------------------------------------------------------------------------------------------------------

@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1) # a second one only gets in the way of what is so small
    yield
    torch.set_num_threads(n)

@pytest.mark.parametrize('part', range(20))
def test_ten_random_sequences(part):
    # after ten hypothesis would rather vary what it has than make up more
    how = settings(max_examples=10, stateful_step_count=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
                   phases=[Phase.generate], print_blob=False) # to shrink a failure takes minutes: five steps can be read as they are
    run_state_machine_as_test(seed(part)(lambda: Soak()), settings=how)

@pytest.mark.parametrize('event', EVENTS)
def test_every_interruption(event):
    soak = Soak()
    soak.start(OPTS[-1])
    first = values(soak.learn)
    for error in ERRORS[:5]:
        soak.train([Told(('weight', nn.Conv2d), 90, schedule='lin')], n=2, stop=Stop(event, {0, 2}, error, 0))
        soak.nothing_is_left_over()
        soak.learn.model.load_state_dict(first)
        soak.learn.opt.clear_state()
    soak.train([soak.last], then='validate')
    soak.teardown()

# -- what it has found -------------------------------------------------------------------------------------------------------------

def nano_learner(opt, path):
    soak = Soak()
    soak.start(opt)
    soak.learn.path = path
    return soak.learn

def test_a_fit_cancelled_at_once_changes_nothing_and_says_nothing(tmp_path, capsys):
    learn,cb = nano_learner(Adam, tmp_path),SparsifyCallback(60, schedule='lin')
    with pytest.raises(KeyboardInterrupt): learn.fit(2, cbs=[cb, Stop('after_batch', {2}, KeyboardInterrupt, 70)])
    learn.fit(2) # trains the zeros again
    before = values(learn)
    capsys.readouterr()
    learn.fit(2, cbs=[cb, Stop('before_fit', {0}, CancelFitException, 0)])
    assert same(values(learn), before) and capsys.readouterr().out == ''

def test_an_export_does_not_come_between_a_rewind_and_the_optimizer(tmp_path):
    learn,cb = nano_learner(Adam, tmp_path),SparsifyCallback(60, schedule='lin')
    learn.fit(1, cbs=cb)
    learn.export('soak.pkl') # makes the optimizer anew, with the old one's averages
    cb.rewind()
    assert not any('grad_avg' in state for state in learn.opt.state.values())

def test_weights_come_back_at_zero_under_lookahead_too(tmp_path):
    learn,cb = nano_learner(partial(ranger, k=1), tmp_path),SparsifyCallback(90, schedule='dsd')
    learn.fit(2, lr=0, wd=0, cbs=cb) # four steps: 45%, 90%, 45%, 0%
    assert [int((m.weight == 0).sum()) for m in learn.model if isinstance(m, nn.Conv2d)] == [97, 291]

def test_a_refused_fit_changes_nothing_of_a_dead_filter_either(tmp_path):
    learn = nano_learner(Adam, tmp_path)
    with torch.no_grad(): learn.model[0].weight[:3] = 0
    before = values(learn)
    with pytest.raises(ValueError, match='select the same layers'): learn.fit(1, cbs=[SparsifyCallback(50, 'filter'), SparsifyCallback(50)])
    assert same(values(learn), before)

@pytest.mark.parametrize('others,n', [('save', 2), ('early', 3)])
def test_where_zeros_are_kept_trackers_choose_among_all_epochs(others, n):
    soak = Soak()
    soak.start(Adam)
    soak.train([Told(PICKS[0], 50, schedule='lin')])
    soak.train([Told(PICKS[0], keep_zeros=True)], n=n, others=[others])
    soak.teardown()

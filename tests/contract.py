"""The contract with fastai, as a table: a row is a thing users do, a column (see COLUMNS in world.py) what must be true while they do it and after.

    python tests/contract.py > nbs/guarantees.md   the table of the docs
"""
import io
from contextlib import redirect_stdout
from copy import deepcopy
from functools import partial

import torch
from fastai.callback.training import BnFreeze
from fastai.tabular.all import Categorify, Normalize, TabularDataLoaders, tabular_learner
from fastai.text.all import AWD_LSTM, BaseTokenizer, TextDataLoaders, Tokenizer, awd_lstm_clas_config, awd_lstm_lm_config, language_model_learner, text_classifier_learner
from fastai.vision.all import *
from helpers import Spy, image_learner, tiny_dls, tiny_learner, tiny_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from world import COLUMNS, Row, World, bare, selected, zeros

from fasterai_sched import Granularities, Schedule, SparsifyCallback, iterative, one_shot, sched_oneshot

# -- what rows are made of ---------------------------------------------------------------------------------------------------------

class Raise(Callback):
    "Raises at the `at`-th time of an event, once; `training` tells of which of the two loops"
    def __init__(self, event, exc, at=6, training=True, order=30):
        self.order,self.left,self.of = order,at,training
        def stop():
            if self.training != self.of and event in ('before_batch', 'after_batch', 'after_pred', 'after_loss'): return
            self.left -= 1
            if not self.left: raise exc('stopped')
        setattr(self, event, stop)

class Masters(Callback):
    "fp32 copies that the optimizer steps and the bf16 model gets, as in NonNativeMixedPrecision, which asks for CUDA"
    order = 10
    def __init__(self, world): self.world = world
    def before_fit(self):
        self.old = self.opt.param_lists
        self.opt.param_lists = L(L(nn.Parameter(p.detach().float().clone()) for p in g) for g in self.old)
        self.world.masters = [p for g in self.opt.param_lists for p in g]
    @property
    def pairs(self): return zip(self.world.weights, self.world.masters)
    def before_batch(self): self.learn.xb = tuple(x.bfloat16() for x in self.xb)
    def after_pred(self): self.learn.pred = self.pred.float()
    def before_step(self):
        for p,m in self.pairs: m.grad = None if p.grad is None else p.grad.float()
    def after_step(self):
        with torch.no_grad():
            for p,m in self.pairs: p.copy_(m)
        self.model.zero_grad()
    def after_fit(self): self.opt.param_lists,self.world.masters = self.old,None

def _noise(p, **kwargs): p.data.add_(torch.randn_like(p), alpha=1e-3)
def noisy(params, **kwargs):
    "Langevin dynamics: what only a mask after the step holds at 0"
    return Optimizer(params, [sgd_step, _noise], **kwargs)

class EMA(Callback):
    "An average of the weights over the steps"
    order = 70
    def before_fit(self): self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(.9))
    def after_step(self): self.average.update_parameters(self.model)

class Density(Metric):
    "The share of the convolutions' weights that is not 0: a score that finds a denser model better"
    def reset(self): pass
    def accumulate(self, learn): self.is_zero = torch.cat([m.weight.detach().flatten() == 0 for m in learn.model.modules() if isinstance(m, nn.Conv2d)])
    @property
    def value(self): return 1 - self.is_zero.float().mean().item()
    @property
    def name(self): return 'density'

class Logits(nn.Module):
    "A Hugging Face model that gives its logits, and not a dict"
    def __init__(self, model):
        super().__init__()
        self.model = model
    def forward(self, ids): return self.model(ids).logits

class Tied(nn.Module):
    "Two layers of one weight"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.head = nn.Linear(6, 6, bias=False),nn.Linear(6, 6, bias=False),nn.Linear(6, 3)
        self.b.weight = self.a.weight
    def forward(self, x): return self.head(self.b(self.a(x[:, 0].mean(1)).relu()))

def two_groups(model): return [list(model[:3].parameters()), list(model[3:].parameters())]
def net(build, size=6, channels=2, **kwargs):
    "How to make a tiny learner of `build()`"
    def make(path):
        torch.manual_seed(0)
        return tiny_learner(build(), dls=tiny_dls(n=16, n_valid=8, bs=8, size=size, channels=channels), path=path, **kwargs)
    return make
def quiet(learn):
    learn.remove_cb(learn.progress)
    learn.logger = lambda log: None
    return learn

def ids_learner(build, path):
    "Of sequences of eight tokens in three classes"
    g = torch.Generator().manual_seed(0)
    data = [(torch.randint(0, 20, (8,), generator=g), torch.tensor(i%3)) for i in range(24)]
    torch.manual_seed(0)
    return tiny_learner(Logits(build()), dls=DataLoaders.from_dsets(data[:16], data[16:], bs=8, num_workers=0, device='cpu'), path=path)

def bert():
    from transformers import BertConfig, BertForSequenceClassification
    return BertForSequenceClassification(BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=3))

def gpt2():
    from transformers import GPT2Config, GPT2ForSequenceClassification
    from transformers.pytorch_utils import Conv1D
    Granularities.add_granularity(Conv1D, {'weight':0})
    return GPT2ForSequenceClassification(GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=1))

def conv1d():
    from transformers.pytorch_utils import Conv1D
    return Conv1D

def timm_model(name):
    import timm
    return timm.create_model(name, num_classes=3, in_chans=2)

def tv(name, **kwargs):
    from torchvision import models
    return getattr(models, name)(num_classes=3, **kwargs)
def tv_resnet():
    from torchvision.models.resnet import BasicBlock, ResNet
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)
def tv_convnext():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt
    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=3)
def tv_mobilenet():
    from torchvision.models import MobileNetV2
    return MobileNetV2(num_classes=3, width_mult=.25, inverted_residual_setting=[[1, 8, 1, 1], [6, 16, 2, 2]])
def tv_vit():
    from torchvision.models import VisionTransformer
    return VisionTransformer(image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)

def unet(path):
    g = torch.Generator().manual_seed(0)
    data = [(torch.randn(3, 16, 16, generator=g), torch.randint(0, 2, (16, 16), generator=g)) for _ in range(12)]
    dls = DataLoaders.from_dsets(data[:8], data[8:], bs=4, num_workers=0, device='cpu')
    arch = lambda **_: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.manual_seed(0)
    return quiet(unet_learner(dls, arch, n_out=2, pretrained=False, normalize=False, cut=4, loss_func=CrossEntropyLossFlat(axis=1), path=path))

TEXT = pd.DataFrame(dict(text=['a b c d e f g h', 'b c a d f e h g', 'h g f e d c b a', 'a a b b c c d d']*8, label=['x', 'y']*16))
def text_dls(is_lm):
    with redirect_stdout(io.StringIO()):
        return TextDataLoaders.from_df(TEXT, text_col='text', label_col='label', is_lm=is_lm, bs=4, seq_len=6, seed=1, num_workers=0,
                                       tok_tfm=Tokenizer.from_df('text', tok=BaseTokenizer(), n_workers=0), device='cpu')
SMALL = dict(emb_sz=6, n_hid=8, n_layers=2)
def text_classifier(path):
    torch.manual_seed(0)
    return quiet(text_classifier_learner(text_dls(False), AWD_LSTM, config={**awd_lstm_clas_config, **SMALL}, pretrained=False, path=path, metrics=accuracy))
def language_model(path):
    torch.manual_seed(0)
    return quiet(language_model_learner(text_dls(True), AWD_LSTM, config={**awd_lstm_lm_config, **SMALL}, pretrained=False, path=path))
def tabular(path):
    df = pd.DataFrame(dict(a=list('xyz')*8, b=range(24), y=list('pq')*12))
    dls = TabularDataLoaders.from_df(df, procs=[Categorify, Normalize], cat_names=['a'], cont_names=['b'], y_names='y', valid_idx=list(range(8)), bs=8, num_workers=0)
    torch.manual_seed(0)
    return quiet(tabular_learner(dls, layers=[8, 6], path=path, metrics=accuracy))

class Lengths(DataLoader):
    "One that gives more batches, or fewer, than it says"
    says = 4
    def __len__(self): return self.says
def of_length(says):
    def make(path):
        dls = tiny_dls()
        data = [dls.train.dataset[i] for i in range(40)]
        train = Lengths(data, bs=10, num_workers=0, device='cpu')
        train.says = says
        return tiny_learner(dls=DataLoaders(train, dls.valid, device='cpu'), path=path)
    return make

# -- actions that take more than a line --------------------------------------------------------------------------------------------

def attached(f):
    "`f(t)` with the callback in the learner: before any fit, and after one"
    def act(t):
        t.learn.add_cb(t.cb)
        t.untouched(lambda: f(t))
        t.learn.fit(2)
        t.untouched(lambda: f(t))
    return act

def interrupted(event, exc, raises=None, **kwargs):
    "A fit that another callback stops"
    def act(t):
        stop = Raise(event, exc, **kwargs)
        if raises: t.raises(raises, t.fit, stop)
        else: t.fit(stop)
        assert stop.left <= 0
    return act

def sparse_first(then):
    "`then(t)` on a model that a fit has made sparse"
    def act(t):
        t.fit()
        then(t)
    return act

def saved_at_every_event(t):
    "Whatever is saved inside a fit is as sparse as was reported last"
    n = sum(w.numel() for w in selected(t.cb, t.learn.model).values())
    def save(learn):
        if not len(t.cb.history): return
        file = io.BytesIO()
        torch.save(learn.model.state_dict(), file)
        t.holds(torch.load(io.BytesIO(file.getvalue()), weights_only=True), round(t.cb.history.measured.iloc[-1]*n/100))
    t.fit(*[Spy(e, save) for e in ('before_batch', 'after_pred', 'after_backward', 'after_step', 'after_batch', 'after_train', 'after_validate', 'after_epoch')])

def save_model(t, **kwargs):
    saver = SaveModelCallback(fname='m', **kwargs)
    t.fit(saver, n=4)
    n = round(t.cb.history.measured.iloc[-1]*432/100)
    if kwargs.get('every_epoch'):
        for e,share in enumerate(t.cb.history.query('kind == "epoch"').measured): t.holds(f'models/m_{e}.pth', round(share*432/100))
    else: t.holds('models/m.pth', n)
    assert t.zeros() == n


def resumed(t):
    "Half of a fit, saved; a fresh learner loads it and goes on: the same targets at each step as in one go"
    whole = t.new()
    t.fit(n=4, cb=whole)
    part,first = World(t.row, t.path),t.new()
    part.learn.fit(4, cbs=[first, Raise('before_epoch', CancelFitException, at=3)])
    part.learn.save('half')
    rest = t.new()
    t.learn.load('half')
    with redirect_stdout(io.StringIO()) as out: t.learn.fit(4, start_epoch=2, cbs=rest)
    targets = lambda *cbs: [(r.step, r.target) for cb in cbs for r in cb.history.itertuples() if r.kind == 'masks']
    assert targets(first, rest) == targets(whole) and out.getvalue().count('at the end of epoch') == 2
    assert [r.epoch for r in rest.history.itertuples() if r.kind == 'epoch'] == [2, 3]
    t.cb = rest

def kept(t):
    "A sparse model, half of whose layers are at another sparsity, is held as it is and nothing else goes"
    t.fit(cb=t.new({'0':80, '3':30}))
    before = [m.weight == 0 for m in t.learn.model.modules() if isinstance(m, nn.Conv2d)]
    t.cb = SparsifyCallback(keep_zeros=True)
    t.fit()
    assert all(torch.equal(b, m.weight == 0) for b,m in zip(before, (t.learn.model[0], t.learn.model[3])))

def kept_empty(t):
    "A layer without a weight left stays empty"
    nn.init.zeros_(t.learn.model[3].weight)
    t.cb = SparsifyCallback(keep_zeros=True)
    t.fit()
    assert t.zeros() == 324

def to_the_power(n): return lambda start, end, pos: start + (end - start)*pos**n

def exported(t, **kwargs):
    "The file is not larger for the masks; what is loaded has the callback and goes on"
    with t.learn.removed_cbs([t.witness, t.last]):
        t.learn.export('plain.pkl')
        t.cb = t.new(**kwargs)
        t.learn.add_cb(t.cb)
        t.learn.fit(2)
        t.learn.export('sparse.pkl')
        size = lambda f: (t.path/f).stat().st_size
        assert size('sparse.pkl') - size('plain.pkl') < 7000
        loaded = load_learner(t.path/'sparse.pkl')
        assert loaded.sparsify.history.equals(t.cb.history) and loaded.sparsify.sparsifier is None
        loaded.dls = t.learn.dls
        loaded.fit(1)
        assert sum(zeros(selected(t.cb, loaded.model)).values()) == t.zeros()
    t.learn.remove_cb(t.cb)
    t.trained = 3 # unseen

def safetensors_file(t):
    from safetensors.torch import load_file, save_file
    save_file(t.learn.model.state_dict(), t.path/'m.safetensors')
    t.holds(load_file(t.path/'m.safetensors'), t.zeros())

def copied_midway(t):
    spy = Spy('after_epoch', lambda learn: deepcopy(bare(learn.model)).state_dict())
    t.fit(spy)
    for saved,share in zip(spy.seen, t.cb.history.query('kind == "epoch"').measured): t.holds(saved, round(share*432/100))

def averaged(t):
    "The average has fewer zeros, until it is masked: then as many as the model"
    ema = EMA()
    t.fit(ema)
    count = lambda: sum(zeros(selected(t.cb, ema.average.module)).values())
    assert count() < t.zeros()
    t.cb.sparsifier.apply_masks(ema.average)
    assert count() == t.zeros() > 0

def clipped(t):
    "The norm that is clipped is that of the weights that live"
    spy = Spy('before_step', lambda learn: all(not l.weight.grad[~t.cb.sparsifier.masks[l.name]].any() for l in t.cb.sparsifier.layers if l.name in t.cb.sparsifier.masks), order=10.5)
    t.fit(GradientClip(.1), spy)
    assert spy.seen and all(spy.seen)

def accumulated(t, n_acc):
    "Masks move at most once a step, but for the catch-up at the end of an epoch; what never steps leaves no weight alive"
    steps = Spy('after_step', lambda learn: None)
    t.fit(GradientAccumulation(n_acc), steps)
    moves = len(t.cb.history.query('kind == "masks"'))
    assert moves <= len(steps.seen) + 3

def same_order(t):
    "The data come in the same order, and the random state is the same after it"
    def run(*cbs):
        set_seed(1)
        learn = t.row.make(path=t.path)
        order = Spy('before_batch', lambda l: l.xb[0].sum().item())
        with redirect_stdout(io.StringIO()): learn.fit(2, cbs=[order, *cbs])
        return order.seen,torch.rand(1).item(),np.random.rand(),random.random()
    assert run() == run(t.new(criteria='random'))
    t.fit()

def two_learners(t):
    "Side by side, batch by batch, with one schedule and one criterion"
    other = World(t.row, t.path)
    def other_fit(learn):
        with redirect_stdout(other.out): other.fit(n=1, cb=other.new())
    t.fit(Spy('after_epoch', other_fit))
    other.printed()
    for c in COLUMNS: t.faults[c] += other.faults[c]

def given_twice(t):
    t.learn.add_cb(t.cb)
    t.raises(ValueError, t.learn.fit, 2, cbs=t.cb)

# -- the rows ----------------------------------------------------------------------------------------------------------------------

def rows(group, *rows, **kwargs):
    "Rows of a group: (action, what it does, how the learner is made or more of a Row)"
    for name,act,*more in rows:
        fields = dict(kwargs)
        for m in more: fields.update(m if isinstance(m, dict) else {'make':m})
        yield Row(group, name, act, **fields)

fit = lambda t: t.fit()
fit_with = lambda *cbs: lambda t: t.fit(*[cb() for cb in cbs])
linear,both = dict(kwargs=dict(layer_type=nn.Linear)),dict(kwargs=dict(layer_type=(nn.Conv2d, nn.Linear)))
grouped = partial(tiny_learner, splitter=two_groups)
with_opt = lambda f, **kwargs: (fit, partial(tiny_learner, opt_func=f, wd=.1, **kwargs))
broken = dict(whole=False)

ROWS = [
    *rows('Entry points',
        ('fit', fit),
        ('fit_one_cycle', lambda t: t.learn.fit_one_cycle(3, cbs=t.cb)),
        ('fit_flat_cos', lambda t: t.learn.fit_flat_cos(3, cbs=t.cb)),
        ('fit_sgdr', lambda t: t.learn.fit_sgdr(2, 1, cbs=t.cb)),
        ('fine_tune', lambda t: t.learn.fine_tune(2, freeze_epochs=1, cbs=t.cb), grouped),
        ('two fits with the same callback', lambda t: [t.fit(n=2), t.fit(n=2)]),
        ('two fits, each with a fresh callback', lambda t: [t.fit(n=2), t.fit(n=2, cb=t.new(80))]),
        ('the callback in Learner(cbs=)', lambda t: [t.learn.add_cb(t.cb), t.learn.fit(3)]),
        ('two SparsifyCallbacks in one fit', lambda t: t.fit(t.new(50, layer_type=nn.Linear, schedule=one_shot))),
        ('context=global', fit, dict(kwargs=dict(context='global'))),
        ('a dict of layers', fit, dict(kwargs=dict(sparsity={'3':70, '0':20}))),
        ('two learners share schedule and criterion', two_learners),
        ('the same instance twice: an error', given_twice, broken)),
    *rows('What is pruned',
        ('criteria=taylor', fit, dict(kwargs=dict(criteria='taylor'))),
        ('criteria=taylor, pruned at the first gradient', fit, dict(kwargs=dict(criteria='taylor', schedule=Schedule(sched_oneshot)))),
        ('criteria=movement_pruning', fit, dict(kwargs=dict(criteria='movement_pruning'))),
        ('criteria=movement_pruning with GradientAccumulation and GradientClip', fit_with(partial(GradientAccumulation, 20), GradientClip), dict(kwargs=dict(criteria='movement_pruning'))),
        ('criteria=wanda', fit, dict(kwargs=dict(criteria='wanda'))),
        ('criteria=wanda, calibrated once on batches of its own', lambda t: t.fit(cb=t.new(data=t.learn.dls.train, recalibrate=False)), dict(kwargs=dict(criteria='wanda'))),
        ('context=uniform', fit, dict(kwargs=dict(context='uniform'))),
        ('context=erk', fit, dict(kwargs=dict(context='erk'))),
        ('context=lamp, with max_sparsity', fit, dict(kwargs=dict(context='lamp', max_sparsity=70))),
        ('N:M', fit, dict(kwargs=dict(nm=(1, 2), sparsity=50))),
        ('a schedule that falls and rises', fit, dict(kwargs=dict(schedule='cyclic'))),
        ('phases, dense and sparse', fit, dict(kwargs=dict(schedule='ac_dc')))),
    *rows('Not training',
        ('validate', attached(lambda t: t.learn.validate())),
        ('get_preds', attached(lambda t: t.learn.get_preds())),
        ('predict', attached(lambda t: t.learn.predict(t.learn.dls.train_ds[0][0])), image_learner),
        ('show_results', attached(lambda t: t.learn.show_results(show=False)), image_learner),
        ('summary', attached(lambda t: t.learn.summary())),
        ('tta', attached(lambda t: t.learn.tta(n=1)), image_learner),
        ('Interpretation', attached(lambda t: Interpretation.from_learner(t.learn)), image_learner),
        ('lr_find', attached(lambda t: t.learn.lr_find(num_it=6, show_plot=False))),
        ('lr_find on a sparse model, without the callback', lambda t: [t.fit(), t.untouched(lambda: t.learn.lr_find(num_it=6, show_plot=False))]),
        columns=tuple(c for c in COLUMNS if c != 'averages')),
    *rows('Interruptions',
        ('KeyboardInterrupt in a batch', interrupted('before_batch', KeyboardInterrupt, KeyboardInterrupt)),
        ('KeyboardInterrupt in validation', interrupted('before_batch', KeyboardInterrupt, KeyboardInterrupt, at=1, training=False)),
        ('KeyboardInterrupt in another callback, last of all', interrupted('after_epoch', KeyboardInterrupt, KeyboardInterrupt, at=3, order=90)),
        ('an error in a batch', interrupted('after_loss', ValueError, ValueError)),
        ('an error in validation', interrupted('after_pred', ValueError, ValueError, at=2, training=False)),
        ('an error in another callback, last of all', interrupted('after_epoch', ValueError, ValueError, at=3, order=90)),
        ('an error after the fit', interrupted('after_fit', ValueError, ValueError, at=1, order=80)),
        ('CancelFitException', interrupted('before_batch', CancelFitException)),
        ('CancelFitException in validation', interrupted('before_batch', CancelFitException, at=2, training=False)),
        ('CancelEpochException', interrupted('before_batch', CancelEpochException)),
        ('CancelTrainException', interrupted('before_batch', CancelTrainException)),
        ('CancelValidException', interrupted('before_validate', CancelValidException, at=2)),
        ('CancelBatchException', interrupted('after_pred', CancelBatchException)),
        ('CancelStepException', interrupted('before_step', CancelStepException)),
        ('EarlyStoppingCallback', lambda t: t.fit(EarlyStoppingCallback(monitor='density', comp=np.less, patience=1), n=6), partial(tiny_learner, metrics=Density())),
        ('TerminateOnNaNCallback', fit_with(TerminateOnNaNCallback, lambda: Spy('after_loss', lambda l: setattr(l, 'loss', l.loss*float('nan')) if l.train_iter == 6 else None))),
        whole=False),
    *rows('Saving',
        ('SaveModelCallback', lambda t: save_model(t)),
        ('SaveModelCallback(every_epoch=True)', lambda t: save_model(t, every_epoch=True)),
        ('SaveModelCallback(at_end=True)', lambda t: save_model(t, at_end=True)),
        ('learn.save and learn.load', lambda t: [t.fit(), t.learn.save('m', with_opt=False), t.holds('models/m.pth', t.zeros()), t.learn.load('m', with_opt=False)]),
        ('torch.save at every event', saved_at_every_event),
        ('learn.export, load_learner', exported, image_learner, broken),
        ('learn.export with a lambda', lambda t: exported(t, schedule=lambda start, end, pos: start + (end - start)*pos), image_learner, broken),
        ('learn.export with a partial', lambda t: exported(t, schedule=partial(iterative, n_steps=2)), image_learner, broken),
        ('learn.export with a closure', lambda t: exported(t, schedule=to_the_power(2)), image_learner, broken),
        ('copy.deepcopy(learn.model) amid a fit', copied_midway),
        ('safetensors', lambda t: [t.fit(), safetensors_file(t)])),
    *rows('The best model is the best sparse model',
        ('SaveModelCallback', lambda t: save_model(t, monitor='density', comp=np.greater)),
        ('EarlyStoppingCallback', lambda t: [t.fit(EarlyStoppingCallback(monitor='density', comp=np.greater, patience=1), n=4), t.expect('numbers', t.zeros() == 258, 'stopped early')]),
        ('ReduceLROnPlateau', lambda t: [t.fit(ReduceLROnPlateau(monitor='density', comp=np.greater, patience=1), n=4),
                                         t.expect('numbers', t.learn.opt.hypers[0]['lr'] == 1e-2, 'a lower learning rate')]),
        make=partial(tiny_learner, metrics=Density())),
    *rows('Resuming and continuing',
        ('fit(n, start_epoch=k) from a checkpoint', resumed, broken),
        ('keep_zeros=True', kept),
        ('keep_zeros=True with an empty layer', kept_empty, dict(last=True)),
        ('a sparse model taken further', sparse_first(lambda t: t.fit(cb=t.new(80)))),
        ('a sparse model and a lower target', sparse_first(lambda t: t.fit(cb=t.new(20)))),
        ('learn.load between two fits', lambda t: [t.learn.save('dense'), t.fit(), t.learn.load('dense'), t.fit(cb=t.new(30))])),
    *rows('Optimizers and precision',
        ('Adam', *with_opt(Adam)),
        ('SGD', *with_opt(SGD)),
        ('SGD with momentum', *with_opt(partial(SGD, mom=.9))),
        ('RMSProp', *with_opt(RMSProp)),
        ('Lamb', *with_opt(Lamb)),
        ('ranger', *with_opt(ranger)),
        ('an optimizer that adds noise to every weight', *with_opt(noisy)),
        ('OptimWrapper(AdamW)', *with_opt(partial(OptimWrapper, opt=torch.optim.AdamW))),
        ('OptimWrapper(SGD)', *with_opt(partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9)))),
        ('to_fp16 (MixedPrecision)', lambda t: [t.learn.to_fp16(), t.fit(), t.learn.to_fp32()]),
        ('to_bf16', lambda t: [t.learn.to_bf16(), t.fit(), t.learn.to_fp32()]),
        ('fp32 masters of a bf16 model', lambda t: t.fit(Masters(t)), lambda path: tiny_learner(tiny_model().bfloat16(), path=path), dict(last=True)),
        ('GradientAccumulation', lambda t: accumulated(t, 20)),
        ('GradientAccumulation with a remainder', lambda t: accumulated(t, 30)),
        ('GradientClip', clipped),
        ('freeze', lambda t: [t.learn.freeze(), t.fit()], grouped),
        ('freeze_to and unfreeze between fits', lambda t: [t.learn.freeze_to(1), t.fit(), t.learn.unfreeze(), t.fit()], grouped),
        ('discriminative learning rates', lambda t: t.learn.fit(3, lr=slice(1e-3, 1e-2), cbs=t.cb), grouped),
        ('MixUp', fit_with(MixUp)),
        ('BnFreeze', fit_with(BnFreeze)),
        ('an average over steps (EMA, SWA), masked', averaged)),
    *rows('Models',
        ('torchvision resnet', fit, net(tv_resnet, 16, 3), dict(last=True)),
        ('torchvision convnext', fit, net(tv_convnext, 16, 3), both),
        ('torchvision mobilenet', fit, net(tv_mobilenet, 16, 3)),
        ('torchvision vit', fit, net(tv_vit, 16, 3), linear),
        ('timm', fit, net(partial(timm_model, 'test_resnet'), 16)),
        ('timm vit', fit, net(partial(timm_model, 'test_vit'), 160), linear),
        ('fastai xresnet', fit, net(lambda: XResNet(ResBlock, 1, [1]*4, n_out=3, stem_szs=(4, 4, 64), widen=.125, c_in=2), 16)),
        ('unet_learner', fit, unet),
        ('AWD_LSTM text classifier (ModelResetter)', fit, text_classifier, linear),
        ('AWD_LSTM language model, tied weights', fit, language_model, linear),
        ('tabular_learner', fit, tabular, linear),
        ('Hugging Face BERT', fit, partial(ids_learner, bert), linear),
        ('Hugging Face GPT-2, Conv1D', lambda t: t.fit(cb=t.new(layer_type=conv1d())), partial(ids_learner, gpt2), dict(last=True)),
        ('tied weights', fit, net(Tied), linear),
        ('layers without bias, BatchNorm without affine', fit, net(lambda: nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.ReLU(),
                                                                                      nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))),
        ('torch.compile(model)', fit, net(lambda: torch.compile(tiny_model(), backend='eager'))),
        ('model.compile()', fit, net(lambda: (m := tiny_model()).compile(backend='eager') or m))),
    *rows('Odd fits',
        ('ShortEpochCallback', fit_with(partial(ShortEpochCallback, pct=.4))),
        ('one epoch of one batch', lambda t: t.fit(n=1), net(tiny_model)),
        ('a dataloader with more batches than it says', fit, of_length(3)),
        ('a dataloader with fewer batches than it says', fit, of_length(6)),
        ('the order of the data, and the random state', same_order),
        ('learn.no_logging and no_bar', lambda t: [setattr(t.cb, 'verbose', False), t.fit()])),
]

INTRO = """# What is guaranteed with fastai

> Each row is something a Learner can do, each column what holds while it does and afterwards

This table is made from the tests: a tick is a test that passes, in [tests/contract.py](../tests/contract.py), in which the row's action happens to a learner with a
`SparsifyCallback` and the column is checked at every forward pass, step, epoch and at the end. A dash is where a column says nothing: averages of a fit that isn't one.
That several processes (`learn.distrib_ctx()`) prune as one, to the bit, with every criterion, is tested in [tests/test_distributed.py](../tests/test_distributed.py); random sequences
of such actions are tried in [tests/test_soak.py](../tests/test_soak.py).

| | the column says |
|---|---|
"""
TITLES = dict(numbers='numbers', zero='zeros', averages='averages', state='state', same='Parameters', prints='prints', inert='inert', next_fit='next fit', freed='freed')

def table():
    "The rows, as markdown"
    yield INTRO + '\n'.join(f'| {TITLES[c]} | {says} |' for c,says in COLUMNS.items())
    for group in dict.fromkeys(r.group for r in ROWS):
        yield f'\n## {group}\n\n| | ' + ' | '.join(TITLES[c] for c in COLUMNS) + ' |\n|---|' + ':-:|'*len(COLUMNS)
        for r in ROWS:
            if r.group == group: yield f'| {r.name} | ' + ' | '.join('✓' if c in r.applies else '–' for c in COLUMNS) + ' |'

if __name__ == '__main__': print('\n'.join(table()))

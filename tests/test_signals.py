"""What comes into layers: sums by hand for every layer type, and a model that doesn't notice."""
import pickle
import random

import numpy as np
import pytest
import torch
from fastai.text.all import AWD_LSTM, awd_lstm_clas_config, get_text_classifier
from fastai.vision.all import Callback, DataLoaders
from helpers import Spy, tiny_learner, tiny_model
from torch import nn
from torch.nn import functional as F

from fasterai_sched import Criteria, Sparsifier, SparsifyCallback, wanda
from fasterai_sched.criteria import data_fns
from fasterai_sched.signals import Inputs, as_batches, uses
from fasterai_sched.untouched import evaluated

def meets(m, x):
    "Of each weight, all the inputs it is multiplied with, one after the other: by a weight of 1 where all others are 0"
    out = []
    for i in range(m.weight.numel()):
        w = torch.zeros(m.weight.numel())
        w[i] = 1
        one = torch.func.functional_call(m, {'weight':w.view_as(m.weight), **({'bias':torch.zeros_like(m.bias)} if getattr(m, 'bias', None) is not None else {})}, (x,))
        out.append(one.flatten())
    return out

def stat(values, data_fn, places):
    "Of inputs (and zeros, where there was no input)"
    return {'l2_norm':values.norm(), 'mean':values.abs().sum()/places}[data_fn]

LAYERS = {
    'linear':(lambda: nn.Linear(3, 2), (4, 3)), 'linear of sequences':(lambda: nn.Linear(3, 2), (2, 5, 3)), 'linear without bias':(lambda: nn.Linear(3, 2, bias=False), (4, 3)),
    'conv1d':(lambda: nn.Conv1d(2, 3, 3, stride=2), (2, 2, 7)), 'conv2d':(lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 2, 4, 5)), 'conv3d':(lambda: nn.Conv3d(2, 2, 2), (1, 2, 3, 3, 3)),
    'dilated':(lambda: nn.Conv2d(2, 2, 2, dilation=2, padding=1), (2, 2, 5, 5)), 'grouped':(lambda: nn.Conv2d(4, 6, 2, groups=2), (2, 4, 3, 3)), 'depthwise':(lambda: nn.Conv2d(3, 3, 2, groups=3), (2, 3, 3, 3)),
    'two a depth':(lambda: nn.Conv1d(3, 6, 2, groups=3), (2, 3, 4)), 'circular':(lambda: nn.Conv1d(2, 2, 3, padding=1, padding_mode='circular'), (2, 2, 5)),
    'transposed1d':(lambda: nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 2, 4)), 'transposed2d':(lambda: nn.ConvTranspose2d(2, 3, 2, stride=2, output_padding=1), (2, 2, 3, 3)),
    'transposed3d':(lambda: nn.ConvTranspose3d(2, 1, 2), (1, 2, 2, 2, 2)), 'grouped transposed':(lambda: nn.ConvTranspose2d(4, 4, 2, groups=2, padding=1), (2, 4, 3, 3)),
    'one without a batch':(lambda: nn.Conv2d(2, 3, 2), (2, 4, 4))}

def heard(m, *xs, data_fn='l2_norm'):
    inputs = Inputs(Sparsifier(nn.Sequential(m), layer_type=type(m)).layers, data_fn)
    inputs.hear(nn.Sequential(m), [(x, None) for x in xs])
    (f,) = inputs.factors().values()
    return f.expand(m.weight.shape)

@pytest.mark.parametrize('kind', LAYERS)
@pytest.mark.parametrize('data_fn', ['l2_norm', 'mean'])
def test_each_weight_has_the_statistic_of_what_it_meets(kind, data_fn):
    make,shape = LAYERS[kind]
    m,x = make(),torch.randn(shape)
    ones = [v.count_nonzero() for v in meets(m, torch.ones(shape))] # how much it meets that is not padding
    expected = torch.stack([stat(v, data_fn, max(n, 1)) for v,n in zip(meets(m, x), ones)]).view_as(m.weight)
    assert torch.allclose(heard(m, x, data_fn=data_fn), expected, atol=1e-5)

@pytest.mark.parametrize('kind', ['linear', 'linear of sequences', 'conv1d', 'conv2d', 'conv3d', 'grouped', 'depthwise', 'transposed2d', 'one without a batch'])
def test_max_is_the_largest_of_the_input_channel(kind):
    make,shape = LAYERS[kind]
    m,x = make(),torch.randn(shape)
    channel = x.ndim - 1 if isinstance(m, nn.Linear) else 0 if 'without' in kind else 1
    v = x.abs().transpose(0, channel).flatten(1).amax(1)
    f = heard(m, x, data_fn='max')
    for o in range(m.weight.shape[0]):
        for i in range(m.weight.shape[1]):
            groups,transposed = getattr(m, 'groups', 1),'Transpose' in type(m).__name__
            c = o if transposed else o//(m.weight.shape[0]//groups)*m.weight.shape[1] + i
            assert (f[o, i] == v[c]).all()

def test_batches_add_up():
    m,a,b = nn.Linear(3, 2),torch.randn(4, 3),torch.randn(2, 3)
    for fn in data_fns: assert torch.allclose(heard(m, a, b, data_fn=fn), heard(m, torch.cat([a, b]), data_fn=fn))

def test_an_embeddings_inputs_are_how_often_a_word_comes():
    m = nn.Embedding(4, 2)
    assert torch.equal(heard(m, torch.tensor([[0, 1, 1], [3, 1, 1]])), torch.tensor([1., 4, 0, 1]).sqrt()[:, None].expand(4, 2))
    with pytest.raises(ValueError, match="data_fn='max' takes the largest input of a channel, and layer '0', an Embedding, has none"): heard(m, torch.tensor([[1]]), data_fn='max')

def test_half_precision_is_heard_in_float32():
    m,x = nn.Linear(300, 2).bfloat16(),torch.full((4, 300), 200.).bfloat16()
    assert heard(m, x).dtype == torch.float32 and torch.allclose(heard(m, x), torch.full((2, 300), 400.))

# -- wanda -----------------------------------------------------------------------------------------------------------------------

def test_wanda_prunes_what_it_says():
    m = nn.Sequential(nn.Linear(3, 1, bias=False))
    m[0].weight.data = torch.tensor([[1., 2, 3]])
    sp = Sparsifier(m, criteria=wanda, layer_type=nn.Linear, data=torch.tensor([[9., 1, 1]])) # 9, 2, 3
    sp.sparsify_model(34)
    assert m[0].weight.tolist() == [[1, 0, 3]]

@pytest.mark.parametrize('granularity', ['weight', 'filter', 'channel', (2, 1)])
@pytest.mark.parametrize('data_fn', data_fns)
def test_groups_go_by_the_mean_of_weights_times_inputs(granularity, data_fn):
    conv,x = nn.Conv2d(2, 4, 3, padding=1),torch.randn(5, 2, 6, 6)
    factors = heard(conv, x, data_fn=data_fn)
    sp = Sparsifier(nn.Sequential(conv), granularity, criteria=Criteria(torch.abs, needs_data=True, data_fn=data_fn), data=x)
    scores = (conv.weight.detach().abs()*factors)
    groups = {'weight':scores.flatten(), 'filter':scores.mean((1, 2, 3)), 'channel':scores.mean(1).flatten(), (2, 1):scores.view(2, 2, 2, 3, 3).mean(1).flatten()}[granularity]
    sp.sparsify_model(50)
    gone = ~sp.layers[0].mask.flatten()
    assert gone.sum() == len(groups)//2 and groups[gone].max() <= groups[~gone].min()

def test_recalibrated_each_time_masks_grow_or_once():
    for again in (True, False):
        m = tiny_model()
        sp = Sparsifier(m, criteria=wanda, data=torch.randn(4, 2, 6, 6), recalibrate=again)
        sp.sparsify_model(30)
        first = sp.layers[1].inputs
        m[0].weight.data.mul_(3)
        sp.sparsify_model(30) # nothing grows
        assert sp.layers[1].inputs is first
        sp.sparsify_model(60)
        assert torch.equal(sp.layers[1].inputs, first) != again

class Autocast(Callback):
    "What MixedPrecision does, on the CPU"
    order = 10
    def before_batch(self):
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)
        self.autocast.__enter__()
    def after_pred(self): self.learn.pred = self.pred.float()
    def after_loss(self): self.autocast.__exit__(None, None, None)

def test_calibration_leaves_no_low_precision_copies_of_weights_behind():
    def forward(l):
        if not l.training: return 0.
        with torch.autocast('cpu', dtype=torch.bfloat16, cache_enabled=False): return float((l.pred - l.model(*l.xb).float()).abs().max())
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(24, 3))
    learn,seen = tiny_learner(model),Spy('after_pred', forward)
    learn.fit(1, cbs=[SparsifyCallback(90, criteria=wanda, schedule='lin'), Autocast(), seen])
    assert not any(seen.seen)

def test_a_part_of_a_model_hears_what_comes_into_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model[0].weight.data = torch.tensor([[1., 1], [1e-3, 0]])[..., None, None]
    cb = SparsifyCallback(50, criteria=wanda, model=model[1], schedule='lin')
    learn = tiny_learner(model, lr=0)
    learn.fit(1, cbs=cb)
    a,b = cb.sparsifier.layers[0].inputs.flatten()
    assert a > 100*b

@pytest.mark.parametrize('data,match', [
    (5, 'data=5 must be a tensor, or batches as a DataLoader or a list holds them'), ('oops', "data='oops' must be a tensor"), ([], 'data=list gave no batch'), ([3], 'data=list holds 3, which is no batch'),
    (torch.randn(4, 5, 6, 6), r"data=Tensor: the model can't be run on what it holds, \(4, 5, 6, 6\): RuntimeError"), ((torch.randn(4, 2, 6, 6), torch.zeros(4)), r"data=tuple: the model can't be run on what it holds, \(4,\)")])
def test_data_of_no_use_is_refused_before_training(data, match):
    learn = tiny_learner()
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(ValueError, match=match): learn.fit(2, cbs=SparsifyCallback(50, criteria=wanda, data=data, start_epoch=1))
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    with pytest.raises(ValueError, match='data=<.*DataLoaders .* must be a tensor, or batches'): learn.fit(1, cbs=SparsifyCallback(50, criteria=wanda, data=learn.dls))

def test_a_generator_of_batches_is_read_once_and_kept():
    learn = tiny_learner()
    learn.fit(2, cbs=SparsifyCallback(50, criteria=wanda, schedule='lin', data=(torch.randn(4, 2, 6, 6) for _ in range(2))))
    assert [int((m.weight == 0).sum()) for m in (learn.model[0], learn.model[3])] == [54, 162]

def test_many_looks_at_many_batches_are_warned_of():
    learn = tiny_learner()
    with pytest.warns(UserWarning, match=r'The 4 batches of data= are looked at each time the masks grow, 8 times with schedule=lin: 32 forward passes beside the 8 of training. recalibrate=False looks once'):
        learn.fit(2, cbs=SparsifyCallback(50, criteria=wanda, schedule='lin', data=learn.dls.train))

@pytest.mark.parametrize('make,match', [
    (lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), r"Nothing came into layers \['0.self_attn.out_proj'\] when the model was run in evaluation mode"), (lambda: TrainsMore(), r"Nothing came into layers \['0.extra'\]")])
def test_layers_that_are_not_called_are_named_before_training(make, match):
    learn = tiny_learner(nn.Sequential(make(), nn.Flatten(), nn.LazyLinear(3)))
    learn.dls = DataLoaders.from_dsets([(torch.randn(5, 6), i % 3) for i in range(8)], [(torch.randn(5, 6), 0)], bs=4, num_workers=0, device='cpu')
    learn.model(torch.randn(2, 5, 6))
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(ValueError, match=match): learn.fit(3, cbs=SparsifyCallback(50, criteria=wanda, layer_type=nn.Linear, start_epoch=2))
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

class TrainsMore(nn.Module):
    "A head for training only"
    def __init__(self):
        super().__init__()
        self.used,self.extra = nn.Linear(6, 6),nn.Linear(6, 6)
    def forward(self, x): return self.used(x) + (self.extra(x) if self.training else 0)

def test_without_batches_it_says_what_to_give():
    sp = Sparsifier(tiny_model(), criteria=wanda)
    assert not sp.sparsify_model(0)
    for f in (lambda: sp.sparsify_model(50), lambda: sp.sparsify_layer('0', 50)):
        with pytest.raises(ValueError, match=r'criteria=wanda looks at what comes into the layers: give data=, or call calibrate\(batches\)'): f()
    sp.calibrate(torch.randn(4, 2, 6, 6))
    sp.sparsify_model(50)
    assert [l.dead for l in sp.layers] == [54, 162]

def test_batches_for_a_criterion_that_does_not_look_at_them_are_refused():
    with pytest.raises(ValueError, match='data= is for criteria that look at inputs, such as wanda: criteria=large_final does not'): Sparsifier(tiny_model(), data=[1])

def test_layers_that_nothing_comes_into_are_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used,self.idle = nn.Linear(3, 3),nn.Linear(3, 3)
        def forward(self, x): return self.used(x)
    with pytest.raises(ValueError, match=r"Nothing came into layers \['idle'\] when the model was run in evaluation mode.*exclude="): Sparsifier(Idle(), criteria=wanda, layer_type=nn.Linear, data=torch.randn(2, 3)).sparsify_model(50)

def test_a_type_whose_inputs_are_not_known_is_refused_and_can_be_added(monkeypatch):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1., 2], [3, 4]])) # in, out
        def forward(self, x): return x@self.weight
    from fasterai_sched import Granularities
    monkeypatch.setitem(Granularities._granularities, Mine, {'weight':0, 'filter':1})
    def make(): return Sparsifier(nn.Sequential(Mine()), criteria=wanda, layer_type=Mine, data=torch.tensor([[9., 1]]))
    with pytest.raises(ValueError, match=r"What comes into the weights of layer '0' \(Mine\) is not known; types for which it is: \['Linear', .*signals.uses"): make().sparsify_model(50)
    monkeypatch.setitem(uses, Mine, lambda m, x, w: x@w)
    sp = make()
    sp.sparsify_model(50)
    assert sp.model[0].weight.tolist() == [[9/9, 2], [0, 0]]

def test_attention_is_refused_before_training():
    m = nn.Sequential(nn.MultiheadAttention(4, 2))
    with pytest.raises(ValueError, match=r"layer '0.in_proj_weight' \(MultiheadAttention\) is not known"): Sparsifier(m, criteria=wanda, layer_type=nn.MultiheadAttention).check_criteria()

# -- factors of one's own ----------------------------------------------------------------------------------------------------------

def test_scale_is_a_factor_for_each_input_channel():
    m = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False))
    for l in m: l.weight.data = torch.tensor([[1., 2, 3]])
    sp = Sparsifier(m, layer_type=nn.Linear, criteria=Criteria(torch.abs, scale={m[0]:[9, 1, .5]}))
    sp.sparsify_model(34)
    assert [l.weight.tolist() for l in m] == [[[1, 2, 0]], [[0, 2, 3]]]
    m = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2))
    m[0].weight.data = torch.ones(4, 2, 1, 1)
    Sparsifier(m, criteria=Criteria(torch.abs, scale={'0':torch.tensor([4., 1, 3, 2])})).sparsify_model(50)
    assert m[0].weight.flatten(1).tolist() == [[1, 0], [1, 0], [1, 0], [1, 0]]

@pytest.mark.parametrize('v', [[1., 2], torch.ones(3, 1)])
def test_a_scale_of_another_length_is_refused(v):
    with pytest.raises(ValueError, match=r"Layer '0' \(Linear\) reads 3 input channels: it can't be scaled by values of shape"): Sparsifier(nn.Sequential(nn.Linear(3, 2)), layer_type=nn.Linear, criteria=Criteria(torch.abs, scale={'0':v}))

# -- no trace --------------------------------------------------------------------------------------------------------------------

def state(m): return ([(k, v.clone()) for k,v in m.state_dict().items()], [s.training for s in m.modules()], [sorted(vars(s)) for s in m.modules()],
                      [len(s._forward_pre_hooks) + len(s._forward_hooks) for s in m.modules()])
def same(a, b): return all(k == l and torch.equal(v, w) for (k, v),(l, w) in zip(a[0], b[0], strict=True)) and a[1:] == b[1:]

class Noisy(nn.Module):
    "Uses every random state there is, whatever its mode"
    def forward(self, x): return x + torch.rand(1) + random.random() + np.random.rand()

@pytest.mark.parametrize('fails', [False, True])
def test_a_model_does_not_notice_that_it_was_calibrated(fails):
    m = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(.5), Noisy(), nn.Flatten(), nn.Linear(48, 2))
    m[1].eval()
    before,rng = state(m),(torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    sp = Sparsifier(m, criteria=wanda, layer_type=(nn.Conv2d, nn.Linear))
    def batches():
        yield torch.randn(4, 2, 6, 6)
        if fails: raise RuntimeError('no more')
    if fails:
        with pytest.raises(RuntimeError, match='no more'): sp.calibrate(batches())
    else: sp.calibrate(batches())
    assert same(state(m), before) and m.training and not m[1].training
    assert torch.equal(torch.get_rng_state(), rng[0]) and (random.getstate(), np.random.get_state()[1].tolist()) == rng[1:]
    assert all(p.grad is None for p in m.parameters())

def test_the_hidden_state_of_a_text_model_is_the_one_it_had():
    m = get_text_classifier(AWD_LSTM, 20, 2, config={**awd_lstm_clas_config, 'emb_sz':6, 'n_hid':8, 'n_layers':2})
    m.reset()
    x = torch.randint(2, 20, (2, 9))
    m(x)
    rnn = m[0].module
    before = [h[0].clone() for h in rnn.hidden]
    sp = Sparsifier(m, criteria=wanda, layer_type=nn.Linear)
    sp.calibrate(x)
    assert all(torch.equal(a, b[0]) for a,b in zip(before, rnn.hidden)) and all(l.inputs is not None for l in sp.layers)

def test_a_compiled_model_is_not_compiled_again():
    count = []
    def backend(gm, inputs): count.append(1); return gm.forward
    m = tiny_model()
    m.compile(backend=backend)
    x = torch.randn(4, 2, 6, 6)
    m(x)
    n = len(count)
    Sparsifier(m, criteria=wanda).calibrate(x)
    m(x)
    assert len(count) == n

def test_the_order_of_a_dataloader_stays():
    from helpers import tiny_dls
    dls = tiny_dls()
    seen = lambda: [x[0][0, 0, 0, 0].item() for x in dls.train]
    random.seed(1); torch.manual_seed(1); np.random.seed(1)
    dls = tiny_dls()
    expected = [seen(), seen()]
    random.seed(1); torch.manual_seed(1); np.random.seed(1)
    dls = tiny_dls()
    sp,got = Sparsifier(tiny_model(), criteria=wanda),[]
    for _ in range(2):
        sp.calibrate(dls.train)
        got.append(seen())
    assert got == expected
    g = torch.Generator().manual_seed(3)
    dl = torch.utils.data.DataLoader([(torch.randn(2, 6, 6), 0) for _ in range(8)], batch_size=4, shuffle=True, generator=g)
    before = g.get_state()
    sp.calibrate(dl)
    assert torch.equal(g.get_state(), before)

@pytest.mark.parametrize('data,args,kwargs', [
    (torch.ones(2), 1, {}), ([torch.ones(2)], 1, {}), ([(torch.ones(2), 3)], 1, {}), ([(torch.ones(2), 2, 3)], 2, {}), ([(torch.ones(2),)], 1, {}), ([{'x':torch.ones(2)}], 0, {'x'})])
def test_batches_are_what_dataloaders_give(data, args, kwargs):
    (a,k), = as_batches(data)
    assert len(a) == args and set(k) == set(kwargs)

def test_models_are_looked_at_in_evaluation_mode_and_without_gradients():
    m = nn.Sequential(nn.Dropout(.5), nn.Linear(2, 2))
    with evaluated(m):
        assert not torch.is_grad_enabled() and not any(s.training for s in m.modules())
        m.extra = 3
    assert m.training and not hasattr(m, 'extra') and torch.is_grad_enabled()

class Remembers(nn.Module):
    "Changes whatever it can at each forward"
    def __init__(self):
        super().__init__()
        self.a,self.log,self.seen,self.t,self.calls = nn.Conv2d(2, 4, 3),[1],{},torch.zeros(2),0
        self.register_buffer('n', torch.zeros(()))
    def forward(self, x):
        self.n = self.n + 1 # a new tensor
        self.log.append(1)
        self.seen[len(self.log)] = 1
        self.t += 1
        self.calls += 1
        random.random(); np.random.rand(); torch.rand(1)
        self.feat = self.a(x)
        return self.feat

@pytest.mark.parametrize('how', ['calibrated', 'traced', 'planned'])
def test_whatever_a_forward_changes_is_changed_back(how):
    m = Remembers()
    def state(): return (dict(m.seen), list(m.log), m.t.clone().tolist(), m.calls, float(m.n), id(m.n), hasattr(m, 'feat'), torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    if how == 'planned': learn = tiny_learner(nn.Sequential(m, nn.Flatten(), nn.Linear(64, 3)))
    x = torch.randn(4, 2, 6, 6)
    before = state()
    if how == 'calibrated': Sparsifier(m, criteria=wanda).calibrate(x)
    elif how == 'traced': Sparsifier(m, 'filter').sparsify_model(50)
    else: SparsifyCallback(50, 'filter').plan(learn, 2)
    assert state() == before
    pickle.dumps(m)

def test_a_weight_that_two_layers_share_hears_what_comes_into_both():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words,self.out = nn.Embedding(4, 3),nn.Linear(3, 4, bias=False)
            self.out.weight = self.words.weight
        def forward(self, x): return self.out(self.words(x))
    m,x = Tied(),torch.tensor([[0, 1, 1]])
    sp = Sparsifier(m, criteria=wanda, layer_type=nn.Linear, data=x)
    sp.calibrate(x)
    h = m.words(x)[0].detach()
    counts = torch.tensor([1., 2, 0, 0])[:, None]
    assert torch.allclose(sp.layers[0].inputs.expand(4, 3), (counts + h.square().sum(0)).sqrt())

def test_means_over_tokens():
    assert torch.equal(heard(nn.Embedding(4, 1), torch.tensor([0, 1, 1, 2]), data_fn='mean').flatten(), torch.tensor([.25, .5, .25, 0]))

def test_a_layer_called_with_more_than_its_input_is_refused():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 2, 2, stride=2)
        def forward(self, x): return self.up(x, output_size=(9, 9))
    with pytest.raises(ValueError, match=r"Layer 'up' \(ConvTranspose2d\) is called with more than its input"): Sparsifier(Sized(), criteria=wanda, layer_type=nn.ConvTranspose2d).calibrate(torch.randn(1, 2, 4, 4))

def test_only_a_criterion_that_looks_at_inputs_is_calibrated():
    sp = Sparsifier(tiny_model())
    with pytest.raises(ValueError, match='criteria=large_final does not look at inputs: there is nothing to calibrate'): sp.calibrate(torch.randn(2, 2, 6, 6))
    with pytest.raises(ValueError, match='data= is for criteria that look at inputs'): sp.sparsify_model(50, data=torch.randn(2, 2, 6, 6))
    with pytest.raises(ValueError, match='recalibrate= is for criteria that look at inputs'): Sparsifier(tiny_model(), recalibrate=False)

def test_batches_given_with_a_call_are_looked_at():
    sp = Sparsifier(tiny_model(), criteria=wanda, recalibrate=False, data=torch.randn(2, 2, 6, 6))
    sp.sparsify_model(20)
    first = sp.layers[0].inputs
    sp.sparsify_model(40)
    assert sp.layers[0].inputs is first
    sp.sparsify_model(60, data=torch.randn(2, 2, 6, 6))
    assert sp.layers[0].inputs is not first

def test_a_scale_names_selected_layers():
    for key in ('typo', nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=r"scale names '(typo|Linear)', which is not a selected layer; these are: \['0', '3'\]"): Sparsifier(tiny_model(), criteria=Criteria(torch.abs, scale={key:[1., 2]}))
    with pytest.raises(ValueError, match="scale of '0'='ab' must be a number for each input channel"): Sparsifier(tiny_model(), criteria=Criteria(torch.abs, scale={'0':'ab'}))
    m = nn.Sequential(nn.LSTM(3, 3))
    sp = Sparsifier(m, criteria=Criteria(torch.abs, scale={m[0]:[9., 1, 1]}), layer_type=nn.LSTM)
    assert all(l.inputs is not None for l in sp.layers)

def test_several_processes_hear_as_one():
    m,a,b = nn.Linear(3, 2),torch.randn(4, 3),torch.randn(2, 3)
    for fn in data_fns:
        layers = Sparsifier(nn.Sequential(m), layer_type=nn.Linear).layers
        one,two = Inputs(layers, fn),Inputs(layers, fn)
        one.hear(nn.Sequential(m), a)
        two.hear(nn.Sequential(m), b)
        other = iter([t for t in (two.sums[layers[0]], two.counts[layers[0]]) if t is not None])
        one.reduce(lambda t, how, other=other: t.copy_(torch.maximum(t, next(other)) if how == 'max' else t + next(other)))
        assert torch.allclose(one.factors()[layers[0]].expand(2, 3), heard(m, torch.cat([a, b]), data_fn=fn))

def test_a_norm_of_what_is_multiplied_is_what_changes_least():
    "What Wanda minimizes: of all single weights of an output, to remove the one with the lowest score changes that output least"
    lin,x = nn.Linear(6, 1, bias=False),torch.randn(50, 6)*torch.tensor([.1, 3, 1, 2, .5, 1])
    scores = (lin.weight.detach().abs()*heard(lin, x)).flatten()
    change = [(F.linear(x, lin.weight*(torch.arange(6) != i)) - lin(x)).norm() for i in range(6)]
    assert torch.allclose(scores, torch.stack(change).detach(), atol=1e-4)

"""A dead output channel takes its bias and its batch norm along, so that to remove it changes nothing."""
import pytest
import torch
from fastai.vision.all import Adam, ResBlock, RMSProp, SGD, XResNet
from helpers import Spy, tiny_dls, tiny_learner, zeros
from torch import nn

from fasterai_sched import Sparsifier, SparsifyCallback
from fasterai_sched.channels import batch_norms

def seq(*after): return nn.Sequential(nn.Conv2d(2, 4, 3), *after)

class Two(nn.Module):
    "What becomes of a convolution and a batch norm is in `flow`"
    def __init__(self, flow, width=4):
        super().__init__()
        self.conv,self.other,self.bn,self.flow = nn.Conv2d(2, 4, 3),nn.Conv2d(2, 4, 3),nn.BatchNorm2d(width),flow
    def forward(self, x): return self.flow(self, x)

class Block(nn.Module):
    "As in ResNet, and not to be traced when its input decides"
    def __init__(self, i, o, data_decides=False):
        super().__init__()
        self.conv1,self.bn1,self.conv2,self.bn2 = nn.Conv2d(i, o, 3, padding=1),nn.BatchNorm2d(o),nn.Conv2d(o, o, 3, padding=1),nn.BatchNorm2d(o)
        self.downsample,self.data_decides = nn.Sequential(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o)),data_decides
    def forward(self, x):
        if self.data_decides and x.sum() > 1e9: return x
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.downsample(x)).relu()

class PreActivation(nn.Module):
    "Each batch norm before its convolution, of the same width"
    def __init__(self):
        super().__init__()
        self.bn1,self.conv1,self.bn2,self.conv2 = nn.BatchNorm2d(2),nn.Conv2d(2, 2, 3),nn.BatchNorm2d(2),nn.Conv2d(2, 2, 3)
    def forward(self, x): return x if x.sum() > 1e9 else self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())

def resnet(data_decides=False, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(Block(2, 8, data_decides), Block(8, 8, data_decides), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

PAIRS = {f'{b}.{c}':f'{b}.{n}' for b in '01' for c,n in (('conv1', 'bn1'), ('conv2', 'bn2'), ('downsample.0', 'downsample.1'))}

@pytest.mark.parametrize('model,found,unsure', [
    (seq(nn.BatchNorm2d(4), nn.ReLU()), {'0':'1'}, set()), (seq(nn.ReLU(), nn.BatchNorm2d(4)), {}, set()), (seq(nn.BatchNorm2d(4, affine=False)), {'0':'1'}, set()),
    (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), {'0':'1'}, set()), (nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.BatchNorm2d(4)), {'0':'1'}, set()),
    (Two(lambda s, x: s.bn(s.conv(x))), {'conv':'bn'}, set()), (Two(lambda s, x: s.bn(s.conv(x)) + s.bn(s.other(x))), {}, {'conv', 'other'}),
    (Two(lambda s, x: s.bn(y := s.conv(x)) + y), {}, {'conv'}), (Two(lambda s, x: s.bn(s.conv(x) + s.other(x))), {}, set()),
    (Two(lambda s, x: s.bn(s.conv(s.conv(x)[:, :2]))), {}, {'conv'}), (Two(lambda s, x: s.bn(torch.cat([s.conv(x), s.other(x)], 1)), 8), {}, set()),
    (Two(lambda s, x: s.bn(s.conv(x)) if x.sum() > 0 else x), {'conv':'bn'}, {'other'}), (PreActivation(), {}, {'conv1', 'conv2'}), (resnet(), PAIRS, set()), (resnet(True), PAIRS, set())])
def test_which_batch_norm_a_layer_alone_feeds(model, found, unsure):
    state = torch.get_rng_state()
    assert batch_norms(model)[0] == found and (batch_norms(model)[1] == unsure or found == PAIRS)
    assert torch.equal(state, torch.get_rng_state())

def test_fastais_own_blocks():
    model = XResNet(ResBlock, 1, [1]*4, n_out=3, stem_szs=(4, 4, 64), widen=.125, c_in=2)
    convs = [n for n,m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert batch_norms(model)[0] == {n:n[:-1] + '1' for n in convs}

@pytest.mark.filterwarnings('ignore:.*torch.jit:FutureWarning')
@pytest.mark.parametrize('granularity', ['weight', 'filter'])
def test_a_part_in_torchscript_is_left_alone(granularity):
    class Scripted(nn.Module):
        "Not to be traced"
        def __init__(self):
            super().__init__()
            self.conv,self.bn = nn.Conv2d(2, 4, 3, padding=1),nn.BatchNorm2d(4)
            self.part = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()))
        def forward(self, x): return x if x.sum() > 1e9 else self.part(self.bn(self.conv(x)))
    model = nn.Sequential(Scripted(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    tiny_learner(model, opt_func=SGD).fit(1, cbs=SparsifyCallback(50, granularity=granularity, verbose=False))
    assert zeros(model[0].conv) == [36] and model[0].part.state_dict()['0.weight'].all()
    assert (model[0].bn.weight == 0).sum() == (2 if granularity == 'filter' else 0)

def removed(m, norm, after):
    "The two layers without the channels of `m` that are dead, and what is behind them without those inputs"
    live = m.weight.flatten(1).any(1)
    def cut(t, keep, dim=0): return nn.Parameter(t.detach().index_select(dim, keep.nonzero().flatten()))
    m.weight,m.bias,norm.weight,norm.bias = (cut(t, live) for t in (m.weight, m.bias, norm.weight, norm.bias))
    norm.running_mean,norm.running_var,norm.num_features = norm.running_mean[live],norm.running_var[live],int(live.sum())
    after.weight = cut(after.weight, live, 1)
    return int((~live).sum())

@pytest.mark.parametrize('data_decides', [False, True], ids=['traced', 'by rule'])
@pytest.mark.parametrize('criterion', ['large_final', 'random'])
def test_to_remove_dead_filters_changes_nothing_after_a_whole_fit(criterion, data_decides):
    learn = tiny_learner(resnet(data_decides), opt_func=Adam, wd=.1, lr=3e-3)
    cb = SparsifyCallback(50, 'filter', criteria=criterion)
    seen = Spy('after_batch', lambda l: all(not p[~keep.expand_as(p)].any() and not any(v[~keep.expand_as(v)].any() for v in l.opt.state[p].values()
                                            if isinstance(v, torch.Tensor) and v.shape == p.shape) for p,keep in cb.sparsifier._held(cb.sparsifier.layers)))
    learn.fit(4, cbs=[cb, seen])
    assert all(seen.seen) and zeros(learn.model) == [m.weight.numel()//2 for m in learn.model.modules() if isinstance(m, nn.Conv2d)]
    model,x = learn.model.eval(),torch.randn(5, 2, 6, 6)
    for b in model[:2]: # what a dead channel emits is 0, and not a constant
        emitted = []
        hooks = [n.register_forward_hook(lambda m, i, o, to=emitted: to.append(o)) for n in (b.bn1, b.bn2, b.downsample[1])]
        model(x)
        for h in hooks: h.remove()
        for m in (b.conv1, b.conv2, b.downsample[0]):
            dead = ~m.weight.flatten(1).any(1)
            assert dead.sum() == 4 and not m.bias[dead].any()
        assert sum(not o[:, c].any() for o in emitted for c in range(8)) == 12
    before = model(x)
    assert [removed(b.conv1, b.bn1, b.conv2) for b in model[:2]] == [4, 4]
    assert (model(x) - before).abs().max() < 1e-5 and model[0].conv1.weight.shape[0] == 4

@pytest.mark.parametrize('layer,x', [(lambda: nn.Linear(3, 4), (5, 3)), (lambda: nn.Conv1d(3, 4, 2), (5, 3, 6)), (lambda: nn.Conv3d(3, 4, 2), (5, 3, 4, 4, 4)),
    (lambda: nn.ConvTranspose2d(3, 4, 2), (5, 3, 4, 4)), (lambda: nn.ConvTranspose2d(4, 4, 2, groups=2), (5, 4, 4, 4)), (lambda: nn.Conv2d(4, 4, 2, groups=2), (5, 4, 4, 4)),
    (lambda: nn.Conv2d(4, 4, 2, groups=4), (5, 4, 4, 4))])
def test_a_dead_channel_is_silent_in_every_layer_type(layer, x):
    m = layer()
    norm = {2:nn.BatchNorm1d, 3:nn.BatchNorm1d, 4:nn.BatchNorm2d, 5:nn.BatchNorm3d}[len(x)](4)
    nn.init.ones_(norm.bias)
    sp = Sparsifier(nn.Sequential(m, norm), 'filter', layer_type=type(m))
    sp.sparsify_model(50)
    out = sp.model(torch.randn(x)).transpose(0, 1).flatten(1)
    assert [bool(c.any()) for c in out].count(False) == 2 and (norm.weight == 0).sum() == (norm.bias == 0).sum() == (m.bias == 0).sum() == 2

def test_single_weights_and_kernels_leave_bias_and_batch_norm_alone():
    for g in ('weight', 'kernel', 'shared_weight'):
        model = seq(nn.BatchNorm2d(4))
        Sparsifier(model, g).sparsify_model(100)
        assert model[0].bias.all() and model[1].weight.all()

@pytest.mark.parametrize('make,x', [(lambda: nn.Conv2d(3, 4, 2), (2, 3, 5, 5)), (lambda: nn.Conv2d(80, 4, 2), (2, 80, 5, 5)), (lambda: nn.ConvTranspose2d(3, 4, 2), (2, 3, 5, 5)),
                                    (lambda: nn.Linear(3, 4), (5, 3)), (lambda: nn.Conv2d(4, 4, 2, groups=2), (2, 4, 5, 5))])
def test_the_bias_of_a_channel_without_weights_waits_while_a_batch_norm_takes_it_away(make, x):
    m,norm = make(),nn.BatchNorm1d(4) if len(x) == 2 else nn.BatchNorm2d(4)
    bias,channel = m.bias.detach().clone(),[slice(None)]*m.weight.ndim
    channel[isinstance(m, nn.ConvTranspose2d)] = 2
    with torch.no_grad(): m.weight[tuple(channel)] *= 1e-4
    sp = Sparsifier(nn.Sequential(m, norm), layer_type=type(m))
    def grads():
        m.bias.grad = torch.ones(4)
        sp.mask_grads()
        return m.bias.grad.tolist()
    assert grads() == [1, 1, 1, 1]
    sp.sparsify_model(25)
    assert not m.weight[tuple(channel)].any() and grads() == [1, 1, 0, 1]
    norm.eval() # takes away what it remembers, and not the bias
    assert grads() == [1, 1, 1, 1]
    norm.train()
    sp.sparsify_model(0)
    assert grads() == [1, 1, 1, 1] and m.bias.equal(bias)

@pytest.mark.parametrize('granularity', ['weight', 'kernel', 'shared_weight', 'channel', (2, 1)])
@pytest.mark.parametrize('after,waits', [((nn.BatchNorm2d(4),), True), ((nn.ReLU(), nn.BatchNorm2d(4)), False), ((nn.GroupNorm(2, 4),), False), ((), False)])
def test_it_waits_in_every_granularity_and_only_there(granularity, after, waits):
    model = seq(*after)
    sp = Sparsifier(model, granularity)
    sp.sparsify_model(100)
    model[0].bias.grad = torch.ones(4)
    sp.mask_grads()
    assert model[0].bias.grad.any() == (not waits)

class Odd(nn.Conv2d):
    "With a bias of another form"
    def __init__(self, *shape):
        super().__init__(2, 4, 3, bias=False)
        self.bias = nn.Parameter(torch.zeros(shape))
    def forward(self, x): return self._conv_forward(x, self.weight, None) + self.bias

@pytest.mark.parametrize('model', [Block(2, 4, data_decides=True), seq(nn.BatchNorm2d(4)).append(Two(lambda s, x: x)), nn.Sequential(Odd(), nn.BatchNorm2d(4)), nn.Sequential(Odd(4, 1, 1), nn.BatchNorm2d(4))])
def test_where_the_graph_does_not_tell_or_the_bias_is_another_it_goes_on(model):
    sp = Sparsifier(model)
    sp.sparsify_model(100)
    waits = isinstance(model, nn.Sequential) and len(model) == 3
    bias = sp.layers[0].module.bias
    bias.grad = torch.ones_like(bias)
    sp.mask_grads()
    assert bias.grad.all() == (not waits)

def test_the_optimizers_copy_of_such_a_bias_waits_too():
    sp = Sparsifier(seq(nn.BatchNorm2d(4)))
    sp.sparsify_model(100)
    bias = sp.model[0].bias
    copy = nn.Parameter(bias.detach().clone())
    sp.masters,bias.grad,copy.grad = {id(bias):copy},torch.ones(4),torch.ones(4)
    sp.mask_grads()
    assert not bias.grad.any() and not copy.grad.any()

def test_other_channels_than_the_weights_and_a_bias_of_two_layers_are_left_alone():
    m = nn.ConvTranspose2d(4, 4, 2, groups=2)
    shared = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    shared[2].bias = shared[0].bias
    for sp in (Sparsifier(nn.Sequential(m, nn.BatchNorm2d(4)), layer_type=type(m)), Sparsifier(shared)):
        sp.sparsify_model(100)
        bias = sp.layers[0].module.bias
        bias.grad = torch.ones(4)
        sp.mask_grads()
        assert bias.grad.all()

@pytest.mark.parametrize('opt_func', [Adam, RMSProp])
def test_evaluation_is_training_where_a_channel_has_died(opt_func):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    with torch.no_grad(): model[0].weight[:3] *= 1e-2
    learn = tiny_learner(model, dls=tiny_dls(n=400, bs=20, size=16), lr=.1, opt_func=opt_func)
    learn.fit(5, cbs=SparsifyCallback(50, layers='0', schedule='one_shot', start_epoch=0, verbose=False))
    assert not model[0].weight[:3].any() and model[0].weight[3:].all()
    model.eval()
    off = model[:2](torch.randn(4, 2, 6, 6)).transpose(0, 1).flatten(1) - model[1].bias[:, None]
    assert off[:3].abs().max() < 1e-3 < .1 < off[3:].abs().max() # with a bias that is free to go .02 and .01, and here and there above 5

def test_what_is_not_certain_is_left_alone_and_said():
    model = Two(lambda s, x: s.bn(s.conv(x)) + s.bn(s.other(x)))
    sp = Sparsifier(model, 'filter')
    sp.sparsify_model(50)
    assert model.bn.weight.all() and (model.conv.bias == 0).sum() == 2
    assert 'The batch norm behind conv, other is left alone' in sp.report()._repr_html_() and 'batch norm' not in str(sp.report())

def test_frozen_and_shared_parameters_are_left_alone():
    model = seq(nn.BatchNorm2d(4))
    model[1].requires_grad_(False)
    Sparsifier(model, 'filter').sparsify_model(50)
    assert model[1].weight.all() and (model[0].bias == 0).sum() == 2
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].bias = model[0].bias
    Sparsifier(model, 'filter', layers='0').sparsify_model(50)
    assert model[0].bias.all()

def test_a_channel_that_returns_has_what_it_died_with_and_trains():
    learn = tiny_learner(resnet(), dls=tiny_dls(n=100, bs=4), lr=1e-2)
    cb = SparsifyCallback(75, 'filter', schedule='dsd')
    norm,conv = learn.model[0].bn1,learn.model[0].conv1
    values = {}
    def look(l):
        if not l.training or cb.sparsifier is None: return
        alive = cb.sparsifier.layers[0].alive
        alive = torch.ones(8, dtype=torch.bool) if alive is None else alive
        for c in range(8):
            last,_ = values.get(c, (True, None))
            if last and not alive[c]: values[c] = False,before['now'][:, c]
            if not last and alive[c]:
                weight,bias = values[c][1]
                assert norm.weight[c] == weight and norm.bias[c] == bias.abs().clamp_min(1e-3) and not conv.weight[c].any()
                values[c] = True,None
                seen.append(c)
    seen,before = [],{}
    keep = Spy('before_batch', lambda l: before.update(now=torch.stack([norm.weight, norm.bias]).detach().clone()), order=54)
    learn.fit(4, cbs=[cb, keep, Spy('before_batch', look, order=56)])
    assert len(seen) == 6 and cb.sparsifier.masks == {}
    learn.fit(2) # 50 steps more
    assert conv.weight.flatten(1).any(1).all() and norm.weight.all()

def test_a_channel_dead_since_another_fit_trains_when_it_returns():
    learn = tiny_learner(resnet(), dls=tiny_dls(n=100, bs=4))
    learn.fit(1, cbs=SparsifyCallback(50, 'filter', schedule='lin'))
    assert (learn.model[0].bn1.weight == 0).sum() == 4
    learn.fit(3, cbs=SparsifyCallback(90, 'filter', schedule='dsd'))
    assert zeros(learn.model)[0] == 0 and (learn.model[0].bn1.weight != 0).all()

def test_what_returns_with_a_channel_returns_to_the_optimizers_copy_too():
    model = seq(nn.BatchNorm2d(4))
    nn.init.normal_(model[1].bias)
    sp = Sparsifier(model, 'filter')
    sp.masters = {id(p):p.detach().double() for p in model.parameters()}
    was = {k:p.clone() for k,p in model.named_parameters()}
    sp.sparsify_model(50)
    for p in model.parameters(): assert (sp.masters[id(p)] == p).all()
    assert (model[1].weight == 0).sum() == 2
    sp.sparsify_model(0)
    for p in model.parameters(): assert (sp.masters[id(p)] == p).all()
    assert model[1].weight.equal(was['1.weight']) and model[1].bias.abs().equal(was['1.bias'].abs())

def test_averages_and_tickets_hold_the_whole_channel():
    learn = tiny_learner(resnet())
    cb = SparsifyCallback(50, 'filter', schedule='one_shot')
    learn.fit(2, cbs=cb)
    other = resnet(seed=1)
    nn.init.ones_(other[0].bn1.bias)
    cb.sparsifier.apply_masks(other)
    dead = ~cb.sparsifier.layers[0].alive
    for m in (other[0].bn1.weight, other[0].bn1.bias, other[0].conv1.bias): assert not m[dead].any() and m[~dead].all()
    ticket = cb._snapshot.ticket([cb.sparsifier])
    assert not ticket['0.bn1.weight'][dead].any() and ticket['0.bn1.weight'][~dead].all() and set(ticket) == set(learn.model.state_dict())

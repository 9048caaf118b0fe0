"""Rules: which layers they find, and what is refused."""
import re

import pytest
import torch
from fastai.vision.all import SGD, OptimWrapper
from helpers import Spy, tiny_learner, tiny_model, zeros
from torch import nn

from fasterai_sched import Granularities, Sparsifier, SparsifyCallback, sparsity_report
from fasterai_sched.layers import select

class Net(nn.Module):
    "Two blocks of two convolutions, one of which goes down, and a head"
    def __init__(self):
        super().__init__()
        block = lambda i, o: nn.ModuleDict(dict(conv=nn.Conv2d(i, o, 3, padding=1), downsample=nn.Conv2d(i, o, 1)))
        self.stem,self.blocks,self.head = nn.Conv2d(2, 4, 3, padding=1),nn.ModuleList([block(4, 4), block(4, 6)]),nn.Linear(6, 3)
    def forward(self, x):
        x = self.stem(x).relu()
        for b in self.blocks: x = (b['conv'](x) + b['downsample'](x)).relu()
        return self.head(x.mean((2, 3)))

NAMES = ['stem', 'blocks.0.conv', 'blocks.0.downsample', 'blocks.1.conv', 'blocks.1.downsample']
both = nn.Conv2d,nn.Linear

@pytest.mark.parametrize('rules,found', [
    (dict(), NAMES), (dict(layers='stem'), ['stem']), (dict(layers=['blocks.1.conv', 'stem']), ['stem', 'blocks.1.conv']),
    (dict(layers='blocks.0.*'), NAMES[1:3]), (dict(layers='*.conv'), ['blocks.0.conv', 'blocks.1.conv']),
    (dict(layers=re.compile(r'\.[01]\.c')), ['blocks.0.conv', 'blocks.1.conv']), (dict(layers=lambda n, m: m.kernel_size == (1, 1)), NAMES[2::2]),
    (dict(layers=['stem', re.compile('down')]), ['stem', *NAMES[2::2]]), (dict(exclude='*.downsample'), ['stem', *NAMES[1::2]]),
    (dict(layers='blocks.*', exclude=['*.1.*', re.compile('down')]), ['blocks.0.conv']), (dict(exclude=lambda n, m: m.in_channels == 2), NAMES[1:]),
    (dict(layer_type=both, layers=nn.Linear), ['head']), (dict(layer_type=both, exclude=nn.Conv2d), ['head']), (dict(layer_type=both), [*NAMES, 'head']),
    (dict(layer_type=nn.Module), [*NAMES, 'head'])])
def test_rules_find_layers_in_model_order(rules, found):
    rules = {'layer_type':nn.Conv2d, **rules}
    assert [f.name for f,_ in select(Net(), **rules)[0]] == found
    sp = Sparsifier(Net(), **rules)
    sp.sparsify_model(50)
    assert [l.name for l in sp.layers] == [r.name for r in sp.report().rows] == found
    plain = {n:m for n,m in sp.model.named_modules() if hasattr(m, 'weight')}
    assert [n for n,m in plain.items() if (m.weight == 0).any()] == found
    cb = SparsifyCallback(50, **rules, verbose=False)
    learn = tiny_learner(Net())
    learn.fit(1, cbs=cb)
    assert [l.name for l in cb.sparsifier.layers] == found
    n = sum(plain[f].weight.numel()//2 for f in found)
    assert sum((m.weight == 0).sum() for m in learn.model.modules() if isinstance(m, both)) == n

@pytest.mark.parametrize('rules,match', [
    (dict(layers='stme'), r"sparsity or layers names 'stme': there is no such layer; close: \['stem'\]"), (dict(layers='blocks.7.*'), r"names 'blocks.7.\*': there is no such layer"),
    (dict(layers=re.compile('xyz')), r"names 'xyz': there is no such layer; close: \['stem', 'blocks.0.conv'"), (dict(layers='head'), r"names 'head', which is a Linear, and layer_type=Conv2d"),
    (dict(exclude='*.upsample'), r"exclude names '\*.upsample': there is no such layer"), (dict(exclude='*'), r"No layer is selected: layers=None and exclude='\*' leave none of \['stem'"),
    (dict(layers=[]), r'No layer is selected: layers=\[\]'), (dict(layers=3), r'layers=3: 3 is no rule; give names, globs'), (dict(exclude=['stem', None]), r"exclude=\['stem', None\]: None is no rule"),
    (dict(layer_type=both, layers=[nn.Linear, nn.Conv1d]), r'names Conv1d: there is no such layer')], ids=lambda x: str(x)[:40])
def test_a_rule_of_no_use_is_refused(rules, match):
    with pytest.raises(ValueError, match=match): Sparsifier(Net(), **rules)
    learn = tiny_learner(Net())
    with pytest.raises(ValueError, match=match): learn.fit(1, cbs=SparsifyCallback(50, **rules))
    assert not zeros(learn.model)[0]

# -- a target a rule ---------------------------------------------------------------------------------------------------------------

def share(learn, types=both): return {n: round(100*(m.weight == 0).float().mean().item()) for n,m in learn.model.named_modules() if isinstance(m, types)}

def test_a_dict_of_rules(capsys):
    cb = SparsifyCallback({'*.conv':75, re.compile('down'):25, nn.Linear:50}, layer_type=both, exclude='blocks.0.downsample', schedule='one_shot')
    learn = tiny_learner(Net())
    learn.fit(2, cbs=cb)
    assert share(learn) == {'stem':0, 'blocks.0.conv':75, 'blocks.0.downsample':0, 'blocks.1.conv':75, 'blocks.1.downsample':25, 'head':50}
    out = capsys.readouterr().out
    assert 'until a sparsity of [75, 75, 25, 50]%' in out and 'end of epoch 1: [75.0, 75.0, 25.0, 50.0]%' in out

@pytest.mark.parametrize('kwargs,match', [
    (dict(sparsity={'*.conv':50, 'blocks.0.*':20}), r"more than one of the rules matches 'blocks.0.conv'"), (dict(sparsity={'st*':50, nn.Conv2d:20}), r"more than one of the rules matches 'stem'; let one do so, or name it"),
    (dict(sparsity={'*.cnov':50}), r"names '\*.cnov': there is no such layer"), (dict(sparsity={'stem':50, 'blocks.0.conv':20}, exclude='stem'), r"sparsity names 'stem': there is no such layer")])
def test_rules_that_overlap_or_find_nothing_are_refused_before_training(kwargs, match):
    learn = tiny_learner(Net())
    with pytest.raises(ValueError, match=match): learn.fit(1, cbs=SparsifyCallback(**kwargs))
    assert set(share(learn).values()) == {0}

@pytest.mark.parametrize('kwargs,match', [
    (dict(sparsity={3:50}), r'3 is no rule'), (dict(sparsity={'stem':50}, layers='stem'), r"layers='stem': the keys of sparsity=.* select already"),
    (dict(sparsity=slice(90)), r'sparsity=slice\(None, 90, None\): give a first and a last percentage, such as slice\(30, 90\)'), (dict(sparsity=slice(10, 90, 10)), r'give a first and a last'),
    (dict(sparsity=slice(30, 190)), r'sparsity=190 is outside 0 to 100'), (dict(sparsity=slice(.3, 90)), r'sparsity=0.3 is below 1%'), (dict(sparsity=slice(30, 90), context='global'), r"context='global'")])
def test_targets_that_make_no_sense_are_refused_in_the_constructor(kwargs, match):
    with pytest.raises(ValueError, match=match): SparsifyCallback(**kwargs)

@pytest.mark.parametrize('opt', [SGD, lambda params, **kw: OptimWrapper(params, torch.optim.SGD, **kw)])
def test_a_slice_goes_over_the_parameter_groups(opt, capsys):
    split = lambda m: [list(m.stem.parameters()), list(m.blocks.parameters()), list(m.head.parameters())]
    learn = tiny_learner(Net(), splitter=split, opt_func=opt)
    learn.fit(2, cbs=SparsifyCallback(slice(30, 90), layer_type=both, schedule='lin'))
    assert share(learn) == {'stem':29, 'blocks.0.conv':60, 'blocks.0.downsample':56, 'blocks.1.conv':60, 'blocks.1.downsample':58, 'head':89} # floors of 72, 144, 16, 216, 24, 18
    assert 'until a sparsity of [30.0, 60.0, 60.0, 60.0, 60.0, 90.0]%' in capsys.readouterr().out
    learn = tiny_learner()
    learn.fit(1, cbs=SparsifyCallback(slice(30, 90)))
    assert zeros(learn.model) == [97, 291] # one group: the last

# -- layers of several weights -----------------------------------------------------------------------------------------------------

class Attends(nn.Module):
    "Attention and an LSTM over the pixels"
    def __init__(self):
        super().__init__()
        self.attend,self.rnn,self.head = nn.MultiheadAttention(2, 1, batch_first=True),nn.LSTM(2, 3, batch_first=True),nn.Linear(3, 3)
    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        return self.head(self.rnn(self.attend(x, x, x)[0])[0][:, -1])

KEYS = {'attend.in_proj_weight':12, 'rnn.weight_ih_l0':24, 'rnn.weight_hh_l0':36}

@pytest.mark.parametrize('granularity', ['weight', 'row', 'column'])
def test_attention_and_rnns_are_pruned_like_any_layer(granularity, capsys):
    cb = SparsifyCallback(50, granularity, layer_type=(nn.MultiheadAttention, nn.RNNBase))
    learn = tiny_learner(Attends())
    seen = Spy('after_pred', lambda l: all(not l.model.get_parameter(k)[~m.expand_as(l.model.get_parameter(k))].any() for k,m in cb.sparsifier.masks.items()))
    learn.fit(2, cbs=[cb, seen])
    assert all(seen.seen) and set(cb.sparsifier.masks) <= set(KEYS)
    for k,n in KEYS.items():
        w = learn.model.get_parameter(k)
        groups = {'weight':n, 'row':len(w), 'column':w.shape[1]}[granularity]
        assert int((w == 0).sum()) == groups//2*(n//groups)
    rows = {r.name:(r.type, r.zeros) for r in sparsity_report(learn.model, (nn.MultiheadAttention, nn.RNNBase)).rows}
    assert {k:z for k,(_,z) in rows.items()} == {k:int((learn.model.get_parameter(k) == 0).sum()) for k in KEYS} and rows['rnn.weight_ih_l0'][0] == 'LSTM'
    assert 'LSTM' in capsys.readouterr().out

def test_one_weight_of_several_can_be_named():
    sp = Sparsifier(Attends(), layer_type=nn.RNNBase, layers='*.weight_hh_*')
    sp.sparsify_model(50)
    assert list(sp.masks) == ['rnn.weight_hh_l0'] and (sp.model.rnn.weight_ih_l0 != 0).all() and (sp.model.rnn.weight_hh_l0 == 0).sum() == 18
    other = Attends()
    sp.apply_masks(other)
    assert (other.rnn.weight_hh_l0 == 0).sum() == 18

def test_module_is_every_type_that_has_granularities():
    assert [f.name for f,_ in select(Attends(), nn.Module)[0]] == ['attend.in_proj_weight', 'attend.out_proj', 'rnn.weight_ih_l0', 'rnn.weight_hh_l0', 'head']
    model = nn.Sequential(tiny_model(), nn.PReLU(4), nn.LayerNorm(3))
    assert [f.name for f,_ in select(model, nn.Module)[0]] == ['0.0', '0.3', '0.7']
    assert nn.PReLU not in Granularities.available_modules()

# -- names before patterns, layers as rules ------------------------------------------------------------------------------------------

def test_a_name_says_more_than_a_pattern():
    learn = tiny_learner(Net())
    learn.fit(1, cbs=SparsifyCallback({'*':50, 'stem':25, 'blocks.1.conv':75}, schedule='lin'))
    assert share(learn, nn.Conv2d) == {'stem':25, 'blocks.0.conv':50, 'blocks.0.downsample':50, 'blocks.1.conv':75, 'blocks.1.downsample':50}
    sp = Sparsifier(Net(), context='global', max_sparsity={'*':90, 'stem':10})
    assert {l.name:l.limit for l in sp.layers} == {'stem':10, **{n:90 for n in ('blocks.0.conv', 'blocks.0.downsample', 'blocks.1.conv', 'blocks.1.downsample')}}

def test_layers_are_rules_too():
    m = Net()
    assert [f.name for f,_ in select(m, nn.Conv2d, exclude=m.stem)[0]] == ['blocks.0.conv', 'blocks.0.downsample', 'blocks.1.conv', 'blocks.1.downsample']
    assert [f.name for f,_ in select(m, nn.Conv2d, layers=[m.stem, m.blocks[1]])[0]] == ['stem', 'blocks.1.conv', 'blocks.1.downsample']
    with pytest.raises(ValueError, match='exclude names Linear: there is no such layer'): select(m, nn.Conv2d, exclude=nn.Linear(1, 1))

def test_a_function_that_fails_as_a_rule_is_told_what_it_is_called_with():
    with pytest.raises(ValueError, match=r"the rule '<lambda>' fails for layer 'stem': TypeError: .*it is called with a layer's name and the layer"): select(Net(), nn.Conv2d, exclude=lambda m: True)

def test_a_layer_of_another_type_is_told_apart_in_exclude_too():
    with pytest.raises(ValueError, match="exclude names 'head', which is a Linear, and layer_type=Conv2d; add its type"): select(Net(), nn.Conv2d, exclude='head')

def test_long_lists_of_names_are_cut():
    m = nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)])
    with pytest.raises(ValueError, match=r"there is no such layer; close: \['0', '1', '2', '3', '4', '5', '6', '7'\] and 4 more"): select(m, nn.Linear, layers='xyz')

@pytest.mark.parametrize('rules', [dict(exclude='haed'), dict(layers='haed')])
def test_a_name_that_is_like_that_of_a_layer_of_another_type_is_told(rules):
    with pytest.raises(ValueError, match=r"names 'haed': there is no such layer; close, and left out by layer_type=Conv2d: 'head' \(a Linear\)$"): Sparsifier(Net(), **rules)
    with pytest.raises(ValueError, match=r"close: \['stem'\]; close, and left out by layer_type=Conv2d: 'stema' \(a Linear\)$"):
        m = Net()
        m.stema = nn.Linear(2, 2)
        Sparsifier(m, **dict.fromkeys(rules, 'stemm'))

def test_of_a_layer_that_is_never_pruned_it_does_not_advise_to_add_the_type():
    with pytest.raises(ValueError, match="exclude names '1', which is a BatchNorm2d, and layer_type=Conv2d; that type is never pruned: leave the name out"):
        select(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Conv2d, exclude='1')

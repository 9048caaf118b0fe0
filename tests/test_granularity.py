"""Granularities: how many groups each makes of a weight, and what one group is."""
from math import prod

import pytest
import torch
from helpers import SEVERAL
from torch import nn

from fasterai_sched.granularity import Granularities
from fasterai_sched.sparsifier import Sparsifier

layers = {nn.Conv2d:lambda: nn.Conv2d(3, 8, (2, 5)), nn.ConvTranspose2d:lambda: nn.ConvTranspose2d(3, 8, (2, 5)),
          nn.Conv1d:lambda: nn.Conv1d(3, 8, 5), nn.Linear:lambda: nn.Linear(3, 8), nn.Embedding:lambda: nn.Embedding(8, 3),
          nn.Conv3d:lambda: nn.Conv3d(3, 8, (4, 2, 5)), nn.ConvTranspose3d:lambda: nn.ConvTranspose3d(3, 8, (4, 2, 5)),
          nn.ConvTranspose1d:lambda: nn.ConvTranspose1d(3, 8, 5)}
table  = [(t, g) for t,row in Granularities._granularities.items() for g in row if t not in SEVERAL]

# How many groups, by hand. Conv2d(3, 8, (2, 5)): 8 filters of 3 inputs, 2 high and 5 wide, 240 weights
groups = {
    nn.Conv2d: {'weight':240, 'shared_weight':30, 'channel':80, 'column':120, 'row':48, 'kernel':24, 'filter':8, 'shared_channel':10,
                'shared_column':15, 'shared_row':6, 'vertical_slice':40, 'horizontal_slice':16, 'shared_vertical_slice':5,
                'shared_horizontal_slice':2, 'shared_kernel':3, 'layer':1},
    nn.Conv1d: {'weight':120, 'shared_weight':15, 'channel':40, 'column':15, 'row':40, 'kernel':24, 'filter':8, 'shared_channel':5,
                'shared_kernel':3, 'layer':1},
    nn.Conv3d: {'weight':960, 'shared_weight':120, 'channel':320, 'column':480, 'row':192, 'kernel':24, 'filter':8, 'shared_channel':40,
                'shared_column':60, 'shared_row':24, 'vertical_slice':160, 'horizontal_slice':64, 'shared_vertical_slice':20,
                'shared_horizontal_slice':8, 'shared_kernel':3, 'layer':1},
    nn.Linear: {'weight':24, 'column':3, 'row':8, 'filter':8, 'layer':1},
    nn.Embedding: {'weight':24, 'column':3, 'row':8, 'layer':1}}
groups[nn.ConvTranspose2d],groups[nn.ConvTranspose3d] = groups[nn.Conv2d],groups[nn.Conv3d]
groups[nn.ConvTranspose1d] = {g:n for g,n in groups[nn.Conv1d].items() if g not in ('column', 'row')}

# What one group is, as an index into weights put in the order out, in, height, width; the first of each
R = slice(None)
one = {
    nn.Conv2d: {'weight':(0, 0, 0, 0), 'shared_weight':(R, 0, 0, 0), 'channel':(0, R, 0, 0), 'column':(0, 0, R, 0), 'row':(0, 0, 0, R),
                'kernel':(0, 0), 'filter':(0,), 'shared_channel':(R, R, 0, 0), 'shared_column':(R, 0, R, 0), 'shared_row':(R, 0, 0, R),
                'vertical_slice':(0, R, R, 0), 'horizontal_slice':(0, R, 0, R), 'shared_vertical_slice':(R, R, R, 0),
                'shared_horizontal_slice':(R, R, 0, R), 'shared_kernel':(R, 0), 'layer':(R,)},
    nn.Conv1d: {'weight':(0, 0, 0), 'shared_weight':(R, 0, 0), 'channel':(0, R, 0), 'column':(R, 0, 0), 'row':(0, R, 0), 'kernel':(0, 0),
                'filter':(0,), 'shared_channel':(R, R, 0), 'shared_kernel':(R, 0), 'layer':(R,)},
    nn.Linear: {'weight':(0, 0), 'column':(R, 0), 'row':(0,), 'filter':(0,), 'layer':(R,)},
    nn.Embedding: {'weight':(0, 0), 'column':(R, 0), 'row':(0,), 'layer':(R,)}}
one[nn.ConvTranspose2d] = one[nn.Conv2d]
# the same with depth before height and width: one of it, or all of it where a group spans space
whole = ('kernel', 'filter', 'shared_kernel', 'layer')
one[nn.Conv3d] = one[nn.ConvTranspose3d] = {g: i if g in whole else (*i[:2], 0, *i[2:]) for g,i in one[nn.Conv2d].items()}
one[nn.ConvTranspose1d] = {g: i for g,i in one[nn.Conv1d].items() if g not in ('column', 'row')}

@pytest.fixture
def restored():
    before = dict(Granularities._granularities)
    yield
    Granularities._granularities.clear()
    Granularities._granularities.update(before)

def out_in(m):
    "The weights of `m` in the order out, in, ..."
    return m.weight.detach().transpose(0, 1) if 'Transpose' in type(m).__name__ else m.weight.detach()

def test_the_expectations_cover_the_table():
    assert {t: set(row) for t,row in Granularities._granularities.items() if t in layers} == {t: set(groups[t]) for t in layers}
    assert {t: set(one[t]) for t in layers} == {t: set(groups[t]) for t in layers}

def test_there_are_sixteen_ways_to_cut_a_conv2d(): assert len(Granularities.allowed_granularities(nn.Conv2d)) == 16

@pytest.mark.parametrize('t,g', table)
def test_a_granularity_makes_this_many_groups(t, g):
    m = layers[t]()
    dim = Granularities.get_dim(m, g)
    assert m.weight.numel()//prod(m.weight.shape[d-1] for d in dim if d) == groups[t][g]
    assert [l.n for l in Sparsifier(nn.Sequential(m), g, layer_type=t).layers] == [groups[t][g]]

@pytest.mark.parametrize('t,g', table)
def test_pruning_one_group_zeroes_that_group_and_nothing_else(t, g):
    m = layers[t]()
    nn.init.uniform_(m.weight, 2, 3)
    expected = torch.zeros_like(out_in(m), dtype=torch.bool)
    expected[one[t][g]] = True
    out_in(m)[expected] = .1 # the group that matters least
    Sparsifier(nn.Sequential(m), g, layer_type=t).sparsify_model(100/groups[t][g])
    assert torch.equal(out_in(m) == 0, expected)

@pytest.mark.parametrize('t,g', table)
def test_groups_are_of_one_size_and_share_no_weight(t, g):
    m = layers[t]()
    shape = [1 if i+1 in Granularities.get_dim(m, g) else s for i,s in enumerate(m.weight.shape)]
    ids = torch.arange(groups[t][g]).view(shape).expand(m.weight.shape)
    assert ids.flatten().bincount().tolist() == [m.weight.numel()//groups[t][g]]*groups[t][g]

@pytest.mark.parametrize('t', [t for t in layers if t is not nn.Embedding])
def test_a_filter_makes_one_output_channel_and_a_shared_kernel_reads_one_input(t):
    space = 0 if t is nn.Linear else int(t.__name__[-2])
    x = torch.rand(1, 3, *[6]*space)
    m = layers[t]()
    nn.init.zeros_(m.bias)
    Sparsifier(nn.Sequential(m), 'filter', layer_type=t).sparsify_model(100/8)
    assert sum(not c.any() for c in m(x)[0]) == 1
    m = layers[t]()
    Sparsifier(nn.Sequential(m), 'shared_kernel' if space else 'column', layer_type=t).sparsify_model(100/3)
    changes = [not torch.equal(m(x), m(torch.cat([x[:,:i], x[:,i:i+1] + 1, x[:,i+1:]], 1))) for i in range(3)]
    assert sum(changes) == 2

@pytest.mark.parametrize('t,g', table)
def test_dimensions_are_counted_from_one_and_zero_means_single_weights(t, g):
    dim = Granularities.get_dim(t, g)
    assert isinstance(dim, list)
    assert dim == [0] if g == 'weight' else all(1 <= d <= layers[t]().weight.ndim for d in dim)
    assert dim == Granularities.get_dim(layers[t](), g)

@pytest.mark.parametrize('t,g,dim', [
    (nn.Conv2d, 'filter', [2, 3, 4]), (nn.ConvTranspose2d, 'filter', [1, 3, 4]), (nn.Conv1d, 'kernel', [3]), (nn.Linear, 'row', [2])])
def test_these_dimensions_are_put_together(t, g, dim): assert Granularities.get_dim(t, g) == dim

def test_the_list_of_dimensions_is_the_callers_own(restored):
    Granularities.add_granularity(nn.Bilinear, {'weight':0, 'row':[2, 3]})
    Granularities.get_dim(nn.Bilinear, 'row').append(4)
    assert Granularities.get_dim(nn.Bilinear, 'row') == [2, 3]

def test_a_subclass_has_its_bases_granularities():
    class Mine(nn.Conv2d): pass
    assert Granularities.allowed_granularities(Mine(1, 1, 1)) is Granularities.allowed_granularities(nn.Conv2d)
    assert Granularities.get_dim(Mine, 'kernel') == [3, 4]

def test_the_nearest_base_counts(restored):
    class Mine(nn.Conv2d): pass
    class Closer(Mine): pass
    Granularities.add_granularity(Mine, {'weight':0, 'half':2})
    assert list(Granularities.allowed_granularities(Closer)) == ['weight', 'half']
    assert 'half' not in Granularities.allowed_granularities(nn.Conv2d)

def test_lists_are_read_from_the_table():
    assert set(Granularities.available_modules()) >= {*layers, *SEVERAL} # and what other tests have added
    assert set(Granularities.available_granularities()) == set(groups[nn.Conv2d])

def test_a_layer_type_can_be_added_and_is_pruned_then(restored):
    Granularities.add_granularity(nn.Embedding, {'weight':0, 'word':2})
    assert nn.Embedding in Granularities.available_modules() and 'word' in Granularities.available_granularities()
    m = nn.Embedding(4, 3)
    m.weight.data = torch.tensor([[1., 1, 1], [3, 3, 3], [0, 1, 1], [2, 2, 2]])
    Sparsifier(nn.Sequential(m), 'word', layer_type=nn.Embedding).sparsify_model(50)
    assert m.weight.tolist() == [[0, 0, 0], [3, 3, 3], [0, 0, 0], [2, 2, 2]]

def test_an_added_table_is_a_copy(restored):
    mine = {'weight':0}
    Granularities.add_granularity(nn.Embedding, mine)
    mine['word'] = 2
    assert list(Granularities.allowed_granularities(nn.Embedding)) == ['weight']

@pytest.mark.parametrize('m', [nn.ReLU, nn.ReLU(), nn.Bilinear, nn.PReLU])
def test_a_layer_type_without_granularities_is_refused_with_those_that_have_some(m):
    with pytest.raises(ValueError, match=r"(ReLU|Bilinear|PReLU) has no granularities; .*'Conv2d'.*'Linear'.*add_granularity\("):
        Granularities.allowed_granularities(m)

@pytest.mark.parametrize('m', [nn.Linear, nn.Linear(1, 1)])
def test_an_unknown_granularity_is_refused_with_the_choices(m):
    with pytest.raises(ValueError, match=r"granularity='kernel' is not one of Linear's; choose from \['weight', 'column', 'row'"):
        Granularities.get_dim(m, 'kernel')

@pytest.mark.parametrize('args,message', [
    ((nn.Embedding(1, 1), {'weight':0}), 'm_type must be a class of layers'), (('Linear', {'weight':0}), "got 'Linear'"),
    ((dict, {'weight':0}), 'm_type must be'), ((nn.Embedding, {}), 'g must be a dict'), ((nn.Embedding, 'weight'), "got 'weight'")])
def test_what_cannot_be_added_is_refused(args, message, restored):
    with pytest.raises(ValueError, match=message): Granularities.add_granularity(*args)

"""Reports: what is zero in a model, to the character."""
from dataclasses import FrozenInstanceError
import re

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn.utils import parametrizations

from fasterai_sched.report import Report, Row, n_zeros, sparsity_report

def net():
    "3 of 4 channels zero in the first convolution; 1,200 of 4,800 weights in the second; 1 of 300 in the head"
    body = nn.Sequential(nn.Conv2d(4, 300, 2), nn.BatchNorm2d(300))
    m = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), body, nn.Linear(300, 1))
    for p in m.parameters(): nn.init.constant_(p, .5)
    with torch.no_grad():
        m[0].weight[:3] = 0
        m[2][0].weight[:, 1] = 0
        m[3].weight[0, 7] = -0.
    return m

rule = '-'*80
head = 'Layer                Type            Params     Zeros      Sparsity  '

def test_the_table_is_the_seeds():
    assert str(sparsity_report(net())) == '\n'.join([
        rule, head, rule,
        'Layer 1              Conv2d          36         27            75.00%',
        'Layer 4              Conv2d          4,800      1,200         25.00%',
        rule,
        'Overall              all             4,836      1,227         25.37%'])

def test_frozen_rows_are_listed_and_not_added_up():
    rep = sparsity_report(net(), frozen=['2.0'])
    assert str(rep) == '\n'.join([
        rule, head, rule,
        'Layer 1              Conv2d          36         27            75.00%',
        'Layer 4              Conv2d          4,800      1,200         frozen',
        rule,
        'Overall              all             36         27            75.00%'])
    assert (rep.params, rep.zeros, rep.sparsity) == (36, 27, 75)
    assert [r.frozen for r in rep.rows] == [False, True]
    assert '<td style="text-align:right">frozen</td>' in rep._repr_html_()

@pytest.mark.parametrize('zeros,shown', [(0, '    0.00%'), (8, '  100.00%'), (1, '   12.50%')])
def test_no_zeros_and_only_zeros_are_shown(zeros, shown):
    m = nn.Sequential(nn.Linear(8, 1))
    nn.init.ones_(m[0].weight).data[0, :zeros] = 0
    lines = str(sparsity_report(m, nn.Linear)).split('\n')
    assert lines[3] == f'Layer 1              Linear          8          {zeros}          {shown}'
    assert lines[5] == f'Overall              all             8          {zeros}          {shown}'

def test_large_numbers_have_commas():
    rep = Report((Row('a', 65, 'Conv2d', 11166912, 10050211),))
    assert str(rep).split('\n')[3:] == ['Layer 65             Conv2d          11,166,912 10,050,211    90.00%', rule,
                                        'Overall              all             11,166,912 10,050,211    90.00%']

def test_str_repr_and_print_are_one(capsys):
    rep = sparsity_report(net())
    print(rep)
    assert capsys.readouterr().out == f'{rep}\n' == f'{rep!r}\n'

def test_rows_say_which_layer_is_meant():
    a, b = sparsity_report(net()).rows
    assert a == Row('0', 1, 'Conv2d', 36, 27) and b == Row('2.0', 4, 'Conv2d', 4800, 1200)
    assert (a.sparsity, b.sparsity) == (75, 25)

def test_the_number_of_a_layer_is_its_place_in_modules():
    m = net()
    for r in sparsity_report(m, (nn.Conv2d, nn.Linear)).rows: assert list(m.modules())[r.index] is m.get_submodule(r.name)

@pytest.mark.parametrize('layer_type,names', [
    (nn.Conv2d, ['0', '2.0']), (nn.Linear, ['3']), ((nn.Linear, nn.Conv2d), ['0', '2.0', '3']), (nn.BatchNorm2d, ['2.1']),
    (nn.Module, ['0', '2.0', '3'])])
def test_these_layers_are_counted(layer_type, names): assert [r.name for r in sparsity_report(net(), layer_type).rows] == names

def test_names_limit_the_rows():
    rep = sparsity_report(net(), names=['2.0'])
    assert [r.name for r in rep.rows] == ['2.0'] and (rep.params, rep.zeros) == (4800, 1200)

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_both_kinds_of_zero_count(dtype): assert n_zeros(torch.tensor([0., -0., 1e-7, float('nan'), -1.], dtype=dtype)) == 2

def test_zeros_of_negative_views_and_subclasses_are_counted():
    class Mine(torch.Tensor): pass
    assert n_zeros(torch.complex(torch.eye(2), torch.eye(2)).conj().imag) == 2 and n_zeros(torch.eye(2).as_subclass(Mine)) == 2

def test_zeros_of_views_and_of_parameters_are_counted():
    w = nn.Parameter(torch.eye(4))
    assert n_zeros(w) == 12 and n_zeros(w[:, ::2]) == 6 and n_zeros(torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)) == 96

def test_tied_weights_are_counted_once():
    m = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    m[2].weight = m[0].weight
    rep = sparsity_report(m, nn.Linear)
    assert [r.name for r in rep.rows] == ['0', '1'] and rep.params == 32
    l = nn.Linear(4, 4)
    assert sparsity_report(nn.Sequential(l, l), nn.Linear).params == 16

def test_a_computed_weight_is_not_looked_at_for_looking_may_change_it():
    m = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    before = {n:v.clone() for n,v in m.state_dict().items()}
    assert [r.name for r in sparsity_report(m, nn.Linear).rows] == ['1']
    assert all(torch.equal(v, before[n]) for n,v in m.state_dict().items())

def test_torchs_own_pruning_is_counted():
    m = nn.Sequential(nn.Linear(4, 4))
    nn.utils.prune.l1_unstructured(m[0], 'weight', amount=.5)
    assert sparsity_report(m, nn.Linear).zeros == 8

def test_nothing_of_the_model_is_changed():
    m = net()
    before = {n:v.clone() for n,v in m.state_dict().items()}
    sparsity_report(m, nn.Module)
    assert list(m.state_dict()) == list(before) and all(torch.equal(v, before[n]) for n,v in m.state_dict().items())
    assert m.training

# -- HTML and DataFrame ----------------------------------------------------------------------------------------------------------

def test_the_html_table_has_names_beside_numbers():
    html = sparsity_report(net())._repr_html_()
    cells = [c.split('>')[-1] for c in html.replace('</th>', '</td>').split('</td>')[:-1]]
    assert cells == ['Layer', 'Name', 'Type', 'Params', 'Zeros', 'Sparsity', '', 'Layer 1', '0', 'Conv2d', '36', '27', '75.00%', '',
                     'Layer 4', '2.0', 'Conv2d', '4,800', '1,200', '25.00%', '', 'Overall', '', 'all', '4,836', '1,227', '25.37%', '']

def test_a_bar_a_layer_is_as_long_as_it_is_sparse():
    html = sparsity_report(net(), (nn.Conv2d, nn.Linear), frozen=['2.0'])._repr_html_()
    assert re.findall(r'width:([\d.]+)%', html) == ['75.00', '0.33', f'{100*28/336:.2f}'] # none for the frozen one; the last is of all

def test_the_footer_states_dense_and_compressed_size():
    m = nn.Sequential(nn.Linear(1000, 1000, bias=False))
    with torch.no_grad(): m[0].weight.view(-1)[:900_000] = 0
    rep = sparsity_report(m, nn.Linear)
    assert rep.sizes == (4_000_000, 400_000 + 125_000)
    assert '<p>The whole model on disk, without headers: 4.0 MB as it is, 0.5 MB (13%) with save_sparse</p>' in rep._repr_html_()
    assert 'disk' not in str(rep) # the seed's
    whole = sparsity_report(m, nn.Linear, whole=nn.ModuleList([m, nn.Linear(10, 25, bias=False)]))
    assert whole.sizes == (4_001_000, 526_000)
    assert sparsity_report(m, nn.Linear, whole=False).sizes is None and '<p>' not in sparsity_report(m, nn.Linear, whole=False)._repr_html_()
    assert 'on disk, without headers: 1.0 kB as it is' in sparsity_report(nn.Linear(10, 25, bias=False), nn.Linear)._repr_html_()

def test_html_escapes_what_names_may_hold():
    class Odd(nn.Linear): pass
    Odd.__name__ = 'Odd<b>'
    m = nn.Module()
    m.add_module('<i>&"', Odd(2, 2))
    m.add_module('<u>', nn.Conv2d(2, 2, 3))
    html = sparsity_report(m, nn.Linear)._repr_html_()
    assert '&lt;i&gt;&amp;&quot;' in html and 'Odd&lt;b&gt;' in html and '&lt;u&gt;.weight (36)' in html
    assert not any(tag in html for tag in ('<i>', '<b>', '<u>'))

def test_html_names_large_weights_that_were_not_selected():
    m = nn.Sequential(nn.Conv2d(1, 8, 3), nn.MultiheadAttention(8, 2), nn.GRU(8, 8), nn.BatchNorm2d(8), nn.Linear(1, 1))
    rep = sparsity_report(m)
    assert dict(rep.unselected) == {'1.in_proj_weight':192, '1.out_proj.weight':64, '2.weight_ih_l0':192, '2.weight_hh_l0':192}
    note = '<p>Not counted above, as only Conv2d is: 1.in_proj_weight (192), 1.out_proj.weight (64), '
    assert note in rep._repr_html_()
    assert note.replace('only Conv2d is', 'they are not selected') in sparsity_report(m, nn.Module, ['0'])._repr_html_()
    assert 'in_proj' not in str(rep)

@pytest.mark.parametrize('weight', [.5, 'equal', [1., 2.], np.ones(3), len])
def test_a_weight_that_is_no_tensor_is_not_counted(weight):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight
    assert len(sparsity_report(nn.Sequential(nn.Conv2d(1, 4, 3), Scale()), nn.Module).rows) == 1

@pytest.mark.parametrize('dtype', [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_8_bits_are_counted(dtype):
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    model[0].weight = nn.Parameter(torch.tensor([[0, -0., 1, 2]]*2).to(dtype), requires_grad=False)
    assert sparsity_report(model, nn.Linear).rows[0].zeros == 4

def test_a_parameter_of_no_layer_is_not_counted_and_why():
    model = nn.Sequential(nn.Conv2d(1, 4, 3))
    model.pos = nn.Parameter(torch.ones(20, 30))
    assert 'Not counted above, as only weights of layers are: pos (600)' in sparsity_report(model, nn.Module)._repr_html_()

def test_html_has_no_note_when_everything_large_is_counted():
    rep = sparsity_report(net(), (nn.Conv2d, nn.Linear))
    assert rep.unselected == () and 'Not counted' not in rep._repr_html_()

def test_the_data_frame_has_a_row_a_layer():
    df = sparsity_report(net(), frozen=['2.0']).to_df()
    assert list(df.columns) == ['name', 'index', 'type', 'params', 'zeros', 'sparsity', 'frozen']
    assert df.values.tolist() == [['0', 1, 'Conv2d', 36, 27, 75., False], ['2.0', 4, 'Conv2d', 4800, 1200, 25., True]]

# -- edges -----------------------------------------------------------------------------------------------------------------------

def test_of_nothing_that_trains_the_sparsity_is_zero():
    rep = sparsity_report(net(), frozen=['0', '2.0'])
    assert (rep.params, rep.zeros, rep.sparsity) == (0, 0, 0)
    assert str(rep).split('\n')[-1] == 'Overall              all             0          0              0.00%'

@pytest.mark.parametrize('args,message', [
    ((nn.Conv1d,), r"No Conv1d with a weight in this Sequential; it has \{'Conv2d': 2, 'Linear': 1\}"),
    (((nn.Conv1d, nn.Conv3d),), 'No Conv1d or Conv3d with a weight'), ((nn.ReLU,), 'No ReLU with a weight'),
    ((nn.Conv2d, ['nope']), 'No Conv2d with a weight')])
def test_no_such_layer_is_an_error_that_says_what_there_is(args, message):
    with pytest.raises(ValueError, match=message): sparsity_report(net(), *args)

def test_a_model_without_weights_says_so():
    with pytest.raises(ValueError, match='No Conv2d with a weight in this ReLU; it has no layer with a weight'): sparsity_report(nn.ReLU())

@pytest.mark.parametrize('thing,field', [(Row('a', 1, 'Linear', 4, 2), 'zeros'), (Report(()), 'rows')])
def test_a_report_is_frozen(thing, field):
    with pytest.raises(FrozenInstanceError): setattr(thing, field, 0)

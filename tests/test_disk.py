"""DISK: every bit of every dtype comes back, the zeros take a bit each, and what can't be saved or loaded says so."""
import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from fasterai_sched import SparsifyCallback, Sparsifier, load_sparse, save_sparse, sparsity_report
from fasterai_sched.disk import FORMAT, n_bytes

DTYPES = sorted({d for d in vars(torch).values() if isinstance(d, torch.dtype) and not any(w in str(d) for w in ('qint', 'quint', 'bits', 'float4', 'int1', 'int2', 'int3', 'int4', 'int5', 'int6', 'int7'))} | {
    torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64}, key=str)

def raw(t):
    t = t.resolve_conj()
    return bytes(t.contiguous().flatten().view(torch.uint8).numpy()) if not t.is_complex() else raw(torch.view_as_real(t))
def of_bytes(data, dtype):
    "A tensor of this dtype with these bits"
    n = len(data)//dtype.itemsize
    return torch.tensor(list(data[:n*dtype.itemsize]), dtype=torch.uint8).view(dtype) if n else torch.empty(0, dtype=dtype)
def same(a, b): return list(a) == list(b) and all(a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and raw(a[k]) == raw(b[k]) for k in a)

def test_there_are_dtypes(): assert len(DTYPES) > 15 and torch.bfloat16 in DTYPES and torch.complex64 in DTYPES

@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_every_bit_of_every_dtype_comes_back(dtype, tmp_path):
    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.sampled_from([0]*12 + [1, 127, 128, 255]), max_size=300).map(bytes)) # zeros, NaN, infinities, denormals, zeros with a sign
    def holds(data):
        t = of_bytes(data, torch.uint8 if dtype == torch.bool else dtype)
        state = {'t':t if dtype != torch.bool else t > 0, 'kept':of_bytes(bytes([1]*dtype.itemsize*6), dtype) if dtype != torch.bool else torch.ones(6).bool()}
        save_sparse(state, tmp_path/'t')
        assert same(load_sparse(tmp_path/'t'), state)
    holds()

@pytest.mark.parametrize('shape', [(), (0,), (3, 0, 2), (1,), (9,), (4, 3, 3, 3)])
def test_of_any_shape(shape, tmp_path):
    state = {'zeros':torch.zeros(shape), 'ones':torch.ones(shape)}
    save_sparse(state, tmp_path/'t')
    assert same(load_sparse(tmp_path/'t'), state)

def test_views_and_what_is_not_contiguous_come_back(tmp_path):
    x = torch.arange(24.).view(2, 3, 4, 1)
    state = {'whole':x, 'part':x[1], 'turned':x.transpose(0, 2), 'last':x.contiguous(memory_format=torch.channels_last), 'every other':x[..., ::2, :], 'conjugate':torch.complex(x, x).conj(), 'minus':torch.complex(x, x).conj().imag}
    save_sparse(state, tmp_path/'t')
    assert same(load_sparse(tmp_path/'t'), state)

def net(sparsity=90):
    torch.manual_seed(0)
    m = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3), nn.Linear(64, 10))
    if sparsity: Sparsifier(m).sparsify_model(sparsity)
    return m

@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_at_90_percent_a_file_is_at_most_a_fifth(dtype, tmp_path):
    m = nn.Sequential(nn.Conv2d(64, 256, 3), nn.Conv2d(256, 256, 3)).to(dtype)
    Sparsifier(m).sparsify_model(90)
    size = save_sparse(m, tmp_path/'m')
    assert size == (tmp_path/'m').stat().st_size <= .2*n_bytes(m)[0]
    assert n_bytes(m)[1] <= size <= n_bytes(m)[1] + 1000 # the header

def test_what_readme_says_of_resnet18s_file(tmp_path):
    from torchvision.models import resnet18
    m = resnet18()
    Sparsifier(m).sparsify_model(90)
    share = lambda m: round(100*save_sparse(m, tmp_path/'m')/n_bytes(m)[0])
    readme = (Path(__file__).parents[1]/'README.md').read_text(encoding='utf-8')
    assert f"of ResNet-18's, whose last layer stays dense, {share(m)}% in single precision, and {share(m.half())}% in half" in readme

def test_a_model_comes_back_with_buffers_zeros_and_mode(tmp_path):
    m,other = net(),net(0)
    other.eval()
    m[1].running_mean += 1
    save_sparse(m, tmp_path/'m.safetensors')
    assert load_sparse(tmp_path/'m.safetensors', other) is other and not other.training
    assert same(other.state_dict(), m.state_dict()) and sparsity_report(other).zeros == sparsity_report(m).zeros == 34_732

def test_a_dense_model_is_not_larger_than_it_is(tmp_path):
    m = net(0)
    assert save_sparse(m, tmp_path/'m') <= n_bytes(m)[1] + 2500 and n_bytes(m)[1] <= n_bytes(m)[0] # but for the zeros of a batch norm

def test_tied_weights_are_stored_once(tmp_path):
    def tied():
        m = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False))
        m[1].weight = m[0].weight
        return m
    m = tied()
    assert save_sparse(m, tmp_path/'m') < 41_000 and n_bytes(m) == (40_000, 40_000)
    assert same(load_sparse(tmp_path/'m', tied()).state_dict(), m.state_dict())

def test_zeros_with_a_sign_keep_it_and_cost_a_bit_more(tmp_path):
    t = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    keep = t.abs() > 1.6
    plain,signed = save_sparse({'t':torch.where(keep, t, 0)}, tmp_path/'p'),save_sparse({'t':t*keep}, tmp_path/'s')
    assert (t*keep)[~keep].signbit().any() and same(load_sparse(tmp_path/'s'), {'t':t*keep})
    assert 0 < signed - plain <= math.ceil((~keep).sum()/8) + 100

def test_the_file_is_safetensors_that_others_can_read(tmp_path):
    from safetensors.torch import load_file
    save_sparse({'w':torch.tensor([0.]*30 + [5, 6]), 'b':torch.ones(3)}, tmp_path/'t')
    parts = load_file(tmp_path/'t')
    assert parts['w'].tolist() == [5, 6] and parts['b'].tolist() == [1, 1, 1] and parts['w|mask'].tolist() == [0, 0, 0, 3]

def test_what_is_loaded_is_held_sparse(tmp_path):
    from helpers import tiny_learner
    learn = tiny_learner()
    learn.fit(1, cbs=SparsifyCallback(80, schedule='one_shot', verbose=False))
    save_sparse(learn.model, tmp_path/'m')
    zeros = sparsity_report(learn.model).zeros
    again = tiny_learner()
    load_sparse(tmp_path/'m', again.model)
    again.fit(1, cbs=SparsifyCallback(keep_zeros=True, verbose=False))
    assert sparsity_report(again.model).zeros == zeros > 0

# -- what goes wrong -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('value,message', [
    (torch.eye(3).to_sparse(), "'odd' in the model's state_dict is of layout torch.sparse_coo"), (3, 'of type int'), (torch.empty(2, device='meta'), 'on the meta device'),
    (torch.quantize_per_tensor(torch.ones(2), .1, 0, torch.qint8), 'quantized'), (nn.UninitializedParameter(), 'not initialized')])
def test_what_is_no_ordinary_tensor_is_refused_by_name_and_not_counted(value, message, tmp_path):
    with pytest.raises(ValueError, match=message): save_sparse({'odd':value}, tmp_path/'t')
    assert not list(tmp_path.iterdir()) and n_bytes({'odd':value}) == (0, 0)

def test_names_that_clash_are_refused(tmp_path):
    for name in ('w|mask', 'w|negative', '__metadata__'):
        with pytest.raises(ValueError, match='has a name that the file needs for itself'): save_sparse({'w':torch.randn(4), name:torch.ones(1)}, tmp_path/'t')

def test_a_file_that_is_there_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    import safetensors.torch
    save_sparse({'w':torch.ones(3)}, tmp_path/'t')
    def full(tensors, path, meta):
        path.write_bytes(b'half')
        raise OSError('No space left on device')
    monkeypatch.setattr(safetensors.torch, 'save_file', full)
    with pytest.raises(OSError, match='No space'): save_sparse({'w':torch.zeros(3)}, tmp_path/'t')
    assert [p.name for p in tmp_path.iterdir()] == ['t'] and load_sparse(tmp_path/'t')['w'].tolist() == [1, 1, 1]

def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file
    (tmp_path/'text').write_text('hello, this is no such file')
    save_file({'w':torch.ones(3)}, tmp_path/'plain')
    with pytest.raises(ValueError, match='is not a safetensors file'): load_sparse(tmp_path/'text')
    with pytest.raises(ValueError, match="was not written by save_sparse: its format is 'that of plain safetensors'"): load_sparse(tmp_path/'plain')
    with pytest.raises(FileNotFoundError): load_sparse(tmp_path/'nowhere')

@pytest.mark.parametrize('about,tensors', [
    ({'w':dict(dtype='float32', shape=[3])}, {}), ({'w':dict(dtype='load', shape=[2])}, {}), ({'v':dict(dtype='float32', shape=[2])}, {}), ('nope', {}), ({'w':dict(dtype='float32', shape=[2], same='z')}, {}),
    ({'w':dict(dtype='float32', shape=[-1])}, {}), ({'w':dict(dtype='float32', shape=2)}, {}), ({'w':dict(dtype='int32', shape=[2])}, {}), ({'w':dict(dtype='float64', shape=[1])}, {}), ({}, {}),
    ({'w':dict(dtype='float32', shape=[2])}, {'w|negative':torch.zeros(1, dtype=torch.uint8)}), ({'w':dict(dtype='float32', shape=[2]), 'v':dict(dtype='float32', shape=[1], same='w')}, {}),
    ({'w':dict(dtype='float32', shape=[100_000_000])}, {'w|mask':torch.zeros(1, dtype=torch.uint8)}), ({'w':dict(dtype='float32', shape=[4])}, {'w|mask':torch.full((1,), 0b11000001, dtype=torch.uint8)}),
    ({'w':dict(dtype='float32', shape=[20])}, {'w|mask':torch.zeros(1, dtype=torch.uint8)}), ({'w':dict(dtype='float32', shape=[8])}, {'w|mask':torch.full((1,), 255, dtype=torch.uint8)})])
def test_a_damaged_file_is_refused(about, tensors, tmp_path):
    from safetensors.torch import save_file
    save_file({'w':torch.ones(2), **tensors}, tmp_path/'t', {'format':'pt', 'sparse':FORMAT, 'tensors':about if isinstance(about, str) else json.dumps(about), 'versions':'{}'})
    with pytest.raises(ValueError, match='is damaged: its parts'): load_sparse(tmp_path/'t')

@pytest.mark.parametrize('bit', range(8))
def test_a_bit_that_flips_is_found_wherever_it_matters(bit, tmp_path):
    state,missed = {'w':torch.eye(40), 'half':torch.randn(30).half(), 'n':torch.tensor(7), 'none':torch.zeros(0, 3)},0
    save_sparse(state, tmp_path/'t')
    whole = (tmp_path/'t').read_bytes()
    for i in range(bit, len(whole), 3):
        (tmp_path/'t').write_bytes(whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1:])
        try: assert same(load_sparse(tmp_path/'t'), state)
        except ValueError: continue
        missed += 1
    assert missed <= 10 # in the words "format":"pt", which nobody reads

def test_what_is_there_and_no_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    for path in (tmp_path/'pipe', tmp_path):
        with pytest.raises(ValueError, match='is there, and no file that could be replaced'): save_sparse(net(), path)
    assert (tmp_path/'pipe').is_fifo()

@pytest.mark.parametrize('mask,mode', [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_a_new_file_is_for_whom_other_new_files_are(mask, mode, tmp_path):
    was = os.umask(mask)
    try: save_sparse(net(), tmp_path/'new')
    finally: os.umask(was)
    assert (tmp_path/'new').stat().st_mode & 0o777 == mode
    save_sparse(net(), tmp_path/'new')
    assert (tmp_path/'new').stat().st_mode & 0o777 == mode

def test_nothing_is_loaded_into_a_state_dict(tmp_path):
    save_sparse(net(), tmp_path/'m')
    with pytest.raises(ValueError, match='model=OrderedDict must be an nn.Module to load into, or None'): load_sparse(tmp_path/'m', net().state_dict())

def test_a_file_cut_short_is_refused(tmp_path):
    save_sparse(net(), tmp_path/'t')
    (tmp_path/'t').write_bytes((tmp_path/'t').read_bytes()[:-10])
    with pytest.raises(ValueError, match='is not a safetensors file'): load_sparse(tmp_path/'t')

def test_a_folder_that_is_not_there_is_named_before_anything_is_done(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder '.*nowhere'"): save_sparse(net(), tmp_path/'nowhere'/'m')

def test_conjugates_and_negatives_are_not_taken_for_what_they_are_views_of(tmp_path):
    c = torch.randn(50, dtype=torch.complex64)
    state = {'a':c, 'b':c.conj(), 'c':c.imag, 'd':c.conj().imag}
    save_sparse(state, tmp_path/'t')
    assert all(torch.equal(load_sparse(tmp_path/'t')[k], v) for k,v in state.items()) and n_bytes(state)[0] == 1200

def test_modules_that_ask_for_their_version_get_it(tmp_path):
    from torchvision.models import mnasnet0_5
    save_sparse(m := mnasnet0_5(), tmp_path/'m')
    assert same(load_sparse(tmp_path/'m', mnasnet0_5()).state_dict(), m.state_dict())

def test_a_device_by_default_does_not_matter(tmp_path):
    save_sparse(net(), tmp_path/'m')
    with torch.device('meta'): state = load_sparse(tmp_path/'m')
    assert same(state, net().state_dict())

def test_a_model_on_meta_is_refused_and_a_lazy_one_is_filled(tmp_path):
    save_sparse(nn.Linear(3, 4), tmp_path/'m')
    with pytest.raises(RuntimeError, match="'weight' of the model is on the meta device"): load_sparse(tmp_path/'m', nn.Linear(3, 4, device='meta'))
    assert load_sparse(tmp_path/'m', nn.LazyLinear(4)).weight.shape == (4, 3)

def test_many_may_save_to_one_path_at_once(tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    model = net()
    with ThreadPoolExecutor(4) as ex: list(ex.map(lambda i: save_sparse(model, tmp_path/'m'), range(24)))
    assert same(load_sparse(tmp_path/'m'), model.state_dict()) and [p.name for p in tmp_path.iterdir()] == ['m']

def test_a_link_stays_a_link_and_a_file_keeps_its_mode(tmp_path):
    (tmp_path/'real').touch(0o640)
    (tmp_path/'link').symlink_to(tmp_path/'real')
    save_sparse(net(), tmp_path/'link')
    assert (tmp_path/'link').is_symlink() and (tmp_path/'real').stat().st_mode & 0o777 == 0o640 and same(load_sparse(tmp_path/'real'), net().state_dict())

def test_home_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    save_sparse(net(), '~/m')
    assert (tmp_path/'m').exists() and same(load_sparse('~/m'), net().state_dict())

@pytest.mark.parametrize('f', [lambda m, p: save_sparse(m, p), lambda m, p: load_sparse(save_sparse(net(), p) and p, m)])
def test_what_is_no_model_is_refused(f, tmp_path):
    from helpers import tiny_learner
    with pytest.raises(ValueError, match='model=Learner must be an nn.Module, such as learn.model'): f(tiny_learner(), tmp_path/'m')

def test_wrapped_models_are_saved_and_loaded_without_their_wrapping(tmp_path):
    save_sparse(torch.compile(net()), tmp_path/'m')
    assert list(load_sparse(tmp_path/'m')) == list(net().state_dict())
    other = nn.DataParallel(net(0))
    assert load_sparse(tmp_path/'m', other) is other and same(other.module.state_dict(), net().state_dict())
    assert n_bytes(nn.DataParallel(net())) == n_bytes(net())

def test_a_model_that_does_not_fit_is_left_as_it_was(tmp_path):
    save_sparse(net(), tmp_path/'m')
    other = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 32, 3), nn.Identity(), nn.Linear(2, 2))
    before = {k:v.clone() for k,v in other.state_dict().items()}
    with pytest.raises(RuntimeError, match="does not fit this Sequential: '4.weight' is missing in the file; '4.bias' is missing in the file; '3.weight' is not in the model; .*'2.weight' has shape \\(64, 64, 3, 3\\) in the file and \\(32"):
        load_sparse(tmp_path/'m', other)
    assert same(other.state_dict(), before)

def test_without_safetensors_it_says_what_to_install(monkeypatch, tmp_path):
    import sys
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(ImportError, match=r"pip install 'fasterai_sched\[disk\]'"): save_sparse(net(), tmp_path/'m')
    assert sparsity_report(net()).sizes # the sizes need no file

def test_the_order_of_arguments_is_told():
    for call in (lambda: save_sparse('x', nn.Linear(1, 1)), lambda: load_sparse(nn.Linear(1, 1), 'x')):
        with pytest.raises(ValueError, match=r'path=Linear\(...\) is no path: save_sparse\(model, path\), load_sparse\(path, model\)'): call()

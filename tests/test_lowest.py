"""The k lowest: those of a sort, for every kind of number, on every path there is."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor

import fasterai_sched.lowest as module
from fasterai_sched.lowest import Part, _anywhere, _on_cpu, lowest

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KINDS = {'random':torch.randn, 'tied':lambda n: torch.randn(n).round(), 'few values':lambda n: torch.randint(-1, 2, (n,)).float(), 'constant':lambda n: torch.full((n,), -.1), 'zero':torch.zeros,
         'denormal':lambda n: torch.randn(n)*1e-40, 'infinite':lambda n: torch.where(torch.rand(n) < .3, torch.randn(n)*inf, torch.randn(n)), 'ascending':lambda n: torch.arange(n).float(), 'descending':lambda n: -torch.arange(n).float(),
         'wide':lambda n: torch.randn(n).exp().exp().clamp_max(1e30), 'mixed zeros':lambda n: torch.where(torch.rand(n) < .5, torch.randn(n).relu(), torch.tensor(-0.)), 'periodic':lambda n: torch.arange(n) % 9 + .5}
FINDERS = {'cpu':_on_cpu, 'anywhere':_anywhere}

def brute(parts, k):
    "By a stable sort of all that lives, in float64"
    scores = torch.cat([p.scores.double().abs() if p.magnitude else p.scores.double() for p in parts])
    live = torch.cat([torch.ones(p.n, dtype=torch.bool) if p.keep is None else p.keep for p in parts])
    at = live.nonzero().flatten()
    live = live.clone()
    live[at[(scores[at] + 0.).argsort(stable=True)[:k]]] = False
    return list(live.split([p.n for p in parts]))

@pytest.fixture(params=['whole', 'chunks'])
def size(request, monkeypatch):
    "Small chunks, so that small tensors have many, and a sample tells where to look"
    if request.param == 'chunks': monkeypatch.setattr(module, 'CHUNK', 64)
    return request.param

def check(find, parts, k, expected=None):
    expected = brute(parts, k) if expected is None else expected
    before = [p.scores.clone() for p in parts]
    out = find(parts, k)
    for p,r,e,b in zip(parts, out, expected, before):
        was = p.n if p.alive is None else p.alive
        assert torch.equal(r.keep, e) and r.n == was - int(e.sum())
        if r.places is not None: assert len(r.places) == r.n and not r.keep[r.places].any()
        if p.zero: assert torch.equal(p.scores, torch.where(e, b, 0)) or not torch.equal(b, b)
        else: assert torch.equal(p.scores, b)

@pytest.mark.parametrize('magnitude', [False, True])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('find', FINDERS)
def test_the_lowest_are_those_of_a_sort(find, dtype, kind, magnitude, size):
    if not magnitude and dtype in (torch.float16, torch.bfloat16): return # scores are float32 or float64
    if kind == 'denormal' and dtype is torch.float16: return
    for n in (1, 7, 4999):
        x = KINDS[kind](n).to(dtype)
        keep = torch.rand(n) < .6
        for k in sorted({0, 1, n//50, n//3, n - n//50, n - 1, n}): check(FINDERS[find] if k else lowest, [Part(x, None, magnitude)], k)
        alive = int(keep.sum())
        for k in sorted({0, min(1, alive), alive//50, alive//2, alive}): check(FINDERS[find] if k else lowest, [Part(x, keep, magnitude)], k)

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_what_goes_is_set_to_zero_where_asked(dtype, kind, size):
    for n in (1, 7, 4999):
        for share in (0, .004, .3, .99, 1):
            x = KINDS[kind](n).to(dtype)
            keep = torch.rand(n) < .6
            x[~keep] = 0
            k = int(share*int(keep.sum()))
            expected = brute([Part(x, keep, True)], k)
            check(lowest, [Part(x, keep.clone(), True, zero=True)], k, expected)
            y = KINDS[kind](n).to(dtype)
            check(lowest, [Part(y, None, True, zero=True)], int(share*n), brute([Part(y, None, True)], int(share*n)))

@pytest.mark.parametrize('find', FINDERS)
def test_parts_share_a_budget_in_their_order(find, size):
    for kind in KINDS:
        parts = [Part(KINDS[kind](n), None if n % 2 else torch.rand(n) < .7) for n in (1, 900, 33, 2001, 0, 500)]
        total = sum(p.alive for p in parts)
        for k in (1, total//100, total//2, total - 3, total): check(FINDERS[find], parts, k)

@given(data=st.data(), magnitude=st.booleans(), find=st.sampled_from(list(FINDERS)))
def test_any_numbers_any_masks(data, magnitude, find):
    rows = data.draw(st.lists(st.lists(st.floats(width=32, allow_nan=False), max_size=12), min_size=1, max_size=4))
    masks = [data.draw(st.none() | st.lists(st.booleans(), min_size=len(r), max_size=len(r))) for r in rows]
    parts = [Part(tensor(r, dtype=torch.float32), None if m is None else tensor(m, dtype=torch.bool), magnitude) for r,m in zip(rows, masks)]
    total = sum(p.alive for p in parts)
    if total: check(FINDERS[find], parts, data.draw(st.integers(1, total)))

@pytest.mark.parametrize('shape', [(8, 6, 3, 3), (40, 30, 5, 5)])
def test_memory_format_makes_no_difference(shape, size):
    x = torch.randn(shape).round(decimals=1)
    last = x.contiguous(memory_format=torch.channels_last)
    keep = torch.rand(shape) < .5
    for k in (5, x.numel()//5): assert torch.equal(lowest([Part(x, keep, True)], k)[0].keep, lowest([Part(last, keep.contiguous(memory_format=torch.channels_last), True)], k)[0].keep)

@pytest.mark.parametrize('find', FINDERS)
def test_large_layers_of_real_sizes(find):
    x = torch.randn(300_000)*.02
    keep = x.abs() > .01
    for k in (40, 20_000, 150_000): check(FINDERS[find], [Part(x, keep, True), Part(x[:1000], None, True)], k)

def test_a_sample_that_misleads_costs_time_and_nothing_else(monkeypatch):
    class Liar(np.ndarray): pass
    monkeypatch.setattr(module._Chunks, 'sample', lambda self, step: np.full(500, 1e9, np.float32) if not self.magnitude else np.full(500, 5, np.int32))
    x = torch.randn(100_000)
    for m in (False, True): check(_on_cpu, [Part(x, None, m)], 30_000)

def test_where_few_go_their_places_are_told():
    x = torch.randn(200_000)
    (r,) = lowest([Part(x, None, True)], 300)
    assert sorted(r.places.tolist()) == (~r.keep).nonzero().flatten().tolist()
    assert lowest([Part(x, None, True)], 150_000)[0].places is None

"""DISK: what the zeros are worth in a file. Of a tensor with many zeros the values that are none, and a bit for each place."""

from __future__ import annotations
from collections import OrderedDict
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ['save_sparse', 'load_sparse', 'n_bytes']

FORMAT = 'fasterai_sched.sparse/1'
# stored as they are; of any other dtype the bits are
_NATURAL = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
# whose sign bit alone is another zero (in the fnuz kinds of 8 bits it is NaN)
_SIGNED = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
_INTS = {1:torch.int8, 2:torch.int16, 4:torch.int32, 8:torch.int64}

def _safetensors():
    try: import safetensors.torch
    except ImportError as e: raise ImportError("save_sparse and load_sparse need safetensors: pip install 'fasterai_sched[disk]'") from e
    return safetensors

def _path(path):
    if not isinstance(path, (str, os.PathLike)): raise ValueError(f"path={type(path).__name__}(...) is no path: save_sparse(model, path), load_sparse(path, model)")
    return Path(path).expanduser()

def _real(t):
    "Complex numbers as two, and nothing left to be done lazily"
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t.resolve_neg()

def _flat(t):
    "All of a tensor in one row, on the CPU"
    return _real(t.detach().cpu()).contiguous().flatten()

def _bits(flat): return flat.view(_INTS[flat.itemsize])

def _pack(mask): return torch.from_numpy(np.packbits(mask.numpy()))
def _unpack(packed, n): return torch.from_numpy(np.unpackbits(packed.numpy(), count=n).view(bool))

def _zeros(flat):
    "Which elements are 0, and which of those have a sign; None: none has"
    bits = _bits(flat)
    zero = bits == 0
    negative = bits == torch.iinfo(bits.dtype).min if flat.dtype in _SIGNED else None
    if negative is None or not negative.any(): return zero,None
    zero |= negative
    return zero,negative[zero]

def _n_packed(n, n_zero, itemsize, signs): return (n - n_zero)*itemsize + -(-n//8) + (-(-n_zero//8) if signs else 0)

def _parts(t):
    "What is stored of a tensor: name of a part -> tensor; the values alone where packing would not pay"
    flat = _flat(t)
    (zero,signs),bits = _zeros(flat),_bits(flat) # only bits are moved: a copy of floats may give another NaN
    packed = _n_packed(len(flat), int(zero.sum()), flat.itemsize, signs is not None) < flat.nbytes
    values = bits[~zero] if packed else bits
    values = values.view(flat.dtype if flat.dtype in _NATURAL else values.dtype)
    if not packed: return {'':values.view(t.shape) if t.dtype in _NATURAL else values}
    return {'':values, '|mask':_pack(~zero), **({} if signs is None else {'|negative':_pack(signs)})}

def _whole(parts, dtype, shape):
    "A tensor from its parts; ValueError where they can't be those of one of this dtype and shape"
    real = dtype.to_real() if dtype.is_complex else dtype
    n,values,mask,negative = int(np.prod(shape, dtype=object))*(2 if dtype.is_complex else 1),parts[''].flatten(),parts.get('|mask'),parts.get('|negative')
    if min(shape, default=0) < 0 or values.dtype != (real if real in _NATURAL else _INTS[real.itemsize]): raise ValueError(f'{values.dtype} and shape {shape}')
    bits = _bits(values)
    if mask is not None:
        _check_packed(mask, n)
        keep = _unpack(mask, n)
        zeros,bits = n - len(bits),torch.zeros(n, dtype=bits.dtype, device='cpu')
        if int(keep.sum()) != len(values): raise ValueError(f'{len(values)} values for {int(keep.sum())} places')
        bits[keep] = _bits(values)
        if negative is not None:
            _check_packed(negative, zeros)
            if real not in _SIGNED: raise ValueError(f'signs of {dtype}')
            bits[~keep] = _unpack(negative, zeros).to(bits.dtype)*torch.iinfo(bits.dtype).min
    elif negative is not None or len(bits) != n: raise ValueError(f'{len(bits)} values for shape {shape}')
    return bits.view(dtype).view(shape)

def _check_packed(packed, n):
    if packed.dtype != torch.uint8 or packed.numel() != -(-n//8) or n%8 and int(packed[-1]) & (255 >> n%8): raise ValueError(f'{packed.numel()} bytes of bits for {n} places')

def _checksum(tensors, *texts):
    "Of what the file holds and says: safetensors has none of its own"
    crc = 0
    for part in [*texts, *(x for n in sorted(tensors) for x in (n, tensors[n]))]: crc = crc32(part.encode() if isinstance(part, str) else part.reshape(-1).view(torch.uint8).numpy(), crc)
    return f'{crc:08x}'

def _odd(v):
    "What is not ordinary about what a state_dict holds, in words; None: nothing"
    if not isinstance(v, Tensor):     return f'of type {type(v).__name__}'
    if is_lazy(v):       return 'not initialized yet'
    if v.is_meta:                     return 'on the meta device, without values'
    if v.is_quantized:                return 'quantized'
    if v.layout != torch.strided:     return f'of layout {v.layout}'
    if v.numel() and not v.data_ptr(): return f'a {type(v).__name__} without memory of its own'

def _place(t): return t.data_ptr(), t.dtype, tuple(t.shape), t.stride(), t.is_conj(), t.is_neg()

def _bare(model):
    "A model without what torch.compile and DistributedDataParallel wrap around it, or a `state_dict`; ValueError for anything else"
    while isinstance(model, nn.Module):
        inner = model.module if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else getattr(model, '_orig_mod', None)
        if inner is None: return model
        model = inner
    if not isinstance(model, dict): raise ValueError(f"model={type(model).__name__} must be an nn.Module, such as learn.model, or a state_dict")
    return model

def _state(model): return model.state_dict() if isinstance(model := _bare(model), nn.Module) else model

def save_sparse(
    model, # The model, or its `state_dict`; nothing of it is changed
    path   # File to write, such as 'model.safetensors'; one that is there is replaced when the new one is whole
) -> int:  # Its size in bytes
    """Save a model's `state_dict` without its zeros: of each tensor the values that are not 0 and a bit for each place, or all of it where that is less. A safetensors file (`pip install 'fasterai_sched[disk]'`), without pickle.
    `load_sparse` gives back every bit, of any dtype. Raises ValueError for what is no ordinary tensor (sparse layouts, quantized, extra state)"""
    st,tensors,about,seen,memory = _safetensors(),{},{},{},set()
    path = _path(path).resolve()
    if path.exists() and not path.is_file(): raise ValueError(f"path={str(path)!r} is there, and no file that could be replaced")
    if not path.parent.is_dir(): raise FileNotFoundError(f"path={str(path)!r}: there is no folder {str(path.parent)!r}")
    state = _state(model)
    for k,v in state.items():
        if k.endswith(('|mask', '|negative')) or k == '__metadata__': raise ValueError(f"{k!r} in the model's state_dict has a name that the file needs for itself: rename it")
        if odd := _odd(v): raise ValueError(f"{k!r} in the model's state_dict is {odd}: only ordinary tensors are saved")
        same = seen.setdefault(_place(v), k) if v.numel() else k # tied weights are stored once
        about[k] = dict(dtype=str(v.dtype).removeprefix('torch.'), shape=list(v.shape), **({'same':same} if same != k else {}))
        if same != k: continue
        for part,t in _parts(v).items():
            at = t.untyped_storage().data_ptr()
            tensors[k + part] = t.clone() if at in memory else t # one may be a view into another
            memory.add(at)
    versions = {k:m['version'] for k,m in getattr(state, '_metadata', {}).items() if 'version' in m}
    with TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}.') as folder: # its own, as others may save to this path too
        half = Path(folder)/path.name
        half.touch() # as it would be made by anybody: safetensors would give it to its owner alone
        mode = (path if path.exists() else half).stat().st_mode
        said = dict(tensors=json.dumps(about), versions=json.dumps(versions))
        st.torch.save_file(tensors, half, {'format':'pt', 'sparse':FORMAT, **said, 'checksum':_checksum(tensors, *said.values())})
        half.chmod(mode)
        os.replace(half, path)
    return path.stat().st_size

def load_sparse(
    path,                # File that `save_sparse` wrote
    model:nn.Module=None # The model to load it into, on whatever device it is; None: into none
):                       # The model; without one, the `state_dict`, on the CPU
    "Load what `save_sparse` has saved, to the bit. Raises ValueError for any other file and for a damaged one, and RuntimeError, as `load_state_dict` does, where the model has other names or shapes; the model is left as it was then"
    path,st = _path(path),_safetensors()
    try:
        with st.safe_open(path, 'pt') as f:
            meta = f.metadata() or {}
            stored = {n:f.get_tensor(n) for n in f.keys()} if meta.get('sparse') == FORMAT else {}
    except st.SafetensorError as e: raise ValueError(f"path={str(path)!r} is not a safetensors file: {e}") from e
    if meta.get('sparse') != FORMAT:
        raise ValueError(f"path={str(path)!r} was not written by save_sparse: its format is {meta.get('sparse', 'that of plain safetensors')!r}, and not {FORMAT!r}")
    try:
        state = _rebuilt(stored, json.loads(meta['tensors']), json.loads(meta['versions']))
        if (found := _checksum(stored, meta['tensors'], meta['versions'])) != meta['checksum']: raise ValueError(f"the checksum is {found}, and {meta['checksum']} was saved")
    except Exception as e: raise ValueError(f"path={str(path)!r} is damaged: its parts don't make up what its header says: {type(e).__name__}: {e}") from e
    if model is None: return state
    if isinstance(model, dict): raise ValueError(f"model={type(model).__name__} must be an nn.Module to load into, or None: the state_dict is returned then")
    _check_fits(bare := _bare(model), state, path)
    bare.load_state_dict(state)
    return model

def _rebuilt(stored, about, versions):
    "The `state_dict` from a file's tensors and what its header says of them"
    state,used = OrderedDict(),set()
    for k,a in about.items():
        dtype = getattr(torch, a['dtype'])
        if not isinstance(dtype, torch.dtype): raise ValueError(f"{a['dtype']!r} is no dtype")
        if 'same' in a: state[k] = state[a['same']]
        else:
            parts = {p:stored[k + p] for p in ('', '|mask', '|negative') if k + p in stored}
            state[k] = _whole(parts, dtype, a['shape'])
            used |= {k + p for p in parts}
        if state[k].dtype != dtype or list(state[k].shape) != a['shape']: raise ValueError(f"{k!r} is no {a['dtype']} of shape {a['shape']}")
    if used != set(stored): raise ValueError(f'nothing is said of {sorted(set(stored) - used)}')
    state._metadata = OrderedDict((k, dict(version=v)) for k,v in versions.items()) # what some modules ask for when they load
    return state

def _check_fits(model, state, path):
    "RuntimeError before anything is copied: `load_state_dict` copies what fits and then complains"
    own = _state(model)
    wrong = [f'{k!r} is missing in the file' for k in own if k not in state] + [f'{k!r} is not in the model' for k in state if k not in own]
    both = [k for k in state if k in own and not is_lazy(own[k])]
    wrong += [f'{k!r} has shape {tuple(state[k].shape)} in the file and {tuple(own[k].shape)} in the model' for k in both if own[k].shape != state[k].shape]
    wrong += [f'{k!r} of the model is on the meta device, which holds no values' for k in both if own[k].is_meta]
    if wrong: raise RuntimeError(f"path={str(path)!r} does not fit this {type(model).__name__}: {'; '.join(wrong[:8])}{f' and {len(wrong) - 8} more' if len(wrong) > 8 else ''}")

@torch.no_grad()
def n_bytes(
    model # The model, or its `state_dict`
) -> tuple: # Bytes of its tensors as they are, and as `save_sparse` stores them (a header comes to that, about 200 bytes a tensor)
    "What a model takes on disk, dense and without its zeros"
    dense,sparse,seen = 0,0,set()
    for v in _state(model).values():
        if _odd(v) or _place(v) in seen: continue
        seen.add(_place(v))
        x = _real(v)
        if x.itemsize == 1 or not x.is_floating_point(): x = _bits(x) # some dtypes count nothing
        # that a zero may have a sign, and a bit more then, would take another look at everything
        dense,sparse = dense + v.nbytes,sparse + min(v.nbytes, _n_packed(x.numel(), x.numel() - int(x.count_nonzero()), x.itemsize, False))
    return dense,sparse

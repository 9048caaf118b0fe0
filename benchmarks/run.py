"""What a mask costs: fasterai_sched beside fasterai 0.4.1 and torch.nn.utils.prune, in one process and run.

    pip install -e '.[bench]'
    python benchmarks/run.py                  every part, ten minutes: a table, benchmarks/run.json and benchmarks/run.png
    python benchmarks/run.py passes scaling   only these; the others keep what run.json has of them
    python benchmarks/run.py --table          the table of what is there, as Markdown

Times are medians; what is compared is timed in turns. Nothing here is a test: a ratio may differ on another machine, and a busy one tells little.
"""

import argparse
import copy
import gc
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections import Counter
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import torch
from fastai.vision.all import Adam, Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, SGD, nn
from torch.nn.utils import prune
from torchvision import models
from fasterai_sched import Sparsifier, SparsifyCallback, agp
from fasterai_sched.masks import hold

here = Path(__file__).parent
MODELS = dict(resnet18=('ResNet-18', nn.Conv2d, 5), resnet50=('ResNet-50', nn.Conv2d, 3), vit_b_16=('ViT-B/16', nn.Linear, 3)) # layers to prune, repetitions

def ms(f, *args, **kwargs):
    "How long a call takes, in milliseconds"
    start = time.perf_counter()
    f(*args, **kwargs)
    return 1e3*(time.perf_counter() - start)

def weights_of(model, kind): return [m.weight for m in model.modules() if isinstance(m, kind)]
def percent(model, kind):
    ws = weights_of(model, kind)
    return 100*sum(int((w == 0).sum()) for w in ws)/sum(w.numel() for w in ws)

# -- one update of the masks -----------------------------------------------------------------------------------------------------

class Ours:
    "As the callback calls it in training"
    def __init__(self, model, context, kind): self.sp = Sparsifier(model, context=context, layer_type=kind)
    def to(self, sparsity): self.sp.sparsify_model(sparsity, clean=True)

class Fasterai:
    def __init__(self, model, context, kind):
        from fasterai.sparse.all import Sparsifier as Theirs, large_final
        self.sp = Theirs(model, 'weight', context, large_final, layer_type=kind)
    def to(self, sparsity): self.sp.sparsify_model(sparsity/100)

class Torch:
    "torch.nn.utils.prune, whose amounts are of what is left"
    def __init__(self, model, context, kind): self.ms,self.context,self.now,self.model = [m for m in model.modules() if isinstance(m, kind)],context,0,model
    def to(self, sparsity):
        amount,self.now = (sparsity - self.now)/(100 - self.now),sparsity
        if self.context == 'global': prune.global_unstructured([(m, 'weight') for m in self.ms], prune.L1Unstructured, amount=amount)
        else:
            for m in self.ms: prune.l1_unstructured(m, 'weight', amount=amount)

def updates():
    "To 90 %, from a mask at 80 % and from none"
    for name,(title,kind,n) in MODELS.items():
        torch.manual_seed(0)
        base = getattr(models, name)()
        for w in weights_of(base, kind): # the head of a ViT begins as zeros
            if not w.any(): nn.init.normal_(w, std=.02)
        for context in ('local', 'global'):
            for start in (80, 0):
                took = {}
                for _ in range(n):
                    for who in (Ours, Fasterai, Torch):
                        if who is Torch and len(took.get(who, ())) == 2: continue # it is slow, and the same each time
                        model = copy.deepcopy(base)
                        one = who(model, context, kind)
                        if start: one.to(start)
                        took.setdefault(who, []).append(ms(one.to, 90))
                        off = percent(model, kind) - 90
                        assert abs(off) < .1, (who, off) # they do the same, to what the others get wrong
                        del one,model
                        gc.collect()
                mid = {w.__name__:float(np.median(t)) for w,t in took.items()}
                yield dict(model=title, weights=sum(w.numel() for w in weights_of(base, kind)), context=context, start=start,
                           ours=mid['Ours'], fasterai=mid['Fasterai'], torch=mid['Torch'])

# -- one pass over all weights ---------------------------------------------------------------------------------------------------

def passes():
    "Of ResNet-18's Conv2d: what zeroes by a bool mask, beside what else there is"
    torch.manual_seed(0)
    model = models.resnet18()
    sp = Sparsifier(model)
    sp.sparsify_model(90)
    ws,keeps = [w.detach() for w in weights_of(model, nn.Conv2d)],list(sp.masks.values())
    floats = [k.float() for k in keeps]
    for w in weights_of(model, nn.Conv2d): w.grad = torch.randn_like(w)
    each = {'mask_grads': sp.mask_grads, 'apply_masks': sp.apply_masks,
            'hold': lambda: [hold(w, k) for w,k in zip(ws, keeps)],
            'mul_ by a bool mask': lambda: [w.mul_(k) for w,k in zip(ws, keeps)],
            'mul_ by a float mask': lambda: [w.mul_(k) for w,k in zip(ws, floats)],
            'clone': lambda: [w.clone().numel() for w in ws]}
    took = {k:[] for k in each}
    for _ in range(25):
        for k,f in each.items(): took[k].append(ms(f))
    return {k:float(np.median(t)) for k,t in took.items()}

# -- a fit -----------------------------------------------------------------------------------------------------------------------

def timed(cls, names, spent, what):
    "While it lasts, what these methods take goes to `spent[what]`; a call within another is the other's"
    depth = []
    def wrap(f):
        def inner(*args, **kwargs):
            depth.append(1)
            start = time.perf_counter()
            try: return f(*args, **kwargs)
            finally:
                depth.pop()
                if not depth: spent[what] += time.perf_counter() - start
        return inner
    own = {n:vars(cls).get(n) for n in names}
    for n in names: setattr(cls, n, wrap(getattr(cls, n)))
    return lambda: [delattr(cls, n) if f is None else setattr(cls, n, f) for n,f in own.items()]

class Noise:
    "Images of a batch over and over: what they show costs nothing"
    def __init__(self, n): self.n,self.x = n,torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    def __len__(self): return self.n
    def __getitem__(self, i): return self.x[i%64],i%10

def fit_with(cb, cb_types, sparsifier, pass_names, epochs=3, batches=92): # the batches of an epoch of the pets
    "ResNet-18, 64 px, batches of 64, Adam: seconds of training, of the callback, and of its passes"
    torch.manual_seed(0)
    dl = lambda n: DataLoader(Noise(n), bs=64, num_workers=0)
    learn = Learner(DataLoaders(dl(64*batches), dl(64)), models.resnet18(num_classes=10), loss_func=CrossEntropyLossFlat(), opt_func=Adam)
    spent = Counter()
    # not by a callback of ours: it may write to weights, for all the library knows
    undo = [timed(Learner, ['_do_epoch_train'], spent, 'training')] + [timed(t, ['__call__'], spent, 'inside') for t in cb_types] + [timed(sparsifier, pass_names, spent, 'passes')]
    with learn.no_bar(), learn.no_logging(), redirect_stdout(None): learn.fit(epochs, 1e-3, cbs=cb)
    for u in undo: u()
    return dict(steps=epochs*batches, training=spent['training'], inside=spent['inside'], passes=spent['passes'])

def fits():
    "agp to 90 %: what it takes beside a fit"
    from fasterai.core.schedule import agp as their_agp
    from fasterai.sparse.all import Sparsifier as TheirSparsifier, SparsifyCallback as Theirs, large_final
    from fasterai_sched.callback import _AfterAll, _BeforeAll, _BeforeClip
    mine,theirs = (SparsifyCallback, _AfterAll, _BeforeAll, _BeforeClip),(Theirs,)
    for every in (1, 10):
        cb = SparsifyCallback(90, schedule=agp, rewind_epoch=None, update_every=every, verbose=False)
        yield dict(who='ours', update_every=every, **fit_with(cb, mine, Sparsifier, ['mask_grads']))
    yield dict(who='fasterai', update_every=1, **fit_with(Theirs(.9, 'weight', 'local', large_final, their_agp), theirs, TheirSparsifier, ['_apply_masks'], 1, 50))

# -- memory ----------------------------------------------------------------------------------------------------------------------

def _status(key): return 1024*int(next(s for s in open('/proc/self/status') if s.startswith(key)).split()[1])

class Watch(Callback):
    "What of the process is in memory after a step"
    order = 100
    def after_batch(self): self.seen = _status('VmRSS')

def memory(n=2, width=6144): # tensors so large that what is freed goes back to the system
    "Bytes of the process for each selected weight, with nothing to rewind to: while it trains, at most in an update, and when the callback is gone"
    if not Path('/proc/self/clear_refs').exists(): return dict(note='needs Linux')
    def learner(width):
        dl = lambda: DataLoader([(torch.randn(width), 0)]*80, bs=2, num_workers=0)
        return Learner(DataLoaders(dl(), dl()), nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(n)]), loss_func=CrossEntropyLossFlat(), opt_func=SGD, cbs=(watch := Watch())),watch
    make = lambda: SparsifyCallback(90, layer_type=nn.Linear, rewind_epoch=None, verbose=False)
    learn,_ = learner(8)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=make()) # what is loaded and allocated once
    learn,watch = learner(width)
    model,numel = learn.model,n*width*width
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        before = watch.seen
        learn.fit(1, cbs=(cb := make()))
        training = watch.seen - before
    now = _status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5') # the peak is counted from here
    cb.sparsifier.sparsify_model(95, clean=True)
    peak = _status('VmHWM') - now
    for w in weights_of(model, nn.Linear): w.data.normal_()
    fresh = Sparsifier(model, layer_type=nn.Linear, context='global')
    now = _status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')
    fresh.sparsify_model(90)
    dense_peak = _status('VmHWM') - now - numel # its masks stay
    del cb,fresh
    gc.collect()
    return dict(weights=numel, training=training/numel, update=peak/numel, update_global_from_dense=dense_peak/numel, after=(_status('VmRSS') - before)/numel)

# -- how it grows ----------------------------------------------------------------------------------------------------------------

def update_of(model, n):
    "Of an update from 80 % to 90 %, and of a pass over the masks; the least of `n`"
    took,held = [],[]
    for _ in range(n):
        one = Ours(copy.deepcopy(model), 'local', nn.Linear)
        one.to(80)
        took.append(ms(one.to, 90))
        held.append(ms(one.sp.apply_masks))
        del one
        gc.collect()
    return min(took),min(held)

def scaling():
    "By weights of one layer, and by layers of 4,096 weights"
    out = dict(weights=[], layers=[])
    for e in np.arange(5, 8.01, .5):
        width = int(10**(e/2))
        update,held = update_of(nn.Sequential(nn.Linear(width, width, bias=False)), 15 if e < 7 else 3)
        out['weights'].append(dict(n=width*width, update=update, masking=held))
    for n in (10, 30, 100, 300, 1000, 2000):
        update,held = update_of(nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(n)]), 5)
        out['layers'].append(dict(n=n, update=update, masking=held))
    for rows in (out['weights'], out['layers']):
        for what in ('update', 'masking'): out.setdefault('slopes', []).append(float(np.polyfit(np.log([r['n'] for r in rows]), np.log([r[what] for r in rows]), 1)[0]))
    return out

# -- the import ------------------------------------------------------------------------------------------------------------------

def imports(n=5):
    "Seconds of `import fastai.vision.all`, and of ours after it"
    code = 'import time; a=time.perf_counter(); import fastai.vision.all; b=time.perf_counter(); import fasterai_sched; print(b - a, time.perf_counter() - b)'
    took = [list(map(float, subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True).stdout.split())) for _ in range(n)]
    return dict(zip(('fastai', 'ours'), np.median(took, 0).tolist()))

# -- what is told ----------------------------------------------------------------------------------------------------------------

def machine():
    cpu = next((s.split(':')[1].strip() for s in open('/proc/cpuinfo') if s.startswith('model name')), platform.machine()) if Path('/proc/cpuinfo').exists() else platform.machine()
    return dict(cpu=cpu, cores=os.cpu_count(), threads=torch.get_num_threads(), python=platform.python_version(),
                **{k:version(k) for k in ('torch', 'torchvision', 'fastai', 'numpy', 'fasterai', 'fasterai_sched')})

def table(r):
    "What was measured, as Markdown"
    m = r['machine']
    yield f"{m['cpu']}, {m['cores']} cores; Python {m['python']}, torch {m['torch']}, fastai {m['fastai']}, fasterai {m['fasterai']}"
    yield ''
    yield '| an update to 90 % | context | from | fasterai_sched | fasterai | torch.nn.utils.prune |'
    yield '|---|---|--:|--:|--:|--:|'
    for u in r['updates']:
        them = ' | '.join(f"{u[k]:,.0f} ms, {u[k]/u['ours']:.1f}x" for k in ('fasterai', 'torch'))
        yield f"| {u['model']}, {u['weights']/1e6:.1f} M weights | {u['context']} | {u['start']} % | {u['ours']:.0f} ms | {them} |"
    yield ''
    yield '| a fit with agp, ResNet-18 at 64 px | a step | the callback, beside its passes | its passes |'
    yield '|---|--:|--:|--:|'
    for f in r['fits']:
        bare = f['training'] - f['inside']
        who = f"fasterai_sched, `update_every={f['update_every']}`" if f['who'] == 'ours' else 'fasterai'
        yield f"| {who} | {1e3*bare/f['steps']:.0f} ms | {100*(f['inside'] - f['passes'])/bare:.2f} % | {100*f['passes']/bare:.2f} % |"
    p,mem,s,i = r['passes'],r['memory'],r['scaling']['slopes'],r['imports']
    bool_ = p['mul_ by a bool mask']
    yield ''
    yield '| | |'
    yield '|---|--:|'
    yield f"| a pass over ResNet-18's gradients, beside `mul_` by a bool mask ({bool_:.1f} ms) | {p['mask_grads']/bool_:.2f}x |"
    yield f"| memory while it trains, for each selected weight | {mem['training']:.2f} bytes |"
    yield f"| memory more in an update, at most; a global one, from dense | {max(mem['update'], 0):.2f} bytes; {max(mem['update_global_from_dense'], 0):.2f} bytes |"
    yield f"| memory left when the callback is gone | {max(mem['after'], 0):.2f} bytes |"
    yield f"| growth of an update: exponent of the number of weights, 10^5 to 10^8; of layers, 10 to 2,000 | {s[0]:.2f}; {s[2]:.2f} |"
    yield f"| `import fasterai_sched` beside `import fastai.vision.all` ({i['fastai']:.1f} s) | {100*i['ours']/i['fastai']:.1f} % |"

def draw(r, path):
    "Updates beside the peers', and how they grow"
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    fig,axs = plt.subplots(1, 3, figsize=(15, 4.2), layout='constrained')
    us = [u for u in r['updates'] if u['start']]
    at = np.arange(len(us))
    for j,(k,label) in enumerate(dict(ours='fasterai_sched', fasterai='fasterai', torch='torch.nn.utils.prune').items()): axs[0].bar(at + .27*(j - 1), [u[k] for u in us], .27, label=label)
    axs[0].set(yscale='log', ylabel='ms', title='An update from 80 % to 90 %')
    axs[0].set_xticks(at, [f"{u['model']}\n{u['context']}" for u in us], fontsize=8)
    axs[0].legend(fontsize=8)
    for ax,k,slopes in zip(axs[1:], ('weights', 'layers'), (r['scaling']['slopes'][:2], r['scaling']['slopes'][2:])):
        for what,slope in zip(('update', 'masking'), slopes): ax.plot([x['n'] for x in r['scaling'][k]], [x[what] for x in r['scaling'][k]], 'o-', label=f'{what}, slope {slope:.2f}')
        ax.set(xscale='log', yscale='log', xlabel=k if k == 'weights' else 'layers of 4,096 weights', ylabel='ms', title=f'By {k}')
        ax.grid(alpha=.3)
        ax.legend(fontsize=8)
    fig.savefig(path, dpi=90)

PARTS = dict(passes=passes, updates=lambda: list(updates()), fits=lambda: list(fits()), memory=memory, scaling=scaling, imports=imports)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('parts', nargs='*', help=f"any of {', '.join(PARTS)}; none given: all")
    p.add_argument('--out', type=Path, default=here/'run.json', help='where the figures go; a picture goes beside (%(default)s)')
    p.add_argument('--table', action='store_true', help='print the table, run nothing')
    p.add_argument('--only', action='store_true', help='print the figures of the parts as JSON, write nothing')
    a = p.parse_args()
    if unknown := set(a.parts) - PARTS.keys(): p.error(f"{', '.join(unknown)}: the parts are {', '.join(PARTS)}")
    if a.only: return print(json.dumps({k:PARTS[k]() for k in a.parts}))
    r = json.loads(a.out.read_text()) if a.out.exists() else {}
    if not a.table:
        for k in a.parts or PARTS:
            print(f'{k} ...', file=sys.stderr, flush=True)
            # each in a process of its own: what one leaves in memory is not the other's
            r[k] = json.loads(subprocess.run([sys.executable, __file__, '--only', k], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])[k]
        r['machine'] = machine()
        a.out.write_text(json.dumps(r, indent=1) + '\n')
        draw(r, a.out.with_suffix('.png'))
    print(*table(r), sep='\n')

if __name__ == '__main__': main()

"""What a schedule is worth at equal budget: Fashion-MNIST, ResNet-18 from scratch, dense and at 90 % and 98 %.

    python benchmarks/accuracy.py             every run that benchmarks/accuracy.json lacks, a minute or two each; stop it and start it again as you like
    python benchmarks/accuracy.py --table     the table of what is there, as Markdown

The images come from Debian's `dataset-fashion-mnist` (`--data` says where it, or another copy of the four IDX files, lies), 28 pixels
wide in a frame of 32. 4,096 to train on and 2,000 to test on, drawn once; three seeds of weights and of the batches' order, the same
for every schedule; `fit_one_cycle(10, 1e-3)`, batches of 128. Sparsity is counted in the weights after the fit, whatever was asked or printed.
`fasterai agp` is fasterai 0.4.1 (`pip install -e '.[bench]'`), the incumbent, told the same.
"""

import argparse
import gzip
import json
import warnings
from contextlib import redirect_stdout
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, accuracy, nn, set_seed
from torchvision.models import resnet18
from fasterai_sched import SparsifyCallback, agp, iterative, one_shot

here = Path(__file__).parent
OURS = dict(one_shot=one_shot, iterative=iterative, agp=agp)
SEEDS,TARGETS,CONTEXTS = (0, 1, 2),(90, 98),('local', 'global')

def idx(path):
    "An IDX file as an array: two zero bytes, the type, the number of dimensions, each as a big-endian int32, then the values"
    raw = gzip.open(path).read()
    n = raw[3]
    return np.frombuffer(raw, np.uint8, offset=4 + 4*n).reshape(np.frombuffer(raw, '>i4', n, 4))

def images(folder, kind, n, mean=.286, std=.353):
    "`n` of them, drawn without regard to the seed of a run, in three channels, and their labels"
    x,y = idx(folder/f'{kind}-images-idx3-ubyte.gz'),idx(folder/f'{kind}-labels-idx1-ubyte.gz')
    i = np.random.default_rng(0).permutation(len(x))[:n]
    x = np.pad(x[i], ((0, 0), (2, 2), (2, 2)))/255
    return torch.tensor((x - mean)/std, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1).contiguous(), torch.tensor(y[i], dtype=torch.long)

def loaders(folder):
    train,test = images(folder, 'train', 4096),images(folder, 't10k', 2000)
    dl = lambda d,**kw: DataLoader(list(zip(*d)), bs=128, num_workers=0, **kw)
    return lambda: DataLoaders(dl(train, shuffle=True), dl(test))

def theirs(target, context):
    from fasterai.core.schedule import agp as their_agp
    from fasterai.sparse.all import SparsifyCallback as Theirs, large_final
    return Theirs(target/100, 'weight', context, large_final, their_agp)

def callback(who, target, context):
    if who == 'dense': return None
    if who == 'fasterai agp': return theirs(target, context)
    return SparsifyCallback(target, context=context, schedule=OURS[who], rewind_epoch=None, verbose=False)

def wanted():
    "Seed by seed, so that what is there after any while can be compared"
    for seed in SEEDS:
        yield 'dense',0,'-',seed
        for target in TARGETS:
            for context in CONTEXTS:
                for who in (*OURS, 'fasterai agp'): yield who,target,context,seed

def run(dls, who, target, context, seed, epochs):
    set_seed(seed)
    learn = Learner(dls(), resnet18(num_classes=10), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(), redirect_stdout(None): learn.fit_one_cycle(epochs, 1e-3, cbs=callback(who, target, context))
    rec,ws = learn.recorder,[m.weight for m in learn.model.modules() if isinstance(m, nn.Conv2d)]
    n,zeros = sum(w.numel() for w in ws),sum(int((w == 0).sum()) for w in ws)
    return dict(who=who, target=target, context=context, seed=seed, accuracy=100*float(rec.values[-1][rec.metric_names.index('accuracy') - 1]),
                zeros=zeros, weights=n, sparsity=100*zeros/n)

def table(rows):
    "Mean and deviation over the seeds"
    yield '| schedule | target | context | accuracy | sparsity counted | seeds |'
    yield '|---|--:|---|--:|--:|--:|'
    groups = {}
    for r in rows: groups.setdefault((r['target'], r['context'], r['who']), []).append(r)
    for (target,context,who),rs in groups.items():
        acc,sp = [r['accuracy'] for r in rs],[r['sparsity'] for r in rs]
        dev = f' ± {np.std(acc, ddof=1):.2f}' if len(acc) > 1 else ''
        yield f"| {who} | {f'{target} %' if target else ''} | {context if target else ''} | {np.mean(acc):.2f} %{dev} | {np.mean(sp):.2f} % | {len(rs)} |"

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, default=Path('/usr/share/datasets/fashion-mnist'), help='folder of the four IDX files (%(default)s)')
    p.add_argument('--out', type=Path, default=here/'accuracy.json', help='what is there, and what is added to (%(default)s)')
    p.add_argument('--epochs', type=int, default=10, help='of each run (%(default)s)')
    p.add_argument('--table', action='store_true', help='print the table, run nothing')
    a = p.parse_args()
    rows = json.loads(a.out.read_text()) if a.out.exists() else []
    if a.table: return print(*table(rows), sep='\n')
    if not (a.data/'train-images-idx3-ubyte.gz').exists(): raise SystemExit(f'No Fashion-MNIST in {a.data}: apt install dataset-fashion-mnist, or --data FOLDER')
    dls = loaders(a.data)
    there = {(r['who'], r['target'], r['context'], r['seed']) for r in rows}
    for key in wanted():
        if key in there: continue
        rows.append(r := run(dls, *key, a.epochs))
        a.out.write_text('[\n' + ',\n'.join(map(json.dumps, rows)) + '\n]\n')
        print(r, flush=True)
    print(*table(rows), sep='\n')

if __name__ == '__main__': main()

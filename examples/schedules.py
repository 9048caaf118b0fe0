"""One-shot, iterative and gradual pruning from one callback, beside a dense baseline: the Schedules tutorial as a script.

    python examples/schedules.py               scikit-learn's 1,797 real digits, which need no network
    python examples/schedules.py --data pets   the Oxford-IIIT pets, cats against dogs, with pretrained weights (downloads both)
"""

import argparse
import sys
import time
import warnings

warnings.filterwarnings('ignore', message='.*torch.jit')
import matplotlib

matplotlib.use('Agg')
from fastai.vision.all import *
from fasterai_sched import SparsifyCallback, agp, iterative, large_final, one_shot, sparsity_report
from fasterai_sched.plots import plot_runs

def digits():
    "The digits, 8 pixels wide, at 16"
    from sklearn.datasets import load_digits
    d = load_digits()
    images = np.uint8(d.images*255/16).repeat(2, 1).repeat(2, 2)[..., None].repeat(3, -1)
    block = DataBlock((ImageBlock, CategoryBlock), get_x=ItemGetter(0), get_y=ItemGetter(1), splitter=RandomSplitter(seed=42))
    return block.dataloaders(list(zip(images, d.target)), bs=128, num_workers=0)

def pets():
    "Cats against dogs, at 64 pixels"
    path = untar_data(URLs.PETS)
    return ImageDataLoaders.from_name_func(path, get_image_files(path/"images"), lambda f: f[0].isupper(), item_tfms=Resize(64))

class PlainTable(Callback):
    "fastai's table without progress bars, for a transcript"
    order = 60
    def before_fit(self): self.learn.logger,self.names = self.row,None
    def after_fit(self):  self.learn.logger = print
    def row(self, log):
        if self.names is None: self.names = [n.ljust(10) for n in self.recorder.metric_names]; print(' '.join(self.names))
        print(' '.join((f'{v:.6f}' if isinstance(v, float) else str(v)).ljust(10) for v in log))

def run(name, data, epochs, pretrained, schedule=None):
    "Train once; the epochs as a DataFrame, and a row for the table"
    print(f'\n{"="*80}\n{name}\n')
    set_seed(42) # before the data, whose order is drawn from it when they are made
    learn = vision_learner(data(), resnet18, metrics=accuracy, pretrained=pretrained, cbs=PlainTable)
    learn.unfreeze()
    start = time.time()
    with learn.no_bar():
        if schedule is None: learn.fit_one_cycle(epochs)
        else:
            sp_cb = SparsifyCallback(sparsity=90, granularity='weight', context='local', criteria=large_final, schedule=schedule)
            learn.fit(epochs, cbs=sp_cb)
    took,rec = time.time() - start,learn.recorder
    col = lambda n: [v[rec.metric_names.index(n) - 1] for v in rec.values]
    acc = col('accuracy')
    df = pd.DataFrame(dict(epoch=range(1, len(acc) + 1), sparsity=[0.]*len(acc) if schedule is None else col('sparsity'), accuracy=acc))
    return df, (name, acc[-1], sparsity_report(learn.model).sparsity, took)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', choices=('digits', 'pets'), default='digits', help='what to train on (%(default)s)')
    p.add_argument('--epochs', type=int, default=10, help='epochs of each run (%(default)s)')
    p.add_argument('--out', default='schedules.png', help='where the figure goes (%(default)s)')
    a = p.parse_args()
    is_pets = a.data == 'pets'
    try:
        runs = {n: run(n, pets if is_pets else digits, a.epochs, is_pets, s) for n,s in dict(dense=None, one_shot=one_shot, iterative=iterative, agp=agp).items()}
    except OSError as e: # what a download raises where there is no network
        if not is_pets: raise
        sys.exit(f'Could not download the pets or the pretrained weights: {type(e).__name__}: {e}\n'
                 'They need a network. Without one: python examples/schedules.py')
    print(f'\n{"="*80}\n{"schedule":<12}{"accuracy":>10}{"measured sparsity":>20}{"time":>9}')
    for _,(name,acc,sp,took) in runs.values(): print(f'{name:<12}{acc:>9.2%} {sp:>18.2f}% {took:>7.0f}s')
    axs = plot_runs({n:df for n,(df,_) in runs.items()})
    axs[0].figure.savefig(a.out, dpi=100, bbox_inches='tight')
    print(f'\nSparsity and accuracy over epochs: {a.out}')

if __name__ == '__main__': main()

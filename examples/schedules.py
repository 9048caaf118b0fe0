"""One-shot, iterative and gradual pruning from one callback, beside a dense baseline: the Schedules tutorial as a script.

    python examples/schedules.py               scikit-learn's 1,797 real digits, which need no network
    python examples/schedules.py --data pets   the Oxford-IIIT pets, cats against dogs, with pretrained weights (downloads both)
"""

import argparse
import sys
import warnings

warnings.filterwarnings('ignore', message='.*torch.jit')
import matplotlib

matplotlib.use('Agg')
from fastai.vision.all import *
from fasterai_sched import agp, compare_schedules, iterative, large_final, one_shot

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

def train(learn, n_epoch, cbs):
    "One run, under its schedule's name"
    print(f'\n{"="*80}\n{cbs[0].schedule.__name__ if cbs else "dense"}\n')
    with learn.no_bar(): learn.fit(n_epoch, cbs=cbs)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', choices=('digits', 'pets'), default='digits', help='what to train on (%(default)s)')
    p.add_argument('--epochs', type=int, default=10, help='epochs of each run (%(default)s)')
    p.add_argument('--seeds', type=int, default=1, help='runs of each schedule (%(default)s)')
    p.add_argument('--out', default='schedules.png', help='where the figure goes (%(default)s)')
    a = p.parse_args()
    is_pets = a.data == 'pets'
    def make_learn():
        learn = vision_learner(pets() if is_pets else digits(), resnet18, metrics=accuracy, pretrained=is_pets, cbs=PlainTable)
        learn.unfreeze()
        return learn
    try: df = compare_schedules(make_learn, [one_shot, iterative, agp], a.epochs, sparsity=90, n_seeds=a.seeds, fit=train, verbose=True,
                                granularity='weight', context='local', criteria=large_final)
    except OSError as e: # what a download raises where there is no network
        if not is_pets: raise
        sys.exit(f'Could not download the pets or the pretrained weights: {type(e).__name__}: {e}\n'
                 'They need a network. Without one: python examples/schedules.py')
    print(f'\n{"="*80}\n{"schedule":<12}{"accuracy":>10}{"measured sparsity":>20}{"steps to recover":>19}')
    for name,r in df.iterrows(): print(f'{name:<12}{r.accuracy:>9.2%} {r.sparsity:>18.2f}% {"" if name == "dense" else f"{r.recovery:.0f}":>18}')
    plt.savefig(a.out, dpi=100)
    print(f'\nSparsity and accuracy over epochs: {a.out}')

if __name__ == '__main__': main()

"""Tiny learners, and what is to be seen of a fit."""
import numpy as np
import torch
from fastai.vision.all import (Callback, CategoryBlock, CrossEntropyLossFlat, DataBlock, DataLoaders, ImageBlock, IndexSplitter, ItemGetter, Learner,
    accuracy)
from torch import nn

def tiny_dls(n=40, n_valid=10, bs=10, size=6, seed=0, channels=2):
    "`n/bs` training batches of random images in three classes"
    g = torch.Generator().manual_seed(seed)
    data = lambda n: list(zip(torch.randn(n, channels, size, size, generator=g), torch.randint(0, 3, (n,), generator=g)))
    dls = DataLoaders.from_dsets(data(n), data(n_valid), bs=bs, num_workers=0, device='cpu')
    dls.c = 3
    return dls

def tiny_model(seed=0):
    "Two convolutions of 108 and 324 weights, a batch norm, and a linear head"
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))

def tiny_learner(model=None, bar=False, path='.', **kwargs):
    "A learner without progress bars; its table goes nowhere and stdout has what callbacks print"
    kwargs = {'dls':tiny_dls(), 'loss_func':CrossEntropyLossFlat(), 'metrics':accuracy, 'lr':1e-2, 'path':path, **kwargs}
    learn = Learner(kwargs.pop('dls'), tiny_model() if model is None else model, **kwargs)
    if not bar: learn.remove_cb(learn.progress)
    learn.logger = lambda log: None
    return learn

def image_learner(**kwargs):
    "A learner of three kinds of 8-pixel images that can predict, show and export"
    items = list(zip(np.random.default_rng(0).integers(0, 255, (24, 8, 8, 3), dtype=np.uint8), [0, 1, 2]*8))
    block = DataBlock((ImageBlock, CategoryBlock), get_x=ItemGetter(0), get_y=ItemGetter(1), splitter=IndexSplitter(range(6)))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return tiny_learner(model, dls=block.dataloaders(items, bs=9, num_workers=0), **kwargs)

SEVERAL = nn.MultiheadAttention,nn.RNNBase # layer types whose weights are several, or not called `weight`

def convs(model, types=nn.Conv2d): return [m for m in model.modules() if isinstance(m, types)]
def zeros(model, types=nn.Conv2d): return [int((m.weight == 0).sum()) for m in convs(model, types)]

class Spy(Callback):
    "Calls `f(learn)` at an event, and keeps what it gives"
    def __init__(self, event, f, order=70, **kwargs):
        self.order,self.seen = order,[]
        setattr(self, event, lambda: self.seen.append(f(self.learn)))
        for k,v in kwargs.items(): setattr(self, k, v)

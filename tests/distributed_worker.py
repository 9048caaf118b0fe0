"""One of the ranks of test_distributed.py: a fit for each criterion in each context; what it sees goes to rank<n>.json in a folder."""
import faulthandler
import io
import json
import sys
from contextlib import redirect_stdout
from functools import partial
from hashlib import sha1
from pathlib import Path

import torch
from fastai.distributed import DistributedDL
from helpers import Spy, tiny_dls, tiny_learner, tiny_model, zeros
from torch import distributed as dist

from fasterai_sched import SparsifyCallback, criterias, iterative
from fasterai_sched.budgets import contexts

ITEMS,EPOCHS,STEPS = 40,2,4
TARGET,SCHEDULE = 60,partial(iterative, n_steps=4) # 15% more at steps 2, 4, 5 and 7 of 8: between them only the callback keeps zeros at 0
PATIENCE = 150                                     # seconds, of which a run needs some 25

def bits(named): return {n:sha1(t.detach().numpy().tobytes()).hexdigest() for n,t in named}

def _broadcast(self, t, rank):
    "fastai's takes a GPU"
    t = torch.tensor(t)
    dist.broadcast(t, rank)
    return t.tolist()

def fit(criterion, context, rank, folder):
    "What one rank sees of one fit"
    model,forwards,out = tiny_model(seed=rank),[],io.StringIO() # begins with weights of its own, and a random state
    start = bits(model.named_parameters())
    cb = SparsifyCallback(TARGET, context=context, criteria=criterion, schedule=SCHEDULE)
    def see_forward(m, x):
        if learn.training and not m.training: return # that is calibration
        loud = sum(int(l.weight[~l.mask].count_nonzero()) for l in cb.sparsifier.layers if l.mask is not None)
        forwards.append(dict(training=m.training, items=x[0][:,0,0,0].tolist(), zeros=zeros(m), loud=loud))
    def see_epoch(learn):
        return dict(model=type(learn.model).__name__, weights=bits(model.named_parameters()), zeros=zeros(model),
                    masks=bits(cb.sparsifier.masks.items()), report=[r.name for r in cb.sparsifier.report().rows])
    model.register_forward_pre_hook(see_forward)
    # DistributedTrainer's silent logger may be replaced, as CSVLogger does: that must not make rank 1 print
    epochs,talk = Spy('after_epoch', see_epoch),Spy('before_fit', lambda learn: setattr(learn, 'logger', lambda log: None))
    learn = tiny_learner(model, dls=tiny_dls(n=ITEMS, bs=ITEMS//STEPS//2), cbs=[epochs, talk])
    with redirect_stdout(out), learn.distrib_ctx(cpu=True, sync_bn=False): learn.fit(EPOCHS, cbs=cb)
    torch.save(learn.model.state_dict(), folder/f'{criterion}-{context}-rank{rank}.pth')
    at = learn.recorder.metric_names.index('sparsity') - 1
    return dict(start=start, forwards=forwards, epochs=epochs.seen, column=[v[at] for v in learn.recorder.values], out=out.getvalue(),
                world=[dist.get_backend(), dist.get_world_size(), dist.get_rank()])

def main(folder):
    faulthandler.dump_traceback_later(PATIENCE, exit=True) # a rank that waits in vain says where
    DistributedDL._broadcast = _broadcast
    dist.init_process_group('gloo')
    rank = dist.get_rank()
    seen = {f'{criterion}-{context}':fit(criterion, context, rank, folder) for criterion in criterias for context in contexts}
    (folder/f'rank{rank}.json').write_text(json.dumps(seen))
    dist.destroy_process_group()

if __name__ == '__main__': main(Path(sys.argv[1]))

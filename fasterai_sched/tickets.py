"""BACK: the weights of a moment, and the way back to them. Lottery tickets (Frankle and Carbin 2018) are those weights under later masks."""

from __future__ import annotations
import warnings

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ['Rewinds', 'Snapshot', 'uninitialized']

def uninitialized(
    model:nn.Module # The whole model
) -> list:
    "Names of its lazy parameters, which have no values to save yet"
    return [n for n,p in model.named_parameters() if is_lazy(p)]

class Rewinds:
    "When the weights go back, and to which"
    def __init__(self,
        lth:bool,         # Each time the masks grow
        epoch:int|None,   # To those before the first batch of this epoch; None: to none
        reset_end:bool,   # Once, after the fit
        save_tickets:bool # Whether a ticket is written at each time, and after the fit
    ):
        self.lth,self.epoch = lth,epoch
        self.words = {n:v for n,v in dict(lth=lth, reset_end=reset_end, save_tickets=save_tickets).items() if v}
        for n,v in self.words.items():
            if epoch is None: raise ValueError(f"{n}={v!r} needs the weights of an epoch: rewind_epoch=None saves none")

    def check(self,
        target,      # `Target` in the fit's window
        first:int,   # The epoch it begins at
        n_epoch:int, # How many it has
        times:list,  # Steps at which masks may move
        model        # The whole model
    ):
        "ValueError for what a fit can't do; a warning for a schedule that would rewind too often"
        if self.epoch is None: return
        for n,v in self.words.items():
            if first > self.epoch: raise ValueError(f"{n}={v!r} needs the weights of rewind_epoch={self.epoch}, and this fit begins at epoch {first}")
            if first == self.epoch and (lazy := uninitialized(model)): raise ValueError(f"{n}={v!r} needs the weights of rewind_epoch={self.epoch}, and {lazy} are not initialized: run the model once on a batch first")
        if self.epoch >= n_epoch: raise ValueError(f"rewind_epoch={self.epoch} is beyond this fit of {n_epoch} epochs, 0 to {n_epoch-1}")
        if not self.lth: return
        at = self.epoch/n_epoch
        if at and target.due(at) != target.like(lambda s: target.start):
            raise ValueError(f"rewind_epoch={self.epoch} comes after pruning has begun: with lth=True it must come before")
        moves = target.n_moves(times)
        if moves > 10: warnings.warn(f"lth=True rewinds each time the masks grow: {moves} times with schedule={target.schedule.__name__}. "
                                     "A schedule of a few steps, such as iterative, leaves time to train between them")

class Snapshot:
    "A model's `state_dict` as it is now, on the CPU"
    def __init__(self,
        model:nn.Module, # The whole model, not wrapped
        learn            # Whose `opt`, by then, forgets its averages when the weights go back
    ):
        self.model,self.learn = model,learn
        self.weights = {k:v.detach().cpu().clone() if isinstance(v, Tensor) else v for k,v in model.state_dict().items()}

    def of(self,
        param:nn.Parameter # Of the model
    ) -> Tensor:           # On the CPU
        "What it was"
        return self.weights[next(k for k,p in self.model.named_parameters() if p is param)]

    def rewind(self,
        sparsifiers # Their pruned weights stay 0
    ):
        "Put the model back to these weights"
        self.model.load_state_dict(self.weights)
        for sp in sparsifiers: sp.apply_masks()
        with torch.no_grad(): # fp32 masters are the weights, to the optimizer
            for p in self.model.parameters():
                for sp in sparsifiers[:1]:
                    if id(p) in sp.masters: sp.masters[id(p)].copy_(p)
        self.learn.opt.clear_state()

    def ticket(self,
        sparsifiers # Their masks are laid over the weights
    ) -> dict:      # A `state_dict`, on the CPU
        "These weights under the masks of now"
        held = {id(p):keep for sp in sparsifiers for l in sp.layers for p,keep in l.held}
        masks = {k:held[id(p)] for k,p in self.model.named_parameters(remove_duplicate=False) if id(p) in held}
        return {k:v*masks[k].cpu() if k in masks else v for k,v in self.weights.items()}

    def save(self,
        path,       # File to write
        sparsifiers # As for `ticket`
    ):
        "Write the ticket"
        torch.save(self.ticket(sparsifiers), path)

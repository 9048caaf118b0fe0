"""BACK: the weights of a moment, and the way back to them. Lottery tickets (Frankle and Carbin 2018) are those weights under later masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ['Snapshot']

class Snapshot:
    "A model's `state_dict` as it is now, on the CPU"
    def __init__(self,
        model:nn.Module, # The whole model, not wrapped
        learn            # Whose `opt`, by then, forgets its averages when the weights go back
    ):
        self.model,self.learn = model,learn
        self.weights = {k:v.detach().cpu().clone() if isinstance(v, Tensor) else v for k,v in model.state_dict().items()}

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

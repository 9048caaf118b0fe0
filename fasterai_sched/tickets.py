"""BACK: the weights of a moment, and the way back to them. Lottery tickets (Frankle and Carbin 2018) are those weights under later masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ['Snapshot']

class Snapshot:
    "A model's `state_dict` as it is now, on the CPU"
    def __init__(self,
        model:nn.Module, # The whole model, not wrapped
        opt              # Its optimizer, which forgets its averages when the weights go back; anything with `clear_state()`
    ):
        self.model,self.opt = model,opt
        self.weights = {k:v.detach().cpu().clone() if isinstance(v, Tensor) else v for k,v in model.state_dict().items()}

    def rewind(self,
        sparsifier # Its pruned weights stay 0
    ):
        "Put the model back to these weights"
        self.model.load_state_dict(self.weights)
        sparsifier.apply_masks()
        self.opt.clear_state()

    def ticket(self,
        sparsifier # Its masks are laid over the weights
    ) -> dict:     # A `state_dict`, on the CPU
        "These weights under the masks of now"
        held = {id(p):keep for l in sparsifier.layers for p,keep in l.held}
        masks = {k:held[id(p)] for k,p in self.model.named_parameters(remove_duplicate=False) if id(p) in held}
        return {k:v*masks[k].cpu() if k in masks else v for k,v in self.weights.items()}

    def save(self,
        path,      # File to write; its folder is made
        sparsifier # As for `ticket`
    ):
        "Write the ticket"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.ticket(sparsifier), path)

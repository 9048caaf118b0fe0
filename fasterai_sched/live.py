"""LIVE: a fit drawn while it goes on, in the manner of fastai's `ShowGraphCallback`."""

from __future__ import annotations

from fastai.callback.core import Callback
from fastcore.imports import in_notebook

from .callback import SparsifyCallback

__all__ = ['ShowSparsityCallback']

class ShowSparsityCallback(Callback):
    "Draw sparsity, losses and metrics after each epoch, in place, in a notebook: `cbs=[SparsifyCallback(90), ShowSparsityCallback()]`. Elsewhere there is nothing to draw on, and it does nothing"
    order,run_valid,remove_on_fetch,_only_train_loop = 65,False,True,True # as ShowGraphCallback, after the table's row
    _handle = _of = None

    def before_fit(self):
        "Start anew; a prediction in the midst of a fit is none"
        if not self.learn.lock.locked(): self._handle = self._of = None

    def before_train(self):
        "Find whose fit it draws; ValueError if there is none"
        if hasattr(self.learn, 'lr_finder') or self._of is not None: return
        self._of = next((cb for cb in self.learn.cbs if isinstance(cb, SparsifyCallback)), None)
        if self._of is None: raise ValueError("ShowSparsityCallback draws what a SparsifyCallback does, and there is none in this fit")

    def after_epoch(self):
        "Draw what there is so far"
        if self._of is None or self.learn.lock.locked() or not in_notebook() or not len(self._of.history): return
        import matplotlib.pyplot as plt
        from IPython.display import display
        fig = self._of.plot()[0].figure
        try:
            if self._handle is None: self._handle = display(fig, display_id=True)
            else: self._handle.update(fig)
        finally: plt.close(fig) # else the notebook shows it once more

"""WHAT WAS: a fit as it went, for a table and for pictures."""

from __future__ import annotations

from . import plots

__all__ = ['History']

class History:
    "What a fit has pruned, step by step"
    def __init__(self,
        begin:int=0,    # The step it begins at
        n_steps:int=1,  # The step it ends at, if nothing stops it
        target:float=0, # Percent, in force at the beginning
        layers=(),      # `Held` weights, of the sparsifier
        losses=(),      # fastai's list, which will have the loss of each of its batches
    ):
        self.begin,self.n_steps,self.target,self.losses = begin,n_steps,target,losses
        self.names,self.rows,self.table = [l.name for l in layers],[],[]
        self.last,self.now,self.still = begin,self._of_each(layers),True # the step of the last row, how sparse each layer was then, and whether an epoch ended there
        self.steps,self.sparsity = [begin],[self.now]
        self.heard,self.n_heard,self.next = [],0,begin # (step, loss); how many of `losses` are in it; the step after which the rest came

    def __getstate__(self): return {**vars(self), 'losses':list(map(float, self.losses)), 'heard':[(s, float(l)) for s,l in self.heard]} # in a file a tensor takes fifty times as much

    def _rest(self): return [(self.next + i, l) for i,l in enumerate(self.losses[self.n_heard:], 1)]

    def hear(self,
        losses, # fastai's list of now: a validation in the midst of a fit begins another
        step:int # The end of this epoch
    ):
        "The losses of an epoch that has ended, early or not: they belong to its first steps"
        self.heard += self._rest()
        if losses is not self.losses:
            self.next,self.losses,self.n_heard = max(self.next, self.heard[-1][0] if self.heard else 0),losses,0
            self.heard += self._rest()
        self.next,self.n_heard = step,len(losses)

    def _of_each(self, layers): return [100*l.gone/l.numel for l in layers]

    def _see(self, step, each):
        if step == self.steps[-1]: self.sparsity[-1] = each
        else:
            self.steps.append(step)
            self.sparsity.append(each)

    def add(self,
        step:int,       # Batches of the fit until then
        epoch:int,      # The epoch that it is in
        kind:str,       # 'masks' have moved, or the end of an 'epoch'
        target:float,   # Percent
        measured:float, # Percent
        layers,         # `Held` weights
        row:dict=None   # What fastai's table says of the epoch
    ):
        "A row more"
        self.rows.append((step, epoch, kind, target, measured))
        if row is not None: self.table.append((step, row))
        each,rest,fine = self._of_each(layers),step - 1 - self.last,self.n_steps/100
        jump = kind == 'masks' and (self.still or rest >= fine)
        # what is between two looks is drawn like the later one: so look just before a jump too
        if jump and rest > 0: self._see(step - 1, self.now)
        # a hundred a fit are enough, and one an epoch
        if kind == 'epoch' or jump or step - self.steps[-1] >= fine: self._see(step, each)
        self.last,self.now,self.still = step,each,kind == 'epoch'

    def to_df(self):
        "A DataFrame: step, epoch, kind, target, measured"
        import pandas as pd
        return pd.DataFrame(self.rows, columns=['step', 'epoch', 'kind', 'target', 'measured'])

    def plot(self,
        ax=None, # As for `plot_run`
        **kwargs # Passed to `ax.plot` for the target
    ):           # The axes, as an array; the one that was given
        "Draw it: sparsity, losses, metrics"
        import pandas as pd
        begin = self.begin,self.target
        if ax is not None and not hasattr(ax, '__len__'): return plots.plot_history(self.to_df(), ax, begin, **kwargs)
        losses = [(s, float(l)) for s,l in [*self.heard, *self._rest()]]
        return plots.plot_run(self.to_df(), losses, pd.DataFrame([r for _,r in self.table], index=[s for s,_ in self.table]), ax, begin, **kwargs)

    def plot_layers(self,
        ax=None, # As for `plots.plot_layers`
        **kwargs # Passed to `ax.pcolormesh`
    ):           # The axes
        "Draw the layers over time; raises RuntimeError before there is anything to draw"
        if len(self.steps) == 1: raise RuntimeError("There is nothing to draw yet: no mask has moved, and no epoch in which a selected layer trained has ended")
        return plots.plot_layers(self.steps, list(zip(*self.sparsity[1:])), self.names, ax, **kwargs)

"""SHOWN: the measured sparsity as a column of fastai's table."""

from __future__ import annotations

__all__ = ['Column']

class Column:
    "One name among the Recorder's, and its value in each row"
    name = None # None: no column
    def __init__(self,
        recorder # The learner's, or None
    ):
        self.recorder = recorder

    @property
    def names(self): return getattr(self.recorder, 'metric_names', [])

    @property
    def suffix(self):
        "Of a second SparsifyCallback '_2'"
        return (self.name or '').removeprefix('sparsity')

    def claim(self):
        "Take the first name that is free, before the table's header is written"
        if self.recorder is None: return
        self.name = next(n for i in range(1, len(self.names) + 2) if (n := f'sparsity_{i}' if i > 1 else 'sparsity') not in self.names)
        self.names.insert(self.names.index('time') if 'time' in self.names else len(self.names), self.name)

    def keep(self):
        "A validation amid the fit makes the Recorder forget it"
        if self.name and self.name not in self.names: self.claim()

    def give_back(self):
        "This was no fit"
        if self.name in self.names: self.names.remove(self.name) # another before_fit, of a validation, may have done so

    def fill(self,
        value # The measured sparsity
    ):
        "Put it in the row that the Recorder is writing"
        self.keep()
        log = self.recorder.log
        while len(log) < list(self.names).index(self.name): log.append(None) # an epoch cut short has fewer metrics
        log.append(value)

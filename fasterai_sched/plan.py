"""AHEAD: what a fit would prune, epoch by epoch and layer by layer, before it is trained. A table as text, as HTML and as a DataFrame."""

from __future__ import annotations
from dataclasses import dataclass
from html import escape

__all__ = ['Plan', 'Line', 'make_plan']

@dataclass(frozen=True)
class Line:
    "One layer's part"
    name:str      # As in `model.named_modules()`
    index:int     # Its place in `model.modules()`
    type:str      # Class name
    groups:int    # What it is cut into: single weights, filters, ...
    size:int      # Weights of a group that go when it is pruned
    target:object # Percent, at the end; None where layers share one
    pruned:tuple  # Groups that are pruned at the end of each epoch; None: only training will tell
    frozen:bool=False # Whether it does not train, and is left alone

@dataclass(frozen=True)
class Plan:
    "What is due at the end of each epoch, and what that makes of each layer"
    lines:tuple        # Of `Line`
    due:tuple          # Text of the sparsity due at each epoch's end
    pruned:tuple       # What is pruned of all layers at each epoch's end, in `unit`
    steps:int          # Optimizer steps of the fit
    last_move:int      # The step at which the masks move last; 0: they don't
    notes:tuple=()     # What is worth knowing, a sentence each
    problems:tuple=()  # What can't be done as asked, a sentence each; then nothing else is shown
    unit:str='groups'  # 'groups', or 'weights' where the context counts those and only training will tell how many of each layer

    @property
    def recovery(self):
        "Steps that are left after the last move, to recover from it"
        return self.steps - self.last_move

    def _epochs(self, n=8):
        "The epochs to show: those at whose end something else is due, thinned out to `n`"
        new = [e for e in range(len(self.due)) if e == 0 or self.due[e] != self.due[e-1]]
        if len(new) > n: new = [new[round(i*(len(new) - 1)/(n - 1))] for i in range(n)]
        return new

    def _rows(self):
        es = self._epochs()
        yield ['Layer', 'Name', 'Type', 'Groups', 'Target', *(f'Epoch {e}' for e in es)]
        yield ['due', '', '', '', '', *(self.due[e] for e in es)]
        show = lambda k: 'by score' if k is None else f'{k:,}'
        for l in self.lines: yield [f'Layer {l.index}', l.name, l.type, f'{l.groups:,}', 'frozen' if l.frozen else '' if l.target is None else f'{l.target:g}%', *('' if l.frozen else show(l.pruned[e]) for e in es)]
        yield ['Overall', '', 'all' if self.unit == 'groups' else 'weights', f'{sum(l.groups for l in self.lines if not l.frozen):,}', '', *(show(self.pruned[e]) for e in es)]

    def _said(self):
        if self.problems: return
        if len(self._epochs()) < len(self.due): yield 'Not every epoch is shown: to_df() has them all'
        yield (f'{self.steps:,} steps; the masks move last at step {self.last_move:,}, and {self.recovery:,} {"is" if self.recovery == 1 else "are"} left to recover' if self.last_move
               else f'{self.steps:,} steps; the masks do not move')
        yield from self.notes

    def __str__(self):
        cells = list(self._rows())
        widths = [max(len(r[i]) for r in cells) + 2 for i in range(len(cells[0]))]
        head,due,*rows,foot = [''.join(f'{c:<{w}}' for c,w in zip(r, widths)).rstrip() for r in cells]
        rule = '-'*max(80, *map(len, (head, *rows)))
        table = [rule, head, due, rule, *rows, rule, foot]
        return '\n'.join([*(f'Can not be done: {p}' for p in self.problems), *(table if not self.problems else []), *self._said()])
    __repr__ = __str__

    def _repr_html_(self):
        if self.problems: return ''.join(f'<p>Can not be done: {escape(p)}</p>' for p in self.problems)
        head,*rows = [[escape(c) for c in r] for r in self._rows()]
        tr = lambda cells, tag: '<tr>' + ''.join(f'<{tag} style="text-align:{"left" if i < 3 else "right"}">{c}</{tag}>' for i,c in enumerate(cells)) + '</tr>'
        return f'<table><thead>{tr(head, "th")}</thead><tbody>{"".join(tr(r, "td") for r in rows)}</tbody></table>' + ''.join(f'<p>{escape(s)}</p>' for s in self._said())

    def to_df(self):
        "A DataFrame, a row a layer: name, index, type, groups, target (percent), frozen, and a column an epoch of what is pruned at its end"
        import pandas as pd
        return pd.DataFrame([dict(name=l.name, index=l.index, type=l.type, groups=l.groups, target=l.target, frozen=l.frozen, **{f'epoch_{e}':k for e,k in enumerate(l.pruned)}) for l in self.lines])

def make_plan(
    sparsifier,      # `Sparsifier` of the model; it is asked, and prunes nothing
    target,          # `Target` in the fit's window
    n_epoch:int,     # Epochs of the fit
    times:list,      # Its steps at which masks may move; the last is the fit's last
    round_to=None,   # As for `Sparsifier.sparsify_model`
    unselected=(),   # (name, number of weights) of large weights that are not selected
    notes=(),        # Sentences that are known already
    problems=(),     # and problems
    aims:bool=True   # Whether there is a target, and zeros are not only kept
) -> Plan:
    "The plan of a fit"
    context,steps = sparsifier.options.budget,times[-1]
    by_score = context.by_score
    def pruned(i): # of each layer and in all, after step i
        due = target.due(i/steps) if i else target.like(lambda s: 0)
        each = sparsifier.counts(due, round_to, target.fallen(i, steps))
        return each,(None if round_to else sparsifier.total(due, target.fallen(i, steps))) if by_score else sum(each.values())
    dues,ends,totals,refused = [target.due((e + 1)/n_epoch) for e in range(n_epoch)],[],[],[]
    for e in range(n_epoch):
        try: each,total = pruned((e + 1)*steps//n_epoch); ends.append(each); totals.append(total)
        except ValueError as e: ends.append({}); totals.append(None); refused.append(str(e))
    final = {} if context.together or not aims else {l:float(s) for l,s in sparsifier.due(dues[-1]).items()}
    lines = tuple(Line(l.name, l.index, type(l.module).__name__, l.n, l.size, final.get(l, None if context.together or not aims else 0.), tuple(end.get(l.name) for end in ends), l.frozen) for l in sparsifier.layers)
    before = dict(zip(times, [0, *times]))
    last  = target.last_move(times) or times[0]*(not refused and pruned(times[0]) != pruned(0)) # a constant one moves them at once
    while last and not refused and (not by_score or not round_to) and pruned(before[last]) == (ends[-1], totals[-1]): last = before[last] # it asks for a fraction of a group more
    notes = *notes,*_remarks(lines, steps, last, not sparsifier.options.nm, context, round_to),*(['Not selected: ' + ', '.join(f'{n} ({p:,})' for n,p in unselected)] if unselected else [])
    shares = [sum(s*l.numel for l,s in sparsifier.due(d).items() if not l.frozen)/max(sum(l.numel for l in sparsifier.due(d) if not l.frozen), 1) for d in dues]
    return Plan(lines, tuple(f'{round(float(s), 2):g}%' if aims else '' for s in shares), tuple(totals), steps, last, notes, (*problems, *refused[-1:]), 'weights' if by_score and not context.in_groups else 'groups')

def _remarks(lines, steps, last_move, whole, context, round_to):
    "What a table does not say at first sight; `whole`: a layer all of whose groups are pruned has nothing left"
    live = [l for l in lines if not l.frozen]
    names = lambda ls: ', '.join(l.name for l in ls)
    if last_move and last_move == steps: yield 'The target is reached on the last step, which leaves none to recover: end_epoch= leaves some'
    none  = [l for l in live if l.pruned and l.pruned[-1] == 0 and (any(o.pruned[-1] for o in live) if l.target is None else l.target)]
    empty = [l for l in live if whole and l.pruned and l.pruned[-1] == l.groups]
    if none: yield f"Nothing is pruned of {names(none)}" + (f': round_to={round_to} keeps all of their groups' if round_to else ': the target is less than one group of those' if none[0].target else '')
    if context.in_groups and len({l.size for l in live}) > 1: yield 'The budget counts groups, and they are not of one size: the share of weights will differ from that of groups'
    if empty and len(empty) < len(live): yield f'Nothing is left of {names(empty)}'
    if not live: yield 'None of the selected layers trains: nothing will be pruned'

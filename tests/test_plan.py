"""The plan: what it says before a fit is what the fit does."""
import warnings
from html import escape
from functools import partial

import pytest
import torch
from fastai.vision.all import GradientAccumulation
from helpers import Spy, tiny_dls, tiny_learner, zeros
from torch import nn

from fasterai_sched import Schedule, Sparsifier, SparsifyCallback, agp, iterative, one_shot, sched_oneshot
from fasterai_sched.budgets import contexts
from fasterai_sched.schedules import schedules

def counts(cb): return tuple(l.dead for l in cb.sparsifier.layers)
def plan(n=3, learn=None, **kwargs): return SparsifyCallback(**{'sparsity':60, **kwargs}).plan(learn or tiny_learner(), n)

@pytest.mark.parametrize('context', [c for c in contexts if not contexts[c].by_score])
@pytest.mark.parametrize('schedule', schedules)
@pytest.mark.parametrize('kwargs', [{}, dict(granularity='filter'), dict(start_epoch=1, end_epoch=3), dict(nm=(1, 2), sparsity=50), dict(granularity=(3, 2)), dict(round_to=4, granularity='filter')], ids=str)
def test_what_is_planned_is_what_is_pruned(schedule, context, kwargs):
    cb,learn = SparsifyCallback(**{'sparsity':60, 'context':context, 'schedule':schedule, **kwargs}),tiny_learner()
    p = cb.plan(learn, 4)
    seen = Spy('after_validate', lambda l: counts(cb))
    learn.fit(4, cbs=[cb, seen])
    assert [tuple(l.pruned[e] for l in p.lines) for e in range(4)] == seen.seen and not p.problems
    assert p.due == tuple(f'{round(float(cb.target.due((e + 1)/4)), 2):g}%' for e in range(4))
    moves = cb.history.query('kind == "masks"').step
    assert p.steps == 16 and p.last_move == (moves.max() if len(moves) else 0) and p.recovery == 16 - p.last_move

@pytest.mark.parametrize('context', ['global', 'lamp'])
def test_where_scores_decide_only_the_total_is_known(context):
    p = plan(context=context)
    assert all(l.pruned == (None,)*3 for l in p.lines) and p.pruned[-1] == 259 and 'by score' in str(p)

def test_the_table_to_the_character():
    assert str(plan(4, schedule=one_shot, start_epoch=2)) == '\n'.join([
        '-'*80,
        'Layer    Name  Type    Groups  Target  Epoch 0  Epoch 2',
        'due                                    0%       60%',
        '-'*80,
        'Layer 1  0     Conv2d  108     60%     0        64',
        'Layer 4  3     Conv2d  324     60%     0        194',
        '-'*80,
        'Overall        all     432             0        258',
        'Not every epoch is shown: to_df() has them all',
        '16 steps; the masks move last at step 9, and 7 are left to recover',
        'Not selected: 7.weight (18)'])

def test_nothing_of_the_learner_is_changed():
    learn = tiny_learner()
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    state,cbs = torch.get_rng_state(),list(learn.cbs)
    cb = SparsifyCallback(60, 'filter', criteria='wanda')
    cb.plan(learn, 3)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items()) and learn.opt is None and learn.cbs == cbs
    assert torch.equal(torch.get_rng_state(), state) and cb.sparsifier is None and cb.target is None
    learn.fit(1, cbs=cb)
    assert zeros(learn.model) == [54, 162]

def test_a_data_frame_and_html():
    p = plan(2, schedule=one_shot)
    df = p.to_df()
    assert list(df.columns) == ['name', 'index', 'type', 'groups', 'target', 'frozen', 'epoch_0', 'epoch_1'] and df.epoch_1.tolist() == [64, 194] and df.target.tolist() == [60, 60]
    html = p._repr_html_()
    assert '<td style="text-align:right">194</td>' in html and '<p>8 steps; the masks move last at step 4, and 4 are left to recover</p>' in html

def test_long_fits_are_thinned_out():
    p = plan(100)
    head = str(p).splitlines()[1].split()
    assert head[5:] == [w for e in p._epochs() for w in ('Epoch', str(e))] and len(p._epochs()) == 8 and p.due[p._epochs()[-1]] == p.due[-1] and len(p.due) == 100

def test_what_cannot_be_done_is_said_and_not_raised():
    assert plan(2, start_epoch=5).problems == ('start_epoch=5 is beyond this fit of 2 epochs, 0 to 1 (a schedule is over the epochs of one fit: to stop early, stop a longer one; the two phases of fine_tune are two)',)
    assert plan(2, rewind_epoch=7).problems == ('rewind_epoch=7 is beyond this fit of 2 epochs, 0 to 1',)
    p = plan(2, context='erk', max_sparsity=40)
    assert p.problems == ("sparsity=60.0 can't be reached with max_sparsity=40: 40% is the most",) and str(p) == f'Can not be done: {p.problems[0]}' and p._repr_html_() == f"<p>{escape(str(p))}</p>"
    with pytest.raises(ValueError, match="sparsity=60.0 can't be reached with max_sparsity=40"): tiny_learner().fit(2, cbs=SparsifyCallback(60, context='erk', max_sparsity=40))

@pytest.mark.parametrize('kwargs,said', [
    (dict(schedule='lin'), 'The target is reached on the last step, which leaves none to recover: end_epoch= leaves some'), (dict(sparsity=10, granularity='filter'), 'Nothing is pruned of 0, 3: the target is less than one group of those'),
    (dict(sparsity={'0':100, '3':50}), 'Nothing is left of 0'), (dict(lth=True), 'lth=True rewinds each time the masks grow: 10 times'), (dict(layers='0'), 'Not selected: 3.weight (324), 7.weight (18)'),
    (dict(granularity=(4, 1), layer_type=(nn.Conv2d, nn.Linear), exclude='7'), None)])
def test_what_is_worth_knowing_is_said(kwargs, said):
    if said is None:
        with pytest.raises(ValueError, match='does not fit any layer'): plan(**kwargs)
    else: assert any(said in n for n in plan(4 if 'lth' in kwargs else 3, **kwargs).notes) or 'lth' in kwargs

def test_a_rewind_at_each_of_many_steps_is_said():
    p = plan(5, lth=True)
    assert any(n.startswith('lth=True rewinds each time the masks grow: 16 times with schedule=agp') for n in p.notes)
    assert not any('rewinds' in n for n in plan(5, lth=True, schedule=partial(iterative, n_steps=4)).notes)

def test_frozen_layers_and_parameter_groups():
    split = lambda m: [list(m[:3].parameters()), list(m[3:].parameters())]
    learn = tiny_learner(splitter=split, train_bn=False)
    p = plan(learn=learn, sparsity=slice(20, 80))
    assert p.due[0] == '27.38%' and p.due[-1] == '65%' # of all weights
    assert [l.target for l in p.lines] == [20, 80] and [l.pruned[-1] for l in p.lines] == [21, 259]
    learn.freeze()
    p = plan(learn=learn, sparsity=50)
    assert [l.frozen for l in p.lines] == [True, False] and str(p).splitlines()[4].split()[-1] == 'frozen' and p.pruned[-1] == 162
    learn.freeze_to(2)
    for m in (learn.model[0], learn.model[3]): m.requires_grad_(False)
    assert 'None of the selected layers trains: nothing will be pruned' in plan(learn=learn).notes

def test_zeros_that_are_there_are_counted_in():
    learn = tiny_learner()
    learn.fit(1, cbs=SparsifyCallback(80, schedule='lin'))
    assert [l.pruned for l in plan(2, learn, schedule=one_shot, start_epoch=1, sparsity=90).lines] == [(86, 97), (259, 291)]

def test_a_part_of_a_model_is_planned_alone():
    learn = tiny_learner()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        p = plan(2, learn, model=learn.model[3])
    assert [(l.name, l.index, l.groups) for l in p.lines] == [('', 0, 324)]

def test_keeping_zeros_moves_nothing():
    p = SparsifyCallback(keep_zeros=True).plan(tiny_learner(), 2)
    assert p.last_move == 0 and '8 steps; the masks do not move' in str(p)

def test_the_steps_are_the_dataloaders(): assert plan(3, tiny_learner(dls=tiny_dls(n=70))).steps == 21

def test_steps_that_ask_for_less_than_a_group_more_move_nothing():
    assert plan(3, schedule='lin').recovery == 0
    p = plan(3, schedule=agp) # the last step asks for a thousandth more
    assert p.recovery == 1 and p.last_move == 11
    assert plan(10, granularity='filter', sparsity=90, schedule='lin').last_move == 38 # 5 of 6 at 83.4%

@pytest.mark.parametrize('schedule', ['dsd', 'cyclic', 'ac_dc'])
@pytest.mark.parametrize('context', ['local', 'uniform'])
def test_zeros_that_come_back_are_planned_to(schedule, context):
    learn = tiny_learner()
    learn.fit(1, cbs=SparsifyCallback(30, schedule='lin', verbose=False))
    cb = SparsifyCallback(50, schedule=schedule, context=context, verbose=False)
    p,seen = cb.plan(learn, 4),Spy('after_validate', lambda l: counts(cb))
    learn.fit(4, cbs=[cb, seen])
    assert [tuple(l.pruned[e] for l in p.lines) for e in range(4)] == seen.seen

@pytest.mark.parametrize('schedule', [Schedule(sched_oneshot), lambda s, e, p: 60])
def test_masks_that_move_at_the_first_step_and_never_again(schedule):
    p = plan(3, schedule=schedule)
    assert p.last_move == 1 and p.recovery == 11

def test_what_the_fit_would_refuse_the_plan_tells():
    assert 'criteria=<lambda> fails' in plan(criteria=lambda w: w.mean()).problems[0]
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn,self.head = nn.LSTM(2, 3, batch_first=True),nn.Linear(3, 3)
        def forward(self, x): return self.head(self.rnn(x.flatten(2).transpose(1, 2))[0][:, -1])
    p = plan(learn=tiny_learner(Reads()), criteria='wanda', layer_type=nn.LSTM)
    assert "layer 'rnn.weight_ih_l0' (LSTM) is not known" in p.problems[0]
    assert any('data=' in x for x in plan(criteria='wanda', data=[3]).problems)

def test_a_rounding_that_keeps_everything_is_said():
    assert 'Nothing is pruned of 0, 3: round_to=6 keeps all of their groups' in plan(granularity='filter', round_to=6).notes
    with pytest.raises(ValueError, match='round_to=6 keeps all groups of every layer: they have 0 6, 3 6'): tiny_learner().fit(1, cbs=SparsifyCallback(50, 'filter', round_to=6))

def test_steps_are_batches_where_gradients_are_accumulated():
    learn = tiny_learner(cbs=GradientAccumulation(20))
    assert 'A step is a batch here, and with GradientAccumulation the optimizer takes fewer' in plan(learn=learn).notes

def test_groups_of_several_sizes_are_noted_where_they_are_counted():
    assert any('The budget counts groups' in n for n in plan(context='global', granularity='filter').notes) and not any('The budget' in n for n in plan(context='global').notes)

@pytest.mark.parametrize('args,match', [((None, 3), 'takes a Learner, and the number of epochs'), ((1, 0), 'n_epoch=0 must be a whole number of at least 1'), ((1, 2.5), 'n_epoch=2.5 must be'), ((1, None), 'n_epoch=None. takes a Learner')])
def test_a_plan_needs_a_learner_and_epochs(args, match):
    with pytest.raises(ValueError, match=match): SparsifyCallback(50).plan(tiny_learner() if args[0] else nn.Linear(2, 2), args[1])

def test_a_slice_is_planned_for_a_learner_that_has_no_optimizer_yet():
    p = plan(sparsity=slice(30, 90))
    assert [l.target for l in p.lines] == [90, 90] and any('all selected layers are in one: they are at 90%' in n for n in p.notes)

def test_groups_without_selected_layers_take_no_step():
    split = lambda m: [list(m[0].parameters()), list(m[1:7].parameters()), list(m[7].parameters())]
    p = plan(learn=tiny_learner(splitter=split), sparsity=slice(30, 90))
    assert [l.target for l in p.lines] == [30, 90]

def test_where_zeros_are_only_kept_there_is_no_target():
    learn = tiny_learner()
    Sparsifier(learn.model).sparsify_model(50)
    p = SparsifyCallback(keep_zeros=True).plan(learn, 2)
    assert {l.target for l in p.lines} == {None} and [l.pruned for l in p.lines] == [(54, 54), (162, 162)] and set(p.due) == {''} and not p.last_move

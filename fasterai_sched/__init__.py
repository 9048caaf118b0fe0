"""Sparse training for fastai: the sparsity asked is the sparsity applied is the sparsity reported."""

__version__ = "0.1.0"

from .callback import SparsifyCallback
from .criteria import (Criteria, Normalizer, Reducer, available_criterias, criterias, large_final, large_init, large_init_large_final,
    magnitude_increase, movement, movmag, random, small_final, small_init, small_init_small_final, squared_final,
    updating_magnitude_increase, updating_movement, updating_movmag)
from .granularity import Granularities
from .report import Report, sparsity_report
from .schedules import (Schedule, agp, available_schedules, cos, dsd, iterative, lin, one_cycle, one_shot, plot_schedules,
    sched_agp, sched_dsd, sched_iterative, sched_onecycle, sched_oneshot)
from .sparsifier import Sparsifier

__all__ = [
    'SparsifyCallback', 'Sparsifier', 'sparsity_report', 'Report', 'plot_schedules',
    'Schedule', 'available_schedules', 'one_shot', 'iterative', 'agp', 'one_cycle', 'cos', 'lin', 'dsd',
    'sched_oneshot', 'sched_iterative', 'sched_agp', 'sched_onecycle', 'sched_dsd',
    'Granularities', 'Criteria', 'Reducer', 'Normalizer', 'criterias', 'available_criterias', 'random', 'large_final', 'squared_final',
    'small_final', 'large_init', 'small_init', 'large_init_large_final', 'small_init_small_final', 'magnitude_increase', 'movement',
    'movmag', 'updating_magnitude_increase', 'updating_movement', 'updating_movmag']

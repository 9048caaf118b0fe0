"""Sparse training for fastai: the sparsity asked is the sparsity applied is the sparsity reported."""

__version__ = "0.1.0"

from .budgets import Context, contexts
from .callback import SparsifyCallback
from .compare import compare_schedules
from .criteria import (Criteria, Normalizer, Reducer, available_criterias, criterias, large_final, large_init, large_init_large_final,
    magnitude_increase, movement, movmag, random, small_final, small_init, small_init_small_final, squared_final,
    taylor, movement_pruning, updating_magnitude_increase, updating_movement, updating_movmag, wanda)
from .disk import load_sparse, save_sparse
from .granularity import Granularities, is_nm
from .live import ShowSparsityCallback
from .plan import Plan
from .plots import plot_weights
from .report import Report, sparsity_report
from .schedules import (Schedule, ac_dc, agp, available_schedules, cos, cyclic, dsd, iterative, lin, one_cycle, one_shot, plot_schedules,
    sched_acdc, sched_agp, sched_cyclic, sched_dsd, sched_iterative, sched_onecycle, sched_oneshot)
from .sparsifier import Sparsifier

__all__ = [
    'SparsifyCallback', 'Sparsifier', 'sparsity_report', 'Report', 'save_sparse', 'load_sparse', 'plot_schedules', 'plot_weights', 'compare_schedules', 'ShowSparsityCallback',
    'Schedule', 'available_schedules', 'one_shot', 'iterative', 'agp', 'one_cycle', 'cos', 'lin', 'dsd', 'cyclic', 'ac_dc',
    'sched_oneshot', 'sched_iterative', 'sched_agp', 'sched_onecycle', 'sched_dsd', 'sched_cyclic', 'sched_acdc',
    'Granularities', 'is_nm', 'Context', 'contexts', 'Plan', 'Criteria', 'Reducer', 'Normalizer', 'criterias', 'available_criterias', 'random', 'large_final', 'squared_final',
    'small_final', 'large_init', 'small_init', 'large_init_large_final', 'small_init_small_final', 'magnitude_increase', 'movement',
    'movmag', 'updating_magnitude_increase', 'updating_movement', 'updating_movmag', 'taylor', 'movement_pruning', 'wanda']

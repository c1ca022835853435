"""The outer loop's step, the same for every meta-learner: what a function of one task gives over many, and how a
gradient is applied."""

from jaxmeta.outer.step import apply_gradient, chosen_optimizer, counted, initial_state, outer_step
from jaxmeta.outer.tasks import for_each_task, mean_over_shares, mean_over_tasks, over_tasks, shared_out

__all__ = [
    "apply_gradient",
    "chosen_optimizer",
    "counted",
    "for_each_task",
    "initial_state",
    "mean_over_shares",
    "mean_over_tasks",
    "outer_step",
    "over_tasks",
    "shared_out",
]

"""The inner loop: one `unroll`, inner optimizers that step in it, strategies that differentiate through it."""

from jaxmeta.adapt.meta_gradients import MetaGradient, exact, first_order, mixed_mode, reptile, truncated
from jaxmeta.adapt.optimizers import InnerOptimizer, InnerState, adapt_only, from_optax, meta_sgd, sgd
from jaxmeta.adapt.outer import mean_over_tasks, outer_step
from jaxmeta.adapt.unroll import Trace, unroll

__all__ = [
    "InnerOptimizer",
    "InnerState",
    "MetaGradient",
    "Trace",
    "adapt_only",
    "exact",
    "first_order",
    "from_optax",
    "mean_over_tasks",
    "meta_sgd",
    "mixed_mode",
    "outer_step",
    "reptile",
    "sgd",
    "truncated",
    "unroll",
]

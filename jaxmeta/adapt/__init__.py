"""The inner loop: one `unroll`, inner optimizers that step in it, strategies that differentiate through it."""

from jaxmeta.adapt.auto import auto
from jaxmeta.adapt.evolution import evolution_strategy, persistent_evolution_strategy
from jaxmeta.adapt.implicit import Solver, conjugate_gradient, implicit, neumann_series
from jaxmeta.adapt.learned_optimizer import learned_optimizer
from jaxmeta.adapt.meta_gradients import (
    Adapted,
    MetaGradient,
    TaskGradient,
    exact,
    first_order,
    forward_mode,
    mixed_mode,
    reptile,
    truncated,
)
from jaxmeta.adapt.optimizers import (
    InnerOptimizer,
    InnerState,
    adapt_only,
    from_optax,
    lslr,
    meta_sgd,
    per_step,
    proximal,
    sgd,
)
from jaxmeta.adapt.unroll import Trace, unroll

__all__ = [
    "Adapted",
    "InnerOptimizer",
    "InnerState",
    "MetaGradient",
    "Solver",
    "TaskGradient",
    "Trace",
    "adapt_only",
    "auto",
    "conjugate_gradient",
    "evolution_strategy",
    "exact",
    "first_order",
    "forward_mode",
    "from_optax",
    "implicit",
    "learned_optimizer",
    "lslr",
    "meta_sgd",
    "mixed_mode",
    "neumann_series",
    "per_step",
    "persistent_evolution_strategy",
    "proximal",
    "reptile",
    "sgd",
    "truncated",
    "unroll",
]

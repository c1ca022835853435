"""What a user measures of what was played, told beside what a learner tells of itself."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp

from jaxmeta.checks import check_arguments
from jaxmeta.rl.rollout import Transition
from jaxmeta.types import Metrics

MetricsFn: TypeAlias = Callable[[Transition], Metrics]


def check_metrics_fn(value: Any, axes: str) -> None:
    if value is not None:
        check_arguments("metrics_fn", value, ("transitions",), f"it returns {{name: scalar}} of transitions [{axes}]")


def metrics_of(metrics_fn: MetricsFn | None, transitions: Transition) -> Metrics:
    """What a user's `metrics_fn` says, {} without one; looked at while it is traced.

    >>> metrics_of(lambda transitions: {"reached": 1.0}, None)
    {'reached': 1.0}
    """
    metrics = {} if metrics_fn is None else metrics_fn(transitions)
    if not isinstance(metrics, dict):
        raise ValueError(f"metrics_fn must return a dict {{name: scalar}}, got {type(metrics).__name__}")
    for name, value in metrics.items():
        if jnp.shape(value) != ():
            raise ValueError(f"metrics_fn must return scalars; {name} has the shape {jnp.shape(value)}: take its mean")
    return metrics


def beside(metrics: Metrics, own: Metrics) -> Metrics:
    """A user's metrics and the learner's own, which have their names to themselves.

    >>> beside({"reached": 0.5}, {"return": 1.0})
    {'reached': 0.5, 'return': 1.0}
    """
    taken = sorted(metrics.keys() & own.keys())
    if taken:
        raise ValueError(f"metrics_fn must use other names than the learner's own, got {', '.join(taken)}")
    return {**metrics, **own}

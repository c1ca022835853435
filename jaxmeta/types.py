"""The types that everything else meets in: tasks, meta-learners and what they carry.

A pluggable thing is a `NamedTuple` of pure functions; a state is a `NamedTuple` of arrays. Letters are the
same everywhere: N tasks, K inner steps, B examples.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

PyTree: TypeAlias = Any
Params: TypeAlias = Any
Batch: TypeAlias = Any
Metrics: TypeAlias = dict[str, jax.Array]

InitFn: TypeAlias = Callable[[jax.Array], Params]
LossFn: TypeAlias = Callable[[Params, Batch], tuple[jax.Array, Metrics]]


class Task(NamedTuple):
    """A supervised task: adapt on `support`, judge on `query`.

    `support` and `query` are batches, any pytree of arrays with leading axis B, such as `(x, y)`; `info` is what
    generated them (an amplitude and a phase, the classes of an episode). No learner reads `info`.
    """

    support: Batch
    query: Batch = None
    info: PyTree = ()


class TaskDistribution(NamedTuple):
    """p(T). `sample(key, data) -> task` draws one task; `data`, a pytree of arrays, is an argument of compiled
    programs and never a constant inside them, so that a large data set costs no compile time."""

    sample: Callable[[jax.Array, PyTree], PyTree]
    data: PyTree = ()


class MetaParams(NamedTuple):
    """What the outer loop learns: the initialisation θ and the inner optimizer's hyperparameters η, `()` if none."""

    params: Params
    hyper: PyTree = ()


class MetaState(NamedTuple):
    """What the outer loop carries. `num_skipped` counts outer steps that were not finite and were not applied."""

    step: jax.Array
    meta_params: MetaParams
    opt_state: PyTree
    num_skipped: jax.Array


class MetaLearner(NamedTuple):
    """Four pure functions. Tasks given to `update` have a leading axis N; `adapt` and `evaluate` take one task.

    init:     (key) -> state
    update:   (key, state, tasks) -> (state, metrics)
    adapt:    (key, meta_params, task) -> params, adapted to the task
    evaluate: (key, meta_params, task) -> {metric: [K + 1]}, before and after each inner step
    """

    init: Callable[[jax.Array], MetaState]
    update: Callable[[jax.Array, MetaState, PyTree], tuple[MetaState, Metrics]]
    adapt: Callable[[jax.Array, MetaParams, PyTree], Params]
    evaluate: Callable[[jax.Array, MetaParams, PyTree], Metrics]

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
    """p(T), as two pure functions and what they read.

    sample: (key, data) -> task, one drawn at random
    data:   a pytree of arrays; an argument of compiled programs and never a constant inside them, so that a large data
            set costs no compile time
    at:     (index, data) -> task, that of a number, where there are finitely many; else None
    size:   how many there are; None where tasks never repeat
    """

    sample: Callable[[jax.Array, PyTree], PyTree]
    data: PyTree = ()
    at: Callable[[jax.Array, PyTree], PyTree] | None = None
    size: int | None = None


class MetaParams(NamedTuple):
    """What the outer loop learns: the initialisation θ and the inner optimizer's hyperparameters η, `()` if none.

    `constants` is what the model has beside them and no gradient moves, such as a frozen backbone: strategies and outer
    optimizers see `learned(meta_params)`, without them.
    """

    params: Params
    hyper: PyTree = ()
    constants: PyTree = ()


def learned(meta_params: MetaParams) -> MetaParams:
    """What gradients and optimizers are of: `meta_params` without its constants.

    >>> learned(MetaParams(1.0, (), {"backbone": 2.0}))
    MetaParams(params=1.0, hyper=(), constants=())
    """
    return meta_params._replace(constants=())


class MetaState(NamedTuple):
    """What the outer loop carries. `num_skipped` counts outer steps that were not finite and were not applied.

    `opt_state` is the outer optimizer's and nothing else; `carry` what a learner keeps beside it, such as a replay
    buffer, `()` if nothing.
    """

    step: jax.Array
    meta_params: MetaParams
    opt_state: PyTree
    num_skipped: jax.Array
    carry: PyTree = ()


class MetaLearner(NamedTuple):
    """Four pure functions. Tasks given to `update` have a leading axis N; `adapt` and `evaluate` take one task.

    init:     (key) -> state
    update:   (key, state, tasks) -> (state, metrics)
    adapt:    (key, meta_params, task) -> params, adapted to the task
    evaluate: (key, meta_params, task) -> {metric: [K + 1]}, entry k after k units of adaptation
    agent:    (meta_params, adapted or None) -> `rl.Agent`, which acts by what `adapt` returned, or, without that, as
              before any adaptation; None where there is nothing to act in
    unit:     what adaptation is counted in: "step", "episode"
    """

    init: Callable[[jax.Array], MetaState]
    update: Callable[[jax.Array, MetaState, PyTree], tuple[MetaState, Metrics]]
    adapt: Callable[[jax.Array, MetaParams, PyTree], Params]
    evaluate: Callable[[jax.Array, MetaParams, PyTree], Metrics]
    agent: Callable[..., Any] | None = None
    unit: str = "step"

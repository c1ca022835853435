"""A classifier of all training classes, trained by minibatches: what the baselines of few-shot learning start from.

    θ, W, b ← θ, W, b − β ∇ mean_i L(softmax(f_θ(x_i) W + b); y_i)

Here a "task" is a minibatch over all classes, `Task((), (x, y))`, of `tasks.all_classes`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import nn
from jaxmeta.adapt.select import Where, check_where, freeze, unfreeze
from jaxmeta.algorithms.closed_form import Adapted, AffineHead, EmbedFn, embed
from jaxmeta.checks import (
    a_key,
    check_callable,
    check_flag,
    check_init_fn,
    check_integer,
    check_query,
    check_state,
    check_takes_key,
    check_task,
    check_tasks,
)
from jaxmeta.nn.weights import examples_of, weighted_mean
from jaxmeta.outer import chosen_optimizer, initial_state, mean_over_tasks, outer_step
from jaxmeta.types import Batch, InitFn, MetaParams, MetaState, Metrics, PyTree, Task, learned

_WINDOW = 100  # steps that the running mean of the features goes back, about


class Constants(NamedTuple):
    """What a trained classifier has beside its parameters.

    Attributes:
      frozen: the frozen parameters of the embedding, `()` if none
      feature_mean: [D], a running mean of f_θ(x) of the minibatches, each as it was when it was learned from
    """

    frozen: PyTree
    feature_mean: jax.Array


class Classifier(NamedTuple):
    """The choices of the training, checked, for the functions below; `embed_fn` is (params, x, key, weight) -> z."""

    init_fn: Callable
    embed_fn: Callable
    num_classes: int
    num_features: int
    stochastic: bool
    frozen: Where | None
    optimizer: optax.GradientTransformation
    microbatch: int | None


def classifier(
    init_fn: InitFn,
    embed_fn: EmbedFn,
    *,
    num_classes: int,
    num_features: int,
    stochastic: bool = False,
    frozen: Where | None = None,
    optimizer: optax.GradientTransformation | None = None,
    microbatch: int | None = None,
) -> Classifier:
    """The choices, looked at; arguments as in `fine_tune`."""
    check_callable("embed_fn", embed_fn, "(params, x) -> features [B, D]")
    check_flag("stochastic", stochastic)
    if frozen is not None:
        check_where("frozen", frozen)
    check_takes_key("embed_fn", embed_fn, ("params", "x"), stochastic)
    check_integer("num_classes", num_classes, minimum=1)
    check_integer("num_features", num_features, minimum=1)
    if microbatch is not None:
        check_integer("microbatch", microbatch, minimum=1)
    return Classifier(
        init_fn=check_init_fn(init_fn),
        embed_fn=partial(_features, partial(embed, embed_fn, stochastic), num_features),
        num_classes=num_classes,
        num_features=num_features,
        stochastic=stochastic,
        frozen=frozen,
        optimizer=chosen_optimizer(optimizer, optax.adam(1e-3)),
        microbatch=microbatch,
    )


def _features(embedding: Callable, num_features: int, *args: Any) -> jax.Array:
    """z = f_θ(x), [B, D]."""
    z = embedding(*args)
    if z.shape[1] != num_features:
        raise ValueError(f"num_features must be the {z.shape[1]} that embed_fn returns, got {num_features}")
    return z


def init(spec: Classifier, key: jax.Array) -> MetaState:
    """θ, W Glorot uniform, b = 0."""
    key, head_key = jax.random.split(key)
    params, frozen = freeze(spec.init_fn(key), spec.frozen)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    weights = jax.nn.initializers.glorot_uniform()(head_key, (spec.num_features, spec.num_classes), dtype)
    head = AffineHead(weights, jnp.zeros(spec.num_classes, dtype))
    constants = Constants(frozen, jnp.zeros(spec.num_features, dtype))
    return initial_state(spec.optimizer, MetaParams(Adapted(params, head), (), constants))


def _loss(
    spec: Classifier, meta_params: MetaParams, batch: Batch, key: jax.Array | None
) -> tuple[jax.Array, tuple[Metrics, jax.Array]]:
    """The cross entropy of a minibatch over all classes, its metrics, and the mean of its features [D]."""
    examples = examples_of("query", batch)
    params, head = meta_params.params
    z = spec.embed_fn(unfreeze(params, meta_params.constants.frozen), examples.x, key, examples.weight)
    loss, metrics = nn.cross_entropy(lambda head, z: head(z))(head, examples._replace(x=z))
    return loss, (metrics, weighted_mean(z, examples.weight, axis=(0,)))


def update(spec: Classifier, key: jax.Array, state: MetaState, tasks: Task) -> tuple[MetaState, Metrics]:
    """θ, W, b ← θ, W, b − β ∇ mean_i L, over N minibatches."""
    check_state(state)
    _check_has_no_support(tasks)

    def gradient(meta_params: MetaParams, per_task: tuple[jax.Array, Task]):
        key, task = per_task
        whole = lambda moving: moving._replace(constants=meta_params.constants)
        loss = lambda moving: _loss(spec, whole(moving), task.query, key)
        return jax.value_and_grad(loss, has_aux=True)(learned(meta_params))

    per_task = (jax.random.split(key, check_tasks(tasks)), tasks)
    (loss, (metrics, mean)), grads = mean_over_tasks(gradient, spec.microbatch, state.meta_params, per_task)
    after, metrics = outer_step(spec.optimizer, state, loss, metrics, grads)
    constants, num_before = after.meta_params.constants, (state.step - state.num_skipped).astype(mean.dtype)
    moved = constants.feature_mean + (mean - constants.feature_mean) / jnp.minimum(num_before + 1, _WINDOW)
    moved = jnp.where(metrics["is_finite"], moved, constants.feature_mean).astype(constants.feature_mean.dtype)
    constants = constants._replace(feature_mean=moved)
    return after._replace(meta_params=after.meta_params._replace(constants=constants)), metrics


def check_minibatch(spec: Classifier, meta_params: MetaParams, task: Task) -> None:
    check_query(task)
    _check_has_no_support(task)
    loss = lambda meta_params, key: _loss(spec, meta_params, task.query, key)[0]
    jax.eval_shape(loss, meta_params, a_key())


def _check_has_no_support(task: Task) -> None:
    """Labels of an episode would pass for those of the first training classes."""
    check_task(task)
    if jax.tree.leaves(task.support):
        raise ValueError(
            "tasks must be minibatches over all training classes without a support set, Task((), (x, y)), as those of "
            "jaxmeta.tasks.all_classes, got some with one: the labels of an episode are its own, and another's in the "
            "next"
        )

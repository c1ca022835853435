"""Losses of a batch `(x, y)` from a network: `loss_fn(params, batch) -> (loss, metrics)`, to differentiate twice.

Each takes `apply_fn(params, x)`, such as a flax module's `apply`, and checks shapes while tracing: a prediction [B, 1]
against targets [B] would broadcast to [B, B] and train on nonsense, so it is refused. Of a learner that is `stochastic`
they hand the key on, `apply_fn(params, x, key)`; it is None where `evaluate` judges.

A batch may be `jaxmeta.Examples` too, of which some are padding: what has the weight 0 counts for nothing, be it inf or
NaN. Its weights are handed to an `apply_fn` that takes `weight=`, as that of `nn.Conv4` does for its batch norms.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmeta.checks import check_callable, check_labels, check_num_ways, check_takes_key
from jaxmeta.nn.weights import along_first, apply_weighted, examples_of, mask_logits, weighted_mean
from jaxmeta.types import Batch, LossFn, Metrics, Params

ApplyFn = Callable[..., Any]  # (params, x), or with a key, weight=, or both -> prediction; a flax `apply` has more


def mean_squared_error(apply_fn: ApplyFn) -> LossFn:
    """The mean over every entry of (apply_fn(params, x) - y)², with metrics {"mse"}; weighted if the batch is.

    Args:
      apply_fn: (params, x) -> prediction, of the shape of y, such as the `apply` of a flax network; or (params, x,
        key), for a learner that is `stochastic`.

    Raises:
      ValueError: while tracing, where prediction and target differ in shape, or weights are wrong.

    >>> loss_fn = mean_squared_error(lambda params, x: params * x)
    >>> loss, metrics = loss_fn(2.0, (jnp.ones((4, 1)), jnp.zeros((4, 1))))
    >>> loss.item(), metrics["mse"].item()
    (4.0, 4.0)
    """
    check_callable("apply_fn", apply_fn, "(params, x) -> prediction")

    def loss_fn(params: Params, batch: Batch, *key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        loss = weighted_mean(*_squared_errors(apply_fn, params, batch, *key))
        return loss, {"mse": loss}

    return loss_fn


def sum_squared_error(apply_fn: ApplyFn) -> LossFn:
    """The sum over every entry of (apply_fn(params, x) - y)², with the mean as the metric {"mse"}.

    Of a weighted batch, the sum is Σ w (apply_fn(params, x) - y)², and the mean is weighted.

    Args:
      apply_fn: (params, x) -> prediction, of the shape of y, such as the `apply` of a flax network; or (params, x,
        key), for a learner that is `stochastic`.

    Raises:
      ValueError: while tracing, where prediction and target differ in shape, or weights are wrong.

    >>> loss_fn = sum_squared_error(lambda params, x: params * x)
    >>> loss, metrics = loss_fn(2.0, (jnp.ones((4, 1)), jnp.zeros((4, 1))))
    >>> loss.item(), metrics["mse"].item()
    (16.0, 4.0)
    """
    check_callable("apply_fn", apply_fn, "(params, x) -> prediction")

    def loss_fn(params: Params, batch: Batch, *key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        errors, weight = _squared_errors(apply_fn, params, batch, *key)
        each = errors if weight is None else errors * along_first(weight.astype(errors.dtype), errors)
        return jnp.sum(each), {"mse": weighted_mean(errors, weight)}

    return loss_fn


def cross_entropy(apply_fn: ApplyFn) -> LossFn:
    """−log softmax(logits)[label], the mean over the batch, with metrics {"loss", "accuracy"}.

    For logits = apply_fn(params, x) [B, num_classes] and integer labels [B], from 0 to num_classes − 1. For sequences,
    logits [B, T, num_classes] and labels [B, T], the mean is over all tokens: with x = tokens[:, :-1] and
    y = tokens[:, 1:] it is the loss of next-token prediction.

    A label outside the range is never another class: where labels are known it is an error, and `fit` and `evaluate`
    look at those of one task before anything compiles; where they are traced, loss and accuracy are NaN.

    Of a weighted batch both are weighted means, and labels of examples of weight 0 do not matter. Where the batch says
    `num_ways`, labels are below it, and logits from there on are −inf: `nn.mask_logits`.

    Args:
      apply_fn: (params, x) -> logits, such as the `apply` of a flax network; or (params, x, key), for a learner that is
        `stochastic`.

    Raises:
      ValueError: while tracing, where labels are not integers, not of the logits' leading shape, or outside the range,
        or weights or `num_ways` are wrong.

    >>> loss_fn = cross_entropy(lambda params, x: params * x)
    >>> loss, metrics = loss_fn(0.0, (jnp.ones((4, 2)), jnp.zeros(4, int)))
    >>> round(loss.item(), 4), metrics["accuracy"].item()
    (0.6931, 1.0)
    """
    check_callable("apply_fn", apply_fn, "(params, x) -> logits")

    def loss_fn(params: Params, batch: Batch, *key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        x, labels, weight, num_ways = examples_of("batch", batch)
        logits = _predict(apply_fn, params, x, *key, weight=weight)
        if logits.ndim < 1 or labels.shape != logits.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"labels y must be integers of shape [B] for logits [B, num_classes], got {labels.dtype} of shape "
                f"{labels.shape} for logits {logits.shape}: pass class numbers, not one-hot rows or [B, 1]"
            )
        logits = mask_logits(logits, num_ways)
        check_labels("labels y", labels, logits.shape[-1], weight, num_ways)
        logits, labels = _counted(logits, _wide(labels), weight)
        are_classes = jnp.all(_is_class(labels, logits.shape[-1], num_ways))
        logits += jnp.where(are_classes, 0, jnp.nan).astype(logits.dtype)  # the gradient too: no inner loop goes on
        loss = weighted_mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels), weight)
        accuracy = weighted_mean(jnp.argmax(logits, axis=-1) == labels, weight)
        return loss, {"loss": loss, "accuracy": jnp.where(jnp.any(jnp.isnan(logits)), jnp.nan, accuracy)}

    return loss_fn


def one_hot(
    labels: jax.Array,
    num_classes: int,
    dtype: Any = float,
    weight: jax.Array | None = None,
    num_ways: jax.Array | None = None,
) -> jax.Array:
    """[B] class numbers -> [B, num_classes], ones where the class is; the row of a label outside the range is NaN.

    That of an example of weight 0 is zero; with `num_ways` labels are below it.

    Raises:
      ValueError: labels that are known, not traced, are outside the range, or `num_ways` is above `num_classes`.

    >>> one_hot(jnp.array([2, 0]), 3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if num_ways is not None:
        check_num_ways("num_ways", num_ways, num_classes)
    check_labels("labels", labels, num_classes, weight, num_ways)
    labels = _wide(labels)
    rows = jax.nn.one_hot(labels, num_classes, dtype=dtype)
    rows = jnp.where(_is_class(labels, num_classes, num_ways)[..., None], rows, jnp.nan)
    return rows if weight is None else jnp.where(weight[..., None] != 0, rows, 0)


def _wide(labels: jax.Array) -> jax.Array:
    """Labels in 32 bits at least: of what eight cannot hold, `jax.nn.one_hot` makes another class."""
    labels = jnp.asarray(labels)
    return labels.astype(jnp.promote_types(labels.dtype, jnp.int32))


def _is_class(labels: jax.Array, num_classes: int, num_ways: jax.Array | None = None) -> jax.Array:
    are_classes = (labels >= 0) & (labels < num_classes)
    return are_classes if num_ways is None else are_classes & (labels < num_ways) & (num_ways <= num_classes)


def _counted(logits: jax.Array, labels: jax.Array, weight: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Both, with zeros where an example does not count."""
    if weight is None:
        return logits, labels
    counts = along_first(weight != 0, labels)
    return jnp.where(counts[..., None], logits, 0), jnp.where(counts, labels, 0)


def _predict(apply_fn: ApplyFn, params: Params, x: Any, *key: jax.Array | None, weight: jax.Array | None) -> jax.Array:
    """What `apply_fn` makes of x, and of the key where the learner is `stochastic`."""
    check_takes_key("apply_fn", apply_fn, ("params", "x"), bool(key))
    try:
        return apply_weighted(apply_fn, params, x, *key, weight=weight)
    except TypeError as error:
        if not key or "positional argument" not in str(error):
            raise
        raise ValueError(
            "apply_fn must take a key with stochastic=True: (params, x, key) -> prediction, as in lambda params, x, "
            f"key: network.apply(params, x, rngs=...); called so it raised {type(error).__name__}: {error}"
        ) from error


def _squared_errors(
    apply_fn: ApplyFn, params: Params, batch: Batch, *key: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """(prediction - y)², 0 where an example does not count, and the weights."""
    x, y, weight, num_ways = examples_of("batch", batch)
    if num_ways is not None:
        raise ValueError("num_ways of a batch must be None for squared errors, for which outputs are no classes")
    prediction = _predict(apply_fn, params, x, *key, weight=weight)
    if prediction.shape != y.shape:
        raise ValueError(
            f"the target y must have the shape of the prediction {prediction.shape}, got {y.shape}: they would "
            "broadcast silently; reshape one of them, for example y[:, None]"
        )
    errors = prediction - y
    if weight is not None:
        errors = jnp.where(along_first(weight != 0, errors), errors, 0)
    return jnp.square(errors), weight

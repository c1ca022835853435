"""What the weights of a batch's examples do: means by them, and networks that are applied to a batch that has them.

A loss of a weighted batch means nothing where a norm inside the network averages over its padding. So whoever applies a
network to such a batch does so under the name of an axis, `_WEIGHTED`, of size one and along which nothing is mapped: a
norm that meets it without a weight refuses. The name is part of the key of all of jax's caches, so that a function that
was traced, and is cached, for an unweighted batch is traced anew; a variable of Python's would not be looked at again.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_num_ways, check_weight
from jaxmeta.types import Batch, Examples, Params

_WEIGHTED = "examples of a weighted batch"


def weighted_mean(
    values: jax.Array, weight: jax.Array | None, axis: tuple[int, ...] | None = None, keepdims: bool = False
) -> jax.Array:
    """Σ w v / Σ w, each entry of an example with the example's weight; `jnp.mean` without weights.

    What is in rows of weight 0 does not matter, be it inf or NaN, for the mean and for its derivatives.

    Args:
      values: v [B, ...], such as the losses of the examples of a batch, or of each of their tokens.
      weight: w [B] ≥ 0, as in `jaxmeta.Examples`; None for none.
      axis: over which axes, the first among them; all if None.
      keepdims: whether they stay, of size 1.

    Returns:
      In the type of the values, or floating where they are not; NaN where all weights are 0, and they are not known.

    Raises:
      ValueError: the weights are not [B], or are known and negative, not finite, or all 0.

    >>> weighted_mean(jnp.array([1.0, 4.0, jnp.nan]), jnp.array([2.0, 1.0, 0.0])).item()
    2.0
    """
    if weight is None:
        return jnp.mean(values, axis, keepdims=keepdims)
    weight = checked_weight("weight", weight, len(values) if values.ndim else 0)
    values = values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.float32)
    dtype = jnp.promote_types(values.dtype, jnp.float32)  # sums of few bits are as wide inside of jnp.mean
    each = along_first(weight.astype(dtype), values)
    total = jnp.sum(jnp.where(each != 0, values, 0) * each, axis, keepdims=keepdims)
    entries = values.size // max(1, total.size * len(values))
    return (total / (jnp.sum(each) * entries)).astype(values.dtype)


def mask_logits(logits: jax.Array, num_ways: jax.Array | int | None) -> jax.Array:
    """Logits [..., C] with −inf from class `num_ways` on: no part in a softmax or an argmax, and no gradient.

    The stock losses, and the heads that `protonet` and `ridge` return, do it by themselves; the prediction of a network
    with more outputs than an episode has classes needs it, `mask_logits(network.apply(params, x), query.num_ways)`.

    Args:
      logits: [..., C].
      num_ways: of how many classes the episode is, from 1 to C; all of them if None.

    Raises:
      ValueError: `num_ways` is no integer, or is known and not from 1 to C.

    >>> mask_logits(jnp.array([[0.5, 1.0, 7.0]]), 2).tolist()
    [[0.5, 1.0, -inf]]
    """
    if num_ways is None:
        return logits
    check_num_ways("num_ways", num_ways, logits.shape[-1])
    classes = jnp.arange(logits.shape[-1]).reshape((1,) * (logits.ndim - 1) + (-1,))
    return jnp.where(classes < num_ways, logits, -jnp.inf)


def along_first(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector [B] along the first axis of x [B, ...]."""
    return vector.reshape(vector.shape + (1,) * (x.ndim - 1))


def checked_weight(name: str, weight: Any, num_examples: int) -> Any:
    """Weights as floating numbers, of numpy where they are known, so that they stay so in what traces them.

    Where they are only traced, and one is negative or all are 0, all are NaN, and so is what comes of them.
    """
    check_weight(name, weight, num_examples)
    is_known = not isinstance(weight, jax.core.Tracer)
    weight = np.asarray(weight) if is_known else weight
    weight = weight if jnp.issubdtype(weight.dtype, jnp.floating) else weight.astype(jnp.float32)
    return weight if is_known else jnp.where(jnp.all(weight >= 0) & jnp.any(weight > 0), weight, jnp.nan)


def examples_of(name: str, batch: Batch) -> Examples:
    """A pair (x, y), or `Examples` with what they say checked, as `Examples`."""
    if not isinstance(batch, Examples):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                f"{name} must be a pair (x, y) of inputs and targets, or jaxmeta.Examples, got {type(batch).__name__}"
            )
        return Examples(*batch)
    if batch.weight is None:
        return batch
    return batch._replace(weight=checked_weight(f"{name}.weight", batch.weight, num_examples(batch.y)))


def apply_weighted(apply_fn: Callable, params: Params, x: Any, *key: Any, weight: Any = None, **options: Any) -> Any:
    """`apply_fn(params, x, *key, **options)`, with `weight=` where it takes it, and under the name for norms.

    In place of examples of weight 0 it is given the first that counts: nothing of what is there reaches anything.
    """
    if weight is None:
        return apply_fn(params, x, *key, **options)
    counts = weight != 0
    first = jnp.argmax(counts)

    def counted(leaf: jax.Array) -> jax.Array:
        is_of_examples = jnp.shape(leaf)[:1] == weight.shape
        return jnp.where(along_first(counts, leaf), leaf, jnp.asarray(leaf)[first][None]) if is_of_examples else leaf

    x = jax.tree.map(counted, x)
    options |= {"weight": weight} if takes_weight(apply_fn) else {}
    apply = lambda _: apply_fn(params, x, *key, **options)
    return jax.vmap(apply, in_axes=None, out_axes=None, axis_size=1, axis_name=_WEIGHTED)(())


def takes_weight(fn: Callable, method: Any = None) -> bool:
    """Whether a function has a parameter `weight`; of the `apply` of a flax module, its `__call__` or `method`.

    >>> takes_weight(lambda params, x, weight=None: x), takes_weight(lambda params, x: x)
    (True, False)
    """
    if isinstance(fn, functools.partial):
        return "weight" not in fn.keywords and takes_weight(fn.func, fn.keywords.get("method", method))
    module = getattr(fn, "__self__", None)
    if isinstance(module, nn.Module) and fn.__name__ == "apply":
        applied = "__call__" if method is None else method
        fn = getattr(module, applied) if isinstance(applied, str) else applied
    elif hasattr(fn, "__wrapped__"):  # by jax.jit, of the apply of a module
        return takes_weight(fn.__wrapped__, method)
    try:
        parameter = inspect.signature(fn).parameters.get("weight")
    except ValueError:  # a builtin has no signature
        return False
    return parameter is not None and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY


def checked_weight_of_norm(weight: jax.Array | None, x: jax.Array) -> jax.Array | None:
    """The weight that a norm by the batch was given; without one it must not be inside of a weighted batch."""
    if weight is not None:
        return checked_weight("weight", weight, len(x))
    try:
        jax.lax.axis_index(_WEIGHTED)
    except NameError:
        return None
    raise ValueError(
        "weight must be given to a batch norm in a network that is applied to weighted examples (jaxmeta.Examples), or "
        "its statistics are of padding too, got None: hand it on, as in lambda params, x, weight=None: "
        "network.apply(params, x, weight=weight), and in __call__(self, x, weight=None) of a module of your own. Where "
        "x is not the batch, say that all of it counts, weight=jnp.ones(len(x))"
    )


def num_examples(tree: Any) -> int:
    """B, the leading axis of the first array."""
    shape = next(iter(map(jnp.shape, jax.tree.leaves(tree))), ())
    if not shape:
        raise ValueError(f"a weighted batch must have a leading axis of examples, got a batch of {tree!r}")
    return shape[0]

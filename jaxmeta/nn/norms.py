"""Batch norm as flax layers, by the statistics of the batch, or by those of a task's support set.

    y = scale * (x - mean) / sqrt(var + epsilon) + bias,   mean and var (without Bessel's correction) over all axes but
                                                           the last

- Given `{"params": ...}`, a network of these layers normalises each batch by itself: the inner loop the support set,
  and, unless told otherwise, queries by queries (transductive: a prediction depends on the rest of its batch).
- Given `{"params": ..., "statistics": ...}` it normalises with what is stored there, whatever it is applied to: one
  image at a time gives what a batch gives. `support_statistics` is how they come there.

There are no running averages over tasks. Where no statistics of a batch are wanted at all, `flax.linen.LayerNorm` and
`flax.linen.GroupNorm` are exact and fast with parameters that differ per task; give them `use_fast_variance=False`, or
a large mean costs all digits.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmeta.checks import check_callable, check_integer
from jaxmeta.nn.layers import Initializer, Padding, batch_norm, conv, conv_batch_norm, pair
from jaxmeta.types import Batch, Params


def support_statistics(apply_fn: Callable[..., Any]) -> Callable[[Params, Batch], Params]:
    """The `condition_fn` by which a learner judges, and is used, with the support set's statistics.

        condition_fn(params, (x, y)) = {**params, "statistics": mean and var of each norm's input, applied to x}

    They are functions of the adapted parameters and are differentiated as such, so the network is trained as it is
    tested, under every meta-gradient.

    Args:
      apply_fn: the `apply` of a flax network with `BatchNorm`s or `ConvBatchNorm`s.

    Returns:
      (params, support) -> params with "statistics". The support set is x, or a tuple that begins with it.

    Raises:
      ValueError: `apply_fn` is no function; while tracing, the parameters are no flax variables, or the network has no
        such layer, or applies one several times.

    >>> network = BatchNorm()
    >>> params = network.init(jax.random.key(0), jnp.ones((1, 1)))
    >>> adapted = support_statistics(network.apply)(params, (jnp.array([[1.0], [5.0]]), None))
    >>> adapted["statistics"]["mean"].item(), adapted["statistics"]["var"].item()
    (3.0, 4.0)
    >>> round(network.apply(adapted, jnp.array([[7.0]])).item(), 3)  # one at a time
    2.0
    """
    check_callable("apply_fn", apply_fn, "(params, x) -> prediction, the apply of a flax module")
    kinds = {name: parameter.kind for name, parameter in inspect.signature(apply_fn).parameters.items()}
    if "mutable" not in kinds and inspect.Parameter.VAR_KEYWORD not in kinds.values():
        raise ValueError(f"apply_fn must take mutable=, as the apply of a flax module itself does, got {apply_fn!r}")

    def condition_fn(params: Params, support: Batch) -> Params:
        if not isinstance(params, Mapping) or "params" not in params:
            raise ValueError(f"params must be flax variables, with a key 'params', got {type(params).__name__}")
        learned = {name: part for name, part in params.items() if name != "statistics"}
        x = support[0] if isinstance(support, tuple | list) else support
        _, observed = apply_fn(learned, x, mutable=["statistics"])
        if not observed:
            raise ValueError("apply_fn must be of a network with nn.BatchNorm or nn.ConvBatchNorm, it has none of them")
        return {**learned, **observed}

    return condition_fn


class BatchNorm(nn.Module):
    """`batch_norm` with parameters "scale" [C] (ones) and "bias" [C] (zeros), by the batch or by "statistics".

    Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift"
    (2015), https://arxiv.org/abs/1502.03167

    >>> layer = BatchNorm()
    >>> params = layer.init(jax.random.key(0), jnp.ones((2, 3)))
    >>> jax.tree.map(jnp.shape, params)
    {'params': {'bias': (3,), 'scale': (3,)}}
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., C]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        if _is_by_the_batch(self):
            return batch_norm(x, scale, bias, self.epsilon)
        return _by_statistics(self, x, scale, bias)


class ConvBatchNorm(nn.Module):
    """`conv_batch_norm` with parameters "kernel" [kh, kw, C, F], "scale" [F] (ones) and "bias" [F] (zeros).

    By the batch or by "statistics", as `BatchNorm`.

    >>> layer = ConvBatchNorm(features=2, kernel_size=(3, 3), strides=2)
    >>> params = layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    >>> jax.tree.map(jnp.shape, params)
    {'params': {'bias': (2,), 'kernel': (3, 3, 1, 2), 'scale': (2,)}}
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] = 1
    padding: Padding = "SAME"
    epsilon: float = 1e-5
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        check_integer("features", self.features, 1)
        window = pair("kernel_size", self.kernel_size)
        kernel = self.param("kernel", self.kernel_init, (*window, x.shape[-1], self.features), jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (self.features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        strides, padding = self.strides, self.padding
        if _is_by_the_batch(self):
            return conv_batch_norm(x, kernel, scale, bias, strides=strides, padding=padding, epsilon=self.epsilon)
        return _by_statistics(self, conv(x, kernel, strides=strides, padding=padding), scale, bias)


def _is_by_the_batch(layer: BatchNorm | ConvBatchNorm) -> bool:
    """Whether statistics are neither stored nor asked for."""
    is_stored = layer.has_variable("statistics", "mean")
    return layer.is_initializing() or not (is_stored or layer.is_mutable_collection("statistics"))


def _by_statistics(layer: BatchNorm | ConvBatchNorm, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalises by what is stored; where "statistics" is mutable, by the batch, and stores it."""
    if layer.is_mutable_collection("statistics"):
        _store_moments(layer, x)
    mean: Any = layer.get_variable("statistics", "mean")
    var: Any = layer.get_variable("statistics", "var")
    along_last = lambda vector: vector.reshape((1,) * (x.ndim - 1) + vector.shape)
    return (x - along_last(mean)) * along_last(scale * lax.rsqrt(var + layer.epsilon)) + along_last(bias)


def _store_moments(layer: BatchNorm | ConvBatchNorm, x: jax.Array) -> None:
    if x.ndim < 2:
        raise ValueError(f"x must be [..., C] with at least one axis of examples, got shape {x.shape}")
    if layer.has_variable("statistics", "mean"):
        raise ValueError(
            f"{layer.name or 'a batch norm'} is applied several times in one pass, so it has no one mean: make a layer "
            "for each, or leave support_statistics out"
        )
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes, keepdims=True)
    layer.put_variable("statistics", "mean", mean.reshape(-1))
    layer.put_variable("statistics", "var", jnp.mean(jnp.square(x - mean), axes))

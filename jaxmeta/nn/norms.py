"""Batch norm as flax layers, by the statistics of the batch, or by those of a task's support set.

    y = scale * (x - mean) / sqrt(var + epsilon) + bias,   mean and var (without Bessel's correction) over all axes but
                                                           the last

- Given `{"params": ...}`, a network of these layers normalises each batch by itself: the inner loop the support set,
  and, unless told otherwise, queries by queries (transductive: a prediction depends on the rest of its batch).
  Given the `weight` [B] of the examples too, by those that count: the loss of a weighted batch hands it to a network
  whose `__call__(self, x, weight=None)` hands it on, and refuses one that does not.
- Given `{"params": ..., "statistics": ...}` it normalises with what is stored there, whatever it is applied to: one
  image at a time gives what a batch gives. `support_statistics` puts it there: the support set's, after adaptation.

Accuracy on Omniglot 5-way 1-shot of MAML with `Conv4` after three inner steps (seed 0, 8 tasks a step, an outer rate of
3e-3 for 64 filters, 1e-2 for 16; 600 test tasks, 200 of them one image at a time):

| statistics of queries, in training and at test | 64 filters, 2,000 steps | one at a time | 16 filters, 600 steps |
|------------------------------------------------|-------------------------|---------------|-----------------------|
| their own                                      | .940 ± .004             | .24           | .853 (200 tasks)      |
| the support set's                              | .922 ± .005             | .924          | .828 ± .007           |

With 16 filters and 600 steps of one task `protonet` (60-way in training) has .926 by the queries' own and .910 by the
support set's, `ridge` (20-way) .882 and .827; one at a time .912 and .827, and by their own .20 and .24.

There are no running averages over tasks, for they fail. In the network of .853 queries are at .64 by averages over the
adapted networks of training tasks, and, with these averages in the inner loop too, at .42 after one inner step and at
.21, chance, after three: a step through constants is not the step that was trained. And what the last norm sees is the
task's own: its mean differs from task to task by .4 of the standard deviation, and the inner step moves it by .5 of
that, so that the support set's statistics of before the step are no better (.64). Those of after it have .83 there, in
a network that was not trained for them. Blended with an image's own (TaskNorm, the support set's share 5/6) they had
.826, and GroupNorm of 4 groups, with the same rates, .63.

Bronskill, Gordon, Requeima, Nowozin, Turner, "TaskNorm: Rethinking Batch Normalization for Meta-Learning" (2020),
https://arxiv.org/abs/2003.03284, where statistics of the support set are called MetaBN.

Where no statistics of a batch are wanted at all, `flax.linen.LayerNorm` and `flax.linen.GroupNorm` are exact and fast
with parameters that differ per task; give them `use_fast_variance=False`, or a large mean costs all digits. A network
of `flax.nnx` keeps its own batch norm and dropout where each call works on a copy, with the statistics of the batch and
with the key that `stochastic=True` gives (none where it is judged). Its dropout needs a stream of its own, which
`nnx.reseed` takes by name, and passes over in silence where there is none of it:

    make = lambda key: Network(nnx.Rngs(params=key, dropout=0))
    graphdef, _, rest = nnx.split(make(jax.random.key(0)), nnx.Param, ...)
    init_fn = lambda key: nnx.split(make(key), nnx.Param, ...)[1]

    def apply_fn(params, x, key=None):
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.set_attributes(use_running_average=False, deterministic=key is None)
        if key is not None:
            nnx.reseed(model, dropout=key)
        return model(x)
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmeta.checks import check_callable, check_integer, check_number
from jaxmeta.nn.convolution import conv
from jaxmeta.nn.layers import Initializer, batch_norm, check_initializer, conv_batch_norm
from jaxmeta.nn.patches import Padding, pair
from jaxmeta.nn.weights import apply_weighted, checked_weight, checked_weight_of_norm, num_examples, weighted_mean
from jaxmeta.types import Batch, Examples, Params


def support_statistics(apply_fn: Callable[..., Any]) -> Callable[[Params, Batch], Params]:
    """The `condition_fn` by which a learner judges, and is used, with the support set's statistics.

        condition_fn(params, (x, y)) = {**params, "statistics": mean and var of each norm's input, applied to x}

    They are functions of the adapted parameters and are differentiated as such, so the network is trained as it is
    tested, under every meta-gradient; figures are at the head of this file. A network that was trained without them can
    be given them too: `params = condition_fn(learner.adapt(...), task.support)`.

    Args:
      apply_fn: the `apply` of a flax network with `BatchNorm`s or `ConvBatchNorm`s.

    Returns:
      (params, support) -> params with "statistics". The support set is x, or a tuple that begins with it; of
      `jaxmeta.Examples` with weights the statistics are weighted.

    Raises:
      ValueError: `apply_fn` is no function; while tracing, the parameters are no flax variables, or the network has no
        such layer, applies one several times, or does not hand the weights on.

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
        weight = support.weight if isinstance(support, Examples) else None
        if weight is not None:
            weight = checked_weight("support.weight", weight, num_examples(x))
        _, observed = apply_weighted(apply_fn, learned, x, weight=weight, mutable=["statistics"])
        if not observed:
            raise ValueError("apply_fn must be of a network with nn.BatchNorm or nn.ConvBatchNorm, it has none of them")
        return {**learned, **observed}

    return condition_fn


class BatchNorm(nn.Module):
    """`batch_norm` with parameters "scale" [C] (ones) and "bias" [C] (zeros), by the batch or by "statistics".

    Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift"
    (2015), https://arxiv.org/abs/1502.03167

    Attributes:
      epsilon: > 0, added to the variance, in its units.

    >>> layer = BatchNorm()
    >>> params = layer.init(jax.random.key(0), jnp.ones((2, 3)))
    >>> jax.tree.map(jnp.shape, params)
    {'params': {'bias': (3,), 'scale': (3,)}}
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, *, weight: jax.Array | None = None) -> jax.Array:
        """[..., C] -> [..., C], with weights [B] of the examples for statistics of the batch."""
        check_number("epsilon", self.epsilon, minimum=1e-12)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        if _is_by_the_batch(self):
            return batch_norm(x, scale, bias, self.epsilon, weight)
        return _by_statistics(self, x, scale, bias, weight)


class ConvBatchNorm(nn.Module):
    """`conv_batch_norm` with parameters "kernel" [kh, kw, C, F], "scale" [F] (ones) and "bias" [F] (zeros).

    By the batch or by "statistics", as `BatchNorm`.

    Attributes:
      features: F, channels of the output, at least 1.
      kernel_size: height and width of the kernel in pixels, one for both or a pair.
      strides: step between patches in pixels, as in `conv`.
      padding: as in `conv`.
      epsilon: > 0, added to the variance, in its units.
      kernel_init: (key, shape, dtype) -> kernel; LeCun-normal if None.

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
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, weight: jax.Array | None = None) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features], with weights [B] of the examples for statistics of the batch."""
        check_integer("features", self.features, 1)
        check_number("epsilon", self.epsilon, minimum=1e-12)
        check_initializer("kernel_init", self.kernel_init)
        window = pair("kernel_size", self.kernel_size)
        kernel = self.param(
            "kernel",
            self.kernel_init or nn.initializers.lecun_normal(),
            (*window, x.shape[-1], self.features),
            jnp.float32,
        )
        scale = self.param("scale", nn.initializers.ones, (self.features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        how: dict[str, Any] = {"strides": self.strides, "padding": self.padding}
        if _is_by_the_batch(self):
            return conv_batch_norm(x, kernel, scale, bias, epsilon=self.epsilon, weight=weight, **how)
        return _by_statistics(self, conv(x, kernel, **how), scale, bias, weight)


def _is_by_the_batch(layer: BatchNorm | ConvBatchNorm) -> bool:
    """Whether statistics are neither stored nor asked for."""
    is_stored = layer.has_variable("statistics", "mean")
    return layer.is_initializing() or not (is_stored or layer.is_mutable_collection("statistics"))


def _by_statistics(
    layer: BatchNorm | ConvBatchNorm, x: jax.Array, scale: jax.Array, bias: jax.Array, weight: jax.Array | None
) -> jax.Array:
    """Normalises by what is stored; where "statistics" is mutable, by the batch, and stores it."""
    if layer.is_mutable_collection("statistics"):
        _store_moments(layer, x, weight)
    mean: Any = layer.get_variable("statistics", "mean")
    var: Any = layer.get_variable("statistics", "var")
    along_last = lambda vector: vector.reshape((1,) * (x.ndim - 1) + vector.shape)
    return (x - along_last(mean)) * along_last(scale * lax.rsqrt(var + layer.epsilon)) + along_last(bias)


def _store_moments(layer: BatchNorm | ConvBatchNorm, x: jax.Array, weight: jax.Array | None) -> None:
    if x.ndim < 2:
        raise ValueError(f"x must be [..., C] with at least one axis of examples, got shape {x.shape}")
    if layer.has_variable("statistics", "mean"):
        raise ValueError(
            f"{layer.name or 'a batch norm'} is applied several times in one pass, so it has no one mean: make a layer "
            "for each, or leave support_statistics out"
        )
    weight = checked_weight_of_norm(weight, x)
    axes = tuple(range(x.ndim - 1))
    mean = weighted_mean(x, weight, axes, keepdims=True)
    layer.put_variable("statistics", "mean", mean.reshape(-1))
    layer.put_variable("statistics", "var", weighted_mean(jnp.square(x - mean), weight, axes))

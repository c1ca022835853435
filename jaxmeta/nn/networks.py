"""The networks of the few-shot papers, as flax modules: `MLP` for regression, `Conv4` for images.

Their last dense layer is named "head", so that what adapts only the head (ANIL) finds it. Initialise with
`params = network.init(key, x)` and pass `network.apply` where an `apply_fn` is asked for.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.checks import check_callable, check_flag, check_integer, check_widths
from jaxmeta.nn import products
from jaxmeta.nn.layers import max_pool
from jaxmeta.nn.norms import ConvBatchNorm

_glorot = nn.initializers.glorot_uniform()


class MLP(nn.Module):
    """A multi-layer perceptron, with relu unless another `activation` is given: [B, D] -> [B, num_outputs].

        h_0 = x,  h_i = relu(h_{i-1} W_i + b_i),  y = h_L W + b

    The default is the sinusoid network of Finn et al., "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks", 2017, https://arxiv.org/abs/1703.03400; `hidden=()` is a linear model. Kernels are Glorot uniform,
    biases zero. With `num_context`, h_0 = [x, φ]: a parameter "context" φ [num_context], zero at first, goes in beside
    every x, for `jaxmeta.cavia`.

    Attributes:
      hidden: widths of the hidden layers, in units.
      num_outputs: numbers that are predicted for each x, at least 1.
      num_context: length of φ, 0 for none.
      activation: of the hidden layers; relu if None.

    >>> network = MLP()
    >>> params = network.init(jax.random.key(0), jnp.ones((10, 1)))
    >>> network.apply(params, jnp.ones((10, 1))).shape
    (10, 1)
    >>> sorted(params["params"])
    ['head', 'hidden0', 'hidden1']
    """

    hidden: Sequence[int] = (40, 40)
    num_outputs: int = 1
    num_context: int = 0
    activation: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, D] -> [B, num_outputs]."""
        check_integer("num_outputs", self.num_outputs, 1)
        check_integer("num_context", self.num_context, 0)
        check_widths("hidden", self.hidden)
        if self.activation is not None:
            check_callable("activation", self.activation, "(array) -> array")
        if x.ndim != 2:
            raise ValueError(f"x must be [B, D], got shape {x.shape}: give a single feature its own axis, x[:, None]")
        if self.num_context:
            context = self.param("context", nn.initializers.zeros, (self.num_context,), jnp.float32)
            x = jnp.concatenate([x, jnp.broadcast_to(context, (len(x), self.num_context))], axis=1)
        for i, width in enumerate(self.hidden):
            x = (self.activation or nn.relu)(_dense(width, f"hidden{i}")(x))
        return _dense(self.num_outputs, "head")(x)


def _dense(features: int, name: str) -> nn.Dense:
    """flax's, but with products that are fast in every derivative where each task has small weights of its own."""
    return nn.Dense(features, kernel_init=_glorot, name=name, dot_general=_of_rows)


def _of_rows(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None) -> jax.Array:
    return products.of_rows(x, kernel)


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, batch norm and relu, then a dense head: images -> logits [B, num_classes].

    Without classes, `num_classes=None`, there is no head: an embedding, images -> features [B, D].

    With `strided`, convolutions have stride 2 and the head sees the mean over the positions that are left: the
    Omniglot network of Finn et al., "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017,
    https://arxiv.org/abs/1703.03400, and of their code. Without, stride 1, each block ends in a 2x2 max-pool and the
    head sees all positions: the network of Vinyals et al., "Matching Networks for One Shot Learning", 2016,
    https://arxiv.org/abs/1606.04080, in use for Mini-ImageNet. Batch norm takes the place of the convolutions' biases.
    Its statistics are those of the batch it is given, at test time too, or those of the support set: see
    `jaxmeta.nn.support_statistics`. With a `weight` [B] of the examples they are those of what counts.

    Images are uint8 (divided by 255, so that ink is 1) or floats in [0, 1]; [B, H, W] or [B, H, W, C].

    Attributes:
      num_classes: logits for each image, at least 1; None for an embedding without a head.
      num_filters: channels of each block's output.
      strided: whether convolutions have stride 2; otherwise stride 1, and a max-pool after each.

    >>> network = Conv4(num_classes=5, num_filters=8)
    >>> images = jnp.zeros((5, 28, 28), jnp.uint8)
    >>> params = network.init(jax.random.key(0), images)
    >>> network.apply(params, images).shape
    (5, 5)
    """

    num_classes: int | None
    num_filters: int = 64
    strided: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, weight: jax.Array | None = None) -> jax.Array:
        """[B, H, W] or [B, H, W, C], and the weights [B] or None -> [B, num_classes], or [B, D] without classes."""
        if self.num_classes is not None:
            check_integer("num_classes", self.num_classes, 1)
        check_integer("num_filters", self.num_filters, 1)
        check_flag("strided", self.strided)
        x = as_images(x)
        strides = 2 if self.strided else 1
        for i in range(4):
            block = ConvBatchNorm(
                self.num_filters, (3, 3), strides=strides, epsilon=1e-3, kernel_init=_glorot, name=f"block{i}"
            )
            x = nn.relu(block(x, weight=weight))
            if not self.strided:
                x = max_pool(x)
        x = jnp.mean(x, axis=(1, 2)) if self.strided else x.reshape(x.shape[0], -1)
        return x if self.num_classes is None else nn.Dense(self.num_classes, kernel_init=_glorot, name="head")(x)


def as_images(x: jax.Array) -> jax.Array:
    """uint8 or float images, with or without a channel axis, as floats [B, H, W, C]."""
    if x.ndim not in (3, 4):
        raise ValueError(f"x must be images [B, H, W] or [B, H, W, C], got shape {x.shape}")
    if x.dtype == jnp.uint8:
        x = x.astype(jnp.float32) / 255
    elif not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be uint8 in [0, 255] or floating in [0, 1], got {x.dtype}: convert it")
    return x if x.ndim == 4 else x[..., None]

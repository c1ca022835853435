"""Layers that are fast, and exact, when every task has its own weights and is differentiated twice.

`Conv` is a drop-in for `flax.linen.Conv`, with the same names and shapes of parameters.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.checks import check_callable, check_flag, check_integer, check_number
from jaxmeta.nn.convolution import conv, convolve, is_wide
from jaxmeta.nn.patches import Padding, check_images, pair, patches_of, product, taps_of
from jaxmeta.nn.weights import along_first, checked_weight_of_norm, weighted_mean

Initializer = Callable[..., Any]


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-5, weight: jax.Array | None = None
) -> jax.Array:
    """Normalises with the statistics of the batch it is given, always.

        y = scale * (x - mean) / sqrt(var + epsilon) + bias,   mean and var over every axis but the last.

    With weights w of the examples the mean is Σ w x / Σ w, and var so too: of those of weight 0 nothing is in them, and
    they are normalised as all others.

    There are no running statistics: at test time too a batch is normalised by itself, as in the code of Finn et al.,
    "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017, https://arxiv.org/abs/1703.03400. A
    prediction so depends on the other inputs of its batch (the transductive setting), and accuracies measured with it
    are to be compared only with others measured like this. The variance is that of the centred values (two passes),
    so a large mean costs no digits.

    Args:
      x: [..., C], with at least two axes.
      scale: [C].
      bias: [C].
      epsilon: ≥ 0, added to the variance.
      weight: [B], of the examples along the first axis, ≥ 0; all count alike if None.

    Returns:
      [..., C], of the shape of x.

    Raises:
      ValueError: shapes do not fit; `epsilon` or weights are wrong, or missing in a loss of a weighted batch.

    >>> y = batch_norm(jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.zeros(1), epsilon=0.0)
    >>> y.tolist()
    [[-1.0], [1.0]]
    """
    _check_scale_and_bias(x, scale, bias)
    check_number("epsilon", epsilon)
    weight = checked_weight_of_norm(weight, x)
    axes = tuple(range(x.ndim - 1))
    centred = x - weighted_mean(x, weight, axes, keepdims=True)
    variance = weighted_mean(centred * centred, weight, axes)
    return centred * _last(scale * lax.rsqrt(variance + epsilon), x) + _last(bias, x)


def conv_batch_norm(
    x: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    epsilon: float = 1e-5,
    weight: jax.Array | None = None,
) -> jax.Array:
    """`batch_norm(conv(x, kernel), scale, bias)`, cheaper where patches are smaller than features.

    The moments of a linear map follow from those of its input: with m and S the mean and covariance of the patches,

        y = (patches - m) W diag(scale / sqrt(diag(W' S W) + epsilon)) + bias

    so that on images of one channel no pass over the features is left, nor in any derivative, and what depends on the
    weights is a 9 x 9 matrix. This is used when kh * kw * C < F, and the plain composition otherwise, or where `conv`
    cuts no patches. `epsilon` has to be positive: rounding can leave a variance of zero slightly below it.

    Args:
      x: images [B, H, W, C].
      kernel: weights [kh, kw, C, F].
      scale: [F].
      bias: [F].
      strides: as in `conv`.
      padding: as in `conv`.
      epsilon: > 0, added to the variance.
      weight: [B], as in `batch_norm`.

    Returns:
      [B, H', W', F].

    Raises:
      ValueError: as `conv` and `batch_norm`.

    >>> x, kernel = jnp.arange(16.0).reshape(1, 4, 4, 1), jnp.ones((3, 3, 1, 16))
    >>> y = conv_batch_norm(x, kernel, jnp.ones(16), jnp.zeros(16), padding="VALID")
    >>> bool(jnp.allclose(y, batch_norm(conv(x, kernel, padding="VALID"), jnp.ones(16), jnp.zeros(16)), atol=1e-5))
    True
    """
    check_number("epsilon", epsilon, minimum=1e-12)
    taps = taps_of(x, kernel, strides, padding)
    if kernel.size >= kernel.shape[-1] ** 2 or is_wide(x, kernel, taps):
        return batch_norm(convolve(x, kernel, taps), scale, bias, epsilon, weight)
    _check_scale_and_bias(kernel, scale, bias)
    weight = checked_weight_of_norm(weight, x)
    patches = patches_of(x, taps)
    centred = patches - weighted_mean(patches, weight, (0, 1, 2), keepdims=True)
    weights = kernel.reshape(-1, kernel.shape[-1])
    variance = jnp.sum(weights * (_covariance(centred, weight) @ weights), axis=0)
    y = product(centred, kernel * _last(scale * lax.rsqrt(variance + epsilon), kernel))
    return y + _last(bias, y)


def _covariance(centred: jax.Array, weight: jax.Array | None) -> jax.Array:
    """S = Σ w p pᵀ / Σ w of centred patches p, from [B, H', W', P]."""
    number = centred.size // centred.shape[-1]
    if weight is None:
        return jnp.tensordot(centred, centred, (_EXAMPLES, _EXAMPLES)) / number
    each = along_first(weight.astype(centred.dtype), centred)
    counted = jnp.where(each != 0, centred, 0)
    total = jnp.sum(weight) * (number // len(weight))
    return (jnp.tensordot(counted * each, counted, (_EXAMPLES, _EXAMPLES)) / total).astype(centred.dtype)


_EXAMPLES = (0, 1, 2)  # the axes of images [B, H, W, C] that are no channels


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of each 2x2 block, stride 2; an odd last row or column is dropped (padding "VALID").

        y[b, p, q, c] = max over i, j in {0, 1} of x[b, 2p + i, 2q + j, c]

    Args:
      x: [B, H, W, C], H and W at least 2.

    Returns:
      [B, H // 2, W // 2, C].

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    if x.ndim != 4 or min(x.shape[1:3]) < 2:
        raise ValueError(f"x must be [B, H, W, C] with H and W at least 2, got shape {x.shape}")
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2].reshape(batch, height // 2, 2, width // 2, 2, channels)
    return _largest(x)[0]


class Conv(nn.Module):
    """`flax.linen.Conv` in two dimensions by `conv`: the same parameters "kernel" [kh, kw, C, F] and "bias" [F].

    Attributes:
      features: F, channels of the output, at least 1.
      kernel_size: height and width of the kernel in pixels, one for both or a pair.
      strides: step between patches in pixels, as in `conv`.
      padding: as in `conv`.
      kernel_dilation: in pixels, as in `conv`.
      use_bias: whether a bias is added.
      dtype: of the computation; that of input and parameters if None.
      param_dtype: of the parameters.
      kernel_init: (key, shape, dtype) -> kernel; LeCun-normal if None.
      bias_init: (key, shape, dtype) -> bias; zeros if None.

    >>> layer = Conv(features=2, kernel_size=(3, 3), strides=2)
    >>> params = layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    >>> jax.tree.map(jnp.shape, params)
    {'params': {'bias': (2,), 'kernel': (3, 3, 1, 2)}}
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] = 1
    padding: Padding = "SAME"
    kernel_dilation: int | Sequence[int] = 1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        check_integer("features", self.features, 1)
        check_flag("use_bias", self.use_bias)
        for name in ("kernel_init", "bias_init"):
            check_initializer(name, getattr(self, name))
        check_images(x)
        window = pair("kernel_size", self.kernel_size)
        kernel = self.param(
            "kernel",
            self.kernel_init or nn.initializers.lecun_normal(),
            (*window, x.shape[-1], self.features),
            self.param_dtype,
        )
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init or nn.initializers.zeros, (self.features,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv(x, kernel, strides=self.strides, padding=self.padding, kernel_dilation=self.kernel_dilation)
        return y if bias is None else y + _last(bias, y)


def check_initializer(name: str, value: Any) -> None:
    """None, or a function of a key, a shape and a dtype."""
    if value is not None:
        check_callable(name, value, "(key, shape, dtype) -> array")


@jax.custom_jvp
def _largest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of blocks [B, H, 2, W, 2, C] the largest entries, the first of equal ones, NaN where there is one; and which.

    Not by `jnp.max`: its derivative asks which entries equal the result, which are none, and the derivative NaN or 0,
    where the compiler has computed an entry once more and rounded it otherwise.
    """
    left, right = x[:, :, :, :, 0], x[:, :, :, :, 1]
    is_right = _is_larger(right, left)
    row = jnp.where(is_right, right, left)
    is_below = _is_larger(row[:, :, 1], row[:, :, 0])
    is_first = jnp.array([True, False])
    is_row = is_below[:, :, None] ^ is_first.reshape(1, 1, 2, 1, 1)
    is_it = is_row[:, :, :, :, None] & (is_right[:, :, :, :, None] ^ is_first.reshape(1, 1, 1, 1, 2, 1))
    return jnp.where(is_below, row[:, :, 1], row[:, :, 0]), is_it


@_largest.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    """One pass over the blocks, forward or back, where the transposes of the slices above take two."""
    largest, is_it = _largest(*primals)
    moved = jnp.sum(jnp.where(is_it, tangents[0], 0), axis=(2, 4))
    return (largest, is_it), (moved, np.zeros(is_it.shape, jax.dtypes.float0))


def _is_larger(a: jax.Array, b: jax.Array) -> jax.Array:
    return (a > b) | jnp.isnan(a)


def _check_scale_and_bias(x: jax.Array, scale: jax.Array, bias: jax.Array) -> None:
    if x.ndim < 2 or scale.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"scale and bias must be [C] for features [..., C], got {scale.shape} and {bias.shape} for {x.shape}: "
            "features go last, after at least one axis of examples"
        )


def _last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector [C] along the last axis of x [..., C]."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)

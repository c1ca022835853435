"""The layers of a transformer, with the features along the first axis, [D, ...]: all of their derivatives are fast.

On a CPU an array [D, T] of few features of many tokens is best laid out so. A norm then sums rows of T numbers, which
are vectorised, where sums of D numbers one by one are not; a product is one of those in `products.py`, whatever is
differentiated how often; and heads are taken apart, and put together, by whole rows. `LayerNorm` and `gelu` have rules
of their own for derivatives, exact and closed under differentiation: what the rules of jax make of their definitions
takes twice the passes, and keeps several arrays for each.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmeta.nn.products import outputs

_EPSILON = 1e-5  # of the variance
_CUBE, _SLOPE = 0.044715, (2 / jnp.pi) ** 0.5  # of the cubic, and of the line, inside of GELU's tanh


class Dense(nn.Module):
    """y = W' x + b: [D, ...] -> [features, ...]; parameters "kernel" [D, features] and "bias", as flax's `Dense`."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (len(x), self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        y = outputs(kernel, x.reshape(len(x), -1)) + bias[:, None]
        return y.reshape(self.features, *x.shape[1:])


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5) * scale + bias, over the features of [D, ...]; parameters as flax's `LayerNorm`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (len(x),), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (len(x),), jnp.float32)
        x, scale, bias = nn.dtypes.promote_dtype(x, scale, bias)
        along = lambda vector: vector.reshape(-1, *(1,) * (x.ndim - 1))
        return _standardised(x)[0] * along(scale) + along(bias)


@jax.custom_jvp
def _standardised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """z = (x - mean) r with r = 1 / sqrt(var + ε), and r, by the first axis."""
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    rate = lax.rsqrt(jnp.mean(centred * centred, axis=0, keepdims=True) + _EPSILON)
    return centred * rate, rate


@_standardised.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    """dz = r (dx - mean(dx) - z mean(z dx)),   dr = -r² mean(z dx)."""
    (dx,) = tangents
    z, rate = _standardised(*primals)
    slope = jnp.mean(z * dx, axis=0, keepdims=True)
    return (z, rate), (rate * (dx - jnp.mean(dx, axis=0, keepdims=True) - z * slope), -rate * rate * slope)


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """x (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³), as `jax.nn.gelu`: of it, only x is kept for derivatives.

    Hendrycks, Gimpel, "Gaussian Error Linear Units" (2016), https://arxiv.org/abs/1606.08415

    >>> gelu(jnp.array([0.0, 1.0])).tolist() == jax.nn.gelu(jnp.array([0.0, 1.0])).tolist()
    True
    """
    return 0.5 * x * (1 + jnp.tanh(_SLOPE * (x + _CUBE * x * x * x)))


@jax.custom_jvp
def _gelu_1(x: jax.Array) -> jax.Array:
    """The derivative: (1 + t) / 2 + x (1 - t²) u' / 2."""
    square = x * x
    t = jnp.tanh(_SLOPE * x * (1 + _CUBE * square))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (_SLOPE * (1 + 3 * _CUBE * square))


def _gelu_2(x: jax.Array) -> jax.Array:
    """The second: (1 - t²) (u' + x u'' / 2 - x t u'²)."""
    square = x * x
    t = jnp.tanh(_SLOPE * x * (1 + _CUBE * square))
    slope = _SLOPE * (1 + 3 * _CUBE * square)
    return (1 - t * t) * (slope + 3 * _CUBE * _SLOPE * square - x * t * slope * slope)


gelu.defjvps(lambda dx, _, x: _gelu_1(x) * dx)
_gelu_1.defjvps(lambda dx, _, x: _gelu_2(x) * dx)

"""What functions of arrays are held against: naive ones, in float64, to second order."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def reference_conv(x, kernel, strides, padding, dilation=(1, 1)):
    strides = (strides, strides) if isinstance(strides, int) else strides
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def assert_close(actual, expected, rtol=1e-10):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * (1 + np.abs(e).max())), actual, expected
    )


def second_order(function, *arguments):
    """Value, gradient and Hessian-vector product (forward over reverse, reverse over reverse) of sum(tanh(f))."""

    def scalar(arguments):
        return jnp.sum(jnp.tanh(function(*arguments)) * jnp.arange(1.0, 3.0).reshape(2, *[1] * 3))

    @jax.jit
    def derivatives(arguments, direction):
        gradient, forward_over_reverse = jax.jvp(jax.grad(scalar), (arguments,), (direction,))
        _, pull_back = jax.vjp(jax.grad(scalar), arguments)
        return scalar(arguments), gradient, forward_over_reverse, pull_back(direction)[0]

    return derivatives(arguments, tuple(normal(9 + i, *argument.shape) for i, argument in enumerate(arguments)))

"""Layers against flax and naive formulas, in float64, up to second derivatives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import assert_close, normal, reference_conv, second_order

from jaxmeta.nn.layers import Conv, batch_norm, conv_batch_norm, max_pool
from jaxmeta.nn.norms import BatchNorm, ConvBatchNorm

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")


@pytest.mark.parametrize(
    ("strides", "padding", "use_bias", "more"),
    [
        (1, "SAME", True, {"dtype": jnp.bfloat16}),
        (2, "SAME", False, {"kernel_dilation": 2}),
        ((2, 1), "VALID", True, {"kernel_dilation": (1, 2)}),
        (1, 2, True, {"param_dtype": jnp.float64}),
        (2, (1, (0, 2)), True, {}),
    ],
)
def test_conv_module_is_a_drop_in_for_flax(strides, padding, use_bias, more):
    arguments = {
        "features": 4,
        "kernel_size": (3, 3),
        "strides": strides,
        "padding": padding,
        "use_bias": use_bias,
        "bias_init": nn.initializers.normal(),
        **more,
    }
    ours, theirs = Conv(**arguments), nn.Conv(**arguments)
    x = normal(0, 2, 7, 7, 3)
    key = jax.random.key(0)
    params = jax.jit(theirs.init)(key, x)
    assert_close(jax.jit(ours.init)(key, x), params, rtol=1e-6)
    assert ("bias" in params["params"]) == use_bias
    found, expected = jax.jit(ours.apply)(params, x), jax.jit(theirs.apply)(params, x)
    assert found.dtype == expected.dtype
    rtol = 0.02 if found.dtype == jnp.bfloat16 else 1e-10  # a product of its own, rounded at the end
    assert_close(*(np.asarray(y, float) for y in (found, expected)), rtol=rtol)


def naive_batch_norm(x, scale, bias, epsilon):
    axes = tuple(range(x.ndim - 1))
    scale, bias = (vector.reshape((1,) * len(axes) + (-1,)) for vector in (scale, bias))
    deviation = jnp.sqrt(jnp.var(x, axes, keepdims=True) + epsilon)
    return scale * (x - jnp.mean(x, axes, keepdims=True)) / deviation + bias


def test_batch_norm_equals_the_naive_formula_to_second_order():
    x, scale, bias = normal(0, 2, 3, 4, 5), normal(1, 5), normal(2, 5)
    ours = second_order(lambda *a: batch_norm(*a, epsilon=1e-3), x, scale, bias)
    theirs = second_order(lambda *a: naive_batch_norm(*a, epsilon=1e-3), x, scale, bias)
    assert_close(ours, theirs)


def test_batch_norm_output_has_the_moments_it_was_asked_for():
    x, scale, bias = 3 + 2 * normal(0, 50, 4), jnp.array([1.0, 2.0, 0.5, 3.0]), jnp.arange(4.0)
    y = batch_norm(x, scale, bias, epsilon=0.0)
    assert_close(jnp.mean(y, axis=0), bias)
    assert_close(jnp.std(y, axis=0), scale)


def test_batch_norm_keeps_its_digits_under_a_large_mean():
    x = normal(0, 64, 3)
    exact = batch_norm(x, jnp.ones(3), jnp.zeros(3))
    shifted = batch_norm((x + 1000.0).astype(jnp.float32), jnp.ones(3, jnp.float32), jnp.zeros(3, jnp.float32))
    np.testing.assert_allclose(shifted, exact, atol=1e-3)


def test_batch_norm_is_finite_to_second_order_on_constant_features():
    derivatives = second_order(batch_norm, jnp.ones((2, 2, 2, 3)), jnp.ones(3), jnp.zeros(3))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(derivatives))


@pytest.mark.parametrize(("x", "scale", "bias"), [((3,), (3,), (3,)), ((2, 3), (2,), (3,)), ((2, 3), (3,), (1,))])
def test_batch_norm_refuses_shapes_that_would_broadcast(x, scale, bias):
    with pytest.raises(ValueError, match="scale and bias"):
        batch_norm(jnp.zeros(x), jnp.zeros(scale), jnp.zeros(bias))


def test_batch_norm_module_uses_the_batch_and_its_parameters():
    layer, x = BatchNorm(epsilon=1e-3), normal(0, 2, 3, 4, 5)
    params = {"params": {"scale": normal(1, 5), "bias": normal(2, 5)}}
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(jnp.shape, params)
    assert_close(
        jax.jit(layer.apply)(params, x), naive_batch_norm(x, *(params["params"][k] for k in ("scale", "bias")), 1e-3)
    )


@pytest.mark.parametrize(("channels", "filters", "strides"), [(1, 12, 2), (1, 9, 1), (2, 19, 1), (3, 4, 2)])
def test_conv_batch_norm_equals_the_naive_composition_to_second_order(channels, filters, strides):
    """With patches smaller than the features, of their size, and larger."""
    x, kernel = 0.5 + normal(0, 2, 5, 6, channels), normal(1, 3, 3, channels, filters)

    def naive(x, kernel, scale, bias):
        return naive_batch_norm(reference_conv(x, kernel, strides, "SAME"), scale, bias, 1e-3)

    arguments = x, kernel, normal(2, filters), normal(3, filters)
    ours = second_order(lambda *a: conv_batch_norm(*a, strides=strides, epsilon=1e-3), *arguments)
    assert_close(ours, second_order(naive, *arguments))


@pytest.mark.parametrize("features", [2, 12])
def test_conv_batch_norm_refuses_shapes_that_would_broadcast(features):
    x, kernel, right, wrong = jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, features)), jnp.zeros(features), jnp.zeros(1)
    for scale, bias in ((wrong, right), (right, wrong)):
        with pytest.raises(ValueError, match="scale and bias"):
            conv_batch_norm(x, kernel, scale, bias)


def test_conv_batch_norm_module_is_its_function():
    layer, x = ConvBatchNorm(12, (3, 3), 2, "VALID", epsilon=1e-3), normal(0, 2, 5, 5, 1)
    params = {"kernel": normal(1, 3, 3, 1, 12), "scale": normal(2, 12), "bias": normal(3, 12)}
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(jnp.shape, params)
    expected = naive_batch_norm(reference_conv(x, params["kernel"], 2, "VALID"), params["scale"], params["bias"], 1e-3)
    assert_close(jax.jit(layer.apply)({"params": params}, x), expected)


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 5, 7, 3)])
def test_max_pool_equals_flax_to_second_order(shape):
    x = normal(0, *shape)
    assert_close(second_order(max_pool, x), second_order(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x))


def test_max_pool_of_equal_entries_takes_the_first_and_lets_nan_through():
    x = jnp.round(normal(0, 3, 8, 8, 5))  # few values: in most blocks some are equal
    of_sum = lambda pool: jax.jit(jax.grad(lambda x: jnp.sum(pool(x) ** 2)))(x)
    assert_close(of_sum(max_pool), of_sum(lambda x: nn.max_pool(x, (2, 2), (2, 2))))
    pool = jax.jit(max_pool)
    for i in range(4):
        assert np.isnan(pool(np.where(np.arange(4) == i, np.nan, np.arange(4)).reshape(1, 2, 2, 1))).all()


def test_the_derivative_of_max_pool_does_not_need_an_entry_to_equal_the_result():
    """As where XLA computes an entry again and rounds it otherwise: then `jnp.max` divides by 0."""
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(max_pool(x))))(normal(0, 1, 2, 2, 1)))
    assert " eq " not in jaxpr and " div " not in jaxpr


@pytest.mark.parametrize("shape", [(4, 4, 1), (1, 1, 4, 1)])
def test_max_pool_refuses_wrong_shapes(shape):
    with pytest.raises(ValueError, match="x must be"):
        max_pool(jnp.zeros(shape))

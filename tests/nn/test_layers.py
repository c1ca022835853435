"""Layers against `lax.conv_general_dilated`, flax and naive formulas, in float64, up to second derivatives."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmeta.nn import layers
from jaxmeta.nn.layers import Conv, batch_norm, conv, conv_batch_norm, max_pool
from jaxmeta.nn.norms import BatchNorm, ConvBatchNorm

CASES = [
    # height, width, channels, filters, window, strides, padding
    (6, 6, 1, 3, (3, 3), 2, "SAME"),
    (7, 7, 3, 2, (3, 3), 2, "SAME"),
    (2, 1, 3, 4, (3, 3), 2, "SAME"),
    (8, 7, 2, 3, (2, 4), (1, 3), "SAME"),
    (8, 7, 2, 3, (5, 1), (3, 2), "VALID"),
    (5, 4, 3, 2, (1, 1), 2, "SAME"),
    (5, 4, 2, 2, (3, 2), 2, ((2, 0), (1, 3))),
]


pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")


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


def x_and_kernel(x_shape, kernel_shape):
    return normal(0, *x_shape), normal(1, *kernel_shape)


@functools.cache
def second_order_of_lax_conv(x_shape, kernel_shape, *how):
    """Once for both ways to cut patches."""
    return second_order(lambda x, k: reference_conv(x, k, *how), *x_and_kernel(x_shape, kernel_shape))


def primitives(jaxpr):
    """The names of all primitives in a jaxpr and in those inside it."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                names |= primitives(inner)
    return names


@pytest.fixture(params=["all at once", "one at a time"])
def images(request, monkeypatch):
    """How many images' patches are cut at a time: all, or as if not two of them fitted the cache."""
    if request.param == "one at a time":
        monkeypatch.setattr(layers, "_CACHE", 0)
        monkeypatch.setattr(layers, "_CHUNK", 0)


with_either = pytest.mark.usefixtures("images")


@with_either
@pytest.mark.parametrize(("height", "width", "channels", "filters", "window", "strides", "padding"), CASES)
def test_conv_equals_lax_conv_to_second_order(height, width, channels, filters, window, strides, padding):
    shapes = (2, height, width, channels), (*window, channels, filters)
    ours = second_order(lambda x, k: conv(x, k, strides=strides, padding=padding), *x_and_kernel(*shapes))
    assert_close(ours, second_order_of_lax_conv(*shapes, strides, padding))


@with_either
def test_a_dilated_conv_equals_lax_conv_to_second_order():
    shapes = (2, 9, 7, 2), (3, 2, 2, 3)
    ours = second_order(lambda x, k: conv(x, k, strides=2, kernel_dilation=(2, 3)), *x_and_kernel(*shapes))
    assert_close(ours, second_order_of_lax_conv(*shapes, 2, "SAME", (2, 3)))


@with_either
@pytest.mark.parametrize(("strides", "padding"), [(2, "SAME"), (1, "VALID")])
def test_conv_allows_pure_forward_mode(strides, padding):
    x, kernel = normal(0, 2, 5, 6, 2), normal(1, 3, 3, 2, 3)
    tangents = normal(2, *x.shape), normal(3, *kernel.shape)

    @jax.jit
    def both(primals, tangents):
        ours = jax.jvp(lambda x, k: conv(x, k, strides=strides, padding=padding), primals, tangents)
        theirs = jax.jvp(lambda x, k: reference_conv(x, k, strides, padding), primals, tangents)
        return ours, theirs

    assert_close(*both((x, kernel), tangents))


@with_either
@pytest.mark.parametrize("strides", [1, 2])
def test_conv_over_tasks_is_exact_and_has_no_grouped_convolution(strides):
    xs, kernels = normal(0, 3, 2, 7, 7, 2), normal(1, 3, 3, 3, 2, 4)

    def gradients(convolve):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(convolve(x, kernel)))

        return jax.vmap(jax.grad(loss, argnums=(0, 1)))

    ours = gradients(lambda x, k: conv(x, k, strides=strides))
    theirs = gradients(lambda x, k: reference_conv(x, k, strides, "SAME"))
    assert_close(jax.jit(ours)(xs, kernels), jax.jit(theirs)(xs, kernels))
    assert "conv_general_dilated" in primitives(jax.make_jaxpr(theirs)(xs, kernels).jaxpr)
    names = primitives(jax.make_jaxpr(ours)(xs, kernels).jaxpr)
    assert "dot_general" in names
    assert not names & {"conv_general_dilated", "gather", "scatter-add"}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators have no such cache")
@pytest.mark.parametrize(
    ("cache", "chunk", "number"), [(6, 0, 6), (5, 0, 1), (5, 1, 1), (5, 2, 2), (5, 4, 3), (5, 5, 3)]
)
def test_conv_cuts_all_patches_that_fit_the_cache_and_else_a_divisor_that_fits_a_chunk(
    cache, chunk, number, monkeypatch
):
    x, kernel = normal(0, 6, 5, 4, 2), normal(1, 3, 3, 2, 3)
    of_one_image = 5 * 4 * 18 * 8
    monkeypatch.setattr(layers, "_CACHE", cache * of_one_image)
    monkeypatch.setattr(layers, "_CHUNK", chunk * of_one_image)
    convolve = lambda x, kernel: conv(x, kernel)  # jax keeps what it traced of a function
    equations = jax.make_jaxpr(convolve)(x, kernel).eqns
    lengths = [equation.params["length"] for equation in equations if equation.primitive.name == "scan"]
    assert lengths == ([] if number == 6 else [6 // number])
    found, expected = jax.jit(lambda *a: (convolve(*a), reference_conv(*a, 1, "SAME")))(x, kernel)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("x", "kernel", "keywords", "message"),
    [
        ((4, 4, 1), (3, 3, 1, 2), {}, "x must be"),
        ((1, 4, 4, 1), (3, 3, 2, 2), {}, "kernel must be"),
        ((1, 4, 4, 1), (3, 3, 1), {}, "kernel must be"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"strides": 0}, "strides"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"strides": (1, 2, 3)}, "strides"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"kernel_dilation": 0}, "kernel_dilation"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"kernel_dilation": 2, "padding": "VALID"}, "must fit"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"padding": "same"}, "padding"),
        ((1, 2, 4, 1), (3, 3, 1, 2), {"padding": "VALID"}, "must fit"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"padding": (1, 2, 3)}, "padding"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"padding": ((1, 2), (1, 2, 3))}, "padding"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"padding": -1}, "padding"),
        ((1, 4, 4, 1), (3, 3, 1, 2), {"padding": 1.5}, "padding"),
    ],
)
def test_conv_refuses_wrong_arguments(x, kernel, keywords, message):
    with pytest.raises(ValueError, match=message):
        conv(jnp.zeros(x), jnp.zeros(kernel), **keywords)


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

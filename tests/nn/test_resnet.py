"""ResNet-12 against a plain composition of XLA's own convolutions and pooling, and its published size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from reference import assert_close

import jaxmeta
from jaxmeta import nn
from jaxmeta.nn.resnet import ResNet12

SMALL = ResNet12(num_classes=3, widths=(4, 5, 3))


def random_params(network, x, num_tasks=1):
    """Parameters [num_tasks, ...] of the network's shapes, none of them zero or one."""
    generator = np.random.default_rng(1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * generator.normal(size=(num_tasks, *leaf.shape))), shapes)


def convolution_and_norm(layer, x):
    y = lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = (y - y.mean((0, 1, 2))) / jnp.sqrt(y.var((0, 1, 2)) + 1e-5)
    return y * layer["scale"] + layer["bias"]


def reference_resnet12(params, x):
    params = params["params"]
    for i in range(3):
        block, y = params[f"block{i}"], x
        for j in range(3):
            y = convolution_and_norm(block[f"conv{j}"], y)
            y = jnp.where(y > 0, y, 0.1 * y) if j < 2 else y
        y = y + convolution_and_norm(block["shortcut"], x)
        y = jnp.where(y > 0, y, 0.1 * y)
        x = lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.usefixtures("x64")
def test_outputs_and_gradients_equal_the_plain_composition_with_parameters_that_differ_per_task():
    """Odd sides, so that pooling drops a row and a column."""
    generator = np.random.default_rng(0)
    x, weights = jnp.asarray(generator.uniform(size=(4, 9, 10, 2))), jnp.asarray(generator.normal(size=(4, 3)))

    def value_and_grad(apply):
        def scalar(params):
            y = apply(params, x)
            return jnp.sum(weights * jnp.tanh(y)), y

        return jax.jit(jax.vmap(jax.value_and_grad(scalar, has_aux=True)))

    params = random_params(SMALL, x, num_tasks=2)
    expected = value_and_grad(reference_resnet12)(params)
    for network in (SMALL, SMALL.clone(recomputes=True)):
        assert_close(value_and_grad(network.apply)(params), expected, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_what_recomputes_has_the_same_meta_gradient():
    images = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 2), float)
    tasks = jaxmeta.Task(*[(images + part, jnp.tile(jnp.arange(3), (2, 1))) for part in range(2)])

    def meta_gradient(network):
        init = lambda key: jax.tree.map(lambda leaf: leaf[0], random_params(network, images[0]))
        learner = jaxmeta.maml(init, nn.cross_entropy(network.apply), optimizer=optax.sgd(1.0))
        state = learner.init(jax.random.key(1))
        after = jax.jit(learner.update)(jax.random.key(2), state, tasks)[0]
        return jax.tree.map(jnp.subtract, state.meta_params.params, after.meta_params.params)

    network = ResNet12(num_classes=3, widths=(2,))
    assert_close(meta_gradient(network.clone(recomputes=True)), meta_gradient(network), rtol=1e-10)


def test_what_recomputes_has_as_many_products_and_more_norms():
    x = jnp.zeros((2, 4, 4, 2))

    def count(network):
        params = jax.eval_shape(network.init, jax.random.key(0), x)
        jaxpr = str(jax.make_jaxpr(jax.grad(lambda params: jnp.sum(network.apply(params, x))))(params))
        return jaxpr.count("dot_general["), jaxpr.count("rsqrt")

    network = ResNet12(num_classes=3, widths=(2,))
    (products, norms), (products_again, norms_again) = count(network), count(network.clone(recomputes=True))
    assert products_again == products and norms_again == 2 * norms


def test_the_default_has_the_published_widths_and_size():
    params = jax.eval_shape(ResNet12(num_classes=5).init, jax.random.key(0), jnp.zeros((1, 84, 84, 3)))["params"]
    assert sorted(params) == ["block0", "block1", "block2", "block3", "head"]
    assert [params[f"block{i}"]["conv2"]["kernel"].shape for i in range(4)] == [
        (3, 3, width, width) for width in (64, 160, 320, 640)
    ]
    assert params["head"]["kernel"].shape == (640, 5)
    body = {name: block for name, block in params.items() if name != "head"}
    assert round(sum(leaf.size for leaf in jax.tree.leaves(body)) / 1e6, 1) == 12.4


def test_kernels_start_with_the_variance_of_kaiming():
    params = jax.jit(ResNet12(num_classes=2, widths=(8, 64)).init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))["params"]
    kernel = params["block1"]["conv2"]["kernel"]
    np.testing.assert_allclose(np.var(kernel), 2 / (9 * 64), rtol=5 * np.sqrt(2 / kernel.size))  # 5 standard errors


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"num_classes": 0}, (1, 16, 16, 3), "num_classes"),
        ({"widths": ()}, (1, 16, 16, 3), "widths must be"),
        ({"widths": (4, 0)}, (1, 16, 16, 3), r"widths\[1\]"),
        ({}, (1, 16, 15, 3), "x must be images of at least 16"),
        ({}, (16, 16), "x must be images"),
    ],
)
def test_what_it_refuses(fields, shape, message):
    with pytest.raises(ValueError, match=message):
        ResNet12(**{"num_classes": 2, **fields}).init(jax.random.key(0), jnp.zeros(shape))

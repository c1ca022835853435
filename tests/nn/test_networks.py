"""Networks: shapes, names of parameters, an independent forward pass, and what images they take."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.nn.networks import MLP, Conv4


def images(batch=5, size=28):
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, size=(batch, size, size)), jnp.uint8)


def random_params(network, x):
    """Parameters of the network's shapes, none of them zero or one."""
    generator = np.random.default_rng(1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape), leaf.dtype), shapes)


def reference_conv4(params, x, strided):
    """The same network from flax's own layers."""
    params = params["params"]
    for i in range(4):
        block = params[f"block{i}"]
        layer = nn.Conv(block["kernel"].shape[-1], (3, 3), 2 if strided else 1, use_bias=False)
        x = nn.standardize(layer.apply({"params": {"kernel": block["kernel"]}}, x), axis=(0, 1, 2), epsilon=1e-3)
        x = nn.relu(x * block["scale"].reshape(1, 1, 1, -1) + block["bias"].reshape(1, 1, 1, -1))
        x = x if strided else nn.max_pool(x, (2, 2), (2, 2))
    x = x.mean((1, 2)) if strided else x.reshape(x.shape[0], -1)
    return x @ params["head"]["kernel"] + params["head"]["bias"][None]


@pytest.mark.parametrize("strided", [True, False])
@pytest.mark.usefixtures("x64")
def test_conv4_equals_flax_layers(strided):
    network = Conv4(num_classes=5, num_filters=10, strided=strided)
    x = images(batch=3, size=16).astype(jnp.float64)[..., None] / 255
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), random_params(network, x))
    ours, theirs = jax.jit(lambda p, x: (network.apply(p, x), reference_conv4(p, x, strided)))(params, x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_conv4_has_the_published_parameters():
    params = jax.eval_shape(Conv4(num_classes=5).init, jax.random.key(0), images())["params"]
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert sorted(shapes) == ["block0", "block1", "block2", "block3", "head"]
    assert shapes["block0"] == {"kernel": (3, 3, 1, 64), "scale": (64,), "bias": (64,)}
    assert shapes["block3"] == {"kernel": (3, 3, 64, 64), "scale": (64,), "bias": (64,)}
    assert shapes["head"] == {"kernel": (64, 5), "bias": (5,)}


@pytest.mark.parametrize(("size", "channels", "features"), [(28, 1, 8), (84, 3, 25 * 8)])
def test_conv4_with_pooling_flattens_what_is_left(size, channels, features):
    x = jnp.zeros((2, size, size, channels))
    params = jax.eval_shape(Conv4(num_classes=5, num_filters=8, strided=False).init, jax.random.key(0), x)
    assert params["params"]["head"]["kernel"].shape == (features, 5)


def test_conv4_takes_bytes_and_floats_with_and_without_a_channel():
    network, x = Conv4(num_classes=5, num_filters=4), images(batch=3, size=8)
    params = random_params(network, x)
    apply = jax.jit(network.apply)
    expected = apply(params, x.astype(jnp.float32)[..., None] / 255)
    for same in (x, x[..., None], x.astype(jnp.float32) / 255):
        np.testing.assert_allclose(apply(params, same), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("x", [jnp.zeros((28, 28)), jnp.zeros((2, 28, 28), int), jnp.zeros((2, 28, 28), bool)])
def test_conv4_refuses_what_are_not_images(x):
    with pytest.raises(ValueError, match="x must be"):
        Conv4(num_classes=5).init(jax.random.key(0), x)


def test_conv4_predictions_depend_on_the_batch():
    """The transductive setting that `batch_norm` documents."""
    network, x = Conv4(num_classes=5, num_filters=4), images(batch=6, size=8)
    params = random_params(network, x)
    apply = jax.jit(network.apply)
    assert not np.allclose(apply(params, x)[:3], apply(params, x[:3]), atol=1e-3)


def test_mlp_equals_its_equation():
    network, x = MLP(hidden=(7, 6), num_outputs=3), jnp.linspace(-1, 1, 10).reshape(5, 2)
    params = random_params(network, x)
    hidden = x
    for i in range(2):
        layer = params["params"][f"hidden{i}"]
        hidden = jnp.maximum(hidden @ layer["kernel"] + layer["bias"][None], 0)
    head = params["params"]["head"]
    np.testing.assert_allclose(
        network.apply(params, x), hidden @ head["kernel"] + head["bias"][None], rtol=1e-5, atol=1e-6
    )


def test_mlp_defaults_are_the_sinusoid_network():
    params = MLP().init(jax.random.key(0), jnp.ones((10, 1)))["params"]
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "hidden0": (1, 40),
        "hidden1": (40, 40),
        "head": (40, 1),
    }
    limit = np.sqrt(6 / 80)
    spread = np.abs(params["hidden1"]["kernel"]).max()
    assert 0.9 * limit < spread <= limit
    assert all(not np.any(layer["bias"]) for layer in params.values())


def test_mlp_without_hidden_layers_is_linear():
    params = MLP(hidden=(), num_outputs=2).init(jax.random.key(0), jnp.ones((4, 3)))["params"]
    assert jax.tree.map(jnp.shape, params) == {"head": {"kernel": (3, 2), "bias": (2,)}}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (MLP(num_outputs=0), "num_outputs"),
        (MLP(hidden=(40, 0)), r"hidden\[1\]"),
        (Conv4(num_classes=0), "num_classes"),
        (Conv4(num_classes=5, num_filters=0), "num_filters"),
    ],
)
def test_networks_refuse_empty_layers(network, message):
    x = jnp.ones((2, 1)) if isinstance(network, MLP) else jnp.ones((2, 28, 28))
    with pytest.raises(ValueError, match=message):
        network.init(jax.random.key(0), x)


def test_mlp_refuses_a_missing_feature_axis():
    with pytest.raises(ValueError, match="x must be"):
        MLP().init(jax.random.key(0), jnp.ones(10))

"""Layers whose features go first: equal to flax's, their products to `einsum`, to the third derivative, in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from reference import assert_close

from jaxmeta.nn.attention import attention, causal_attention
from jaxmeta.nn.features_first import Dense, LayerNorm, gelu
from jaxmeta.nn.products import of_rows, outputs, to_inputs, to_weights

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

N, D, M, T = 2, 3, 4, 5
GENERATOR = np.random.default_rng(0)
random = lambda *shape: jnp.asarray(GENERATOR.normal(size=shape))
PRODUCTS = {
    "outputs": (outputs, "...dm,...dt->...mt", (D, M), (D, T)),
    "to_inputs": (to_inputs, "...dm,...mt->...dt", (D, M), (M, T)),
    "to_weights": (to_weights, "...dt,...mt->...dm", (D, T), (M, T)),
}
OF_ROWS = {
    "of_rows, wide enough to be transposed": (of_rows, "...td,...dm->...tm", (3, 8), (8, 9)),
    "of_rows, of many rows and few outputs": (of_rows, "...td,...dm->...tm", (129, 17), (17, 2)),
}


def derivatives(fn, *args):
    """A number of fn, and its first to third derivatives along all arguments: reverse, forward and reverse, of both."""
    loss = lambda *args: jnp.sum(jnp.sin(fn(*args)))
    along = jax.tree.map(jnp.cos, args)
    argnums = tuple(range(len(args)))
    first = jax.grad(loss, argnums)
    second = lambda *args: jax.jvp(first, args, along)[1]
    third = jax.grad(lambda *args: sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(second(*args))), argnums)
    dot = lambda a, b: sum(map(jnp.vdot, jax.tree.leaves(a), jax.tree.leaves(b)))
    twice = jax.grad(lambda *args: dot(first(*args), along), argnums)
    return fn(*args), first(*args), second(*args), twice(*args), third(*args)


@pytest.mark.parametrize("name", PRODUCTS | OF_ROWS)
def test_products_equal_einsum_to_the_third_derivative_under_every_transformation(name):
    product, formula, *shapes = (PRODUCTS | OF_ROWS)[name]
    x, y = (random(N, *shape) for shape in shapes)
    expected = lambda x, y: jnp.einsum(formula, x, y)
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    ways = {
        "as it is": lambda fn: fn,
        "vmap": lambda fn: jax.vmap(fn),
        "vmap of the last axis": lambda fn: lambda x, y: jax.vmap(fn, (2, 0))(jnp.moveaxis(x, 0, -1), y),
        "vmap of one": lambda fn: lambda x, y: jax.vmap(fn, (0, None))(x, y[0]),
        "scan": lambda fn: lambda x, y: jax.lax.scan(lambda _, xy: (None, fn(*xy)), None, (x, y))[1],
        "checkpoint": jax.checkpoint,
        "shard_map": lambda fn: jax.shard_map(fn, mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec("d")),
    }
    both = jax.jit(lambda x, y: [[derivatives(way(fn), x, y) for way in ways.values()] for fn in (product, expected)])
    results, references = both(x, y)
    for result, reference in zip(results, references, strict=True):
        assert_close(result, reference, rtol=1e-11)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "to_inputs" else pytest.mark.slow) for name in PRODUCTS]
)
def test_the_derivative_of_what_all_devices_have_is_the_sum_over_devices(name):
    """Of either factor: within `jax.shard_map`, which tracks what varies, as of JAX's own products."""
    product, formula, *shapes = PRODUCTS[name]
    everywhere, shares = PartitionSpec(), PartitionSpec("d")
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x, y = (random(N, *shape) for shape in shapes)

    def gradients(fn, specs):
        loss = lambda x, y: jax.lax.psum(jnp.sum(jnp.sin(fn(x, y))), "d")
        return jax.shard_map(jax.grad(loss, (0, 1)), mesh=mesh, in_specs=specs, out_specs=specs)(x, y)

    for specs in ((everywhere, shares), (shares, everywhere)):
        expected = gradients(lambda x, y: jnp.einsum(formula, x, y), specs)
        assert_close(gradients(product, specs), expected, rtol=1e-11)


def test_products_of_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="outputs must be given arrays that fit"):
        outputs(jnp.ones((2, 3)), jnp.ones((3, 5)))


@pytest.mark.parametrize(
    ("layer", "of_flax"),
    [(Dense(M), nn.Dense(M)), (LayerNorm(), nn.LayerNorm(epsilon=1e-5, use_fast_variance=False))],
)
def test_layers_are_those_of_flax_with_the_first_axis_last(layer, of_flax):
    """The same parameters from the same key, and the same derivatives to the third, in both."""
    x, key = random(D, N, T), jax.random.key(0)
    first = layer.init(key, x)
    assert_close(first, of_flax.init(key, jnp.moveaxis(x, 0, -1)))
    params = jax.tree.map(lambda p: p + random(*p.shape), first)
    expected = lambda params, x: jnp.moveaxis(of_flax.apply(params, jnp.moveaxis(x, 0, -1)), -1, 0)
    both = jax.jit(lambda *args: [derivatives(fn, *args) for fn in (layer.apply, expected)])
    assert_close(*both(params, x), rtol=1e-10)


def test_gelu_is_that_of_jax_to_the_third_derivative():
    assert_close(*jax.jit(lambda x: [derivatives(fn, x) for fn in (gelu, jax.nn.gelu)])(3 * random(50)), rtol=1e-10)


@pytest.mark.parametrize("length", [7, 130])
def test_blocks_of_queries_are_attention_to_all_with_a_mask(length):
    """One block, and two of which the second is longer by the rest, in every derivative."""
    args = [random(N, D, length) for _ in range(3)]
    sees = np.triu(np.ones((length, length), bool))
    whole = lambda query, key, value: attention(query, key, value, sees)
    assert_close(*jax.jit(lambda *args: [derivatives(fn, *args) for fn in (causal_attention, whole)])(*args), rtol=1e-9)

"""Recurrent networks: step by step equals the sequence, flax's cells, and what a causal network may see, in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.nn import causal_transformer, feed_forward, gru, lstm, min_gru, with_layers
from jaxmeta.nn import recurrent as module
from jaxmeta.nn.recurrent import linear_recurrence

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

T, B, D = 5, 3, 4
CORES = {
    "gru": functools.partial(gru, 6),
    "lstm": functools.partial(lstm, 6),
    "min_gru": functools.partial(min_gru, 6),
    "causal_transformer": functools.partial(causal_transformer, T + 2, num_units=6, num_heads=2),
    "with_layers": lambda: with_layers(min_gru(6, num_layers=1), 20),
}
over_cores = pytest.mark.parametrize("name", CORES)
XS = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, D)))
close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)


def random_params(core):
    generator = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda key: core.init(key, D), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape)), shapes)


def step_by_step(core, params, carry, xs):
    return jax.lax.scan(lambda carry, x: core.step(params, carry, x), carry, xs)


@pytest.fixture(params=[True, False], ids=["projected outside", "projected in the loop"])
def outside(request, monkeypatch):
    """Where a cell's `sequence` projects its inputs: the other backend's way is tested too."""
    monkeypatch.setattr(module, "projects_outside", lambda: request.param)


@pytest.mark.parametrize("name", ["min_gru", "causal_transformer", "with_layers"])
def test_a_sequence_is_its_steps(name):
    check_sequence(CORES[name]())


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_a_sequence_of_cells_is_its_steps(name, outside):
    check_sequence(CORES[name]())


def check_sequence(core):
    """Outputs, the last carry, and gradients; in one piece, and going on from the carry that a first part left."""
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(T, B, core.num_outputs)))

    def value_and_grad(run):
        def loss(params, xs):
            carry, hs = run(params, core.start((B,)), xs)
            return jnp.sum(weights * hs), (carry, hs)

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(random_params(core), XS)

    def in_two(params, carry, xs):
        carry, early = core.sequence(params, carry, xs[:3])
        carry, late = core.sequence(params, carry, xs[3:])
        return carry, jnp.concatenate([early, late])

    steps = value_and_grad(functools.partial(step_by_step, core))
    (_, (carry, hs)), _ = steps
    assert hs.shape == (T, B, core.num_outputs) and hs.dtype == jnp.float64
    assert jax.tree.map(jnp.shape, carry) == jax.tree.map(jnp.shape, core.start((B,)))
    for run in (core.sequence, in_two):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), value_and_grad(run), steps)


@over_cores
def test_batch_axes_are_those_of_vmap(name):
    core = CORES[name]()
    params = random_params(core)
    one = lambda xs: core.sequence(params, core.start(()), xs)
    many = lambda xs: core.sequence(params, core.start((1, B)), xs[:, None])
    (carry, hs), (found_carry, found) = jax.jit(lambda xs: (jax.vmap(one, 1, (0, 1))(xs), many(xs)))(XS)
    jax.tree.map(lambda x, y: close(x[0], y), jax.tree.map(np.asarray, found_carry), carry)
    close(np.asarray(found)[:, 0], hs)


@over_cores
def test_outputs_depend_on_what_came_before_and_on_nothing_later(name):
    core = CORES[name]()
    params = random_params(core)
    one = lambda xs: core.sequence(params, core.start(()), xs)[1].sum(-1)
    dependence = np.abs(jax.jit(jax.jacrev(one))(XS[:, 0])).sum(-1)  # [output t, input t']
    assert np.all(np.triu(dependence, 1) == 0)
    assert np.all(dependence[np.tril_indices(T)] > 0)


def test_layers_without_a_memory_are_those_of_each_step():
    """tanh(x W + b), twice, whatever came before; and nothing is carried."""
    core = feed_forward(6)
    params = random_params(core)
    h = XS
    for layer in (params["hidden0"], params["hidden1"]):
        h = np.tanh(h @ layer["kernel"] + layer["bias"][None, None])
    carry, hs = core.sequence(params, core.start((B,)), XS)
    close(hs, h)
    assert carry == () and core.step(params, (), XS[3])[0] == ()
    close(core.step(params, (), XS[3])[1], h[3])


def unfused(params, gates):
    """Parameters as flax has them, from kernels side by side."""
    split = lambda part, prefix: {
        prefix + gate: dict(zip(part, values, strict=True))
        for gate, values in zip(
            gates, zip(*(np.split(part[key], len(gates), axis=-1) for key in part), strict=True), strict=True
        )
    }
    return split(params["input"], "i"), split({"kernel": params["hidden"]["kernel"]}, "h")


def test_gru_is_flaxs_cell(outside):
    core = gru(6)
    params = random_params(core)
    inputs, hidden = unfused(params, "rzn")
    hidden["hn"]["bias"] = params["hidden"]["bias"]
    cell = nn.GRUCell(6, param_dtype=jnp.float64)
    h, hs = jnp.zeros((B, 6)), []
    step = jax.jit(lambda h, x: cell.apply({"params": inputs | hidden}, h, x))
    for x in XS:
        h, y = step(h, x)
        hs.append(y)
    close(jax.jit(core.sequence)(params, core.start((B,)), XS)[1], jnp.stack(hs))


def test_lstm_is_flaxs_cell(outside):
    core = lstm(6)
    params = random_params(core)
    inputs, hidden = unfused(params, "ifgo")
    for gate in "ifgo":
        hidden["h" + gate]["bias"] = inputs["i" + gate].pop("bias")
    cell = nn.OptimizedLSTMCell(6, param_dtype=jnp.float64)
    carry, hs = (jnp.zeros((B, 6)),) * 2, []
    step = jax.jit(lambda carry, x: cell.apply({"params": inputs | hidden}, carry, x))
    for x in XS:
        carry, y = step(carry, x)
        hs.append(y)
    close(jax.jit(core.sequence)(params, core.start((B,)), XS)[1], jnp.stack(hs))


@pytest.mark.parametrize(("make", "cell", "gates"), [(gru, nn.GRUCell, "rzn"), (lstm, nn.OptimizedLSTMCell, "ifgo")])
def test_initial_parameters_are_flaxs(make, cell, gates):
    carry = (jnp.zeros(6),) * 2 if make is lstm else jnp.zeros(6)
    expected = jax.jit(cell(6).init)(jax.random.key(0), carry, jnp.zeros(D))["params"]
    params = jax.jit(make(6).init, static_argnums=1)(jax.random.key(0), D)
    for side, prefix in (("input", "i"), ("hidden", "h")):
        kernels = [expected[prefix + gate]["kernel"] for gate in gates]
        np.testing.assert_array_equal(params[side]["kernel"], np.concatenate(kernels, -1))
    assert not np.any(params["input"]["bias"])


def test_min_gru_is_its_equations():
    """One layer, in numpy, one step after the other."""
    core = min_gru(6, num_layers=1)
    params = jax.tree.map(np.asarray, random_params(core))
    dense = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]
    norm = lambda name, x: (
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * params[name]["scale"]
        + params[name]["bias"]
    )
    gelu = lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    h, outputs = np.zeros((B, 6)), []
    for x in np.asarray(XS):
        y = dense("embed", x)
        z, new = np.split(dense("gates0", norm("norm0a", y)), 2, -1)
        z = 1 / (1 + np.exp(-z))
        h = (1 - z) * h + z * new
        y = y + dense("out0", h)
        y = y + dense("mlp0", gelu(dense("hidden0", norm("norm0b", y))))
        outputs.append(norm("norm", y))
    close(jax.jit(core.sequence)(params, core.start((B,)), XS)[1], np.stack(outputs))


def test_layers_before_and_after_are_their_equations():
    inner = gru(6)
    core = with_layers(inner, 3)
    params = random_params(core)
    layer = lambda of, x: np.maximum(np.asarray(x) @ np.asarray(of["kernel"]) + np.asarray(of["bias"]), 0)
    carry, h = inner.step(params["core"], jnp.ones((B, 6)), layer(params["before"], XS[0]))
    found_carry, found = core.step(params, jnp.ones((B, 6)), XS[0])
    close(found_carry, carry)
    close(found, layer(params["after"], np.concatenate([h, XS[0]], axis=1)))
    assert with_layers(CORES["causal_transformer"](), 3).max_steps == T + 2


def test_a_parallel_scan_is_the_loop():
    generator = np.random.default_rng(0)
    a, b, h = generator.normal(size=(T, B)), generator.normal(size=(T, B)), generator.normal(size=B)
    found = np.asarray(jax.jit(linear_recurrence)(a, b, h))
    for t in range(T):
        h = a[t] * h + b[t]
        close(found[t], h)

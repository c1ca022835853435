"""The transformer against loops in numpy, causality, and second derivatives in every mode, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import assert_close

from jaxmeta import Task, adapt, maml
from jaxmeta.nn.attention import attention
from jaxmeta.nn.losses import cross_entropy
from jaxmeta.nn.transformer import Transformer

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

B, T, V, D = 2, 5, 7, 3
SIZES = {"num_outputs": V, "max_length": 6, "num_layers": 2, "width": 8, "num_heads": 2}
GENERATOR = np.random.default_rng(0)
TOKENS = jnp.asarray(GENERATOR.integers(0, V, (B, T)))
FEATURES = jnp.asarray(GENERATOR.normal(size=(B, T, D)))
INPUTS = {"tokens": (Transformer(num_tokens=V, **SIZES), TOKENS), "features": (Transformer(**SIZES), FEATURES)}
either = pytest.mark.parametrize("kind", INPUTS)


def random_params(network, x, *lead):
    generator = np.random.default_rng(1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * generator.normal(size=(*lead, *leaf.shape))), shapes)


def reference_transformer(params, x):
    """One sequence, in numpy: a loop over layers, heads and positions."""
    params = jax.tree.map(np.asarray, params["params"])
    dense = lambda layer, h: h @ layer["kernel"] + layer["bias"]
    norm = lambda layer, h: (
        (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5) * layer["scale"] + layer["bias"]
    )
    gelu = lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    h = params["embed"]["embedding"][x] if x.ndim == 1 else dense(params["embed"], x)
    h = h + params["positions"][: len(x)]
    for block in (params["block0"], params["block1"]):
        query, key, value = np.split(dense(block["qkv"], norm(block["norm0"], h)), 3, axis=-1)
        mixed = np.zeros_like(h)
        for head, t in itertools.product((slice(0, 4), slice(4, 8)), range(len(x))):
            weights = np.exp([query[t, head] @ key[s, head] / 2 for s in range(t + 1)])  # 2 is the root of 4
            mixed[t, head] = weights / weights.sum() @ value[: t + 1, head]
        h = h + dense(block["out"], mixed)
        h = h + dense(block["mlp"], gelu(dense(block["hidden"], norm(block["norm1"], h))))
    return dense(params["head"], norm(params["norm"], h))


@either
def test_outputs_equal_loops_in_numpy(kind):
    network, x = INPUTS[kind]
    params = random_params(network, x)
    expected = np.stack([reference_transformer(params, np.asarray(sequence)) for sequence in x])
    np.testing.assert_allclose(jax.jit(network.apply)(params, x), expected, rtol=1e-11, atol=1e-11)


@either
def test_no_output_depends_on_what_comes_later(kind):
    network, x = INPUTS[kind]
    params, apply = random_params(network, x), jax.jit(network.apply)
    y = apply(params, x)
    for t in range(T):
        other = x.at[:, t].set((x[:, t] + 1) % V)
        changed = np.any(apply(params, other) != y, axis=(0, 2))
        assert changed.tolist() == [s >= t for s in range(T)]


def test_scores_whose_exponentials_no_number_holds():
    """Equal to the softmax of jax, and its derivative too, for scores of several thousands."""
    query, key, value = (jnp.asarray(GENERATOR.normal(size=(B, 2, 4, T))) for _ in range(3))
    sees = jnp.triu(jnp.ones((T, T), bool))

    def expected(query):
        scores = jnp.where(sees.T, jnp.einsum("bhdq,bhdk->bhqk", query, key) / 2, -jnp.inf)
        return jnp.einsum("bhqk,bhdk->bhdq", jax.nn.softmax(scores), value)

    attend = lambda query: attention(query, key, value, sees)
    both = jax.jit(lambda x, dx: [jax.jvp(attend, (x,), (dx,)) for attend in (attend, expected)])
    for size in (1.0, 1e4):
        results, references = both(size * query, jnp.cos(query))
        assert np.isfinite(references[0]).all()
        for result, reference in zip(results, references, strict=True):
            np.testing.assert_allclose(result, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "remat"), [("tokens", False), ("features", True)])
def test_second_derivatives_agree_in_every_mode_and_with_finite_differences(kind, remat):
    """Reverse over reverse, forward over reverse and differences of the gradient, for parameters of two tasks."""
    network, x = INPUTS[kind]
    network = network.clone(remat=remat)
    params = random_params(network, x, 2)
    direction = jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(p.size).normal(size=p.shape)), params)
    gradient = jax.grad(lambda params: jnp.sum(jnp.sin(network.apply(params, x))))
    along = lambda params, direction: sum(
        jax.tree.leaves(jax.tree.map(jnp.vdot, gradient(params), direction)), start=jnp.zeros(())
    )
    reverse = jax.jit(jax.vmap(jax.grad(along)))(params, direction)
    forward = jax.jit(jax.vmap(lambda p, d: jax.jvp(gradient, (p,), (d,))[1]))(params, direction)
    moved = lambda params, direction, by: gradient(jax.tree.map(lambda p, d: p + by * d, params, direction))
    first, step = jax.jit(jax.vmap(moved, (0, 0, None))), 1e-5
    up, down = (jax.tree.map(np.asarray, first(params, direction, by)) for by in (step, -step))
    differences = jax.tree.map(lambda up, down: (up - down) / (2 * step), up, down)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(reverse))
    for other, tolerance in ((forward, 1e-12), (differences, 1e-6)):  # 1e-6: the square of the step, times curvature
        jax.tree.map(lambda a, b, t=tolerance: np.testing.assert_allclose(a, b, rtol=0, atol=t * scale), other, reverse)


def test_remat_runs_each_block_again_and_changes_nothing_else():
    network, x = INPUTS["tokens"]
    params, again = random_params(network, x), network.clone(remat=True)
    gradient = lambda network: jax.grad(lambda params: jnp.sum(jnp.sin(network.apply(params, x))))
    assert_close(jax.jit(gradient(again))(params), jax.jit(gradient(network))(params), rtol=1e-12)
    num_softmaxes = lambda network: str(jax.make_jaxpr(gradient(network))(params)).count(" = exp ")
    assert num_softmaxes(again) == 2 * num_softmaxes(network) == 4


@pytest.mark.slow  # the derivatives that they take are above
def test_the_exact_strategies_of_maml_agree_on_next_tokens():
    """Rematerialised blocks in both."""
    network = Transformer(num_tokens=V, **{**SIZES, "num_layers": 1}, remat=True)
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, V, (2, 2, 3, T)))
    batch = lambda part: (part[..., :-1], part[..., 1:])
    tasks = Task(batch(tokens[0]), batch(tokens[1]))

    def step(strategy):
        learner = maml(
            lambda key: random_params(network, TOKENS),
            cross_entropy(network.apply),
            inner_optimizer=adapt.sgd(0.1),
            num_inner_steps=2,
            meta_gradient=strategy,
        )
        state, metrics = jax.jit(learner.update)(jax.random.key(1), learner.init(jax.random.key(0)), tasks)
        return metrics["grad_norm"], metrics["loss"], state.opt_state[0].mu.params

    assert_close(step(adapt.mixed_mode()), step(adapt.exact()), rtol=1e-9)


def test_a_shorter_sequence_uses_the_first_positions():
    network, x = INPUTS["features"]
    params = random_params(network, x)
    both = jax.jit(lambda params, x: (network.apply(params, x[:, :2]), network.apply(params, x)[:, :2]))
    np.testing.assert_allclose(*both(params, x), rtol=1e-12)


@pytest.mark.parametrize(
    ("fields", "x", "message"),
    [
        ({"num_outputs": 0}, FEATURES, "num_outputs"),
        ({"num_tokens": 0}, TOKENS, "num_tokens"),
        ({"num_heads": 3}, FEATURES, "width must be a multiple of num_heads, 3, got 8"),
        ({"max_length": 4}, FEATURES, "x must be at most max_length=4"),
        ({}, TOKENS, "x must be features .* give num_tokens"),
        ({"num_tokens": V}, FEATURES, "x must be integer tokens"),
        ({"num_tokens": V}, TOKENS[0], "x must be integer tokens"),
        ({}, FEATURES[0], "x must be features"),
    ],
)
def test_what_it_refuses(fields, x, message):
    with pytest.raises(ValueError, match=message):
        Transformer(**{**SIZES, **fields}).init(jax.random.key(0), x)

"""A learned optimizer against numpy, against Adam, which it starts as, and against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_close

from jaxmeta import adapt
from jaxmeta.types import MetaParams

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

DECAYS, SECOND, RATE, EPSILON = (0.9, 0.5), 0.99, 0.02, 1e-12
H = 1e-5  # of finite differences
TIMESCALES = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])
RNG = np.random.default_rng(0)
PARAMS = {"b": np.array([0.1, -0.4]), "none": None, "w": RNG.normal(size=(3, 2))}
X, Y = RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2))
BATCHES = (np.stack([X, X[::-1], X + 0.1, X - 0.1]), np.stack([Y, Y[::-1], Y, Y]))


def optimizer(**changed):
    return adapt.learned_optimizer(**{"learning_rate": RATE, "decays": DECAYS, "second_decay": SECOND, **changed})


@pytest.fixture(scope="module")
def weights(x64_module):
    """None of them 0, so that all of the network counts."""
    hyper = optimizer(hidden=(5, 4)).init(PARAMS)
    return jax.tree.map(lambda w: 0.3 * jnp.array(np.random.default_rng(w.size).normal(size=w.shape)), hyper)


@pytest.fixture(scope="module")
def stepped(x64_module, weights):
    """(params, [grads]) -> what its steps make of them."""
    chosen = optimizer(hidden=(5, 4))
    step = jax.jit(lambda params, state, grads: chosen.step(MetaParams(params, weights), state, grads))

    def stepped(params, grads):
        state = chosen.start(MetaParams(params, weights))
        for g in grads:
            state = step(params, state, g)
        return state.fast

    return stepped


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"][None] - y) ** 2), {}


def by_hand(layers, grads, p):
    """Θ after all `grads` of one tensor."""
    means, square = [np.zeros_like(p) for _ in DECAYS], np.zeros_like(p)
    for k, g in enumerate(grads):
        means = [b * m + (1 - b) * g for b, m in zip(DECAYS, means, strict=True)]
        square = SECOND * square + (1 - SECOND) * g * g
        m_hat = [m / (1 - b ** (k + 1)) for b, m in zip(DECAYS, means, strict=True)]
        rms = np.sqrt(square / (1 - SECOND ** (k + 1)) + EPSILON)
        features = [g, p, *m_hat, rms, *(m / rms for m in m_hat)]
        features = [f / np.sqrt(np.mean(f * f) + EPSILON) for f in features]
        after = np.empty_like(p)
        for i in np.ndindex(p.shape):  # one parameter after another
            x = np.array([f[i] for f in features] + list(np.tanh(k / TIMESCALES - 1)))
            for j, (kernel, bias) in enumerate(layers):
                x = (np.maximum(x, 0) if j else x) @ kernel + bias
            after[i] = p[i] - RATE * (m_hat[0][i] / rms[i] + x[0]) * np.exp(x[1])
        p = after
    return p


def test_steps_are_those_of_a_loop_over_parameters_in_numpy(weights, stepped):
    grads = [jax.tree.map(lambda p, k=k: np.random.default_rng(k).normal(size=p.shape), PARAMS) for k in (1, 2)]
    found, layers = stepped(PARAMS, grads), jax.tree.map(np.asarray, weights)
    for name in ("b", "w"):
        np.testing.assert_allclose(found[name], by_hand(layers, [g[name] for g in grads], PARAMS[name]), rtol=1e-10)


def test_it_starts_as_adam():
    chosen = optimizer(hidden=(3,))
    adam = adapt.from_optax(optax.adam(RATE, b1=DECAYS[0], b2=SECOND, eps=0, eps_root=EPSILON))

    @jax.jit
    def adapted(weights):
        unroll = lambda *given: adapt.unroll(given[0], loss_fn, lambda source, params: source, given[1], BATCHES)[0]
        return unroll(chosen, MetaParams(PARAMS, weights)).fast, unroll(adam, MetaParams(PARAMS)).fast

    assert_close(*adapted(chosen.init(PARAMS)))


def test_the_steps_of_a_kernel_are_in_inverse_proportion_to_its_fan_in(weights):
    params = {"b": np.ones(4), "conv": np.ones((3, 3, 2, 4)), "w": np.ones((12, 4)), "wide": np.ones((48, 4))}
    grads = jax.tree.map(np.cos, jax.tree.map(lambda p: np.arange(p.size).reshape(p.shape), params))

    def step(**changed):
        chosen, meta_params = optimizer(hidden=(5, 4), **changed), MetaParams(params, weights)
        return jax.tree.map(np.subtract, chosen.step(meta_params, chosen.start(meta_params), grads).fast, params)

    ratios = jax.tree.map(np.divide, step(base_fan_in=12), step())
    for name, ratio in {"b": 1.0, "conv": 12 / 18, "w": 1.0, "wide": 1 / 4}.items():
        np.testing.assert_allclose(ratios[name], ratio, rtol=1e-8)


def test_entries_of_a_tensor_that_change_places_take_their_steps_along(stepped):
    order = np.array([3, 0, 5, 1, 4, 2])
    moved = lambda tree: {**tree, "w": tree["w"].ravel()[order].reshape(2, 3)}  # into another shape too
    grads = jax.tree.map(np.cos, PARAMS)
    assert_close(stepped(moved(PARAMS), [moved(grads)]), moved(stepped(PARAMS, [grads])))


def test_the_scale_of_the_loss_is_not_seen(stepped):
    one, other = (stepped(PARAMS, [jax.tree.map(lambda p, s=s: s * np.cos(p), PARAMS)]) for s in (1.0, 1e3))
    assert_close(one, other, rtol=1e-8)


def test_weights_are_of_no_shape_of_the_parameters_and_the_seeds():
    shapes = lambda params: jax.tree.map(jnp.shape, optimizer().init(params))
    assert shapes(PARAMS) == shapes({"w": jnp.zeros((7, 5, 3))})
    assert [layer.kernel.shape for layer in optimizer().init(PARAMS)] == [(7 + 11, 8), (8, 8), (8, 2)]
    assert [layer.kernel.shape for layer in optimizer(hidden=()).init(PARAMS)] == [(18, 2)]
    kernels = [optimizer(seed=seed).init(PARAMS)[0].kernel for seed in (0, 0, 1)]
    assert jnp.array_equal(kernels[0], kernels[1]) and not jnp.array_equal(kernels[0], kernels[2])


def meta_gradient(chosen, strategy):
    def inner(meta_params, sources, task, *, state=None, **how):
        state, _ = adapt.unroll(
            chosen, loss_fn, lambda source, params: source, meta_params, sources, state=state, **how
        )
        return adapt.Adapted(chosen.params(meta_params, state.fast)), state

    return jax.jit(strategy(inner, lambda adapted, query: loss_fn(adapted.params, query)))


@pytest.fixture(scope="module")
def exact(x64_module):
    """(weights, batches) -> the loss after they were learned from, and its gradient."""
    gradient = meta_gradient(optimizer(hidden=(5, 4)), adapt.exact())

    def exact(weights, batches):
        (loss, _), grads = gradient(jax.random.key(0), MetaParams(PARAMS, weights), batches, (X, Y))
        return loss, grads

    return exact


def test_the_exact_meta_gradient_is_the_finite_difference(weights, exact):
    grads = exact(weights, BATCHES)[1]
    for seed in range(3):
        way = jax.tree.map(lambda w, s=seed: jnp.array(np.random.default_rng(s).normal(size=w.shape)), weights)
        ahead, behind = (exact(jax.tree.map(lambda w, d, h=h: w + h * d, weights, way), BATCHES)[0] for h in (H, -H))
        np.testing.assert_allclose((ahead - behind) / (2 * H), optax.tree.vdot(grads.hyper, way), rtol=1e-6)


def test_a_parameter_without_a_gradient_leaves_all_of_them_finite(weights, exact):
    """As an input that is always 0 does: neither its average nor that of its square is ever anything."""
    _, grads = exact(weights, (BATCHES[0] * np.array([1, 1, 0]), BATCHES[1]))
    assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    "strategy",
    [
        adapt.mixed_mode(),
        adapt.forward_mode(),
        adapt.truncated(2),
        adapt.first_order(),
        adapt.evolution_strategy(num_pairs=1),
        adapt.persistent_evolution_strategy(num_truncations=2, num_pairs=1),
    ],
    ids=["mixed_mode", "forward_mode", "truncated", "first_order", "evolution", "persistent_evolution"],
)
def test_every_strategy_gives_a_gradient_of_its_weights(strategy):
    chosen = optimizer(hidden=(3,))
    meta_params = MetaParams(PARAMS, chosen.init(PARAMS))
    given = jax.random.key(0), meta_params, BATCHES, (X, Y)
    (loss, _), grads = jax.eval_shape(meta_gradient(chosen, strategy), *given)
    assert loss.shape == () and jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, meta_params)


def test_a_solution_that_does_not_depend_on_it_has_no_implicit_gradient():
    with pytest.raises(ValueError, match="implicit needs an inner optimizer without a state"):
        chosen = optimizer(hidden=())
        meta_params = MetaParams(PARAMS, chosen.init(PARAMS))
        jax.eval_shape(meta_gradient(chosen, adapt.implicit()), jax.random.key(0), meta_params, BATCHES, (X, Y))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be a finite number >= 0, got -1.0"),
        ({"hidden": 8}, r"hidden must be a sequence of widths, such as \(64, 64\), got 8"),
        ({"hidden": (8, 0)}, r"hidden\[1\] must be an integer >= 1, got 0"),
        ({"decays": ()}, r"decays must be a sequence of at least one decay, such as \(0.9, 0.99\), got \(\)"),
        ({"decays": 0.9}, "decays must be a sequence of at least one decay, .* got 0.9"),
        ({"decays": (0.9, 1.0)}, r"decays\[1\] must be below 1, got 1"),
        ({"second_decay": 1.5}, "second_decay must be below 1, got 1.5"),
        ({"second_decay": -0.5}, "second_decay must be a finite number >= 0, got -0.5"),
        ({"base_fan_in": 0}, "base_fan_in must be an integer >= 1, got 0"),
        ({"seed": 0.5}, "seed must be an integer >= 0, got 0.5"),
        ({"seed": 2**32}, r"seed must be below 2\*\*32, got 4294967296"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        adapt.learned_optimizer(**arguments)

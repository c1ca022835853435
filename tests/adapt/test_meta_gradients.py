"""Every strategy's meta-gradient in float64: against brute force, an explicit Hessian, finite differences, each other.

Everywhere each of the K inner steps has its own batch, so that a wrong order or a wrong cut is seen.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from reference import assert_close, relative_error

from jaxmeta import adapt, nn, tasks
from jaxmeta.types import MetaParams

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

RATE = 0.1
EPS_ROOT = 1e-6

# name: (the library's, the reference's)
OPTIMIZERS = {
    "sgd": (adapt.sgd(RATE), reference.sgd(RATE)),
    "momentum": (adapt.from_optax(optax.sgd(RATE, momentum=0.8)), reference.momentum(RATE, 0.8)),
    "adam": (adapt.from_optax(optax.adam(RATE, eps_root=EPS_ROOT)), reference.adam(RATE, eps_root=EPS_ROOT)),
    "clip, adamw": (
        adapt.from_optax(
            optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(RATE, weight_decay=0.1, eps_root=EPS_ROOT))
        ),
        reference.clipped_adamw(RATE, 0.5, 0.1, EPS_ROOT),
    ),
    "meta_sgd": (adapt.meta_sgd(RATE), reference.meta_sgd()),
    "lslr": (adapt.lslr(RATE, num_inner_steps=4), reference.lslr()),
}
POLICIES = jax.checkpoint_policies
SCHEDULES = {
    "remat": adapt.exact(remat=POLICIES.nothing_saveable),
    "remat, products kept": adapt.exact(remat=POLICIES.dots_saveable),
    "segments": adapt.exact(num_segments="sqrt"),
    "mixed, gradients": adapt.mixed_mode(save_gradients=True),
    "mixed, segments": adapt.mixed_mode(num_segments="sqrt"),
    "mixed, segments, gradients": adapt.mixed_mode(num_segments="sqrt", save_gradients=True),
    "auto": adapt.auto(),
    "auto, no memory": adapt.auto(memory_budget=1),
}


def predict(params, x):
    return jnp.tanh(x @ params["body"]) @ params["head"]


def loss_fn(params, batch):
    x, y = batch
    loss = jnp.mean((predict(params, x) - y) ** 2)
    return loss, {"mse": loss}


def plain_loss(params, batch):
    return loss_fn(params, batch)[0]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def make_params():
    return {"body": normal(0, 1, 4), "head": normal(2, 4, 1)}


def make_task(num_steps, num_shots=5):
    """(the batches of K steps, the query set)"""
    batches = normal(3, num_steps, num_shots, 1), normal(4, num_steps, num_shots, 1)
    return batches, (normal(5, 6, 1), normal(6, 6, 1))


def make_meta_params(optimizer):
    params = make_params()
    hyper = optimizer.init(params)  # uneven rates, so that a permutation of them is seen
    hyper = jax.tree.map(lambda rates: rates * (1 + 0.5 * jnp.sin(jnp.arange(rates.size).reshape(rates.shape))), hyper)
    return MetaParams(params, hyper)


def through(strategy, optimizer, loss_fn=loss_fn, draw=lambda source, params: source):
    """(meta_params, batches of K steps, query set) -> ((loss, metrics), grads)"""

    def inner(meta_params, sources, task, **how):
        state, _ = adapt.unroll(optimizer, loss_fn, draw, meta_params, sources, **how)
        return adapt.Adapted(optimizer.params(meta_params, state.fast)), state

    return jax.jit(partial(strategy(inner, lambda adapted, query: loss_fn(adapted.params, query)), jax.random.key(0)))


def brute_force(update, meta_params, batches, query, num_constant=0):
    batches = [jax.tree.map(lambda leaf, k=k: leaf[k], batches) for k in range(len(batches[0]))]
    loss, *grads = reference.meta_gradient(plain_loss, update, *meta_params[:2], batches, query, num_constant)
    return loss, MetaParams(*grads)


@cache
def expected_of(name, num_steps, num_constant=0):
    """(loss, meta-gradient) by brute force, computed once for all that are compared with it."""
    optimizer, update = OPTIMIZERS[name]
    return brute_force(update, make_meta_params(optimizer), *make_task(num_steps), num_constant)


@pytest.mark.parametrize("num_steps", [1, 3, 10])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exact_and_mixed_mode_equal_a_brute_force_loop(name, num_steps):
    optimizer, (loss, expected) = OPTIMIZERS[name][0], expected_of(name, num_steps)
    meta_params, task = make_meta_params(optimizer), make_task(num_steps)
    for strategy in (adapt.exact(), adapt.mixed_mode()):
        (actual_loss, metrics), grads = through(strategy, optimizer)(meta_params, *task)
        assert_close((actual_loss, metrics["mse"]), (loss, loss))
        assert_close(grads, expected)


@pytest.mark.parametrize("num_constant", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["adam", "meta_sgd"])
def test_truncated_and_first_order_equal_a_brute_force_loop_with_early_gradients_constant(name, num_constant):
    optimizer, (loss, expected) = OPTIMIZERS[name][0], expected_of(name, 3, num_constant)
    meta_params, task = make_meta_params(optimizer), make_task(num_steps=3)
    strategies = [adapt.truncated(3 - num_constant)] + [adapt.first_order()] * (num_constant == 3)
    for strategy in strategies:
        (actual_loss, _), grads = through(strategy, optimizer)(meta_params, *task)
        assert_close(actual_loss, loss)
        assert_close(grads, expected)


def test_strategies_that_differ_do_differ():
    """The control: each equality above would fail by a factor of 1e6 or more were one strategy taken for another."""
    optimizer = adapt.meta_sgd(RATE)
    meta_params, task = make_meta_params(optimizer), make_task(num_steps=3)
    strategies = [adapt.exact(), adapt.truncated(2), adapt.truncated(1), adapt.first_order()]
    grads = [through(strategy, optimizer)(meta_params, *task)[1] for strategy in strategies]
    for i, one in enumerate(grads):
        for other in grads[:i]:
            assert relative_error(one.params, other.params) > 1e-4


@pytest.mark.parametrize(("distribution", "degree"), [(tasks.linear(), 1), (tasks.quadratic(noise=0.1), 2)])
def test_exact_equals_the_explicit_hessian_formula(distribution, degree):
    task = distribution.sample(jax.random.key(degree), distribution.data)
    features = lambda x: x ** jnp.arange(degree + 1)[None]
    theta = normal(7, degree + 1)

    def polynomial_loss(theta, batch):
        x, y = batch
        return jnp.mean((features(x) @ theta[:, None] - y) ** 2), {}

    support = jax.tree.map(lambda leaf: leaf[None], task.support)
    _, grads = through(adapt.exact(), adapt.sgd(0.3), polynomial_loss)(MetaParams(theta), support, task.query)
    pairs = [(features(x), y[:, 0]) for x, y in (task.support, task.query)]
    assert_close(grads.params, reference.least_squares_meta_gradient(np.asarray(theta), 0.3, *pairs))


def test_finite_differences_on_the_sinusoid_network():
    """Central differences in random directions. The relu makes ∇L, and so the adapted loss, jump at a kink: h must be
    so small, 1e-7, that no kink lies between. That leaves the rounding of the loss, 1e-14 / h = 1e-7, hence 1e-6."""
    network = nn.MLP()
    distribution = tasks.sinusoid()
    task = distribution.sample(jax.random.key(0), distribution.data)
    params = jax.tree.map(lambda p: p.astype(float), network.init(jax.random.key(1), task.support[0]))
    sources = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), task.support)
    gradient = through(adapt.exact(), adapt.sgd(0.01), nn.mean_squared_error(network.apply))
    (loss, _), grads = gradient(MetaParams(params), sources, task.query)
    assert loss.dtype == float
    for seed in range(3):
        direction = jax.tree.map(lambda p, seed=seed: normal(seed, *p.shape), params)
        losses = []
        for h in (1e-7, -1e-7):
            moved = jax.tree.map(lambda p, d, h=h: p + h * d, params, direction)
            losses.append(gradient(MetaParams(moved), sources, task.query)[0][0])
        slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=False))
        np.testing.assert_allclose((losses[0] - losses[1]) / 2e-7, slope, rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "meta_sgd"])
def test_reptile_is_the_way_back_to_the_initialisation(name):
    optimizer, update = OPTIMIZERS[name]
    meta_params, (batches, query) = make_meta_params(optimizer), make_task(num_steps=3)
    (loss, _), grads = through(adapt.reptile(), optimizer)(meta_params, batches, query)
    steps = [jax.tree.map(lambda leaf, k=k: leaf[k], batches) for k in range(3)]
    adapted = reference.adapt(plain_loss, update, *meta_params[:2], steps)
    assert_close(grads.params, jax.tree.map(lambda p, a: p - a, meta_params.params, adapted))
    assert_close(loss, plain_loss(adapted, query))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads.hyper))


def test_mixed_mode_differentiates_what_is_drawn_from_the_parameters():
    """A batch that depends on θ_k, as a policy's rollout does: the cotangent of the batch must reach θ_k too."""

    def draw(source, params):
        x, y = source
        return x * params["head"][0, 0], y + jnp.sin(params["body"][0, 0])

    meta_params, task = make_meta_params(adapt.meta_sgd(RATE)), make_task(num_steps=3)
    optimizer = adapt.meta_sgd(RATE)
    expected, actual, ignorant = (
        through(strategy, optimizer, draw=drawn)(meta_params, *task)
        for strategy, drawn in [
            (adapt.exact(), draw),
            (adapt.mixed_mode(), draw),
            (adapt.exact(), lambda source, params: draw(source, jax.lax.stop_gradient(params))),
        ]
    )
    assert_close(actual, expected)
    assert relative_error(ignorant[1], expected[1]) > 1e-4


def test_mixed_mode_takes_integers_and_keys_in_a_batch():
    def noisy_loss(params, batch):
        x, y, label, keys = batch
        noise = jax.vmap(jax.random.normal)(keys)[:, None]
        weight = 1.0 + jax.nn.one_hot(label, 3)[:, :1]
        return jnp.mean(weight * (predict(params, x) + noise - y) ** 2), {"num_examples": jnp.size(label)}

    optimizer = adapt.sgd(RATE)
    meta_params, (batches, query) = make_meta_params(optimizer), make_task(num_steps=3)
    extra = lambda *shape: (
        jnp.arange(np.prod(shape)).reshape(shape) % 3,
        jax.random.split(jax.random.key(0), shape),
    )
    task = (*batches, *extra(3, 5)), (*query, *extra(6))
    expected, actual = (
        through(strategy, optimizer, noisy_loss)(meta_params, *task) for strategy in (adapt.exact(), adapt.mixed_mode())
    )
    assert_close(actual, expected)


def test_mixed_mode_takes_a_loss_that_closes_over_a_traced_array():
    """Under `jit` and `vmap` the loss sees tracers, real and integer, that `custom_vjp` is not told about."""
    optimizer = adapt.meta_sgd(RATE)
    meta_params, (batches, query) = make_meta_params(optimizer), make_task(num_steps=3)

    def gradients(strategy):
        def of_scale(scale, power):
            def scaled_loss(params, batch):
                return plain_loss(params, batch) + jnp.sum(scale * params["body"][0] ** power), {}

            return through(strategy, optimizer, scaled_loss)(meta_params, batches, query)

        return jax.jit(jax.vmap(of_scale))(1 + jnp.arange(8.0).reshape(2, 4) / 10, jnp.array([2, 3]))

    assert_close(gradients(adapt.mixed_mode()), gradients(adapt.exact()))


def test_mixed_mode_differentiates_the_inner_losses():
    """An outer loss that uses `trace.loss`, in which the cotangent of the inner loss is not zero."""
    optimizer = adapt.meta_sgd(RATE)
    meta_params, (batches, query) = make_meta_params(optimizer), make_task(num_steps=3)

    def inner(meta_params, sources, task, **how):
        state, trace = adapt.unroll(optimizer, loss_fn, lambda source, params: source, meta_params, sources, **how)
        return adapt.Adapted(state.fast, trace.loss), state

    def outer(adapted, query):
        fast, losses = adapted
        return plain_loss(fast, query) + jnp.sum(losses**2), {}

    expected, actual = (
        jax.jit(strategy(inner, outer))(jax.random.key(0), meta_params, batches, query)
        for strategy in (adapt.exact(), adapt.mixed_mode())
    )
    assert_close(actual, expected)
    without = through(adapt.exact(), optimizer)(meta_params, batches, query)[1]
    assert relative_error(without, expected[1]) > 1e-4


def test_mixed_mode_needs_a_fraction_of_the_memory():
    """20 steps of a 3-layer network on 2048 examples: of each step `exact` keeps activations, [2048, 16] and more,
    where `mixed_mode` keeps 300 parameters. XLA's own account of its temporary buffers."""
    network = nn.MLP((16, 16))
    batches, query = make_task(num_steps=20, num_shots=2048)
    params = jax.tree.map(lambda p: p.astype(float), network.init(jax.random.key(0), query[0]))
    memory = {}
    for name, strategy in {"exact": adapt.exact(), "mixed_mode": adapt.mixed_mode()}.items():
        gradient = through(strategy, adapt.sgd(RATE), nn.mean_squared_error(network.apply))
        analysis = gradient.lower(MetaParams(params), batches, query).compile().memory_analysis()
        memory[name] = analysis.temp_size_in_bytes
    assert memory["mixed_mode"] < memory["exact"] / 4


def test_mixed_mode_with_an_optimizer_that_leaves_a_layer_as_it_is():
    """The gradient of that layer goes nowhere, so that nothing is known to come back to it."""
    parts = {"body": optax.sgd(RATE), "head": optax.set_to_zero()}
    optimizer = adapt.from_optax(optax.multi_transform(parts, {"body": "body", "head": "head"}))
    step = lambda params, slots, grads, hyper, k: ({**params, "body": params["body"] - RATE * grads["body"]}, slots)
    meta_params, task = make_meta_params(optimizer), make_task(num_steps=3)
    _, expected = brute_force((lambda params: None, step), meta_params, *task)
    assert_close(through(adapt.mixed_mode(), optimizer)(meta_params, *task)[1], expected)


def test_mixed_mode_multiplies_no_more_than_exact_with_a_step_computed_again():
    """By XLA's account. Of the inner gradient at which it takes a directional derivative, weights have no part."""
    network = nn.MLP((64, 64, 64))
    batches, query = make_task(num_steps=3, num_shots=256)
    params = jax.tree.map(lambda p: p.astype(float), network.init(jax.random.key(0), query[0]))
    again, mixed = (
        through(strategy, adapt.sgd(RATE), nn.mean_squared_error(network.apply))
        .lower(MetaParams(params), batches, query)
        .compile()
        .cost_analysis()["flops"]
        for strategy in (adapt.exact(remat=jax.checkpoint_policies.nothing_saveable), adapt.mixed_mode())
    )
    assert mixed < 1.01 * again


def test_truncated_refuses_more_exact_steps_than_there_are():
    optimizer = adapt.sgd(RATE)
    with pytest.raises(ValueError, match="num_exact must be at most the 3 inner steps, got 4"):
        through(adapt.truncated(4), optimizer)(make_meta_params(optimizer), *make_task(num_steps=3))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["clip, adamw", "lslr"])
def test_every_schedule_has_the_same_meta_gradient(name, schedule):
    """10 steps, so that √K segments have 4, 4 and 2."""
    optimizer, (loss, expected) = OPTIMIZERS[name][0], expected_of(name, 10)
    meta_params, task = make_meta_params(optimizer), make_task(num_steps=10)
    (actual_loss, _), grads = through(SCHEDULES[schedule], optimizer)(meta_params, *task)
    assert_close(actual_loss, loss)
    assert_close(grads, expected)


@pytest.mark.parametrize("num_segments", [2, 3, 4, 6, 9])
def test_any_number_of_segments(num_segments):
    """Of 6 steps: even, uneven, and more than there are steps."""
    optimizer, (_, expected) = OPTIMIZERS["lslr"][0], expected_of("lslr", 6)
    meta_params, task = make_meta_params(optimizer), make_task(num_steps=6)
    assert_close(through(adapt.exact(num_segments=num_segments), optimizer)(meta_params, *task)[1], expected)


@pytest.mark.parametrize("schedule", ["remat", "mixed, segments"])
def test_under_lax_map_and_vmap(schedule):
    """Over three initialisations."""
    optimizer, update = OPTIMIZERS["adam"]
    meta_params, task = make_meta_params(optimizer), make_task(num_steps=4)
    several = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), meta_params)
    gradient = lambda meta_params: through(SCHEDULES[schedule], optimizer)(meta_params, *task)[1]
    mapped, vmapped = jax.lax.map(gradient, several), jax.vmap(gradient)(several)
    for i in range(3):
        own = lambda tree, i=i: jax.tree.map(lambda leaf: leaf[i], tree)
        _, expected = brute_force(update, own(several), *task)
        assert_close(own(mapped), expected)
        assert_close(own(vmapped), expected)


def test_segments_save_memory_and_saved_gradients_cost_some():
    """100 steps of Adam on an MLP: 10 segments keep 10 + 10 states in place of 100; saved gradients are 100 more."""
    optimizer = OPTIMIZERS["adam"][0]
    params = {"body": normal(0, 1, 256), "head": normal(1, 256, 1)}
    meta_params, task = MetaParams(params), make_task(num_steps=100)

    def memory(strategy):
        compiled = through(strategy, optimizer).lower(meta_params, *task).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole, segments, saved = (
        memory(adapt.mixed_mode(**how))
        for how in ({}, {"num_segments": 10}, {"num_segments": 10, "save_gradients": True})
    )
    gradients = 100 * 2 * 256 * 8  # bytes
    assert segments < whole / 3
    assert 0.9 * gradients < saved - segments < 1.5 * gradients
    assert memory(adapt.exact(remat=jax.checkpoint_policies.nothing_saveable)) < memory(adapt.exact()) / 2


@pytest.mark.parametrize("name", ["meta_sgd", "lslr"])
def test_forward_mode_is_exact_in_what_it_learns(name):
    optimizer, (loss, expected) = OPTIMIZERS[name][0], expected_of(name, 6)
    meta_params, task = make_meta_params(optimizer), make_task(num_steps=6)
    (actual_loss, metrics), grads = through(adapt.forward_mode(), optimizer)(meta_params, *task)
    assert_close((actual_loss, metrics["mse"]), (loss, loss))
    assert_close(grads.hyper, expected.hyper)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads.params))
    _, grads = through(adapt.forward_mode("head"), optimizer)(meta_params, *task)
    assert_close((grads.params["head"], grads.hyper["head"]), (expected.params["head"], expected.hyper["head"]))
    assert not np.any(grads.params["body"]) and not np.any(grads.hyper["body"])


def test_forward_modes_memory_does_not_depend_on_the_number_of_steps():
    """Where reverse mode keeps something of each of 500 steps. The task is an argument: XLA's account leaves it out."""
    optimizer, network = adapt.lslr(RATE, num_inner_steps=1), nn.MLP((16, 16))
    x = normal(0, 8, 1)
    params = jax.tree.map(lambda p: p.astype(float), network.init(jax.random.key(0), x))
    meta_params = MetaParams(params, optimizer.init(params))

    def memory(strategy, num_steps):
        batches = jnp.zeros((num_steps, 8, 1)), jnp.zeros((num_steps, 8, 1))
        gradient = through(strategy, optimizer, nn.mean_squared_error(network.apply))
        return gradient.lower(meta_params, batches, (x, x)).compile().memory_analysis().temp_size_in_bytes

    forward = [memory(adapt.forward_mode(), num_steps) for num_steps in (5, 500)]
    assert forward[1] < 1.05 * forward[0]
    assert memory(adapt.exact(), 500) > 10 * memory(adapt.exact(), 5)


def test_forward_mode_needs_something_to_learn():
    optimizer = adapt.sgd(RATE)
    with pytest.raises(ValueError, match=r"where=.* chooses no parameter; the parameters are params/body, params/head"):
        through(adapt.forward_mode(), optimizer)(make_meta_params(optimizer), *make_task(num_steps=2))

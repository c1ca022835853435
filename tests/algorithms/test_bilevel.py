"""Inner problems that live on, in float64: against closed forms, hand-written loops and `maml`."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_close

import jaxmeta
from jaxmeta import MetaParams, Task, TaskDistribution, adapt, bilevel

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

RATE, NUM_STEPS, DIM = 0.2, 4, 5
RNG = np.random.default_rng(0)


def positive(low, high, dim):
    """A symmetric matrix whose eigenvalues are spread over [low, high]."""
    basis, _ = np.linalg.qr(RNG.normal(size=(dim, dim)))
    return basis @ np.diag(np.linspace(low, high, dim)) @ basis.T


# L = θᵀHθ/2 − θᵀ(b + Cη), L' = |θ − t|²/2 + |η|²/20
H, C = positive(0.3, 1.5, DIM), RNG.normal(size=(DIM, 3))
B, T, ETA, THETA_0 = RNG.normal(size=DIM), RNG.normal(size=DIM), RNG.normal(size=3), RNG.normal(size=DIM)


def quadratic(params, meta_params, batch):
    return params @ H @ params / 2 - params @ (batch + C @ meta_params), {}


def distance(params, meta_params, batch):
    loss = jnp.sum((params - batch) ** 2) / 2 + jnp.sum(meta_params**2) / 20
    return loss, {"distance": loss}


def problems(num_problems=1):
    repeat = lambda x: jnp.repeat(jnp.asarray(x)[None], num_problems, axis=0)
    return Task(support=repeat(B), query=repeat(T))


def of_quadratic(strategy=None, **options):
    options = {"num_inner_steps": NUM_STEPS, "optimizer": optax.sgd(1.0), **options}
    return bilevel(
        lambda key, meta_params: jnp.asarray(THETA_0),
        lambda key: jnp.asarray(ETA),
        quadratic,
        outer_loss_fn=distance,
        inner_optimizer=adapt.sgd(RATE),
        meta_gradient=strategy,
        **options,
    )


def gradients(learner, num_updates, tasks=None):
    """[(the gradient in η, the loss)] of a few updates with an outer rate of 1, and the last state."""
    state, update, found = learner.init(jax.random.key(0)), jax.jit(learner.update), []
    for i in range(num_updates):
        after, metrics = update(jax.random.key(i), state, problems() if tasks is None else tasks)
        found.append((state.meta_params.params - after.meta_params.params, metrics["loss"]))
        state = after
    return found, state


def by_the_product_formula(num_updates, num_exact=NUM_STEPS):
    """dθ_K/dη = Σ_j (I − αH)^j α C over the window, whose beginning is a constant."""
    theta, eta, found = THETA_0, ETA, []
    contraction = np.eye(DIM) - RATE * H
    for _ in range(num_updates):
        for _ in range(NUM_STEPS):
            theta = theta - RATE * (H @ theta - B - C @ eta)
        jacobian = sum(np.linalg.matrix_power(contraction, j) for j in range(num_exact)) @ (RATE * C)
        loss = np.sum((theta - T) ** 2) / 2 + np.sum(eta**2) / 20
        grad = jacobian.T @ (theta - T) + eta / 10
        found.append((grad, loss))
        eta = eta - grad
    return found, theta


EXACT = {
    "auto": adapt.auto(),
    "exact": adapt.exact(),
    "mixed": adapt.mixed_mode(),
    "mixed, segments": adapt.mixed_mode(num_segments="sqrt"),
    "segments": adapt.exact(num_segments=2),
    "forward": adapt.forward_mode(lambda path: True),
    "truncated to nothing": adapt.truncated(NUM_STEPS),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_window_has_the_gradient_of_the_product_formula_and_the_next_goes_on_from_it(name):
    expected, theta = by_the_product_formula(3)
    found, state = gradients(of_quadratic(EXACT[name]), 3)
    assert_close(found, expected, 1e-10)
    assert_close(state.carry.inner.fast[0], theta, 1e-10)
    assert state.carry.age.tolist() == [3 * NUM_STEPS]


def test_first_order_sees_eta_where_the_outer_loss_reads_it_and_in_the_inner_gradients_not():
    (grad, _), *_ = gradients(of_quadratic(adapt.first_order()), 1)[0]
    assert_close(grad, ETA / 10, 1e-12)


def test_reptile_goes_back_to_where_the_window_began():
    """Of η nothing is on the way: the start of a problem that goes on is a constant, and that of a new one is here."""
    learner = bilevel(
        lambda key, meta_params: meta_params[0] * jnp.asarray(THETA_0),
        lambda key: jnp.ones(3),
        lambda params, meta_params, batch: quadratic(params, jnp.zeros(3), batch),
        num_inner_steps=NUM_STEPS,
        inner_optimizer=adapt.sgd(RATE),
        meta_gradient=adapt.reptile(),
        optimizer=optax.sgd(1.0),
    )
    after_one = gradients(learner, 1)[1].carry.inner.fast[0]
    ((of_new, _), (of_old, _)), _ = gradients(learner, 2)
    assert_close(of_new, np.array([THETA_0 @ (THETA_0 - after_one), 0, 0]), 1e-12)
    assert_close(of_old, np.zeros(3), 0)


def test_begun_anew_each_time_it_is_maml():
    loss_fn = lambda params, batch: (jnp.mean((params["w"] * batch[0] + params["b"] - batch[1]) ** 2), {})
    start = lambda key: {"w": jax.random.normal(key), "b": jnp.ones(())}
    options = {"num_inner_steps": 2, "inner_optimizer": adapt.meta_sgd(0.1), "optimizer": optax.sgd(0.3)}
    maml = jaxmeta.maml(start, loss_fn, **options)
    mine = bilevel(
        lambda key, meta_params: meta_params,
        start,
        lambda params, meta_params, batch: loss_fn(params, batch),
        lifetime=2,
        num_problems=3,
        **options,
    )
    x = jnp.asarray(RNG.normal(size=(3, 6)))
    tasks, state = Task((x, 2 * x), (x, x - 1)), maml.init(jax.random.key(1))
    (expected, _), (found, _) = (learner.update(jax.random.key(0), state, tasks) for learner in (maml, mine))
    assert_close(found.meta_params, expected.meta_params, 1e-12)
    assert mine.init(jax.random.key(1)).carry == () and mine.task_keys is None


def test_implicit_gradients_are_those_of_the_solution_and_warm_starts_are_sobas():
    """By hand: θ ← θ − α∇L, v ← v + ∇L' − αHv, η ← η − β(∂L'/∂η + αCᵀv)."""
    learner = of_quadratic(adapt.implicit(solver=adapt.neumann_series(1)), num_inner_steps=1, optimizer=optax.sgd(0.1))
    state, update = learner.init(jax.random.key(0)), jax.jit(learner.update)
    theta, v, eta = THETA_0, np.zeros(DIM), ETA
    for _ in range(5):
        theta = theta - RATE * (H @ theta - B - C @ eta)
        v = v + (theta - T) - RATE * H @ v
        eta = eta - 0.1 * (eta / 10 + RATE * C.T @ v)
        state, _ = update(jax.random.key(0), state, problems())
    inner, solution = state.carry.inner
    assert_close((inner.fast[0], solution[0], state.meta_params.params), (theta, v, eta), 1e-12)


def test_without_a_warm_start_the_linear_system_is_solved_from_nothing():
    """StocBiO: two terms of the series, of each window's own end."""
    strategy = adapt.implicit(solver=adapt.neumann_series(2), warm_start=False)
    inner, solution = gradients(of_quadratic(strategy, num_inner_steps=1), 3)[1].carry.inner
    slope = inner.fast[0] - T
    assert_close(solution[0], 2 * slope - RATE * H @ slope, 1e-12)


def simulated(dim):
    """L = θᵀAθ/2 + θᵀGη + aᵀθ, L' = θᵀFθ/2 + θᵀPη + ηᵀDη/2 + fᵀθ: eigenvalues from .1 to 1, cross terms of .1."""
    matrices = {name: positive(0.1, 1.0, dim) for name in "AFD"}
    crosses = {name: 0.1 * RNG.normal(size=(dim, dim)) / np.sqrt(dim) for name in "GP"}
    return {**matrices, **crosses, "a": RNG.normal(size=dim), "f": RNG.normal(size=dim)}


def test_the_simulated_quadratic_has_its_closed_hypergradient_and_its_minimum_is_reached(dim=100):
    of = simulated(dim)
    inner = lambda p, m, batch: (p @ of["A"] @ p / 2 + p @ (of["G"] @ m) + of["a"] @ p, {})
    outer = lambda p, m, batch: (p @ of["F"] @ p / 2 + p @ (of["P"] @ m) + m @ of["D"] @ m / 2 + of["f"] @ p, {})
    learner = bilevel(
        lambda key, meta_params: jnp.zeros(dim),
        lambda key: jnp.asarray(np.linspace(-1, 1, dim)),
        inner,
        num_inner_steps=300,  # the error falls by a tenth with each
        outer_loss_fn=outer,
        inner_optimizer=adapt.sgd(1.0),
        meta_gradient=adapt.implicit(solver=adapt.conjugate_gradient(30)),
        optimizer=optax.sgd(0.5),
    )
    # θ* = −A⁻¹(Gη + a), so that L'(θ*(η), η) = ηᵀQη/2 + qᵀη + c
    response = -np.linalg.solve(of["A"], of["G"])
    offset = -np.linalg.solve(of["A"], of["a"])
    curvature = response.T @ of["F"] @ response + response.T @ of["P"] + of["P"].T @ response + of["D"]
    slope = response.T @ (of["F"] @ offset + of["f"]) + of["P"].T @ offset
    best = -np.linalg.solve(curvature, slope)

    def step(state, key):
        after, _ = learner.update(key, state, Task(jnp.zeros((1, 1)), jnp.zeros((1, 1))))
        return after, (state.meta_params.params, (state.meta_params.params - after.meta_params.params) / 0.5)

    keys = jax.random.split(jax.random.key(0), 300)
    state, (etas, grads) = jax.jit(lambda state: jax.lax.scan(step, state, keys))(learner.init(keys[0]))
    expected = np.asarray(etas) @ curvature + slope
    assert np.max(np.abs(grads - expected)) < 1e-8 * np.max(np.abs(expected))
    away = state.meta_params.params - best
    assert away @ curvature @ away / 2 < 1e-8


def ridge(seed):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(40, 6)), rng.normal(size=6)
    y = x @ w + rng.normal(size=40)
    return (x[:20], y[:20]), (x[20:], y[20:])


def test_the_hypergradient_of_ridge_regression_is_that_of_the_normal_equations():
    """(XᵀX/n + λI) θ = Xᵀy/n, so that dθ/d log λ = −λ (XᵀX/n + λI)⁻¹ θ."""
    (x, y), (x_test, y_test) = ridge(0)
    error = lambda params, batch: jnp.mean((batch[0] @ params - batch[1]) ** 2) / 2
    learner = lambda strategy, num_steps: bilevel(
        lambda key, meta_params: jnp.zeros(6),
        lambda key: jnp.array(-1.0),
        lambda params, m, batch: (error(params, batch) + jnp.exp(m) * jnp.sum(params**2) / 2, {}),
        num_inner_steps=num_steps,
        outer_loss_fn=lambda params, m, batch: (error(params, batch), {}),
        inner_optimizer=adapt.sgd(0.3),
        meta_gradient=strategy,
        optimizer=optax.sgd(1.0),
    )
    strength, matrix = np.exp(-1.0), x.T @ x / 20
    theta = np.linalg.solve(matrix + strength * np.eye(6), x.T @ y / 20)
    slope = x_test.T @ (x_test @ theta - y_test) / 20
    expected = -strength * slope @ np.linalg.solve(matrix + strength * np.eye(6), theta)
    task = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], Task((x, y), (x_test, y_test)))
    for strategy in (adapt.exact(), adapt.mixed_mode(), adapt.implicit(solver=adapt.conjugate_gradient(10))):
        ((grad, _),), _ = gradients(learner(strategy, 300), 1, task)
        assert_close(grad, expected, 1e-8)


# One that lives 8 steps at most: L = (θ − c)²/2 for the task's c, which θ approaches by η.
def of_scalar(**options):
    options = {"num_inner_steps": 2, "lifetime": 8, "num_problems": 4, "optimizer": optax.sgd(0.0), **options}
    return bilevel(
        lambda key, meta_params: jnp.zeros(()),
        lambda key: jnp.array(0.5),
        lambda params, meta_params, batch: ((params - batch[0]) ** 2 / 2, {}),
        outer_loss_fn=lambda params, meta_params, batch: ((params - batch[0]) ** 2 / 2, {"task": batch[0]}),
        inner_optimizer=adapt.sgd(0.5),
        **options,
    )


def drawn(key, data):
    centre = jax.random.normal(key, (1,))
    return Task(centre, centre)


def test_lifetimes_are_staggered_and_fit_keeps_the_task_of_a_problem_until_it_begins_anew():
    learner, tasks, seen = of_scalar(), TaskDistribution(drawn), []
    state = learner.init(jax.random.key(0))
    assert state.carry.lifetime.tolist() == [2, 4, 6, 8]
    for step in range(1, 9):
        keys = learner.task_keys(jax.random.key(9), state, 4)
        centres = np.ravel(jax.vmap(drawn, (0, None))(keys, ()).support)
        began = np.asarray(state.carry.age) == 0
        state, _ = jaxmeta.fit(
            jax.random.key(1), learner, tasks, num_outer_steps=step, num_tasks=4, state=state, progress=False
        )
        seen.append((centres, began))
        # θ after `age` steps of θ ← θ + (c − θ)/2 from 0 is c (1 − 2^−age), of the same c all along
        age = np.where(np.asarray(state.carry.age) == 0, np.where(began, 2, np.nan), np.asarray(state.carry.age))
        known = ~np.isnan(age)
        assert_close(state.carry.inner.fast[known], (centres * (1 - 0.5**age))[known], 1e-12)
    for (before, _), (after, began) in pairwise(seen):
        np.testing.assert_array_equal(before != after, began)
    assert [began.tolist() for _, began in seen[:5]] == [
        [True] * 4,
        [True, False, False, False],
        [False, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]
    assert [began.sum() for _, began in seen[5:]] == [1, 1, 1]


def test_a_problem_that_is_no_longer_finite_begins_anew_and_the_others_go_on():
    learner = of_scalar(lifetime=None)
    state = learner.init(jax.random.key(0))
    tasks = Task(*2 * (jnp.ones((4, 1)),))
    state, _ = learner.update(jax.random.key(0), state, tasks)
    broken = state.carry.inner._replace(fast=state.carry.inner.fast.at[2].set(jnp.nan))
    state, metrics = learner.update(jax.random.key(1), state._replace(carry=state.carry._replace(inner=broken)), tasks)
    assert not metrics["is_finite"] and state.num_skipped == 1 and state.carry.age.tolist() == [4, 4, 0, 4]
    state, metrics = learner.update(jax.random.key(2), state, tasks)
    assert metrics["is_finite"] and state.carry.age.tolist() == [6, 6, 2, 6]
    assert_close(state.carry.inner.fast, 1 - 0.5 ** np.array([6, 6, 2, 6]), 1e-12)


def test_a_run_goes_on_from_disk_to_the_last_bit(tmp_path):
    tasks, key, stages = TaskDistribution(drawn), jax.random.key(3), {"num_tasks": 4, "progress": False}
    make = partial(
        of_scalar,
        optimizer=optax.adam(0.1),
        meta_gradient=adapt.persistent_evolution_strategy(num_truncations=1, num_pairs=2),
    )
    whole, _ = jaxmeta.fit(key, make(), tasks, num_outer_steps=10, **stages)
    half, _ = jaxmeta.fit(key, make(), tasks, num_outer_steps=5, **stages)
    jaxmeta.training.save_state(tmp_path, 5, half)
    half = jaxmeta.training.restore_state(tmp_path, jax.eval_shape(make().init, key))
    resumed, _ = jaxmeta.fit(key, make(), tasks, num_outer_steps=10, state=half, **stages)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_a_window_takes_the_memory_of_its_steps_whatever_the_lifetime():
    def memory(num_inner_steps, lifetime):
        learner = bilevel(
            lambda key, meta_params: jnp.ones(1000),
            lambda key: jnp.ones(1000),
            lambda params, meta_params, batch: (jnp.sum(jnp.sin(params) * meta_params * batch), {}),
            num_inner_steps=num_inner_steps,
            lifetime=lifetime,
            meta_gradient=adapt.exact(),
        )
        args = jax.random.key(0), learner.init(jax.random.key(0)), Task(*2 * (jnp.ones((1, 1)),))
        return jax.jit(learner.update).lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert memory(10, 1000) <= 1.05 * memory(10, 20) < 0.5 * memory(100, 1000)


def test_a_stream_is_met_chunk_by_chunk_before_it_is_learned():
    """θ ← θ + η (c_k − θ), judged on c_k before: by hand, over two windows; at test over the whole stream."""
    chunks = RNG.normal(size=(6, 1))
    learner = bilevel(
        lambda key, meta_params: meta_params["start"],
        lambda key: {"start": jnp.array(0.3)},
        lambda params, meta_params, batch: ((params - batch[0]) ** 2 / 2, {}),
        num_inner_steps=3,
        lifetime=6,
        judged="met",
        stream=True,
        inner_optimizer=adapt.from_optax(lambda hyper: optax.sgd(hyper), 0.25),
        optimizer=optax.sgd(0.0),
    )
    thetas = [0.3]
    for chunk in chunks[:, 0]:
        thetas.append(thetas[-1] + 0.25 * (chunk - thetas[-1]))
    losses = (np.array(thetas[:-1]) - chunks[:, 0]) ** 2 / 2
    state, tasks = learner.init(jax.random.key(0)), Task(jnp.asarray(chunks)[None])
    for window in (losses[:3], losses[3:]):
        state, metrics = learner.update(jax.random.key(0), state, tasks)
        assert_close(metrics["loss"], np.mean(window), 1e-12)
    assert state.carry.age.tolist() == [0]
    found = learner.evaluate(jax.random.key(0), state.meta_params, Task(jnp.asarray(chunks)))
    assert_close(found["loss"], losses, 1e-12)
    assert_close(learner.adapt(jax.random.key(0), state.meta_params, Task(jnp.asarray(chunks))), thetas[-1], 1e-12)
    with pytest.raises(ValueError, match="a chunk for each of the lifetime=6 inner steps, got 5"):
        learner.update(jax.random.key(0), state, Task(jnp.asarray(chunks)[None, :5]))


def test_evaluate_trains_from_the_beginning_and_judges_after_each_step():
    curve = of_scalar().evaluate(jax.random.key(0), MetaParams(jnp.array(0.5)), Task(*2 * (jnp.ones(1),)))
    assert curve["task"].shape == (9,)
    losses = of_quadratic(num_eval_steps=3).evaluate(
        jax.random.key(0), MetaParams(jnp.asarray(ETA)), Task(jnp.asarray(B), jnp.asarray(T))
    )
    theta, expected = THETA_0, []
    for _ in range(4):
        expected.append(np.sum((theta - T) ** 2) / 2 + np.sum(ETA**2) / 20)
        theta = theta - RATE * (H @ theta - B - C @ ETA)
    assert_close(losses["distance"], np.array(expected), 1e-12)


def test_a_loss_that_draws_is_judged_by_one_key_at_every_step_and_by_another_in_each_evaluation():
    """L' of θ + noise: with an inner rate of 0 all that a curve could change by is the key."""
    noisy = lambda params, meta_params, batch, key: (params + meta_params + jax.random.normal(key), {})
    learner = bilevel(
        lambda key, meta_params: jnp.ones(()),
        lambda key: jnp.zeros(()),
        noisy,
        num_inner_steps=3,
        inner_optimizer=adapt.sgd(0.0),
        stochastic=True,
    )
    task = Task(*2 * (jnp.zeros(1),))
    first, other = (learner.evaluate(jax.random.key(seed), MetaParams(jnp.zeros(())), task)["loss"] for seed in (0, 1))
    assert_close(first, jnp.full(4, first[0]), 0)
    assert first[0] != other[0] and first[0] != 1


@pytest.mark.parametrize("name", ["exact", "mixed, segments", "forward"])
def test_the_inner_loss_of_the_last_step_is_reported(name):
    theta = THETA_0
    for _ in range(NUM_STEPS - 1):
        theta = theta - RATE * (H @ theta - B - C @ ETA)
    _, metrics = of_quadratic(EXACT[name]).update(jax.random.key(0), of_quadratic().init(jax.random.key(0)), problems())
    assert_close(metrics["inner_loss"], theta @ H @ theta / 2 - theta @ (B + C @ ETA), 1e-12)
    assert set(metrics) >= {"loss", "distance"}


def test_learned_hyperparameters_of_the_inner_optimizer_get_their_gradient():
    """One step with rate e^h: d/dh |θ − e^h g − t|²/2 = −e^h g·(θ − e^h g − t)."""
    with_rate = adapt.from_optax(lambda hyper: optax.sgd(jnp.exp(hyper["log_rate"])), {"log_rate": -1.0})
    learner = bilevel(
        lambda key, meta_params: jnp.asarray(THETA_0),
        lambda key: jnp.asarray(ETA),
        quadratic,
        num_inner_steps=1,
        outer_loss_fn=distance,
        inner_optimizer=with_rate,
        optimizer=optax.sgd(1.0),
    )
    before = learner.init(jax.random.key(0))
    after, _ = learner.update(jax.random.key(0), before, problems())
    slope = H @ THETA_0 - B - C @ ETA
    expected = -np.exp(-1.0) * slope @ (THETA_0 - np.exp(-1.0) * slope - T)
    assert_close(before.meta_params.hyper["log_rate"] - after.meta_params.hyper["log_rate"], expected, 1e-10)


def evolving(is_persistent):
    std = 1e-3
    if is_persistent:
        return adapt.persistent_evolution_strategy(num_truncations=1, num_pairs=64, std=std)
    return adapt.evolution_strategy(num_pairs=64, std=std)


def begun_by_eta(strategy, **options):
    """The beginning is η["start"], the steps are of η["pull"], and η["unused"] is nothing's."""
    return bilevel(
        lambda key, meta_params: meta_params["start"],
        lambda key: {"start": jnp.ones(2), "pull": jnp.ones(2), "unused": jnp.ones(3)},
        lambda params, m, batch: (jnp.sum((params - m["pull"]) ** 2) / 2, {}),
        num_inner_steps=2,
        outer_loss_fn=lambda params, m, batch: (jnp.sum(params * batch), {}),
        inner_optimizer=adapt.sgd(0.25),
        meta_gradient=strategy,
        optimizer=optax.sgd(1.0),
        num_problems=1,
        **options,
    )


@pytest.mark.parametrize("is_persistent", [False, True])
def test_evolution_gives_0_to_what_nothing_depends_on_and_persists_where_it_is_to(is_persistent):
    """θ_K = p + (θ_0 − p) .75^k is linear in both, so that estimates are of the exact gradient: of the window alone, or
    of all since the beginning, for which the second loss depends on the beginning still."""
    target, learner = jnp.array([[1.0, -2.0]]), begun_by_eta(evolving(is_persistent))
    update, batch = jax.jit(learner.update), Task(target, target)

    def two(key):
        first = learner.init(jax.random.key(0))
        second, _ = update(key, first, batch)
        second = second._replace(meta_params=first.meta_params)  # at the same η
        third, _ = update(jax.random.fold_in(key, 1), second, batch)
        return jax.tree.map(jnp.subtract, first.meta_params.params, third.meta_params.params)

    grads = jax.jit(jax.vmap(two))(jax.random.split(jax.random.key(5), 200))
    assert np.all(grads["unused"] == 0)
    since = 4 if is_persistent else 2
    expected = {"start": 0.75**4 * target[0] if is_persistent else 0 * target[0], "pull": (1 - 0.75**since) * target[0]}
    if not is_persistent:
        assert np.all(grads["start"] == 0)
    for name in ("pull", "start") if is_persistent else ("pull",):
        error = grads[name].std(axis=0) / np.sqrt(200)
        assert np.all(np.abs(grads[name].mean(axis=0) - expected[name]) < 4 * error)
        assert np.all(error < 0.1 * np.max(np.abs(expected["pull"])))


def test_particles_live_on_over_outer_steps():
    learner = begun_by_eta(evolving(True))
    state, batch = learner.init(jax.random.key(0)), Task(*2 * (jnp.ones((1, 2)),))
    for key in jax.random.split(jax.random.key(1), 3):
        state, _ = jax.jit(learner.update)(key, state, batch)
    particles = state.carry.inner
    spread = particles.pairs.fast[0, :, 0] - particles.pairs.fast[0, :, 1]
    # of θ = p + (θ_0 − p) .75^k: 2σ times what each window's perturbation of p has come to, and that of the start
    assert particles.credit.params["pull"].shape == (1, 64, 2) and np.all(np.abs(spread) > 0)
    assert_close(particles.pairs.fast.mean(axis=2)[0], jnp.repeat(particles.centre.fast, 64, axis=0), 1e-10)


def test_credit_is_of_the_perturbations_since_the_problem_began_and_no_longer():
    """Of one window's ε, θ_+ − θ_− = 2σ ((1 − .75²) ε_pull + .75² ε_start): so where a problem has just begun, the
    credit is that ε; after its second window it is the sum of two."""
    learner, is_one_window = begun_by_eta(evolving(True), lifetime=4), []
    state, batch = learner.init(jax.random.key(0)), Task(*2 * (jnp.ones((1, 2)),))
    update = jax.jit(learner.update)
    for key in jax.random.split(jax.random.key(1), 4):
        state, _ = update(key, state, batch)
        _, pairs, credit = state.carry.inner
        expected = 2e-3 * ((1 - 0.75**2) * credit.params["pull"] + 0.75**2 * credit.params["start"])
        is_one_window.append(np.allclose(pairs.fast[:, :, 0] - pairs.fast[:, :, 1], expected, rtol=1e-9, atol=1e-12))
    assert is_one_window == [True, False, True, False]


ERRORS = {
    "lifetime": ({"lifetime": 7, "num_inner_steps": 2}, "lifetime must be a multiple of num_inner_steps=2, got 7"),
    "stream": ({"stream": True, "lifetime": None}, "lifetime must be given for a stream"),
    "judged": ({"judged": "first"}, "judged must be one of last, met, got 'first'"),
    "strategy": ({"meta_gradient": lambda adapt, outer: len}, "meta_gradient must return an adapt.TaskGradient"),
    "init": ({"init_fn": lambda key: 0.0}, r"init_fn must be a function of \(key, meta_params\)"),
    "loss": ({"loss_fn": lambda params, batch: 0.0}, r"loss_fn must be a function of \(params, meta_params, batch\)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_wrong_argument_is_named(name):
    options, message = ERRORS[name]
    right = {
        "init_fn": lambda key, meta_params: 0.0,
        "meta_init_fn": lambda key: 0.0,
        "loss_fn": lambda params, meta_params, batch: (params**2, {}),
        "num_inner_steps": 1,
    }
    with pytest.raises(ValueError, match=message):
        bilevel(**{**right, **options})


def test_as_many_tasks_as_problems():
    learner = of_scalar()
    state = learner.init(jax.random.key(0))
    with pytest.raises(ValueError, match="one for each of num_problems=4, got 3"):
        learner.update(jax.random.key(0), state, Task(*2 * (jnp.ones((3, 1)),)))
    with pytest.raises(ValueError, match="num_tasks must be the num_problems of the learner, 4, got 3"):
        jaxmeta.fit(jax.random.key(0), learner, TaskDistribution(drawn), num_outer_steps=1, num_tasks=3, progress=False)


LENGTH = 100


def rates(hyper):
    """From e^start to e^end over 100 steps, of a gradient that is clipped to ±1."""
    rate = lambda step: jnp.exp(hyper["start"]) * (1 - step / LENGTH) + jnp.exp(hyper["end"]) * step / LENGTH
    return optax.chain(optax.clip(1.0), optax.sgd(rate))


def toy(params, meta_params, batch):
    """Of Vicol et al. 2021: flat first, then a valley with waves in it, whose bottom is far away."""
    x, y = params
    loss = jnp.sqrt(x**2 + 5) - jnp.sqrt(5.0) + jnp.sin(y) ** 2 * jnp.exp(-5 * x**2) + jnp.abs(y - 100) / 4
    return loss, {}


def lifetime_loss(hyper):
    """The mean loss on the way of a whole lifetime, by its own loop."""

    def step(state, k):
        transform = rates(hyper)
        loss, grads = jax.value_and_grad(lambda params: toy(params, None, None)[0])(state[0])
        updates, opt_state = transform.update(grads, state[1], state[0])
        return (optax.apply_updates(state[0], updates), opt_state), loss

    start = jnp.ones(2)
    return jnp.mean(jax.lax.scan(step, (start, rates(hyper).init(start)), jnp.arange(LENGTH))[1])


def trained_rates(strategy, num_inner_steps, num_outer_steps, num_problems=1):
    learner = bilevel(
        lambda key, meta_params: jnp.ones(2),
        lambda key: jnp.zeros(1),  # nothing but the rates is learned
        toy,
        num_inner_steps=num_inner_steps,
        lifetime=LENGTH,
        num_problems=num_problems,
        judged="met",
        inner_optimizer=adapt.from_optax(rates, {"start": np.log(0.01), "end": np.log(0.01)}),
        meta_gradient=strategy,
        optimizer=optax.adam(0.01),
    )
    state, task = learner.init(jax.random.key(0)), Task(jnp.zeros((num_problems, 1)))
    step = lambda state, key: (learner.update(key, state, task)[0], ())
    keys = jax.random.split(jax.random.key(1), num_outer_steps)
    return jax.jit(lambda state: jax.lax.scan(step, state, keys)[0])(state).meta_params.hyper


@pytest.mark.slow
def test_persistent_evolution_finds_the_rates_that_truncated_backpropagation_does_not():
    """The toy of "Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent Evolution Strategies":
    100 steps of which a window sees 10; the optimum is that of a grid. The exact gradient of the whole, unsmoothed,
    does not leave the flat part either, nor does it get further from the optimum."""
    persistent = adapt.persistent_evolution_strategy(num_truncations=1, num_pairs=50, std=0.2)
    found = {
        "exact": trained_rates(adapt.exact(), LENGTH, 3000),
        "truncated": trained_rates(adapt.exact(), 10, 10_000, num_problems=10),
        "persistent": trained_rates(persistent, 10, 10_000, num_problems=10),
    }
    loss_of = {name: float(lifetime_loss(hyper)) for name, hyper in found.items()}
    grid = jnp.linspace(-6, 5, 111)
    of_grid = jax.vmap(lambda start: jax.vmap(lambda end: lifetime_loss({"start": start, "end": end}))(grid))(grid)
    best = float(jnp.nanmin(of_grid))
    assert loss_of["persistent"] < 1.02 * best
    assert loss_of["truncated"] > 4 * best and loss_of["exact"] > 4 * best


def test_what_is_learned_may_be_hyperparameters_alone_but_not_nothing():
    init_fn, nothing = (lambda key, meta_params: jnp.zeros(2)), lambda key: ()
    loss_fn = lambda params, meta_params, batch: (jnp.sum((params - batch) ** 2), {})
    of_rates = bilevel(init_fn, nothing, loss_fn, num_inner_steps=1, inner_optimizer=adapt.meta_sgd(0.1))
    assert jax.tree.map(jnp.shape, of_rates.init(jax.random.key(0)).meta_params) == MetaParams((), (2,))
    with pytest.raises(ValueError, match="meta_init_fn must return what is learned, unless inner_optimizer learns"):
        bilevel(init_fn, nothing, loss_fn, num_inner_steps=1).init(jax.random.key(0))

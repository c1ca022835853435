"""Implicit meta-gradients against the closed form of regularised quadratics, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_close, relative_error

from jaxmeta import adapt
from jaxmeta.types import MetaParams

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

RNG = np.random.default_rng(0)
CENTRE, THETA, TARGET = RNG.normal(size=(3, 5))
_factor = RNG.normal(size=(5, 5))
CURVATURE = _factor @ _factor.T / 5 + 0.1 * np.eye(5)
STRENGTH = 2.0


def inner_loss(phi, batch):
    return 0.5 * (phi - CENTRE) @ CURVATURE @ (phi - CENTRE), {}


def outer_loss(adapted, task):
    loss = jnp.sum(jnp.sin(adapted.params - TARGET))
    return loss, {"sum": loss}


def gradient_through(strategy, optimizer, num_steps, loss_fn=inner_loss, outer=outer_loss):
    def inner(meta_params, sources, task, **how):
        state, _ = adapt.unroll(optimizer, loss_fn, lambda source, params: source, meta_params, sources, **how)
        return adapt.Adapted(optimizer.params(meta_params, state.fast)), state

    gradient = jax.jit(strategy(inner, outer))
    return lambda meta_params: gradient(jax.random.key(0), meta_params, jnp.arange(num_steps), ())


def closed_form():
    """φ* = (A + λI)⁻¹ (A c + λ θ), and its transposed derivative times ∇L'(φ*)."""
    matrix = CURVATURE + STRENGTH * np.eye(5)
    phi = np.linalg.solve(matrix, CURVATURE @ CENTRE + STRENGTH * THETA)
    return phi, STRENGTH * np.linalg.solve(matrix, np.cos(phi - TARGET))


SGD = adapt.proximal(adapt.sgd(0.2), STRENGTH)
SOLVERS = {"conjugate gradient": adapt.conjugate_gradient(5), "neumann": adapt.neumann_series(200)}


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_is_the_closed_form_of_a_regularised_quadratic(solver):
    phi, expected = closed_form()
    gradient = gradient_through(adapt.implicit(solver=SOLVERS[solver]), SGD, num_steps=200)
    (loss, metrics), grads = gradient(MetaParams(jnp.asarray(THETA)))
    assert_close((loss, metrics["sum"]), (np.sin(phi - TARGET).sum(),) * 2)
    assert_close(grads.params, expected, rtol=1e-9)


def test_conjugate_gradient_stops_where_it_has_arrived():
    """In float32 the residual of a matrix near a multiple of the identity, iMAML's with a large λ, soon underflows."""
    diagonal = jnp.linspace(0.2, 0.21, 64, dtype=jnp.float32)
    for num_steps in (5, 15, 60):
        x = adapt.conjugate_gradient(num_steps)(
            lambda x: diagonal * x, jnp.ones(64, jnp.float32), jnp.zeros(64, jnp.float32)
        )
        assert_close(x, 1 / diagonal, rtol=1e-6)
    assert jnp.all(adapt.conjugate_gradient(5)(lambda x: x, jnp.zeros(4), jnp.ones(4)) == 0)


def test_a_solver_of_jax_will_do():
    solve = lambda matrix, b, start: jax.scipy.sparse.linalg.gmres(matrix, b, start, tol=1e-12)[0]
    _, grads = gradient_through(adapt.implicit(solver=solve), SGD, num_steps=200)(MetaParams(jnp.asarray(THETA)))
    assert_close(grads.params, closed_form()[1], rtol=1e-9)


def test_few_steps_of_a_solver_are_the_truncated_solution():
    """Three terms of the series: v = Σ_j (I − A)^j b, by hand."""
    step_matrix = 0.2 * (CURVATURE + STRENGTH * np.eye(5))
    phi, _ = closed_form()
    b = np.cos(phi - TARGET)
    v = b + (b - step_matrix @ b) + np.linalg.matrix_power(np.eye(5) - step_matrix, 2) @ b
    gradient = gradient_through(adapt.implicit(solver=adapt.neumann_series(3)), SGD, num_steps=200)
    assert_close(gradient(MetaParams(jnp.asarray(THETA)))[1].params, 0.2 * STRENGTH * v, rtol=1e-9)


def test_a_series_takes_a_product_for_each_term_but_the_first_without_a_start():
    """b + (I − A) b, and from a start x two steps of x ← x + b − A x; and as many products as are documented."""
    a, b, x = np.diag([0.5, 0.25]), np.array([1.0, -2.0]), np.array([3.0, 4.0])
    products = []
    matrix = lambda v: (jax.debug.callback(lambda: products.append(1)), jnp.asarray(a) @ v)[1]
    found = [adapt.neumann_series(2)(matrix, jnp.asarray(b), start) for start in (None, jnp.asarray(x))]
    jax.effects_barrier()
    once = x + b - a @ x
    assert_close(found, [b + b - a @ b, once + b - a @ once])
    assert len(products) == 1 + 2


def test_damping_is_added_to_the_matrix():
    matrix = 0.2 * (CURVATURE + STRENGTH * np.eye(5)) + 0.3 * np.eye(5)
    phi, _ = closed_form()
    expected = 0.2 * STRENGTH * np.linalg.solve(matrix, np.cos(phi - TARGET))
    strategy = adapt.implicit(solver=adapt.conjugate_gradient(5), damping=0.3)
    assert_close(gradient_through(strategy, SGD, 200)(MetaParams(jnp.asarray(THETA)))[1].params, expected, rtol=1e-9)


def test_it_is_the_limit_of_the_exact_meta_gradient():
    """On a loss that is no quadratic, and with parameters that do not adapt: their mixed derivatives count too."""

    def loss_fn(params, batch):
        return jnp.sum(jnp.log(jnp.cosh(params["scale"] * (params["phi"] - CENTRE)))), {}

    def outer(adapted, task):
        return jnp.sum(jnp.sin(adapted.params["phi"] - TARGET) * adapted.params["scale"] ** 2), {}

    optimizer = adapt.proximal(adapt.adapt_only(adapt.sgd(0.2), "phi"), STRENGTH)
    meta_params = MetaParams({"phi": jnp.asarray(THETA), "scale": jnp.linspace(0.5, 1.5, 5)})
    strategies = adapt.implicit(solver=adapt.conjugate_gradient(5)), adapt.exact()
    actual, expected = (gradient_through(s, optimizer, 200, loss_fn, outer)(meta_params) for s in strategies)
    assert_close(actual, expected, rtol=1e-9)
    far = gradient_through(strategies[0], optimizer, 3, loss_fn, outer)(meta_params)
    assert relative_error(far[1], expected[1]) > 1e-3


def test_its_memory_does_not_depend_on_the_number_of_steps():
    optimizer, wide = adapt.proximal(adapt.sgd(0.1), STRENGTH), jnp.zeros(1000)
    loss_fn = lambda phi, batch: (jnp.sum(jnp.log(jnp.cosh(phi - 1.0))), {})

    def inner(meta_params, sources, task, **how):
        state, _ = adapt.unroll(optimizer, loss_fn, lambda source, params: source, meta_params, sources, **how)
        return adapt.Adapted(state.fast), state

    def memory(strategy, num_steps):
        gradient = jax.jit(strategy(inner, lambda adapted, task: (jnp.sum(adapted.params), {})))
        lowered = gradient.lower(jax.random.key(0), MetaParams(wide), jnp.arange(num_steps), ())
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert memory(adapt.implicit(), 500) < memory(adapt.implicit(), 5) + 10_000  # bytes: the sources, and rounding
    assert memory(adapt.exact(), 500) > 10 * memory(adapt.exact(), 5)


def test_an_optimizer_with_a_state_is_refused():
    optimizer = adapt.from_optax(optax.sgd(0.1, momentum=0.9))
    with pytest.raises(ValueError, match=r"implicit needs an inner optimizer without a state: proximal\(sgd"):
        gradient_through(adapt.implicit(), optimizer, 5)(MetaParams(jnp.asarray(THETA)))


@pytest.mark.parametrize("optimizer", [adapt.sgd(0.2), adapt.meta_sgd(0.2), adapt.proximal(adapt.sgd(0.2), 0.0)])
def test_a_solution_that_does_not_depend_on_what_is_learned_is_refused(optimizer):
    """Its gradient was 0 on every step. What the inner loss or the outer one reads beside the start is enough."""
    theta = jnp.asarray(THETA)
    with pytest.raises(ValueError, match=r"depends on what is learned.*adapt.proximal\(adapt.sgd\(0.01"):
        gradient_through(adapt.implicit(), optimizer, 5)(MetaParams(theta, optimizer.init(theta)))


def test_a_learned_rate_gets_what_the_loop_is_from_its_solution():
    """−v · ∇L(φ) for each, by hand after three steps, and 0 at the solution, which does not depend on it."""
    optimizer, matrix = adapt.proximal(adapt.meta_sgd(0.2), STRENGTH), CURVATURE + STRENGTH * np.eye(5)
    meta_params = MetaParams(jnp.asarray(THETA), jnp.full(5, 0.2))
    strategy = adapt.implicit(solver=adapt.conjugate_gradient(5))
    phi = THETA
    for _ in range(3):
        phi = phi - 0.2 * (CURVATURE @ (phi - CENTRE) + STRENGTH * (phi - THETA))
    slope = CURVATURE @ (phi - CENTRE) + STRENGTH * (phi - THETA)
    expected = -np.linalg.solve(0.2 * matrix, np.cos(phi - TARGET)) * slope
    assert_close(gradient_through(strategy, optimizer, 3)(meta_params)[1].hyper, expected, rtol=1e-9)
    assert np.abs(gradient_through(strategy, optimizer, 300)(meta_params)[1].hyper).max() < 1e-12


def test_a_solution_that_only_hyperparameters_or_losses_change_needs_no_proximal_term():
    """θ* = c / (1 + η) of ½ (θ − c)² + ½ η θ², of which η is in the loss; dθ*/dη = −c / (1 + η)²."""

    def inner(meta_params, sources, task, state=None, **how):
        start = MetaParams(jnp.zeros(()))
        loss = lambda params, batch: ((params - 3.0) ** 2 / 2 + meta_params.params * params**2 / 2, {})
        state, _ = adapt.unroll(adapt.sgd(0.3), loss, lambda source, params: source, start, sources, state=state)
        return adapt.Adapted(state.fast), state

    gradient = adapt.implicit()(inner, lambda adapted, task: (adapted.params, {}))
    _, grads = gradient(jax.random.key(0), MetaParams(jnp.array(0.5)), jnp.arange(200), ())
    assert_close(grads.params, -3.0 / 1.5**2, rtol=1e-9)

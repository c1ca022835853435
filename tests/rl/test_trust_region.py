"""The trust region against a dense Fisher matrix, E score scoreᵀ, and against what its line search may not do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse.linalg
import scipy.special
from jax.flatten_util import ravel_pytree

from jaxmeta.rl import TrustRegion, trust_region
from jaxmeta.rl.distributions import Categorical, Gaussian
from jaxmeta.rl.trust_region import fisher_product, natural_direction

pytestmark = pytest.mark.usefixtures("strict_shapes", "x64_module")

RNG = np.random.default_rng(0)
OBSERVATIONS = RNG.normal(size=(7, 3))
ADVANTAGES = RNG.normal(size=7)
ACTIONS = RNG.integers(4, size=7)
VECTORS = RNG.normal(size=(7, 2))  # the actions of a Gaussian policy
DAMPING = 0.01


def mean_kl(old, new):
    return jnp.mean(old.kl(new))


def categorical(params):
    hidden = jnp.tanh(OBSERVATIONS @ params["hidden"])
    return Categorical(hidden @ params["logits"])


def gaussian(params):
    hidden = jnp.tanh(OBSERVATIONS @ params["hidden"])
    log_std = jnp.broadcast_to(params["log_std"], (7, 2))
    return Gaussian(hidden @ params["mean"], log_std)


def an_inner_step(params):
    """The policy after a step on the score function of other data: its outputs are nonlinear in what is adapted."""
    inner_loss = lambda params: -jnp.mean(categorical(params).log_prob((ACTIONS + 1) % 4) * ADVANTAGES[::-1])
    return categorical(jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(inner_loss)(params)))


LOGITS = {"hidden": RNG.normal(size=(3, 2)), "logits": RNG.normal(size=(2, 4))}
MEAN = {"hidden": RNG.normal(size=(3, 2)), "mean": RNG.normal(size=(2, 2)), "log_std": np.array([-0.5, 0.3])}
POLICIES = {
    "categorical": (categorical, LOGITS),
    "gaussian": (gaussian, MEAN),
    "adapted": (an_inner_step, LOGITS),
}


@pytest.fixture(params=POLICIES)
def policy(request, x64_module):
    outputs_fn, params = POLICIES[request.param]
    return outputs_fn, jax.tree.map(jnp.asarray, params)


def expected_outer_product(outputs_fn, params):
    """F = mean over observations of E_a ∇ log π ∇ log πᵀ: the actions summed, or integrated by Gauss-Hermite."""
    vector, unravel = ravel_pytree(params)
    old = outputs_fn(params)
    if isinstance(old, Categorical):
        actions = np.tile(np.arange(4)[:, None], 7)
        weights = scipy.special.softmax(old.logits, axis=-1).T
    else:
        nodes, node_weights = np.polynomial.hermite_e.hermegauss(12)
        noise = np.stack([x.ravel() for x in np.meshgrid(nodes, nodes)], -1)
        actions = np.asarray(old.mean) + np.exp(old.log_std) * noise[:, None]
        weights = np.tile(np.outer(node_weights, node_weights).reshape(-1, 1) / (2 * np.pi), 7)

    def log_prob(vector):  # [actions, observations]
        return jax.vmap(outputs_fn(unravel(vector)).log_prob)(actions)

    scores = jax.jit(jax.jacobian(log_prob))(vector)
    return np.einsum("ae,aei,aej->ij", weights, scores, scores) / 7


def dense_product(outputs_fn, params, damping):
    vector, unravel = ravel_pytree(params)

    def rows(damping):
        _, product = fisher_product(lambda params: (0.0, outputs_fn(params)), mean_kl, params, damping)
        return jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0])(jnp.eye(len(vector)))

    return jax.jit(rows)(damping)


def test_the_product_is_with_the_fisher_matrix(policy):
    outputs_fn, params = policy
    expected = expected_outer_product(outputs_fn, params)
    damped = dense_product(outputs_fn, params, DAMPING)
    np.testing.assert_allclose(damped, expected + DAMPING * np.eye(len(expected)), atol=1e-12)
    assert np.linalg.norm(expected) > 0.1


def test_it_is_the_hessian_of_the_divergence_through_an_inner_step_too(policy):
    """Where J changes with the parameters, for the gradient of the KL is 0 at the old ones."""
    outputs_fn, params = policy
    vector, unravel = ravel_pytree(params)
    old = outputs_fn(params)
    hessian = jax.jit(jax.hessian(lambda vector: mean_kl(old, outputs_fn(unravel(vector)))))(vector)
    np.testing.assert_allclose(dense_product(outputs_fn, params, 0.0), hessian, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 3, 6])
def test_the_direction_is_scipys_after_as_many_products(num_steps):
    generator = np.random.default_rng(4)
    factor, vector = generator.normal(size=(6, 6)), generator.normal(size=6)
    matrix = factor @ factor.T + 0.1 * np.eye(6)
    expected, _ = scipy.sparse.linalg.cg(matrix, vector, rtol=0.0, maxiter=num_steps)
    products = []

    def product(v):
        jax.debug.callback(lambda: products.append(1))
        return {
            "a": matrix[:2] @ jnp.concatenate([v["a"], v["b"]]),
            "b": matrix[2:] @ jnp.concatenate([v["a"], v["b"]]),
        }

    find = jax.jit(lambda grads: natural_direction(product, grads, num_steps))
    direction, curvature = jax.block_until_ready(find({"a": vector[:2], "b": vector[2:]}))
    jax.effects_barrier()
    np.testing.assert_allclose(ravel_pytree(direction)[0], expected, rtol=1e-9)
    np.testing.assert_allclose(curvature, expected @ matrix @ expected, rtol=1e-9)
    assert len(products) == num_steps


def surrogate(outputs_fn, params):
    """−E (π / π_old) A of actions that were fixed before."""
    old = outputs_fn(params)
    actions = ACTIONS if isinstance(old, Categorical) else VECTORS
    old_log_prob = old.log_prob(actions)
    return lambda params: -jnp.mean(jnp.exp(outputs_fn(params).log_prob(actions) - old_log_prob) * ADVANTAGES)


def step(optimizer, policy, *, loss_fn=None, kl_fn=mean_kl, grads=None):
    """One update, jitted: (updates, state, loss_fn)."""
    outputs_fn, params = policy
    loss_fn = surrogate(outputs_fn, params) if loss_fn is None else loss_fn

    @jax.jit
    def update(params):
        gradient = jax.grad(loss_fn)(params) if grads is None else grads
        both = lambda params: (loss_fn(params), outputs_fn(params))
        return optimizer.update(gradient, optimizer.init(params), params, loss_fn=both, kl_fn=kl_fn)

    return *update(params), loss_fn


def test_the_step_is_the_dense_solution_and_has_its_length(policy):
    """With a bound so small that the quadratic model is the divergence: the whole step, unless rounding forbids it."""
    outputs_fn, params = policy
    updates, state, loss_fn = step(trust_region(TrustRegion(max_kl=1e-8, num_cg_steps=100, damping=DAMPING)), policy)
    matrix = expected_outer_product(outputs_fn, params) + DAMPING * np.eye(len(ravel_pytree(params)[0]))
    gradient, _ = ravel_pytree(jax.grad(loss_fn)(params))
    direction = np.linalg.solve(matrix, gradient)
    expected = -np.sqrt(2e-8 / (direction @ matrix @ direction)) * direction
    np.testing.assert_allclose(ravel_pytree(updates)[0], expected * 0.8**state.num_backtracks, rtol=1e-6)
    assert state.is_accepted and state.num_backtracks <= 1


def test_the_divergence_keeps_its_bound_and_the_loss_improves(policy):
    outputs_fn, params = policy
    loss_fn = surrogate(outputs_fn, params)

    @jax.jit
    def update(max_kl):
        """(state, old and new loss, KL), as they are outside of the optimizer."""
        updates, state, _ = step(trust_region(TrustRegion(max_kl=max_kl)), policy)
        after = optax.apply_updates(params, updates)
        return state, (loss_fn(params), loss_fn(after)), mean_kl(outputs_fn(params), outputs_fn(after))

    for max_kl, at_least in ((0.001, 0.0005), (0.01, 0.005), (1.0, 0.01)):
        state, (old, new), kl = update(jnp.array(max_kl))
        assert state.is_accepted and at_least < kl <= max_kl and new < old
        np.testing.assert_allclose(state.kl, kl, rtol=1e-8)
        np.testing.assert_allclose(state.improvement, old - new, rtol=1e-8)


def test_the_search_takes_the_first_length_that_is_good():
    """In one dimension, outputs x and KL x²/2: the whole step from 0 is √(2δ) = 1, shortened until the loss allows."""
    half_square = lambda old, new: (new - old) ** 2 / 2
    loss_fn = lambda x: -jnp.where(x < 0.3, x, -1.0)  # worse than at 0 beyond 0.3
    optimizer = trust_region(TrustRegion(max_kl=0.5, damping=0.0, backtrack=0.5, num_backtracks=5))
    updates, state, _ = step(optimizer, (lambda x: x, jnp.array(0.0)), loss_fn=loss_fn, kl_fn=half_square)
    assert (updates, state.num_backtracks) == (0.25, 2)  # 1 and 0.5 were too long
    assert (state.kl, state.improvement, state.is_accepted) == (0.25**2 / 2, 0.25, True)
    # a divergence that grows faster than its quadratic model
    quartic = lambda old, new: (new - old) ** 2 / 2 + 100 * (new - old) ** 4
    updates, state, _ = step(optimizer, (lambda x: x, jnp.array(0.0)), loss_fn=lambda x: -x, kl_fn=quartic)
    assert (updates, state.num_backtracks) == (0.25, 2) and state.kl == quartic(0, 0.25)
    # one that has no minimum has no length to go
    concave = lambda old, new: -half_square(old, new)
    updates, state, _ = step(optimizer, (lambda x: x, jnp.array(0.0)), loss_fn=lambda x: -x, kl_fn=concave)
    assert updates == 0 and not state.is_accepted


OLD = np.array([0.3, -0.2, 0.5])
is_old = lambda params: params[0] == OLD[0]
pays = lambda params: -jax.nn.softmax(params) @ jnp.array([1.0, 2.0, -1.0])
FAULTS = {
    "none": {},
    "the gradient leads up": {"grads": np.array([0.5, 1.0, -1.0])},
    "the gradient is 0": {"grads": np.zeros(3)},
    "the gradient is not a number": {"grads": np.array([np.nan, 0.1, 0.2])},
    "the loss does not change": {"loss_fn": lambda params: 0.0 * pays(params)},
    "the loss is not a number": {"loss_fn": lambda params: jnp.nan * pays(params)},
    "the loss was infinite": {"loss_fn": lambda params: jnp.where(is_old(params), jnp.inf, pays(params))},
    "the loss will be −infinite": {"loss_fn": lambda params: jnp.where(is_old(params), pays(params), -jnp.inf)},
    "the divergence is over its bound": {"kl_fn": lambda old, new: old.kl(new) + 1.0},
    "the divergence is not a number": {"kl_fn": lambda old, new: old.kl(new) + jnp.nan},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failed_search_rejects_the_whole_step(name):
    arguments = {"grads": jax.grad(pays)(OLD), "loss_fn": pays, "kl_fn": lambda old, new: old.kl(new)} | FAULTS[name]
    updates, state, _ = step(trust_region(TrustRegion(num_backtracks=4)), (Categorical, jnp.asarray(OLD)), **arguments)
    if name == "none":
        assert state.is_accepted and np.all(updates != 0)
    else:
        assert np.all(updates == 0) and not state.is_accepted
        assert (state.kl, state.improvement) == (0, 0)
        # where there is no direction there is nothing to search
        assert state.num_backtracks == (0 if name in ("the gradient is 0", "the gradient is not a number") else 4)


def test_a_direction_that_the_policy_does_not_see_is_bounded_by_damping():
    """A parameter that changes the loss and not the policy: without damping the step in it would be infinite."""
    outputs_fn = lambda params: Categorical(params[:2])
    params = jnp.array([0.1, 0.2, 0.3])
    loss_fn = lambda params: -jax.nn.softmax(params[:2])[0] + 0.1 * params[2]
    updates, state, _ = step(trust_region(TrustRegion(damping=0.1)), (outputs_fn, params), loss_fn=loss_fn)
    assert state.is_accepted and np.abs(updates).max() < 1
    updates, state, _ = step(trust_region(TrustRegion(damping=0.0)), (outputs_fn, params), loss_fn=loss_fn)
    assert not state.is_accepted or np.isfinite(updates).all()


def test_it_is_an_optax_transformation(num_compiled):
    """In a chain and a scan, under jit and vmap over seeds, with states and updates of unchanged types: one program."""
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), LOGITS)
    optimizer = optax.chain(trust_region(), optax.scale(1.0))
    observations = OBSERVATIONS.astype(jnp.float32)

    def outputs_of(params):
        return Categorical(jnp.tanh(observations @ params["hidden"]) @ params["logits"])

    def body(carry, advantages):
        params, state = carry
        old_log_prob = jax.lax.stop_gradient(outputs_of(params).log_prob(ACTIONS))

        def loss_fn(params):
            outputs = outputs_of(params)
            return -jnp.mean(jnp.exp(outputs.log_prob(ACTIONS) - old_log_prob) * advantages), outputs

        grads, _ = jax.grad(loss_fn, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params, loss_fn=loss_fn, kl_fn=mean_kl)
        assert jax.tree.map(lambda u: (u.shape, u.dtype), updates) == jax.tree.map(lambda p: (p.shape, p.dtype), params)
        return (optax.apply_updates(params, updates), state), state[0]

    run = jax.jit(jax.vmap(lambda advantages: jax.lax.scan(body, (params, optimizer.init(params)), advantages)))
    advantages = np.random.default_rng(3).normal(size=(2, 5, 7)).astype(np.float32)
    (after, _), states = jax.block_until_ready(run(advantages))
    assert states.is_accepted.all() and (states.kl <= 0.01).all() and (states.kl > 1e-3).all()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after))
    num_compiled()
    run(2 * advantages)
    assert num_compiled() == 0


def test_what_is_missing_is_named():
    optimizer, params = trust_region(), jnp.zeros(2)
    functions = {"loss_fn": lambda params: (jnp.sum(params), Categorical(params)), "kl_fn": mean_kl}
    with pytest.raises(ValueError, match=r"params must be given"):
        optimizer.update(params, optimizer.init(params), **functions)
    for name in functions:
        with pytest.raises(ValueError, match=rf"{name} must be a function .*given to update, got None"):
            optimizer.update(params, optimizer.init(params), params, **functions | {name: None})

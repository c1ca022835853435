"""Objectives against exact derivatives: all episodes of a small MDP are summed, in float64.

With every episode as a column, weighted by its probability, the mean of an estimator is its expectation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.shared.enumerated import (
    HORIZON,
    PARAMS,
    TOY,
    all_episodes,
    expected_adapted_return,
    expected_return,
    log_prob,
    probability,
    reward_to_go,
    sampled_adapted_return,
    values,
)
from jaxmeta.rl import objectives

pytestmark = pytest.mark.usefixtures("strict_shapes", "x64_module")

RATE = 0.4
NUM_STATES, NUM_ACTIONS = TOY.reward.shape
V = np.random.default_rng(0).normal(size=PARAMS.shape)  # a direction
BASELINE = np.array([[5.0, -1.0], [0.5, 2.0], [-3.0, 1.0]])  # b_t(s), as wrong as one likes


@pytest.fixture(scope="module")
def episodes(x64_module):
    return all_episodes()


def baseline(episodes):
    """b_t(s_t), `[T, M]`."""
    return jnp.asarray(BASELINE)[np.arange(HORIZON)[:, None], episodes.state]


def advantages(episodes):
    return reward_to_go(episodes) - baseline(episodes)


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def expectation(terms, params, episodes):
    """Of the sum over an episode of `terms` [T, M], the episodes being those of `params`, which are data."""
    return jnp.sum(terms, axis=0) @ jax.lax.stop_gradient(probability(params, episodes))


# (log_prob, episodes) -> terms [T, M]
INNER = {
    "reinforce": lambda lp, e: objectives.reinforce(lp, reward_to_go(e)),
    "lvc": lambda lp, e: objectives.lvc(lp, reward_to_go(e)),
    "lvc, baseline": lambda lp, e: objectives.lvc(lp, advantages(e)),
    "importance weighted": lambda lp, e: objectives.importance_weighted(lp, lp, reward_to_go(e)),
    "ppo clip": lambda lp, e: objectives.ppo_clip(lp, lp, reward_to_go(e), clip=0.2),
    "dice": lambda lp, e: objectives.dice(lp, e.reward),
    "dice, baseline": lambda lp, e: objectives.dice(lp, e.reward, baseline(e)),
    "loaded dice": lambda lp, e: objectives.loaded_dice(lp, reward_to_go(e)),
    "loaded dice, baseline": lambda lp, e: objectives.loaded_dice(lp, advantages(e)),
    "loaded dice, decay 0": lambda lp, e: objectives.loaded_dice(lp, advantages(e), decay=0.0),
}
EXACT = ("dice", "dice, baseline", "loaded dice", "loaded dice, baseline")
KEEP_H1_AND_H2 = ("lvc", "lvc, baseline", "importance weighted", "ppo clip", "loaded dice, decay 0")


def inner_loss(terms_fn, episodes):
    return lambda params: expectation(terms_fn(log_prob(params, episodes), episodes), params, episodes)


def meta_gradient(terms_fn, episodes):
    """Of J(θ − α ∇ inner loss), as a learner would compute it."""
    loss = inner_loss(terms_fn, episodes)
    return jax.jit(jax.grad(lambda params: expected_return(params - RATE * jax.grad(loss)(params), episodes)))(PARAMS)


@pytest.fixture(scope="module")
def exact_meta_gradient(episodes):
    return jax.jit(jax.grad(lambda params: expected_adapted_return(params, episodes, RATE)))(PARAMS)


@pytest.fixture(scope="module")
def exact_gradient(episodes):
    return jax.jit(jax.grad(lambda params: expected_return(params, episodes)))(PARAMS)


@pytest.fixture(scope="module")
def exact_hessian(episodes):
    return hessian(lambda params: expected_return(params, episodes))


# The references themselves.


def test_the_enumeration_is_dynamic_programming(episodes):
    assert episodes.state.shape == (3, 64)
    assert probability(PARAMS, episodes).sum() == pytest.approx(1, rel=1e-14)
    for params in (PARAMS, V):
        assert expected_return(params, episodes) == pytest.approx(TOY.start @ values(params)[0], rel=1e-13)


def difference_quotients(function, params, step=1e-5):
    """Central differences of a scalar function, in each coordinate."""
    quotients = np.empty(params.shape)
    for i in np.ndindex(params.shape):
        shift = np.zeros(params.shape)
        shift[i] = step
        quotients[i] = (function(params + shift) - function(params - shift)) / (2 * step)
    return quotients


def test_the_exact_meta_gradient_is_that_of_difference_quotients_of_dynamic_programming(exact_meta_gradient):
    def value(params):
        return TOY.start @ values(params)[0]

    def adapted(params):
        return value(params + RATE * difference_quotients(value, params))

    np.testing.assert_allclose(exact_meta_gradient, difference_quotients(adapted, PARAMS, 1e-3), rtol=1e-5)


# The Hessian's parts, by hand: s_t = e_(s,a) − π(· | s), whose derivative is −(diag π − π πᵀ) in the row of s.


@pytest.fixture(scope="module")
def hessian_parts(episodes):
    """H1, H2 and H12 of the expected return, as matrices over the flattened table."""
    policy = np.exp(PARAMS) / np.exp(PARAMS).sum(-1, keepdims=True)
    size = PARAMS.size
    h1, h2, h12 = np.zeros((3, size, size))
    weights, to_go, states, actions = (
        np.asarray(x) for x in (probability(PARAMS, episodes), reward_to_go(episodes), episodes.state, episodes.action)
    )
    for m, weight in enumerate(weights):
        before = np.zeros(size)
        for t in range(HORIZON):
            state, action = states[t, m], actions[t, m]
            score, curvature = np.zeros(PARAMS.shape), np.zeros(PARAMS.shape * 2)
            score[state] = (np.arange(NUM_ACTIONS) == action) - policy[state]
            curvature[state, :, state] = np.outer(policy[state], policy[state]) - np.diag(policy[state])
            score = score.ravel()
            h1 += weight * to_go[t, m] * np.outer(score, score)
            h2 += weight * to_go[t, m] * curvature.reshape(size, size)
            h12 += weight * to_go[t, m] * np.outer(before, score)
            before += score
    return h1, h2, h12


def hessian(function):
    return np.asarray(jax.jit(jax.hessian(function))(PARAMS)).reshape(PARAMS.size, PARAMS.size)


def test_the_parts_are_the_hessian(hessian_parts, exact_hessian):
    h1, h2, h12 = hessian_parts
    np.testing.assert_allclose(h1 + h2 + h12 + h12.T, exact_hessian, atol=1e-14)
    assert min(np.linalg.norm(part) for part in (h1, h2, h12 + h12.T)) > 0.1  # none of them is nothing


def gradient_and_hessian(function):
    gradient = jax.grad(function)
    of_both = jax.jit(lambda params: (gradient(params), jax.jacobian(gradient)(params)))(PARAMS)
    return of_both[0], np.asarray(of_both[1]).reshape(PARAMS.size, PARAMS.size)


@pytest.mark.parametrize("name", INNER)
def test_an_objective_has_the_gradient_and_what_it_says_of_the_hessian(name, episodes, hessian_parts, exact_gradient):
    h1, h2, h12 = hessian_parts
    gradient, hessian = gradient_and_hessian(inner_loss(INNER[name], episodes))
    kept = h2 if name == "reinforce" else h1 + h2 if name in KEEP_H1_AND_H2 else h1 + h2 + h12 + h12.T
    np.testing.assert_allclose(-hessian, kept, atol=1e-13)
    np.testing.assert_allclose(-gradient, exact_gradient, rtol=1e-12)


@pytest.mark.parametrize("name", INNER)
def test_in_every_episode_an_action_gets_credit_for_what_follows_less_the_baseline(name, episodes):
    """Not in expectation only: with another sign a baseline would be as unbiased, and of more variance."""
    of = advantages if "baseline" in name or "decay" in name else reward_to_go
    gradient = jax.jit(jax.grad(lambda lp: INNER[name](lp, episodes).sum()))(log_prob(PARAMS, episodes))
    np.testing.assert_allclose(-gradient, of(episodes), rtol=1e-12)


def test_a_baseline_changes_the_hessian_of_reinforce_alone(episodes, hessian_parts, exact_gradient):
    """E b s sᵀ is not 0: only with ∇s is it. Where the score function has a baseline it keeps E A ∇s."""
    _, h2, _ = hessian_parts
    loss = inner_loss(lambda lp, e: objectives.reinforce(lp, advantages(e)), episodes)
    gradient, hessian = gradient_and_hessian(loss)
    assert np.abs(-hessian - h2).max() > 0.1
    np.testing.assert_allclose(-gradient, exact_gradient, rtol=1e-12)


# Meta-gradients.


@pytest.mark.parametrize("name", EXACT)
def test_dice_has_the_exact_meta_gradient(name, episodes, exact_meta_gradient):
    assert relative_error(meta_gradient(INNER[name], episodes), exact_meta_gradient) < 1e-10


@pytest.mark.parametrize("name", ["reinforce", "lvc"])
def test_what_is_left_out_is_an_error(name, episodes, exact_meta_gradient, record_property):
    """0.38 and 0.087; `python -m benchmarks estimators` shows them beside the others."""
    error = relative_error(meta_gradient(INNER[name], episodes), exact_meta_gradient)
    record_property("relative_error", float(error))  # what xdist can send
    assert 1e-3 < error < 1


def test_dice_without_its_cumulative_sum_is_wrong(episodes, exact_gradient, exact_meta_gradient):
    """Negative control: already its gradient is, for an action gets no credit for the rewards that come later."""
    wrong = lambda lp, e: objectives.lvc(lp, e.reward)  # −magic(log π_t) r_t
    loss = inner_loss(wrong, episodes)
    assert relative_error(-jax.jit(jax.grad(loss))(PARAMS), exact_gradient) > 0.1
    assert relative_error(meta_gradient(wrong, episodes), exact_meta_gradient) > 0.01


def third_derivative(function):
    """Along V."""
    for _ in range(3):
        function = lambda params, f=function: jax.jvp(f, (params,), (V,))[1]
    return float(jax.jit(function)(PARAMS))


@pytest.fixture(scope="module")
def exact_third_derivative(episodes):
    return third_derivative(lambda params: expected_return(params, episodes))


@pytest.mark.parametrize("name", EXACT)
def test_dice_goes_on_being_exact_in_the_third_derivative(name, episodes, exact_third_derivative):
    assert -third_derivative(inner_loss(INNER[name], episodes)) == pytest.approx(exact_third_derivative, rel=1e-10)
    assert abs(exact_third_derivative) > 1e-3


def test_decay_goes_from_lvc_to_the_whole_hessian(episodes, hessian_parts):
    """What happened n steps before an action counts λ^n, in the Hessian: H12 + H12ᵀ of neighbours is in between."""
    h1, h2, h12 = hessian_parts
    scores = jax.jit(jax.jacobian(lambda params: log_prob(params, episodes)))(PARAMS)
    scores = np.reshape(scores, (HORIZON, -1, PARAMS.size))
    weights = probability(PARAMS, episodes) * reward_to_go(episodes)[2]
    far = np.einsum("m,mi,mj->ij", weights, scores[0], scores[2])  # of the pairs that are two steps apart
    near = h12 - far
    loss = inner_loss(lambda lp, e: objectives.loaded_dice(lp, advantages(e), decay=0.3), episodes)
    expected = h1 + h2 + 0.3 * (near + near.T) + 0.09 * (far + far.T)
    # λ² of the outer products s_{<t} s_{<t}ᵀ is in both magic terms, and cancels
    np.testing.assert_allclose(-hessian(loss), expected, atol=1e-13)


def test_discounted_rewards_give_the_discounted_return(episodes):
    """γ^t r_t in DiCE and γ^t A_t in loaded DiCE, with the advantages of a discounted return to go."""
    discount = 0.9 ** np.arange(HORIZON)[:, None]
    discounted = episodes._replace(reward=episodes.reward * discount)
    exact = hessian(lambda params: expected_return(params, discounted))
    dice = lambda lp, e: objectives.dice(lp, discount * e.reward)
    to_go = reward_to_go(discounted) / discount  # r_t + γ r_{t+1} + ..
    loaded = lambda lp, e: objectives.loaded_dice(lp, discount * (to_go - baseline(e)))
    for terms_fn in (dice, loaded):
        np.testing.assert_allclose(-hessian(inner_loss(terms_fn, episodes)), exact, atol=1e-13)


# Samples.


@pytest.mark.parametrize("name", [*EXACT, "reinforce", "lvc"])
def test_sampled_curvature_is_unbiased_for_dice_and_for_no_other(name, episodes, exact_hessian):
    """∇²J V from 200,000 sampled episodes, within 4 sigma; those that leave something out are further off."""
    terms_fn = INNER[name]

    def product(m):  # of one episode
        one = jax.tree.map(lambda x: x[..., m, None], episodes)
        loss = lambda params: jnp.sum(terms_fn(log_prob(params, one), one))
        return -jax.jvp(jax.grad(loss), (PARAMS,), (V,))[1]

    each = jax.jit(jax.vmap(product))(jnp.arange(64))
    drawn = np.random.default_rng(1).choice(64, 200_000, p=np.asarray(probability(PARAMS, episodes)))
    samples = np.asarray(each)[drawn].reshape(len(drawn), -1)
    sigmas = np.abs(samples.mean(0) - exact_hessian @ V.ravel()) / (samples.std(0) / np.sqrt(len(drawn)))
    assert (sigmas.max() < 4) == (name in EXACT), sigmas


# Formulation I: the inner step is taken on an episode that was sampled, and E-MAML credits it with what it led to.


def e_maml_gradient(episodes, num_steps, *, inner=objectives.reinforce, credit=True):
    """Σ over the episodes of every step, and of those after adaptation, of the gradient that one sample gives."""
    to_go = reward_to_go(episodes)
    whole = jnp.broadcast_to(episodes.reward.sum(0), to_go.shape)

    def loss(params, behaviour, weight, credit_log_prob, steps_left):
        """`behaviour` is `params` as data: what the episodes are drawn from."""
        weights = weight * probability(behaviour, episodes)
        if steps_left == 0:
            terms = objectives.reinforce(log_prob(params, episodes), to_go)
            if credit:
                terms = terms + objectives.reinforce(jnp.broadcast_to(credit_log_prob, to_go.shape) / HORIZON, whole)
            return jnp.sum(terms, axis=0) @ weights

        def one(m):
            column = jax.tree.map(lambda x: x[..., m, None], episodes)
            inner_loss = lambda params: jnp.sum(inner(log_prob(params, column), to_go[:, m, None]))
            adapted = params - RATE * jax.grad(inner_loss)(params)
            credits = credit_log_prob + log_prob(params, column).sum()
            return loss(adapted, jax.lax.stop_gradient(adapted), weights[m], credits, steps_left - 1)

        return jnp.sum(jax.vmap(one)(jnp.arange(64)))

    params = jnp.asarray(PARAMS)
    return -jax.jit(jax.grad(lambda p: loss(p, params, 1.0, jnp.zeros(()), num_steps)))(params)


@functools.cache
def formulation_one(num_steps):
    """The exact gradient."""
    episodes = all_episodes()
    return jax.jit(jax.grad(lambda params: sampled_adapted_return(params, episodes, RATE, num_steps)))(PARAMS)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_e_maml_is_the_gradient_of_formulation_one(num_steps, episodes):
    assert relative_error(e_maml_gradient(episodes, num_steps), formulation_one(num_steps)) < 1e-10


def test_without_its_term_or_with_another_inner_objective_it_is_not(episodes):
    exact = formulation_one(1)
    assert relative_error(e_maml_gradient(episodes, 1, credit=False), exact) > 0.01
    assert relative_error(e_maml_gradient(episodes, 1, inner=objectives.lvc), exact) > 0.01


def test_formulation_one_on_a_bandit_is_its_closed_form():
    """Two arms paying r_0 and r_1, π(1) = σ(θ): θ' = θ + α r_1 (1 − p) after arm 1, θ − α r_0 p after arm 0."""
    r, theta, rate = np.array([0.3, 1.5]), 0.4, 0.7
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    p = sigmoid(theta)
    value, slope = lambda x: r[0] + (r[1] - r[0]) * sigmoid(x), lambda x: (r[1] - r[0]) * sigmoid(x) * sigmoid(-x)
    after = np.array([theta - rate * r[0] * p, theta + rate * r[1] * (1 - p)])
    pathwise = np.array([1 - p, p]) @ (slope(after) * (1 - rate * r * p * (1 - p)))
    credit = p * (1 - p) * (value(after[1]) - value(after[0]))

    @jax.jit
    def estimate(theta, arm, arm_after):
        """The gradient from one pull before and one after."""

        def loss(theta):
            log_policy = lambda x: jnp.stack([jax.nn.log_sigmoid(-x), jax.nn.log_sigmoid(x)])
            inner = lambda x: objectives.reinforce(log_policy(x)[arm], jnp.asarray(r)[arm])
            adapted = theta - rate * jax.grad(inner)(theta)
            paid = jnp.asarray(r)[arm_after]
            terms = [objectives.reinforce(log_policy(adapted)[arm_after], paid)]
            terms.append(objectives.reinforce(log_policy(theta)[arm], paid))
            return jnp.stack(terms)

        return -jax.jacobian(loss)(theta)

    total = np.zeros(2)
    for arm in range(2):
        for arm_after in range(2):
            q = sigmoid(after[arm])
            weight = (p if arm else 1 - p) * (q if arm_after else 1 - q)
            total += weight * np.asarray(estimate(theta, arm, arm_after))
    np.testing.assert_allclose(total, [pathwise, credit], rtol=1e-12)
    assert min(abs(pathwise), abs(credit)) > 0.01


# One step at a time.


def test_clipping_by_hand():
    ratio = np.array([0.5, 0.5, 0.9, 0.9, 1.1, 1.1, 2.0, 2.0])
    advantage = np.array([3.0, -3.0] * 4)
    old = np.linspace(-2, -1, 8)
    terms = lambda log_prob: objectives.ppo_clip(log_prob, old, advantage, clip=0.2)
    expected = [-1.5, 2.4, -2.7, 2.7, -3.3, 3.3, -3.6, 6.0]
    np.testing.assert_allclose(jax.jit(terms)(old + np.log(ratio)), expected, rtol=1e-12)
    slope = np.where([0, 1, 0, 0, 0, 0, 1, 0], 0, -ratio * advantage)  # outside, and worse inside
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: terms(x).sum()))(old + np.log(ratio)), slope, rtol=1e-12)


def test_importance_weights_are_right_for_the_actions_of_another_policy(episodes):
    """In a bandit, where they are the whole truth: E_old (π / π_old) r = E r."""
    new, old, reward = (np.array(x) for x in ([0.3, -0.2, 0.1], [0.0, 1.0, -1.0], [1.0, 2.0, -3.0]))

    def loss(params):
        terms = objectives.importance_weighted(jax.nn.log_softmax(params), jax.nn.log_softmax(old), reward)
        return terms @ jax.nn.softmax(old)

    expected = lambda params: jax.nn.softmax(params) @ reward
    both = lambda params: jnp.stack([-loss(params), expected(params)])
    values, hessians = jax.jit(lambda params: (both(params), jax.hessian(both)(params)))(new)
    assert values[0] == pytest.approx(float(values[1]), rel=1e-14)
    np.testing.assert_allclose(*hessians, atol=1e-14)


DATA = {
    "reinforce": ("advantage",),
    "importance_weighted": ("old_log_prob", "advantage"),
    "lvc": ("advantage",),
    "dice": ("reward", "baseline"),
    "loaded_dice": ("advantage",),
    "ppo_clip": ("old_log_prob", "advantage"),
}


@pytest.mark.parametrize("name", DATA)
def test_everything_but_log_prob_is_data_of_its_shape(name):
    objective, clip = getattr(objectives, name), {"clip": 0.2} if name == "ppo_clip" else {}
    log_prob = -jnp.ones((4, 4))
    data = dict.fromkeys(DATA[name], 0.5 * log_prob)
    value, grads = jax.jit(jax.value_and_grad(lambda data: objective(log_prob, **data, **clip).sum()))(data)
    assert np.isfinite(value) and all(np.all(grad == 0) for grad in grads.values())
    for argument in data:
        with pytest.raises(ValueError, match=rf"{argument} must have the shape of log_prob, \(4, 4\), got \(4,\)"):
            objective(log_prob, **data | {argument: jnp.ones(4)}, **clip)


@pytest.mark.parametrize("name", DATA)
def test_terms_are_per_step_and_columns_do_not_mix(name):
    objective, clip = getattr(objectives, name), {"clip": 0.2} if name == "ppo_clip" else {}
    log_prob, *data = np.random.default_rng(2).normal(size=(1 + len(DATA[name]), 5, 3))

    @jax.jit
    def terms_and_gradient(log_prob, *data):
        terms_fn = lambda log_prob: objective(log_prob, *data, **clip)
        return terms_fn(log_prob), jax.grad(lambda log_prob: terms_fn(log_prob).sum())(log_prob)

    together = terms_and_gradient(log_prob, *data)
    assert together[0].shape == (5, 3)
    for e in range(3):
        alone = terms_and_gradient(log_prob[:, e], *(x[:, e] for x in data))
        for own, column in zip(alone, np.asarray(together)[..., e], strict=True):
            np.testing.assert_allclose(own, column, rtol=1e-12)

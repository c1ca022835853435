"""Oracles of Gaussian bandits: the dynamic program against closed forms and a recursion over what is paid, which knows
of no difference and no line between points; the policies through the rollout; bounds that are above."""

import functools

import jax
import numpy as np
import pytest
import scipy.optimize
from scipy.stats import norm

from jaxmeta import rl
from jaxmeta.rl import families, oracles
from jaxmeta.rl.oracles import gaussian_bandits


def moved(n, noise):
    """s_n."""
    variance = lambda n: 1.0 if n == 0 else noise**2 / (n + noise**2)
    return np.sqrt(variance(n) - variance(n + 1))


def positive_part(mean, std):
    """E max(0, mean + std Z)."""
    return mean * norm.cdf(mean / std) + std * norm.pdf(mean / std)


Z = np.linspace(-8, 8, 801)
WEIGHTS = norm.pdf(Z) * (Z[1] - Z[0])


def best_by_recursion(left, n, m, noise):
    """What the best policy is paid with so many pulls left, of arms pulled `n` times with posterior means `m`."""
    if left == 1:
        return np.maximum(*m)
    worth = []
    for arm in (0, 1):
        s, other = moved(n[arm], noise), m[1 - arm]
        after = tuple(count + (i == arm) for i, count in enumerate(n))
        if left == 2:
            worth.append(m[arm] + other + positive_part(m[arm] - other, s))
            continue
        at = [np.expand_dims(x, -1) for x in m]
        at[arm] = at[arm] + s * Z
        worth.append(m[arm] + best_by_recursion(left - 1, after, at, noise) @ WEIGHTS)
    return np.maximum(*worth)


@pytest.mark.parametrize(("num_pulls", "noise"), [(2, 0.5), (3, 1.0), (4, 0.7)])
def test_the_value_of_two_arms_against_a_recursion_over_what_is_paid(num_pulls, noise):
    expected = best_by_recursion(num_pulls, (0, 0), (np.zeros(()), np.zeros(())), noise)
    value, _ = oracles.bayes_optimal_gaussian_bandit(num_pulls, noise=noise)
    assert value == pytest.approx(float(expected), abs=2e-5)


def test_values_are_never_too_low_and_grow_right_with_finer_grids():
    """Of lines over a convex function; the extrapolation is between the bounds of both sides."""
    coarse, middle, fine = (gaussian_bandits._of_two_arms(10, 1.0, points)[0] for points in (225, 450, 900))
    assert coarse > middle > fine and (coarse - middle) / (middle - fine) == pytest.approx(4, abs=0.2)
    value, _ = oracles.bayes_optimal_gaussian_bandit(10)
    assert value < fine and value == pytest.approx((4 * middle - coarse) / 3, abs=1e-5)


def test_gittins_indices_against_stopping_problems_by_hand():
    """Of one, two and three pulls left."""
    noise, bonuses = 0.8, gaussian_bandits._bonuses(4, 0.8)
    of_two = lambda delta, n: delta + positive_part(delta, moved(n, noise))

    def of_three(delta, n):
        return delta + np.maximum(0, of_two(delta + moved(n, noise) * Z, n + 1)) @ WEIGHTS

    np.testing.assert_allclose(bonuses[0], 0, atol=1e-12)
    for n in (0, 1, 2):
        assert bonuses[1, n] == pytest.approx(-scipy.optimize.brentq(of_two, -2, 1, args=(n,)), abs=1e-4)
    for n in (0, 1):
        assert bonuses[2, n] == pytest.approx(-scipy.optimize.brentq(of_three, -2, 1, args=(n,)), abs=1e-4)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def simulated(agent_name, num_arms, num_pulls, noise, key):
    """What is expected of the pulled arms, less the best one's, `[N]`."""
    agent = AGENTS[agent_name](num_arms, num_pulls, noise)
    family = families.gaussian_bandit(num_arms=num_arms, num_pulls=num_pulls, noise=noise)
    trial = rl.trial(family.environment)

    def one(key):
        task_key, key = jax.random.split(key)
        task = family.test.sample(task_key, family.test.data)
        action = rl.rollout(key, trial, *agent, task)[1].action
        return (task.means[action] - task.means.max()).sum()

    return jax.vmap(one)(jax.random.split(key, 20_000))


AGENTS = {
    "best": lambda num_arms, num_pulls, noise: oracles.bayes_optimal_gaussian_bandit(num_pulls, noise=noise)[1],
    "gittins": lambda num_arms, num_pulls, noise: oracles.gaussian_gittins(num_arms, num_pulls, noise=noise),
    "thompson": lambda num_arms, num_pulls, noise: oracles.gaussian_thompson(num_arms, noise=noise),
}
BEST_MEAN = {
    2: 1 / np.sqrt(np.pi),
    5: 1.1629644736,
}  # E max of so many N(0, 1); the latter of tables of order statistics


def total(agent_name, num_arms, num_pulls, noise):
    """The expected total, and four standard errors."""
    regret = np.asarray(simulated(agent_name, num_arms, num_pulls, noise, jax.random.key(0)))
    return num_pulls * BEST_MEAN[num_arms] + regret.mean(), 4 * regret.std() / np.sqrt(len(regret))


def test_the_bayes_optimal_agent_has_its_value_in_a_rollout():
    value, _ = oracles.bayes_optimal_gaussian_bandit(8, noise=0.6)
    mean, error = total("best", 2, 8, 0.6)
    assert abs(mean - value) < error < 0.1


@pytest.mark.slow
def test_others_do_less_and_gittins_with_two_arms_hardly():
    value, _ = oracles.bayes_optimal_gaussian_bandit(8, noise=0.6)
    mean, error = total("gittins", 2, 8, 0.6)
    assert abs(mean - value) < error + 0.02
    assert total("thompson", 2, 8, 0.6)[0] < value - 0.1


@pytest.mark.slow
def test_five_arms_are_between_gittins_and_the_bound():
    gittins, error = total("gittins", 5, 10, 1.0)
    bound = oracles.gaussian_bandit_bound(5, 10)
    assert total("thompson", 5, 10, 1.0)[0] + 0.3 < gittins < bound < 10 * BEST_MEAN[5]
    assert gittins + error > 0.85 * bound


def test_bounds_are_above_the_optimum_and_exact_where_there_is_nothing_to_choose():
    assert oracles.gaussian_bandit_bound(1, 4) == pytest.approx(0, abs=1e-9)
    assert oracles.gaussian_bandit_bound(5, 1) == pytest.approx(0, abs=5e-3)  # a pull of what nobody knows
    for num_pulls, noise in ((2, 1.0), (6, 0.3)):
        value, _ = oracles.bayes_optimal_gaussian_bandit(num_pulls, noise=noise)
        bound = oracles.gaussian_bandit_bound(2, num_pulls, noise=noise)
        assert value < bound < num_pulls * BEST_MEAN[2]


def test_arms_without_noise_are_known_after_a_pull():
    """The first is worth 0, then the better of it and a new one: E max(μ, E max(μ, μ')) in the end, by hand."""
    value, _ = oracles.bayes_optimal_gaussian_bandit(2, noise=0.0)
    assert value == pytest.approx(1 / np.sqrt(2 * np.pi), abs=1e-6)
    with pytest.raises(ValueError, match="num_pulls must be at most 200, got 201"):
        oracles.gaussian_gittins(2, 201)

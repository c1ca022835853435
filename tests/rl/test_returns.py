"""Returns and advantages against loops over hand-made episodes; the baseline against numpy's least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.rl import returns

pytestmark = pytest.mark.usefixtures("strict_shapes", "x64_module")

GAMMA, LAMBDA = 0.9, 0.8
# Three environments over six steps: a termination, a truncation, both at once, and an end without either.
TERMINATED = np.array([[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0], [1, 0, 0, 1, 0, 1]], bool).T
TRUNCATED = np.array([[0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]], bool).T
REWARD, VALUE, NEXT_VALUE = np.random.default_rng(0).normal(size=(3, 6, 3))


def episodes():
    """(environment, first step, step after the last) of every episode, the unfinished ones too."""
    for e in range(3):
        first = 0
        for t in range(6):
            if TERMINATED[t, e] or TRUNCATED[t, e] or t == 5:
                yield e, first, t + 1
                first = t + 1


def test_discounted_returns_are_those_of_each_episode():
    expected = np.empty_like(REWARD)
    for e, first, end in episodes():
        for t in range(first, end):
            expected[t, e] = sum(GAMMA ** (i - t) * REWARD[i, e] for i in range(t, end))
    actual = jax.jit(returns.discounted_returns)(REWARD, TERMINATED | TRUNCATED, discount=GAMMA)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def loop_gae(lambda_):
    """From the definition: A_t = (1 − λ) Σ_n λ^{n−1} (n-step return) − V(s_t), within each episode."""
    expected = np.empty_like(REWARD)
    for e, first, end in episodes():
        for t in range(first, end):
            n_step = [
                sum(GAMMA ** (i - t) * REWARD[i, e] for i in range(t, last + 1))
                + GAMMA ** (last + 1 - t) * (0 if TERMINATED[last, e] else NEXT[last, e])
                for last in range(t, end)
            ]
            weights = [(1 - lambda_) * lambda_**n for n in range(len(n_step) - 1)] + [lambda_ ** (len(n_step) - 1)]
            expected[t, e] = np.dot(weights, n_step) - VALUE[t, e]
    return expected


# V(s'_t) is V(s_{t+1}) within an episode, and a value of its own, of the final observation, where one ends.
NEXT = np.where(TERMINATED | TRUNCATED | (np.arange(6) == 5)[:, None], NEXT_VALUE, np.roll(VALUE, -1, axis=0))


@pytest.mark.parametrize("lambda_", [0.0, LAMBDA, 1.0])
def test_gae_is_the_mixture_of_n_step_returns_within_each_episode(lambda_):
    arguments = (REWARD, VALUE, NEXT, TERMINATED, TRUNCATED)
    advantage, target = jax.jit(returns.gae)(*arguments, discount=GAMMA, lambda_=lambda_)
    np.testing.assert_allclose(advantage, loop_gae(lambda_), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(target, advantage + VALUE, rtol=1e-12)
    # One environment alone is the same.
    alone = returns.gae(*(a[:, 1] for a in arguments), discount=GAMMA, lambda_=lambda_)
    np.testing.assert_allclose(alone.advantage, advantage[:, 1], rtol=1e-12)


def test_the_two_ends_are_not_the_same():
    """Negative controls: each flag taken for the other changes the advantages of the episode it ends."""
    of = lambda terminated, truncated: (
        returns.gae(REWARD, VALUE, NEXT, terminated, truncated, discount=GAMMA, lambda_=LAMBDA).advantage
    )
    right, no, done = of(TERMINATED, TRUNCATED), np.zeros_like(TERMINATED), TERMINATED | TRUNCATED
    for wrong in (of(done, no), of(no, done), of(TERMINATED, no)):
        assert np.abs(wrong - right).max() > 0.05


def test_linear_features():
    observation = jnp.array([[1.0, -20.0], [0.5, 2.0]])
    np.testing.assert_allclose(
        returns.linear_features(observation, jnp.array([0, 50])),
        [[1, -10, 1, 100, 0, 0, 0, 1], [0.5, 2, 0.25, 4, 0.5, 0.25, 0.125, 1]],
    )


def ridge_by_normal_equations(features, targets, ridge):
    return np.linalg.solve(features.T @ features + ridge * np.eye(features.shape[1]), features.T @ targets)


def test_the_linear_baseline_is_ridge_regression_over_what_is_not_masked():
    rng = np.random.default_rng(1)
    features = returns.linear_features(rng.normal(size=(20, 5, 3)), np.tile(np.arange(20)[:, None], (1, 5)))
    targets, mask = rng.normal(size=(20, 5)), rng.random((20, 5)) < 0.7
    for ridge in (1e-5, 3.0):
        weights = returns.fit_linear_baseline(features, targets, ridge=ridge)
        flat = np.asarray(features).reshape(100, -1)
        np.testing.assert_allclose(weights, ridge_by_normal_equations(flat, targets.ravel(), ridge), rtol=1e-6)
        masked = returns.fit_linear_baseline(features, targets, mask, ridge=ridge)
        expected = ridge_by_normal_equations(flat[mask.ravel()], targets[mask], ridge)
        np.testing.assert_allclose(masked, expected, rtol=1e-6)


def test_each_task_has_a_baseline_of_its_own():
    rng = np.random.default_rng(2)
    features, targets = rng.normal(size=(4, 30, 3)), rng.normal(size=(4, 30))
    together = jax.vmap(returns.fit_linear_baseline)(features, targets)
    for i in range(4):
        np.testing.assert_allclose(together[i], returns.fit_linear_baseline(features[i], targets[i]), rtol=1e-9)


def test_float32_predicts_as_float64_does_where_features_depend_on_each_other():
    """A constant observation makes o, o² and 1 the same feature: the normal equations would be singular."""
    time = np.tile(np.arange(50)[:, None], (1, 20))
    targets = 30 - 0.5 * time + np.random.default_rng(3).normal(size=time.shape)
    predict = {}
    for dtype in (jnp.float32, jnp.float64):
        features = returns.linear_features(jnp.ones((50, 20, 1), dtype), time)
        weights = returns.fit_linear_baseline(features, jnp.asarray(targets, dtype))
        predict[dtype] = features @ weights
    np.testing.assert_allclose(predict[jnp.float32], predict[jnp.float64], atol=0.02)
    assert predict[jnp.float32].dtype == jnp.float32

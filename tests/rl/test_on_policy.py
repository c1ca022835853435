"""What learners on policy share, against numpy: normalised advantages and where there are none, and shares of tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta.rl.objectives import importance_weighted, ppo_clip
from jaxmeta.rl.on_policy import PPO, TRPO, VPG, descend, normalized
from jaxmeta.rl.returns import discounted_returns, fit_linear_baseline, linear_features

pytestmark = pytest.mark.usefixtures("strict_shapes")

RNG = np.random.default_rng(0)


def test_advantages_have_mean_0_and_deviation_1_over_what_was_played(x64_module):
    advantage, to_go, mask = RNG.normal(2.0, 3.0, (5, 4)), RNG.normal(size=(5, 4)), RNG.random((5, 4)) < 0.7
    found, scale = normalized(advantage, mask, to_go)
    np.testing.assert_allclose(scale, advantage[mask].std(), rtol=1e-7)
    np.testing.assert_allclose(found[mask], (advantage[mask] - advantage[mask].mean()) / scale, rtol=1e-12)


@pytest.mark.parametrize("difference", [0.0, 1e-6, 0.001, 0.1])
def test_the_error_of_a_baseline_is_no_advantage(difference):
    """200 steps that cost 1, in 20 episodes that see other things: a thousandth of the returns is left of the baseline.
    Where one episode is paid once it counts again, if by more than rounding."""
    reward, done = -np.ones((200, 20), np.float32), np.zeros((200, 20), bool)
    reward[50, 3] += difference
    to_go = discounted_returns(reward, done, discount=0.99)
    time = np.broadcast_to(np.arange(200)[:, None], (200, 20))
    features = linear_features(RNG.normal(size=(200, 20, 2)).astype(np.float32), time)
    residual = to_go - features @ fit_linear_baseline(features, to_go)
    assert 1e-4 < jnp.std(residual) / jnp.max(jnp.abs(to_go)) < 1e-2  # which was made 1
    found, _ = normalized(residual, jnp.ones((200, 20), bool), to_go)
    assert jnp.all(found == 0) if difference < 1e-5 else abs(float(jnp.std(found)) - 1) < 1e-3


def test_a_single_episode_has_no_other_to_differ_from():
    advantage = jnp.array([[1.0], [3.0]])
    np.testing.assert_allclose(normalized(advantage, jnp.ones((2, 1), bool), jnp.ones((2, 1)))[0], [[-1.0], [1.0]])


def test_what_is_not_a_number_stays_so():
    nan = jnp.full((2, 2), jnp.nan)
    assert jnp.all(jnp.isnan(normalized(nan, jnp.ones((2, 2), bool), nan)[0]))


def test_terms_are_those_of_the_objectives():
    log_prob, old, advantage = RNG.normal(size=(3, 4, 2)).astype(np.float32)
    for outer in (VPG(), TRPO()):
        np.testing.assert_array_equal(
            outer.terms(log_prob, old, advantage), importance_weighted(log_prob, old, advantage)
        )
    clipped = ppo_clip(log_prob, old, advantage, clip=0.1)
    np.testing.assert_array_equal(PPO(clip=0.1).terms(log_prob, old, advantage), clipped)


@pytest.mark.parametrize(("axis", "num_epochs", "num_minibatches"), [(0, 2, 1), (0, 1, 3), (1, 2, 2)])
def test_every_epoch_goes_over_all_tasks_once(axis, num_epochs, num_minibatches):
    """Each step adds one to those parameters whose tasks it is on, and a thousandth to all."""
    data = np.arange(6) if axis == 0 else np.stack([np.arange(6), np.arange(6)])

    def gradient_fn(counts, batch):
        chosen = batch if axis == 0 else batch[1]
        return (jnp.float32(len(chosen)), {}), -jnp.zeros(6).at[chosen].add(1.0) - 1e-3

    optimizer = optax.sgd(1.0)
    counts, _, curves = descend(
        jax.random.key(0),
        optimizer,
        gradient_fn,
        jnp.zeros(6),
        optimizer.init(jnp.zeros(6)),
        jnp.asarray(data),
        axis=axis,
        num_epochs=num_epochs,
        num_minibatches=num_minibatches,
    )
    num_steps = num_epochs * num_minibatches
    np.testing.assert_allclose(counts, num_epochs + 1e-3 * num_steps, rtol=1e-6)
    assert curves["loss"].tolist() == [6 / num_minibatches] * num_steps

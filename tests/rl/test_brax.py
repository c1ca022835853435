"""brax's bodies with the papers' rewards. Slow: a body takes half a minute to compile."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import rl
from jaxmeta.rl import families


def play(family, *tasks):
    """The first five steps of each task with the same keys and actions, one out of bounds; the bodies' positions."""
    trial, actions = rl.trial(family.environment), 0.5 * np.sin(np.arange(5)[:, None] + np.arange(_size(family)))
    actions[2, 0] = 3.0

    def run(task):
        _, state = trial.reset(jax.random.key(0), task)

        def step(state, action):
            _, after, outcome = trial.step(jax.random.key(1), state, action, task)
            return after, (after.env_state.x.pos[0], outcome.reward, outcome.terminated, outcome.next_observation)

        position, *rest = jax.lax.scan(step, state, actions)[1]
        return jnp.concatenate([state.env_state.x.pos[:1], position]), *rest

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
    position, reward, terminated, observation = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(stacked))
    assert not terminated.any() and np.isfinite(observation).all() and family.environment.max_steps == 200
    return position, reward, (np.clip(actions, -1, 1) ** 2).sum(-1)


def _size(family):
    return family.environment.action_space.low.size


@pytest.fixture
def brax():
    pytest.importorskip("brax", reason="needs the extra brax")


slow = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("brax")]
for_brax = lambda test: [test := mark(test) for mark in slow][-1]


@for_brax
def test_the_cheetahs_rewards():
    """The velocity is that of the torso over a step of 0.05 seconds, and a task changes the reward only."""
    goals = [families.Velocity(jnp.float32(v)) for v in (0.0, 1.5)]
    position, reward, cost = play(families.cheetah_velocity(), *goals)
    velocity = np.diff(position[..., 0], axis=1) / 0.05
    assert np.abs(velocity).max() > 0.05
    np.testing.assert_array_equal(position[0], position[1])
    np.testing.assert_allclose(reward, -np.abs(velocity - [[0.0], [1.5]]) - 0.05 * cost, rtol=1e-3, atol=1e-4)

    ways = [families.Direction(jnp.float32(d)) for d in (1.0, -1.0)]
    position, reward, cost = play(families.cheetah_direction(), *ways)
    velocity = np.diff(position[..., 0], axis=1) / 0.05
    np.testing.assert_allclose(reward, velocity * [[1.0], [-1.0]] - 0.05 * cost, rtol=1e-3, atol=1e-4)


@for_brax
def test_the_ants_reward_and_that_it_sees_where_it_is():
    family = families.ant_goal()
    goals = [families.Goal(jnp.array(goal)) for goal in ([0.0, 0.0], [2.0, -1.0])]
    position, reward, cost = play(family, *goals)
    distance = np.abs(position[:, 1:, :2] - np.array([[[0.0, 0.0]], [[2.0, -1.0]]])).sum(-1)
    np.testing.assert_allclose(reward, -distance - 0.1 * cost, rtol=1e-4, atol=1e-4)
    observation, physics = family.environment.reset(jax.random.key(0), goals[0])
    np.testing.assert_allclose(observation[:2], physics.x.pos[0, :2], rtol=1e-5)
    drawn = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(0), 2000), ()).goal
    radius = np.linalg.norm(drawn, axis=-1)
    assert radius.max() <= 3 and abs((radius < 1.5).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2000)


def test_where_brax_is_missing_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "brax", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmeta\[brax\]'"):
        families.cheetah_velocity()


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"backend must be one of generalized, mjx, positional, spring, got 'mujoco'"):
        families.ant_goal(backend="mujoco")

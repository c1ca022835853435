"""Tasks that are levels, in an environment as small as can be: what holds without any of the libraries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import level_contract
import numpy as np
import pytest

from jaxmeta import rl
from jaxmeta.rl.levels import on_levels, raw


class State(NamedTuple):
    goal: jax.Array
    position: jax.Array
    key: jax.Array


class Drift:
    """The level is a goal in a plane of some width; a step draws with the key that the state carries."""

    def __init__(self, size=2):
        self.size = size

    def reset_env(self, key, width):
        goal_key, key = jax.random.split(raw(key))
        state = State(width * jax.random.uniform(goal_key, (self.size,)), jnp.zeros(self.size), key)
        return state.goal, state

    def renew(self, state, key):
        return state._replace(key=raw(key))

    def step_env(self, key, state, action, width):
        key, noise_key = jax.random.split(state.key)
        position = state.position + width * jax.random.normal(noise_key, (self.size,))
        return state.goal, State(state.goal, position, key), -jnp.sum((position - state.goal) ** 2), False, {}

    def action_space(self, params):
        return rl.Discrete(2)


def drift(size=2):
    return on_levels(Drift(size), "Drift", jnp.ones(()), max_steps=3)


def test_a_level_is_drawn_with_its_params_and_stays():
    """Each task of a family has one of its own; what is drawn on the way is new in each episode."""
    family = rl.family(drift(), lambda key: jax.random.uniform(key, minval=1.0, maxval=2.0))
    played = level_contract.tasks_stay(family)
    paths = np.asarray(played.state.position).reshape(3, 3, 3, 2)  # [episode, step, task]
    assert len(np.unique(paths[:, 1], axis=0)) == 3
    level = family.environment.draw(jax.random.key(0), jnp.float32(2.0))
    assert level.params == 2 and family.environment.draw(jax.random.key(1), level) is level
    assert "Level(params=" in repr(level)


def test_what_is_no_level_of_it_is_refused():
    environment = drift()
    with pytest.raises(ValueError, match=r"a task of Drift must be a Level.*rl\.family"):
        environment.reset(jax.random.key(0), jnp.ones(()))
    with pytest.raises(ValueError, match=r"level must be one of this Drift, got .*the shapes differ"):
        environment.reset(jax.random.key(0), drift(size=3).draw(jax.random.key(0), jnp.ones(())))

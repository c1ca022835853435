"""Families of locomotion from brax, with the papers' rewards: run at a velocity, run in a direction, go to a goal.

brax comes with `pip install 'jaxmeta[brax]'`. This is the only file that knows it, and it is imported when one of these
is called.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_choice
from jaxmeta.rl.env import Continuous, Environment, Family
from jaxmeta.rl.families.navigation import Goal
from jaxmeta.rl.gymnax import from_gymnax, in_32_bits
from jaxmeta.rl.tasks import family, finite_family
from jaxmeta.types import PyTree

HORIZON = 200
BACKENDS = ("generalized", "mjx", "positional", "spring")


class Velocity(NamedTuple):
    """A task: how fast to run, a number.

    Attributes:
      velocity: v*, in m/s forward.
    """

    velocity: jax.Array


class Direction(NamedTuple):
    """A task: which way to run, 1 or −1.

    Attributes:
      direction: 1 forward, −1 backward.
    """

    direction: jax.Array | np.ndarray


def cheetah_velocity(*, backend: str = "spring") -> Family:
    """HalfCheetah at a hidden velocity v* ~ U(0, 2) m/s, for 200 steps: reward −|v − v*| − 0.05 |a|².

    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017), section 5.3,
    https://arxiv.org/abs/1703.03400

    Args:
      backend: brax's physics: "spring" is its fastest on a CPU, "generalized" and "mjx" are closer to MuJoCo. Returns
        compare only within one backend, and not with MuJoCo's.

    Returns:
      A `Family`; every task is new, so that train and test tasks follow the same distribution.

    Raises:
      ImportError: brax is not installed.
      ValueError: there is no such `backend`.
    """
    reward = lambda task, move, position: -jnp.abs(move[0] - task.velocity)
    sample = lambda key: Velocity(jax.random.uniform(key, maxval=2.0))
    return family(_environment("halfcheetah", backend, reward, ctrl_cost_weight=0.05), sample)


def cheetah_direction(*, backend: str = "spring") -> Family:
    """HalfCheetah forward or backward, for 200 steps: reward ± v − 0.05 |a|², v in m/s.

    Reference and errors as `cheetah_velocity`.

    Args:
      backend: as in `cheetah_velocity`.

    Returns:
      A `Family` of two tasks, for training and test alike.
    """
    reward = lambda task, move, position: task.direction * move[0]
    tasks = Direction(np.array([1.0, -1.0]))
    return finite_family(_environment("halfcheetah", backend, reward, ctrl_cost_weight=0.05), tasks, tasks)


def ant_goal(*, backend: str = "spring") -> Family:
    """An ant that goes to a hidden place, uniform over a disc of radius 3, for 200 steps: reward −|p − g|₁ − 0.1 |a|².

    It sees its own place, and falling over ends nothing.

    Rakelly, Zhou, Quillen, Finn, Levine, "Efficient Off-Policy Meta-Reinforcement Learning via Probabilistic Context
    Variables" (2019), section 6.1, https://arxiv.org/abs/1903.08254

    Errors as `cheetah_velocity`.

    Args:
      backend: as in `cheetah_velocity`.

    Returns:
      A `Family`; every task is new, so that train and test tasks follow the same distribution.
    """
    reward = lambda task, move, position: -jnp.sum(jnp.abs(position[:2] - task.goal))

    def sample(key: jax.Array) -> Goal:
        radius_key, angle_key = jax.random.split(key)
        radius = 3 * jnp.sqrt(jax.random.uniform(radius_key))
        angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
        return Goal(radius * jnp.array([jnp.cos(angle), jnp.sin(angle)]))

    options = {"terminate_when_unhealthy": False, "exclude_current_positions_from_observation": False}
    return family(_environment("ant", backend, reward, ctrl_cost_weight=0.1, **options), sample)


class _Body:
    """A body of brax with gymnax's API, for `from_gymnax`; its state is that of brax's physics.

    `reward_fn` takes the task, the velocity of the torso `[3]` and its position `[3]`.
    """

    def __init__(self, body: Any, state: Callable, reward_fn: Callable, ctrl_cost_weight: float):
        self.body, self.state, self.reward_fn, self.ctrl_cost_weight = body, state, reward_fn, ctrl_cost_weight

    def reset_env(self, key: jax.Array, params: PyTree):
        state = self.body.reset(key)
        return state.obs, state.pipeline_state

    def step_env(self, key: jax.Array, physics: Any, action: jax.Array, params: PyTree):
        after = self.body.step(self.state(physics, None, None, None), action)
        position = after.pipeline_state.x.pos[0]
        reward = self.reward_fn(params, (position - physics.x.pos[0]) / self.body.dt, position)
        reward -= self.ctrl_cost_weight * jnp.sum(action**2)
        return after.obs, after.pipeline_state, reward, False, {}

    def action_space(self, params: PyTree) -> Continuous:
        bound = np.ones(self.body.action_size, np.float32)
        return Continuous(-bound, bound)


def _environment(
    name: str, backend: str, reward_fn: Callable, *, ctrl_cost_weight: float, **options: Any
) -> Environment:
    check_choice("backend", backend, BACKENDS)
    try:
        from brax import envs
    except ImportError as error:
        raise ImportError("this family needs brax: pip install 'jaxmeta[brax]'") from error
    with in_32_bits():
        body = envs.get_environment(name, backend=backend, **options)
    return from_gymnax(_Body(body, envs.State, reward_fn, ctrl_cost_weight), max_steps=HORIZON)

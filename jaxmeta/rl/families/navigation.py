"""Points that move in the plane to a place they are not shown: the task is the goal, the observation the position."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_flag
from jaxmeta.rl.env import Continuous, Environment, Family
from jaxmeta.rl.tasks import family, finite_family


class Goal(NamedTuple):
    """A task: where to go, `[2]`.

    Attributes:
      goal: `[2]`, in units of length; of a gridworld the cell.
    """

    goal: jax.Array | np.ndarray


def navigation() -> Family:
    """The 2D navigation of MAML: goal ~ U(−0.5, 0.5)², reward −|position − goal|, up to 100 steps of ±0.1.

    An episode starts in the origin and terminates where both coordinates are within 0.01 of the goal. The reward is the
    distance, as in the paper's code; its text says the square.

    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017), section 5.3,
    https://arxiv.org/abs/1703.03400

    Returns:
      A `Family`; every task is new, so that train and test tasks follow the same distribution.

    >>> family = navigation()
    >>> task = family.train.sample(jax.random.key(0), family.train.data)
    >>> observation, state = family.environment.reset(jax.random.key(1), task)
    >>> family.environment.step(jax.random.key(2), state, jnp.array([0.1, 0.0]), task)[0].tolist()
    [0.10000000149011612, 0.0]
    """

    def reset(key: jax.Array, params: Goal):
        return jnp.zeros(2), jnp.zeros(2)

    def step(key: jax.Array, position: jax.Array, action: jax.Array, params: Goal):
        position = position + action
        offset = position - params.goal
        return position, position, -_norm(offset), jnp.all(jnp.abs(offset) < 0.01)

    environment = Environment(reset, step, _square(0.1), max_steps=100)
    return family(environment, lambda key: Goal(jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)))


def point_robot(*, is_sparse: bool = True) -> Family:
    """The point robot of PEARL: goals on the upper half of the unit circle, 20 steps of ±0.1 from the origin.

    With d the distance to the goal, the sparse reward is 1 − d where d ≤ 0.2 and 0 elsewhere; the dense one, on which
    the paper's code trains the critic, is −d. An episode never terminates.

    Rakelly, Zhou, Quillen, Finn, Levine, "Efficient Off-Policy Meta-Reinforcement Learning via Probabilistic Context
    Variables" (2019), section 6.3, https://arxiv.org/abs/1903.08254

    Args:
      is_sparse: whether the reward is the sparse one.

    Returns:
      A `Family` of 100 goals at equal angles; every fifth is a test task.

    >>> family = point_robot()
    >>> family.train.data.goal.shape, family.test.data.goal.shape
    ((80, 2), (20, 2))
    """
    check_flag("is_sparse", is_sparse)

    def reset(key: jax.Array, params: Goal):
        return jnp.zeros(2), jnp.zeros(2)

    def step(key: jax.Array, position: jax.Array, action: jax.Array, params: Goal):
        position = position + action
        distance = _norm(position - params.goal)
        reward = jnp.where(distance <= 0.2, 1 - distance, 0) if is_sparse else -distance
        return position, position, reward, jnp.bool_(False)

    angles = np.linspace(0, np.pi, 100)
    goals = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    is_test = np.arange(100) % 5 == 2
    environment = Environment(reset, step, _square(0.1), max_steps=20)
    return finite_family(environment, Goal(goals[~is_test]), Goal(goals[is_test]))


def corners() -> Family:
    """Four corners, one of which pays: 1 for each step that ends within 0.5 of the task's own corner, else 0.

    A room [−2, 2]², a start in U(−0.2, 0.2)², 100 steps of at most 0.2 in each direction, no termination. Nothing is
    paid on the way or in another corner, so that the task is found by visiting corners only.

    After the environment of Rothfuss, Lee, Clavera, Asfour, Abbeel, "ProMP: Proximal Meta-Policy Search" (2018),
    https://arxiv.org/abs/1810.06784, whose own reward can be had by standing still.

    Returns:
      A `Family` of four tasks, for training and test alike.

    >>> family = corners()
    >>> family.train.data.goal.tolist()
    [[-2.0, -2.0], [-2.0, 2.0], [2.0, -2.0], [2.0, 2.0]]
    """

    def reset(key: jax.Array, params: Goal):
        position = jax.random.uniform(key, (2,), minval=-0.2, maxval=0.2)
        return position, position

    def step(key: jax.Array, position: jax.Array, action: jax.Array, params: Goal):
        position = jnp.clip(position + action, -2, 2)
        is_there = jnp.all(jnp.abs(position - params.goal) <= 0.5)
        return position, position, jnp.asarray(is_there, float), jnp.bool_(False)

    goals = Goal(np.array([[-2.0, -2.0], [-2.0, 2.0], [2.0, -2.0], [2.0, 2.0]]))
    return finite_family(Environment(reset, step, _square(0.2), max_steps=100), goals, goals)


def _square(half_width: float) -> Continuous:
    return Continuous(np.full(2, -half_width, np.float32), np.full(2, half_width, np.float32))


def _norm(vector: jax.Array) -> jax.Array:
    """Its length, with the gradient 0 at 0 in place of none."""
    square = jnp.sum(vector**2)
    return jnp.sqrt(jnp.where(square > 0, square, 1)) * (square > 0)

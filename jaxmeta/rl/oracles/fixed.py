"""Policies that are known without planning: any action at all, and told the task, the best arm and the goal."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.rl.env import Continuous, Discrete, check_action_space
from jaxmeta.rl.families.bandits import Bandit
from jaxmeta.rl.families.navigation import Goal
from jaxmeta.rl.rollout import Agent
from jaxmeta.rl.trials import Inputs
from jaxmeta.types import PyTree


def random_policy(action_space: Discrete | Continuous) -> Agent:
    """Every action is as likely, whatever is seen.

    Args:
      action_space: the environment's; actions are uniform in it.

    Raises:
      ValueError: `action_space` is not one, or has no finite bounds.

    >>> agent = random_policy(Discrete(3))
    """
    check_action_space("action_space", action_space)
    if isinstance(action_space, Discrete):
        sample = lambda key: jax.random.randint(key, (), 0, action_space.num_actions)
    else:
        low, high = action_space
        sample = lambda key: jax.random.uniform(key, np.shape(low), minval=low, maxval=high)

    def policy(key: jax.Array, params: PyTree, carry: tuple, inputs: Inputs):
        return sample(key), carry, ()

    return Agent(policy)


def optimal_bandit(task: Bandit) -> Agent:
    """Told the means: the best arm, always. A/(A + 1) for each pull of A Bernoulli arms, on average.

    Args:
      task: a task of `families.bernoulli_bandit` or `families.gaussian_bandit`.

    >>> optimal_bandit(Bandit(jnp.array([0.1, 0.7, 0.3]))).params.item()
    1
    """

    def policy(key: jax.Array, arm: jax.Array, carry: tuple, inputs: Inputs):
        return arm, carry, ()

    return Agent(policy, jnp.argmax(task.means).astype(jnp.int32))


def optimal_navigation(task: Goal) -> Agent:
    """Told the goal, in `navigation`, `point_robot` and `corners`: the whole way at once, of which the trial lets
    pass the largest step.

    As it bounds each coordinate for itself, both are as close to the goal as they can be, at every step.

    Args:
      task: a task of one of these families.

    >>> agent = optimal_navigation(Goal(jnp.array([0.3, -0.5])))
    """

    def policy(key: jax.Array, goal: jax.Array, carry: tuple, inputs: Inputs):
        return goal - inputs.observation, carry, ()

    return Agent(policy, jnp.asarray(task.goal))

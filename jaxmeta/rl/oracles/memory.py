"""Worlds in which what matters was seen before: who remembers it, and who is told."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_choice, check_integer
from jaxmeta.rl.families.memory import AHEAD, BACK, CUES, DOWN, UP, KeyAndDoor, TMaze
from jaxmeta.rl.rollout import Agent
from jaxmeta.rl.trials import Inputs


class Remembered(NamedTuple):
    """The arm, −1 while it is not known, and the action before."""

    arm: jax.Array
    action: jax.Array


def optimal_t_maze(task: TMaze) -> Agent:
    """Told the arm: there. It gets 1 in each episode.

    Args:
      task: a task of `families.t_maze`.

    >>> agent = optimal_t_maze(TMaze(jnp.int32(1)))
    """

    def policy(key: jax.Array, arm: jax.Array, carry: tuple, inputs: Inputs):
        return jnp.where(inputs.observation[2] > 0, UP + arm, AHEAD).astype(jnp.int32), carry, ()

    return Agent(policy, jnp.asarray(task.arm, jnp.int32))


def bayes_optimal_t_maze(
    num_episodes: int = 1, *, cue: Literal["start", "behind", "none"] = "start"
) -> tuple[np.ndarray, Agent]:
    """The best that any policy can do on `t_maze` that is not told the arm, and the policy that does it.

    It looks at the cue, if there is one, and else goes up in the first episode, by whose reward it knows the arm.

    Args:
      num_episodes: E, episodes of the trial.
      cue: as in `families.t_maze`.

    Returns:
      The expected return of each episode, `[E]`, 1 but for the 1/2 of the first one without a cue; and the agent.

    Raises:
      ValueError: `num_episodes` is not a positive integer, or `cue` is no name.

    >>> returns, agent = bayes_optimal_t_maze(3, cue="none")
    >>> returns.tolist()
    [0.5, 1.0, 1.0]
    """
    check_integer("num_episodes", num_episodes, minimum=1)
    check_choice("cue", cue, CUES)
    returns = np.ones(num_episodes)
    returns[0] = 0.5 if cue == "none" else 1.0

    def policy(key: jax.Array, params: tuple, carry: Remembered, inputs: Inputs):
        at_start, _, at_junction, sign = inputs.observation
        told = jnp.where(sign > 0, 0, 1)
        # The arm that was gone into, where it paid, else the other.
        of_reward = jnp.where(inputs.reward > 0, carry.action - UP, 1 - (carry.action - UP))
        has_gone = inputs.done & ~inputs.no_action & (carry.action >= UP)
        arm = jnp.select([sign != 0, (carry.arm < 0) & has_gone], [told, of_reward], carry.arm)
        ahead = jnp.where((arm < 0) & (at_start > 0), BACK, AHEAD) if cue == "behind" else AHEAD
        action = jnp.where(at_junction > 0, jnp.where(arm == 1, DOWN, UP), ahead).astype(jnp.int32)
        return action, Remembered(arm.astype(jnp.int32), action), ()

    return returns, Agent(policy, (), Remembered(jnp.int32(-1), jnp.int32(0)))


def optimal_key_to_door(task: KeyAndDoor, *, size: int = 9) -> Agent:
    """Told where they are: to the key, then to the door. It gets 2 in an episode that is long enough.

    Args:
      task: a task of `families.key_to_door`.
      size: of its room.

    Raises:
      ValueError: `size` is not an integer >= 2.

    >>> agent = optimal_key_to_door(KeyAndDoor(jnp.array([0, 0]), jnp.array([8, 8])))
    """
    check_integer("size", size, minimum=2)

    def policy(key: jax.Array, task: KeyAndDoor, has_key: jax.Array, inputs: Inputs):
        has_key = (has_key | (inputs.reward > 0)) & ~inputs.done
        x, y = jnp.divmod(jnp.argmax(inputs.observation), size)
        to_x, to_y = jnp.where(has_key, task.door, task.key)
        action = jnp.select([to_y > y, to_x > x, to_y < y, to_x < x], [1, 2, 3, 4], 0)
        return action.astype(jnp.int32), has_key, ()

    return Agent(policy, jax.tree.map(jnp.asarray, task), jnp.bool_(False))

"""Trials: one task over several episodes, where they begin and end, and what a policy sees of them.

step of the trial     0     1    ..   H−1 |   H     H+1
observation           o_0   o_1       ..  |   o'_0  o'_1      reset by the trial, the task stays
action before         none  a_0       ..  |  a_H−1  a'_0      none is an encoding of its own, not action 0
reward before         0     r_0       ..  |  r_H−1  r'_0      an episode's last reward is seen in the next episode
done before           1     0         ..  |   1     0         1 where an episode begins, time limits included
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_integer
from jaxmeta.rl.env import (
    Continuous,
    Discrete,
    Environment,
    call_reset,
    call_step,
    check_environment,
    check_unchanged,
    clip_action,
    flatten,
    in_box_units,
    strong,
)
from jaxmeta.types import PyTree


class Inputs(NamedTuple):
    """What a policy sees at one step.

    Attributes:
      observation: of the environment
      action: the previous one; −1 (discrete) or zeros before the first
      reward: the previous one, 0 before the first
      no_action: whether there was none: true at the first step of the trial only
      done: whether an episode begins here: it is the first, or the previous step ended one
      time: steps taken in this episode
    """

    observation: PyTree
    action: jax.Array
    reward: jax.Array
    no_action: jax.Array
    done: jax.Array
    time: jax.Array


class TrialState(NamedTuple):
    """What a trial carries.

    Attributes:
      env_state: the environment's state.
      time: steps taken in this episode.
      num_episodes: episodes that have ended.
    """

    env_state: PyTree
    time: jax.Array
    num_episodes: jax.Array


class Outcome(NamedTuple):
    """What a step brought.

    Attributes:
      reward: `()`, what was paid; 0 where `mask` is false
      terminated: the task's own end: nothing is worth anything after it
      truncated: the time limit: bootstrap with the value of `next_observation`. Both can be true.
      next_observation: what followed, before any reset
      mask: false once the trial's episodes are over; reward is 0 there
      info: what the environment says beside, {} if nothing; also where `mask` is false
    """

    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    next_observation: PyTree
    mask: jax.Array
    info: dict


class Trial(NamedTuple):
    """Pure functions of one trial, and its static length T.

    Attributes:
      reset: (key, task) -> (inputs, state)
      step: (key, state, action, task) -> (inputs, state, outcome)
      encode: (inputs) -> [D], observation, action (one-hot, or in units of its box: −1 to 1), no_action,
        reward, done, and the time where it is observed
      num_steps: T, the environment steps of a trial, static
    """

    reset: Callable[[jax.Array, PyTree], tuple[Inputs, TrialState]]
    step: Callable[[jax.Array, TrialState, jax.Array, PyTree], tuple[Inputs, TrialState, Outcome]]
    encode: Callable[[Inputs], jax.Array]
    num_steps: int


def trial(environment: Environment, *, num_episodes: int | None = None, num_steps: int | None = None) -> Trial:
    """One task, held fixed over several episodes. The budget is either of episodes or of steps, and static:

    | argument          | T                          | where episodes may end early                         |
    |-------------------|----------------------------|------------------------------------------------------|
    | `num_episodes=n`  | n × `max_steps`            | exactly n episodes; the steps after them are masked  |
    | `num_steps=T`     | T                          | as many episodes as fit; the last one may be cut off |

    This is where actions are held to the box of `Continuous`, for every learner and environment: the environment gets
    the action that is nearest in the box, while the policy's own is what is recorded, what its log-probability is of,
    and what it sees as its previous action. A discrete action that there is not pays NaN.

    Args:
      environment: any `Environment`; its params are the task.
      num_episodes: the budget in episodes, at least 1; 1 if neither is given.
      num_steps: the budget in environment steps, at least 1.

    Returns:
      A `Trial`. Its `reset` begins the trial; within it, episodes are reset by `step`, and the task stays.

    Raises:
      ValueError: `environment` is no environment, a budget is no positive integer, or both are given; while tracing,
        an action has not the shape of the action space or is no integer where that is discrete, or the environment
        returns something else than it has to, see `Environment`.

    Duan et al., "RL²: Fast Reinforcement Learning via Slow Reinforcement Learning" (2016),
    https://arxiv.org/abs/1611.02779

    >>> from jaxmeta.rl import families
    >>> bandit = families.bernoulli_bandit(num_arms=3, num_pulls=10)
    >>> two = trial(bandit.environment, num_episodes=2)
    >>> task = bandit.train.sample(jax.random.key(0), bandit.train.data)
    >>> inputs, state = two.reset(jax.random.key(1), task)
    >>> two.num_steps, two.encode(inputs).tolist()  # 1 observation, 3 arms, no action, reward, done
    (20, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    """
    check_environment("environment", environment)
    if num_steps is None:
        num_episodes = 1 if num_episodes is None else num_episodes
        check_integer("num_episodes", num_episodes, minimum=1)
        num_steps = num_episodes * environment.max_steps
    elif num_episodes is not None:
        raise ValueError(f"give num_episodes or num_steps, not both, got {num_episodes} and {num_steps}")
    check_integer("num_steps", num_steps, minimum=1)
    return Trial(
        reset=partial(_reset, environment),
        step=partial(_step, environment, num_episodes),
        encode=partial(_encode, environment),
        num_steps=num_steps,
    )


def _reset(environment: Environment, key: jax.Array, task: PyTree) -> tuple[Inputs, TrialState]:
    observation, env_state = call_reset(environment, key, task)
    begins = jnp.bool_(True)
    inputs = Inputs(observation, _no_action(environment.action_space), jnp.zeros(()), begins, begins, jnp.int32(0))
    return inputs, TrialState(env_state, jnp.int32(0), jnp.int32(0))


def _step(
    environment: Environment,
    num_episodes: int | None,
    key: jax.Array,
    state: TrialState,
    action: jax.Array,
    task: PyTree,
) -> tuple[Inputs, TrialState, Outcome]:
    action = _check_action(action, environment.action_space)
    step_key, reset_key = jax.random.split(key)
    next_observation, env_state, reward, terminated, info = call_step(
        environment, step_key, state.env_state, clip_action(environment.action_space, action), task
    )
    time = state.time + 1
    truncated = time >= environment.max_steps
    done = terminated | truncated
    mask = jnp.bool_(True) if num_episodes is None else state.num_episodes < num_episodes
    reward = jnp.where(mask, _paid(reward, action, environment.action_space), 0)
    outcome = Outcome(reward, terminated, truncated, next_observation, mask, strong(info))

    # where an episode ended, the next one begins, of the same task; elsewhere always the same, which a host remembers
    reset_key = jax.random.clone(jnp.where(done, reset_key, jnp.zeros_like(reset_key)))
    first_observation, first_state = call_reset(environment, reset_key, task)
    check_unchanged("step of environment", "observation", next_observation, first_observation)
    observation, env_state = jax.tree.map(
        lambda first, next: jnp.where(done, first, next),
        (first_observation, first_state),
        (next_observation, env_state),
    )
    time = jnp.where(done, 0, time)
    inputs = Inputs(observation, action, reward, jnp.bool_(False), done, time)
    return inputs, TrialState(env_state, time, state.num_episodes + done), outcome


def _encode(environment: Environment, inputs: Inputs) -> jax.Array:
    space, action = environment.action_space, inputs.action
    if isinstance(space, Discrete):
        action = jax.nn.one_hot(action, space.num_actions)  # −1: all zero
    else:
        action = jnp.where(inputs.no_action, 0, in_box_units(space, action))
    time = [inputs.time / environment.max_steps] if environment.observe_time else []
    return flatten((inputs.observation, action, inputs.no_action, inputs.reward, inputs.done, *time))


def _check_action(action: jax.Array, space: Discrete | Continuous) -> jax.Array:
    none = _no_action(space)
    if jnp.shape(action) != none.shape:
        raise ValueError(f"action must have the shape {none.shape} of the action space, got {jnp.shape(action)}")
    if isinstance(space, Discrete) and not jnp.issubdtype(jnp.result_type(action), jnp.integer):
        raise ValueError(f"action must be an integer, as the action space is {space}, got {jnp.result_type(action)}")
    return jnp.asarray(action, none.dtype)


def _paid(reward: jax.Array, action: jax.Array, space: Discrete | Continuous) -> jax.Array:
    """The reward; NaN for an action that there is not, for which jax takes the last one that there is."""
    reward = jnp.asarray(reward, float)
    if isinstance(space, Continuous):
        return reward
    return jnp.where((action >= 0) & (action < space.num_actions), reward, jnp.nan)


def _no_action(space: Discrete | Continuous) -> jax.Array:
    return jnp.int32(-1) if isinstance(space, Discrete) else jnp.zeros(np.shape(space.low))

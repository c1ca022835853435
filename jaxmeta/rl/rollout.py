"""Rollouts: a policy in a trial, from its first step to its last, by one `lax.scan`."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_callable, check_fields
from jaxmeta.rl.trials import Inputs, Trial
from jaxmeta.types import PyTree

# (key, params, carry, inputs) -> (action, carry, extras)
Policy: TypeAlias = Callable[[jax.Array, PyTree, PyTree, Inputs], tuple[jax.Array, PyTree, PyTree]]


class Agent(NamedTuple):
    """A policy with its parameters and its carry before a trial: `rollout(key, trial, *agent, task)` runs it."""

    policy: Policy
    params: PyTree = ()
    carry: PyTree = ()


class Transition(NamedTuple):
    """One step, or with leading axes `[T]` or `[T, E]` many.

    inputs:           what the policy saw; its observation among it
    action:           what it did
    reward:           0 where `mask` is false
    terminated:       the task's own end
    truncated:        the time limit; both can be true
    next_observation: what followed, before any reset: bootstrap with its value · (1 − terminated)
    mask:             false once the trial's episodes are over
    extras:           what the policy wants to keep: log-probability, value, ...
    """

    inputs: Inputs
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    next_observation: PyTree
    mask: jax.Array
    extras: PyTree


def rollout(
    key: jax.Array, trial: Trial, policy: Policy, params: PyTree, carry: PyTree, task: PyTree
) -> tuple[PyTree, Transition]:
    """Runs a policy through one trial of one task: T steps of `lax.scan`.

    The policy's carry (a hidden state, `()` if it has none) goes through the whole trial, across its episodes. A trial
    begins with the carry that is given: that is where hidden states are reset.

    Args:
      key: random key of the policy, the environment and its resets.
      trial: see `jaxmeta.rl.trial`.
      policy: (key, params, carry, inputs) -> (action, carry, extras), for one environment.
      params: the policy's parameters.
      carry: the policy's carry before the first step.
      task: the params of the environment.

    Returns:
      The last carry, and the `Transition`s with leading axis T. With E environments, `vmap(..., out_axes=(0, 1))` puts
      their axis second, `[T, E]`.

    Raises:
      ValueError: `trial` is no trial, `policy` no function.

    >>> import jax.numpy as jnp
    >>> from jaxmeta.rl import families, trial
    >>> bandit = families.bernoulli_bandit(num_arms=3, num_pulls=10)
    >>> def policy(key, params, carry, inputs):
    ...     action = jax.random.categorical(key, params)
    ...     return action, carry, {"log_prob": jax.nn.log_softmax(params)[action]}
    >>> def run(key):
    ...     task_key, key = jax.random.split(key)
    ...     task = bandit.train.sample(task_key, bandit.train.data)
    ...     return rollout(key, trial(bandit.environment), policy, jnp.zeros(3), (), task)
    >>> _, transitions = jax.vmap(run, out_axes=(0, 1))(jax.random.split(jax.random.key(0), 5))
    >>> transitions.reward.shape, transitions.extras["log_prob"].shape
    ((10, 5), (10, 5))
    """
    check_fields("trial", trial, ("reset", "step", "encode"), "jaxmeta.rl.trial(environment, num_episodes=...)")
    check_callable("policy", policy, "(key, params, carry, inputs) -> (action, carry, extras)")

    def step(loop: tuple, key: jax.Array) -> tuple[tuple, Transition]:
        carry, inputs, state = loop
        policy_key, env_key = jax.random.split(key)
        action, carry, extras = policy(policy_key, params, carry, inputs)
        next_inputs, state, outcome = trial.step(env_key, state, action, task)
        return (carry, next_inputs, state), Transition(inputs, action, *outcome, extras)

    task = jax.tree.map(jnp.asarray, task)  # a numpy array cannot be indexed by an action that is traced
    reset_key, scan_key = jax.random.split(key)
    start = (carry, *trial.reset(reset_key, task))
    (carry, _, _), transitions = jax.lax.scan(step, start, jax.random.split(scan_key, trial.num_steps))
    return carry, transitions


def episode_of(transitions: Transition) -> jax.Array:
    """The number of the episode that each step belongs to, of transitions from a trial's beginning on, `[T, ...]`.

    A step where an episode begins is seen as `done`; steps after the trial's last episode have a number beyond it.
    """
    return jnp.cumsum(transitions.inputs.done, axis=0, dtype=jnp.int32) - 1


def episode_returns(transitions: Transition, num_episodes: int) -> jax.Array:
    """The undiscounted sum of rewards of each episode of one trial, `[num_episodes]`, of transitions `[T]`."""
    return jax.ops.segment_sum(transitions.reward, episode_of(transitions), num_episodes)

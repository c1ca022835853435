"""Rollouts: a policy in a trial, from its first step to its last, by one `lax.scan`."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_arguments, check_fields, check_flag
from jaxmeta.rl.trials import Inputs, Trial
from jaxmeta.types import PyTree


class Policy(Protocol):
    """How to act: a function of one environment, which `vmap` makes one of many.

    It is called with (key, params, carry, inputs):

    - key, the random key of this step;
    - params, the policy's parameters, any pytree;
    - carry, what it remembers: a hidden state, () if it has none; that of a trial's beginning at first;
    - inputs, what it sees (`Inputs`): the observation, its previous action and reward, whether an episode begins.

    It returns (action, carry, extras): an action of the action space, integer `()` or real `[A]`, the carry of the next
    step, and what is to be kept of this one, such as a log-probability.

    >>> import jax.numpy as jnp
    >>> from jaxmeta.rl import families, trial
    >>> bandit = families.bernoulli_bandit(num_arms=3, num_pulls=4)
    >>> def next_arm(key, params, arm, inputs):  # one arm after the other
    ...     return arm % 3, arm + 1, ()
    >>> task = bandit.train.sample(jax.random.key(0), bandit.train.data)
    >>> _, transitions = rollout(jax.random.key(1), trial(bandit.environment), next_arm, (), jnp.int32(0), task)
    >>> transitions.action.tolist()
    [0, 1, 2, 0]
    """

    def __call__(
        self, key: jax.Array, params: PyTree, carry: PyTree, inputs: Inputs, /
    ) -> tuple[jax.Array, PyTree, PyTree]: ...


class Agent(NamedTuple):
    """A policy with its parameters and its carry before a trial: `rollout(key, trial, *agent, task)` runs it.

    Attributes:
      policy: how to act, a `Policy`.
      params: the policy's parameters; `()` if it has none.
      carry: what it remembers before the first step; `()` if nothing.

    >>> from jaxmeta.rl import Discrete, oracles
    >>> policy, params, carry = oracles.random_policy(Discrete(3))
    """

    policy: Policy
    params: PyTree = ()
    carry: PyTree = ()


class Transition(NamedTuple):
    """One step; with leading axes `[T]` those of a trial, `[T, E]` those of E of them.

    Attributes:
      inputs: what the policy saw; its observation among it
      action: what it did, `()` or `[A]`; outside of the box, it is not what the environment got, see `trial`
      reward: `()`, 0 where `mask` is false
      terminated: `()`, the task's own end
      truncated: `()`, the time limit; both can be true
      next_observation: what followed, before any reset: bootstrap with its value · (1 − terminated)
      mask: `()`, false once the trial's episodes are over
      info: the environment's own dict, such as gymnax's, {} if it has none
      extras: what the policy wants to keep: log-probability, value, ...
      state: the environment's before the step, if the rollout keeps states, else ()

    >>> from jaxmeta.rl import families, oracles, trial
    >>> family = families.navigation()
    >>> task = family.train.sample(jax.random.key(0), family.train.data)
    >>> agent = oracles.random_policy(family.environment.action_space)
    >>> _, transitions = rollout(jax.random.key(1), trial(family.environment, num_steps=7), *agent, task)
    >>> transitions.reward.shape, transitions.action.shape, transitions.next_observation.shape
    ((7,), (7, 2), (7, 2))
    """

    inputs: Inputs
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    next_observation: PyTree
    mask: jax.Array
    info: dict
    extras: PyTree
    state: PyTree = ()


def rollout(
    key: jax.Array,
    trial: Trial,
    policy: Policy,
    params: PyTree,
    carry: PyTree,
    task: PyTree,
    *,
    keep_states: bool = False,
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
      keep_states: whether `Transition.state` is the environment's state before each step, to draw it, say.

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
    check_arguments("policy", policy, ("key", "params", "carry", "inputs"), "it returns (action, carry, extras)")
    check_flag("keep_states", keep_states)

    def step(loop: tuple, key: jax.Array) -> tuple[tuple, Transition]:
        carry, inputs, state = loop
        policy_key, env_key = jax.random.split(key)
        action, carry, extras = policy(policy_key, params, carry, inputs)
        next_inputs, next_state, outcome = trial.step(env_key, state, action, task)
        kept = state.env_state if keep_states else ()
        return (carry, next_inputs, next_state), Transition(inputs, action, *outcome, extras, kept)

    task = jax.tree.map(jnp.asarray, task)  # a numpy array cannot be indexed by an action that is traced
    reset_key, scan_key = jax.random.split(key)
    start = (carry, *trial.reset(reset_key, task))
    (carry, _, _), transitions = jax.lax.scan(step, start, jax.random.split(scan_key, trial.num_steps))
    return carry, transitions


def episode_of(transitions: Transition) -> jax.Array:
    """The number of the episode that each step belongs to, of transitions from a trial's beginning on, `[T, ...]`.

    A step where an episode begins is seen as `done`; steps after the trial's last episode have a number beyond it.

    Args:
      transitions: of a trial from its beginning on, `[T, ...]`.
    """
    return jnp.cumsum(transitions.inputs.done, axis=0, dtype=jnp.int32) - 1


def episode_returns(transitions: Transition, num_episodes: int) -> jax.Array:
    """The undiscounted sum of rewards of each episode of one trial, `[num_episodes]`, of transitions `[T]`.

    Args:
      transitions: of one trial from its beginning on, `[T]`.
      num_episodes: how many of its episodes.
    """
    return jax.ops.segment_sum(transitions.reward, episode_of(transitions), num_episodes)

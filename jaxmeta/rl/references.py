"""Agents that do not meta-learn as `MetaLearner`s: `evaluate` measures them on the same test tasks as one that does."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_callable, check_flag, check_integer
from jaxmeta.rl.env import Environment
from jaxmeta.rl.rollout import Agent, episode_returns, rollout
from jaxmeta.rl.trials import trial
from jaxmeta.types import MetaLearner, MetaParams, MetaState, Metrics, Params, PyTree


def reference_learner(
    agent: Agent | Callable[[PyTree], Agent],
    environment: Environment,
    *,
    num_episodes: int = 1,
    by_episode: bool = False,
) -> MetaLearner:
    """A fixed agent in place of a meta-learner: a random policy, one that is told the task, one known from theory.

    It has no meta-parameters, `MetaParams((), ())`, and no `update`. `evaluate` runs it through one trial of the task,
    in which an agent with a memory keeps it, and gives {"return": [1]}, the mean over the trial's episodes of the sum
    of an episode's rewards, undiscounted; `adapt` gives the agent's params.

    Args:
      agent: an `Agent`, or (task) -> Agent for one that is told the task, such as `oracles.optimal_navigation`.
      environment: what it acts in.
      num_episodes: episodes of the trial, at least 1.
      by_episode: {"return": [num_episodes], "total": [1]} instead, each episode's and their sum, as `rl2` gives.

    Returns:
      A `MetaLearner` for `evaluate`.

    Raises:
      ValueError: `agent` is neither, `environment` is no environment, `num_episodes` is not a positive integer; and
        when `update` is called.

    >>> import jaxmeta
    >>> from jaxmeta.rl import families, oracles
    >>> family = families.gridworld()
    >>> learner = reference_learner(oracles.optimal_gridworld, family.environment)
    >>> meta_params = learner.init(jax.random.key(0)).meta_params
    >>> report = jaxmeta.evaluate(jax.random.key(1), learner, family.test, meta_params, num_tasks=5)
    >>> report.samples["return"].shape
    (5, 1)
    """
    if not isinstance(agent, Agent):
        check_callable("agent", agent, "(task) -> Agent, or be an Agent")
    check_integer("num_episodes", num_episodes, minimum=1)
    check_flag("by_episode", by_episode)
    episodes = trial(environment, num_episodes=num_episodes)
    agent_of = lambda task: agent if isinstance(agent, Agent) else agent(task)

    def init(key: jax.Array) -> MetaState:
        return MetaState(jnp.int32(0), MetaParams(()), (), jnp.int32(0))

    def update(key: jax.Array, state: MetaState, tasks: PyTree) -> tuple[MetaState, Metrics]:
        raise ValueError("learner must be one that learns: a reference has no update, it is for evaluate only")

    def adapt(key: jax.Array, meta_params: MetaParams, task: PyTree) -> Params:
        return agent_of(task).params

    def evaluate(key: jax.Array, meta_params: MetaParams, task: PyTree) -> Metrics:
        _, transitions = rollout(key, episodes, *agent_of(task), task)
        total = transitions.reward.sum(keepdims=True)
        if by_episode:
            return {"return": episode_returns(transitions, num_episodes), "total": total}
        return {"return": total / num_episodes}

    return MetaLearner(init, update, adapt, evaluate)

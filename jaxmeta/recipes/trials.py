"""What recipes of learners that learn within a trial share: what they are beside, and pictures of longer trials."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import jax
import numpy as np

from jaxmeta import plotting
from jaxmeta.checks import check_integer, check_number
from jaxmeta.recipes.experiment import Experiment, Reference
from jaxmeta.recipes.rl import MetaRL, Oracle, references_of
from jaxmeta.rl import (
    Agent,
    Family,
    Transition,
    episode_returns,
    families,
    oracles,
    reference_learner,
    rollout,
    trial,
)
from jaxmeta.types import MetaLearner, MetaParams, PyTree
from jaxmeta.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_TASKS = 1000


@dataclass(frozen=True, kw_only=True)
class Trials(MetaRL):
    """The choices of learners that act and learn in trials of several episodes."""

    label: ClassVar[str]  # in pictures

    num_episodes: int = 1
    """Episodes of a trial."""
    max_grad_norm: float = 0.5
    """What the actor's and the critic's gradient are clipped to, each by itself."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """What becomes of the learning rates: they stay, or fall to 0 along a cosine."""
    num_eval_tasks: int = 1000
    """Test tasks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_episodes", self.num_episodes, minimum=1)
        check_number("max_grad_norm", self.max_grad_norm, minimum=1e-12)

    def oracles(self) -> dict[str, Oracle]:
        """Agents, or (task) -> agent for one that is told the task."""
        return {"random": oracles.random_policy(self.family().environment.action_space)}

    def longer_oracles(self) -> dict[str, Oracle]:
        """Those that can act in trials of twice the length."""
        return self.oracles()

    def agent(self, meta_params: MetaParams, learner: MetaLearner | None = None) -> Agent:
        """At the beginning of a trial; of another learner than the recipe's, if one is given."""
        learner = self.learner() if learner is None else learner
        assert learner.agent is not None
        return learner.agent(meta_params)

    def references(self, key: jax.Array) -> dict[str, Reference]:
        environment = self.family().environment
        learners = {
            name: reference_learner(agent, environment, num_episodes=self.num_episodes, by_episode=True)
            for name, agent in self.oracles().items()
        }
        return references_of(key, learners)

    def build(self) -> Experiment:
        return super().build()._replace(eval_batch_size=250, adaptation="earlier episodes of the trial")

    def pictures(self, key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
        """Returns by episode, in trials of twice the length that was trained for."""
        agents, num_episodes = {self.label: self.agent(meta_params)} | self.longer_oracles(), 2 * self.num_episodes
        returns = lambda task, transitions: episode_returns(transitions, num_episodes)
        found = play(key, self.family(), agents, num_episodes, returns)
        curves = {name: of_tasks.mean(axis=0) for name, of_tasks in found.items()}
        trained = f"trained for {counted(self.num_episodes, 'episode')}"
        title = f"{name}, {trained}, {counted(PICTURE_TASKS, 'test task')}"
        return {"longer.png": plotting.lines(curves, "episode", "return", title, highlight=self.label)}


def play(
    key: jax.Array,
    family: Family,
    agents: dict[str, Oracle],
    num_episodes: int,
    measure: Callable[[PyTree, Transition], jax.Array],
) -> dict[str, np.ndarray]:
    """What is measured of a trial `[tasks, ...]`, for all agents on the same test tasks."""
    episodes = trial(family.environment, num_episodes=num_episodes)
    keys = jax.random.split(key, PICTURE_TASKS)

    def of_tasks(agent: Oracle) -> np.ndarray:
        def one(key: jax.Array) -> jax.Array:
            task_key, play_key = jax.random.split(key)
            task = family.test.sample(task_key, family.test.data)
            told = agent if isinstance(agent, Agent) else agent(task)
            return measure(task, rollout(play_key, episodes, *told, task)[1])

        return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=250))(keys))

    return {name: of_tasks(agent) for name, agent in agents.items()}


@dataclass(frozen=True, kw_only=True)
class OnGridworld(Trials):
    """A grid of 5 by 5 cells with a hidden goal, in episodes of 15 steps."""

    num_episodes: int = 4
    """Episodes of a trial."""

    def family(self) -> Family:
        return families.gridworld()

    def oracles(self) -> dict[str, Oracle]:
        _, best = oracles.bayes_optimal_gridworld(self.num_episodes)
        return {"told the goal": oracles.optimal_gridworld, "Bayes-optimal": best, **super().oracles()}

    def longer_oracles(self) -> dict[str, Oracle]:
        """Without the Bayes-optimal one, which has planned no more episodes than there are."""
        return {"told the goal": oracles.optimal_gridworld} | super().oracles()

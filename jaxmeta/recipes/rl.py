"""What recipes of meta-reinforcement-learning share: what they build, how a policy steps on what it played."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import jax

from jaxmeta.checks import check_integer, check_stacked
from jaxmeta.recipes.experiment import Experiment, Outer, Reference
from jaxmeta.rl import Agent, Family, Transition
from jaxmeta.rl.on_policy import PPO, TRPO, VPG, Advantages, PolicyStep
from jaxmeta.training import fit
from jaxmeta.types import MetaLearner, MetaParams, PyTree, TaskDistribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Oracle: TypeAlias = Agent | Callable[[PyTree], Agent]


@dataclass(frozen=True, kw_only=True)
class MetaRL(Outer):
    """What a recipe of meta-reinforcement-learning is made of, whatever learns."""

    def family(self) -> Family:
        raise NotImplementedError

    def learner(self) -> MetaLearner:
        raise NotImplementedError

    def references(self, key: jax.Array) -> dict[str, Reference]:
        raise NotImplementedError

    def train_tasks(self) -> TaskDistribution:
        return self.family().train

    def pictures(self, key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
        return {}

    def build(self) -> Experiment:
        return Experiment(
            self.learner(),
            self.train_tasks(),
            self.family().test,
            "return",
            self.protocol(),
            self.pictures,
            references=self.references,
        )


@dataclass(frozen=True, kw_only=True)
class Compared(MetaRL):
    """A recipe that trains what it is compared with, too.

    Beside another base it comes last, for of two the first one's defaults hold.
    """

    num_reference_steps: int | None = None
    """Outer steps of what it is compared with that has to be trained; as many as its own if None, none if 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_reference_steps is not None:
            check_integer("num_reference_steps", self.num_reference_steps, minimum=0)

    def reference_steps(self) -> int:
        return self.num_outer_steps if self.num_reference_steps is None else self.num_reference_steps

    def trained(self, key: jax.Array, learner: MetaLearner) -> Reference:
        """On the same tasks, as many of them at a time."""
        steps, tasks = self.reference_steps(), self.train_tasks()
        state, _ = fit(key, learner, tasks, num_outer_steps=steps, num_tasks=self.num_tasks)
        return Reference(learner, state.meta_params)


@dataclass(frozen=True, kw_only=True)
class OnPolicy(MetaRL):
    """The choices of learners that learn from what they have just played."""

    advantages: Advantages = Advantages()
    """How actions are judged."""
    outer: Literal["ppo", "trpo", "vpg"] = "ppo"
    """How the policy steps: by a clipped loss, in a trust region, or once along the gradient."""
    ppo: PPO = PPO()
    """Of outer "ppo"."""
    trpo: TRPO = TRPO()
    """Of outer "trpo"."""

    def policy_step(self) -> PolicyStep:
        steps: dict[str, PolicyStep] = {"trpo": self.trpo, "ppo": self.ppo, "vpg": VPG()}
        return steps[self.outer]


def sampled(key: jax.Array, tasks: TaskDistribution, num_tasks: int) -> PyTree:
    """So many tasks, stacked."""
    return jax.vmap(tasks.sample, (0, None))(jax.random.split(key, num_tasks), tasks.data)


def played(key: jax.Array, learner: MetaLearner, meta_params: MetaParams, tasks: PyTree) -> Transition:
    """What was played in stacked tasks on the way to what `adapt` returns, `[num_tasks, K, ...]`."""
    play = jax.jit(jax.vmap(lambda key, task: learner.adapt(key, meta_params, task).transitions))
    return play(jax.random.split(key, check_stacked("tasks", tasks)), tasks)


def references_of(key: jax.Array, learners: dict[str, MetaLearner]) -> dict[str, Reference]:
    """Learners as they are at first."""
    return {name: Reference(learner, learner.init(key).meta_params) for name, learner in learners.items()}

"""Recipes of PEARL: off-policy, beliefs about the task, compared with the same actor-critic without one and told."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import plotting
from jaxmeta.algorithms import MetaTest, Replay, SoftActorCritic, Visits, mlp_actor_critic, mlp_encoder, pearl
from jaxmeta.algorithms.beliefs import Encoder, product_of_gaussians
from jaxmeta.algorithms.pearl import as_seen, experience_of
from jaxmeta.algorithms.sac import Experience
from jaxmeta.checks import check_integer
from jaxmeta.recipes.experiment import Experiment, Recipe, Reference, paths_of
from jaxmeta.recipes.rl import Compared, played, references_of, sampled
from jaxmeta.rl import (
    Environment,
    Family,
    Transition,
    families,
    indexed_tasks,
    oracles,
    reference_learner,
    running_moments,
)
from jaxmeta.rl.observe import chosen_normalization
from jaxmeta.types import MetaLearner, MetaParams, Metrics, PyTree, TaskDistribution
from jaxmeta.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Pearl(Compared):
    """The choices of PEARL, whatever the family. An outer step visits `num_tasks` of the training tasks."""

    num_train_tasks: int = 100
    """M, training tasks, each with a buffer of its own."""
    context: Literal["probabilistic", "deterministic", "none"] = "probabilistic"
    """What is told of the task: a sample of a belief, its mean alone, or nothing."""
    latent_size: int = 5
    """Numbers that describe a task."""
    kl_weight: float = 0.1
    """Of the divergence from the prior, summed over the tasks of a gradient step."""
    visits: Visits = Visits()
    """What is played of a training task."""
    replay: Replay = Replay(batch_size=32, num_context=64)
    """What is kept of it, and what a gradient step draws."""
    sac: SoftActorCritic = SoftActorCritic()
    """What is learned from that."""
    meta_test: MetaTest = MetaTest()
    """How a test task is met."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of the actor, the critics and the encoder."""
    normalize: bool = False
    """Whether observations and rewards are taken in units of their running deviation."""
    num_eval_tasks: int = 100
    """Test tasks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_train_tasks", self.num_train_tasks, minimum=1)

    def describe(self, params: PyTree) -> jax.Array:
        """A task in numbers, for the one that is told."""
        raise NotImplementedError

    def fixed_references(self) -> dict[str, MetaLearner]:
        """What it is compared with that needs no training."""
        environment = self.family().environment
        return {"random": reference_learner(oracles.random_policy(environment.action_space), environment)}

    def critic_reward_fn(self) -> Callable[[PyTree, Experience], jax.Array] | None:
        return None

    def sees_next_observation(self) -> bool:
        """Whether a transition says what the task is only with what followed it."""
        return False

    def metrics(self, transitions: Transition) -> Metrics:
        """What is told beside the return, of episodes `[H, E]`."""
        return {}

    def pictures(self, key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
        if self.context != "probabilistic":
            return {}
        _, played = self._played(key, meta_params, num_tasks=20)
        return {"belief.png": self._belief(meta_params, played, name)}

    def learner(self, family: Family | None = None, num_episodes: int | None = None) -> MetaLearner:
        """Without context if it is given another family."""
        has_context = family is None and self.context != "none"
        family = self.family() if family is None else family
        num_episodes = self.meta_test.num_episodes if num_episodes is None else num_episodes
        networks = mlp_actor_critic(family, latent_size=self.latent_size if has_context else 0, hidden=self.hidden)
        return pearl(
            family,
            networks,
            self.encoder() if has_context else None,
            num_train_tasks=self.num_train_tasks,
            kl_weight=self.kl_weight,
            visits=self.visits,
            replay=self.replay,
            sac=self.sac,
            meta_test=replace(self.meta_test, num_episodes=num_episodes),
            optimizer=self.outer_optimizer(),
            critic_reward_fn=self.critic_reward_fn(),
            metrics_fn=self.metrics,
            normalization=running_moments(family) if self.normalize else None,
        )

    def encoder(self) -> Encoder:
        return mlp_encoder(
            self.family(),
            latent_size=self.latent_size,
            hidden=self.hidden,
            with_next_observation=self.sees_next_observation(),
            context="deterministic" if self.context == "deterministic" else "probabilistic",
        )

    def num_optimizer_steps(self) -> int:
        return self.num_outer_steps * self.replay.num_gradient_steps

    def train_tasks(self) -> TaskDistribution:
        """The same M tasks in every run: of a family with infinitely many, M that were drawn once."""
        return indexed_tasks(sampled(jax.random.key(0), self.family().train, self.num_train_tasks))

    def references(self, key: jax.Array) -> dict[str, Reference]:
        family = self.family()
        found = references_of(key, self.fixed_references())
        environments = {"no context": family.environment, "told the task": told(family.environment, self.describe)}
        for name, environment in environments.items() if self.reference_steps() else ():
            found[name] = self.trained(key, self.learner(family._replace(environment=environment)))
        return found

    def build(self) -> Experiment:
        max_steps = self.family().environment.max_steps
        _, num_posterior_steps, _ = self.visits.num_steps(max_steps)
        experiment = super().build()
        return experiment._replace(
            eval_batch_size=50,
            adaptation="episode of context",
            train_metric="return" if num_posterior_steps >= max_steps else "reward",
        )

    def protocol(self) -> str:
        prior, posterior, extra = self.visits.num_steps(self.family().environment.max_steps)
        visit = f"{prior} + {posterior}" + (f" + {extra}" if extra else "") + " steps"
        visit += ", a belief for each episode," if self.visits.infers_each_episode else ""
        widths, drawn = ", ".join(map(str, self.hidden)), self.replay
        context = f"{self.context} context" + (" of a beginning of a visit" if drawn.is_context_partial else "")
        return (
            f"{counted(self.num_outer_steps, 'outer step')}: visits of {visit} to {self.num_tasks} of "
            f"{counted(self.num_train_tasks, 'training task')}, {counted(drawn.num_gradient_steps, 'gradient step')} "
            f"on {counted(drawn.num_batch_tasks, 'task')}, {counted(drawn.batch_size, 'transition')} each, "
            f"{self.rate()}; layers of {widths}; "
            f"{context}, {counted(self.latent_size, 'number')}, KL weight {self.kl_weight:g}; "
            f"discount {self.sac.discount:g}, reward scale {self.sac.reward_scale:g}"
        )

    def _played(self, key: jax.Array, meta_params: MetaParams, num_tasks: int) -> tuple[PyTree, Transition]:
        """Test tasks, and the episodes with 0 .. K episodes of context, `[num_tasks, K + 1, H]`."""
        task_key, play_key = jax.random.split(key)
        tasks = sampled(task_key, self.family().test, num_tasks)
        learner = self.learner(num_episodes=self.meta_test.num_episodes + 1)
        return tasks, played(play_key, learner, meta_params, tasks)

    def _belief(self, meta_params: MetaParams, played: Transition, name: str) -> "Figure":
        """How far means are from those after all transitions, and deviations, against their number."""
        encoder = self.encoder()
        normalization = chosen_normalization(running_moments(self.family()) if self.normalize else None)

        def beliefs(transitions: Transition) -> tuple[jax.Array, jax.Array]:
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transitions)
            rows = as_seen(normalization, meta_params.constants, experience_of(flat))
            factors = encoder.apply(meta_params.params["encoder"], rows)
            seen = lambda n: product_of_gaussians(*factors, flat.mask & (jnp.arange(len(flat.mask)) < n))
            found = jax.vmap(seen)(1 + jnp.arange(len(flat.mask)))
            distance = jnp.linalg.norm(found.mean - found.mean[-1:], axis=1)
            return distance, jnp.mean(jnp.exp(found.log_std), axis=1)

        distance, deviation = jax.tree.map(lambda x: np.asarray(x).mean(axis=0), jax.jit(jax.vmap(beliefs))(played))
        curves = {"mean: how far from the last": distance, "deviation": deviation}
        title = f"{name}, mean over {counted(len(played.mask), 'test task')}"
        return plotting.lines(curves, "transitions of a task", "distance and deviation of the belief", title)


def check_at_most(name: str, number: int, most: int) -> None:
    """So many of the tasks of a finite family."""
    if number > most:
        raise ValueError(f"{name} must be at most the {most} that there are, got {number}")


def told(environment: Environment, describe: Callable[[PyTree], jax.Array]) -> Environment:
    """The same, with the task beside what is observed.

    >>> environment = told(families.navigation().environment, lambda task: task.goal)
    >>> environment.reset(jax.random.key(0), families.Goal(jnp.ones(2)))[0][1].tolist()
    [1.0, 1.0]
    """

    def reset(key: jax.Array, params: PyTree):
        observation, state = environment.reset(key, params)
        return (observation, describe(params)), state

    def step(key: jax.Array, state: PyTree, action: jax.Array, params: PyTree):
        observation, *outcome = environment.step(key, state, action, params)
        return (observation, describe(params)), *outcome

    return environment._replace(reset=reset, step=step)


@dataclass(frozen=True, kw_only=True)
class Navigation(Pearl):
    """A point in the plane that is paid minus the distance to a goal it is not shown."""

    def family(self) -> Family:
        return families.navigation()

    def describe(self, params: PyTree) -> jax.Array:
        return params.goal

    def fixed_references(self) -> dict[str, MetaLearner]:
        optimal = reference_learner(oracles.optimal_navigation, self.family().environment)
        return {**super().fixed_references(), "optimal": optimal}

    def pictures(self, key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
        tasks, played = self._played(key, meta_params, num_tasks=4)
        points, mask = (leaf[:, :, :, None] for leaf in paths_of(played))  # one episode, where MAML plays E
        title = f"{name}, four test tasks"
        figure = plotting.trajectories(points, mask, tasks.goal, title, step="episode")
        return {**super().pictures(key, meta_params, name), "trajectories.png": figure}


@dataclass(frozen=True, kw_only=True)
class PointRobot(Navigation):
    """A point on its way to a goal on a half-circle, paid only near it; critics learn from the distance."""

    num_train_tasks: int = 80
    """M, training tasks: at most the 80 that there are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_most("num_train_tasks", self.num_train_tasks, 80)

    def family(self) -> Family:
        return families.point_robot()

    def train_tasks(self) -> TaskDistribution:
        goals = self.family().train.data
        order = np.random.default_rng(0).permutation(len(goals.goal))[: self.num_train_tasks]
        return indexed_tasks(jax.tree.map(lambda leaf: leaf[order], goals))

    def critic_reward_fn(self) -> Callable[[PyTree, Experience], jax.Array]:
        return lambda task, row: -jnp.linalg.norm(row.next_observation[:2] - task.goal)

    def metrics(self, transitions: Transition) -> Metrics:
        """The share of episodes that are paid more than 5: of 13 that there are, who stays at the goal."""
        return {"solved": jnp.mean((jnp.sum(transitions.reward, axis=0) > 5).astype(float))}


@dataclass(frozen=True, kw_only=True)
class Pendulum(Pearl):
    """A pendulum whose gravity is not shown."""

    def family(self) -> Family:
        return families.pendulum()

    def describe(self, params: PyTree) -> jax.Array:
        return (params.g[None] - 10) / 5

    def sees_next_observation(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class CartPole(Pearl):
    """CartPole whose masses, pole and force differ."""

    has_either_direction: bool = True
    """Whether the actions of half of the tasks are the other way round; without it one policy balances all."""

    def family(self) -> Family:
        return families.cartpole(has_either_direction=self.has_either_direction)

    def describe(self, params: PyTree) -> jax.Array:
        return jnp.stack([params.masscart, 4 * params.masspole, 2 * params.length, params.force_mag / 10])

    def sees_next_observation(self) -> bool:
        return True

    def fixed_references(self) -> dict[str, MetaLearner]:
        balanced = reference_learner(oracles.balance_cartpole, self.family().environment)
        return {**super().fixed_references(), "linear controller": balanced}


@dataclass(frozen=True, kw_only=True)
class Gridworld(Pearl):
    """A grid of 5 by 5 cells, one of which pays."""

    num_train_tasks: int = 21
    """M, training tasks: the first of the 21 that there are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_most("num_train_tasks", self.num_train_tasks, 21)

    def family(self) -> Family:
        return families.gridworld()

    def train_tasks(self) -> TaskDistribution:
        return indexed_tasks(jax.tree.map(lambda leaf: leaf[: self.num_train_tasks], self.family().train.data))

    def describe(self, params: PyTree) -> jax.Array:
        return jax.nn.one_hot(5 * params.goal[0] + params.goal[1], 25)

    def sees_next_observation(self) -> bool:
        return True

    def fixed_references(self) -> dict[str, MetaLearner]:
        optimal = reference_learner(oracles.optimal_gridworld, self.family().environment)
        return {**super().fixed_references(), "told the goal, optimal": optimal}


@dataclass(frozen=True, kw_only=True)
class CheetahVelocity(Pearl):
    """HalfCheetah, of brax, paid for a velocity it is not shown."""

    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers of the actor, the critics and the encoder."""

    def family(self) -> Family:
        return families.cheetah_velocity()

    def describe(self, params: PyTree) -> jax.Array:
        return params.velocity[None]


_PEARL = "Rakelly et al. 2019, https://arxiv.org/abs/1903.08254"

PEARL: dict[str, Recipe] = {
    "pearl-navigation": Recipe(
        # Where the goal is takes more than 5 numbers to believe in, and is soon told: short visits, to many tasks.
        lambda: Navigation(
            num_outer_steps=320,
            num_tasks=10,
            num_train_tasks=2000,
            visits=Visits(num_prior_steps=30, num_posterior_steps=30),
            replay=Replay(capacity=1000, num_gradient_steps=250, batch_size=32, num_context=60),
            sac=SoftActorCritic(discount=0.9, reward_scale=10.0),
            learning_rate=3e-3,
            schedule="cosine",
            latent_size=16,
            kl_weight=0.001,
            hidden=(128, 128),
        ),
        "PEARL on 2D navigation",
        _PEARL,
        "after 2 episodes 60% of the way from no context to the same SAC told the goal",
        20,
    ),
    "pearl-point-robot": Recipe(
        # A visit is played as a test task is met, and beliefs are of as little as there. Many visits, and few gradient
        # steps between them, lest the encoder learns by heart which task a context is of.
        lambda: PointRobot(
            num_outer_steps=1000,
            num_tasks=40,
            learning_rate=3e-3,
            schedule="cosine",
            visits=Visits(num_prior_steps=100, num_posterior_steps=200, infers_each_episode=True),
            replay=Replay(num_gradient_steps=50, batch_size=32, num_context=100, is_context_partial=True),
            sac=SoftActorCritic(discount=0.9, reward_scale=10.0),
            meta_test=MetaTest(num_episodes=20, num_exploration_episodes=5),
            latent_size=16,
            kl_weight=0.001,
            num_reference_steps=300,
        ),
        "PEARL on the point robot, paid only near the goal",
        _PEARL,
        "after 20 episodes a return of 9, and more than 5 in 80% of the test tasks (told the goal: 13.3)",
        15,
    ),
    "pearl-pendulum": Recipe(
        lambda: Pendulum(
            num_outer_steps=150,
            num_tasks=5,
            learning_rate=3e-3,
            schedule="cosine",
            num_train_tasks=40,
            replay=Replay(num_gradient_steps=200, batch_size=32, num_context=64),
            kl_weight=0.01,
        ),
        "PEARL on a pendulum of unknown gravity",
        _PEARL,
        "no figure in the paper; beside no context and being told",
        20,
    ),
    "pearl-cartpole": Recipe(
        lambda: CartPole(
            num_outer_steps=50,
            num_tasks=5,
            num_train_tasks=50,
            learning_rate=1e-3,
            schedule="cosine",
            replay=Replay(capacity=4000, num_gradient_steps=200, batch_size=32, num_context=64),
            kl_weight=0.01,
        ),
        "PEARL on CartPole with varied physics, in half of the tasks the other way round: discrete actions",
        f"{_PEARL}; Christodoulou 2019, https://arxiv.org/abs/1910.07207",
        "return after context above that without context",
        10,
    ),
    "pearl-gridworld": Recipe(
        # A cell that pays is met by who tries several: more episodes under the prior, of which the belief has to tell.
        lambda: Gridworld(
            num_outer_steps=150,
            num_tasks=7,
            learning_rate=3e-3,
            schedule="cosine",
            visits=Visits(num_prior_steps=60, num_posterior_steps=30),
            replay=Replay(capacity=4000, num_gradient_steps=150, batch_size=32, num_context=60),
            sac=SoftActorCritic(discount=0.9, reward_scale=5.0),
            meta_test=MetaTest(num_episodes=8),
            latent_size=16,
            kl_weight=0.001,
            hidden=(128, 128),
        ),
        "PEARL in a 5×5 grid with a hidden goal: discrete actions",
        f"{_PEARL}; Christodoulou 2019, https://arxiv.org/abs/1910.07207",
        "return after context above that without context (told the goal: 11.1)",
        20,
    ),
    "pearl-cheetah-vel": Recipe(
        lambda: CheetahVelocity(
            num_outer_steps=200,
            num_tasks=10,
            replay=Replay(num_gradient_steps=400, batch_size=64, num_context=64),
            sac=SoftActorCritic(reward_scale=5.0),
            learning_rate=1e-3,
            schedule="cosine",
        ),
        "PEARL on HalfCheetah at a hidden velocity; needs pip install 'jaxmeta[brax]'",
        _PEARL,
        "return after context above the prior's (the paper's figures are of MuJoCo's body)",
        60,
    ),
}

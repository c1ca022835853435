"""Recipes of meta-reinforcement-learning by gradients: MAML, E-MAML and ProMP on families of environments."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta import adapt, plotting
from jaxmeta.adapt import InnerOptimizer
from jaxmeta.algorithms import Surrogate, maml_rl
from jaxmeta.checks import check_integer, check_number
from jaxmeta.recipes.experiment import Experiment, Recipe, Reference, paths_of
from jaxmeta.recipes.rl import Compared, OnPolicy, Oracle, played, references_of, sampled
from jaxmeta.rl import Family, Transition, families, family, mlp_policy, oracles, reference_learner
from jaxmeta.rl.on_policy import PPO, Advantages
from jaxmeta.types import MetaLearner, MetaParams, Metrics, PyTree
from jaxmeta.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRATCH = (1, 10)  # the inner rates of training from scratch, in those of the recipe


@dataclass(frozen=True, kw_only=True)
class GradientRL(OnPolicy):
    """The choices of meta-reinforcement-learning by gradients, whatever the family."""

    num_episodes: int = 20
    """E, episodes of a task that each inner step, and the outer one, learns from."""
    surrogate: Surrogate = Surrogate()
    """What the episodes before adaptation are to the outer loss."""
    baseline: Literal["linear", "none"] = "linear"
    """What actions are judged against: a linear fit to the returns of each task and step, or nothing."""
    ppo: PPO = PPO(num_epochs=5, clip=0.3)
    """Of outer "ppo", which runs the inner loop again in each step."""
    inner_optimizer: Literal["sgd", "meta_sgd", "sgd_on_head"] = "sgd"
    """How to step inside: one rate, a learned rate per parameter (Meta-SGD), only the last layer (ANIL)."""
    inner_learning_rate: float = 0.1
    """The inner learning rate; where rates are learned, their start."""
    rate_decay: float = 1.0
    """By what sgd's rate is multiplied from one inner step to the next, in (0, 1]."""
    num_inner_steps: int = 1
    """K, inner steps while training."""
    num_eval_steps: int = 3
    """Inner steps at test."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the policy's hidden layers, with tanh."""
    init_std: float = 1.0
    """Deviation of real actions at first, in half widths of their range."""
    min_std: float = 1e-3
    """What it does not fall below."""
    num_eval_tasks: int = 100
    """Test tasks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_eval_steps", self.num_eval_steps, minimum=1)
        check_number("rate_decay", self.rate_decay, minimum=1e-6, maximum=1)

    def oracle(self) -> Oracle | None:
        """(task) -> an agent that is told the task."""
        return None

    def metrics(self, transitions: Transition) -> Metrics:
        """What is reported beside the return."""
        return {}

    def learner(self, num_eval_steps: int | None = None, scale: float = 1.0) -> MetaLearner:
        family = self.family()
        policy = mlp_policy(family, hidden=self.hidden, init_std=self.init_std, min_std=self.min_std)
        return maml_rl(
            policy.init,
            policy.apply,
            family.environment,
            inner_optimizer=self._inner_optimizer(scale),
            num_inner_steps=self.num_inner_steps,
            num_eval_steps=self.num_eval_steps if num_eval_steps is None else num_eval_steps,
            num_episodes=self.num_episodes,
            advantages=self.advantages,
            baseline=self.baseline,
            surrogate=self.surrogate,
            outer=self.policy_step(),
            optimizer=None if self.outer == "trpo" else self.outer_optimizer(),
            metrics_fn=self.metrics,
        )

    def _inner_optimizer(self, scale: float) -> InnerOptimizer:
        rate = self.inner_learning_rate * scale
        sgd = adapt.from_optax(optax.sgd(optax.exponential_decay(rate, 1, self.rate_decay)))
        return {
            "sgd": sgd,
            "meta_sgd": adapt.meta_sgd(rate),
            "sgd_on_head": adapt.adapt_only(sgd, "head"),
        }[self.inner_optimizer]

    def num_optimizer_steps(self) -> int:
        step = self.policy_step()
        return self.num_outer_steps * step.num_epochs * step.num_minibatches

    def references(self, key: jax.Array) -> dict[str, Reference]:
        """On the same test tasks: no learning at all, training from scratch with the same samples, being told."""
        environment = self.family().environment
        fixed = {"random": oracles.random_policy(environment.action_space), "told the task": self.oracle()}
        learners = {
            name: reference_learner(agent, environment, num_episodes=self.num_episodes)
            for name, agent in fixed.items()
            if agent is not None
        }
        scratch = {f"from scratch, rate x{scale}": self.learner(scale=scale) for scale in SCRATCH}
        return references_of(key, learners | scratch)

    def build(self) -> Experiment:
        return super().build()._replace(eval_batch_size=20)

    def protocol(self) -> str:
        num_updates = self.num_optimizer_steps() // self.num_outer_steps
        outer = {
            "trpo": f"trpo with KL {self.trpo.max_kl:g}",
            "ppo": f"{counted(num_updates, 'step')} of ppo, {self.rate()}",
            "vpg": f"the policy gradient, {self.rate()}",
        }[self.outer]
        exploration = self.surrogate.exploration_weight
        credit = f", credit for exploration {exploration:g}" if exploration else ""
        return (
            f"{counted(self.num_outer_steps, 'outer step')} of {counted(self.num_tasks, 'task')}, {outer}; "
            f"{counted(self.num_inner_steps, 'inner step')} of {self.inner_optimizer} {self.inner_learning_rate:g} on "
            f"{counted(self.num_episodes, 'episode')}, estimator {self.surrogate.estimator}{credit}; "
            f"{counted(self.num_eval_steps, 'step')} at test"
        )

    def _played(self, key: jax.Array, meta_params: MetaParams, num_tasks: int) -> tuple[PyTree, Transition]:
        """Test tasks, and what was played in them before and after each inner step, `[num_tasks, K + 1, T, E]`."""
        task_key, play_key = jax.random.split(key)
        tasks = self._test_tasks(task_key, num_tasks)
        learner = self.learner(num_eval_steps=self.num_eval_steps + 1)  # the last step's episodes, not its step
        return tasks, played(play_key, learner, meta_params, tasks)

    def _test_tasks(self, key: jax.Array, num_tasks: int) -> PyTree:
        return sampled(key, self.family().test, num_tasks)


@dataclass(frozen=True, kw_only=True)
class _Plane(GradientRL):
    """A family in which a policy sees where it is in the plane, and not where it should be."""

    def oracle(self) -> Oracle:
        return oracles.optimal_navigation

    def pictures(self, key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
        tasks, played = self._played(key, meta_params, num_tasks=4)
        return {"trajectories.png": plotting.trajectories(*paths_of(played), tasks.goal, f"{name}, four test tasks")}


@dataclass(frozen=True, kw_only=True)
class Navigation(_Plane):
    """A point in the plane that is paid minus the distance to a goal it is not shown."""

    def family(self) -> Family:
        return families.navigation()


@dataclass(frozen=True, kw_only=True)
class Corners(_Plane):
    """A point in a room, paid only in one of its four corners, and not told which."""

    def family(self) -> Family:
        return families.corners()

    def _test_tasks(self, key: jax.Array, num_tasks: int) -> PyTree:
        """All four, each once."""
        return self.family().test.data

    def metrics(self, transitions: Transition) -> Metrics:
        """Episodes that reach the task's own corner, and how many corners the E episodes visit between them."""
        corners = self.family().train.data.goal  # [4, 2]
        offset = transitions.next_observation[..., None, :] - corners[None, None]
        is_visited = jnp.any(jnp.all(jnp.abs(offset) <= 0.5, axis=-1), axis=(0, 1))
        return {"reached": _reached(transitions), "corners": jnp.sum(is_visited.astype(float))}


@dataclass(frozen=True, kw_only=True)
class Bandit(GradientRL):
    """Bernoulli arms; an episode is a number of pulls."""

    num_arms: int = 5
    """Arms."""
    num_pulls: int = 10
    """Pulls of an episode."""

    def family(self) -> Family:
        return families.bernoulli_bandit(num_arms=self.num_arms, num_pulls=self.num_pulls)

    def protocol(self) -> str:
        arms, pulls = counted(self.num_arms, "arm"), counted(self.num_pulls, "pull")
        return f"bandits of {arms}, {pulls} an episode; {super().protocol()}"

    def oracle(self) -> Oracle:
        return oracles.optimal_bandit

    def pictures(self, key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
        tasks, played = self._played(key, meta_params, num_tasks=100)
        arms, means = np.asarray(played.action), np.asarray(tasks.means)  # [tasks, K + 1, T, E], [tasks, A]
        paid = np.take_along_axis(means, arms.reshape(len(means), -1), axis=1).reshape(arms.shape)
        regret = np.mean(means.max(axis=1)[:, None, None, None] - paid, axis=(0, 3))
        curves = {plotting.after(k): np.cumsum(row) for k, row in enumerate(regret)}
        return {"regret.png": plotting.lines(curves, "pull of an episode", "regret", f"{name}, 100 test tasks")}


@dataclass(frozen=True, kw_only=True)
class Gridworld(GradientRL):
    """A grid of 5 by 5 cells, one of which pays."""

    def family(self) -> Family:
        return families.gridworld()

    def oracle(self) -> Oracle:
        return oracles.optimal_gridworld

    def metrics(self, transitions: Transition) -> Metrics:
        return {"reached": _reached(transitions)}

    def pictures(self, key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
        tasks, played = self._played(key, meta_params, num_tasks=4)
        seen, mask = paths_of(played)
        cells = np.argmax(seen[..., :25], axis=-1)  # a number for each
        apart = np.random.default_rng(0).uniform(-0.2, 0.2, (*cells.shape[-1:], 2))  # episodes beside each other
        points = np.stack([cells // 5, cells % 5], axis=-1) + apart
        return {"trajectories.png": plotting.trajectories(points, mask, tasks.goal, f"{name}, four test tasks")}


@dataclass(frozen=True, kw_only=True)
class CartPole(GradientRL):
    """CartPole whose masses, pole and force differ."""

    def family(self) -> Family:
        return families.cartpole()

    def oracle(self) -> Oracle:
        return oracles.balance_cartpole


@dataclass(frozen=True, kw_only=True)
class HiddenArm(GradientRL, Compared):
    """One pull an episode: a sure arm pays the same in all tasks; of the others one pays 1, in each task another.

    Who pulls the sure arm is paid at once and learns nothing. Who pulls the others finds the one that pays, which is
    worth it only for what comes after adaptation.
    """

    num_hidden: int = 3
    """Arms of which one pays 1, and the others nothing."""
    sure: float = 0.5
    """What the sure arm pays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_hidden", self.num_hidden, minimum=2)  # of one, all tasks are the same

    def family(self) -> Family:
        bandit = families.gaussian_bandit(num_arms=self.num_hidden + 1, num_pulls=1, noise=0.0)

        def sample_params(key: jax.Array) -> families.Bandit:
            hidden = jax.random.permutation(key, jnp.eye(self.num_hidden)[0])
            return families.Bandit(jnp.append(hidden, self.sure))

        return family(bandit.environment, sample_params)

    def protocol(self) -> str:
        return (
            f"a sure arm that pays {self.sure:g}, and {counted(self.num_hidden, 'other')} of which one pays 1; "
            f"{super().protocol()}"
        )

    def oracle(self) -> Oracle:
        return oracles.optimal_bandit

    def metrics(self, transitions: Transition) -> Metrics:
        return {"explored": jnp.mean((transitions.action < self.num_hidden).astype(float))}

    def references(self, key: jax.Array) -> dict[str, Reference]:
        found = super().references(key)
        if self.reference_steps():
            without = replace(self, surrogate=replace(self.surrogate, exploration_weight=0.0))
            found["without the term"] = self.trained(key, without.learner())
        return found


def _reached(transitions: Transition) -> jax.Array:
    """The share of episodes that are paid at least once."""
    return jnp.mean((jnp.max(transitions.reward, axis=0) > 0).astype(float))


_MAML = "Finn et al. 2017, https://arxiv.org/abs/1703.03400, section 5.3"
_PROMP = "Rothfuss et al. 2018, https://arxiv.org/abs/1810.06784"
_E_MAML = "Stadie et al. 2018, https://arxiv.org/abs/1803.01118"

_navigation = Navigation(num_outer_steps=100, num_tasks=20, outer="trpo", rate_decay=0.5, init_std=0.5)
_promp: dict[str, Any] = {"outer": "ppo", "surrogate": Surrogate(inner_kl_weight=5e-4), "num_tasks": 40}
# DiCE inside: with LVC one seed in two stops looking into two of the corners, for what it does not keep of the Hessian
# is what exploration is worth.
_corners = Corners(
    num_outer_steps=150,
    num_tasks=40,
    num_episodes=40,
    surrogate=Surrogate(estimator="dice", inner_kl_weight=5e-4),
    inner_learning_rate=8.0,
    init_std=2.0,
    min_std=2.0,
    hidden=(32, 32),
)
# Deterministic and without a baseline, so that all of it can be enumerated: benchmarks/exploration.py.
_hidden_arm = HiddenArm(
    num_outer_steps=300,
    num_tasks=40,
    learning_rate=0.03,
    num_episodes=4,
    outer="vpg",
    baseline="none",
    advantages=Advantages(normalize=False),
    surrogate=Surrogate(estimator="biased", exploration_weight=1.0),
    inner_learning_rate=10.0,
    num_eval_steps=1,
    num_eval_tasks=5000,
    hidden=(),
)
_bandit = Bandit(
    num_outer_steps=300,
    num_tasks=100,
    learning_rate=2e-2,
    advantages=Advantages(gae_lambda=0.0),
    surrogate=Surrogate(estimator="dice"),
    inner_optimizer="meta_sgd",
    inner_learning_rate=10.0,
    num_eval_steps=1,
    hidden=(),
)

MAML_RL: dict[str, Recipe] = {
    "maml-navigation": Recipe(
        lambda: _navigation,
        "MAML with TRPO on 2D navigation",
        _MAML,
        "return -13 / -5 after 1 / 3 steps (paper -11.7 / -3.2)",
        8,
    ),
    "promp-navigation": Recipe(
        lambda: replace(_navigation, **_promp, num_outer_steps=150),
        "ProMP on 2D navigation",
        _PROMP,
        "return -12.5 / -5 after 1 / 3 steps",
        5,
    ),
    "promp-corners": Recipe(
        lambda: _corners,
        "ProMP, with DiCE inside, on four corners, one of which pays",
        _PROMP,
        "own corner reached by 80% of episodes after adaptation",
        5,
    ),
    "e-maml-bandit": Recipe(
        lambda: _hidden_arm,
        "E-MAML where exploring has to be paid for: a sure arm, and three of which one pays more",
        _E_MAML,
        "after one step above the same without its term, and above training from scratch, by more than the interval",
        1,
    ),
    "maml-bandit": Recipe(
        lambda: _bandit,
        "MAML on Bernoulli bandits, 5 arms",
        _MAML,
        "above training from scratch with the rate that it starts from",
        2,
    ),
    "maml-gridworld": Recipe(
        lambda: Gridworld(num_outer_steps=60, num_tasks=40, inner_learning_rate=2.0, rate_decay=0.5),
        "MAML on a grid with a hidden goal",
        _MAML,
        "goal reached more often after 1 and 3 steps",
        4,
    ),
    "maml-cartpole": Recipe(
        lambda: CartPole(num_outer_steps=30, num_tasks=20),
        "MAML on CartPole with varied physics",
        _MAML,
        "above training from scratch with the same samples",
        5,
    ),
}

"""Recipes of RL²: a recurrent policy that learns within a trial, beside the best that can be done."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import optax

from jaxmeta import nn, plotting
from jaxmeta.algorithms import rl2
from jaxmeta.checks import check_integer, check_number
from jaxmeta.recipes import trials
from jaxmeta.recipes.experiment import Experiment, Recipe, Reference
from jaxmeta.recipes.rl import Compared, OnPolicy, Oracle
from jaxmeta.recipes.trials import OnGridworld, Trials
from jaxmeta.rl import Environment, Family, families, oracles, running_moments
from jaxmeta.rl.on_policy import PPO, TRPO, Advantages
from jaxmeta.types import MetaLearner, MetaParams, PyTree
from jaxmeta.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class RL2(Trials, OnPolicy):
    """The choices of RL², whatever the family."""

    label = "RL²"

    core: Literal["gru", "lstm", "min_gru", "causal_transformer", "feed_forward"] = "gru"
    """The recurrent network, of the actor and of the critic; "feed_forward" has no memory."""
    num_units: int = 64
    """The actor's width."""
    num_critic_units: int = 32
    """The critic's, which costs as much as the actor where it is as wide."""
    num_layer_units: int = 0
    """Width of the layers before and after the recurrent network, where there is much to keep apart; none if 0."""
    ppo: PPO = PPO(num_minibatches=8)
    """Of outer "ppo"."""
    trpo: TRPO = TRPO(num_critic_minibatches=8)
    """Of outer "trpo"; the learning rate is that of the critic alone."""
    advantages: Advantages = Advantages(gae_lambda=0.95)
    """How actions are judged, over the whole trial."""
    entropy_weight: float = 0.01
    """Of the policy's entropy, at first."""
    final_entropy_weight: float | None = None
    """What it falls to, in a straight line over the run; it stays if None."""
    truncation: int | None = None
    """Steps that gradients flow back at most; through the whole trial if None."""
    num_exploration_episodes: int = 0
    """Episodes at first whose rewards do not count (E-RL²)."""
    normalize: bool = False
    """Whether observations and rewards are taken in units of their running deviation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_units", self.num_units, minimum=1)
        check_integer("num_critic_units", self.num_critic_units, minimum=1)
        check_integer("num_layer_units", self.num_layer_units, minimum=0)
        for name in ("entropy_weight", "final_entropy_weight"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))

    def recurrent(self, num_units: int) -> nn.Recurrent:
        if self.core == "causal_transformer":
            # As long as the longest trial there is a picture of.
            num_steps = 2 * self.num_episodes * self.family().environment.max_steps
            core = nn.causal_transformer(num_steps, num_units=num_units)
        else:
            cores = {"gru": nn.gru, "lstm": nn.lstm, "min_gru": nn.min_gru, "feed_forward": nn.feed_forward}
            core = cores[self.core](num_units)
        return nn.with_layers(core, self.num_layer_units) if self.num_layer_units else core

    def actor(self) -> nn.Recurrent:
        return self.recurrent(self.num_units)

    def of_entropy(self) -> float | optax.Schedule:
        first, last = self.entropy_weight, self.final_entropy_weight
        return first if last is None else optax.linear_schedule(first, last, self.num_outer_steps)

    def epochs(self) -> tuple[int, int]:
        """How often the optimizer learns from each trial, and the steps that it takes for that."""
        step = self.policy_step()
        if isinstance(step, TRPO):
            return step.num_critic_epochs, step.num_critic_minibatches
        return step.num_epochs, step.num_minibatches

    def num_optimizer_steps(self) -> int:
        num_epochs, num_minibatches = self.epochs()
        return self.num_outer_steps * num_epochs * num_minibatches

    def learner(self, family: Family | None = None) -> MetaLearner:
        """On another family of the same observations and actions, if one is given."""
        family = self.family() if family is None else family
        return rl2(
            family,
            num_episodes=self.num_episodes,
            num_exploration_episodes=self.num_exploration_episodes,
            actor=self.actor(),
            critic=self.recurrent(self.num_critic_units),
            truncation=self.truncation,
            advantages=self.advantages,
            outer=self.policy_step(),
            optimizer=self.outer_optimizer(),
            max_grad_norm=self.max_grad_norm,
            entropy_weight=self.of_entropy(),
            normalization=running_moments(family) if self.normalize else None,
        )

    def protocol(self) -> str:
        num_epochs, num_minibatches = self.epochs()
        to_last = "" if self.final_entropy_weight is None else f" to {self.final_entropy_weight:g}"
        between = f" between layers of {self.num_layer_units}" if self.num_layer_units else ""
        return (
            f"{super().protocol()}; a trial of {counted(self.num_episodes, 'episode')} each, {self.outer}, "
            f"{self.core} of {counted(self.num_units, 'unit')} (critic {self.num_critic_units}){between}; "
            f"{counted(num_epochs, 'epoch')} of {counted(num_minibatches, 'minibatch', 'minibatches')}, "
            f"γ {self.advantages.discount:g}, λ {self.advantages.gae_lambda:g}, "
            f"entropy {self.entropy_weight:g}{to_last}{', normalised' if self.normalize else ''}"
        )


@dataclass(frozen=True, kw_only=True)
class BanditRL2(RL2):
    """Bernoulli arms whose means are uniform; a trial is a number of pulls."""

    num_arms: int = 5
    """Arms."""
    num_pulls: int = 10
    """Pulls of a trial."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_arms", self.num_arms, minimum=1)
        check_integer("num_pulls", self.num_pulls, minimum=1)

    def family(self) -> Family:
        return families.bernoulli_bandit(num_arms=self.num_arms, num_pulls=self.num_pulls)

    def protocol(self) -> str:
        arms, pulls = counted(self.num_arms, "arm"), counted(self.num_pulls, "pull")
        return f"bandits of {arms}, {pulls} a trial; {super().protocol()}"

    def oracles(self, num_pulls: int | None = None) -> dict[str, Oracle]:
        """For a horizon of `num_pulls`. The best there is where it can be computed."""
        num_arms, num_pulls = self.num_arms, num_pulls or self.num_pulls
        index = oracles.gittins if num_pulls <= 100 else oracles.gittins_approximation
        found: dict[str, Oracle] = {
            "Gittins": index(num_arms, num_pulls),
            "Thompson": oracles.thompson(num_arms),
            "UCB1, tuned": oracles.tuned_ucb1(num_arms),
            "random": oracles.random_policy(self.family().environment.action_space),
        }
        if num_pulls > 10:  # minutes of dynamic programming for what Gittins comes close to
            return found
        return {"Bayes-optimal": oracles.bayes_optimal_bandit(num_arms, num_pulls)[1], **found}

    def pictures(self, key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
        """Regret against the best arm, in trials as long as in training and twice as long."""
        pictures = {}
        regret = lambda task, transitions: jnp.max(task.means) - task.means[transitions.action]
        for file, num_pulls in {"regret.png": self.num_pulls, "longer.png": 2 * self.num_pulls}.items():
            family = families.bernoulli_bandit(num_arms=self.num_arms, num_pulls=num_pulls)
            agents = {"RL²": self.agent(meta_params, self.learner(family))} | self.oracles(num_pulls)
            found = trials.play(key, family, agents, 1, regret)
            trained = f"{counted(self.num_arms, 'arm')}, trained for {counted(self.num_pulls, 'pull')}"
            title = f"{name}, {trained}, {counted(trials.PICTURE_TASKS, 'test task')}"
            pictures[file] = plotting.regret(found, title=title, highlight="RL²")
        return pictures


@dataclass(frozen=True, kw_only=True)
class MDPRL2(RL2):
    """Random MDPs of 10 states and 5 actions, in episodes of 10 steps."""

    num_episodes: int = 10
    """Episodes of a trial."""

    def family(self) -> Family:
        return families.tabular_mdp()

    def oracles(self) -> dict[str, Oracle]:
        return {"told the MDP": oracles.optimal_mdp, "PSRL": oracles.psrl(), **super().oracles()}


@dataclass(frozen=True, kw_only=True)
class GridworldRL2(OnGridworld, RL2):
    """A grid of 5 by 5 cells with a hidden goal, in episodes of 15 steps."""


@dataclass(frozen=True, kw_only=True)
class NavigationRL2(RL2):
    """A point in the plane that is paid minus the distance to a goal it is not shown, in episodes of 100 steps."""

    num_episodes: int = 2
    """Episodes of a trial."""
    scale: float = 1.0
    """A factor on rewards and on positions o, which are seen as `scale` (o + 5); with 1 they are seen as they are."""

    def family(self) -> Family:
        family = families.navigation()
        if self.scale == 1:
            return family
        return family._replace(environment=in_other_units(family.environment, self.scale))

    def oracles(self) -> dict[str, Oracle]:
        told = {"told the goal": oracles.optimal_navigation} if self.scale == 1 else {}  # it goes by what is seen
        return told | super().oracles()


def in_other_units(environment: Environment, scale: float) -> Environment:
    """The same, whose reward is `scale` times as large and whose observation o is `scale` (o + 5).

    >>> environment = in_other_units(families.navigation().environment, 1000.0)
    >>> environment.reset(jax.random.key(0), families.Goal(jnp.ones(2)))[0].tolist()
    [5000.0, 5000.0]
    """
    shown = lambda observation: scale * (observation + 5)

    def reset(key: jax.Array, params: PyTree):
        observation, state = environment.reset(key, params)
        return shown(observation), state

    def step(key: jax.Array, state: PyTree, action: jax.Array, params: PyTree):
        observation, state, reward, *rest = environment.step(key, state, action, params)
        return shown(observation), state, scale * reward, *rest

    return environment._replace(reset=reset, step=step)


@dataclass(frozen=True, kw_only=True)
class MazeRL2(RL2):
    """gymnax's MetaMaze: find the cell that pays, be put elsewhere, come back, for 200 steps."""

    def family(self) -> Family:
        return families.meta_maze()


@dataclass(frozen=True, kw_only=True)
class XLandRL2(RL2, Compared):
    """A small room of XLand-MiniGrid with two things of twelve kinds, of which one pays who picks it up: the same in
    each episode of a trial, in which they lie elsewhere. Seven steps are enough for one of them, seldom for both."""

    num_episodes: int = 8
    """Episodes of a trial."""

    def family(self) -> Family:
        # An agent that sees no further than two cells meets what it looks for in few places.
        return families.xland(
            size=5,
            num_objects=2,
            goals=("hold",),
            num_shapes=6,
            num_colors=2,
            num_train=100,
            num_test=32,
            view_size=3,
            horizon=7,
        )

    def references(self, key: jax.Array) -> dict[str, Reference]:
        found = super().references(key)
        if steps := self.reference_steps():
            forgetful = replace(self, core="feed_forward", num_outer_steps=steps)
            found["no memory"] = self.trained(key, forgetful.learner())
        return found

    def build(self) -> Experiment:
        """Judged on rulesets with repeats, for what is paid is a matter of where things lie, too."""
        return super().build()._replace(test_tasks=self.family().test._replace(at=None, size=None))


_RL2 = "Duan et al. 2016, https://arxiv.org/abs/1611.02779"


def _bandit(num_arms: int = 5, num_pulls: int = 10) -> BanditRL2:
    """Few arms have one protocol, many another, and many with long trials a third; `train` prints which.

    A policy that plays at random repeats an arm that has just paid once in `num_arms` pulls, and has to learn to do so
    of each arm apart. Where that is rare, all that is paid in the rest of the trial is noise that hides it: with many
    arms an action is judged by what it pays at once and by the critic (λ = .3 as in the paper, of a critic as wide as
    the actor), and a layer sees the last pull and what it paid.

    In a long trial to try an arm pays late, so that what follows has to be heard, and is averaged over more updates, of
    fewer trials. Without more entropy, that falls slowly, a policy stays with an arm before it has seen others. What
    is paid in 100 pulls is judged on more tasks, for it differs between them by more than policies do.
    """
    few = BanditRL2(
        num_arms=num_arms,
        num_pulls=num_pulls,
        num_outer_steps=800,
        num_tasks=1024,
        ppo=PPO(num_epochs=2, num_minibatches=8),
        learning_rate=3e-3,
    )
    is_long = num_pulls > 10
    if num_arms < 10 or (num_arms == 10 and not is_long):
        return few
    many = replace(few, num_critic_units=64, num_layer_units=64, final_entropy_weight=0.0)
    if is_long:
        many = replace(many, num_outer_steps=3000, num_tasks=256, learning_rate=2e-3, entropy_weight=0.05)
        return replace(many, num_eval_tasks=10_000)
    return replace(many, num_outer_steps=1200, advantages=Advantages(gae_lambda=0.3))


_gridworld = GridworldRL2(
    num_outer_steps=600,
    num_tasks=256,
    ppo=PPO(num_epochs=2, num_minibatches=4),
    learning_rate=2e-3,
    entropy_weight=0.05,
)
_mdp = MDPRL2(
    num_outer_steps=3500,
    num_tasks=512,
    num_layer_units=64,
    ppo=PPO(num_epochs=2, num_minibatches=16),
    learning_rate=1e-3,
    advantages=Advantages(gae_lambda=0.5),
    entropy_weight=0.03,
    final_entropy_weight=0.0,
)

_xland = XLandRL2(
    num_outer_steps=1500,
    num_tasks=512,
    num_layer_units=64,
    ppo=PPO(num_epochs=2, num_minibatches=8),
    learning_rate=2e-3,
    advantages=Advantages(discount=0.95, gae_lambda=0.9),
    entropy_weight=0.05,
    final_entropy_weight=0.0,
)

RL2_RECIPES: dict[str, Recipe] = {
    "rl2-bandit": Recipe(
        _bandit,
        "RL² on Bernoulli bandits",
        _RL2,
        "return 6.55 of 5 arms, 10 pulls (best possible 6.66)",
        2,
        ("num_arms", "num_pulls"),
    ),
    "rl2-mdp": Recipe(
        lambda: _mdp,
        "RL² on random MDPs",
        _RL2,
        "total 140 in 10 episodes (PSRL 133, paper 156)",
        45,
    ),
    "rl2-gridworld": Recipe(
        lambda: _gridworld,
        "RL² on a grid with a hidden goal",
        "Zintgraf et al. 2020, https://arxiv.org/abs/1910.08348",
        "return 3.6 / 9.5 after 0 / 3 episodes (best possible 4.0 / 11.1)",
        4,
    ),
    "rl2-navigation": Recipe(
        lambda: NavigationRL2(num_outer_steps=500, num_tasks=256),
        "RL² on 2D navigation",
        _RL2,
        "no figure in the paper; beside maml-navigation",
        10,
    ),
    "rl2-xland": Recipe(
        lambda: _xland,
        "RL² on rulesets of XLand-MiniGrid: which of two things pays; needs pip install 'jaxmeta[xland]'",
        "Nikulin et al. 2024, https://arxiv.org/abs/2312.12044",
        "above a random policy and the same network without a memory",
        30,
    ),
    "rl2-maze": Recipe(
        lambda: MazeRL2(num_outer_steps=500, num_tasks=256),
        "RL² in a maze with a hidden reward",
        _RL2,
        "above a random walk; curves only in papers",
        15,
    ),
}

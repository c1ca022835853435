"""Recipes of VariBAD: a policy told what is believed of the task; in the gridworld, beside the exact belief."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta import nn, plotting
from jaxmeta.algorithms import ELBO, mlp_decoder, varibad
from jaxmeta.algorithms.decoders import Decoder, Step
from jaxmeta.checks import check_integer
from jaxmeta.recipes.experiment import Experiment, Recipe
from jaxmeta.recipes.rl import Oracle
from jaxmeta.recipes.trials import OnGridworld, Trials, play
from jaxmeta.rl import Family, Normalization, Transition, families, oracles, rollout, running_moments, trial
from jaxmeta.rl.families.discrete import GRID_SIZE
from jaxmeta.rl.on_policy import PPO, Advantages
from jaxmeta.types import MetaLearner, MetaParams, Metrics, Params, PyTree
from jaxmeta.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUM_SAMPLES = 32  # of a belief, for what it predicts
_STEPS = (0, 4, 7, 10, 14)  # of an episode, where beliefs are compared in the report


@dataclass(frozen=True, kw_only=True)
class VariBAD(Trials):
    """The choices of VariBAD, whatever the family."""

    label = "VariBAD"

    latent_size: int = 5
    """Numbers that a belief is about."""
    num_encoder_units: int = 64
    """Width of the encoder, a GRU."""
    num_units: int = 64
    """Width of the two layers of the actor, and of the critic."""
    decoder_hidden: tuple[int, ...] = (32, 32)
    """Widths of the decoder's layers."""
    elbo: ELBO = ELBO(num_minibatches=4)
    """How beliefs are learned."""
    model_learning_rate: float = 1e-3
    """Of encoder and decoder, where it starts."""
    ppo: PPO = PPO(num_minibatches=8)
    """How the policy steps."""
    advantages: Advantages = Advantages(gae_lambda=0.95)
    """How actions are judged, over the whole trial."""
    entropy_weight: float = 0.01
    """Of the policy's entropy."""
    normalize: bool = False
    """Whether observations and rewards are taken in units of their running deviation; one-hot states as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latent_size", "num_encoder_units", "num_units"):
            check_integer(name, getattr(self, name), minimum=1)

    def decoder(self) -> Decoder:
        raise NotImplementedError

    def normalization(self) -> Normalization | None:
        return running_moments(self.family()) if self.normalize else None

    def num_optimizer_steps(self) -> int:
        return self.num_outer_steps * self.ppo.num_epochs * self.ppo.num_minibatches

    def num_model_steps(self) -> int:
        """Of encoder and decoder, in the whole run."""
        return self.num_outer_steps * self.elbo.num_epochs * self.elbo.num_minibatches

    def model_optimizer(self) -> optax.GradientTransformation:
        return self.optimizer_of(self.model_learning_rate, self.num_model_steps())

    def learner(self) -> MetaLearner:
        return varibad(
            self.family(),
            self.decoder(),
            num_episodes=self.num_episodes,
            encoder=nn.gru(self.num_encoder_units),
            actor=nn.feed_forward(self.num_units),
            elbo=self.elbo,
            advantages=self.advantages,
            outer=self.ppo,
            optimizer=self.outer_optimizer(),
            model_optimizer=self.model_optimizer(),
            max_grad_norm=self.max_grad_norm,
            entropy_weight=self.entropy_weight,
            normalization=self.normalization(),
        )

    def protocol(self) -> str:
        steps = "all steps" if self.elbo.num_steps is None else counted(self.elbo.num_steps, "step")
        kept = f", {self.elbo.num_kept:,} trials kept" if self.elbo.num_kept else ""
        epochs = counted(self.ppo.num_epochs, "epoch")
        return (
            f"{super().protocol()}, the model's {self.model_learning_rate:g}; a trial of "
            f"{counted(self.num_episodes, 'episode')} each; beliefs over {counted(self.latent_size, 'number')} by a "
            f"gru of {counted(self.num_encoder_units, 'unit')}, from {steps}{kept}, KL times "
            f"{self.elbo.kl_weight:g}; "
            f"ppo, two layers of {counted(self.num_units, 'unit')}; "
            f"{epochs} of {counted(self.ppo.num_minibatches, 'minibatch', 'minibatches')}, "
            f"γ {self.advantages.discount:g}, λ {self.advantages.gae_lambda:g}, entropy {self.entropy_weight:g}"
            f"{', normalised' if self.normalize else ''}"
        )


@dataclass(frozen=True, kw_only=True)
class GridworldVariBAD(OnGridworld, VariBAD):
    """A grid of 5 by 5 cells with a hidden goal, in episodes of 15 steps."""

    def normalization(self) -> Normalization | None:
        return running_moments(self.family(), observations=False) if self.normalize else None

    def decoder(self) -> Decoder:
        return mlp_decoder(
            self.family(),
            latent_size=self.latent_size,
            hidden=self.decoder_hidden,
            reward="bernoulli",
            reward_of="next_state",
        )

    def learner(self) -> MetaLearner:
        """Whose report has, of some steps of an episode, how far the exact belief is from the learned one there, too:
        KL in nats, entry k after k episodes."""
        learner, episodes = super().learner(), trial(self.family().environment, num_episodes=self.num_episodes)

        def evaluate(key: jax.Array, meta_params: MetaParams, task: PyTree) -> Metrics:
            _, played = rollout(key, episodes, *self.agent(meta_params), task)  # as `learner.evaluate` plays it
            kl = divergence(*self.beliefs(key, meta_params, played)).reshape(self.num_episodes, -1)
            return learner.evaluate(key, meta_params, task) | {f"kl_at_step_{step}": kl[:, step] for step in _STEPS}

        return learner._replace(evaluate=evaluate)

    def build(self) -> Experiment:
        """Judged on goals with repeats, for which of them are found in time is a matter of what the policy draws."""
        return super().build()._replace(test_tasks=self.family().test._replace(at=None, size=None))

    def beliefs(self, key: jax.Array, meta_params: MetaParams, played: Transition) -> tuple[jax.Array, jax.Array]:
        """Of each cell, how likely it is the goal, before each step of a trial `[T]`: exactly, and as was learned,
        `[T, 25]`."""
        decoder, belief = self.decoder(), played.extras.belief
        m = jax.vmap(belief.sample)(jax.random.split(key, _NUM_SAMPLES))
        pays = jnp.mean(jax.vmap(lambda m: chance_of_cells(decoder, meta_params.params["decoder"], m))(m), axis=0)
        return oracles.gridworld_belief(played), pays / jnp.sum(pays, axis=1, keepdims=True)

    def pictures(self, key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
        """And the beliefs of one trial; and how far they are from the exact ones, over all steps."""
        key, one_key, kl_key = jax.random.split(key, 3)
        agents: dict[str, Oracle] = {"VariBAD": self.agent(meta_params)}
        of_trial = lambda task, played: divergence(*self.beliefs(kl_key, meta_params, played))
        kl = {
            name: of.mean(axis=0) for name, of in play(key, self.family(), agents, self.num_episodes, of_trial).items()
        }
        title = f"{name}: KL(exact ‖ learned)"
        return super().pictures(key, meta_params, name) | {
            "beliefs.png": self._one_trial(one_key, meta_params, name),
            "kl.png": plotting.lines(kl, "step of the trial", "nats", title),
        }

    def _one_trial(self, key: jax.Array, meta_params: MetaParams, name: str) -> "Figure":
        task_key, play_key = jax.random.split(key)
        family = self.family()
        task = family.test.sample(task_key, family.test.data)
        episodes = trial(family.environment, num_episodes=self.num_episodes)
        _, played = rollout(play_key, episodes, *self.agent(meta_params), task, keep_states=True)
        exact, learned = self.beliefs(play_key, meta_params, played)
        shown = _steps_to_show(np.asarray(exact))
        grids = lambda beliefs: np.asarray(beliefs)[shown].reshape(len(shown), GRID_SIZE, GRID_SIZE)
        return plotting.beliefs(
            {"exact": grids(exact), "learned": grids(learned)},
            cells=np.asarray(played.state)[shown],
            goal=np.asarray(task.goal),
            names=[f"step {step}" for step in shown],
            title=f"{name}: where the goal may be, before some steps of a trial",
        )


def chance_of_cells(decoder: Decoder, params: Params, m: jax.Array) -> jax.Array:
    """How likely a step into each of the 25 cells is paid, under each m `[K, L]`: `[K, 25]`."""
    cells, nothing = jnp.eye(GRID_SIZE**2), jnp.zeros(GRID_SIZE**2)
    return decoder.reward(params, m, Step(cells, jnp.zeros((GRID_SIZE**2, 5)), nothing, cells))


def divergence(exact: jax.Array, learned: jax.Array) -> jax.Array:
    """KL(exact ‖ learned) in nats, `[T]`, of beliefs `[T, 25]`.

    >>> round(float(divergence(jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.5]]))[0]), 4)
    0.6931
    """
    return jnp.sum(jax.scipy.special.rel_entr(exact, learned), axis=1)


def _steps_to_show(exact: np.ndarray) -> list[int]:
    """The first of a trial, some of the search, the one before the goal is known and the next, and the last."""
    num_steps = len(exact)
    known = np.flatnonzero(exact.max(axis=1) == 1)
    found = int(known[0]) if len(known) else num_steps - 1
    return sorted({0, found // 3, 2 * found // 3, max(found - 1, 0), found, num_steps - 1})


@dataclass(frozen=True, kw_only=True)
class NavigationVariBAD(VariBAD):
    """A point in the plane that is paid minus the distance to a goal it is not shown, in episodes of 100 steps."""

    num_episodes: int = 2
    """Episodes of a trial."""
    std: float = 0.1
    """σ of a reward, in its units, around what is decoded."""
    elbo: ELBO = ELBO(num_steps=10, num_kept=1024, num_minibatches=8)
    """How beliefs are learned."""

    def family(self) -> Family:
        return families.navigation()

    def decoder(self) -> Decoder:
        return mlp_decoder(self.family(), latent_size=self.latent_size, hidden=self.decoder_hidden, std=self.std)

    def oracles(self) -> dict[str, Oracle]:
        return {"told the goal": oracles.optimal_navigation} | super().oracles()


_VARIBAD = "Zintgraf et al. 2020, https://arxiv.org/abs/1910.08348"

_gridworld = GridworldVariBAD(
    num_outer_steps=600,
    num_tasks=256,
    latent_size=8,
    elbo=ELBO(kl_weight=0.01, num_kept=4096, num_minibatches=8),
    learning_rate=2e-3,
    model_learning_rate=3e-3,
    ppo=PPO(num_epochs=4, num_minibatches=8),
    advantages=Advantages(discount=0.95, gae_lambda=0.95),
    entropy_weight=0.04,
)

VARIBAD: dict[str, Recipe] = {
    "varibad-gridworld": Recipe(
        lambda: _gridworld,
        "VariBAD on a grid with a hidden goal",
        _VARIBAD,
        "return 3.6 / 10.5 after 0 / 3 episodes (best possible 4.0 / 11.1)",
        3,
    ),
    "varibad-navigation": Recipe(
        lambda: NavigationVariBAD(
            num_outer_steps=500, num_tasks=256, model_learning_rate=3e-3, ppo=PPO(num_epochs=2, num_minibatches=8)
        ),
        "VariBAD on 2D navigation",
        _VARIBAD,
        "no figure in the paper; beside rl2-navigation",
        10,
    ),
}

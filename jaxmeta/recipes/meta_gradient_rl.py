"""The recipe of meta-gradients of an agent: γ and λ of an actor-critic, learned online in one gymnax environment."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax

from jaxmeta import adapt
from jaxmeta.algorithms import A2C, meta_gradient_rl
from jaxmeta.checks import check_integer
from jaxmeta.recipes.experiment import Experiment, Recipe, Reference
from jaxmeta.recipes.rl import MetaRL
from jaxmeta.rl import Family, finite_family, from_gymnax, make_gymnax, mlp_policy_and_value, running_moments
from jaxmeta.types import MetaLearner, MetaParams
from jaxmeta.words import counted

GRID = ((0.5, 0.8, 0.9, 0.95, 0.99), (0.05, 0.5, 0.8, 0.95, 0.99))  # of γ, of λ
_TO_JUDGE = A2C(gae_lambda=1.0, value_weight=0.0, entropy_weight=0.0)


@dataclass(frozen=True, kw_only=True)
class OneAgent(MetaRL):
    """The choices of an agent that learns its own γ and λ."""

    environment: str = "Catch-bsuite"
    """gymnax's name of the environment."""
    max_steps: int = 9
    """H, steps after which an episode is cut off; Catch ends after 9."""
    discount: float = 0.9
    """γ at first, in (0, 1)."""
    gae_lambda: float = 0.8
    """λ at first, in (0, 1)."""
    value_weight: float = 0.5
    """Of the squared error of the value."""
    entropy_weight: float = 0.01
    """What a nat of the policy's entropy is worth."""
    outer_discount: float = 0.99
    """γ', by which the outcome of the inner steps is judged."""
    num_inner_steps: int = 5
    """K, steps of the agent for each outer one."""
    num_differentiated_steps: int = 1
    """Of the K steps the last ones, which are differentiated; what was before them is a constant, as in the paper."""
    num_episodes: int = 16
    """E, of each inner step."""
    num_outer_episodes: int = 16
    """Of each outer step."""
    inner_learning_rate: float = 0.01
    """Of the agent's Adam."""
    num_target_steps: int = 0
    """Of bootstrapped meta-gradients, which match the policy; none with 0."""
    hidden: tuple[int, ...] = (32,)
    """Widths of the layers of policy and value, with tanh."""
    normalize: bool = False
    """Whether observations and rewards are taken in units of their running deviation."""
    num_eval_tasks: int = 30
    """New agents that are trained at the end by what was learned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("num_inner_steps", "num_differentiated_steps"):
            check_integer(field, getattr(self, field), minimum=1)
        if self.num_differentiated_steps > self.num_inner_steps:
            raise ValueError(
                f"num_differentiated_steps must be at most num_inner_steps={self.num_inner_steps}, got "
                f"{self.num_differentiated_steps}"
            )

    def family(self) -> Family:
        environment = from_gymnax(self.environment, max_steps=self.max_steps)
        params = make_gymnax(self.environment)[1]
        copies = lambda number: jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf)[None], number, axis=0), params)
        return finite_family(environment, copies(1), copies(self.num_eval_tasks))  # one task, and agents that are new

    def num_agent_steps(self) -> int:
        """Of the whole run."""
        return self.num_outer_steps * self.num_inner_steps

    def learner(self) -> MetaLearner:
        family = self.family()
        return meta_gradient_rl(
            *mlp_policy_and_value(family, hidden=self.hidden),
            family.environment,
            learned=("discount", "gae_lambda"),
            inner=A2C(
                discount=self.discount,
                gae_lambda=self.gae_lambda,
                value_weight=self.value_weight,
                entropy_weight=self.entropy_weight,
            ),
            outer=replace(_TO_JUDGE, discount=self.outer_discount),
            inner_optimizer=adapt.from_optax(optax.adam(self.inner_learning_rate, eps_root=1e-8)),
            num_inner_steps=self.num_inner_steps,
            num_eval_steps=self.num_agent_steps(),
            num_agents=self.num_tasks,
            num_episodes=self.num_episodes,
            num_outer_episodes=self.num_outer_episodes,
            num_target_steps=self.num_target_steps,
            matching="policy" if self.num_target_steps else "parameters",
            meta_gradient=adapt.truncated(self.num_differentiated_steps),
            optimizer=self.outer_optimizer(),
            normalization=running_moments(family) if self.normalize else None,
        )

    def fixed(self, discount: float, gae_lambda: float) -> MetaParams:
        """What a learner has learned that says these numbers: `evaluate` trains agents by them."""
        log_odds = jax.scipy.special.logit
        return MetaParams({"discount": log_odds(jnp.array(discount)), "gae_lambda": log_odds(jnp.array(gae_lambda))})

    def references(self, key: jax.Array) -> dict[str, Reference]:
        """New agents with numbers that stay: those that it starts from, and corners of the grid."""
        learner, ((*_, high), (*_, top)), low = self.learner(), GRID, (GRID[0][0], GRID[1][0])
        pairs = {"as at first": (self.discount, self.gae_lambda), "both low": low, "both high": (high, top)}
        return {name: Reference(learner, self.fixed(*pair)) for name, pair in pairs.items()}

    def build(self) -> Experiment:
        return super().build()._replace(adaptation="step of a new agent")

    def protocol(self) -> str:
        bootstrap = f", bootstrapped {counted(self.num_target_steps, 'step')} ahead" if self.num_target_steps else ""
        return (
            f"{counted(self.num_tasks, 'agent')} in {self.environment}, {counted(self.num_agent_steps(), 'step')} of "
            f"adam {self.inner_learning_rate:g} on {counted(self.num_episodes, 'episode')}; after every "
            f"{self.num_inner_steps} an outer one{bootstrap}, through the last {self.num_differentiated_steps}, "
            f"{self.rate()}, on {counted(self.num_outer_episodes, 'episode')} judged by γ "
            f"{self.outer_discount:g}; γ and λ start at {self.discount:g} and {self.gae_lambda:g}"
            f"{', normalised' if self.normalize else ''}"
        )


META_GRADIENT_RL: dict[str, Recipe] = {
    "meta-gradient-rl": Recipe(
        lambda: OneAgent(num_outer_steps=100, num_tasks=1, learning_rate=0.1),
        "an actor-critic in Catch learns its own γ and λ",
        "Xu et al. 2018, https://arxiv.org/abs/1805.09801",
        "not below the median of 5 × 5 fixed pairs of γ and λ, 3 seeds",
        1,
    )
}

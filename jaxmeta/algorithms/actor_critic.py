"""The loss of an advantage actor-critic whose numbers, γ and λ among them, are arguments, and can be differentiated.

L(θ, η; τ) = mean_t −A_t log π_θ(a_t | s_t) + w_V (V_θ(s_t) − G_t)² − w_H H(π_θ(s_t)),    A and G of τ by γ and λ
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_arguments, check_instance, check_integer, check_number, check_share
from jaxmeta.rl.actors import Actor, PolicyFn, entropy_of, kl_between, log_prob_of
from jaxmeta.rl.env import Environment, check_environment
from jaxmeta.rl.observe import RAW, Normalization, chosen_normalization, looking
from jaxmeta.rl.on_policy import masked_mean
from jaxmeta.rl.returns import gae
from jaxmeta.rl.rollout import Transition, rollout
from jaxmeta.rl.trials import Inputs, Trial, trial
from jaxmeta.types import Params, PyTree

data = jax.lax.stop_gradient


@dataclass(frozen=True, kw_only=True)
class A2C:
    """The numbers of an advantage actor-critic's loss.

    Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning" (2016), https://arxiv.org/abs/1602.01783

    Raises:
      ValueError: a field is wrong.

    >>> A2C(discount=0.9).gae_lambda
    0.95
    """

    discount: float | jax.Array = 0.99
    """γ, for each step of the environment, in [0, 1]."""
    gae_lambda: float | jax.Array = 0.95
    """λ, in [0, 1]: 1 judges by all rewards to come, 0 by the next one and the value of where it leads."""
    value_weight: float | jax.Array = 0.5
    """w_V ≥ 0, of the squared error of the value."""
    entropy_weight: float | jax.Array = 0.01
    """w_H ≥ 0, what a nat of the policy's entropy is worth."""

    def __post_init__(self) -> None:
        for name in LEARNED:
            check = check_share if name in _SHARES else check_number
            check(name, getattr(self, name))


_SHARES = ("discount", "gae_lambda")  # in (0, 1), learned as log-odds; weights are learned as logarithms
LEARNED = (*_SHARES, "value_weight", "entropy_weight")


class AgentLosses(NamedTuple):
    """What `actor_critic_losses` returns, functions of a task, which is the environment's params, and of a key. With a
    `normalization` a task is (moments, the environment's params).

    Attributes:
      loss_fn: (params, meta_params, task, key) -> (L, {"return": scalar}), as `bilevel` takes with `stochastic=True`
      outer_loss_fn: likewise L'
      policy_distance: (target, params, task, key) -> the mean KL(π_target ‖ π_params), as `bootstrapped` takes
      meta_init_fn: (key) -> η, {name: log-odds or logarithm} of what is learned
      numbers: (η) -> the `A2C` of L
    """

    loss_fn: Callable
    outer_loss_fn: Callable
    policy_distance: Callable
    meta_init_fn: Callable[[jax.Array], dict[str, jax.Array]]
    numbers: Callable[[dict[str, jax.Array]], A2C]


def actor_critic_losses(
    apply_fn: PolicyFn,
    environment: Environment,
    *,
    learned: Collection[str] = LEARNED,
    inner: A2C = A2C(),
    outer: A2C = A2C(gae_lambda=1.0, value_weight=0.0, entropy_weight=0.0),
    num_episodes: int = 8,
    num_outer_episodes: int | None = None,
    normalization: Normalization | None = None,
) -> AgentLosses:
    """The two losses of an agent that learns what it learns by, for `bilevel` and any other outer loop.

    A loss plays its episodes itself, with the parameters and the key that it is given. Each begins with a reset, so
    that an agent learns from whole episodes: nothing goes on across windows but what was learned. At the time limit,
    `max_steps`, the rest is worth what the critic says; with γ near 1 an episode without an end is mostly that.

    What was sampled is data, and so are the values in advantages and targets: the derivative in γ and λ is of what they
    weigh. So the derivative is that of the step as it was taken, exact for K = 1. With K > 1 how an early step changes
    later episodes, and the values that later targets are made of, is left out, as in the paper.

    Args:
      apply_fn: as in `meta_gradient_rl`, and so are the others.
      environment: whose params are the tasks.
      learned: names of what is learned of L.
      inner: the numbers of L, where those that are learned start.
      outer: the numbers of L'.
      num_episodes: E, of each inner step.
      num_outer_episodes: of the outer one.
      normalization: how the agent sees observations, and in which units it learns from rewards; by the moments that are
        given with the task, which the caller keeps.

    Raises:
      ValueError: an argument is wrong.

    >>> from jaxmeta.rl import families, mlp_policy_and_value
    >>> family = families.bernoulli_bandit(num_arms=2)
    >>> network = mlp_policy_and_value(family, hidden=(4,))
    >>> losses = actor_critic_losses(network.apply, family.environment, learned=("discount",))
    >>> params, eta = network.init(jax.random.key(0)), losses.meta_init_fn(jax.random.key(1))
    >>> task = family.train.sample(jax.random.key(2), family.train.data)
    >>> loss, metrics = losses.loss_fn(params, eta, task, jax.random.key(3))
    >>> list(eta), round(float(losses.numbers(eta).discount), 4), list(metrics)
    (['discount'], 0.99, ['return'])
    """
    check_arguments("apply_fn", apply_fn, ("params", "observation"), "it returns (distribution, value)")
    check_environment("environment", environment)
    check_instance("inner", inner, A2C)
    check_instance("outer", outer, A2C)
    check_integer("num_episodes", num_episodes, minimum=1)
    num_outer_episodes = num_episodes if num_outer_episodes is None else num_outer_episodes
    check_integer("num_outer_episodes", num_outer_episodes, minimum=1)
    free, normalization = _free(learned, inner), chosen_normalization(normalization)
    actor, episode = Actor(apply_fn, True, environment.action_space), trial(environment, num_episodes=1)

    def numbers(meta_params: dict[str, jax.Array]) -> A2C:
        return replace(inner, **{name: _value_of(name, meta_params[name]) for name in free})

    def loss(num_episodes: int, key: jax.Array, params: Params, numbers: A2C, task: PyTree):
        played = play(actor, episode, num_episodes, key, params, task, normalization)
        terms = a2c_terms(actor, params, as_seen(normalization, played, task), numbers)
        return masked_mean(terms, played.mask), {"return": jnp.mean(jnp.sum(played.reward, axis=0))}

    def policy_distance(target: Params, params: Params, task: PyTree, key: jax.Array) -> jax.Array:
        played = play(actor, episode, num_outer_episodes, key, params, task, normalization)
        played = as_seen(normalization, played, task)
        policies = [actor.on(params, played.inputs.observation)[0] for params in (target, params)]
        return masked_mean(kl_between(*policies), played.mask)

    return AgentLosses(
        lambda params, meta_params, task, key: loss(num_episodes, key, params, numbers(meta_params), task),
        lambda params, meta_params, task, key: loss(num_outer_episodes, key, params, outer, task),
        policy_distance,
        lambda key: {name: jnp.asarray(value, float) for name, value in free.items()},
        numbers,
    )


def play(
    actor: Actor,
    episode: Trial,
    num_episodes: int,
    key: jax.Array,
    params: Params,
    task: PyTree,
    normalization: Normalization = RAW,
) -> Transition:
    """Episodes of the agent, `[T, E]`, as the environment gives them, all of it data."""

    def act(key: jax.Array, params: Params, carry: tuple, inputs: Inputs):
        action, carry, _ = actor.act(key, params, carry, inputs)
        return action, carry, ()

    moments, own = _told_apart(normalization, task)
    given = data((moments, params)), (), data(own)
    run = lambda key: rollout(key, episode, looking(normalization, act), *given)[1]
    return jax.vmap(run, out_axes=1)(jax.random.split(key, num_episodes))


def as_seen(normalization: Normalization, played: Transition, task: PyTree) -> Transition:
    """Episodes `[T, E]` as the agent sees and is paid."""
    moments, _ = _told_apart(normalization, task)
    observe = jax.vmap(jax.vmap(partial(normalization.observe, moments)))
    return played._replace(
        inputs=played.inputs._replace(observation=observe(played.inputs.observation)),
        reward=normalization.pay(moments, played.reward),
        next_observation=observe(played.next_observation),
    )


def _told_apart(normalization: Normalization, task: PyTree) -> tuple[PyTree, PyTree]:
    """Moments, and the environment's params."""
    return ((), task) if normalization is RAW else task


def a2c_terms(actor: Actor, params: Params, played: Transition, numbers: A2C) -> jax.Array:
    """L at each step, `[T, E]`: a function of the parameters, and of the numbers through all that they weigh."""
    distribution, value = actor.on(params, played.inputs.observation)
    _, next_value = actor.on(params, played.next_observation)
    advantage, target = gae(
        played.reward,
        data(value),
        data(next_value),
        played.terminated,
        played.truncated,
        discount=numbers.discount,
        lambda_=numbers.gae_lambda,
    )
    of_policy = -advantage * log_prob_of(distribution, played.action)
    return of_policy + numbers.value_weight * (value - target) ** 2 - numbers.entropy_weight * entropy_of(distribution)


def _free(learned: Collection[str], start: A2C) -> dict[str, float]:
    """Where the learned numbers start, as log-odds and logarithms."""
    names = () if isinstance(learned, str) or not isinstance(learned, Collection) else tuple(learned)
    if not names or not set(names) <= set(LEARNED):
        raise ValueError(f"learned must be names of {', '.join(LEARNED)}, at least one, got {learned!r}")
    free = {}
    for name in names:
        value, top = getattr(start, name), 1 if name in _SHARES else math.inf
        if not 0 < value < top:
            between = "between 0 and 1" if name in _SHARES else "positive"
            raise ValueError(f"{name} of inner must be {between}, neither end, where it is learned, got {value}")
        free[name] = math.log(value) - (math.log1p(-value) if name in _SHARES else 0)
    return free


def _value_of(name: str, free: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(free) if name in _SHARES else jnp.exp(free)

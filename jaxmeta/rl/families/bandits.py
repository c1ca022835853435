"""Bandits with any number of arms. An episode is a number of pulls; nothing is observed but what was paid."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_integer, check_number
from jaxmeta.rl.env import Discrete, Environment, Family, check_sizes
from jaxmeta.rl.tasks import family


class Bandit(NamedTuple):
    """A task: the mean reward of each arm, `[A]`.

    Attributes:
      means: `[A]`, of a Bernoulli bandit probabilities in [0, 1].
    """

    means: jax.Array


def bernoulli_bandit(*, num_arms: int = 5, num_pulls: int = 10) -> Family:
    """Arms that pay 1 with probability p ~ U(0, 1), else 0.

    Duan et al., "RL²: Fast Reinforcement Learning via Slow Reinforcement Learning" (2016), section 3.1,
    https://arxiv.org/abs/1611.02779

    Args:
      num_arms: A, actions 0 .. A − 1.
      num_pulls: the length of an episode in pulls, an environment step each. It is truncated, not terminated; the
        observation is the constant `[1.0]`.

    Returns:
      A `Family`; every task is new, so that train and test tasks follow the same distribution.

    Raises:
      ValueError: a count is not a positive integer.

    >>> bandit = bernoulli_bandit(num_arms=3)
    >>> bandit.train.sample(jax.random.key(0), bandit.train.data).means.shape
    (3,)
    """
    pull = lambda key, mean: jax.random.bernoulli(key, mean)
    return _bandit(jax.random.uniform, pull, num_arms, num_pulls)


def gaussian_bandit(*, num_arms: int = 5, num_pulls: int = 10, noise: float = 1.0) -> Family:
    """Arms that pay N(μ, noise²) with μ ~ N(0, 1). Returns and errors as `bernoulli_bandit`.

    Args:
      num_arms: A, actions 0 .. A − 1.
      num_pulls: the length of an episode in pulls.
      noise: ≥ 0, the standard deviation of an arm's rewards.

    >>> bandit = gaussian_bandit(num_arms=3, noise=0.5)
    >>> bandit.train.sample(jax.random.key(0), bandit.train.data).means.shape
    (3,)
    """
    check_number("noise", noise)
    pull = lambda key, mean: mean + noise * jax.random.normal(key, dtype=mean.dtype)
    return _bandit(jax.random.normal, pull, num_arms, num_pulls)


def _bandit(prior: Callable, pull: Callable, num_arms: int, num_pulls: int) -> Family:
    check_integer("num_arms", num_arms, minimum=1)
    check_integer("num_pulls", num_pulls, minimum=1)

    def reset(key: jax.Array, params: Bandit):
        return jnp.ones(1), ()

    def step(key: jax.Array, state: tuple, action: jax.Array, params: Bandit):
        check_sizes(params, means=(num_arms,))
        reward = jnp.asarray(pull(key, params.means[action]), float)
        return jnp.ones(1), state, reward, jnp.bool_(False)

    environment = Environment(reset, step, Discrete(num_arms), num_pulls)
    return family(environment, lambda key: Bandit(prior(key, (num_arms,))))

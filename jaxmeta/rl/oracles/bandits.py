"""Index policies for Bernoulli bandits: posterior sampling, upper confidence bounds, and the Gittins index.

All count what each arm paid, from the inputs of the trial: s successes and f failures, so that its posterior is
Beta(1 + s, 1 + f). They take an arm with the largest index, the first of them where several have it.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_integer, check_number, check_share
from jaxmeta.rl.rollout import Agent
from jaxmeta.rl.trials import Inputs
from jaxmeta.types import PyTree


class Counts(NamedTuple):
    """Of each arm, `[A]`, how often it paid and how often it did not."""

    successes: jax.Array
    failures: jax.Array


def thompson(num_arms: int) -> Agent:
    """Thompson sampling: the index is a sample of the posterior, Beta(1 + s, 1 + f).

    Thompson, "On the Likelihood that One Unknown Probability Exceeds Another" (1933), https://doi.org/10.2307/2332286

    Args:
      num_arms: A, the number of arms, at least 1.

    Raises:
      ValueError: `num_arms` is not a positive integer.

    >>> agent = thompson(5)
    """
    return _index_agent(num_arms, lambda key, params, counts: _posterior_sample(key, counts))


def optimistic_thompson(num_arms: int) -> Agent:
    """Thompson sampling whose index is never below the posterior's mean.

    May, Korda, Lee, Leslie, "Optimistic Bayesian Sampling in Contextual-Bandit Problems" (2012),
    https://jmlr.org/papers/v13/may12a.html

    Args:
      num_arms: A, the number of arms, at least 1.

    Raises:
      ValueError: `num_arms` is not a positive integer.

    >>> agent = optimistic_thompson(5)
    """
    return _index_agent(
        num_arms, lambda key, params, counts: jnp.maximum(_posterior_sample(key, counts), _posterior_mean(counts))
    )


def ucb1(num_arms: int) -> Agent:
    """UCB1 as in the textbook: each arm once, then the index s/n + √(2 ln t / n) of n pulls of this arm, t of all.

    Auer, Cesa-Bianchi, Fischer, "Finite-time Analysis of the Multiarmed Bandit Problem" (2002),
    https://doi.org/10.1023/A:1013689704352

    Args:
      num_arms: A, the number of arms, at least 1.

    Raises:
      ValueError: `num_arms` is not a positive integer.

    >>> agent = ucb1(5)
    """

    def index(key: jax.Array, params: PyTree, counts: Counts) -> jax.Array:
        n = counts.successes + counts.failures
        pulled = jnp.maximum(n, 1)
        bonus = jnp.sqrt(2 * jnp.log(jnp.maximum(n.sum(), 1)) / pulled)
        return jnp.where(n == 0, jnp.inf, counts.successes / pulled + bonus)

    return _index_agent(num_arms, index)


def tuned_ucb1(num_arms: int, *, scale: float = 0.2) -> Agent:
    """UCB1 as RL² has it: one success and one failure are counted beforehand, and the bonus is scaled.

    The index is (1 + s)/(2 + n) + scale · √(2 ln t / (2 + n)), t = 1 + the number of all pulls.

    Duan et al., "RL²: Fast Reinforcement Learning via Slow Reinforcement Learning" (2016), appendix,
    https://arxiv.org/abs/1611.02779

    Args:
      num_arms: A, the number of arms, at least 1.
      scale: ≥ 0, of the bonus, in units of reward; 0 is greedy.

    Raises:
      ValueError: `num_arms` is not a positive integer, `scale` is negative or not finite.

    >>> agent = tuned_ucb1(5)
    """
    check_number("scale", scale)

    def index(key: jax.Array, params: PyTree, counts: Counts) -> jax.Array:
        n = counts.successes + counts.failures
        return _posterior_mean(counts) + scale * jnp.sqrt(2 * jnp.log(1 + n.sum()) / (2 + n))

    return _index_agent(num_arms, index)


def epsilon_greedy(num_arms: int, *, epsilon: float = 0.0) -> Agent:
    """The arm with the best posterior mean, (1 + s)/(2 + n), and with probability ε any arm. ε = 0 is greedy.

    Args:
      num_arms: A, the number of arms, at least 1.
      epsilon: ε, the probability of any arm at a pull, in [0, 1].

    Raises:
      ValueError: `num_arms` is not a positive integer, `epsilon` is not within [0, 1].

    >>> greedy = epsilon_greedy(5)
    """
    check_share("epsilon", epsilon)

    def index(key: jax.Array, params: PyTree, counts: Counts) -> jax.Array:
        explore_key, arm_key = jax.random.split(key)
        explore = jax.random.bernoulli(explore_key, epsilon)
        return jnp.where(explore, jax.random.uniform(arm_key, (num_arms,)), _posterior_mean(counts))

    return _index_agent(num_arms, index)


def gittins(num_arms: int, num_pulls: int) -> Agent:
    """The Gittins index for a finite horizon, from `gittins_table`: close to optimal, and optimal beside a known arm.

    Kaufmann, "On Bayesian index policies for sequential resource allocation" (2018), https://arxiv.org/abs/1601.01190

    Args:
      num_arms: A, the number of arms, at least 1.
      num_pulls: n, pulls in a trial; the table has n³ entries. For more than 200, `gittins_approximation`.

    Raises:
      ValueError: a count is not a positive integer, or `num_pulls` is greater than 200.

    >>> agent = gittins(2, 10)
    """
    check_integer("num_arms", num_arms, minimum=1)
    table = gittins_table(num_pulls)

    def index(key: jax.Array, table: jax.Array, counts: Counts) -> jax.Array:
        s, f = (jnp.asarray(count, jnp.int32) for count in counts)
        return table[jnp.clip(num_pulls - jnp.sum(s + f), 1) - 1, s, f]

    return _index_agent(num_arms, index)._replace(params=table)


def gittins_approximation(num_arms: int, num_pulls: int) -> Agent:
    """The Gittins index in closed form, for many pulls: μ + √v ψ(1 / ((n + 3) ln 1/β)).

    μ and v are the posterior's mean and variance, v = μ (1 − μ) / (n + 3), and n the pulls of the arm. The form is
    Brezzi's and Lai's for a discounted infinite horizon; β = 1 − 1/(pulls left) gives it the length of what is left. It
    is Gaussian, and wrong for arms of which little is known: it has the totals of RL²'s table for 5 and 10 arms and up
    to 500 pulls, but with 50 arms and 500 pulls it explores too much, 442 where the paper has 464 and `tuned_ucb1` 457.

    Brezzi, Lai, "Optimal learning and experimentation in bandit problems" (2002),
    https://doi.org/10.1016/S0165-1889(01)00028-8

    Args:
      num_arms: A, the number of arms, at least 1.
      num_pulls: pulls in a trial, at least 1.

    Raises:
      ValueError: a count is not a positive integer.

    >>> agent = gittins_approximation(50, 500)
    """
    check_integer("num_pulls", num_pulls, minimum=1)

    def index(key: jax.Array, params: PyTree, counts: Counts) -> jax.Array:
        n = counts.successes + counts.failures
        left = jnp.maximum(num_pulls - n.sum(), 1)
        return _discounted_index(counts, -jnp.log1p(-1 / left))  # infinite for the last pull: the index is the mean

    return _index_agent(num_arms, index)


def _discounted_index(counts: Counts, log_inverse_discount: jax.Array) -> jax.Array:
    n = counts.successes + counts.failures
    mean = _posterior_mean(counts)
    s = 1 / ((n + 3) * log_inverse_discount)
    root = 1 / jnp.sqrt(jnp.maximum(s, 0.2))
    log_s = jnp.log(jnp.maximum(s, 15))
    psi = jnp.select(
        [s <= 0.2, s <= 1, s <= 5, s <= 15],
        [jnp.sqrt(s / 2), 0.49 - 0.11 * root, 0.63 - 0.26 * root, 0.77 - 0.58 * root],
        jnp.sqrt(2 * log_s - jnp.log(log_s) - math.log(16 * math.pi)),
    )
    return mean + jnp.sqrt(mean * (1 - mean) / (n + 3)) * psi


def gittins_table(num_pulls: int) -> jax.Array:
    """The finite-horizon Gittins index of every posterior, sup over stopping times τ ≤ r of E[paid until τ] / E[τ].

    It is the price λ of a pull at which pulling is worth nothing. With r pulls left, V_0 = 0 and V_r = max(0, D_r),

        D_r(s, f; λ) = p − λ + p V_{r−1}(s + 1, f) + (1 − p) V_{r−1}(s, f + 1),   p = (1 + s)/(2 + s + f)

    D falls with λ; its zero is interpolated between 512 prices.

    Args:
      num_pulls: n, pulls in a trial, 1 to 200.

    Returns:
      `[r − 1, s, f]`, of shape `[num_pulls] * 3`; right where r + s + f ≤ num_pulls, the only places that are reached.

    Raises:
      ValueError: `num_pulls` is not an integer from 1 to 200.

    >>> table = gittins_table(2)
    >>> round(float(table[0, 0, 0]), 4), round(float(table[1, 0, 0]), 4)  # 1/2, and (1/2 + 1/2 · 2/3) / (3/2)
    (0.5, 0.5556)
    """
    check_integer("num_pulls", num_pulls, minimum=1)
    if num_pulls > 200:
        raise ValueError(f"num_pulls must be at most 200, got {num_pulls}: use gittins_approximation")
    return _gittins_table(num_pulls)


@functools.partial(jax.jit, static_argnames=("num_pulls", "num_prices"))
def _gittins_table(num_pulls: int, num_prices: int = 512) -> jax.Array:
    s, f = jnp.meshgrid(jnp.arange(num_pulls), jnp.arange(num_pulls), indexing="ij")
    p = (1 + s) / (2 + s + f)

    def worth(price: jax.Array) -> jax.Array:
        """D of all r, s and f."""

        def one_more(later: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            success, failure = jnp.pad(later[1:], ((0, 1), (0, 0))), jnp.pad(later[:, 1:], ((0, 0), (0, 1)))
            d = p - price + p * success + (1 - p) * failure
            return jnp.maximum(d, 0), d

        return jax.lax.scan(one_more, jnp.zeros_like(p), None, num_pulls)[1]

    prices = jnp.linspace(0, 1, num_prices)

    def body(carry: tuple, price: jax.Array) -> tuple[tuple, None]:
        index, before = carry
        now = worth(price)
        crossing = price - prices[1] * now / jnp.where(now == before, 1, now - before)
        return (jnp.where((before > 0) & (now <= 0), crossing, index), now), None

    (index, _), _ = jax.lax.scan(body, (jnp.zeros((num_pulls,) * 3), worth(prices[0])), prices[1:])
    return index


def _index_agent(num_arms: int, index: Callable[[jax.Array, PyTree, Counts], jax.Array]) -> Agent:
    """Counts what the arms paid, and takes the arm whose `index(key, params, counts)` is largest."""
    check_integer("num_arms", num_arms, minimum=1)

    def policy(key: jax.Array, params: PyTree, counts: Counts, inputs: Inputs):
        pulled = jax.nn.one_hot(inputs.action, num_arms)  # all zero before the first action
        counts = Counts(
            counts.successes + pulled * inputs.reward,
            counts.failures + pulled * (1 - inputs.reward),
        )
        return jnp.argmax(index(key, params, counts)).astype(jnp.int32), counts, ()

    return Agent(policy, (), Counts(*jnp.zeros((2, num_arms))))


def _posterior_mean(counts: Counts) -> jax.Array:
    return (1 + counts.successes) / (2 + counts.successes + counts.failures)


def _posterior_sample(key: jax.Array, counts: Counts) -> jax.Array:
    return jax.random.beta(key, 1 + counts.successes, 1 + counts.failures)

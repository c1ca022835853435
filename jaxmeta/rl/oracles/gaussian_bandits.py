"""Gaussian bandits, arms that pay N(μ, σ²) with μ ~ N(0, 1): two arms exactly, more by an index and by a bound.

After n pulls that paid S an arm is N(m, v_n), with m = S / (n + σ²) and v_n = σ² / (n + σ²), and its next pull moves m
by s_n Z, Z ~ N(0, 1), s_n² = v_n − v_{n+1}. A belief is a count and a real number m for each arm, and everything here
is a dynamic program over counts whose values are functions on a grid of real numbers:

- they are convex, 0 far to the left and of a known slope far to the right
- between points of the grid they are taken for lines, of which the expectation over s_n Z is exact. Lines are never
  below a convex function, so that no value is ever below the true one; what it is above is of the order of the squared
  distance of the points
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_integer, check_number
from jaxmeta.rl.rollout import Agent
from jaxmeta.rl.trials import Inputs
from jaxmeta.types import PyTree

MAX_PULLS = 200  # half a minute
_REACH = 9.0  # of a grid, in deviations of the prior; of two arms' difference 6.4
_POINTS = 900  # of half a grid
_COARSE = 100  # of one that prices are chosen on
_SOFTNESS = (
    0.05,
    0.02,
    0.005,
    0.002,
)  # of the maxima while they are, which have no derivative where all arms are alike


class Pulled(NamedTuple):
    """Of each arm, `[A]`, how often it was pulled, and what it paid in sum."""

    num: jax.Array
    total: jax.Array


class Grid(NamedTuple):
    """Points around 0, `[M]`, and the transforms `[H, F]` of what the expectation over s_n Z weighs them by."""

    x: np.ndarray
    weights: np.ndarray


def bayes_optimal_gaussian_bandit(num_pulls: int, *, noise: float = 1.0) -> tuple[float, Agent]:
    """The best that any policy can do on `gaussian_bandit` with two arms, and the policy that does it.

    What is to come depends on the difference δ = m_1 − m_2 and the counts alone; in units in which arm 2 is worth 0,

        W(n_1, n_2, δ) = max(δ + E W(n_1 + 1, n_2, δ + s_{n_1} Z),  E W(n_1, n_2 + 1, δ − s_{n_2} Z))

    and W = 0 after the last pull. Arm 1 is best where δ is above a number for each pair of counts: the policy. Computed
    in float64 on the host, on two grids, from which the value is extrapolated. Halving their distances changes it by 1
    in 10,000 at most, for 100 pulls of noise 0.1, and by 1 in 100,000 for 10 pulls of noise 1.

    Args:
      num_pulls: H, the pulls of a trial, 1 to 200; 100 take some seconds. The policy must not be run for more.
      noise: σ ≥ 0, the standard deviation of an arm's rewards.

    Returns:
      The expected total reward, and the agent.

    Raises:
      ValueError: `num_pulls` is not an integer from 1 to 200, or `noise` is negative.

    >>> value, agent = bayes_optimal_gaussian_bandit(2)
    >>> round(value, 6), round(1 / (4 * math.pi) ** 0.5, 6)  # the second pull, of the better: s_0 φ(0)
    (0.282095, 0.282095)
    """
    _check(num_pulls, noise)
    (coarse, _), (value, thresholds) = (_of_two_arms(num_pulls, noise, points) for points in (_POINTS // 2, _POINTS))

    def index(key: jax.Array, thresholds: jax.Array, means: jax.Array, num: jax.Array, left: jax.Array) -> jax.Array:
        n = jnp.clip(num, 0, num_pulls - 1)
        return jnp.stack([means[0] - means[1] - thresholds[n[0], n[1]], jnp.zeros_like(means[0])])

    agent = _by_index(2, num_pulls, noise, index)
    return (4 * value - coarse) / 3, agent._replace(params=jnp.asarray(thresholds, float))


def gaussian_gittins(num_arms: int, num_pulls: int, *, noise: float = 1.0) -> Agent:
    """The Gittins index for a finite horizon: close to optimal, and optimal beside a known arm.

    The index of an arm is m + g(r, n) with r pulls left: the price λ of a pull at which pulling is worth nothing,

        D_r(n, δ) = δ + E max(0, D_{r−1}(n + 1, δ + s_n Z)),  D_0 = 0;   D_r(n, −g(r, n)) = 0,   δ = m − λ

    Lattimore, "Regret Analysis of the Finite-Horizon Gittins Index Strategy for Multi-Armed Bandits" (2016),
    https://arxiv.org/abs/1511.06014

    Args:
      num_arms: A, the number of arms, at least 1.
      num_pulls: H, pulls in a trial, 1 to 200.
      noise: σ ≥ 0, the standard deviation of an arm's rewards.

    Raises:
      ValueError: a count is not a positive integer, `num_pulls` is greater than 200, or `noise` is negative.

    >>> agent = gaussian_gittins(3, 5)
    """
    check_integer("num_arms", num_arms, minimum=1)
    _check(num_pulls, noise)

    def index(key: jax.Array, bonus: jax.Array, means: jax.Array, num: jax.Array, left: jax.Array) -> jax.Array:
        return means + bonus[left - 1, jnp.clip(num, 0, num_pulls - 1)]

    bonus = jnp.asarray(_bonuses(num_pulls, noise), float)
    return _by_index(num_arms, num_pulls, noise, index)._replace(params=bonus)


def gaussian_thompson(num_arms: int, *, noise: float = 1.0) -> Agent:
    """Thompson sampling: the index is a sample of the posterior, N(m, v_n).

    Thompson, "On the Likelihood that One Unknown Probability Exceeds Another" (1933), https://doi.org/10.2307/2332286

    Args:
      num_arms: A, the number of arms, at least 1.
      noise: σ ≥ 0, the standard deviation of an arm's rewards.

    Raises:
      ValueError: `num_arms` is not a positive integer, or `noise` is negative.

    >>> agent = gaussian_thompson(5)
    """
    check_integer("num_arms", num_arms, minimum=1)
    check_number("noise", noise)

    def index(key: jax.Array, params: PyTree, means: jax.Array, num: jax.Array, left: jax.Array) -> jax.Array:
        variance = jnp.where(num == 0, 1, noise**2 / jnp.where(num == 0, 1, num + noise**2))
        return means + jnp.sqrt(variance) * jax.random.normal(key, means.shape, means.dtype)

    return _by_index(num_arms, 1, noise, index)


def gaussian_bandit_bound(num_arms: int, num_pulls: int, *, noise: float = 1.0) -> float:
    """What no policy is above on `gaussian_bandit`: the lesser of two relaxations.

        H E[max_a μ_a]                                    told the means
        min_λ  Σ_t λ_t + A J_0(0, 0; λ),                  pulls cost λ_t, and any number of arms is pulled at t
        J_t(n, m) = max(J_{t+1}(n, m), m − λ_t + E J_{t+1}(n + 1, m + s_n Z)),   J_H = 0

    The second, Whittle's, holds for all prices λ; it is better where there are few pulls for each arm. The prices are
    chosen on a coarse grid and the bound is taken on a fine one, in float64, where it is never too low.

    Whittle, "Restless Bandits: Activity Allocation in a Changing World" (1988), https://doi.org/10.2307/3214163; with a
    price for each period: Brown, Smith, "Index Policies and Performance Bounds for Dynamic Selection Problems" (2020),
    https://doi.org/10.1287/mnsc.2019.3342

    Args:
      num_arms: A, the number of arms, at least 1.
      num_pulls: H, the pulls of a trial, 1 to 200; 30 take some seconds, 100 some minutes.
      noise: σ ≥ 0, the standard deviation of an arm's rewards.

    Returns:
      An upper bound of the expected total reward.

    Raises:
      ValueError: a count is not a positive integer, `num_pulls` is greater than 200, or `noise` is negative.

    >>> best, _ = bayes_optimal_gaussian_bandit(3)
    >>> best < gaussian_bandit_bound(2, 3) < 3 / math.pi**0.5  # told the means
    True
    """
    check_integer("num_arms", num_arms, minimum=1)
    _check(num_pulls, noise)
    x = np.linspace(-_REACH, _REACH, 4 * _POINTS + 1)
    density = num_arms * _normal_cdf(x) ** (num_arms - 1) * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    told = num_pulls * float(np.sum(x * density) * (x[1] - x[0]))
    grids = [_grid(num_pulls, noise, points) for points in (_COARSE, _POINTS)]
    prices = np.full(num_pulls, 0.5)
    for softness in _SOFTNESS:
        prices = _minimised(partial(_relaxed, num_arms, grids[0], softness), prices)
    return min(told, _relaxed(num_arms, grids[1], 0.0, prices)[0])


def _check(num_pulls: int, noise: float) -> None:
    check_integer("num_pulls", num_pulls, minimum=1)
    check_number("noise", noise)
    if num_pulls > MAX_PULLS:
        raise ValueError(f"num_pulls must be at most {MAX_PULLS}, got {num_pulls}")


def _by_index(num_arms: int, num_pulls: int, noise: float, index: Callable) -> Agent:
    """The arm whose `index(key, params, means [A], num [A], pulls left)` is largest, the first of them."""

    def policy(key: jax.Array, params: PyTree, pulled: Pulled, inputs: Inputs):
        this = jax.nn.one_hot(inputs.action, num_arms, dtype=pulled.total.dtype)  # all zero before the first action
        pulled = Pulled(pulled.num + this.astype(jnp.int32), pulled.total + this * inputs.reward)
        means = pulled.total / jnp.where(pulled.num == 0, 1, pulled.num + noise**2)
        left = jnp.maximum(num_pulls - jnp.sum(pulled.num), 1)
        return jnp.argmax(index(key, params, means, pulled.num, left)).astype(jnp.int32), pulled, ()

    return Agent(policy, (), Pulled(jnp.zeros(num_arms, jnp.int32), jnp.zeros(num_arms)))


# Functions on a grid.


def _grid(num_pulls: int, noise: float, num_points: int) -> Grid:
    """The points, −reach to reach with 0 among them."""
    n = np.arange(num_pulls + 1)
    variance = np.where(n == 0, 1, noise**2 / np.where(n == 0, 1, n + noise**2))
    s = np.sqrt(np.maximum(-np.diff(variance), 0))[:, None]
    x = np.linspace(-_REACH, _REACH, 2 * num_points + 1)
    step, length = x[1] - x[0], len(x)
    z = step * np.arange(-length - 1, length + 2)
    above = np.where(s > 1e-12, s * _positive_part(z / np.maximum(s, 1e-12)), np.maximum(z, 0))  # E max(0, z + s Z)
    hats = (above[:, 2:] - 2 * above[:, 1:-1] + above[:, :-2]) / step  # of a hat around each point, E hat(s Z)
    return Grid(x, np.fft.rfft(hats, _length_of_transform(length)))


def _expected(grid: Grid, values: np.ndarray, slope: float) -> np.ndarray:
    """E f_n(x + s_n Z) at the points, of functions `[K, M]` that are 0 on the left and go on with `slope` on the
    right."""
    length = len(grid.x)
    beyond = values[:, -1:] + slope * (grid.x[1] - grid.x[0]) * np.arange(1, length + 1)
    wide = np.concatenate([np.zeros_like(values), values, beyond], axis=1)
    size = _length_of_transform(length)
    found = np.fft.irfft(np.fft.rfft(wide, size) * grid.weights[: len(values)], size)
    return found[:, 2 * length : 3 * length]


def _length_of_transform(length: int) -> int:
    return 2 ** math.ceil(math.log2(5 * length + 1))


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda x: math.erfc(-x / math.sqrt(2)) / 2, otypes=[float])(x)


def _positive_part(z: np.ndarray) -> np.ndarray:
    """E max(0, z + Z) = z Φ(z) + φ(z)."""
    near = np.clip(z, -40, 40)
    found = near * _normal_cdf(near) + np.exp(-(near**2) / 2) / math.sqrt(2 * math.pi)
    return np.where(np.abs(z) < 40, found, np.maximum(z, 0))


# The dynamic programs.


def _of_two_arms(num_pulls: int, noise: float, num_points: int) -> tuple[float, np.ndarray]:
    """W(0, 0, 0), and the δ from which on arm 1 is best, `[H, H]`, of (n_1, n_2)."""
    grid, thresholds = _grid(num_pulls, noise, num_points), np.zeros((num_pulls, num_pulls))
    worth = np.zeros((num_pulls + 1, len(grid.x)))  # of n_1 = 0 .. n, with n_1 + n_2 = n
    for n in range(num_pulls - 1, -1, -1):
        first, left = np.arange(n + 1), num_pulls - n
        of_first = grid.x + _expected(grid, worth[1:], left - 1)
        of_second = _expected(grid, worth[-2::-1], left - 1)[::-1]  # by n_2, 0 .. n
        thresholds[first, n - first] = _root(grid.x, of_first - of_second)
        worth = np.maximum(of_first, of_second)
    return float(worth[0, num_points]), thresholds


def _bonuses(num_pulls: int, noise: float) -> np.ndarray:
    """g, `[H, H]`, of (r − 1, n); right where r + n ≤ H."""
    grid, bonuses = _grid(num_pulls, noise, _POINTS), np.zeros((num_pulls, num_pulls))
    worth = np.zeros((num_pulls + 1, len(grid.x)))
    for left in range(1, num_pulls + 1):
        going_on = grid.x + _expected(grid, worth[1:], left - 1)
        bonuses[left - 1, : len(going_on)] = -_root(grid.x, going_on)
        worth = np.maximum(going_on, 0)
    return bonuses


def _root(x: np.ndarray, rising: np.ndarray) -> np.ndarray:
    """Where rows `[K, M]` that rise from below 0 to above cross it."""
    after = np.argmax(rising > 0, axis=1)
    low, high = (np.take_along_axis(rising, i[:, None], axis=1)[:, 0] for i in (after - 1, after))
    return x[after] - (x[1] - x[0]) * high / (high - low)


def _relaxed(num_arms: int, grid: Grid, softness: float, prices: np.ndarray) -> tuple[float, np.ndarray]:
    """The bound for the prices `[H]`, and its gradient, 1 − the number of arms that are pulled at each t, in mean; with
    τ log(e^{a/τ} + e^{b/τ}), which is no less, in the place of max(a, b) where the softness τ > 0."""
    num_pulls, middle = len(prices), len(grid.x) // 2
    worth, pulls = np.zeros((num_pulls + 1, len(grid.x))), [np.zeros(0)] * num_pulls
    for t in range(num_pulls - 1, -1, -1):
        gain = grid.x - prices[t] + _expected(grid, worth[1:], num_pulls - t - 1) - worth[:-1]
        scaled = np.clip(gain / max(softness, 1e-9), -500, 500)
        pulls[t] = 1 / (1 + np.exp(-scaled))
        worth = worth[:-1] + np.maximum(gain, 0) + softness * np.log1p(np.exp(-np.abs(scaled)))
    chance, number = np.zeros((1, len(grid.x))), np.zeros(num_pulls)
    chance[0, middle] = 1
    for t in range(num_pulls):
        pulled = chance * pulls[t]
        number[t] = num_arms * pulled.sum()
        chance = np.pad(chance - pulled, ((0, 1), (0, 0)))
        chance[1:] += _expected(grid, pulled, 0)
    return float(prices.sum() + num_arms * worth[0, middle]), 1 - number


def _minimised(fn: Callable, x: np.ndarray, num_steps: int = 100) -> np.ndarray:
    """Where a convex function is least, by BFGS: (x) -> (value, gradient). Nocedal, Wright, "Numerical Optimization"
    (2006), algorithm 6.1, https://doi.org/10.1007/978-0-387-40065-5"""
    (value, gradient), inverse = fn(x), np.eye(len(x))
    for _ in range(num_steps):
        step = -inverse @ gradient
        for _ in range(20):
            (new, after), slope = fn(x + step), gradient @ step
            if new <= value + 1e-4 * slope:
                break
            step = step / 2
        else:
            break
        change, curvature = after - gradient, (after - gradient) @ step
        if curvature > 1e-12:
            project = np.eye(len(x)) - np.outer(step, change) / curvature
            inverse = project @ inverse @ project.T + np.outer(step, step) / curvature
        gained, x, value, gradient = value - new, x + step, new, after
        if gained < 1e-6 * abs(value):
            break
    return x

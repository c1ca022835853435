"""Regression tasks: sinusoids, lines, parabolas. What generated a task, its `info`, is the true function of x.

Lines and parabolas have a closed form for everything, the best that one inner step can do included.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_integer, check_number
from jaxmeta.types import Task, TaskDistribution


class Function(Protocol):
    """A pytree that is a function of x."""

    def __call__(self, x: jax.Array) -> jax.Array: ...


class Sinusoid(NamedTuple):
    """x -> A sin(x − φ).

    Attributes:
      amplitude: A, in units of y.
      phase: φ, in radians.
    """

    amplitude: jax.Array
    phase: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.amplitude * jnp.sin(x - self.phase)


class Polynomial(NamedTuple):
    """x -> Σ_i θ_i x^i.

    Attributes:
      coefficients: `[d + 1]`, θ_0, θ_1, ..., θ_d.
    """

    coefficients: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.polyval(self.coefficients[::-1], x)


def sinusoid(*, num_shots: int = 10, num_queries: int = 10) -> TaskDistribution:
    """y = A sin(x − φ), A ~ U(0.1, 5), φ ~ U(0, π), x ~ U(−5, 5), without noise.

    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017), section 5.1,
    https://arxiv.org/abs/1703.03400

    Args:
      num_shots: examples of the support set, at least 1; x, in radians, and y are each `[num_shots, 1]`.
      num_queries: examples of the query set, at least 1.

    Raises:
      ValueError: a count is not a positive integer.

    >>> tasks = sinusoid(num_shots=5)
    >>> task = tasks.sample(jax.random.key(0), tasks.data)
    >>> x, y = task.support
    >>> x.shape, bool(jnp.all(y == task.info(x)))
    ((5, 1), True)
    """

    def draw(key: jax.Array) -> Sinusoid:
        amplitude_key, phase_key = jax.random.split(key)
        return Sinusoid(
            jax.random.uniform(amplitude_key, minval=0.1, maxval=5.0),
            jax.random.uniform(phase_key, maxval=jnp.pi),
        )

    return _regression(draw, 5.0, num_shots, num_queries, noise=0.0)


def linear(*, num_shots: int = 10, num_queries: int = 10, noise: float = 0.3) -> TaskDistribution:
    """y = a x + b + ε, with a, b ~ N(0, 1), x ~ U(−1, 1), ε ~ N(0, noise²), in the support and the query set alike.

    Args:
      num_shots: examples of the support set, at least 1.
      num_queries: examples of the query set, at least 1.
      noise: ≥ 0, the standard deviation of ε, in units of y.

    Raises:
      ValueError: a count is not a positive integer, or `noise` is negative or not finite.

    >>> tasks = linear(noise=0.0)
    >>> task = tasks.sample(jax.random.key(0), tasks.data)
    >>> x, y = task.query
    >>> b, a = task.info.coefficients
    >>> bool(jnp.allclose(y, a * x + b))
    True
    """
    return _regression(_gaussian_polynomial(1), 1.0, num_shots, num_queries, noise)


def quadratic(*, num_shots: int = 10, num_queries: int = 10, noise: float = 0.0) -> TaskDistribution:
    """y = θ_0 + θ_1 x + θ_2 x² + ε, with θ_i ~ N(0, 1), x ~ U(−1, 1), ε ~ N(0, noise²).

    Linear in its coefficients: with the features (1, x, x²) the inner loss, its Hessian and the best initialisation
    have a closed form (`polynomial_optimum`).

    Args:
      num_shots: examples of the support set, at least 1.
      num_queries: examples of the query set, at least 1.
      noise: ≥ 0, the standard deviation of ε, in units of y.

    Raises:
      ValueError: a count is not a positive integer, or `noise` is negative or not finite.

    >>> tasks = quadratic()
    >>> tasks.sample(jax.random.key(0), tasks.data).info.coefficients.shape
    (3,)
    """
    return _regression(_gaussian_polynomial(2), 1.0, num_shots, num_queries, noise)


def polynomial_optimum(degree: int, num_shots: int, noise: float) -> tuple[float, float]:
    """The best that one step of gradient descent with a single rate can do on `linear` (degree 1), `quadratic` (2).

    For features φ = (1, x, .., x^d), coefficients t ~ N(0, I), inner loss (1/B) Σ (φᵀθ − y)² and Σ = E[φφᵀ], the best
    initialisation is 0 by symmetry. From there θ' = 2α (1/B) Σ φ y, and the expected squared error of a query is

        noise² + tr Σ − 4α tr Σ² + 4α² (tr Σ E[S²] + noise²/B tr Σ²),   E[S²] = (1/B) E[|φ|² φφᵀ] + (1 − 1/B) Σ²,

    a parabola in α. For a sum in place of the mean, divide the rate by B.

    Args:
      degree: d, at least 0.
      num_shots: B, examples of the support set, at least 1.
      noise: ≥ 0, the standard deviation of ε, in units of y.

    Returns:
      The best rate α, and the mean squared error on noisy queries there.

    Raises:
      ValueError: `degree` or `num_shots` is no integer in its range, or `noise` is negative or not finite.

    >>> rate, mse = polynomial_optimum(degree=1, num_shots=10, noise=0.3)
    >>> round(rate, 4), round(mse, 4)
    (0.5076, 0.2953)
    """
    check_integer("degree", degree, minimum=0)
    check_integer("num_shots", num_shots, minimum=1)
    check_number("noise", noise)
    moment = lambda n: (n % 2 == 0) / (n + 1.0)
    n = np.arange(degree + 1)
    powers = n[:, None] + n
    sigma = moment(powers)
    fourth = moment(powers[..., None] + 2 * n).sum(-1)
    second_moment = fourth / num_shots + (1 - 1 / num_shots) * sigma @ sigma
    gain = np.trace(sigma @ sigma)
    cost = np.trace(sigma @ second_moment) + noise**2 / num_shots * gain
    return float(gain / (2 * cost)), float(noise**2 + np.trace(sigma) - gain**2 / cost)


def _gaussian_polynomial(degree: int) -> Callable[[jax.Array], Polynomial]:
    return lambda key: Polynomial(jax.random.normal(key, (degree + 1,)))


def _regression(
    draw: Callable[[jax.Array], Function], half_width: float, num_shots: int, num_queries: int, noise: float
) -> TaskDistribution:
    """Tasks y = f(x) + ε with f drawn by `draw` and x ~ U(−half_width, half_width)."""
    check_integer("num_shots", num_shots, minimum=1)
    check_integer("num_queries", num_queries, minimum=1)
    check_number("noise", noise)

    def examples(key: jax.Array, function: Function, num_examples: int) -> tuple[jax.Array, jax.Array]:
        x_key, noise_key = jax.random.split(key)
        x = jax.random.uniform(x_key, (num_examples, 1), minval=-half_width, maxval=half_width)
        return x, function(x) + noise * jax.random.normal(noise_key, x.shape)

    def sample(key: jax.Array, data: tuple) -> Task:
        function_key, support_key, query_key = jax.random.split(key, 3)
        function = draw(function_key)
        return Task(examples(support_key, function, num_shots), examples(query_key, function, num_queries), function)

    return TaskDistribution(sample)

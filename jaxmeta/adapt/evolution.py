"""Meta-gradients from losses alone: evolution strategies, for inner loops whose derivative is missing or useless.

Both estimate the gradient of the outer loss smoothed by a Gaussian, E L(θ + σ ε), from pairs ±ε, and run the inner loop
forward only, so that their memory does not depend on K. Every meta-parameter is perturbed, η as well as θ.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxmeta.adapt.meta_gradients import MetaGradient
from jaxmeta.adapt.unroll import num_sources
from jaxmeta.checks import check_integer, check_number
from jaxmeta.types import MetaParams, PyTree


def evolution_strategy(*, num_pairs: int = 16, std: float = 0.01) -> MetaGradient:
    """Antithetic evolution strategy: mean_i ε_i (L(θ + σ ε_i) − L(θ − σ ε_i)) / (2σ), L the loss after adaptation.

    Unbiased for the smoothed loss; its variance grows with the number of meta-parameters. With it MAML becomes ES-MAML.

    Song, Gao, Yang, Choromanski, Pacchiano, Tang, "ES-MAML: Simple Hessian-Free Meta Learning" (2020),
    https://arxiv.org/abs/1910.01215

    Args:
      num_pairs: pairs ±ε of each task, at least 1; they are vectorised.
      std: σ > 0, the standard deviation of the perturbation of each meta-parameter, in its own units.

    Raises:
      ValueError: `num_pairs` is no positive integer, or `std` is not positive.

    >>> strategy = evolution_strategy(num_pairs=64)
    """
    return persistent_evolution_strategy(num_truncations=1, num_pairs=num_pairs, std=std)


def persistent_evolution_strategy(*, num_truncations: int, num_pairs: int = 16, std: float = 0.01) -> MetaGradient:
    """Persistent evolution strategy: for long inner loops, judged after each of several truncations of equal length.

    The outer loss is the mean over truncations s of L_s, the loss at the end of s. Each has a perturbation ε_s of its
    own, and its loss is credited to those that came before it, for they have shaped its start:

        mean_i mean_s (ε_i1 + … + ε_is) (L_s(+) − L_s(−)) / (2σ)

    so that, unlike truncated backpropagation, it is unbiased in the effect of early steps on late losses, with less
    variance than one perturbation for all.

    Vicol, Metz, Sohl-Dickstein, "Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent Evolution
    Strategies" (2021), https://arxiv.org/abs/2112.13835

    Args:
      num_truncations: S, truncations of K / S inner steps each; a divisor of K.
      num_pairs: pairs of inner loops of each task, at least 1; they are vectorised.
      std: σ > 0, the standard deviation of the perturbation of each meta-parameter, in its own units.

    Raises:
      ValueError: an argument is wrong; while tracing, `num_truncations` does not divide K.

    >>> strategy = persistent_evolution_strategy(num_truncations=10)
    """
    check_integer("num_truncations", num_truncations, minimum=1)
    check_integer("num_pairs", num_pairs, minimum=1)
    check_number("std", std)
    if not isinstance(std, jax.Array) and std == 0:
        raise ValueError("std must be positive, got 0: without a perturbation there is no gradient")

    def strategy(adapt: Callable, outer: Callable) -> Callable:
        def losses(meta_params: PyTree, sources: PyTree, task: PyTree):
            """(loss, metrics) after each truncation; the leaves of both arguments have a leading axis S."""

            def advance(state: PyTree, now: tuple[PyTree, PyTree]):
                adapted, state = adapt(now[0], now[1], task, state=state)
                return state, outer(adapted, task)

            truncations = (meta_params, sources)
            state, loss = advance(None, jax.tree.map(lambda x: x[0], truncations))
            _, later = jax.lax.scan(advance, state, jax.tree.map(lambda x: x[1:], truncations))
            return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), loss, later)

        def task_gradient(key: jax.Array, meta_params: MetaParams, sources: PyTree, task: PyTree):
            num_steps = num_sources(sources)
            if num_steps % num_truncations:
                raise ValueError(f"num_truncations must divide the {num_steps} inner steps, got {num_truncations}")
            sources = jax.tree.map(lambda s: s.reshape(num_truncations, -1, *s.shape[1:]), sources)
            repeat = lambda x: jnp.broadcast_to(x, (num_truncations, *x.shape))
            centre = jax.tree.map(repeat, meta_params)

            def estimate(key: jax.Array) -> PyTree:
                noise = optax.tree.random_like(key, centre)
                moved = (jax.tree.map(lambda p, e, s=s: p + s * std * e, centre, noise) for s in (1, -1))
                plus, minus = (losses(meta_params, sources, task)[0] for meta_params in moved)
                slopes = (plus - minus) / (2 * std * num_truncations)
                credit = lambda e: jnp.tensordot(slopes.astype(e.dtype), jnp.cumsum(e, axis=0), 1)
                return jax.tree.map(credit, noise)

            value = jax.tree.map(lambda x: jnp.mean(x, axis=0), losses(centre, sources, task))
            estimates = jax.vmap(estimate)(jax.random.split(key, num_pairs))
            return value, jax.tree.map(lambda e: jnp.mean(e, axis=0), estimates)

        return task_gradient

    return strategy

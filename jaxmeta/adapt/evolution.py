"""Meta-gradients from losses alone: evolution strategies, for inner loops whose derivative is missing or useless.

Both estimate the gradient of the outer loss smoothed by a Gaussian, E L(θ + σ ε), from pairs ±ε, and run the inner loop
forward only, so that their memory does not depend on K. Every meta-parameter is perturbed, η as well as θ, but for
those that have no part in what is run: a start of an inner problem that goes on gets 0, and not noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta.adapt.meta_gradients import MetaGradient, TaskGradient, only_the_state, resumed
from jaxmeta.adapt.optimizers import InnerState
from jaxmeta.adapt.unroll import num_sources
from jaxmeta.checks import check_integer, check_number
from jaxmeta.traced import trace, used_inputs
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
    return _evolution(1, num_pairs, std, is_persistent=False)


def persistent_evolution_strategy(*, num_truncations: int, num_pairs: int = 16, std: float = 0.01) -> MetaGradient:
    """Persistent evolution strategy: for long inner loops, judged after each of several truncations of equal length.

    The outer loss is the mean over truncations s of L_s, the loss at the end of s. Each has a perturbation ε_s of its
    own, and its loss is credited to those that came before it, for they have shaped its start:

        mean_i mean_s (ε_i1 + … + ε_is) (L_s(+) − L_s(−)) / (2σ)

    so that, unlike truncated backpropagation, it is unbiased in the effect of early steps on late losses, with less
    variance than one perturbation for all.

    Where inner problems live on, as those of `bilevel`, so do the perturbed ones: each window of K steps goes on from
    where they stood, and its losses are credited to all perturbations since the problem began. Then one truncation is
    enough, and nothing but the particles of a problem, 2 `num_pairs` of them and the unperturbed one, is kept of it.

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
    return _evolution(num_truncations, num_pairs, std, is_persistent=True)


class Particles(NamedTuple):
    """What `persistent_evolution_strategy` carries of an inner problem that lives on, P the number of pairs.

    centre: the state of the unperturbed problem
    pairs:  those of the perturbed ones, + and −, with leading axes [P, 2]
    credit: [P, ...], in the form of the meta-parameters: the sum of the perturbations since the problem began
    """

    centre: InnerState | None
    pairs: InnerState | None
    credit: PyTree


def _evolution(num_truncations: int, num_pairs: int, std: float, is_persistent: bool) -> MetaGradient:
    check_integer("num_truncations", num_truncations, minimum=1)
    check_integer("num_pairs", num_pairs, minimum=1)
    check_number("std", std)
    if not isinstance(std, jax.core.Tracer) and std == 0:
        raise ValueError("std must be positive, got 0: without a perturbation there is no gradient")

    def particles(meta_params: MetaParams, state: InnerState | None) -> Particles:
        return Particles(state, _repeat(state, num_pairs, 2), _repeat(optax.tree.zeros_like(meta_params), num_pairs))

    def strategy(adapt: Callable, outer: Callable) -> Callable:
        def window(key, meta_params: MetaParams, sources: PyTree, task: PyTree, carry: PyTree, is_new: Any):
            if num_sources(sources) % num_truncations:
                counts = f"{num_sources(sources)} inner steps, got {num_truncations}"
                raise ValueError(f"num_truncations must divide the {counts}")
            sources = jax.tree.map(lambda s: s.reshape(num_truncations, -1, *s.shape[1:]), sources)
            before = carry if is_persistent and carry is not None else particles(meta_params, carry)
            run = lambda meta_params, state: _truncations(adapt, outer, meta_params, sources, task, state, is_new)
            centre = _repeat(meta_params, num_truncations)
            (losses, metrics), end = run(centre, before.centre)
            has_part = _has_part(adapt, outer, centre, sources, task, end, is_new)

            def estimate(key: jax.Array, pair: InnerState | None, credit: PyTree):
                noise = jax.tree.map(jnp.multiply, optax.tree.random_like(key, centre), has_part)
                both = jax.tree.map(lambda p, e: jnp.stack([p + std * e, p - std * e]), centre, noise)
                ((plus, minus), _), pair = jax.vmap(run)(both, pair)
                slopes = (plus - minus) / (2 * std * num_truncations)
                past = credit if is_new is None else jax.tree.map(lambda c: jnp.where(is_new, 0, c), credit)
                credits = jax.tree.map(lambda c, e: c[None] + jnp.cumsum(e, axis=0), past, noise)
                grads = jax.tree.map(lambda c: jnp.tensordot(slopes.astype(c.dtype), c, 1), credits)
                return grads, pair, jax.tree.map(lambda c: c[-1], credits)

            keys = jax.random.split(key, num_pairs)
            estimates, pairs, credit = jax.vmap(estimate)(keys, before.pairs, before.credit)
            value, grads = jax.tree.map(lambda x: jnp.mean(x, axis=0), ((losses, metrics), estimates))
            return value, grads, Particles(end, pairs, credit) if is_persistent else end

        return TaskGradient(window, particles if is_persistent else only_the_state)

    return strategy


def _repeat(tree: PyTree, *axes: int) -> PyTree:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*axes, *jnp.shape(x))), tree)


def _truncations(
    adapt: Callable,
    outer: Callable,
    meta_params: PyTree,
    sources: PyTree,
    task: PyTree,
    state: InnerState | None,
    is_new: jax.Array | None,
) -> tuple[tuple[jax.Array, PyTree], InnerState]:
    """(loss, metrics) after each truncation, and the end; `meta_params` and `sources` have a leading axis S."""

    def advance(state: PyTree, now: tuple[PyTree, PyTree]):
        adapted, state = adapt(now[0], now[1], task, state=state)
        return state, outer(adapted, task)

    (meta_params_0, sources_0), later = (
        jax.tree.map(lambda x, cut=cut: x[cut], (meta_params, sources)) for cut in (0, slice(1, None))
    )
    state, loss = advance(resumed(adapt, meta_params_0, sources_0, task, state, is_new), (meta_params_0, sources_0))
    end, losses = jax.lax.scan(advance, state, later)
    return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), loss, losses), end


def _has_part(
    adapt: Callable,
    outer: Callable,
    meta_params: PyTree,
    sources: PyTree,
    task: PyTree,
    state: InnerState,
    is_new: jax.Array | None,
) -> PyTree:
    """Of each meta-parameter, and in each truncation, whether anything depends on it: [S, 1, ...] of 0 and 1."""
    one, leaves = jax.tree.map(lambda s: s[0], sources), jax.tree.leaves(meta_params)

    def used(state: InnerState | None) -> list[bool]:
        def run(*leaves: jax.Array) -> tuple[jax.Array, InnerState]:
            at = jax.tree.unflatten(jax.tree.structure(meta_params), [leaf[0] for leaf in leaves])
            adapted, end = adapt(at, one, task, state=state)
            return outer(adapted, task)[0], end

        return used_inputs(trace(run, *leaves)[0])

    def by_truncation(leaf: jax.Array, if_begun: bool, if_resumed: bool) -> jax.Array:
        begins = (jnp.arange(len(leaf)) == 0) & (True if is_new is None else is_new)
        return jnp.where(begins, if_begun, if_resumed).astype(leaf.dtype).reshape(-1, *(1,) * (leaf.ndim - 1))

    if_begun = used(None)
    if_resumed = if_begun if is_new is None and len(leaves[0]) == 1 else used(state)  # nothing is resumed there
    return jax.tree.unflatten(jax.tree.structure(meta_params), map(by_truncation, leaves, if_begun, if_resumed))

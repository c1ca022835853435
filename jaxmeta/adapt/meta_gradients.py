"""Strategies for the meta-gradient: how the outer loss is differentiated through the unchanged inner loop.

With θ' = θ − α ∇L(θ) the exact meta-gradient is (I − α ∇²L(θ)) ∇L'(θ'), Hessian and all.

| strategy        | the meta-gradient                                                 | memory for K steps            |
|-----------------|-------------------------------------------------------------------|-------------------------------|
| `exact`         | exact, reverse over reverse                                       | all activations of K steps    |
| `mixed_mode`    | exact, forward over reverse; the activations are recomputed       | K copies of the parameters    |
| `truncated(n)`  | exact through the last n steps, first-order through the early ones| activations of n steps        |
| `first_order`   | ∇L'(θ') alone (FOMAML)                                            | independent of K              |
| `reptile`       | θ − θ', no outer derivative at all                                | independent of K              |

The first two cut a long loop into `num_segments` S pieces: memory for K / S steps and S states, in place of K steps.

A strategy takes two functions of one task,

    adapt(meta_params, sources, task, *, state, value_and_grad) -> (params, state)
    outer(params, task) -> (loss, metrics)

and returns `(meta_params, sources, task) -> ((loss, metrics), grads)`, where `grads` has the structure of
`meta_params`. It carries no flags: it injects the gradient primitive into the inner loop.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_integer
from jaxmeta.types import MetaParams, PyTree

MetaGradient: TypeAlias = Callable[[Callable, Callable], Callable]


def exact(*, num_segments: int = 1) -> MetaGradient:
    """The exact meta-gradient by reverse over reverse: fastest where activations are small, as in few-shot learning.

    With `num_segments` S > 1, a divisor of K, the inner loop is cut into S pieces and each is run again when the
    reverse sweep reaches it: memory for K / S steps and S states in place of K steps, least near S = √K.

    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017),
    https://arxiv.org/abs/1703.03400

    Raises:
      ValueError: `num_segments` is no positive integer; while tracing, it does not divide K.

    >>> strategy = exact()
    """
    check_integer("num_segments", num_segments, minimum=1)
    return _through(jax.value_and_grad, num_segments=num_segments)


def mixed_mode(*, num_segments: int = 1, save_gradients: bool = False) -> MetaGradient:
    """The exact meta-gradient with each inner gradient transposed by a forward-over-reverse Hessian-vector product.

    Equal to `exact` up to rounding, because second derivatives commute. Only θ_k and the batch are kept of each step,
    so it wins in memory, and in time too, where activations outweigh parameters: long inputs, big support sets.
    `num_segments` as in `exact`; with it, `save_gradients` keeps the K inner gradients, so that running a segment again
    takes none, for K more copies of the parameters.

    Kemaev et al., "Scalable Meta-Learning via Mixed-Mode Differentiation" (2025), https://arxiv.org/abs/2505.00793

    Raises:
      ValueError: `num_segments` is no positive integer; while tracing, it does not divide K.

    >>> strategy = mixed_mode()
    """
    check_integer("num_segments", num_segments, minimum=1)
    return _through(_mixed_value_and_grad, num_segments=num_segments, save_gradients=save_gradients)


def first_order() -> MetaGradient:
    """FOMAML: the inner gradients are constants, so the meta-gradient is ∇L'(θ'). Learned rates still get theirs.

    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017), section 5.2,
    https://arxiv.org/abs/1703.03400

    >>> strategy = first_order()
    """
    return _through(_constant_value_and_grad)


def truncated(num_exact: int) -> MetaGradient:
    """Exact through the last `num_exact` inner steps, first-order through those before.

    `truncated(0)` is `first_order()` and `truncated(K)` is `exact()`.

    Shaban, Cheng, Hatch, Boots, "Truncated Back-propagation for Bilevel Optimization" (2019),
    https://arxiv.org/abs/1810.10667. There the early steps are dropped; here their identity part is kept, without
    which an initialisation would get no gradient at all.

    Raises:
      ValueError: `num_exact` is not an integer from 0 to the number of inner steps.

    >>> strategy = truncated(2)
    """
    check_integer("num_exact", num_exact, minimum=0)

    def strategy(adapt: Callable, outer: Callable) -> Callable:
        def loss(meta_params: MetaParams, sources: PyTree, task: PyTree):
            num_steps = len(jax.tree.leaves(sources)[0])
            if num_exact > num_steps:
                raise ValueError(f"num_exact must be at most the {num_steps} inner steps, got {num_exact}")
            early = jax.tree.map(lambda s: s[: num_steps - num_exact], sources)
            late = jax.tree.map(lambda s: s[num_steps - num_exact :], sources)
            _, state = adapt(meta_params, early, task, value_and_grad=_constant_value_and_grad)
            params, _ = adapt(meta_params, late, task, state=state)
            return outer(params, task)

        return jax.value_and_grad(loss, has_aux=True)

    return strategy


def reptile() -> MetaGradient:
    """Reptile: the "gradient" is the way back from the adapted parameters, θ − θ'.

    With `optax.sgd(ε)` outside, the update is the paper's θ ← θ + ε (θ' − θ). Learned hyperparameters, and parameters
    that do not adapt, get no gradient.

    Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms" (2018), https://arxiv.org/abs/1803.02999

    >>> strategy = reptile()
    """

    def strategy(adapt: Callable, outer: Callable) -> Callable:
        def value_and_way_back(meta_params: MetaParams, sources: PyTree, task: PyTree):
            params, _ = adapt(meta_params, sources, task)
            way_back = jax.tree.map(jnp.subtract, meta_params.params, params)
            return outer(params, task), MetaParams(way_back, jax.tree.map(jnp.zeros_like, meta_params.hyper))

        return value_and_way_back

    return strategy


def _through(value_and_grad: Callable, **how) -> MetaGradient:
    """Differentiates the outer loss through an inner loop that uses `value_and_grad`."""

    def strategy(adapt: Callable, outer: Callable) -> Callable:
        def loss(meta_params: MetaParams, sources: PyTree, task: PyTree):
            params, _ = adapt(meta_params, sources, task, value_and_grad=value_and_grad, **how)
            return outer(params, task)

        return jax.value_and_grad(loss, has_aux=True)

    return strategy


def _constant_value_and_grad(fn: Callable, has_aux: bool = True) -> Callable:
    """`jax.value_and_grad` whose result is a constant to whoever differentiates it."""
    value_and_grad = jax.value_and_grad(fn, has_aux=has_aux)
    return lambda *args: value_and_grad(*jax.lax.stop_gradient(args))


def _mixed_value_and_grad(fn: Callable, has_aux: bool = True) -> Callable:
    """`jax.value_and_grad` whose transpose is a Jacobian-vector product of the gradient itself.

    For g = ∇_θ L(θ, η, x) and a cotangent ḡ, the cotangents of all arguments are, second derivatives commuting,
    d/dε ∇_{θ,η,x} L(θ + ε ḡ, η, x): one forward-over-reverse pass, whose primal output ∇_{θ,η,x} L also serves a
    cotangent of the loss. `custom_vjp` must not close over tracers, so what `fn` closes over becomes an argument too.
    """

    def mixed(*args):
        converted, closed_over = _closure_convert(fn, args)
        return _mixed(converted, jax.value_and_grad(converted, has_aux=has_aux))(*args, closed_over)

    return mixed


def _mixed(fn: Callable, value_and_grad: Callable) -> Callable:
    wrapped = jax.custom_vjp(lambda *args: value_and_grad(*args))

    def forward(*args):
        return value_and_grad(*args), args

    def backward(args, cotangents):
        (loss_bar, _), grads_bar = cotangents  # metrics are not differentiated, see `unroll`
        floats, rest = _split_floats(args)

        def gradient(fast):
            return jax.grad(lambda floats: fn(*_join(floats, rest))[0])((fast, *floats[1:]))

        primal, tangent = jax.jvp(gradient, (floats[0],), (grads_bar,))
        return jax.tree.map(lambda p, t: t + (loss_bar * p).astype(t.dtype), primal, tangent)

    wrapped.defvjp(forward, backward)
    return wrapped


def _closure_convert(fn: Callable, args: tuple) -> tuple[Callable, list]:
    """(*args, tracers) -> fn(*args), and all tracers that `fn` closes over, where `jax.closure_convert` guesses."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    is_tracer = [isinstance(const, jax.core.Tracer) for const in closed.consts]

    def converted(*args):
        *args, tracers = args
        tracers = iter(tracers)
        consts = [next(tracers) if traced else const for traced, const in zip(is_tracer, closed.consts, strict=True)]
        leaves = jax.core.eval_jaxpr(closed.jaxpr, consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return converted, [const for const, traced in zip(closed.consts, is_tracer, strict=True) if traced]


def _split_floats(tree: PyTree) -> tuple[PyTree, PyTree]:
    """The leaves that can be differentiated, and the others (integers, keys), with None in the places of the rest."""
    is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
    floats = jax.tree.map(lambda leaf: leaf if is_float(leaf) else None, tree)
    return floats, jax.tree.map(lambda leaf: None if is_float(leaf) else leaf, tree)


def _join(floats: PyTree, rest: PyTree) -> PyTree:
    return jax.tree.map(lambda f, r: r if f is None else f, floats, rest, is_leaf=lambda leaf: leaf is None)

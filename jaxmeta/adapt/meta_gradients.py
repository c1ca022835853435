"""Strategies for the meta-gradient: how the outer loss is differentiated through the unchanged inner loop.

With θ' = θ − α ∇L(θ) the exact meta-gradient is (I − α ∇²L(θ)) ∇L'(θ'), Hessian and all.

| strategy        | the meta-gradient                                                 | memory for K steps            |
|-----------------|-------------------------------------------------------------------|-------------------------------|
| `auto`          | exact; chooses among the next three by the shapes (`auto.py`)     | within a budget, if it can    |
| `exact`         | exact, reverse over reverse                                       | all activations of K steps    |
| `mixed_mode`    | exact, forward over reverse; the activations are recomputed       | K copies of the parameters    |
| `forward_mode`  | exact, forward over reverse over the whole loop                   | independent of K              |
| `implicit`      | that of the inner problem's solution (`implicit.py`)              | independent of K              |
| `truncated(n)`  | exact through the last n steps, first-order through the early ones| activations of n steps        |
| `first_order`   | ∇L'(θ') alone (FOMAML)                                            | independent of K              |
| `reptile`       | θ − θ', no outer derivative at all                                | independent of K              |
| `evolution_strategy` | from losses alone (`evolution.py`)                           | independent of K              |

`exact` and `mixed_mode` cut a long loop into `num_segments` S pieces: memory for K / S steps and S states, in place of
K steps.

A strategy is a `MetaGradient`. It carries no flags: it injects the gradient primitive, and what is kept of a step, into
the inner loop.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.flatten_util import ravel_pytree

from jaxmeta.adapt.optimizers import InnerState
from jaxmeta.adapt.select import Where, check_where, merge, select
from jaxmeta.adapt.unroll import num_sources
from jaxmeta.checks import check_arguments, check_callable, check_flag, check_integer
from jaxmeta.types import MetaParams, Params, PyTree


class MetaGradient(Protocol):
    """How the outer loss is differentiated through the inner loop: what `meta_gradient` of a learner may be.

    It is given two functions of one task, the inner loop and the outer loss,

        adapt(meta_params, sources, task, *, state=None, value_and_grad, num_segments, remat) -> (Adapted, InnerState)
        outer(adapted, task) -> (loss, metrics)

    and returns their gradient,

        (key, meta_params, sources, task) -> ((loss, metrics), grads)

    `sources` has a leading axis K, an entry for each inner step; `task` is whatever the two functions read; the
    keywords of `adapt` are those of `adapt.unroll`, and without a state it begins anew. `loss` is a scalar, `metrics` a
    dictionary of scalars, and `grads` has the structure and the shapes of `meta_params`. All strategies of `jaxmeta`
    return a `TaskGradient`, which serves inner problems that live on as well, those of `bilevel`.

    >>> def of_outer_loss_alone() -> MetaGradient:  # as if the inner loop had come from nowhere: FOMAML by hand
    ...     def strategy(adapt, outer):
    ...         def task_gradient(key, meta_params, sources, task):
    ...             adapted, _ = adapt(meta_params, sources, task)
    ...             loss = lambda params: outer(adapted._replace(params=params), task)
    ...             value, grads = jax.value_and_grad(loss, has_aux=True)(adapted.params)
    ...             return value, MetaParams(grads, jax.tree.map(jnp.zeros_like, meta_params.hyper))
    ...         return task_gradient
    ...     return strategy
    >>> inner = lambda meta_params, sources, task, **how: (Adapted(meta_params.params - 0.5), None)
    >>> outer = lambda adapted, task: ((adapted.params - task) ** 2, {})
    >>> _, grads = of_outer_loss_alone()(inner, outer)(None, MetaParams(jnp.array(2.0)), None, 1.0)
    >>> grads.params.item()
    1.0
    """

    def __call__(self, adapt: Callable, outer: Callable, /) -> Callable: ...


def check_meta_gradient(name: str, value: Any) -> None:
    """A strategy, and not the function that makes one."""
    check_arguments(name, value, ("adapt", "outer"), "call what makes one, as in jaxmeta.adapt.exact()")


@dataclass(frozen=True, eq=False)
class TaskGradient:
    """The gradient of one task's outer loss, over an inner loop that begins anew or over a window of one that lives on.

    Called with (key, meta_params, sources, task) it is the gradient over a loop that begins anew, as `MetaGradient` has
    it, which is a window without anything carried into it.

    Attributes:
      window: (key, meta_params, sources, task, carry, is_new) -> ((loss, metrics), grads, carry), over K steps from
        where the inner problem stands. What was carried into the window is a constant; where the problem `is_new`, a
        boolean, it begins by `meta_params`, and its beginning is differentiated. Both None: it begins, statically
      begin: (meta_params, state) -> carry, of a problem whose inner loop is at this `InnerState`

    >>> from jaxmeta.adapt.optimizers import InnerState
    >>> def inner(meta_params, sources, task, *, state=None, **how):
    ...     fast = (meta_params.params if state is None else state.fast) - 0.25 * sources.size * meta_params.params
    ...     return Adapted(fast), InnerState(fast, ())
    >>> gradient = exact()(inner, lambda adapted, task: (adapted.params * task, {}))
    >>> meta_params, one_step = MetaParams(jnp.array(2.0)), jnp.arange(1)
    >>> gradient(None, meta_params, one_step, 1.0)[1].params.item()  # of θ − θ/4
    0.75
    >>> carry = gradient.begin(meta_params, InnerState(jnp.array(5.0), ()))
    >>> _, grads, carry = gradient.window(None, meta_params, one_step, 1.0, carry, False)
    >>> grads.params.item(), carry.fast.item()  # of 5 − θ/4
    (-0.25, 4.5)
    """

    window: Callable[..., tuple[tuple[jax.Array, PyTree], PyTree, PyTree]]
    begin: Callable[[MetaParams, InnerState], PyTree]

    def __call__(self, key: jax.Array, meta_params: MetaParams, sources: PyTree, task: PyTree) -> tuple:
        value, grads, _ = self.window(key, meta_params, sources, task, None, None)
        return value, grads


class Adapted(NamedTuple):
    """What the outer loss of one task is made of.

    Attributes:
      params: θ_K, the adapted parameters that are learned, in the structure of `meta_params.params`
      observed: what `adapt.unroll` was told to observe at θ_0 .. θ_{K-1}, with a leading axis K; `()` if nothing

    >>> Adapted({"w": 1.0})
    Adapted(params={'w': 1.0}, observed=())
    """

    params: Params
    observed: PyTree = ()


def exact(*, num_segments: int | Literal["sqrt"] = 1, remat: Callable | None = None) -> MetaGradient:
    """The exact meta-gradient by reverse over reverse: fastest where activations are small, as in few-shot learning.

    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017),
    https://arxiv.org/abs/1703.03400

    Args:
      num_segments: S ≥ 1; with S > 1 the inner loop is cut into S pieces and each is run again when the reverse sweep
        reaches it: memory for K / S steps and S states in place of K steps, least near S = √K, which is "sqrt".
      remat: a policy of `jax.checkpoint_policies` for each inner step: what is kept of it, the rest being computed
        again. All that its derivative needs is kept if None.

    Raises:
      ValueError: `num_segments` is neither a positive integer nor "sqrt", or `remat` is no policy.

    >>> strategy = exact()
    """
    _check_num_segments(num_segments)
    if remat is not None:
        check_callable("remat", remat, "such as jax.checkpoint_policies.nothing_saveable")
    return _through(jax.value_and_grad, num_segments, remat)


def mixed_mode(*, num_segments: int | Literal["sqrt"] = 1, save_gradients: bool = False) -> MetaGradient:
    """The exact meta-gradient with each inner gradient transposed by a forward-over-reverse Hessian-vector product.

    Equal to `exact` up to rounding, because second derivatives commute. Only θ_k, the optimizer's state and the batch
    are kept of each step, so it wins in memory, and in time too, where activations outweigh parameters: long inputs,
    big support sets.

    Kemaev et al., "Scalable Meta-Learning via Mixed-Mode Differentiation" (2025), https://arxiv.org/abs/2505.00793

    Args:
      num_segments: as in `exact`.
      save_gradients: keeps the K inner gradients, so that running a step again takes none, for K more copies of the
        parameters. It pays with an inner optimizer that has a state, such as Adam, and with segments; in one piece
        plain gradient descent keeps none, for its derivative does not need them.

    Raises:
      ValueError: `num_segments` is neither a positive integer nor "sqrt", or `save_gradients` is no boolean.

    >>> strategy = mixed_mode()
    """
    _check_num_segments(num_segments)
    check_flag("save_gradients", save_gradients)
    policies = jax.checkpoint_policies
    remat = policies.save_only_these_names("inner_gradient") if save_gradients else policies.nothing_saveable
    return _through(_mixed_value_and_grad, num_segments, remat)


def forward_mode(where: Where | None = None) -> MetaGradient:
    """The exact gradient in a few meta-parameters, carried forward along with the inner loop: memory free of K.

    For n numbers it costs (3 + 6n) forward passes a step, and n copies of one step's memory: for learned rates or
    the weights of a loss, and long loops.

    Franceschi, Donini, Frasconi, Pontil, "Forward and Reverse Gradient-Based Hyperparameter Optimization" (2017),
    https://arxiv.org/abs/1703.01785

    Args:
      where: which leaves of the `MetaParams` are learned, as in `adapt_only`; their paths begin with "params/" or
        "hyper/". All of the inner optimizer's hyperparameters if None. The others get a gradient of zero.

    Raises:
      ValueError: `where` is no such thing; while tracing, it chooses nothing or does not fit the meta-parameters.

    >>> strategy = forward_mode("loss_weights")
    """
    if where is not None:
        check_where("where", where)
    chosen = (lambda path: path.startswith("hyper/")) if where is None else where

    def strategy(adapt: Callable, outer: Callable) -> Callable:
        def window(key, meta_params: MetaParams, sources: PyTree, task: PyTree, carry: PyTree, is_new: Any):
            flat, unravel = ravel_pytree(select(meta_params, chosen))

            def loss(flat: jax.Array):
                merged = merge(unravel(flat), meta_params)
                start = resumed(adapt, merged, sources, task, carry, is_new)
                return _judged(outer, task, *adapt(merged, sources, task, state=start))

            def derivative(direction: jax.Array):
                value, slope, aux = jax.jvp(loss, (flat,), (direction,), has_aux=True)
                return (value, aux), slope

            directions = jnp.eye(flat.size, dtype=flat.dtype)
            (value, (metrics, end)), slopes = jax.vmap(derivative, out_axes=(None, 0))(directions)
            grads = merge(unravel(slopes.astype(flat.dtype)), jax.tree.map(jnp.zeros_like, meta_params))
            return (value, metrics), grads, end

        return TaskGradient(window, only_the_state)

    return strategy


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

    Args:
      num_exact: n, inner steps that are differentiated exactly, from 0 to K.

    Raises:
      ValueError: `num_exact` is not an integer from 0 to the number of inner steps.

    >>> strategy = truncated(2)
    """
    check_integer("num_exact", num_exact, minimum=0)

    def strategy(adapt: Callable, outer: Callable) -> Callable:
        def loss(meta_params: MetaParams, sources: PyTree, task: PyTree, carry: PyTree, is_new: jax.Array | None):
            num_steps = num_sources(sources)
            if num_exact > num_steps:
                raise ValueError(f"num_exact must be at most the {num_steps} inner steps, got {num_exact}")
            early = jax.tree.map(lambda s: s[: num_steps - num_exact], sources)
            late = jax.tree.map(lambda s: s[num_steps - num_exact :], sources)
            start = resumed(adapt, meta_params, sources, task, carry, is_new)
            _, state = adapt(meta_params, early, task, state=start, value_and_grad=_constant_value_and_grad)
            return _judged(outer, task, *adapt(meta_params, late, task, state=state))

        return _by_reverse_mode(loss)

    return strategy


def reptile() -> MetaGradient:
    """Reptile: the "gradient" is the way back from the adapted parameters, θ − θ'.

    With `optax.sgd(ε)` outside, the update is the paper's θ ← θ + ε (θ' − θ). Learned hyperparameters, and parameters
    that do not adapt, get no gradient. It is the gradient of the paper's ½|θ − θ'|², with θ' a constant; where the
    inner loop starts from a function of θ, θ_0 = s(θ), it is that of ½|θ_0 − θ'|², which is (θ_0 − θ') ∂s/∂θ.

    Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms" (2018), https://arxiv.org/abs/1803.02999

    >>> strategy = reptile()
    """

    def strategy(adapt: Callable, outer: Callable) -> Callable:
        def window(key, meta_params: MetaParams, sources: PyTree, task: PyTree, carry: PyTree, is_new: Any):
            none = jax.tree.map(lambda s: s[:0], sources)

            def start(params: Params) -> tuple[Params, InnerState | None]:
                at = meta_params._replace(params=params)
                state = resumed(adapt, at, sources, task, carry, is_new)
                return adapt(at, none, task, state=state)[0].params, state

            theta_0, through_start, state = jax.vjp(start, meta_params.params, has_aux=True)
            adapted, end = adapt(meta_params, sources, task, state=state)
            (grads,) = through_start(jax.tree.map(jnp.subtract, theta_0, adapted.params))
            return outer(adapted, task), MetaParams(grads, jax.tree.map(jnp.zeros_like, meta_params.hyper)), end

        return TaskGradient(window, only_the_state)

    return strategy


def only_the_state(meta_params: MetaParams, state: InnerState) -> InnerState:
    """`begin` of a strategy that has nothing of its own to carry."""
    return state


def resumed(
    adapt: Callable, meta_params: MetaParams, sources: PyTree, task: PyTree, carried: InnerState | None, is_new: Any
) -> InnerState | None:
    """Where a window begins, as a function of `meta_params`; None, for `adapt` to begin, if nothing is carried."""
    if carried is None:
        return None
    _, begun = adapt(meta_params, jax.tree.map(lambda s: s[:0], sources), task)
    return jax.tree.map(lambda begun, carried: jnp.where(is_new, begun, carried), begun, carried)


def _check_num_segments(value: int | str) -> None:
    if not isinstance(value, str) or value != "sqrt":
        check_integer("num_segments", value, minimum=1)


def _through(value_and_grad: Callable, num_segments: int | str = 1, remat: Callable | None = None) -> MetaGradient:
    """Differentiates the outer loss in reverse through an inner loop that uses `value_and_grad`."""

    def strategy(adapt: Callable, outer: Callable) -> Callable:
        def loss(meta_params: MetaParams, sources: PyTree, task: PyTree, carry: PyTree, is_new: jax.Array | None):
            segments = round(math.sqrt(num_sources(sources))) if num_segments == "sqrt" else num_segments
            how = {"value_and_grad": value_and_grad, "num_segments": segments, "remat": remat}
            start = resumed(adapt, meta_params, sources, task, carry, is_new)
            return _judged(outer, task, *adapt(meta_params, sources, task, state=start, **how))

        return _by_reverse_mode(loss)

    return strategy


def _judged(outer: Callable, task: PyTree, adapted: Adapted, end: InnerState) -> tuple[jax.Array, tuple]:
    """The outer loss, and what is not differentiated: its metrics, and the state that the inner loop ended in."""
    loss, metrics = outer(adapted, task)
    return loss, (metrics, end)


def _by_reverse_mode(loss: Callable) -> TaskGradient:
    """The gradient in its first argument of a loss that is `_judged`."""

    def window(key: jax.Array, *args: Any):
        (value, (metrics, end)), grads = jax.value_and_grad(loss, has_aux=True)(*args)
        return (value, metrics), grads, end

    return TaskGradient(window, only_the_state)


def _constant_value_and_grad(fn: Callable, has_aux: bool = True) -> Callable:
    """`jax.value_and_grad` whose result is a constant to whoever differentiates it."""
    value_and_grad = jax.value_and_grad(fn, has_aux=has_aux)
    stop = jax.lax.stop_gradient  # of the arguments, which spares a trace, and of what the function closes over
    return lambda *args: stop(value_and_grad(*stop(args)))


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
        args = jax.tree.map(lambda arg: arg.value, args)
        return value_and_grad(*args), args

    def backward(args, cotangents):
        (loss_bar, _), grads_bar = cotangents  # metrics are not differentiated, see `unroll`
        floats, rest = _split_floats(args)

        def gradient(fast):
            return jax.grad(lambda floats: fn(*merge(floats, rest))[0])((fast, *floats[1:]))

        primal, tangent = jax.jvp(gradient, (floats[0],), (jax.tree.map(_as_array, grads_bar),))
        if isinstance(loss_bar, SymbolicZero):  # then XLA leaves out what only the primal needs: the weights' gradient
            return tangent
        return jax.tree.map(lambda p, t: t + (loss_bar * p).astype(t.dtype), primal, tangent)

    wrapped.defvjp(forward, backward, symbolic_zeros=True)
    return wrapped


def _as_array(cotangent: jax.Array | SymbolicZero) -> jax.Array:
    return jnp.zeros(cotangent.shape, cotangent.dtype) if isinstance(cotangent, SymbolicZero) else cotangent


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

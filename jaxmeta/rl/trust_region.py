"""The natural-gradient step of trust region policy optimization, as an optax transformation.

    minimise  L(θ)  subject to  KL(π_old ‖ π_θ) ≤ δ,   KL ≈ ½ (θ − θ_old)ᵀ F (θ − θ_old)

The optimum of the quadratic model is θ_old − √(2δ / sᵀFs) s with F s = ∇L; then the step is shortened until the loss
does improve and the divergence itself keeps its bound. At θ_old the Hessian of the KL is Jᵀ M J exactly, J the Jacobian
of the distributions' parameters and M the Hessian of the KL in them, for the gradient of the KL is 0 there: even where
the parameters come out of an inner loop, no third derivative of a policy is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta.checks import check_callable, check_integer, check_number
from jaxmeta.types import Metrics, Params, PyTree


class TrustRegionState(NamedTuple):
    """Of the last step: what the policy and the loss changed by, how often it was shortened, whether it was taken.

    Attributes:
      kl: mean KL(old ‖ new) in nats, 0 where the step was rejected
      improvement: old loss − new loss, likewise
      num_backtracks: lengths that were refused
      is_accepted: whether one was taken
    """

    kl: jax.Array
    improvement: jax.Array
    num_backtracks: jax.Array
    is_accepted: jax.Array


def kl_of(state: TrustRegionState) -> Metrics:
    """What an update reports of its step.

    >>> sorted(kl_of(trust_region().init(jnp.zeros(2))))
    ['is_accepted', 'kl']
    """
    return {"kl": state.kl, "is_accepted": state.is_accepted}


@dataclass(frozen=True, kw_only=True)
class TrustRegion:
    """How far a step may go, and how it is found.

    Raises:
      ValueError: a field is wrong.

    >>> TrustRegion(max_kl=0.02).num_cg_steps
    10
    """

    max_kl: float = 0.01
    """δ > 0, the bound of the mean divergence, in nats."""
    num_cg_steps: int = 10
    """Conjugate gradient steps, at least 1, each a product with F."""
    damping: float = 1e-3
    """≥ 0, added to F, times I, so that what does not change the policy does not change without bound."""
    num_backtracks: int = 15
    """Lengths to try, at least 1, the first of them the whole step."""
    backtrack: float = 0.8
    """The next length by the last one, 0 < `backtrack` < 1."""

    def __post_init__(self) -> None:
        check_number("max_kl", self.max_kl, minimum=1e-12)
        check_integer("num_cg_steps", self.num_cg_steps, minimum=1)
        check_number("damping", self.damping)
        check_integer("num_backtracks", self.num_backtracks, minimum=1)
        check_number("backtrack", self.backtrack, minimum=1e-12)
        if not isinstance(self.backtrack, jax.core.Tracer) and self.backtrack >= 1:
            raise ValueError(f"backtrack must be less than 1, got {self.backtrack!r}")


def trust_region(options: TrustRegion = TrustRegion()) -> optax.GradientTransformationExtraArgs:
    """Steps of at most `max_kl` in the policy: conjugate gradients, then a line search by what the step really does.

    `update(grads, state, params, loss_fn=..., kl_fn=...)` takes the gradient of the loss at `params` and two functions:

    - loss_fn, (params) -> (loss, outputs): the surrogate loss, a scalar, of fixed data; and the distributions that are
      to stay close, any pytree of real arrays, such as a `Categorical`. In meta-learning both are after the inner loop,
      which the search so does again, once for both;
    - kl_fn, (old outputs, outputs) -> scalar, mean KL(old ‖ new) in nats.

    The first of `num_backtracks` lengths whose loss is smaller and whose KL is within the bound is taken; if there is
    none, or what comes out is not finite, the update is 0.

    Schulman, Levine, Moritz, Jordan, Abbeel, "Trust Region Policy Optimization" (2015),
    https://arxiv.org/abs/1502.05477

    Args:
      options: see `TrustRegion`.

    Raises:
      ValueError: `options` are none; `update` is called without `params` or one of the functions.

    >>> from jaxmeta.rl.distributions import Categorical
    >>> optimizer, params = trust_region(TrustRegion(max_kl=0.01)), jnp.zeros(2)
    >>> loss_fn = lambda params: (-jax.nn.softmax(params)[1], Categorical(params))  # the second action pays 1
    >>> grads, _ = jax.grad(loss_fn, has_aux=True)(params)
    >>> kl_fn = lambda old, new: old.kl(new)
    >>> updates, state = optimizer.update(grads, optimizer.init(params), params, loss_fn=loss_fn, kl_fn=kl_fn)
    >>> bool(updates[1] > 0), bool(0.005 < state.kl <= 0.01), state.num_backtracks.item()
    (True, True, 0)
    """
    if not isinstance(options, TrustRegion):
        raise ValueError(f"options must be a rl.TrustRegion(max_kl=..., ...), got {options!r}")

    def init(params: Params) -> TrustRegionState:
        return TrustRegionState(jnp.zeros(()), jnp.zeros(()), jnp.int32(0), jnp.bool_(False))

    def update(
        grads: Params,
        state: TrustRegionState,
        params: Params | None = None,
        *,
        loss_fn: Callable[[Params], tuple[jax.Array, PyTree]] | None = None,
        kl_fn: Callable[[PyTree, PyTree], jax.Array] | None = None,
        **_: Any,
    ) -> tuple[Params, TrustRegionState]:
        if params is None:
            raise ValueError("params must be given, the parameters to step from: update(grads, state, params, ...)")
        loss_fn = check_callable("loss_fn", loss_fn, "(params) -> (surrogate loss, distributions), given to update")
        kl_fn = check_callable("kl_fn", kl_fn, "(old outputs, outputs) -> mean KL, given to update")

        (old_loss, old), fisher = fisher_product(loss_fn, kl_fn, params, options.damping)
        direction, curvature = natural_direction(fisher, grads, options.num_cg_steps)
        length = step_length(curvature, options.max_kl)
        full_step = jax.tree.map(lambda d, p: (-length * d).astype(p.dtype), direction, params)

        def judge(params: Params) -> tuple[jax.Array, jax.Array]:
            loss, outputs = loss_fn(params)
            return old_loss - loss, kl_fn(old, outputs)

        search = line_search(judge, params, full_step, length > 0, options)

        of_taken = lambda x, like: jnp.where(search.is_good, x, 0).astype(like.dtype)
        updates = jax.tree.map(lambda s, p: of_taken(search.scale * s, p), full_step, params)
        kl, improvement = of_taken(search.kl, state.kl), of_taken(search.improvement, state.improvement)
        return updates, TrustRegionState(kl, improvement, search.num_bad, search.is_good)

    return optax.GradientTransformationExtraArgs(init, update)


def natural_direction(
    product: Callable[[Params], Params], grads: Params, num_cg_steps: int
) -> tuple[Params, jax.Array]:
    """s with F s = ∇L, by `num_cg_steps` conjugate gradient steps, and sᵀ F s; product is v ↦ F v.

    Each step is one product and there are no others: the search begins at 0, and F s is ∇L less what is left over.

    Hestenes, Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems" (1952),
    https://doi.org/10.6028/jres.049.044

    >>> direction, curvature = natural_direction(lambda v: jnp.array([1.0, 4.0]) * v, jnp.array([1.0, 2.0]), 2)
    >>> direction.round(3).tolist(), curvature.round(3).item()
    ([1.0, 0.5], 2.0)
    """
    wide = jax.tree.map(lambda g: jnp.asarray(g, float), grads)  # sums of squares in the default precision
    square = lambda v: optax.tree.vdot(v, v)
    least = jnp.finfo(jnp.result_type(*jax.tree.leaves(grads))).eps ** 2 * square(wide)

    def go_on(loop: tuple) -> jax.Array:
        number, _, left, _ = loop
        return (number < num_cg_steps) & (square(left) > least)

    def step(loop: tuple) -> tuple:
        number, solution, left, along = loop
        image, before = product(along), square(left)
        length = before / optax.tree.vdot(along, image)
        solution = optax.tree.add_scale(solution, length, along)
        left = optax.tree.add_scale(left, -length, image)
        return number + 1, solution, left, optax.tree.add_scale(left, square(left) / before, along)

    start = (0, optax.tree.zeros_like(wide), wide, wide)
    _, direction, left, _ = jax.lax.while_loop(go_on, step, start)
    return direction, optax.tree.vdot(direction, optax.tree.sub(wide, left))


def step_length(curvature: jax.Array, max_kl: float | jax.Array) -> jax.Array:
    """√(2δ / sᵀFs), at which the quadratic model of the divergence is δ; 0 where it has no such length.

    >>> step_length(jnp.array(8.0), 1.0).item()
    0.5
    """
    return jnp.where(curvature > 0, jnp.sqrt(2 * max_kl / jnp.where(curvature > 0, curvature, 1)), 0)


class Search(NamedTuple):
    """Of a line search: lengths that were refused, the last length tried, as a share of the whole step, what the loss
    fell by and the divergence there, and whether they are good."""

    num_bad: jax.Array
    scale: jax.Array
    improvement: jax.Array
    kl: jax.Array
    is_good: jax.Array


def line_search(
    judge: Callable[[Params], tuple[jax.Array, jax.Array]],
    params: Params,
    full_step: Params,
    has_length: jax.Array,
    options: TrustRegion,
) -> Search:
    """The first length at which the loss improves and the divergence keeps its bound, from the whole step down.

    `judge(params)` is what the loss falls by, and the divergence.

    >>> judge, options = lambda x: (x, x**2 / 2), TrustRegion(max_kl=0.5, backtrack=0.5)
    >>> search = line_search(judge, jnp.array(0.0), jnp.array(2.0), jnp.bool_(True), options)
    >>> search.scale.item(), search.improvement.item(), search.num_bad.item()
    (0.5, 1.0, 1)
    """

    def attempt(search: Search) -> Search:
        improvement, kl = judge(optax.apply_updates(params, optax.tree.scale(search.scale, full_step)))
        is_good = jnp.isfinite(improvement) & (improvement > 0) & (kl <= options.max_kl)
        scale = jnp.where(is_good, search.scale, search.scale * options.backtrack)
        return Search(search.num_bad + ~is_good, scale, improvement, kl.astype(improvement.dtype), is_good)

    go_on = lambda search: ~search.is_good & (search.num_bad < options.num_backtracks) & has_length
    zero, one = jnp.zeros_like(jax.eval_shape(judge, params)[0]), jnp.ones(())
    return jax.lax.while_loop(go_on, attempt, Search(jnp.int32(0), one, zero, zero, jnp.bool_(False)))


def fisher_product(
    loss_fn: Callable[[Params], tuple[jax.Array, PyTree]],
    kl_fn: Callable[[PyTree, PyTree], jax.Array],
    params: Params,
    damping: float = 0.0,
) -> tuple[tuple[jax.Array, PyTree], Callable[[Params], Params]]:
    """(loss, outputs) at `params`, and v ↦ Jᵀ M J v + damping · v, with the Hessian of the mean KL at `params`.

    J is linearised once, and its products with vectors are of first order, forward and back.

    Args:
      loss_fn: (params) -> (loss, outputs), as for `trust_region`; J is that of the outputs.
      kl_fn: (old outputs, outputs) -> scalar, mean KL(old ‖ new), likewise.
      params: where to linearise.
      damping: added as `damping` · I.

    >>> from jaxmeta.rl.distributions import Categorical
    >>> loss_fn = lambda params: (-params[0], Categorical(params))
    >>> _, product = fisher_product(loss_fn, lambda old, new: old.kl(new), jnp.zeros(2))
    >>> product(jnp.array([1.0, 0.0])).tolist()  # diag(p) − p pᵀ
    [0.25, -0.25]
    """

    def with_reals(params: Params) -> tuple[list[jax.Array], tuple[jax.Array, PyTree]]:
        loss, outputs = loss_fn(params)
        return [leaf for leaf in jax.tree.leaves(outputs) if _is_real(leaf)], (loss, outputs)

    def kl_to(reals: list[jax.Array]) -> jax.Array:
        leaves, structure = jax.tree.flatten(outputs)
        new = iter(reals)  # in the place of what can be differentiated: a bound may be an integer
        return kl_fn(outputs, jax.tree.unflatten(structure, [next(new) if _is_real(leaf) else leaf for leaf in leaves]))

    reals, jacobian, (loss, outputs) = jax.linearize(with_reals, params, has_aux=True)
    transposed = jax.linear_transpose(jacobian, params)
    gradient = jax.grad(kl_to)

    def product(v: Params) -> Params:
        j_v = jacobian(jax.tree.map(lambda v, p: v.astype(p.dtype), v, params))
        _, m_j_v = jax.jvp(gradient, (reals,), (j_v,))
        return jax.tree.map(lambda x, v: (x + damping * v).astype(v.dtype), transposed(m_j_v)[0], v)

    return (loss, outputs), product


def _is_real(leaf: jax.Array) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)

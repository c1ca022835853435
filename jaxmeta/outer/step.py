"""The outer step: a gradient is applied if all that comes of it is finite, and counted if not."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmeta.checks import check_fields
from jaxmeta.types import MetaParams, MetaState, Metrics, Params, PyTree, learned


def apply_gradient(
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: PyTree,
    loss: jax.Array,
    grads: Params,
    **extra: Any,
) -> tuple[Params, PyTree, Metrics]:
    """One step of an outer optimizer. Where anything about it is not finite, nothing changes.

    Looked at are the loss, the gradient, and what would become of the parameters and of the optimizer's state: an
    update can overflow where the gradient did not, and a state that did would spoil every step after it. What was
    infinite before, such as the best loss of `optax.contrib.reduce_on_plateau`, may stay so.

    Args:
      optimizer: any optax transformation; it is told the loss as `value`, for those that ask for it.
      params: what to step, a pytree of arrays.
      opt_state: of the optimizer.
      loss: at `params`.
      grads: of the loss.
      **extra: for an optimizer that takes more than these, such as a line search.

    Returns:
      The parameters and the state of the optimizer, and {"loss", "grad_norm", "is_finite"}.

    Raises:
      ValueError: while tracing, `optimizer` asks for functions of the loss too.

    >>> optimizer, params = optax.sgd(0.5), jnp.array(1.0)
    >>> params, opt_state, metrics = apply_gradient(optimizer, params, optimizer.init(params), 1.0, jnp.array(2.0))
    >>> params.item(), bool(metrics["is_finite"])
    (0.0, True)
    """
    grad_norm = optax.tree.norm(grads)
    optimizer = optax.with_extra_args_support(optimizer)
    try:
        updates, stepped_state = optimizer.update(grads, opt_state, params, **{"value": loss, **extra})
    except TypeError as error:
        if "required keyword-only" not in str(error):
            raise
        raise ValueError(
            "optimizer must step from gradients, parameters and the loss, got one whose update asks for more "
            f"({error}): take one without a line search, such as optax.adam(1e-3)"
        ) from error
    stepped, kept = (optax.apply_updates(params, updates), stepped_state), (params, opt_state)
    spoiled = jax.tree.map(lambda new, old: jnp.any(~_is_finite(new) & _is_finite(old)), stepped, kept)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & ~jnp.any(jnp.stack(jax.tree.leaves(spoiled)))
    params, opt_state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), stepped, kept)
    return params, opt_state, {"loss": loss, "grad_norm": grad_norm, "is_finite": is_finite}


def counted(state: MetaState, meta_params: PyTree, opt_state: PyTree, is_finite: jax.Array) -> MetaState:
    """`state` after one `update`, of one optimizer step or several: skipped if any of them was not finite.

    Args:
      state: before the update.
      meta_params: after it.
      opt_state: after it.
      is_finite: whether each of its optimizer steps was, any shape of booleans.

    >>> state = MetaState(jnp.int32(7), (), (), jnp.int32(0))
    >>> after = counted(state, (), (), jnp.array([True, False]))
    >>> int(after.step), int(after.num_skipped)
    (8, 1)
    """
    num_skipped = state.num_skipped + ~jnp.all(is_finite)
    return state._replace(step=state.step + 1, meta_params=meta_params, opt_state=opt_state, num_skipped=num_skipped)


def initial_state(optimizer: optax.GradientTransformation, meta_params: MetaParams) -> MetaState:
    """The state before the first outer step.

    Args:
      optimizer: the outer optax transformation.
      meta_params: what is learned, and constants.

    >>> int(initial_state(optax.sgd(0.1), MetaParams(jnp.array(1.0))).step)
    0
    """
    return MetaState(jnp.int32(0), meta_params, optimizer.init(learned(meta_params)), jnp.int32(0))


def outer_step(
    optimizer: optax.GradientTransformation,
    state: MetaState,
    loss: jax.Array,
    metrics: Metrics,
    grads: PyTree,
    **extra: Any,
) -> tuple[MetaState, Metrics]:
    """Applies the meta-gradient, of `learned(state.meta_params)`: constants stay, and the optimizer never sees them.

    A step that is not finite changes nothing and is counted, see `apply_gradient`.

    Args:
      optimizer: the outer optax transformation.
      state: before the step.
      loss: the outer loss, a scalar.
      metrics: {name: scalar}, to report beside it.
      grads: the meta-gradient, in the form of `meta_params` without constants.
      **extra: for an optimizer that takes more than gradients, state, parameters and the loss.

    >>> state = MetaState(jnp.int32(0), MetaParams(jnp.array(1.0)), optax.sgd(1.0).init(0.0), jnp.int32(0))
    >>> state, metrics = outer_step(optax.sgd(1.0), state, jnp.array(0.5), {}, MetaParams(jnp.array(jnp.nan)))
    >>> state.meta_params.params.item(), int(state.num_skipped)
    (1.0, 1)
    """
    before, constants = learned(state.meta_params), state.meta_params.constants
    after, opt_state, terms = apply_gradient(optimizer, before, state.opt_state, loss, grads, **extra)
    after = after._replace(constants=constants)
    return counted(state, after, opt_state, terms["is_finite"]), {**metrics, **terms}


def chosen_optimizer(
    optimizer: Any, default: optax.GradientTransformation, *, name: str = "optimizer"
) -> optax.GradientTransformation:
    """The outer optimizer that a learner is given, looked at once; what the learner has by itself if that is None.

    It is an optax transformation that needs no more than gradients, parameters and the loss.

    Args:
      optimizer: the learner's argument.
      default: what None stands for, which is not looked at.
      name: of the argument, for messages.

    Raises:
      ValueError: it is none; or it asks for functions of the loss too, as `optax.lbfgs` does for its line search.

    >>> mine, default = optax.sgd(0.1), optax.adam(1e-3)
    >>> chosen_optimizer(mine, default) is mine, chosen_optimizer(None, default) is default
    (True, True)
    """
    if optimizer is None:
        return default
    check_fields(name, optimizer, ("init", "update"), "an optax transformation, such as optax.adam(1e-3)")
    try:
        vector = jax.ShapeDtypeStruct((1,), jnp.float32)
        jax.eval_shape(lambda w: apply_gradient(optimizer, w, optimizer.init(w), w[0], w), vector)
    except ValueError as error:
        if isinstance(error.__cause__, TypeError) and "asks for more" in str(error):
            raise
    except Exception:  # it may be made for some parameters alone, by their names: `init` will say
        pass
    return optimizer


def _is_finite(leaf: jax.Array) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return jnp.isfinite(leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.bool_(True)

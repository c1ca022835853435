"""Bootstrapped meta-gradients: an outer loss that draws an inner problem to where it would be some steps later.

    θ̃ = θ_K, after L − 1 more steps along the inner loss and one along the outer one, a constant
    η ← η − β ∇_η d(θ̃, θ_K(η))                         d the distance of parameters, or of what they do

so that the outer loop looks L steps farther than the K that it differentiates, and is not bound to the outer loss's own
geometry. With L = 1, plain gradient descent of rate α and d = ½ |θ̃ − θ_K|² it is α times the meta-gradient of the
outer loss.
"""

from collections.abc import Callable

import jax
import optax

from jaxmeta.checks import check_callable, check_fields, check_flag, check_integer, check_loss_fn, check_takes_key
from jaxmeta.types import Batch, Metrics, Params, PyTree


def bootstrapped(
    loss_fn: Callable,
    outer_loss_fn: Callable,
    *,
    num_target_steps: int,
    target_optimizer: optax.GradientTransformation,
    distance: Callable | None = None,
    stochastic: bool = False,
) -> Callable:
    """An `outer_loss_fn` of any problem of `bilevel`: the distance to a target that the inner problem makes itself.

    The target is a constant, and what learns it is too: η as it is now, and an optimizer that begins at θ_K, for an
    outer loss does not see the inner one's state. Both losses are given the batch that the outer loss is given.

    Flennerhag, Schroecker, Zahavy, van Hasselt, Silver, Singh, "Bootstrapped Meta-Learning" (2022),
    https://arxiv.org/abs/2109.04504

    Args:
      loss_fn: as in `bilevel`, along which the target goes on from θ_K.
      outer_loss_fn: as there, along which it takes its last step. Its metrics, at θ_K, are what is reported.
      num_target_steps: L, steps from θ_K to the target, at least 1.
      target_optimizer: the optax transformation that takes them, such as `optax.sgd(0.1)`.
      distance: (target, params, batch) -> scalar d, of the parameters that are learned; half their squared distance if
        None. See `meta_gradient_rl` for one of policies.
      stochastic: as in `bilevel`; `distance` then takes a key too, (target, params, batch, key).

    Returns:
      (params, meta_params, batch) -> (d, metrics), with a key after these if `stochastic`.

    Raises:
      ValueError: an argument is wrong.

    >>> import jax.numpy as jnp
    >>> loss_fn = lambda params, meta_params, batch: (jnp.exp(meta_params) * params**2, {})
    >>> outer_loss_fn = lambda params, meta_params, batch: ((params - 1) ** 2, {})
    >>> outer = bootstrapped(loss_fn, outer_loss_fn, num_target_steps=1, target_optimizer=optax.sgd(0.1))
    >>> round(float(jax.grad(lambda params: outer(params, 0.0, ())[0])(3.0)), 4)  # 0.1 times that of (θ − 1)²
    0.4
    """
    check_flag("stochastic", stochastic)
    arguments = ("params", "meta_params", "batch")
    inner = check_loss_fn("loss_fn", loss_fn, stochastic, arguments)
    outer = check_loss_fn("outer_loss_fn", outer_loss_fn, stochastic, arguments)
    check_integer("num_target_steps", num_target_steps, minimum=1)
    check_fields("target_optimizer", target_optimizer, ("init", "update"), "an optax transformation")
    apart = _half_squared_distance if distance is None else distance
    check_callable("distance", apart, "(target, params, batch) -> scalar")
    is_drawn = stochastic and distance is not None
    check_takes_key("distance", apart, ("target", "params", "batch"), is_drawn)

    def bootstrapped_loss(
        params: Params, meta_params: PyTree, batch: Batch, key: jax.Array | None = None
    ) -> tuple[jax.Array, Metrics]:
        target_key, last_key, distance_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        start, eta = jax.lax.stop_gradient((params, meta_params))

        def step(loss: Callable, state: tuple, key: jax.Array | None) -> tuple[Params, PyTree]:
            params, opt_state = state
            grads = jax.grad(lambda params: loss(params, eta, batch, key)[0])(params)
            updates, opt_state = target_optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        keys = None if target_key is None else jax.random.split(target_key, num_target_steps - 1)
        state = start, target_optimizer.init(start)
        state, _ = jax.lax.scan(lambda *now: (step(inner, *now), None), state, keys, length=num_target_steps - 1)
        target, _ = step(outer, state, last_key)
        metrics = outer(start, eta, batch, last_key)[1]
        drawn = (distance_key,) if is_drawn else ()
        return apart(jax.lax.stop_gradient(target), params, batch, *drawn), metrics

    if stochastic:
        return bootstrapped_loss
    return lambda params, meta_params, batch: bootstrapped_loss(params, meta_params, batch)


def _half_squared_distance(target: Params, params: Params, batch: Batch) -> jax.Array:
    """½ |θ̃ − θ|², whose gradient in θ is θ − θ̃."""
    return optax.tree.norm(optax.tree.sub(params, target), squared=True) / 2

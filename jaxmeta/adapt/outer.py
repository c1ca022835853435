"""The outer step, the same for every meta-learner: average over tasks, then apply the result if it is finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmeta.adapt.cost import default_memory_budget, peak_bytes
from jaxmeta.devices import DEVICES, EVERYWHERE, num_sharing, on_each
from jaxmeta.types import MetaParams, MetaState, Metrics, PyTree

_NEAR = 2**19  # about half of what one core keeps near: chunks above it were slower than tasks one by one
TASKS = "tasks"  # the name of the axis of tasks that are vectorised together


def mean_over_tasks(fn: Callable, microbatch: int | None, meta_params: MetaParams, per_task: PyTree) -> PyTree:
    """mean_i fn(meta_params, per_task[i]) over the leading axis N, for any pytree that `fn` returns.

    Args:
      fn: (meta_params, one task's part of `per_task`) -> pytree of arrays. Where it returns gradients they are taken
        task by task, which is several times faster than the gradient of the mean.
      microbatch: how many tasks are vectorised at a time; the chunks follow one another and only their sum is kept, so
        memory is that of one chunk. If None, the largest divisor of N whose estimated memory fits: on a CPU a core's
        cache, which is where it is fast, elsewhere half of the device's memory. Within `jaxmeta.over_devices` N is a
        device's share.

    Raises:
      ValueError: `microbatch` does not divide N, or the number of devices does not.

    >>> mean_over_tasks(lambda w, x: w * x, 2, jnp.array(2.0), jnp.arange(4.0)).item()
    3.0
    """
    num_tasks, num_devices = len(jax.tree.leaves(per_task)[0]), num_sharing()
    if num_devices is None:
        return _mean_on_one(fn, microbatch, meta_params, per_task)
    if num_tasks % num_devices:
        raise ValueError(f"the number of tasks must be a multiple of the {num_devices} devices, got {num_tasks}")
    mean = lambda *args: jax.lax.pmean(_mean_on_one(fn, microbatch, *args), DEVICES)
    return on_each(mean, EVERYWHERE)(meta_params, per_task)


def _mean_on_one(fn: Callable, microbatch: int | None, meta_params: MetaParams, per_task: PyTree) -> PyTree:
    """`mean_over_tasks` of one device."""
    num_tasks = len(jax.tree.leaves(per_task)[0])
    if microbatch is None:
        microbatch = _default_microbatch(fn, num_tasks, meta_params, per_task)
    traced = jax.jit(lambda *args: fn(*args), inline=True)  # once; the estimate's trace knows of no axis of tasks
    if num_tasks % microbatch:
        raise ValueError(f"microbatch must divide the number of tasks, {num_tasks}, got {microbatch}")

    def sum_of(chunk: PyTree) -> PyTree:
        if microbatch == 1:  # with an axis of one, XLA's CPU backend takes up to twice as long, for the sake of copies
            task = jax.tree.map(lambda x: x[0], chunk)
            value = jax.vmap(traced, in_axes=None, out_axes=None, axis_size=1, axis_name=TASKS)(meta_params, task)
            return jax.tree.map(lambda x: jnp.sum(x, axis=()), value)
        values = jax.vmap(traced, in_axes=(None, 0), axis_name=TASKS)(meta_params, chunk)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), values)

    if microbatch == num_tasks:
        return jax.tree.map(lambda x: x / num_tasks, sum_of(per_task))
    chunks = jax.tree.map(lambda x: x.reshape(num_tasks // microbatch, microbatch, *x.shape[1:]), per_task)
    shapes = jax.eval_shape(sum_of, jax.tree.map(lambda x: x[0], chunks))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    add_chunk = lambda total, chunk: (jax.tree.map(jnp.add, total, sum_of(chunk)), None)
    total, _ = jax.lax.scan(add_chunk, zeros, chunks)
    return jax.tree.map(lambda t: t / num_tasks, total)


def _default_microbatch(fn: Callable, num_tasks: int, meta_params: MetaParams, per_task: PyTree) -> int:
    room = _NEAR if jax.default_backend() == "cpu" else default_memory_budget()
    one = peak_bytes(fn, meta_params, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), per_task))
    return max(n for n in range(1, num_tasks + 1) if num_tasks % n == 0 and n * one <= max(room, one))


def outer_step(
    optimizer: optax.GradientTransformation,
    state: MetaState,
    loss: jax.Array,
    metrics: Metrics,
    grads: MetaParams,
    **extra: Any,
) -> tuple[MetaState, Metrics]:
    """Applies the meta-gradient. A step whose loss or gradient is not finite changes nothing and is counted.

    `extra` goes to an optimizer that takes more than gradients, such as a line search.
    """
    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    optimizer = optax.with_extra_args_support(optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.meta_params, **extra)
    stepped = (optax.apply_updates(state.meta_params, updates), opt_state)
    kept = (state.meta_params, state.opt_state)
    meta_params, opt_state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), stepped, kept)
    state = MetaState(state.step + 1, meta_params, opt_state, state.num_skipped + ~is_finite)
    return state, {**metrics, "loss": loss, "grad_norm": grad_norm, "is_finite": is_finite}

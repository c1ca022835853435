"""The inner loop. There is only this one.

For k = 0 .. K-1: draw a batch, take the gradient of the inner loss, step. What is computed is here; how it is
differentiated is the caller's choice, who injects `value_and_grad` (see `meta_gradients`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxmeta.adapt.optimizers import InnerOptimizer, InnerState, check_inner_optimizer
from jaxmeta.checks import check_callable, check_instance, check_integer, check_meta_params
from jaxmeta.types import Batch, LossFn, MetaParams, Params, PyTree

_FEW = 5  # steps of a loop that a GPU runs without one; the sinusoid's take .24 ms in place of .41 on an H200


class Trace(NamedTuple):
    """What each of the K inner steps saw, before it was taken; every leaf has a leading axis K.

    Attributes:
      loss: [K], the inner loss at θ_0 .. θ_{K-1}, each on the batch of its step
      metrics: what the inner loss reports beside it, [K] each
      batch: what each step learned from
      observed: what `observe` of `unroll` returned

    >>> from jaxmeta.adapt.optimizers import sgd
    >>> loss_fn = lambda params, batch: (params**2, {"size": jnp.abs(params)})
    >>> draw = lambda source, params: source
    >>> _, trace = unroll(sgd(0.25), loss_fn, draw, MetaParams(jnp.array(4.0)), jnp.arange(3))
    >>> trace.loss.tolist(), trace.metrics["size"].tolist(), trace.batch.tolist()
    ([16.0, 4.0, 1.0], [4.0, 2.0, 1.0], [0, 1, 2])
    """

    loss: jax.Array
    metrics: PyTree
    batch: Batch
    observed: PyTree


def unroll(
    optimizer: InnerOptimizer,
    loss_fn: LossFn,
    draw: Callable[[Any, Params], Batch],
    meta_params: MetaParams,
    sources: PyTree,
    *,
    state: InnerState | None = None,
    value_and_grad: Callable | None = None,
    observe: Callable[[Params, Batch], PyTree] | None = None,
    num_segments: int = 1,
    remat: Callable | None = None,
) -> tuple[InnerState, Trace]:
    """Adapts to one task, θ_{k+1} = step(θ_k, ∇L(θ_k, batch_k)) for the K leading entries of `sources`.

    Args:
      optimizer: the inner optimizer.
      loss_fn: (params, batch) -> (loss, metrics), the inner loss; the metrics are not differentiated.
      draw: (source, params) -> batch, what step k learns from.
      meta_params: the initialisation θ_0 and the learned hyperparameters.
      sources: pytree with a leading axis K: keys to draw live, or recorded batches to replay.
      state: where to go on from; the beginning if None.
      value_and_grad: how the inner loss is differentiated, here a strategy decides; `jax.value_and_grad` if None.
      observe: (params, batch) -> anything, called on θ_0 .. θ_{K-1} and recorded; `()` is if None.
      num_segments: S ≥ 1. Where the loop is differentiated in reverse, only the states between S segments are kept, and
        each segment is run again when the sweep reaches it: with S = √K, memory for 2√K steps, not K.
      remat: a policy of `jax.checkpoint_policies`: what is kept of a step where the loop is differentiated in reverse,
        and of a segment; the rest is computed again. If None, a step keeps what its derivative needs, a segment
        nothing. The inner gradients have the name "inner_gradient".

    Returns:
      The state after the last step, and the trace of all steps.

    Raises:
      ValueError: an argument is wrong.

    >>> from jaxmeta.adapt.optimizers import sgd
    >>> loss_fn = lambda params, batch: (jnp.sum((params - batch) ** 2), {})
    >>> state, trace = unroll(
    ...     sgd(0.25), loss_fn, lambda source, params: 1.0, MetaParams(jnp.array(0.0)), jnp.arange(2))
    >>> state.fast.item(), trace.loss.tolist()
    (0.75, [1.0, 0.25])
    """
    check_inner_optimizer("optimizer", optimizer)
    check_callable("loss_fn", loss_fn, "(params, batch) -> (loss, metrics)")
    check_callable("draw", draw, "(source, params) -> batch")
    check_meta_params(meta_params)
    if state is not None:
        check_instance("state", state, InnerState)
    check_integer("num_segments", num_segments, minimum=1)
    for name, fn in (("value_and_grad", value_and_grad), ("observe", observe), ("remat", remat)):
        if fn is not None:
            check_callable(name, fn, "see jaxmeta.adapt.unroll")

    def inner_loss(fast: Params, meta_params: MetaParams, batch: Batch):  # nothing differentiable is closed over
        return loss_fn(optimizer.params(meta_params, fast), batch)

    inner_grad = (value_and_grad or jax.value_and_grad)(inner_loss, has_aux=True)

    def body(state: InnerState, source: Any) -> tuple[InnerState, Trace]:
        params = optimizer.params(meta_params, state.fast)
        batch = draw(source, params)
        (loss, metrics), grads = inner_grad(state.fast, meta_params, batch)
        grads = jax.tree.map(lambda g: checkpoint_name(g, "inner_gradient"), grads)
        observed = observe(params, batch) if observe else ()
        trace = Trace(loss, jax.lax.stop_gradient(metrics), batch, observed)
        return optimizer.step(meta_params, state, grads), trace

    if remat is not None:
        body = jax.checkpoint(body, policy=remat, prevent_cse=False)
    start = optimizer.start(meta_params) if state is None else state
    if num_sources(sources) == 1 and remat is None:
        return _only_step(body, start, sources)
    if num_segments == 1:
        return jax.lax.scan(body, start, sources, unroll=_num_unrolled(sources, remat))
    return _scan_segments(body, start, sources, num_segments, remat)


def num_sources(sources: PyTree) -> int:
    """K, the leading axis of the `sources`."""
    return len(jax.tree.leaves(sources)[0])


def _num_unrolled(sources: PyTree, remat: Callable | None) -> int:
    """Steps in one round of the loop: a GPU waits for each round of a loop, and fuses nothing across two.

    A rematerialised step needs its round: in one piece XLA would find what is computed again, and keep it after all.
    """
    num_steps = num_sources(sources)
    is_short = 1 < num_steps <= _FEW and remat is None
    return num_steps if is_short and jax.default_backend() == "gpu" else 1


def _only_step(body: Callable, start: InnerState, sources: PyTree) -> tuple[InnerState, Trace]:
    """`jax.lax.scan(body, start, sources)` of one step. A loop has of each task what it has of one: without it, tasks
    that begin from the same weights share them in the products of the first step."""
    state, trace = body(start, jax.tree.map(lambda x: x[0], sources))
    return state, jax.tree.map(lambda x: jnp.asarray(x)[None], trace)


def _scan_segments(
    body: Callable, start: InnerState, sources: PyTree, num_segments: int, policy: Callable | None
) -> tuple[InnerState, Trace]:
    """`jax.lax.scan(body, start, sources)` as a scan over rematerialised scans, the last of them maybe shorter."""
    num_steps = num_sources(sources)
    length = -(-num_steps // num_segments)
    num_whole = num_steps // length
    segment = jax.checkpoint(lambda *args: jax.lax.scan(body, *args), policy=policy, prevent_cse=False)
    whole = jax.tree.map(lambda x: x[: num_whole * length].reshape(num_whole, length, *x.shape[1:]), sources)
    state, trace = jax.lax.scan(segment, start, whole)
    trace = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trace)
    if num_whole * length == num_steps:
        return state, trace
    state, rest = segment(state, jax.tree.map(lambda x: x[num_whole * length :], sources))
    return state, jax.tree.map(lambda x, y: jnp.concatenate([x, y]), trace, rest)

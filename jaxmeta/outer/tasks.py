"""A function of one task over N of them: as many at a time as fit, on one device or shared by several."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp

from jaxmeta.devices import (
    EVERYWHERE,
    SHARED,
    along,
    check_shares,
    gathered,
    known_everywhere,
    num_sharing,
    on_each,
    summed,
)
from jaxmeta.outer.cost import CACHE_BYTES, default_memory_budget, num_bytes, peak_bytes
from jaxmeta.types import PyTree, Task
from jaxmeta.words import counted

_log = logging.getLogger("jaxmeta")
_NEAR = 2**19  # about half of what one core keeps near: chunks above it were slower than tasks one by one
_FEW = 2**16  # bytes of parameters; with fewer, kernels are so short that their number is what costs
TASKS = "tasks"  # the name of the axis of tasks that are vectorised together


def over_tasks(fn: Callable, microbatch: int | None, meta_params: PyTree, per_task: PyTree) -> tuple[PyTree, PyTree]:
    """`fn` for each task: the mean of what tasks share, and what is each one's own.

    Within `jaxmeta.over_devices` D devices share the tasks. Where D does not divide N they share the examples of each
    `Task` in `per_task` instead, one task after another: what a loss and its derivatives compute of examples each does
    of its part, and what is over all of them, means, statistics of norms, gradients of weights, they sum as it comes
    up. The numbers are those of one device but for rounding, whatever the loss; fewer than D examples are not shared.

    Args:
      fn: (meta_params, one task's part of `per_task`) -> (shared, own), two pytrees of arrays. Where it returns
        gradients they are taken task by task, which is several times faster than the gradient of the mean.
      microbatch: how many tasks are vectorised at a time, a divisor of N; the chunks follow one another, and of
        `shared` only the sum is kept, so memory is that of one chunk. If None, the largest divisor of N whose estimated
        memory fits: on a CPU a core's cache, of networks with few parameters the processor's, which is where it is
        fast, elsewhere half of the device's memory. Within `jaxmeta.over_devices` N is a device's share of the tasks,
        where it shares them.
      meta_params: the same for all tasks.
      per_task: a pytree of arrays with a leading axis N.

    Returns:
      mean_i shared_i, and `own` stacked along a leading axis N, in the order of the tasks.

    Raises:
      ValueError: `microbatch` does not divide N, or the number of devices does not and there is no `Task`.

    >>> mean, each = over_tasks(lambda w, x: (w * x, x**2), 2, jnp.array(2.0), jnp.arange(4.0))
    >>> mean.item(), each.tolist()
    (3.0, [0.0, 1.0, 4.0, 9.0])
    """
    num_devices = num_sharing()
    if num_devices is None:
        return _over_tasks_on_one(fn, microbatch, meta_params, per_task)
    num_tasks = len(jax.tree.leaves(per_task)[0])
    if num_tasks % num_devices and any(map(_is_task, jax.tree.leaves(per_task, is_leaf=_is_task))):
        counts = f"{counted(num_tasks, 'task')} on {num_devices} devices"
        say_of_what_runs(lambda: _log.info("%s: they share the examples of each task", counts))
        return known_everywhere(_over_tasks_on_one(fn, microbatch, meta_params, _with_shared_examples(per_task)))
    check_shares(num_tasks)

    def share(meta_params: PyTree, per_task: PyTree) -> tuple[PyTree, PyTree]:
        mean, each = _over_tasks_on_one(fn, microbatch, meta_params, per_task)
        return jax.tree.map(lambda x: x / num_devices, summed(mean)), each

    return on_each(share, (EVERYWHERE, SHARED))(meta_params, per_task)


def _with_shared_examples(per_task: PyTree) -> PyTree:
    """Each device has its part of every task's examples, and the compiler shares what is computed of them."""

    def of_part(part: PyTree) -> PyTree:
        if not _is_task(part):
            return part
        support, query = jax.tree.map(_along_examples, (part.support, part.query))
        return part._replace(support=support, query=query)

    return jax.tree.map(of_part, per_task, is_leaf=_is_task)


def _along_examples(leaf: jax.Array) -> jax.Array:
    """Of tasks' examples [N, B, ...]; a few of them every device has."""
    is_shared = leaf.ndim > 1 and leaf.shape[1] >= (num_sharing() or 1)
    return jax.lax.with_sharding_constraint(leaf, along(1)) if is_shared else leaf


def _is_task(part: PyTree) -> bool:
    return isinstance(part, Task)


def mean_over_tasks(fn: Callable, microbatch: int | None, meta_params: PyTree, per_task: PyTree) -> PyTree:
    """mean_i fn(meta_params, per_task[i]) over the leading axis N: `over_tasks` where tasks have nothing of their own.

    Args:
      fn: (meta_params, one task's part of `per_task`) -> a pytree of arrays.
      microbatch: tasks that are vectorised at a time, as in `over_tasks`.
      meta_params: the same for all tasks.
      per_task: a pytree of arrays with a leading axis N.

    Raises:
      ValueError: as `over_tasks`.

    >>> mean_over_tasks(lambda w, x: w * x, 2, jnp.array(2.0), jnp.arange(4.0)).item()
    3.0
    """
    return over_tasks(lambda *args: (fn(*args), ()), microbatch, meta_params, per_task)[0]


def for_each_task(fn: Callable, meta_params: PyTree, per_task: PyTree) -> PyTree:
    """`jax.vmap(fn, (None, 0))`: what is played of each task, which every device is told of all.

    Args:
      fn: (meta_params, one task's part of `per_task`) -> a pytree of arrays.
      meta_params: the same for all tasks.
      per_task: a pytree of arrays with a leading axis N.

    Raises:
      ValueError: the number of devices does not divide N.

    >>> for_each_task(lambda w, x: w * x, jnp.array(2.0), jnp.arange(3.0)).tolist()
    [0.0, 2.0, 4.0]
    """
    each = jax.vmap(fn, (None, 0))
    if num_sharing() is None:
        return each(meta_params, per_task)
    check_shares(len(jax.tree.leaves(per_task)[0]))
    return on_each(lambda *args: gathered(each(*args)), EVERYWHERE)(meta_params, per_task)


def shared_out(fn: Callable, *, axis: int = 0) -> Callable:
    """`fn(meta_params, data)`, whose tasks lie along `axis` of its data and of what it returns, each device its share.

    What comes out stays where it is; gradients go through it.

    Args:
      fn: (meta_params, data of some tasks) -> a pytree of arrays.
      axis: of the tasks.

    Raises:
      ValueError: when it is called, the number of devices does not divide that of tasks.

    >>> shared_out(lambda w, x: w * x)(2.0, jnp.arange(3.0)).tolist()
    [0.0, 2.0, 4.0]
    """
    if num_sharing() is None:
        return fn

    def shares(meta_params: PyTree, data: PyTree) -> PyTree:
        check_shares(jax.tree.leaves(data)[0].shape[axis])
        return on_each(fn, along(axis), axis=axis)(meta_params, data)

    return shares


def mean_over_shares(
    fn: Callable, meta_params: PyTree, data: PyTree, *, axis: int = 0, weight_fn: Callable | None = None
) -> PyTree:
    """`fn(meta_params, data)`, which is a mean over tasks, such as a loss and its gradient; and for that the mean over
    the devices of what each finds of its share, by one all-reduce.

    Unlike `mean_over_tasks` it is for one gradient of a mean, which is one product for all tasks where they have the
    same weights.

    Args:
      fn: (meta_params, data of some tasks) -> a pytree of arrays.
      meta_params: the same for all tasks.
      data: a pytree of arrays with an axis of tasks.
      axis: which one that is.
      weight_fn: (data of some tasks) -> how much they count, such as the steps that were played; if None, their number.

    Raises:
      ValueError: the number of devices does not divide that of tasks.

    >>> mean_over_shares(lambda w, x: jnp.mean(w * x), jnp.array(2.0), jnp.arange(4.0)).item()
    3.0
    """
    if num_sharing() is None:
        return fn(meta_params, data)
    check_shares(jax.tree.leaves(data)[0].shape[axis])

    def share(meta_params: PyTree, data: PyTree) -> PyTree:
        weight = jnp.ones(()) if weight_fn is None else weight_fn(data)
        weighted = jax.tree.map(lambda x: x * jnp.asarray(weight, x.dtype), fn(meta_params, data))
        total, whole = summed((weighted, jnp.asarray(weight, jnp.result_type(*jax.tree.leaves(weighted)))))
        return jax.tree.map(lambda x: x / jnp.asarray(whole, x.dtype), total)

    return on_each(share, EVERYWHERE, axis=axis)(meta_params, data)


def _over_tasks_on_one(
    fn: Callable, microbatch: int | None, meta_params: PyTree, per_task: PyTree
) -> tuple[PyTree, PyTree]:
    """`over_tasks` of one device."""
    num_tasks = len(jax.tree.leaves(per_task)[0])
    traced = jax.jit(lambda *args: fn(*args), inline=True)  # once, for the estimate and for what runs
    if microbatch is None:
        microbatch = _default_microbatch(traced, num_tasks, meta_params, per_task)
    if num_tasks % microbatch:
        raise ValueError(f"microbatch must divide the number of tasks, {num_tasks}, got {microbatch}")

    def of_chunk(chunk: PyTree) -> tuple[PyTree, PyTree]:
        """The sum of what the tasks of a chunk share, and what is each one's own."""
        if microbatch == 1:  # with an axis of one, XLA's CPU backend takes up to twice as long, for the sake of copies
            task = jax.tree.map(lambda x: x[0], chunk)
            shared, own = jax.vmap(traced, in_axes=None, out_axes=None, axis_size=1, axis_name=TASKS)(meta_params, task)
            return jax.tree.map(lambda x: jnp.sum(x, axis=()), shared), jax.tree.map(lambda x: x[None], own)
        shared, own = jax.vmap(traced, in_axes=(None, 0), axis_name=TASKS)(meta_params, chunk)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), shared), own

    if microbatch == num_tasks:
        total, each = of_chunk(per_task)
        return jax.tree.map(lambda x: x / num_tasks, total), each

    def add_chunk(total: PyTree, chunk: PyTree) -> tuple[PyTree, PyTree]:
        shared, own = of_chunk(chunk)
        return jax.tree.map(jnp.add, total, shared), own

    chunks = jax.tree.map(lambda x: x.reshape(num_tasks // microbatch, microbatch, *x.shape[1:]), per_task)
    shapes, _ = jax.eval_shape(of_chunk, jax.tree.map(lambda x: x[0], chunks))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, each = jax.lax.scan(add_chunk, zeros, chunks)
    return jax.tree.map(lambda t: t / num_tasks, total), jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), each)


def _default_microbatch(traced: Callable, num_tasks: int, meta_params: PyTree, per_task: PyTree) -> int:
    room = _room(meta_params)
    task = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), per_task)
    # jax traces anew where there are more or fewer tasks around: as many as there will be, if that can be told
    likely = 1 if 4 * num_bytes((meta_params, task)) > room else num_tasks
    alone = jax.vmap(traced, in_axes=None, out_axes=None, axis_size=likely, axis_name=TASKS)
    with _estimating() as to_be_said:
        one = peak_bytes(alone, meta_params, task)
    most = min(num_tasks, max(1, room // max(1, one)))
    microbatch = next(n for n in range(most, 0, -1) if num_tasks % n == 0)
    for say in to_be_said if microbatch == likely else ():
        say()
    return microbatch


def _room(meta_params: PyTree) -> int:
    """Bytes of the intermediate results of the tasks that are vectorised together.

    On a CPU, of large networks and one task after the other, the task's weights stay near. Of small ones all tasks that
    fit a processor's cache are faster: the sinusoid's by a tenth, a Conv4 of 16 filters 28 x 28 by a quarter, of 8
    filters 14 x 14 by a half.
    """
    if jax.default_backend() != "cpu":
        return default_memory_budget()
    return CACHE_BYTES if num_bytes(meta_params) <= _FEW else _NEAR


_to_be_said: ContextVar[list[Callable[[], None]] | None] = ContextVar("_to_be_said", default=None)


@contextlib.contextmanager
def _estimating() -> Iterator[list[Callable[[], None]]]:
    """What is to be said of a trace, which is kept for whoever knows whether it is what runs."""
    kept: list[Callable[[], None]] = []
    token = _to_be_said.set(kept)
    try:
        yield kept
    finally:
        _to_be_said.reset(token)


def say_of_what_runs(say: Callable[[], None]) -> None:
    """Calls `say`, which logs what was chosen while tracing, if what is traced is what will run, and no estimate.

    >>> say_of_what_runs(lambda: print("exact"))
    exact
    """
    kept = _to_be_said.get()
    say() if kept is None else kept.append(say)

"""Several devices for one outer step, of one process or of many: each takes its share of the tasks, and they average
their meta-gradients."""

import os
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxmeta.checks import check_integer
from jaxmeta.types import PyTree

DEVICES = "devices"  # the name of the mesh's axis
EVERYWHERE, SHARED = PartitionSpec(), PartitionSpec(DEVICES)


def join_processes(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Makes this process one of P, on one host or several, whose devices `over_devices` then shares among all.

    All run the same program with the same keys, as if each were alone; `fit` and `evaluate` give all of them the same
    numbers, those of one process but for rounding, and checkpoints are written by one of them into a folder that all of
    them see. It is called before anything of JAX runs.

    When a process dies the others end with an error, within 30 seconds or so. Started again, all of them, they go on
    from the last checkpoint; so they do with another number of processes or devices.

    Args:
      coordinator: "HOST:PORT" of process 0, at which the others find it. Left out, with the others, where JAX can tell:
        under Slurm, Open MPI, Kubernetes or on a TPU; see `jax.distributed.initialize`.
      num_processes: P.
      process_id: which of them this one is, from 0 on.

    Raises:
      ValueError: an argument is wrong, or some are given and others not.
      RuntimeError: the others were not found within two minutes, or something of JAX ran before.

    Source: JAX, "Multi-process and multi-host programming", https://docs.jax.dev/en/latest/multi_process.html

    >>> join_processes("localhost:1234", num_processes=2, process_id=2)
    Traceback (most recent call last):
    ValueError: process_id must be less than num_processes=2, got 2
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if any(value is None for value in given.values()) and any(value is not None for value in given.values()):
        missing = [name for name, value in given.items() if value is None]
        raise ValueError(f"{' and '.join(missing)} must be given where one of {', '.join(given)} is, got None")
    if coordinator is not None and num_processes is not None and process_id is not None:
        host, _, port = coordinator.rpartition(":") if isinstance(coordinator, str) else ("", "", "")
        if not host or not port.isdigit():
            raise ValueError(f'coordinator must be the "HOST:PORT" of process 0, got {coordinator!r}')
        check_integer("num_processes", num_processes, minimum=1)
        check_integer("process_id", process_id, minimum=0)
        if process_id >= num_processes:
            raise ValueError(f"process_id must be less than num_processes={num_processes}, got {process_id}")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=120,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_HEARTBEAT,
        )
    except ValueError as error:  # jax's own words, where it could not tell
        raise ValueError(f"coordinator, num_processes and process_id must be given here: {error}") from error


_HEARTBEAT = 30  # seconds after which a process that is not heard of is taken for dead


def any_process(flag: bool) -> bool:
    """Whether it is true in any process: what all have to agree on, for they run the same programs."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def over_devices(num_devices: int | None = None) -> AbstractContextManager:
    """A context in which D devices share the tasks of an outer step, N / D each; without `with`, from there on.

    For every learner: each device runs the program that it would run alone, on its part of the tasks, and one
    all-reduce of the meta-gradient for each step of the outer optimizer is all that they tell each other. Where several
    steps learn from what was played (`maml_rl`, `rl2`, `pearl`), they first tell each other what that was. The numbers
    are those of one device but for rounding.

    Where D does not divide N, as of one task, the devices share the examples of each task instead, for every learner of
    `Task`s and whatever its loss: what is over all examples, a mean, the statistics of a batch norm, the gradient of a
    weight, is a sum over the devices. That pays where there is much to do for an example, as in convolutions of large
    images; small networks wait for one another more than they compute.

    Of S seeds, `fit` with `[S]` keys, each device trains S / D, and nothing is told; where D does not divide S they
    share the tasks of all.

    A CPU's cores are kept busier by a device for each than by one program with so many threads, most of whose products
    are small: `jax.config.update("jax_num_cpu_devices", 2)`, before anything runs.

    Args:
      num_devices: D, the first so many of `jax.devices()`; all of them if None, of all processes where there are
        several, see `join_processes`.

    Raises:
      ValueError: `num_devices` is no positive integer, more than there are, or leaves a process without a device; in an
        outer step of a learner that plays, D does not divide N.

    >>> import jax.numpy as jnp, jaxmeta
    >>> loss_fn = lambda params, batch: (jnp.mean((params["w"] - batch[1]) ** 2), {})
    >>> learner = jaxmeta.maml(lambda key: {"w": jnp.zeros(())}, loss_fn)
    >>> with over_devices():
    ...     state, _ = jaxmeta.fit(
    ...         jax.random.key(0), learner, jaxmeta.tasks.linear(), num_outer_steps=2, num_tasks=8, progress=False)
    >>> int(state.step)
    2
    """
    devices = jax.devices()
    if num_devices is not None:
        check_integer("num_devices", num_devices, minimum=1)
        if num_devices > len(devices):
            raise ValueError(
                f"num_devices must be at most {len(devices)}, got {num_devices}: jax.devices() has no more; those of a "
                "CPU are set before anything runs, by jax.config.update('jax_num_cpu_devices', ...)"
            )
    devices = devices[:num_devices]
    if len({device.process_index for device in devices}) < jax.process_count():
        raise ValueError(
            f"num_devices must leave no process without a device, got {num_devices} of {len(jax.devices())} in "
            f"{jax.process_count()} processes: leave it out, which takes all"
        )
    mesh = jax.make_mesh((len(devices),), (DEVICES,), (jax.sharding.AxisType.Auto,), devices=devices)
    return jax.set_mesh(mesh)


def num_cores() -> int:
    """A CPU's cores that this process may use: under `taskset`, or in a container, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """The memory of a device that this process may use; a CPU's is the machine's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def num_sharing() -> int | None:
    """D within `over_devices`; None elsewhere, and in a device's own share."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return mesh.shape[DEVICES] if kinds.get(DEVICES, _OWN) != _OWN else None


_OWN = jax.sharding.AxisType.Manual  # of an axis where programs are those of one device


def can_share(number: int) -> bool:
    """Whether this number of seeds, or of test tasks, shares out evenly; not where nothing is shared."""
    num_devices = num_sharing()
    return num_devices is not None and number % num_devices == 0


def check_shares(number: int, num_parts: int = 1) -> None:
    """That D devices can share this number of tasks; those of each of several parts, if they are learned from apart.

    Raises:
      ValueError: D times `num_parts` does not divide it.
    """
    num_devices = num_sharing()
    if num_devices is None or number % (num_devices * num_parts) == 0:
        return
    unit = num_devices * num_parts
    below = number // unit * unit
    apart = "" if num_parts == 1 else f" times {num_parts} minibatches"
    near = f"the nearest are {below} and {below + unit}" if below else f"the nearest is {unit}"
    raise ValueError(
        f"the number of tasks must be a multiple of the {num_devices} devices{apart}, got {number}: {near}"
    )


def replicated(tree: PyTree) -> PyTree:
    """The arrays; within `over_devices` with a copy on each device, as `update` wants its state there.

    `fit` and `evaluate` do it by themselves.

    Args:
      tree: a pytree of arrays, in every process the same.

    Raises:
      ValueError: those of another process are others.

    >>> with over_devices():
    ...     replicated({"w": jax.numpy.ones(2)})
    {'w': Array([1., 1.], dtype=float32)}
    """
    if num_sharing() is None:
        return tree
    return jax.device_put(tree, EVERYWHERE) if jax.process_count() == 1 else _in_all_processes(tree)


def _in_all_processes(tree: PyTree) -> PyTree:
    """What each process has of its own becomes one array of all, once it is known to be the same in all."""
    is_key = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    is_own = lambda leaf: not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    numbers = lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else jnp.asarray(leaf))
    leaves, structure = jax.tree.flatten(tree)
    own = {i: numbers(leaf) for i, leaf in enumerate(leaves) if is_own(leaf)}
    checksum = 0
    for array in own.values():
        checksum = zlib.crc32(array.tobytes(), checksum)
    _check_alike(checksum)
    whole = jax.sharding.NamedSharding(jax.sharding.get_mesh(), EVERYWHERE)
    for i, array in own.items():
        leaf = jax.make_array_from_callback(array.shape, whole, array.__getitem__)
        leaves[i] = jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(leaves[i])) if is_key(leaves[i]) else leaf
    return jax.tree.unflatten(structure, jax.device_put(leaves, EVERYWHERE) if len(own) < len(leaves) else leaves)


def _check_alike(checksum: int) -> None:
    from jax.experimental import multihost_utils

    found = np.asarray(multihost_utils.process_allgather(np.array(checksum, np.uint32))).tolist()
    if len(set(found)) > 1:
        others = [i for i, of in enumerate(found) if of != found[0]]
        raise ValueError(
            f"the arrays must be the same in all processes, got others in {others} than in process 0: give all of them "
            "the same key, state, tasks and arguments"
        )


def known_everywhere(tree: PyTree) -> PyTree:
    """The arrays, in a program: what they are made of each device computes for itself, and no compiler shares it."""
    return tree if num_sharing() is None else jax.lax.with_sharding_constraint(tree, EVERYWHERE)


def along(axis: int) -> PartitionSpec:
    """Of arrays whose axis of this number is shared."""
    return PartitionSpec(*[None] * axis, DEVICES)


def summed(tree: PyTree) -> PyTree:
    """The sum over the devices of what each has, in a share: one all-reduce, of one vector for each dtype.

    Of leaves by themselves a compiler makes one if it likes.
    """
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        chosen = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        ends = np.cumsum([leaves[i].size for i in chosen])[:-1]
        total = jax.lax.psum(jnp.concatenate([leaves[i].ravel() for i in chosen]), DEVICES)
        for i, part in zip(chosen, jnp.split(total, ends), strict=True):
            leaves[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, leaves)


def gathered(tree: PyTree) -> PyTree:
    """The shares of all devices, one after another along the first axis, in a share."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, DEVICES, tiled=True), tree)


def on_each(fn: Callable, out: PyTree, *, axis: int = 0) -> Callable:
    """`fn(everywhere, shares)` on each device with all of the first argument and its share of the second.

    `axis` is the one that is shared. Not checked for what is replicated: that would sum inner gradients of the shared
    weights over the devices.
    """
    return jax.shard_map(fn, in_specs=(EVERYWHERE, along(axis)), out_specs=out, check_vma=False)

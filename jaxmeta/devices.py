"""Several devices for one outer step: each takes its share of the tasks, and they average their meta-gradients."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import jax
from jax.sharding import PartitionSpec

from jaxmeta.checks import check_integer
from jaxmeta.types import PyTree

DEVICES = "devices"  # the name of the mesh's axis
EVERYWHERE, SHARED = PartitionSpec(), PartitionSpec(DEVICES)


def over_devices(num_devices: int | None = None) -> AbstractContextManager:
    """A context in which D devices share the tasks of an outer step, N / D each; without `with`, from there on.

    For every learner that averages a gradient over tasks: `maml`, `maml_rl`, `protonet`, `ridge` and those made of
    them. Each device runs the program that it would run alone, on its part, and one all-reduce of the meta-gradient is
    all that they tell each other. A CPU's cores are kept busier by a device for each than by one program with so many
    threads, most of whose products are small: `jax.config.update("jax_num_cpu_devices", 2)`, before anything runs.

    Args:
      num_devices: D, the first so many of `jax.devices()`; all of them if None.

    Raises:
      ValueError: `num_devices` is no positive integer or more than there are; in an outer step, D does not divide N.

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
    """D within `over_devices`; elsewhere None."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[DEVICES] if DEVICES in mesh.axis_names else None


def replicated(tree: PyTree) -> PyTree:
    """The arrays; within `over_devices` with a copy on each device, as `update` wants its state there.

    `fit` and `evaluate` do it by themselves.

    Args:
      tree: a pytree of arrays.

    >>> with over_devices():
    ...     replicated({"w": jax.numpy.ones(2)})
    {'w': Array([1., 1.], dtype=float32)}
    """
    return tree if num_sharing() is None else jax.device_put(tree, EVERYWHERE)


def on_each(fn: Callable, out: PyTree) -> Callable:
    """`fn(everywhere, shares)` on each device with all of the first argument and its share of the second.

    Not checked for what is replicated: that would sum inner gradients of the shared weights over the devices.
    """
    return jax.shard_map(fn, in_specs=(EVERYWHERE, SHARED), out_specs=out, check_vma=False)

"""What `fit` and `evaluate` look at before anything compiles: samplers, and the values of one task."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxmeta.checks import a_key, check_distribution, check_fits, check_pure, check_sampler
from jaxmeta.devices import memory_bytes, num_sharing, replicated
from jaxmeta.traced import used_inputs
from jaxmeta.types import MetaLearner, MetaParams, PyTree, Task, TaskDistribution

_CONSTANT = ". Where one task is wanted, say so: tasks.single(task), or at=lambda index, data: task, size=1"


def look_at_tasks(
    name: str, tasks: TaskDistribution, learner: MetaLearner, meta_params: MetaParams, *, is_test: bool
) -> None:
    """Looks at a distribution, and with the learner's `check` at a task of it, whose values are known, not traced.

    Args:
      name: of the distribution, for errors.
      tasks: the distribution.
      learner: what learns from it.
      meta_params: the learner's, or their shapes.
      is_test: whether tasks are for `evaluate`, not for `update`.

    Raises:
      ValueError: `sample` does not take (key, data), does not depend on its key where there is more than one task, or
        draws with `np.random`; the learner finds something wrong about a task.
    """
    check_distribution(name, tasks)
    check_fits(f"{name}.data", tasks.data)
    for source, of in (tasks.sources or {}).items():
        look_at_tasks(f"{name}.sources[{source!r}]", of, learner, meta_params, is_test=is_test)
    check_sampler(name, tasks, tasks.data, _CONSTANT)
    if tasks.at is not None:
        jaxpr, _ = check_pure(f"{name}.at", tasks.at, jax.ShapeDtypeStruct((), jnp.int32), tasks.data)
        if tasks.size != 1 and not used_inputs(jaxpr)[0]:
            raise ValueError(f"{name}.at must depend on the index, or all {tasks.size} tasks are one: say size=1 then")
    shapes = jax.eval_shape(tasks.sample, a_key(), tasks.data)
    check = getattr(learner, "check", None) if tasks.sources is None else None
    if check is not None and isinstance(shapes, Task) and _holds_integers(shapes):
        check(meta_params, _draw(*replicated((jax.random.key(0), tasks.data)), sample=tasks.sample), is_test)


def look_at_size(num_tasks: int, tasks: TaskDistribution, num_seeds: int) -> None:
    """Refuses outer steps whose tasks alone take more than half of the memory: what is computed of them needs as much.

    An estimate from below, of shapes: a key and a task, N times for each seed. What passes may be too much, too.
    """
    task = jax.eval_shape(tasks.sample, a_key(), tasks.data)
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(task)) + 8
    room = memory_bytes() * (num_sharing() or 1) // 2
    taken = one * num_tasks * num_seeds
    if taken > room:
        seeds = f" for each of {num_seeds} seeds" if num_seeds > 1 else ""
        raise ValueError(
            "num_tasks must be so many that the tasks of an outer step fit into half of the memory, got "
            f"{num_tasks:,}: of {one:,} bytes each{seeds} they take {taken / 2**30:,.1f} GiB, and that half is "
            f"{room / 2**30:,.1f} GiB, which {room // (one * num_seeds):,} fit into, with nothing beside them"
        )


def _holds_integers(task: Task) -> bool:
    """Whether there are labels in it: what else is wrong about a task shows in its shapes."""
    return any(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves((task.support, task.query)))


@partial(jax.jit, static_argnames="sample")
def _draw(key: jax.Array, data: PyTree, *, sample: Callable) -> PyTree:
    return sample(key, data)

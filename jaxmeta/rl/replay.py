"""Replay: for each of a finite number of tasks a ring buffer of rows, and tasks that know which of them they are.

Off-policy learning needs tasks that come back, for what was seen of a task is kept in its own buffer. `indexed_tasks`
makes such a distribution of M tasks: what it samples is an `IndexedTask`, and its `index` says whose buffer it is.

The buffers are one pytree of arrays `[M, C, ...]`, in which rows are written where they belong. flashbax, the usual
choice, has functions of one buffer: to add to some of many, those would be taken out whole and put back, and of two
additions to the same task in one step one would be lost.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_integer
from jaxmeta.outer.cost import num_bytes
from jaxmeta.rl.tasks import num_stacked, task_at
from jaxmeta.types import PyTree, TaskDistribution


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class IndexedTask:
    """One of M tasks, its params, and the number that it has among them.

    Attributes:
      index: 0 .. M − 1
      params: as of any task
      num_tasks: M; it is static, so that a learner can see while it is traced that it has a buffer for each

    `jax.vmap` and `jax.tree.map` see two arrays, `index` and `params`.
    """

    index: jax.Array
    params: PyTree
    num_tasks: int = field(metadata={"static": True})


def indexed_tasks(tasks: PyTree) -> TaskDistribution:
    """A distribution over tasks that are all there, stacked along a leading axis M; each is as likely.

    Args:
      tasks: stacked params, such as `family.train.data` of a finite family, or
        `jax.vmap(family.train.sample, (0, None))(keys, family.train.data)` of any.

    Raises:
      ValueError: `tasks` are not stacked.

    >>> from jaxmeta.rl import families
    >>> tasks = indexed_tasks(families.point_robot().train.data)
    >>> task = tasks.at(7, tasks.data)
    >>> tasks.size, task.num_tasks, int(task.index), task.params.goal.shape
    (80, 80, 7, (2,))
    """
    num_tasks = num_stacked("tasks", tasks)

    def at(index: jax.Array | int, tasks: PyTree) -> IndexedTask:
        return IndexedTask(jnp.int32(index), task_at(index, tasks), num_tasks)

    def sample(key: jax.Array, tasks: PyTree) -> IndexedTask:
        return at(jax.random.randint(key, (), 0, num_tasks), tasks)

    return TaskDistribution(sample, tasks, at=at, size=num_tasks)


class Buffers(NamedTuple):
    """Ring buffers of M tasks.

    Attributes:
      rows: a pytree of `[M, C, ...]`.
      num_added: `[M]`, how many rows were ever added to each.
    """

    rows: PyTree
    num_added: jax.Array


def empty_buffers(row: PyTree, num_tasks: int, capacity: int) -> Buffers:
    """Buffers of `capacity` rows like `row`, an example or its shapes, with nothing in them.

    Args:
      row: an example of a row, or its shapes, a pytree.
      num_tasks: M, buffers, at least 1.
      capacity: C, rows of each, at least 1.

    Raises:
      ValueError: a count is no positive integer.

    >>> empty_buffers({"reward": jnp.zeros(())}, num_tasks=2, capacity=5).rows["reward"].shape
    (2, 5)
    """
    check_integer("num_tasks", num_tasks, minimum=1)
    check_integer("capacity", capacity, minimum=1)
    rows = jax.tree.map(lambda leaf: jnp.zeros((num_tasks, capacity, *leaf.shape), leaf.dtype), row)
    return Buffers(rows, jnp.zeros(num_tasks, jnp.int32))


def add_rows(buffers: Buffers, index: jax.Array, rows: PyTree) -> Buffers:
    """Adds `rows` `[T, ...]` to the buffer of one task; the oldest go where it is full. Nothing is added to task M.

    A row in which anything is not finite is left out, or all that is learned from the buffer would be too: `num_added`
    says how many were added.

    Args:
      buffers: of M tasks.
      index: the task's number, a scalar.
      rows: a pytree of `[T, ...]`, T at most C.

    Raises:
      ValueError: there are more rows than a buffer holds.

    >>> buffers = empty_buffers(jnp.zeros(()), num_tasks=2, capacity=3)
    >>> buffers = add_rows(add_rows(buffers, 1, jnp.array([1.0, 2.0])), 1, jnp.array([3.0, 4.0]))
    >>> buffers.rows.tolist(), buffers.num_added.tolist()
    ([[0.0, 0.0, 0.0], [4.0, 2.0, 3.0]], [0, 4])
    """
    num_rows, capacity = len(jax.tree.leaves(rows)[0]), jax.tree.leaves(buffers.rows)[0].shape[1]
    if num_rows > capacity:
        raise ValueError(f"rows must be at most the {capacity} that a buffer holds, got {num_rows}")
    is_kept = jnp.all(jnp.stack([_is_finite(leaf) for leaf in jax.tree.leaves(rows)]), axis=0)
    count = jnp.cumsum(is_kept, dtype=buffers.num_added.dtype)
    place = (buffers.num_added[index] + count - 1) % capacity
    where = jnp.where(is_kept, place, capacity)  # beyond the buffer
    write = lambda buffer, new: buffer.at[index, where].set(new, mode="drop")
    num_added = buffers.num_added.at[index].add(count[-1], mode="drop")
    return Buffers(jax.tree.map(write, buffers.rows, rows), num_added)


def _is_finite(rows: jax.Array) -> jax.Array:
    """`[T]`, of rows `[T, ...]`."""
    return jnp.all(jnp.isfinite(jnp.reshape(rows, (len(rows), -1))), axis=1)


def sample_rows(key: jax.Array, buffers: Buffers, index: jax.Array, num_rows: int) -> PyTree:
    """`num_rows` of the rows in a task's buffer, each as likely, with replacement. There must be one.

    Args:
      key: random key.
      buffers: of M tasks.
      index: the task's number, a scalar.
      num_rows: how many.

    >>> buffers = add_rows(empty_buffers(jnp.zeros(()), num_tasks=2, capacity=9), 1, jnp.array([1.0, 2.0]))
    >>> set(sample_rows(jax.random.key(0), buffers, 1, 20).tolist()) == {1.0, 2.0}
    True
    """
    capacity = jax.tree.leaves(buffers.rows)[0].shape[1]
    where = jax.random.randint(key, (num_rows,), 0, jnp.minimum(buffers.num_added[index], capacity))
    return jax.tree.map(lambda buffer: buffer[index, where], buffers.rows)


class MemoryPlan(NamedTuple):
    """What buffers of M tasks, C rows each, take; `str` is a table of it, beside those of other sizes.

    Attributes:
      row_bytes: {field: bytes} of a row.
      num_tasks: M, buffers.
      capacity: C, in rows.
      num_bytes: bytes of all buffers.

    >>> plan = memory_plan({"observation": jnp.zeros(3), "reward": jnp.zeros(())}, num_tasks=10, capacity=1000)
    >>> print(plan)
    replay: 10 tasks, 1,000 transitions each of 16 bytes (observation 12, reward 4): 0.153 MiB
     capacity         100       1,000      10,000
      1 tasks 0.00153 MiB  0.0153 MiB   0.153 MiB
     10 tasks  0.0153 MiB   0.153 MiB    1.53 MiB
    100 tasks   0.153 MiB    1.53 MiB    15.3 MiB
    """

    row_bytes: dict[str, int]
    num_tasks: int
    capacity: int

    @property
    def num_bytes(self) -> int:
        return self.num_tasks * self.capacity * sum(self.row_bytes.values())

    def __str__(self) -> str:
        row = sum(self.row_bytes.values())
        parts = ", ".join(f"{name} {size}" for name, size in self.row_bytes.items())
        capacities, tasks = (sorted({max(n // 10, 1), n, 10 * n}) for n in (self.capacity, self.num_tasks))
        sizes = f"{self.num_tasks:,} tasks, {self.capacity:,} transitions each of {row} bytes ({parts})"
        lines = [
            f"replay: {sizes}: {_mib(self.num_bytes)}",
            "capacity".rjust(9) + "".join(f"{c:12,}" for c in capacities),
        ]
        lines += [f"{n:3,} tasks" + "".join(f"{_mib(n * c * row):>12}" for c in capacities) for n in tasks]
        return "\n".join(lines)


def memory_plan(row: PyTree, num_tasks: int, capacity: int, budget: int | None = None) -> MemoryPlan:
    """What `empty_buffers(row, num_tasks, capacity)` will take, from shapes alone.

    Args:
      row: a NamedTuple or dict of arrays, or of their shapes.
      num_tasks: M, buffers, at least 1.
      capacity: C, rows of each, at least 1.
      budget: bytes that there are, at least 1; no limit if None.

    Returns:
      A `MemoryPlan`.

    Raises:
      ValueError: it takes more than `budget`; it names the largest capacity that fits.
    """
    check_integer("num_tasks", num_tasks, minimum=1)
    check_integer("capacity", capacity, minimum=1)
    if budget is not None:
        check_integer("budget", budget, minimum=1)
    fields = row if isinstance(row, dict) else row._asdict()
    plan = MemoryPlan({name: num_bytes(tree) for name, tree in fields.items()}, num_tasks, capacity)
    if budget is not None and plan.num_bytes > budget:
        largest = budget // (num_tasks * sum(plan.row_bytes.values()))
        remedy = (
            f"at most {largest:,}" if largest else "smaller, and there must be fewer tasks: not one row of each fits"
        )
        raise ValueError(
            f"capacity must be {remedy}, got {capacity:,}: {num_tasks:,} tasks take {_mib(plan.num_bytes)}, "
            f"of {_mib(budget)} that there are\n{plan}"
        )
    return plan


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.3g} MiB"

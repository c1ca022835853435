"""A finite list of tasks: those that there are, each judged once and by its name; and the list of one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_distribution, check_fits, check_names, check_num_ways, check_stacked, check_weight
from jaxmeta.tasks.padding import (
    Form,
    are_alike,
    as_examples,
    common_form,
    given_ways,
    has_labels,
    num_rows,
    num_ways_of,
    padded,
    with_ways,
)
from jaxmeta.types import Batch, Examples, PyTree, Task, TaskDistribution
from jaxmeta.words import short


def fixed(tasks: Task | Sequence[Task], *, names: Sequence[str] | None = None) -> TaskDistribution:
    """A finite list of tasks, such as thirty clinics: `sample` draws one of them, each as likely, and `evaluate` judges
    each once, in their order, and reports them by their names.

    Where tasks have different numbers of examples, their batches, pairs (x, y) or `Examples`, become `Examples` as long
    as those of the largest, with the weight 0 for what is padding, so that one compiled program serves all. Padding is
    made where a task is drawn: what lies on the device is the examples alone. Tasks of equal numbers stay as they are.

    Where targets are class numbers (integers [B]), and tasks differ in their number of examples or of classes,
    `num_ways` says of how many classes a task is: its largest label and one. Outputs from there on have no part in it,
    which is right where classes are a task's own. Where labels mean the same in all tasks, and one has examples of some
    classes only, say how many there are: `Examples(x, y, num_ways=5)`.

    The only task that there is, of whatever arrays, is `single(task)`.

    Args:
      tasks: a sequence of `Task`s, or one stacked `Task`, every array with a leading axis N; of numpy or jax arrays,
        which are put on the device. `info` is kept, and must be arrays of the same shapes for all.
      names: of the tasks, in their order; none if None.

    Returns:
      Tasks with `at`, `size` and `names`.

    Raises:
      ValueError: there are no tasks; one has no query set, or other arrays, shapes or dtypes than the first, and is
        named; names are not as many, or not different.

    >>> def clinic(num_patients, seed):
    ...     x = np.random.default_rng(seed).normal(size=(num_patients + 4, 2))
    ...     return Task((x[:-4], x[:-4, :1]), (x[-4:], x[-4:, :1]))
    >>> tasks = fixed([clinic(12, 0), clinic(7, 1), clinic(30, 2)], names=["north", "south", "west"])
    >>> south = tasks.at(1, tasks.data)
    >>> south.support.x.shape, south.support.weight.sum().item()
    ((30, 2), 7.0)
    """
    if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
        raise ValueError(f"names must be a list of strings, one for each task, got {short(names)}")
    if isinstance(tasks, Task):
        data = _with_ways_where_they_differ(_checked_stack(tasks), names)
        return _distribution(_at, data, num_rows(data.support), names)
    listed = _checked_list(tasks, names)
    info = _stacked_info(listed, names)
    listed = [task._replace(info=()) for task in listed]
    form = common_form({_name(i, names): task for i, task in enumerate(listed)})
    if form is None:
        stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *listed)
        return _distribution(_at, _with_ways_where_they_differ(stacked._replace(info=info), names), len(listed), names)
    if form.has_labels:
        listed = [with_ways(task, _ways_of(_name(i, names), task)) for i, task in enumerate(listed)]
    data = Task(_strung([task.support for task in listed]), _strung([task.query for task in listed]), info)
    return _distribution(_padded_at(form), data, len(listed), names)


def single(task: PyTree) -> TaskDistribution:
    """The only task that there is, as of `bilevel`, which has no others to learn for: `sample` returns it whatever the
    key, and `evaluate` judges it once.

    Nothing is padded, so that its sets may hold any arrays: batches of several kinds, a stream, or none.

    Args:
      task: a `Task`, or what else the learner takes for one, such as an environment's params; of numpy or jax arrays,
        which are put on the device.

    Returns:
      Tasks with `at`, and of `size` 1.

    Raises:
      ValueError: `task` holds no arrays, or something else among them.

    >>> few, many, query = jnp.ones((3, 2)), jnp.ones((50, 2)), jnp.ones((5, 2))
    >>> tasks = single(Task((few, many), query))
    >>> tasks.size, tasks.sample(jax.random.key(0), tasks.data).support[1].shape
    (1, (50, 2))
    """
    leaves = jax.tree.leaves(task)
    if not leaves or not all(map(_is_number, leaves)):
        raise ValueError(f"task must be of numpy or jax arrays of numbers, one at least, got {short(task)}")
    check_fits("task", task)
    return TaskDistribution(_the_one, jax.tree.map(jnp.asarray, task), at=_the_one, size=1)


def _the_one(which: jax.Array, task: PyTree) -> PyTree:
    """The same function for every task, so that tasks of the same shapes share compiled programs."""
    return task


def _is_number(leaf: Any) -> bool:
    return _is_array(leaf) or isinstance(leaf, int | float | np.number)


def _distribution(at: Callable, data: PyTree, size: int, names: Sequence[str] | None) -> TaskDistribution:
    sample = _sample if at is _at else lambda key, data: at(jax.random.randint(key, (), 0, size), data)
    tasks = TaskDistribution(sample, data, at=at, size=size, names=None if names is None else list(names))
    check_distribution("tasks", tasks)
    return tasks


def _at(index: jax.Array | int, tasks: Task) -> Task:
    """Of stacked tasks."""
    return jax.tree.map(lambda leaf: leaf[index], tasks)


def _sample(key: jax.Array, tasks: Task) -> Task:
    """The same function for every list, so that lists of the same shapes share compiled programs."""
    return _at(jax.random.randint(key, (), 0, len(jax.tree.leaves(tasks)[0])), tasks)


class Strung(NamedTuple):
    """The batches of N tasks one after another, without padding.

    Attributes:
      examples: x, y and weight of all [sum of B_i, ...], and num_ways [N].
      starts: [N], the row that a task's begin at.
      sizes: [N], how many they are.
    """

    examples: Examples
    starts: jax.Array
    sizes: jax.Array


def _strung(batches: Sequence[Batch]) -> Strung:
    batches = [as_examples(batch) for batch in batches]
    sizes = np.array([num_rows(batch) for batch in batches], np.int32)
    strung = lambda *leaves: jnp.asarray(np.concatenate(leaves))
    x, y = (jax.tree.map(strung, *(getattr(batch, field) for batch in batches)) for field in ("x", "y"))
    weight = None
    if any(batch.weight is not None for batch in batches):
        weights = (np.ones(size, np.float32) for size in sizes)
        weight = strung(
            *(w if b.weight is None else np.asarray(b.weight) for b, w in zip(batches, weights, strict=True))
        )
    ways = [batch.num_ways for batch in batches]
    num_ways = None if None in ways else jnp.asarray(np.array(ways, np.int32))
    return Strung(Examples(x, y, weight, num_ways), jnp.asarray(np.cumsum(sizes) - sizes), jnp.asarray(sizes))


def _padded_at(form: Form) -> Callable:
    def padded_at(index: jax.Array | int, tasks: Task) -> Task:
        def batch(strung: Strung, size: int) -> Examples:
            whole, start, count = strung.examples, strung.starts[index], strung.sizes[index]
            num_ways = None if whole.num_ways is None else whole.num_ways[index]
            return padded(whole, size, start, count)._replace(num_ways=num_ways)

        info = jax.tree.map(lambda leaf: leaf[index], tasks.info)
        return Task(batch(tasks.support, form.support), batch(tasks.query, form.query), info)

    return padded_at


def _ways_of(name: str, task: Task) -> int:
    """Of how many classes a task is, by `num_ways_of`; what cannot be class numbers is refused."""
    labels = np.concatenate([as_examples(batch).y for batch in (task.support, task.query)])
    if given_ways(task) is None and (labels.min() < 0 or labels.max() == 0):
        raise ValueError(
            f"labels of {name} must be class numbers from 0, of two classes at least, got "
            f"{np.unique(labels).tolist()}: say Examples(x, y, num_ways=2) of a task with more classes than it has "
            "examples of; integers that are no class numbers are targets as floats"
        )
    return int(num_ways_of(task))


def _with_ways_where_they_differ(tasks: Task, names: Sequence[str] | None) -> Task:
    """Stacked tasks, as they are where all are of as many classes."""
    one = _at(0, tasks)
    if not has_labels(one) or given_ways(one) is not None:
        return tasks
    labels = [np.asarray(as_examples(batch).y) for batch in (tasks.support, tasks.query)]
    if len({*np.max(np.concatenate(labels, axis=1), axis=1).tolist()}) == 1:
        return tasks
    listed = [Task((None, support), (None, query)) for support, query in zip(*labels, strict=True)]
    ways = [_ways_of(_name(i, names), task) for i, task in enumerate(listed)]
    return with_ways(tasks, jnp.asarray(ways, jnp.int32))


def _name(index: int, names: Sequence[str] | None) -> str:
    """How errors name a task."""
    return f"tasks[{index}]" + ("" if names is None else f" ({names[index]!r})")


def _checked_list(tasks: Any, names: Sequence[str] | None) -> list[Task]:
    """Tasks of numpy arrays in jax's precision."""
    if not isinstance(tasks, Sequence) or isinstance(tasks, str | bytes) or not tasks:
        raise ValueError(f"tasks must be a list of jaxmeta.Task, or a stacked one, got {short(tasks)}")
    if names is not None:
        check_names("names", names, len(tasks))
    return [_checked(_name(i, names), task) for i, task in enumerate(tasks)]


def _checked(name: str, task: Any) -> Task:
    if not isinstance(task, Task):
        raise ValueError(f"{name} must be a jaxmeta.Task(support, query), got {type(task).__name__}")
    return task._replace(
        support=_checked_batch(f"the support set of {name}", task.support),
        query=_checked_batch(f"the query set of {name}", task.query),
    )


def _checked_batch(name: str, batch: Batch, num_axes: int = 1) -> Batch:
    """A batch of numpy arrays that share their first `num_axes` axes: of examples, and of tasks before them."""
    num_ways = batch.num_ways if isinstance(batch, Examples) else None
    if num_ways is not None:
        if num_axes == 1:
            check_num_ways(f"num_ways in {name}", num_ways, 2**31 - 1)
        batch = batch._replace(num_ways=None)
    leaves = jax.tree.leaves(batch)
    if not leaves:
        raise ValueError(f"{name} must hold arrays, got {short(batch)}: `evaluate` judges a task on its query set")
    if wrong := [leaf for leaf in leaves if not _is_array(leaf)]:
        raise ValueError(f"{name} must be numpy or jax arrays of numbers, got {short(wrong[0])} in it")
    sizes = {leaf.shape[:num_axes] for leaf in leaves}
    if len(sizes) != 1 or len(size := sizes.pop()) < num_axes or 0 in size:
        axes = "[B, ...]" if num_axes == 1 else "[N, B, ...]"
        shapes = ", ".join(str(leaf.shape) for leaf in leaves)
        raise ValueError(f"{name} must be arrays {axes} of as many examples each, one at least, got shapes {shapes}")
    check_fits(name, batch)
    batch = jax.tree.map(_as_numpy, batch)
    if isinstance(batch, Examples) and batch.weight is not None and num_axes == 1:
        check_weight(f"weight in {name}", batch.weight, num_rows(batch))
    return batch if num_ways is None else batch._replace(num_ways=np.asarray(num_ways, np.int32))


def _is_array(leaf: Any) -> bool:
    is_array = isinstance(leaf, np.ndarray | jax.Array)
    return is_array and (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool)


def _as_numpy(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _checked_stack(tasks: Task) -> Task:
    """Stacked tasks of jax arrays."""
    tasks = tasks._replace(
        support=_checked_batch("the support sets of stacked tasks", tasks.support, num_axes=2),
        query=_checked_batch("the query sets of stacked tasks", tasks.query, num_axes=2),
    )
    check_stacked("tasks", tasks)
    return jax.tree.map(jnp.asarray, tasks)


def _stacked_info(tasks: Sequence[Task], names: Sequence[str] | None) -> PyTree:
    for i, task in enumerate(tasks):
        check_fits(f"info of {_name(i, names)}", task.info)
    infos = [jax.tree.map(_as_numpy, task.info) for task in tasks]
    for i, info in enumerate(infos):
        if not are_alike(infos[0], info) or not all(map(_is_array, jax.tree.leaves(info))):
            raise ValueError(
                f"info of {_name(i, names)} must be numbers, of the same shapes and dtypes for all tasks, got "
                f"{short(tasks[i].info)}: leave it out, and say which task is which by names"
            )
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *infos)

"""A finite list of tasks in parts: to train on, to validate on, to test on."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_distribution, check_integer, check_names, check_number
from jaxmeta.types import PyTree, TaskDistribution
from jaxmeta.words import counted, short


def split_tasks(
    tasks: TaskDistribution,
    *,
    fractions: Sequence[float] | None = None,
    counts: Sequence[int] | None = None,
    names: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
) -> tuple[TaskDistribution, ...]:
    """A finite list in parts, such as training, validation and test, which share its arrays: none is copied.

    Which task goes where is drawn from `seed`, unless parts are lists of names; the tasks of a part are in the order of
    the list, or of its names. Give one of `fractions`, `counts` and `names`.

    Args:
      tasks: a finite distribution, such as that of `fixed`.
      fractions: of the tasks, of each part; they sum to 1.
      counts: how many tasks each part has; they sum to `tasks.size`.
      names: of the tasks of each part, which has those and no others. A name is in one part at most; a task whose name
        is in none is left out.
      seed: an integer ≥ 0.

    Returns:
      As many distributions as there are parts, each with `at`, `size` and `names` of its own.

    Raises:
      ValueError: `tasks` is not finite; parts are not given in one way, do not sum up, or one would be empty; a name is
        not there, or is in two parts.

    >>> from jaxmeta.tasks.fixed import fixed
    >>> from jaxmeta.types import Task
    >>> x = np.ones((10, 5, 1))
    >>> tasks = fixed(Task((x, x), (x, x)), names=list("abcdefghij"))
    >>> train, validation, test = split_tasks(tasks, fractions=(0.6, 0.2, 0.2), seed=1)
    >>> train.size, validation.names, test.names
    (6, ['f', 'j'], ['d', 'g'])
    """
    check_distribution("tasks", tasks)
    check_integer("seed", seed, minimum=0)
    if tasks.at is None or tasks.size is None:
        raise ValueError(f"tasks must be finite, as those of tasks.fixed, to be split, got {tasks!r}")
    given = {"fractions": fractions, "counts": counts, "names": names}
    if sum(value is not None for value in given.values()) != 1:
        raise ValueError(f"parts must be given as one of fractions, counts and names, got {short(given)}")
    if names is not None:
        parts = _named_parts(names, tasks.names)
    else:
        counts = _counts_of(fractions, tasks.size) if counts is None else _checked_counts(counts, tasks.size)
        order = np.random.default_rng(seed).permutation(tasks.size)
        parts = [np.sort(part) for part in np.split(order, np.cumsum(counts)[:-1])]
    at_all = tasks.at

    def at(index: jax.Array | int, data: dict[str, PyTree]) -> PyTree:
        return at_all(data["numbers"][index], data["tasks"])

    def sample(key: jax.Array, data: dict[str, PyTree]) -> PyTree:
        return at(jax.random.randint(key, (), 0, len(data["numbers"])), data)

    return tuple(
        TaskDistribution(
            sample,
            {"numbers": jnp.asarray(part, jnp.int32), "tasks": tasks.data},
            at=at,
            size=len(part),
            names=None if tasks.names is None else [tasks.names[i] for i in part],
        )
        for part in parts
    )


def _counts_of(fractions: Any, size: int) -> list[int]:
    """Fractions of all as whole numbers, none of which is 0."""
    if not isinstance(fractions, Sequence) or isinstance(fractions, str) or not fractions:
        raise ValueError(f"fractions must be numbers, such as (0.6, 0.2, 0.2), got {short(fractions)}")
    for i, fraction in enumerate(fractions):
        check_number(f"fractions[{i}]", fraction)
    if abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must sum to 1, got {short(fractions)}, which sum to {sum(fractions):g}")
    counts = np.diff(np.round(np.cumsum(fractions) * size), prepend=0).astype(int).tolist()
    if 0 in counts:
        raise ValueError(f"fractions of {counted(size, 'task')} must leave each part one at least, got {counts} tasks")
    return counts


def _checked_counts(counts: Any, size: int) -> Sequence[int]:
    if not isinstance(counts, Sequence) or isinstance(counts, str) or not counts:
        raise ValueError(f"counts must be whole numbers, such as (20, 5, 5), got {short(counts)}")
    for i, count in enumerate(counts):
        check_integer(f"counts[{i}]", count, minimum=1)
    if sum(counts) != size:
        raise ValueError(f"counts must sum to the {counted(size, 'task')} that there are, got {short(counts)}")
    return counts


def _named_parts(parts: Any, names: Sequence[str] | None) -> list[np.ndarray]:
    """The numbers of the tasks of each part."""
    if names is None:
        raise ValueError("names of parts need tasks with names: tasks.fixed(tasks, names=...), or split by fractions")
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
        raise ValueError(f"names must be a list of names for each part, got {short(parts)}")
    number_of = {name: i for i, name in enumerate(names)}
    for i, part in enumerate(parts):
        check_names(f"names[{i}]", part, len(part) if isinstance(part, Sequence) else None)
        if not part:
            raise ValueError(f"names[{i}] must have a name at least: a part of no tasks is none")
        if unknown := [name for name in part if name not in number_of]:
            raise ValueError(f"names[{i}] must be names of tasks, got {short(unknown)}: they are {short(list(names))}")
    check_names("names of all parts", all_names := [name for part in parts for name in part], len(all_names))
    return [np.array([number_of[name] for name in part]) for part in parts]

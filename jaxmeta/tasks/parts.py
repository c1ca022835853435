"""A finite list of tasks in parts: to train on, to choose settings by, and to test on."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_distribution, check_integer, check_names, check_number
from jaxmeta.tasks.class_splits import permutation
from jaxmeta.types import PyTree, TaskDistribution
from jaxmeta.words import counted, short

_PARTS = ("train", "validation", "test")


def split_tasks(
    tasks: TaskDistribution,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    counts: Sequence[int] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> tuple[TaskDistribution, ...]:
    """A finite list in parts, to train, to choose settings by, and to test, which share its arrays: none is copied.

    By `fractions` or `counts` the tasks are permuted by `seed` and cut, the same way on every machine and with every
    version; those of a part stay in the order of the list. By `names` they are those that you name, in your order.

    Args:
      tasks: a finite distribution, such as that of `fixed`.
      fractions: of the tasks that each part has, of two parts or three; they sum to 1.
      counts: how many tasks each part has, in place of `fractions`; they sum to `tasks.size`.
      names: lists of tasks, {"train": [...], "validation": [...], "test": [...]}, in place of `fractions`; one may be
        left out, and a task in none of them is in no part.
      seed: an integer ≥ 0, of the permutation; results with different seeds do not compare.

    Returns:
      (train, validation, test), or as many as are asked for, in this order, each with `at`, `size` and `names`.

    Raises:
      ValueError: `tasks` is not finite; parts do not sum up, or one would be empty; a name is not there, or is in two
        parts.

    >>> from jaxmeta.tasks.fixed import fixed
    >>> from jaxmeta.types import Task
    >>> x = np.ones((10, 5, 1))
    >>> tasks = fixed(Task((x, x), (x, x)), names=list("abcdefghij"))
    >>> train, validation, test = split_tasks(tasks)
    >>> train.size, validation.names, test.names
    (6, ['e', 'h'], ['f', 'j'])
    >>> [part.names for part in split_tasks(tasks, names={"train": ["c", "a"], "test": ["j"]})]
    [['c', 'a'], ['j']]
    """
    check_distribution("tasks", tasks)
    check_integer("seed", seed, minimum=0)
    if tasks.at is None or tasks.size is None:
        raise ValueError(f"tasks must be finite to be split, as those of tasks.fixed, got {tasks!r}")
    if counts is not None and names is not None:
        raise ValueError(f"counts and names must not both be given, got {short(counts)} and {short(names)}")
    if names is not None:
        parts = _named(names, tasks.names)
    else:
        counts = _counts_of(fractions, tasks.size) if counts is None else _checked_counts(counts, tasks.size)
        parts = [np.sort(part) for part in np.split(permutation(tasks.size, seed), np.cumsum(counts)[:-1])]
    return _parts_of(tasks, tasks.at, parts)


def _parts_of(tasks: TaskDistribution, at_all: Any, parts: Sequence[np.ndarray]) -> tuple[TaskDistribution, ...]:
    """Distributions of the tasks of these numbers, which differ in their data alone."""

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
    _check_parts("fractions", fractions, "(0.6, 0.2, 0.2)")
    for i, fraction in enumerate(fractions):
        check_number(f"fractions[{i}]", fraction)
    if abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must sum to 1, got {short(tuple(fractions))}, which sum to {sum(fractions):g}")
    counts = np.diff(np.round(np.cumsum([0.0, *fractions]) * size, 6).round()).astype(int).tolist()
    if 0 in counts:
        raise ValueError(
            f"fractions must give each part a task, got {short(tuple(fractions))} of {counted(size, 'task')}, which is "
            f"{' + '.join(map(str, counts))}: of two parts say two fractions, or name the tasks by names"
        )
    return counts


def _checked_counts(counts: Any, size: int) -> Sequence[int]:
    _check_parts("counts", counts, "(20, 5, 5)")
    for i, count in enumerate(counts):
        check_integer(f"counts[{i}]", count, minimum=1)
    if sum(counts) != size:
        raise ValueError(f"counts must sum to the {counted(size, 'task')} that there are, got {short(tuple(counts))}")
    return counts


def _check_parts(name: str, value: Any, example: str) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) not in (2, 3):
        raise ValueError(f"{name} must be of two parts or three, such as {example}, got {short(value)}")


def _named(parts: Any, names: Sequence[str] | None) -> list[np.ndarray]:
    """The numbers of the tasks of each part."""
    if names is None:
        raise ValueError(
            "names of parts need tasks with names, tasks.fixed(tasks, names=...): split these by fractions"
        )
    if not isinstance(parts, Mapping) or not parts or not set(parts) <= set(_PARTS):
        raise ValueError(f"names must be a dict with the keys {', '.join(_PARTS)}, got {short(parts)}")
    lists = {part: parts[part] for part in _PARTS if part in parts}
    number_of = {name: i for i, name in enumerate(names)}
    for part, chosen in lists.items():
        if not isinstance(chosen, Sequence) or isinstance(chosen, str) or not chosen:
            raise ValueError(f"names of {part} must be a list of names of tasks, one at least, got {short(chosen)}")
        if unknown := [name for name in chosen if name not in number_of]:
            raise ValueError(f"names of {part} must be names of tasks, {short(list(names))}, got {short(unknown)}")
    all_names = [name for chosen in lists.values() for name in chosen]
    check_names("names of all parts", all_names, len(all_names))
    return [np.array([number_of[name] for name in chosen]) for chosen in lists.values()]

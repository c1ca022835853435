"""Episodes whose classes all come from one group, such as the characters of one alphabet."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.tasks import by_class
from jaxmeta.tasks.by_class import Array, Ragged
from jaxmeta.tasks.draws import draw, draw_of_any
from jaxmeta.words import counted, short


class Grouped(NamedTuple):
    """Examples by class, and classes by group.

    Attributes:
      data: the examples
      groups: classes in place of examples: those of group g are `examples[starts[g]]` and the `counts[g]` from it on
    """

    data: Array | Ragged
    groups: Ragged


def grouped(data: Array | Ragged, groups: Any, names: Sequence[Hashable], num_ways: int) -> Grouped:
    """The groups with `num_ways` classes or more; there must be one."""
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(_group_of_each(groups, names)):
        if not isinstance(group, Hashable):
            which = f"class {short(names[number], width=40)}"
            raise ValueError(f"groups must be integers or names, got {short(group)} for {which}")
        members.setdefault(group, []).append(number)
    enough = [classes for classes in members.values() if len(classes) >= num_ways]
    if not enough:
        largest = sorted(members, key=lambda group: -len(members[group]))
        listed = by_class.listing(f"{short(group, width=40)} ({len(members[group])})" for group in largest)
        raise ValueError(
            f"groups must have one with num_ways = {num_ways} classes at least, got "
            f"{counted(len(members), 'group')}, {listed}: take fewer ways, or larger groups"
        )
    counts = np.array([len(classes) for classes in enough])
    numbers = (np.concatenate(enough), np.cumsum(counts) - counts, counts)
    return Grouped(data, Ragged(*(jnp.asarray(each, jnp.int32) for each in numbers)))


def draw_classes(key: jax.Array, data: Array | Ragged | Grouped, num: int, turns: int) -> jax.Array:
    """`num` classes without replacement, of all, or of a group drawn first; class c turned r times is r * C + c.

    A turned group is another: an episode's classes are turned alike.
    """
    if not isinstance(data, Grouped):
        return draw(key, num, turns * by_class.num_classes(data))
    group_key, classes_key = jax.random.split(key)
    members, starts, counts = data.groups
    turn, group = jnp.divmod(jax.random.randint(group_key, (), 0, turns * len(counts), jnp.int32), len(counts))
    places = draw_of_any(classes_key, num, counts[group])
    return turn * by_class.num_classes(data.data) + members[starts[group] + places]


def _group_of_each(groups: Any, names: Sequence[Hashable]) -> list[Hashable]:
    """The group of each class: from one for each in order, or from its name."""
    if isinstance(groups, Mapping):
        if missing := [name for name in names if name not in groups]:
            listed = by_class.listing(short(name, width=40) for name in missing)
            raise ValueError(f"groups must have the group of every class, got none of {listed}")
        return [groups[name] for name in names]
    if isinstance(groups, Callable):  # type: ignore[arg-type]
        return [groups(name) for name in names]
    is_sequence = isinstance(groups, Sequence | np.ndarray | jax.Array) and not isinstance(groups, str | bytes)
    if not is_sequence or getattr(groups, "ndim", 1) != 1 or len(groups) != len(names):
        raise ValueError(
            f"groups must have a group for each of {counted(len(names), 'class', 'classes')}, in their order or as a "
            f"function or dict of their names, got {short(groups)}"
        )
    return groups.tolist() if isinstance(groups, np.ndarray | jax.Array) else list(groups)

"""Tasks of several sizes made of one form, with `Examples`: for lists of them, and for several sources of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.types import Batch, Examples, PyTree, Task


class Form(NamedTuple):
    """What tasks are padded to: rows of a support set and of a query set, and whether targets are class numbers, so
    that a task says of how many classes it is."""

    support: int
    query: int
    has_labels: bool


def common_form(shapes: Mapping[str, PyTree]) -> Form | None:
    """What tasks of these shapes can be padded to, or None where they all have one shape as they are.

    Args:
      shapes: by a name for errors, tasks of which shapes and dtypes are read.

    Raises:
      ValueError: they differ in more than their number of examples, or are no batches that can be padded.
    """
    first, *others = shapes
    example = _batches(shapes[first])
    unlike = [name for name in others if not are_alike(example, _batches(shapes[name]))]
    if not unlike:
        return None
    one = _examples_of(first, example, unlike[0])
    for name in others:
        _check_alike(first, name, one, _examples_of(name, shapes[name], unlike[0]))
    largest = lambda kind: max(num_rows(getattr(shape, kind)) for shape in shapes.values())
    return Form(largest("support"), largest("query"), has_labels(one))


def are_alike(first: PyTree, *others: PyTree) -> bool:
    """Whether pytrees have one structure, and the same shapes and dtypes."""
    kind = lambda tree: [jax.tree.structure(tree), *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))]
    return all(kind(tree) == kind(first) for tree in others)


def _batches(shape: PyTree) -> PyTree:
    """Without the info, which no learner reads."""
    return shape._replace(info=()) if isinstance(shape, Task) else shape


def num_rows(batch: Batch) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


def is_padable(batch: Batch) -> bool:
    """A pair (x, y), or `Examples`."""
    return isinstance(batch, Examples) or (isinstance(batch, tuple | list) and len(batch) == 2)


def as_examples(batch: Batch) -> Examples:
    """A pair, or what is `Examples` already."""
    return batch if isinstance(batch, Examples) else Examples(*batch)


def _examples_of(name: str, task: PyTree, unlike: str) -> Task:
    """A task's batches as `Examples`."""
    if not isinstance(task, Task):
        raise ValueError(f"{unlike} must have the shapes of the others: only a jaxmeta.Task can be padded to them")
    for kind in ("support", "query"):
        batch = getattr(task, kind)
        if not is_padable(batch):
            raise ValueError(
                f"{unlike} has other shapes than the others, and only pairs (x, y) and Examples can be padded: the "
                f"{kind} set of {name} is {type(batch).__name__}. Make it a pair, whose x and y may be any pytrees, or "
                "give all tasks one size"
            )
        if num_rows(batch) == 0:
            raise ValueError(f"the {kind} set of {name} must have an example at least, got none: padding repeats one")
    return Task(as_examples(task.support), as_examples(task.query))


def _check_alike(first: str, other: str, one: Task, two: Task) -> None:
    """Two tasks that differ in their number of examples at most."""
    row = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)
    said = lambda tree: ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(tree))
    for kind in ("support", "query"):
        for field in ("x", "y"):
            of_one, of_two = (row(getattr(getattr(task, kind), field)) for task in (one, two))
            if not are_alike(of_one, of_two):
                raise ValueError(
                    f"examples of {first} and {other} must have one structure, shape and dtype, but {field} of one in "
                    f"the {kind} set is {said(of_one)} in {first} and {said(of_two)} in {other}: make them alike, "
                    "images by a common size"
                )
    if not has_labels(one) and (given_ways(one) is None) != (given_ways(two) is None):
        raise ValueError(
            f"num_ways must be said by both {first} and {other}, or by neither: Examples(x, y, num_ways=...)"
        )


def has_labels(task: Task) -> bool:
    """Whether both sets are pairs or `Examples` whose targets are class numbers: integers [B]."""
    batches = (task.support, task.query)
    return all(is_padable(batch) and _is_labels(as_examples(batch).y) for batch in batches)


def _is_labels(y: Any) -> bool:
    return hasattr(y, "ndim") and y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer)


def given_ways(task: Task) -> Any:
    """Of how many classes a task of pairs or `Examples` says it is; None if it says nothing."""
    given = [as_examples(batch).num_ways for batch in (task.support, task.query)]
    return next((num_ways for num_ways in given if num_ways is not None), None)


def num_ways_of(task: Task) -> jax.Array:
    """Of how many classes a task of class numbers is: as it says, or its largest label and one."""
    given = given_ways(task)
    largest = jnp.maximum(*(jnp.max(as_examples(batch).y) for batch in (task.support, task.query)))
    return jnp.asarray(largest + 1 if given is None else given, jnp.int32)


def with_ways(task: Task, num_ways: Any) -> Task:
    """A task of which both sets say of how many classes it is."""
    support, query = (as_examples(batch)._replace(num_ways=num_ways) for batch in (task.support, task.query))
    return task._replace(support=support, query=query)


def padded(batch: Batch, size: int, first: Any = 0, count: Any = None) -> Examples:
    """`count` rows of a batch from row `first` on, and padding after them up to `size` rows.

    Padding repeats the first row, with the weight 0 and the label 0.

    Args:
      batch: of which rows are taken, of all tasks of a list.
      size: static, rows of what is returned.
      first: 0 if not said.
      count: at least 1; all that there are if None.

    >>> padded(Examples(jnp.array([5.0, 6.0, 7.0]), jnp.array([2, 1, 1])), size=4, first=1, count=2)._replace(x=None)
    Examples(x=None, y=int32[4], weight=float32[4], num_ways=None)
    """
    batch, places = as_examples(batch), jnp.arange(size)
    is_there = places < (num_rows(batch) if count is None else count)
    rows = first + jnp.where(is_there, places, 0)
    x, y = jax.tree.map(lambda leaf: leaf[rows], (batch.x, batch.y))
    weight = 1.0 if batch.weight is None else batch.weight[rows].astype(float)
    return Examples(
        x=x,
        y=jnp.where(is_there, y, 0) if _is_labels(y) else y,
        weight=jnp.where(is_there, weight, 0.0).astype(float),
        num_ways=batch.num_ways,
    )

"""Examples grouped by class, in the forms people have them: read, checked and laid out without any padding."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_fits
from jaxmeta.tasks.draws import draw, draw_of_any
from jaxmeta.words import counted, short

Array: TypeAlias = np.ndarray | jax.Array


class Ragged(NamedTuple):
    """Classes of unequal size, one after the other: the examples of class c are `counts[c]` from `starts[c]` on.

    Attributes:
      examples: [n, ...]
      starts: [classes] int32
      counts: [classes] int32
    """

    examples: Array
    starts: Array
    counts: Array


class ByClass(NamedTuple):
    """What `read` makes of people's data.

    Attributes:
      data: an array [classes, examples, ...], or classes of unequal size
      names: of the classes, in order: keys, labels, or numbers
      counts: how many examples each has
      shape: of an example
      dtype: of an example, on the device
    """

    data: Array | Ragged
    names: Sequence[Hashable]
    counts: np.ndarray
    shape: tuple[int, ...]
    dtype: Any


def read(data: Any) -> ByClass:
    """An array [classes, examples, ...], a list of arrays, a pair (x, y), or a dict of arrays."""
    if isinstance(data, Ragged):  # of a distribution that has read it
        counts = np.asarray(data.counts)
        return ByClass(data, range(len(counts)), counts, data.examples.shape[1:], data.examples.dtype)
    if isinstance(data, Array):
        return _rectangular(data)
    if isinstance(data, Mapping):
        return _ragged(list(data), list(data.values()))
    if isinstance(data, tuple) and len(data) == 2:
        return _labelled(*data)
    if isinstance(data, list | tuple):
        return _ragged(range(len(data)), list(data))
    raise ValueError(
        "data must be an array [classes, examples, ...], a list of arrays [examples, ...], a pair (x, y) of examples "
        f"and integer labels, or a dict {{name: array}}, got {type(data).__name__}"
    )


def num_classes(data: Array | Ragged) -> int:
    """C, of either."""
    return len(data.counts) if isinstance(data, Ragged) else data.shape[0]


def draw_examples(keys: jax.Array, data: Array | Ragged, classes: jax.Array, num: int) -> jax.Array:
    """`num` examples [classes, num] of each of these classes, without replacement, with a key for each.

    Class r * C + c is class c, rotated.
    """
    if isinstance(data, Ragged):
        return jax.vmap(lambda key, count: draw_of_any(key, num, count))(keys, data.counts[classes % len(data.counts)])
    return jax.vmap(lambda key: draw(key, num, data.shape[1]))(keys)


def take(data: Array | Ragged, classes: jax.Array, examples: jax.Array) -> jax.Array:
    """Example `examples[i]` of class `classes[i]`, for all i at once."""
    if isinstance(data, Ragged):
        return data.examples[data.starts[classes] + examples]
    return data[classes, examples]


def place(data: Array | Ragged, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The class of the examples with these numbers, counted through all classes, and their places in it."""
    if isinstance(data, Ragged):
        classes = jnp.searchsorted(data.starts, numbers, side="right").astype(jnp.int32) - 1
        return classes, numbers - data.starts[classes]
    return numbers // data.shape[1], numbers % data.shape[1]


def check_enough(by_class: ByClass, num_shots: int, num_queries: int) -> None:
    """No class has fewer than `num_shots + num_queries` examples; those that do are named."""
    names, counts = by_class.names, by_class.counts
    few = np.flatnonzero(counts < num_shots + num_queries).tolist()
    if not few:
        return
    if not isinstance(by_class.data, Ragged):
        raise ValueError(
            f"num_shots + num_queries must be at most the {counts[0]} examples of a class in data, "
            f"got {num_shots} + {num_queries}"
        )
    listed = listing(f"{short(names[c], width=40)} ({counts[c]:,})" for c in few)
    raise ValueError(
        f"num_shots + num_queries must be at most the examples of every class in data, got {num_shots} + {num_queries}"
        f", and {len(few):,} of {counted(len(counts), 'class', 'classes')} {'has' if len(few) == 1 else 'have'} fewer: "
        f"{listed}: leave these out, or take fewer shots or queries"
    )


def check_varies(by_class: ByClass) -> None:
    """Not all numbers are the same, as those of blank images, in which there is nothing to tell classes by."""
    array = by_class.data.examples if isinstance(by_class.data, Ragged) else by_class.data
    flat = np.asarray(array).reshape(-1)
    is_one = len(by_class.counts) > 1 and all(np.all(some == flat[0]) for some in (flat[:1000], flat))
    if is_one:
        raise ValueError(
            f"data must differ from class to class, got {flat[0]} everywhere: were images decoded, and scaled, as "
            "they should be?"
        )


def listing(names: Iterable[str]) -> str:
    """The first five, and how many more.

    >>> listing("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    first = list(names)
    more = f" and {len(first) - 5:,} more" if len(first) > 5 else ""
    return f"{', '.join(first[:5])}{more}"


def _rectangular(data: Array) -> ByClass:
    if data.ndim < 2:
        raise ValueError(
            f"data must have the axes [classes, examples, ...], got the shape {data.shape}; of examples and their "
            "labels it is a pair (x, y)"
        )
    _check_dtype("data", data)
    array = _on_device(data)
    return ByClass(array, range(len(data)), np.full(data.shape[0], data.shape[1]), data.shape[2:], array.dtype)


def _labelled(x: Any, y: Any) -> ByClass:
    """(x, y), sorted by label if it is not."""
    what = "data must be (x [n, ...], y [n]), examples and integer labels"
    if not isinstance(x, Array) or x.ndim == 0:
        raise ValueError(f"{what}, got {short(x)} as x; of classes it is a list: [array [examples, ...], ...]")
    _check_dtype("data must be (x, y), where x", x)
    y = np.asarray(y)
    if y.ndim == 2 and len(y) == len(x):
        raise ValueError(f"{what}, got y {short(y)}: of one-hot rows the labels are y.argmax(axis=1)")
    if y.shape != x.shape[:1]:
        raise ValueError(f"{what}, got {short(x)} and {short(y)}; of two classes it is a list: [first, second]")
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"{what}, got y {short(y)}: np.unique(y, return_inverse=True) gives the names and, as integers, the labels"
        )
    names, counts = np.unique(y, return_counts=True)
    is_sorted = bool(np.all(y[1:] >= y[:-1]))
    return _flat(x if is_sorted else x[np.argsort(y, kind="stable")], names.tolist(), counts)


def _ragged(names: Sequence[Hashable], arrays: list[Any]) -> ByClass:
    if not arrays:
        raise ValueError("data must have a class at least, got none")
    which = lambda i: f"class {short(names[i], width=40)}"
    for i, array in enumerate(arrays):
        if not isinstance(array, Array) or array.ndim == 0:
            raise ValueError(
                f"data must have an array [examples, ...] for each class, got {short(array)} for {which(i)}"
            )
        _check_dtype(f"data must hold numbers: {which(i)}", array)
        if (array.shape[1:], array.dtype) != (arrays[0].shape[1:], arrays[0].dtype):
            raise ValueError(
                "data must have examples of one shape and dtype, "
                f"got {short(arrays[0])} for {which(0)} and {short(array)} for {which(i)}"
            )
    return _flat(_concatenated(arrays), names, np.array([len(array) for array in arrays]))


def _flat(examples: Array, names: Sequence[Hashable], counts: np.ndarray) -> ByClass:
    starts = np.cumsum(counts) - counts
    array = _on_device(examples)
    data = Ragged(array, *(jnp.asarray(numbers, jnp.int32) for numbers in (starts, counts)))
    return ByClass(data, names, counts, array.shape[1:], array.dtype)


def _concatenated(arrays: list[Array]) -> Array:
    """One after the other: those that are so in memory, as views of one array, are not copied."""
    first = arrays[0]
    is_view = all(isinstance(a, np.ndarray) and a.flags.c_contiguous and a.base is first.base for a in arrays)  # type: ignore[union-attr]
    if is_view and first.base is not None:  # type: ignore[union-attr]
        begins = [a.ctypes.data for a in arrays]  # type: ignore[union-attr]
        ends = [begin + a.nbytes for begin, a in zip(begins, arrays, strict=True)]
        if ends[:-1] == begins[1:]:
            shape = (sum(map(len, arrays)), *first.shape[1:])
            return np.lib.stride_tricks.as_strided(first, shape, writeable=False)
    return np.concatenate(arrays)


def _check_dtype(what: str, array: Array) -> None:
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise ValueError(f"{what} must hold numbers, such as uint8 or float32, got the dtype {array.dtype}")


def _on_device(array: Array) -> jax.Array:
    check_fits("data", array)
    try:
        return jnp.asarray(array)
    except TypeError as error:  # numbers that JAX does not have, such as long doubles
        raise ValueError(f"data must have a dtype that JAX has, got {array.dtype}") from error

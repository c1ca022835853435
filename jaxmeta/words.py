"""Words that people read: numbers agree with what they count, and no value fills a page."""

import functools
import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number and what there are so many of; `plural` where an s does not make it.

    >>> counted(1, "inner step"), counted(60_000, "inner step"), counted(2, "minibatch", "minibatches")
    ('1 inner step', '60,000 inner steps', '2 minibatches')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def short(value: Any, width: int = 120) -> str:
    """A value as an error or a notebook shows it: shapes for arrays, names for functions, at most `width` characters.

    >>> short({"w": np.zeros((64, 5), np.float32), "rate": 0.5, "loss_fn": len})
    "{'w': float32[64, 5], 'rate': 0.5, 'loss_fn': len}"
    >>> short([np.zeros((64, 64), np.float32) for _ in range(20)])
    'list of 20 arrays, 81,920 numbers'
    """
    text = _text(value)
    if len(text) <= width:
        return text
    if not isinstance(value, Mapping | tuple | list):
        return f"{text[: width - 3]}..."
    arrays = [leaf for leaf in jax.tree.leaves(value) if hasattr(leaf, "shape")]
    content = f"{counted(len(arrays), 'array')}, {counted(sum(map(np.size, arrays)), 'number')}"
    return f"{type(value).__name__} of {content if arrays else counted(len(value), 'entry', 'entries')}"


def _text(value: Any) -> str:
    part = lambda value: short(value, width=60)
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic):
        return _array_text(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = (f"{field}={part(getattr(value, field))}" for field in value._fields)
        return f"{type(value).__name__}({', '.join(fields)})"
    if type(value) is dict:
        return f"{{{', '.join(f'{key!r}: {part(entry)}' for key, entry in value.items())}}}"
    if type(value) is list:
        return f"[{', '.join(map(part, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(part, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, functools.partial):
        return _text(value.func)
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__.replace("<locals>.", "")
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(repr(value).split()))


def _array_text(value: Any) -> str:
    """dtype[shape] of an array, or of a shape; of a single number that is known the number: dtype(number)."""
    is_known = isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer)
    is_deleted = is_known and isinstance(value, jax.Array) and value.is_deleted()
    if value.shape != () or not is_known or is_deleted or value.dtype == object or _is_key(value):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    number = np.asarray(value).item()
    return f"{value.dtype}({f'{number:g}' if isinstance(number, float) else number})"


def _is_key(value: Any) -> bool:
    return jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended)


def html_table(caption: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table for a notebook.

    >>> html_table("2 tasks", ["", "mean"], [["at 0", "1.0"]])
    '<table><caption>2 tasks</caption><tr><th></th><th>mean</th></tr><tr><th>at 0</th><td>1.0</td></tr></table>'
    """
    cell = lambda tag, text: f"<{tag}>{html.escape(text)}</{tag}>"
    heading = "".join(cell("th", text) for text in header)
    lines = (cell("th", first) + "".join(cell("td", text) for text in rest) for first, *rest in rows)
    return f"<table>{cell('caption', caption)}{''.join(f'<tr>{line}</tr>' for line in (heading, *lines))}</table>"

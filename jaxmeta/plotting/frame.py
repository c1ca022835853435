"""What all pictures are made of: panels, curves, bands and legends; and the arguments that all of them check alike."""

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmeta.checks import check_integer, check_number
from jaxmeta.plotting.looks import Style
from jaxmeta.words import counted, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure


def figure(num_panels: int = 1, *, width: float = 4.8, height: float = 3.2) -> "tuple[Figure, Sequence[Axes]]":
    """Empty panels that look like those of the other pictures, to draw on what none of them does.

    Args:
      num_panels: how many, four in a row at most.
      width: of a panel, in inches.
      height: of a panel, in inches.

    Returns:
      The figure, made without pyplot, and a list of its axes.

    Raises:
      ValueError: `num_panels` is no positive integer, or a length is not positive.

    >>> picture, (left, right) = figure(2, width=3.0, height=2.5)
    >>> _ = left.plot([1, 2, 3])
    >>> picture.get_size_inches().tolist()
    [6.0, 2.5]
    """
    check_integer("num_panels", num_panels, minimum=1)
    check_number("width", width, minimum=0.1)
    check_number("height", height, minimum=0.1)
    return panels(num_panels, width, height)


def panels(num_panels: int, width: float, height: float, beside: float = 0.0) -> "tuple[Figure, Sequence[Axes]]":
    """A figure of panels of this size in inches, four in a row at most, with room beside them."""
    from jaxmeta.plotting.picture import Picture

    num_columns = min(4, num_panels)
    num_rows = -(-num_panels // num_columns)
    figure = Picture(figsize=(width * num_columns + beside, height * num_rows), layout="constrained", dpi=150)
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for unused in axes[num_panels:]:
        unused.remove()
    for panel in axes[:num_panels]:
        plain(panel)
    return figure, list(axes[:num_panels])


def plain(axes: "Axes") -> None:
    """No frame but the two axes, and a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)


def draw_curve(axes: "Axes", x: np.ndarray, y: np.ndarray, style: Style, **options: Any) -> None:
    """A line with eight markers or so; of one point, a line across."""
    line = {"color": style.color, "linestyle": style.line, **options}
    if len(y) == 1:
        axes.axhline(y[0], **line)
    else:
        axes.plot(x, y, marker=style.marker, markersize=4, markevery=max(1, len(y) // 8), **line)


def draw_band(axes: "Axes", x: np.ndarray, low: np.ndarray, high: np.ndarray, style: Style) -> None:
    """From `low` to `high`; of one point, across."""
    fill: dict[str, Any] = {"color": style.color, "alpha": 0.2, "linewidth": 0}
    if len(low) == 1:
        axes.axhspan(low[0], high[0], **fill)
    else:
        axes.fill_between(x, low, high, **fill)


def logarithmic(axis: "XAxis | YAxis", low: float, high: float) -> None:
    """An axis of powers of ten, in plain numbers where they are short: at 1, 2 and 5 where there are few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if low >= 1e-3 and high <= 1e6:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def square(points: np.ndarray) -> dict[str, tuple[float, float]]:
    """The limits of a square around all points `[n, 2]`, with some room."""
    low, high = points.min(axis=0), points.max(axis=0)
    middle, half = (low + high) / 2, 0.55 * max(*(high - low), 1e-6)
    return {name: (at - half, at + half) for name, at in zip(("xlim", "ylim"), middle, strict=True)}


def legend_beside(figure: "Figure", axes: "Sequence[Axes]") -> None:
    """Of all panels, each label once."""
    handles, labels = entries(axes)
    figure.legend(handles, labels, loc="outside right center", frameon=False, handlelength=3.5)


def legend_below(figure: "Figure", axes: "Iterable[Axes]", num_columns: int | None = None) -> None:
    """Likewise, in as many columns as there is room for."""
    handles, labels = entries(axes)
    each = 0.95 + 0.09 * max(map(len, labels), default=0)  # inches, with the line beside it
    columns = max(1, min(len(labels), int(figure.get_figwidth() / each))) if num_columns is None else num_columns
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.5)


def title_above(figure: "Figure", text: str, size: float = 12.0) -> None:
    """In lines that are as long as the figure is wide."""
    if not isinstance(text, str):
        raise ValueError(f"title must be text, got {short(text)}")
    letters = int(115 * figure.get_figwidth() / size)
    figure.suptitle("\n".join(textwrap.fill(line, letters) for line in text.split("\n")), fontsize=size)


def entries(axes: "Iterable[Axes]") -> tuple[list, list[str]]:
    """What a legend of all panels says: each label once, with the artist that it was first given to."""
    found: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def check_filled(name: str, value: Any, example: str) -> None:
    """A dict of at least one entry, each by its name."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a dict, such as {example}, got {short(value)}")
    if not value:
        raise ValueError(f"{name} must have at least one entry, such as {example}, got {{}}")


def check_names(names: Sequence[str] | None, there: Sequence[str]) -> list[str]:
    """The names, all that there are if None."""
    _check_sequence(names)
    for name in names or ():
        if name not in there:
            raise ValueError(f"names must be of metrics that there are, {', '.join(there)}, got {name!r}")
    return list(there if names is None else names)


def check_common(argument: str, names: Sequence[str] | None, there: Mapping[str, Collection[str]]) -> list[str]:
    """The names, those that all have if None; `there` holds what each has."""
    _check_sequence(names)
    for name in names or ():
        for key, own in there.items():
            if name not in own:
                raise ValueError(
                    f"names must be of metrics that all of {argument} have, and {key!r} has {', '.join(own)}, "
                    f"got {name!r}"
                )
    if names is not None:
        return list(names)
    first, *others = there.values()
    common = [name for name in first if all(name in own for own in others)]
    if not common:
        each = "; ".join(f"{key!r}: {', '.join(own)}" for key, own in there.items())
        raise ValueError(f"{argument} must have a metric in common to be drawn in one picture, got {each}")
    return common


def _check_sequence(names: Sequence[str] | None) -> None:
    if isinstance(names, str) or not isinstance(names, Sequence | None):
        such = [names] if isinstance(names, str) else ["loss"]
        raise ValueError(f"names must be a sequence of names, such as {such}, got {short(names)}")


def check_array(name: str, value: Any, shape: str, *, minimum: int = 0) -> np.ndarray:
    """As an array of numbers with as many axes as `shape` names, such as "[tasks, pulls]", the first of `minimum`."""
    array = np.asarray(value)
    if array.dtype == object or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise ValueError(f"{name} must be numbers {shape}, got {short(value)}")
    if array.ndim != shape.count(",") + 1:
        raise ValueError(f"{name} must have the shape {shape}, got {list(array.shape)}")
    if 0 in array.shape or len(array) < minimum:
        of = shape[1:].split(",")[0].rstrip("]")
        wanted = f"at least {minimum} {of}" if minimum > 1 else "at least one number"
        raise ValueError(f"{name} must be of {wanted}, got the shape {list(array.shape)}")
    return array


def check_length(name: str, value: Any, length: int, of: str) -> None:
    """One entry for each of `length` things, of which `of` says what they are."""
    if len(value) != length:
        raise ValueError(f"{name} must have {counted(length, 'entry', 'entries')}, one for each {of}, got {len(value)}")

"""The frame of the benchmarks' pictures: panels in rows, in the style of `jaxmeta.plotting`, without pyplot."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999", "#f0e442", "#7b3294")
MARKERS = "osD^vPX*<>"


def panels(
    num_rows: int, num_columns: int, title: str, *, width: float = 4.2, height: float = 3.0
) -> "tuple[Figure, np.ndarray]":
    """A figure and its axes [row][column], of `width` by `height` inches each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * num_columns, height * num_rows + 0.5), layout="constrained", dpi=150)
    rows = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes in rows.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.suptitle(title)
    return figure, rows


def legend_below(figure: "Figure", axes: "Iterable[Axes]", num_columns: int) -> None:
    """One legend for all panels, each label once."""
    entries: dict[str, Artist] = {}
    for panel in axes:
        handles, labels = panel.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=num_columns, frameon=False)

"""Beliefs over the cells of a grid, beside each other."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmeta.plotting.frame import check_array, check_filled, check_length, title_above
from jaxmeta.plotting.looks import OWN, SHOTS
from jaxmeta.words import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def beliefs(
    grids: Mapping[str, Any],
    *,
    cells: Any = None,
    goal: Any = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
) -> "Figure":
    """How likely each cell of a grid is, at some steps: a row for each belief, a column for each step.

    Dark is likely; a column has one scale, so that its beliefs can be compared.

    Args:
      grids: of each belief, by its name, the probabilities `[steps, X, Y]` of the cells (x, y).
      cells: where the agent is at each of these steps, `[steps, 2]`; nowhere if None.
      goal: the cell that is looked for, `[2]`, a star; none if None.
      names: of the steps, above the columns; none if None.
      title: the picture's title; none if None.

    Raises:
      ValueError: there are no beliefs, or shapes do not match.

    >>> exact, learned = np.full((2, 5, 5), 1 / 25), np.eye(5)[None].repeat(2, axis=0) / 5
    >>> figure = beliefs({"exact": exact, "learned": learned}, cells=np.zeros((2, 2), int), goal=np.array([4, 4]))
    >>> len(figure.axes)
    4
    """
    from jaxmeta.plotting.picture import Picture

    check_filled("grids", grids, '{"exact": [steps, X, Y]}')
    found = {name: check_array(f"grids[{name!r}]", grid, "[steps, X, Y]").astype(float) for name, grid in grids.items()}
    shape = next(iter(found.values())).shape
    for name, grid in found.items():
        if grid.shape != shape:
            raise ValueError(f"grids[{name!r}] must have the shape {list(shape)} of the first, got {list(grid.shape)}")
    cells = None if cells is None else _points("cells", cells, (shape[0], 2))
    goal = None if goal is None else _points("goal", goal, (2,))
    if names is not None:
        if not isinstance(names, Sequence):
            raise ValueError(f"names must be a list of texts, one for each step, got {short(names)}")
        check_length("names", names, shape[0], "step")
    figure = Picture(figsize=(1.5 * shape[0] + 0.6, 1.6 * len(found) + 0.6), layout="constrained", dpi=150)
    panels = figure.subplots(len(found), shape[0], squeeze=False)
    for row, (name, grid) in zip(panels, found.items(), strict=True):
        row[0].set_ylabel(name)
        for step, axes in enumerate(row):
            top = max(of[step].max() for of in found.values())
            axes.imshow(grid[step].T, origin="lower", cmap="Greys", vmin=0, vmax=top)
            if goal is not None:
                axes.plot(*goal, "*", color=SHOTS, markersize=11)
            if cells is not None:
                axes.plot(*cells[step], "o", color=OWN.color, markersize=7)
            axes.set(xticks=[], yticks=[])
    for i, text in enumerate(names or ()):
        panels[0][i].set_title(text, fontsize=9)
    if title is not None:
        title_above(figure, title, size=10)
    return figure


def _points(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    points = np.asarray(value)
    if points.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}, got {list(points.shape)}")
    return points

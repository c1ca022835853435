"""What a meta-gradient costs: memory, time and error against the number of inner steps, for several strategies."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmeta.plotting.frame import check_array, check_filled, legend_beside, logarithmic, panels, title_above
from jaxmeta.plotting.looks import styles
from jaxmeta.plotting.regrets import check_highlight, wide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEMORY, TIME, ERROR = "memory (MiB)", "time (ms)", "relative error"
_UNITS = {MEMORY: 2.0**-20, TIME: 1e3, ERROR: 1.0}


def cost(
    num_steps: Sequence[int],
    *,
    memory: Mapping[str, Any] | None = None,
    time: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
    highlight: str | None = None,
    title: str | None = None,
    xlabel: str = "inner steps K",
) -> "Figure":
    """Memory, time and error of strategies against inner steps: a panel for each that is given, both axes logarithmic.

    What grows in proportion to K has slope 1 there, what does not grow is level. The names of `METHODS` look as they do
    in the benchmarks' pictures.

    Args:
      num_steps: the numbers of inner steps, n of them.
      memory: of each strategy, by its name, bytes `[n]`, such as
        `jax.jit(learner.update).lower(...).compile().memory_analysis().temp_size_in_bytes`; drawn in MiB. NaN where it
        was not measured.
      time: likewise seconds of a meta-step; drawn in ms.
      error: likewise the relative error of the meta-gradient. What is 0 is drawn at the foot of the panel, there "0".
      highlight: the strategy whose curve is thicker, and below the others, such as "auto", which is one of them.
      title: the picture's title; none if None.
      xlabel: what `num_steps` counts, where it is something else.

    Raises:
      ValueError: nothing is given, there are not n numbers of a strategy, or they are not positive.

    >>> memory = {"exact": [2e6, 1e7, 4e7], "mixed mode": [2e6, 3e6, np.nan]}
    >>> figure = cost([1, 5, 20], memory=memory, time={"exact": [0.001, 0.004, 0.02]})
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['memory (MiB)', 'time (ms)']
    >>> figure.axes[1].lines[0].get_ydata().tolist()
    [1.0, 4.0, 20.0]
    """
    steps = check_array("num_steps", num_steps, "[n]")
    given = {MEMORY: memory, TIME: time, ERROR: error}
    found = {
        quantity: _checked(quantity.split(" (")[0].removeprefix("relative "), curves, steps)
        for quantity, curves in given.items()
        if curves is not None
    }
    if not found:
        raise ValueError('one of memory, time and error must be given, such as memory={"exact": [...]}, got none')
    if np.any(steps <= 0):
        raise ValueError(f"num_steps must be positive, for the axis is logarithmic, got {steps.tolist()}")
    names = list(dict.fromkeys(name for curves in found.values() for name in curves))
    check_highlight(highlight, dict.fromkeys(names))
    looks = styles(names)
    figure, axes = panels(len(found), width=4.0, height=3.4, beside=2.6)
    for panel, (quantity, curves) in zip(axes, found.items(), strict=True):
        points = {name: (steps, _UNITS[quantity] * values) for name, values in curves.items()}
        if quantity == ERROR:
            _draw_errors(panel, points, looks, highlight)
        else:
            draw_costs(panel, points, looks, highlight)
        panel.set(xlabel=xlabel, ylabel=quantity)
    if title is not None:
        title_above(figure, title)
    legend_beside(figure, axes)
    return figure


def draw_costs(
    axes: "Axes", points: Mapping[str, tuple[Any, Any]], looks: Mapping[str, Any], highlight: str | None = None
) -> None:
    """Curves (x, y) by their names, both axes logarithmic, with ticks where there are points."""
    for name, (x, y) in points.items():
        style = looks[name]
        line = {"color": style.color, "linestyle": style.line, "marker": style.marker, "markersize": 4.5}
        axes.plot(x, y, label=name, **line, **wide(name == highlight))
    values = np.concatenate([np.asarray(y, float) for _, y in points.values()]) if points else np.ones(0)
    values = values[np.isfinite(values)]
    if values.size:
        logarithmic(axes.yaxis, values.min(), values.max())
    axes.set(xscale="log")
    ticks = sorted({float(at) for x, _ in points.values() for at in x})
    axes.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    axes.xaxis.minorticks_off()


def _checked(name: str, curves: Any, steps: np.ndarray) -> dict[str, np.ndarray]:
    check_filled(name, curves, '{"exact": [...]}')
    found = {key: check_array(f"{name}[{key!r}]", values, "[n]").astype(float) for key, values in curves.items()}
    for key, values in found.items():
        if len(values) != len(steps):
            raise ValueError(
                f"{name}[{key!r}] must have {len(steps)} numbers, one for each of num_steps, NaN where it was not "
                f"measured; got {len(values)}"
            )
        if np.any(values < 0) or (name != "error" and np.any(values == 0)):
            raise ValueError(f"{name}[{key!r}] must be positive, for the axis is logarithmic, got {values.tolist()}")
    return found


def _draw_errors(axes: "Axes", points: Mapping[str, tuple[Any, Any]], looks: Mapping[str, Any], highlight: Any) -> None:
    """What is 0 on a line of its own, a decade below the least that is not."""
    values = np.concatenate([y[np.isfinite(y)] for _, y in points.values()])
    positive = values[values > 0] if np.any(values > 0) else np.ones(1)
    first, last = int(np.floor(np.log10(positive.min()))), int(np.ceil(np.log10(positive.max())))
    foot = 10.0 ** (first - 1)
    draw_costs(axes, {name: (x, np.where(y == 0, foot, y)) for name, (x, y) in points.items()}, looks, highlight)
    if np.any(values == 0):
        axes.axhline(foot, color="#999999", linewidth=0.8, zorder=0)
        powers = range(first, last + 1, 1 + (last - first) // 8)
        axes.set_yticks([foot, *(10.0**power for power in powers)], ["0", *(f"$10^{{{power}}}$" for power in powers)])
        axes.yaxis.minorticks_off()

"""Learning curves: metrics against outer steps, of a run, of many seeds, of several methods beside each other."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmeta.checks import check_integer
from jaxmeta.plotting.frame import (
    check_common,
    check_filled,
    check_names,
    draw_band,
    draw_curve,
    legend_below,
    legend_beside,
    logarithmic,
    panels,
    title_above,
)
from jaxmeta.plotting.looks import OWN, VALIDATION, Style, styles
from jaxmeta.words import counted, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def learning_curve(steps: np.ndarray, values: np.ndarray, name: str, title: str) -> "Figure":
    """A metric of the query sets after adaptation, called `name`, against outer steps; both `[n]`.

    Args:
      steps: `[n]`, outer steps.
      values: `[n]`, the metric at each.
      name: the metric's.
      title: above the picture.

    >>> learning_curve(np.arange(5), np.ones(5), "mse", "maml").axes[0].get_ylabel()
    'mse after adaptation'
    """
    figure, (axes,) = panels(1, width=6.4, height=3.6)
    _draw(axes, steps, np.asarray(values)[None])
    _scale(axes, [values])
    axes.set(ylabel=f"{name} after adaptation", title=title)
    return figure


def history(
    metrics: Mapping[str, Any],
    *,
    names: Sequence[str] | None = None,
    first_step: int = 0,
    num_points: int = 100,
    title: str | None = None,
) -> "Figure":
    """What `fit` returned beside the state: a panel for each metric, against outer steps.

    Of S seeds that were trained at once the median is drawn, and the half of them that is nearest to it as a band. What
    `fit(..., validate=...)` found stands beside it, in the panels of the metrics that it has.

    Args:
      metrics: the history, `{name: [steps]}`, with seeds `{name: [S, steps]}`.
      names: of the metrics that are drawn, in this order; all but `is_finite` if None.
      first_step: outer steps before the history's first, where a run went on from a state.
      num_points: points of a curve at most, each the mean over equally many steps.
      title: the picture's title; none if None.

    Raises:
      ValueError: there are no steps, no metrics, or no metric of a name; a number is wrong.

    >>> figure = history({"loss": np.ones(500), "mse": np.ones(500), "is_finite": np.ones(500, bool)})
    >>> [axes.get_ylabel() for axes in figure.axes], figure.axes[0].lines[0].get_xdata()[[0, -1]].tolist()
    (['loss', 'mse'], [5, 500])
    >>> len(history({"loss": np.ones((8, 500))}, title="8 seeds").axes[0].collections)  # the band
    1
    """
    check_filled("metrics", metrics, '{"loss": [...]}, the history that fit returned')
    check_integer("num_points", num_points, minimum=1)
    check_integer("first_step", first_step, minimum=0)
    names = check_names(names, [name for name in metrics if name != "is_finite"])
    validation = getattr(metrics, "validation", {})
    figure, axes = panels(len(names), width=4.8, height=3.2)
    for panel, name in zip(axes, names, strict=True):
        steps, values = _thinned("metrics", name, metrics[name], num_points)
        _draw(panel, first_step + steps, values, label="training")
        judged = np.asarray(validation.get(name, ()), float)
        if len(judged):
            draw_curve(panel, validation["step"], judged, VALIDATION, label="validation")
        _scale(panel, [values, judged])
        panel.set(ylabel=name)
    if any(name in validation for name in names):
        legend_below(figure, axes)
    if title is not None:
        title_above(figure, title)
    return figure


def learning_curves(
    histories: Mapping[str, Mapping[str, Any]],
    *,
    names: Sequence[str] | None = None,
    num_points: int = 100,
    title: str | None = None,
) -> "Figure":
    """Several methods beside each other: of each the median over its seeds, and a band between the quartiles.

    Half of a method's seeds are within its band. It says how seeds differ, not how well the median is known.

    Args:
      histories: of each method, by its name, what `fit` returned, `{metric: [S, steps]}` of S seeds, which an array of
        keys trains at once. One seed, `{metric: [steps]}`, is a line without a band.
      names: of the metrics that are drawn, in this order; those that all methods have, but `is_finite`, if None.
      num_points: points of a curve at most, each the mean over equally many steps.
      title: the picture's title; none if None.

    Raises:
      ValueError: there are no methods or no steps, a method has no metric of a name, or they have none in common.

    >>> mine, theirs = np.random.default_rng(0).normal(size=(2, 8, 500))
    >>> figure = learning_curves({"MAML": {"mse": mine}, "reptile": {"mse": theirs}})
    >>> figure.axes[0].get_ylabel(), [text.get_text() for text in figure.legends[0].get_texts()]
    ('mse', ['MAML, 8 seeds', 'reptile, 8 seeds'])
    """
    check_filled("histories", histories, '{"MAML": history}')
    check_integer("num_points", num_points, minimum=1)
    for key, found in histories.items():
        check_filled(f"histories[{key!r}]", found, '{"loss": [...]}, the history that fit returned')
    there = {key: [name for name in found if name != "is_finite"] for key, found in histories.items()}
    names = check_common("histories", names, there)
    figure, axes = panels(len(names), width=4.6, height=3.4, beside=2.2)
    for panel, name in zip(axes, names, strict=True):
        drawn = []
        for key, style in styles(histories).items():
            steps, values = _thinned(f"histories[{key!r}]", name, histories[key][name], num_points)
            label = f"{key}, {counted(len(values), 'seed')}" if len(values) > 1 else key
            _draw(panel, steps, values, style, label=label, linewidth=1.8)
            drawn.append(values)
        _scale(panel, drawn)
        panel.set(ylabel=name)
    if title is not None:
        title_above(figure, title)
    legend_beside(figure, axes)
    return figure


def _thinned(argument: str, name: str, values: Any, num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Means `[S, n]` over at most `num_points` parts of the last axis, and the number of the last step of each."""
    values = np.asarray(values, float)
    if values.ndim not in (1, 2):
        raise ValueError(f"{name} of {argument} must have the shape [steps] or [seeds, steps], got {short(values)}")
    num_steps = values.shape[-1]
    if values.size == 0:
        raise ValueError(f"{name} of {argument} must be of at least one step, got the shape {list(values.shape)}")
    edges = np.linspace(0, num_steps, min(num_points, num_steps) + 1).astype(int)
    return edges[1:], np.add.reduceat(np.atleast_2d(values), edges[:-1], axis=-1) / np.diff(edges)


def _draw(axes: "Axes", steps: np.ndarray, values: np.ndarray, style: Style | None = None, **options: Any) -> None:
    """Values `[S, n]` of S seeds: their median, and from the lower to the upper quartile a band."""
    low, middle, high = np.percentile(values, [25, 50, 75], axis=0)
    draw_curve(axes, steps, middle, OWN._replace(marker="") if style is None else style, **options)
    if len(values) > 1:
        draw_band(axes, steps, low, high, OWN if style is None else style)
    axes.set(xlabel="outer step")
    if len(steps) == 1:
        axes.set_xticks([])


def _scale(axes: "Axes", drawn: Sequence[np.ndarray]) -> None:
    """Logarithmic where positive values go over more than a decade."""
    values = np.concatenate([np.ravel(values) for values in drawn])
    values = values[np.isfinite(values)]
    if values.size and np.all(values > 0) and np.max(values) > 10 * np.min(values):
        logarithmic(axes.yaxis, values.min(), values.max())

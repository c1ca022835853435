"""Curves over what is played: regret against oracles over pulls, reward by episode."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmeta.plotting.frame import check_array, check_filled, draw_band, draw_curve, legend_beside, panels
from jaxmeta.plotting.looks import styles
from jaxmeta.words import counted, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lines(
    curves: dict[str, np.ndarray], xlabel: str, ylabel: str, title: str | None = None, highlight: str | None = None
) -> "Figure":
    """Curves `[n]` by their names, against 1 .. n: distances, reward by episode. One point is a line across.

    The curve called `highlight` is thicker, and below the others.

    Args:
      curves: {name: `[n]`}; one of a single point is a line across.
      xlabel: what is counted from 1 to n.
      ylabel: what the curves are of, with its unit.
      title: above the picture; none if None.
      highlight: the name of one curve; none if None.

    >>> lines({"thompson": np.arange(3.0)}, "pull", "regret", "bandit").axes[0].get_xlabel()
    'pull'
    """
    check_filled("curves", curves, '{"RL²": [...]}')
    found = {name: check_array(f"curves[{name!r}]", curve, "[n]") for name, curve in curves.items()}
    check_highlight(highlight, found)
    figure, (axes,) = panels(1, width=6.4, height=3.6)
    for name, style in styles(found).items():
        draw_curve(axes, 1 + np.arange(len(found[name])), found[name], style, label=name, **wide(name == highlight))
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
    if max(map(len, found.values())) > 1:
        axes.locator_params(axis="x", integer=True)
    else:
        axes.set_xticks([])
    legend_beside(figure, [axes])
    return figure


def regret(
    regrets: Mapping[str, Any], *, title: str | None = None, highlight: str | None = None, pull: str = "pull"
) -> "Figure":
    """Regret over pulls of agents beside each other: the mean over tasks of each one's sum so far, with 95% intervals.

    The regret of a pull is what the best arm would have paid on average, less what the pulled arm pays on average. An
    agent that has found the best arm is a level line; one that learns nothing is a straight one.

    Args:
      regrets: of each agent, by its name, the regret of each pull in each task `[tasks, pulls]`, not summed up:
        `means.max(1, keepdims=True) - np.take_along_axis(means, actions, 1)` of bandits `means` `[tasks, arms]` and
        what was pulled in them, `actions` `[tasks, pulls]`. Play all agents in the same tasks.
      title: the picture's title; the number of tasks if None.
      highlight: the agent whose curve is thicker, and below the others.
      pull: what is counted along the axis.

    Raises:
      ValueError: there are no agents, or fewer than two tasks, of which no interval is known, or `highlight` is none of
        the agents.

    >>> found = np.array([[0.5, 0.5, 0.0], [0.3, 0.0, 0.0]])  # two tasks, three pulls
    >>> figure = regret({"RL²": found, "random": found + 0.2})
    >>> figure.axes[0].lines[0].get_ydata().tolist()
    [0.4, 0.65, 0.65]
    """
    check_filled("regrets", regrets, '{"Thompson": [tasks, pulls]}')
    found = {
        name: np.cumsum(check_array(f"regrets[{name!r}]", pulls, "[tasks, pulls]", minimum=2).astype(float), axis=1)
        for name, pulls in regrets.items()
    }
    check_highlight(highlight, found)
    counts = {len(sums) for sums in found.values()}
    figure, (axes,) = panels(1, width=6.4, height=3.6)
    for name, style in styles(found).items():
        sums = found[name]
        mean, ci95 = sums.mean(axis=0), 1.96 * sums.std(axis=0, ddof=1) / np.sqrt(len(sums))
        x = 1 + np.arange(len(mean))
        label = name if len(counts) == 1 else f"{name}, {counted(len(sums), 'task')}"
        draw_curve(axes, x, mean, style, label=label, **wide(name == highlight))
        draw_band(axes, x, mean - ci95, mean + ci95, style)
    axes.set(xlabel=pull, ylabel="cumulative regret")
    if title is not None or len(counts) == 1:
        axes.set_title(f"{counted(counts.pop(), 'task')}, 95% intervals" if title is None else title)
    axes.locator_params(axis="x", integer=True)
    legend_beside(figure, [axes])
    return figure


def check_highlight(highlight: str | None, there: Mapping[str, Any]) -> None:
    """None, or the name of a curve."""
    if highlight is not None and highlight not in there:
        raise ValueError(f"highlight must be one of {', '.join(there)}, or None, got {short(highlight)}")


def wide(is_highlight: bool) -> dict[str, Any]:
    """How the curve is drawn that lies below the others, and is seen beside them."""
    return {"linewidth": 4, "alpha": 0.5} if is_highlight else {}

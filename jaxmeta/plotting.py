"""Pictures: learning curves, adaptation on regression tasks, few-shot episodes. Each returns a matplotlib `Figure`.

No pyplot and no global state: `figure.savefig(path)` works without a screen, and a notebook shows the figure as it is.
matplotlib is imported when the first picture is drawn.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRUTH, SHOTS = "black", "#d55e00"
STEPS = ("#999999", "#56b4e9", "#0072b2", "#009e73")
REFERENCES = ("#000000", "#d55e00", "#cc79a7", "#e69f00", "#999999")
RIGHT, WRONG = "#009e73", "#d55e00"


def learning_curve(steps: np.ndarray, values: np.ndarray, name: str, title: str) -> "Figure":
    """A metric of the query sets after adaptation, called `name`, against outer steps; both `[n]`.

    >>> learning_curve(np.arange(5), np.ones(5), "mse", "maml").axes[0].get_ylabel()
    'mse after adaptation'
    """
    figure, (axes,) = _figure(1, width=6.4, height=3.6)
    axes.plot(steps, values, color=STEPS[2])
    if np.all(values > 0) and np.max(values) > 10 * np.min(values):
        axes.set_yscale("log")
    axes.set(xlabel="outer step", ylabel=f"{name} after adaptation", title=title)
    return figure


Curves = dict[str, dict[str, list[float | None]]]  # Report.metrics


def adaptation_curve(
    metrics: Curves,
    name: str,
    title: str,
    adaptation: str = "inner step",
    references: dict[str, Curves] | None = None,
) -> "Figure":
    """A metric of the test tasks, mean and 95% interval, against the steps of adaptation.

    Args:
      metrics: `Report.metrics` of the learner.
      name: of a metric in it.
      title: the picture's title.
      adaptation: what there are K of.
      references: `Report.metrics` of what the learner is compared with; a line across where a reference does not adapt.

    >>> curve = {"mse": {"mean": [2.0, 1.0], "median": [2.0, 1.0], "ci95": [0.1, 0.1]}}
    >>> adaptation_curve(curve, "mse", "maml").axes[0].get_xlabel()
    'inner step'
    """
    figure, (axes,) = _figure(1, width=6.4, height=3.6)
    mean, median, ci95 = (np.asarray(metrics[name][row], float) for row in ("mean", "median", "ci95"))
    axes.errorbar(np.arange(len(mean)), mean, ci95, color=STEPS[2], marker="o", capsize=3, label="mean, 95% interval")
    axes.plot(median, color=STEPS[3], linestyle="--", label="median")
    for (reference, curves), color in zip((references or {}).items(), itertools.cycle(REFERENCES)):
        values = np.asarray(curves[name]["mean"], float)
        if len(values) == 1:
            axes.axhline(values[0], color=color, linestyle=":", label=reference)
        else:
            axes.plot(values, color=color, linestyle=":", marker=".", label=reference)
    axes.set(xlabel=adaptation, ylabel=f"{name} on test tasks", title=title)
    axes.set_xticks(np.arange(len(mean)))
    figure.legend(loc="outside right center", frameon=False)  # beside, where no curve is
    return figure


def regression_adaptation(
    x: np.ndarray,
    truths: np.ndarray,
    shots: Sequence[tuple[np.ndarray, np.ndarray]],
    predictions: np.ndarray,
    steps: Sequence[int],
    title: str,
) -> "Figure":
    """For each task the true curve, the shots it learns from, and the fit after some numbers of inner steps.

    Args:
      x: where the curves are drawn `[P]`.
      truths: the true functions `[tasks, P]`.
      shots: for each task the support set `(x, y)`.
      predictions: the fits `[tasks, len(steps), P]`.
      steps: the numbers of inner steps, 0 for the initialisation.
      title: the picture's title.

    >>> x = np.linspace(-1, 1, 5)
    >>> figure = regression_adaptation(x, x[None], [(x, x)], np.zeros((1, 2, 5)), [0, 1], "maml")
    >>> len(figure.axes)
    1
    """
    figure, panels = _figure(len(truths), width=3.4 * len(truths), height=3.2)
    for axes, truth, (shots_x, shots_y), fits in zip(panels, truths, shots, predictions, strict=True):
        axes.plot(x, truth, color=TRUTH, linestyle=":", linewidth=2, label="true function")
        for num_steps, fit, color in zip(steps, fits, STEPS, strict=False):
            axes.plot(x, fit, color=color, linewidth=1.8, label=after(num_steps))
        axes.plot(np.ravel(shots_x), np.ravel(shots_y), "^", color=SHOTS, markersize=7, label="shots", zorder=5)
        axes.set_xlabel("x")
    figure.suptitle(title)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def trajectories(
    points: np.ndarray, mask: np.ndarray, goals: np.ndarray, title: str, num_episodes: int = 4, step: str = "step"
) -> "Figure":
    """Where episodes went in the plane, for each task before and after each step of adaptation.

    Args:
      points: `[tasks, K + 1, T, E, 2]`.
      mask: which of them count `[tasks, K + 1, T, E]`.
      goals: of the tasks `[tasks, 2]`.
      title: the picture's title.
      num_episodes: how many are drawn.
      step: what a step of adaptation is called.

    >>> figure = trajectories(np.zeros((2, 3, 9, 5, 2)), np.ones((2, 3, 9, 5), bool), np.ones((2, 2)), "maml")
    >>> len(figure.axes)
    2
    """
    figure, panels = _figure(len(goals), width=3.2 * len(goals), height=3.8)
    for axes, steps, counts, goal in zip(panels, points, mask, goals, strict=True):
        for k, (color, path, is_played) in enumerate(zip(STEPS, steps, counts, strict=False)):
            for e in range(min(num_episodes, path.shape[1])):
                x, y = path[is_played[:, e], e].T
                axes.plot(x, y, color=color, linewidth=1, alpha=0.8, label=None if e else after(k, step))
                axes.plot(x[-1:], y[-1:], "o", color=color, markersize=3)
        axes.plot(*goal, "*", color=SHOTS, markersize=13, label="goal", zorder=5)
        axes.set_aspect("equal", adjustable="datalim")
    figure.suptitle(f"{title}; a dot where each ends")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def lines(
    curves: dict[str, np.ndarray], xlabel: str, ylabel: str, title: str, highlight: str | None = None
) -> "Figure":
    """Curves `[n]` by their names, against 1 .. n: regret over pulls, reward by episode.

    The curve called `highlight` is thicker and above the others.

    >>> lines({"thompson": np.arange(3.0)}, "pull", "regret", "bandit").axes[0].get_xlabel()
    'pull'
    """
    figure, (axes,) = _figure(1, width=6.4, height=3.6)
    others = itertools.cycle((*STEPS, *REFERENCES) if highlight is None else REFERENCES)
    for name, values in curves.items():
        style = {"color": STEPS[2], "linewidth": 3.5, "alpha": 0.7} if name == highlight else {"color": next(others)}
        axes.plot(np.arange(1, len(values) + 1), values, label=name, **style)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.locator_params(axis="x", integer=True)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def episode(
    support: tuple[np.ndarray, np.ndarray],
    query: tuple[np.ndarray, np.ndarray],
    predictions: np.ndarray,
    title: str,
    max_queries: int = 10,
) -> "Figure":
    """An episode, one row per class: its shots, then its queries, framed by whether the prediction was right or wrong.

    Args:
      support: images `[B, H, W]` and labels `[B]`.
      query: the same.
      predictions: the predicted label of each query.
      title: the picture's title.
      max_queries: queries drawn of each class.

    >>> images, labels = np.zeros((2, 4, 4)), np.arange(2)
    >>> len(episode((images, labels), (images, labels), labels, "maml").axes)
    4
    """
    from matplotlib.figure import Figure

    classes = np.unique(support[1])
    rows = [(np.flatnonzero(support[1] == c), np.flatnonzero(query[1] == c)[:max_queries]) for c in classes]
    columns = max(len(shots) + len(queries) for shots, queries in rows)
    figure = Figure(figsize=(0.75 * columns + 0.6, 0.8 * len(classes) + 0.7), layout="constrained")
    for row, (shots, queries) in enumerate(rows):
        for column, i in enumerate([*shots, *queries]):
            axes = figure.add_subplot(len(classes), columns, row * columns + column + 1)
            is_shot = column < len(shots)
            axes.imshow((support if is_shot else query)[0][i], cmap="gray_r", interpolation="nearest")
            _frame(axes, "black" if is_shot else RIGHT if predictions[i] == classes[row] else WRONG)
            if is_shot and column == 0:
                axes.set_ylabel(f"class {classes[row]}")
            if not is_shot and predictions[i] != classes[row]:
                axes.set_title(f"as {predictions[i]}", color=WRONG, fontsize=8, pad=2)
    figure.suptitle(f"{title}\nblack: shots; green: right; red: wrong", fontsize=10)
    return figure


def after(num_steps: int, step: str = "step") -> str:
    """What a curve after some steps of adaptation is called.

    >>> after(0), after(1), after(2, "episode")
    ('before adaptation', 'after 1 step', 'after 2 episodes')
    """
    return "before adaptation" if num_steps == 0 else f"after {num_steps} {step}{'s' * (num_steps > 1)}"


def _frame(axes: "Axes", color: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=2)


def _figure(num_panels: int, width: float, height: float) -> "tuple[Figure, Sequence[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    panels = figure.subplots(1, num_panels, squeeze=False)[0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    return figure, panels

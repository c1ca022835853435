"""Pictures: learning curves, adaptation on regression tasks, few-shot episodes. Each returns a matplotlib `Figure`.

No pyplot and no global state: `figure.savefig(path)` works without a screen, and a notebook shows the figure as it is.
matplotlib is imported when the first picture is drawn. A method looks the same in every picture, by `METHODS`, and what
is drawn together differs in markers or lines too, for who sees no colours.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxmeta.training import Report
from jaxmeta.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Style(NamedTuple):
    """How a method is drawn: its colour, the marker of its points, its line."""

    color: str
    marker: str
    line: Any = "-"


_LONG, _DOUBLE = (0, (6, 1.5)), (0, (4, 1, 1, 1, 1, 1))

METHODS: dict[str, Style] = {
    # learners
    "MAML": Style("#d55e00", "s", "--"),
    "PEARL": Style("#009e73", "D", "-."),
    "RL²": Style("#0072b2", "o"),
    # what a policy is compared with
    "random": Style("#999999", "<", ":"),
    "told the task": Style("#d55e00", "s", "-."),
    "told the goal": Style("#d55e00", "s", "-."),
    "told the MDP": Style("#d55e00", "s", "-."),
    "no context": Style("#e69f00", "v", "--"),
    "optimal": Style("#000000", "p", _LONG),
    "Bayes-optimal": Style("#000000", "p", _LONG),
    "Gittins": Style("#e69f00", "v", "--"),
    "Thompson": Style("#cc79a7", "^", _DOUBLE),
    "PSRL": Style("#8c510a", "h", _DOUBLE),
    "UCB1, tuned": Style("#009e73", "D", "-."),
    "from scratch, rate x1": Style("#56b4e9", "P", "--"),
    "from scratch, rate x10": Style("#7b3294", "X", _DOUBLE),
    # meta-gradients
    "auto": Style("#0072b2", "o"),
    "exact": Style("#d55e00", "s"),
    "exact, remat": Style("#e69f00", "D"),
    "exact, segments": Style("#8c510a", "^"),
    "mixed mode": Style("#009e73", "v"),
    "mixed mode, gradients saved": Style("#56b4e9", "P"),
    "mixed mode, segments": Style("#7b3294", "X"),
    "mixed mode, segments, gradients saved": Style("#cc79a7", "*"),
    "forward mode": Style("#000000", "p"),
    "first order": Style("#999999", "<", "--"),
    "truncated(1)": Style("#b5a300", ">", "-."),
    "truncated(K/2)": Style("#01665e", "h", "-."),
    "reptile": Style("#e7298a", "d", "--"),
    "evolution strategy, 16 pairs": Style("#332288", "H", ":"),
    "implicit, 5 steps of CG": Style("#882255", "8", _DOUBLE),
    # estimators of the inner loop's Hessian; of each the same without and with a baseline
    "log π · G": Style("#e69f00", "v"),
    "LVC": Style("#0072b2", "o"),
    "LVC, baseline": Style("#0072b2", "o", "--"),
    "DiCE": Style("#009e73", "D"),
    "DiCE, baseline": Style("#009e73", "D", "--"),
    "loaded DiCE, baseline": Style("#7b3294", "X", "--"),
    "E-MAML": Style("#d55e00", "s"),
    "E-MAML, baseline": Style("#d55e00", "s", "--"),
}
# before adaptation, and after some numbers of steps
STEPS = (
    Style("#999999", "o", "--"),
    Style("#56b4e9", "s", "-."),
    Style("#0072b2", "D", _LONG),
    Style("#009e73", "^", "-"),
)
OWN, MEDIAN = Style("#0072b2", "o"), Style("#0072b2", "", (0, (1, 3)))  # of a report; its references have others
TRUTH, SHOTS = "black", "#d55e00"
RIGHT, WRONG = "#009e73", "#d55e00"


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Each name's style: a method's own, and for the others, in their order, those of `STEPS` and then of `METHODS`
    that are still free.

    >>> found = styles(["RL²", "before adaptation", "mine"])
    >>> found["RL²"] == METHODS["RL²"], found["before adaptation"] == STEPS[0], found["mine"] == STEPS[1]
    (True, True, True)
    """
    names = list(names)
    taken = [METHODS[name] for name in names if name in METHODS]
    free = itertools.cycle([style for style in dict.fromkeys((*STEPS, *METHODS.values())) if style not in taken])
    return {name: METHODS[name] if name in METHODS else next(free) for name in names}


def learning_curve(steps: np.ndarray, values: np.ndarray, name: str, title: str) -> "Figure":
    """A metric of the query sets after adaptation, called `name`, against outer steps; both `[n]`.

    >>> learning_curve(np.arange(5), np.ones(5), "mse", "maml").axes[0].get_ylabel()
    'mse after adaptation'
    """
    figure, (axes,) = _figure(1, width=6.4, height=3.6)
    _draw_learning(axes, steps, values[None])
    axes.set(ylabel=f"{name} after adaptation", title=title)
    return figure


def history(
    metrics: dict[str, np.ndarray],
    *,
    names: Sequence[str] | None = None,
    first_step: int = 0,
    num_points: int = 100,
    title: str | None = None,
) -> "Figure":
    """What `fit` returned beside the state: a panel for each metric, against outer steps.

    Of S seeds that were trained at once the median is drawn, and the half of them that is nearest to it as a band.

    Args:
      metrics: the history, `{name: [steps]}`, with seeds `{name: [S, steps]}`.
      names: of the metrics that are drawn, in this order; all but `is_finite` if None.
      first_step: outer steps before the history's first, where a run went on from a state.
      num_points: points of a curve at most, each the mean over equally many steps.
      title: the picture's title; none if None.

    Raises:
      ValueError: there are no steps, or no metric of a name.

    >>> figure = history({"loss": np.ones(500), "mse": np.ones(500), "is_finite": np.ones(500, bool)})
    >>> [axes.get_ylabel() for axes in figure.axes], figure.axes[0].lines[0].get_xdata()[[0, -1]].tolist()
    (['loss', 'mse'], [5, 500])
    >>> len(history({"loss": np.ones((8, 500))}, title="8 seeds").axes[0].collections)  # the band
    1
    """
    names = _chosen(names, [name for name in metrics if name != "is_finite"])
    figure, panels = _figure(len(names), width=4.8, height=3.2)
    for axes, name in zip(panels, names, strict=True):
        steps, values = _thinned(np.asarray(metrics[name], float), num_points)
        _draw_learning(axes, first_step + steps, np.atleast_2d(values))
        axes.set(ylabel=name)
    if title is not None:
        figure.suptitle(title)
    return figure


def report(
    found: Report,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    adaptation: str | None = None,
    references: dict[str, Report] | None = None,
) -> "Figure":
    """What `evaluate` found: a panel for each metric, its mean, 95% interval and median against steps of adaptation.

    Args:
      found: of the learner, with samples `[num_tasks, K + 1]`.
      names: of the metrics that are drawn, in this order; all if None.
      title: the picture's title; the number of test tasks if None.
      adaptation: what there are K of; the report's unit if None.
      references: reports of what the learner is compared with, by name; a line across where one does not adapt.

    Raises:
      ValueError: there is no metric of a name, in the report or in a reference.

    >>> found = Report({"mse": np.array([[2.0, 1.0], [4.0, 1.0]])})
    >>> figure = report(found, references={"told the task": Report({"mse": np.zeros((2, 1))})})
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel(), figure.get_suptitle()
    ('step of adaptation', 'mse on test tasks', '2 test tasks')
    """
    references = references or {}
    adaptation = f"{found.unit} of adaptation" if adaptation is None else adaptation
    names = _chosen(names, list(found.samples))
    figure, panels = _figure(len(names), width=4.2, height=3.6, beside=2.2)
    for axes, name in zip(panels, names, strict=True):
        for other in references.values():
            _chosen([name], list(other.samples))
        _draw_adaptation(axes, found.metrics[name], {key: other.metrics[name] for key, other in references.items()})
        axes.set(ylabel=f"{name} on test tasks", xlabel=adaptation if len(found.metrics[name]["mean"]) > 1 else "")
    figure.suptitle(counted(found.num_tasks, "test task") if title is None else title)
    _legend_beside(figure, panels[0])
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
      steps: the numbers of inner steps, at most four, 0 for the initialisation.
      title: the picture's title.

    Raises:
      ValueError: there are more than four numbers of steps.

    >>> x = np.linspace(-1, 1, 5)
    >>> figure = regression_adaptation(x, x[None], [(x, x)], np.zeros((1, 2, 5)), [0, 1], "maml")
    >>> len(figure.axes)
    1
    """
    if len(steps) > len(STEPS):
        raise ValueError(f"steps must be at most {len(STEPS)} numbers, got {len(steps)}")
    figure, panels = _figure(len(truths), width=3.4, height=3.2)
    for axes, truth, (shots_x, shots_y), fits in zip(panels, truths, shots, predictions, strict=True):
        axes.plot(x, truth, color=TRUTH, linestyle=":", linewidth=2, label="true function")
        for num_steps, fit, style in zip(steps, fits, STEPS[: len(steps)], strict=True):
            axes.plot(x, fit, color=style.color, linestyle=style.line, linewidth=1.8, label=after(num_steps))
        axes.plot(np.ravel(shots_x), np.ravel(shots_y), "^", color=SHOTS, markersize=7, label="shots", zorder=5)
        axes.set(xlabel="x", ylabel="y")
    figure.suptitle(title)
    _legend_below(figure, panels[0])
    return figure


def trajectories(
    points: np.ndarray, mask: np.ndarray, goals: np.ndarray, title: str, num_episodes: int = 4, step: str = "step"
) -> "Figure":
    """Where episodes went in the plane, for each task before and after adaptation, in panels of the same limits.

    Of more than three steps of adaptation the first and the last are drawn, and two between.

    Args:
      points: where each episode started, and where its steps led `[tasks, K + 1, T + 1, E, 2]`.
      mask: which of its steps were played `[tasks, K + 1, T, E]`.
      goals: of the tasks `[tasks, 2]`.
      title: the picture's title.
      num_episodes: how many are drawn.
      step: what a step of adaptation is called.

    >>> figure = trajectories(np.zeros((2, 3, 10, 5, 2)), np.ones((2, 3, 9, 5), bool), np.ones((2, 2)), "maml")
    >>> len(figure.axes)
    2
    """
    drawn = np.unique(np.linspace(0, points.shape[1] - 1, len(STEPS)).round().astype(int))
    is_there = np.concatenate([np.ones_like(mask[:, :, :1]), mask], axis=2)[:, drawn, :, :num_episodes]
    points = points[:, drawn, :, :num_episodes]
    figure, panels = _figure(len(goals), width=3.2, height=3.8)
    for axes, paths, counts, goal in zip(panels, points, is_there, goals, strict=True):
        for k, path, count, style in zip(drawn, paths, counts, STEPS[: len(drawn)], strict=True):
            for e in range(path.shape[1]):
                x, y = path[count[:, e], e].T
                label = None if e else after(int(k), step)
                line = {"color": style.color, "linestyle": style.line, "linewidth": 1, "alpha": 0.8}
                axes.plot(x, y, marker=style.marker, markersize=4, markevery=[-1], label=label, **line)
        axes.plot(*goal, "*", color=SHOTS, markersize=13, label="goal", zorder=5)
        axes.set(xlabel="x", ylabel="y", aspect="equal", **_limits(np.concatenate([points[is_there], goals])))
    figure.suptitle(f"{title}; a marker where each ends")
    _legend_below(figure, panels[0])
    return figure


def lines(
    curves: dict[str, np.ndarray], xlabel: str, ylabel: str, title: str, highlight: str | None = None
) -> "Figure":
    """Curves `[n]` by their names, against 1 .. n: regret over pulls, reward by episode. One point is a line across.

    The curve called `highlight` is thicker, and below the others.

    >>> lines({"thompson": np.arange(3.0)}, "pull", "regret", "bandit").axes[0].get_xlabel()
    'pull'
    """
    figure, (axes,) = _figure(1, width=6.4, height=3.6)
    for name, style in styles(curves).items():
        own = {"linewidth": 3.5, "alpha": 0.7} if name == highlight else {}
        _draw_curve(axes, 1 + np.arange(len(curves[name])), curves[name], style, label=name, **own)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if max(map(len, curves.values())) > 1:
        axes.locator_params(axis="x", integer=True)
    else:
        axes.set_xticks([])
    _legend_beside(figure, axes)
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
    figure.suptitle(f"{title}\nblack: shots; green: right; orange: wrong", fontsize=10)
    return figure


def after(num_steps: int, step: str = "step") -> str:
    """What a curve after some steps of adaptation is called.

    >>> after(0), after(1), after(2, "episode")
    ('before adaptation', 'after 1 step', 'after 2 episodes')
    """
    return "before adaptation" if num_steps == 0 else f"after {counted(num_steps, step)}"


def _chosen(names: Sequence[str] | None, there: Sequence[str]) -> Sequence[str]:
    """The names, all that there are if None."""
    for name in names or ():
        if name not in there:
            raise ValueError(f"names must be of metrics that there are, {', '.join(there)}, got {name!r}")
    return there if names is None else names


def _thinned(values: np.ndarray, num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over at most `num_points` parts of the last axis, and the number of the last step of each."""
    num_steps = values.shape[-1]
    if num_steps == 0:
        raise ValueError("metrics must be of at least one step, got none")
    edges = np.linspace(0, num_steps, min(num_points, num_steps) + 1).astype(int)
    return edges[1:], np.add.reduceat(values, edges[:-1], axis=-1) / np.diff(edges)


def _draw_learning(axes: "Axes", steps: np.ndarray, values: np.ndarray) -> None:
    """Values `[S, n]` of S seeds: their median, and from the lower to the upper quartile a band."""
    low, middle, high = np.percentile(values, [25, 50, 75], axis=0)
    _draw_curve(axes, steps, middle, OWN._replace(marker=""))
    if len(values) > 1:
        axes.fill_between(steps, low, high, color=OWN.color, alpha=0.2, linewidth=0)
    if np.all(values > 0) and np.max(values) > 10 * np.min(values):
        axes.set_yscale("log")
    axes.set(xlabel="outer step")
    if len(steps) == 1:
        axes.set_xticks([])


def _draw_adaptation(axes: "Axes", summary: dict, references: dict[str, dict]) -> None:
    """A row of `Report.metrics`, and the means of others; what is not adapted is a line across."""
    mean, median, ci95 = (np.asarray(summary[row], float) for row in ("mean", "median", "ci95"))
    steps = np.arange(len(mean))
    _draw_curve(axes, steps, mean, OWN, label="mean, 95% interval")
    if len(mean) == 1:
        axes.axhspan(mean[0] - ci95[0], mean[0] + ci95[0], color=OWN.color, alpha=0.2, linewidth=0)
    else:
        axes.errorbar(steps, mean, ci95, fmt="none", ecolor=OWN.color, capsize=3)
    _draw_curve(axes, steps, median, MEDIAN, label="median")
    for name, style in styles(references).items():
        values = np.asarray(references[name]["mean"], float)
        _draw_curve(axes, np.arange(len(values)), values, style, label=name)
    axes.set_xticks(steps if len(steps) > 1 else [])


def _draw_curve(axes: "Axes", x: np.ndarray, y: np.ndarray, style: Style, **options: Any) -> None:
    """A line with eight markers or so; of one point, a line across."""
    line = {"color": style.color, "linestyle": style.line, **options}
    if len(y) == 1:
        axes.axhline(y[0], **line)
    else:
        axes.plot(x, y, marker=style.marker, markersize=4, markevery=max(1, len(y) // 8), **line)


def _limits(points: np.ndarray) -> dict[str, tuple[float, float]]:
    """Of a square around all points, with some room."""
    low, high = points.min(axis=0), points.max(axis=0)
    middle, half = (low + high) / 2, 0.55 * max(*(high - low), 1e-6)
    return {name: (at - half, at + half) for name, at in zip(("xlim", "ylim"), middle, strict=True)}


def _legend_beside(figure: "Figure", axes: "Axes") -> None:
    """Of all panels, from what is labelled in one of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, handlelength=3)


def _legend_below(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, handlelength=3)


def _frame(axes: "Axes", color: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=2, linestyle="--" if color == WRONG else "-")


def _figure(num_panels: int, width: float, height: float, beside: float = 0.0) -> "tuple[Figure, Sequence[Axes]]":
    """A figure of panels of this size in inches, four in a row at most, with room beside them."""
    from matplotlib.figure import Figure

    num_columns = min(4, num_panels)
    num_rows = -(-num_panels // num_columns)
    figure = Figure(figsize=(width * num_columns + beside, height * num_rows), layout="constrained", dpi=150)
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for unused in axes[num_panels:]:
        unused.remove()
    for panel in axes[:num_panels]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.2)
    return figure, list(axes[:num_panels])

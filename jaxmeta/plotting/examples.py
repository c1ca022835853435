"""Examples of what was learned: fits of functions, ways through the plane, few-shot episodes. All take plain arrays."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmeta.checks import check_integer
from jaxmeta.plotting.frame import check_array, check_length, legend_below, panels, square, title_above
from jaxmeta.plotting.looks import RIGHT, SHOTS, STEPS, TRUTH, WRONG
from jaxmeta.types import Examples
from jaxmeta.words import counted, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def after(num_steps: int, step: str = "step") -> str:
    """What a curve after some steps of adaptation is called.

    Args:
      num_steps: units of adaptation, at least 0.
      step: what a unit is called: "step", "episode".

    >>> after(0), after(1), after(2, "episode")
    ('before adaptation', 'after 1 step', 'after 2 episodes')
    """
    return "before adaptation" if num_steps == 0 else f"after {counted(num_steps, step)}"


def regression_adaptation(
    x: np.ndarray,
    truths: np.ndarray,
    shots: Sequence[tuple[np.ndarray, np.ndarray]],
    predictions: np.ndarray,
    steps: Sequence[int],
    title: str | None = None,
) -> "Figure":
    """For each task the true curve, the shots it learns from, and the fit after some numbers of inner steps.

    Args:
      x: where the curves are drawn `[P]`.
      truths: the true functions `[tasks, P]`.
      shots: for each task the support set `(x, y)`.
      predictions: the fits `[tasks, len(steps), P]`.
      steps: the numbers of inner steps, at most four, 0 for the initialisation.
      title: the picture's title; none if None.

    Raises:
      ValueError: there are more than four numbers of steps, or shapes do not match.

    >>> x = np.linspace(-1, 1, 5)
    >>> figure = regression_adaptation(x, x[None], [(x, x)], np.zeros((1, 2, 5)), [0, 1], "maml")
    >>> len(figure.axes)
    1
    """
    if len(steps) > len(STEPS):
        raise ValueError(f"steps must be at most {len(STEPS)} numbers, got {len(steps)}")
    x, truths = check_array("x", x, "[P]"), check_array("truths", truths, "[tasks, P]")
    predictions = check_array("predictions", predictions, "[tasks, steps, P]")
    for name, array, shape in (
        ("truths", truths, (len(truths), len(x))),
        ("predictions", predictions, (len(truths), len(steps), len(x))),
    ):
        if array.shape != shape:
            raise ValueError(
                f"{name} must have the shape {list(shape)}, of {counted(len(truths), 'task')} and {len(x)} points x"
                f"{', after each of steps' * (array.ndim == 3)}; got {list(array.shape)}"
            )
    check_length("shots", shots, len(truths), "task")
    figure, axes = panels(len(truths), width=3.4, height=3.2)
    for panel, truth, (shots_x, shots_y), fits in zip(axes, truths, shots, predictions, strict=True):
        panel.plot(x, truth, color=TRUTH, linestyle=":", linewidth=2, label="true function")
        for num_steps, fit, style in zip(steps, fits, STEPS[: len(steps)], strict=True):
            panel.plot(x, fit, color=style.color, linestyle=style.line, linewidth=1.8, label=after(num_steps))
        panel.plot(np.ravel(shots_x), np.ravel(shots_y), "^", color=SHOTS, markersize=7, label="shots", zorder=5)
        panel.set(xlabel="x", ylabel="y")
    if title is not None:
        title_above(figure, title)
    legend_below(figure, axes[:1])
    return figure


def trajectories(
    points: np.ndarray,
    mask: np.ndarray | None = None,
    goals: np.ndarray | None = None,
    title: str | None = None,
    num_episodes: int = 4,
    step: str = "step",
) -> "Figure":
    """Where episodes went in the plane, for each task before and after adaptation, in panels of the same limits.

    Of more than three steps of adaptation the first and the last are drawn, and two between.

    Args:
      points: where each episode started, and where its steps led `[tasks, K + 1, T + 1, E, 2]`. What was played without
        adaptation has K = 0, a single episode E = 1.
      mask: which of its steps were played `[tasks, K + 1, T, E]`; all if None.
      goals: of the tasks `[tasks, 2]`; none are marked if None.
      title: the picture's title; none if None.
      num_episodes: how many are drawn.
      step: what a step of adaptation is called.

    Raises:
      ValueError: the shapes are not those, or do not match.

    >>> figure = trajectories(np.zeros((2, 3, 10, 5, 2)), np.ones((2, 3, 9, 5), bool), np.ones((2, 2)), "maml")
    >>> len(figure.axes)
    2
    """
    points, mask, goals = _checked_ways(points, mask, goals)
    check_integer("num_episodes", num_episodes, minimum=1)
    drawn = np.unique(np.linspace(0, points.shape[1] - 1, len(STEPS)).round().astype(int))
    is_there = np.concatenate([np.ones_like(mask[:, :, :1]), mask], axis=2)[:, drawn, :, :num_episodes]
    points = points[:, drawn, :, :num_episodes]
    figure, axes = panels(len(points), width=3.2, height=3.8)
    around = square(np.concatenate([points[is_there], *([] if goals is None else [goals])]))
    for i, panel in enumerate(axes):
        for k, path, count, style in zip(drawn, points[i], is_there[i], STEPS[: len(drawn)], strict=True):
            for e in range(path.shape[1]):
                x, y = path[count[:, e], e].T
                label = None if e else after(int(k), step)
                line = {"color": style.color, "linestyle": style.line, "linewidth": 1, "alpha": 0.8}
                panel.plot(x, y, marker=style.marker, markersize=4, markevery=[-1], label=label, **line)
        if goals is not None:
            panel.plot(*goals[i], "*", color=SHOTS, markersize=13, label="goal", zorder=5)
        panel.set(xlabel="x", ylabel="y", aspect="equal", **around)
    where = "a marker where each ends"
    title_above(figure, where if title is None else f"{title}; {where}")
    legend_below(figure, axes[:1])
    return figure


def _checked_ways(points: Any, mask: Any, goals: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    points = check_array("points", points, "[tasks, K + 1, T + 1, E, 2]")
    num_tasks, num_times, num_points, num_episodes, num_coordinates = points.shape
    if num_coordinates != 2:
        raise ValueError(f"points must be x and y, two numbers along the last axis, got the shape {list(points.shape)}")
    shape = (num_tasks, num_times, num_points - 1, num_episodes)
    mask = np.ones(shape, bool) if mask is None else np.asarray(mask, bool)
    if mask.shape != shape:
        raise ValueError(
            f"mask must have the shape {list(shape)}, an entry for each step between two points, got {list(mask.shape)}"
        )
    if goals is not None:
        goals = np.asarray(goals)
        if goals.shape != (num_tasks, 2):
            raise ValueError(f"goals must have the shape [{num_tasks}, 2], one for each task, got {list(goals.shape)}")
    return points, mask, goals


def episode(
    support: tuple[np.ndarray, np.ndarray] | Examples,
    query: tuple[np.ndarray, np.ndarray] | Examples,
    predictions: np.ndarray,
    title: str | None = None,
    max_queries: int = 10,
) -> "Figure":
    """An episode, one row per class: its shots, then its queries, framed by whether the prediction was right or wrong.

    Args:
      support: images `[B, H, W]`, `[B, H, W, 1]` or in colours `[B, H, W, 3]`, and labels `[B]`. Of one channel, what
        is higher is darker, as ink is; colours are numbers within [0, 1], or integers up to 255. Of `Examples` those
        of weight 0 are left out.
      query: the same.
      predictions: the predicted label of each query.
      title: the picture's title; none if None.
      max_queries: queries drawn of each class.

    Raises:
      ValueError: the shapes are not those, or there are not as many labels or predictions as images.

    >>> images, labels = np.zeros((2, 4, 4)), np.arange(2)
    >>> len(episode((images, labels), (images, labels), labels, "maml").axes)
    4
    """
    from jaxmeta.plotting.picture import Picture

    shown, labels, are_shots = _checked_images("support", support)
    asked, answers, are_queries = _checked_images("query", query)
    predictions = check_array("predictions", predictions, "[B]")
    check_length("predictions", predictions, len(answers), "query")
    check_integer("max_queries", max_queries, minimum=0)
    classes = np.unique(labels[are_shots])
    of_class = lambda c: (np.flatnonzero(are_shots & (labels == c)), np.flatnonzero(are_queries & (answers == c)))
    rows = [(shots, queries[:max_queries]) for shots, queries in map(of_class, classes)]
    columns = max(len(shots) + len(queries) for shots, queries in rows)
    figure = Picture(figsize=(0.75 * columns + 0.6, 0.8 * len(classes) + 0.7), layout="constrained", dpi=150)
    for row, (shots, queries) in enumerate(rows):
        for column, i in enumerate([*shots, *queries]):
            axes = figure.add_subplot(len(classes), columns, row * columns + column + 1)
            is_shot = column < len(shots)
            axes.imshow((shown if is_shot else asked)[i], cmap="gray_r", interpolation="nearest")
            _frame(axes, TRUTH if is_shot else RIGHT if predictions[i] == classes[row] else WRONG)
            if is_shot and column == 0:
                axes.set_ylabel(f"class {classes[row]}")
            if not is_shot and predictions[i] != classes[row]:
                axes.set_title(f"as {predictions[i]}", color=WRONG, fontsize=8, pad=2)
    said = "black: shots; green: right; orange, dashed: wrong"
    title_above(figure, said if title is None else f"{title}\n{said}", size=10)
    return figure


def _checked_images(name: str, batch: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels, and which of them count."""
    weight = batch.weight if isinstance(batch, Examples) else None
    batch = batch[:2] if isinstance(batch, Examples) else batch
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"{name} must be (images, labels), got {short(batch)}")
    images, labels = np.asarray(batch[0]), np.asarray(batch[1])
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim != 3 and (images.ndim != 4 or images.shape[-1] != 3):
        raise ValueError(
            f"images of {name} must have the shape [B, H, W], or [B, H, W, 1 or 3]; got {list(images.shape)}: "
            "reshape what is flat, images.reshape(-1, 28, 28)"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels of {name} must have the shape [{len(images)}], one for each, got {short(labels)}")
    return images, labels, np.ones(len(labels), bool) if weight is None else np.asarray(weight) > 0


def _frame(axes: "Axes", color: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=2, linestyle="--" if color == WRONG else "-")

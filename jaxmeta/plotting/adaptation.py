"""Adaptation curves: what reports say of test tasks, against steps of adaptation, with 95% intervals."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmeta.plotting.frame import (
    check_common,
    check_filled,
    check_names,
    draw_band,
    draw_curve,
    legend_beside,
    panels,
    title_above,
)
from jaxmeta.plotting.looks import MEDIAN, OWN, Style, styles
from jaxmeta.training import Report
from jaxmeta.words import counted, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def report(
    found: Report,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    adaptation: str | None = None,
    references: dict[str, Report] | None = None,
) -> "Figure":
    """What `evaluate` found: a panel for each metric, its mean, 95% interval and median against steps of adaptation.

    `adaptation_curves` draws several reports with the interval of each.

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
    _check_report("found", found)
    references = references or {}
    adaptation = f"{found.unit} of adaptation" if adaptation is None else adaptation
    names = check_names(names, list(found.samples))
    figure, axes = panels(len(names), width=4.2, height=3.6, beside=2.2)
    for panel, name in zip(axes, names, strict=True):
        for other in references.values():
            check_names([name], list(other.samples))
        _draw_report(panel, found.metrics[name], {key: other.metrics[name] for key, other in references.items()})
        panel.set(ylabel=f"{name} on test tasks", xlabel=adaptation if len(found.metrics[name]["mean"]) > 1 else "")
    title_above(figure, counted(found.num_tasks, "test task") if title is None else title)
    legend_beside(figure, axes[:1])
    return figure


def adaptation_curves(
    reports: Mapping[str, Report],
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    adaptation: str | None = None,
) -> "Figure":
    """Several reports in one picture: of each the mean over test tasks and its 95% interval.

    What does not adapt, a report with one entry, is a line across, its interval a band. Curves stand a little beside
    each other, so that intervals do not hide each other. Where a task diverged there is no mean, and a gap.

    Intervals that overlap may still be of means that differ, where the reports are of the same tasks: see
    `Report.ahead_of`.

    Args:
      reports: by the names of what was evaluated.
      names: of the metrics that are drawn, in this order, a panel for each; those that all reports have if None.
      title: the picture's title; the number of test tasks if None.
      adaptation: what is counted along the axis; the reports' unit if None.

    Raises:
      ValueError: there are no reports, one has no metric of a name, they have none in common, or they count adaptation
        in different units and `adaptation` is None.

    >>> maml = Report({"mse": np.array([[2.0, 1.0], [4.0, 1.0]])})
    >>> figure = adaptation_curves({"MAML": maml, "told the task": Report({"mse": np.zeros((2, 1))})})
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel(), figure.get_suptitle()
    ('step of adaptation', 'mse on test tasks', '2 test tasks')
    """
    check_filled("reports", reports, '{"MAML": report}')
    for key, found in reports.items():
        _check_report(f"reports[{key!r}]", found)
    names = check_common("reports", names, {key: list(found.samples) for key, found in reports.items()})
    adaptation = _unit(reports) if adaptation is None else adaptation
    counts = {found.num_tasks for found in reports.values()}
    figure, axes = panels(len(names), width=4.2, height=3.4, beside=2.4)
    looks = styles(reports)
    for panel, name in zip(axes, names, strict=True):
        most = max(len(found.metrics[name]["mean"]) for found in reports.values())
        for i, (key, found) in enumerate(reports.items()):
            label = key if len(counts) == 1 else f"{key}, {counted(found.num_tasks, 'task')}"
            mean, ci95 = (np.asarray(found.metrics[name][row], float) for row in ("mean", "ci95"))
            beside = 0.07 * (i - (len(reports) - 1) / 2)
            steps = np.arange(len(mean)) + beside
            _draw_mean(panel, steps, mean, ci95, looks[key], label=label, linewidth=1.8)
        _number_steps(panel, most)
        panel.set(ylabel=f"{name} on test tasks", xlabel=adaptation if most > 1 else "")
    if title is not None or len(counts) == 1:
        title_above(figure, counted(counts.pop(), "test task") if title is None else title)
    legend_beside(figure, axes)
    return figure


def _check_report(name: str, value: Any) -> None:
    if not isinstance(value, Report):
        raise ValueError(f"{name} must be a Report, as jaxmeta.evaluate returns it, got {short(value)}")
    check_filled(f"samples of {name}", value.samples, '{"mse": [num_tasks, K + 1]}')
    for metric, samples in value.samples.items():
        if np.ndim(samples) != 2:
            raise ValueError(f"{metric} of {name} must have the shape [num_tasks, K + 1], got {short(samples)}")


def _unit(reports: Mapping[str, Report]) -> str:
    """What those that adapt are counted in."""
    adapting = {key: found for key, found in reports.items() if any(np.shape(s)[1] > 1 for s in found.samples.values())}
    units = {found.unit for found in (adapting or reports).values()}
    if len(units) > 1:
        each = "; ".join(f"{key!r}: {found.unit}" for key, found in adapting.items())
        raise ValueError(
            f"reports must count adaptation in the same unit, got {each}: say what the axis counts, as in "
            'adaptation="step or episode of adaptation", or draw them apart'
        )
    return f"{units.pop()} of adaptation"


def _draw_report(axes: "Axes", summary: dict, references: dict[str, dict]) -> None:
    """A row of `Report.metrics`, and the means of others; what is not adapted is a line across."""
    mean, median, ci95 = (np.asarray(summary[row], float) for row in ("mean", "median", "ci95"))
    steps = np.arange(len(mean))
    _draw_mean(axes, steps, mean, ci95, OWN, label="mean, 95% interval")
    draw_curve(axes, steps, median, MEDIAN, label="median")
    others = styles(["mean", *references])  # so that none looks like the mean
    for name, found in references.items():
        values = np.asarray(found["mean"], float)
        draw_curve(axes, np.arange(len(values)), values, others[name], label=name)
    _number_steps(axes, len(steps))


_MANY = 20  # points that bars and numbers of their own would cover


def _number_steps(axes: "Axes", count: int) -> None:
    """Each of them, or of many whole numbers that have room."""
    if count > _MANY:
        axes.locator_params(axis="x", integer=True)
    else:
        axes.set_xticks(np.arange(count) if count > 1 else [])


def _draw_mean(
    axes: "Axes", steps: np.ndarray, mean: np.ndarray, ci95: np.ndarray, style: Style, **options: Any
) -> None:
    """With its interval: bars, or of one point, or of many, a band."""
    draw_curve(axes, steps, mean, style, **options)
    if len(mean) == 1 or len(mean) > _MANY:
        draw_band(axes, steps, mean - ci95, mean + ci95, style)
    else:
        axes.errorbar(steps, mean, ci95, fmt="none", ecolor=style.color, capsize=3)

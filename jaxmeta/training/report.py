"""What `evaluate` found: every task's metrics, and what is said of them, of each source and of each task."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxmeta.checks import check_choice
from jaxmeta.words import counted, html_table

Summary = dict[str, list[float | None]]


class Report(NamedTuple):
    """What `evaluate` found.

    `str(report)` is a table of mean, 95% interval and median after each unit, and so is what a notebook shows. Of
    several sources it has a row for each; of tasks with names it says which are at either end, and `rows()` is a table
    of all of them.

    Attributes:
      samples: {metric: `[num_tasks, K + 1]`}, of each test task, entry k after k units of adaptation.
      batch_norm: the statistics that the test images were normalised with, without which a few-shot accuracy cannot be
        compared; None if nothing was said.
      unit: what adaptation is counted in, the learner's: "step", "episode".
      names: of the tasks, one for each, which may be None; None if they have none.
      sources: which source each task is of, one after another, where there are several; else None.
      num_tasks: how many test tasks there are.

    >>> report = Report({"mse": np.array([[2.0, 1.0], [4.0, 1.5]])}, names=["north", "south"])
    >>> report
    Report(2 test tasks; mse 3 after 0 steps, 1.25 after 1 step)
    >>> print(report)
    2 test tasks
              mse        mean      ± 95%     median
    after 0 steps      3.0000     1.9600     3.0000
     after 1 step      1.2500     0.4900     1.2500
    after 1 step, of single tasks: mse from 1.0000 (north) to 1.5000 (south)
    """

    samples: dict[str, np.ndarray]
    batch_norm: str | None = None
    unit: str = "step"
    names: Sequence[str | None] | None = None
    sources: Sequence[str] | None = None

    @property
    def num_tasks(self) -> int:
        return len(next(iter(self.samples.values())))

    @property
    def metrics(self) -> dict[str, Summary]:
        """{metric: {"mean": [K + 1], "median": [K + 1], "ci95": [K + 1]}}; the interval is mean ± ci95.

        None where a task diverged, so that there is no mean. Of several sources each counts the same, however many
        tasks are of it: mean and median are averages over sources of each one's, and ci95 is that of this average.
        """
        return {name: summary_of(values, self.sources) for name, values in self.samples.items()}

    def of(self, source: str) -> "Report":
        """The report of one source alone.

        Raises:
          ValueError: there is no source of this name.

        >>> both = Report({"mse": np.array([[2.0], [4.0], [9.0]])}, sources=["waves", "waves", "lines"])
        >>> both.metrics["mse"]["mean"], both.of("waves").metrics["mse"]["mean"]
        ([6.0], [3.0])
        """
        if self.sources is None or source not in self.sources:
            there = "there are none" if self.sources is None else f"they are {', '.join(dict.fromkeys(self.sources))}"
            raise ValueError(f"source must be the name of one of the sources, got {source!r}: {there}")
        rows = np.array([name == source for name in self.sources])
        names = None if self.names is None else [name for name, is_of in zip(self.names, rows, strict=True) if is_of]
        names = names if any(names or ()) else None
        samples = {metric: values[rows] for metric, values in self.samples.items()}
        return self._replace(samples=samples, names=names, sources=None)

    def rows(self, by: str | None = None, best: Literal["highest", "lowest"] | None = None) -> "Rows":
        """A line for each task: its name or number, its source if there are several, its metrics after the last unit.

        Args:
          by: a metric to order the lines by, the worst first; the order of the tasks if None.
          best: whether a high metric is good or a low one; to be said with `by`.

        Returns:
          A list of {"task": name, metric: value}, to go on with, and which shows itself as a table. A value is None
          where the task diverged, which is the worst.

        Raises:
          ValueError: there is no such metric, or `best` is not said with it.

        >>> report = Report({"mse": np.array([[1.0], [1.5], [0.5]])}, names=["north", "south", "west"])
        >>> print(report.rows(by="mse", best="lowest"))
        3 test tasks, the worst mse first
         task         mse
        south      1.5000
        north      1.0000
         west      0.5000
        """
        lines = self._lines()
        order = ""
        if by is not None or best is not None:
            check_choice("by", by, self.samples)
            check_choice("best", best, ("highest", "lowest"))
            sign = 1 if best == "highest" else -1
            lines.sort(key=lambda line: -np.inf if line[str(by)] is None else sign * line[str(by)])
            order = f", the worst {by} first"
        return Rows(lines, f"{self._caption()}{self._when_last(', ')}{order}")

    def ahead_of(self, other: "Report", metric: str) -> dict[str, float | None]:
        """By how much a metric is higher than that of `other` after the last step, task by task: {"mean", "ci95"}.

        Both reports have to come from the same key and tasks. What tasks differ in cancels, so that the interval is
        often a small part of either report's. Of several sources it is the average over them; `of` takes one.

        Raises:
          ValueError: a report has no metric of this name, or they are of different tasks.

        >>> one, other = (Report({"return": np.array(values)}) for values in ([[1.0], [3.0]], [[0.0], [2.0]]))
        >>> one.ahead_of(other, "return")
        {'mean': 1.0, 'ci95': 0.0}
        """
        for name, report in (("this report", self), ("other", other)):
            if metric not in report.samples:
                raise ValueError(
                    f"metric must be one of {', '.join(sorted(report.samples))} for {name}, got {metric!r}"
                )
        if self.num_tasks != other.num_tasks:
            raise ValueError(
                f"other must be of the same {counted(self.num_tasks, 'task')}, got a report of {other.num_tasks}: "
                "evaluate both with the same key, tasks and num_tasks"
            )
        for field in ("names", "sources"):
            own, of_other = (getattr(report, field) for report in (self, other))
            if (None if own is None else list(own)) != (None if of_other is None else list(of_other)):
                raise ValueError(f"other must be of the same tasks, but its {field} are not those of this report")
        summary = summary_of(self.samples[metric][:, -1:] - other.samples[metric][:, -1:], self.sources)
        return {name: summary[name][0] for name in ("mean", "ci95")}

    def content(self) -> dict[str, Any]:
        """What `save` writes: `num_tasks`, `batch_norm`, `unit` and `metrics`; `num_tasks` and `metrics` of each source
        under "sources" if there are several, and `rows()` under "tasks" if they have names."""
        content = {name: getattr(self, name) for name in ("num_tasks", "batch_norm", "unit", "metrics")}
        if self.sources is not None:
            content["sources"] = {
                source: {"num_tasks": report.num_tasks, "metrics": report.metrics}
                for source, report in self._apart().items()
            }
        return content if self.names is None else {**content, "tasks": self._lines()}

    def save(self, path: str | os.PathLike) -> None:
        """Writes `content()` as JSON."""
        Path(path).write_text(json.dumps(self.content(), indent=2) + "\n")

    def _apart(self) -> dict[str, "Report"]:
        """The sources' reports, none if there is but one."""
        return {source: self.of(source) for source in dict.fromkeys(self.sources or ())}

    def _lines(self) -> list[dict[str, Any]]:
        """Of each task what is known of it after the last unit."""
        counts, lines = Counter[str | None](), []
        for i in range(self.num_tasks):
            source = None if self.sources is None else self.sources[i]
            name = None if self.names is None else self.names[i]
            whose = {} if source is None else {"source": source}
            values = {metric: _or_none(values[i, -1]) for metric, values in self.samples.items()}
            lines.append({**whose, "task": counts[source] if name is None else name, **values})
            counts[source] += 1
        return lines

    def _caption(self) -> str:
        sources = f" of {counted(len(set(self.sources)), 'source')}" if self.sources is not None else ""
        norm = f", batch norm: {self.batch_norm}" if self.batch_norm else ""
        return f"{counted(self.num_tasks, 'test task')}{sources}{norm}"

    def _when_last(self, before: str) -> str:
        last = max(np.shape(values)[1] for values in self.samples.values()) - 1
        return f"{before}after {counted(last, self.unit)}" if last else ""

    def _table(self, name: str) -> Iterator[tuple[str, list[str], str]]:
        """For each entry of a metric's curve when it is, its statistics, and how many tasks diverged; then the last of
        each source."""
        apart = self._apart()
        yield from _entries(self, name, "average" if apart else "")
        for source, report in apart.items():
            yield list(_entries(report, name, source))[-1]

    def _ends(self) -> str:
        """Which tasks are at either end of each metric, where they have names."""
        if self.names is None or self.sources is not None:
            return ""
        ends = []
        for metric, values in self.samples.items():
            last = np.where(np.isfinite(values[:, -1]), values[:, -1], np.nan)
            if not np.all(np.isnan(last)):
                low, high = int(np.nanargmin(last)), int(np.nanargmax(last))
                ends.append(
                    f"{metric} from {last[low]:.4f} ({self.names[low]}) to {last[high]:.4f} ({self.names[high]})"
                )
        return f"{self._when_last('')}, of single tasks: {'; '.join(ends)}".removeprefix(", ") if ends else ""

    def __str__(self) -> str:
        lines = [self._caption()]
        width = max(12, *(len(when) for name in self.samples for when, *_ in self._table(name)))
        for name in self.samples:
            lines.append(f"{name:>{width}}  {'mean':>10} {'± 95%':>10} {'median':>10}")
            for when, values, diverged in self._table(name):
                cells = " ".join(f"{value:>10}" for value in values)
                lines.append(f"{when:>{width}}  {cells}  {diverged}".rstrip())
        return "\n".join(filter(None, [*lines, self._ends()]))

    def __repr__(self) -> str:
        found = []
        for name, summary in self.metrics.items():
            means = ["-" if mean is None else f"{mean:.4g}" for mean in summary["mean"]]
            k = len(means) - 1
            found.append(
                f"{name} {means[0]}"
                + f" after {counted(0, self.unit)}, {means[k]} after {counted(k, self.unit)}" * bool(k)
            )
        return f"Report({self._caption()}; {'; '.join(found)})"

    def _repr_html_(self) -> str:
        rows = (
            [f"{name} {when}".rstrip(), *values, diverged]
            for name in self.samples
            for when, values, diverged in self._table(name)
        )
        caption = "; ".join(filter(None, [self._caption(), self._ends()]))
        return html_table(caption, ["", "mean", "± 95%", "median", ""], rows)


class Rows(list[dict[str, Any]]):
    """A line for each task, which show themselves as a table; what `Report.rows` returns."""

    def __init__(self, lines: Sequence[dict[str, Any]], caption: str):
        super().__init__(lines)
        self.caption = caption

    def _cells(self) -> list[list[str]]:
        said = lambda value: "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        return [list(self[0]), *([said(value) for value in line.values()] for line in self)]

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        num_texts = sum(name in ("source", "task") for name in cells[0])
        widths = [width if i < num_texts else max(10, width) for i, width in enumerate(widths)]
        lines = ("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells)
        return "\n".join([self.caption, *lines])

    def _repr_html_(self) -> str:
        header, *lines = self._cells()
        return html_table(self.caption, header, lines)


def joined(reports: Mapping[str, Report]) -> Report:
    """One report of several sources, the rows of one after another."""
    first = next(iter(reports.values()))
    samples = {name: np.concatenate([report.samples[name] for report in reports.values()]) for name in first.samples}
    names = [name for report in reports.values() for name in report.names or [None] * report.num_tasks]
    sources = [source for source, report in reports.items() for _ in range(report.num_tasks)]
    return first._replace(samples=samples, names=names if any(names) else None, sources=sources)


def summary_of(values: np.ndarray, sources: Sequence[str] | None) -> Summary:
    """Mean, median and half of the 95% interval of values [num_tasks, K + 1]; over tasks, and then over sources.

    With s² = var / n of each of S sources, the average of their means has the standard error sqrt(Σ s²) / S.

    >>> summary_of(np.array([[0.0], [2.0], [5.0]]), ["waves", "waves", "lines"])
    {'mean': [3.0], 'median': [3.0], 'ci95': [None]}
    """
    with np.errstate(all="ignore"):  # what is not finite is said below
        if sources is None:
            found = _statistics(values)
        else:
            apart = [_statistics(values[np.array(sources) == source]) for source in dict.fromkeys(sources)]
            found = {name: np.mean([of[name] for of in apart], axis=0) for name in ("mean", "median")}
            found["ci95"] = np.sqrt(np.sum([of["ci95"] ** 2 for of in apart], axis=0)) / len(apart)
    return {name: [_or_none(x) for x in row] for name, row in found.items()}


def _statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    values = values.astype(np.float64)
    is_one = len(values) == 1  # of which no deviation is known
    deviation = np.full(values.shape[1:], np.nan) if is_one else values.std(axis=0, ddof=1)
    return {
        "mean": values.mean(axis=0),
        "median": np.median(values, axis=0),
        "ci95": 1.96 * deviation / np.sqrt(len(values)),
    }


def _or_none(value: Any) -> float | None:
    """A number, as JSON has it, which has none that is not finite."""
    return float(value) if np.isfinite(value) else None


def _entries(report: Report, name: str, whose: str) -> Iterator[tuple[str, list[str], str]]:
    """For each entry of a metric's curve whose and when it is, its statistics, and how many tasks diverged."""
    summary = report.metrics[name]
    for k, values in enumerate(zip(*(summary[statistic] for statistic in ("mean", "ci95", "median")), strict=True)):
        when = f"after {counted(k, report.unit)}" if len(summary["mean"]) > 1 else ""
        diverged = int(np.sum(~np.isfinite(report.samples[name][:, k])))
        said = f"{counted(diverged, 'task')} diverged" if diverged else ""
        yield f"{whose} {when}".strip(), ["-" if value is None else f"{value:.4f}" for value in values], said

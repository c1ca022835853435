"""The evaluation protocol: a declared number of test tasks with fixed keys, every adaptation step reported."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxmeta.checks import (
    check_distribution,
    check_integer,
    check_key,
    check_learner,
    check_like,
    check_meta_params,
    check_metrics,
)
from jaxmeta.devices import SHARED, num_sharing, on_each, replicated
from jaxmeta.training.looks import look_at_tasks
from jaxmeta.types import MetaLearner, MetaParams, Metrics, PyTree, TaskDistribution
from jaxmeta.words import counted, html_table


class Report(NamedTuple):
    """What `evaluate` found.

    `str(report)` is a table of mean, 95% interval and median after each unit, and so is what a notebook shows.

    Attributes:
      samples: {metric: `[num_tasks, K + 1]`}, of each test task, entry k after k units of adaptation.
      batch_norm: the statistics that the test images were normalised with, without which a few-shot accuracy cannot be
        compared; None if nothing was said.
      unit: what adaptation is counted in, the learner's: "step", "episode".
      num_tasks: how many test tasks there are.

    >>> report = Report({"mse": np.array([[2.0, 1.0], [4.0, 1.5]])})
    >>> report
    Report(2 test tasks; mse 3 after 0 steps, 1.25 after 1 step)
    >>> print(report)
    2 test tasks
              mse        mean      ± 95%     median
    after 0 steps      3.0000     1.9600     3.0000
     after 1 step      1.2500     0.4900     1.2500
    """

    samples: dict[str, np.ndarray]
    batch_norm: str | None = None
    unit: str = "step"

    @property
    def num_tasks(self) -> int:
        return len(next(iter(self.samples.values())))

    @property
    def metrics(self) -> dict[str, dict[str, list[float | None]]]:
        """{metric: {"mean": [K + 1], "median": [K + 1], "ci95": [K + 1]}}; the interval is mean ± ci95.

        None where a task diverged, so that there is no mean.
        """
        return {name: _summary(values) for name, values in self.samples.items()}

    def ahead_of(self, other: "Report", metric: str) -> dict[str, float | None]:
        """By how much a metric is higher than that of `other` after the last step, task by task: {"mean", "ci95"}.

        Both reports have to come from the same key and tasks. What tasks differ in cancels, so that the interval is
        often a small part of either report's.

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
        summary = _summary(self.samples[metric][:, -1:] - other.samples[metric][:, -1:])
        return {name: summary[name][0] for name in ("mean", "ci95")}

    def save(self, path: str | os.PathLike) -> None:
        """Writes `num_tasks`, `batch_norm`, `unit` and `metrics` as JSON."""
        content = {name: getattr(self, name) for name in ("num_tasks", "batch_norm", "unit", "metrics")}
        Path(path).write_text(json.dumps(content, indent=2) + "\n")

    def _caption(self) -> str:
        return counted(self.num_tasks, "test task") + (f", batch norm: {self.batch_norm}" if self.batch_norm else "")

    def _rows(self, name: str) -> Iterator[tuple[str, list[str], str]]:
        """For each entry of a metric's curve when it is, its statistics, and how many tasks diverged."""
        summary = self.metrics[name]
        for k, values in enumerate(zip(*(summary[statistic] for statistic in ("mean", "ci95", "median")), strict=True)):
            when = f"after {counted(k, self.unit)}" if len(summary["mean"]) > 1 else ""
            diverged = int(np.sum(~np.isfinite(self.samples[name][:, k])))
            said = f"{counted(diverged, 'task')} diverged" if diverged else ""
            yield when, ["-" if value is None else f"{value:.4f}" for value in values], said

    def __str__(self) -> str:
        lines = [self._caption()]
        width = max(12, *(len(when) for name in self.samples for when, *_ in self._rows(name)))
        for name in self.samples:
            lines.append(f"{name:>{width}}  {'mean':>10} {'± 95%':>10} {'median':>10}")
            for when, values, diverged in self._rows(name):
                cells = " ".join(f"{value:>10}" for value in values)
                lines.append(f"{when:>{width}}  {cells}  {diverged}".rstrip())
        return "\n".join(lines)

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
            for when, values, diverged in self._rows(name)
        )
        return html_table(self._caption(), ["", "mean", "± 95%", "median", ""], rows)


def evaluate(
    key: jax.Array,
    learner: MetaLearner,
    tasks: TaskDistribution,
    meta_params: MetaParams,
    *,
    num_tasks: int | None = None,
    batch_size: int = 100,
    batch_norm: str | None = None,
) -> Report:
    """Adapts to `num_tasks` test tasks and reports the query set's metrics before and after every unit of adaptation.

    Task i comes from `fold_in(key, i)`: the same key gives the same tasks, whatever `batch_size`. Of a finite
    distribution (`tasks.size`) task i is `tasks.at(i, tasks.data)`: each once, in their order. The interval is 1.96
    standard errors of the mean over tasks.

    Before anything compiles, `tasks` are looked at: their sampler, and the labels of one task.

    Args:
      key: a typed key; keep it apart from the training key.
      learner: whose `evaluate` is called on each task.
      tasks: p(T) at test.
      meta_params: what was meta-trained, `state.meta_params`. Of seeds that were trained at once it takes one:
        `jax.tree.map(lambda x: x[0], state).meta_params`.
      num_tasks: test tasks, at least 2; 600, or all of a finite distribution, if None; of a finite one the first are
        taken. A single task may be asked for several times: the interval is then of what adaptation draws.
        `jaxmeta.over_devices` shares them where they share out evenly.
      batch_size: tasks evaluated at a time, at least 1; more take more memory. The tasks are the same.
      batch_norm: for the report: the statistics that the model normalises with.

    Raises:
      ValueError: an argument is wrong, or something about `tasks`.

    >>> import jax.numpy as jnp, jaxmeta
    >>> def loss_fn(params, batch):
    ...     x, y = batch
    ...     return jnp.mean((params * x - y) ** 2), {}
    >>> learner = jaxmeta.maml(lambda key: jnp.zeros(()), loss_fn, num_inner_steps=3)
    >>> state = learner.init(jax.random.key(0))
    >>> report = evaluate(jax.random.key(1), learner, jaxmeta.tasks.linear(), state.meta_params, num_tasks=10)
    >>> report.samples["loss"].shape
    (10, 4)
    """
    check_key("key", key, max_ndim=0)
    check_learner("learner", learner)
    check_distribution("tasks", tasks)
    num_tasks = num_test_tasks(tasks, num_tasks)
    check_integer("batch_size", batch_size, minimum=1)
    check_meta_params(meta_params)
    expected = jax.eval_shape(learner.init, key).meta_params
    check_like("meta_params", meta_params, expected, "this learner's, such as state.meta_params")
    look_at_tasks("tasks", tasks, learner, expected, is_test=True)
    samples = judge(key, learner, tasks, meta_params, num_tasks, batch_size)
    return Report(samples, batch_norm, getattr(learner, "unit", "step"))


def num_test_tasks(tasks: TaskDistribution, num_tasks: int | None) -> int:
    """How many tasks are evaluated where `num_tasks` are asked for.

    >>> num_test_tasks(TaskDistribution(len), None), num_test_tasks(TaskDistribution(len, at=len, size=20), None)
    (600, 20)
    """
    if num_tasks is None:
        return 600 if tasks.size is None else tasks.size
    check_integer("num_tasks", num_tasks, minimum=1 if tasks.size == 1 else 2)
    if tasks.size is not None and num_tasks > tasks.size > 1:
        raise ValueError(
            f"num_tasks must be at most the {counted(tasks.size, 'task')} that there are, got {num_tasks}: each is "
            "evaluated once, for repeats would narrow the interval. Leave num_tasks out to evaluate all; to average "
            "what adaptation draws, take other keys, or tasks._replace(at=None, size=None)"
        )
    return num_tasks


def judge(
    key: jax.Array,
    learner: MetaLearner,
    tasks: TaskDistribution,
    meta_params: MetaParams,
    num_tasks: int,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """The samples of a report, of arguments that have been checked."""
    samples = _evaluate_tasks(
        *replicated((key, meta_params, tasks.data)),
        learner=learner,
        sample=tasks.sample,
        at=tasks.at,
        size=tasks.size,
        num_tasks=num_tasks,
        batch_size=batch_size,
    )
    return {name: np.asarray(values) for name, values in samples.items()}


@partial(jax.jit, static_argnames=("learner", "sample", "at", "size", "num_tasks", "batch_size"))
def _evaluate_tasks(
    key: jax.Array,
    meta_params: MetaParams,
    data: PyTree,
    *,
    learner: MetaLearner,
    sample: Callable,
    at: Callable | None,
    size: int | None,
    num_tasks: int,
    batch_size: int,
) -> Metrics:
    def evaluate_tasks(everywhere: tuple, numbers: jax.Array) -> Metrics:
        key, meta_params, data = everywhere

        def evaluate_task(i: jax.Array) -> Metrics:
            task_key, adapt_key = jax.random.split(jax.random.fold_in(key, i))
            task = sample(task_key, data) if at is None or size is None else at(i % size, data)
            metrics = learner.evaluate(adapt_key, meta_params, task)
            check_metrics("learner.evaluate", metrics, ndim=1)
            return metrics

        return jax.lax.map(evaluate_task, numbers, batch_size=min(batch_size, len(numbers)))

    num_devices = num_sharing()
    if num_devices is not None and num_tasks % num_devices == 0:
        evaluate_tasks = on_each(evaluate_tasks, SHARED)
    return evaluate_tasks((key, meta_params, data), jax.numpy.arange(num_tasks))


def _summary(values: np.ndarray) -> dict[str, list[float | None]]:
    values = values.astype(np.float64)
    with np.errstate(all="ignore"):  # what is not finite is said below
        is_one = len(values) == 1  # of which no deviation is known
        deviation = np.full(values.shape[1:], np.nan) if is_one else values.std(axis=0, ddof=1)
        standard_error = deviation / np.sqrt(len(values))
        summary = {"mean": values.mean(axis=0), "median": np.median(values, axis=0), "ci95": 1.96 * standard_error}
    return {name: [float(x) if np.isfinite(x) else None for x in row] for name, row in summary.items()}

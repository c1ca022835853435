"""The evaluation protocol: a declared number of test tasks with fixed keys, every adaptation step reported."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxmeta.checks import check_fields, check_integer, check_key, check_learner, check_like
from jaxmeta.devices import SHARED, num_sharing, on_each, replicated
from jaxmeta.types import MetaLearner, MetaParams, Metrics, PyTree, TaskDistribution


class Report(NamedTuple):
    """What `evaluate` found. `samples` holds `[num_tasks, K + 1]` for each metric, index 0 before adaptation.

    `str(report)` is a table of mean, 95% interval and median after each step. `batch_norm` says which statistics
    normalised the test images, without which a few-shot accuracy cannot be compared.
    """

    samples: dict[str, np.ndarray]
    batch_norm: str | None = None

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
          ValueError: the reports are not of the same number of tasks.

        >>> one, other = (Report({"return": np.array(values)}) for values in ([[1.0], [3.0]], [[0.0], [2.0]]))
        >>> one.ahead_of(other, "return")
        {'mean': 1.0, 'ci95': 0.0}
        """
        if self.num_tasks != other.num_tasks:
            raise ValueError(f"other must be of the same {self.num_tasks} tasks, got {other.num_tasks}")
        summary = _summary(self.samples[metric][:, -1:] - other.samples[metric][:, -1:])
        return {name: summary[name][0] for name in ("mean", "ci95")}

    def save(self, path: str | os.PathLike) -> None:
        """Writes `num_tasks`, `batch_norm` and `metrics` as JSON."""
        content = {"num_tasks": self.num_tasks, "batch_norm": self.batch_norm, "metrics": self.metrics}
        Path(path).write_text(json.dumps(content, indent=2) + "\n")

    def __str__(self) -> str:
        lines = [f"{self.num_tasks} test tasks" + (f", batch norm: {self.batch_norm}" if self.batch_norm else "")]
        for name, summary in self.metrics.items():
            lines.append(f"{name:>12}  {'mean':>10} {'± 95%':>10} {'median':>10}")
            columns = zip(summary["mean"], summary["ci95"], summary["median"], strict=True)
            for step, values in enumerate(columns):
                cells = " ".join(f"{'-':>10}" if value is None else f"{value:10.4f}" for value in values)
                diverged = int(np.sum(~np.isfinite(self.samples[name][:, step])))
                lines.append(f"{f'step {step}':>12}  {cells}" + f"  {diverged} tasks diverged" * bool(diverged))
        return "\n".join(lines)


def evaluate(
    key: jax.Array,
    learner: MetaLearner,
    tasks: TaskDistribution,
    meta_params: MetaParams,
    *,
    num_tasks: int = 600,
    batch_size: int = 100,
    batch_norm: str | None = None,
) -> Report:
    """Adapts to `num_tasks` test tasks and reports the query set's metrics before and after every step.

    Task i comes from `fold_in(key, i)`: the same key gives the same tasks, whatever `batch_size`. The interval is
    1.96 standard errors of the mean over tasks.

    Args:
      key: a typed key; keep it apart from the training key.
      learner: whose `evaluate` is called on each task.
      tasks: p(T) at test.
      meta_params: what was meta-trained, `state.meta_params`.
      num_tasks: test tasks, at least 2; `jaxmeta.over_devices` shares them where they share out evenly.
      batch_size: tasks evaluated at a time.
      batch_norm: for the report: the statistics that the model normalises with.

    Raises:
      ValueError: an argument is wrong.

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
    check_fields("tasks", tasks, ("sample",), "a jaxmeta.TaskDistribution, such as jaxmeta.tasks.sinusoid()")
    check_integer("num_tasks", num_tasks, minimum=2)
    check_integer("batch_size", batch_size, minimum=1)
    expected = jax.eval_shape(learner.init, key).meta_params
    check_like("meta_params", meta_params, expected, "this learner's, such as state.meta_params")
    samples = _evaluate_tasks(
        *replicated((key, meta_params, tasks.data)),
        learner=learner,
        sample=tasks.sample,
        num_tasks=num_tasks,
        batch_size=batch_size,
    )
    return Report({name: np.asarray(values) for name, values in samples.items()}, batch_norm)


@partial(jax.jit, static_argnames=("learner", "sample", "num_tasks", "batch_size"))
def _evaluate_tasks(
    key: jax.Array,
    meta_params: MetaParams,
    data: PyTree,
    *,
    learner: MetaLearner,
    sample: Callable,
    num_tasks: int,
    batch_size: int,
) -> Metrics:
    def evaluate_tasks(everywhere: tuple, numbers: jax.Array) -> Metrics:
        key, meta_params, data = everywhere

        def evaluate_task(i: jax.Array) -> Metrics:
            task_key, adapt_key = jax.random.split(jax.random.fold_in(key, i))
            return learner.evaluate(adapt_key, meta_params, sample(task_key, data))

        return jax.lax.map(evaluate_task, numbers, batch_size=min(batch_size, len(numbers)))

    num_devices = num_sharing()
    if num_devices is not None and num_tasks % num_devices == 0:
        evaluate_tasks = on_each(evaluate_tasks, SHARED)
    return evaluate_tasks((key, meta_params, data), jax.numpy.arange(num_tasks))


def _summary(values: np.ndarray) -> dict[str, list[float | None]]:
    values = values.astype(np.float64)
    with np.errstate(all="ignore"):  # what is not finite is said below
        standard_error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        summary = {"mean": values.mean(axis=0), "median": np.median(values, axis=0), "ci95": 1.96 * standard_error}
    return {name: [float(x) if np.isfinite(x) else None for x in row] for name, row in summary.items()}

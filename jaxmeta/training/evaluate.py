"""The evaluation protocol: a declared number of test tasks with fixed keys, every adaptation step reported."""

from collections.abc import Callable
from functools import partial

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
from jaxmeta.devices import SHARED, can_share, known_everywhere, on_each, replicated
from jaxmeta.training.looks import look_at_tasks
from jaxmeta.training.report import Report, joined
from jaxmeta.types import MetaLearner, MetaParams, Metrics, PyTree, TaskDistribution
from jaxmeta.words import counted, short


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
    distribution (`tasks.size`) task i is `tasks.at(i, tasks.data)`: each once, in their order, and by its name where
    tasks have `names`. The interval is 1.96 standard errors of the mean over tasks.

    Of several sources (`tasks.sources`, see `tasks.mixture`) each is judged as if it were alone, source s with the key
    `fold_in(key, s)`; the report has the rows of one after another. Those that are not finite share a compiled program.

    Before anything compiles, `tasks` are looked at: their sampler, and the labels of one task.

    Args:
      key: a typed key; keep it apart from the training key.
      learner: whose `evaluate` is called on each task.
      tasks: p(T) at test.
      meta_params: what was meta-trained, `state.meta_params`. Of seeds that were trained at once it takes one:
        `jax.tree.map(lambda x: x[0], state).meta_params`.
      num_tasks: test tasks, at least 2; 600, or all of a finite distribution, if None; of a finite one the first are
        taken. A single task may be asked for several times: the interval is then of what adaptation draws. Of several
        sources so many of each, and of a finite one at most all. `jaxmeta.over_devices` shares them where they share
        out evenly.
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
    num_test_tasks(tasks, num_tasks)
    check_integer("batch_size", batch_size, minimum=1)
    if not isinstance(batch_norm, str | None):
        raise ValueError(f"batch_norm must be text for the report, or None, got {short(batch_norm)}")
    check_meta_params(meta_params)
    expected = jax.eval_shape(learner.init, key).meta_params
    check_like("meta_params", meta_params, expected, "this learner's, such as state.meta_params")
    look_at_tasks("tasks", tasks, learner, expected, is_test=True)
    return judge(key, learner, tasks, meta_params, num_tasks, batch_size)._replace(batch_norm=batch_norm)


def num_test_tasks(tasks: TaskDistribution, num_tasks: int | None) -> int:
    """How many tasks are evaluated where `num_tasks` are asked for; of several sources, of all of them.

    >>> num_test_tasks(TaskDistribution(len), None), num_test_tasks(TaskDistribution(len, at=len, size=20), None)
    (600, 20)
    """
    if num_tasks is not None:
        check_integer("num_tasks", num_tasks, minimum=1 if tasks.size == 1 else 2)
    if tasks.sources is not None:
        return sum(num_test_tasks(of, _at_most_all(of, num_tasks)) for of in tasks.sources.values())
    if num_tasks is None:
        return 600 if tasks.size is None else tasks.size
    if tasks.size is not None and num_tasks > tasks.size > 1:
        raise ValueError(
            f"num_tasks must be at most the {counted(tasks.size, 'task')} that there are, got {num_tasks}: each is "
            "evaluated once, for repeats would narrow the interval. Leave num_tasks out to evaluate all; to average "
            "what adaptation draws, take other keys, or tasks._replace(at=None, size=None, names=None)"
        )
    return num_tasks


def _at_most_all(source: TaskDistribution, num_tasks: int | None) -> int | None:
    return num_tasks if num_tasks is None or source.size is None else min(num_tasks, source.size)


def judge(
    key: jax.Array,
    learner: MetaLearner,
    tasks: TaskDistribution,
    meta_params: MetaParams,
    num_tasks: int | None,
    batch_size: int,
) -> Report:
    """The report of arguments that have been checked."""
    if tasks.sources is not None:
        return joined(
            {
                name: judge(
                    jax.random.fold_in(key, i), learner, of, meta_params, _at_most_all(of, num_tasks), batch_size
                )
                for i, (name, of) in enumerate(tasks.sources.items())
            }
        )
    num_tasks = num_test_tasks(tasks, num_tasks)
    samples = _evaluate_tasks(
        *replicated((key, meta_params, tasks.data)),
        learner=learner,
        sample=tasks.sample,
        at=tasks.at,
        size=tasks.size,
        num_tasks=num_tasks,
        batch_size=batch_size,
    )
    return Report(
        {name: np.asarray(values) for name, values in samples.items()},
        unit=getattr(learner, "unit", "step"),
        names=None if tasks.names is None else list(tasks.names[:num_tasks]),
    )


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

    if can_share(num_tasks):
        evaluate_tasks = on_each(evaluate_tasks, SHARED)
    return known_everywhere(evaluate_tasks((key, meta_params, data), jax.numpy.arange(num_tasks)))

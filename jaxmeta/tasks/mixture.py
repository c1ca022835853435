"""Tasks of several sources, such as image sets that have nothing in common but their shape: trained on together, and
judged one by one.

"Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples", Triantafillou et al. 2020,
https://arxiv.org/abs/1903.03096
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import a_key, check_number, check_sampler, check_sources
from jaxmeta.tasks.padding import are_alike, common_form, given_ways, has_labels, num_ways_of, padded, with_ways
from jaxmeta.types import PyTree, Task, TaskDistribution
from jaxmeta.words import short


def mixture(sources: Mapping[str, TaskDistribution], *, weights: Mapping[str, float] | None = None) -> TaskDistribution:
    """Tasks of several sources: one is drawn by the weights, and a task from it; one program trains on all of them.

    `evaluate` judges each source apart, 600 tasks of each or all of a finite one, and reports a row for each and their
    average, as Meta-Dataset does; so does a `training.Validation`, which goes by the average.

    "Meta-Dataset", Triantafillou et al. 2020, https://arxiv.org/abs/1903.03096, which draws sources uniformly

    Tasks of all sources have one form. Where they differ in their number of examples, or in their number of classes,
    batches become `Examples` as long as those of the largest source, with the weight 0 for what is padding and, of
    class numbers (integers [B]), `num_ways`: what a source says, or the largest label of the task and one. Where they
    do not differ they stay as they are.

    Of each task that is trained on, one of every source is drawn, and the others are thrown away: programs of vectors
    have no branches. That costs what drawing costs, which is little beside learning; `evaluate` draws what it judges.

    Args:
      sources: {name: tasks}, of which none is a mixture itself.
      weights: {name: how often it is drawn, ≥ 0}, relative to each other; equal if None.

    Returns:
      Tasks with `data` {name: the source's data} and `sources`, {name: its tasks in this form}. A task's `info` is
      {"source": its number in the order of names, "info": the source's own}, or () in its place, where those of the
      sources have different shapes.

    Raises:
      ValueError: there are no sources; examples of two have other shapes or dtypes, and both are named; weights are not
        of the sources, below 0, or all 0.

    >>> import jaxmeta
    >>> tasks = mixture({"waves": jaxmeta.tasks.sinusoid(num_shots=5), "lines": jaxmeta.tasks.linear(num_shots=10)})
    >>> task = tasks.sample(jax.random.key(1), tasks.data)
    >>> task.support.x.shape, task.support.weight.sum().item(), task.info["source"].item()
    ((10, 1), 5.0, 0)
    """
    check_sources("sources", sources)
    sources, chances = dict(sources), _chances(weights, tuple(sources))
    data = {name: jax.tree.map(jnp.asarray, tasks.data) for name, tasks in sources.items()}
    into_form = _into_form(sources, data)

    def draw(number: int, key: jax.Array, data: dict[str, PyTree]) -> PyTree:
        name = list(sources)[number]
        return into_form(number, sources[name].sample(key, data[name]))

    def sample(key: jax.Array, data: dict[str, PyTree]) -> PyTree:
        source_key, *keys = jax.random.split(key, 1 + len(chances))
        source = jax.random.choice(source_key, len(chances), p=jnp.asarray(chances, jnp.float32))
        drawn = [draw(number, key, data) for number, key in enumerate(keys)]
        # A switch would do the same where tasks are vectorised, and leave it to XLA not to copy all data for each.
        return jax.tree.map(lambda *leaves: jax.lax.select_n(source, *leaves), *drawn)

    def sample_source(key: jax.Array, data: tuple[jax.Array, dict[str, PyTree]]) -> PyTree:
        """Of the source whose number is in the data: the same program for all."""
        return jax.lax.switch(data[0], [partial(draw, number) for number in range(len(chances))], key, data[1])

    def at_source(at: Callable | None, number: int, name: str) -> Callable | None:
        return None if at is None else lambda index, data: into_form(number, at(index, data[1][name]))

    apart = {
        name: tasks._replace(sample=sample_source, data=(jnp.int32(number), data), at=at_source(tasks.at, number, name))
        for number, (name, tasks) in enumerate(sources.items())
    }
    return TaskDistribution(sample, data, sources=apart)


def _into_form(sources: Mapping[str, TaskDistribution], data: dict[str, PyTree]) -> Callable[[int, PyTree], PyTree]:
    """(source's number, its task) -> the task in the form that those of all sources share."""
    shapes = {}
    for name, tasks in sources.items():
        check_sampler(f"sources[{name!r}]", tasks, data[name], _CONSTANT)
        shapes[f"sources[{name!r}]"] = jax.eval_shape(tasks.sample, a_key(), data[name])
    form = common_form(shapes)
    one, *others = shapes.values()
    counts_classes = form.has_labels if form is not None else _differ_in_classes(sources, data, one)
    keeps_info = isinstance(one, Task) and are_alike(one.info, *(other.info for other in others))

    def into_form(number: int, task: PyTree) -> PyTree:
        if isinstance(task, Task):
            task = task._replace(info={"source": jnp.int32(number), "info": task.info if keeps_info else ()})
        if counts_classes:
            task = with_ways(task, num_ways_of(task))
        if form is not None:
            task = task._replace(support=padded(task.support, form.support), query=padded(task.query, form.query))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), task)  # none of a weak type

    return into_form


_CONSTANT = ". A source of one task is tasks.fixed([task])"


def _differ_in_classes(sources: Mapping[str, TaskDistribution], data: dict[str, PyTree], shape: PyTree) -> bool:
    """Whether tasks of one shape are of different numbers of classes, which none of them says."""
    if not isinstance(shape, Task) or not has_labels(shape) or given_ways(shape) is not None:
        return False
    key = jax.random.key(0)
    return len({int(num_ways_of(tasks.sample(key, data[name]))) for name, tasks in sources.items()}) > 1


def _chances(weights: Any, names: tuple[str, ...]) -> np.ndarray:
    """How likely each source is."""
    if weights is None:
        return np.full(len(names), 1 / len(names))
    if not isinstance(weights, Mapping) or weights.keys() != set(names):
        raise ValueError(f"weights must be a number for each of {', '.join(names)}, got {short(weights)}")
    for name, weight in weights.items():
        check_number(f"weights[{name!r}]", weight)
    if sum(weights.values()) <= 0:
        raise ValueError(f"weights must not all be 0, got {short(weights)}")
    return np.array([weights[name] for name in names]) / sum(weights.values())

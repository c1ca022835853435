"""Ordinary classification over all classes of a data set: what the baselines of few-shot learning are trained on."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_integer
from jaxmeta.tasks import by_class
from jaxmeta.tasks.augment import Augment, check_augment
from jaxmeta.tasks.draws import draw_of_any
from jaxmeta.types import Task, TaskDistribution


def all_classes(data: Any, *, batch_size: int, augment: Augment | None = None) -> TaskDistribution:
    """Minibatches of `batch_size` examples of all classes, each with the number of its class: no tasks to adapt to.

    Each is drawn uniformly from all examples, without replacement within a minibatch. Where classes are of unequal size
    the larger ones are seen more often. For `fine_tune` and `simple_shot`, whose `num_classes` is the number of classes
    in `data`; few-shot tasks of other classes are what they are judged on.

    Args:
      data: examples by class, in one of the forms of `few_shot`; or the `data` of its tasks, such as that of
        `tasks.glyphs("train")`.
      batch_size: examples of a minibatch, at most as many as there are.
      augment: (key, image) -> image, of the same shape and dtype, for each example that is drawn, with a key of its
        own, such as those of `tasks.augment`; none if None.

    Returns:
      Tasks without a support set, `Task((), (x [batch_size, ...], y [batch_size] int32))`, where y are classes by their
      place in `data`.

    Raises:
      ValueError: `data` has none of the forms, or fewer examples than `batch_size`; `augment` changes the shape.

    >>> import jax, numpy as np
    >>> birds = {"crow": np.zeros((5, 8, 8)), "heron": np.ones((3, 8, 8)), "wren": np.full((90, 8, 8), 2.0)}
    >>> tasks = all_classes(birds, batch_size=16)
    >>> x, y = tasks.sample(jax.random.key(0), tasks.data).query
    >>> x.shape, bool((x[:, 0, 0] == y).all())
    ((16, 8, 8), True)
    """
    check_integer("batch_size", batch_size, minimum=1)
    read = by_class.read(data)
    if augment is not None:
        check_augment(augment, read.shape, read.dtype)
    total = int(read.counts.sum())
    if batch_size > total:
        raise ValueError(f"batch_size must be at most the {total:,} examples of data, got {batch_size:,}")

    def sample(key: jax.Array, data: Any) -> Task:
        draw_key, augment_key = jax.random.split(key)
        classes, examples = by_class.place(data, draw_of_any(draw_key, batch_size, jnp.int32(total)))
        x = by_class.take(data, classes, examples)
        if augment is not None:
            x = jax.vmap(augment)(jax.random.split(augment_key, batch_size), x)
        return Task((), (x, classes))

    return TaskDistribution(sample, read.data)

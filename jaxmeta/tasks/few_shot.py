"""Few-shot classification: N-way K-shot episodes from any array of examples grouped by class.

Matching networks' episodes (Vinyals et al. 2016) are `few_shot` over the classes of a data set; `omniglot` is the
same over the real one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_integer
from jaxmeta.types import Task, TaskDistribution


def few_shot(data: Any, *, num_ways: int, num_shots: int, num_queries: int) -> TaskDistribution:
    """Episodes of `num_ways` classes with `num_shots` support and `num_queries` query examples of each.

    Classes are drawn without replacement, and so are the examples of a class, so that support and query never
    share one. Rows are grouped by class: row i has the label `i // num_shots` in the support set and
    `i // num_queries` in the query set. A class's label is its place in the draw, so it is new in every task.

    "Matching Networks for One Shot Learning", Vinyals et al. 2016, https://arxiv.org/abs/1606.04080

    Args:
      data: array [classes, examples, ...]. It keeps its dtype (64-bit ones if JAX has them enabled) and becomes
        `TaskDistribution.data`, so images stay uint8 until a network scales them.
      num_ways: classes of a task, at most `classes`.
      num_shots: support examples of each class.
      num_queries: query examples of each class; `num_shots + num_queries` is at most `examples`.

    Returns:
      Tasks with `support = (x [num_ways * num_shots, ...], y [num_ways * num_shots] int32)`, the same for
      `query` with `num_queries`, and `info`, the classes [num_ways] int32 as indices into `data`.

    Raises:
      ValueError: `data` is no array of numbers with these axes, or has too few classes or examples.

    >>> import jax, numpy as np
    >>> data = np.arange(4 * 3, dtype=np.uint8).reshape(4, 3)  # 4 classes of 3 examples, each a single number
    >>> tasks = few_shot(data, num_ways=2, num_shots=1, num_queries=2)
    >>> (x, y), (query_x, query_y), classes = tasks.sample(jax.random.key(0), tasks.data)
    >>> y.tolist(), query_y.tolist()
    ([0, 1], [0, 0, 1, 1])
    >>> bool((x // 3 == classes).all()), query_x.dtype
    (True, dtype('uint8'))
    """
    data = _check_data(data)
    check_integer("num_ways", num_ways, 1)
    check_integer("num_shots", num_shots, 1)
    check_integer("num_queries", num_queries, 1)
    num_classes, num_examples = data.shape[:2]
    if num_ways > num_classes:
        raise ValueError(f"num_ways must be at most the {num_classes} classes of data, got {num_ways}")
    if num_shots + num_queries > num_examples:
        raise ValueError(
            f"num_shots + num_queries must be at most the {num_examples} examples of a class in data, "
            f"got {num_shots} + {num_queries}"
        )

    def sample(key: jax.Array, data: jax.Array) -> Task:
        classes_key, examples_key = jax.random.split(key)
        classes = _draw(classes_key, num_ways, data.shape[0])
        examples = jax.vmap(lambda key: _draw(key, num_shots + num_queries, data.shape[1]))(
            jax.random.split(examples_key, num_ways)
        )

        def batch(examples: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = data[classes[:, None], examples].reshape(-1, *data.shape[2:])
            return x, jnp.repeat(jnp.arange(num_ways, dtype=jnp.int32), examples.shape[1])

        return Task(batch(examples[:, :num_shots]), batch(examples[:, num_shots:]), classes)

    return TaskDistribution(sample, data)


def _draw(key: jax.Array, num: int, total: int) -> jax.Array:
    """`num` of `range(total)` without replacement, in random order: where the largest of i.i.d. numbers stand.

    `jax.random.choice` permutes all of them, which costs 70 times as much for 4,400 classes on a CPU.
    """
    return jax.lax.top_k(jax.random.uniform(key, (total,), jnp.float32), num)[1].astype(jnp.int32)


def _check_data(data: Any) -> jax.Array:
    if not isinstance(data, np.ndarray | jax.Array):
        raise ValueError(f"data must be a numpy or jax array [classes, examples, ...], got {type(data).__name__}")
    if data.ndim < 2:
        raise ValueError(f"data must have the axes [classes, examples, ...], got the shape {data.shape}")
    if not (jnp.issubdtype(data.dtype, jnp.number) or data.dtype == bool):
        raise ValueError(f"data must hold numbers, such as uint8 or float32, got the dtype {data.dtype}")
    try:
        return jnp.asarray(data)
    except TypeError as error:  # numbers that JAX does not have, such as long doubles
        raise ValueError(f"data must have a dtype that JAX has, got {data.dtype}") from error

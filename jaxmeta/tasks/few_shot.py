"""Few-shot classification: N-way K-shot episodes from examples grouped by class, in whatever form they are there.

Matching networks' episodes (Vinyals et al. 2016) are `few_shot` over the classes of a data set; `omniglot` is the
same over the real one.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta.tasks import by_class
from jaxmeta.tasks.draws import draw
from jaxmeta.tasks.sizes import Size, check_sizes, draw_sizes
from jaxmeta.types import Batch, Examples, Task, TaskDistribution
from jaxmeta.words import short


def few_shot(data: Any, *, num_ways: Size, num_shots: Size, num_queries: Size) -> TaskDistribution:
    """Episodes of `num_ways` classes with `num_shots` support and `num_queries` query examples of each.

    With N ways, K shots and Q queries, all draws uniform, and independent but for being distinct,

        c_1 … c_N  distinct classes,    e_n1 … e_n(K+Q)  distinct examples of c_n,  for each n
        support = {(x of e_nk, n − 1) : k ≤ K}            query = {(x of e_nk, n − 1) : k > K}

    Rows are grouped by class: row i has the label `i // num_shots` in the support set and `i // num_queries` in the
    query set. A class's label is its place in the draw, so it is new in every task.

    A size is a number, or a pair (lowest, highest), both inclusive: then each episode draws its own, uniformly, and is
    padded to the highest, so that all have the same shapes. Its batches are `jaxmeta.Examples`, of which the losses,
    heads and networks of `jaxmeta` take what counts.

    "Matching Networks for One Shot Learning", Vinyals et al. 2016, https://arxiv.org/abs/1606.04080

    Args:
      data: examples by class, in one of four forms. An array [classes, examples, ...]; a list of arrays
        [examples, ...], one for each class and of any lengths; a pair `(x [n, ...], y [n])` of examples and integer
        labels, any and in any order, whose classes are the distinct labels in ascending order; a dict
        {name: array [examples, ...]}, whose order the classes have. They keep their dtype (64-bit ones if JAX has them
        enabled) and become `TaskDistribution.data`, so images stay uint8 until a network scales them. Nothing is
        padded: classes of unequal size are one after the other in one array.
      num_ways: classes of a task, at most as many as there are.
      num_shots: support examples of each class.
      num_queries: query examples of each class. Every class must have as many as shots and queries together, and as
        many as the highest of both where they are pairs.

    Returns:
      Tasks with `support = (x [num_ways * num_shots, ...], y [num_ways * num_shots] int32)`, the same for
      `query` with `num_queries`, and `info`, the classes [num_ways] int32 by their place in `data`. If any size is a
      pair, the shapes are those of the highest, and `support` and `query` are `Examples(x, y, weight, num_ways)`:
      `weight` float32 is 1 for what belongs to the episode and 0 for padding, which is row 0 again, its label too;
      `num_ways` int32 is the episode's own; `info` is −1 in place of classes that it does not have.

    Raises:
      ValueError: `data` has none of these forms, or too few classes, or classes with too few examples, which it names.

    >>> import jax, numpy as np
    >>> data = np.arange(4 * 3, dtype=np.uint8).reshape(4, 3)  # 4 classes of 3 examples, each a single number
    >>> tasks = few_shot(data, num_ways=2, num_shots=1, num_queries=2)
    >>> (x, y), (query_x, query_y), classes = tasks.sample(jax.random.key(0), tasks.data)
    >>> y.tolist(), query_y.tolist()
    ([0, 1], [0, 0, 1, 1])
    >>> bool((x // 3 == classes).all()), query_x.dtype
    (True, dtype('uint8'))

    Classes of unequal size, by name, in episodes of 2 or 3 ways:

    >>> birds = {"crow": np.zeros((5, 8, 8)), "heron": np.ones((3, 8, 8)), "wren": np.full((90, 8, 8), 2.0)}
    >>> tasks = few_shot(birds, num_ways=(2, 3), num_shots=1, num_queries=2)
    >>> tasks.sample(jax.random.key(1), tasks.data).support
    Examples(x=float32[3, 8, 8], y=int32[3], weight=float32[3], num_ways=int32(3))
    """
    sizes = check_sizes(num_ways, num_shots, num_queries)
    read = by_class.read(data)
    ways, shots, queries = sizes.highest
    if ways > len(read.counts):
        raise ValueError(f"num_ways must be at most the {len(read.counts)} classes of data, got {short(num_ways)}")
    by_class.check_enough(read, shots, queries)

    def sample(key: jax.Array, data: Any) -> Task:
        data = jax.tree.map(jnp.asarray, data)  # what is traced is no index into numpy's
        own = None
        if sizes.vary:
            sizes_key, key = jax.random.split(key)
            own = draw_sizes(sizes_key, sizes)
        classes_key, examples_key = jax.random.split(key)
        classes = draw(classes_key, ways, by_class.num_classes(data))
        examples = by_class.draw_examples(jax.random.split(examples_key, ways), data, classes, shots + queries)

        def batch(examples: jax.Array, num_each: Any) -> Batch:
            labels, places = _rows(ways, examples.shape[1])
            if own is None:
                return by_class.take(data, classes[labels], examples[labels, places]), labels
            counts = (labels < own.ways) & (places < num_each)
            labels, places = jnp.where(counts, labels, 0), jnp.where(counts, places, 0)
            x = by_class.take(data, classes[labels], examples[labels, places])
            return Examples(x, labels, counts.astype(jnp.float32), own.ways)

        support, query = batch(examples[:, :shots], own and own.shots), batch(examples[:, shots:], own and own.queries)
        return Task(support, query, classes if own is None else jnp.where(jnp.arange(ways) < own.ways, classes, -1))

    return TaskDistribution(sample, read.data)


def _rows(num_ways: int, num_each: int) -> tuple[jax.Array, jax.Array]:
    """The label of each row, and its place in its class."""
    number = jnp.arange(num_ways * num_each, dtype=jnp.int32)
    return number // num_each, number % num_each

"""Few-shot classification: N-way K-shot episodes from examples grouped by class, in whatever form they are there.

Matching networks' episodes (Vinyals et al. 2016) are `few_shot` over the classes of a data set; `omniglot` is the
same over the real one.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta.tasks import by_class
from jaxmeta.tasks.augment import Augment, check_augment
from jaxmeta.tasks.groups import draw_classes, grouped
from jaxmeta.tasks.rotations import check_rotations, rotated
from jaxmeta.tasks.sizes import Size, check_sizes, draw_sizes
from jaxmeta.types import Batch, Examples, Task, TaskDistribution
from jaxmeta.words import short


def few_shot(
    data: Any,
    *,
    num_ways: Size,
    num_shots: Size,
    num_queries: Size,
    rotations: bool = False,
    augment: Augment | None = None,
    groups: Any = None,
) -> TaskDistribution:
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
      rotations: whether images, square ones [size, size, ...], make four classes of one: with C classes in `data`,
        class r * C + c is class c rotated r times by 90 degrees, anticlockwise, done when it is drawn.
      augment: (key, image) -> image, of the same shape and dtype, for each example that is drawn, after its rotation,
        with a key of its own: `tasks.augment` has some, and dm-pix has more. It changes the query sets too: leave it
        out for tasks to test on. None: nothing.
      groups: if all classes of an episode must come from one group, drawn uniformly from those with enough classes, the
        group of each class, an integer or a name: in the classes' order, or as a dict or function of their names, which
        are the keys of a dict, the labels of a pair, else their numbers. Groups with fewer classes than the highest
        `num_ways` are left out. A group's rotations are groups of their own. None: any classes.

    Returns:
      Tasks with `support = (x [num_ways * num_shots, ...], y [num_ways * num_shots] int32)`, the same for
      `query` with `num_queries`, and `info`, the classes [num_ways] int32 by their place in `data`. If any size is a
      pair, the shapes are those of the highest, and `support` and `query` are `Examples(x, y, weight, num_ways)`:
      `weight` float32 is 1 for what belongs to the episode and 0 for padding, which is row 0 again, its label too;
      `num_ways` int32 is the episode's own; `info` is −1 in place of classes that it does not have.

    Raises:
      ValueError: `data` has none of these forms, or too few classes, or classes with too few examples, which it names,
        or is one number everywhere; or another argument is wrong: no group has enough classes, images are not square,
        `augment` changes the shape.

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
    >>> jax.jit(tasks.sample)(jax.random.key(1), tasks.data).support
    Examples(x=float32[3, 8, 8], y=int32[3], weight=float32[3], num_ways=int32(3))
    """
    sizes = check_sizes(num_ways, num_shots, num_queries)
    read = by_class.read(data)
    turns = check_rotations(rotations, read.shape)
    ways, shots, queries = sizes.highest
    num_classes = turns * len(read.counts)
    if ways > num_classes:
        raise ValueError(f"num_ways must be at most the {num_classes} classes of data, got {short(num_ways)}")
    by_class.check_enough(read, shots, queries)
    if augment is not None:
        check_augment(augment, read.shape, read.dtype)

    def sample(key: jax.Array, data: Any) -> Task:
        data = jax.tree.map(jnp.asarray, data)  # what is traced is no index into numpy's
        classes_key, examples_key, *others = jax.random.split(key, 2 + sizes.vary + (augment is not None))
        own = draw_sizes(others.pop(), sizes) if sizes.vary else None
        classes = draw_classes(classes_key, data, ways, turns)
        data = data.data if groups is not None else data
        examples = by_class.draw_examples(jax.random.split(examples_key, ways), data, classes, shots + queries)
        keys = jax.random.split(others.pop(), examples.shape) if augment is not None else examples

        def batch(examples: jax.Array, keys: jax.Array, own_each: Any) -> Batch:
            labels, places, weight = _rows(ways, examples.shape[1], own and own.ways, own_each)
            x = _take(data, classes[labels], examples[labels, places], turns)
            if augment is not None:
                x = jax.vmap(augment)(keys[labels, places], x)
            return (x, labels) if own is None else Examples(x, labels, weight, own.ways)

        support = batch(examples[:, :shots], keys[:, :shots], own and own.shots)
        query = batch(examples[:, shots:], keys[:, shots:], own and own.queries)
        return Task(support, query, classes if own is None else jnp.where(jnp.arange(ways) < own.ways, classes, -1))

    given = read.data if groups is None else grouped(read.data, groups, read.names, ways)
    by_class.check_varies(read)
    return TaskDistribution(sample, given)


def _rows(num_ways: int, num_each: int, own_ways: Any, own_each: Any) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The label of each row, its place in its class and its weight: beyond the episode's own size row 0, weight 0."""
    number = jnp.arange(num_ways * num_each, dtype=jnp.int32)
    labels, places = number // num_each, number % num_each
    if own_ways is None:
        return labels, places, None
    counts = (labels < own_ways) & (places < own_each)
    return jnp.where(counts, labels, 0), jnp.where(counts, places, 0), counts.astype(jnp.float32)


def _take(data: Any, classes: jax.Array, examples: jax.Array, turns: int) -> jax.Array:
    """The examples of these numbers of these classes; those from C on are rotated."""
    if turns == 1:
        return by_class.take(data, classes, examples)
    turn, upright = jnp.divmod(classes, by_class.num_classes(data))
    return rotated(by_class.take(data, upright, examples), turn)

"""Minibatches of a support set, which inner steps draw."""

import jax
import jax.numpy as jnp

from jaxmeta.types import Batch, Examples


def minibatch(key: jax.Array, batch: Batch, batch_size: int | None) -> Batch:
    """Examples that count, without replacement; where they are too few, of the others, whose weight is 0.

    The r-th that counts is drawn by a number that depends on r alone, so that padding changes no draw.
    """
    if batch_size is None:
        return batch
    is_weighted = isinstance(batch, Examples) and batch.weight is not None
    rows = (batch.x, batch.y, batch.weight) if isinstance(batch, Examples) else batch  # num_ways is of all examples
    num_examples = len(jax.tree.leaves(rows)[0])
    if batch_size > num_examples:
        raise ValueError(f"batch_size must be at most the {num_examples} examples of the support set, got {batch_size}")
    numbers = jnp.arange(num_examples)
    lots = jax.vmap(lambda r: jax.random.uniform(jax.random.fold_in(key, r), (), jnp.float32))(numbers)
    if is_weighted:
        counts = jnp.asarray(batch.weight) > 0
        lots = jnp.where(counts, lots[jnp.cumsum(counts) - 1], -1)
    _, chosen = jax.lax.top_k(lots, batch_size)
    drawn = jax.tree.map(lambda x: jnp.asarray(x)[chosen], rows)
    return batch._replace(x=drawn[0], y=drawn[1], weight=drawn[2]) if isinstance(batch, Examples) else drawn

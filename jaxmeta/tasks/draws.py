"""Draws without replacement, in random order, of sizes known while tracing and of sizes that are not."""

import jax
import jax.numpy as jnp


def draw(key: jax.Array, num: int, total: int) -> jax.Array:
    """`num` of `range(total)` without replacement, in random order: where the largest of i.i.d. numbers stand.

    `jax.random.choice` permutes all of them, which costs 70 times as much for 4,400 classes on a CPU.
    """
    return jax.lax.top_k(jax.random.uniform(key, (total,), jnp.float32), num)[1].astype(jnp.int32)


def draw_of_any(key: jax.Array, num: int, total: jax.Array) -> jax.Array:
    """The same of a `total` ≥ `num` that is an array: no shape depends on it, and neither does the cost.

    The shuffle of Fisher and Yates: for i = 0, 1, ... the entry at i is swapped with that at a random place from i on.
    What the first `num` entries are then depends on these places alone, so the rest is never written down: 160 draws of
    16 take 0.5 ms on a CPU, and as `draw` does it, padded to a total of 5,000, 5 ms.

    "Algorithm 235: Random permutation", Durstenfeld 1964, https://doi.org/10.1145/364520.364540
    """
    return swapped(jax.random.randint(key, (num,), jnp.arange(num, dtype=jnp.int32), total, jnp.int32))


def swapped(places: jax.Array) -> jax.Array:
    """The first entries of 0, 1, 2, ... once entry i has been swapped with the one at `places[i]` ≥ i, in turn.

    A place holds its own number, or what the last step j to swap with it had at place j, which is its own number or
    what an earlier step had, and so on. The chains are followed all at once, by doubling: log2 of `num` times.

    >>> swapped(jnp.array([2, 2, 2, 7])).tolist()  # 2 1 0 3 ..., 2 0 1 3 ..., 2 0 1 3 ..., 2 0 1 7 ...
    [2, 0, 1, 7]
    """
    num = len(places)
    steps = jnp.arange(num, dtype=places.dtype)
    # what step i moves from place i to a later one: i, or what the last step that swapped with place i moved there
    swapper = jnp.full_like(places, -1).at[places].max(steps, mode="drop")
    held = jnp.where(swapper < 0, steps, swapper)
    for _ in range((num - 1).bit_length()):
        held = held[held]
    # the last step before step i that swapped with the same place as it
    order = jnp.argsort(places, stable=True).astype(places.dtype)
    is_again = places[order[1:]] == places[order[:-1]]
    source = jnp.full_like(places, -1).at[order[1:]].set(jnp.where(is_again, order[:-1], -1))
    return jnp.where(source < 0, places, held[source])

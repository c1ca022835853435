"""Rotations by multiples of 90 degrees, of images that are drawn already: four times the classes, and no more memory.

"Meta-Learning with Memory-Augmented Neural Networks", Santoro et al. 2016, https://arxiv.org/abs/1605.06065
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta.words import short

NUM_TURNS = 4


def rotated(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Image i of [B, H, H, ...] rotated `turns[i]` times by 90 degrees, anticlockwise, as `np.rot90` does.

    >>> rotated(jnp.array([[[1, 2], [3, 4]]] * 2), jnp.array([0, 1])).tolist()
    [[[1, 2], [3, 4]], [[2, 4], [1, 3]]]
    """
    which = jnp.broadcast_to(turns.reshape(-1, *(1,) * (images.ndim - 1)), images.shape)
    return jax.lax.select_n(which, *(jnp.rot90(images, turn, axes=(1, 2)) for turn in range(NUM_TURNS)))


def check_rotations(rotations: Any, shape: tuple[int, ...]) -> int:
    """How many classes there are of one; of images of this shape, whose rotations must have it too."""
    if not isinstance(rotations, bool):
        raise ValueError(f"rotations must be True or False, got {short(rotations)}")
    if rotations and (len(shape) < 2 or shape[0] != shape[1]):
        raise ValueError(
            f"rotations must be of square images [size, size, ...], got examples of the shape {shape}: crop them, or "
            "leave rotations=False"
        )
    return NUM_TURNS if rotations else 1

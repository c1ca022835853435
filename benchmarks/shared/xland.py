"""The network of XLand-MiniGrid's own training loop, for RL² here: embeddings, three convolutions, a GRU, a layer.

It computes what theirs does, in fewer operations: the first convolution is linear in the embeddings, so that its
product with each pair of a tile and a colour is looked up; the others are products of patches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxmeta.nn import Recurrent, gru
from jaxmeta.types import Params, PyTree

NUM_TILES, NUM_COLORS, NUM_FACING, NUM_ACTIONS = 13, 12, 4, 6
EMBEDDING, CHANNELS = 16, (16, 32, 64)
_CORNERS = [(i, j) for i in (0, 1) for j in (0, 1)]


def conv_gru(view_size: int, num_units: int = 64) -> Recurrent:
    """For inputs of a trial of `families.xland(one_hot=False)`; a layer of `num_units` follows the GRU, as in theirs.

    >>> core = conv_gru(5, 8)
    >>> params = core.init(jax.random.key(0), 63)
    >>> core.sequence(params, core.start((3,)), jnp.zeros((4, 3, 63)))[1].shape
    (4, 3, 8)
    """
    core, layer = gru(num_units), nn.Dense(num_units, kernel_init=nn.initializers.orthogonal(2))
    num_seen = CHANNELS[-1] * (view_size - len(CHANNELS)) ** 2

    def init(key: jax.Array, num_inputs: int) -> Params:
        keys = jax.random.split(key, 8)
        num_rest = num_inputs - 2 * view_size**2 - NUM_FACING - NUM_ACTIONS
        scaled = nn.initializers.orthogonal(2**0.5)
        return {
            "tile": jax.random.normal(keys[0], (NUM_TILES, EMBEDDING)) / EMBEDDING**0.5,
            "color": jax.random.normal(keys[1], (NUM_COLORS, EMBEDDING)) / EMBEDDING**0.5,
            "facing": nn.initializers.lecun_normal()(keys[2], (NUM_FACING, EMBEDDING)),
            "action": jax.random.normal(keys[3], (NUM_ACTIONS, EMBEDDING)) / EMBEDDING**0.5,
            "convolutions": [
                {"kernel": scaled(key, (2, 2, before, after)), "bias": jnp.zeros(after)}
                for key, before, after in zip(
                    jax.random.split(keys[4], len(CHANNELS)), (2 * EMBEDDING, *CHANNELS), CHANNELS, strict=False
                )
            ],
            "core": core.init(keys[5], num_seen + 2 * EMBEDDING + num_rest),
            "layer": layer.init(keys[6], jnp.zeros(num_units))["params"],
        }

    def between(run: Callable) -> Callable:
        def apply(params: Params, carry: PyTree, x: jax.Array) -> tuple[PyTree, jax.Array]:
            carry, h = run(params["core"], carry, encoded(params, x, view_size))
            output: Any = layer.apply({"params": params["layer"]}, h)
            return carry, jnp.tanh(output)

        return apply

    return Recurrent(init, core.start, between(core.step), between(core.sequence), num_units)


def encoded(params: Params, x: jax.Array, view_size: int) -> jax.Array:
    """What the GRU sees of inputs `[..., D]`: the view through the convolutions, embeddings, and the rest."""
    leading, num_ids = x.shape[:-1], 2 * view_size**2
    x = x.reshape(-1, x.shape[-1])
    ids, facing, action, rest = jnp.split(
        x, (num_ids, num_ids + NUM_FACING, num_ids + NUM_FACING + NUM_ACTIONS), axis=1
    )
    tile, color = jnp.moveaxis(ids.astype(jnp.int32).reshape(-1, 2, view_size, view_size), 1, 0)
    first, *others = params["convolutions"]
    seen = nn.relu(_looked_up(params, first["kernel"], tile * NUM_COLORS + color) + first["bias"])
    for of in others:
        patches = jnp.concatenate([seen[:, i : i - 1 or None, j : j - 1 or None] for i, j in _CORNERS], axis=-1)
        seen = nn.relu(patches @ of["kernel"].reshape(-1, of["kernel"].shape[-1]) + of["bias"])
    parts = (seen.reshape(len(x), -1), facing @ params["facing"], action @ params["action"], rest)
    return jnp.concatenate(parts, axis=-1).reshape(*leading, -1)


def _looked_up(params: Params, kernel: jax.Array, pair: jax.Array) -> jax.Array:
    """The convolution `[2, 2, 2E, O]` of the embeddings of pairs `[N, V, V]`: `[N, V − 1, V − 1, O]`."""
    of_tile = jnp.einsum("te,ijeo->tijo", params["tile"], kernel[:, :, :EMBEDDING])
    of_color = jnp.einsum("ce,ijeo->cijo", params["color"], kernel[:, :, EMBEDDING:])
    table = (of_tile[:, None] + of_color[None]).reshape(-1, *of_tile.shape[1:])
    by_corner = [table[:, i, j][pair[:, i : i - 1 or None, j : j - 1 or None]] for i, j in _CORNERS]
    return by_corner[0] + by_corner[1] + by_corner[2] + by_corner[3]

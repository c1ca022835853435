"""The transformer as people write it, of flax's layers and `jax.nn.softmax`, with the parameters of jaxmeta's."""

import flax.linen as fnn
import jax
import jax.numpy as jnp

from jaxmeta import nn


class PlainTransformer(nn.Transformer):
    """`nn.Transformer` of tokens."""

    @fnn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T] -> [B, T, num_outputs]."""
        embedding = fnn.Embed(self.num_tokens or 1, self.width, name="embed")
        positions = self.param("positions", fnn.initializers.normal(0.02), (self.max_length, self.width), jnp.float32)
        h = embedding(x) + positions[: x.shape[1]]
        for i in range(self.num_layers):
            h = _Block(self.num_heads, name=f"block{i}")(h)
        return fnn.Dense(self.num_outputs, name="head")(_layer_norm("norm")(h))


class _Block(fnn.Module):
    num_heads: int

    @fnn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        batch, length, width = h.shape
        qkv = fnn.Dense(3 * width, name="qkv")(_layer_norm("norm0")(h))
        query, key, value = jnp.moveaxis(qkv.reshape(batch, length, 3, self.num_heads, -1), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf))
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(h.shape)
        h = h + fnn.Dense(width, name="out")(attended)
        hidden = fnn.gelu(fnn.Dense(4 * width, name="hidden")(_layer_norm("norm1")(h)))
        return h + fnn.Dense(width, name="mlp")(hidden)


def _layer_norm(name: str) -> fnn.LayerNorm:
    return fnn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)

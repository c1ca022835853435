"""A small causal transformer: for sequences of tokens or of features, differentiated as often as meta-learning asks."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.checks import check_flag, check_integer
from jaxmeta.nn.attention import attention, causal_attention
from jaxmeta.nn.features_first import Dense, LayerNorm, gelu


class Transformer(nn.Module):
    """A causal transformer: tokens [B, T] or features [B, T, D] -> [B, T, num_outputs], output t of inputs 0 .. t.

        h = embed(x) + positions,   then in each layer   h += attention(norm(h)),   h += mlp(norm(h)),
        y = head(norm(h)),          attention = softmax(Q K' / sqrt(width / num_heads) + causal mask) V

    with layer norm before each part (pre-norm), learned positions, and one hidden layer of 4 * width with GELU. The
    network of Radford et al., "Language Models are Unsupervised Multitask Learners" (2019),
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf, with a head
    of its own: small, no dropout. For next-token prediction use `cross_entropy` with the batch
    `(tokens[:, :-1], tokens[:, 1:])` and `num_outputs=num_tokens`.

    Attributes:
      num_outputs: width of the output, the number of classes or of tokens.
      max_length: the longest T there is a position for.
      num_tokens: size of the vocabulary; inputs are integers below it. If None they are features, embedded by a matrix.
      num_layers: blocks of attention and mlp.
      width: size of h, a multiple of `num_heads`.
      num_heads: heads of attention.
      remat: keep only each block's input for the backward pass, and run the block again there: less memory, more time.

    >>> network = Transformer(num_outputs=10, max_length=16, num_tokens=10, num_layers=1, width=8, num_heads=2)
    >>> tokens = jnp.zeros((2, 16), int)
    >>> params = network.init(jax.random.key(0), tokens)
    >>> network.apply(params, tokens).shape
    (2, 16, 10)
    >>> sorted(params["params"])
    ['block0', 'embed', 'head', 'norm', 'positions']
    """

    num_outputs: int
    max_length: int
    num_tokens: int | None = None
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T] or [B, T, D] -> [B, T, num_outputs]."""
        self._check(x)
        if self.num_tokens is None:
            h = nn.Dense(self.width, name="embed")(x)
        else:
            h = nn.Embed(self.num_tokens, self.width, name="embed")(x)
        positions = self.param("positions", nn.initializers.normal(0.02), (self.max_length, self.width), jnp.float32)
        h = jnp.moveaxis(h + positions[None, : x.shape[1]], -1, 0)
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.num_layers):
            h = block(self.num_heads, name=f"block{i}")(h)
        return jnp.moveaxis(Dense(self.num_outputs, name="head")(LayerNorm(name="norm")(h)), 0, -1)

    def _check(self, x: jax.Array) -> None:
        for name in ("num_outputs", "max_length", "num_layers", "width", "num_heads"):
            check_integer(name, getattr(self, name), 1)
        check_flag("remat", self.remat)
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads, {self.num_heads}, got {self.width}")
        if self.num_tokens is None:
            if x.ndim != 3 or not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(
                    f"x must be features [B, T, D], got {x.dtype} of shape {x.shape}: give num_tokens for tokens [B, T]"
                )
        else:
            check_integer("num_tokens", self.num_tokens, 1)
            if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
                raise ValueError(
                    f"x must be integer tokens [B, T], got {x.dtype} of shape {x.shape}: num_tokens=None for features"
                )
        if x.shape[1] > self.max_length:
            raise ValueError(f"x must be at most max_length={self.max_length} long, got shape {x.shape}")


class Memory(NamedTuple):
    """The keys and the values [..., heads, D, M] of the steps so far, and how many these are."""

    keys: jax.Array
    values: jax.Array
    position: jax.Array

    def steps(self, length: int) -> jax.Array:
        """The numbers of the next steps, [..., length]."""
        return self.position[..., None] + jnp.expand_dims(jnp.arange(length), range(self.position.ndim))


class Block(nn.Module):
    """Attention, then an mlp, each added to what it was given: [W, ..., T] -> [W, ..., T].

    With a `Memory` of what came before, attention reads that too: (h, memory) -> (h, memory).
    """

    num_heads: int

    @nn.compact
    def __call__(self, h: jax.Array, memory: Memory | None = None):
        width, *batch, length = h.shape
        qkv = Dense(3 * width, name="qkv")(LayerNorm(name="norm0")(h))
        heads = qkv.reshape(3, self.num_heads, width // self.num_heads, *batch, length)
        query, key, value = jnp.moveaxis(heads, 2, -2)  # [heads, ..., D, T]
        if memory is None:
            attended = causal_attention(query, key, value)
        else:
            attended, memory = _attention_to_memory(query, key, value, memory)
        h = h + Dense(width, name="out")(jnp.moveaxis(attended, -2, 1).reshape(h.shape))
        hidden = gelu(Dense(4 * width, name="hidden")(LayerNorm(name="norm1")(h)))
        h = h + Dense(width, name="mlp")(hidden)
        return h if memory is None else (h, memory)


def _attention_to_memory(
    query: jax.Array, key: jax.Array, value: jax.Array, memory: Memory
) -> tuple[jax.Array, Memory]:
    """What is new is written behind what is there; a query sees all that is not later."""
    length, size = query.shape[-1], memory.keys.shape[-1]
    query, key, value = (jnp.moveaxis(x, 0, -3) for x in (query, key, value))  # [..., heads, D, T]
    write = jnp.vectorize(_write, signature="(h,d,m),(h,d,t),()->(h,d,m)")
    keys, values = write(memory.keys, key, memory.position), write(memory.values, value, memory.position)
    now = memory.steps(length)[..., None, :]
    past = jnp.expand_dims(jnp.arange(size)[:, None], range(now.ndim - 2)) <= now
    attended = attention(query, keys, values, past[..., None, :, :])
    return jnp.moveaxis(attended, -3, 0), Memory(keys, values, memory.position + length)


def _write(memory: jax.Array, new: jax.Array, position: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(memory, new, position, axis=-1)


def layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)

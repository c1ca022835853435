"""Recurrent networks of one interface: step by step to act, a whole sequence at once to learn.

| constructor          | a sequence of T                                         | remembers                       |
|----------------------|---------------------------------------------------------|---------------------------------|
| `gru`, `lstm`        | a scan, T deep                                          | what it has learned to keep     |
| `min_gru`            | products over T · B, and a parallel scan, log T deep    | likewise                        |
| `causal_transformer` | products over T · B, and attention of all to all        | everything, up to `max_steps`   |
| `with_layers`        | another of these, between two layers                    | what that remembers             |
| `feed_forward`       | products over T · B                                     | nothing                         |

`sequence` is `step` in a loop, computed in another order: what acted step by step is replayed as a whole.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.checks import check_fields, check_integer
from jaxmeta.nn.features_first import LayerNorm
from jaxmeta.nn.transformer import Block, Memory, layer_norm
from jaxmeta.types import Params, PyTree


class Recurrent(NamedTuple):
    """Pure functions of one recurrent network; ... are any axes of a batch, D inputs, H outputs.

    Attributes:
      init: (key, D) -> params
      start: (shape of ...) -> the carry before the first step
      step: (params, carry, x [..., D]) -> (carry, h [..., H])
      sequence: (params, carry, xs [T, ..., D]) -> (carry, hs [T, ..., H])
      num_outputs: H
      max_steps: steps from `start` on that it can take, None if any number
    """

    init: Callable[[jax.Array, int], Params]
    start: Callable[[Sequence[int]], PyTree]
    step: Callable[[Params, PyTree, jax.Array], tuple[PyTree, jax.Array]]
    sequence: Callable[[Params, PyTree, jax.Array], tuple[PyTree, jax.Array]]
    num_outputs: int
    max_steps: int | None = None


def gru(num_units: int = 128) -> Recurrent:
    """A gated recurrent unit.

        r, z = σ(x W_r + h U_r), σ(x W_z + h U_z),   n = tanh(x W_n + r (h U_n + b)),   h ← (1 − z) n + z h

    It is flax's `GRUCell`, whose initialisers it has, with the kernels side by side: W `[D, 3H]`, U `[H, 3H]`.

    Chung, Gulcehre, Cho, Bengio, "Empirical Evaluation of Gated Recurrent Neural Networks on Sequence Modeling" (2014),
    https://arxiv.org/abs/1412.3555

    Args:
      num_units: H, the width of the hidden state, at least 1.

    Raises:
      ValueError: `num_units` is not a positive integer.

    >>> core = gru(8)
    >>> params = core.init(jax.random.key(0), 3)
    >>> carry, hs = core.sequence(params, core.start((5,)), jnp.ones((10, 5, 3)))
    >>> carry.shape, hs.shape, core.step(params, carry, jnp.ones((5, 3)))[1].shape
    ((5, 8), (10, 5, 8), (5, 8))
    """
    check_integer("num_units", num_units, minimum=1)

    def init(key: jax.Array, num_inputs: int) -> Params:
        cell = nn.GRUCell(num_units).init(key, jnp.zeros(num_units), jnp.zeros(num_inputs))["params"]
        return {
            "input": _side_by_side(cell, ("ir", "iz", "in")),
            "hidden": {"kernel": _side_by_side(cell, ("hr", "hz", "hn"))["kernel"], "bias": cell["hn"]["bias"]},
        }

    def advance(params: Params, h: jax.Array, projected: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_r, x_z, x_n = jnp.split(projected, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(h @ params["hidden"]["kernel"], 3, axis=-1)
        r, z = nn.sigmoid(x_r + h_r), nn.sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + r * _add_bias(h_n, params["hidden"]["bias"]))
        h = n + z * (h - n)
        return h, h

    return _of_cell(num_units, init, lambda shape: jnp.zeros((*shape, num_units)), advance)


def lstm(num_units: int = 128) -> Recurrent:
    """A long short-term memory; the carry is (c, h).

        i, f, o = σ(x W + h U + b),   g = tanh(x W_g + h U_g + b_g),   c ← f c + i g,   h ← o tanh(c)

    It is flax's `OptimizedLSTMCell`, whose initialisers it has, with the kernels of i, f, g, o side by side.

    Hochreiter, Schmidhuber, "Long Short-Term Memory" (1997), https://doi.org/10.1162/neco.1997.9.8.1735

    Args:
      num_units: H, the width of the hidden state, at least 1.

    Raises:
      ValueError: `num_units` is not a positive integer.

    >>> core = lstm(8)
    >>> core.sequence(core.init(jax.random.key(0), 3), core.start((5,)), jnp.ones((10, 5, 3)))[1].shape
    (10, 5, 8)
    """
    check_integer("num_units", num_units, minimum=1)

    def init(key: jax.Array, num_inputs: int) -> Params:
        carry = (jnp.zeros(num_units), jnp.zeros(num_units))
        cell = nn.OptimizedLSTMCell(num_units).init(key, carry, jnp.zeros(num_inputs))["params"]
        hidden, kernel = (_side_by_side(cell, [side + gate for gate in "ifgo"]) for side in "hi")
        return {
            "input": {"kernel": kernel["kernel"], "bias": hidden["bias"]},
            "hidden": {"kernel": hidden["kernel"]},
        }

    def advance(params: Params, carry: tuple, projected: jax.Array) -> tuple[tuple, jax.Array]:
        c, h = carry
        i, f, g, o = jnp.split(projected + h @ params["hidden"]["kernel"], 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    return _of_cell(num_units, init, lambda shape: (jnp.zeros((*shape, num_units)),) * 2, advance)


def _of_cell(num_units: int, init: Callable, start: Callable, advance: Callable) -> Recurrent:
    """From (params, carry, projected input) -> (carry, h)."""

    def project(params: Params, x: jax.Array) -> jax.Array:
        return _add_bias(x @ params["input"]["kernel"], params["input"]["bias"])

    def step(params: Params, carry: PyTree, x: jax.Array) -> tuple[PyTree, jax.Array]:
        return advance(params, carry, project(params, x))

    def sequence(params: Params, carry: PyTree, xs: jax.Array) -> tuple[PyTree, jax.Array]:
        # One product over all T · B inputs, out of the scan: what a GPU wants, for whom a step is a few small kernels.
        # A CPU has no launches to save, and XLA reads there what a loop slices element by element: three to four times
        # as slow as projecting the few inputs of a step in the loop (benchmarks/rl.py).
        if projects_outside():
            return jax.lax.scan(lambda carry, p: advance(params, carry, p), carry, project(params, xs))
        return jax.lax.scan(lambda carry, x: step(params, carry, x), carry, xs)

    return Recurrent(init, start, step, sequence, num_units)


def projects_outside() -> bool:
    """Whether `sequence` projects all inputs before its scan."""
    return jax.default_backend() != "cpu"


def _side_by_side(cell: Params, names: Sequence[str]) -> Params:
    """The kernels of some dense layers as one, and their biases where all have one."""
    parts = [cell[name] for name in names]
    keys = [key for key in ("kernel", "bias") if all(key in part for part in parts)]
    return {key: jnp.concatenate([part[key] for part in parts], axis=-1) for key in keys}


def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + jnp.expand_dims(bias, range(x.ndim - 1))


def min_gru(num_units: int = 128, *, num_layers: int = 2) -> Recurrent:
    """Gated linear recurrences: gates see the inputs but not the state, so that a sequence is a parallel scan.

        z = σ(x W_z + b_z),   h ← (1 − z) h + z (x W_h + b_h)

    in blocks y ← y + h(norm(y)) V, y ← y + mlp(norm(y)), after an embedding of the input. A single recurrence cannot
    make what it writes depend on what it has read: it takes two layers or more.

    Feng, Tung, Ahmed, Bengio, Hajimirsadeghi, "Were RNNs All We Needed?" (2024), https://arxiv.org/abs/2410.01201

    Args:
      num_units: H, of the state of each layer, of y, and of the mlp's hidden layer.
      num_layers: L, blocks, at least 1.

    Raises:
      ValueError: a count is not a positive integer.

    >>> core = min_gru(8)
    >>> core.sequence(core.init(jax.random.key(0), 3), core.start((5,)), jnp.ones((10, 5, 3)))[1].shape
    (10, 5, 8)
    """
    check_integer("num_units", num_units, minimum=1)
    check_integer("num_layers", num_layers, minimum=1)
    start = lambda shape: (jnp.zeros((*shape, num_units)),) * num_layers
    return _of_module(_MinGRU(num_units, num_layers), num_units, start)


class _MinGRU(nn.Module):
    num_units: int
    num_layers: int

    @nn.compact
    def __call__(self, carry: tuple[jax.Array, ...], xs: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """(h of each layer [..., H], [T, ..., D]) -> (the same, [T, ..., H])."""
        y, last = nn.Dense(self.num_units, name="embed")(xs), []
        for i, h in enumerate(carry):
            z, new = jnp.split(nn.Dense(2 * self.num_units, name=f"gates{i}")(layer_norm(f"norm{i}a")(y)), 2, axis=-1)
            z = nn.sigmoid(z)
            hs = linear_recurrence(1 - z, z * new, h)
            last.append(hs[-1])
            y = y + nn.Dense(self.num_units, name=f"out{i}")(hs)
            hidden = nn.gelu(nn.Dense(self.num_units, name=f"hidden{i}")(layer_norm(f"norm{i}b")(y)))
            y = y + nn.Dense(self.num_units, name=f"mlp{i}")(hidden)
        return tuple(last), layer_norm("norm")(y)


def linear_recurrence(a: jax.Array, b: jax.Array, h: jax.Array) -> jax.Array:
    """h_t = a_t h_{t−1} + b_t for all t `[T, ...]`, from h before the first, in log T parallel steps.

    >>> linear_recurrence(jnp.array([0.5, 0.5]), jnp.array([1.0, 1.0]), jnp.array(2.0)).tolist()
    [2.0, 2.0]
    """
    after = lambda first, then: (first[0] * then[0], then[0] * first[1] + then[1])
    a, b = jax.lax.associative_scan(after, (a, b))
    return a * h[None] + b


def causal_transformer(max_steps: int, *, num_units: int = 64, num_layers: int = 2, num_heads: int = 4) -> Recurrent:
    """The blocks of `Transformer`, which see all steps up to now: acting, through a cache of keys and values.

    Args:
      max_steps: M, the longest sequence; there is a learned position for each step of it. The cache has this length.
      num_units: H, the width.
      num_layers: L, blocks of attention and mlp, at least 1.
      num_heads: of attention; divides `num_units`.

    Raises:
      ValueError: a count is not a positive integer, or `num_heads` does not divide `num_units`.

    >>> core = causal_transformer(10, num_units=8, num_heads=2)
    >>> core.sequence(core.init(jax.random.key(0), 3), core.start((5,)), jnp.ones((10, 5, 3)))[1].shape
    (10, 5, 8)
    """
    counts = {"max_steps": max_steps, "num_units": num_units, "num_layers": num_layers, "num_heads": num_heads}
    for name, value in counts.items():
        check_integer(name, value, minimum=1)
    if num_units % num_heads:
        raise ValueError(f"num_units must be a multiple of num_heads, {num_heads}, got {num_units}")

    def start(shape: Sequence[int]) -> tuple[Memory, ...]:
        empty = jnp.zeros((*shape, num_heads, num_units // num_heads, max_steps))
        return (Memory(empty, empty, jnp.zeros(shape, jnp.int32)),) * num_layers

    module = _CausalTransformer(max_steps, num_units, num_layers, num_heads)
    return _of_module(module, num_units, start)._replace(max_steps=max_steps)


class _CausalTransformer(nn.Module):
    max_steps: int
    num_units: int
    num_layers: int
    num_heads: int

    @nn.compact
    def __call__(self, carry: tuple[Memory, ...], xs: jax.Array) -> tuple[tuple[Memory, ...], jax.Array]:
        """(the memory of each layer, [T, ..., D]) -> (the same, [T, ..., H])."""
        shape = (self.max_steps, self.num_units)
        positions = self.param("positions", nn.initializers.normal(0.02), shape, jnp.float32)
        now = carry[0].steps(len(xs))
        h = jnp.moveaxis(nn.Dense(self.num_units, name="embed")(jnp.moveaxis(xs, 0, -2)) + positions[now], -1, 0)
        memories = []
        for i, memory in enumerate(carry):
            h, memory = Block(self.num_heads, name=f"block{i}")(h, memory)
            memories.append(memory)
        return tuple(memories), jnp.moveaxis(LayerNorm(name="norm")(h), (-1, 0), (0, -1))


def with_layers(core: Recurrent, num_units: int = 128) -> Recurrent:
    """A recurrent network between two layers, of which the second sees the input, too.

        h = core(ReLU(x V + c)),   output = ReLU([h, x] W + b)

    What is to be remembered is often a matter of several inputs at once (this reward, of that action, in that state),
    and so is what is to be recalled (of the state that is seen now); a cell alone has one layer for all of it.

    Args:
      core: such as `gru(64)`.
      num_units: the width of both layers.

    Raises:
      ValueError: `core` is no recurrent network, or `num_units` is not a positive integer.

    >>> core = with_layers(gru(8), 16)
    >>> core.sequence(core.init(jax.random.key(0), 3), core.start((5,)), jnp.ones((10, 5, 3)))[1].shape
    (10, 5, 16)
    """
    check_fields("core", core, ("init", "start", "step", "sequence"), "a Recurrent, such as gru(64)")
    check_integer("num_units", num_units, minimum=1)
    dense = nn.Dense(num_units, kernel_init=nn.initializers.he_normal())

    def layer(params: Params, x: jax.Array) -> jax.Array:
        output: Any = dense.apply({"params": params}, x)
        return nn.relu(output)

    def init(key: jax.Array, num_inputs: int) -> Params:
        before, within, after = jax.random.split(key, 3)
        return {
            "before": dense.init(before, jnp.zeros(num_inputs))["params"],
            "core": core.init(within, num_units),
            "after": dense.init(after, jnp.zeros(core.num_outputs + num_inputs))["params"],
        }

    def between(run: Callable) -> Callable:
        def apply(params: Params, carry: PyTree, x: jax.Array) -> tuple[PyTree, jax.Array]:
            carry, h = run(params["core"], carry, layer(params["before"], x))
            return carry, layer(params["after"], jnp.concatenate([h, x], axis=-1))

        return apply

    return Recurrent(init, core.start, between(core.step), between(core.sequence), num_units, core.max_steps)


def feed_forward(num_units: int = 64, *, num_layers: int = 2) -> Recurrent:
    """Layers without a memory, where a recurrent network is asked for: h = tanh(x W + b), so often.

    For what is told all that there is to remember, as the policy of `jaxmeta.varibad` is; and to see what a memory is
    worth, in `jaxmeta.rl2(family, actor=nn.feed_forward())`.

    Args:
      num_units: H, the width of all layers.
      num_layers: how many, at least 1.

    Raises:
      ValueError: a count is not a positive integer.

    >>> core = feed_forward(8)
    >>> core.sequence(core.init(jax.random.key(0), 3), core.start((5,)), jnp.ones((10, 5, 3)))[1].shape
    (10, 5, 8)
    """
    check_integer("num_units", num_units, minimum=1)
    check_integer("num_layers", num_layers, minimum=1)
    return _of_module(_FeedForward(num_units, num_layers), num_units, lambda shape: ())


class _FeedForward(nn.Module):
    num_units: int
    num_layers: int

    @nn.compact
    def __call__(self, carry: tuple[()], xs: jax.Array) -> tuple[tuple[()], jax.Array]:
        """((), [T, ..., D]) -> ((), [T, ..., H])."""
        for i in range(self.num_layers):
            xs = jnp.tanh(nn.Dense(self.num_units, name=f"hidden{i}")(xs))
        return carry, xs


def _of_module(module: nn.Module, num_units: int, start: Callable) -> Recurrent:
    """From a module (carry, [T, ..., D]) -> (carry, [T, ..., H]); a step is a sequence of one."""

    def init(key: jax.Array, num_inputs: int) -> Params:
        return module.init(key, start(()), jnp.zeros((1, num_inputs)))["params"]

    def sequence(params: Params, carry: PyTree, xs: jax.Array) -> tuple[PyTree, jax.Array]:
        outputs: Any = module.apply({"params": params}, carry, xs)
        return outputs

    def step(params: Params, carry: PyTree, x: jax.Array) -> tuple[PyTree, jax.Array]:
        carry, hs = sequence(params, carry, x[None])
        return carry, hs[0]

    return Recurrent(init, start, step, sequence, num_units)

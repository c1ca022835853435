"""A learned optimizer: a small network that makes of what is known about a parameter how far it goes.

It is an `InnerOptimizer` whose hyperparameters are the network's weights. They are the same for every parameter, and
of no shape of the parameters', so that what was learned on one network is applied to another.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.adapt.optimizers import InnerOptimizer, InnerState
from jaxmeta.checks import check_integer, check_number, check_seed, check_widths
from jaxmeta.types import MetaParams, Params, PyTree
from jaxmeta.words import short

_TIMESCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)  # inner steps, as in the literature
_EPSILON = 1e-12  # beside squares, where all of them may be 0


def learned_optimizer(
    learning_rate: float = 1e-3,
    *,
    hidden: Sequence[int] = (8, 8),
    decays: Sequence[float] = (0.9, 0.5, 0.99),
    second_decay: float = 0.999,
    base_fan_in: int | None = None,
    seed: int = 0,
) -> InnerOptimizer:
    """A learned optimizer: a network of each parameter's features says its direction and its magnitude.

        d, m = network(g, θ, m_β for each β, √v, m_β / √v for each β; t)
        θ'   = θ − α (u + d) exp(m),    u = m_β / √v of the first β: Adam's direction

    with m_β and v the exponential averages of the gradient g and of its square, without the bias of their start at 0,
    and t the inner steps taken, as tanh(t / τ − 1) for τ from 1 to 100,000. Each other feature is divided by the root
    of its mean square over the tensor, so that neither the scale of the loss nor the size of the network is seen. The
    output's weights start at 0: the optimizer starts as Adam(α, b1=`decays[0]`, b2=`second_decay`), and is learned from
    there on.

    The wider a network, the smaller the rate that it bears. With `base_fan_in` the step of a kernel [..., in, out] is
    multiplied by base_fan_in / fan-in, the fan-in the product of all its axes but the last, so that what was learned
    on one width is right on another (µP); that of an array of one axis or none is not.

    Metz, Maheswaranathan, Freeman, Poole, Sohl-Dickstein, "Tasks, stability, architecture, and compute: Training more
    effective learned optimizers, and using them to train themselves" (2020), https://arxiv.org/abs/2009.11243; the
    features after Metz, Freeman, Harrison, Maheswaranathan, Sohl-Dickstein, "Practical tradeoffs between memory,
    compute, and performance in learned optimizers" (2022), https://arxiv.org/abs/2203.11860, without those of rows and
    columns; Adam beside the network after Harrison, Metz, Sohl-Dickstein, "A Closer Look at Learned Optimization:
    Stability, Robustness, and Inductive Biases" (2022), https://arxiv.org/abs/2209.11208; fan-ins after Thérien et al.,
    "µLO: Compute-Efficient Meta-Generalization of Learned Optimizers" (2024), https://arxiv.org/abs/2406.00153

    Args:
      learning_rate: α ≥ 0, that of the Adam it starts as.
      hidden: widths of the network's hidden layers, with relu.
      decays: β of each average of the gradient, from 0 to below 1; the first is Adam's b1.
      second_decay: β of the average of its square, Adam's b2, from 0 to below 1.
      base_fan_in: the fan-in whose kernels take α as it is, at least 1; if None all tensors do, whatever their size.
      seed: from 0 to 2**32 − 1, of the weights of the hidden layers, which the functions of an inner optimizer get no
        key for.

    Raises:
      ValueError: an argument is wrong.

    >>> optimizer = learned_optimizer(0.1, hidden=(4,))
    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> meta_params = MetaParams(params, optimizer.init(params))
    >>> [layer.kernel.shape for layer in meta_params.hyper]
    [(20, 4), (4, 2)]
    >>> grads = {"w": jnp.array([30.0, -0.5])}
    >>> optimizer.step(meta_params, optimizer.start(meta_params), grads).fast["w"].round(4).tolist()
    [0.8999999761581421, 2.0999999046325684]
    """
    check_number("learning_rate", learning_rate)
    check_widths("hidden", hidden)
    if base_fan_in is not None:
        check_integer("base_fan_in", base_fan_in, minimum=1)
    check_seed("seed", seed)
    if not isinstance(decays, Sequence) or isinstance(decays, str) or not len(decays):
        raise ValueError(f"decays must be a sequence of at least one decay, such as (0.9, 0.99), got {short(decays)}")
    for name, decay in [*((f"decays[{i}]", decay) for i, decay in enumerate(decays)), ("second_decay", second_decay)]:
        check_number(name, decay)
        if decay >= 1:
            raise ValueError(f"{name} must be below 1, got {decay:g}: an average that never moves knows no gradient")
    first_decays = tuple(decays)

    def init(params: Params) -> PyTree:
        widths = (3 + 2 * len(first_decays) + len(_TIMESCALES), *hidden, 2)
        return _network(jax.random.key(seed), widths)

    def start(meta_params: MetaParams) -> InnerState:
        params = meta_params.params
        first = jax.tree.map(lambda p: jnp.zeros((len(first_decays), *p.shape), p.dtype), params)
        return InnerState(params, Moments(jnp.int32(0), first, jax.tree.map(jnp.zeros_like, params)))

    def step(meta_params: MetaParams, state: InnerState, grads: Params) -> InnerState:
        moments = _averaged(state.opt_state, grads, first_decays, second_decay)
        time = moments.age.astype(jnp.result_type(float))
        unbiased = [1 - decay**time for decay in (*first_decays, second_decay)]

        def moved(p: jax.Array, g: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
            means = [mean / scale for mean, scale in zip(first, unbiased, strict=False)]
            step = _step(meta_params.hyper, time - 1, p, g, means, second / unbiased[-1])
            return p - (learning_rate * _scale(p.shape, base_fan_in) * step).astype(p.dtype)

        return InnerState(jax.tree.map(moved, state.fast, grads, moments.first, moments.second), moments)

    return InnerOptimizer(init, start, step, lambda meta_params, fast: fast)


def _scale(shape: Sequence[int], base_fan_in: int | None) -> float:
    """What a tensor's steps are multiplied by."""
    return 1.0 if base_fan_in is None or len(shape) < 2 else base_fan_in / math.prod(shape[:-1])


class Layer(NamedTuple):
    """x -> x W + b."""

    kernel: jax.Array
    bias: jax.Array


class Moments(NamedTuple):
    """What `learned_optimizer` carries of the gradients it has seen.

    age:    how many
    first:  their averages, by each decay: [decays, ...] in the place of each parameter
    second: that of their squares
    """

    age: jax.Array
    first: Params
    second: Params


def _network(key: jax.Array, widths: Sequence[int]) -> list[Layer]:
    """Hidden layers by He, and an output of 0."""
    keys = jax.random.split(key, len(widths) - 1)
    scales = [*((2 / width) ** 0.5 for width in widths[:-2]), 0.0]
    return [
        Layer(scale * jax.random.normal(key, shape), jnp.zeros(shape[1]))
        for key, scale, shape in zip(keys, scales, pairwise(widths), strict=True)
    ]


def _averaged(moments: Moments, grads: Params, first_decays: Sequence[float], second_decay: float) -> Moments:
    """The moments once `grads` are seen."""

    def mean(first: jax.Array, g: jax.Array) -> jax.Array:
        decay = jnp.array(first_decays, g.dtype).reshape(-1, *(1,) * g.ndim)
        return decay * first + (1 - decay) * g[None]

    mean_square = lambda second, g: second_decay * second + (1 - second_decay) * g**2
    return Moments(
        moments.age + 1,
        jax.tree.map(mean, moments.first, grads),
        jax.tree.map(mean_square, moments.second, grads),
    )


def _step(
    layers: Any, time: jax.Array, p: jax.Array, g: jax.Array, means: Sequence[jax.Array], mean_square: jax.Array
) -> jax.Array:
    """(u + d) exp(m) of each entry of a tensor."""
    rms = jnp.sqrt(mean_square + _EPSILON)
    directions = [mean / rms for mean in means]
    features = [g, p, *means, rms, *directions]
    scaled = jnp.stack([(f * jax.lax.rsqrt(jnp.mean(f**2) + _EPSILON)).ravel() for f in features], axis=1)
    times = jnp.tanh(time / jnp.array(_TIMESCALES, scaled.dtype) - 1)
    (kernel, bias), *others = layers
    x = scaled @ kernel[: len(features)] + (times @ kernel[len(features) :] + bias)[None]  # of time, once for all
    for kernel, bias in others:
        x = jax.nn.relu(x) @ kernel + bias[None]
    direction, magnitude = x.T.reshape(2, *p.shape)
    return (directions[0] + direction) * jnp.exp(magnitude)

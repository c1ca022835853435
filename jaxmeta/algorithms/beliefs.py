"""Beliefs about a task: what each transition says about it, and what all of them say together.

    q(z | c) ∝ Π_n N(z; μ(c_n), σ²(c_n))          a Gaussian factor for each transition c_n, of an encoder
    q(z) = N(0, 1)                                where nothing was seen

The factors have no order, and a belief gets narrower with each. The product has no factor of the prior, as in the code
of PEARL's authors: Rakelly et al. (2019), https://arxiv.org/abs/1903.08254
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp

from jaxmeta.algorithms.sac import Experience, experience_shapes
from jaxmeta.checks import check_callable, check_choice, check_fields, check_flag, check_integer, check_widths
from jaxmeta.nn import MLP
from jaxmeta.rl.distributions import Gaussian
from jaxmeta.rl.env import Family
from jaxmeta.types import InitFn, Params


class Encoder(NamedTuple):
    """What each transition says about the task.

    Attributes:
      init: (key) -> params
      apply: (params, experience [n]) -> (mean [n, L], variance [n, L]) of Gaussian factors
      latent_size: L
      context: "probabilistic", a belief is the product of the factors; or "deterministic", it is the mean of their
        means, without deviation
    """

    init: InitFn
    apply: Callable[[Params, Experience], tuple[jax.Array, jax.Array]]
    latent_size: int
    context: str = "probabilistic"


def mlp_encoder(
    family: Family,
    *,
    latent_size: int = 5,
    hidden: Sequence[int] = (64, 64),
    activation: Callable[[jax.Array], jax.Array] | None = None,
    with_next_observation: bool = False,
    context: Literal["probabilistic", "deterministic"] = "probabilistic",
) -> Encoder:
    """A multi-layer perceptron of (observation, action, reward), with softplus for the variance.

    Args:
      family: whose transitions they are.
      latent_size: L ≥ 1, numbers of a belief's z.
      hidden: widths of the layers.
      activation: of the layers; relu if None.
      with_next_observation: whether it sees that too: needed where tasks differ in their dynamics.
      context: "probabilistic", or "deterministic" for a belief without deviation.

    Returns:
      An `Encoder`, which one of your own may stand for: `init`, (key) -> params; `apply`, (params, n transitions) ->
      (mean [n, L], variance [n, L]) of a Gaussian factor for each; `latent_size`, L; and `context`.

    Raises:
      ValueError: `family` is none, `latent_size` is no positive integer, or `context` no name.

    >>> from jaxmeta.rl import families
    >>> encoder = mlp_encoder(families.navigation(), latent_size=3)
    """
    check_integer("latent_size", latent_size, minimum=1)
    check_widths("hidden", hidden)
    check_choice("context", context, COMBINE)
    check_flag("with_next_observation", with_next_observation)
    activation = flax.linen.relu if activation is None else activation
    check_callable("activation", activation, "(array) -> array")
    network = MLP(tuple(hidden), 2 * latent_size, activation=activation)
    network_apply: Callable = network.apply
    zeros = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), experience_shapes(family))

    def features(rows: Experience) -> jax.Array:
        seen = [rows.next_observation] if with_next_observation else []
        return jnp.concatenate([rows.observation, rows.action, rows.reward[:, None], *seen], axis=1)

    def apply(params: Params, rows: Experience) -> tuple[jax.Array, jax.Array]:
        mean, variance = jnp.split(network_apply(params, features(rows)), 2, axis=1)
        return mean, jax.nn.softplus(variance)

    return Encoder(lambda key: network.init(key, features(zeros)), apply, latent_size, context)


def product_of_gaussians(mean: jax.Array, variance: jax.Array, mask: jax.Array) -> Gaussian:
    """The normalised product of factors N(mean_n, variance_n), `[n, L]`, of those where `mask` `[n]` is true.

        1/σ² = Σ_n 1/σ_n²,   μ = σ² Σ_n μ_n/σ_n²;   N(0, 1) if there is none

    >>> belief = product_of_gaussians(jnp.array([[0.0], [3.0]]), jnp.array([[1.0], [0.5]]), jnp.array([True, True]))
    >>> [round(float(x[0]), 4) for x in (belief.mean, jnp.exp(2 * belief.log_std))]
    [2.0, 0.3333]
    """
    precision = 1 / jnp.maximum(variance, 1e-7)
    total, weighted = (jnp.sum(jnp.where(mask[:, None], x, 0), axis=0) for x in (precision, precision * mean))
    total = jnp.where(jnp.any(mask), total, 1)
    return Gaussian(weighted / total, -jnp.log(total) / 2)


def mean_of_points(mean: jax.Array, variance: jax.Array, mask: jax.Array) -> Gaussian:
    """The deterministic context: the mean of `mean` `[n, L]` where `mask` `[n]` is true, 0 if there is none."""
    point = jnp.sum(jnp.where(mask[:, None], mean, 0), axis=0) / jnp.maximum(jnp.sum(mask), 1)
    return Gaussian(point, jnp.full_like(point, -jnp.inf))


COMBINE = {"probabilistic": product_of_gaussians, "deterministic": mean_of_points}


def infer(params: Params, rows: Experience, mask: jax.Array, encoder: Encoder | None) -> Gaussian:
    """q(z | c) of the rows `[n]` where `mask` is true; the prior, of no numbers, without an encoder."""
    if encoder is None:
        return prior_of(None)
    return COMBINE[encoder.context](*encoder.apply(params["encoder"], rows), mask)


def prior_of(encoder: Encoder | None) -> Gaussian:
    """What is believed before anything is seen: N(0, 1), or 0 for a deterministic context.

    >>> prior_of(None).mean.shape
    (0,)
    """
    if encoder is None:
        return Gaussian(jnp.zeros(0), jnp.zeros(0))
    nothing = jnp.zeros((1, encoder.latent_size))
    return COMBINE[encoder.context](nothing, nothing, jnp.zeros(1, bool))


def check_encoder(name: str, value: Encoder) -> None:
    check_fields(name, value, ("init", "apply"), "an Encoder, such as mlp_encoder(family)")
    check_choice(f"context of {name}", value.context, COMBINE)

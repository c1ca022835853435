"""Policies without memory: a network from what is observed to a distribution over actions."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_callable, check_integer, check_number
from jaxmeta.nn.networks import MLP
from jaxmeta.rl.distributions import Categorical, Gaussian
from jaxmeta.rl.env import Discrete, Family, check_environment, flatten
from jaxmeta.types import InitFn, Params, PyTree


class PolicyNetwork(NamedTuple):
    """init:  (key) -> params
    apply: (params, observation) -> distribution, of one observation
    """

    init: InitFn
    apply: Callable[[Params, PyTree], Categorical | Gaussian]


def mlp_policy(
    family: Family,
    *,
    hidden: Sequence[int] = (64, 64),
    activation: Callable[[jax.Array], jax.Array] = flax.linen.tanh,
    init_std: float = 1.0,
    min_std: float = 1e-3,
) -> PolicyNetwork:
    """A multi-layer perceptron for any family: logits of discrete actions, or a Gaussian over real ones.

    Real actions are in units of the box's half width h around its middle m: a ~ N(m + h μ(o), (h σ)²), with a learned
    σ ≥ `min_std` for each, the same everywhere. The Gaussian leaves the box, and the environment clips.

    Args:
      family: whose observations and actions they are.
      hidden: widths of the layers.
      activation: of the layers.
      init_std: σ at first.
      min_std: what it does not fall below.

    Returns:
      `PolicyNetwork(init, apply)`. The last layer is named "head", for ANIL; σ is the parameter "log_std".

    Raises:
      ValueError: `family` is no family, or a number is wrong.

    >>> from jaxmeta.rl import families
    >>> policy = mlp_policy(families.navigation())
    >>> params = policy.init(jax.random.key(0))
    >>> policy.apply(params, jnp.zeros(2)).mean.tolist(), params["log_std"].tolist()
    ([0.0, 0.0], [0.0, 0.0])
    """
    check_environment("environment of family", getattr(family, "environment", None))
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        raise ValueError(f"hidden must be a sequence of widths, such as (64, 64), got {hidden!r}")
    for i, width in enumerate(hidden):
        check_integer(f"hidden[{i}]", width, minimum=1)
    check_callable("activation", activation, "(array) -> array")
    check_number("min_std", min_std, minimum=1e-12)
    check_number("init_std", init_std, minimum=min_std)
    space = family.environment.action_space
    if isinstance(space, Discrete):
        return _categorical_policy(family, MLP(tuple(hidden), space.num_actions, activation=activation))
    network = MLP(tuple(hidden), len(space.low), activation=activation)
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2

    def init(key: jax.Array) -> Params:
        log_std = jnp.full(len(half), np.log(init_std), float)
        return {**network.init(key, _zero_observation(family)), "log_std": log_std}

    def apply(params: Params, observation: PyTree) -> Gaussian:
        output = network.apply({"params": params["params"]}, flatten(observation)[None])[0]
        log_std = jnp.maximum(params["log_std"], math.log(min_std)) + jnp.log(half)
        return Gaussian(middle + half * output, log_std)

    return PolicyNetwork(init, apply)


def _categorical_policy(family: Family, network: MLP) -> PolicyNetwork:
    init = lambda key: network.init(key, _zero_observation(family))
    apply = lambda params, observation: Categorical(network.apply(params, flatten(observation)[None])[0])
    return PolicyNetwork(init, apply)


def _zero_observation(family: Family) -> jax.Array:
    observe = lambda key: family.environment.reset(key, family.train.sample(key, family.train.data))[0]
    return jnp.zeros((1, *jax.eval_shape(lambda key: flatten(observe(key)), jax.random.key(0)).shape))

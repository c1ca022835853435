"""Policies without memory: a network from what is observed to a distribution over actions."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_callable, check_number, check_widths
from jaxmeta.nn.networks import MLP
from jaxmeta.rl.distributions import Categorical, Gaussian
from jaxmeta.rl.env import Continuous, Discrete, Family, check_action_space, check_family, flatten
from jaxmeta.types import InitFn, Params, PyTree


class PolicyNetwork(NamedTuple):
    """A policy's two pure functions: `learner = maml_rl(*network, environment)` takes them as they are.

    Attributes:
      init: (key) -> params
      apply: (params, observation) -> distribution, or (distribution, value), of one observation
    """

    init: InitFn
    apply: Callable[[Params, PyTree], Any]


class ActionHead(NamedTuple):
    """From the outputs of a network to a distribution over actions.

    Attributes:
      num_outputs: of the network, one for each logit or mean
      init: () -> params beside the network's: {}, or {"log_std": [A]} for real actions
      apply: (params, output [..., num_outputs]) -> distribution
    """

    num_outputs: int
    init: Callable[[], dict[str, jax.Array]]
    apply: Callable[[Params, jax.Array], Categorical | Gaussian]


def action_head(action_space: Discrete | Continuous, *, init_std: float = 1.0, min_std: float = 1e-3) -> ActionHead:
    """Logits of discrete actions, or a Gaussian over real ones; arguments and errors as for `mlp_policy`.

    >>> action_head(Discrete(3)).apply({}, jnp.zeros((2, 3))).entropy().shape
    (2,)
    """
    check_action_space("action_space", action_space)
    check_number("min_std", min_std, minimum=1e-12)
    check_number("init_std", init_std, minimum=min_std)
    if isinstance(action_space, Discrete):
        return ActionHead(action_space.num_actions, dict, lambda params, output: Categorical(output))
    low, high = action_space
    middle, half = (high + low) / 2, (high - low) / 2

    def apply(params: Params, output: jax.Array) -> Gaussian:
        log_std = jnp.maximum(params["log_std"], math.log(min_std)) + jnp.log(half)
        like_output = lambda vector: jnp.broadcast_to(vector, output.shape)
        return Gaussian(like_output(middle) + like_output(half) * output, like_output(log_std))

    return ActionHead(len(half), lambda: {"log_std": jnp.full(len(half), np.log(init_std), float)}, apply)


def mlp_policy(
    family: Family,
    *,
    hidden: Sequence[int] = (64, 64),
    activation: Callable[[jax.Array], jax.Array] | None = None,
    head_scale: float = 0.01,
    init_std: float = 1.0,
    min_std: float = 1e-3,
) -> PolicyNetwork:
    """A multi-layer perceptron for any family: logits of discrete actions, or a Gaussian over real ones.

    Real actions are in units of the box's half width h around its middle m: a ~ N(m + h μ(o), (h σ)²), with a learned
    σ ≥ `min_std` for each, the same everywhere. The Gaussian leaves the box, and the trial clips. The last layer
    is small at first, so that the policy begins without a preference, wherever it is.

    Args:
      family: whose observations and actions they are.
      hidden: widths of the layers.
      activation: of the layers; tanh if None.
      head_scale: ≥ 0, a factor on the last layer's weights at first.
      init_std: σ at first, in units of h, at least `min_std`.
      min_std: > 0, in units of h, what σ does not fall below.

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
    check_family("family", family)
    check_widths("hidden", hidden)
    activation = flax.linen.tanh if activation is None else activation
    check_callable("activation", activation, "(array) -> array")
    check_number("head_scale", head_scale)
    head = action_head(family.environment.action_space, init_std=init_std, min_std=min_std)
    network = MLP(tuple(hidden), head.num_outputs, activation=activation)

    def init(key: jax.Array) -> Params:
        layers = dict(network.init(key, _zero_observation(family))["params"])
        layers["head"] = {**layers["head"], "kernel": head_scale * layers["head"]["kernel"]}
        return {"params": layers, **head.init()}

    def apply(params: Params, observation: PyTree) -> Categorical | Gaussian:
        output = network.apply({"params": params["params"]}, flatten(observation)[None])[0]
        return head.apply(params, output)

    return PolicyNetwork(init, apply)


def mlp_policy_and_value(
    family: Family,
    *,
    hidden: Sequence[int] = (64, 64),
    activation: Callable[[jax.Array], jax.Array] | None = None,
    head_scale: float = 0.01,
    init_std: float = 1.0,
    min_std: float = 1e-3,
) -> PolicyNetwork:
    """`mlp_policy` and, in a network of its own with the same layers, the value of an observation.

    Args:
      family: as in `mlp_policy`, and so are the others.
      hidden: widths of the layers of both.
      activation: of the layers; tanh if None.
      head_scale: of the policy's last layer.
      init_std: σ at first.
      min_std: what σ does not fall below.

    Returns:
      `PolicyNetwork(init, apply)`, whose `apply` gives (distribution, value), for `meta_gradient_rl` and for `maml_rl`
      with `baseline="value"`. The parameters are {"policy": ..., "value": ...}.

    Raises:
      ValueError: as `mlp_policy`.

    >>> from jaxmeta.rl import families
    >>> network = mlp_policy_and_value(families.navigation(), hidden=(8,))
    >>> distribution, value = network.apply(network.init(jax.random.key(0)), jnp.zeros(2))
    >>> distribution.mean.shape, value.shape
    ((2,), ())
    """
    policy = mlp_policy(
        family, hidden=hidden, activation=activation, head_scale=head_scale, init_std=init_std, min_std=min_std
    )
    network = MLP(tuple(hidden), 1, activation=flax.linen.tanh if activation is None else activation)

    def init(key: jax.Array) -> Params:
        policy_key, value_key = jax.random.split(key)
        return {"policy": policy.init(policy_key), "value": network.init(value_key, _zero_observation(family))}

    def apply(params: Params, observation: PyTree) -> tuple[Categorical | Gaussian, jax.Array]:
        value: Any = network.apply(params["value"], flatten(observation)[None])
        return policy.apply(params["policy"], observation), value[0, 0]

    return PolicyNetwork(init, apply)


def _zero_observation(family: Family) -> jax.Array:
    observe = lambda key: family.environment.reset(key, family.train.sample(key, family.train.data))[0]
    return jnp.zeros((1, *jax.eval_shape(lambda key: flatten(observe(key)), jax.random.key(0)).shape))

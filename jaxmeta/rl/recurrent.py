"""Recurrent policies, values and beliefs: a network with a memory, and a linear layer that makes its output actions, a
value or a belief.

One set of parameters acts step by step and learns from whole trials, and what it computes is the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_fields
from jaxmeta.nn.recurrent import Recurrent
from jaxmeta.rl.distributions import Gaussian
from jaxmeta.rl.env import Continuous, Discrete
from jaxmeta.rl.policies import action_head
from jaxmeta.rl.rollout import Policy
from jaxmeta.rl.trials import Inputs
from jaxmeta.types import Params, PyTree


class RecurrentNetwork(NamedTuple):
    """A recurrent network with a linear layer.

    Attributes:
      init: (key, D) -> params
      step: (params, carry, x [..., D]) -> (carry, output [..., O])
      apply: (params, xs [T, ..., D]) -> outputs [T, ..., O], from the start of a trial
    """

    init: Callable[[jax.Array, int], Params]
    step: Callable[[Params, PyTree, jax.Array], tuple[PyTree, Any]]
    apply: Callable[[Params, jax.Array], Any]


def recurrent_policy(
    action_space: Discrete | Continuous, core: Recurrent, *, truncation: int | None = None
) -> RecurrentNetwork:
    """Whose output is a distribution over actions, see `rl.mlp_policy`.

    Args:
      action_space: of the environment.
      core: the recurrent network, such as `nn.gru(128)`.
      truncation: environment steps that gradients flow back at most in `apply`, a divisor of T; through the whole trial
        if None.

    >>> from jaxmeta import nn
    >>> network = recurrent_policy(Discrete(3), nn.gru(4))
    >>> network.apply(network.init(jax.random.key(0), 2), jnp.zeros((5, 2))).logits.shape
    (5, 3)
    """
    head = action_head(action_space)
    return _network(core, head.num_outputs, head.init(), head.apply, truncation)


def recurrent_value(core: Recurrent, *, truncation: int | None = None) -> RecurrentNetwork:
    """Whose output is a number.

    Args:
      core: the recurrent network, such as `nn.gru(128)`.
      truncation: as in `recurrent_policy`.

    >>> from jaxmeta import nn
    >>> network = recurrent_value(nn.gru(4))
    >>> network.apply(network.init(jax.random.key(0), 2), jnp.zeros((5, 2))).shape
    (5,)
    """
    return _network(core, 1, {}, lambda params, output: output[..., 0], truncation)


def recurrent_belief(core: Recurrent, latent_size: int, *, truncation: int | None = None) -> RecurrentNetwork:
    """Whose output is a belief about the task from all that was seen: a Gaussian over L numbers, near N(0, 1) at first.

    Args:
      core: the recurrent network, such as `nn.gru(64)`.
      latent_size: L.
      truncation: as in `recurrent_policy`.

    >>> from jaxmeta import nn
    >>> network = recurrent_belief(nn.gru(4), 3)
    >>> network.apply(network.init(jax.random.key(0), 2), jnp.zeros((5, 2))).mean.shape
    (5, 3)
    """
    of_output = lambda params, output: Gaussian(*jnp.split(output, 2, axis=-1))
    return _network(core, 2 * latent_size, {}, of_output, truncation)


def _network(
    core: Recurrent, num_outputs: int, more: Params, output_fn: Callable, truncation: int | None
) -> RecurrentNetwork:
    def init(key: jax.Array, num_inputs: int) -> Params:
        core_key, head_key = jax.random.split(key)
        kernel = 0.01 * jax.random.normal(head_key, (core.num_outputs, num_outputs)) / core.num_outputs**0.5
        head = {"kernel": kernel, "bias": jnp.zeros(num_outputs)}
        return {"core": core.init(core_key, num_inputs), "head": head, **more}

    def outputs(params: Params, h: jax.Array) -> Any:
        bias = jnp.expand_dims(params["head"]["bias"], range(h.ndim - 1))
        return output_fn(params, h @ params["head"]["kernel"] + bias)

    def step(params: Params, carry: PyTree, x: jax.Array) -> tuple[PyTree, Any]:
        carry, h = core.step(params["core"], carry, x)
        return carry, outputs(params, h)

    def apply(params: Params, xs: jax.Array) -> Any:
        return outputs(params, truncated_sequence(core, params["core"], xs, truncation))

    return RecurrentNetwork(init, step, apply)


def only_allowed(network: RecurrentNetwork, num_actions: int) -> RecurrentNetwork:
    """A policy whose x ends with a number for each action, 1 where there is this action and 0 where not: such an action
    has probability 0. The network sees these numbers too.

    Args:
      network: such as `recurrent_policy(...)`, of discrete actions.
      num_actions: how many they are.

    >>> from jaxmeta import nn
    >>> network = only_allowed(recurrent_policy(Discrete(2), nn.gru(4)), 2)
    >>> policy = network.apply(network.init(jax.random.key(0), 3), jnp.array([[5.0, 1.0, 0.0]]))
    >>> policy.log_prob(jnp.array([1])).tolist()
    [-inf]
    """

    def step(params: Params, carry: PyTree, x: jax.Array) -> tuple[PyTree, Any]:
        carry, distribution = network.step(params, carry, x)
        return carry, distribution.only(x[..., -num_actions:] > 0)

    def apply(params: Params, xs: jax.Array) -> Any:
        return network.apply(params, xs).only(xs[..., -num_actions:] > 0)

    return network._replace(step=step, apply=apply)


def truncated_sequence(core: Recurrent, params: Params, xs: jax.Array, truncation: int | None) -> jax.Array:
    """`core.sequence` from its start; gradients do not flow from one block of `truncation` steps to the one before.

    Args:
      core: the recurrent network.
      params: its parameters.
      xs: `[T, ..., D]`.
      truncation: steps of a block, a divisor of T; one block if None.

    >>> from jaxmeta import nn
    >>> core = nn.gru(4)
    >>> truncated_sequence(core, core.init(jax.random.key(0), 2), jnp.ones((6, 2)), 3).shape
    (6, 4)
    """
    start = core.start(xs.shape[1:-1])
    if truncation is None or truncation >= len(xs):
        return core.sequence(params, start, xs)[1]

    def block(carry: PyTree, xs: jax.Array) -> tuple[PyTree, jax.Array]:
        carry, hs = core.sequence(params, carry, xs)
        return jax.lax.stop_gradient(carry), hs

    _, hs = jax.lax.scan(block, start, xs.reshape(-1, truncation, *xs.shape[1:]))
    return hs.reshape(len(xs), *hs.shape[2:])


class Acted(NamedTuple):
    """What is kept of a step.

    Attributes:
      x: `[D]`, the encoded inputs.
      log_prob: `()`, log π of the action.
    """

    x: jax.Array
    log_prob: jax.Array


def acting(network: RecurrentNetwork, encode: Callable[[Inputs], jax.Array]) -> Policy:
    """A recurrent policy as a `Policy` that samples, and keeps what it `Acted` on.

    Args:
      network: such as `recurrent_policy(...)`.
      encode: (inputs) -> `[D]`, such as `Trial.encode`.

    >>> from jaxmeta import nn
    >>> from jaxmeta.rl import families, rollout, trial
    >>> family = families.bernoulli_bandit(num_arms=2)
    >>> core, episode = nn.gru(4), trial(family.environment)
    >>> network = recurrent_policy(family.environment.action_space, core)
    >>> task = family.train.sample(jax.random.key(0), family.train.data)
    >>> num_inputs = len(episode.encode(episode.reset(jax.random.key(1), task)[0]))
    >>> params = network.init(jax.random.key(2), num_inputs)
    >>> policy = acting(network, episode.encode)
    >>> rollout(jax.random.key(3), episode, policy, params, core.start(()), task)[1].extras.log_prob.shape
    (10,)
    """

    def policy(key: jax.Array, params: PyTree, carry: PyTree, inputs: Inputs, /) -> tuple[jax.Array, PyTree, Acted]:
        x = encode(inputs)
        carry, distribution = network.step(params, carry, x)
        action = distribution.sample(key)
        return action, carry, Acted(x, distribution.log_prob(action))

    return policy


def check_core(name: str, core: Any, num_steps: int) -> None:
    """A `Recurrent` that reaches over `num_steps` steps.

    Args:
      name: what the message calls it.
      core: what is looked at.
      num_steps: environment steps of a trial.

    Raises:
      ValueError: it is no `Recurrent`, or its `max_steps` are fewer.
    """
    check_fields(name, core, ("init", "start", "step", "sequence"), "a Recurrent, such as jaxmeta.nn.gru(128)")
    if core.max_steps is not None and core.max_steps < num_steps:
        raise ValueError(f"max_steps of {name} must be at least the trial's {num_steps} steps, got {core.max_steps}")

"""A user's function of parameters and an observation as what acts, and as what a loss asks at all steps at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.rl.distributions import Categorical, each_step
from jaxmeta.rl.env import Continuous, Discrete
from jaxmeta.rl.trials import Inputs
from jaxmeta.types import Params, PyTree

# (params, observation) -> distribution over actions, or (distribution, value)
PolicyFn = Callable[[Params, PyTree], Any]

# Of the distributions at all steps `[T, E]`, each asked for itself: what a policy returns is one step's.
log_prob_of = each_step(lambda distribution, action: distribution.log_prob(action))
entropy_of = each_step(lambda distribution: distribution.entropy())
kl_between = each_step(lambda old, new: old.kl(new))


class Actor(NamedTuple):
    """A user's `apply_fn`, which also says the value of an observation or does not."""

    apply_fn: PolicyFn
    has_value: bool
    action_space: Discrete | Continuous

    def at(self, params: Params, observation: PyTree) -> tuple[Any, jax.Array]:
        """The distribution over actions, and the value, at one observation."""
        output = self.apply_fn(params, observation)
        is_pair = type(output) is tuple and len(output) == 2
        if self.has_value != is_pair or not hasattr(output[0] if is_pair else output, "log_prob"):
            what = "(distribution, value)" if self.has_value else "a distribution, see jaxmeta.rl.distributions"
            raise ValueError(f"apply_fn must return {what}, got {output!r}")
        distribution, value = output if is_pair else (output, jnp.zeros(()))
        if jnp.shape(value) != ():
            raise ValueError(f"apply_fn must return a value of shape () for one observation, got {jnp.shape(value)}")
        return distribution, value

    def on(self, params: Params, observation: PyTree) -> tuple[Any, jax.Array]:
        """The same at every step `[T, E]`."""
        over = lambda fn: jax.vmap(fn, (None, 0))
        return over(over(self.at))(params, observation)

    def act(self, key: jax.Array, params: Params, carry: tuple, inputs: Inputs):
        """As an `rl.Policy` that samples, and keeps distribution and value."""
        distribution, value = self.at(params, inputs.observation)
        action = distribution.sample(key)
        check_distribution("apply_fn", distribution, action, self.action_space)
        return action, carry, (distribution, value)


def check_distribution(name: str, distribution: Any, action: jax.Array, space: Discrete | Continuous) -> None:
    """What `name` returned for one observation is of one action of the environment's."""
    shape = () if isinstance(space, Discrete) else jnp.shape(space.low)
    of_action = jnp.shape(distribution.log_prob(action))
    if jnp.shape(action) != shape or of_action != ():
        raise ValueError(
            f"{name} must return a distribution over actions of shape {shape}, of one observation; got a "
            f"{type(distribution).__name__} with samples of shape {jnp.shape(action)}, log_prob of shape {of_action}"
        )
    if isinstance(space, Discrete) and isinstance(distribution, Categorical):
        num_logits = distribution.logits.shape[-1]
        if num_logits != space.num_actions:
            raise ValueError(f"{name} must return {space.num_actions} logits, one for each action, got {num_logits}")

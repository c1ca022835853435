"""Which actions there are, where not all are there everywhere: a function of what is observed."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_arguments
from jaxmeta.rl.env import Continuous, Discrete
from jaxmeta.types import PyTree

ActionMask: TypeAlias = Callable[[PyTree], jax.Array]


def check_action_mask(value: ActionMask | None, space: Discrete | Continuous) -> None:
    """A function of one observation, of an environment of discrete actions; or None.

    Raises:
      ValueError: it is none, or actions are real.
    """
    if value is None:
        return
    check_arguments("action_mask", value, ("observation",), "it returns booleans [A], which actions there are")
    if not isinstance(space, Discrete):
        raise ValueError(f"action_mask must be None where actions are real, got one for {space!r}")


def allowed_at(action_mask: ActionMask, observation: PyTree, num_actions: int) -> jax.Array:
    """What `action_mask` says of one observation, `[A]` booleans, looked at while it is traced.

    >>> allowed_at(lambda observation: observation > 0, jnp.array([1.0, 0.0]), 2).tolist()
    [True, False]
    """
    allowed = jnp.asarray(action_mask(observation))
    if allowed.shape != (num_actions,) or allowed.dtype != bool:
        raise ValueError(
            f"action_mask must return booleans of shape ({num_actions},), one for each action, got {allowed.dtype} of "
            f"shape {allowed.shape}"
        )
    return allowed

"""Navix' environments, MiniGrid's in JAX, made into an `Environment`; a task is one layout of the grid, a level.

Navix comes with `pip install 'jaxmeta[navix]'`. This is the only file that knows it, and it is imported when
`from_navix` is called.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_fields, check_optional_counts
from jaxmeta.rl.env import Environment
from jaxmeta.rl.gymnax import action_space_of, in_32_bits
from jaxmeta.rl.levels import on_levels, raw
from jaxmeta.types import PyTree

TRANSITION, TERMINATION = 0, 2  # of Navix' StepType


def from_navix(environment: Any, *, max_steps: int | None = None) -> Environment:
    """An environment of Navix as an `Environment`, whose tasks are levels: layouts as its `reset` draws them.

    `rl.family(environment, lambda key: ())` draws one for each task, as a `Level`, and each episode starts there; what
    moves by chance, as the balls of DynamicObstacles do, moves anew in each episode. Rewards, observations and sizes
    are those that the environment was made with, `navix.make(name, observation_fn=...)`; the state is its `Timestep`.

    Its auto-reset never runs, and its own time limit ends nothing: an episode is terminated where Navix says so, and
    truncated at `max_steps`.

    Args:
      environment: of Navix, or its registered name.
      max_steps: the horizon in steps; the environment's own if None.

    Raises:
      ImportError: Navix is not installed.
      ValueError: there is no such `environment`, or `max_steps` is no positive integer; while tracing, a task is no
        level of it.

    Pignatelli et al., "NAVIX: Scaling MiniGrid Environments with JAX" (2024), https://arxiv.org/abs/2407.19396
    """
    check_optional_counts(max_steps=max_steps)
    env = _made(environment)
    horizon = env.max_steps if max_steps is None else max_steps
    with in_32_bits():
        return on_levels(_Navix(env), type(env).__name__, (), max_steps=horizon, initial=("state/key",))


class _Navix:
    """gymnax's API, for `on_levels`; its state is Navix' `Timestep`."""

    def __init__(self, env: Any):
        self.env = env

    def reset_env(self, key: jax.Array, params: tuple) -> tuple[PyTree, PyTree]:
        timestep = self.env.reset(raw(key))
        return timestep.observation, timestep

    def renew(self, timestep: Any, key: jax.Array) -> PyTree:
        return timestep.replace(state=timestep.state.replace(key=raw(key)))

    def step_env(self, key: jax.Array, timestep: Any, action: jax.Array, params: tuple) -> tuple:
        # a step after the last one would reset: as the compiler sees, this is none
        after = self.env.step(timestep.replace(step_type=jnp.int32(TRANSITION)), action)
        return after.observation, after, after.reward, after.step_type == TERMINATION, after.info

    def action_space(self, params: None) -> Any:
        return action_space_of(self.env.action_space, "in its action_set")


def _made(environment: Any) -> Any:
    try:
        import navix
    except ImportError as error:
        raise ImportError("from_navix needs Navix: pip install 'jaxmeta[navix]'") from error
    if not isinstance(environment, str):
        check_fields("environment", environment, ("reset", "step"), "one of Navix or its name")
        return environment
    if environment not in navix.registry():
        raise ValueError(f"environment must be one of {', '.join(navix.registry())}, got {environment!r}")
    with in_32_bits():
        return navix.make(environment)

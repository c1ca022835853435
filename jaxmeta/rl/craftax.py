"""Craftax' environments made into an `Environment`; a task is one world, a level, with its params.

Craftax comes with `pip install 'jaxmeta[craftax]'`. This is the only file that knows it, and it is imported when
`from_craftax` is called.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_fields, check_optional_counts
from jaxmeta.rl.env import Environment
from jaxmeta.rl.gymnax import in_32_bits
from jaxmeta.rl.levels import on_levels, raw
from jaxmeta.types import PyTree


def from_craftax(environment: Any, *, max_steps: int | None = None) -> Environment:
    """An environment of Craftax as an `Environment`, whose tasks are levels: worlds, with the params they are drawn by.

    `rl.family(environment, sample_fn)`, where `sample_fn` draws `EnvParams`, draws a world for each task, as a `Level`,
    and each episode starts there; creatures move and appear anew in each. A constant `sample_fn`,
    `lambda key: craftax_env.default_params`, makes tasks that differ in their world alone. The sizes of the map are
    those that the environment was made with, `CraftaxClassicSymbolicEnv(StaticEnvParams(map_size=(32, 32)))`.

    An episode is terminated where the player dies or has won; `max_timesteps`, by which Craftax ends it too, is not
    looked at, and the horizon in its place. At the horizon its `info`, which Craftax pays at the end of an episode
    alone, is that of an end.

    Args:
      environment: of Craftax, with auto-resets or without, which never run, or its name, such as
        "Craftax-Classic-Symbolic-v1".
      max_steps: the horizon in steps; `max_timesteps` of its default params, 10,000 or more, if None.

    Raises:
      ImportError: Craftax is not installed.
      ValueError: there is no such `environment`, or `max_steps` is no positive integer; while tracing, a task is no
        level of it.

    Matthews et al., "Craftax: A Lightning-Fast Benchmark for Open-Ended Reinforcement Learning" (2024),
    https://arxiv.org/abs/2402.16801
    """
    check_optional_counts(max_steps=max_steps)
    env = _made(environment)
    params = env.default_params
    horizon = params.max_timesteps if max_steps is None else max_steps
    with in_32_bits():
        return on_levels(_Craftax(env, horizon), type(env).__name__, params, max_steps=horizon)


class _Craftax:
    """gymnax's API, for `on_levels`."""

    def __init__(self, env: Any, max_steps: int):
        self.env, self.max_steps = env, max_steps

    def reset_env(self, key: jax.Array, params: Any) -> tuple[PyTree, PyTree]:
        return self.env.reset_env(raw(key), params)

    def renew(self, state: Any, key: jax.Array) -> PyTree:
        return state  # what happens by chance is drawn with the key of a step

    def step_env(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple:
        limited = params.replace(max_timesteps=self.max_steps)
        observation, state, reward, _, info = self.env.step_env(raw(key), state, action, limited)
        terminated = self.env.is_terminal(state, params.replace(max_timesteps=jnp.iinfo(jnp.int32).max))
        return observation, state, reward, terminated, info

    def action_space(self, params: None) -> Any:
        return self.env.action_space(params)


def _made(environment: Any) -> Any:
    try:
        from craftax.craftax_env import make_craftax_env_from_name
    except ImportError as error:
        raise ImportError("from_craftax needs Craftax: pip install 'jaxmeta[craftax]'") from error
    if isinstance(environment, str):
        try:
            with in_32_bits():
                return make_craftax_env_from_name(environment, auto_reset=False)
        except ValueError as error:
            raise ValueError(
                'environment must be the name of one of Craftax, such as "Craftax-Classic-Symbolic-v1", got '
                f"{environment!r}"
            ) from error
    fields = ("step_env", "reset_env", "is_terminal", "action_space")
    check_fields("environment", environment, fields, "one of Craftax or its name")
    return environment

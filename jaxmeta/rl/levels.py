"""Tasks of environments that draw their world inside `reset`, as those of Jumanji, Navix and Craftax do: a task is one
such world, a level, drawn once.
"""

from typing import Any, NamedTuple

import jax

from jaxmeta.checks import a_key, check_like
from jaxmeta.rl.env import Environment
from jaxmeta.rl.gymnax import from_gymnax
from jaxmeta.types import PyTree
from jaxmeta.words import short


class Level(NamedTuple):
    """A task: where each of its episodes starts. `rl.family` draws one for each task, `environment.draw(key, params)`
    draws one at a time.

    Attributes:
      params: what the environment takes beside, such as Craftax' `EnvParams`; () if nothing.
      observation: what is seen first, as the library gives it.
      state: the library's own, before the first step.

    >>> import jax.numpy as jnp
    >>> level = Level((), observation=jnp.zeros(2), state={"walls": jnp.zeros((5, 5))})
    >>> level.state["walls"].shape
    (5, 5)
    """

    params: PyTree
    observation: PyTree
    state: PyTree

    def __repr__(self) -> str:
        return short(self, width=300)


def on_levels(env: Any, name: str, params: PyTree, *, max_steps: int, initial: tuple[str, ...] = ()) -> Environment:
    """An `Environment` whose tasks are levels of `env`, which has gymnax's API and draws a level in `reset_env`.

    A reset goes back to the level's state. What an episode draws on its way is drawn anew in each: by the key of
    `step_env`, or by one within the state, which `env.renew(state, key)` replaces.

    Args:
      env: with `reset_env`, `step_env`, `action_space` and `renew`.
      name: of the library's environment, for errors.
      params: some that `env` takes.
      max_steps: the horizon.
      initial: the fields of the state that `renew` replaces.
    """
    shapes = jax.eval_shape(lambda key: env.reset_env(key, params), a_key())
    draw = lambda key, params: params if isinstance(params, Level) else Level(params, *env.reset_env(key, params))
    environment = from_gymnax(_OnLevels(env, name, shapes), max_steps=max_steps)
    return environment._replace(draw=draw, initial=initial)


def raw(key: jax.Array) -> jax.Array:
    """A key as the numbers that these libraries keep in their states, which hold for both kinds of keys."""
    return jax.random.key_data(key)


class _OnLevels:
    """gymnax's API, for `from_gymnax`; its params are a `Level`."""

    def __init__(self, env: Any, name: str, shapes: tuple[PyTree, PyTree]):
        self.env, self.__name__, self.shapes = env, name, shapes

    def reset_env(self, key: jax.Array, level: Level) -> tuple[PyTree, PyTree]:
        if not isinstance(level, Level):
            raise ValueError(
                f"a task of {self.__name__} must be a Level, for its reset draws one anew in every episode: "
                "rl.family(environment, sample_params) makes such tasks, environment.draw(key, params) makes one; got "
                f"{short(level)}"
            )
        check_like("level", (level.observation, level.state), self.shapes, f"one of this {self.__name__}")
        return level.observation, self.env.renew(level.state, key)

    def step_env(self, key: jax.Array, state: PyTree, action: jax.Array, level: Level) -> tuple:
        return self.env.step_env(key, state, action, level.params)

    def action_space(self, params: None) -> Any:
        return self.env.action_space(params)

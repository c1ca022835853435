"""Jumanji's environments made into an `Environment`; a task is one instance of the problem, a level.

Jumanji comes with `pip install 'jaxmeta[jumanji]'`. This is the only file that knows it, and it is imported when
`from_jumanji` is called.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_fields, check_optional_counts
from jaxmeta.rl.env import Discrete, Environment
from jaxmeta.rl.gymnax import action_space_of, in_32_bits
from jaxmeta.rl.levels import on_levels, raw
from jaxmeta.types import PyTree


class JumanjiState(NamedTuple):
    """What an episode in an environment of Jumanji carries.

    Attributes:
      state: Jumanji's own, which its `render` draws.
      time: steps taken in this episode.
    """

    state: PyTree
    time: jax.Array


def from_jumanji(environment: Any, *, max_steps: int | None = None) -> Environment:
    """An environment of Jumanji as an `Environment`, whose tasks are levels: instances as its `reset` draws them.

    `rl.family(environment, lambda key: ())` draws one for each task, as a `Level`, and each episode starts there; what
    an environment draws on the way, such as the next fruit of Snake, is new in each episode. Sizes and generators are
    those that the environment was made with.

    Several discrete actions at once are one of their product, in the order of `np.ravel` of a mask of their shape.
    Observations become the default float, an `action_mask` in them too: `action_mask=lambda observation:
    observation.action_mask.ravel() > 0` gives it to a learner. `extras` become the `info` of a `Transition`.

    An episode is terminated where Jumanji's last step has discount 0. Most of its environments say so at their
    `time_limit` too, so that nothing is bootstrapped there: for a time limit that only truncates, make them with a
    `time_limit` above `max_steps`. A last step before `max_steps` whose discount is not 0 pays NaN.

    Args:
      environment: of Jumanji, without its wrappers for batches and auto-resets, or its registered name. Of several
        agents it is one by `jumanji.wrappers.MultiToSingleWrapper`.
      max_steps: the horizon in steps, at most the environment's `time_limit`, which it is if None.

    Raises:
      ImportError: Jumanji is not installed.
      ValueError: there is no such `environment`, it resets itself, is of no known horizon, or of other actions; while
        tracing, a task is no level of it.

    Bonnet et al., "Jumanji: a Diverse Suite of Scalable Reinforcement Learning Environments in JAX" (2024),
    https://arxiv.org/abs/2306.09884
    """
    check_optional_counts(max_steps=max_steps)
    env = _made(environment)
    horizon = _horizon(env, max_steps)
    with in_32_bits():
        adapter = _Jumanji(env, horizon)
        return on_levels(adapter, type(env.unwrapped).__name__, (), max_steps=horizon, initial=("state/key",))


class _Jumanji:
    """gymnax's API, for `on_levels`."""

    def __init__(self, env: Any, max_steps: int):
        self.env, self.max_steps = env, max_steps

    def reset_env(self, key: jax.Array, params: tuple) -> tuple[PyTree, JumanjiState]:
        state, timestep = self.env.reset(raw(key))
        return timestep.observation, JumanjiState(state, jnp.int32(0))

    def renew(self, state: JumanjiState, key: jax.Array) -> JumanjiState:
        return state._replace(state=state.state.replace(key=raw(key)))

    def step_env(self, key: jax.Array, state: JumanjiState, action: jax.Array, params: tuple) -> tuple:
        inner, timestep = self.env.step(state.state, self._action(action))
        time = state.time + 1
        terminated = timestep.last() & (timestep.discount == 0)
        is_cut = timestep.last() & ~terminated & (time < self.max_steps)  # the trial would play on
        reward = jnp.where(is_cut, jnp.nan, timestep.reward)
        return timestep.observation, JumanjiState(inner, time), reward, terminated, dict(timestep.extras)

    def _action(self, action: jax.Array) -> jax.Array:
        spec = self.env.action_spec
        if np.shape(sizes := getattr(spec, "num_values", 0)) != ():
            action = jnp.stack(jnp.unravel_index(action, np.ravel(sizes).tolist())).reshape(spec.shape)
        return jnp.asarray(action, spec.dtype)

    def action_space(self, params: None) -> Any:
        spec = self.env.action_spec
        if np.shape(sizes := getattr(spec, "num_values", 0)) == ():
            from jumanji.specs import jumanji_specs_to_gym_spaces

            return action_space_of(jumanji_specs_to_gym_spaces(spec), "in a jumanji.wrappers.Wrapper")
        num_actions = int(np.prod(np.asarray(sizes), dtype=object))
        if num_actions > np.iinfo(np.int32).max:
            raise ValueError(
                f"environment must have fewer actions than 2**31, got {num_actions} of {np.ravel(sizes).tolist()} at "
                "once: make a smaller one"
            )
        return Discrete(num_actions)


def _made(environment: Any) -> Any:
    try:
        import jumanji
        from jumanji import wrappers
    except ImportError as error:
        raise ImportError("from_jumanji needs Jumanji: pip install 'jaxmeta[jumanji]'") from error
    if not isinstance(environment, str):
        check_fields("environment", environment, ("reset", "step"), "one of Jumanji or its name")
    elif environment not in (names := jumanji.registered_environments()):
        raise ValueError(f"environment must be one of {', '.join(sorted(names))}, got {environment!r}")
    with in_32_bits():
        env = jumanji.make(environment) if isinstance(environment, str) else environment
    inner, of_batches = env, (wrappers.AutoResetWrapper, wrappers.VmapWrapper, wrappers.VmapAutoResetWrapper)
    while isinstance(inner, wrappers.Wrapper):
        if isinstance(inner, of_batches):
            raise ValueError(
                f"environment must be one that does not reset itself, of no batch, got it in {type(inner).__name__}: a "
                "trial resets, and vmap makes many: give it without that wrapper"
            )
        inner = inner._env
    return env


def _horizon(env: Any, max_steps: int | None) -> int:
    name, time_limit = type(env.unwrapped).__name__, getattr(env, "time_limit", None)
    if time_limit is None and max_steps is None:
        raise ValueError(f"max_steps must be given for {name}, which has no time_limit, got None")
    if time_limit is not None and max_steps is not None and max_steps > time_limit:
        raise ValueError(
            f"max_steps must be at most {time_limit}, the time_limit of {name}, at which it ends an episode itself, "
            f"got {max_steps}: make it with a larger time_limit"
        )
    return int(max_steps or time_limit or 0)

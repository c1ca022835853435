"""gymnax's environments, and those of a user's own with its API, made into an `Environment`.

This is the only file that knows gymnax, and it imports it only when an environment is asked for by its name.
"""

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_fields, check_integer
from jaxmeta.rl.env import Continuous, Discrete, Environment, check_reset, check_step, check_unchanged, strong
from jaxmeta.types import PyTree

# The fields of their state that gymnax's environments draw in `reset_env` and that define the task, by their class.
PINS: dict[str, tuple[str, ...]] = {
    "BernoulliBandit": ("reward_probs",),
    "DeepSea": ("action_mapping",),
    "FourRooms": ("goal",),
    "GaussianBandit": ("mu",),
    "MemoryChain": ("context", "query"),
    "MetaMaze": ("goal",),
    "PointRobot": ("goal",),
    "Reacher": ("goal_xy",),
    "SimpleBandit": ("rewards",),
    "Swimmer": ("goal_xy", "urchin_xys"),
    "UmbrellaChain": ("need_umbrella",),
}
# Those that stay as they were drawn, but of which nothing is paid: or, as each image of MNIST, only the episode's one.
INITIAL: dict[str, tuple[str, ...]] = {"BernoulliBandit": ("exp_reward_best",), "MNISTBandit": ("correct_label",)}


class Pinned(NamedTuple):
    """A task of an environment that draws it inside `reset`: `pins` are the fields of its state that define the task,
    such as {"goal": goal}, arrays of the fields' shapes. They are put back after every reset.

    Attributes:
      params: of the environment, such as gymnax's `EnvParams`.
      pins: {field of the state: its array}, what is put back after each reset.

    >>> import jaxmeta.rl
    >>> robot = jaxmeta.rl.from_gymnax("PointRobot-misc")
    >>> params = jaxmeta.rl.make_gymnax("PointRobot-misc")[1]
    >>> task = Pinned(params, {"goal": jnp.array([0.0, 0.2])})
    >>> observation, state = robot.reset(jax.random.key(0), task)
    >>> state.goal.tolist() == task.pins["goal"].tolist()
    True
    """

    params: PyTree
    pins: dict[str, jax.Array]


def from_gymnax(environment: Any, *, max_steps: int | None = None, pins: Collection[str] | None = None) -> Environment:
    """Any gymnax environment, or one of your own with its API, as an `Environment`.

    Its params are the task. Where it draws a part of the task inside `reset_env`, such as a goal, name the fields of
    its state that hold it: `pins=("goal",)`. `rl.family` then draws them once for each task, which is a
    `Pinned(params, {"goal": goal})`, and every reset puts them back. Those of gymnax's own environments are known.

    It needs `step_env`, `reset_env` and `action_space`, with pins `observe` too, and without `max_steps`
    `default_params`. Neither its auto-reset nor its own time limit is used. Observations and rewards become the default
    float; the state keeps the types that `reset_env` gave it; its `info` becomes that of a `Transition`.

    Args:
      environment: a gymnax environment or its registered name.
      max_steps: the horizon in steps; `max_steps_in_episode` of the default params if None. It is static: that of a
        task's params is not looked at.
      pins: fields of its state that are of the task; those known of gymnax's own, else none, if None. () lets each
        episode draw anew.

    Raises:
      ValueError: `environment` lacks something, has actions of another kind, or cuts episodes in a way of its own
        (`is_truncated`); while tracing, its functions return something else than gymnax's, a task lacks pins or has
        others than there are fields.

    >>> class Counter:
    ...     def reset_env(self, key, params):
    ...         return jnp.zeros(1), 0
    ...     def step_env(self, key, state, action, params):
    ...         return jnp.array([state + 1]), state + 1, params * action, state >= 5, {}
    ...     def action_space(self, params):
    ...         return Discrete(2)
    >>> environment = from_gymnax(Counter(), max_steps=10)
    >>> observation, state = environment.reset(jax.random.key(0), jnp.float32(0.5))
    >>> environment.step(jax.random.key(1), state, 1, jnp.float32(0.5))[2].item()
    0.5
    """
    env: Any = make_gymnax(environment)[0] if isinstance(environment, str) else environment
    check_fields("environment", env, ("step_env", "reset_env", "action_space"), "a gymnax environment or its name")
    _check_time_limit(env)
    default_params = getattr(env, "default_params", None)
    horizon = _horizon(default_params) if max_steps is None else max_steps
    check_integer("max_steps", horizon, minimum=1)
    action_space = action_space_of(env.action_space(default_params), "in step_env")
    action_type = jnp.int32 if isinstance(action_space, Discrete) else float
    known = _known(env, PINS)
    pinned = known if pins is None else _check_names(pins)
    initial = (*_known(env, INITIAL), *(name for name in known if name not in pinned))

    def reset(key: jax.Array, task: PyTree) -> tuple[PyTree, PyTree]:
        if not isinstance(task, Pinned):
            _check_pinned(env, pinned, ())
            observation, state = check_reset(f"reset_env of {_name(env)}", env.reset_env(key, task))
            return _as_float(observation), strong(state)
        _check_pinned(env, pinned, task.pins)
        reset_key, observe_key = jax.random.split(key)
        _, state = check_reset(f"reset_env of {_name(env)}", env.reset_env(reset_key, task.params))
        state = _with_pins(env, strong(state), task.pins)
        return _as_float(env.observe(observe_key, state, None, task.params)), state

    def step(key: jax.Array, state: PyTree, action: jax.Array, task: PyTree):
        params = task.params if isinstance(task, Pinned) else task
        returned = env.step_env(key, state, jnp.asarray(action, action_type), params)
        name = f"step_env of {_name(env)}"
        observation, new_state, reward, terminated, info = check_step(name, returned, needs_info=True)
        check_unchanged(name, "state", new_state, state, of_kind=True)
        new_state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), new_state, state)
        return _as_float(observation), new_state, jnp.asarray(reward, float), jnp.asarray(terminated), info

    def draw(key: jax.Array, params: PyTree) -> Pinned:
        if isinstance(params, Pinned):
            return params
        _, state = env.reset_env(key, params)
        return Pinned(params, {name: _field(env, state, name) for name in pinned})

    return Environment(reset, step, action_space, int(horizon), draw=draw if pinned else None, initial=initial)


def make_gymnax(name: str) -> tuple[Any, PyTree]:
    """A registered gymnax environment and its default params. Imports gymnax, which takes seconds.

    Args:
      name: as gymnax registers it, such as "Pendulum-v1".

    Raises:
      ValueError: no environment is registered under `name`.

    >>> make_gymnax("Pendulum-v1")[1].max_speed
    8.0
    """
    import gymnax

    if name not in gymnax.registered_envs:
        raise ValueError(f"name of an environment must be one of {', '.join(gymnax.registered_envs)}, got {name!r}")
    with in_32_bits():  # MetaMaze takes its own arrays, made here, for int32
        return gymnax.make(name)


def in_32_bits() -> AbstractContextManager:
    """Where the environments of others are made: the constants that they hold fit any precision they are used in."""
    namespace: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    return namespace.enable_x64(False)


def _horizon(default_params: Any) -> Any:
    """That of the default params, a whole number in BernoulliBandit too, where it is 100.0."""
    horizon = getattr(default_params, "max_steps_in_episode", None)
    return int(horizon) if isinstance(horizon, float) and horizon.is_integer() else horizon


def _check_time_limit(env: Any) -> None:
    """The trial counts steps up to `max_steps`; another way to truncate would be ignored without a word."""
    own = next((base for base in type(env).__mro__ if "is_truncated" in vars(base)), None)
    if own is not None and not own.__module__.startswith("gymnax."):
        raise ValueError(
            f"environment must not define is_truncated: a trial truncates at max_steps. End the episode in step_env; "
            f"got {own.__name__}.is_truncated"
        )


def action_space_of(space: Any, where: str) -> Discrete | Continuous:
    """That of gymnax or gymnasium as ours, where it is one number of `n`, or a vector of real ones.

    Args:
      space: theirs.
      where: its user can make another one of it, as the errors say it, such as "in step_env".
    """
    if isinstance(space, Discrete | Continuous):
        return space
    kind, shape = type(space).__name__, tuple(getattr(space, "shape", None) or ())
    refuse = lambda remedy: ValueError(f"action_space of environment must be discrete or a box; got {kind}: {remedy}")
    if hasattr(space, "nvec") or (hasattr(space, "n") and (shape or kind == "MultiBinary")):
        sizes = (
            tuple(np.ravel(space.nvec).tolist()) if hasattr(space, "nvec") else (2,) * int(np.prod(shape or space.n))
        )
        raise refuse(
            f"make it Discrete({int(np.prod(sizes))}), and {where} what it stands for by "
            f"jnp.stack(jnp.unravel_index(action, {sizes}))"
        )
    if hasattr(space, "spaces"):
        raise refuse(f"make it one Discrete with every combination, or one Box, and take it apart {where}")
    if hasattr(space, "n"):
        if getattr(space, "start", 0) != 0:
            raise refuse(f"make it Discrete({int(space.n)}), from 0 on, and add {int(space.start)} {where}")
        return Discrete(int(space.n))
    if not hasattr(space, "low") or not hasattr(space, "high"):
        raise refuse(f"make it one of them, and {where} what it stands for")
    if len(shape) != 1 or not jnp.issubdtype(getattr(space, "dtype", None) or np.float32, jnp.floating):
        raise refuse(f"of shape {shape} and {space.dtype}: make it a vector of real numbers, and the rest {where}")
    low, high = (np.broadcast_to(np.asarray(bound, np.float32), shape) for bound in (space.low, space.high))
    return Continuous(low, high)


# Pins.


def _known(env: Any, table: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What is known of a class of gymnax, or of one that is made from it."""
    bases = (base.__name__ for base in type(env).__mro__ if base.__module__.startswith("gymnax."))
    return next((table[name] for name in bases if name in table), ())


def _check_names(pins: Any) -> tuple[str, ...]:
    if isinstance(pins, str) or not isinstance(pins, Collection) or not all(isinstance(name, str) for name in pins):
        raise ValueError(f'pins must be names of fields of the state, such as ("goal",), got {pins!r}')
    return tuple(pins)


def _check_pinned(env: Any, wanted: tuple[str, ...], pins: Collection[str]) -> None:
    missing = [name for name in wanted if name not in pins]
    if missing:
        example = ", ".join(f'"{name}": ...' for name in wanted)
        raise ValueError(
            f"a task of {_name(env)} must be Pinned(params, {{{example}}}), for its reset draws {', '.join(missing)} "
            "anew in every episode. rl.family(environment, sample_params) makes such tasks; from_gymnax(..., pins=()) "
            "is for one whose episodes are to differ"
        )


def _field(env: Any, state: PyTree, name: str) -> Any:
    fields = state if isinstance(state, dict) else getattr(state, "_asdict", lambda: vars(state))()
    if name not in fields:
        raise ValueError(f"pins must be fields of the state of {_name(env)}, {', '.join(fields)}; got {name!r}")
    return fields[name]


def _with_pins(env: Any, state: PyTree, pins: dict[str, Any]) -> PyTree:
    old = {name: _field(env, state, name) for name in pins}
    for name, pin in pins.items():
        if jnp.shape(pin) != jnp.shape(old[name]):
            wanted = f"{jnp.shape(old[name])}, as that field of the state of {_name(env)} has"
            raise ValueError(f"pin {name} must have the shape {wanted}, got {jnp.shape(pin)}")
    new = {name: jnp.asarray(pin, old[name].dtype) for name, pin in pins.items()}
    if isinstance(state, dict):
        return {**state, **new}
    return (state._replace if hasattr(state, "_replace") else state.replace)(**new)


def _name(env: Any) -> str:
    return getattr(env, "__name__", type(env).__name__)


def _as_float(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), tree)

"""Environments, families of them, and gymnax's environments made into such.

An `Environment` is two pure functions with gymnax's semantics, without auto-reset and without a time limit: those are a
trial's. A task is whatever they take as `params`, a pytree of arrays.

This is the only file that knows gymnax, and it imports it only when an environment is asked for by its name.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_callable, check_fields, check_integer
from jaxmeta.types import PyTree, TaskDistribution


class Discrete(NamedTuple):
    """Actions 0 .. num_actions − 1."""

    num_actions: int


class Continuous(NamedTuple):
    """Actions in a box: `low` and `high` have the shape of an action, `[A]`."""

    low: np.ndarray
    high: np.ndarray


class Environment(NamedTuple):
    """Pure functions of one environment; `params` is the task.

    reset:        (key, params) -> (observation, state)
    step:         (key, state, action, params) -> (observation, state, reward, terminated)
    action_space: `Discrete` or `Continuous`
    max_steps:    the horizon H, at which a trial truncates an episode
    observe_time: whether a recurrent policy is told the time within the episode

    The two observations and the two states have the same shapes and dtypes.
    """

    reset: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]]
    step: Callable[[jax.Array, PyTree, jax.Array, PyTree], tuple[PyTree, PyTree, jax.Array, jax.Array]]
    action_space: Discrete | Continuous
    max_steps: int
    observe_time: bool = False


class Family(NamedTuple):
    """An environment and its tasks. A sampled task is the environment's params; `test` tasks are held out."""

    environment: Environment
    train: TaskDistribution
    test: TaskDistribution


def family(environment: Environment, sample_fn: Callable, test_sample_fn: Callable | None = None) -> Family:
    """A family from `(key) -> params`: the one line that makes meta-learning tasks of an environment.

    Args:
      environment: an `Environment`, such as `from_gymnax("Pendulum-v1")`.
      sample_fn: (key) -> params, draws a training task.
      test_sample_fn: draws a test task; `sample_fn` if None, right where no task is drawn twice.

    Raises:
      ValueError: `environment` is no environment, or a sampler is no function.

    >>> from jaxmeta.rl import families
    >>> environment = families.navigation().environment
    >>> north = family(environment, lambda key: families.Goal(jnp.append(0.0, jax.random.uniform(key))))
    >>> north.train.sample(jax.random.key(0), north.train.data).goal.shape
    (2,)
    """
    check_environment("environment", environment)
    check_callable("sample_fn", sample_fn, "(key) -> params")
    test_sample_fn = sample_fn if test_sample_fn is None else test_sample_fn
    check_callable("test_sample_fn", test_sample_fn, "(key) -> params")
    without_data = lambda sample: TaskDistribution(lambda key, data: _strong(sample(key)))
    return Family(environment, without_data(sample_fn), without_data(test_sample_fn))


def finite_family(environment: Environment, train: PyTree, test: PyTree) -> Family:
    """A family of tasks that are all there, stacked along a leading axis; each is as likely.

    Where they are arrays of numpy, a task has jax's default precision where it is sampled.

    Raises:
      ValueError: `environment` is no environment, or tasks are not stacked.

    >>> from jaxmeta.rl import families
    >>> environment = families.navigation().environment
    >>> goals = families.Goal(jnp.array([[0.0, 0.5], [0.5, 0.0], [0.0, -0.5]]))
    >>> train, test = jax.tree.map(lambda g: g[:2], goals), jax.tree.map(lambda g: g[2:], goals)
    >>> finite_family(environment, train, test).test.sample(jax.random.key(0), test).goal.tolist()
    [0.0, -0.5]
    """
    check_environment("environment", environment)
    _check_stacked("train", train)
    _check_stacked("test", test)

    def sample(key: jax.Array, tasks: PyTree) -> PyTree:
        index = jax.random.randint(key, (), 0, len(jax.tree.leaves(tasks)[0]))
        return _strong(jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], tasks))

    return Family(environment, TaskDistribution(sample, train), TaskDistribution(sample, test))


def _check_stacked(name: str, tasks: PyTree) -> None:
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(tasks)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise ValueError(f"{name} must be stacked tasks, every array with the same leading axis, got axes {sizes}")


def check_environment(name: str, value: Any) -> None:
    """An `Environment`, or something with its fields."""
    check_fields(name, value, ("reset", "step"), "an Environment; from_gymnax(...) makes one of any gymnax environment")
    if not isinstance(getattr(value, "action_space", None), Discrete | Continuous):
        raise ValueError(f"{name} must have an action_space, Discrete or Continuous, got {value!r}")
    check_integer(f"max_steps of {name}", getattr(value, "max_steps", None), minimum=1)


class Pinned(NamedTuple):
    """A task of a gymnax environment that draws it inside `reset`: `pins` are the fields of its state that define the
    task, such as {"goal": goal}. They are put back after every reset."""

    params: PyTree
    pins: dict[str, jax.Array]


def from_gymnax(environment: Any, *, max_steps: int | None = None) -> Environment:
    """Any gymnax environment, or one of your own with its API, as an `Environment`.

    Its params are the task; `Pinned(params, pins)` where it draws the task inside `reset_env`. It needs `step_env`,
    `reset_env` and `action_space`, with pins `observe` too, and without `max_steps` `default_params`. Neither its
    auto-reset nor its own time limit is used. Observations and rewards become the default float; the state keeps the
    types that `reset_env` gave it.

    Args:
      environment: a gymnax environment or its registered name.
      max_steps: the horizon; `max_steps_in_episode` of the default params if None. It is static: that of a task's
        params is not looked at.

    Raises:
      ValueError: `environment` lacks something, or cuts episodes in a way of its own (`is_truncated`).

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
    horizon: Any = getattr(default_params, "max_steps_in_episode", None) if max_steps is None else max_steps
    check_integer("max_steps", horizon, minimum=1)
    action_space = _action_space(env.action_space(default_params))
    action_type = jnp.int32 if isinstance(action_space, Discrete) else float

    def reset(key: jax.Array, task: PyTree) -> tuple[PyTree, PyTree]:
        if not isinstance(task, Pinned):
            observation, state = env.reset_env(key, task)
            return _as_float(observation), _strong(state)
        reset_key, observe_key = jax.random.split(key)
        _, state = env.reset_env(reset_key, task.params)
        state = _strong(state)
        state = state.replace(**{name: _like(pin, getattr(state, name)) for name, pin in task.pins.items()})
        return _as_float(env.observe(observe_key, state, None, task.params)), state

    def step(key: jax.Array, state: PyTree, action: jax.Array, task: PyTree):
        params = task.params if isinstance(task, Pinned) else task
        action = jnp.asarray(action, action_type)
        observation, new_state, reward, terminated, _ = env.step_env(key, state, action, params)
        new_state = jax.tree.map(_like, new_state, state)
        return _as_float(observation), new_state, jnp.asarray(reward, float), jnp.asarray(terminated, bool)

    return Environment(reset, step, action_space, int(horizon))


def make_gymnax(name: str) -> tuple[Any, PyTree]:
    """A registered gymnax environment and its default params. Imports gymnax, which takes seconds.

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


def _check_time_limit(env: Any) -> None:
    """The trial counts steps up to `max_steps`; another way to truncate would be ignored without a word."""
    own = next((base for base in type(env).__mro__ if "is_truncated" in vars(base)), None)
    if own is not None and not own.__module__.startswith("gymnax."):
        raise ValueError(
            f"environment must not define is_truncated: a trial truncates at max_steps. End the episode in step_env; "
            f"got {own.__name__}.is_truncated"
        )


def _action_space(space: Any) -> Discrete | Continuous:
    if isinstance(space, Discrete | Continuous):
        return space
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    if hasattr(space, "low") and len(space.shape) == 1:
        low, high = (np.broadcast_to(np.asarray(bound, np.float32), space.shape) for bound in (space.low, space.high))
        return Continuous(low, high)
    raise ValueError(f"environment must have discrete actions or a vector of real ones, got {space!r}")


def flatten(observation: PyTree) -> jax.Array:
    """One vector of all that is observed, `[D]`."""
    return jnp.concatenate([jnp.ravel(jnp.asarray(leaf, float)) for leaf in jax.tree.leaves(observation)])


def _as_float(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), tree)


def _strong(tree: PyTree) -> PyTree:
    """Arrays of definite type: a Python number is weakly typed, and a scan's carry must not change its type."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


def _like(new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.asarray(new, old.dtype).reshape(old.shape)

"""Environments and families of them: what they are, and what their functions have to return.

An `Environment` is two pure functions with gymnax's semantics, without auto-reset and without a time limit: those are a
trial's. A task is whatever they take as `params`, a pytree of arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_fields, check_integer
from jaxmeta.types import PyTree, TaskDistribution
from jaxmeta.words import short


class Discrete(NamedTuple):
    """Actions 0 .. num_actions − 1, each a scalar integer.

    Several discrete actions at once are one of their product: `np.unravel_index(action, (3, 2))` in `step` makes three
    times two of `Discrete(6)`.

    Attributes:
      num_actions: how many there are, at least 1.

    >>> from jaxmeta.rl import oracles
    >>> agent = oracles.random_policy(Discrete(3))
    >>> action, _, _ = agent.policy(jax.random.key(0), agent.params, agent.carry, None)
    >>> action.shape, 0 <= int(action) < 3
    ((), True)
    """

    num_actions: int


class Continuous(NamedTuple):
    """Actions in a box: `low` and `high` are arrays of an action's shape `[A]`, finite, low < high everywhere.

    A policy may leave the box, as a Gaussian does: `rl.trial` clips what the environment gets.

    Attributes:
      low: `[A]`, in units of the action.
      high: `[A]`, in units of the action.

    >>> space = Continuous(low=np.array([-1.0, 0.0]), high=np.array([1.0, 5.0]))
    >>> space.low.shape  # A = 2
    (2,)
    """

    low: np.ndarray
    high: np.ndarray


class Environment(NamedTuple):
    """Pure functions of one environment; `params` is the task.

    Attributes:
      reset: (key, params) -> (observation, state)
      step: (key, state, action, params) -> (observation, state, reward, terminated), or these and `info`
      action_space: `Discrete`, or `Continuous` with finite bounds, inside which actions are
      max_steps: the horizon H in steps, at which a trial truncates an episode
      observe_time: whether a recurrent policy is told the time within the episode
      draw: (key, params) -> task, where `reset` would draw a part of the task: `rl.family` draws it once for each task
        instead; None where params are the task
      initial: names of the fields of its state that `reset` draws and no `step` changes, and that still are no part of
        the task: see `rl.family`

    Observation and state are any pytrees, of the same shapes and dtypes from `reset` and from `step`; the reward is a
    real scalar, `terminated` a boolean one, and `info` a dict that a `Transition` shows to `metrics_fn`.

    >>> def reset(key, goal):  # walk along a line, to the goal
    ...     return jnp.zeros(1), jnp.zeros(())
    >>> def step(key, position, action, goal):
    ...     position = position + action[0]
    ...     is_there = jnp.abs(position - goal) < 0.1
    ...     return position[None], position, -jnp.abs(position - goal), is_there, {"success": is_there}
    >>> line = Environment(reset, step, Continuous(-np.ones(1), np.ones(1)), max_steps=20)
    >>> observation, state = line.reset(jax.random.key(0), jnp.array(0.5))
    >>> line.step(jax.random.key(1), state, jnp.array([0.25]), jnp.array(0.5))[2].item()
    -0.25
    """

    reset: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]]
    step: Callable[[jax.Array, PyTree, jax.Array, PyTree], tuple]
    action_space: Discrete | Continuous
    max_steps: int
    observe_time: bool = False
    draw: Callable[[jax.Array, PyTree], PyTree] | None = None
    initial: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return short(self, width=300)


class Family(NamedTuple):
    """An environment and its tasks, made by `rl.family` or `rl.finite_family`.

    Attributes:
      environment: an `Environment`
      train: what training tasks are drawn from; a task is the environment's `params`, one pytree of arrays
      test: likewise what is held out

    >>> from jaxmeta.rl import families
    >>> bandit = families.bernoulli_bandit(num_arms=3)
    >>> task = bandit.train.sample(jax.random.key(0), bandit.train.data)
    >>> observation, state = bandit.environment.reset(jax.random.key(1), task)
    >>> task.means.shape, observation.shape
    ((3,), (1,))
    """

    environment: Environment
    train: TaskDistribution
    test: TaskDistribution

    def __repr__(self) -> str:
        return short(self, width=300)


def check_sizes(task: PyTree, **shapes: tuple[int, ...]) -> None:
    """That the arrays of a task are of the sizes of its family: jax would hand out the last of them for each beyond.

    Args:
      task: a NamedTuple of arrays.
      shapes: what they are to be.
    """
    for name, shape in shapes.items():
        if np.shape(given := getattr(task, name)) != shape:
            raise ValueError(
                f"{name} of task must be of shape {shape}, as those of the family are, got {short(given)}: train and "
                "test on family.train and family.test, or make a family of that size"
            )


def check_environment(name: str, value: Any) -> None:
    """An `Environment`, or something with its fields."""
    if isinstance(value, Family):
        raise ValueError(f"{name} must be an Environment, got a Family: give family.environment")
    check_fields(name, value, ("reset", "step"), "an Environment; from_gymnax(...) makes one of any gymnax environment")
    check_action_space(f"action_space of {name}", getattr(value, "action_space", None))
    check_integer(f"max_steps of {name}", getattr(value, "max_steps", None), minimum=1)


def check_family(name: str, value: Any) -> None:
    """A `Family`, or something with its fields."""
    if isinstance(value, Environment):
        raise ValueError(
            f"{name} must be an environment with its tasks, got an Environment alone: rl.family(environment, sample_fn)"
        )
    check_environment(f"environment of {name}", getattr(value, "environment", None))
    for split in ("train", "test"):
        check_fields(f"{split} of {name}", getattr(value, split, None), ("sample",), "a jaxmeta.TaskDistribution")


def check_action_space(name: str, value: Any) -> None:
    """`Discrete` with at least one action, or `Continuous` with finite bounds, arrays of one shape `[A]`."""
    if isinstance(value, Discrete):
        return check_integer(f"num_actions of {name}", value.num_actions, minimum=1)
    if not isinstance(value, Continuous):
        raise ValueError(f"{name} must be Discrete or Continuous, got {value!r}")
    for field, bound in value._asdict().items():
        is_real = isinstance(bound, np.ndarray | jax.Array) and not jnp.issubdtype(bound.dtype, jnp.bool_)
        if not is_real or not jnp.issubdtype(bound.dtype, jnp.number) or bound.ndim != 1 or not bound.size:
            raise ValueError(
                f"{field} of {name} must be an array of shape [A], one bound for each action, such as "
                f"np.full(2, -1.0), got {bound!r}"
            )
    low, high = (np.asarray(bound, np.float32) for bound in value)
    if low.shape != high.shape:
        raise ValueError(f"low and high of {name} must have the same shape, got {low.shape} and {high.shape}")
    with np.errstate(all="ignore"):
        if not np.isfinite(high - low).all():
            raise ValueError(
                f"{name} must have finite bounds, which policies are scaled to and actions clipped to, got {value!r}: "
                "give some, environment._replace(action_space=rl.Continuous(low, high))"
            )
    if not (low < high).all():
        raise ValueError(f"{name} must have low < high for every action, got {value!r}")


def clip_action(space: Discrete | Continuous, action: jax.Array) -> jax.Array:
    """The action in the box that is nearest to `action`.

    >>> clip_action(Continuous(np.zeros(2), np.ones(2)), jnp.array([0.5, 3.0])).tolist()
    [0.5, 1.0]
    """
    if isinstance(space, Discrete):
        return action
    return jnp.clip(action, *(jnp.asarray(bound, action.dtype) for bound in space))


def in_box_units(space: Continuous, action: jax.Array) -> jax.Array:
    """An action as a network sees it: −1 is the box's low, 1 its high.

    >>> in_box_units(Continuous(np.array([-2.0, 0.0]), np.array([2.0, 4.0])), jnp.array([-2.0, 3.0])).tolist()
    [-1.0, 0.5]
    """
    return jnp.asarray((action - (space.low + space.high) / 2) / ((space.high - space.low) / 2), action.dtype)


# What the functions of an environment return, looked at while it is traced.


def call_reset(environment: Environment, key: jax.Array, task: PyTree) -> tuple[PyTree, PyTree]:
    """(observation, state) of its `reset`."""
    return check_reset("reset of environment", environment.reset(key, task))


def call_step(
    environment: Environment, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree
) -> tuple[PyTree, PyTree, Any, Any, dict]:
    """(observation, state, reward, terminated, info) of its `step`."""
    returned = check_step("step of environment", environment.step(key, state, action, task))
    check_unchanged("step of environment", "state", returned[1], state)
    return returned


def check_reset(name: str, returned: Any) -> tuple[PyTree, PyTree]:
    """(observation, state), as `name` returned them."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ValueError(f"{name} must return (observation, state), got {_amount(returned)}")
    return returned


def check_step(name: str, returned: Any, *, needs_info: bool = False) -> tuple[PyTree, PyTree, Any, Any, dict]:
    """(observation, state, reward, terminated, info), as `name` returned them; without info it is {}."""
    lengths = (5,) if needs_info else (4, 5)
    if not isinstance(returned, tuple) or len(returned) not in lengths:
        optional = "" if needs_info else "; the info may be left out"
        raise ValueError(
            f"{name} must return (observation, state, reward, terminated, info){optional}; got {_amount(returned)}"
        )
    observation, state, reward, terminated, info = (*returned, {})[:5]
    _check_scalar(f"reward of {name}", reward, (jnp.floating, jnp.integer, jnp.bool_), "a real number: sum several up")
    _check_scalar(f"terminated of {name}", terminated, (jnp.bool_,), "a boolean: terminated != 0 makes one of a number")
    if not isinstance(info, dict):
        raise ValueError(f"info of {name} must be a dict, {{}} if there is none, got {type(info).__name__}")
    return observation, state, reward, terminated, info


def _check_scalar(name: str, value: Any, kinds: tuple, what: str) -> None:
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape != () or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise ValueError(f"{name} must be of shape () and {what}; got {dtype} of shape {shape}")


def check_unchanged(name: str, what: str, new: PyTree, old: PyTree, *, of_kind: bool = False) -> None:
    """Observation or state (`what`) of `name` has the structure, shapes and dtypes that a reset gives it.

    With `of_kind` a dtype may also be one that the reset's can hold: of another precision, or an integer for a real.
    """
    structure, old_structure = (str(jax.tree.structure(tree)) for tree in (new, old))
    if structure != old_structure:
        raise ValueError(
            f"{what} of {name} must have the structure that it has from the reset, {old_structure}, got {structure}"
        )
    for (path, after), before in zip(jax.tree_util.tree_leaves_with_path(new), jax.tree.leaves(old), strict=True):
        (shape, dtype), (old_shape, old_dtype) = ((jnp.shape(leaf), _dtype(leaf)) for leaf in (after, before))
        if shape != old_shape or not (dtype == old_dtype or (of_kind and _holds(old_dtype, dtype))):
            field = " ".join(filter(None, (what, name_of(path))))
            raise ValueError(
                f"{field} of {name} must be as it is from the reset, {old_dtype} of shape {old_shape}; got {dtype} of "
                f"shape {shape}"
            )


def name_of(path: tuple) -> str:
    """What a leaf is called in errors: "goal", "robot/position", "" for a tree that is an array."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _dtype(leaf: Any) -> Any:
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf.dtype if is_key else jnp.result_type(leaf)


def _holds(dtype: Any, other: Any) -> bool:
    """Whether numbers of the kind of `other` are in that of `dtype`: an integer is a real one, but not the reverse."""
    kinds = [(jnp.bool_,), (jnp.bool_, jnp.integer), (jnp.bool_, jnp.integer, jnp.floating)]
    return any(
        jnp.issubdtype(dtype, within[-1]) and any(jnp.issubdtype(other, kind) for kind in within) for within in kinds
    )


def _amount(returned: Any) -> str:
    return f"{len(returned)} values" if isinstance(returned, tuple) else f"one {type(returned).__name__}"


def flatten(observation: PyTree) -> jax.Array:
    """One vector of all that is observed, `[D]`.

    >>> flatten({"position": jnp.zeros((2, 2)), "has_key": jnp.bool_(True)}).tolist()
    [1.0, 0.0, 0.0, 0.0, 0.0]
    """
    return jnp.concatenate([jnp.ravel(jnp.asarray(leaf, float)) for leaf in jax.tree.leaves(observation)])


def unflatten(x: jax.Array, like: PyTree) -> PyTree:
    """The numbers `[D]` in the place of those that `flatten` took out of something like `like`, arrays or shapes.

    >>> unflatten(jnp.arange(3.0), {"a": jnp.zeros(2), "b": jnp.zeros(())})["a"].tolist()
    [0.0, 1.0]
    """
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([np.prod(jnp.shape(leaf), dtype=int) for leaf in leaves])[:-1]
    parts = (part.reshape(jnp.shape(leaf)) for part, leaf in zip(jnp.split(x, ends), leaves, strict=True))
    return jax.tree.unflatten(structure, parts)


def strong(tree: PyTree) -> PyTree:
    """Arrays of definite type: a Python number is weakly typed, and a scan's carry must not change its type."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)

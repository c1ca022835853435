"""gymnasium's environments, which run on the host, made into an `Environment`; a task is what a user's function sets.

jax calls the host through `jax.pure_callback`, which may be repeated, left out, or made in another order. So what is
called is a function of its arguments: an episode is its task, its seed and the actions so far, which are the state. The
environments that stand somewhere are kept here, to go on from; where none is at hand, one replays the episode.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_arguments, check_callable, check_fields, check_optional_counts
from jaxmeta.rl.env import Discrete, Environment
from jaxmeta.rl.gymnax import action_space_of
from jaxmeta.types import PyTree
from jaxmeta.words import short


class HostState(NamedTuple):
    """An episode on the host: what led there.

    Attributes:
      seed: of the episode, as `reset(seed=seed)` takes it.
      time: t, steps taken in this episode.
      actions: `[H]` or `[H, A]`, those of its first t steps.
      observation: what was seen last; a replay has to come there again.
    """

    seed: jax.Array
    time: jax.Array
    actions: jax.Array
    observation: PyTree


def from_gymnasium(
    environment: str | Callable[[], Any], set_task_fn: Callable[[Any, Any], None], *, max_steps: int | None = None
) -> Environment:
    """An environment of gymnasium, or one of your own with its API, that runs on the host, as an `Environment`.

    It is exact under `jit`, `vmap` and `scan`, and gradients stop at it. Before each episode `set_task_fn(env, task)`
    puts the task into an environment, all of it, for environments are used again for other tasks; then
    `env.reset(seed=seed)` starts it, with a seed of its own.

    What an episode does must follow from its task, its seed and its actions, as gymnasium asks: what draws with
    another generator than `env.np_random` is refused, where it is seen at construction or as the error of a run.
    Observations and rewards become the default float; their `info` is left out. An episode may truncate itself at
    `max_steps`, and not before. It is slow: see the how-to page.

    Args:
      environment: the registered name, or a function without arguments that makes an environment, which runs before a
        task is set too.
      set_task_fn: (env, task) -> None, sets the task, numpy arrays in the place of jax's; `env.unwrapped` is without
        wrappers.
      max_steps: the horizon in steps; `max_episode_steps` of its spec if None.

    Raises:
      ValueError: `environment` makes none, is no function of its seed and actions, has no known horizon, other actions
        than numbers, or observations that are none; `set_task_fn` is no function of two arguments.

    Towers et al., "Gymnasium: A Standard Interface for Reinforcement Learning Environments" (2024),
    https://arxiv.org/abs/2407.17032

    >>> def set_length(env, task):
    ...     env.unwrapped.length = float(task)
    >>> cartpole = from_gymnasium("CartPole-v1", set_length, max_steps=20)
    >>> observation, state = jax.jit(cartpole.reset)(jax.random.key(0), jnp.float32(0.7))
    >>> observation.shape, cartpole.step(jax.random.key(1), state, jnp.int32(1), jnp.float32(0.7))[2].item()
    ((4,), 1.0)
    """
    check_optional_counts(max_steps=max_steps)
    make = _maker(environment)
    check_arguments("set_task_fn", set_task_fn, ("env", "task"), "it sets the task of an environment")
    env = make()
    check_fields("environment", env, ("reset", "step"), "a name of gymnasium's or a function that makes one")
    horizon = _horizon(env, max_steps)
    space = action_space_of(env.action_space, "in a gymnasium.ActionWrapper")
    host = _Host(make, set_task_fn, isinstance(space, Discrete), horizon)
    seen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), host.check_repeats())
    shape, action_type = ((), jnp.int32) if isinstance(space, Discrete) else (np.shape(space.low), host.dtype)
    brought = seen, jax.ShapeDtypeStruct((), host.dtype), jax.ShapeDtypeStruct((), bool)

    def call(method: Callable, result: PyTree, *args: PyTree) -> Any:
        return jax.pure_callback(method, result, *jax.lax.stop_gradient(args), vmap_method="broadcast_all")

    def reset(key: jax.Array, task: PyTree) -> tuple[PyTree, HostState]:
        seed = jax.random.randint(key, (), 0, jnp.iinfo(jnp.int32).max, jnp.int32)
        observation = call(host.reset, seen, task, seed)
        return observation, HostState(seed, jnp.int32(0), jnp.zeros((horizon, *shape), action_type), observation)

    def step(key: jax.Array, state: HostState, action: jax.Array, task: PyTree) -> tuple:
        seed, time, actions, before = state
        actions = actions.at[time].set(jnp.asarray(action, action_type))
        observation, reward, terminated = call(host.step, brought, task, seed, time, actions, before)
        return observation, HostState(seed, time + 1, actions, observation), reward, terminated

    return Environment(reset, step, space, horizon, initial=("seed",))


class _Stand(NamedTuple):
    """What the last step of an episode brought, and the environment that stands there, None once it is over."""

    observation: PyTree
    reward: float
    terminated: bool
    env: Any


class _Host:
    """What jax calls, `reset` and `step`: functions of their arguments, for one episode or for batches of them."""

    def __init__(self, make: Callable, set_task_fn: Callable, is_discrete: bool, max_steps: int):
        self.make, self.set_task_fn, self.is_discrete, self.max_steps = make, set_task_fn, is_discrete, max_steps
        self.dtype = np.dtype(jax.dtypes.canonicalize_dtype(float))
        self.stands: OrderedDict[tuple, _Stand] = OrderedDict()  # by (task, seed, actions), the longest unused first
        self.num_stands = 0  # how many are kept at most
        self.spare: list = []  # environments that stand nowhere
        self.lock = threading.Lock()  # jax may call from several threads

    def reset(self, task: PyTree, seed: Any) -> PyTree:
        def start(task: PyTree, seed: Any) -> PyTree:
            episode = _bytes(task), int(seed), b""
            return self._keep(episode, self._taken(episode) or self._replay(task, seed, ())).observation

        return self._each(start, seed, task, seed)

    def step(self, task: PyTree, seed: Any, time: Any, actions: Any, before: PyTree) -> tuple:
        def advance(task: PyTree, seed: Any, time: Any, actions: Any, before: PyTree) -> tuple:
            if time >= self.max_steps:
                raise ValueError(f"an episode has max_steps = {self.max_steps} steps, and was stepped after them")
            task_and_seed = _bytes(task), int(seed)
            episode = *task_and_seed, actions[: time + 1].tobytes()
            stand = self._taken(episode)  # where the same step is asked for again
            if stand is None:
                stand = self._taken((*task_and_seed, actions[:time].tobytes()))
                if stand is None:
                    stand = self._replay(task, seed, actions[:time])
                    _check_same(stand.observation, before)
                stand = self._advance(stand, actions[time], time)
            return self._keep(episode, stand)[:3]

        return self._each(advance, seed, task, seed, time, actions, before)

    def check_repeats(self) -> PyTree:
        """What is observed first. After the same seed and actions another environment does the same, and a used one."""
        env, other = self.make(), self.make()
        env.action_space.seed(0)
        actions = [env.action_space.sample() for _ in range(min(5, self.max_steps))]

        def episode(env: Any) -> list:
            seen = [self._seen(env.reset(seed=0)[0])]
            for action in actions:
                observation, reward, terminated, truncated, _ = env.step(action)
                seen.append((self._seen(observation), float(reward), bool(terminated)))
                if terminated or truncated:
                    break
            return seen

        first = episode(env)
        for again in (other, env):
            _check_same(first, episode(again))
        self.spare.extend((env, other))
        return first[0]

    def _each(self, fn: Callable, seed: Any, *args: PyTree) -> PyTree:
        """`fn` of each episode of a batch, whose axes are those of `seed`."""
        axes, size = np.shape(seed), np.size(seed)
        leaves, structure = jax.tree.flatten(args)
        # copies, for a user may keep an array of the task, and the memory is jax's
        rows = zip(*(np.array(leaf).reshape(size, *np.shape(leaf)[len(axes) :]) for leaf in leaves), strict=True)
        with self.lock:
            results = [fn(*jax.tree.unflatten(structure, row)) for row in rows]
            self.num_stands = max(self.num_stands, 3 * size)
            while len(self.stands) > self.num_stands:
                self._free(self.stands.popitem(last=False)[1].env)
        return jax.tree.map(lambda *leaves: np.stack(leaves).reshape((*axes, *np.shape(leaves[0]))), *results)

    def _replay(self, task: PyTree, seed: Any, actions: Any) -> _Stand:
        env = self.spare.pop() if self.spare else self.make()
        self.set_task_fn(env, task)
        stand = _Stand(self._seen(env.reset(seed=int(seed))[0]), 0.0, False, env)
        for time, action in enumerate(actions):
            stand = self._advance(stand, action, time)
        return stand

    def _advance(self, stand: _Stand, action: Any, time: int) -> _Stand:
        if (env := stand.env) is None:
            raise ValueError(f"an episode was over after {time} steps, and was stepped after them: reset it")
        action = int(action) if self.is_discrete else np.asarray(action, env.action_space.dtype)
        observation, reward, terminated, truncated, _ = env.step(action)
        is_last = time + 1 >= self.max_steps
        if truncated and not terminated and not is_last:
            raise ValueError(
                f"environment must not truncate an episode before max_steps = {self.max_steps}, got one of "
                f"{time + 1} steps: give max_steps={time + 1}, or make it without its time limit"
            )
        if over := bool(terminated) or is_last:
            self._free(env)
        return _Stand(self._seen(observation), self.dtype.type(reward), bool(terminated), None if over else env)

    def _seen(self, observation: Any) -> PyTree:
        try:
            return jax.tree.map(lambda leaf: np.array(leaf, self.dtype), observation)  # its own array may change
        except (TypeError, ValueError) as error:
            raise ValueError(f"observation of environment must be numbers, got {short(observation)}") from error

    def _taken(self, episode: tuple) -> _Stand | None:
        return self.stands.pop(episode, None)

    def _keep(self, episode: tuple, stand: _Stand) -> _Stand:
        self.stands[episode] = stand
        return stand

    def _free(self, env: Any) -> None:
        if env is not None:
            self.spare.append(env)


def _bytes(tree: PyTree) -> bytes:
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


def _check_same(first: PyTree, second: PyTree) -> None:
    if _bytes(first) != _bytes(second):
        raise ValueError(
            "environment must do the same after the same task, seed and actions, but did not: it draws with another "
            "generator than env.np_random, or something lasts beyond env.reset(seed=seed) that set_task_fn does not set"
        )


def _maker(environment: Any) -> Callable[[], Any]:
    if not isinstance(environment, str):
        return check_callable("environment", environment, "()")
    import gymnasium

    try:
        gymnasium.spec(environment)
    except gymnasium.error.Error as error:
        raise ValueError(f"environment must be registered by gymnasium, got {environment!r}: {error}") from error
    return lambda: gymnasium.make(environment)


def _horizon(env: Any, max_steps: int | None) -> int:
    limit: int | None = getattr(getattr(env, "spec", None), "max_episode_steps", None)
    if limit is None and max_steps is None:
        raise ValueError("max_steps must be given for an environment whose spec has no max_episode_steps, got None")
    if limit is not None and max_steps is not None and max_steps > limit:
        raise ValueError(
            f"max_steps must be at most {limit}, the max_episode_steps at which environment truncates itself, got "
            f"{max_steps}: gymnasium.make(name, max_episode_steps={max_steps})"
        )
    return int(max_steps or limit or 0)

"""The Bayes-optimal policy of any environment without chance, of finitely many tasks, by a search through all that can
be known: for one's own small families, and to prove formulas of others.

Where nothing is drawn each task answers the same actions in one way. So what is known is which tasks have answered as
was seen, and in which state each of them is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_integer
from jaxmeta.rl.env import Discrete, Environment, call_reset, call_step, check_environment, flatten
from jaxmeta.rl.rollout import Agent
from jaxmeta.rl.tasks import num_stacked, task_at
from jaxmeta.rl.trials import Inputs
from jaxmeta.types import PyTree

MAX_BELIEFS = 200_000
_CHUNK = 64  # states that are stepped together


class World(NamedTuple):
    """All states of all tasks, M: of each whose it is, `[M]`, where its actions lead, the number of what they pay,
    whether they end the episode, and the number of what is seen then, `[M, A]`; of each task its first state and what
    is seen there, `[N]`; and what rewards there are, `[R]`, of which the first is 0, and observations, `[K, D]`."""

    task: np.ndarray
    following: np.ndarray
    paid: np.ndarray
    terminated: np.ndarray
    seen: np.ndarray
    start: np.ndarray
    seen_at_start: np.ndarray
    rewards: np.ndarray
    observations: np.ndarray


Seen = tuple[
    int, bool, int
]  # the numbers of the reward and of the observation, and between them whether it was the end


class Belief(NamedTuple):
    """Of an episode and its time, the states in which tasks may be, each of its own task; and what follows each action:
    {what is seen: (how many tasks show it, the index of what is believed then, −1 after the trial)}."""

    episode: int
    time: int
    states: tuple[int, ...]
    following: list[dict[Seen, tuple[int, int]]]


class Lookup(NamedTuple):
    """The best action of each belief `[B]`; codes of (belief, action, what is seen), in order, and the beliefs that
    they lead to, `[C]`; and what rewards `[R]` and observations `[K, D]` there are."""

    best: jax.Array
    codes: jax.Array
    beliefs: jax.Array
    rewards: jax.Array
    observations: jax.Array


def bayes_optimal(environment: Environment, tasks: PyTree, *, num_episodes: int = 1) -> tuple[float, Agent]:
    """The best that any policy can do in trials of equally likely tasks, and the policy that does it.

        V(b) = max_a Σ_o p(o | b, a) (r(o) + V(b'(a, o)))

    over all beliefs b that can be reached, o what is seen of an action: the reward, whether the episode ended, and the
    observation. Their number grows fast with the number of tasks and of steps. Computed on the host, once; the policy
    only looks up.

    Args:
      environment: with discrete actions and without chance: `reset` and `step` draw nothing.
      tasks: its params, stacked, an array of `finite_family`, such as `family.train.data`.
      num_episodes: E, episodes of the trial. The policy must not be run for more.

    Returns:
      The expected total reward of a trial, and the agent.

    Raises:
      ValueError: actions are real, something is drawn, tasks are not stacked, `num_episodes` is not a positive integer,
        or there is too much that can be known.

    >>> from jaxmeta.rl import families
    >>> maze = families.t_maze(length=2, cue="none")
    >>> bayes_optimal(maze.environment, maze.train.data, num_episodes=3)[0]
    2.5
    """
    check_environment("environment", environment)
    check_integer("num_episodes", num_episodes, minimum=1)
    space = environment.action_space
    if not isinstance(space, Discrete):
        raise ValueError(f"environment must have discrete actions, got {space!r}")
    world = _explored(environment, tasks, num_stacked("tasks", tasks), space.num_actions)
    beliefs = _enumerate(world, environment.max_steps, num_episodes)
    value, best = np.zeros(len(beliefs) + 1), np.zeros(len(beliefs), np.int32)  # the last is of nothing to come
    for i in sorted(range(len(beliefs)), key=lambda i: beliefs[i][:2], reverse=True):
        mean = lambda after: sum(n * (world.rewards[paid] + value[to]) for (paid, _, _), (n, to) in after.items())
        worth = [mean(after) / len(beliefs[i].states) for after in beliefs[i].following]
        value[i], best[i] = max(worth), np.argmax(worth)
    return float(value[0]), _agent(world, beliefs, best)


class _Numbered:
    """Rows of arrays, of which each different one has a number."""

    def __init__(self) -> None:
        self.number: dict[bytes, int] = {}
        self.rows: list[list[np.ndarray]] = []

    def of(self, tree: PyTree) -> np.ndarray:
        """The numbers of the rows `[n]`, of which new ones are kept."""
        leaves, self.structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
        numbers = []
        for row in zip(*leaves, strict=True):
            number = self.number.setdefault(b"".join(x.tobytes() for x in row), len(self.number))
            self.rows += [list(row)] if number == len(self.rows) else []
            numbers.append(number)
        return np.array(numbers)

    def stacked(self, numbers: np.ndarray) -> PyTree:
        """The rows of these numbers."""
        leaves = [np.stack(leaf) for leaf in zip(*(self.rows[i] for i in numbers), strict=True)]
        return jax.tree.unflatten(self.structure, leaves)

    def all(self) -> PyTree:
        return self.stacked(np.arange(len(self.rows)))


def _explored(environment: Environment, tasks: PyTree, num_tasks: int, num_actions: int) -> World:
    """By steps from the first states on, until nothing is new."""
    tasks = jax.vmap(lambda i: task_at(i, tasks))(jnp.arange(num_tasks))
    states, observations, rewards = _Numbered(), _Numbered(), _Numbered()
    rewards.of(np.zeros(1))  # before the first action
    reset = jax.jit(jax.vmap(partial(call_reset, environment), (None, 0)))
    first, state = _without_chance("reset", reset, tasks)
    start, seen_at_start = states.of((np.arange(num_tasks), state)), observations.of(_flat(first))
    each_action = jax.vmap(partial(call_step, environment), (None, None, 0, None))
    step = jax.jit(jax.vmap(each_action, (None, 0, None, 0)))
    found: list[tuple[np.ndarray, ...]] = []
    while len(found) < len(states.rows):
        numbers = np.minimum(len(found) + np.arange(_CHUNK), len(states.rows) - 1)
        which, old = states.stacked(numbers)
        args = old, jnp.arange(num_actions), jax.tree.map(lambda x, which=which: x[which], tasks)
        observation, state, reward, terminated, _ = jax.tree.map(_flattened, _without_chance("step", step, *args))
        seen, (of_task, was) = observations.of(_flat(observation)), states.stacked(np.repeat(numbers, num_actions))
        goes_on = jax.tree.map(lambda new, was, ended=terminated: np.where(_like(ended, new), was, new), state, was)
        columns = states.of((of_task, goes_on)), rewards.of(np.asarray(reward, float) + 0.0), terminated, seen
        found += list(zip(*(x.reshape(_CHUNK, num_actions) for x in columns), strict=True))[: len(set(numbers))]
    following, paid, terminated, seen = (np.stack(column) for column in zip(*found, strict=True))
    of_states = states.all()[0], following, paid, terminated, seen
    return World(*of_states, start, seen_at_start, rewards.all(), observations.all())


def _without_chance(name: str, fn: Callable, *args: PyTree) -> PyTree:
    """What `fn` returns, whatever the key."""
    found, again = (jax.tree.map(np.asarray, fn(jax.random.key(seed), *args)) for seed in (0, 1))
    if not all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (found, again)), strict=True)):
        raise ValueError(f"environment must be without chance, got one whose {name} draws with its key")
    return found


def _flattened(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, *x.shape[2:])


def _flat(observation: PyTree) -> np.ndarray:
    return np.asarray(jax.vmap(flatten)(observation)) + 0.0  # −0 is 0


def _like(mask: np.ndarray, x: np.ndarray) -> np.ndarray:
    return mask.reshape(-1, *[1] * (x.ndim - 1))


def _enumerate(world: World, max_steps: int, num_episodes: int) -> list[Belief]:
    """All that can be known; at first nothing, where the only action is to look."""
    index: dict[tuple[int, int, tuple[int, ...]], int] = {}
    beliefs = [Belief(-1, 0, tuple(world.start.tolist()), [])]

    def place(episode: int, time: int, states: list[int]) -> int:
        key = episode, time, tuple(states)  # in the order of tasks
        if episode == num_episodes:
            return -1
        if key not in index:
            index[key] = len(beliefs)
            beliefs.append(Belief(*key, []))
        return index[key]

    for belief in beliefs:  # which grows
        if len(beliefs) > MAX_BELIEFS:
            raise ValueError(f"tasks, max_steps and num_episodes must be smaller: there are over {MAX_BELIEFS} beliefs")
        for action in range(world.paid.shape[1] if belief.episode >= 0 else 1):
            groups: dict[Seen, list[int]] = {}
            for state in belief.states:
                seen, to = _answer(world, state, action, belief, max_steps)
                groups.setdefault(seen, []).append(to)
            after = {}
            for seen, states in groups.items():
                is_over = seen[1] or belief.episode < 0
                then = (belief.episode + 1, 0) if is_over else (belief.episode, belief.time + 1)
                after[seen] = (len(states), place(*then, states))
            belief.following.append(after)
    return beliefs


def _answer(world: World, state: int, action: int, belief: Belief, max_steps: int) -> tuple[Seen, int]:
    """What one task shows, and the state it is in then; where an episode ended, of the next one."""
    task = world.task[state]
    first = int(world.start[task]), int(world.seen_at_start[task])
    if belief.episode < 0:
        return (0, False, first[1]), state
    is_over = bool(world.terminated[state, action]) or belief.time + 1 == max_steps
    to, seen = first if is_over else (int(world.following[state, action]), int(world.seen[state, action]))
    return (int(world.paid[state, action]), is_over, seen), to


def _agent(world: World, beliefs: list[Belief], best: np.ndarray) -> Agent:
    """Looks up what follows from what was seen."""
    num_actions, num_rewards, num_seen = world.paid.shape[1], len(world.rewards), len(world.observations)
    if len(beliefs) * num_actions * num_rewards * 2 * num_seen >= 2**31:
        raise ValueError("tasks, max_steps and num_episodes must be smaller: there is too much to be seen")

    def code(belief: Any, action: Any, paid: Any, is_over: Any, seen: Any) -> Any:
        return (((belief * num_actions + action) * num_rewards + paid) * 2 + is_over) * num_seen + seen

    found = sorted(
        (code(i, action, *seen), to)
        for i, belief in enumerate(beliefs)
        for action, after in enumerate(belief.following)
        for seen, (_, to) in after.items()
    )

    def policy(key: jax.Array, lookup: Lookup, belief: jax.Array, inputs: Inputs):
        paid = jnp.argmin(jnp.abs(lookup.rewards - inputs.reward))
        seen = jnp.argmin(jnp.sum(jnp.abs(lookup.observations - flatten(inputs.observation)[None]), axis=1))
        is_over = inputs.done & ~inputs.no_action
        of_step = code(belief, jnp.maximum(inputs.action, 0), paid, is_over.astype(jnp.int32), seen)
        belief = lookup.beliefs[jnp.searchsorted(lookup.codes, of_step)]
        return lookup.best[belief], belief, ()

    codes, following = jnp.asarray(np.array(found).T, jnp.int32)
    lookup = Lookup(jnp.asarray(best), codes, following, jnp.asarray(world.rewards), jnp.asarray(world.observations))
    return Agent(policy, lookup, jnp.int32(0))

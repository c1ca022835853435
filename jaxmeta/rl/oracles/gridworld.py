"""The 5×5 gridworld: the optimal policy of who is told the goal, and the Bayes-optimal one of who is not.

While the goal is unknown, all that is learned is where it is not. So the Bayes-optimal policy is one walk through each
episode, planned beforehand, until the goal is stepped on; from then on it is known, and the shortest way is best. The
worth of the walks is a sum over goals: with horizon H, E episodes, and a goal at distance d that is first found in
episode e after τ steps,

    return of E episodes = −0.1 H E + 1.1 gain,   gain = (H + 1 − τ) + (E − e) (H + 1 − d)

The walks that maximise the sum of gains are found exactly: by dynamic programming over (cell, goals already visited)
within an episode, and branch and bound over what an episode leaves to the next.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_integer
from jaxmeta.rl.families.discrete import GRID_SIZE, MOVES, gridworld_goals
from jaxmeta.rl.families.navigation import Goal
from jaxmeta.rl.rollout import Agent, Transition
from jaxmeta.rl.trials import Inputs

_GOALS = gridworld_goals()
_DISTANCES = _GOALS.sum(-1)
_CELLS = np.stack(np.divmod(np.arange(GRID_SIZE**2), GRID_SIZE), -1)
_NEIGHBOURS = np.clip(_CELLS[:, None] + MOVES, 0, GRID_SIZE - 1) @ [GRID_SIZE, 1]  # [cell, action]
_GOAL_OF = np.full(GRID_SIZE**2, -1)
_GOAL_OF[_GOALS @ [GRID_SIZE, 1]] = np.arange(len(_GOALS))


class Search(NamedTuple):
    """What is known: the goal's cell, −1 if it is not; episodes over; the cell that the last action led to."""

    goal: jax.Array
    episode: jax.Array
    cell: jax.Array


def optimal_gridworld(task: Goal) -> Agent:
    """Told the goal: walk there and stay. It gets 16.1 − 1.1 d in an episode, with a goal d moves away, and
    11.07 on average.

    Args:
      task: a task of `families.gridworld`.

    >>> agent = optimal_gridworld(Goal(jnp.array([4, 4])))
    """

    def policy(key: jax.Array, goal: jax.Array, carry: tuple, inputs: Inputs):
        return _toward(jnp.argmax(inputs.observation), goal @ jnp.array([GRID_SIZE, 1])), carry, ()

    return Agent(policy, jnp.asarray(task.goal, jnp.int32))


def bayes_optimal_gridworld(num_episodes: int = 4, *, horizon: int = 15) -> tuple[np.ndarray, Agent]:
    """The best expected total reward over a trial that any policy can have, goals being equally likely, and the policy.

    Args:
      num_episodes: E, episodes of the trial. The policy must not be run for more.
      horizon: H, steps of an episode.

    Returns:
      The expected return of each episode, `[E]`, and the agent.

    Raises:
      ValueError: a count is not a positive integer.

    >>> returns, agent = bayes_optimal_gridworld(num_episodes=2)
    >>> returns.round(2).tolist()
    [4.0, 11.07]
    """
    check_integer("num_episodes", num_episodes, minimum=1)
    check_integer("horizon", horizon, minimum=1)
    actions = _walks(num_episodes, horizon)
    return _returns(actions), Agent(_search_then_stay, jnp.asarray(actions), Search(*jnp.array([-1, 0, 0], jnp.int32)))


def gridworld_belief(transitions: Transition) -> jax.Array:
    """The probability of each of the 25 cells to be the goal, before each step of a trial: the exact posterior.

    Where nobody was paid the goal is not, and where somebody was it is; of all that is left each is as likely.

    Args:
      transitions: of one trial of `families.gridworld` from its beginning on, `[T]`, of whatever agent.

    Returns:
      `[T, 25]`, of cell number 5x + y; entry t knows what the steps before t brought.

    >>> from jaxmeta.rl import Discrete, families, oracles, rollout, trial
    >>> agent, grid = oracles.random_policy(Discrete(5)), families.gridworld()
    >>> _, played = rollout(jax.random.key(0), trial(grid.environment), *agent, Goal(jnp.array([4, 4])))
    >>> belief = gridworld_belief(played)
    >>> belief.shape, int((belief[0] > 0).sum()), round(float(belief[0].max()), 4)
    ((15, 25), 21, 0.0476)
    """
    is_there = transitions.next_observation > 0.5
    agrees = is_there == (transitions.reward > 0)[:, None]  # with what the step paid, were that cell the goal
    prior = jnp.asarray(_GOAL_OF >= 0)
    before = jnp.append(prior[None], agrees[:-1], axis=0)
    possible = jnp.cumprod(before, axis=0)
    return possible / jnp.sum(possible, axis=1, keepdims=True)


def _search_then_stay(key: jax.Array, actions: jax.Array, carry: Search, inputs: Inputs):
    found = ~inputs.no_action & (inputs.reward > 0) & (carry.goal < 0)
    goal = jnp.where(found, carry.cell, carry.goal)
    episode = carry.episode + (inputs.done & ~inputs.no_action)
    cell = jnp.argmax(inputs.observation)
    action = jnp.where(goal < 0, actions[episode, inputs.time], _toward(cell, goal))
    return action, Search(goal, episode, jnp.asarray(_NEIGHBOURS, jnp.int32)[cell, action]), ()


def _toward(cell: jax.Array, goal: jax.Array) -> jax.Array:
    (x, y), (to_x, to_y) = jnp.divmod(cell, GRID_SIZE), jnp.divmod(goal, GRID_SIZE)
    conditions = [to_y > y, to_x > x, to_y < y, to_x < x]
    return jnp.select(conditions, [1, 2, 3, 4], 0).astype(jnp.int32)


@functools.cache
def _walks(num_episodes: int, horizon: int) -> np.ndarray:
    """The best walks, as actions `[E, H]`."""
    _, walks = _best(0, num_episodes, horizon)
    return np.array(walks, np.int32)


def _best(visited: int, num_left: int, horizon: int) -> tuple[int, tuple]:
    """The largest sum of gains in the `num_left` episodes that are left, and the walks that have it."""
    if num_left == 0:
        return 0, ()
    visits, gains, walk_of = _search(visited, num_left, horizon)
    bounds = gains + np.array([_bound(visit, num_left - 1, horizon) for visit in visits])
    most, best = -1, ()
    for i in np.argsort(-bounds):
        if bounds[i] <= most:
            break
        gain, walks = _best(int(visits[i]), num_left - 1, horizon)
        if gains[i] + gain > most:
            most, best = int(gains[i] + gain), (walk_of(i), *walks)
    return most, best


def _bound(visited: int, num_left: int, horizon: int) -> int:
    """No walk gains more: as if one goal could be found each step, each from its distance on, in the next episode."""
    if num_left == 0:
        return 0
    distances = np.sort(_DISTANCES[[not visited >> goal & 1 for goal in range(len(_GOALS))]])
    bound, step = 0, 0
    for distance in distances:
        step = max(step + 1, distance)
        told = max(horizon + 1 - distance, 0)
        bound += max(horizon + 1 - step, 0) + (num_left - 1) * told
    return int(bound)


def _search(visited: int, num_left: int, horizon: int):
    """All sets of goals that one episode can end with, the most that each can gain, and the walk that does."""
    keys, gains, history = np.array([visited * GRID_SIZE**2]), np.zeros(1, int), []
    for step in range(1, horizon + 1):
        visits, cells = np.divmod(keys, GRID_SIZE**2)
        cells = _NEIGHBOURS[cells]  # [state, action]
        goal = _GOAL_OF[cells]
        is_new = (goal >= 0) & ~(visits[:, None] >> np.maximum(goal, 0) & 1).astype(bool)
        told = np.maximum(horizon + 1 - _DISTANCES[goal], 0)
        gains = (gains[:, None] + is_new * (horizon + 1 - step + (num_left - 1) * told)).ravel()
        keys = ((visits[:, None] | is_new << np.maximum(goal, 0)) * GRID_SIZE**2 + cells).ravel()
        order = np.lexsort((-gains, keys))
        keys, first = np.unique(keys[order], return_index=True)
        gains = gains[order][first]
        history.append(order[first])
    order = np.lexsort((-gains, keys // GRID_SIZE**2))
    visits, first = np.unique((keys // GRID_SIZE**2)[order], return_index=True)
    ends = order[first]

    def walk_of(i: int) -> tuple[int, ...]:
        state, actions = ends[i], list[int]()
        for origin in reversed(history):
            state, action = divmod(int(origin[state]), len(MOVES))
            actions.insert(0, action)
        return tuple(actions)

    return visits, gains[ends], walk_of


def _returns(actions: np.ndarray) -> np.ndarray:
    """The mean over goals of each episode's return, from the walks."""
    num_episodes, horizon = actions.shape
    found: list[tuple[int, int] | None] = [None] * len(_GOALS)
    for episode in range(num_episodes):
        cell = 0
        for step in range(horizon):
            cell = _NEIGHBOURS[cell, actions[episode, step]]
            goal = _GOAL_OF[cell]
            if goal >= 0 and found[goal] is None:
                found[goal] = (episode, step + 1)
    gains = np.zeros((num_episodes, len(_GOALS)))
    for goal, first in enumerate(found):
        if first is not None:
            gains[first[0], goal] = horizon + 1 - first[1]
            gains[first[0] + 1 :, goal] = max(horizon + 1 - _DISTANCES[goal], 0)
    return (1.1 * gains - 0.1 * horizon).mean(-1)

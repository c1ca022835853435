"""Small worlds with a number of states, where the best that can be done is known: random MDPs and a grid with a goal.

States are shown as one-hot vectors.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_integer
from jaxmeta.rl.env import Discrete, Environment, Family, check_sizes
from jaxmeta.rl.families.navigation import Goal
from jaxmeta.rl.tasks import family, finite_family


class TabularMDP(NamedTuple):
    """A task: P(s' | s, a) `[S, A, S]`, and the mean rewards `[S, A]`.

    Attributes:
      transitions: P(s' | s, a), `[S, A, S]`.
      rewards: `[S, A]`, the means; each reward has the standard deviation 1 around them.
    """

    transitions: jax.Array
    rewards: jax.Array


def tabular_mdp(*, num_states: int = 10, num_actions: int = 5, horizon: int = 10) -> Family:
    """Random MDPs: P(· | s, a) ~ Dirichlet(1, .., 1), rewards N(μ(s, a), 1) with μ ~ N(1, 1), start in state 0.

    Duan et al., "RL²: Fast Reinforcement Learning via Slow Reinforcement Learning" (2016), section 3.2,
    https://arxiv.org/abs/1611.02779; Osband, Russo, Van Roy, "(More) Efficient Reinforcement Learning via Posterior
    Sampling" (2013), https://arxiv.org/abs/1306.0940

    Args:
      num_states: S, states, at least 1; state 0 is where an episode starts.
      num_actions: A, actions, at least 1.
      horizon: steps of an episode, at least 1, which never terminates.

    Returns:
      A `Family`; every task is new, so that train and test tasks follow the same distribution.

    Raises:
      ValueError: a count is not a positive integer.

    >>> mdp = tabular_mdp(num_states=4, num_actions=2)
    >>> mdp.train.sample(jax.random.key(0), mdp.train.data).transitions.shape
    (4, 2, 4)
    """
    check_integer("num_states", num_states, minimum=1)
    check_integer("num_actions", num_actions, minimum=1)
    check_integer("horizon", horizon, minimum=1)
    observe = lambda state: jax.nn.one_hot(state, num_states)

    def reset(key: jax.Array, params: TabularMDP):
        return observe(jnp.int32(0)), jnp.int32(0)

    def step(key: jax.Array, state: jax.Array, action: jax.Array, params: TabularMDP):
        by_action = (num_states, num_actions)
        check_sizes(params, transitions=(*by_action, num_states), rewards=by_action)
        noise_key, next_key = jax.random.split(key)
        reward = params.rewards[state, action] + jax.random.normal(noise_key, dtype=params.rewards.dtype)
        # The smallest s' with u < P(1) + .. + P(s'): one random number where a categorical draws S.
        cumulative = jnp.cumsum(params.transitions[state, action])
        u = jax.random.uniform(next_key, dtype=cumulative.dtype) * cumulative[-1]
        state = jnp.minimum(jnp.sum(cumulative <= u), num_states - 1).astype(jnp.int32)
        return observe(state), state, reward, jnp.bool_(False)

    def sample(key: jax.Array) -> TabularMDP:
        transitions_key, rewards_key = jax.random.split(key)
        weights = jax.random.exponential(transitions_key, (num_states, num_actions, num_states))  # Dirichlet(1)
        rewards = 1 + jax.random.normal(rewards_key, (num_states, num_actions))
        return TabularMDP(weights / weights.sum(-1, keepdims=True), rewards)

    return family(Environment(reset, step, Discrete(num_actions), horizon), sample)


GRID_SIZE = 5
MOVES = np.array([[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]], np.int32)  # stay, up, right, down, left


def gridworld_goals() -> np.ndarray:
    """The 21 cells that may be the goal, `[21, 2]`: all but the start (0, 0) and the three around it.

    Each is (x, y), 0 to 4.
    """
    cells = np.stack(np.meshgrid(*[np.arange(GRID_SIZE, dtype=np.int32)] * 2, indexing="ij"), -1).reshape(-1, 2)
    return cells[cells.max(-1) >= 2]


def gridworld() -> Family:
    """A grid of 5×5 cells with a hidden goal: +1 for each step that ends on it, −0.1 for any other, for 15 steps.

    Actions: stay, up, right, down, left; an episode starts in (0, 0) and never terminates. The observation is the cell,
    one-hot `[25]`, number 5x + y. Four episodes make the paper's trial.

    Zintgraf et al., "VariBAD: A Very Good Method for Bayes-Adaptive Deep RL via Meta-Learning" (2020), section 5.1,
    https://arxiv.org/abs/1910.08348

    Returns:
      A `Family`. Train and test tasks are the same 21 goals, as in the paper: the best policy has to know them all.

    >>> grid = gridworld()
    >>> grid.train.sample(jax.random.key(0), grid.train.data).goal.shape
    (2,)
    """
    observe = lambda cell: jax.nn.one_hot(cell[0] * GRID_SIZE + cell[1], GRID_SIZE**2)

    def reset(key: jax.Array, params: Goal):
        cell = jnp.zeros(2, jnp.int32)
        return observe(cell), cell

    def step(key: jax.Array, cell: jax.Array, action: jax.Array, params: Goal):
        cell = jnp.clip(cell + jnp.asarray(MOVES)[action], 0, GRID_SIZE - 1)
        reward = jnp.where(jnp.all(cell == params.goal), jnp.asarray(1.0, float), -0.1)
        return observe(cell), cell, reward, jnp.bool_(False)

    goals = Goal(gridworld_goals())
    environment = Environment(reset, step, Discrete(len(MOVES)), max_steps=15, observe_time=True)
    return finite_family(environment, goals, goals)

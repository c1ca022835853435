"""Families from gymnax's own environments. What they draw inside `reset` is pinned, what gives the task away is hidden.

gymnax is imported when one of these is called, not before.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.rl.env import Environment, Family
from jaxmeta.rl.gymnax import Pinned, from_gymnax, make_gymnax
from jaxmeta.rl.tasks import family, finite_family
from jaxmeta.types import PyTree


def cartpole(*, has_either_direction: bool = False) -> Family:
    """CartPole with varied physics: masses of the cart and the pole, the pole's length, the force, for 200 steps.

    masscart ~ U(0.5, 2) kg, masspole ~ U(0.05, 0.5) kg, length ~ U(0.25, 1) m, which is half of the pole's, and
    force_mag ~ U(5, 15) N. All of these one policy balances, whatever they are; not so if the force may have either
    direction.

    Args:
      has_either_direction: whether in half of the tasks the two actions are the other way round, force_mag < 0: which
        half is not seen in an observation, and no policy without memory balances both.

    Returns:
      A `Family` whose task is gymnax's `EnvParams`; train and test tasks follow the same distribution.

    >>> family = cartpole()
    >>> family.environment.action_space
    Discrete(num_actions=2)
    """
    environment, default = _wrapped("CartPole-v1", max_steps=200)

    def sample(key: jax.Array) -> PyTree:
        low, high = jnp.array([[0.5, 0.05, 0.25, 5.0], [2.0, 0.5, 1.0, 15.0]])
        cart, pole, length, force = jax.random.uniform(key, (4,), minval=low, maxval=high)
        if has_either_direction:
            force *= jax.random.rademacher(jax.random.fold_in(key, 1), (), force.dtype)
        derived = {"total_mass": cart + pole, "polemass_length": pole * length}  # not recomputed by gymnax
        return default.replace(masscart=cart, masspole=pole, length=length, force_mag=force, **derived)

    return family(environment, sample)


def pendulum() -> Family:
    """Pendulum with gravity g ~ U(5, 15) m/s², for 200 steps of a torque within ±2 N m.

    Returns:
      A `Family` whose task is gymnax's `EnvParams`; train and test tasks follow the same distribution.

    >>> pendulum().environment.max_steps
    200
    """
    environment, default = _wrapped("Pendulum-v1", max_steps=200)
    return family(environment, lambda key: default.replace(g=jax.random.uniform(key, minval=5.0, maxval=15.0)))


def reacher() -> Family:
    """Reacher, an arm with two joints, and a goal anywhere within its reach of 2, uniform over the disc; 100 steps.

    gymnax shows the goal; here it is hidden, and the reward exp(−distance²) is what tells it.

    Returns:
      A `Family` whose task is `Pinned(params, {"goal_xy": goal})`; train and test tasks follow the same distribution.

    >>> reacher().environment.max_steps
    100
    """
    environment, default = _wrapped("Reacher-misc", max_steps=100)

    def sample(key: jax.Array) -> Pinned:
        radius_key, angle_key = jax.random.split(key)
        radius = 2 * jnp.sqrt(jax.random.uniform(radius_key))
        angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
        return Pinned(default, {"goal_xy": radius * jnp.array([jnp.cos(angle), jnp.sin(angle)])})

    return family(_map_observation(environment, lambda observation: observation[:6]), sample)


def meta_maze() -> Family:
    """MetaMaze, 9×9: find the hidden cell that pays 10, be put somewhere else, come back; 200 steps from the centre.

    The agent sees the 3×3 cells around it, its last action and reward, and the time. gymnax ends an episode where it
    happens to be put on the goal; here it never ends.

    Miconi, Rawal, Clune, Stanley, "Backpropamine" (2019), https://arxiv.org/abs/2002.10585

    Returns:
      A `Family` whose task is `Pinned(params, {"goal": cell})`; every fifth cell is a test task.

    >>> meta_maze().environment.action_space
    Discrete(num_actions=4)
    """
    maze, default = make_gymnax("MetaMaze-misc")
    environment = from_gymnax(maze, max_steps=200)

    def step(key: jax.Array, state: PyTree, action: jax.Array, params: PyTree):
        *outcome, terminated, info = environment.step(key, state, action, params)
        return *outcome, jnp.zeros_like(terminated), info

    return _hidden_goal(environment._replace(step=step), default.replace(normalize_time=True), np.asarray(maze.coords))


def four_rooms() -> Family:
    """Four rooms with a hidden goal that pays 1 and ends the episode; a third of the moves slip; 100 steps.

    gymnax shows the goal; here the agent sees its own cell alone, scaled to [0, 1].

    Sutton, Precup, Singh, "Between MDPs and semi-MDPs" (1999), https://doi.org/10.1016/S0004-3702(99)00052-1

    Returns:
      A `Family` whose task is `Pinned(params, {"goal": cell})`; every fifth cell is a test task.

    >>> four_rooms().environment.action_space
    Discrete(num_actions=4)
    """
    rooms, default = make_gymnax("FourRooms-misc")
    environment = _map_observation(from_gymnax(rooms, max_steps=100), lambda observation: observation[:2] / 12)
    cells = np.asarray(rooms.coords)
    is_start = (cells == np.asarray(rooms.pos_fixed)).all(-1)
    return _hidden_goal(environment, default, cells[~is_start])


def _wrapped(name: str, max_steps: int) -> tuple[Environment, PyTree]:
    env, default = make_gymnax(name)
    return from_gymnax(env, max_steps=max_steps), default


def _map_observation(environment: Environment, fn: Callable[[jax.Array], jax.Array]) -> Environment:
    def reset(key: jax.Array, params: PyTree):
        observation, state = environment.reset(key, params)
        return fn(observation), state

    def step(key: jax.Array, state: PyTree, action: jax.Array, params: PyTree):
        observation, *rest = environment.step(key, state, action, params)
        return fn(observation), *rest

    return environment._replace(reset=reset, step=step)


def _hidden_goal(environment: Environment, params: PyTree, cells: np.ndarray) -> Family:
    """One task for each cell; every fifth is a test task."""
    is_test = np.arange(len(cells)) % 5 == 2
    tasks = lambda goals: Pinned(jax.tree.map(lambda leaf: np.stack([leaf] * len(goals)), params), {"goal": goals})
    return finite_family(environment, tasks(cells[~is_test]), tasks(cells[is_test]))

"""Krazy World: grids of tiles whose effects, colours and controls have to be found out anew in every task."""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_flag, check_integer
from jaxmeta.rl.env import Discrete, Environment, Family
from jaxmeta.rl.tasks import family

MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]], np.int32)  # up, right, down, left, in (row, column)
FIRST_ENERGY, MORE_ENERGY = 12, 8


class Tile(enum.IntEnum):
    """What a cell is, and what happens to who lands on it."""

    NORMAL = 0
    GOAL = 1  # pays 1, once; the episode goes on
    ICE = 2  # is slid over in the direction of the move, for no energy, up to a wall
    DEATH = 3  # ends the episode
    WALL = 4  # is not entered
    LOCK = 5  # is not entered without the key
    KEY = 6  # is picked up
    TELEPORTER = 7  # leads to the next teleporter in reading order, after the last to the first
    ENERGY = 8  # gives 8 more moves, once


class KrazyWorld(NamedTuple):
    """A task.

    Attributes:
      grid: `[S, S]`, the `Tile` of each cell.
      start: `[2]`, the cell where episodes start, an index into `grid`.
      colors: `[9]`, the colour that each `Tile` is shown in, 0 to 8.
      moves: `[4, 2]`, by how many cells each action goes, −1, 0 or 1.
    """

    grid: jax.Array
    start: jax.Array
    colors: jax.Array
    moves: jax.Array


class State(NamedTuple):
    """The tiles that are left, the agent's cell, moves that it can still make, and whether it has the key."""

    grid: jax.Array
    position: jax.Array
    energy: jax.Array
    has_key: jax.Array


def krazy_world(
    *, size: int = 10, num_goals: int = 3, horizon: int = 100, swap_colors: bool = True, swap_dynamics: bool = True
) -> Family:
    """A grid of tiles of nine kinds (`Tile`), in colours that mean something else in each task: find the goals.

    The four actions move by one cell. A move costs one of 12 units of energy, whether or not something is in the way;
    without energy the agent can no longer move, which ends the episode. What is picked up comes back with the next
    episode. The observation is the local one of the paper, the 3×3 cells around the agent, each a basis vector of its
    colour, zero outside of the grid: `[81]`.

    A tenth of the cells each is ice, death and energy; there are two teleporters, and a room in a corner behind a wall
    with one lock in it, which the key and the start are outside of. One goal is in there, the others are more than two
    moves from the start. The tiles are the paper's, this way of laying them out is not.

    Stadie, Yang, Houthooft, Chen, Duan, Wu, Abbeel, Sutskever, "Some Considerations on Learning to Explore via
    Meta-Reinforcement Learning" (2018), section 4.1 and appendix A, https://arxiv.org/abs/1803.01118

    Args:
      size: S, cells in a row, at least 6.
      num_goals: goals, 1 to `size`, one of them locked in.
      horizon: steps of an episode, at least 1.
      swap_colors: whether each task has colours of its own; otherwise tile i has colour i.
      swap_dynamics: whether each task permutes the actions; otherwise they are up, right, down, left.

    Returns:
      A `Family`; every task is new, so that train and test tasks follow the same distribution.

    Raises:
      ValueError: `size` is not an integer of at least 6, or a count is not a positive one; the goals do not fit.

    >>> world = krazy_world()
    >>> task = world.train.sample(jax.random.key(0), world.train.data)
    >>> [int((task.grid == tile).sum()) for tile in (Tile.GOAL, Tile.DEATH, Tile.TELEPORTER, Tile.LOCK)]
    [3, 10, 2, 1]
    """
    check_integer("size", size, minimum=6)
    check_integer("num_goals", num_goals, minimum=1)
    check_integer("horizon", horizon, minimum=1)
    check_flag("swap_colors", swap_colors)
    check_flag("swap_dynamics", swap_dynamics)
    if num_goals > size:
        raise ValueError(f"num_goals must be at most size, {size}, got {num_goals}")

    def reset(key: jax.Array, task: KrazyWorld):
        state = State(task.grid, task.start, jnp.int32(FIRST_ENERGY), jnp.bool_(False))
        return _observe(state, task), state

    def step(key: jax.Array, state: State, action: jax.Array, task: KrazyWorld):
        state, reward, is_dead = _step(state, task.moves[action])
        return _observe(state, task), state, reward, is_dead

    def sample(key: jax.Array) -> KrazyWorld:
        uniforms = jax.random.uniform(key, (12, size**2))  # at once: each draw takes long to compile
        grid, start = _draw(uniforms[:10], size, num_goals)
        colors = jnp.argsort(uniforms[10, : len(Tile)]) if swap_colors else jnp.arange(len(Tile))
        moves = jnp.argsort(uniforms[11, : len(MOVES)]) if swap_dynamics else jnp.arange(len(MOVES))
        return KrazyWorld(grid, start, colors.astype(jnp.int32), jnp.asarray(MOVES)[moves])

    return family(Environment(reset, step, Discrete(len(MOVES)), horizon), sample)


def _observe(state: State, task: KrazyWorld) -> jax.Array:
    around = jax.lax.dynamic_slice(jnp.pad(state.grid, 1, constant_values=-1), state.position, (3, 3))
    return jax.nn.one_hot(jnp.where(around < 0, -1, task.colors[around]), len(Tile)).ravel()


def _step(state: State, move: jax.Array) -> tuple[State, jax.Array, jax.Array]:
    position = _slide(state, move)
    has_moved = jnp.any(position != state.position)
    tile = jnp.where(has_moved, state.grid[tuple(position)], Tile.NORMAL)
    is_taken = (tile == Tile.GOAL) | (tile == Tile.KEY) | (tile == Tile.ENERGY)
    grid = state.grid.at[tuple(position)].set(jnp.where(is_taken, Tile.NORMAL, state.grid[tuple(position)]))
    energy = state.energy - 1 + jnp.where(tile == Tile.ENERGY, MORE_ENERGY, 0)
    position = jnp.where(tile == Tile.TELEPORTER, _next_teleporter(grid, position), position)
    after = State(grid, position, energy, state.has_key | (tile == Tile.KEY))
    return after, jnp.asarray(tile == Tile.GOAL, float), (tile == Tile.DEATH) | (energy < 1)


def _slide(state: State, move: jax.Array) -> jax.Array:
    """The cell where a move ends: behind all the ice, or on the last of it, or where it began."""
    size = len(state.grid)
    cells = state.position[None, :] + jnp.outer(jnp.arange(1, size + 1, dtype=jnp.int32), move)
    tiles = state.grid[tuple(jnp.clip(cells, 0, size - 1).T)]
    is_inside = jnp.all((cells >= 0) & (cells < size), axis=-1)
    can_enter = is_inside & (tiles != Tile.WALL) & ((tiles != Tile.LOCK) | state.has_key)
    num_ice = jnp.sum(jnp.cumprod(can_enter & (tiles == Tile.ICE)))
    return state.position + (num_ice + can_enter[num_ice]).astype(jnp.int32) * move


def _next_teleporter(grid: jax.Array, position: jax.Array) -> jax.Array:
    here = position[0] * len(grid) + position[1]
    steps_ahead = (jnp.arange(grid.size) - here - 1) % grid.size
    there = jnp.argmin(jnp.where(grid.ravel() == Tile.TELEPORTER, steps_ahead, grid.size))
    return jnp.stack(jnp.divmod(there, len(grid))).astype(jnp.int32)


def _draw(uniforms: jax.Array, size: int, num_goals: int) -> tuple[jax.Array, jax.Array]:
    """The tiles and the start. Each kind of tile goes to random ones of the cells that are free for it."""
    orders = jnp.argsort(uniforms[:9], axis=-1)
    height, width = (2 + uniforms[9, :2] * (size // 2 - 2)).astype(jnp.int32)
    row, column = (jnp.where(u < 0.5, jnp.arange(size), size - 1 - jnp.arange(size)) for u in uniforms[9, 2:4])
    row, column = row[:, None], column[None, :]
    wall = ((row == height) & (column <= width)) | ((column == width) & (row <= height))
    is_corner, is_outside = (row == height) & (column == width), (row > height) | (column > width)

    lock, start = _first(orders[0], wall & ~is_corner, 1), _first(orders[1], is_outside, 1)
    from_lock, from_start = _distance(lock), _distance(start)
    few, everywhere, off_the_lock = size**2 // 10, ~start, from_lock > 2
    grid = jnp.where(lock, jnp.int32(Tile.LOCK), jnp.where(wall, Tile.WALL, Tile.NORMAL))
    placed = (
        (Tile.KEY, 1, is_outside),
        (Tile.GOAL, 1, ~wall & ~is_outside),
        (Tile.GOAL, num_goals - 1, from_start > 2),
        (Tile.TELEPORTER, 2, everywhere),
        (Tile.ENERGY, few, everywhere),
        (Tile.ICE, few, off_the_lock),
        (Tile.DEATH, few, off_the_lock),
    )
    for order, (tile, count, where) in zip(orders[2:], placed, strict=True):
        grid = jnp.where(_first(order, where & ~start & (grid == Tile.NORMAL), count), tile, grid)
    return grid, _cell(start)


def _first(order: jax.Array, allowed: jax.Array, count: int) -> jax.Array:
    """The mask of the `count` cells that are first in the order, of those allowed."""
    in_order = allowed.ravel()[order]
    chosen = in_order & (jnp.cumsum(in_order) <= count)
    return jnp.zeros_like(chosen).at[order].set(chosen).reshape(allowed.shape)


def _cell(mask: jax.Array) -> jax.Array:
    """(row, column) of the one that is true."""
    return jnp.stack(jnp.divmod(jnp.argmax(mask), len(mask))).astype(jnp.int32)


def _distance(mask: jax.Array) -> jax.Array:
    """Moves `[S, S]` to the cell that is true, if nothing is in the way."""
    index, (row, column) = jnp.arange(len(mask)), _cell(mask)
    return jnp.abs(index - row)[:, None] + jnp.abs(index - column)[None, :]

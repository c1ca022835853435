"""Worlds in which what matters was seen before: a cue at the beginning of a corridor, and a key found in the dark.

What the best policy gets is a formula in both.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_choice, check_integer
from jaxmeta.rl.env import Discrete, Environment, Family
from jaxmeta.rl.families.discrete import MOVES
from jaxmeta.rl.tasks import family, finite_family

CUES = ("start", "behind", "none")
BACK, AHEAD, UP, DOWN = range(4)


class TMaze(NamedTuple):
    """A task: which arm of the T pays.

    Attributes:
      arm: `()`, 0 the upper, 1 the lower one.
    """

    arm: jax.Array | np.ndarray


class KeyAndDoor(NamedTuple):
    """A task: two cells, `[2]` each.

    Attributes:
      key: (x, y) of the key.
      door: (x, y) of the door.
    """

    key: jax.Array
    door: jax.Array


def t_maze(*, length: int = 10, cue: Literal["start", "behind", "none"] = "start") -> Family:
    """A corridor with an arm up and an arm down at its end, one of which pays 1; what tells which was seen long before.

    Actions: back, ahead, up, down. An episode starts at one end of the corridor, `length` steps from the junction at
    the other, where up and down lead into an arm and end it; elsewhere they do nothing. There is time for twice the
    way. The observation is `[4]`: at the start, in the corridor, whose cells look alike, at the junction; and the cue,
    1 for up and −1 for down where it is seen, else 0. In a trial the arm stays, and the best expected returns are:

    | cue      | is seen                                        | with memory, in E episodes | without any |
    |----------|------------------------------------------------|----------------------------|-------------|
    | "start"  | at the start                                   | E                          | E / 2       |
    | "behind" | one step back from it: it has to be looked for | E                          | E / 2       |
    | "none"   | nowhere: by what an earlier episode paid       | E − 1/2                    | E / 2       |

    After Bakker, "Reinforcement Learning with Long Short-Term Memory" (2001),
    https://papers.nips.cc/paper/2001/hash/a38b16173474ba8b1a95bcbc30d3b8a5-Abstract.html, and the passive and active
    T-mazes of Ni, Ma, Eysenbach, Bacon, "When Do Transformers Shine in RL? Decoupling Memory from Credit Assignment"
    (2023), https://arxiv.org/abs/2307.03864

    Args:
      length: L, cells from the start to the junction, at least 1.
      cue: where it is seen.

    Returns:
      A `Family` of two tasks, for training and test alike.

    Raises:
      ValueError: `length` is not a positive integer, or `cue` is no name.

    >>> maze = t_maze(length=3)
    >>> maze.environment.reset(jax.random.key(0), TMaze(jnp.int32(1)))[0].tolist()
    [1.0, 0.0, 0.0, -1.0]
    """
    check_integer("length", length, minimum=1)
    check_choice("cue", cue, CUES)
    first = -1 if cue == "behind" else 0
    seen_at = {"start": 0, "behind": -1, "none": length + 1}[cue]

    def observe(place: jax.Array, params: TMaze) -> jax.Array:
        sign = jnp.where(place == seen_at, 1.0 - 2.0 * params.arm, 0.0)
        at = jnp.stack([place == 0, (place != 0) & (place < length), place == length])
        return jnp.append(at.astype(float), sign)

    def reset(key: jax.Array, params: TMaze):
        place = jnp.int32(0)
        return observe(place, params), place

    def step(key: jax.Array, place: jax.Array, action: jax.Array, params: TMaze):
        is_choice = (place == length) & (action >= UP)
        is_right = is_choice & (action - UP == params.arm)
        move = jnp.where(action >= UP, 0, 2 * action - 1)
        place = jnp.clip(place + move, first, length).astype(jnp.int32)
        return observe(place, params), place, is_right.astype(float), is_choice

    environment = Environment(reset, step, Discrete(4), max_steps=2 * (length + 1 - first))
    arms = TMaze(np.arange(2, dtype=np.int32))
    return finite_family(environment, arms, arms)


def key_to_door(*, size: int = 9, max_steps: int = 50) -> Family:
    """A dark room with a key and a door that are not shown: 1 for the first step onto the key, 1 for that onto the door
    after it.

    Actions: stay, up, right, down, left; an episode starts in the middle, with neither, and never terminates. The
    observation is the cell, one-hot, number size · x + y: whether the key was found is told by the reward alone. Told
    where they are an episode has 2 if there are as many steps as d(start, key) + d(key, door), which 50 are in a room
    of 9 by 9, 1 if there are for the key, else 0; d counts moves.

    Laskin et al., "In-Context Reinforcement Learning with Algorithm Distillation" (2022),
    https://arxiv.org/abs/2210.14215

    Args:
      size: cells of a side, at least 2.
      max_steps: steps of an episode, at least 1.

    Returns:
      A `Family`; key and door are drawn from all cells but the middle, one each, so that there are 6,320 tasks in a
      room of 9 by 9, of which none is kept for the test.

    Raises:
      ValueError: a number is wrong.

    >>> room = key_to_door(size=5)
    >>> room.train.sample(jax.random.key(0), room.train.data).key.shape
    (2,)
    """
    check_integer("size", size, minimum=2)
    check_integer("max_steps", max_steps, minimum=1)
    middle = size // 2
    observe = lambda cell: jax.nn.one_hot(cell[0] * size + cell[1], size**2)

    def reset(key: jax.Array, params: KeyAndDoor):
        cell = jnp.full(2, middle, jnp.int32)
        return observe(cell), (cell, jnp.int32(0))

    def step(key: jax.Array, state: tuple[jax.Array, jax.Array], action: jax.Array, params: KeyAndDoor):
        cell, num_found = state
        cell = jnp.clip(cell + jnp.asarray(MOVES)[action], 0, size - 1)
        sought = jnp.where(num_found == 0, params.key, params.door)
        found = (num_found < 2) & jnp.all(cell == sought)
        return observe(cell), (cell, num_found + found), found.astype(float), jnp.bool_(False)

    def sample(key: jax.Array) -> KeyAndDoor:
        first, second = jax.random.randint(key, (2,), 0, jnp.array([size**2 - 1, size**2 - 2]))
        places = jnp.stack([first, second + (second >= first)])  # apart
        places += places >= middle * size + middle  # all but the middle
        return KeyAndDoor(*jnp.stack(jnp.divmod(places, size), axis=-1).astype(jnp.int32))

    return family(Environment(reset, step, Discrete(len(MOVES)), max_steps), sample)

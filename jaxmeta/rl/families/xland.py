"""Rulesets of XLand-MiniGrid: a room, objects, and a goal and rules about them that are nowhere to be seen.

The environment is the package xminigrid, which comes with `pip install 'jaxmeta[xland]'`. This is the only file that
knows it, and it is imported when `xland` is called. Rulesets are made here; no benchmark of theirs is downloaded.
"""

from collections.abc import Callable, Sequence
from math import comb, perm
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_choice, check_flag, check_integer
from jaxmeta.rl.env import Discrete, Environment, Family, strong
from jaxmeta.rl.gymnax import in_32_bits
from jaxmeta.rl.tasks import finite_family

NUM_ACTIONS = 6  # of xminigrid, whose ids all of these are
OUTSIDE, WALL, DOOR_CLOSED, DOOR_OPEN = 0, 2, 9, 10
SHAPES = (3, 4, 5, 7, 11, 12)  # ball, square, pyramid, key, hex, star: what can be picked up
COLORS = (1, 2, 3, 4, 5, 6, 8, 9, 10, 11)  # all but that of the floor
GOALS = {"hold": 1, "near": 3}  # its number of each kind of goal,
RULES = (1, 2)  # and those of the rules that make another object of one: held, or near
GOAL_LENGTH, RULE_LENGTH = 5, 7
SMALLEST = {1: 5, 2: 9, 4: 9}  # cells in a row, for so many rooms

Basis: TypeAlias = tuple[Sequence[int], Sequence[int]] | None  # ids of what is seen and of colours; None shows the ids


class Ruleset(NamedTuple):
    """A task, in the encoding of xminigrid.

    Attributes:
      goal: `[5]`, the number of its kind and the (shape, colour) that it is about.
      rules: `[R, 7]`, of each the number of its kind, the (shape, colour) that it is about and the one that it makes.
      objects: `[O, 2]`, the (shape, colour) of what lies in the room as an episode begins.
    """

    goal: jax.Array | np.ndarray
    rules: jax.Array | np.ndarray
    objects: jax.Array | np.ndarray


def xland(
    *,
    size: int = 9,
    num_rooms: int = 1,
    num_objects: int = 4,
    num_rules: int = 0,
    goals: Sequence[str] = ("hold", "near"),
    num_shapes: int = 6,
    num_colors: int = 10,
    num_train: int = 1000,
    num_test: int = 200,
    seed: int = 0,
    view_size: int = 5,
    horizon: int | None = None,
    one_hot: bool = True,
) -> Family:
    """XLand-MiniGrid: a ruleset says which object pays, held or approached, and which become others; find it out.

    The ruleset stays through a trial; where the objects lie, and the agent, is drawn anew in each episode, as there.
    The reward of an episode is 1 − 0.9 t/H, t the steps that it took, at the goal, which ends it, and 0 elsewhere. The
    six actions: forward, turn right, turn left, pick up, put down, open or close. The agent sees V × V cells in front
    of it, through walls, and the way that it faces; neither goal, nor rules, nor what it holds.

    A goal is about one object among distractors. Rules are links of a chain that ends there: the first object of it
    lies in the room, and each rule makes the next one of it, where it is held or the agent comes near.

    Nikulin et al., "XLand-MiniGrid: Scalable Meta-Reinforcement Learning Environments in JAX" (2024),
    https://arxiv.org/abs/2312.12044

    Args:
      size: cells in a row, the walls among them: at least 5, or 9 where there are several rooms.
      num_rooms: 1, 2 or 4, with doors between them.
      num_objects: O, what lies in the rooms at first, distractors among it.
      num_rules: R, links of the chain to the object that the goal is about, at least 0.
      goals: the kinds of goals there are, of "hold" and "near".
      num_shapes: of objects, 1 to 6.
      num_colors: of objects, 1 to 10; with the shapes there are so many times as many objects.
      num_train: training rulesets, all different.
      num_test: test rulesets, all different; what lies together in one of them does in none to train on.
      seed: of the rulesets.
      view_size: V, odd, at least 3.
      horizon: H, steps of an episode; 3 `size`² if None.
      one_hot: whether a cell is seen as basis vectors, of what it is and of its colour, as far as there are any in this
        family, zero for the floor; otherwise as xminigrid's two ids of them, for a network that looks these up. Either
        way the observation is flat: all that cells are, all their colours, and the four directions.

    Returns:
      A `Family` of finitely many tasks.

    Raises:
      ImportError: xminigrid is not installed.
      ValueError: an argument is wrong; objects do not fit into the rooms, or there are not as many rulesets.
    """
    check_integer("num_rooms", num_rooms, minimum=1)
    if num_rooms not in SMALLEST:
        raise ValueError(f"num_rooms must be one of {', '.join(map(str, SMALLEST))}, got {num_rooms}")
    check_integer("size", size, minimum=SMALLEST[num_rooms])
    _check_view(view_size, horizon, one_hot)
    train, test = rulesets(
        num_train,
        num_test,
        num_objects=num_objects,
        num_rules=num_rules,
        goals=goals,
        num_shapes=num_shapes,
        num_colors=num_colors,
        seed=seed,
    )
    num_free = (size - 2) ** 2 // num_rooms  # at least; the agent needs one
    if num_objects >= num_free:
        raise ValueError(f"num_objects must be less than {num_free}, the free cells of size {size}, got {num_objects}")
    horizon = 3 * size**2 if horizon is None else horizon
    doors = (DOOR_CLOSED, DOOR_OPEN) if num_rooms > 1 else ()
    basis = ((OUTSIDE, WALL, *doors, *SHAPES[:num_shapes]), COLORS[:num_colors]) if one_hot else None
    return finite_family(_environment(size, num_rooms, view_size, horizon, basis), train, test)


def rulesets(
    num_train: int,
    num_test: int,
    *,
    num_objects: int,
    num_rules: int,
    goals: Sequence[str],
    num_shapes: int,
    num_colors: int,
    seed: int,
) -> tuple[Ruleset, Ruleset]:
    """Those to train on and those to test on, stacked, all of them different.

    >>> options = {"num_objects": 2, "num_rules": 1, "goals": ("hold",), "num_shapes": 2, "num_colors": 2, "seed": 0}
    >>> train, test = rulesets(20, 4, **options)
    >>> train.goal.shape, train.rules.shape, test.objects.shape
    ((20, 5), (20, 1, 7), (4, 2, 2))
    """
    for name, count in {"num_train": num_train, "num_test": num_test, "num_objects": num_objects}.items():
        check_integer(name, count, minimum=1)
    check_integer("num_rules", num_rules, minimum=0)
    for name, count, all_of_them in (("num_shapes", num_shapes, SHAPES), ("num_colors", num_colors, COLORS)):
        check_integer(name, count, minimum=1)
        if count > len(all_of_them):
            raise ValueError(f"{name} must be at most {len(all_of_them)}, which there are, got {count}")
    check_integer("seed", seed, minimum=0)
    if isinstance(goals, str) or not isinstance(goals, Sequence) or not goals:
        raise ValueError(f"goals must be some of {', '.join(GOALS)}, as in ('hold',), got {goals!r}")
    for goal in goals:
        check_choice("goals", goal, tuple(GOALS))
    kinds, num_kinds = sorted(set(goals)), num_shapes * num_colors
    others = comb(max(0, num_kinds - num_rules - 1), num_objects - 1)
    there = len(kinds) * perm(num_kinds, num_rules + 1) * len(RULES) ** num_rules * others
    if num_train + num_test > there:
        raise ValueError(
            f"num_train and num_test must be at most the {there} rulesets that there are of "
            f"{num_objects} objects of {num_kinds} and {num_rules} rules, got {num_train} and {num_test}: more "
            "num_shapes or num_colors make more"
        )
    rng = np.random.default_rng(seed)
    objects = np.array([(shape, color) for shape in SHAPES[:num_shapes] for color in COLORS[:num_colors]], np.uint8)
    train, test = _split(lambda: _drawn(rng, objects, num_objects, num_rules, kinds), num_train, num_test)
    stack = lambda some: Ruleset(*(np.stack(parts) for parts in zip(*some, strict=True)))
    return stack(train), stack(test)


def _split(draw: Callable[[], Ruleset], num_train: int, num_test: int) -> tuple[list[Ruleset], list[Ruleset]]:
    """Rulesets that differ, of things that lie together in training, or at test, and never in both: were it by ruleset,
    what lies there would tell of which no goal is left to train on."""
    wanted, is_test = (num_train, num_test), dict[bytes, bool]()
    found: tuple[dict[bytes, Ruleset], dict[bytes, Ruleset]] = ({}, {})
    missed, patience = 0, 100 * (num_train + num_test)
    while any(len(rulesets) < number for rulesets, number in zip(found, wanted, strict=True)):
        drawn, n = draw(), len(is_test)
        turn = num_test * n % (num_train + num_test) < num_test  # the first, and then their share
        side = is_test.setdefault(drawn.objects.tobytes(), turn)
        before = len(found[side])
        if before < wanted[side]:
            found[side].setdefault(b"".join(part.tobytes() for part in drawn), drawn)
        missed = 0 if len(found[side]) > before else missed + 1
        if missed > patience:
            there = " and ".join(str(len(rulesets)) for rulesets in found)
            raise ValueError(
                f"num_train and num_test must be fewer, or in the proportion of whole sets of objects, {num_train} and "
                f"{num_test} are not there: found were {there}; more num_shapes or num_colors make more"
            )
    train, test = (list(rulesets.values()) for rulesets in found)
    return train, test


def _drawn(
    rng: np.random.Generator, objects: np.ndarray, num_objects: int, num_rules: int, kinds: Sequence[str]
) -> Ruleset:
    """A chain of objects, of which the first lies in the room, and distractors in an order that says nothing."""
    chosen = rng.permutation(len(objects))[: num_rules + num_objects]
    chain, others = objects[chosen[: num_rules + 1]], chosen[num_rules + 1 :]
    goal, rules = np.zeros(GOAL_LENGTH, np.uint8), np.zeros((num_rules, RULE_LENGTH), np.uint8)
    goal[0], goal[1:3] = GOALS[kinds[int(rng.integers(len(kinds)))]], chain[-1]
    for rule, before, after in zip(rules, chain[:-1], chain[1:], strict=True):
        rule[0], rule[1:3], rule[3:5] = rng.choice(RULES), before, after
    # The last link is looked at first, so that each takes a step of its own.
    return Ruleset(goal, rules[::-1], objects[np.sort(np.append(chosen[0], others))])


def _check_view(view_size: int, horizon: int | None, one_hot: bool) -> None:
    check_integer("view_size", view_size, minimum=3)
    if view_size % 2 == 0:
        raise ValueError(f"view_size must be odd, the agent in the middle of its last row, got {view_size}")
    if horizon is not None:
        check_integer("horizon", horizon, minimum=1)
    check_flag("one_hot", one_hot)


def _environment(size: int, num_rooms: int, view_size: int, horizon: int, basis: Basis) -> Environment:
    try:
        with in_32_bits():
            from xminigrid.envs.xland import XLandMiniGrid
            from xminigrid.types import RuleSet, TimeStep
    except ImportError as error:
        raise ImportError("this family needs xminigrid: pip install 'jaxmeta[xland]'") from error
    env: Any = XLandMiniGrid()
    params = env.default_params(
        height=size, width=size, max_steps=horizon, view_size=view_size, grid_type=f"R{num_rooms}"
    )

    # Their state carries the ruleset, which is our task, and the key of the reset, which no step needs.
    def reset(key: jax.Array, task: Ruleset):
        ruleset = RuleSet(goal=task.goal, rules=_padded(task.rules), init_tiles=task.objects)
        timestep = env.reset(params.replace(ruleset=ruleset), key)
        return _seen(timestep, basis), strong(timestep.state.replace(key=(), goal_encoding=(), rule_encoding=()))

    def step(key: jax.Array, state: Any, action: jax.Array, task: Ruleset):
        state = state.replace(goal_encoding=task.goal, rule_encoding=_padded(task.rules))
        timestep = env.step(params, TimeStep(state, *[()] * 4), action)
        state = strong(timestep.state.replace(goal_encoding=(), rule_encoding=()))
        reward, terminated = jnp.asarray(timestep.reward, float), jnp.asarray(timestep.discount == 0, bool)
        return _seen(timestep, basis), state, reward, terminated

    return Environment(reset, step, Discrete(NUM_ACTIONS), horizon)


def _padded(rules: jax.Array | np.ndarray) -> jax.Array:
    """Where there is none, the one that does nothing: they loop over at least one."""
    return jnp.asarray(rules) if len(rules) else jnp.zeros((1, RULE_LENGTH), jnp.uint8)


def _seen(timestep: Any, basis: Basis) -> jax.Array:
    seen = [timestep.observation[..., i] for i in (0, 1)]
    if basis is not None:
        seen = [ids[..., None] == np.array(known, np.uint8) for ids, known in zip(seen, basis, strict=True)]
    facing = jax.nn.one_hot(timestep.state.agent.direction, 4)
    return jnp.concatenate([*(jnp.ravel(part).astype(facing.dtype) for part in seen), facing])

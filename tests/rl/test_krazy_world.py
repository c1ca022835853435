"""Krazy World: what each tile does, by hand and against a plain loop on random grids; how tasks are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import rl
from jaxmeta.rl import families
from jaxmeta.rl.families.krazy_world import FIRST_ENERGY, MORE_ENERGY, MOVES, Tile

pytestmark = pytest.mark.usefixtures("strict_shapes")

SIGNS = ".G*X#LKTE"  # in the order of Tile
UP, RIGHT, DOWN, LEFT = range(4)
COLORS = jnp.arange(len(Tile), dtype=jnp.int32)


def world(*rows, colors=COLORS, moves=MOVES):
    """A task from its picture, of which walls make 6×6; @ is the start."""
    grid, start = np.full((6, 6), Tile.WALL), None
    for row, signs in enumerate(rows):
        for column, sign in enumerate(signs):
            grid[row, column], start = (Tile.NORMAL, (row, column)) if sign == "@" else (SIGNS.index(sign), start)
    return families.KrazyWorld(*(jnp.asarray(x, jnp.int32) for x in (grid, start, colors, moves)))


@jax.jit
def play(task, actions):
    """States, rewards, ends and observations, from the first step to the last, whether or not the agent lives."""
    environment = families.krazy_world().environment
    observation, state = environment.reset(jax.random.key(0), task)

    def step(state, action):
        observation, state, reward, terminated = environment.step(jax.random.key(0), state, action, task)
        return state, (state, reward, terminated, observation)

    return observation, jax.lax.scan(step, state, actions)[1]


def outcome(task, *actions):
    """Of the last action: (row, column), reward, end; and the state."""
    last = len(actions) - 1
    _, (states, reward, terminated, _) = play(task, jnp.array([*actions, *[UP] * 24][:24]))
    state = jax.tree.map(lambda leaf: leaf[last], states)
    return tuple(map(int, state.position)), float(reward[last]), bool(terminated[last]), state


@pytest.mark.parametrize(("action", "cell"), [(UP, (0, 1)), (RIGHT, (1, 2)), (DOWN, (2, 1)), (LEFT, (1, 0))])
def test_a_move_costs_one_unit_of_energy(action, cell):
    *result, state = outcome(world("...", ".@.", "..."), action)
    assert result == [cell, 0, False] and state.energy == FIRST_ENERGY - 1


def test_the_edge_and_a_wall_are_not_passed_and_the_energy_is_spent():
    for rows, action, cell in (
        (("@.",), UP, (0, 0)),
        (("@.",), LEFT, (0, 0)),
        ((".....@",), RIGHT, (0, 5)),
        ((*".....", "@"), DOWN, (5, 0)),
        (("@#", "..."), RIGHT, (0, 0)),
    ):
        *result, state = outcome(world(*rows), action)
        assert result == [cell, 0, False] and state.energy == FIRST_ENERGY - 1


def test_a_goal_pays_once_and_the_episode_goes_on():
    task = world("@GG")
    assert outcome(task, RIGHT)[:3] == ((0, 1), 1, False)
    assert outcome(task, RIGHT, RIGHT)[:3] == ((0, 2), 1, False)
    assert outcome(task, RIGHT, RIGHT, LEFT)[:3] == ((0, 1), 0, False)


def test_death_ends_the_episode():
    assert outcome(world("@X"), RIGHT)[:3] == ((0, 1), 0, True)


def test_ice_is_slid_over_for_no_energy_as_far_as_it_goes():
    *result, state = outcome(world("@***G"), RIGHT)
    assert result == [(0, 4), 1, False] and state.energy == FIRST_ENERGY - 1
    assert outcome(world("@**X"), RIGHT)[:3] == ((0, 3), 0, True)
    assert outcome(world("@*T.T"), RIGHT)[:3] == ((0, 4), 0, False)
    assert outcome(world("@**#."), RIGHT)[:3] == ((0, 2), 0, False)
    assert outcome(world("@*****"), RIGHT)[:3] == ((0, 5), 0, False)
    assert outcome(world("@**#", "..G."), RIGHT, DOWN)[:3] == ((1, 2), 1, False)  # and on from the ice
    assert outcome(world("@**L."), RIGHT)[:3] == ((0, 2), 0, False)
    assert outcome(world("K@**L."), LEFT, RIGHT, RIGHT)[:3] == ((0, 4), 0, False)


def test_a_lock_opens_with_the_key():
    task = world("K@LG")
    assert outcome(task, RIGHT)[:3] == ((0, 1), 0, False)
    *result, state = outcome(task, LEFT, RIGHT, RIGHT, RIGHT)
    assert result == [(0, 3), 1, False] and state.has_key
    assert int(state.grid[0, 0]) == Tile.NORMAL and int(state.grid[0, 2]) == Tile.LOCK


def test_a_teleporter_leads_to_the_next_one():
    task = world("@T.", ".TG", "..T")
    assert outcome(task, RIGHT)[:3] == ((1, 1), 0, False)
    assert outcome(task, RIGHT, RIGHT)[:3] == ((1, 2), 1, False)
    assert outcome(task, DOWN, RIGHT)[:3] == ((2, 2), 0, False)
    assert outcome(task, DOWN, DOWN, RIGHT, RIGHT)[:3] == ((0, 1), 0, False)
    assert outcome(world("@T#T"), RIGHT, RIGHT)[:3] == ((0, 3), 0, False)  # staying on it leads nowhere
    assert outcome(world("@T"), RIGHT)[:3] == ((0, 1), 0, False)


def test_without_energy_it_is_over_and_energy_squares_give_more():
    task, actions = world("@....E"), [*[LEFT] * 6, *[RIGHT] * 18]
    *result, state = outcome(task, *actions[:11])
    assert result == [(0, 5), 0, False] and state.energy == FIRST_ENERGY - 11 + MORE_ENERGY
    assert int(state.grid[0, 5]) == Tile.NORMAL
    ends = play(task, jnp.array(actions))[1][2]
    assert not ends[: FIRST_ENERGY + MORE_ENERGY - 1].any() and ends[FIRST_ENERGY + MORE_ENERGY - 1]
    assert outcome(task, *[LEFT] * 7, *[RIGHT] * 5)[:3] == ((0, 5), 0, False)  # with the last unit
    assert outcome(task, *[LEFT] * 8, *[RIGHT] * 4)[:3] == ((0, 4), 0, True)


def loop(task, actions):
    """The rules once more, cell by cell."""
    grid, (row, column) = np.array(task.grid), map(int, task.start)
    energy, has_key, size = FIRST_ENERGY, False, len(grid)
    for action in actions:
        down, right = map(int, task.moves[action])
        reward, dead, moved = 0.0, False, False
        while True:
            to = (row + down, column + right)
            if not (0 <= to[0] < size and 0 <= to[1] < size) or grid[to] == Tile.WALL:
                break
            if grid[to] == Tile.LOCK and not has_key:
                break
            (row, column), moved = to, True
            if grid[to] != Tile.ICE:
                break
        energy -= 1
        if moved:
            tile = Tile(grid[row, column])
            if tile == Tile.GOAL:
                reward = 1.0
            elif tile == Tile.KEY:
                has_key = True
            elif tile == Tile.ENERGY:
                energy += MORE_ENERGY
            elif tile == Tile.DEATH:
                dead = True
            elif tile == Tile.TELEPORTER:
                places = [tuple(map(int, place)) for place in np.argwhere(grid == Tile.TELEPORTER)]
                row, column = places[(places.index((row, column)) + 1) % len(places)]
            if tile in (Tile.GOAL, Tile.KEY, Tile.ENERGY):
                grid[row, column] = Tile.NORMAL
        seen = np.zeros((3, 3, len(Tile)))
        for i in range(3):
            for j in range(3):
                there = (row + i - 1, column + j - 1)
                if 0 <= there[0] < size and 0 <= there[1] < size:
                    seen[i, j, task.colors[grid[there]]] = 1
        yield (row, column), reward, dead or energy <= 0, energy, has_key, seen.ravel()


def test_random_grids_against_a_loop():
    """All tiles as likely, 150 grids of 40 steps; every tile is landed on often."""
    rng = np.random.default_rng(0)
    tasks = families.KrazyWorld(
        rng.integers(0, len(Tile), (150, 6, 6), np.int32),
        rng.integers(0, 6, (150, 2), np.int32),
        np.array([rng.permutation(len(Tile)) for _ in range(150)], np.int32),
        np.array([rng.permutation(MOVES) for _ in range(150)], np.int32),
    )
    actions = rng.integers(0, 4, (150, 40), np.int32)
    _, (states, reward, terminated, observation) = jax.tree.map(np.array, jax.vmap(play)(tasks, actions))
    for n in range(150):
        own = jax.tree.map(lambda leaf, n=n: leaf[n], tasks)
        for t, expected in enumerate(loop(own, actions[n])):
            cell, paid, dead, energy, has_key, seen = expected
            state = jax.tree.map(lambda leaf, n=n, t=t: leaf[n, t], states)
            assert tuple(state.position) == cell and state.energy == energy and state.has_key == has_key
            assert reward[n, t] == paid and terminated[n, t] == dead
            np.testing.assert_array_equal(observation[n, t], seen)
    assert reward.sum() > 100 and states.has_key[:, -1].sum() > 50


def test_colors_change_what_is_seen_and_nothing_else():
    rows, colors = ("@*G", "KLT", "XET"), jnp.array([3, 1, 4, 0, 5, 8, 2, 6, 7])
    actions = jnp.array([DOWN, RIGHT, DOWN, LEFT])
    actions = jnp.concatenate([actions, jnp.full(20, UP)])
    first, plain = play(world(*rows), actions)
    recolored_first, recolored = play(world(*rows, colors=colors), actions)
    jax.tree.map(np.testing.assert_array_equal, recolored[:3], plain[:3])
    for seen, recolored_seen in ((first, recolored_first), (plain[3][0], recolored[3][0])):
        seen, recolored_seen = (np.asarray(leaf).reshape(9, len(Tile)) for leaf in (seen, recolored_seen))
        np.testing.assert_array_equal(recolored_seen[:, colors], seen)
        assert (seen != recolored_seen).any()


def test_what_is_picked_up_comes_back_in_the_next_episode():
    task, environment = world("K@G", "..."), families.krazy_world(horizon=2).environment
    trial = rl.trial(environment, num_episodes=2)
    policy = lambda key, actions, t, inputs: (actions[t], t + 1, ())
    actions = jnp.array([RIGHT, LEFT, RIGHT, LEFT])
    t = rl.rollout(jax.random.key(0), trial, policy, actions, jnp.int32(0), task)[1]
    np.testing.assert_array_equal(t.reward, [1, 0, 1, 0])
    np.testing.assert_array_equal(t.inputs.observation[2], t.inputs.observation[0])


@pytest.fixture(scope="module")
def drawn():
    family = families.krazy_world()
    sample = jax.jit(jax.vmap(lambda key: family.train.sample(key, ())))
    return jax.tree.map(np.array, sample(jax.random.split(jax.random.key(0), 400)))


def reachable(grid, start, closed):
    cells, found = [tuple(start)], {tuple(start)}
    for row, column in cells:
        for down, right in MOVES:
            to = (int(row + down), int(column + right))
            if min(to) >= 0 and max(to) < len(grid) and to not in found and grid[to] not in closed:
                found.add(to)
                cells.append(to)
    return found


def test_tasks_have_their_tiles_and_a_locked_room_with_one_goal(drawn):
    counts = [3, 10, 10, None, 1, 1, 2, 10]  # goals to energy
    for grid, start in zip(drawn.grid, drawn.start, strict=True):
        for tile, count in zip(list(Tile)[1:], counts, strict=True):
            assert count is None or (grid == tile).sum() == count
        assert grid[tuple(start)] == Tile.NORMAL
        outside = reachable(grid, start, (Tile.WALL, Tile.LOCK))
        opened = reachable(grid, start, (Tile.WALL,))
        assert len(opened) == (grid != Tile.WALL).sum()
        goals, (key,) = [tuple(goal) for goal in np.argwhere(grid == Tile.GOAL)], np.argwhere(grid == Tile.KEY)
        assert tuple(key) in outside and any(goal not in outside for goal in goals)
        assert all(np.abs(goal - start).sum() > 2 for goal in goals if goal in outside)
        (lock,) = np.argwhere(grid == Tile.LOCK)
        bad = np.argwhere((grid == Tile.ICE) | (grid == Tile.DEATH))
        assert np.abs(bad - lock).sum(-1).min() > 2
        assert 4 <= len(opened) - len(outside) - 1 <= 16


def test_tasks_differ_in_everything(drawn):
    assert len({grid.tobytes() for grid in drawn.grid}) == 400
    assert len({colors.tobytes() for colors in drawn.colors}) > 395
    np.testing.assert_array_equal(np.sort(drawn.colors, axis=-1), np.tile(np.arange(9), (400, 1)))
    controls, counts = np.unique(drawn.moves.reshape(400, -1), axis=0, return_counts=True)
    assert len(controls) == 24 and counts.max() < 3 * counts.min() + 10
    for corner in (drawn.grid[:, :5, :5], drawn.grid[:, :5, 5:], drawn.grid[:, 5:, :5], drawn.grid[:, 5:, 5:]):
        assert 60 < (corner == Tile.LOCK).any((1, 2)).sum() < 140
    shares = (drawn.grid == Tile.ICE).mean(0)
    assert shares.min() > 0.03 and shares.max() < 0.2  # everywhere


def test_without_swaps_colors_and_controls_are_the_same():
    family = families.krazy_world(size=6, num_goals=1, swap_colors=False, swap_dynamics=False)
    task = jax.jit(family.train.sample)(jax.random.key(0), ())
    np.testing.assert_array_equal(task.colors, COLORS)
    np.testing.assert_array_equal(task.moves, MOVES)
    assert task.grid.shape == (6, 6) and (task.grid == Tile.GOAL).sum() == 1
    with pytest.raises(ValueError, match="num_goals must be at most size, 6, got 7"):
        families.krazy_world(size=6, num_goals=7)

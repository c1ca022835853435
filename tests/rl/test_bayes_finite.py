"""The search through all that can be known, beside what is known of families by formulas and by walks, and in rollouts
of every task, in which nothing is drawn, so that the value is their mean."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import rl
from jaxmeta.rl import families, oracles
from jaxmeta.rl.oracles import bayes_finite


def mean_total(agent, environment, tasks, num_episodes):
    trial = rl.trial(environment, num_episodes=num_episodes)
    run = lambda task: rl.rollout(jax.random.key(0), trial, *agent, task)[1].reward.sum()
    return float(jnp.mean(jax.jit(jax.vmap(run))(jax.tree.map(jnp.asarray, tasks))))


def check(environment, tasks, num_episodes, expected):
    value, agent = oracles.bayes_optimal(environment, tasks, num_episodes=num_episodes)
    assert value == pytest.approx(expected, abs=1e-6)
    assert mean_total(agent, environment, tasks, num_episodes) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("cue", [*(pytest.param(cue, marks=pytest.mark.slow) for cue in ("start", "behind")), "none"])
def test_t_mazes_have_the_values_of_their_formulas(cue):
    maze = families.t_maze(length=2, cue=cue)
    check(maze.environment, maze.train.data, 3, oracles.bayes_optimal_t_maze(3, cue=cue)[0].sum())


@pytest.mark.slow
@pytest.mark.parametrize(("num_episodes", "horizon"), [(1, 8), (2, 4), (3, 3)])
def test_the_gridworld_has_the_value_of_its_walks(num_episodes, horizon):
    grid = families.gridworld()
    expected = oracles.bayes_optimal_gridworld(num_episodes, horizon=horizon)[0].sum()
    check(grid.environment._replace(max_steps=horizon), grid.train.data, num_episodes, expected)


@pytest.mark.slow
def test_a_small_dark_room_in_three_steps_by_hand():
    """Of 2 by 2 cells: the walk around sees the key always. In a third of the tasks it is the first cell, and then the
    door is seen too, in a third the second, and then the door half of the time, and in a third the last."""
    room = families.key_to_door(size=2, max_steps=3)
    cells = [cell for cell in itertools.product(range(2), repeat=2) if cell != (1, 1)]
    tasks = families.KeyAndDoor(*(np.array(of, np.int32) for of in zip(*itertools.permutations(cells, 2), strict=True)))
    check(room.environment, tasks, 1, 1.5)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            families.bernoulli_bandit(num_arms=2, num_pulls=2),
            "environment must be without chance, got one whose step draws",
        ),
        (families.navigation(), "environment must have discrete actions"),
    ],
)
def test_chance_and_real_actions_are_refused(family, message):
    tasks = jax.vmap(lambda key: family.train.sample(key, family.train.data))(jax.random.split(jax.random.key(0), 20))
    with pytest.raises(ValueError, match=message):
        oracles.bayes_optimal(family.environment, tasks)


def test_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(bayes_finite, "MAX_BELIEFS", 5)
    maze = families.t_maze(length=2)
    with pytest.raises(ValueError, match="tasks, max_steps and num_episodes must be smaller: there are over 5 beliefs"):
        oracles.bayes_optimal(maze.environment, maze.train.data, num_episodes=3)

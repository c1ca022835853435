"""The T-maze and the dark room: returns of formulas, by every policy without a memory and by shortest ways."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import rl
from jaxmeta.rl import families, oracles
from jaxmeta.rl.families.discrete import MOVES

CUES = ("start", "behind", "none")


def returns(agent, family, task, num_episodes):
    trial = rl.trial(family.environment, num_episodes=num_episodes)
    return rl.episode_returns(rl.rollout(jax.random.key(0), trial, *agent, task)[1], num_episodes)


@pytest.mark.parametrize("cue", [pytest.param("start", marks=pytest.mark.slow), "behind", "none"])
def test_who_remembers_gets_what_the_formula_says(cue):
    family = families.t_maze(length=4, cue=cue)
    expected, agent = oracles.bayes_optimal_t_maze(3, cue=cue)
    found = jax.jit(jax.vmap(lambda task: returns(agent, family, task, 3)))(families.TMaze(jnp.arange(2)))
    np.testing.assert_allclose(np.mean(found, axis=0), expected)


@pytest.mark.slow
def test_who_is_told_the_arm_gets_one_in_each_episode():
    run = lambda task: returns(oracles.optimal_t_maze(task), families.t_maze(length=4), task, 2)
    np.testing.assert_array_equal(jax.jit(jax.vmap(run))(families.TMaze(jnp.arange(2))), 1)


@pytest.mark.parametrize("cue", CUES)
def test_no_policy_without_a_memory_gets_more_than_half(cue):
    """All functions of the observation, of a corridor of two cells; in one episode, for each is alike."""
    environment = families.t_maze(length=2, cue=cue).environment
    reset, step = jax.jit(environment.reset), jax.jit(environment.step)
    shown, following = [], {}
    for arm, place in itertools.product(range(2), range(-1 if cue == "behind" else 0, 3)):
        task = families.TMaze(jnp.int32(arm))
        for action in range(4):
            after = step(jax.random.key(0), jnp.int32(place), jnp.int32(action), task)
            following[arm, place, action] = int(after[1]), float(after[2]), bool(after[3])
            shown.append(((arm, int(after[1])), tuple(after[0].tolist())))
        shown.append(((arm, 0), tuple(reset(jax.random.key(0), task)[0].tolist())))
    observation = dict(shown)
    kinds = sorted(set(observation.values()))

    def total(policy, arm):
        place = 0
        for _ in range(environment.max_steps):
            place, reward, is_over = following[arm, place, policy[observation[arm, place]]]
            if is_over:
                return reward
        return 0.0

    policies = (dict(zip(kinds, actions, strict=True)) for actions in itertools.product(range(4), repeat=len(kinds)))
    means = [(total(policy, 0) + total(policy, 1)) / 2 for policy in policies]
    assert max(means) == 0.5 and len(means) == 4 ** {"start": 4, "behind": 5, "none": 3}[cue]


def test_told_of_key_and_door_an_episode_has_what_the_shortest_ways_allow():
    """Every task of a room of 3 by 3 in 4 steps, beside a search through all that can be done."""
    size, num_steps = 3, 4
    family = families.key_to_door(size=size, max_steps=num_steps)
    cells = [cell for cell in itertools.product(range(size), repeat=2) if cell != (1, 1)]
    tasks = list(itertools.permutations(cells, 2))
    stacked = families.KeyAndDoor(*(jnp.array(of, jnp.int32) for of in zip(*tasks, strict=True)))
    agent = lambda task: oracles.optimal_key_to_door(task, size=size)
    found = jax.jit(jax.vmap(lambda task: returns(agent(task), family, task, 2)))(stacked)

    def most(key, door):
        reached = {((1, 1), 0): 0}
        for _ in range(num_steps):
            for (cell, held), _ in list(reached.items()):
                for move in MOVES:
                    after = tuple(np.clip(np.add(cell, move), 0, size - 1).tolist())
                    reached[after, held + (held < 2 and after == (key, door)[held])] = 0
        return max(held for _, held in reached)

    expected = np.array([most(*task) for task in tasks])
    np.testing.assert_array_equal(found, np.stack([expected, expected], axis=1))
    apart = lambda a, b: np.abs(np.subtract(a, b)).sum()
    ways = [(apart((1, 1), key), apart((1, 1), key) + apart(key, door)) for key, door in tasks]
    formula = np.sum(np.array(ways) <= num_steps, axis=1)
    np.testing.assert_array_equal(expected, formula)
    assert set(expected) == {1, 2}


def test_key_and_door_are_anywhere_but_in_the_middle_and_apart():
    family = families.key_to_door(size=3)
    tasks = jax.jit(jax.vmap(family.train.sample, (0, None)))(
        jax.random.split(jax.random.key(0), 2000), family.train.data
    )
    pairs = np.asarray(tasks.key @ jnp.array([3, 1])) * 9 + np.asarray(tasks.door @ jnp.array([3, 1]))
    expected = {a * 9 + b for a in range(9) for b in range(9) if a != b and 4 not in (a, b)}
    assert set(pairs.tolist()) == expected

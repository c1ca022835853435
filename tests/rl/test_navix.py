"""Navix' environments behind the adapter, beside Navix. Slow, and run where the extra is installed."""

import sys

import jax
import jax.numpy as jnp
import level_contract
import numpy as np
import pytest

from jaxmeta import rl


@pytest.fixture
def navix():
    return pytest.importorskip("navix", reason="needs the extra navix")


slow = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
for_navix = lambda test: [test := mark(test) for mark in slow][-1]
level = lambda key: ()


@for_navix
@pytest.mark.parametrize("name", ["Navix-DoorKey-Random-5x5-v0", "Navix-Dynamic-Obstacles-5x5-Random-v0"])
def test_steps_are_navixs(navix, name):
    env = navix.make(name)

    def reset(key, params):
        timestep = env.reset(key)
        return timestep.observation, timestep

    def step(key, timestep, action, params):
        after = env._step(timestep.replace(step_type=jnp.int32(0)), action)  # its `step` but for the auto-reset
        return after.observation, after, after.reward

    renew = lambda timestep, key: timestep.replace(state=timestep.state.replace(key=key))
    level_contract.steps_are_the_librarys(rl.from_navix(env), (), reset, renew, step, num_steps=30)


@for_navix
def test_every_task_is_a_layout(navix):
    level_contract.tasks_stay(rl.family(rl.from_navix("Navix-DoorKey-Random-6x6-v0", max_steps=6), level))


@for_navix
def test_what_moves_by_chance_moves_anew_in_each_episode(navix):
    family = rl.family(rl.from_navix("Navix-Dynamic-Obstacles-6x6-Random-v0", max_steps=5), level)
    played = level_contract.tasks_stay(family, num_tasks=4, num_episodes=6)
    followed = np.asarray(played.next_observation[played.inputs.done])
    assert len(np.unique(followed.reshape(len(followed), -1), axis=0)) > 4


@for_navix
def test_only_the_tasks_own_end_terminates(navix):
    """Along the way to the goal of an empty room, and on the spot; Navix' own limit, of 2 steps here, ends nothing."""
    FORWARD, RIGHT = 2, 1

    def play(environment, actions):
        trial = rl.trial(environment, num_steps=len(actions))
        policy = lambda key, params, time, inputs: (jnp.asarray(actions)[time], time + 1, ())
        task = environment.draw(jax.random.key(0), ())
        return jax.jit(lambda: rl.rollout(jax.random.key(1), trial, policy, (), jnp.int32(0), task)[1])()

    to_the_goal = np.array([FORWARD, FORWARD, RIGHT, FORWARD, FORWARD])
    limited = rl.from_navix(navix.make("Navix-Empty-5x5-v0", max_steps=2), max_steps=7)
    played = play(limited, to_the_goal)
    assert played.terminated.tolist() == [False] * 4 + [True] and not played.truncated.any()
    assert played.reward.tolist() == [0, 0, 0, 0, 1]
    played = play(rl.from_navix("Navix-Empty-5x5-v0", max_steps=5), to_the_goal)
    assert played.terminated[-1] and played.truncated[-1]
    played = play(rl.from_navix(navix.make("Navix-Empty-5x5-v0", max_steps=2)), np.array([RIGHT] * 6))
    assert played.truncated.tolist() == [False, True] * 3 and not played.terminated.any()


@for_navix
def test_a_learner_learns_on_it(navix):
    level_contract.is_learned_on(rl.family(rl.from_navix("Navix-Empty-Random-5x5-v0", max_steps=5), level))


@for_navix
def test_what_is_no_environment_is_refused_with_the_way_out(navix):
    environment = rl.from_navix("Navix-Empty-5x5-v0")
    assert environment.max_steps == 100 and environment.action_space == rl.Discrete(7)
    level_contract.level_of_another_size_is_refused(environment, rl.from_navix("Navix-Empty-6x6-v0"))
    with pytest.raises(ValueError, match=r"environment must be one of .*Navix-Empty-5x5-v0.*got 'Empty'"):
        rl.from_navix("Empty")
    with pytest.raises(ValueError, match=r"environment must have reset, step: one of Navix or its name; got 3"):
        rl.from_navix(3)
    with pytest.raises(ValueError, match=r"a task of Room must be a Level.*rl\.family.*got \(\)"):
        environment.reset(jax.random.key(0), ())


def test_where_navix_is_missing_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "navix", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmeta\[navix\]'"):
        rl.from_navix("Navix-Empty-5x5-v0")

"""Craftax' environments behind the adapter, beside Craftax. Slow, and run where the extra is installed."""

import sys

import jax
import jax.numpy as jnp
import level_contract
import numpy as np
import pytest

from jaxmeta import rl

CLASSIC = "Craftax-Classic-Symbolic-v1"


@pytest.fixture
def craftax():
    """Those of the classic one, of small worlds."""
    pytest.importorskip("craftax", reason="needs the extra craftax")
    from craftax.craftax_classic.envs import craftax_symbolic_env

    small = craftax_symbolic_env.StaticEnvParams(map_size=(16, 16))
    return craftax_symbolic_env.CraftaxClassicSymbolicEnv(small)


slow = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
for_craftax = lambda test: [test := mark(test) for mark in slow][-1]


@for_craftax
def test_steps_are_craftaxs(craftax):
    environment = rl.from_craftax(craftax, max_steps=50)
    limited = lambda params: params.replace(max_timesteps=50)
    step = lambda key, state, action, params: craftax.step_env(key, state, action, limited(params))[:3]
    level_contract.steps_are_the_librarys(
        environment, craftax.default_params, craftax.reset_env, lambda state, key: state, step, num_steps=40
    )


@for_craftax
def test_every_task_is_a_world_with_its_params(craftax):
    draw = lambda key: craftax.default_params.replace(zombie_health=jax.random.randint(key, (), 1, 9))
    family = rl.family(rl.from_craftax(craftax, max_steps=5), draw)
    keys = jax.random.split(jax.random.key(0), 6)
    tasks = jax.jit(jax.vmap(family.train.sample, (0, None)))(keys, family.train.data)
    assert len(np.unique(tasks.params.zombie_health)) > 2
    level_contract.tasks_stay(family)


@for_craftax
def test_death_terminates_and_a_time_limit_truncates(craftax):
    params = craftax.default_params
    environment = rl.from_craftax(craftax, max_steps=2)
    task = environment.draw(jax.random.key(0), params.replace(max_timesteps=1))
    trial = rl.trial(environment, num_steps=4)
    agent = rl.oracles.random_policy(environment.action_space)
    played = jax.jit(lambda task: rl.rollout(jax.random.key(1), trial, *agent, task)[1])(task)
    assert played.truncated.tolist() == [False, True] * 2 and not played.terminated.any()
    assert played.info["discount"].tolist() == [1, 0] * 2  # Craftax' end is the horizon's
    starved = task._replace(state=task.state.replace(player_health=jnp.int32(0)))
    played = jax.jit(lambda task: rl.rollout(jax.random.key(1), trial, *agent, task)[1])(starved)
    assert played.terminated.all()


@for_craftax
def test_a_learner_learns_on_it(craftax):
    level_contract.is_learned_on(rl.family(rl.from_craftax(craftax, max_steps=3), lambda key: craftax.default_params))


@for_craftax
def test_what_is_no_environment_is_refused_with_the_way_out(craftax):
    environment = rl.from_craftax(CLASSIC)
    assert environment.max_steps == 10_000 and environment.action_space == rl.Discrete(17)
    with pytest.raises(ValueError, match=r"name of one of Craftax, such as .*got 'Crafter'"):
        rl.from_craftax("Crafter")
    with pytest.raises(ValueError, match=r"environment must have step_env, .*: one of Craftax or its name; got 3"):
        rl.from_craftax(3)
    with pytest.raises(ValueError, match=r"a task of CraftaxClassic.* must be a Level.*rl\.family"):
        environment.reset(jax.random.key(0), craftax.default_params)


def test_where_craftax_is_missing_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "craftax.craftax_env", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmeta\[craftax\]'"):
        rl.from_craftax(CLASSIC)

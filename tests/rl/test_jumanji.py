"""Jumanji's environments behind the adapter, beside Jumanji. Slow, and run where the extra is installed."""

import sys

import jax
import jax.numpy as jnp
import level_contract
import numpy as np
import pytest

import jaxmeta
from jaxmeta import rl
from jaxmeta.rl.jumanji import JumanjiState


@pytest.fixture
def jumanji():
    return pytest.importorskip("jumanji", reason="needs the extra jumanji")


slow = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
for_jumanji = lambda test: [test := mark(test) for mark in slow][-1]
level = lambda key: ()


def maze(jumanji, **options):
    from jumanji.environments.routing.maze.generator import RandomGenerator

    return jumanji.make("Maze-v0", generator=RandomGenerator(5, 5), **options)


@for_jumanji
@pytest.mark.parametrize("name", ["Maze-v0", "Snake-v1", "Game2048-v1", "Minesweeper-v0"])
def test_steps_are_jumanjis(jumanji, name):
    """Actions of Minesweeper are pairs there, and the number of a pair here."""
    env = jumanji.make(name)

    def reset(key, params):
        state, timestep = env.reset(key)
        return timestep.observation, JumanjiState(state, jnp.int32(0))

    def step(key, state, action, params):
        action = jnp.stack(jnp.divmod(action, 10)) if name == "Minesweeper-v0" else action
        inner, timestep = env.step(state.state, action)
        return timestep.observation, JumanjiState(inner, state.time + 1), timestep.reward

    renew = lambda state, key: state._replace(state=state.state.replace(key=key))
    level_contract.steps_are_the_librarys(rl.from_jumanji(env, max_steps=20), (), reset, renew, step)


@for_jumanji
def test_every_task_is_a_maze(jumanji):
    level_contract.tasks_stay(rl.family(rl.from_jumanji(maze(jumanji), max_steps=6), level))


@for_jumanji
def test_what_is_drawn_on_the_way_is_new_in_each_episode(jumanji):
    family = rl.family(rl.from_jumanji("Game2048-v1", max_steps=4), level)
    played = level_contract.tasks_stay(family, num_tasks=2, num_episodes=6)
    boards = np.asarray(played.next_observation.board).reshape(6, 4, 2, -1)
    assert len(np.unique(boards[:, -1, 0], axis=0)) == 6


@for_jumanji
def test_a_time_limit_of_jumanjis_is_an_end_and_the_trials_is_none(jumanji):
    """Maze says discount 0 at its time_limit, LevelBasedForaging does not."""

    def ends(environment):
        played = level_contract.tasks_stay(rl.family(environment, level), num_tasks=1, num_episodes=2)
        assert not np.isnan(played.reward).any()
        last = np.flatnonzero(played.truncated[:, 0])
        return played.terminated[last, 0].tolist()

    assert ends(rl.from_jumanji(maze(jumanji, time_limit=3))) == [True, True]
    assert ends(rl.from_jumanji(maze(jumanji, time_limit=50), max_steps=3)) == [False, False]
    foraging = jumanji.wrappers.MultiToSingleWrapper(jumanji.make("LevelBasedForaging-v0", time_limit=3))
    assert ends(rl.from_jumanji(foraging)) == [False, False]


@for_jumanji
def test_an_episode_that_jumanji_cuts_off_pays_nan(jumanji):
    class Cut(jumanji.wrappers.Wrapper):
        def step(self, state, action):
            state, timestep = self._env.step(state, action)
            is_last = state.step_count == 2
            step_type = jnp.where(is_last, jumanji.types.StepType.LAST, timestep.step_type)
            return state, timestep.replace(step_type=step_type, discount=jnp.ones(()))

    environment = rl.from_jumanji(Cut(maze(jumanji)), max_steps=4)
    task = environment.draw(jax.random.key(0), ())
    agent = rl.oracles.random_policy(environment.action_space)
    _, played = rl.rollout(jax.random.key(1), rl.trial(environment), *agent, task)
    assert np.isnan(played.reward).tolist() == [False, True, False, False] and not played.terminated.any()
    exact = rl.from_jumanji(Cut(maze(jumanji)), max_steps=2)
    assert not np.isnan(rl.rollout(jax.random.key(1), rl.trial(exact), *agent, task)[1].reward).any()


@for_jumanji
@pytest.mark.parametrize("name", ["Maze-v0", "Minesweeper-v0"])
def test_a_learner_takes_jumanjis_action_mask(jumanji, name):
    """Masked actions are never played; without the mask they are."""
    env = maze(jumanji) if name == "Maze-v0" else jumanji.make(name)
    family = rl.family(rl.from_jumanji(env, max_steps=5), level)
    allowed = lambda observation: observation.action_mask.ravel() > 0

    def refused(played):
        mask = played.inputs.observation.action_mask.reshape(*played.action.shape, -1)
        return {"refused": jnp.sum(1 - jnp.take_along_axis(mask, played.action[..., None], -1))}

    masked = level_contract.is_learned_on(family, action_mask=allowed, metrics_fn=refused)
    free = level_contract.is_learned_on(family, metrics_fn=refused)
    assert masked["refused"] == 0 and (name == "Minesweeper-v0" or free["refused"] > 0)


@for_jumanji
def test_pearl_takes_jumanjis_action_mask(jumanji):
    """Its tasks are a list of mazes; masked actions are never played."""
    env = rl.from_jumanji(maze(jumanji), max_steps=5)
    levels = jax.vmap(env.draw, (0, None))(jax.random.split(jax.random.key(0), 2), ())
    family = rl.finite_family(env, levels, levels)

    def refused(played):
        mask = played.inputs.observation.action_mask
        return {"refused": jnp.sum((1 - jnp.take_along_axis(mask, played.action[..., None], -1))[..., 0] * played.mask)}

    learner = jaxmeta.pearl(
        family,
        jaxmeta.mlp_actor_critic(family, latent_size=2, hidden=(4,)),
        jaxmeta.mlp_encoder(family, latent_size=2, hidden=(4,)),
        num_train_tasks=2,
        visits=jaxmeta.Visits(num_prior_steps=10, num_posterior_steps=10),
        replay=jaxmeta.Replay(num_gradient_steps=2, batch_size=4, num_batch_tasks=2, capacity=40),
        action_mask=lambda observation: observation.action_mask > 0,
        metrics_fn=refused,
    )
    tasks = rl.IndexedTask(jnp.arange(2), levels, 2)
    _, metrics = jax.jit(learner.update)(jax.random.key(1), learner.init(jax.random.key(0)), tasks)
    assert metrics["refused"] == 0 and metrics["is_finite"]


@for_jumanji
def test_what_is_no_environment_for_a_trial_is_refused_with_the_way_out(jumanji):
    environment = rl.from_jumanji(maze(jumanji))
    assert environment.max_steps == 25 and environment.action_space == rl.Discrete(4)
    assert rl.from_jumanji("Tetris-v0").action_space == rl.Discrete(40)
    level_contract.level_of_another_size_is_refused(environment, rl.from_jumanji("Maze-v0"))
    with pytest.raises(ValueError, match=r"environment must be one of .*Maze-v0.*got 'Maze'"):
        rl.from_jumanji("Maze")
    with pytest.raises(ValueError, match=r"max_steps must be given for Game2048, which has no time_limit"):
        rl.from_jumanji("Game2048-v1")
    with pytest.raises(ValueError, match=r"max_steps must be at most 25, the time_limit of Maze.*got 26"):
        rl.from_jumanji(maze(jumanji), max_steps=26)
    with pytest.raises(ValueError, match=r"got it in AutoResetWrapper: a trial resets"):
        rl.from_jumanji(jumanji.wrappers.AutoResetWrapper(maze(jumanji)))
    with pytest.raises(ValueError, match=r"fewer actions than 2\*\*31, got 16679880978201"):
        rl.from_jumanji("JobShop-v0", max_steps=5)
    with pytest.raises(ValueError, match=r"a task of Maze must be a Level.*rl\.family.*got \(\)"):
        environment.reset(jax.random.key(0), ())
    with pytest.raises(ValueError, match=r"reward of step_env of Connector must be of shape \(\).*\(10,\)"):
        rl.family(rl.from_jumanji("Connector-v3"), level)


def test_where_jumanji_is_missing_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jumanji", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmeta\[jumanji\]'"):
        rl.from_jumanji("Maze-v0")

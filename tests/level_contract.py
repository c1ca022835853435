"""What holds of every library whose tasks are levels, beside that library; its tests call this in a venv of its own."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxmeta
from jaxmeta import rl


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def differ(first, second):
    return not all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


def steps_are_the_librarys(environment, params, reset, renew, step, num_steps=12):
    """Bit by bit: a level is what `reset(key, params)` of the library returns, (observation, state); an episode starts
    there with `renew(state, key)`, and goes as `step(key, state, action, params)`, (observation, state, reward). Params
    are traced in both, for the compiler rounds otherwise what it knows."""
    key = jax.random.key(3)
    level = jax.jit(environment.draw)(key, params)
    observation, state = jax.jit(reset)(jax.random.key_data(key), params)
    assert_same((level.observation, level.state), (observation, state))
    _, ours = environment.reset(jax.random.key(4), level)
    theirs = renew(state, jax.random.key_data(jax.random.key(4)))
    assert_same(ours, theirs)

    our_step, their_step = jax.jit(environment.step), jax.jit(step)
    for i in range(num_steps):
        action = jax.random.randint(jax.random.key(100 + i), (), 0, environment.action_space.num_actions)
        observation, ours, reward, *_ = our_step(jax.random.key(i), ours, action, level)
        expected, theirs, their_reward = their_step(jax.random.key_data(jax.random.key(i)), theirs, action, params)
        assert_same(observation, jax.tree.map(lambda leaf: jnp.asarray(leaf, float), expected))
        assert_same((ours, reward), (theirs, their_reward))


def tasks_stay(family, num_tasks=3, num_episodes=3):
    """In one program over tasks: each episode of a task starts from its level, and no two tasks have one level. Returns
    the transitions, `[steps, tasks]`."""
    trial = rl.trial(family.environment, num_episodes=num_episodes)
    agent = rl.oracles.random_policy(family.environment.action_space)

    def run(key):
        task_key, key = jax.random.split(key)
        task = family.train.sample(task_key, family.train.data)
        again = family.train.sample(task_key, family.train.data)
        return task, again, rl.rollout(key, trial, *agent, task, keep_states=True)[1]

    keys = jax.random.split(jax.random.key(0), num_tasks)
    tasks, again, played = jax.jit(jax.vmap(run, out_axes=(0, 0, 1)))(keys)
    assert_same(tasks, again)
    for i in range(num_tasks):
        task, begins = jax.tree.map(lambda leaf, i=i: leaf[i], tasks), np.flatnonzero(played.inputs.done[:, i])
        assert len(begins) >= num_episodes and begins[0] == 0
        for begin in begins:
            seen = jax.tree.map(lambda leaf, at=(begin, i): leaf[at], played.inputs.observation)
            assert_same(seen, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), task.observation))
        assert all(differ(task.state, jax.tree.map(lambda leaf, j=j: leaf[j], tasks.state)) for j in range(i))
    assert not np.isnan(played.reward).any()
    return played


def is_learned_on(family, **options):
    """One update of RL² is finite."""
    learner = jaxmeta.rl2(
        family, num_episodes=2, actor=jaxmeta.nn.gru(4), outer=jaxmeta.PPO(num_minibatches=1), **options
    )
    keys = jax.random.split(jax.random.key(2), 2)
    tasks = jax.vmap(family.train.sample, (0, None))(keys, family.train.data)
    state, metrics = jax.jit(learner.update)(jax.random.key(1), learner.init(jax.random.key(0)), tasks)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((metrics, state.meta_params)))
    return metrics


def level_of_another_size_is_refused(environment, other):
    level = other.draw(jax.random.key(0), ())
    try:
        environment.reset(jax.random.key(0), level)
    except ValueError as error:
        assert "level must be one of this" in str(error)
    else:
        raise AssertionError("was taken")

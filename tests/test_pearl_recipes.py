"""PEARL's recipes train beside what they are compared with, and build what they say."""

import json
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import rl
from jaxmeta.__main__ import main
from jaxmeta.algorithms import Replay, Visits
from jaxmeta.algorithms.sac import Experience
from jaxmeta.recipes.pearl import PEARL, told
from jaxmeta.rl import families

SMALL = {
    "num_outer_steps": 2,
    "num_tasks": 2,
    "num_eval_tasks": 4,
    "num_reference_steps": 1,
    "num_train_tasks": 3,
    "hidden": 4,
    "replay.num_gradient_steps": 2,
    "replay.num_batch_tasks": 2,
    "replay.batch_size": 2,
    "replay.num_context": 4,
    "replay.capacity": 200,
    "schedule": "cosine",
}


@pytest.mark.slow
def test_a_recipe_trains_beside_what_it_is_compared_with(tmp_path, schedule_ends_with_the_run):
    options = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", "pearl-navigation", "--out", str(tmp_path / "run"), *options]) == 0
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(found["metrics"]["return"]["mean"]) == 4
    assert set(found["references"]) == {"random", "optimal", "no context", "told the task"}
    best, *others = (
        found["references"][name]["return"]["mean"][0] for name in ("optimal", "random", "no context", "told the task")
    )
    assert best > max(others)
    for picture in ("trajectories", "belief", "adaptation_curve", "learning_curve"):
        assert (tmp_path / "run" / f"{picture}.png").exists()
    schedule_ends_with_the_run(tmp_path / "run")


@pytest.mark.parametrize("name", PEARL)
def test_a_recipe_builds_and_its_training_tasks_fit_its_learner(name):
    if name == "pearl-cheetah-vel":
        pytest.importorskip("brax", reason="needs the extra brax")
    experiment = PEARL[name].config().build()
    state = jax.eval_shape(experiment.learner.init, jax.random.key(0))
    sample = jax.vmap(experiment.train_tasks.sample, (0, None))
    tasks = jax.eval_shape(sample, jax.random.split(jax.random.key(1)), experiment.train_tasks.data)
    after, _ = jax.eval_shape(experiment.learner.update, jax.random.key(2), state, tasks)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert PEARL[name].minutes and experiment.protocol


def test_the_protocol_tells_visits_and_widths():
    config = PEARL["pearl-navigation"].config()
    protocol = replace(config, visits=Visits(num_prior_steps=30)).protocol()
    assert "visits of 30 + 100 steps" in protocol and "layers of 128, 128" in protocol
    protocol = replace(config, visits=Visits(num_prior_steps=30, num_posterior_steps=40, num_extra_steps=5)).protocol()
    assert "visits of 30 + 40 + 5 steps to 10 of" in protocol and "; probabilistic context, 16 numbers" in protocol
    visits = Visits(num_prior_steps=100, num_posterior_steps=200, infers_each_episode=True)
    protocol = replace(config, visits=visits, replay=replace(config.replay, is_context_partial=True)).protocol()
    assert "visits of 100 + 200 steps, a belief for each episode, to 10 of" in protocol
    assert "; probabilistic context of a beginning of a visit, 16 numbers" in protocol


@pytest.mark.parametrize(("num_posterior_steps", "metric"), [(99, "reward"), (100, "return"), (None, "return")])
def test_a_learning_curve_is_of_what_training_tells(num_posterior_steps, metric):
    visits, small = Visits(num_prior_steps=30, num_posterior_steps=num_posterior_steps), Replay(capacity=200)
    config = replace(PEARL["pearl-navigation"].config(), visits=visits, replay=small, hidden=(2,), num_train_tasks=2)
    experiment = config.build()
    state = jax.eval_shape(experiment.learner.init, jax.random.key(0))
    sample = jax.vmap(experiment.train_tasks.sample, (0, None))
    tasks = jax.eval_shape(sample, jax.random.split(jax.random.key(1)), experiment.train_tasks.data)
    assert metric in jax.eval_shape(experiment.learner.update, jax.random.key(2), state, tasks)[1]
    assert experiment.train_metric == metric


def test_a_recipe_that_needs_an_extra_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "brax", None)
    assert main(["train", "pearl-cheetah-vel", "--out", str(tmp_path / "run")]) == 1
    assert "pip install 'jaxmeta[brax]'" in capsys.readouterr().err


def test_the_point_robots_critics_learn_from_the_dense_reward():
    config, dense = PEARL["pearl-point-robot"].config(), families.point_robot(is_sparse=False)
    position, action = jnp.array([0.3, 0.4]), jnp.array([0.05, -0.1])
    task = jax.tree.map(lambda leaf: leaf[7], dense.train.data)
    following, _, reward, terminated = dense.environment.step(None, position, action, task)
    row = Experience(position, 10 * action, jnp.zeros(()), following, terminated)
    np.testing.assert_allclose(config.critic_reward_fn()(task, row), reward, rtol=1e-6)


def test_the_point_robot_has_solved_a_task_that_pays_more_than_5():
    """Three episodes of 20 steps: 6 · 0.9 is above 5, 5 · 0.9 is not, and 5 is not."""
    reward = np.zeros((20, 3))
    reward[14:, 0], reward[15:, 1], reward[15:, 2] = 0.9, 0.9, 1.0
    transitions = rl.Transition(None, None, jnp.asarray(reward), None, None, None, None, {}, ())
    solved = PEARL["pearl-point-robot"].config().metrics(transitions)["solved"]
    np.testing.assert_allclose(solved, 1 / 3, rtol=1e-6)


def test_what_is_told_the_task_sees_it_at_every_step():
    environment, task = told(families.navigation().environment, lambda task: task.goal), families.Goal(jnp.ones(2))
    observation, state = environment.reset(jax.random.key(0), task)
    following, _, reward, _ = environment.step(jax.random.key(1), state, jnp.array([0.1, 0.0]), task)
    np.testing.assert_array_equal(observation[1], task.goal)
    np.testing.assert_array_equal(following[1], task.goal)
    np.testing.assert_allclose(following[0], [0.1, 0.0])
    np.testing.assert_allclose(reward, -np.hypot(0.9, 1.0), rtol=1e-6)


@pytest.mark.parametrize(("name", "most"), [("pearl-point-robot", 80), ("pearl-gridworld", 21)])
def test_training_tasks_are_at_most_those_that_there_are(name, most):
    with pytest.raises(ValueError, match=f"num_train_tasks must be at most the {most} that there are, got {most + 1}"):
        replace(PEARL[name].config(), num_train_tasks=most + 1)

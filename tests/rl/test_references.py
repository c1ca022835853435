"""A fixed agent as a learner: its return is that of its rollout, and `evaluate` takes it like one that learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import rl
from jaxmeta.rl import families, oracles

pytestmark = pytest.mark.usefixtures("strict_shapes")


def ladder():
    """Pays the number of the step times the task, is terminated by action 1, and cut off after three steps."""

    def reset(key, task):
        return jnp.zeros(1), jnp.int32(0)

    def step(key, state, action, task):
        return jnp.zeros(1), state + 1, task * (state + 1), action == 1

    return rl.Environment(reset, step, rl.Discrete(2), max_steps=3)


def script(key, actions, time, inputs):
    return actions[time], time + 1, ()


def evaluate_one(learner, task):
    meta_params = learner.init(jax.random.key(0)).meta_params
    return learner.evaluate(jax.random.key(1), meta_params, task)["return"]


def test_the_return_is_the_mean_over_episodes_of_their_sums_of_rewards():
    """Episodes of 2, 3 and 1 steps, in which the script goes on; the steps after them are not counted."""
    agent = rl.Agent(script, jnp.array([0, 1, 0, 0, 0, 1, 0, 0, 0]), jnp.int32(0))
    learner = rl.reference_learner(agent, ladder(), num_episodes=3)
    expected = 10 * ((1 + 2) + (1 + 2 + 3) + 1) / 3
    np.testing.assert_allclose(evaluate_one(learner, jnp.float32(10.0)), [expected], rtol=1e-6)
    np.testing.assert_array_equal(learner.adapt(jax.random.key(0), jaxmeta.MetaParams(()), 0.0), agent.params)


def test_evaluate_gives_baselines_on_the_test_tasks_of_a_learner(num_compiled):
    """An agent told the task has its exact return on each of them."""
    family = families.gridworld()
    learner = rl.reference_learner(oracles.optimal_gridworld, family.environment, num_episodes=2)
    state = learner.init(jax.random.key(0))
    assert jax.tree.leaves(state.meta_params) == []
    evaluate = lambda key: jaxmeta.evaluate(key, learner, family.test, state.meta_params, num_tasks=20, batch_size=6)
    report, key = evaluate(jax.random.key(1)), jax.random.key(2)
    num_compiled()
    evaluate(key)
    assert num_compiled() == 0
    goals = np.asarray(family.test.data.goal)[:20]  # one by one
    np.testing.assert_allclose(report.samples["return"], 16.1 - 1.1 * goals.sum(-1, keepdims=True), rtol=1e-5)
    assert len(np.unique(goals, axis=0)) > 5 and "return" in str(report)


def test_an_agent_with_a_memory_keeps_it_over_the_episodes():
    """Greedy about two arms: 100 episodes of one pull are one trial of 100."""
    family = families.bernoulli_bandit(num_arms=2, num_pulls=1)
    returns = [
        jaxmeta.evaluate(
            jax.random.key(0),
            rl.reference_learner(oracles.epsilon_greedy(2), family.environment, num_episodes=num_episodes),
            family.test,
            jaxmeta.MetaParams(()),
            num_tasks=200,
        ).metrics["return"]["mean"][0]
        for num_episodes in (1, 100)
    ]
    assert returns[0] < 0.58 and returns[1] > 0.61  # a half without memory, two thirds at best


def test_a_reference_does_not_learn():
    family = families.gridworld()
    learner = rl.reference_learner(oracles.random_policy(rl.Discrete(5)), family.environment)
    with pytest.raises(ValueError, match="learner must be one that learns"):
        jaxmeta.fit(jax.random.key(0), learner, family.train, num_outer_steps=1, num_tasks=2, progress=False)

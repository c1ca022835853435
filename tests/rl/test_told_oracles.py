"""A random policy, and those that are told the task, against the exact value of their tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

import jaxmeta
from jaxmeta import rl
from jaxmeta.rl import families, oracles
from jaxmeta.rl.oracles.control import _linear_cartpole


def returns_of(family, agent, num_tasks, num_episodes=1):
    """On held-out tasks, `[N]`, of a finite family with repeats: it is the agent's draws that are averaged."""
    learner = rl.reference_learner(agent, family.environment, num_episodes=num_episodes)
    meta_params = learner.init(jax.random.key(0)).meta_params
    tasks = family.test._replace(at=None, size=None)
    report = jaxmeta.evaluate(jax.random.key(1), learner, tasks, meta_params, num_tasks=num_tasks, batch_size=num_tasks)
    return report.samples["return"][:, 0]


def assert_mean(samples, expected):
    """Within four standard errors."""
    assert abs(samples.mean() - expected) < 4 * samples.std() / np.sqrt(len(samples)) + 1e-6


def test_random_actions_are_uniform():
    act = lambda space: jax.vmap(lambda key: oracles.random_policy(space).policy(key, (), (), None)[0])(
        jax.random.split(jax.random.key(0), 4000)
    )
    counts = np.bincount(act(rl.Discrete(3)))
    assert len(counts) == 3 and scipy.stats.chisquare(counts).pvalue > 1e-3
    low, high = np.array([-1.0, 2.0], np.float32), np.array([1.0, 5.0], np.float32)
    for column, a, b in zip(act(rl.Continuous(low, high)).T, low, high, strict=True):
        assert scipy.stats.kstest(column, scipy.stats.uniform(a, b - a).cdf).pvalue > 1e-3


def test_random_actions_earn_one_for_each_step_of_a_random_mdp():
    """The prior's mean reward, whatever the transitions: 100 in 10 episodes; the paper's 98.8 is a sample of it."""
    family = families.tabular_mdp()
    agent = oracles.random_policy(family.environment.action_space)
    total = 10 * returns_of(family, agent, 1000, num_episodes=10)
    assert_mean(total, 100)
    assert abs(total.mean() - 98.8) < 4 * np.sqrt(2) * total.std() / np.sqrt(1000)


def test_the_best_arm_pays_the_maximum_of_uniforms():
    returns = returns_of(families.bernoulli_bandit(num_arms=4, num_pulls=10), oracles.optimal_bandit, 2000)
    assert_mean(returns, 10 * 4 / 5)


def left(goal, steps):
    """The distance that no policy can be below: each coordinate has come 0.1 nearer in each step."""
    return np.maximum(np.abs(goal) - 0.1 * steps, 0)


def test_told_the_goal_navigation_loses_what_it_must():
    """The distances that are left, until both coordinates are within 0.01, of any goal: an exact return for each."""
    family = families.navigation()
    goals = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 2)).astype(np.float32)
    expected = [-sum(np.linalg.norm(left(goal, t)) for t in range(1, 6)) for goal in goals]
    trial = rl.trial(family.environment)

    def run(goal):
        task = families.Goal(goal)
        return rl.rollout(jax.random.key(0), trial, *oracles.optimal_navigation(task), task)[1]

    t = jax.vmap(run)(goals)
    np.testing.assert_allclose(t.reward.sum(-1), expected, rtol=1e-4, atol=1e-5)
    assert np.asarray(t.terminated).any(-1).all()


def test_told_the_goal_the_point_robot_loses_what_it_must():
    goals = np.concatenate([d.data.goal for d in families.point_robot()[1:]])
    distances = np.array([[np.linalg.norm(left(goal, t)) for t in range(1, 21)] for goal in goals])
    for is_sparse, rewards in ((True, np.where(distances <= 0.2, 1 - distances, 0)), (False, -distances)):
        trial = rl.trial(families.point_robot(is_sparse=is_sparse).environment)

        def run(goal, trial=trial):
            task = families.Goal(goal)
            return rl.rollout(jax.random.key(0), trial, *oracles.optimal_navigation(task), task)[1].reward.sum()

        returns = jax.vmap(run)(goals.astype(np.float32))
        apart = np.abs(distances - 0.2).min(-1) > 1e-6  # on the edge of 0.2 rounding decides
        np.testing.assert_allclose(returns[apart], rewards.sum(-1)[apart], rtol=1e-4)


def test_told_the_corner_it_is_reached_in_seven_to_nine_steps():
    """A start in U(−0.2, 0.2)² is 1.3 to 1.7 away from the corner's edge in each coordinate, and a step is 0.2: both
    are there after 7, 8, 9 steps with probabilities 1/16, 8/16, 7/16."""
    returns = returns_of(families.corners(), oracles.optimal_navigation, 2000)
    assert set(returns) == {94.0, 93.0, 92.0}
    assert_mean(returns, (94 + 8 * 93 + 7 * 92) / 16)


# ---- controllers ---------------------------------------------------------------------------------------------------


def test_the_linear_model_of_the_cart_is_the_derivative_of_its_step(x64):
    environment = families.cartpole().environment
    draw = families.cartpole().train.sample
    task = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), draw(jax.random.key(1), ()))
    _, zero = environment.reset(jax.random.key(0), task)

    def step(state, action):
        state = zero.replace(**dict(zip(("x", "x_dot", "theta", "theta_dot"), state, strict=True)))
        return np.asarray(environment.step(jax.random.key(0), state, action, task)[0])

    drift = lambda state: (step(state, 0) + step(state, 1)) / 2
    h = 1e-4 * np.eye(4)
    transition, push = _linear_cartpole(task)
    np.testing.assert_allclose(transition, np.stack([drift(e) - drift(-e) for e in h], -1) / 2e-4, atol=1e-6)
    np.testing.assert_allclose(push, step(np.zeros(4), 1), atol=1e-12)


def test_told_its_physics_the_cart_balances_its_pole_to_the_end():
    family = families.cartpole(has_either_direction=True)
    returns = returns_of(family, oracles.balance_cartpole, 500)
    assert (returns == 200).mean() >= 0.99


def test_told_its_physics_the_pendulum_is_up_at_the_end():
    """Within 8 degrees of the top in the last second, whatever its gravity."""
    family = families.pendulum()
    trial = rl.trial(family.environment)

    def run(key):
        task_key, key = jax.random.split(key)
        task = family.test.sample(task_key, family.test.data)
        return rl.rollout(key, trial, *oracles.swing_up_pendulum(task), task)[1].next_observation[-20:, 0].min()

    assert (jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 300)) > 0.99).all()

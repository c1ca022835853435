"""The Bayes-optimal policy of a few MDPs against a recursion over histories, and between its bounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import rl
from jaxmeta.rl import families, oracles
from jaxmeta.rl.oracles import bayes_mdp

TabularMDP = families.TabularMDP


def some_mdps(num_mdps, num_states, seed=0, num_actions=2):
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.full(num_states, 0.3), size=(num_mdps, num_states, num_actions))
    transitions[0, 0, 0] = np.eye(num_states)[1]  # what cannot be there, is elsewhere
    rewards = 2.0 * np.arange(num_states)[:, None] + 0.3 * rng.normal(size=(num_states, num_actions))
    return TabularMDP(transitions, np.tile(rewards, (num_mdps, 1, 1)))


def best_by_recursion(mdps, num_episodes, horizon):
    """Over all histories, none taken for another; a belief is what Bayes' rule says of the one before it."""
    transitions, rewards = mdps.transitions, mdps.rewards[0]

    def value(t, state, belief):
        if t == num_episodes * horizon:
            return 0.0
        worth = []
        for action in range(rewards.shape[1]):
            joint = belief[:, None] * transitions[:, state, action]
            following = 0.0
            if (t + 1) % horizon == 0:
                following = value(t + 1, 0, belief)
            else:
                for to in np.flatnonzero(joint.sum(axis=0)):
                    chance = joint[:, to].sum()
                    following += chance * value(t + 1, to, joint[:, to] / chance)
            worth.append(rewards[state, action] + following)
        return max(worth)

    num_mdps = len(transitions)
    return value(0, 0, np.full(num_mdps, 1 / num_mdps))


def told(mdps, num_episodes, horizon):
    """The mean of who is told which it is, in float64."""
    values = []
    for transitions, rewards in zip(*mdps, strict=True):
        value = np.zeros(len(rewards))
        for _ in range(horizon):
            value = (rewards + transitions @ value).max(axis=1)
        values.append(num_episodes * value[0])
    return np.mean(values)


@pytest.mark.parametrize(
    ("num_mdps", "num_states", "num_episodes", "horizon"), [(1, 3, 2, 3), (2, 2, 2, 3), (3, 3, 1, 4), (3, 2, 3, 2)]
)
def test_the_value_against_a_recursion_over_histories(num_mdps, num_states, num_episodes, horizon):
    mdps = some_mdps(num_mdps, num_states)
    value, _ = oracles.bayes_optimal_mdp(mdps, num_episodes=num_episodes, horizon=horizon)
    assert value == pytest.approx(best_by_recursion(mdps, num_episodes, horizon), rel=1e-12)
    best = told(mdps, num_episodes, horizon)
    assert value == pytest.approx(best) if num_mdps == 1 else value < best - 1e-3


MDPS, SIZE = some_mdps(3, 3), {"num_states": 3, "num_actions": 2, "horizon": 3}


@functools.cache
def simulated(name, num_episodes=2, num_tasks=4000):
    """The mean of what the pairs of state and action pay in mean, and four standard errors."""
    agents = {
        "best": lambda: oracles.bayes_optimal_mdp(MDPS, num_episodes=num_episodes, horizon=3)[1],
        "bonus": lambda: oracles.exploration_bonus(**SIZE),
        "psrl": lambda: oracles.psrl(**SIZE),
    }
    agent, environment = agents[name](), families.tabular_mdp(**SIZE).environment
    trial, mdps = rl.trial(environment, num_episodes=num_episodes), TabularMDP(*map(jnp.asarray, MDPS))

    def one(key, number):
        task = jax.tree.map(lambda x: x[number], mdps)
        played = rl.rollout(key, trial, *agent, task)[1]
        return task.rewards[jnp.argmax(played.inputs.observation, axis=1), played.action].sum()

    total = np.asarray(
        jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_tasks), jnp.arange(num_tasks) % 3)
    )
    return total.mean(), 4 * total.std() / np.sqrt(num_tasks)


def test_the_agent_has_the_value_in_a_rollout():
    value, _ = oracles.bayes_optimal_mdp(MDPS, num_episodes=2, horizon=3)
    mean, error = simulated("best")
    assert abs(mean - value) < error < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bonus", "psrl"])
def test_other_policies_are_below_and_who_is_told_is_above(name):
    value, _ = oracles.bayes_optimal_mdp(MDPS, num_episodes=2, horizon=3)
    mean, error = simulated(name)
    assert mean - error < value < told(MDPS, 2, 3)


@pytest.mark.slow
def test_the_bonus_has_the_value_of_the_notes():
    """162.4 for 10 episodes, where PSRL has 132 and RL²'s paper 156.2."""
    family = families.tabular_mdp()
    trial, agent = rl.trial(family.environment, num_episodes=10), oracles.exploration_bonus()

    def one(key):
        task_key, key = jax.random.split(key)
        return rl.rollout(key, trial, *agent, family.test.sample(task_key, ()))[1].reward.sum()

    total = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 300)))
    assert abs(total.mean() - 162.4) < 4 * total.std() / np.sqrt(300)


@pytest.mark.slow
def test_a_bonus_counts_what_it_sees():
    """Its action is that of the plan of the posterior's mean, by a loop over what was played."""
    family, bonus = families.tabular_mdp(num_states=3, num_actions=2, horizon=4), 5.0
    task = family.train.sample(jax.random.key(0), ())
    trial = rl.trial(family.environment, num_episodes=8)
    agent = oracles.exploration_bonus(num_states=3, num_actions=2, horizon=4, bonus=bonus)
    played = jax.tree.map(np.asarray, rl.rollout(jax.random.key(1), trial, *agent, task)[1])
    counts, paid, states, apart = np.ones((3, 2, 3)), np.ones((3, 2, 2)), played.inputs.observation.argmax(axis=1), []
    for t, (state, action) in enumerate(zip(states, played.action, strict=True)):
        value, q = np.zeros(3), np.zeros((3, 2))
        for _ in range(4 - t % 4):
            q = (paid[..., 1] + bonus) / paid[..., 0] + counts / counts.sum(axis=2, keepdims=True) @ value
            value = q.max(axis=1)
        assert q[state, action] > q[state].max() - 1e-4
        apart.append(np.ptp(q[state]))
        paid[state, action] += (1, played.reward[t])
        if t % 4 < 3:
            counts[state, action, states[t + 1]] += 1
    assert np.mean(np.array(apart) > 0.1) > 0.5


@pytest.mark.parametrize(
    ("mdps", "how", "message"),
    [
        (TabularMDP(np.ones((1, 1, 1)), np.ones((1, 1))), {}, r"mdps must be stacked, .* got \(1, 1, 1\)"),
        (some_mdps(2, 2)._replace(rewards=np.arange(8.0).reshape(2, 2, 2)), {}, "mdps must have the same rewards"),
        (some_mdps(2, 3), {"num_episodes": 9}, "mdps, num_episodes and horizon must be smaller: over 200 beliefs"),
    ],
)
def test_errors(mdps, how, message, monkeypatch):
    monkeypatch.setattr(bayes_mdp, "MAX_NODES", 200)
    with pytest.raises(ValueError, match=message):
        oracles.bayes_optimal_mdp(mdps, **how)

"""Oracles against enumeration on small cases, and against published columns through the rollout of learned policies."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxmeta import rl
from jaxmeta.rl import families, oracles
from jaxmeta.rl.families.discrete import MOVES
from jaxmeta.rl.oracles import bandits
from jaxmeta.rl.oracles.bandits import Counts, _discounted_index


def simulate(family, agent_of, num_tasks, num_episodes=1, seed=0):
    """Rewards `[N, T]` on held-out tasks."""
    trial = rl.trial(family.environment, num_episodes=num_episodes)

    def one(key):
        task_key, key = jax.random.split(key)
        task = family.test.sample(task_key, family.test.data)
        return rl.rollout(key, trial, *agent_of(task), task)[1].reward

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), num_tasks)))


def bandit_total(agent, num_arms, num_pulls, num_tasks=1000):
    """Mean of the total reward, and four standard errors."""
    family = families.bernoulli_bandit(num_arms=num_arms, num_pulls=num_pulls)
    total = simulate(family, lambda task: agent, num_tasks).sum(-1)
    return total.mean(), 4 * total.std() / np.sqrt(num_tasks)


# ---- bandits -------------------------------------------------------------------------------------------------------


def best_by_recursion(num_arms, num_pulls):
    """Over all beliefs, none taken for another."""

    @functools.cache
    def value(left, belief):
        if left == 0:
            return 0.0
        return max(q(left, belief, arm) for arm in range(num_arms))

    def q(left, belief, arm):
        s, f = belief[arm]
        after = lambda pair: value(left - 1, (*belief[:arm], pair, *belief[arm + 1 :]))
        p = (1 + s) / (2 + s + f)
        return p * (1 + after((s + 1, f))) + (1 - p) * after((s, f + 1))

    return value(num_pulls, ((0, 0),) * num_arms)


@pytest.mark.parametrize(("num_arms", "num_pulls"), [(1, 4), (2, 1), (2, 7), (3, 5), (4, 3)])
def test_bayes_optimal_bandit_against_recursion(num_arms, num_pulls):
    value, _ = oracles.bayes_optimal_bandit(num_arms, num_pulls)
    assert value == pytest.approx(best_by_recursion(num_arms, num_pulls), rel=1e-12)


@pytest.mark.parametrize(("num_arms", "num_pulls", "best"), [(5, 10, 6.6600), (2, 10, 6.0218), (10, 10, 6.7140)])
def test_bayes_optimal_bandit_has_the_known_values(num_arms, num_pulls, best):
    assert oracles.bayes_optimal_bandit(num_arms, num_pulls)[0] == pytest.approx(best, abs=5e-5)


def expected_total(agent, num_arms, num_pulls):
    """Of a policy without randomness: all sequences of rewards, each with its probability under the prior."""

    def reset(key, script):
        return jnp.ones(1), jnp.int32(0)

    def step(key, time, action, script):
        return jnp.ones(1), time + 1, script[time], jnp.bool_(False)

    trial = rl.trial(rl.Environment(reset, step, rl.Discrete(num_arms), num_pulls))
    scripts = np.array(list(itertools.product([0.0, 1.0], repeat=num_pulls)), np.float32)
    run = lambda script: rl.rollout(jax.random.key(0), trial, *agent, script)[1].action
    total = 0.0
    for script, actions in zip(scripts, np.asarray(jax.jit(jax.vmap(run))(scripts)), strict=True):
        counts, probability = np.ones((num_arms, 2)), 1.0
        for paid, arm in zip(script.astype(int), actions, strict=True):
            probability *= counts[arm, paid] / counts[arm].sum()
            counts[arm, paid] += 1
        total += probability * script.sum()
    return total


@pytest.mark.parametrize(("num_arms", "num_pulls"), [(1, 3), (2, 6), (3, 7)])
def test_the_bayes_optimal_agent_has_exactly_the_value_in_a_rollout(num_arms, num_pulls):
    value, agent = oracles.bayes_optimal_bandit(num_arms, num_pulls)
    assert expected_total(agent, num_arms, num_pulls) == pytest.approx(value, rel=1e-10)


def test_no_index_policy_is_better_than_bayes_optimal_and_gittins_is_close():
    value, _ = oracles.bayes_optimal_bandit(3, 7)
    totals = {
        "gittins": expected_total(oracles.gittins(3, 7), 3, 7),
        "approximation": expected_total(oracles.gittins_approximation(3, 7), 3, 7),
        "tuned_ucb1": expected_total(oracles.tuned_ucb1(3), 3, 7),
        "greedy": expected_total(oracles.epsilon_greedy(3), 3, 7),
        "ucb1": expected_total(oracles.ucb1(3), 3, 7),
    }
    assert value > totals["gittins"] > 0.997 * value
    assert value > totals["approximation"] > 0.995 * value
    assert value > totals["tuned_ucb1"] > totals["greedy"] > totals["ucb1"]


def test_the_gittins_index_is_the_best_ratio_over_all_stopping_rules():
    """All 2^9 rules that say, of each state after 1 to 3 pulls, whether to go on, with up to 4 pulls."""
    states = [(s, n - s) for n in (1, 2, 3) for s in range(n + 1)]
    table = oracles.gittins_table(6)
    for start in ((0, 0), (1, 0), (0, 2)):
        best = 0.0
        for rule in itertools.product([False, True], repeat=len(states)):
            goes_on = dict(zip(states, rule, strict=True))

            def totals(s, f, left, start=start, goes_on=goes_on):
                """Expected reward and pulls from here on."""
                a, b = 1 + start[0] + s, 1 + start[1] + f
                p, reward, pulls = a / (a + b), a / (a + b), 1.0
                if left > 1:
                    for probability, after in ((p, (s + 1, f)), (1 - p, (s, f + 1))):
                        if goes_on[after]:
                            r, n = totals(*after, left - 1)
                            reward, pulls = reward + probability * r, pulls + probability * n
                return reward, pulls

            reward, pulls = totals(0, 0, 4)
            best = max(best, reward / pulls)
        assert float(table[3, *start]) == pytest.approx(best, abs=1e-4)


def discounted_index(s, f, discount, horizon=400):
    """By calibration: the λ at which an arm that pays λ for certain is as good."""

    def worth(price):
        n = np.arange(horizon + 1)
        value = np.zeros(horizon + 1)
        for pulls in range(horizon - 1, -1, -1):
            a, b = 1 + s + n[: pulls + 1], 1 + f + pulls - n[: pulls + 1]
            p = a / (a + b)
            d = p - price + discount * (p * value[1 : pulls + 2] + (1 - p) * value[: pulls + 1])
            value = np.maximum(d, 0)
        return d[0]

    return scipy.optimize.brentq(worth, 0, 1)


def test_the_approximate_gittins_index_is_close_to_the_exact_one_where_arms_are_known_well():
    """And the control: Gittins' own figure for an arm of which nothing is known."""
    for s, f in ((200, 100), (100, 200), (300, 50), (170, 170)):
        approximate = float(_discounted_index(Counts(jnp.float32(s), jnp.float32(f)), -np.log(0.98)))
        exact = discounted_index(s, f, 0.98)
        bonus = exact - (1 + s) / (2 + s + f)
        assert bonus > 0.004 and approximate == pytest.approx(exact, abs=0.2 * bonus)
    assert discounted_index(0, 0, 0.9) == pytest.approx(0.7029, abs=1e-4)


def test_thompson_sampling_through_the_rollout_has_its_published_value():
    """5.82 for 5 arms and 10 pulls: the proof of the harness."""
    mean, error = bandit_total(oracles.thompson(5), 5, 10, num_tasks=4000)
    assert abs(mean - 5.82) < error + 0.005 < 0.2


@pytest.fixture(scope="module", autouse=True)
def one_table_of_a_size():
    """It takes seconds to compute, more than to compile for speed, and knows nothing of the number of arms."""
    table = jax.jit(bandits.gittins_table, static_argnums=0, compiler_options={"xla_backend_optimization_level": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bandits, "gittins_table", functools.cache(table))
        yield


# RL²'s table for n = 100; it has no Thompson sampling, that figure is the project's own.
PUBLISHED = {
    ("gittins", 5): 78.3,
    ("gittins", 10): 82.8,
    ("gittins_approximation", 5): 78.3,
    ("gittins_approximation", 50): 85.2,
    ("tuned_ucb1", 5): 78.0,
    ("tuned_ucb1", 10): 82.4,
    ("tuned_ucb1", 50): 84.3,
    ("thompson", 5): 74.9,
}


@pytest.mark.parametrize(("name", "num_arms"), PUBLISHED)
def test_published_columns_of_bandits_with_100_pulls(name, num_arms):
    agent = getattr(oracles, name)(num_arms, *([100] if "gittins" in name else []))
    mean, error = bandit_total(agent, num_arms, 100)
    assert abs(mean - PUBLISHED[name, num_arms]) < np.sqrt(2) * error + 0.05  # theirs are means of 1,000 too


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_arms", "published"),
    [
        ("gittins_approximation", 5, 405.8),
        ("gittins_approximation", 10, 437.8),
        ("tuned_ucb1", 5, 405.8),
        ("tuned_ucb1", 10, 437.1),
        ("tuned_ucb1", 50, 457.6),
        ("thompson", 5, 401.2),
    ],
)
def test_published_columns_of_bandits_with_500_pulls(name, num_arms, published):
    agent = getattr(oracles, name)(num_arms, *([500] if "gittins" in name else []))
    mean, error = bandit_total(agent, num_arms, 500)
    assert abs(mean - published) < np.sqrt(2) * error + 0.05


def actions_after(agent, num_arms, rewards, num_pulls=8):
    """What an agent does where arm a always pays rewards[a]."""
    environment = families.bernoulli_bandit(num_arms=num_arms, num_pulls=num_pulls).environment
    pay = lambda key, state, action, task: (jnp.ones(1), state, task[action], jnp.bool_(False))
    trial = rl.trial(environment._replace(step=pay))
    return rl.rollout(jax.random.key(0), trial, *agent, jnp.array(rewards, float))[1].action


@pytest.mark.parametrize("prior", [0, 1])
def test_ucb1_step_by_step(prior):
    """As in the textbook, without a prior, and as in RL², with one success and one failure and a scaled bonus."""
    rewards = [0.3, 0.55, 0.5, 0.1]
    num, total, expected = np.full(4, 2.0 * prior), np.full(4, 1.0 * prior), []
    for t in range(60):
        if not prior and t < 4:
            arm = t
        else:
            scale, clock = (0.3, t + 1) if prior else (1.0, t)
            arm = int(np.argmax(total / num + scale * np.sqrt(2 * np.log(clock) / num)))
        num[arm], total[arm] = num[arm] + 1, total[arm] + rewards[arm]
        expected.append(arm)
    agent = oracles.tuned_ucb1(4, scale=0.3) if prior else oracles.ucb1(4)
    np.testing.assert_array_equal(actions_after(agent, 4, rewards, num_pulls=60), expected)
    assert len(set(expected[10:])) > 1


def test_greedy_and_random_policies_step_by_step():
    np.testing.assert_array_equal(actions_after(oracles.epsilon_greedy(3), 3, [0.0, 1.0, 0.0]), [0] + [1] * 7)
    np.testing.assert_array_equal(
        actions_after(oracles.epsilon_greedy(3), 3, [0.0, 0.0, 0.0]), [0, 1, 2, 0, 1, 2, 0, 1]
    )
    random = simulate(
        families.bernoulli_bandit(num_arms=2, num_pulls=50), lambda task: oracles.epsilon_greedy(2, epsilon=1.0), 500
    )
    assert abs(random.mean() - 0.5) < 0.04


def test_impossible_dynamic_programs_are_refused():
    with pytest.raises(ValueError, match=r"num_arms and num_pulls must be smaller: 20 arms have \d+ beliefs"):
        oracles.bayes_optimal_bandit(20, 30)
    with pytest.raises(ValueError, match=r"num_pulls must be at most 200, got 500: use gittins_approximation"):
        oracles.gittins(5, 500)


# ---- tabular MDPs --------------------------------------------------------------------------------------------------


def test_the_optimal_plan_against_all_plans():
    """2 states, 2 actions, 3 steps: 2^6 plans that depend on time and state."""
    family = families.tabular_mdp(num_states=2, num_actions=2, horizon=3)
    mdp = family.train.sample(jax.random.key(3), ())
    transitions, rewards = map(np.asarray, mdp)
    best = -np.inf
    for actions in itertools.product([0, 1], repeat=6):
        where, total = np.array([1.0, 0.0]), 0.0
        for chosen in np.reshape(actions, (3, 2)):
            total += sum(where[s] * rewards[s, chosen[s]] for s in range(2))
            where = sum(where[s] * transitions[s, chosen[s]] for s in range(2))
        best = max(best, total)
    values, _ = oracles.plan(mdp, horizon=3)
    assert float(values[0, 0]) == pytest.approx(best, rel=1e-6)


def test_the_optimal_policy_has_its_value_in_a_rollout():
    """10 episodes; 218.3 in the notes."""
    family = families.tabular_mdp()
    keys = jax.random.split(jax.random.key(1), 400)
    value = lambda key: oracles.plan(family.test.sample(key, ()), horizon=10)[0][0, 0]
    values = 10 * np.asarray(jax.jit(jax.vmap(value))(keys))
    total = simulate(family, lambda mdp: oracles.optimal_mdp(mdp), 400, num_episodes=10).sum(-1)
    error = 4 * np.hypot(total.std(), values.std()) / np.sqrt(400)
    assert abs(total.mean() - values.mean()) < error
    assert abs(values.mean() - 218.3) < error


@pytest.mark.slow  # its counts are held against a loop below
def test_psrl_has_its_known_value():
    """133.3 in the notes."""
    total = simulate(families.tabular_mdp(), lambda mdp: oracles.psrl(), 200, num_episodes=10).sum(-1)
    assert abs(total.mean() - 133.3) < 4 * total.std() / np.sqrt(200)


def test_psrl_counts_what_it_sees():
    """Its counts against a loop over the transitions of its rollout."""
    family = families.tabular_mdp(num_states=3, num_actions=2, horizon=4)
    task = family.train.sample(jax.random.key(0), ())
    trial = rl.trial(family.environment, num_episodes=3)
    agent = oracles.psrl(num_states=3, num_actions=2, horizon=4)
    carry, t = rl.rollout(jax.random.key(1), trial, *agent, task)
    counts, rewards = np.zeros((3, 2, 3)), np.zeros((3, 2, 2))
    states = np.asarray(t.inputs.observation.argmax(-1))
    for i in range(trial.num_steps - 1):  # the last reward comes after the last action
        rewards[states[i], t.action[i]] += (1, t.reward[i])
        if not t.truncated[i]:
            counts[states[i], t.action[i], states[i + 1]] += 1
    np.testing.assert_array_equal(carry.transitions, counts)
    np.testing.assert_allclose(carry.rewards, rewards, rtol=1e-5)


# ---- the gridworld -------------------------------------------------------------------------------------------------


def episode_returns(agent_of, num_episodes, horizon=15):
    """Of each goal and episode."""
    family = families.gridworld()
    trial = rl.trial(family.environment._replace(max_steps=horizon), num_episodes=num_episodes)

    def one(goal):
        task = families.Goal(goal)
        reward = rl.rollout(jax.random.key(0), trial, *agent_of(task), task)[1].reward
        return reward.reshape(num_episodes, horizon).sum(-1)

    return np.asarray(jax.jit(jax.vmap(one))(families.gridworld_goals()))


def test_told_the_goal_an_episode_has_11_07():
    expected = 16.1 - 1.1 * families.gridworld_goals().sum(-1)
    returns = episode_returns(oracles.optimal_gridworld, 2)
    np.testing.assert_allclose(returns, np.stack([expected, expected], axis=-1), rtol=1e-5)
    assert returns.mean() == pytest.approx(11.0714, abs=1e-4)


@pytest.mark.parametrize(("num_episodes", "horizon"), [(1, 15), (4, 15), (3, 5)])
def test_the_bayes_optimal_agent_has_its_returns_in_a_rollout(num_episodes, horizon):
    returns, agent = oracles.bayes_optimal_gridworld(num_episodes, horizon=horizon)
    np.testing.assert_allclose(
        episode_returns(lambda task: agent, num_episodes, horizon).mean(0), returns, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("num_episodes", "horizon"), [(1, 4), pytest.param(1, 6, marks=pytest.mark.slow), (2, 3), (2, 4)]
)
def test_the_bayes_optimal_walks_against_all_walks(num_episodes, horizon):
    """Every sequence of moves, until the goal is found; from then on straight to it."""
    goals = families.gridworld_goals()
    walks = np.array(list(itertools.product(MOVES, repeat=horizon)))  # [W, H, 2]
    cells = np.zeros((len(walks), 2), int)
    first = np.full((len(walks), len(goals)), horizon + 1)  # the step at which a walk finds a goal
    for step in range(horizon):
        cells = np.clip(cells + walks[:, step], 0, 4)
        found = (cells[:, None] == goals).all(-1)
        first = np.where(found & (first > horizon), step + 1, first)
    first = np.unique(first, axis=0)
    told = 1.1 * np.maximum(horizon + 1 - goals.sum(-1), 0)
    gain = 1.1 * (horizon + 1 - first)  # 0 where it is not found
    if num_episodes == 1:
        best = gain.mean(-1).max()
    else:
        later = lambda row: np.where(first[row] <= horizon, told, gain).mean(-1).max()
        best = max(gain[row].mean() + later(row) for row in range(len(first)))
    returns, _ = oracles.bayes_optimal_gridworld(num_episodes, horizon=horizon)
    assert returns.sum() == pytest.approx(best - 0.1 * horizon * num_episodes, abs=1e-9)


def test_one_episode_of_searching_is_enough_for_a_path_that_loses_nothing_in_the_next():
    returns, _ = oracles.bayes_optimal_gridworld(4)
    np.testing.assert_allclose(returns, [4.0, *[16.1 - 1.1 * 96 / 21] * 3], rtol=1e-12)


def test_the_belief_about_the_goal_is_of_those_that_would_have_paid_alike():
    """Each of the 21 goals, stepped with the same actions: those of the same rewards are left, each as likely."""
    environment, goals = families.gridworld().environment, families.gridworld_goals()
    trial = rl.trial(environment, num_episodes=2)
    actions = jax.random.randint(jax.random.key(0), (2, 30), 0, 5)

    def replayed(goal, actions):
        act = lambda key, actions, t, inputs: (actions[t], t + 1, ())
        return rl.rollout(jax.random.key(1), trial, act, actions, jnp.int32(0), families.Goal(goal))[1]

    of_goals = jax.jit(jax.vmap(jax.vmap(replayed, (0, None)), (None, 0)))(goals, actions)  # [2, goal, T]
    beliefs = jax.vmap(jax.vmap(oracles.gridworld_belief))(of_goals)
    num_left = np.zeros(2)
    for i, true in itertools.product(range(2), range(len(goals))):
        reward = np.asarray(of_goals.reward[i])
        for t in range(30):
            alike = np.all(reward[:, :t] == reward[true, :t], axis=1)
            expected = np.zeros(25)
            expected[goals[alike] @ [5, 1]] = 1 / alike.sum()
            np.testing.assert_allclose(beliefs[i, true, t], expected, rtol=1e-6)
        num_left[i] += alike.sum()
    assert num_left.max() < 21 * 21  # something was found out

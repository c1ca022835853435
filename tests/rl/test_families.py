"""The contract that every family keeps, and what each family is."""

import functools

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxmeta import rl
from jaxmeta.rl import families

NAMES = [name for name in families.__all__ if name[0].islower() and name != "gridworld_goals"]
BRAX = {"ant_goal", "cheetah_direction", "cheetah_velocity"}
EXTRA = dict.fromkeys(BRAX, "brax") | {"xland": "xminigrid"}  # and the package it is of
EXTRA_MARKS = (pytest.mark.slow, pytest.mark.filterwarnings("ignore"))  # their own packages warn of each other
WRAPPED = {"cartpole", "pendulum", "reacher", "meta_maze", "four_rooms"}
PINS = {"reacher": "goal_xy", "meta_maze": "goal", "four_rooms": "goal"}
MARKS = dict.fromkeys(EXTRA, EXTRA_MARKS) | {"key_to_door": pytest.mark.slow}  # the T-maze is of its kind
over_families = pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in NAMES])


@functools.cache
def family_of(name):
    """With a short horizon: episodes end by time within a few steps."""
    if name in EXTRA:
        pytest.importorskip(EXTRA[name], reason=f"needs the package {EXTRA[name]}")
    family = getattr(families, name)()
    return family._replace(environment=family.environment._replace(max_steps=3))


def random_action(key, space):
    if isinstance(space, rl.Discrete):
        return jax.random.randint(key, (), 0, space.num_actions)
    return jax.random.uniform(key, space.low.shape, minval=space.low, maxval=space.high)


def random_policy(space):
    return lambda key, params, carry, inputs: (random_action(key, space), carry, ())


def sample(family, num_tasks, seed=0):
    return _sampler(family.train.sample)(jax.random.split(jax.random.key(seed), num_tasks), family.train.data)


@functools.cache
def _sampler(sample):
    return jax.jit(jax.vmap(sample, (0, None)))


def run(family, num_steps=7):
    trial = rl.trial(family.environment, num_steps=num_steps)
    policy = random_policy(family.environment.action_space)
    return jax.jit(jax.vmap(lambda key, task: rl.rollout(key, trial, policy, (), (), task)[1], out_axes=1))


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), jax.eval_shape(lambda x: x, tree))


@over_families
def test_a_rollout_compiles_once_and_is_the_loop_over_steps_with_the_same_keys(name, num_compiled):
    family = family_of(name)
    rollout, keys, tasks = run(family), jax.random.split(jax.random.key(1), 2), sample(family, 2)
    together = jax.tree.map(np.asarray, rollout(keys, tasks))
    others = sample(family, 2, seed=3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((together.next_observation, together.reward)))
    num_compiled()
    rollout(keys, others)
    assert rollout._cache_size() == 1 and num_compiled() == 0

    env, space = family.environment, family.environment.action_space
    reset = jax.jit(env.reset)
    task = jax.tree.map(lambda leaf: np.asarray(leaf)[1], tasks)
    reset_key, scan_key = jax.random.split(keys[1])

    @jax.jit
    def step(key, state, task):
        policy_key, env_key = jax.random.split(key)
        step_key, new_key = jax.random.split(env_key)
        action = random_action(policy_key, space)
        return new_key, action, *env.step(step_key, state, action, task)

    observation, state = reset(reset_key, task)
    time = 0
    for t, key in enumerate(jax.random.split(scan_key, 7)):
        own = jax.tree.map(lambda leaf, t=t: leaf[t, 1], together)
        # A body's physics, vectorised or not, rounds a little differently in each of its many steps.
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4 if name in BRAX else 1e-6)
        close(own.inputs.observation, observation)
        assert own.inputs.time == time and own.inputs.no_action != (t > 0)
        new_key, action, observation, state, reward, terminated, *_ = step(key, state, task)
        time += 1
        close(own.action, action)
        close(own.reward, reward)
        close(own.next_observation, observation)
        assert own.terminated == terminated and own.truncated == (time >= 3) and own.mask
        if terminated or time >= 3:
            observation, state = reset(new_key, task)
            time = 0


@over_families
def test_the_task_is_the_same_in_all_episodes(name):
    """What the environment is called with is the task; and where its state holds the task, it stays."""
    family = family_of(name)
    task, seen = jax.tree.map(lambda leaf: np.asarray(leaf)[0], sample(family, 2)), []

    def spy(function):
        def call(*args):
            seen.append(args[-1])
            return function(*args)

        return call

    env = family.environment
    trial = rl.trial(env._replace(reset=spy(env.reset), step=spy(env.step)), num_episodes=4)

    @jax.jit
    def states(key, task):
        def body(state, key):
            action_key, step_key = jax.random.split(key)
            return trial.step(step_key, state, random_action(action_key, env.action_space), task)[1], state

        return jax.lax.scan(body, trial.reset(key, task)[1], jax.random.split(key, trial.num_steps))[1]

    env_state = states(jax.random.key(2), task).env_state
    assert len(seen) == 3 and len({id(leaf) for params in seen for leaf in jax.tree.leaves(params)}) == len(
        jax.tree.leaves(task)
    )
    if isinstance(task, rl.Pinned):
        assert task.pins.keys() == {PINS[name]}
        held = getattr(env_state, PINS[name])
        np.testing.assert_array_equal(held, np.stack([task.pins[PINS[name]]] * trial.num_steps))


def precision(is_float64):
    return (jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64)(is_float64)


@over_families
@pytest.mark.parametrize("made", ["float32", "float64"])
def test_types_are_of_the_precision_that_a_family_is_used_in_and_not_made_in(name, made):
    """The default float everywhere, nothing weakly typed, and a reset like a step."""
    with precision(made == "float64"):
        family = family_of.__wrapped__(name)
    for used in ("float32", "float64"):
        with precision(used == "float64"):
            check_types(family, jnp.dtype(used))


def check_types(family, default_float):
    env, key = family.environment, jax.random.key(0)
    task = jax.eval_shape(family.train.sample, key, family.train.data)
    transitions = jax.eval_shape(lambda: run(family, num_steps=4)(jax.random.split(key), sample(family, 2)))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((task, transitions)))
    kinds = lambda tree: {leaf.dtype for leaf in jax.tree.leaves(tree)}
    assert kinds((transitions.inputs.observation, transitions.reward, transitions.next_observation)) == {default_float}
    assert kinds((transitions.terminated, transitions.truncated, transitions.mask)) == {jnp.dtype(bool)}
    assert {kind for kind in kinds(task) if jnp.issubdtype(kind, jnp.floating)} <= {default_float}
    observation, state = jax.eval_shape(env.reset, key, task)
    action = jax.eval_shape(lambda key: random_action(key, env.action_space), key)
    assert types(jax.eval_shape(env.step, key, state, action, task)[:2]) == types((observation, state))


@over_families
def test_test_tasks_are_drawn_like_training_tasks(name):
    family = family_of(name)
    train, test = (jax.eval_shape(d.sample, jax.random.key(0), d.data) for d in (family.train, family.test))
    assert types(train) == types(test)


@pytest.mark.parametrize("name", sorted(set(NAMES) - WRAPPED - set(EXTRA)))
def test_keys_are_consumed_once(name):
    family = family_of(name)
    trial, policy = rl.trial(family.environment), random_policy(family.environment.action_space)

    @jax.jit
    def once(key):
        task_key, key = jax.random.split(key)
        return rl.rollout(key, trial, policy, (), (), family.train.sample(task_key, family.train.data))[1].reward

    with jax.debug_key_reuse(True):
        once(jax.random.key(0))


@pytest.mark.parametrize("name", ["meta_maze", "four_rooms", "point_robot"])
def test_finite_families_hold_tasks_out(name):
    train, test = ({leaf.tobytes() for leaf in rows} for rows in map(goals_of, getattr(families, name)()[1:]))
    assert len(train) == pytest.approx(4 * len(test), abs=3) and not train & test


def goals_of(distribution):
    data = distribution.data
    return np.asarray(next(iter(data.pins.values())) if isinstance(data, rl.Pinned) else data.goal)


def steps(family, task, actions, seed=0):
    """The transitions under given actions, from a loop."""
    policy = lambda key, actions, t, inputs: (actions[t], t + 1, ())
    trial = rl.trial(family.environment, num_steps=len(actions))
    return rl.rollout(jax.random.key(seed), trial, policy, jnp.asarray(actions), jnp.int32(0), task)[1]


def many(family, task, action, num, seed=0):
    """`num` independent first steps."""

    def one(key):
        reset_key, step_key = jax.random.split(key)
        _, state = family.environment.reset(reset_key, task)
        return family.environment.step(step_key, state, action, task)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), num))


@pytest.mark.parametrize("num_arms", [1, 2, 50])
def test_bernoulli_arms_pay_one_or_zero_at_their_rate(num_arms):
    family = families.bernoulli_bandit(num_arms=num_arms, num_pulls=7)
    assert family.environment.action_space.num_actions == num_arms and family.environment.max_steps == 7
    task = families.Bandit(jnp.linspace(0.3, 0.9, num_arms))
    reward = np.asarray(many(family, task, num_arms - 1, 4000)[2])
    p = float(task.means[-1])
    assert set(reward) == {0.0, 1.0} and abs(reward.mean() - p) < 4 * np.sqrt(p * (1 - p) / 4000)
    means = sample(family, 2000).means.ravel()
    assert scipy.stats.kstest(means, "uniform").pvalue > 1e-3


def test_gaussian_arms_pay_a_normal_around_their_mean():
    family = families.gaussian_bandit(num_arms=3, noise=0.5)
    reward = many(family, families.Bandit(jnp.array([0.0, 2.0, 5.0])), 1, 4000)[2]
    assert scipy.stats.kstest(reward, scipy.stats.norm(2.0, 0.5).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(sample(family, 1000).means.ravel(), "norm").pvalue > 1e-3


def test_tabular_mdps_follow_their_transitions_and_rewards():
    family = families.tabular_mdp(num_states=4, num_actions=2)
    task = jax.tree.map(lambda leaf: leaf[0], sample(family, 1))
    observation, state, reward, terminated = many(family, task, 1, 20_000)
    expected = np.asarray(task.transitions[0, 1], np.float64)
    counts = np.bincount(np.asarray(state), minlength=4)
    assert scipy.stats.chisquare(counts, 20_000 * expected / expected.sum()).pvalue > 1e-3
    np.testing.assert_array_equal(observation.argmax(-1), state)
    assert scipy.stats.kstest(reward, scipy.stats.norm(float(task.rewards[0, 1]), 1).cdf).pvalue > 1e-3
    assert not terminated.any()
    tasks = sample(families.tabular_mdp(), 300)
    np.testing.assert_allclose(tasks.transitions.sum(-1), 1, rtol=1e-5)
    one = np.asarray(tasks.transitions[..., 0]).ravel()
    assert scipy.stats.kstest(one, scipy.stats.beta(1, 9).cdf).pvalue > 1e-3  # a Dirichlet(1, .., 1)'s margin
    assert scipy.stats.kstest(np.asarray(tasks.rewards).ravel(), scipy.stats.norm(1, 1).cdf).pvalue > 1e-3


def test_the_gridworld_has_21_goals_and_pays_on_the_goal():
    goals = families.gridworld_goals()
    assert goals.shape == (21, 2) and {(0, 0), (0, 1), (1, 0), (1, 1)}.isdisjoint(map(tuple, goals))
    family = families.gridworld()
    stay, up, right, down, left = range(5)
    actions = [down, left, up, right, right, stay, right, right, right, up, up, up, up, left, down]
    cells = [(0, 0), (0, 0), (0, 1), (1, 1), (2, 1), (2, 1), (3, 1), (4, 1), (4, 1), (4, 2), (4, 3), (4, 4), (4, 4)]
    cells += [(3, 4), (3, 3)]
    t = steps(family, families.Goal(jnp.array([2, 1])), actions)
    np.testing.assert_array_equal(t.next_observation.argmax(-1), [5 * x + y for x, y in cells])
    np.testing.assert_allclose(t.reward, [1.0 if cell == (2, 1) else -0.1 for cell in cells], rtol=1e-6)
    assert t.truncated[-1] and not t.truncated[:-1].any() and not t.terminated.any()


def test_navigation_pays_the_distance_and_ends_at_the_goal():
    family = families.navigation()
    t = steps(family, families.Goal(jnp.array([0.15, -0.2])), jnp.array([[0.1, -0.5], [0.05, -0.105], [0.0, 0.0]]))
    np.testing.assert_allclose(t.next_observation[:2], [[0.1, -0.1], [0.15, -0.2]], atol=1e-6)
    np.testing.assert_allclose(t.reward[:2], [-np.hypot(0.05, 0.1), 0], atol=1e-6)
    np.testing.assert_array_equal(t.terminated, [False, True, False])
    np.testing.assert_array_equal(t.inputs.observation[2], [0, 0])
    assert family.environment.max_steps == 100


def test_the_point_robot_is_paid_within_a_fifth_of_its_goal():
    task, actions = families.Goal(jnp.array([0.0, 0.35])), jnp.array([[0.0, 0.1], [0.0, 0.1], [0.0, 9.0]])
    np.testing.assert_allclose(steps(families.point_robot(), task, actions).reward, [0, 0.85, 0.95], rtol=1e-5)
    dense = steps(families.point_robot(is_sparse=False), task, actions).reward
    np.testing.assert_allclose(dense, [-0.25, -0.15, -0.05], rtol=1e-5)
    goals = np.concatenate(list(map(goals_of, families.point_robot()[1:])))
    np.testing.assert_allclose(np.linalg.norm(goals, axis=-1), 1)
    assert goals[:, 1].min() >= 0


def test_the_point_robot_told_its_goal_has_13_3():
    """The figure of the notes: straight to the goal at full speed."""
    family = families.point_robot()
    trial = rl.trial(family.environment)

    def policy(key, goal, carry, inputs):
        way = goal - inputs.observation
        return way * jnp.minimum(1, 0.1 / jnp.max(jnp.abs(way) + 1e-9)), carry, ()

    run = lambda goal: rl.rollout(jax.random.key(0), trial, policy, goal, (), families.Goal(goal))[1].reward.sum()
    assert jax.vmap(run)(goals_of(family.train)).mean() == pytest.approx(13.3, abs=0.1)


def test_corners_pay_in_the_tasks_own_corner_only():
    family = families.corners()
    actions = jnp.concatenate([jnp.full((12, 2), 0.2), jnp.tile(jnp.array([[-0.2, 0.0]]), (12, 1))])
    own = steps(family, families.Goal(jnp.array([2.0, 2.0])), actions)
    position = np.asarray(own.next_observation)
    assert np.abs(position).max() <= 2 and (np.abs(own.inputs.observation[0]) <= 0.2).all()
    np.testing.assert_array_equal(own.reward, (np.abs(position - 2) <= 0.5).all(-1))
    assert 3 < own.reward.sum() < 16 and not own.terminated.any()
    other = steps(family, families.Goal(jnp.array([2.0, -2.0])), actions)
    assert other.reward.sum() == 0


def test_cartpoles_derived_params_are_those_of_its_masses():
    tasks = sample(families.cartpole(), 5)
    np.testing.assert_allclose(tasks.total_mass, tasks.masscart + tasks.masspole, rtol=1e-6)
    np.testing.assert_allclose(tasks.polemass_length, tasks.masspole * tasks.length, rtol=1e-6)
    assert len(np.unique(tasks.force_mag)) == 5


def test_half_of_the_carts_may_be_pushed_the_other_way():
    """By the same action in the same state, and the rest of the physics stays."""
    tasks, either = (sample(families.cartpole(has_either_direction=does), 200) for does in (False, True))
    np.testing.assert_array_equal(np.abs(either.force_mag), tasks.force_mag)
    np.testing.assert_array_equal(either.masscart, tasks.masscart)
    assert 70 < (either.force_mag < 0).sum() < 130
    environment = families.cartpole().environment
    _, state = environment.reset(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], tasks))
    step = jax.jit(jax.vmap(lambda task: environment.step(jax.random.key(1), state, 1, task)[1].x_dot - state.x_dot))
    np.testing.assert_array_equal(step(either) < 0, either.force_mag < 0)


def test_what_gives_the_goal_away_is_not_seen():
    for name in ("reacher", "four_rooms", "meta_maze"):
        family = getattr(families, name)()
        tasks = sample(family, 8)
        observations, _ = jax.jit(jax.vmap(family.environment.reset, (None, 0)))(jax.random.key(0), tasks)
        assert len(np.unique(goals_of(family.train._replace(data=tasks)), axis=0)) > 1
        np.testing.assert_array_equal(observations, np.stack([observations[0]] * 8))


def test_the_maze_goes_on_where_it_puts_the_agent_on_the_goal():
    """gymnax would end the episode there: its own step says so for the same key."""
    family = families.meta_maze()
    env, params = rl.make_gymnax("MetaMaze-misc")
    raw = rl.from_gymnax(env)
    goal = jnp.array([4, 5])  # above the centre
    task = rl.Pinned(params, {"goal": goal})
    _, state = raw.reset(jax.random.key(0), task)
    keys = jax.random.split(jax.random.key(1), 400)
    ends = lambda step: jax.vmap(lambda key: step(key, state, jnp.int32(0), task)[2:4])(keys)
    reward, terminated = ends(raw.step)
    assert (reward == 10).all() and terminated.sum() > 0
    assert not ends(family.environment.step)[1].any()


def test_a_slippery_room_ends_at_its_goal():
    family = families.four_rooms()
    params = sample(family, 1)
    task = rl.Pinned(jax.tree.map(lambda leaf: leaf[0], params.params), {"goal": jnp.array([4, 2])})
    _, _, reward, terminated, _ = many(family, task, jnp.int32(1), 500)
    np.testing.assert_array_equal(reward, terminated)
    assert abs(reward.mean() - 2 / 3) < 4 * np.sqrt(2 / 9 / 500)  # a third of the moves go elsewhere

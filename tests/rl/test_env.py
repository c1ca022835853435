"""Trials of a scripted environment, and what the adapter makes of gymnax's environments and of a user's own."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import rl

pytestmark = pytest.mark.usefixtures("strict_shapes")


def ladder(max_steps=3):
    """Observes 100 + steps, pays the number of the step, is terminated by action 1."""

    def reset(key, params):
        return jnp.full(1, 100.0), jnp.int32(0)

    def step(key, state, action, params):
        state = state + 1
        return jnp.full(1, 100.0) + state, state, state.astype(float), action == 1

    return rl.Environment(reset, step, rl.Discrete(3), max_steps)


def script(key, actions, carry, inputs):
    """Plays the actions one after the other; its carry counts."""
    return actions[carry], carry + 1, carry


ACTIONS = jnp.array([0, 2, 0, 1, 0, 0, 1, 0], jnp.int32)  # truncated, terminated, both at once, cut off


def play(trial, actions=ACTIONS, carry=0):
    return rl.rollout(jax.random.key(0), trial, script, actions, jnp.int32(carry), ())


def test_flags_final_observations_and_what_the_next_episode_sees():
    _, t = play(rl.trial(ladder(), num_steps=8))
    equal = lambda actual, expected: np.testing.assert_array_equal(actual, np.array(expected))

    equal(t.action, ACTIONS)
    equal(t.reward, [1, 2, 3, 1, 1, 2, 3, 1])
    equal(t.terminated, [False, False, False, True, False, False, True, False])
    equal(t.truncated, [False, False, True, False, False, False, True, False])
    equal(t.next_observation[:, 0], [101, 102, 103, 101, 101, 102, 103, 101])  # before any reset
    equal(t.mask, [True] * 8)

    seen = t.inputs
    equal(seen.observation[:, 0], [100, 101, 102, 100, 100, 101, 102, 100])
    equal(seen.action, [-1, 0, 2, 0, 1, 0, 0, 1])  # the last action of an episode too
    equal(seen.no_action, [True] + [False] * 7)
    equal(seen.reward, [0, 1, 2, 3, 1, 1, 2, 3])  # the last reward of an episode too
    equal(seen.done, [True, False, False, True, True, False, False, True])
    equal(seen.time, [0, 1, 2, 0, 0, 1, 2, 0])


def test_the_carry_is_kept_across_episodes_and_is_the_given_one_in_the_next_trial():
    trial = rl.trial(ladder(), num_steps=8)
    carry, t = play(trial)
    assert int(carry) == 8
    np.testing.assert_array_equal(t.extras, np.arange(8))
    again, t = play(trial)
    assert int(again) == 8 and int(t.extras[0]) == 0


def test_a_budget_of_episodes_masks_the_steps_after_them():
    trial = rl.trial(ladder(), num_episodes=3)
    assert trial.num_steps == 9
    _, t = play(trial, jnp.array([0, 1, 1, 0, 0, 1, 0, 0, 0], jnp.int32))  # 2 + 1 + 3 steps
    np.testing.assert_array_equal(t.mask, [True] * 6 + [False] * 3)
    np.testing.assert_array_equal(t.reward, [1, 2, 1, 1, 2, 3, 0, 0, 0])
    assert rl.trial(ladder()).num_steps == 3


def test_no_action_has_an_encoding_of_its_own():
    environment = ladder()
    trial = rl.trial(environment, num_steps=8)
    _, t = play(trial)
    encoded = jax.vmap(trial.encode)(t.inputs)
    # observation, three actions, no_action, reward, done
    np.testing.assert_array_equal(encoded[0], [100, 0, 0, 0, 1, 0, 1])
    np.testing.assert_array_equal(encoded[1], [101, 1, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(encoded[3], [100, 1, 0, 0, 0, 3, 1])
    timed = rl.trial(environment._replace(observe_time=True), num_steps=8)
    np.testing.assert_allclose(jax.vmap(timed.encode)(t.inputs)[:, -1], np.array([0, 1, 2, 0, 0, 1, 2, 0]) / 3)


def test_a_continuous_action_is_seen_as_it_is_and_zero_with_a_flag_before_the_first():
    environment = rl.families.navigation().environment
    trial = rl.trial(environment, num_steps=2)
    policy = lambda key, params, carry, inputs: (jnp.array([0.0, -3.0]), carry, ())
    _, t = rl.rollout(jax.random.key(0), trial, policy, (), (), rl.families.Goal(jnp.array([0.5, 0.5])))
    np.testing.assert_array_equal(t.inputs.action, [[0, 0], [0, -3]])
    encoded = jax.vmap(trial.encode)(t.inputs)  # two observations, two actions, no_action, reward, done
    np.testing.assert_allclose(encoded, [[0, 0, 0, 0, 1, 0, 1], [0, -0.1, 0, -3, 0, -np.hypot(0.5, 0.6), 0]], rtol=1e-6)


def test_an_action_of_another_shape_is_refused():
    policy = lambda key, params, carry, inputs: (jnp.zeros(1, jnp.int32), carry, ())
    with pytest.raises(ValueError, match=r"action must have the shape \(\) .* got \(1,\)"):
        rl.rollout(jax.random.key(0), rl.trial(ladder()), policy, (), (), ())


def test_not_both_budgets():
    with pytest.raises(ValueError, match="give num_episodes or num_steps, not both"):
        rl.trial(ladder(), num_episodes=1, num_steps=1)


@flax.struct.dataclass
class OwnState:
    goal: jax.Array
    time: int


class Own:
    """A user's environment with gymnax's API, careless about types, that draws its task inside reset."""

    def reset_env(self, key, params):
        state = OwnState(jax.random.uniform(key, (2,)), 0)
        return self.observe(key, state, None, params), state

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1.0)
        return self.observe(key, state, action, params), state, 1, state.time >= 2, {}

    def observe(self, key, state, action, params):
        return {"goal": state.goal, "scale": params}

    def action_space(self, params):
        return rl.Discrete(2)


def test_a_users_environment_with_gymnaxs_api_and_a_task_that_it_draws_in_reset():
    environment = rl.from_gymnax(Own(), max_steps=5)
    trial = rl.trial(environment, num_steps=6)
    policy = lambda key, params, carry, inputs: (jnp.int32(0), carry, ())
    goal = jnp.array([3.0, 4.0])
    run = jax.jit(lambda task: rl.rollout(jax.random.key(0), trial, policy, (), (), task)[1])

    pinned = run(rl.Pinned(jnp.float32(7.0), {"goal": goal}))
    np.testing.assert_array_equal(pinned.terminated, [False, True] * 3)
    np.testing.assert_array_equal(pinned.inputs.observation["goal"], jnp.stack([goal] * 6))  # observed anew
    np.testing.assert_array_equal(pinned.next_observation["goal"], jnp.stack([goal] * 6))
    np.testing.assert_array_equal(pinned.inputs.observation["scale"], np.full(6, 7.0))

    free = run(jnp.float32(7.0))  # the control: without pins, each episode has another task
    assert len(np.unique(free.next_observation["goal"][:, 0])) == 3


def test_one_line_makes_a_family_of_a_users_environment():
    """Any function of a key; the task stays, also where the environment draws one inside reset."""
    draw = lambda key: rl.Pinned(jnp.float32(7.0), {"goal": jax.random.normal(key, (2,))})
    family = rl.family(rl.from_gymnax(Own(), max_steps=5), draw)

    def run(key):
        task_key, key = jax.random.split(key)
        task = family.train.sample(task_key, family.train.data)
        policy = rl.oracles.random_policy(family.environment.action_space)
        return task, rl.rollout(key, rl.trial(family.environment, num_episodes=3), *policy, task)[1]

    tasks, t = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 4))
    assert len(np.unique(tasks.pins["goal"], axis=0)) == 4
    for seen in (t.inputs.observation["goal"], t.next_observation["goal"]):
        np.testing.assert_array_equal(seen, jnp.stack([tasks.pins["goal"]] * 15, axis=1))


def test_the_final_observation_is_bootstrapped_from_unless_it_is_terminal():
    """V(o) = o and λ = 0: r + γ V(next) (1 − terminated) − V(o), whatever is seen next."""
    _, t = play(rl.trial(ladder(), num_steps=8))
    value = lambda observation: observation[:, 0]
    arguments = (t.reward, value(t.inputs.observation), value(t.next_observation), t.terminated, t.truncated)
    advantages = rl.returns.gae(*arguments, discount=0.5, lambda_=0.0).advantage
    expected = [
        1 + 101 / 2 - 100,
        2 + 102 / 2 - 101,
        3 + 103 / 2 - 102,
        1 - 100,
        1 + 101 / 2 - 100,
        2 + 102 / 2 - 101,
        3 - 102,
        1 + 101 / 2 - 100,
    ]
    np.testing.assert_allclose(advantages, expected, rtol=1e-6)


def test_a_time_limit_of_its_own_is_refused():
    class Impatient(Own):
        def is_truncated(self, state, params):
            return state.time > 1

    with pytest.raises(ValueError, match=r"must not define is_truncated.*Impatient\.is_truncated"):
        rl.from_gymnax(Impatient(), max_steps=5)


def test_action_spaces_that_are_neither_are_refused():
    class Pixels(Own):
        def action_space(self, params):
            return "pixels"

    with pytest.raises(ValueError, match="discrete actions or a vector"):
        rl.from_gymnax(Pixels(), max_steps=5)


def test_gymnax_environments_behind_the_adapter_are_gymnaxs():
    """Step by step the same as `step_env`; the horizon is that of the default params."""
    env, params = rl.make_gymnax("CartPole-v1")
    environment = rl.from_gymnax("CartPole-v1")
    assert environment.max_steps == 500 and environment.action_space == rl.Discrete(2)
    observation, state = environment.reset(jax.random.key(0), params)
    expected, gymnax_state = env.reset_env(jax.random.key(0), params)
    np.testing.assert_array_equal(observation, expected)
    ours, theirs = jax.jit(environment.step), jax.jit(env.step_env)
    for i in range(20):
        action = jnp.int32(i % 3 == 0)
        observation, state, reward, terminated = ours(jax.random.key(i), state, action, params)
        expected, gymnax_state, gymnax_reward, gymnax_terminated, _ = theirs(
            jax.random.key(i), gymnax_state, action, params
        )
        np.testing.assert_allclose(observation, expected, rtol=1e-6)
        assert reward == gymnax_reward and terminated == gymnax_terminated


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"environment must be one of .*CartPole-v1.*got 'Pendulum'"):
        rl.from_gymnax("Pendulum")

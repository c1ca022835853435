"""Trials of a scripted environment: episodes, what is seen, which actions it gets, and what it may not return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
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


def test_a_continuous_action_is_seen_in_units_of_its_box_and_is_zero_with_a_flag_before_the_first():
    environment = rl.families.navigation().environment
    play = lambda trial, policy: rl.rollout(
        jax.random.key(0), trial, policy, (), (), rl.families.Goal(jnp.full(2, 0.5))
    )
    trial = rl.trial(environment, num_steps=2)
    _, t = play(trial, lambda key, params, carry, inputs: (jnp.array([0.05, -3.0]), carry, ()))
    np.testing.assert_array_equal(t.inputs.action, np.array([[0, 0], [0.05, -3]], np.float32))
    encoded = jax.vmap(trial.encode)(t.inputs)  # two observations, two actions, no_action, reward, done
    second = [0.05, -0.1, 0.5, -30, 0, -np.hypot(0.45, 0.6), 0]
    np.testing.assert_allclose(encoded, [[0, 0, 0, 0, 1, 0, 1], second], rtol=1e-5)

    # the same in other units, of a box that is not around 0
    moved = lambda key, state, action, task: environment.step(key, state, (action - 7) / 40, task)
    box = rl.Continuous(np.full(2, 3.0), np.full(2, 11.0))
    elsewhere = rl.trial(environment._replace(step=moved, action_space=box), num_steps=2)
    _, t = play(elsewhere, lambda key, params, carry, inputs: (jnp.array([9.0, -113.0]), carry, ()))
    np.testing.assert_allclose(jax.vmap(elsewhere.encode)(t.inputs), encoded, rtol=1e-5)


def test_an_action_of_another_shape_is_refused():
    policy = lambda key, params, carry, inputs: (jnp.zeros(1, jnp.int32), carry, ())
    with pytest.raises(ValueError, match=r"action must have the shape \(\) .* got \(1,\)"):
        rl.rollout(jax.random.key(0), rl.trial(ladder()), policy, (), (), ())


def test_not_both_budgets():
    with pytest.raises(ValueError, match="give num_episodes or num_steps, not both"):
        rl.trial(ladder(), num_episodes=1, num_steps=1)


def test_the_final_observation_is_bootstrapped_from_unless_it_is_terminal():
    """V(o) = o and λ = 0: r + γ V(next) (1 − terminated) − V(o), whatever is seen next."""
    _, t = play(rl.trial(ladder(), num_steps=8))
    value = lambda observation: observation[:, 0]
    arguments = (t.reward, value(t.inputs.observation), value(t.next_observation), t.terminated, t.truncated)
    advantages = rl.returns.gae(*arguments, discount=0.5, lambda_=0.0).advantage
    first, second = 1 + 101 / 2 - 100, 2 + 102 / 2 - 101
    expected = [first, second, 3 + 103 / 2 - 102, 1 - 100, first, second, 3 - 102, first]
    np.testing.assert_allclose(advantages, expected, rtol=1e-6)


# Actions: one check of what there are, and one place that holds them to the box.


def slope(low=-0.5, high=2.0):
    """Pays the action that it is given, as it is."""

    def step(key, state, action, params):
        return jnp.zeros(1), state, action[0], jnp.bool_(False), {"given": action}

    box = rl.Continuous(np.array([low], np.float32), np.array([high], np.float32))
    return rl.Environment(lambda key, params: (jnp.zeros(1), ()), step, box, 3)


def test_an_environment_that_does_not_clip_gets_the_nearest_action_of_its_box():
    """The policy's own is recorded, and seen as the previous one."""
    policy = lambda key, actions, t, inputs: (actions[t][None], t + 1, ())
    actions = jnp.array([1.0, 7.0, -3.0])
    _, t = rl.rollout(jax.random.key(0), rl.trial(slope()), policy, actions, jnp.int32(0), ())
    np.testing.assert_array_equal(t.reward, [1.0, 2.0, -0.5])
    np.testing.assert_array_equal(t.info["given"][:, 0], [1.0, 2.0, -0.5])
    np.testing.assert_array_equal(t.action[:, 0], actions)
    np.testing.assert_array_equal(t.inputs.action[:, 0], [0.0, 1.0, 7.0])


BOUND = np.ones(2, np.float32)
BAD_SPACES = {
    "unbounded": (rl.Continuous(-np.inf * BOUND, np.inf * BOUND), "must have finite bounds.*_replace"),
    "half bounded": (rl.Continuous(0 * BOUND, np.inf * BOUND), "must have finite bounds"),
    "of a width that is not finite": (rl.Continuous(-3e38 * BOUND, 3e38 * BOUND), "must have finite bounds"),
    "nan": (rl.Continuous(np.nan * BOUND, BOUND), "must have finite bounds"),
    "upside down": (rl.Continuous(BOUND, -BOUND), "must have low < high"),
    "without width": (rl.Continuous(BOUND, BOUND), "must have low < high"),
    "lists": (rl.Continuous([-1.0, -1.0], [1.0, 1.0]), r"low of action_space.* must be an array of shape \[A\]"),
    "scalars": (rl.Continuous(-1.0, 1.0), r"low of action_space.* must be an array of shape \[A\].*np\.full"),
    "matrices": (rl.Continuous(-np.ones((2, 2)), np.ones((2, 2))), r"low of action_space.* of shape \[A\]"),
    "empty": (rl.Continuous(np.ones(0), np.ones(0)), r"low of action_space.* of shape \[A\]"),
    "booleans": (rl.Continuous(np.zeros(2, bool), np.ones(2, bool)), r"low of action_space.* of shape \[A\]"),
    "unequal": (rl.Continuous(-BOUND, np.ones(3)), r"low and high .* same shape, got \(2,\) and \(3,\)"),
    "none": (rl.Discrete(0), "num_actions of action_space.* integer >= 1, got 0"),
    "a fraction": (rl.Discrete(2.5), "num_actions of action_space.* got 2.5"),
    "a truth": (rl.Discrete(True), "num_actions of action_space.* got True"),
    "gymnasium's": ("Box(2,)", "action_space.* must be Discrete or Continuous"),
}


@pytest.mark.parametrize("name", BAD_SPACES)
def test_action_spaces_that_no_policy_can_use_are_refused(name):
    space, message = BAD_SPACES[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        rl.trial(slope()._replace(action_space=space))


def test_every_learner_looks_at_the_action_space():
    family = rl.families.navigation()
    unbounded = rl.Continuous(-np.inf * BOUND, np.inf * BOUND)
    family = family._replace(environment=family.environment._replace(action_space=unbounded))
    policy = rl.mlp_policy(rl.families.navigation())
    for make in (
        lambda: jaxmeta.maml_rl(*policy, family.environment),
        lambda: jaxmeta.promp(*policy, family.environment),
        lambda: jaxmeta.e_maml(*policy, family.environment),
        lambda: jaxmeta.rl2(family),
        lambda: jaxmeta.mlp_actor_critic(family),
        lambda: jaxmeta.mlp_encoder(family, latent_size=2),
        lambda: rl.mlp_policy(family),
        lambda: rl.oracles.random_policy(unbounded),
        lambda: rl.family(family.environment, lambda key: rl.families.Goal(jax.random.normal(key, (2,)))),
        lambda: rl.finite_family(family.environment, *[rl.families.Goal(jnp.zeros((1, 2)))] * 2),
    ):
        with pytest.raises(ValueError, match="action_space.*must have finite bounds"):
            make()


def test_whole_numbers_and_arrays_of_jax_are_bounds_too():
    for low, high in ((-np.ones(2, int), np.ones(2, int)), (-jnp.ones(2), jnp.ones(2))):
        rl.trial(slope()._replace(action_space=rl.Continuous(low, high)))
    rl.trial(ladder()._replace(action_space=rl.Discrete(np.int64(3))))


def test_a_real_action_for_a_discrete_space_is_refused():
    policy = lambda key, params, carry, inputs: (jnp.float32(0.7), carry, ())
    with pytest.raises(ValueError, match="action must be an integer.*float32"):
        rl.rollout(jax.random.key(0), rl.trial(ladder()), policy, (), (), ())


# What the environment returns.


def returning(step=None, reset=None):
    """The ladder with another end of its functions."""
    base, same = ladder(), lambda *returned: returned
    return base._replace(
        reset=lambda *args: (reset or same)(*base.reset(*args)),
        step=lambda *args: (step or same)(*base.step(*args)),
    )


WRONG = {
    "a reward of shape (1,)": (
        {"step": lambda o, s, r, end: (o, s, r[None], end)},
        r"reward of step of environment must be of shape \(\).*got float32 of shape \(1,\)",
    ),
    "a complex reward": (
        {"step": lambda o, s, r, end: (o, s, r * 1j, end)},
        "reward of step of environment must be .*got complex64",
    ),
    "an integer terminated": (
        {"step": lambda o, s, r, end: (o, s, r, end.astype(int))},
        "terminated of step of environment must be .*a boolean.*got int32",
    ),
    "three values": (
        {"step": lambda o, s, r, end: (o, s, r)},
        r"step of environment must return \(observation, state, reward, terminated, info\).*got 3 values",
    ),
    "six values": ({"step": lambda o, s, r, end: (o, s, r, end, end, {})}, "step of environment .*got 6 values"),
    "an info that is no dict": ({"step": lambda *returned: (*returned, 1.0)}, "info of step of environment .* a dict"),
    "another observation": (
        {"step": lambda o, s, r, end: (jnp.append(o, 1.0), s, r, end)},
        r"observation of step of environment must be as it is from the reset, float32 of shape \(1,\); .* \(2,\)",
    ),
    "observations of two types": (
        {"reset": lambda o, s: (o.astype(int), s)},
        r"observation of step of environment must be as it is from the reset, int32 .*got float32",
    ),
    "another structure": (
        {"step": lambda o, s, r, end: ({"place": o}, s, r, end)},
        "observation of step of environment must have the structure",
    ),
    "a state that changes its type": (
        {"step": lambda o, s, r, end: (o, s + 0.5, r, end)},
        r"state of step of environment must be as it is from the reset, int32 .*got float32",
    ),
    "a reset without a state": ({"reset": lambda o, s: o}, r"reset of environment must return \(observation, state\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_an_environment_may_not_return_is_named_while_tracing(name):
    changes, message = WRONG[name]
    environment = returning(**changes)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        jax.eval_shape(lambda: rl.rollout(jax.random.key(0), rl.trial(environment), script, ACTIONS, jnp.int32(0), ()))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        rl.finite_family(environment, jnp.zeros(1), jnp.zeros(1))


def test_states_and_info_are_kept_for_who_draws_them():
    """The state is the one that the policy acted in: the number of steps, anew in each episode."""
    environment = returning(step=lambda o, s, r, end: (o, s, r, end, {"success": s == 3, "steps": s}))
    trial = rl.trial(environment, num_steps=8)
    run = lambda **keep: rl.rollout(jax.random.key(0), trial, script, ACTIONS, jnp.int32(0), (), **keep)[1]
    t = run(keep_states=True)
    np.testing.assert_array_equal(t.state, [0, 1, 2, 0, 0, 1, 2, 0])
    np.testing.assert_array_equal(t.info["steps"], [1, 2, 3, 1, 1, 2, 3, 1])
    np.testing.assert_array_equal(t.info["success"], np.array(t.info["steps"]) == 3)
    assert run().state == () and play(rl.trial(ladder()))[1].info == {}


@pytest.mark.parametrize("action", [2, 7, -1])
def test_an_action_that_there_is_not_pays_nan(action):
    """jax takes the last one for any beyond it; after the trial nothing is paid all the same."""
    bandit = rl.families.bernoulli_bandit(num_arms=2, num_pulls=3)
    task = rl.families.Bandit(jnp.ones(2))
    policy = lambda key, params, carry, inputs: (params, carry, ())
    played = lambda action: rl.rollout(jax.random.key(0), rl.trial(bandit.environment), policy, action, (), task)[1]
    assert jnp.all(jnp.isnan(played(jnp.int32(action)).reward))
    np.testing.assert_array_equal(played(jnp.int32(1)).reward, [1, 1, 1])

"""Families: tasks that are drawn, tasks that are listed, and environments whose task does not stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import nn, rl

pytestmark = pytest.mark.usefixtures("strict_shapes")


def walk(reset=None, step=None):
    """Along a line to a goal that is given as the task, from anywhere; the state is {"goal", "place"}."""
    observe = lambda state: state["place"][None]
    first = reset or (lambda key, goal: {"goal": goal, "place": jax.random.normal(key)})
    move = step or (lambda key, state, action: {**state, "place": state["place"] + action})

    def reset_fn(key, goal):
        state = first(key, goal)
        return observe(state), state

    def step_fn(key, state, action, goal):
        state = move(key, state, action)
        return observe(state), state, -jnp.abs(state["place"] - state["goal"]), jnp.bool_(False)

    return rl.Environment(reset_fn, step_fn, rl.Discrete(2), 5)


def of(environment):
    return rl.family(environment, jax.random.normal)


def two(key):
    goal_key, place_key = jax.random.split(key)
    return {"goal": jax.random.normal(goal_key), "place": jax.random.normal(place_key)}


draws_its_goal = lambda key, goal: two(key)
STEPS = {
    "plain": None,
    "compiled": jax.jit(lambda key, state, action: {**state, "place": state["place"] + action}),
    "kept where the action is 0": lambda key, state, action: jax.tree.map(
        lambda old, new: jnp.where(action == 0, old, new), state, {**state, "place": state["place"] + 1}
    ),
    "repeated": lambda key, state, action: jax.lax.fori_loop(
        0, 4, lambda i, state: {**state, "place": state["place"] + action}, state
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_reset_that_draws_the_goal_is_noticed(name):
    environment = walk(draws_its_goal, STEPS[name])
    message = r"environment must leave the task .*reset draws goal, which no step changes.*initial=\('goal',\)"
    with pytest.raises(ValueError, match=message):
        of(environment)
    with pytest.raises(ValueError, match=message):
        rl.finite_family(environment, jnp.zeros(2), jnp.zeros(2))
    of(environment._replace(initial=("goal",)))


def test_one_array_that_is_the_state_is_called_so():
    environment = rl.Environment(
        lambda key, task: (jnp.zeros(1), jax.random.normal(key)),
        lambda key, state, action, task: (jnp.zeros(1), state, state, jnp.bool_(False)),
        rl.Discrete(2),
        5,
    )
    with pytest.raises(ValueError, match=r"reset draws state, which"):
        of(environment)
    of(environment._replace(initial=("state",)))


@pytest.mark.parametrize("name", STEPS)
def test_a_goal_that_is_the_task_and_a_random_start_are_fine(name):
    of(walk(step=STEPS[name]))


def test_resets_that_are_compiled_or_branch_do_not_look_as_if_they_drew():
    """What they take from the task comes through beside what they draw."""
    start = lambda key, goal: {"goal": goal, "place": jax.random.normal(key)}
    branch = lambda key, goal: {
        "goal": goal,
        "place": jax.lax.cond(goal > 0, lambda: jax.random.normal(key), lambda: jnp.zeros(())),
    }
    for reset in (jax.jit(start), branch):
        of(walk(reset))


def test_one_task_for_ever_has_to_be_said():
    """np.random draws once, while tracing: every task is that one."""
    environment, fixed = walk(), np.random.default_rng(0).normal()
    for sample in (lambda key: jnp.float32(0.5), lambda key: jnp.float32(fixed)):
        with pytest.raises(ValueError, match=r"sample_fn must draw with jax\.random and the key.*finite_family"):
            rl.family(environment, sample)
        with pytest.raises(ValueError, match=r"test_sample_fn must draw with jax\.random"):
            rl.family(environment, jax.random.normal, sample)
    for sample in (
        lambda key: jnp.float32(np.random.normal()),
        lambda key: np.random.normal() * jax.random.normal(key),
    ):
        with pytest.raises(ValueError, match=r"sample_fn must be a pure function.*np\.random"):
            rl.family(environment, sample)
    one = rl.finite_family(environment, jnp.array([0.5]), jnp.array([0.5]))
    assert one.train.sample(jax.random.key(3), one.train.data) == 0.5


def test_an_environment_that_draws_with_numpy_is_noticed():
    place = lambda: jnp.float32(np.random.normal())
    for environment, name in (
        (walk(lambda key, goal: {"goal": goal, "place": place()}), "reset"),
        (walk(step=lambda key, state, action: {**state, "place": state["place"] + place()}), "step"),
    ):
        with pytest.raises(ValueError, match=rf"{name} of environment must be a pure function.*np\.random"):
            of(environment)


def test_what_an_environment_draws_of_a_task_is_drawn_with_it():
    """`draw` takes the params of the sampler, and a key that is not the sampler's."""
    environment = walk()._replace(draw=lambda key, goal: goal + 10 * jnp.round(jax.random.uniform(key)))
    family = rl.family(environment, lambda key: jax.random.uniform(key))
    tasks = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(0), 200), ())
    shares = np.histogram(tasks, [0, 0.5, 1, 10, 10.5, 11])[0] / 200
    np.testing.assert_allclose(shares, [0.25, 0.25, 0, 0.25, 0.25], atol=0.12)


def test_a_finite_family_has_its_tasks_by_their_number():
    goals = np.array([3.0, 1.0, 2.0])
    family = rl.finite_family(walk(), goals, goals[:1])
    assert (family.train.size, family.test.size) == (3, 1)
    at = jax.jit(jax.vmap(family.train.at, (0, None)))(jnp.array([2, 0, 1]), family.train.data)
    np.testing.assert_array_equal(at, goals[[2, 0, 1]])
    assert at.dtype == jnp.float32 and not at.weak_type
    drawn = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(0), 50), goals)
    assert {*np.asarray(drawn)} == {1.0, 2.0, 3.0}
    assert of(walk()).train.size is None and of(walk()).train.at is None


@pytest.mark.parametrize(("arms", "given"), [(2, 5), (5, 2)])
def test_tasks_of_another_number_of_arms_are_refused(arms, given):
    """jax hands out the last arm for each beyond it, and what a policy has no action for is never played."""
    family, other = (rl.families.bernoulli_bandit(num_arms=number) for number in (arms, given))
    learners = [
        jaxmeta.rl2(family, actor=nn.gru(2)),
        jaxmeta.maml_rl(*rl.mlp_policy(family, hidden=()), family.environment, num_episodes=1),
        rl.reference_learner(rl.oracles.ucb1(arms), family.environment),
    ]
    for learner in learners:
        meta_params = learner.init(jax.random.key(0)).meta_params
        message = rf"means of task must be of shape \({arms},\), as those of the family are, got float32\[{given}\]"
        with pytest.raises(ValueError, match=message):
            jaxmeta.evaluate(jax.random.key(1), learner, other.test, meta_params, num_tasks=2)

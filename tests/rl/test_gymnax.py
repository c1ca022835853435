"""What the adapter makes of gymnax's environments and of a user's own: pins, action spaces, what they return."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import rl
from jaxmeta.rl import gymnax as adapter
from jaxmeta.rl.tasks import _drawn_and_kept
from jaxmeta.traced import used_inputs

pytestmark = pytest.mark.usefixtures("strict_shapes")


@flax.struct.dataclass
class OwnState:
    goal: jax.Array
    time: float


class Own:
    """A user's environment with gymnax's API, careless about types, that draws its task inside reset."""

    def reset_env(self, key, params):
        state = OwnState(jax.random.uniform(key, (2,)), 0.0)
        return self.observe(key, state, None, params), state

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1)
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


def test_a_time_limit_of_its_own_is_refused():
    class Impatient(Own):
        def is_truncated(self, state, params):
            return state.time > 1

    with pytest.raises(ValueError, match=r"must not define is_truncated.*Impatient\.is_truncated"):
        rl.from_gymnax(Impatient(), max_steps=5)


class Space:
    """What gymnasium's spaces and gymnax's have: attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


def space(name, **attributes):
    return type(name, (Space,), {})(**attributes)


SPACES = {
    "MultiBinary": (space("MultiBinary", n=4, shape=(4,)), r"Discrete\(16\).*unravel_index\(action, \(2, 2, 2, 2\)\)"),
    "MultiBinary of a matrix": (space("MultiBinary", n=np.array([2, 1]), shape=(2, 1)), r"Discrete\(4\)"),
    "MultiBinary without a shape": (space("MultiBinary", n=3), r"Discrete\(8\)"),
    "MultiDiscrete": (space("MultiDiscrete", nvec=np.array([3, 2]), shape=(2,)), r"Discrete\(6\).*\(3, 2\)"),
    "Discrete from 5": (space("Discrete", n=3, shape=(), start=5), r"Discrete\(3\), from 0 on, and add 5"),
    "Tuple": (space("Tuple", spaces=(1, 2), shape=None), "one Discrete with every combination, or one Box"),
    "Dict": (space("Dict", spaces={"a": 1}, shape=None), "one Discrete with every combination, or one Box"),
    "Box of images": (space("Box", low=0, high=1, shape=(2, 2), dtype=np.float32), "a vector of real numbers"),
    "Box of integers": (space("Box", low=0, high=9, shape=(2,), dtype=np.int32), "a vector of real numbers"),
    "Text": ("pixels", "got str"),
}


@pytest.mark.parametrize("name", SPACES)
def test_action_spaces_of_another_kind_are_refused_with_the_way_out(name):
    of_space, message = SPACES[name]
    with pytest.raises(ValueError, match=f"action_space of environment must be.*{message}"):
        rl.from_gymnax(acting(of_space), max_steps=5)


def test_action_spaces_of_gymnasium_are_ours():
    environment = rl.from_gymnax(acting(space("Discrete", n=np.int64(3), shape=(), start=np.int64(0))), max_steps=5)
    assert environment.action_space == rl.Discrete(3)
    box = rl.from_gymnax(
        acting(space("Box", low=-2.0, high=1.0, shape=(3,), dtype=np.float32)), max_steps=5
    ).action_space
    np.testing.assert_array_equal(box, [[-2] * 3, [1] * 3])
    unbounded = rl.from_gymnax(
        acting(space("Box", low=-np.inf, high=np.inf, shape=(1,), dtype=np.float32)), max_steps=5
    )
    with pytest.raises(ValueError, match="must have finite bounds"):
        rl.trial(unbounded)


def acting(of_space):
    """A user's environment with these actions."""

    class Acting(Own):
        def action_space(self, params):
            return of_space

    return Acting()


def returning(wrong):
    """A user's environment that returns something else from its step."""

    class Wrong(Own):
        def step_env(self, *args):
            return wrong(*super().step_env(*args))

    return rl.from_gymnax(Wrong(), max_steps=5, pins=("goal",))


WRONG = {
    "four values": (lambda o, s, r, end, info: (o, s, r, end), "step_env of Wrong must return .*got 4 values"),
    "six values": (lambda o, s, r, end, info: (o, s, r, end, end, info), "step_env of Wrong .*got 6 values"),
    "a reward of shape (1,)": (
        lambda o, s, r, end, info: (o, s, jnp.ones(1), end, info),
        "reward of step_env of Wrong",
    ),
    "integers": (lambda o, s, r, end, info: (o, s, r, jnp.int32(end), info), "terminated of step_env of Wrong.*int32"),
    "a real time": (
        lambda o, s, r, end, info: (o, s.replace(goal=s.goal > 0, time=jnp.ones(2)), r, end, info),
        r"state time of step_env of Wrong must be as it is from the reset, float32 of shape \(\); got .* \(2,\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_step_env_may_not_return_is_named_when_the_family_is_made(name):
    wrong, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        rl.family(returning(wrong), lambda key: jax.random.normal(key))


def test_a_state_keeps_its_kind_of_numbers():
    """A whole number in the place of a real one is one; a real one in the place of a whole one would be cut off."""

    class Timed(Own):
        def step_env(self, key, state, action, params):
            observation, state, *rest = super().step_env(key, state, action, params)
            return observation, state.replace(time=jnp.int32(3)), *rest

    class Cut(Own):
        def reset_env(self, key, params):
            observation, state = super().reset_env(key, params)
            return observation, state.replace(time=0)

        def step_env(self, key, state, action, params):
            observation, state, *rest = super().step_env(key, state, action, params)
            return observation, state.replace(time=state.time + 0.5), *rest

    draw = jax.random.normal
    family = rl.family(rl.from_gymnax(Timed(), max_steps=5, pins=("goal",)), draw)
    task = family.train.sample(jax.random.key(0), ())
    _, state = family.environment.reset(jax.random.key(1), task)
    state = family.environment.step(jax.random.key(2), state, jnp.int32(0), task)[1]
    assert state.time == 3 and state.time.dtype == jnp.float32
    with pytest.raises(ValueError, match="state time of step_env of Cut must be .* int32 .*got float32"):
        rl.family(rl.from_gymnax(Cut(), max_steps=5, pins=("goal",)), draw)


# Tasks that are drawn inside reset.

NAMES = {
    "BernoulliBandit": "BernoulliBandit-misc",
    "DeepSea": "DeepSea-bsuite",
    "FourRooms": "FourRooms-misc",
    "GaussianBandit": "GaussianBandit-misc",
    "MemoryChain": "MemoryChain-bsuite",
    "MetaMaze": "MetaMaze-misc",
    "PointRobot": "PointRobot-misc",
    "Reacher": "Reacher-misc",
    "SimpleBandit": "SimpleBandit-bsuite",
    "Swimmer": "Swimmer-misc",
    "UmbrellaChain": "UmbrellaChain-bsuite",
}
DOWNLOADS = "MNISTBandit-bsuite"


@pytest.fixture
def loose_shapes():
    """Swimmer's own step lets a vector and a matrix broadcast."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_what_is_known_of_gymnaxs_environments_is_what_their_resets_draw(monkeypatch, loose_shapes):
    """Of all that are registered: without the tables, what a reset draws and no step changes is what is in them."""
    import gymnax

    pins, initial = adapter.PINS, adapter.INITIAL
    assert pins.keys() == NAMES.keys()
    monkeypatch.setattr(adapter, "PINS", {})
    for name in sorted({*gymnax.registered_envs} - {DOWNLOADS}):
        env, params = rl.make_gymnax(name)
        kind = type(env).__name__
        moving = _drawn_and_kept(rl.from_gymnax(env), jax.eval_shape(lambda params=params: params))
        assert {*moving} == {*pins.get(kind, ()), *initial.get(kind, ())}, name


@pytest.mark.parametrize("kind", NAMES)
def test_a_family_pins_what_gymnax_would_draw_in_every_episode(kind, loose_shapes):
    """By traces: a reset leaves the pins alone, and a sampler draws them with its key."""
    environment, (_, params) = rl.from_gymnax(NAMES[kind]), rl.make_gymnax(NAMES[kind])
    draw = lambda key: jax.tree.map(jnp.asarray, params)
    key = jax.random.key(0)
    family = rl.family(environment, draw)
    task = jax.eval_shape(family.train.sample, key, ())
    assert {*task.pins} == {*adapter.PINS[kind]}
    for name in task.pins:
        drawn = jax.make_jaxpr(lambda key, name=name: family.train.sample(key, ()).pins[name])(key)
        kept = jax.make_jaxpr(lambda key, task, name=name: getattr(environment.reset(key, task)[1], name))(key, task)
        assert used_inputs(drawn)[0] and not used_inputs(kept)[0]
    with pytest.raises(ValueError, match=rf"a task of {kind} must be Pinned\(params, .*reset draws"):
        jax.eval_shape(environment.reset, key, params)


def test_six_resets_of_one_task_have_one_goal():
    """The issue's: in one line, without `Pinned`; and other tasks have other goals."""
    _, params = rl.make_gymnax("PointRobot-misc")
    family = rl.family(rl.from_gymnax("PointRobot-misc"), lambda key: params)
    keys = jax.random.split(jax.random.key(0), 6)
    tasks = jax.vmap(family.train.sample, (0, None))(keys, ())
    reset = jax.jit(jax.vmap(lambda key, task: family.environment.reset(key, task)[1].goal, (0, None)))
    for i in range(2):
        task = jax.tree.map(lambda leaf, i=i: leaf[i], tasks)
        np.testing.assert_array_equal(reset(keys, task), np.stack([tasks.pins["goal"][i]] * 6))
    assert len(np.unique(tasks.pins["goal"], axis=0)) == 6
    np.testing.assert_allclose(np.linalg.norm(tasks.pins["goal"], axis=1), params.circle_radius, rtol=1e-5)


def test_a_user_names_the_pins_of_their_own_environment():
    environment = rl.from_gymnax(Own(), max_steps=5, pins=("goal",))
    task = rl.family(environment, jax.random.normal).train.sample(jax.random.key(0), ())
    _, state = environment.reset(jax.random.key(1), task)
    np.testing.assert_array_equal(state.goal, task.pins["goal"])
    with pytest.raises(ValueError, match=r'a task of Own must be Pinned\(params, \{"goal": \.\.\.\}\)'):
        environment.reset(jax.random.key(1), jnp.float32(0.0))
    with pytest.raises(ValueError, match=r"pins must be fields of the state of Own, goal, time; got 'gaol'"):
        rl.family(rl.from_gymnax(Own(), max_steps=5, pins=("gaol",)), jax.random.normal)
    with pytest.raises(ValueError, match=r"pins must be fields of the state of Own, goal, time; got 'gaol'"):
        rl.from_gymnax(Own(), max_steps=5).reset(jax.random.key(1), rl.Pinned(0.0, {"gaol": jnp.zeros(2)}))
    with pytest.raises(ValueError, match=r"pin goal must have the shape \(2,\).*got \(3,\)"):
        environment.reset(jax.random.key(1), rl.Pinned(0.0, {"goal": jnp.zeros(3)}))
    with pytest.raises(ValueError, match="pins must be names of fields"):
        rl.from_gymnax(Own(), max_steps=5, pins="goal")


def test_that_each_episode_draws_anew_has_to_be_said():
    with pytest.raises(
        ValueError, match=r"reset draws goal, which no step changes.*pins=\('goal',\).*initial=\('goal',\)"
    ):
        rl.family(rl.from_gymnax(Own(), max_steps=5), jax.random.normal)
    own = rl.from_gymnax(Own(), max_steps=5)._replace(initial=("goal",))
    robot = rl.from_gymnax("PointRobot-misc", pins=())
    for environment, draw in ((own, jax.random.normal), (robot, lambda key: goals_radius(jax.random.uniform(key)))):
        rl.family(environment, draw)


def goals_radius(radius):
    return rl.make_gymnax("PointRobot-misc")[1].replace(circle_radius=radius)


@pytest.mark.parametrize("name", ["Reacher-misc", "Swimmer-misc", "MountainCarContinuous-v0"])
def test_what_does_not_clip_gets_actions_of_its_box(name, loose_shapes):
    """3.6 times the bound, and the bound: one step of a trial and the next are the same."""
    environment, (_, params) = rl.from_gymnax(name), rl.make_gymnax(name)
    task = params if environment.draw is None else environment.draw(jax.random.key(0), params)
    trial, high = rl.trial(environment), jnp.asarray(environment.action_space.high)

    @jax.jit
    def run(scale):
        _, state = trial.reset(jax.random.key(1), task)
        _, state, outcome = trial.step(jax.random.key(2), state, scale * high, task)
        return state.env_state, outcome.reward

    inside, outside = run(1.0), run(3.6)
    jax.tree.map(np.testing.assert_array_equal, inside, outside)
    assert not all(map(np.array_equal, jax.tree.leaves(inside), jax.tree.leaves(run(0.5))))


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
        observation, state, reward, terminated, _ = ours(jax.random.key(i), state, action, params)
        expected, gymnax_state, gymnax_reward, gymnax_terminated, _ = theirs(
            jax.random.key(i), gymnax_state, action, params
        )
        np.testing.assert_allclose(observation, expected, rtol=1e-6)
        assert reward == gymnax_reward and terminated == gymnax_terminated


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"environment must be one of .*CartPole-v1.*got 'Pendulum'"):
        rl.from_gymnax("Pendulum")

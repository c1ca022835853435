"""Environments of the host behind the adapter: as a loop by hand plays them, whatever jax asks, in whatever order."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import rl
from jaxmeta.rl.gymnasium import _Host

HORIZON = 6


class Walk(gymnasium.Env):
    """A walk with noise of the environment's own generator; a task is its drift. Past 3 it is over."""

    action_space = gymnasium.spaces.Discrete(2)
    drift, spec = 0.0, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.drift + 0.5 * self.np_random.normal(size=2)
        return {"position": self.position.copy()}, {}

    def step(self, action):
        self.position += self.drift + (2 * action - 1) * 0.5 + 0.5 * self.np_random.normal(size=2)
        over = bool(np.abs(self.position).max() > 3)
        return {"position": self.position.copy()}, float(self.position.sum()), over, False, {}


def set_drift(env, task):
    env.unwrapped.drift = float(task["drift"])


def walk(make=Walk, set_task_fn=set_drift, max_steps=HORIZON):
    return rl.from_gymnasium(lambda: make(), set_task_fn, max_steps=max_steps)


def by_hand(task, seed, actions):
    """(observation, reward, terminated) after each of the actions, in float32 as jax has them."""
    env = Walk()
    set_drift(env, task)
    observations, rest = [env.reset(seed=int(seed))[0]["position"]], []
    for action in actions:
        observation, *brought, _, _ = env.step(int(action))
        observations.append(observation["position"])
        rest.append(brought)
    return np.float32(observations), *np.array(rest).T.astype(np.float32)


TASK = {"drift": jnp.float32(0.25)}


def test_a_rollout_over_tasks_is_what_a_loop_by_hand_plays():
    """In a trial under `vmap`, twice, and each episode of it is replayed by hand from its seed and its actions."""
    environment = walk()
    trial, agent = rl.trial(environment, num_steps=15), rl.oracles.random_policy(environment.action_space)
    run = lambda key, task: rl.rollout(key, trial, *agent, task, keep_states=True)[1]
    run = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (0, 0)))  # 2 trials of each of 2 tasks
    keys = jax.random.split(jax.random.key(0), (2, 2))
    tasks = {"drift": jnp.array([0.5, -1.0])}
    played = run(keys, tasks)
    jax.tree.map(np.testing.assert_array_equal, played, run(keys, tasks))

    num_episodes = 0
    for task, trial in np.ndindex(2, 2):
        t = jax.tree.map(lambda leaf, at=(task, trial): np.asarray(leaf[at]), played)
        for begin in np.flatnonzero(t.inputs.done):
            end = begin + 1
            while end < 15 and not t.inputs.done[end]:
                end += 1
            drift = {"drift": tasks["drift"][task]}
            observations, rewards, terminated = by_hand(drift, t.state.seed[begin], t.action[begin:end])
            np.testing.assert_array_equal(t.inputs.observation["position"][begin:end], observations[:-1])
            np.testing.assert_array_equal(t.next_observation["position"][begin:end], observations[1:])
            np.testing.assert_array_equal(t.reward[begin:end], rewards)
            np.testing.assert_array_equal(t.terminated[begin:end], terminated)
            num_episodes += 1
    assert num_episodes > 8 and played.terminated.any() and (played.truncated & ~played.terminated).any()
    assert len(np.unique(played.state.seed)) == num_episodes


class Played:
    """The host without jax: an episode of a seed and some actions, step by step."""

    def __init__(self, make=Walk, set_task_fn=set_drift, task=TASK, max_steps=HORIZON):
        self.host, self.task = _Host(make, set_task_fn, True, max_steps), {"drift": np.float32(task["drift"])}

    def reset(self, seed=0):
        return self.host.reset(self.task, np.int32(seed))

    def step(self, before, actions, seed=0):
        padded = np.zeros(HORIZON, np.int32)
        padded[: len(actions)] = actions
        return self.host.step(self.task, np.int32(seed), np.int32(len(actions) - 1), padded, before)


def test_any_state_goes_on_from_where_it_is():
    """Another action from a state that was gone on from, an old state after a hundred others, the same step again."""
    played = Played()
    path, actions = [played.reset()], [0, 1, 1, 0]
    for time in range(3):
        path.append(played.step(path[-1], actions[: time + 1])[0])
    for seed in range(100):  # what was kept of the first is gone
        played.reset(seed)
    for time, action in ((3, 0), (2, 0), (2, 1), (2, 1), (0, 1), (3, 1)):
        done = [*actions[:time], action]
        observation, reward, terminated = played.step(path[time], done)
        observations, rewards, over = by_hand(TASK, 0, done)
        np.testing.assert_array_equal(observation["position"], observations[-1])
        assert reward == rewards[-1] and terminated == over[-1]
    played.reset()
    other = {"drift": np.float32(-1.0)}  # with the same seed
    first, *_ = by_hand(other, 0, [])
    np.testing.assert_array_equal(played.host.reset(other, np.int32(0))["position"], first[0])


def test_environments_are_used_again():
    """However many episodes, whether they are over or left alone: as many as a batch needs, and no more."""
    made = []

    class Counted(Walk):
        def __init__(self):
            made.append(self)

    played = Played(Counted)
    for seed in range(50):
        before = played.reset(seed)
        for time in range(seed % (HORIZON + 1)):
            observation, _, terminated = played.step(before, [0, 1, 0, 1, 0, 1][: time + 1], seed)
            before = observation
            if terminated:
                break
    assert 1 <= len(made) <= 5


class Careless(Walk):
    """It shows the very array that it computes in."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = np.float32(self.position)
        return self.position, {}

    def step(self, action):
        _, *rest = super().step(action)
        return self.position, *rest


def test_arrays_are_nobodys_but_their_owners():
    """An environment changes the one that it showed, and a user keeps one of the task, whose memory is jax's."""

    def keep(env, task):
        env.unwrapped.drift = task["drift"]

    class Drifting(Careless):
        drift = np.zeros(2, np.float32)

    ours, theirs = _Host(Drifting, keep, True, HORIZON), Drifting()
    drift = np.array([0.25, -0.5], np.float32)
    theirs.drift = drift.copy()
    lent = {"drift": drift.copy()}
    first = ours.reset(lent, np.int32(3))
    np.testing.assert_array_equal(first, theirs.reset(seed=3)[0])
    lent["drift"][:] = 9.0
    actions = np.ones(HORIZON, np.int32)
    arguments = {"drift": drift}, np.int32(3), np.int32(0), actions
    second, *_ = ours.step(*arguments, first)
    np.testing.assert_array_equal(second, theirs.step(1)[0])
    pair = [np.stack([leaf, leaf]) for leaf in (drift, np.int32(3), actions)]  # the same step and the next, in a batch
    both, *_ = ours.step({"drift": pair[0]}, pair[1], np.int32([0, 1]), pair[2], np.stack([first, second]))
    np.testing.assert_array_equal(both, [second, theirs.step(1)[0]])


class Forgetful(Walk):
    """It draws with a generator that no seed reaches."""

    generator = np.random.default_rng(0)

    def step(self, action):
        observation, *rest = super().step(action)
        return {"position": observation["position"] + self.generator.normal()}, *rest


class Lasting(Walk):
    """It wears out, and no reset mends it."""

    wear = 0.0

    def step(self, action):
        self.wear += 0.1
        observation, *rest = super().step(action)
        return {"position": observation["position"] + self.wear}, *rest


class Impatient(Walk):
    def step(self, action):
        observation, reward, over, _, info = super().step(action)
        return observation, reward, over, True, info


class Words(Walk):
    def reset(self, *, seed=None, options=None):
        return "north", {}


def test_what_is_no_function_of_task_seed_and_actions_is_refused():
    for make in (Forgetful, Lasting):
        with pytest.raises(ValueError, match=r"environment must do the same after the same task, seed and actions"):
            walk(make)
    with pytest.raises(ValueError, match=r"observation of environment must be numbers, got 'north'"):
        walk(Words)
    with pytest.raises(ValueError, match=r"environment must have reset, step: a name of gymnasium's or a function"):
        rl.from_gymnasium(lambda: 3, set_drift, max_steps=5)
    with pytest.raises(ValueError, match=r"environment must be registered by gymnasium, got 'CartPole-v17'"):
        rl.from_gymnasium("CartPole-v17", set_drift)
    with pytest.raises(ValueError, match=r"set_task_fn must be a function of \(env, task\)"):
        rl.from_gymnasium(Walk, lambda env: None, max_steps=5)
    with pytest.raises(ValueError, match=r"max_steps must be given for an environment whose spec has no"):
        walk(max_steps=None)
    with pytest.raises(ValueError, match=r"max_steps must be at most 500, the max_episode_steps"):
        rl.from_gymnasium("CartPole-v1", set_drift, max_steps=501)


def test_what_is_seen_in_a_run_only_is_an_error_of_the_run():
    """Errors of the host come through jax with what they say. A task that is added up to others is noticed once an
    environment that had one replays another's."""

    def add(env, task):
        env.unwrapped.drift += float(task["drift"])

    adding = Played(set_task_fn=add)
    start = adding.reset()
    first, *_ = adding.step(start, [0])
    for seed in range(10):
        adding.reset(seed)
    with pytest.raises(ValueError, match=r"must do the same after the same task, seed and actions"):
        adding.step(first, [0, 0])

    with pytest.raises(ValueError, match=r"an episode has max_steps = 1 steps, and was stepped after them"):
        Played(max_steps=1).step(start, [0, 0])
    far = Played(task={"drift": 10.0})
    after, _, terminated = far.step(far.reset(), [0])
    assert terminated
    with pytest.raises(ValueError, match=r"an episode was over after 1 steps, and was stepped after them"):
        far.step(after, [0, 0])

    impatient = walk(Impatient)
    _, state = impatient.reset(jax.random.key(0), TASK)
    with pytest.raises(Exception, match=r"must not truncate an episode before max_steps = 6, got one of 1 steps"):
        jax.block_until_ready(impatient.step(None, state, jnp.int32(0), TASK))


def set_cartpole(env, task):
    cartpole = env.unwrapped
    cartpole.gravity, cartpole.length = float(task["gravity"]), float(task["length"])
    cartpole.polemass_length = cartpole.masspole * cartpole.length


def sample_cartpole(key):
    gravity, length = jax.random.uniform(key, (2,), minval=jnp.array([5.0, 0.3]), maxval=jnp.array([15.0, 2.0]))
    return {"gravity": gravity, "length": length}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rl2", "maml_rl"])
def test_learners_learn_on_gymnasiums_cartpole(name):
    """The horizon is that of its spec, or less; MAML differentiates past it."""
    assert rl.from_gymnasium("CartPole-v1", set_cartpole).max_steps == 500
    family = rl.family(rl.from_gymnasium("CartPole-v1", set_cartpole, max_steps=20), sample_cartpole)
    policy = rl.mlp_policy(family, hidden=(4,))
    learner = {
        "rl2": lambda: jaxmeta.rl2(
            family, num_episodes=2, actor=jaxmeta.nn.gru(4), outer=jaxmeta.PPO(num_minibatches=2)
        ),
        "maml_rl": lambda: jaxmeta.maml_rl(policy.init, policy.apply, family.environment, num_episodes=4),
    }[name]()
    tasks = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(2), 4), family.train.data)
    state, metrics = jax.jit(learner.update)(jax.random.key(1), learner.init(jax.random.key(0)), tasks)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((metrics, state.meta_params)))


@pytest.mark.slow
def test_real_actions_and_their_gradients_stop_at_the_host():
    """Pendulum, whose action goes into the host as a real number: MAML's meta-gradient is finite."""

    def set_mass(env, task):
        env.unwrapped.m = float(task)

    family = rl.family(
        rl.from_gymnasium("Pendulum-v1", set_mass, max_steps=20), lambda key: jax.random.uniform(key, minval=0.5)
    )
    policy = rl.mlp_policy(family, hidden=(4,))
    learner = jaxmeta.maml_rl(policy.init, policy.apply, family.environment, num_episodes=4)
    tasks = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(2), 4), family.train.data)
    state, metrics = jax.jit(learner.update)(jax.random.key(1), learner.init(jax.random.key(0)), tasks)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((metrics, state.meta_params)))

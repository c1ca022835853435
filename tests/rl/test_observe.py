"""Running moments against float64 over all that was seen, and learners that do not notice in which units they are
told and paid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from jaxmeta import PPO, VPG, Advantages, adapt, nn, rl
from jaxmeta.rl.observe import moments_of, running_moments

pytestmark = pytest.mark.usefixtures("strict_shapes")

N, T, H = 3, 6, 3
OPTIMIZER = optax.sgd(0.5)


def walk():
    """To the right or to the left. The task says what that pays, and in which units it is seen and paid."""

    def observe(place, task):
        return {"place": task["unit"] * place + task["origin"], "still": jnp.full(1, 7.0)}

    def reset(key, task):
        place = jax.random.normal(key, (2,))
        return observe(place, task), place

    def step(key, place, action, task):
        place = place + jnp.array([0.1, 0.3]) * (2 * action - 1) + 0.1 * jax.random.normal(key, (2,))
        reward = task["price"] * (task["pay"] * action + place[0])
        return observe(place, task), place, reward, place[1] > 1.5

    return rl.Environment(reset, step, rl.Discrete(2), H)


def tasks(unit=1.0, origin=0.0, price=1.0):
    each = {"pay": jnp.array([1.0, -1.0, 2.0])}
    return each | {name: jnp.full(N, value) for name, value in (("unit", unit), ("origin", origin), ("price", price))}


FAMILY = rl.family(walk(), lambda key: {name: jax.random.normal(key) for name in tasks()})
NORMALIZATION = running_moments(FAMILY)


def on_policy(make=jaxmeta.rl2, **how):
    how = {"num_episodes": 2, "optimizer": OPTIMIZER, "normalization": NORMALIZATION} | how
    return make(FAMILY, actor=nn.min_gru(3), outer=PPO(num_epochs=2, num_minibatches=3), **how)


def by_gradients(**how):
    how = {"num_episodes": 2, "optimizer": OPTIMIZER, "normalization": NORMALIZATION, "outer": VPG()} | how
    network = rl.mlp_policy_and_value(FAMILY, hidden=(3,))
    of_value = {"baseline": "value", "advantages": Advantages(normalize=False)}
    return jaxmeta.maml_rl(
        *network, FAMILY.environment, inner_optimizer=adapt.sgd(0.1), microbatch=N, **of_value, **how
    )


def off_policy(**how):
    how = {"optimizer": optax.sgd(0.05), "normalization": NORMALIZATION} | how
    networks = jaxmeta.mlp_actor_critic(FAMILY, latent_size=2, hidden=(3,))
    encoder = jaxmeta.mlp_encoder(FAMILY, latent_size=2, hidden=(3,), with_next_observation=True)
    replay = jaxmeta.Replay(capacity=12, num_gradient_steps=2, batch_size=4, num_batch_tasks=3)
    return jaxmeta.pearl(FAMILY, networks, encoder, num_train_tasks=N, replay=replay, **how)


def by_beliefs(**how):
    """Whose decoder has to say both, and which learns from earlier trials, in the units of today."""
    how = {"num_episodes": 2, "optimizer": OPTIMIZER, "normalization": NORMALIZATION} | how
    decoder = jaxmeta.mlp_decoder(FAMILY, latent_size=2, hidden=(3,), with_next_observation=True)
    networks = {"encoder": nn.min_gru(3), "actor": nn.feed_forward(3), "outer": PPO(num_minibatches=3)}
    elbo = jaxmeta.ELBO(num_kept=4, num_steps=3)
    return jaxmeta.varibad(FAMILY, decoder, elbo=elbo, model_optimizer=optax.sgd(1e-3), **networks, **how)


def by_its_own_numbers(**how):
    how = {"optimizer": optax.sgd(5.0), "inner_optimizer": adapt.sgd(0.1), "normalization": NORMALIZATION} | how
    network = rl.mlp_policy_and_value(FAMILY, hidden=(3,))
    counts = {"num_agents": N, "num_inner_steps": 2, "num_episodes": 2, "num_eval_steps": 3}
    return jaxmeta.meta_gradient_rl(*network, FAMILY.environment, **counts, **how)


LEARNERS = {
    "rl2": on_policy,
    "maml_rl": by_gradients,
    "pearl": off_policy,
    "varibad": by_beliefs,
    "meta_gradient_rl": by_its_own_numbers,
}


def for_learner(name, tasks):
    return rl.IndexedTask(jnp.arange(N), tasks, N) if name == "pearl" else tasks


@functools.cache
def compiled(name):
    learner = LEARNERS[name]()
    return learner, jax.jit(learner.update), jax.jit(learner.evaluate)


def curve(name, given, num_updates=4):
    learner, update, evaluate = compiled(name)
    state, returns = learner.init(jax.random.key(0)), []
    for i in range(num_updates):
        state, metrics = update(jax.random.key(i), state, for_learner(name, given))
        returns.append(float(metrics["return"]))
        assert metrics["is_finite"]
    task = jax.tree.map(lambda x: x[0], given)
    judged = evaluate(jax.random.key(9), state.meta_params, task)["return"]
    return state, np.array(returns), np.asarray(judged)


def check_other_units(name, close):
    """Observations × 1000 + 5000 and rewards × 1000: the same parameters after four updates, the same actions."""
    state, returns, judged = curve(name, tasks())
    scaled_state, scaled_returns, scaled_judged = curve(name, tasks(unit=1e3, origin=5e3, price=1e3))
    close(scaled_returns, 1e3 * returns)
    close(scaled_judged, 1e3 * judged)
    jax.tree.map(close, scaled_state.meta_params.params, state.meta_params.params)
    if name == "meta_gradient_rl":
        jax.tree.map(close, scaled_state.carry.inner, state.carry.inner)  # the agents
    start = compiled(name)[0].init(jax.random.key(0)).meta_params.params
    moved = jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), start, state.meta_params.params)
    assert max(jax.tree.leaves(moved)) > 1e-3  # there was something to change


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_other_units_change_nothing_in_float64(name, x64):
    check_other_units(name, functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9))


def test_moments_are_those_of_all_that_was_played_in_float64():
    """Of RL², whose trials the test plays again with the parameters of each update, in float32 around 5e3."""
    learner, update, _ = compiled("rl2")
    state, given = learner.init(jax.random.key(0)), tasks(unit=10.0, origin=5e3, price=-3.0)
    trial, seen = rl.trial(FAMILY.environment, num_episodes=2), []
    run = jax.jit(
        jax.vmap(
            lambda key, meta_params, task: rl.rollout(key, trial, *learner.agent(meta_params), task)[1], (0, None, 0)
        )
    )
    for i in range(3):
        key = jax.random.key(i)
        played = run(jax.random.split(jax.random.split(key)[0], N), state.meta_params, given)
        state, _ = update(key, state, given)
        for n in range(N):
            of_trial = jax.tree.map(lambda x, n=n: np.asarray(x[n], float), played)
            mask, to_go = of_trial.mask > 0, 0.0
            rewards = of_trial.reward[mask]
            returns = [to_go := reward + 0.99 * to_go for reward in rewards[::-1]][::-1]
            observation = np.concatenate([of_trial.inputs.observation[name] for name in ("place", "still")], axis=1)
            seen += [(*o, r, g) for o, r, g in zip(observation[mask], rewards, returns, strict=True)]
    seen, moments = np.array(seen), state.meta_params.constants
    assert moments.observation.num_steps == len(seen) and 20 < len(seen) <= 3 * N * T
    mean = np.append(moments.observation.mean, [moments.reward.mean, moments.to_go.mean])
    variance = np.append(moments.observation.variance, [moments.reward.variance, moments.to_go.variance])
    np.testing.assert_allclose(mean, seen.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(variance, seen.var(axis=0), rtol=1e-4)
    assert variance[2] == 0  # what stands still

    # At test they stay: a step is seen by them, wherever it is.
    elsewhere = jax.tree.map(lambda x: x[0], tasks(unit=10.0, origin=5.1e3))
    played = rl.rollout(jax.random.key(9), trial, *learner.agent(state.meta_params), elsewhere)[1]
    place = np.asarray(played.inputs.observation["place"], float)
    expected = np.clip((place - seen[:, :2].mean(axis=0)) / seen[:, :2].std(axis=0), -10, 10)
    np.testing.assert_allclose(played.extras.x[:, :2], expected, rtol=1e-3)
    np.testing.assert_array_equal(played.extras.x[:, 2], 0)
    scale = np.sqrt((seen[:, 3] ** 2).mean())
    np.testing.assert_allclose(played.extras.x[:, 6], played.inputs.reward / scale, rtol=1e-4)


def test_a_large_mean_costs_no_digits():
    """A million numbers of deviation 1 around 1e5, a thousand at a time, in float32, some of which do not count."""
    rng = np.random.default_rng(0)
    numbers = (1e5 + rng.normal(size=(1000, 1000))).astype(np.float32)
    counts = rng.uniform(size=numbers.shape) < 0.7
    shape = lambda x: rl.Moments(*(jnp.asarray(leaf)[None] for leaf in x))
    merge = jax.jit(
        lambda old, x, mask: rl.observe.merged(
            jax.tree.map(lambda a, b: jnp.append(a, b, axis=0), old, shape(moments_of(x, mask)))
        )
    )
    moments = moments_of(jnp.zeros(1), jnp.zeros(1, bool))
    for x, mask in zip(numbers, counts, strict=True):
        moments = merge(shape(moments), x, mask)
    known = numbers[counts].astype(float)
    assert moments.num_steps == counts.sum()
    assert abs(float(moments.mean) - known.mean()) < 0.02  # numbers there are 0.008 apart
    np.testing.assert_allclose(moments.variance, known.var(), rtol=1e-3)
    at_once = jax.jit(moments_of)(numbers.ravel(), counts.ravel())
    assert abs(float(at_once.mean) - known.mean()) < 0.01


def test_before_anything_was_seen_all_is_0_and_the_policy_learns_nothing():
    learner, update, _ = compiled("rl2")
    state = learner.init(jax.random.key(0))
    observation = {"place": jnp.ones(2), "still": jnp.ones(1)}
    shown = NORMALIZATION.observe(state.meta_params.constants, observation)
    jax.tree.map(np.testing.assert_array_equal, shown, jax.tree.map(jnp.zeros_like, observation))
    assert NORMALIZATION.see(state.meta_params.constants, jnp.ones(())) == 0
    after, _ = update(jax.random.key(1), state, tasks())
    actors = (s.meta_params.params["actor"] for s in (after, state))
    jax.tree.map(np.testing.assert_array_equal, *actors)


def test_what_is_not_finite_is_not_merged():
    learner, update, _ = compiled("rl2")
    state, _ = update(jax.random.key(1), learner.init(jax.random.key(0)), tasks())
    after, metrics = update(jax.random.key(2), state, tasks(price=jnp.nan))
    assert not metrics["is_finite"] and after.num_skipped == 1
    jax.tree.map(np.testing.assert_array_equal, after.meta_params, state.meta_params)


def test_one_of_both_alone():
    moments = NORMALIZATION.init()._replace(reward=rl.Moments(*map(jnp.array, (4.0, 3.0, 16.0))))
    for observations, rewards in ((True, False), (False, True)):
        half = running_moments(FAMILY, observations=observations, rewards=rewards)
        observation = {"place": jnp.ones(2), "still": jnp.ones(1)}
        assert (half.observe(moments, observation) is observation) != observations
        np.testing.assert_allclose(half.see(moments, jnp.array(10.0)), 2.0 if rewards else 10.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: running_moments(FAMILY, observations=False, rewards=False), "observations or rewards must be True"),
        (
            lambda: on_policy(normalization=running_moments),
            "normalization must have init, .*: a Normalization, such as rl.running_moments",
        ),
        (
            lambda: on_policy(normalization=running_moments(rl.families.navigation())).init(jax.random.key(0)),
            "normalization must be of the family's observations, 3 numbers, got 2",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Discrete actions in soft actor-critic, against a loop over actions in float64 and soft value iteration; actions that
there are not everywhere, in RL² and PEARL."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import jaxmeta
from jaxmeta import PPO, TRPO, nn, rl
from jaxmeta.algorithms.sac import ActorCritic, Experience, SoftActorCritic, sac_losses
from jaxmeta.rl.distributions import Categorical
from jaxmeta.rl.recurrent import only_allowed, recurrent_policy

pytestmark = pytest.mark.usefixtures("strict_shapes")

S, A, B = 4, 3, 6
RNG = np.random.default_rng(0)


def tables():
    """Logits and values are looked up in tables `[S, A]`, to which z is added."""
    actor = lambda logits, observation, z: Categorical(observation @ logits + z)
    critic = lambda twins, observation, z: jnp.stack([observation @ twin + z for twin in twins], axis=1)
    return ActorCritic(lambda key: {}, actor, critic, latent_size=1)


def given():
    state, after = RNG.integers(S, size=B), RNG.integers(S, size=B)
    action, terminated = RNG.integers(A, size=B), np.array([0, 1, 0, 0, 1, 0], bool)
    batch = Experience(np.eye(S)[state], np.eye(A)[action], RNG.normal(size=B), np.eye(S)[after], terminated)
    params = {"actor": RNG.normal(size=(S, A)), "critic": tuple(RNG.normal(size=(2, S, A))), "log_temperature": 0.3}
    allowed = RNG.uniform(size=(2, B, A)) < 0.7
    allowed[:, np.arange(B), action] = True
    target, z = tuple(RNG.normal(size=(2, S, A))), RNG.normal(size=(B, 1))
    to_jax = functools.partial(jax.tree.map, jnp.asarray)
    return state, after, action, *(to_jax(x) for x in (batch, params, target, z)), allowed


def by_loop(state, after, action, batch, params, target, z, allowed, options):
    """Every action of every row, one after the other."""
    alpha, critics, actors, temperatures = np.exp(0.3), [], [], []
    for i in range(B):
        there = [[a for a in range(A) if allowed is None or allowed[t, i, a]] for t in range(2)]
        probability = []
        for s, actions in zip((state[i], after[i]), there, strict=True):
            logits = np.array([params["actor"][s, a] for a in actions])  # z is the same for all
            probability.append(np.exp(logits) / np.exp(logits).sum())
        next_value = 0.0
        for p, a in zip(probability[1], there[1], strict=True):
            next_value += p * (min(twin[after[i], a] + z[i, 0] for twin in target) - alpha * np.log(p))
        y = options.reward_scale * batch.reward[i] + options.discount * (0 if batch.terminated[i] else next_value)
        critics.append(sum((twin[state[i], action[i]] + z[i, 0] - y) ** 2 for twin in params["critic"]))
        loss, log_prob = 0.0, 0.0
        for p, a in zip(probability[0], there[0], strict=True):
            loss += p * (alpha * np.log(p) - min(twin[state[i], a] + z[i, 0] for twin in params["critic"]))
            log_prob += p * np.log(p)
        actors.append(loss)
        temperatures.append(-alpha * (log_prob + np.log(len(there[0])) / 2))
    return [np.mean(losses) for losses in (critics, actors, temperatures)]


@pytest.mark.parametrize("is_masked", [False, True])
def test_the_losses_are_those_of_a_loop_over_actions(is_masked, x64):
    options = SoftActorCritic(discount=0.9, reward_scale=2.0)
    *numbers, batch, params, target, z, allowed = given()
    allowed = jnp.asarray(allowed) if is_masked else None

    def losses(params):
        of = None if allowed is None else (allowed[0], allowed[1])
        found = sac_losses(
            jax.random.key(0), params, target, batch, z, actor_critic=tables(), options=options, allowed=of
        )
        return found[0] + found[1] + found[2], found

    grads, found = jax.jit(jax.grad(losses, has_aux=True))(params)
    expected = by_loop(*numbers, batch, params, target, z, allowed, options)
    np.testing.assert_allclose(found[:3], expected, rtol=1e-12)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    if is_masked:
        state = numbers[0]
        never = [(s, a) for s in range(S) for a in range(A) if not allowed[0, state == s, a].any()]
        assert never and all(grads["actor"][s, a] == 0 for s, a in never)


def test_the_fixed_point_is_soft_value_iteration(x64):
    """Of a random MDP, all of its steps at once: Q, and π = softmax(Q / α)."""
    alpha, gamma = 0.5, 0.8
    transition, reward = RNG.dirichlet(np.ones(S), size=(S, A)), RNG.normal(size=(S, A))
    value = np.zeros(S)
    for _ in range(300):
        q = reward + gamma * transition @ value
        value = alpha * scipy.special.logsumexp(q / alpha, axis=1)
    state, action, after = (x.ravel() for x in np.meshgrid(range(S), range(A), range(S), indexing="ij"))
    weight = jnp.asarray(transition[state, action, after])
    rows = Experience(
        np.eye(S)[state], np.eye(A)[action], reward[state, action], np.eye(S)[after], np.zeros(len(state))
    )
    rows, z = jax.tree.map(jnp.asarray, rows), jnp.zeros((len(state), 1))
    options = SoftActorCritic(discount=gamma, temperature=alpha)

    def loss(params, target):
        one = lambda row, z: sac_losses(
            jax.random.key(0), params, target, jax.tree.map(lambda x: x[None], row), z[None],
            actor_critic=tables(), options=options,
        )  # fmt: skip
        losses = jax.vmap(one)(rows, z)
        return jnp.sum(weight * (losses.critic + losses.actor))

    optimizer = optax.adam(optax.exponential_decay(0.05, 1000, 0.1))

    def step(loop, _):
        params, opt_state = loop
        updates, opt_state = optimizer.update(jax.grad(loss)(params, params["critic"]), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    params = {"actor": jnp.zeros((S, A)), "critic": (jnp.zeros((S, A)),) * 2}
    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=3000)[0][0])
    params = run(params)
    np.testing.assert_allclose(params["critic"][0], q, atol=2e-3)
    policy = scipy.special.softmax(q / alpha, axis=1)
    np.testing.assert_allclose(jax.nn.softmax(params["actor"]), policy, atol=2e-3)


# Actions that there are not everywhere.


def doors(num_open=2):
    """Three doors, of which the task says what each pays; only the first `num_open` from where the observation says on
    are open, and who takes another pays for it."""

    def observe(place):
        return {"place": place, "twice": 2.0 * place}

    def reset(key, params):
        place = jax.random.randint(key, (), 0, 3)
        return observe(place), place

    def step(key, place, action, params):
        is_open = allowed(observe(place))[action]
        after = (place + 1) % 3
        return observe(after), after, jnp.where(is_open, params[action], -100.0), jnp.bool_(False)

    def allowed(observation):
        return (jnp.arange(3) - observation["place"]) % 3 < num_open

    family = rl.family(rl.Environment(reset, step, rl.Discrete(3), 4), lambda key: jax.random.uniform(key, (3,)))
    return family, allowed


def stacked(family, number=4):
    return jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(0), number), family.train.data)


def updated(learner, tasks, num_updates=2):
    update, state = jax.jit(learner.update), learner.init(jax.random.key(0))
    for i in range(num_updates):
        state, metrics = update(jax.random.key(i), state, tasks)
    return state, metrics


@functools.cache
def learners(num_open=2):
    family, allowed = doors(num_open)
    how = {"action_mask": allowed, "normalization": rl.running_moments(family)}
    networks = jaxmeta.mlp_actor_critic(family, latent_size=2, hidden=(3,))
    encoder = jaxmeta.mlp_encoder(family, latent_size=2, hidden=(3,))
    replay = jaxmeta.Replay(capacity=8, num_gradient_steps=2, batch_size=3, num_batch_tasks=2)
    of_rl2 = {"actor": nn.min_gru(3), "num_episodes": 2, **how}
    decoder, elbo = jaxmeta.mlp_decoder(family, latent_size=2, hidden=(3,)), jaxmeta.ELBO(num_kept=0)
    of_varibad = {"encoder": nn.min_gru(3), "outer": PPO(num_minibatches=2), "elbo": elbo, **of_rl2}
    tasks = stacked(family)
    yield_of = {
        "ppo": (jaxmeta.rl2(family, outer=PPO(num_epochs=2, num_minibatches=2), entropy_weight=0.1, **of_rl2), tasks),
        "trpo": (jaxmeta.rl2(family, outer=TRPO(), entropy_weight=0.1, **of_rl2), tasks),
        "varibad": (jaxmeta.varibad(family, decoder, entropy_weight=0.1, **of_varibad), tasks),
        "pearl": (
            jaxmeta.pearl(family, networks, encoder, num_train_tasks=4, replay=replay, **how),
            rl.IndexedTask(jnp.arange(4), tasks, 4),
        ),
    }
    return family, yield_of


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "trpo", "varibad", "pearl"])
def test_a_masked_action_is_never_taken_and_nothing_is_nan(name):
    family, made = learners()
    learner, tasks = made[name]
    state, metrics = updated(learner, tasks)
    assert metrics["is_finite"] and state.num_skipped == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.meta_params))
    assert metrics["return"] > 0
    task = jax.tree.map(lambda x: x[0], stacked(family))
    judged = jax.jit(jax.vmap(learner.evaluate, (0, None, None)))
    keys = jax.random.split(jax.random.key(1), 50)
    assert np.all(judged(keys, state.meta_params, task)["return"] > 0)


def test_what_acted_where_actions_are_masked_is_what_learns():
    """Step by step and as a whole trial: the same probabilities, of a masked action 0."""
    network = only_allowed(recurrent_policy(rl.Discrete(3), nn.min_gru(4)), 3)
    allowed = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1]], np.float32)
    xs = jnp.concatenate([RNG.normal(size=(4, 2)).astype(np.float32), allowed], axis=1)
    params = network.init(jax.random.key(0), 5)
    of_trial, (_, of_steps) = jax.jit(
        lambda params, xs: (
            network.apply(params, xs),
            jax.lax.scan(lambda carry, x: network.step(params, carry, x), nn.min_gru(4).start(()), xs),
        )
    )(params, xs)
    chances = jax.nn.softmax(of_trial.logits)
    np.testing.assert_allclose(chances, jax.nn.softmax(of_steps.logits), rtol=1e-5)
    np.testing.assert_array_equal(chances > 0, allowed > 0)


@pytest.mark.slow
def test_where_nothing_is_allowed_nothing_is_learned_and_it_is_reported():
    _, made = learners(num_open=0)
    for name in ("ppo", "varibad", "pearl"):
        learner, tasks = made[name]
        state, metrics = updated(learner, tasks, num_updates=1)
        assert not metrics["is_finite"] and state.num_skipped == 1 and np.isnan(metrics["return"]), name


def test_probabilities_of_masked_actions_and_their_gradients_are_0(x64):
    """Against the distribution over those that there are, alone."""
    logits, allowed = jnp.asarray(RNG.normal(size=4)), jnp.array([True, False, True, True])
    there, few = np.flatnonzero(allowed), jnp.asarray(logits)[np.flatnonzero(allowed)]
    masked, alone = lambda x: Categorical(x).only(allowed), Categorical
    other, other_few = Categorical(jnp.arange(4.0)), Categorical(jnp.asarray(there, float))
    value = jnp.array([1.0, 1e9, 2.0, 3.0])
    asked = [
        (lambda p: p.entropy(), lambda p: p.entropy()),
        (lambda p: p.log_prob(2), lambda p: p.log_prob(1)),
        (lambda p: p.kl(other.only(allowed)), lambda p: p.kl(other_few)),
        (lambda p: p.expectation(value), lambda p: p.expectation(value[there])),
    ]
    of_masked = lambda x: jnp.stack([ask(masked(x)) for ask, _ in asked])
    of_alone = lambda x: jnp.stack([ask(alone(x)) for _, ask in asked])
    found, grads = jax.jit(lambda x: (of_masked(x), jax.jacrev(of_masked)(x)))(logits)
    expected, grads_alone = jax.jit(lambda x: (of_alone(x), jax.jacrev(of_alone)(x)))(few)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(grads[:, there], grads_alone, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(grads[:, 1], 0)
    assert masked(logits).log_prob(1) == -jnp.inf
    samples = jax.jit(jax.vmap(masked(logits).sample))(jax.random.split(jax.random.key(0), 200))
    assert set(np.asarray(samples)) == {0, 2, 3}
    none = Categorical(logits).only(jnp.zeros(4, bool))
    assert none.sample(jax.random.key(0)) == -1 and none.mode() == -1 and jnp.isnan(none.entropy())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda observation: jnp.ones(2, bool), r"action_mask must return booleans of shape \(3,\), .* got bool of"),
        (lambda observation: jnp.ones(3), r"action_mask must return booleans of shape \(3,\), .* got float32"),
        (lambda: None, "action_mask must"),
    ],
)
def test_errors(mask, message):
    family, _ = doors()
    with pytest.raises(ValueError, match=message):
        jaxmeta.rl2(family, actor=nn.min_gru(3), action_mask=mask).init(jax.random.key(0))
    plane = rl.families.navigation()
    with pytest.raises(ValueError, match="action_mask must be None where actions are real"):
        jaxmeta.rl2(plane, action_mask=lambda observation: observation)

"""VariBAD: its ELBO against a loop over pairs of steps, and against a closed form where tasks are linear and Gaussian;
beliefs are of what was seen and of nothing else; the policy's gradient stays out of them; and what it learns where the
belief is known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from jaxmeta import ELBO, PPO, Advantages, nn, rl
from jaxmeta.algorithms.decoders import Decoder, Step, mlp_decoder
from jaxmeta.algorithms.varibad import Kept, Played, Raw, elbo_of, keep, varibad
from jaxmeta.rl.distributions import Gaussian
from jaxmeta.rl.recurrent import RecurrentNetwork, recurrent_belief, recurrent_policy

pytestmark = pytest.mark.usefixtures("strict_shapes")

T, D, L = 4, 3, 2
GRID = rl.families.gridworld()
GRID = GRID._replace(environment=GRID.environment._replace(max_steps=3))
DECODERS = {
    "real rewards, and what follows": {"with_next_observation": True, "std": 0.5},
    "rewards of two values": {"reward": "bernoulli"},
    "an output for each state": {"reward": "bernoulli", "reward_of": "next_state"},
}


def decoder_of(case):
    return mlp_decoder(GRID, latent_size=L, hidden=(3,), **DECODERS[case])


def log_normal(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)


def layers(params, x):
    hidden, head = params["params"]["hidden0"], params["params"]["head"]
    return jnp.maximum(x @ hidden["kernel"] + hidden["bias"], 0) @ head["kernel"] + head["bias"]


def log_likelihood(case, params, m, step):
    """Of one transition under one m."""
    known = jnp.concatenate([m, step.observation, step.action])
    if case == "an output for each state":
        output = layers(params["reward"], m)[jnp.argmax(step.next_observation)]
    else:
        output = layers(params["reward"], jnp.append(known, step.next_observation))[0]
    if case != "real rewards, and what follows":
        chance = 1 / (1 + jnp.exp(-output))
        return jnp.log(jnp.where(step.reward > 0, chance, 1 - chance))
    change = layers(params["next"], known)
    following = log_normal(step.next_observation, step.observation + change, 0.5)
    return log_normal(step.reward, output, 0.5) + jnp.sum(following)


def elbo_by_hand(case, core, params, noise, played, which, kl_weight):
    """Step by step; noise `[T, L]`."""
    carry, before, terms, kls = core.start(()), (jnp.zeros(L), jnp.ones(L)), [], []
    mask = np.asarray(played.mask)
    for t in range(T):
        carry, h = core.step(params["encoder"]["core"], carry, played.seen[t])
        output = h @ params["encoder"]["head"]["kernel"] + params["encoder"]["head"]["bias"]
        mean, std = output[:L], jnp.exp(output[L:])
        ratio = std / before[1]
        kls.append(jnp.sum(0.5 * (ratio**2 + ((mean - before[0]) / before[1]) ** 2 - 1) - jnp.log(ratio)))
        m, total = mean + std * noise[t], 0.0
        for i in range(T):
            step = jax.tree.map(lambda x, i=i: x[i], played.steps)
            total += mask[i] * log_likelihood(case, params["decoder"], m, step)
        terms.append(total)
        before = mean, std
    kl = sum(itertools.compress(kls, mask)) / sum(mask)
    drawn = [terms[t] for t in which if mask[t]]
    return sum(drawn) / len(drawn) - kl_weight * kl


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if "state" in case else [pytest.mark.slow]) for case in DECODERS]
)
def test_the_elbo_is_a_loop_over_beliefs_and_transitions(x64, case):
    """And so is its gradient: of encoder and decoder, and through a KL of either belief."""
    core, decoder = nn.gru(3), decoder_of(case)
    keys = jax.random.split(jax.random.key(0), 8)
    cells = lambda key: jax.nn.one_hot(jax.random.randint(key, (T,), 0, 25), 25)
    reward = jnp.where(jax.random.bernoulli(keys[0], shape=(T,)), 1.0, -0.1)
    steps = Step(cells(keys[1]), jax.nn.one_hot(jnp.arange(T), 5), reward, cells(keys[2]))
    played = Played(jax.random.normal(keys[3], (T, D)), steps, jnp.array([True, True, True, False]))
    encoder = recurrent_belief(core, L)
    params = {"encoder": encoder.init(keys[4], D), "decoder": decoder.init(keys[5])}
    params = jax.tree.map(lambda x: x.astype(float) + 0.3 * jax.random.normal(keys[6], x.shape), params)
    options = ELBO(kl_weight=0.7)
    ours = lambda params: elbo_of(params, keys[7], played, encoder=encoder, decoder=decoder, options=options)[0]
    noise = jax.random.normal(jax.random.split(keys[7])[1], (T, L))
    by_hand = lambda params: elbo_by_hand(case, core, params, noise, played, range(T), 0.7)
    found, expected = (jax.jit(jax.value_and_grad(fn))(params) for fn in (ours, by_hand))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10), found, expected)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found[1]["encoder"]))


# Tasks whose posterior is known: r = m + σ ε with m ~ N(0, 1), in trials of two steps.

STD = 0.8


def closed_form():
    """The slope of the belief's mean in the first reward, and both deviations, that maximise the ELBO.

    q_1 ∝ q_0 exp(E[log p(r_1, r_2 | m) | r_1]), and q_0 is both the belief from which both rewards are predicted, and
    the prior of q_1. It is no posterior: each belief counts what it believes to come as if it had been seen.
    """
    s0, v = 1.0, STD**2
    for _ in range(200):
        s1 = 1 / (1 / s0 + 2 / v)
        slope = s1 * (1 + 1 / (1 + v)) / v
        s0 = np.sqrt((s1 + slope**2 * (1 + v)) / (2 / v + 1))
    return {"slope": slope, "log_std": np.log([s0, s1]) / 2}


@jax.jit
def gradient_where(params):
    """Of the ELBO, over many tasks."""
    number = 200_000
    tell = lambda params, seen: Gaussian((params["slope"] * seen)[:, None], params["log_std"][:, None])
    encoder = RecurrentNetwork(lambda key, size: {}, lambda *args: None, tell)
    says = lambda params, m, steps: log_normal(steps.reward[None], m, STD)
    decoder = Decoder(lambda key: {}, says, lambda params, m, steps: m, 1)
    task_key, noise_key, key = jax.random.split(jax.random.key(0), 3)
    reward = jax.random.normal(task_key, (number, 1)) + STD * jax.random.normal(noise_key, (number, 2))
    seen = jnp.append(jnp.zeros((number, 1)), reward[:, :1], axis=1)

    def loss(params, key, seen, reward):
        steps = Step(jnp.zeros((2, 1)), jnp.zeros((2, 1)), reward, jnp.zeros((2, 1)))
        played = Played(seen, steps, jnp.ones(2, bool))
        params = {"encoder": params, "decoder": {}}
        return elbo_of(params, key, played, encoder=encoder, decoder=decoder, options=ELBO())[0]

    of_each = jax.vmap(jax.grad(loss), (None, 0, 0, 0))(params, jax.random.split(key, number), seen, reward)
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), of_each)


def test_the_best_belief_of_linear_gaussian_tasks_is_the_closed_form(x64):
    """There the gradient is 0, and beside it it is not."""
    best = closed_form()
    leaves = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    assert np.abs(leaves(gradient_where(best))).max() < 0.01
    for name, change in (("slope", 0.05), ("log_std", np.array([0.1, 0.0])), ("log_std", np.array([0.0, 0.1]))):
        assert np.abs(leaves(gradient_where(best | {name: best[name] + change}))).max() > 0.05


# The learner.

BANDIT = rl.families.bernoulli_bandit(num_arms=2, num_pulls=3)
KEY, N = jax.random.key(0), 4
TASKS = rl.families.Bandit(jnp.array([[0.1, 0.9], [0.9, 0.1], [0.5, 0.4], [0.2, 0.2]], np.float32))


def learner(family=BANDIT, **kwargs):
    how = {"encoder": nn.gru(4), "actor": nn.feed_forward(3), "outer": PPO(), "num_episodes": 2}
    return varibad(family, mlp_decoder(family, latent_size=L, hidden=(3,)), **how | kwargs)


def changed(before, after):
    """Which of the networks are others."""
    of = lambda name: jax.tree.leaves(jax.tree.map(lambda a, b: jnp.any(a != b), before[name], after[name]))
    return {name for name in before if any(of(name))}


def test_the_policys_gradient_stays_out_of_beliefs():
    """Where the model's optimizer does not step, nothing else steps it."""
    learned = learner(model_optimizer=optax.sgd(0.0), optimizer=optax.sgd(1.0))
    state = learned.init(KEY)
    after, metrics = jax.jit(learned.update)(KEY, state, TASKS)
    assert changed(state.meta_params.params, after.meta_params.params) == {"actor", "critic"} and metrics["is_finite"]


@pytest.mark.slow
def test_a_step_of_the_model_is_up_the_elbo_of_what_was_played():
    """The mean over trials, with the keys that `update` draws; and of nothing else: the policy, that does not step,
    stays."""
    learned = learner(model_optimizer=optax.sgd(1.0), optimizer=optax.sgd(0.0), elbo=ELBO(num_kept=0))
    state = learned.init(KEY)
    after, metrics = jax.jit(learned.update)(KEY, state, TASKS)
    play_key, _, model_key, _ = jax.random.split(KEY, 4)
    params, trial = state.meta_params.params, rl.trial(BANDIT.environment, num_episodes=2)
    agent, decoder = learned.agent(state.meta_params), mlp_decoder(BANDIT, latent_size=L, hidden=(3,))
    run = jax.vmap(lambda key, task: rl.rollout(key, trial, *agent, task)[1])
    trials = run(jax.random.split(play_key, N), TASKS)
    action = jax.nn.one_hot(trials.action, 2)
    steps = Step(trials.inputs.observation, action, trials.reward, trials.next_observation)
    played = Played(trials.extras.seen, steps, trials.mask)

    def loss(model):
        encoder = recurrent_belief(nn.gru(4), L)
        of_trial = lambda key, one: elbo_of(model, key, one, encoder=encoder, decoder=decoder, options=ELBO())[0]
        return -jnp.mean(jax.vmap(of_trial)(jax.random.split(model_key, N + 1)[1:], played))

    model = {name: params[name] for name in ("encoder", "decoder")}
    value, grads = jax.jit(jax.value_and_grad(loss))(model)
    np.testing.assert_allclose(metrics["elbo"], -value, rtol=1e-5)
    expected = jax.tree.map(jnp.subtract, model, grads)
    found = {name: after.meta_params.params[name] for name in model}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found, expected)
    assert changed(params, after.meta_params.params) == {"encoder", "decoder"}


def test_a_belief_is_of_what_was_seen_and_acts_as_it_is_learned_from():
    """What comes later changes nothing earlier; a trial begins with nothing; what acted is replayed."""
    learned = learner()
    state = jax.tree.map(lambda x: x + 0.3 if x.dtype == jnp.float32 else x, learned.init(KEY))
    agent, trial = learned.agent(state.meta_params), rl.trial(BANDIT.environment, num_episodes=2)
    run = jax.jit(
        lambda key, carry: rl.rollout(key, trial, *agent._replace(carry=carry), jax.tree.map(lambda x: x[0], TASKS))
    )
    carry, played = run(KEY, agent.carry)
    believe = jax.jit(lambda xs: recurrent_belief(nn.gru(4), L).apply(agent.params[1]["encoder"], xs))
    belief, seen = believe(played.extras.seen), played.extras.seen
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, belief, played.extras.belief)
    jax.tree.map(close, carry.belief, jax.tree.map(lambda x: x[-1], belief))
    later = believe(seen.at[3:].add(1.0))
    np.testing.assert_array_equal(later.mean[:3], belief.mean[:3])
    assert np.all(np.any(later.mean[3:] != belief.mean[3:], axis=1))
    # Observation and belief are what the actor is told, and it says again what it said.
    told, acted_on = played.extras.x, played.extras.belief
    parts = [played.inputs.observation, acted_on.mean, 2 * acted_on.log_std]
    np.testing.assert_array_equal(told, jnp.concatenate(parts, axis=1))
    network = recurrent_policy(rl.Discrete(2), nn.feed_forward(3))
    close(network.apply(agent.params[1]["actor"], told).log_prob(played.action), played.extras.log_prob)
    # Another trial begins with the same belief; one that goes on does not.
    again, goes_on = run(jax.random.key(9), agent.carry)[1], run(jax.random.key(9), carry)[1]
    close(again.extras.belief.mean[0], belief.mean[0])
    assert np.abs(goes_on.extras.belief.mean[0] - belief.mean[0]).max() > 1e-4
    jax.tree.map(np.testing.assert_array_equal, learned.agent(state.meta_params, carry).carry, carry)


def test_trials_are_kept_as_a_sample_of_all_and_none_that_is_not_finite():
    """Of 2,000 played, five at a time, 100 are kept, of all times alike; those of reward NaN are not."""
    number = jnp.arange(2000.0)
    spoiled = number % 10 == 3
    ones = lambda *shape: jnp.ones((5, 2, *shape))

    def step(kept, numbers):
        key, numbers = numbers
        reward = jnp.where(spoiled[numbers.astype(int)], jnp.nan, numbers)[:, None] * ones()
        played = Raw(ones(1), Step(ones(1), ones(1), reward, ones(1)), ones() > 0)
        kept, drawn = keep(key, kept, played)
        return kept, drawn.steps.reward[:, 0]

    nothing = jnp.zeros((100, 2))
    room = Raw(
        nothing[..., None], Step(nothing[..., None], nothing[..., None], nothing, nothing[..., None]), nothing > 0
    )
    keys = jax.random.split(KEY, 400)
    kept, drawn = jax.lax.scan(step, Kept(room, jnp.int32(0)), (keys, number.reshape(400, 5)))
    found = np.asarray(kept.trials.steps.reward[:, 0])[np.asarray(kept.trials.mask[:, 0])]
    assert len(found) >= 90 and int(kept.num_played) == 2000 and np.all(found % 10 != 3)
    assert len(set(found)) == len(found) and abs(found.mean() - 1000) < 4 * 2000 / np.sqrt(12 * len(found))
    assert np.all(drawn % 10 != 3) and np.all(drawn <= number.reshape(400, 5)[:, -1:])
    assert set(np.asarray(drawn[-1])) <= set(found)


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_and_counted():
    """With steps that are drawn, epochs and minibatches, too."""
    learned = learner(elbo=ELBO(num_steps=2, num_epochs=2, num_minibatches=2, num_kept=6))
    state, update = learned.init(KEY), jax.jit(learned.update)
    after, metrics = update(KEY, state, TASKS)
    assert metrics["is_finite"] and int(after.num_skipped) == 0 and int(after.carry.num_played) == N
    assert changed(state.meta_params.params, after.meta_params.params) == {"encoder", "decoder", "actor", "critic"}
    of_nothing = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.meta_params.params["decoder"])
    broken = state.meta_params._replace(params=state.meta_params.params | {"decoder": of_nothing})
    after, metrics = update(KEY, state._replace(meta_params=broken), TASKS)
    assert not metrics["is_finite"] and int(after.num_skipped) == 1
    others = changed(broken.params, after.meta_params.params)
    assert others >= {"actor", "critic"} and "encoder" not in others  # the policy is no worse for it


def test_a_trial_has_no_more_steps_to_be_drawn():
    with pytest.raises(ValueError, match="num_steps of elbo must be at most the 6 of a trial, got 7"):
        learner(elbo=ELBO(num_steps=7))


# A probe: two doors, of which one pays.


def two_doors(max_steps):
    def step(key, state, action, task):
        return jnp.ones(1), state, (action == task).astype(float), jnp.bool_(False)

    environment = rl.Environment(lambda key, task: (jnp.ones(1), ()), step, rl.Discrete(2), max_steps)
    return rl.finite_family(environment, jnp.arange(2), jnp.arange(2))


@pytest.mark.slow
def test_learns_what_is_known_of_two_doors():
    """After the first step it is known whether the door pays that was tried, so says the decoder, and the policy gets
    3.5 of 4 on average; of the other door, which a policy that was paid never opens, nobody tells it.

    Before it each is as likely, and the decoder says how often a door pays where it is opened: with the policy that
    tries one and then knows, 4 of 5 times the first, and the other always.
    """
    family = two_doors(4)
    decoder = mlp_decoder(family, latent_size=2, hidden=(16,), reward="bernoulli")
    learned = varibad(
        family,
        decoder,
        encoder=nn.gru(16),
        actor=nn.feed_forward(16),
        elbo=ELBO(kl_weight=0.1),
        outer=PPO(num_minibatches=2),
        advantages=Advantages(gae_lambda=0.9),
        optimizer=optax.adam(2e-2),
        model_optimizer=optax.adam(1e-2),
    )
    state, _ = jaxmeta.fit(KEY, learned, family.train, num_outer_steps=200, num_tasks=64, progress=False)
    agent, one = learned.agent(state.meta_params), rl.trial(family.environment)
    keys, tasks = jax.random.split(jax.random.key(1), 200), jnp.arange(200) % 2
    played = jax.vmap(lambda key, task: rl.rollout(key, one, *agent, task)[1])(keys, tasks)
    assert played.reward.sum(axis=1).mean() > 3.3
    doors = Step(jnp.ones((2, 1)), jnp.eye(2), jnp.zeros(2), jnp.ones((2, 1)))
    params = state.meta_params.params["decoder"]
    chance = jax.vmap(lambda m: decoder.reward(params, m, doors))(played.extras.belief.mean)  # [tasks, T, door]
    opened = np.eye(2)[np.asarray(played.action)]
    often = np.sum(opened * np.asarray(played.reward)[..., None], axis=(0, 1)) / opened.sum(axis=(0, 1))
    np.testing.assert_allclose(np.sort(often), [0.8, 1.0], atol=0.1)
    np.testing.assert_allclose(chance[:, 0], np.tile(often, (200, 1)), atol=0.15)
    tried = np.take_along_axis(np.asarray(chance), np.asarray(played.action)[:, None, :1], axis=2)[:, 1:, 0]
    np.testing.assert_allclose(tried, np.asarray(played.reward)[:, :1].repeat(3, axis=1), atol=0.15)

"""An agent's own γ, λ, weights and rate: derivatives against an MDP summed by hand; what is played."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from benchmarks.shared.enumerated import PARAMS, TOY
from jaxmeta import A2C, Task, adapt, rl
from jaxmeta.algorithms.actor_critic import a2c_terms, play
from jaxmeta.rl.actors import Actor
from jaxmeta.rl.distributions import Categorical
from jaxmeta.rl.rollout import Transition
from jaxmeta.rl.trials import Inputs

pytestmark = pytest.mark.usefixtures("strict_shapes", "x64_module")

HORIZON = 3  # then the time is over, and the rest is worth the value of the state that follows
VALUES = np.array([0.4, -0.7])
NUMBERS = {"discount": 0.9, "gae_lambda": 0.7, "value_weight": 0.5, "entropy_weight": 0.3}
RATE = 0.6
ROWS = [  # every episode: the states, one more than actions, and the actions
    (states, actions)
    for states in itertools.product(range(2), repeat=HORIZON + 1)
    for actions in itertools.product(range(2), repeat=HORIZON)
]


# By hand, in numpy, of numbers that may be complex: f(x + ih) = f(x) + ih f'(x) up to h².


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def chance_by_hand(policy, states, actions):
    chance = TOY.start[states[0]]
    for s, a, following in zip(states, actions, states[1:], strict=False):
        chance = chance * policy[s, a] * TOY.transition[s, a, following]
    return chance


def step_by_hand(numbers, rate):
    """θ and V after the step of the expected loss, summed over all episodes."""
    policy = softmax(PARAMS)
    of_logits, of_values = np.zeros((2, 2), complex), np.zeros(2, complex)
    for states, actions in ROWS:
        chance, later = chance_by_hand(policy, states, actions), 0
        for t in reversed(range(HORIZON)):
            s, a = states[t], actions[t]
            delta = TOY.reward[s, a] + numbers["discount"] * VALUES[states[t + 1]] - VALUES[s]
            later = delta + numbers["discount"] * numbers["gae_lambda"] * later
            entropy = -np.sum(policy[s] * np.log(policy[s]))
            of_entropy = -policy[s] * (np.log(policy[s]) + entropy)
            of_logits[s] += chance * (-later * (np.eye(2)[a] - policy[s]) - numbers["entropy_weight"] * of_entropy)
            of_values[s] += chance * numbers["value_weight"] * 2 * (VALUES[s] - (later + VALUES[s]))
    return PARAMS - rate * of_logits, VALUES - rate * of_values


def judged_by_hand(numbers, rate):
    """Minus the expected return, and something of the values, so that their weight matters too."""
    logits, values = step_by_hand(numbers, rate)
    returns = [sum(TOY.reward[s, a] for s, a in zip(states, actions, strict=False)) for states, actions in ROWS]
    chances = [chance_by_hand(softmax(logits), *row) for row in ROWS]
    return -np.dot(chances, returns) + np.sum(values**2) / 2


def derivatives_by_hand():
    """In log-odds of γ and λ, in logarithms of the weights and of the rate."""
    step = 1e-30
    found = {}
    for name, value in {**NUMBERS, "rate": RATE}.items():
        moved = {**NUMBERS, "rate": RATE, name: value + 1j * step}
        rate = moved.pop("rate")
        inner = value * (1 - value) if name in ("discount", "gae_lambda") else value
        found[name] = judged_by_hand(moved, rate).imag / step * inner
    return found


# The same by the library: its terms at all episodes, one in each column, weighed by their chances.


def apply_fn(params, state):
    return Categorical(params["logits"][state]), params["values"][state]


ACTOR = Actor(apply_fn, True, rl.Discrete(2))
STATES, ACTIONS = (np.array(x).T for x in zip(*ROWS, strict=True))
NO = np.zeros(ACTIONS.shape, bool)
EPISODES = Transition(
    inputs=Inputs(STATES[:-1], *[NO] * 5),
    action=ACTIONS,
    reward=TOY.reward[STATES[:-1], ACTIONS],
    terminated=NO,
    truncated=NO | (np.arange(HORIZON) == HORIZON - 1)[:, None],
    next_observation=STATES[1:],
    mask=~NO,
    info={},
    extras=(),
)
DYNAMICS = TOY.start[STATES[0]] * TOY.transition[STATES[:-1], ACTIONS, STATES[1:]].prod(axis=0)


def chances(params):
    log_prob = jax.nn.log_softmax(params["logits"])[STATES[:-1], ACTIONS]
    return DYNAMICS * jnp.exp(log_prob.sum(axis=0))


def numbers_of(eta):
    shares = {name: jax.nn.sigmoid(eta[name]) for name in ("discount", "gae_lambda")}
    return A2C(**shares, **{name: jnp.exp(eta[name]) for name in ("value_weight", "entropy_weight")})


def expected_loss(params, eta, batch):
    terms = a2c_terms(ACTOR, params, EPISODES, numbers_of(eta))
    return jnp.sum(jax.lax.stop_gradient(chances(params)) * terms.sum(axis=0)), {}


def judged(params, eta, batch):
    return jnp.sum(params["values"] ** 2) / 2 - chances(params) @ EPISODES.reward.sum(axis=0), {}


def derivatives(outer_loss_fn, **options):
    """What an update of gradient descent with rate 1 moves η and the logarithm of the rate by."""
    losses = jaxmeta.actor_critic_losses(apply_fn, bandit().environment, inner=A2C(**NUMBERS))
    rate = adapt.from_optax(lambda hyper: optax.sgd(jnp.exp(hyper)), np.log(RATE))
    learner = jaxmeta.bilevel(
        lambda key, eta: {"logits": jnp.asarray(PARAMS), "values": jnp.asarray(VALUES)},
        losses.meta_init_fn,
        expected_loss,
        outer_loss_fn=outer_loss_fn,
        inner_optimizer=rate,
        optimizer=optax.sgd(1.0),
        **options,
    )
    state = learner.init(jax.random.key(0))
    after, _ = jax.jit(learner.update)(jax.random.key(1), state, Task(jnp.zeros(1), jnp.zeros(1)))
    moved = jax.tree.map(lambda before, after: float(before - after), state.meta_params, after.meta_params)
    return {**moved.params, "rate": moved.hyper}


def bandit():
    return rl.families.bernoulli_bandit(num_arms=2, num_pulls=3)


@pytest.mark.parametrize("strategy", [adapt.exact(), adapt.mixed_mode()], ids=["exact", "mixed mode"])
def test_derivatives_of_the_return_after_one_update_are_the_enumerated_ones(strategy):
    found, by_hand = derivatives(judged, num_inner_steps=1, meta_gradient=strategy), derivatives_by_hand()
    assert min(map(abs, by_hand.values())) > 1e-3
    for name, value in by_hand.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, err_msg=name)


def test_a_target_one_step_ahead_along_the_outer_loss_scales_its_meta_gradient():
    rate = 0.37
    outer = jaxmeta.bootstrapped(expected_loss, judged, num_target_steps=1, target_optimizer=optax.sgd(rate))
    found, plain = derivatives(outer, num_inner_steps=3), derivatives(judged, num_inner_steps=3)
    assert min(map(abs, plain.values())) > 1e-3
    for name, value in plain.items():
        np.testing.assert_allclose(found[name], rate * value, rtol=1e-10, err_msg=name)


def test_a_target_goes_on_along_the_inner_loss_and_ends_along_the_outer_one():
    loss_fn = lambda w, eta, batch, key: (eta * jnp.sum((w - batch) ** 2) / 2 + w[0] * jax.random.normal(key), {})
    outer_loss_fn = lambda w, eta, batch, key: (jnp.sum(w**2) / 2, {"size": w[0]})
    seen = []
    outer = jaxmeta.bootstrapped(
        loss_fn,
        outer_loss_fn,
        num_target_steps=4,
        target_optimizer=optax.sgd(0.1, momentum=0.5),
        distance=lambda target, w, batch, key: (seen.append(target), jnp.sum(target * w))[1],
        stochastic=True,
    )
    w, batch, key = jnp.array([2.0, -1.0]), jnp.array([0.5, 0.5]), jax.random.key(3)
    (value, metrics), grads = jax.value_and_grad(outer, argnums=(0, 1), has_aux=True)(w, 1.5, batch, key)
    keys = jax.random.split(jax.random.split(key, 3)[0], 3)
    at, momentum = np.array(w), 0
    for noise in [*(np.array([jax.random.normal(key), 0.0]) for key in keys), None]:
        gradient = at if noise is None else 1.5 * (at - np.array(batch)) + noise
        momentum = gradient + 0.5 * momentum
        at = at - 0.1 * momentum
    np.testing.assert_allclose(grads[0], at, rtol=1e-12)  # that of target · w, with the target a constant
    np.testing.assert_allclose(value, at @ np.array(w), rtol=1e-12)
    assert float(grads[1]) == 0 and float(metrics["size"]) == 2.0 and len(seen) == 1


# What is played.


def corridor():
    """Two steps to the right end an episode, paid by the place; the task is what is paid."""

    def reset(key, gain):
        return jnp.int32(0), jnp.int32(0)

    def step(key, place, action, gain):
        following = jnp.maximum(place + 2 * action - 1, 0)
        return following, following, gain * (1.0 + place), following >= 2

    return rl.Environment(reset, step, rl.Discrete(2), max_steps=5)


def test_the_losses_are_those_of_the_episodes_that_are_played():
    table = {"logits": jnp.array([[0.2, -0.1], [0.3, 0.5], [0.0, 0.0]]), "values": jnp.array([0.5, -0.3, 9.0])}
    actor = Actor(apply_fn, True, rl.Discrete(2))
    outer = A2C(discount=0.8, gae_lambda=0.6, value_weight=0.0, entropy_weight=0.0)
    losses = jaxmeta.actor_critic_losses(
        apply_fn, corridor(), inner=A2C(**NUMBERS), outer=outer, num_episodes=6, num_outer_episodes=7
    )
    eta, gain = losses.meta_init_fn(None), jnp.array(1.5)
    for fn, numbers, count in ((losses.loss_fn, A2C(**NUMBERS), 6), (losses.outer_loss_fn, outer, 7)):
        key = jax.random.key(count)
        loss, metrics = fn(table, eta, gain, key)
        played = jax.tree.map(np.asarray, play(actor, rl.trial(corridor()), count, key, table, gain))
        total, steps, returns = 0.0, 0, []
        for e in range(count):
            end = 1 + next((t for t in range(5) if played.terminated[t, e]), 4)
            later = 0.0
            for t in reversed(range(end)):
                s, a, following = played.inputs.observation[t, e], played.action[t, e], played.next_observation[t, e]
                worth = 0.0 if played.terminated[t, e] else float(table["values"][following])
                value, policy = float(table["values"][s]), softmax(np.asarray(table["logits"]))[s]
                later = 1.5 * (1 + s) + numbers.discount * worth - value + numbers.discount * numbers.gae_lambda * later
                total += -later * np.log(policy[a]) + numbers.value_weight * later**2
                total += numbers.entropy_weight * np.sum(policy * np.log(policy))
                steps += 1
            returns.append(sum(1.5 * (1 + s) for s in played.inputs.observation[:end, e]))
        assert played.terminated.sum() > 0 and len(set(returns)) > 1
        np.testing.assert_allclose(loss, total / steps, rtol=1e-10)
        np.testing.assert_allclose(metrics["return"], np.mean(returns), rtol=1e-12)


def small(**options):
    network = rl.mlp_policy_and_value(bandit(), hidden=(2,))
    options = {"num_episodes": 2, "num_eval_steps": 3, "inner_optimizer": adapt.sgd(0.1), **options}
    return jaxmeta.meta_gradient_rl(*network, bandit().environment, **options)


def types(tree):
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda tree: tree, tree))
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


def test_an_outer_step_is_of_as_many_steps_of_the_agent_as_is_said():
    learner, family = small(num_inner_steps=2), bandit()
    task = family.train.sample(jax.random.key(0), family.train.data)
    tasks = jax.tree.map(lambda leaf: leaf[None], task)
    state, _ = jax.jit(learner.update)(jax.random.key(1), learner.init(jax.random.key(2)), tasks)
    assert state.carry.age.tolist() == [2]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"num_agents": 3, "num_inner_steps": 2, "learned": ("gae_lambda",)}, marks=pytest.mark.slow),
        {"num_target_steps": 2, "matching": "policy", "meta_gradient": adapt.forward_mode(lambda path: True)},
    ],
    ids=["agents", "bootstrapped"],
)
def test_a_learner_keeps_its_types_and_vmaps_over_seeds(options):
    learner, number = small(**options), options.get("num_agents", 1)
    keys = jax.random.split(jax.random.key(0))
    states = jax.eval_shape(jax.vmap(learner.init), keys)
    sample = lambda key: bandit().train.sample(key, bandit().train.data)
    tasks = jax.eval_shape(jax.vmap(jax.vmap(sample)), jax.random.split(jax.random.key(1), (2, number)))
    after, metrics = jax.eval_shape(jax.vmap(learner.update), keys, states, tasks)
    assert types(after) == types(states)
    learned = options.get("learned", ("discount", "gae_lambda", "value_weight", "entropy_weight"))
    assert {"return", "loss", "is_finite", *learned} <= set(metrics)


@pytest.mark.slow
def test_a_new_agent_is_trained_by_what_was_learned():
    learner, key = small(num_episodes=64, inner_optimizer=adapt.sgd(2.0)), jax.random.key(0)
    meta_params, task = learner.init(key).meta_params, rl.families.bandits.Bandit(jnp.array([0.0, 1.0]))
    returns = jax.jit(learner.evaluate)(key, meta_params, task)["return"]
    assert returns.shape == (4,) and returns[0] < 2 < returns[-1]  # of 3 pulls
    agent = learner.agent(meta_params, jax.jit(learner.adapt)(key, meta_params, task))
    _, played = rl.rollout(key, rl.trial(bandit().environment, num_episodes=20), *agent, task)
    assert played.reward.sum() > 40
    with pytest.raises(ValueError, match="adapted must be the params of an agent"):
        learner.agent(meta_params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learned": ()}, "learned must be names of discount, gae_lambda, value_weight, entropy_weight"),
        ({"learned": ("lambda",)}, r"at least one, got \('lambda',\)"),
        ({"learned": "discount"}, "at least one, got 'discount'"),
        ({"inner": A2C(discount=1.0)}, "discount of inner must be between 0 and 1, neither end, where it is learned"),
        ({"inner": A2C(entropy_weight=0.0)}, "entropy_weight of inner must be positive"),
        ({"outer": 0.9}, r"outer must be a A2C"),
        ({"matching": "policy"}, "num_target_steps must be at least 1 where target_optimizer or matching is given"),
        ({"matching": "values", "num_target_steps": 1}, "matching must be one of parameters, policy"),
        ({"num_outer_episodes": 0}, "num_outer_episodes must be an integer >= 1"),
    ],
)
def test_a_wrong_argument_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_a_share_is_at_most_one():
    with pytest.raises(ValueError, match="gae_lambda must be a finite number from 0 to 1, got 1.5"):
        A2C(gae_lambda=1.5)


def test_a_distance_that_draws_takes_a_key():
    distance = lambda target, params, batch: 0.0
    options = {"num_target_steps": 1, "target_optimizer": optax.sgd(0.1), "distance": distance, "stochastic": True}
    loss_fn = lambda params, meta_params, batch, key: (params, {})
    with pytest.raises(ValueError, match="distance must take a key with stochastic=True"):
        jaxmeta.bootstrapped(loss_fn, loss_fn, **options)

"""MAML-RL's own updates against exact meta-gradients: every way that their episodes can turn out is played, and summed.

The environment and the policy are scripted: which episode is played where is an argument, looked up by the random key
that the environment is reset with. Each outcome's update then counts as often as it would have happened.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.shared.enumerated import (
    MDP,
    Episodes,
    all_episodes,
    expected_adapted_return,
    expected_return,
    log_prob,
    probability,
    reward_to_go,
    sampled_adapted_return,
)
from jaxmeta import VPG, Advantages, Surrogate, adapt, e_maml, maml_rl
from jaxmeta.rl import Discrete, Environment
from jaxmeta.rl.distributions import Categorical

pytestmark = pytest.mark.usefixtures("strict_shapes", "x64_module")

RATE = 0.8
KEY = 7
MOVES = MDP(  # all probabilities are quarters, so that a batch can have every episode as often as it is likely
    start=np.array([1.0, 0.0]),
    transition=np.array([[[0.75, 0.25], [0.25, 0.75]], [[0.5, 0.5], [0.25, 0.75]]]),
    reward=np.array([[1.0, -0.5], [0.3, 2.0]]),
)
PARAMS = np.array([[0.4, -0.3], [0.2, 0.6]])


def likely_episodes(mdp, horizon):
    episodes = all_episodes(mdp, horizon)
    return Episodes(*(x[..., np.asarray(episodes.dynamics) > 0] for x in episodes))


class Script(NamedTuple):
    """A task: `episode[i]` is played where a reset's key is `key[i]`, and `otherwise` where it is none of them.

    gain:  rewards are multiplied by it
    probe: 1 if the keys of this task are to be reported, 0 if not
    """

    key: jax.Array
    episode: jax.Array
    otherwise: jax.Array
    gain: jax.Array
    probe: jax.Array


class Observation(NamedTuple):
    state: jax.Array
    action: jax.Array  # that the policy will draw
    key: jax.Array
    probe: jax.Array


class Scripted(NamedTuple):
    """A categorical distribution from which comes what the script says."""

    logits: jax.Array
    action: jax.Array

    def sample(self, key):
        return self.action

    def log_prob(self, action):
        return Categorical(self.logits).log_prob(action)

    def kl(self, other):
        return Categorical(self.logits).kl(Categorical(other.logits))


def scripted_environment(episodes):
    def observe(state, task):
        time, episode, key = state
        at = lambda x: x[jnp.minimum(time, len(x) - 1), episode]
        return Observation(at(episodes.state), at(episodes.action).astype(jnp.int32), key, task.probe)

    def reset(key, task):
        bits = jax.random.bits(key, dtype=jnp.uint32)
        is_it = task.key == bits
        episode = jnp.where(jnp.any(is_it), task.episode[jnp.argmax(is_it)], task.otherwise)
        state = (jnp.int32(0), episode, bits)
        return observe(state, task), state

    def step(key, state, action, task):
        time, episode, bits = state
        after = (time + 1, episode, bits)
        return observe(after, task), after, task.gain * episodes.reward[time, episode], jnp.bool_(False)

    return Environment(reset, step, Discrete(2), len(episodes.state))


def learner_of(make, episodes, num_episodes, params=PARAMS, **kwargs):
    """Without a baseline, so that an episode's gradient is its own, and with an optimizer that keeps the gradient."""

    def report_keys(transitions):
        seen = transitions.inputs.observation
        return {f"key_{e}": seen.probe[0, e] * seen.key[0, e] for e in range(num_episodes)}

    return make(
        lambda key: params,
        lambda params, seen: Scripted(params[seen.state], seen.action),
        scripted_environment(episodes),
        inner_optimizer=adapt.sgd(RATE),
        num_episodes=num_episodes,
        advantages=Advantages(discount=1.0, normalize=False),
        baseline="none",
        outer=VPG(),
        optimizer=optax.trace(decay=0.0),
        metrics_fn=report_keys,
        **kwargs,
    )


def mean_update(learner, before, after, weights, *, otherwise=0, gain=(1.0,)):
    """−Σ weight · gradient over outcomes, in which N tasks play `before` and `after`, `[outcomes, N, E]`."""
    state = learner.init(jax.random.key(0))
    update = jax.jit(
        jax.vmap(lambda task: learner.update(jax.random.key(KEY), state, task)),
        compiler_options={"xla_backend_optimization_level": 0},  # the time goes into compiling
    )
    episode = np.concatenate([before, after], axis=-1)
    num_outcomes, num_tasks, num_plays = episode.shape
    each = lambda x: np.broadcast_to(np.asarray(x), (num_outcomes, num_tasks))

    probe = np.arange(num_outcomes)[:, None] == np.arange(num_tasks)  # in outcome i that of task i
    unknown = Script(np.zeros(episode.shape, np.uint32), episode, each(otherwise), each(gain), 1.0 * probe)
    metrics = update(unknown)[1]
    names = [f"key_{e}{when}" for when in ("_before", "") for e in range(num_plays // 2)]
    keys = num_tasks * np.stack([metrics[name][:num_tasks] for name in names], -1)
    assert len(np.unique(keys)) == keys.size and np.all(keys > 0)

    known = unknown._replace(key=np.broadcast_to(keys.astype(np.uint32), episode.shape))
    return -jnp.tensordot(jnp.asarray(weights), update(known)[0].opt_state.trace.params, 1)


def outcomes(num_episodes, length):
    """`[M ** length, length]`: all sequences of episodes."""
    return np.array(list(itertools.product(range(num_episodes), repeat=length)))


def inner_gradient(params, episodes):
    """Of what each episode says: Σ_t G_t ∇ log π_t, `[M, S, A]`."""
    return jax.jacobian(lambda params: jnp.sum(log_prob(params, episodes) * reward_to_go(episodes), axis=0))(params)


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


# Losses are means over steps: a learner's gradients are those of the return per step.


def test_e_maml_follows_the_gradient_of_formulation_one_through_two_steps():
    horizon = 2
    episodes = likely_episodes(MOVES, horizon)
    learner = learner_of(e_maml, episodes, 1, num_inner_steps=2)
    played = outcomes(episodes.dynamics.size, 3)
    rate, params, weights = RATE / horizon, jnp.asarray(PARAMS)[None].repeat(len(played), 0), np.ones(len(played))
    at = jax.jit(jax.vmap(lambda params, m: (probability(params, episodes)[m], inner_gradient(params, episodes)[m])))
    for m in played.T:
        likelihood, gradient = at(params, m)
        weights, params = weights * likelihood, params + rate * gradient
    first, second, last = (m[:, None] for m in played.T)
    actual = mean_update(learner, first[:, None], last[:, None], weights, otherwise=second)
    exact = jax.jit(jax.grad(lambda params: sampled_adapted_return(params, episodes, rate, 2)))(PARAMS) / horizon
    assert relative_error(actual, exact) < 1e-10


@pytest.mark.slow
def test_e_maml_gives_credit_to_every_episode_of_a_batch():
    """Two episodes in the inner step, two after it."""
    horizon = 2
    episodes = likely_episodes(MOVES, horizon)
    learner = learner_of(e_maml, episodes, 2)
    rate, pairs = RATE / horizon, outcomes(episodes.dynamics.size, 2)

    def of_pairs(params):  # probability and adapted parameters
        p, gradient = probability(params, episodes), inner_gradient(params, episodes)
        return p[pairs].prod(1), jax.vmap(lambda g: params + rate * g)(gradient[pairs].mean(1))

    def objective(params):
        p, adapted = of_pairs(params)
        return p @ jax.vmap(lambda params: expected_return(params, episodes))(adapted)

    p, adapted = of_pairs(jnp.asarray(PARAMS))
    p_after = jax.vmap(lambda params: probability(params, episodes)[pairs].prod(1))(adapted)
    before, after = (x[:, None] for x in (pairs.repeat(len(pairs), 0), np.tile(pairs, (len(pairs), 1))))
    actual = mean_update(learner, before, after, (p[:, None] * p_after).ravel())
    assert relative_error(actual, jax.jit(jax.grad(objective))(PARAMS) / horizon) < 1e-10


def test_e_mamls_baseline_is_of_the_other_tasks_and_adds_no_bias():
    """Two tasks, the second of which pays −0.7 of what the first does."""
    horizon, gain = 2, np.array([1.0, -0.7])
    episodes = likely_episodes(MOVES, horizon)
    learner = learner_of(e_maml, episodes, 1)
    rate, played = RATE / horizon, outcomes(episodes.dynamics.size, 4)
    tasks = [episodes._replace(reward=g * episodes.reward) for g in gain]
    p, weights = np.asarray(probability(PARAMS, episodes)), np.ones(len(played))
    for i, task in enumerate(tasks):
        adapted = PARAMS + rate * np.asarray(inner_gradient(jnp.asarray(PARAMS), task))
        p_after = np.asarray(jax.vmap(lambda params: probability(params, episodes))(adapted))
        weights *= p[played[:, i]] * p_after[played[:, i], played[:, 2 + i]]
    actual = mean_update(learner, played[:, :2, None], played[:, 2:, None], weights, gain=gain)
    mean_return = lambda params: sum(sampled_adapted_return(params, task, rate) for task in tasks) / len(tasks)
    assert relative_error(actual, jax.jit(jax.grad(mean_return))(PARAMS) / horizon) < 1e-10


@pytest.mark.parametrize("make", [e_maml, maml_rl])
def test_on_a_two_armed_bandit_they_are_their_closed_forms(make):
    """Arms pay r_0 and r_1, p = σ(θ_1 − θ_0): d = θ_1 − θ_0 goes to d + 2α r_1 (1 − p) or to d − 2α r_0 p.

    MAML differentiates what an arm's reward does to d, E-MAML the probability of the arm too.
    """
    r = np.array([0.3, 1.5])
    episodes = all_episodes(MDP(np.ones(1), np.ones((1, 2, 1)), r[None]), 1)
    params = np.array([[0.1, 0.5]])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    d = params[0, 1] - params[0, 0]
    p = sigmoid(d)
    likely, after = np.array([1 - p, p]), np.array([d - 2 * RATE * r[0] * p, d + 2 * RATE * r[1] * (1 - p)])
    value, slope = r[0] + (r[1] - r[0]) * sigmoid(after), (r[1] - r[0]) * sigmoid(after) * sigmoid(-after)
    pathwise = likely @ (slope * (1 - 2 * RATE * r * p * (1 - p)))
    credit = p * (1 - p) * (value[1] - value[0])
    learner = learner_of(
        make, episodes, 1, params, **({} if make is e_maml else {"surrogate": Surrogate(estimator="biased")})
    )
    played = outcomes(2, 2)
    weights = likely[played[:, 0]] * np.stack([sigmoid(-after), sigmoid(after)], -1)[played[:, 0], played[:, 1]]
    actual = mean_update(learner, played[:, None, :1], played[:, None, 1:], weights)
    expected = pathwise + credit if make is e_maml else pathwise
    np.testing.assert_allclose(actual, expected * np.array([[-1, 1]]), rtol=1e-10)
    assert abs(credit) > 0.01


def hessians(params, episodes):
    """What each estimator keeps of ∇²J: H2, H1 + H2, and all."""
    weights, to_go = probability(params, episodes), reward_to_go(episodes)
    scores = jax.jacobian(log_prob)(params, episodes).reshape(*to_go.shape, params.size)
    curvature = jax.hessian(log_prob)(params, episodes).reshape(*to_go.shape, params.size, params.size)
    h1 = jnp.einsum("m,tm,tmi,tmj->ij", weights, to_go, scores, scores)
    h2 = jnp.einsum("m,tm,tmij->ij", weights, to_go, curvature)
    exact = jax.hessian(expected_return)(params, episodes).reshape(params.size, params.size)
    return {"biased": h2, "lvc": h1 + h2, "dice": exact}


@pytest.mark.parametrize("estimator", ["biased", "lvc", "dice"])
def test_an_estimator_has_the_meta_gradient_of_what_it_keeps(estimator):
    """The inner batch has every episode as often as it is likely, so that its mean is the expectation."""
    horizon, params = 2, np.zeros((2, 2))  # a policy whose actions have probability ½
    episodes = likely_episodes(MOVES, horizon)
    counts = np.asarray(16 * probability(params, episodes))
    assert np.all(counts % 1 == 0)
    num_outcomes = len(counts)  # after adaptation one episode at a time, 16 times the same
    before = np.arange(num_outcomes).repeat(counts.astype(int))[None].repeat(num_outcomes, 0)
    after = np.arange(num_outcomes)[:, None].repeat(16, 1)
    rate, learner = RATE / horizon, learner_of(maml_rl, episodes, 16, params, surrogate=Surrogate(estimator=estimator))
    gradient = jax.jit(jax.grad(lambda params: expected_return(params, episodes)))
    adapted = params + rate * gradient(params)
    actual = mean_update(learner, before[:, None], after[:, None], probability(adapted, episodes))
    kept = jax.jit(lambda params: hessians(params, episodes)[estimator])(params)
    expected = ((np.eye(params.size) + rate * kept) @ gradient(adapted).ravel()).reshape(params.shape) / horizon
    assert relative_error(actual, expected) < 1e-10
    exact = jax.jit(jax.grad(lambda params: expected_adapted_return(params, episodes, rate)))(params) / horizon
    error = relative_error(actual, exact)
    assert error < 1e-10 if estimator == "dice" else error > 1e-3, error

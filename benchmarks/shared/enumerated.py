"""An MDP so small that all its episodes can be summed: exact returns after adaptation, to judge estimators by.

The policy is a softmax over a table, `params` `[S, A]`. With J(θ) the expected return of π_θ, meta-RL has two
objectives, which differ in what the inner step is taken on:

    I   E_{τ ~ π_θ} J(θ + α g(θ, τ))     an episode that was sampled, which the gradient has to give credit to
    II  J(θ + α ∇J(θ))                   the expectation over episodes, whose derivatives have to be estimated

where g(θ, τ) = Σ_t G_t ∇ log π_θ(a_t | s_t) with the reward to go G_t.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class MDP(NamedTuple):
    """start `[S]` and transition `[S, A, S]` are probabilities, reward is `[S, A]`."""

    start: np.ndarray
    transition: np.ndarray
    reward: np.ndarray


TOY = MDP(
    start=np.array([0.7, 0.3]),
    transition=np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.4, 0.6], [0.75, 0.25]]]),
    reward=np.array([[1.0, -0.5], [0.3, 2.0]]),
)
PARAMS = np.array([[0.4, -0.3], [0.2, 0.6]])  # of a policy that is neither random nor good
HORIZON = 3


class Episodes(NamedTuple):
    """All M of them: state, action and reward `[T, M]`; dynamics `[M]`, the probability without the policy's part."""

    state: jax.Array
    action: jax.Array
    reward: jax.Array
    dynamics: jax.Array


def all_episodes(mdp: MDP = TOY, horizon: int = HORIZON) -> Episodes:
    """Every sequence of states and actions.

    >>> all_episodes().state.shape
    (3, 64)
    """
    num_states, num_actions = mdp.reward.shape
    pairs = list(itertools.product(range(num_states), range(num_actions)))
    state, action = np.array(list(itertools.product(pairs, repeat=horizon))).transpose(2, 1, 0)
    moves = mdp.transition[state[:-1], action[:-1], state[1:]]
    dynamics = mdp.start[state[0]] * moves.prod(axis=0)
    return Episodes(*map(jnp.asarray, (state, action, mdp.reward[state, action], dynamics)))


def log_prob(params: jax.Array, episodes: Episodes) -> jax.Array:
    """log π(a_t | s_t), `[T, M]`."""
    return jax.nn.log_softmax(jnp.asarray(params))[episodes.state, episodes.action]


def probability(params: jax.Array, episodes: Episodes) -> jax.Array:
    """Of each episode, `[M]`."""
    return episodes.dynamics * jnp.exp(log_prob(params, episodes).sum(0))


def reward_to_go(episodes: Episodes) -> jax.Array:
    """G_t = Σ_{i≥t} r_i, `[T, M]`."""
    return jnp.cumsum(episodes.reward[::-1], axis=0)[::-1]


def expected_return(params: jax.Array, episodes: Episodes) -> jax.Array:
    """J(θ)."""
    return probability(params, episodes) @ episodes.reward.sum(0)


def expected_adapted_return(params: jax.Array, episodes: Episodes, rate: float) -> jax.Array:
    """Formulation II: J(θ + α ∇J(θ))."""
    return expected_return(params + rate * jax.grad(expected_return)(params, episodes), episodes)


def sampled_adapted_return(params: jax.Array, episodes: Episodes, rate: float, num_steps: int = 1) -> jax.Array:
    """Formulation I, with `num_steps` inner steps on one episode each: E_τ J(θ + α g(θ, τ)), and so on inwards."""
    if num_steps == 0:
        return expected_return(params, episodes)

    def score_return(params: jax.Array) -> jax.Array:
        return jnp.sum(log_prob(params, episodes) * reward_to_go(episodes), axis=0)

    def after(gradient: jax.Array) -> jax.Array:
        return sampled_adapted_return(params + rate * gradient, episodes, rate, num_steps - 1)

    return probability(params, episodes) @ jax.vmap(after)(jax.jacobian(score_return)(params))


class Batches(NamedTuple):
    """All batches of E episodes: counts `[B, M]`, how often each of the M episodes is in it, and in how many orders."""

    counts: jax.Array
    orders: jax.Array


def all_batches(num_outcomes: int, num_episodes: int) -> Batches:
    """Every multiset of `num_episodes` out of `num_outcomes` episodes.

    >>> batches = all_batches(4, 3)
    >>> batches.counts.shape, float(batches.orders.sum())  # 4³
    ((20, 4), 64.0)
    """
    drawn = list(itertools.combinations_with_replacement(range(num_outcomes), num_episodes))
    counts = np.array([np.bincount(batch, minlength=num_outcomes) for batch in drawn])
    orders = [math.factorial(num_episodes) / math.prod(map(math.factorial, row)) for row in counts.tolist()]
    return Batches(jnp.asarray(counts), jnp.asarray(orders))


def likelihood(params: jax.Array, episodes: Episodes, batches: Batches) -> jax.Array:
    """Of each batch, `[B]`."""
    return batches.orders * jnp.prod(probability(params, episodes) ** batches.counts, axis=1)


def values(params: np.ndarray, mdp: MDP = TOY, horizon: int = HORIZON) -> np.ndarray:
    """V_t(s), `[T, S]`, of the rewards still to come, by dynamic programming.

    >>> bool(np.allclose(TOY.start @ values(PARAMS)[0], expected_return(PARAMS, all_episodes()), rtol=1e-5))
    True
    """
    policy = np.exp(params) / np.exp(params).sum(-1, keepdims=True)
    later, table = np.zeros(len(mdp.start)), []
    for _ in range(horizon):
        later = np.sum(policy * (mdp.reward + mdp.transition @ later), axis=-1)
        table.append(later)
    return np.array(table[::-1])

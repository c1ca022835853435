"""Returns, advantages and the linear baseline, of transitions with leading axis T; further axes, such as E, may follow.

An episode ends where it terminated or was truncated. After a termination nothing is worth anything; after a
truncation, and after the last step there is, the rest is worth the value of the observation that followed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_number, check_share


def discounted_returns(reward: jax.Array, done: jax.Array, *, discount: float | jax.Array) -> jax.Array:
    """Reward to go within the episode, G_t = r_t + γ (1 − done_t) G_{t+1}.

    Args:
      reward: `[T, ...]`.
      done: `[T, ...]`, whether the step ended an episode: terminated or truncated.
      discount: γ, for each step of the environment, in [0, 1].

    Raises:
      ValueError: `discount` is not in [0, 1].

    >>> discounted_returns(jnp.array([1.0, 1.0, 1.0]), jnp.array([False, True, False]), discount=0.5).tolist()
    [1.5, 1.0, 1.0]
    """
    check_share("discount", discount)
    reward = jnp.asarray(reward)
    return _backward_sum(reward, discount * (1 - jnp.asarray(done, reward.dtype)))


class Advantages(NamedTuple):
    """What `gae` returns, in units of the reward.

    Attributes:
      advantage: `[T, ...]`.
      target: `[T, ...]`, the λ-returns that values are fitted to.
    """

    advantage: jax.Array
    target: jax.Array


def gae(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    *,
    discount: float | jax.Array,
    lambda_: float | jax.Array,
) -> Advantages:
    """Generalised advantage estimation, with the two ends of an episode kept apart.

        δ_t = r_t + γ (1 − terminated_t) V(s'_t) − V(s_t)
        A_t = δ_t + γ λ (1 − terminated_t) (1 − truncated_t) A_{t+1}

    For one return over a whole trial, as in RL², end it once: `terminated` true at the last step, `truncated` nowhere.

    Args:
      reward: `[T, ...]`.
      value: V(s_t), `[T, ...]`.
      next_value: V(s'_t) of the observation that followed the step, before any reset, `[T, ...]`.
      terminated: the task's own ends, `[T, ...]`.
      truncated: the time limit's, `[T, ...]`; both may be true.
      discount: γ, for each step of the environment, in [0, 1].
      lambda_: λ, in [0, 1].

    Returns:
      `Advantages(advantage, target)`, with target = advantage + value.

    Raises:
      ValueError: `discount` or `lambda_` is not in [0, 1].

    Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation" (2015),
    https://arxiv.org/abs/1506.02438

    >>> ones, no = jnp.ones(2), jnp.zeros(2, bool)
    >>> gae(ones, ones, ones, no, jnp.array([True, False]), discount=0.5, lambda_=1.0).advantage.tolist()
    [0.5, 0.5]
    """
    check_share("discount", discount)
    check_share("lambda_", lambda_)
    reward = jnp.asarray(reward)
    alive, within = (1 - jnp.asarray(end, reward.dtype) for end in (terminated, truncated))
    delta = reward + discount * alive * next_value - value
    advantage = _backward_sum(delta, discount * lambda_ * alive * within)
    return Advantages(advantage, advantage + value)


def _backward_sum(term: jax.Array, factor: jax.Array) -> jax.Array:
    """x_t = term_t + factor_t · x_{t+1}, from x_T = 0."""

    def step(later: jax.Array, now: tuple) -> tuple[jax.Array, jax.Array]:
        later = now[0] + now[1] * later
        return later, later

    return jax.lax.scan(step, jnp.zeros_like(term[0]), (term, factor), reverse=True)[1]


def linear_features(observation: jax.Array, time: jax.Array) -> jax.Array:
    """[o, o², t, t², t³, 1], o clipped to ±10 and t = steps / 100, as in the reference code.

    Args:
      observation: `[..., D]`.
      time: `[...]`, steps taken in the episode.

    >>> linear_features(jnp.array([2.0]), jnp.array(100)).tolist()
    [2.0, 4.0, 1.0, 1.0, 1.0, 1.0]
    """
    o = jnp.clip(jnp.asarray(observation), -10, 10)
    t = jnp.asarray(time, o.dtype)[..., None] / 100
    return jnp.concatenate([o, o**2, t, t**2, t**3, jnp.ones_like(t)], axis=-1)


def fit_linear_baseline(
    features: jax.Array, returns: jax.Array, mask: jax.Array | None = None, *, ridge: float = 1e-5
) -> jax.Array:
    """Weights w of the baseline features · w, by ridge regression: (FᵀF + ridge · I) w = Fᵀ G.

    Of one task, and of the data of one inner step: fit it there first, then predict that same data, never the other
    way round and never over tasks. Solved by a QR decomposition of [F; √ridge I]: FᵀF is more than float32 can hold.

    Duan, Chen, Houthooft, Schulman, Abbeel, "Benchmarking Deep Reinforcement Learning for Continuous Control" (2016),
    https://arxiv.org/abs/1604.06778

    Args:
      features: `[..., F]`, of `linear_features`; the axes before are those of `returns`.
      returns: `[...]`, such as `[T, E]`.
      mask: `[...]`, false for steps that do not count; all count if None.
      ridge: the penalty ≥ 0, > 0 where features depend on each other.

    Returns:
      The weights `[F]`.

    Raises:
      ValueError: `ridge` is negative or not finite.

    >>> features = linear_features(jnp.linspace(-1, 1, 20).reshape(20, 1), jnp.arange(20))
    >>> weights = fit_linear_baseline(features, 3 * features[:, 1])
    >>> bool(jnp.allclose(features @ weights, 3 * features[:, 1], atol=1e-3))
    True
    """
    check_number("ridge", ridge)
    features, returns = jnp.asarray(features), jnp.asarray(returns)
    num_features = features.shape[-1]
    weight = jnp.ones_like(returns) if mask is None else jnp.asarray(mask, returns.dtype)
    rows = (features * weight[..., None]).reshape(-1, num_features)
    penalty = jnp.sqrt(jnp.asarray(ridge, rows.dtype)) * jnp.eye(num_features, dtype=rows.dtype)
    q, r = jnp.linalg.qr(jnp.concatenate([rows, penalty]))
    targets = jnp.concatenate([(returns * weight).ravel(), jnp.zeros(num_features, rows.dtype)])
    return jax.scipy.linalg.solve_triangular(r, q.T @ targets)

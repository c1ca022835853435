"""Losses of policy gradients, term by term: all have the same gradient at the policy that acted, not the same Hessian.

A term is `[T, ...]`, one episode in each column; the caller masks and sums or averages. Everything but `log_prob` is
data, and not differentiated. As an inner loss it is the Hessian that enters the meta-gradient. With the return to go
G_t, and expectations over the episodes of π_θ, that of the expected return is

    ∇²J = E Σ_t G_t (s_t s_tᵀ + ∇s_t) + E Σ_t G_t (s_{<t} s_tᵀ + s_t s_{<t}ᵀ),   s_t = ∇ log π_t,  s_{<t} = Σ_{i<t} s_i
            ╰─ H1 ──╯ ╰─ H2 ─╯          ╰────────── H12 + H12ᵀ ──────────╯

| inner loss                   | its Hessian | of                                                             |
|------------------------------|-------------|----------------------------------------------------------------|
| `reinforce`                  | H2          | MAML as first published for reinforcement learning             |
| `lvc`, `importance_weighted` | H1 + H2     | ProMP: low-variance curvature                                  |
| `dice`, `loaded_dice`        | all         | no bias, and the variance of what is added                     |

Rothfuss, Lee, Clavera, Asfour, Abbeel, "ProMP: Proximal Meta-Policy Search" (2018), https://arxiv.org/abs/1810.06784
"""

import jax
import jax.numpy as jnp

from jaxmeta.checks import check_share


def reinforce(log_prob: jax.Array, advantage: jax.Array) -> jax.Array:
    """−log π_t A_t, the score function: right to first order only; its Hessian is changed even by a baseline.

    Args:
      log_prob: log π_θ(a_t | s_t), `[T, ...]`.
      advantage: A_t, or the return to go, in the same shape.

    Raises:
      ValueError: the shapes differ.

    Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning" (1992),
    https://doi.org/10.1007/BF00992696

    >>> jax.grad(lambda log_prob: reinforce(log_prob, jnp.array([2.0]))[0])(jnp.array([-1.0])).tolist()
    [-2.0]
    """
    return -log_prob * _data("advantage", advantage, log_prob)


def importance_weighted(log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array) -> jax.Array:
    """−(π_t / π_old,t) A_t, for actions of an older policy.

    Args:
      log_prob: log π_θ(a_t | s_t), `[T, ...]`.
      old_log_prob: of the policy that acted, in the same shape.
      advantage: A_t, in the same shape.

    Raises:
      ValueError: the shapes differ.

    >>> importance_weighted(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25])), jnp.array([3.0])).tolist()
    [-6.0]
    """
    return -_ratio(log_prob, old_log_prob) * _data("advantage", advantage, log_prob)


def lvc(log_prob: jax.Array, advantage: jax.Array) -> jax.Array:
    """Low-variance curvature: `importance_weighted` at the policy that acted, −magic(log π_t) A_t.

    Rothfuss, Lee, Clavera, Asfour, Abbeel, "ProMP: Proximal Meta-Policy Search" (2018),
    https://arxiv.org/abs/1810.06784

    Args:
      log_prob: log π_θ(a_t | s_t), `[T, ...]`.
      advantage: A_t, in the same shape.

    Raises:
      ValueError: the shapes differ.

    >>> term = lambda log_prob: lvc(log_prob, jnp.array([2.0]))[0]
    >>> jax.grad(term)(jnp.array([-1.0])).tolist(), jax.hessian(term)(jnp.array([-1.0])).tolist()
    ([-2.0], [[-2.0]])
    """
    return -_magic(log_prob) * _data("advantage", advantage, log_prob)


def dice(log_prob: jax.Array, reward: jax.Array, baseline: jax.Array | None = None) -> jax.Array:
    """−magic(Σ_{i≤t} log π_i) r_t − (1 − magic(log π_t)) b_t: every derivative is right, and of high variance.

    magic(x) = exp(x − stop_gradient(x)) is 1 and differentiates as the probability of what it depends on does. The
    baseline has expectation 0 and lowers the variance of first derivatives; `loaded_dice` is of lower variance.

    Args:
      log_prob: log π_θ(a_t | s_t), `[T, ...]`, one episode in each column.
      reward: r_t, in the same shape, as it counts in the return: γ^t r_t where that is discounted.
      baseline: b_t, in the same shape, a function of s_t that predicts Σ_{i≥t} of `reward`; none if None.

    Raises:
      ValueError: the shapes differ.

    Foerster et al., "DiCE: The Infinitely Differentiable Monte Carlo Estimator" (2018),
    https://arxiv.org/abs/1802.05098

    >>> jax.grad(lambda log_prob: dice(log_prob, jnp.array([1.0, 2.0])).sum())(jnp.zeros(2)).tolist()
    [-3.0, -2.0]
    """
    term = -_magic(jnp.cumsum(log_prob, axis=0)) * _data("reward", reward, log_prob)
    return term if baseline is None else term - (1 - _magic(log_prob)) * _data("baseline", baseline, log_prob)


def loaded_dice(log_prob: jax.Array, advantage: jax.Array, decay: float | jax.Array = 1.0) -> jax.Array:
    """−(magic(w_t) − magic(w_t − log π_t)) A_t with w_t = λ w_{t−1} + log π_t: DiCE with any advantage.

    Its value is 0. With λ = 1 and A_t = G_t − b(s_t) every derivative is right, whatever the baseline. λ < 1 forgets
    how earlier actions led to s_t: the gradient stays, the Hessian has less variance and a bias, until λ = 0 is `lvc`.

    Args:
      log_prob: log π_θ(a_t | s_t), `[T, ...]`, one episode in each column.
      advantage: A_t, in the same shape; γ^t A_t where the return is to be discounted from the episode's beginning.
      decay: λ, in [0, 1], for each step of the environment.

    Raises:
      ValueError: the shapes differ, or `decay` is not in [0, 1].

    Farquhar, Whiteson, Foerster, "Loaded DiCE: Trading off Bias and Variance in Any-Order Score Function Estimators for
    Reinforcement Learning" (2019), https://arxiv.org/abs/1909.10549

    >>> jax.grad(lambda log_prob: loaded_dice(log_prob, jnp.array([3.0, 2.0])).sum())(jnp.zeros(2)).tolist()
    [-3.0, -2.0]
    """
    check_share("decay", decay)
    advantage = _data("advantage", advantage, log_prob)

    def add(before: jax.Array, now: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        before = decay * before
        return before + now, (before, before + now)

    _, (before, upto) = jax.lax.scan(add, jnp.zeros_like(log_prob[0]), log_prob)
    return -(_magic(upto) - _magic(before)) * advantage


def ppo_clip(log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array, *, clip: float) -> jax.Array:
    """−min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t), ρ_t = π_t / π_old,t: no gain in leaving the interval.

    Schulman, Wolski, Dhariwal, Radford, Klimov, "Proximal Policy Optimization Algorithms" (2017),
    https://arxiv.org/abs/1707.06347

    Args:
      log_prob: log π_θ(a_t | s_t), `[T, ...]`.
      old_log_prob: of the policy that acted, in the same shape.
      advantage: A_t, in the same shape.
      clip: ε in [0, 1], how far the ratio may be from 1 before there is no gain.

    Raises:
      ValueError: the shapes differ, or `clip` is not in [0, 1].

    >>> ppo_clip(jnp.log(jnp.array([2.0, 2.0])), jnp.zeros(2), jnp.array([1.0, -1.0]), clip=0.25).tolist()
    [-1.25, 2.0]
    """
    check_share("clip", clip)
    advantage = _data("advantage", advantage, log_prob)
    ratio = _ratio(log_prob, old_log_prob)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def _magic(x: jax.Array) -> jax.Array:
    return jnp.exp(x - jax.lax.stop_gradient(x))


def _ratio(log_prob: jax.Array, old_log_prob: jax.Array) -> jax.Array:
    return jnp.exp(log_prob - _data("old_log_prob", old_log_prob, log_prob))


def _data(name: str, value: jax.Array, log_prob: jax.Array) -> jax.Array:
    """`value`, not differentiated. `[T]` beside `[T, E]` would broadcast without a word where T = E."""
    if jnp.shape(value) != jnp.shape(log_prob):
        raise ValueError(f"{name} must have the shape of log_prob, {jnp.shape(log_prob)}, got {jnp.shape(value)}")
    return jax.lax.stop_gradient(value)

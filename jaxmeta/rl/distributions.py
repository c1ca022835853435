"""Distributions over actions: pytrees with `sample`, `log_prob`, `entropy` and `kl`.

The last axis is that of the action (or of the logits); log-probabilities, entropies and divergences are summed over it.

A distribution is that of one step. `vmap` gives each of its fields the axes `[T, E]` in front, a scalar bound too,
which then no longer broadcasts as it did: what is asked of the distributions of many steps is asked of each one of
them, by `each_step`, whoever wrote their class.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_LOG_2, _LOG_2_PI = math.log(2), math.log(2 * math.pi)  # Python's: numpy's would turn float32 into float64
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)  # E f(x) = Σ w f(node), x ~ N(0, 1)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def each_step(fn: Callable, *, num_axes: int = 2) -> Callable:
    """`fn` of single steps, over their leading axes: the way to ask something of distributions that came out of `vmap`.

    Args:
      fn: (distribution, ...) -> pytree, of one step.
      num_axes: leading axes that all arguments have: two for `[T, E]`.

    Returns:
      A function of the same arguments, whose results have these axes too.

    >>> policy = lambda mean: TanhGaussian(mean, jnp.zeros(1), low=-2.0, high=2.0)  # bounds for all actions
    >>> distributions = jax.vmap(jax.vmap(policy))(jnp.zeros((3, 3, 1)))
    >>> each_step(TanhGaussian.log_prob)(distributions, jnp.zeros((3, 3, 1))).shape
    (3, 3)
    """
    for _ in range(num_axes):
        fn = jax.vmap(fn)
    return fn


class Categorical(NamedTuple):
    """P(a) = softmax(logits)_a over a = 0 .. A − 1, logits `[..., A]`.

    Attributes:
      logits: `[..., A]`, log-probabilities up to a constant; −∞ rules an action out.

    >>> policy = Categorical(jnp.log(jnp.array([0.25, 0.75])))
    >>> round(float(jnp.exp(policy.log_prob(1))), 4), round(float(policy.entropy()), 4)
    (0.75, 0.5623)
    """

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """An action, `[...]` int32; −1, which no action is, where all are ruled out."""
        return self._or_none(jax.random.categorical(key, self.logits))

    def mode(self) -> jax.Array:
        """The likeliest action, the first of several; −1 where all are ruled out."""
        return self._or_none(jnp.argmax(self.logits, axis=-1))

    def only(self, allowed: jax.Array) -> "Categorical":
        """Of the actions where `allowed` `[..., A]` is true: the others have probability 0, and so has its gradient."""
        return Categorical(jnp.where(allowed, self.logits, -jnp.inf))

    def expectation(self, value: jax.Array) -> jax.Array:
        """Σ_a P(a) value_a, `[...]`, of a `value` `[..., A]` for each action."""
        return jnp.sum(self._probs() * value, axis=-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """The logarithm of an action's probability, `[...]`."""
        return jnp.take_along_axis(self._log_probs(), jnp.asarray(action)[..., None], axis=-1)[..., 0]

    def entropy(self) -> jax.Array:
        """In nats, `[...]`."""
        return -jnp.sum(self._probs() * self._finite_log_probs(), axis=-1)

    def kl(self, other: "Categorical") -> jax.Array:
        """KL(self ‖ other), in nats, `[...]`."""
        log_ratio = jnp.where(self._probs() > 0, self._finite_log_probs() - other._log_probs(), 0)
        return jnp.sum(self._probs() * log_ratio, axis=-1)

    def _or_none(self, action: jax.Array) -> jax.Array:
        return jnp.where(jnp.all(self.logits == -jnp.inf, axis=-1), -1, action).astype(jnp.int32)

    def _log_probs(self) -> jax.Array:
        return jax.nn.log_softmax(self.logits)

    def _probs(self) -> jax.Array:
        return jax.nn.softmax(self.logits)

    def _finite_log_probs(self) -> jax.Array:
        """0 in place of log 0, for an action that is ruled out by a logit of −∞: 0 · log 0 = 0."""
        return jnp.where(self._probs() > 0, self._log_probs(), 0)


class Gaussian(NamedTuple):
    """a ~ N(mean, diag(exp(log_std))²), mean `[..., A]`, log_std likewise, with axes of 1, or a scalar.

    Attributes:
      mean: `[..., A]`, in units of the action.
      log_std: natural logarithm of the standard deviation, of the shape of `mean`, with axes of 1, or a scalar.

    >>> policy = Gaussian(jnp.zeros(2), jnp.zeros(2))
    >>> round(float(policy.log_prob(jnp.zeros(2))), 4), round(float(policy.entropy()), 4)
    (-1.8379, 2.8379)
    """

    mean: jax.Array
    log_std: jax.Array | float

    def sample(self, key: jax.Array) -> jax.Array:
        """An action, `[..., A]`."""
        mean, log_std = self._full()
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """The logarithm of an action's density, `[...]`."""
        mean, log_std = self._full()
        standard = (action - mean) * jnp.exp(-log_std)
        return jnp.sum(-(standard**2) / 2 - log_std - _LOG_2_PI / 2, axis=-1)

    def entropy(self) -> jax.Array:
        """Differential, in nats, `[...]`."""
        return jnp.sum(self._full()[1] + (_LOG_2_PI + 1) / 2, axis=-1)

    def kl(self, other: "Gaussian") -> jax.Array:
        """KL(self ‖ other), in nats, `[...]`."""
        (mean, log_std), (other_mean, other_log_std) = self._full(), other._full()
        log_ratio = log_std - other_log_std
        distance = (mean - other_mean) * jnp.exp(-other_log_std)
        return jnp.sum((jnp.exp(2 * log_ratio) + distance**2 - 1) / 2 - log_ratio, axis=-1)

    def _full(self) -> tuple[jax.Array, jax.Array]:
        return _real(self.mean), _like_mean("log_std", self.log_std, self.mean)


class TanhGaussian(NamedTuple):
    """a = low + (high − low) (tanh(u) + 1) / 2 with u ~ N(mean, diag(exp(log_std))²): a Gaussian inside a box.

    mean is `[..., A]`; log_std, low and high likewise, with axes of 1, or scalars.

        log p(a) = log N(u) − Σ log(da/du),   log(1 − tanh² u) = 2 (log 2 − u − softplus(−2u))

    Where the sample is at hand, as in SAC, `sample_and_log_prob` knows u; `log_prob` has to invert tanh, and can only
    be as right as an action near the boundary is precise.

    Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018), appendix C,
    https://arxiv.org/abs/1812.05905

    Attributes:
      mean: `[..., A]`, of u.
      log_std: natural logarithm of the standard deviation of u.
      low: the box's lower bound, in units of the action.
      high: its upper bound.

    >>> policy = TanhGaussian(jnp.zeros(1), jnp.zeros(1), low=-0.1, high=0.1)
    >>> action, log_prob = policy.sample_and_log_prob(jax.random.key(0))
    >>> bool(jnp.abs(action[0]) < 0.1), bool(jnp.allclose(policy.log_prob(action), log_prob, atol=1e-5))
    (True, True)
    """

    mean: jax.Array
    log_std: jax.Array | float
    low: jax.Array | float = -1.0
    high: jax.Array | float = 1.0

    def sample(self, key: jax.Array) -> jax.Array:
        """An action, `[..., A]`."""
        return self.sample_and_log_prob(key)[0]

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """An action, `[..., A]`, and the logarithm of its density, `[...]`."""
        u = self._gaussian().sample(key)
        return self._action(u), self._log_prob(u)

    def mode(self) -> jax.Array:
        """The image of the Gaussian's mean, the action of a policy that no longer explores."""
        return self._action(_real(self.mean))

    def log_prob(self, action: jax.Array) -> jax.Array:
        """The logarithm of an action's density, `[...]`, in the units of the box."""
        low, half_width = self._box()
        tanh = (action - low) / half_width - 1
        return self._log_prob(
            jnp.arctanh(jnp.clip(tanh, -1 + jnp.finfo(tanh.dtype).eps, 1 - jnp.finfo(tanh.dtype).eps))
        )

    def entropy(self) -> jax.Array:
        """In nats: the Gaussian's, and E[log(da/du)] by 64 Gauss-Hermite nodes, for it has no closed form."""
        mean, log_std = self._gaussian()
        nodes, weights = (jnp.asarray(array, mean.dtype) for array in (_NODES, _WEIGHTS))
        slopes = jax.vmap(lambda node: self._log_slope(mean + jnp.exp(log_std) * node))(nodes)
        return self._gaussian().entropy() + jnp.sum(jnp.tensordot(weights, slopes, 1), axis=-1)

    def kl(self, other: "TanhGaussian") -> jax.Array:
        """KL(self ‖ other) in nats, for the same box: that of the Gaussians, as no bijection changes it."""
        return self._gaussian().kl(other._gaussian())

    def _gaussian(self) -> Gaussian:
        return Gaussian(*Gaussian(self.mean, self.log_std)._full())

    def _box(self) -> tuple[jax.Array, jax.Array]:
        """Its lower bound and half its width, for each action."""
        low, high = (_like_mean(name, getattr(self, name), self.mean) for name in ("low", "high"))
        return low, (high - low) / 2

    def _action(self, u: jax.Array) -> jax.Array:
        low, half_width = self._box()
        return low + half_width * (jnp.tanh(u) + 1)

    def _log_prob(self, u: jax.Array) -> jax.Array:
        """That of the action which u becomes."""
        return self._gaussian().log_prob(u) - jnp.sum(self._log_slope(u), axis=-1)

    def _log_slope(self, u: jax.Array) -> jax.Array:
        return 2 * (_LOG_2 - u - jax.nn.softplus(-2 * u)) + jnp.log(self._box()[1])


def _real(mean: jax.Array) -> jax.Array:
    return jnp.asarray(mean, jnp.result_type(mean) if jnp.issubdtype(jnp.result_type(mean), jnp.floating) else float)


def _like_mean(name: str, field: jax.Array | float, mean: jax.Array) -> jax.Array:
    """A field for each action. One with other axes would broadcast into those of other steps without a word."""
    field, shape = jnp.asarray(field, _real(mean).dtype), jnp.shape(mean)
    fits = field.ndim in (0, len(shape)) and all(n in (1, m) for n, m in zip(field.shape, shape, strict=False))
    if not shape or not fits:
        raise ValueError(
            f"{name} must be a scalar or an array of the shape of mean, {shape}, or with axes of 1 in it, got "
            f"{field.shape}. Distributions that came out of vmap are asked one by one: "
            f"rl.distributions.each_step(lambda distribution, action: distribution.log_prob(action))"
        )
    return jnp.broadcast_to(field, shape)

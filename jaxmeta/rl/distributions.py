"""Distributions over actions: pytrees with `sample`, `log_prob`, `entropy` and `kl`.

The last axis is that of the action (or of the logits); log-probabilities, entropies and divergences are summed over it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_LOG_2, _LOG_2_PI = math.log(2), math.log(2 * math.pi)  # Python's: numpy's would turn float32 into float64
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)  # E f(x) = Σ w f(node), x ~ N(0, 1)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class Categorical(NamedTuple):
    """P(a) = softmax(logits)_a over a = 0 .. A − 1, logits `[..., A]`.

    >>> policy = Categorical(jnp.log(jnp.array([0.25, 0.75])))
    >>> round(float(jnp.exp(policy.log_prob(1))), 4), round(float(policy.entropy()), 4)
    (0.75, 0.5623)
    """

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        return jnp.take_along_axis(self._log_probs(), jnp.asarray(action)[..., None], axis=-1)[..., 0]

    def entropy(self) -> jax.Array:
        return -jnp.sum(self._probs() * self._finite_log_probs(), axis=-1)

    def kl(self, other: "Categorical") -> jax.Array:
        """KL(self ‖ other)."""
        log_ratio = jnp.where(self._probs() > 0, self._finite_log_probs() - other._log_probs(), 0)
        return jnp.sum(self._probs() * log_ratio, axis=-1)

    def _log_probs(self) -> jax.Array:
        return jax.nn.log_softmax(self.logits)

    def _probs(self) -> jax.Array:
        return jax.nn.softmax(self.logits)

    def _finite_log_probs(self) -> jax.Array:
        """0 in place of log 0, for an action that is ruled out by a logit of −∞: 0 · log 0 = 0."""
        return jnp.where(self._probs() > 0, self._log_probs(), 0)


class Gaussian(NamedTuple):
    """a ~ N(mean, diag(exp(log_std))²), mean and log_std `[..., A]`.

    >>> policy = Gaussian(jnp.zeros(2), jnp.zeros(2))
    >>> round(float(policy.log_prob(jnp.zeros(2))), 4), round(float(policy.entropy()), 4)
    (-1.8379, 2.8379)
    """

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def log_prob(self, action: jax.Array) -> jax.Array:
        standard = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-(standard**2) / 2 - self.log_std - _LOG_2_PI / 2, axis=-1)

    def entropy(self) -> jax.Array:
        return jnp.sum(self.log_std + (_LOG_2_PI + 1) / 2, axis=-1)

    def kl(self, other: "Gaussian") -> jax.Array:
        """KL(self ‖ other)."""
        log_ratio = self.log_std - other.log_std
        distance = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return jnp.sum((jnp.exp(2 * log_ratio) + distance**2 - 1) / 2 - log_ratio, axis=-1)


class TanhGaussian(NamedTuple):
    """a = low + (high − low) (tanh(u) + 1) / 2 with u ~ N(mean, diag(exp(log_std))²): a Gaussian inside a box.

        log p(a) = log N(u) − Σ log(da/du),   log(1 − tanh² u) = 2 (log 2 − u − softplus(−2u))

    Where the sample is at hand, as in SAC, `sample_and_log_prob` knows u; `log_prob` has to invert tanh, and can only
    be as right as an action near the boundary is precise.

    Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018), appendix C, https://arxiv.org/abs/1812.05905

    >>> policy = TanhGaussian(jnp.zeros(1), jnp.zeros(1), low=-0.1, high=0.1)
    >>> action, log_prob = policy.sample_and_log_prob(jax.random.key(0))
    >>> bool(jnp.abs(action[0]) < 0.1), bool(jnp.allclose(policy.log_prob(action), log_prob, atol=1e-5))
    (True, True)
    """

    mean: jax.Array
    log_std: jax.Array
    low: jax.Array | float = -1.0
    high: jax.Array | float = 1.0

    def sample(self, key: jax.Array) -> jax.Array:
        return self.sample_and_log_prob(key)[0]

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = self._gaussian().sample(key)
        action = self.low + self._half_width() * (jnp.tanh(u) + 1)
        return action, self._gaussian().log_prob(u) - jnp.sum(self._log_slope(u), axis=-1)

    def mode(self) -> jax.Array:
        """The image of the Gaussian's mean, the action of a policy that no longer explores."""
        return self.low + self._half_width() * (jnp.tanh(self.mean) + 1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        tanh = (action - self.low) / self._half_width() - 1
        u = jnp.arctanh(jnp.clip(tanh, -1 + jnp.finfo(tanh.dtype).eps, 1 - jnp.finfo(tanh.dtype).eps))
        return self._gaussian().log_prob(u) - jnp.sum(self._log_slope(u), axis=-1)

    def entropy(self) -> jax.Array:
        """The Gaussian's, and E[log(da/du)] by 64 Gauss-Hermite nodes, for it has no closed form."""
        nodes, weights = (jnp.asarray(array, self.mean.dtype) for array in (_NODES, _WEIGHTS))
        slopes = jax.vmap(lambda node: self._log_slope(self.mean + jnp.exp(self.log_std) * node))(nodes)
        return self._gaussian().entropy() + jnp.sum(jnp.tensordot(weights, slopes, 1), axis=-1)

    def kl(self, other: "TanhGaussian") -> jax.Array:
        """KL(self ‖ other), for the same box: that of the Gaussians, as no bijection changes it."""
        return self._gaussian().kl(other._gaussian())

    def _gaussian(self) -> Gaussian:
        return Gaussian(self.mean, self.log_std)

    def _half_width(self) -> jax.Array:
        return jnp.asarray((self.high - self.low) / 2, self.mean.dtype)

    def _log_slope(self, u: jax.Array) -> jax.Array:
        return 2 * (_LOG_2 - u - jax.nn.softplus(-2 * u)) + jnp.log(self._half_width())

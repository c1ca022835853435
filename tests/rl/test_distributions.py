"""Distributions against scipy and numerical integrals, in float64."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from jaxmeta.rl.distributions import Categorical, Gaussian, TanhGaussian, each_step

pytestmark = pytest.mark.usefixtures("strict_shapes", "x64_module")

RNG = np.random.default_rng(0)
LOGITS, OTHER_LOGITS = RNG.normal(size=(2, 4, 5)) * 2
MEAN, OTHER_MEAN = RNG.normal(size=(2, 3, 2))
LOG_STD, OTHER_LOG_STD = RNG.normal(size=(2, 3, 2)) / 2
LOW, HIGH = -0.5, 2.0


@jax.jit
def numbers_of(policy, other, action):
    return policy.log_prob(action), policy.entropy(), policy.kl(other), policy.kl(policy)


def test_categorical_against_scipy():
    policy, other = Categorical(jnp.asarray(LOGITS)), Categorical(jnp.asarray(OTHER_LOGITS))
    p, q = (np.exp(scipy.special.log_softmax(x, -1)) for x in (LOGITS, OTHER_LOGITS))
    action = np.array([0, 4, 2, 2])
    log_prob, entropy, kl, kl_to_itself = numbers_of(policy, other, action)
    np.testing.assert_allclose(log_prob, np.log(p)[np.arange(4), action], rtol=1e-12)
    np.testing.assert_allclose(entropy, scipy.stats.entropy(p, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(kl, scipy.stats.entropy(p, q, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(kl_to_itself, np.zeros(4), atol=1e-15)


def test_categorical_samples_at_its_probabilities():
    one = Categorical(jnp.asarray(LOGITS[0]))
    actions = jax.jit(jax.vmap(one.sample))(jax.random.split(jax.random.key(0), 20_000))
    expected = 20_000 * np.exp(scipy.special.log_softmax(LOGITS[0]))
    assert actions.dtype == jnp.int32
    assert scipy.stats.chisquare(np.bincount(actions, minlength=5), expected).pvalue > 1e-3


def test_an_action_that_is_ruled_out_makes_nothing_nan():
    logits = jnp.array([0.0, -jnp.inf, 1.0])
    of = lambda x: Categorical(logits.at[0].set(x))
    assert of(0.0).entropy() == pytest.approx(Categorical(jnp.array([0.0, 1.0])).entropy())
    assert of(0.0).kl(Categorical(jnp.zeros(3))) > 0 and of(0.0).kl(of(0.0)) == 0
    assert of(0.0).kl(Categorical(jnp.array([0.0, 0.0, -jnp.inf]))) == jnp.inf
    for value in (lambda x: of(x).entropy(), lambda x: of(x).kl(Categorical(jnp.zeros(3)))):
        assert np.isfinite(jax.jit(jax.grad(value))(0.3))


def test_gaussian_against_scipy():
    policy, other = Gaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD)), Gaussian(OTHER_MEAN, OTHER_LOG_STD)
    normal = scipy.stats.norm(MEAN, np.exp(LOG_STD))
    action = RNG.normal(size=(3, 2))
    log_prob, entropy, kl, _ = numbers_of(policy, other, action)
    np.testing.assert_allclose(log_prob, normal.logpdf(action).sum(-1), rtol=1e-12)  # summed
    np.testing.assert_allclose(entropy, normal.entropy().sum(-1), rtol=1e-12)
    samples = jax.jit(jax.vmap(policy.sample))(jax.random.split(jax.random.key(0), 4000))
    assert scipy.stats.kstest(normal.cdf(samples).ravel(), "uniform").pvalue > 1e-3
    for i in range(3):
        integrals = (
            kl_integral(
                scipy.stats.norm(MEAN[i, j], np.exp(LOG_STD[i, j])),
                scipy.stats.norm(OTHER_MEAN[i, j], np.exp(OTHER_LOG_STD[i, j])),
            )
            for j in range(2)
        )
        np.testing.assert_allclose(kl[i], sum(integrals), rtol=1e-8)


def kl_integral(n, m):
    limits = n.mean() - 12 * n.std(), n.mean() + 12 * n.std()
    return scipy.integrate.quad(lambda x: n.pdf(x) * (n.logpdf(x) - m.logpdf(x)), *limits)[0]


def one_dimensional(mean, log_std):
    return TanhGaussian(jnp.array([mean]), jnp.array([log_std]), LOW, HIGH)


@jax.jit
def density_of(policy, a):
    return jnp.exp(policy.log_prob(a[None]))


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-1.5, 0.5), (0.2, 1.0)])
def test_tanh_gaussian_is_a_density_with_that_entropy(mean, log_std):
    policy = one_dimensional(mean, log_std)
    density = functools.partial(density_of, policy)
    integral = lambda f: scipy.integrate.quad(f, LOW, HIGH, limit=400, epsabs=1e-10)[0]
    assert integral(lambda a: float(density(a))) == pytest.approx(1, abs=1e-6)
    surprise = lambda a: -scipy.special.xlogy(p := float(density(a)), p)
    assert float(jax.jit(policy.entropy)()) == pytest.approx(integral(surprise), abs=2e-3)


def test_tanh_gaussian_samples_and_their_log_prob():
    policy = TanhGaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD), LOW, HIGH)
    action, log_prob = jax.jit(jax.vmap(policy.sample_and_log_prob))(jax.random.split(jax.random.key(0), 4000))
    assert action.min() > LOW and action.max() < HIGH
    np.testing.assert_allclose(jax.jit(jax.vmap(policy.log_prob))(action), log_prob, rtol=1e-6, atol=1e-6)
    u = np.arctanh((np.asarray(action) - LOW) / ((HIGH - LOW) / 2) - 1)
    assert scipy.stats.kstest(scipy.stats.norm(MEAN, np.exp(LOG_STD)).cdf(u).ravel(), "uniform").pvalue > 1e-3
    log_prob, entropy = np.asarray(log_prob), jax.jit(lambda policy: policy.entropy())(policy)
    error = np.std(-log_prob, axis=0) / np.sqrt(4000)
    assert (np.abs(-log_prob.mean(0) - entropy) < 4 * error).all()  # entropy is E[−log p]
    np.testing.assert_allclose(policy.mode(), LOW + (HIGH - LOW) / 2 * (np.tanh(MEAN) + 1), rtol=1e-12)
    both = jax.jit(lambda policy, key: (policy.sample(key), policy.sample_and_log_prob(key)[0]))
    np.testing.assert_array_equal(*both(policy, jax.random.key(5)))


def test_tanh_gaussians_divergence_is_an_integral_over_the_box():
    policy, other = one_dimensional(0.3, -0.5), one_dimensional(-0.4, 0.2)
    ratio = jax.jit(lambda a: jnp.exp(policy.log_prob(a[None])) * (policy.log_prob(a[None]) - other.log_prob(a[None])))
    kl = scipy.integrate.quad(lambda a: float(ratio(a)), LOW, HIGH, limit=400)[0]
    assert float(jax.jit(policy.kl)(other)) == pytest.approx(kl, abs=1e-6)


@pytest.mark.parametrize("mean", [-30.0, 0.0, 30.0])
def test_saturated_actions_have_finite_log_probs_and_gradients(mean):
    """In float32, as policies are trained."""

    def log_prob(mean):
        policy = TanhGaussian(mean[None], jnp.zeros(1, jnp.float32), -0.1, 0.1)
        action, of_sample = policy.sample_and_log_prob(jax.random.key(0))
        return of_sample + policy.log_prob(jax.lax.stop_gradient(action))

    value, gradient = jax.jit(jax.value_and_grad(log_prob))(jnp.float32(mean))
    assert np.isfinite(value) and np.isfinite(gradient) and value.dtype == jnp.float32


def test_distributions_are_pytrees_that_vmap():
    policy = Gaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
    np.testing.assert_allclose(jax.vmap(lambda p: p.entropy())(policy), policy.entropy(), rtol=1e-12)


# Fields that broadcast.

ACTION = np.tanh(RNG.normal(size=(3, 2))) / 2
FULL = np.ones((3, 2))
BROADCAST = {
    "gaussian, one deviation": (Gaussian(MEAN, -0.5), Gaussian(MEAN, -0.5 * FULL)),
    "gaussian, one for each step": (Gaussian(MEAN, LOG_STD[:, :1]), Gaussian(MEAN, LOG_STD[:, :1] * FULL)),
    "gaussian, one action": (Gaussian(MEAN[0, :1], np.ones(1)), Gaussian(MEAN[0, :1], 1.0)),
    "tanh, the default box": (TanhGaussian(MEAN, LOG_STD), TanhGaussian(MEAN, LOG_STD, -FULL, FULL)),
    "tanh, one deviation": (
        TanhGaussian(MEAN, -0.5, -1, np.ones((1, 2))),
        TanhGaussian(MEAN, -0.5 * FULL, -FULL, FULL),
    ),
}


@pytest.mark.parametrize("name", BROADCAST)
def test_fields_that_broadcast_within_a_call_are_one_for_each_action(name):
    policy, full = (jax.tree.map(jnp.asarray, d) for d in BROADCAST[name])
    other = type(full)(full.mean + 0.1, full.log_std - 0.2, *full[2:])
    action, key = jnp.asarray(ACTION)[: full.mean.shape[0], : full.mean.shape[-1]], jax.random.key(0)
    action = action[0] if full.mean.ndim == 1 else action
    for method in (
        lambda d: d.log_prob(action),
        lambda d: d.entropy(),
        lambda d: d.kl(other),
        lambda d: other.kl(d),
        lambda d: d.sample(key),
        lambda d: d.mode() if hasattr(d, "mode") else 0.0,
    ):
        found, expected = method(policy), method(full)
        assert np.shape(found) == np.shape(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert policy.sample(key).shape == full.mean.shape


class Laplace(NamedTuple):
    """A user's own: one scale for all actions, which broadcasts."""

    mean: jax.Array
    scale: jax.Array

    def log_prob(self, action):
        return jnp.sum(-jnp.abs(action - self.mean) / self.scale - jnp.log(2 * self.scale), axis=-1)


OF_ONE_STEP = {
    "gaussian": (lambda m: Gaussian(m, -0.3), scipy.stats.norm(scale=np.exp(-0.3)), lambda a: (a, 0.0)),
    "tanh": (
        lambda m: TanhGaussian(m, -0.3),
        scipy.stats.norm(scale=np.exp(-0.3)),
        lambda a: (np.arctanh(a), np.log(1 - a**2)),
    ),
    "a user's own": (lambda m: Laplace(m, jnp.array(0.4)), scipy.stats.laplace(scale=0.4), lambda a: (a, 0.0)),
}


@pytest.mark.parametrize("num_actions", [1, 3])
@pytest.mark.parametrize("name", OF_ONE_STEP)
def test_distributions_out_of_vmap_are_asked_step_by_step(name, num_actions):
    """[T, E] = [3, 3], and one action or three: as many as steps and episodes, where broadcasting is silent."""
    policy, density, inverse = OF_ONE_STEP[name]
    mean, other_mean, action = RNG.uniform(-0.9, 0.9, (3, 3, 3, num_actions))
    of = lambda mean: jax.vmap(jax.vmap(policy))(jnp.asarray(mean))
    u, log_slope = inverse(action)
    expected = (density.logpdf(u - mean) - log_slope).sum(-1)
    found = each_step(lambda d, a: d.log_prob(a))(of(mean), jnp.asarray(action))
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    if name != "a user's own":
        kl = ((mean - other_mean) ** 2).sum(-1) / 2 / np.exp(-0.6)  # of equal deviations, whatever the bijection
        np.testing.assert_allclose(each_step(lambda d, o: d.kl(o))(of(mean), of(other_mean)), kl, rtol=1e-10)
        entropy = each_step(lambda d: d.entropy())(of(mean))
        assert entropy.shape == (3, 3)
        np.testing.assert_allclose(entropy[2, 1], policy(jnp.asarray(mean[2, 1])).entropy(), rtol=1e-12)


@pytest.mark.parametrize("method", ["log_prob", "kl", "entropy", "sample", "mode"])
def test_what_would_broadcast_over_steps_is_refused(method):
    """As it was until all were asked step by step: Σ over [T, E, E], T times too much."""
    steps = jax.vmap(jax.vmap(lambda mean: TanhGaussian(mean, -0.3)))(jnp.zeros((3, 3, 1)))
    arguments = {"log_prob": (jnp.zeros((3, 3, 1)),), "kl": (steps,), "sample": (jax.random.key(0),)}.get(method, ())
    with pytest.raises(ValueError, match=r"must be a scalar or .*\(3, 3, 1\).*got \(3, 3\).*each_step"):
        getattr(steps, method)(*arguments)


def test_a_field_of_more_actions_than_the_mean_is_refused():
    """`sample` would draw one number for both."""
    for policy in (Gaussian(jnp.zeros(1), jnp.zeros(2)), Gaussian(jnp.zeros(()), jnp.zeros(2))):
        with pytest.raises(ValueError, match=r"log_std must be a scalar or .*got \(2,\)"):
            policy.sample(jax.random.key(0))

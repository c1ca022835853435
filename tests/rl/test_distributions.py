"""Distributions against scipy and numerical integrals, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from jaxmeta.rl.distributions import Categorical, Gaussian, TanhGaussian

pytestmark = pytest.mark.usefixtures("strict_shapes", "x64_module")

RNG = np.random.default_rng(0)
LOGITS, OTHER_LOGITS = RNG.normal(size=(2, 4, 5)) * 2
MEAN, OTHER_MEAN = RNG.normal(size=(2, 3, 2))
LOG_STD, OTHER_LOG_STD = RNG.normal(size=(2, 3, 2)) / 2
LOW, HIGH = -0.5, 2.0


def test_categorical_against_scipy():
    policy, other = Categorical(jnp.asarray(LOGITS)), Categorical(jnp.asarray(OTHER_LOGITS))
    p, q = (np.exp(scipy.special.log_softmax(x, -1)) for x in (LOGITS, OTHER_LOGITS))
    action = np.array([0, 4, 2, 2])
    np.testing.assert_allclose(policy.log_prob(action), np.log(p)[np.arange(4), action], rtol=1e-12)
    np.testing.assert_allclose(policy.entropy(), scipy.stats.entropy(p, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(policy.kl(other), scipy.stats.entropy(p, q, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(policy.kl(policy), np.zeros(4), atol=1e-15)


def test_categorical_samples_at_its_probabilities():
    one = Categorical(jnp.asarray(LOGITS[0]))
    actions = jax.vmap(one.sample)(jax.random.split(jax.random.key(0), 20_000))
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
        assert np.isfinite(jax.grad(value)(0.3))


def test_gaussian_against_scipy():
    policy, other = Gaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD)), Gaussian(OTHER_MEAN, OTHER_LOG_STD)
    normal = scipy.stats.norm(MEAN, np.exp(LOG_STD))
    action = RNG.normal(size=(3, 2))
    np.testing.assert_allclose(policy.log_prob(action), normal.logpdf(action).sum(-1), rtol=1e-12)  # summed
    np.testing.assert_allclose(policy.entropy(), normal.entropy().sum(-1), rtol=1e-12)
    samples = jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 4000))
    assert scipy.stats.kstest(normal.cdf(samples).ravel(), "uniform").pvalue > 1e-3
    for i in range(3):
        integrals = (
            kl_integral(
                scipy.stats.norm(MEAN[i, j], np.exp(LOG_STD[i, j])),
                scipy.stats.norm(OTHER_MEAN[i, j], np.exp(OTHER_LOG_STD[i, j])),
            )
            for j in range(2)
        )
        np.testing.assert_allclose(policy.kl(other)[i], sum(integrals), rtol=1e-8)


def kl_integral(n, m):
    limits = n.mean() - 12 * n.std(), n.mean() + 12 * n.std()
    return scipy.integrate.quad(lambda x: n.pdf(x) * (n.logpdf(x) - m.logpdf(x)), *limits)[0]


def one_dimensional(mean, log_std):
    return TanhGaussian(jnp.array([mean]), jnp.array([log_std]), LOW, HIGH)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-1.5, 0.5), (0.2, 1.0)])
def test_tanh_gaussian_is_a_density_with_that_entropy(mean, log_std):
    policy = one_dimensional(mean, log_std)
    density = jax.jit(lambda a: jnp.exp(policy.log_prob(a[None])))
    integral = lambda f: scipy.integrate.quad(f, LOW, HIGH, limit=400, epsabs=1e-10)[0]
    assert integral(lambda a: float(density(a))) == pytest.approx(1, abs=1e-6)
    surprise = lambda a: -scipy.special.xlogy(p := float(density(a)), p)
    assert float(policy.entropy()) == pytest.approx(integral(surprise), abs=2e-3)


def test_tanh_gaussian_samples_and_their_log_prob():
    policy = TanhGaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD), LOW, HIGH)
    action, log_prob = jax.vmap(policy.sample_and_log_prob)(jax.random.split(jax.random.key(0), 4000))
    assert action.min() > LOW and action.max() < HIGH
    np.testing.assert_allclose(jax.vmap(policy.log_prob)(action), log_prob, rtol=1e-6, atol=1e-6)
    u = np.arctanh((np.asarray(action) - LOW) / ((HIGH - LOW) / 2) - 1)
    assert scipy.stats.kstest(scipy.stats.norm(MEAN, np.exp(LOG_STD)).cdf(u).ravel(), "uniform").pvalue > 1e-3
    error = np.std(-log_prob, axis=0) / np.sqrt(4000)
    assert (np.abs(-log_prob.mean(0) - policy.entropy()) < 4 * error).all()  # entropy is E[−log p]
    np.testing.assert_allclose(policy.mode(), LOW + (HIGH - LOW) / 2 * (np.tanh(MEAN) + 1), rtol=1e-12)
    np.testing.assert_array_equal(policy.sample(jax.random.key(5)), policy.sample_and_log_prob(jax.random.key(5))[0])


def test_tanh_gaussians_divergence_is_an_integral_over_the_box():
    policy, other = one_dimensional(0.3, -0.5), one_dimensional(-0.4, 0.2)
    ratio = jax.jit(lambda a: jnp.exp(policy.log_prob(a[None])) * (policy.log_prob(a[None]) - other.log_prob(a[None])))
    kl = scipy.integrate.quad(lambda a: float(ratio(a)), LOW, HIGH, limit=400)[0]
    assert float(policy.kl(other)) == pytest.approx(kl, abs=1e-6)


@pytest.mark.parametrize("mean", [-30.0, 0.0, 30.0])
def test_saturated_actions_have_finite_log_probs_and_gradients(mean):
    """In float32, as policies are trained."""

    def log_prob(mean):
        policy = TanhGaussian(mean[None], jnp.zeros(1, jnp.float32), -0.1, 0.1)
        action, of_sample = policy.sample_and_log_prob(jax.random.key(0))
        return of_sample + policy.log_prob(jax.lax.stop_gradient(action))

    value, gradient = jax.value_and_grad(log_prob)(jnp.float32(mean))
    assert np.isfinite(value) and np.isfinite(gradient) and value.dtype == jnp.float32


def test_distributions_are_pytrees_that_vmap():
    policy = Gaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
    np.testing.assert_allclose(jax.vmap(lambda p: p.entropy())(policy), policy.entropy(), rtol=1e-12)

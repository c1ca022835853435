"""MAML's inner gradient and its replay with policies whose fields broadcast within one call, and with a user's own.

One action, and as many steps as episodes: where a sum over [T, E, E] in place of [T, E] shows in no shape.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_close

import jaxmeta
from jaxmeta import adapt, rl
from jaxmeta.rl.distributions import TanhGaussian

pytestmark = pytest.mark.usefixtures("x64_module")  # not strict_shapes: a user's shapes broadcast without a word

STEPS = EPISODES = 3
GAMMA, RATE, SCALE = 0.9, 0.3, 0.4
PARAMS = {"weight": np.array([[0.3], [-0.4]]), "log_std": np.array(-0.5)}


def track():
    """The place `[2]` moves by the action; the task says what a step is worth."""

    def reset(key, pay):
        place = jax.random.normal(key, (2,))
        return place, place

    def step(key, place, action, pay):
        place = place + action[0]
        return place, place, pay * place[0] + jnp.sin(place[1]), jnp.bool_(False)

    return rl.Environment(reset, step, rl.Continuous(-np.ones(1), np.ones(1)), STEPS)


class Laplace(NamedTuple):
    """A user's own distribution, with one scale for all actions."""

    mean: jax.Array
    scale: jax.Array

    def sample(self, key):
        return self.mean + self.scale * jax.random.laplace(key, self.mean.shape)

    def log_prob(self, action):
        return jnp.sum(-jnp.abs(action - self.mean) / self.scale - jnp.log(2 * self.scale), axis=-1)

    def kl(self, other):
        """Of one scale; smooth enough for a test."""
        return jnp.sum((self.mean - other.mean) ** 2, axis=-1)


mean_of = lambda params, place: params["weight"][:, 0] @ place * jnp.ones(1)
POLICIES = {
    "tanh": lambda params, place: TanhGaussian(mean_of(params, place), params["log_std"]),
    "own": lambda params, place: Laplace(mean_of(params, place), jnp.array(SCALE)),
}


def full_tanh(params, place):
    """The same with every field written out."""
    ones = jnp.ones(1)
    return TanhGaussian(mean_of(params, place), params["log_std"] * ones, -ones, ones)


def learner_of(constructor, apply_fn, **kwargs):
    init_fn = lambda key: jax.tree.map(jnp.asarray, PARAMS)
    return constructor(
        init_fn,
        apply_fn,
        track(),
        **{
            "num_inner_steps": 1,
            "num_episodes": EPISODES,
            "inner_optimizer": adapt.sgd(RATE),
            "advantages": jaxmeta.Advantages(discount=GAMMA, normalize=False),
            "baseline": "none",
            **kwargs,
        },
    )


def gradient_by_hand(name, transitions):
    """-mean_{t, e} of A_{t, e} d log pi / d (weight, log_std), in numpy: formulas of one real action."""
    place, action, reward = (
        np.asarray(x[0]) for x in (transitions.inputs.observation, transitions.action, transitions.reward)
    )
    gradient = {key: np.zeros_like(value) for key, value in PARAMS.items()}
    for episode in range(EPISODES):
        for t in range(STEPS):
            to_go = sum(GAMMA ** (i - t) * reward[i, episode] for i in range(t, STEPS))
            o, a = place[t, episode], action[t, episode, 0]
            u = np.arctanh(a) if name == "tanh" else a  # the slope of tanh does not depend on the parameters
            error, variance = u - PARAMS["weight"][:, 0] @ o, np.exp(2 * PARAMS["log_std"])
            of_mean = np.sign(error) / SCALE if name == "own" else error / variance
            of_log_std = 0.0 if name == "own" else error**2 / variance - 1
            gradient["weight"] -= to_go * of_mean * o[:, None] / (STEPS * EPISODES)
            gradient["log_std"] -= to_go * of_log_std / (STEPS * EPISODES)
    return gradient


@pytest.mark.parametrize(
    ("name", "constructor"),
    [("tanh", "maml_rl"), ("own", "promp"), ("tanh", "e_maml")],
)
def test_the_inner_gradient_is_that_by_hand(name, constructor):
    learner = learner_of(getattr(jaxmeta, constructor), POLICIES[name])
    meta_params = learner.init(jax.random.key(0)).meta_params
    adapted = jax.jit(learner.adapt)(jax.random.key(1), meta_params, jnp.array(1.5))
    found = jax.tree.map(lambda before, after: (before - after) / RATE, PARAMS, adapted.params)
    assert_close(found, gradient_by_hand(name, adapted.transitions), rtol=1e-7)


def test_an_update_is_that_of_the_fields_written_out():
    """The replay and its divergence, which the second step on the same episodes feels."""
    how = {"inner_kl_weight": 1.0, "outer": jaxmeta.PPO(num_epochs=2), "optimizer": optax.sgd(0.1)}
    make = lambda apply_fn: learner_of(jaxmeta.promp, apply_fn, **how)
    (state, metrics), (full, full_metrics) = (
        jax.jit(learner.update)(jax.random.key(1), learner.init(jax.random.key(0)), jnp.array([1.5, -0.5]))
        for learner in (make(POLICIES["tanh"]), make(full_tanh))
    )
    assert_close(state.meta_params, full.meta_params, rtol=1e-7)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], full_metrics[name], rtol=1e-7)


@pytest.mark.parametrize("bounds", [(), (-1, 1)], ids=["the default box", "a box of integers"])
def test_the_trust_region_and_exploration_ask_each_step_too(bounds):
    """By shapes: a `TanhGaussian` that is asked for all steps at once refuses."""
    policy = lambda params, place: TanhGaussian(mean_of(params, place), params["log_std"], *bounds)
    surrogate = jaxmeta.Surrogate(estimator="biased", exploration_weight=1.0, inner_kl_weight=0.1)
    learner = learner_of(jaxmeta.maml_rl, policy, surrogate=surrogate, outer=jaxmeta.TRPO())
    state = jax.eval_shape(learner.init, jax.random.key(0))
    after, metrics = jax.eval_shape(learner.update, jax.random.key(1), state, jnp.array([1.5, -0.5]))
    assert metrics["kl"].shape == () and jax.tree.structure(after) == jax.tree.structure(state)

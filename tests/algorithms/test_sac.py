"""Soft actor-critic's losses against a batch worked by hand, who learns from which, and Pendulum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from jaxmeta import rl
from jaxmeta.algorithms.sac import (
    ActorCritic,
    Experience,
    SoftActorCritic,
    init_params,
    mlp_actor_critic,
    rescale,
    sac_losses,
    track,
)
from jaxmeta.rl import families

pytestmark = pytest.mark.usefixtures("strict_shapes")


class Certain:
    """An action that is certain, with a log-probability that is given."""

    def __init__(self, action, log_prob):
        self.action, self.log_prob = action, log_prob

    def sample_and_log_prob(self, key):
        return self.action, jnp.full(len(self.action), self.log_prob)


def by_hand():
    """π says a = w s + z with log π = −2; Q_1 = u s + a, Q_2 = v s − a + z."""

    def critic(params, observation, action, z):
        u, v = params
        return jnp.concatenate([u * observation + action, v * observation - action + z], axis=1)

    init = lambda key: {"actor": jnp.array(3.0), "critic": (jnp.array(1.0), jnp.array(2.0))}
    return ActorCritic(init, lambda w, s, z: Certain(w * s + z, -2.0), critic, latent_size=1)


BATCH = Experience(
    observation=jnp.array([[1.0], [2.0]]),
    action=jnp.array([[0.5], [-0.5]]),
    reward=jnp.array([1.0, -1.0]),
    next_observation=jnp.array([[2.0], [5.0]]),
    terminated=jnp.array([False, True]),
)
Z = jnp.array([[0.25], [0.5]])


def test_the_losses_of_a_batch_worked_by_hand():
    """c = 10, γ = 0.5, α = 0.1, targets u' = 2, v' = 4:

    row 1: a' = 3 · 2 + .25 = 6.25, Q' = (4 + 6.25, 8 − 6.25 + .25) = (10.25, 2), y = 10 + .5 (2 + .1 · 2) = 11.1;
           Q = (1 + .5, 2 − .5 + .25) = (1.5, 1.75), L_Q = 9.6² + 9.35² = 179.5825;
           ã = 3.25, Q = (4.25, −1), L_π = .1 · −2 + 1 = .8
    row 2: y = −10, terminated; Q = (1.5, 5), L_Q = 11.5² + 15² = 357.25; ã = 6.5, Q = (8.5, −2), L_π = 1.8
    """
    options, target = (
        SoftActorCritic(discount=0.5, reward_scale=10.0, temperature=0.1),
        (jnp.array(2.0), jnp.array(4.0)),
    )
    params = init_params(jax.random.key(0), by_hand(), options)
    losses = sac_losses(jax.random.key(1), params, target, BATCH, Z, actor_critic=by_hand(), options=options)
    np.testing.assert_allclose(losses.critic, (179.5825 + 357.25) / 2, rtol=1e-6)
    np.testing.assert_allclose(losses.actor, (0.8 + 1.8) / 2, rtol=1e-6)
    np.testing.assert_allclose(losses.log_prob, -2.0)


@pytest.mark.parametrize(("target_entropy", "loss"), [(None, -1.0 * (-2.0 - 1)), (3.0, -1.0 * (-2.0 + 3))])
def test_the_temperature_falls_where_there_is_more_entropy_than_wanted(target_entropy, loss):
    """−α (log π + H) with α = 1 at first and H = −A by default: the gradient step goes the other way than its sign."""
    how = {"actor_critic": by_hand(), "options": SoftActorCritic(target_entropy=target_entropy)}
    params = init_params(jax.random.key(0), **how)
    of = lambda params: sac_losses(jax.random.key(1), params, params["critic"], BATCH, Z, **how).temperature
    value, grads = jax.value_and_grad(of)(params)
    np.testing.assert_allclose((value, grads["log_temperature"]), (loss, loss), rtol=1e-6)


def largest(tree):
    return max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "learns"),
    [("critic", {"critic", "z"}), ("actor", {"actor"}), ("temperature", {"log_temperature"}), ("log_prob", set())],
)
def test_each_loss_teaches_its_own_and_only_the_critics_what_made_z(name, learns):
    networks = mlp_actor_critic(families.navigation(), latent_size=3, hidden=(8,))
    how = {"actor_critic": networks, "options": SoftActorCritic()}
    params, target = (init_params(jax.random.key(i), **how) for i in range(2))
    keys = jax.random.split(jax.random.key(2), 4)
    real = [jax.random.normal(key, (6, 2)) for key in keys[:3]]
    batch = Experience(real[0], jnp.tanh(real[1]), real[2][:, 0], real[2], jnp.zeros(6, bool))

    def of(params, z):
        return getattr(sac_losses(jax.random.key(3), params, target["critic"], batch, z, **how), name)

    grads, z_grads = jax.grad(of, argnums=(0, 1))(params, jax.random.normal(keys[3], (6, 3)))
    sizes = {part: largest(tree) for part, tree in {**grads, "z": z_grads}.items()}
    assert {part for part, size in sizes.items() if size > 1e-4} == learns
    assert all(size == 0 for part, size in sizes.items() if part not in learns)


def test_the_target_is_a_running_average():
    """After n steps towards a constant, (1 − τ)^n of the way is left."""
    params, target = jnp.array([4.0]), jnp.array([1.0])
    for _ in range(3):
        target = track(target, params, rate=0.25)
    np.testing.assert_allclose(target, [4 - 3 * 0.75**3], rtol=1e-6)


def test_actions_in_units_of_the_box_and_back():
    space = families.pendulum().environment.action_space
    np.testing.assert_allclose([rescale(jnp.array([a]), space)[0] for a in (-1.0, 0.0, 1.0)], [-2, 0, 2], atol=1e-6)


@pytest.mark.slow
def test_one_task_without_context_is_sac_and_solves_pendulum():
    family = families.pendulum()
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float)[None], rl.make_gymnax("Pendulum-v1")[1])
    tasks = rl.indexed_tasks(params)
    learner = jaxmeta.sac(
        family,
        mlp_actor_critic(family, hidden=(128, 128)),
        num_train_tasks=1,
        replay=jaxmeta.Replay(num_gradient_steps=200, num_batch_tasks=1, batch_size=128),
        visits=jaxmeta.Visits(num_prior_steps=100, num_posterior_steps=100),
        optimizer=optax.adam(1e-3),
    )
    state, _ = jaxmeta.fit(jax.random.key(0), learner, tasks, num_outer_steps=60, num_tasks=1, progress=False)
    first = lambda _, data: jax.tree.map(lambda leaf: leaf[0], data)
    one = jaxmeta.TaskDistribution(first, params, at=first, size=1)
    report = jaxmeta.evaluate(jax.random.key(1), learner, one, state.meta_params, num_tasks=100)
    assert report.samples["return"].mean() >= -250

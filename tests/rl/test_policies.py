"""Policies without memory: their distributions at first, their units, what adapts in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import rl

pytestmark = pytest.mark.usefixtures("strict_shapes")


def test_real_actions_are_in_units_of_the_box():
    low, high = np.array([-1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float32)
    environment = rl.families.navigation().environment._replace(action_space=rl.Continuous(low, high))
    family = rl.family(environment, lambda key: rl.families.Goal(jax.random.normal(key, (2,))))
    policy = rl.mlp_policy(family, hidden=(3,), init_std=0.5)
    params = policy.init(jax.random.key(0))
    params["params"]["head"] = {"kernel": jnp.zeros((3, 2)), "bias": jnp.array([0.5, -1.0])}
    found = policy.apply(params, jnp.zeros(2))
    np.testing.assert_allclose(found.mean, [1 + 0.5 * 2, 3 - 1.0 * 1], rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(found.log_std), [0.5 * 2, 0.5 * 1], rtol=1e-6)
    params["log_std"] = jnp.full(2, -100.0)
    np.testing.assert_allclose(jnp.exp(policy.apply(params, jnp.zeros(2)).log_std), [2e-3, 1e-3], rtol=1e-5)


@pytest.mark.parametrize("family", [rl.families.gridworld(), rl.families.tabular_mdp()], ids=["grid", "mdp"])
def test_a_policy_begins_without_a_preference(family):
    policy = rl.mlp_policy(family)
    params = jax.vmap(policy.init)(jax.random.split(jax.random.key(0), 20))
    task = family.train.sample(jax.random.key(1), family.train.data)
    observation, _ = family.environment.reset(jax.random.key(2), task)
    probabilities = jax.nn.softmax(jax.vmap(policy.apply, (0, None))(params, observation).logits)
    np.testing.assert_allclose(probabilities, 1 / 5, atol=0.01)
    assert np.std(probabilities) > 0  # but not with the same actions for all seeds

"""An inner loss unlike the outer one, and weights of it that are meta-learned: against a recursion written by hand.

The inner loss is a least-squares problem with a penalty of learned weight, L(θ) = |Aθ − b|² / B + w |θ|² / 2, the outer
one L'(θ) = |Cθ − d|² / B. With M = I − α (2 AᵀA / B + w I) the K steps and their derivatives are

    θ_{k+1} = M θ_k + 2α Aᵀb / B,    ∂θ_{k+1}/∂θ_0 = M ∂θ_k/∂θ_0,    ∂θ_{k+1}/∂w = M ∂θ_k/∂w − α θ_k.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_close

import jaxmeta
from jaxmeta import Task, adapt

pytestmark = pytest.mark.usefixtures("strict_shapes")

N, B, D, RATE, NUM_STEPS = 2, 5, 3, 0.1, 4


def squared_error(params, batch):
    x, y = batch
    return jnp.mean((x @ params["theta"] - y) ** 2)


def loss_fn(params, batch):
    penalty = params["weight"] * jnp.sum(params["theta"] ** 2) / 2
    return squared_error(params, batch) + penalty, {"trained": penalty}


def outer_loss_fn(params, batch):
    loss = squared_error(params, batch)
    return loss, {"judged": loss}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


THETA, WEIGHT = normal(0, D), 0.3
TASKS = Task((normal(1, N, B, D), normal(2, N, B)), (normal(3, N, B, D), normal(4, N, B)))
KEEPS_WEIGHT = adapt.adapt_only(adapt.sgd(RATE), "theta")
STRATEGIES = {
    "auto": adapt.auto(),
    "exact": adapt.exact(),
    "segments": adapt.exact(num_segments=2),
    "mixed_mode": adapt.mixed_mode(),
    "forward_mode": adapt.forward_mode(lambda path: True),
}


def by_hand(loss_weights):
    """Means over tasks of the weighted outer loss, its derivatives; the outer losses [N, K + 1] after each step."""
    loss, by_theta, by_weight, curves = 0.0, np.zeros(D), 0.0, np.zeros((N, NUM_STEPS + 1))
    for i, k in np.ndindex(curves.shape):
        (a, b), (c, d) = jax.tree.map(lambda leaf, i=i: leaf[i], tuple(TASKS[:2]))
        if k == 0:
            theta, of_theta, of_weight = THETA, np.eye(D), np.zeros(D)
        else:
            step = np.eye(D) - RATE * (2 * a.T @ a / B + WEIGHT * np.eye(D))
            of_theta, of_weight = step @ of_theta, step @ of_weight - RATE * theta
            theta = step @ theta + 2 * RATE * a.T @ b / B
        residual, share = c @ theta - d, [0.0, *loss_weights][k] / N
        curves[i, k] = residual @ residual / B
        loss += share * curves[i, k]
        by_theta += share * of_theta.T @ (2 * c.T @ residual / B)
        by_weight += share * of_weight @ (2 * c.T @ residual / B)
    return loss, {"theta": by_theta, "weight": np.asarray(by_weight)}, curves


def init_fn(key):
    return {"theta": jnp.asarray(THETA), "weight": jnp.asarray(WEIGHT)}


def gradient_of(learner):
    """With `optax.sgd(1)` outside, the difference of the parameters."""
    state = learner.init(jax.random.key(0))
    after, metrics = jax.jit(learner.update)(jax.random.key(1), state, TASKS)
    return metrics, jax.tree.map(jnp.subtract, state.meta_params, after.meta_params).params


def learner(constructor=jaxmeta.maml, **arguments):
    return constructor(
        init_fn,
        loss_fn,
        **{
            "outer_loss_fn": outer_loss_fn,
            "inner_optimizer": KEEPS_WEIGHT,
            "num_inner_steps": NUM_STEPS,
            "optimizer": optax.sgd(1.0),
            **arguments,
        },
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_meta_gradient_of_a_learned_weight_of_the_inner_loss_is_that_by_hand(x64, strategy):
    metrics, grads = gradient_of(learner(meta_gradient=STRATEGIES[strategy]))
    loss, expected, _ = by_hand([0.0, 0.0, 0.0, 1.0])
    assert abs(expected["weight"]) > 0.01
    assert_close(grads, expected)
    assert_close((metrics["loss"], metrics["judged"]), (np.asarray(loss),) * 2)
    assert "trained" not in metrics


def test_so_it_is_where_the_loss_after_each_step_counts(x64):
    weights = [0.1, 0.2, 0.3, 0.4]
    metrics, grads = gradient_of(learner(loss_weights=lambda step: jnp.array(weights)))
    loss, expected, _ = by_hand(weights)
    assert_close(grads, expected)
    assert_close(metrics["loss"], np.asarray(loss))


def test_it_is_learned_from_the_inner_loss_alone_if_that_is_the_outer_one_too(x64):
    """The control: the penalty of the query loss itself adds |θ_K|² / 2."""
    _, grads = gradient_of(learner(outer_loss_fn=None))
    assert abs(grads["weight"] - by_hand([0, 0, 0, 1])[1]["weight"]) > 0.01


@pytest.mark.parametrize("constructor", [jaxmeta.fomaml, jaxmeta.reptile])
def test_first_order_maml_and_reptile_give_it_none(x64, constructor):
    metrics, grads = gradient_of(learner(constructor))
    assert grads["weight"] == 0 and np.all(grads["theta"] != 0)
    assert_close(metrics["judged"], by_hand([0, 0, 0, 1])[2][:, -1].mean())


def test_evaluate_judges_by_the_outer_loss(x64):
    judged = learner()
    meta_params = judged.init(jax.random.key(0)).meta_params
    curves = jax.vmap(judged.evaluate, (None, None, 0))(jax.random.key(1), meta_params, TASKS)
    assert curves.keys() == {"judged"}
    assert_close(curves["judged"], by_hand([0, 0, 0, 1])[2])


def test_an_outer_loss_is_checked_under_its_own_name():
    with pytest.raises(ValueError, match="outer_loss_fn must return scalars; loss has shape"):
        wrong = learner(outer_loss_fn=lambda params, batch: (batch[1], {}))
        jax.eval_shape(wrong.update, jax.random.key(0), wrong.init(jax.random.key(0)), TASKS)
    with pytest.raises(ValueError, match=r"outer_loss_fn must be a function of \(params, batch\).*stochastic=True"):
        learner(outer_loss_fn=lambda params, batch, key: (0.0, {}))

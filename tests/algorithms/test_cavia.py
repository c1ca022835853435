"""CAVIA: its meta-gradient against a loop that writes φ = 0 by hand, and a context that stays 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from reference import assert_close

import jaxmeta
from jaxmeta import adapt
from jaxmeta.algorithms.cavia import context_only

pytestmark = pytest.mark.usefixtures("strict_shapes")

N, K, RATE = 3, 2, 0.3


def init_fn(key):
    body_key, head_key = jax.random.split(key)
    body, head = jax.random.normal(body_key, (1 + 2, 4)), jax.random.normal(head_key, (4, 1))
    return {"context": jnp.zeros(2), "body": body, "head": head}


def loss_fn(params, batch):
    x, y = batch
    inputs = jnp.concatenate([x, jnp.broadcast_to(params["context"], (len(x), 2))], axis=1)
    loss = jnp.mean((jnp.tanh(inputs @ params["body"]) @ params["head"] - y) ** 2)
    return loss, {"mse": loss}


def make_tasks():
    keys = jax.random.split(jax.random.key(3), N)
    return jax.vmap(jaxmeta.tasks.sinusoid(num_shots=5, num_queries=7).sample, (0, None))(keys, ())


def brute_force(params, tasks):
    """The mean over tasks, with φ written out as 0 in θ's loss."""
    shared = {name: leaf for name, leaf in params.items() if name != "context"}
    plain_loss = lambda params, batch: loss_fn(params, batch)[0]

    def query_loss(shared, task):
        inner_loss = lambda context, batch: plain_loss(shared | {"context": context}, batch)
        context = reference.adapt(inner_loss, reference.sgd(RATE), jnp.zeros(2), (), [task.support] * K)
        return plain_loss(shared | {"context": context}, task.query)

    tasks = [jax.tree.map(lambda leaf, i=i: leaf[i], tasks) for i in range(N)]
    results = [jax.value_and_grad(query_loss)(shared, task) for task in tasks]
    return jax.tree.map(lambda *leaves: sum(leaves) / N, *results)


def learner(**arguments):
    return jaxmeta.cavia(init_fn, loss_fn, learning_rate=RATE, num_inner_steps=K, optimizer=optax.sgd(1.0), **arguments)


@pytest.mark.parametrize("meta_gradient", [adapt.exact(), adapt.mixed_mode()], ids=["exact", "mixed_mode"])
@pytest.mark.parametrize("start", [0.0, 2.0])
def test_the_meta_gradient_is_that_of_a_loop_from_zero_whatever_init_fn_gives(x64, meta_gradient, start):
    """With `optax.sgd(1)` outside, the difference of the parameters is the gradient; that of the context is 0."""
    cavia = learner(meta_gradient=meta_gradient)
    state, tasks = cavia.init(jax.random.key(0)), make_tasks()
    state.meta_params.params["context"] += start
    after, metrics = jax.jit(cavia.update)(jax.random.key(1), state, tasks)
    grads = jax.tree.map(jnp.subtract, state.meta_params.params, after.meta_params.params)
    np.testing.assert_array_equal(grads.pop("context"), np.zeros(2))
    loss, expected = brute_force(state.meta_params.params, tasks)
    assert_close(grads, expected)
    assert_close(metrics["loss"], loss)


def test_the_context_adapts_and_stays_zero_in_the_meta_parameters():
    """A hundred steps of Adam, which would magnify the smallest gradient."""
    network = jaxmeta.nn.MLP((8,), num_context=3)
    loss_fn = jaxmeta.nn.mean_squared_error(network.apply)
    cavia = jaxmeta.cavia(lambda key: network.init(key, jnp.ones((1, 1))), loss_fn, learning_rate=0.1)
    tasks = jaxmeta.tasks.sinusoid(num_shots=5)
    state, _ = jaxmeta.fit(jax.random.key(0), cavia, tasks, num_outer_steps=100, num_tasks=4, progress=False)
    meta = state.meta_params.params["params"]
    np.testing.assert_array_equal(meta["context"], np.zeros(3))
    adapted = cavia.adapt(jax.random.key(1), state.meta_params, tasks.sample(jax.random.key(2), ()))["params"]
    assert np.all(adapted.pop("context") != 0)
    jax.tree.map(np.testing.assert_array_equal, adapted, {name: meta[name] for name in adapted})


def test_the_context_takes_any_inner_optimizer():
    """A learned rate per context parameter, which does get a gradient."""
    inner = context_only(adapt.meta_sgd(RATE), "context")
    cavia = jaxmeta.maml(init_fn, loss_fn, inner_optimizer=inner, optimizer=optax.sgd(1.0))
    state = cavia.init(jax.random.key(0))
    after, _ = cavia.update(jax.random.key(1), state, make_tasks())
    assert np.all(after.meta_params.hyper["context"] != state.meta_params.hyper["context"])
    np.testing.assert_array_equal(after.meta_params.params["context"], np.zeros(2))


def test_an_mlp_with_context_sees_it_beside_every_input(x64):
    network, x = jaxmeta.nn.MLP((4,), num_context=2), jnp.linspace(-1, 1, 5)[:, None]
    params = network.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params["hidden0"]) == {"kernel": (3, 4), "bias": (4,)}
    np.testing.assert_array_equal(params["context"], np.zeros(2))
    context = jnp.array([0.5, -0.25])
    by_hand = jaxmeta.nn.MLP((4,)).apply(
        {"params": {name: params[name] for name in ("hidden0", "head")}},
        jnp.concatenate([x, jnp.tile(context[None], (5, 1))], axis=1),
    )
    np.testing.assert_array_equal(network.apply({"params": params | {"context": context}}, x), by_hand)

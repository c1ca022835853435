"""The inner loop: what it records, replaying it, and cutting it in two."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_close

from jaxmeta import adapt
from jaxmeta.types import MetaParams

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

OPTIMIZER = adapt.from_optax(optax.adam(0.1))


@pytest.fixture(scope="module")
def meta_params(x64_module):
    return MetaParams(jnp.array([0.3, -0.8]))


@pytest.fixture(scope="module")
def keys(x64_module):
    return jax.random.split(jax.random.key(0), 5)


def loss_fn(params, batch):
    return jnp.mean((batch @ params - 1.0) ** 2), {"size": jnp.sum(params**2)}


def draw(key, params):
    """A batch that depends on the parameters, as a rollout does."""
    return params[None] + jax.random.normal(key, (4, 2))


def run(meta_params, sources, draw=draw, **how):
    return adapt.unroll(OPTIMIZER, loss_fn, draw, meta_params, sources, **how)


@pytest.fixture(scope="module")
def live(meta_params, keys):
    return run(meta_params, keys, observe=lambda params, batch: params)


def test_the_trace_is_what_each_step_saw(meta_params, keys, live):
    state, trace = live
    transform = optax.adam(0.1)
    params, opt_state = meta_params.params, transform.init(meta_params.params)
    for k, key in enumerate(keys):
        batch = draw(key, params)
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        seen = jax.tree.map(lambda leaf, k=k: leaf[k], trace)
        assert_close(tuple(seen), (loss, metrics, batch, params))
        updates, opt_state = transform.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    assert_close(tuple(state), (params, opt_state))


def test_a_single_step_outside_a_loop_is_that_of_a_loop(meta_params, keys):
    remat = jax.checkpoint_policies.nothing_saveable  # what is recomputed stays in one
    alone, looped = (run(meta_params, keys[:1], **how) for how in ({}, {"remat": remat}))
    assert jax.tree.map(jnp.shape, alone) == jax.tree.map(jnp.shape, looped)
    jax.tree.map(assert_close, alone, looped)


def test_replaying_the_recorded_batches_repeats_the_run(meta_params, live):
    state, trace = live
    again, again_trace = run(
        meta_params, trace.batch, lambda batch, params: batch, observe=lambda params, batch: params
    )
    assert_close((again, again_trace), (state, trace))


@pytest.mark.parametrize("cut", [0, 2, 5])
def test_going_on_from_a_state_is_never_having_stopped(meta_params, keys, live, cut):
    state, first = run(meta_params, keys[:cut], observe=lambda params, batch: params)
    state, second = run(meta_params, keys[cut:], observe=lambda params, batch: params, state=state)
    assert_close(state, live[0])
    assert_close(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second), live[1])


def test_a_state_carries_the_optimizers_slots(meta_params, keys, live):
    """The control of the test above: going on with fresh slots is another run."""
    state, _ = run(meta_params, keys[:2])
    fresh, _ = run(meta_params, keys[2:], state=OPTIMIZER.start(MetaParams(state.fast)))
    assert np.max(np.abs(fresh.fast - live[0].fast)) > 1e-3


def test_metrics_are_not_differentiated(meta_params, keys):
    slope = jax.grad(lambda meta_params: jnp.sum(run(meta_params, keys)[1].metrics["size"]))(meta_params)
    assert not np.any(slope.params)
    slope = jax.grad(lambda meta_params: jnp.sum(run(meta_params, keys)[1].loss))(meta_params)
    assert np.all(slope.params != 0)


@pytest.mark.parametrize("how", [{}, {"remat": jax.checkpoint_policies.nothing_saveable}, {"num_segments": 2}])
def test_few_steps_on_a_gpu_are_no_loop_unless_they_are_recomputed(meta_params, keys, live, how, monkeypatch):
    num_loops = lambda: jax.jit(lambda m, keys: run(m, keys, **how)).lower(meta_params, keys).as_text().count("while")
    on_cpu = num_loops()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert num_loops() == (on_cpu - 1 if how == {} else on_cpu)
    state, trace = run(meta_params, keys, observe=lambda params, batch: params, **how)
    assert_close((state, trace), live)

"""The outer step: the mean over tasks in chunks of any size, and steps that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_close

from jaxmeta import outer
from jaxmeta.types import MetaParams, MetaState

pytestmark = pytest.mark.usefixtures("strict_shapes")


def mean(microbatch):
    def fn(meta_params, task):
        x = task["x"]
        return (jnp.sum(jnp.sin(meta_params * x)), {"square": x**2, "positive": jnp.all(x > 0)}), meta_params

    return lambda meta_params, tasks: outer.mean_over_tasks(fn, microbatch, meta_params, tasks)


@pytest.mark.parametrize("microbatch", [None, 1, 2, 3, 4, 6, 12])
def test_the_mean_does_not_depend_on_the_microbatch(x64, microbatch):
    theta, tasks = jnp.array([0.5, 2.0]), {"x": np.random.default_rng(0).normal(size=(12, 2))}
    (loss, metrics), grads = jax.jit(mean(microbatch))(theta, tasks)
    assert_close(loss, np.sin(np.array(theta)[None] * tasks["x"]).sum(1).mean())
    assert_close(metrics["square"], (tasks["x"] ** 2).mean(0))
    np.testing.assert_allclose(metrics["positive"], (tasks["x"] > 0).all(1).mean())
    assert_close(grads, theta)


def test_one_task_at_a_time_has_no_axis_of_tasks():
    """A product of two axes stays that, whose derivatives XLA does not have to copy into place."""
    fn = lambda w, x: jnp.sum(x @ w)
    program = lambda microbatch: jax.jit(lambda w, x: outer.mean_over_tasks(jax.grad(fn), microbatch, w, x))
    text = {m: program(m).lower(jnp.ones((2, 3)), jnp.ones((4, 5, 2))).as_text() for m in (1, 2)}
    products = {m: [line for line in text[m].splitlines() if "dot_general" in line] for m in text}
    assert products[1] and not any("x5x" in line for line in products[1])
    assert any("2x5x" in line for line in products[2])


def test_memory_is_that_of_a_microbatch():
    """Each of 64 tasks needs a [256, 256] matrix, which XLA cannot avoid: 16 MiB at once, 1/16 of it four at a time."""

    def fn(w, task):
        return jnp.sum(jnp.linalg.cholesky(jnp.eye(256) + jnp.outer(task, w * task)))

    sizes = {}
    for microbatch in (64, 4, None):
        program = jax.jit(lambda w, tasks, m=microbatch: outer.mean_over_tasks(fn, m, w, tasks))
        analysis = program.lower(jnp.ones(256), jnp.ones((64, 256))).compile().memory_analysis()
        sizes[microbatch] = analysis.temp_size_in_bytes
    assert sizes[4] < sizes[64] / 8
    assert sizes[None] < sizes[64]


@pytest.mark.parametrize("microbatch", [5, 7, 24])
def test_a_microbatch_divides_the_tasks(microbatch):
    with pytest.raises(ValueError, match=f"microbatch must divide the number of tasks, 12, got {microbatch}"):
        mean(microbatch)(jnp.ones(2), {"x": jnp.ones((12, 2))})


OPTIMIZER = optax.adam(0.1)


def make_state():
    meta_params = MetaParams({"w": jnp.array([1.0, -0.0, 1e-30])}, {"w": jnp.array(0.1, jnp.bfloat16)})
    return MetaState(jnp.int32(7), meta_params, OPTIMIZER.init(meta_params), jnp.int32(2))


step = jax.jit(lambda state, loss, grads: outer.outer_step(OPTIMIZER, state, loss, {"mse": loss}, grads))


def test_a_finite_step_is_optax_applied():
    state = make_state()
    grads = jax.tree.map(jnp.ones_like, state.meta_params)
    after, metrics = step(state, 0.5, grads)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.meta_params)
    expected = (optax.apply_updates(state.meta_params, updates), opt_state)
    for a, e in zip(jax.tree.leaves((after.meta_params, after.opt_state)), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(np.float32(a), np.float32(e), rtol=1e-6)
    assert (int(after.step), int(after.num_skipped), bool(metrics["is_finite"])) == (8, 2, True)
    np.testing.assert_allclose(metrics["grad_norm"], 2.0)
    assert metrics["loss"] == metrics["mse"] == 0.5


@pytest.mark.parametrize("bad", ["loss nan", "loss inf", "params nan", "params inf", "hyper nan"])
def test_a_step_that_is_not_finite_changes_no_bit_and_is_counted(bad):
    state = make_state()
    where, value = bad.split()
    grads = jax.tree.map(jnp.ones_like, state.meta_params)
    if where == "params":
        grads = grads._replace(params={"w": grads.params["w"].at[1].set(float(value))})
    if where == "hyper":
        grads = grads._replace(hyper={"w": jnp.array(float(value), jnp.bfloat16)})
    after, metrics = step(state, float(value) if where == "loss" else 0.5, grads)
    before = (state.meta_params, state.opt_state)
    for a, b in zip(jax.tree.leaves((after.meta_params, after.opt_state)), jax.tree.leaves(before), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert (int(after.step), int(after.num_skipped), bool(metrics["is_finite"])) == (8, 3, False)

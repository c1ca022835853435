"""The default schedule and microbatch: what is chosen for which shapes, said once, and the memory it then takes."""

import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from jaxmeta import Task, adapt, nn
from jaxmeta.adapt import auto as auto_module
from jaxmeta.adapt.cost import num_bytes, peak_bytes

pytestmark = pytest.mark.usefixtures("strict_shapes")

ADAM = adapt.from_optax(optax.adam(1e-3, eps_root=1e-8))


@pytest.fixture
def said(caplog):
    """() -> what the logger has said since the last call; `auto` forgets what it has said before."""
    auto_module._say.cache_clear()
    caplog.set_level(logging.INFO, logger="jaxmeta")

    def messages():
        found = [record.getMessage() for record in caplog.records if record.name == "jaxmeta"]
        caplog.clear()
        return found

    return messages


def update_of(width, num_steps, num_examples, num_tasks=4, optimizer=ADAM, **arguments):
    """(the compiled update, its arguments)"""
    network = nn.MLP((width, width))
    learner = jaxmeta.maml(
        lambda key: network.init(key, jnp.ones((1, 16))), nn.mean_squared_error(network.apply),
        inner_optimizer=optimizer, num_steps=num_steps, **arguments,
    )  # fmt: skip
    x, y = jnp.zeros((num_tasks, num_examples, 16)), jnp.zeros((num_tasks, num_examples, 1))
    arguments = jax.random.key(0), learner.init(jax.random.key(0)), Task((x, y), (x[:, :5], y[:, :5]))
    return jax.jit(learner.update).lower(*arguments), arguments


# what makes it: width, K, examples
SHAPES = {
    "exact()": {
        "little of everything": (8, 5, 10),
        "one step": (64, 1, 4096),
        "parameters outweigh activations": (512, 10, 2),
    },
    "mixed_mode()": {"activations outweigh parameters": (64, 10, 4096)},
    'exact(num_segments="sqrt")': {"a long loop with states": (64, 400, 10)},
}


@pytest.mark.parametrize(
    ("choice", "shape"), [(choice, shape) for choice, shapes in SHAPES.items() for shape in shapes.values()]
)
def test_it_chooses_by_shapes_and_says_so_once(said, choice, shape):
    update_of(*shape, microbatch=4)
    (message,) = said()
    assert message.startswith(f"auto: {choice} for {shape[1]} inner steps and 4 tasks at a time: ")
    assert "MiB" in message
    update_of(*shape, microbatch=4)
    assert not said()


def test_it_is_the_default_and_is_told_how_many_tasks_there_are(said):
    update_of(8, 5, 10, num_tasks=6, microbatch=2)
    assert "5 inner steps and 2 tasks at a time" in said()[0]


@pytest.mark.parametrize("shape", [shape for shapes in SHAPES.values() for shape in shapes.values()])
def test_its_estimate_of_memory_is_near_that_of_the_compiled_program(shape):
    """Within a factor of two, on a CPU: XLA fuses some of what is counted, and needs a little besides."""
    if jax.default_backend() != "cpu":
        pytest.skip("the estimate is compared on a CPU")
    for strategy in auto_module.SCHEDULES.values():
        lowered, arguments = update_of(*shape, num_tasks=1, meta_gradient=strategy)
        learner_update = lowered.compile().memory_analysis().temp_size_in_bytes
        network = nn.MLP((shape[0],) * 2)
        update = jaxmeta.maml(
            lambda key, network=network: network.init(key, jnp.ones((1, 16))), nn.mean_squared_error(network.apply),
            inner_optimizer=ADAM, num_steps=shape[1], meta_gradient=strategy,
        ).update  # fmt: skip
        assert 0.5 < (peak_bytes(update, *arguments) + 50_000) / (learner_update + 50_000) < 2


def test_a_budget_is_kept_where_it_can_be(said):
    """At 64 examples recomputed segments need 0.4 MiB, plain reverse mode 6."""
    unbounded, _ = update_of(64, 100, 64, num_tasks=1)
    budget = 2**20
    bounded, _ = update_of(64, 100, 64, num_tasks=1, meta_gradient=adapt.auto(memory_budget=budget))
    assert "within the budget of 1 MiB" in said()[-1]
    size = lambda lowered: lowered.compile().memory_analysis().temp_size_in_bytes
    assert size(bounded) < 1.5 * budget < size(unbounded)


def test_an_impossible_budget_takes_the_least_and_says_so(said):
    update_of(64, 100, 64, meta_gradient=adapt.auto(memory_budget=1000))
    assert 'auto: mixed_mode(num_segments="sqrt")' in said()[0]
    update_of(8, 2, 10, meta_gradient=adapt.auto(memory_budget=10))
    assert "though above the budget" in said()[0]


def test_the_default_microbatch_is_as_many_tasks_as_the_cache_holds(monkeypatch):
    """Each task needs a [256, 256] matrix and little else, 256 KiB: 64 of them are the 16 MiB."""
    if jax.default_backend() != "cpu":
        pytest.skip("elsewhere the limit is the device's memory")
    widths = []

    def fn(w, task):
        with contextlib.suppress(NameError):  # the estimate has no such axis
            widths.append(jax.lax.axis_size("tasks"))
        return jnp.sum(jnp.linalg.cholesky(jnp.eye(256) + jnp.outer(task, w * task)))

    for num_tasks, at_most in [(8, 8), (96, 64), (67, 64)]:
        widths.clear()
        jax.eval_shape(lambda w, t: adapt.mean_over_tasks(fn, None, w, t), jnp.ones(256), jnp.ones((num_tasks, 256)))
        assert num_tasks % widths[0] == 0 and widths[0] <= at_most
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    widths.clear()
    jax.eval_shape(lambda w, t: adapt.mean_over_tasks(fn, None, w, t), jnp.ones(256), jnp.ones((67, 256)))
    assert widths[0] == 67


def test_bytes_of_a_pytree_and_of_a_loop():
    assert num_bytes((np.zeros((2, 3), np.int8), jnp.zeros(4, jnp.bfloat16), jax.random.key(0))) == 14
    body = lambda x, _: (jnp.sin(jnp.cos(x)), x)
    # the stack of 100 carries is written, and within a step two more arrays live
    assert peak_bytes(lambda x: jax.lax.scan(body, x, length=100), jnp.zeros(1000)) == 4000 * (100 + 1 + 2)

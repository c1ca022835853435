"""The default schedule and microbatch: what is chosen for which shapes, said once, and the memory it then takes."""

import contextlib
import importlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from jaxmeta import Task, adapt, nn, outer
from jaxmeta.outer.cost import num_bytes, peak_bytes

pytestmark = pytest.mark.usefixtures("strict_shapes")

auto_module = importlib.import_module("jaxmeta.adapt.auto")  # the name in the package is that of the function
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


def update_of(width, num_steps, num_examples, num_inputs=16, num_tasks=4, optimizer=ADAM, **arguments):
    """(an update, traced; the update and its arguments)"""
    network = nn.MLP((width, width))
    learner = jaxmeta.maml(
        lambda key: network.init(key, jnp.ones((1, num_inputs))),
        nn.mean_squared_error(network.apply),
        inner_optimizer=optimizer,
        num_inner_steps=num_steps,
        **arguments,
    )
    x, y = jnp.zeros((num_tasks, num_examples, num_inputs)), jnp.zeros((num_tasks, num_examples, 1))
    call = jax.random.key(0), jax.eval_shape(learner.init, jax.random.key(0)), Task((x, y), (x[:, :5], y[:, :5]))
    return jax.jit(learner.update).trace(*call), (learner.update, *call)


# what makes it: width, K, examples, inputs, tasks, inner optimizer
SHAPES = {
    "exact()": {
        "little of everything": (8, 5, 10),
        "one step": (64, 1, 4096),
        "parameters outweigh what a step keeps": (64, 10, 2, 8192, 4, adapt.sgd(0.1)),
    },
    "mixed_mode(save_gradients=True)": {"activations outweigh parameters": (64, 10, 4096)},
    'exact(num_segments="sqrt")': {"a long loop with states": (64, 400, 10)},
}


@pytest.mark.parametrize(
    ("choice", "shape"), [(choice, shape) for choice, shapes in SHAPES.items() for shape in shapes.values()]
)
def test_it_chooses_by_shapes_and_says_so_once(said, choice, shape):
    update_of(*shape, microbatch=4)
    (message,) = said()
    steps = "1 inner step" if shape[1] == 1 else f"{shape[1]} inner steps"
    assert message.startswith(f"auto: {choice} for {steps}, 4 tasks at a time: ")
    assert "MiB" in message
    update_of(*shape, microbatch=4)
    assert not said()


def test_it_is_the_default_and_is_told_how_many_tasks_there_are(said):
    update_of(8, 5, 10, num_tasks=6, microbatch=2)
    assert ["5 inner steps, 2 tasks at a time" in message for message in said()] == [True]
    update_of(8, 5, 10, num_tasks=6)
    assert ["5 inner steps, 6 tasks at a time" in message for message in said()] == [True]
    update_of(8, 5, 10, num_tasks=6, microbatch=1)
    assert ["5 inner steps, 1 task at a time" in message for message in said()] == [True]
    if jax.default_backend() == "cpu":  # where such tasks come one at a time by default
        update_of(64, 5, 4096, num_tasks=3)
        assert ["5 inner steps, 1 task at a time" in message for message in said()] == [True]


@pytest.mark.parametrize("shape", [(64, 5, 4096), (64, 50, 10), pytest.param((8, 5, 10), marks=pytest.mark.slow)])
@pytest.mark.parametrize("schedule", auto_module.SCHEDULES)
def test_its_estimate_of_memory_is_near_that_of_the_compiled_program(schedule, shape):
    """Within a factor of two, on a CPU: XLA fuses some of what is counted, and needs a little besides."""
    if jax.default_backend() != "cpu":
        pytest.skip("the estimate is compared on a CPU")
    traced, call = update_of(*shape, num_tasks=1, meta_gradient=auto_module.SCHEDULES[schedule])
    size = traced.lower().compile().memory_analysis().temp_size_in_bytes
    assert 0.5 < (peak_bytes(*call) + 50_000) / (size + 50_000) < 2


@pytest.mark.parametrize(("optimizer", "are_kept"), [(adapt.sgd(0.1), False), (ADAM, True)], ids=["sgd", "adam"])
def test_inner_gradients_are_kept_only_for_an_optimizer_whose_derivative_needs_them(optimizer, are_kept):
    """So that to save them, which spares Adam a pass of each step, can be the rule."""
    peak = lambda schedule: peak_bytes(*update_of(64, 10, 4096, optimizer=optimizer, meta_gradient=schedule)[1])
    saved, recomputed = peak(adapt.mixed_mode(save_gradients=True)), peak(adapt.mixed_mode())
    assert (saved > recomputed) if are_kept else (saved == recomputed)


def test_a_budget_is_kept_where_it_can_be(said):
    """By the estimate recomputed steps need 7.0 MiB, recomputed segments 1.6."""
    unbounded, _ = update_of(64, 80, 64, num_tasks=1)
    budget = 2 * 2**20
    bounded, _ = update_of(64, 80, 64, num_tasks=1, meta_gradient=adapt.auto(memory_budget=budget))
    assert "within the budget of 2 MiB" in said()[-1]
    size = lambda traced: traced.lower().compile().memory_analysis().temp_size_in_bytes
    assert size(bounded) < 1.5 * budget < size(unbounded)


@pytest.mark.parametrize("devices", [None, 1])
def test_schedules_are_weighed_once_and_not_again_among_other_tasks(monkeypatch, devices):
    weighed = []
    count = lambda fn, *args: weighed.append(fn) or peak_bytes(fn, *args)
    monkeypatch.setattr(auto_module, "peak_bytes", count)
    with jaxmeta.over_devices(devices) if devices else contextlib.nullcontext():
        update_of(64, 10, 4096)
        assert len(weighed) == len(set(map(id, weighed))) == 2  # of ten steps segments are not half of recomputed ones
        update_of(64, 10, 4096)
    assert len(weighed) == 4  # a learner of its own


@pytest.mark.parametrize(("shape", "length"), [((64, 5, 4096), 3), ((64, 80, 10), 9), ((8, 20, 10), 5)])
def test_segments_keep_at_least_their_share_of_what_plain_reverse_mode_keeps(shape, length):
    """Which is why `auto` need not trace them to know that they are not half of recomputed steps."""
    peak = lambda name: peak_bytes(*update_of(*shape, meta_gradient=auto_module.SCHEDULES[name])[1])
    assert peak('exact(num_segments="sqrt")') >= length / shape[1] * peak("exact()")


def test_a_learner_that_meets_other_shapes_weighs_them(said):
    _, (update, key, state, tasks) = update_of(8, 5, 10, microbatch=4)
    assert said()[0].startswith("auto: exact()")
    more = jax.tree.map(lambda x: jnp.tile(x, (1, 4000, 1)), tasks.support)
    jax.jit(update).trace(key, state, tasks._replace(support=more))
    assert said()[0].startswith("auto: mixed_mode(save_gradients=True)")


def test_an_impossible_budget_takes_the_least_and_says_so(said):
    update_of(64, 100, 64, meta_gradient=adapt.auto(memory_budget=1000))
    assert 'auto: mixed_mode(num_segments="sqrt")' in said()[0]
    update_of(8, 2, 10, meta_gradient=adapt.auto(memory_budget=10))
    assert "though above the budget" in said()[0]


def test_the_default_microbatch_is_as_many_tasks_as_the_cache_holds(monkeypatch):
    """Each task needs a [128, 128] matrix and little else, 64 KiB: 8 of them are the half of a MiB, which is a core's.

    Where parameters are few, kernels are short, and it is the 16 MiB of a processor."""
    if jax.default_backend() != "cpu":
        pytest.skip("elsewhere the limit is the device's memory")
    widths = []

    def fn(params, task):
        widths.append(jax.lax.axis_size("tasks"))  # the first of the estimate, which runs if it comes out so
        return jnp.sum(jnp.linalg.cholesky(jnp.eye(128) + jnp.outer(task, params[:128] * task)))

    few, many = jnp.ones(128), jnp.ones(2**14 + 1)
    for params, num_tasks, at_most in [(many, 8, 8), (many, 96, 8), (many, 67, 8), (few, 16, 16), (few, 1024, 256)]:
        widths.clear()
        jax.eval_shape(lambda w, t: outer.mean_over_tasks(fn, None, w, t), params, jnp.ones((num_tasks, 128)))
        assert num_tasks % widths[-1] == 0 and widths[-1] <= at_most
        assert (widths[-1] > 8) == (params is few)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    widths.clear()
    jax.eval_shape(lambda w, t: outer.mean_over_tasks(fn, None, w, t), jnp.ones(128), jnp.ones((67, 128)))
    assert widths == [67]


def test_what_is_said_is_of_what_runs_and_not_of_an_estimate(said):
    """Of 2,048 tasks, each of 64 KiB, as many as fit are vectorised, which the first trace did not know."""
    network = lambda params, batch: (jnp.sum((batch[0] @ jnp.tanh(params["w"])) ** 2), {})
    learner = jaxmeta.maml(lambda key: {"w": jnp.ones((32, 32))}, network)
    tasks = jaxmeta.Task(*2 * ((jnp.ones((2048, 128, 32)),),))
    jax.jit(learner.update).trace(jax.random.key(0), learner.init(jax.random.key(0)), tasks)
    (line,) = said()
    assert 1 < int(line.split(" tasks at a time")[0].split()[-1]) < 2048


def test_bytes_of_a_pytree_and_of_a_loop():
    assert num_bytes((np.zeros((2, 3), np.int8), jnp.zeros(4, jnp.bfloat16), jax.random.key(0))) == 14
    body = lambda x, _: (jnp.sin(jnp.cos(x)), x)
    # the stack of 100 carries is written, and within a step two more arrays live
    assert peak_bytes(lambda x: jax.lax.scan(body, x, length=100), jnp.zeros(1000)) == 4000 * (100 + 1 + 2)

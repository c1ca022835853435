"""What errors and notebooks show of values: neither a page of numbers nor an address."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta.words import short

LEARNER = jaxmeta.maml(lambda key: {"w": jnp.ones((64, 64))}, lambda params, batch: (0.0, {}))
TASKS = jaxmeta.tasks.few_shot(
    np.arange(9.0).repeat(4 * 28 * 28).reshape(9, 4, 28, 28), num_ways=5, num_shots=1, num_queries=1
)
FAMILY = jaxmeta.rl.families.navigation()
STATE = LEARNER.init(jax.random.key(0))
VALUES = {
    "a learner": LEARNER,
    "tasks": TASKS,
    "a state": STATE,
    "stacked states": jax.tree.map(lambda x: jnp.stack([x] * 3), STATE),
    "meta-parameters": STATE.meta_params,
    "a task": TASKS.sample(jax.random.key(0), TASKS.data),
    "a big pytree": {f"layer {i}": {"w": np.ones((99, 99))} for i in range(99)},
    "a list": list(range(10_000)),
    "text": "a" * 10_000,
    "an object": object(),
    "a partial": functools.partial(len, np.ones(9999)),
    "a family": FAMILY,
    "an environment": FAMILY.environment,
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_a_line_without_addresses(name):
    value = VALUES[name]
    for text in (short(value), repr(value) if "jaxmeta" in type(value).__module__ else ""):
        assert len(text) <= 300 and "0x" not in text and "\n" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (3, "3"),
        (True, "True"),
        (np.float32(2.5), "np.float32(2.5)"),
        (jnp.int32(7), "int32(7)"),
        (np.array(True), "bool(True)"),
        (jnp.int32(2_000_000), "int32(2000000)"),
        (np.array("text"), "<U4(text)"),
        (jnp.ones((2, 3), jnp.bfloat16), "bfloat16[2, 3]"),
        (jax.ShapeDtypeStruct((), jnp.int32), "int32[]"),
        (jax.random.key(0), "key<fry>[]"),
        ((1,), "(1,)"),
        ([], "[]"),
        (len, "len"),
        (jaxmeta.Task, "Task"),
        (STATE.meta_params, "MetaParams(params={'w': float32[64, 64]}, hyper=(), constants=())"),
    ],
    ids=str,
)
def test_small_values_are_themselves(value, text):
    assert short(value) == text


def test_a_traced_value_is_its_shape():
    jax.eval_shape(lambda x: (_ for _ in ()).throw(AssertionError) if short(x) != "float32[]" else x, jnp.float32(1))


def test_a_donated_array_is_its_shape():
    x = jnp.float32(1)
    x.delete()
    assert short(x) == "float32[]"

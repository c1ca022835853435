"""What is read off traces: inputs that have a part in an output, outputs that are an input, numbers that differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.checks import check_pure, check_uses_key
from jaxmeta.traced import copied_inputs, trace, used_inputs

A, B = 1.0, jnp.ones(2)
COPIES = {
    "itself": (lambda a, b: b, True),
    "through a call": (lambda a, b: jax.jit(lambda a, b: b)(a, b), True),
    "without a gradient": (lambda a, b: jax.lax.stop_gradient(b), True),
    "of its own type": (lambda a, b: jnp.asarray(b, b.dtype).reshape(2), True),
    "kept in either case": (lambda a, b: jnp.where(a > 0, b, b), True),
    "kept in every branch": (lambda a, b: jax.lax.cond(a > 0, lambda b: b, lambda b: b, b), True),
    "carried through a loop": (
        lambda a, b: jax.lax.scan(lambda c, _: ((c[0] + 1, c[1]), 0), (a, b), None, 3)[0][1],
        True,
    ),
    "computed again": (lambda a, b: jax.checkpoint(lambda b: b)(b), True),
    "changed": (lambda a, b: b + 0, False),
    "changed in one case": (lambda a, b: jnp.where(a > 0, b, b + 1), False),
    "changed in one branch": (lambda a, b: jax.lax.cond(a > 0, lambda b: b, lambda b: 2 * b, b), False),
    "changed in a loop": (lambda a, b: jax.lax.scan(lambda c, _: (c + 1, 0), b, None, 3)[0], False),
    "cut off": (lambda a, b: b.astype(int), False),
    "a number": (lambda a, b: 3.0, False),
}


@pytest.mark.parametrize("name", COPIES)
def test_an_output_that_is_an_input(name):
    fn, is_copy = COPIES[name]
    jaxpr, shapes = trace(fn, A, B)
    assert (copied_inputs(jaxpr, 0) == {1}) == is_copy and shapes.shape == np.shape(fn(A, B))


def test_inputs_that_have_a_part_in_an_output_through_loops_and_calls():
    def fn(key, x, y, z):
        drawn, z = jax.jit(lambda key, z: (jax.random.normal(key), z))(key, z)
        total = jax.lax.scan(lambda total, x: (total + x, None), 0.0, x)[0]
        return drawn, total, z

    jaxpr, _ = trace(fn, jax.random.key(0), B, B, B)
    assert used_inputs(jaxpr) == [True, True, False, True]
    assert used_inputs(jaxpr, [False, True, False]) == [False, True, False, False]
    assert used_inputs(jaxpr, [False, False, True]) == [False, False, False, True]


IMPURE = {
    "a number": lambda key: jax.random.normal(key) + np.random.normal(),
    "an array": lambda key: jax.random.normal(key, (3,)) + np.random.normal(size=3),
    "in a loop": lambda key: jax.lax.fori_loop(0, 3, lambda i, x: x * np.random.normal(), jax.random.normal(key)),
    "another function each time": lambda key: sum([jax.random.normal(key)] * next(COUNTS)),
}
COUNTS = iter(range(1, 100))


@pytest.mark.parametrize("name", IMPURE)
def test_what_draws_with_numpy_is_not_pure(name):
    with pytest.raises(
        ValueError, match=r"init_fn must be a pure function.*np\.random is a constant.*draw with jax\.random"
    ):
        check_uses_key("init_fn", IMPURE[name], jax.random.key(0))


def test_constants_that_stay_are_pure():
    table, key = np.arange(3.0), jax.random.key(3)

    def fn(key_, x):
        return jax.random.normal(key_) + jnp.asarray(table) + jax.random.normal(key) + x, float("nan")

    check_pure("fn", fn, jax.random.key(0), 1.0)
    check_uses_key("fn", fn, jax.random.key(0), 1.0)


FIXED = np.random.default_rng(0).normal(size=2)
CONSTANT = {
    "a number": lambda key: jnp.ones(2),
    "drawn before": lambda key: jnp.asarray(FIXED),
    "a key of its own": lambda key: jax.random.normal(jax.random.key(0)),
    "a key that is split for nothing": lambda key: (jax.random.split(key), jnp.ones(2))[1],
}


@pytest.mark.parametrize("name", CONSTANT)
def test_what_does_not_depend_on_its_key_is_refused(name):
    with pytest.raises(ValueError, match=r"sample_fn must draw with jax\.random and the key.*: say so"):
        check_uses_key("sample_fn", CONSTANT[name], jax.random.key(0), remedy=": say so")

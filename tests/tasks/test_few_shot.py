import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from jaxmeta.tasks.few_shot import few_shot


def numbered(num_classes, num_examples, dtype=np.int32):
    """Every example is its own number, `class * num_examples + example`, twice over a trailing axis."""
    numbers = np.arange(num_classes * num_examples, dtype=dtype).reshape(num_classes, num_examples)
    return np.stack([numbers, numbers], axis=-1)


def sample_many(tasks, num_tasks, seed=0):
    keys = jax.random.split(jax.random.key(seed), num_tasks)
    return jax.device_get(jax.jit(jax.vmap(tasks.sample, (0, None)))(keys, tasks.data))


def test_rows_are_grouped_by_class_and_support_and_query_are_disjoint():
    tasks = few_shot(numbered(7, 6), num_ways=3, num_shots=2, num_queries=4)
    (x, y), (query_x, query_y), classes = sample_many(tasks, 50)

    assert x.shape == (50, 6, 2) and query_x.shape == (50, 12, 2)
    assert y.dtype == query_y.dtype == classes.dtype == np.int32
    np.testing.assert_array_equal(y, np.tile([0, 0, 1, 1, 2, 2], (50, 1)))
    np.testing.assert_array_equal(query_y, np.tile(np.repeat([0, 1, 2], 4), (50, 1)))
    np.testing.assert_array_equal(x[..., 0] // 6, np.take_along_axis(classes, y, axis=1))
    np.testing.assert_array_equal(query_x[..., 0] // 6, np.take_along_axis(classes, query_y, axis=1))
    for task in range(50):
        assert len(set(classes[task])) == 3
        assert len({*x[task, :, 0], *query_x[task, :, 0]}) == 18
    np.testing.assert_array_equal(x[..., 0], x[..., 1])


def test_every_class_and_example_is_as_likely_in_every_place():
    num_tasks = 6000
    tasks = few_shot(numbered(5, 4), num_ways=3, num_shots=1, num_queries=2)
    (x, _), (query_x, _), classes = sample_many(tasks, num_tasks)

    examples = np.concatenate([x.reshape(num_tasks, 3, 1, 2), query_x.reshape(num_tasks, 3, 2, 2)], axis=2)[..., 0] % 4
    for drawn, total in [(classes, 5), (examples.reshape(num_tasks, 9), 4)]:
        for place in drawn.T:
            frequency = np.bincount(place, minlength=total) / num_tasks
            np.testing.assert_allclose(frequency, 1 / total, atol=5 * np.sqrt(1 / total / num_tasks))
    # Classes draw their examples independently of each other: the first two agree in a quarter of the tasks.
    assert abs(np.mean(examples[:, 0, 0] == examples[:, 1, 0]) - 1 / 4) < 0.03


def test_a_task_may_use_everything():
    tasks = few_shot(numbered(4, 3), num_ways=4, num_shots=1, num_queries=2)
    (x, _), (query_x, _), classes = sample_many(tasks, 1)
    assert sorted(classes[0]) == [0, 1, 2, 3]
    assert sorted([*x[0, :, 0], *query_x[0, :, 0]]) == list(range(12))


def test_eager_and_compiled_and_mapped_agree_and_keys_matter():
    tasks = few_shot(numbered(50, 10), num_ways=5, num_shots=1, num_queries=3)
    keys = jax.random.split(jax.random.key(3), 4)
    mapped = sample_many(tasks, 4, seed=3)
    for i, key in enumerate(keys):
        jax.tree.map(
            np.testing.assert_array_equal, tasks.sample(key, tasks.data), jax.tree.map(operator.itemgetter(i), mapped)
        )
    assert len({tuple(classes) for classes in mapped.info}) == 4


def test_data_is_an_argument_on_the_device_with_its_dtype():
    tasks = few_shot(numbered(5, 4, np.uint8), num_ways=2, num_shots=1, num_queries=1)
    assert isinstance(tasks.data, jax.Array) and tasks.data.dtype == jnp.uint8
    key = jax.random.key(0)
    assert not any(np.size(constant) > 1 for constant in jax.make_jaxpr(tasks.sample)(key, tasks.data).consts)
    task, shifted = tasks.sample(key, tasks.data), tasks.sample(key, tasks.data + 100)
    assert task.support[0].dtype == jnp.uint8
    np.testing.assert_array_equal(task.query[0] + 100, shifted.query[0])


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2), (3, 4, 2, 5, 1)])
def test_any_trailing_axes(shape):
    tasks = few_shot(jnp.zeros(shape, jnp.bfloat16), num_ways=2, num_shots=1, num_queries=3)
    task = tasks.sample(jax.random.key(0), tasks.data)
    assert task.support[0].shape == (2, *shape[2:]) and task.query[0].shape == (6, *shape[2:])
    assert task.query[0].dtype == jnp.bfloat16


not_counts = st.one_of(
    st.integers(max_value=0), st.floats(), st.booleans(), st.none(), st.text(), st.lists(st.integers(1, 2))
)


@given(st.sampled_from(["num_ways", "num_shots", "num_queries"]), not_counts)
def test_a_wrong_count_is_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name} "):
        few_shot(numbered(3, 4), **{"num_ways": 2, "num_shots": 1, "num_queries": 1, name: value})


@given(st.integers(1, 6), st.integers(2, 6), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6))
@settings(deadline=None)
def test_too_many_are_named(num_classes, num_examples, num_ways, num_shots, num_queries):
    def construct():
        return few_shot(
            numbered(num_classes, num_examples), num_ways=num_ways, num_shots=num_shots, num_queries=num_queries
        )

    if num_ways > num_classes:
        with pytest.raises(ValueError, match="^num_ways must be at most"):
            construct()
    elif num_shots + num_queries > num_examples:
        with pytest.raises(ValueError, match=r"^num_shots \+ num_queries must be at most"):
            construct()
    else:
        construct()


not_arrays = st.one_of(
    st.none(), st.text(), st.integers(), st.floats(), st.lists(st.lists(st.integers())), st.just(np.float32(1.0))
)
too_flat = st.builds(np.zeros, npst.array_shapes(min_dims=0, max_dims=1))
not_numbers = st.builds(
    lambda dtype: np.zeros((3, 4), dtype),
    st.one_of(st.just(object), npst.datetime64_dtypes(), npst.byte_string_dtypes(), npst.unicode_string_dtypes()),
)


@given(st.one_of(not_arrays, too_flat, not_numbers))
@settings(deadline=None)
def test_wrong_data_is_named(data):
    with pytest.raises(ValueError, match="^data must "):
        few_shot(data, num_ways=1, num_shots=1, num_queries=1)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((3, 4), np.dtype([("x", np.float32)])),
        np.zeros((3, 4), np.longdouble),
        np.zeros((0, 4), np.uint8),
        np.zeros((3, 0), np.uint8),
        jax.random.split(jax.random.key(0), (3, 4)),
    ],
    ids=["structured", "long double", "no classes", "no examples", "keys"],
)
def test_other_wrong_data(data):
    with pytest.raises(ValueError, match="data"):
        few_shot(data, num_ways=1, num_shots=1, num_queries=1)

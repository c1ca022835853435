import itertools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from jaxmeta.tasks import by_class
from jaxmeta.tasks.few_shot import few_shot
from jaxmeta.tasks.sizes import Sizes, draw_sizes


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
    tasks = few_shot(
        jnp.arange(math.prod(shape), dtype=jnp.bfloat16).reshape(shape), num_ways=2, num_shots=1, num_queries=3
    )
    task = jax.eval_shape(tasks.sample, jax.random.key(0), tasks.data)
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


# The forms of data


CLASSES = [np.arange(start, start + count, dtype=np.uint8)[:, None, None] for start, count in [(0, 4), (4, 3), (7, 9)]]
CLASS_OF = np.repeat([0, 1, 2], [4, 3, 9])  # of each number
SIZES = {"num_ways": 2, "num_shots": 1, "num_queries": 2}


def shuffled():
    order = np.random.default_rng(0).permutation(16)
    return np.concatenate(CLASSES)[order], np.array([-5, 2**40, 2**41])[CLASS_OF[order]]


FORMS = {
    "list": CLASSES,
    "tuple of three": tuple(CLASSES),
    "sorted pair": (np.concatenate(CLASSES), CLASS_OF.astype(np.uint8)),
    "pair in any order": shuffled(),
    "pair of jax arrays": (jnp.asarray(np.roll(np.concatenate(CLASSES), 9)), jnp.asarray(np.roll(CLASS_OF, 9))),
    "pair with a list": (np.concatenate(CLASSES), CLASS_OF.tolist()),
    "dict": dict(zip("abc", CLASSES, strict=True)),
    "dict of jax arrays": {i: jnp.asarray(array) for i, array in enumerate(CLASSES)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_classes_one_after_the_other(form):
    examples, starts, counts = few_shot(FORMS[form], **SIZES).data
    assert sum(leaf.nbytes for leaf in (examples, starts, counts)) == 16 + 3 * 8
    assert examples.dtype == np.uint8 and starts.tolist() == [0, 4, 7] and counts.tolist() == [4, 3, 9]
    if form == "pair in any order":
        np.testing.assert_array_equal(CLASS_OF[examples[:, 0, 0]], CLASS_OF)
        examples = jnp.sort(examples, axis=0)
    np.testing.assert_array_equal(examples[:, 0, 0], np.arange(16))


def test_in_classes_of_unequal_size_every_example_is_as_likely_in_every_place():
    num_tasks = 6000
    (x, _), (query_x, _), classes = sample_many(few_shot(CLASSES, **SIZES), num_tasks)
    drawn = np.concatenate([x.reshape(num_tasks, 2, 1), query_x.reshape(num_tasks, 2, 2)], axis=2)
    for c, numbers in enumerate(CLASSES):
        of_class = drawn[classes == c]
        assert abs(len(of_class) / num_tasks - 2 / 3) < 5 * np.sqrt(2 / 9 / num_tasks)
        assert all(len(set(row)) == 3 for row in of_class.tolist())
        for place in of_class.T:
            frequency = np.bincount(place - numbers.min(), minlength=len(numbers)) / len(of_class)
            np.testing.assert_allclose(frequency, 1 / len(numbers), atol=5 / np.sqrt(len(numbers) * len(of_class)))


def test_a_class_may_be_used_up():
    (x, _), (query_x, _), _ = sample_many(few_shot(CLASSES, num_ways=3, num_shots=1, num_queries=2), 3)
    x = np.concatenate([x, query_x], axis=1)[..., 0, 0]
    assert all(sorted(row[CLASS_OF[row] == 1]) == [4, 5, 6] for row in x)


@pytest.mark.parametrize("data", [numbered(3, 4), CLASSES], ids=["array", "list"])
def test_data_of_numpy_will_do(data):
    tasks = few_shot(data, **SIZES)
    on_host = jax.device_get(tasks.data)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(on_host))
    sample = jax.jit(lambda keys: jax.vmap(tasks.sample, (0, None))(keys, on_host))
    drawn = sample(jax.random.split(jax.random.key(0), 3))
    jax.tree.map(np.testing.assert_array_equal, drawn, sample_many(tasks, 3))


RECORDED = {"info": [4, 0, 8], "support": [29, 3, 57], "query": [30, 31, 5, 2, 56, 61]}


def test_tasks_of_an_array_are_those_of_the_first_version():
    """Recorded: results are over these draws, of threefry and `top_k`."""
    sample = few_shot(numbered(9, 7), num_ways=3, num_shots=1, num_queries=2).sample
    task = jax.jit(sample)(jax.random.key(7), numbered(9, 7))
    assert task.info.tolist() == RECORDED["info"]
    assert task.support[0][:, 0].tolist() == RECORDED["support"]
    assert task.query[0][:, 0].tolist() == RECORDED["query"]


def test_a_long_tail_is_not_padded_and_episodes_compile_once(num_compiled):
    """1,000 classes of 5 to 5,000 images, those of few pixels: bytes of the data and 8 a class, one program."""
    counts = np.geomspace(5, 5000, 1000).astype(int)
    y = np.repeat(np.arange(1000), counts)
    x = np.broadcast_to((y % 251).astype(np.uint8)[:, None, None], (len(y), 3, 3))
    tasks = few_shot((x, y), num_ways=5, num_shots=1, num_queries=4)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(tasks.data)) < 1.05 * x.nbytes
    sample = jax.jit(tasks.sample)
    sample(jax.random.key(0), tasks.data)
    num_compiled()
    for seed in range(1, 20):
        (drawn, labels), _, classes = jax.device_get(sample(jax.random.key(seed), tasks.data))
        np.testing.assert_array_equal(drawn[:, 0, 0], classes[labels] % 251)
    assert num_compiled() == 0
    assert "5000" not in str(jax.make_jaxpr(tasks.sample)(jax.random.key(0), tasks.data))


def test_views_of_one_array_and_what_is_sorted_are_not_copied(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("copied")

    base = np.arange(16 * 4, dtype=np.uint8).reshape(16, 2, 2)
    views = dict(zip("abc", np.split(base, [4, 7]), strict=True))
    monkeypatch.setattr(by_class.np, "concatenate", refuse)
    np.testing.assert_array_equal(few_shot(views, **SIZES).data.examples, base)
    with pytest.raises(AssertionError, match="copied"):
        few_shot({"b": views["b"], "a": views["a"]}, **SIZES)
    with pytest.raises(AssertionError, match="copied"):
        few_shot([views["a"], views["c"]], **SIZES)
    monkeypatch.undo()
    monkeypatch.setattr(by_class.np, "argsort", refuse)
    few_shot((base, CLASS_OF), **SIZES)


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=5, unique=True), st.data())
@settings(deadline=None, max_examples=15)
def test_labels_of_any_value_and_order(labels, data):
    counts = data.draw(st.lists(st.integers(1, 6), min_size=len(labels), max_size=len(labels)))
    y = np.array(data.draw(st.permutations(np.repeat(labels, counts).tolist())))
    x = np.stack([np.arange(len(y))] * 2, axis=1).astype(np.int32)
    if min(counts) < 2:
        few = sorted(label for label, count in zip(labels, counts, strict=True) if count < 2)
        with pytest.raises(ValueError, match=rf"^num_shots \+ num_queries .* {len(few)} of .*: {few[0]} \(1\)"):
            few_shot((x, y), num_ways=1, num_shots=1, num_queries=1)
        return
    examples, starts, counted = few_shot((x, y), num_ways=1, num_shots=1, num_queries=1).data
    for label, start, count in zip(sorted(labels), starts.tolist(), counted.tolist(), strict=True):
        np.testing.assert_array_equal(examples[start : start + count, 0], np.flatnonzero(y == label))


def test_classes_with_too_few_are_named():
    birds = {f"bird {i}": np.zeros((i, 2)) for i in range(9)}
    with pytest.raises(ValueError) as caught:
        few_shot(birds, num_ways=2, num_shots=(1, 2), num_queries=5)
    assert str(caught.value) == (
        "num_shots + num_queries must be at most the examples of every class in data, got 2 + 5, and 7 of 9 classes "
        "have fewer: 'bird 0' (0), 'bird 1' (1), 'bird 2' (2), 'bird 3' (3), 'bird 4' (4) and 2 more: leave these out, "
        "or take fewer shots or queries"
    )
    with pytest.raises(ValueError, match=r"1 of 3 classes has fewer: 1 \(3\): leave"):
        few_shot(CLASSES, num_ways=2, num_shots=1, num_queries=3)
    with pytest.raises(ValueError, match="num_ways must be at most the 3 classes of data, got 4"):
        few_shot(CLASSES, num_ways=4, num_shots=1, num_queries=1)


X = np.zeros((4, 2), np.float32)
WRONG = {
    "no classes in a list": ([], "a class at least"),
    "no classes in a dict": ({}, "a class at least"),
    "another shape": ([X, X[:, :1]], r"one shape and dtype, got float32\[4, 2\] for class 0 and float32\[4, 1\] for"),
    "another dtype": ({"a": X, "b": X.astype(np.uint8)}, r"one shape and dtype, .* class 'a' and uint8\[4, 2\] .*'b'"),
    "a dict with a list": ({"a": [[1.0]]}, r"an array \[examples, ...\] for each class, got \[\[1.0\]\] for class 'a'"),
    "a dict with a scalar": ({"a": X, "b": np.zeros(())}, r"an array .* for class 'b'"),
    "a list of texts": ([np.array(["a"])], "numbers: class 0 must hold numbers, .*dtype <U1"),
    "float labels": ((X, np.array([0.0, 1, 1, np.nan])), r"integer labels, got y float64\[4\]: np.unique"),
    "names as labels": ((X, np.array(["a", "b", "a", "b"])), "np.unique"),
    "truths as labels": ((X, np.array([True, False, True, True])), "np.unique"),
    "one-hot rows": ((X, np.eye(4)), r"one-hot rows the labels are y.argmax\(axis=1\)"),
    "fewer labels": ((X, np.zeros(3, int)), r"got float32\[4, 2\] and int64\[3\]"),
    "a pair of classes": ((X, X), "one-hot|of two classes it is a list"),
    "a pair without an array": (([[1.0]], [0]), "as x; of classes it is a list"),
    "a pair of texts": ((np.array(["a", "b"]), [0, 1]), "x must hold numbers"),
    "long doubles": ([X.astype(np.longdouble)], "a dtype that JAX has"),
    "keys": ([jax.random.split(jax.random.key(0), 4)], "must hold numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_forms_are_named(case):
    data, problem = WRONG[case]
    with pytest.raises(ValueError, match=f"^data must .*{problem}"):
        few_shot(data, num_ways=1, num_shots=1, num_queries=1)


# Ranges of sizes


def test_episodes_of_varying_size_are_padded_and_masked():
    num_tasks = 2000
    tasks = few_shot(CLASSES, num_ways=(1, 3), num_shots=(1, 2), num_queries=1)
    support, query, classes = sample_many(tasks, num_tasks)
    ways = support.num_ways
    assert ways.dtype == support.y.dtype == classes.dtype == np.int32 and support.weight.dtype == np.float32
    np.testing.assert_array_equal(ways, query.num_ways)
    np.testing.assert_array_equal(classes >= 0, np.arange(3) < ways[:, None])
    shots = support.weight.reshape(-1, 3, 2)[:, 0].sum(axis=1)
    sizes = np.stack([ways, shots], axis=1)
    for size in itertools.product([1, 2, 3], [1, 2]):  # independent, and each uniform
        assert abs(np.mean((sizes == size).all(axis=1)) - 1 / 6) < 5 * np.sqrt(5 / 36 / num_tasks)
    label, place = np.divmod(np.arange(6), 2)
    real = (label < ways[:, None]) & (place < shots[:, None])
    np.testing.assert_array_equal(support.weight, real)
    np.testing.assert_array_equal(support.y, np.where(real, label, 0))
    np.testing.assert_array_equal(query.weight, np.arange(3) < ways[:, None])
    for batch in (support, query):
        x = batch.x[..., 0, 0]
        np.testing.assert_array_equal(np.where(batch.weight > 0, x, x[:, :1]), x)
        np.testing.assert_array_equal(CLASS_OF[x], np.take_along_axis(classes, batch.y, axis=1))
    for i in range(50):
        drawn = [*support.x[i][real[i]].flat, *query.x[i][query.weight[i] > 0].flat]
        assert len(set(drawn)) == len(drawn) == ways[i] * (shots[i] + 1)


def test_sizes_are_drawn_apart_where_their_ranges_are_the_same():
    keys = jax.random.split(jax.random.key(0), 600)
    ways, shots, queries = jax.jit(jax.vmap(lambda key: draw_sizes(key, Sizes((1, 3), (1, 3), (1, 3)))))(keys)
    for one, other in ((ways, shots), (shots, queries), (queries, ways)):
        assert abs(np.mean(one == other) - 1 / 3) < 0.1  # five standard deviations


@pytest.mark.parametrize(("name", "highest"), [("num_ways", 2), ("num_queries", 2)])
def test_a_range_of_one_size_is_the_unpadded_episode_with_weights(name, highest):
    tasks = few_shot(numbered(5, 4), **SIZES | {name: (highest, highest)})
    support, query, classes = jax.jit(tasks.sample)(jax.random.key(0), tasks.data)
    assert support.weight.tolist() == [1, 1] and query.weight.tolist() == [1] * 4
    assert support.num_ways == query.num_ways == 2
    np.testing.assert_array_equal(support.x[:, 0] // 4, classes[support.y])


wrong_ranges = st.one_of(
    st.tuples(st.integers(max_value=0), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.floats()),
    st.tuples(st.integers(5, 9), st.integers(1, 4)),
    st.tuples(st.integers(1, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.booleans(), st.just(2)),
    st.lists(st.integers(1, 2), min_size=2, max_size=2),
)


@given(st.sampled_from(["num_ways", "num_shots", "num_queries"]), wrong_ranges)
def test_a_wrong_range_is_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be an integer >= 1, or a pair of them, \(lowest, highest\)"):
        few_shot(numbered(3, 4), **{"num_ways": 2, "num_shots": 1, "num_queries": 1, name: value})


# Rotations


def test_rotations_are_those_of_numpy_written_out():
    data = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 4, 3)).astype(np.uint8)
    written = np.concatenate([np.rot90(data, turns, axes=(2, 3)) for turns in range(4)])
    tasks, reference = few_shot(data, **SIZES, rotations=True), few_shot(written, **SIZES)
    assert tasks.data.nbytes == data.nbytes
    jax.tree.map(np.testing.assert_array_equal, sample_many(tasks, 40), sample_many(reference, 40))


def test_rotations_of_classes_of_unequal_size():
    images = np.random.default_rng(0).integers(0, 256, (16, 3, 3)).astype(np.uint8)
    tasks = few_shot((images, CLASS_OF), num_ways=12, num_shots=1, num_queries=2, rotations=True)
    (x, y), _, classes = sample_many(tasks, 1)
    assert sorted(classes[0]) == list(range(12))
    for image, label in zip(x[0], y[0], strict=True):
        turns, upright = divmod(classes[0, label], 3)
        assert any(np.array_equal(image, np.rot90(each, turns)) for each in images[upright == CLASS_OF])


@pytest.mark.parametrize(
    ("data", "rotations", "problem"),
    [
        (np.zeros((3, 4, 5, 6)), True, r"of square images \[size, size, ...\], got examples of the shape \(5, 6\)"),
        (np.zeros((3, 4, 5)), True, r"of square images .* \(5,\)"),
        (np.zeros((3, 4)), True, r"of square images .* \(\)"),
        (np.zeros((3, 4, 5, 5)), 4, "True or False, got 4"),
    ],
)
def test_wrong_rotations_are_named(data, rotations, problem):
    with pytest.raises(ValueError, match=f"^rotations must be {problem}"):
        few_shot(data, **SIZES, rotations=rotations)


# Groups


COUNTS_OF_GROUPS = {"vowels": 2, "plosives": 3, "nasals": 4}
NAMES = [f"{group}{i}" for group, count in COUNTS_OF_GROUPS.items() for i in range(count)]
GROUP_OF = np.array([name[:-1] for name in NAMES])


def group_tasks(groups, data=None, **options):
    data = dict(zip(NAMES, numbered(9, 4), strict=True)) if data is None else data
    return few_shot(data, **{"num_ways": 3, "num_shots": 1, "num_queries": 1} | options, groups=groups)


@pytest.mark.parametrize(
    "groups",
    [
        list(GROUP_OF),
        tuple(GROUP_OF),
        GROUP_OF,
        np.repeat([7, -1, 0], [2, 3, 4]),
        jnp.repeat(jnp.arange(3), jnp.array([2, 3, 4])),
        dict(zip(NAMES, GROUP_OF, strict=True)),
        lambda name: name[:-1],
    ],
    ids=["list", "tuple", "array of names", "integers", "jax array", "dict", "function"],
)
def test_groups_are_given_in_order_or_by_name(groups):
    (members, starts, counts) = group_tasks(groups).data.groups
    assert members.tolist() == list(range(2, 9)) and starts.tolist() == [0, 3] and counts.tolist() == [3, 4]


def test_an_episode_is_of_one_group_and_each_large_enough_is_as_likely():
    num_tasks = 3000
    order = np.random.default_rng(0).permutation(9)
    tasks = group_tasks(GROUP_OF[order], numbered(9, 4)[order])
    (x, _), _, classes = sample_many(tasks, num_tasks)
    np.testing.assert_array_equal(x[..., 0] // 4, order[classes])
    groups = GROUP_OF[order][classes]
    assert (groups == groups[:, :1]).all() and all(len(set(row)) == 3 for row in classes.tolist())
    names, times = np.unique(groups[:, 0], return_counts=True)
    assert names.tolist() == ["nasals", "plosives"]
    assert abs(times[0] / num_tasks - 1 / 2) < 5 * np.sqrt(1 / 4 / num_tasks)
    nasals = np.flatnonzero(GROUP_OF[order] == "nasals")
    for place in classes[groups[:, 0] == "nasals"].T:
        frequency = np.array([np.mean(place == nasal) for nasal in nasals])
        np.testing.assert_allclose(frequency, 1 / 4, atol=5 * np.sqrt(3 / 16 / times[0]))


def test_groups_with_rotations_and_ranges_turn_alike():
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 2, 2)).astype(np.uint8)
    tasks = group_tasks(GROUP_OF, images, num_ways=(2, 4), rotations=True)
    support, _, classes = sample_many(tasks, 200)
    turns, upright = np.divmod(classes, 9)
    assert set(turns[:, 0]) == {0, 1, 2, 3} and set(support.num_ways) == {2, 3, 4}
    for row, turn, ways in zip(upright, turns, support.num_ways, strict=True):
        assert set(GROUP_OF[row[:ways]]) == {"nasals"} and len(set(turn[:ways])) == 1
    assert all(np.array_equal(classes[i, ways:], [-1] * (4 - ways)) for i, ways in enumerate(support.num_ways))


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        (GROUP_OF[:8], "must have a group for each of 9 classes, in their order or as a function or dict"),
        ("abcabcabc", "must have a group for each of 9 classes"),
        (3, "must have a group for each of 9 classes"),
        (np.zeros((9, 1), int), "must have a group for each of 9 classes"),
        ({"vowels0": 1}, "must have the group of every class, got none of 'vowels1', 'plosives0', .* and 3 more"),
        (list(range(9)), r"must have one with num_ways = 3 classes at least, got 9 groups, 0 \(1\), 1 \(1\)"),
        (["a", ["b"]] + ["a"] * 7, r"must be integers or names, got \['b'\] for class 'vowels1'"),
    ],
)
def test_wrong_groups_are_named(groups, problem):
    with pytest.raises(ValueError, match=f"^groups {problem}"):
        group_tasks(groups)


def test_numbers_that_jax_does_not_have_are_refused():
    """2**40 became 0, in silence."""
    big, small = np.full((3, 4, 2), 2**40) + np.arange(3)[:, None, None], np.arange(24).reshape(3, 4, 2)
    sizes = {"num_ways": 2, "num_shots": 1, "num_queries": 1}
    with pytest.raises(ValueError, match=r"data must hold numbers that are int32s in jax, got 1099511627776 in int64"):
        few_shot(big, **sizes)
    with pytest.raises(ValueError, match=r"data must hold numbers that are float32s in jax, got 1e\+300 in float64"):
        few_shot([np.full((4, 2), 1e300), np.ones((4, 2))], **sizes)
    for data in (small, small * 1e30, np.where(small, np.inf, 0.0)):
        few_shot(data, **sizes)


@pytest.mark.parametrize("form", ["array", "list", "jax"])
def test_an_archive_that_is_blank_is_refused(form):
    blank = np.full((3, 4, 8, 8), 255, np.uint8)
    data = {"array": blank, "list": list(blank), "jax": jnp.asarray(blank)}[form]
    with pytest.raises(ValueError, match="data must differ from class to class, got 255 everywhere"):
        few_shot(data, num_ways=2, num_shots=1, num_queries=1)


def test_numbers_of_64_bits_are_those_of_jax_where_it_has_them(x64):
    data = np.full((3, 4, 2), 2**40) + np.arange(3)[:, None, None]
    assert few_shot(data, num_ways=2, num_shots=1, num_queries=1).data.dtype == np.int64

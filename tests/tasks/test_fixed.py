"""Finite lists of tasks: each is what it was, padded or not, and is judged as it would be alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import Examples, Task, adapt, evaluate, fit
from jaxmeta.tasks import fixed, single, split_tasks

pytestmark = pytest.mark.usefixtures("strict_shapes")


def line(num_shots, num_queries=4, seed=0, dtype=np.float32, **more):
    """A line of its own slope."""
    rng = np.random.default_rng([seed, num_shots])
    x = rng.normal(size=(num_shots + num_queries, 1)).astype(dtype)
    y = (rng.normal() * x).astype(dtype)
    return Task((x[:num_shots], y[:num_shots]), (x[num_shots:], y[num_shots:]), **more)


def episode(num_ways, num_shots, seed=0):
    """Clouds of points, a class each; a query of each class."""
    rng = np.random.default_rng([seed, num_ways, num_shots])
    labels = np.repeat(np.arange(num_ways, dtype=np.int32), num_shots + 1)
    x = (labels[:, None] + rng.normal(size=(len(labels), 2))).astype(np.float32)
    is_query = np.arange(len(labels)) % (num_shots + 1) == num_shots
    return Task((x[~is_query], labels[~is_query]), (x[is_query], labels[is_query]))


LINES = [line(num_shots=3 + i % 3, num_queries=4 + i % 2, seed=i) for i in range(30)]
NAMES = [f"site {i}" for i in range(30)]
REGRESSION = jaxmeta.maml(
    lambda key: jnp.array([0.3, 0.1]),
    jaxmeta.nn.mean_squared_error(lambda theta, x: theta[0] * x + theta[1]),
    inner_optimizer=adapt.sgd(0.3),
    num_inner_steps=2,
)
PROTONET = jaxmeta.protonet(lambda key: jnp.ones(2), lambda params, x: params[None] * x, num_ways=4)


def alone(learner, tasks):
    """What a learner makes of each task by itself, never padded: {metric: [N, K + 1]}."""
    meta_params = learner.init(jax.random.key(0)).meta_params
    judge = jax.jit(learner.evaluate)
    curves = [judge(jax.random.key(0), meta_params, task) for task in tasks]
    return {name: np.stack([curve[name] for curve in curves]) for name in curves[0]}


def report_of(learner, tasks, **arguments):
    return evaluate(jax.random.key(1), learner, tasks, learner.init(jax.random.key(0)).meta_params, **arguments)


def test_thirty_tasks_of_several_sizes_are_judged_each_once_in_their_order_as_if_alone():
    report = report_of(REGRESSION, fixed(LINES, names=NAMES))
    assert report.num_tasks == 30 and report.names == NAMES
    np.testing.assert_allclose(report.samples["mse"], alone(REGRESSION, LINES)["mse"], rtol=2e-6)
    assert [row["task"] for row in report.rows()] == NAMES


def test_padding_costs_no_precision(x64):
    lines = [line(3, 4, dtype=float), line(5, 2, dtype=float), line(4, 4, dtype=float)]
    report = report_of(REGRESSION, fixed(lines))
    np.testing.assert_allclose(report.samples["mse"], alone(REGRESSION, lines)["mse"], rtol=1e-12)


def test_episodes_of_several_ways_are_judged_as_if_alone():
    """Alone a network has an output for each class of its own."""
    episodes = [episode(2, 3), episode(4, 1), episode(3, 2)]
    report = report_of(PROTONET, fixed(episodes))
    for i, task in enumerate(episodes):
        ways = int(task.support[1].max()) + 1
        own = jaxmeta.protonet(lambda key: jnp.ones(2), lambda params, x: params[None] * x, num_ways=ways)
        for metric, curve in alone(own, [task]).items():
            np.testing.assert_allclose(report.samples[metric][i], curve[0], rtol=2e-6, err_msg=metric)


def test_a_padded_task_is_its_own_rows_and_then_its_first_with_no_weight_and_label_0():
    last_class_first = lambda leaf: leaf[::-1]
    episodes = [jax.tree.map(last_class_first, episode(*sizes)) for sizes in ((3, 2), (2, 5), (4, 1))]
    tasks = fixed(episodes)
    for i, task in enumerate(episodes):
        padded = tasks.at(i, tasks.data)
        for (x, y), batch, size in ((task.support, padded.support, 10), (task.query, padded.query, 4)):
            num = len(y)
            np.testing.assert_array_equal(batch.x, np.concatenate([x, np.repeat(x[:1], size - num, axis=0)]))
            np.testing.assert_array_equal(batch.y, np.concatenate([y, np.zeros(size - num, int)]))
            np.testing.assert_array_equal(batch.weight, np.arange(size) < num)
            assert int(batch.num_ways) == y.max() + 1 and batch.num_ways.dtype == jnp.int32


def test_weights_and_ways_that_tasks_have_are_kept():
    x, y = np.ones((3, 1), np.float32), np.array([0, 1, 0])
    first = Task(Examples(x, y, np.array([0.5, 2.0, 0.0], np.float32), num_ways=5), (x, y))
    second = Task((x[:2], y[:2]), (x, y))
    tasks = fixed([first, second])
    one, two = (tasks.at(i, tasks.data) for i in range(2))
    assert one.support.weight.tolist() == [0.5, 2, 0] and two.support.weight.tolist() == [1, 1, 0]
    assert [int(batch.num_ways) for batch in (*one[:2], *two[:2])] == [5, 5, 2, 2]


@pytest.mark.parametrize("form", ["unequal", "stacked"])
def test_a_class_that_is_in_the_query_set_alone_counts(form):
    tasks = [episode(2, 2), episode(2, 2, seed=1)]
    tasks[1].query[1][1] = 4
    if form == "unequal":
        tasks.append(episode(3, 1))
    tasks = fixed(jax.tree.map(lambda *leaves: np.stack(leaves), *tasks) if form == "stacked" else tasks)
    assert [int(tasks.at(i, tasks.data).support.num_ways) for i in range(2)] == [2, 5]


def test_tasks_of_one_size_stay_pairs_and_of_unequal_ways_say_how_many():
    for tasks in (fixed([line(3, seed=i) for i in range(4)]), fixed([episode(3, 2, seed) for seed in range(4)])):
        assert type(tasks.at(0, tasks.data).support) is tuple
    shots = [episode(2, 2), episode(4, 1)]
    same_size = [task._replace(query=(task.query[0][:2], task.query[1][:2])) for task in shots]
    tasks = fixed(same_size)
    assert tasks.data.support.weight is None and tasks.data.support.num_ways.tolist() == [2, 4]
    np.testing.assert_array_equal(tasks.data.query.x, np.stack([task.query[0] for task in same_size]))


def test_stacked_tasks_are_the_list_of_them():
    lines = [line(3, seed=i, info={"site": i}) for i in range(5)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *lines)
    one, other = fixed(lines, names=NAMES[:5]), fixed(stacked, names=NAMES[:5])
    jax.tree.map(np.testing.assert_array_equal, one.data, other.data)
    assert one.data.info["site"].tolist() == list(range(5)) and one.size == other.size == 5
    batch = {"x": np.ones((2, 3), np.float32)}  # any pytree, where all have one size
    assert fixed([Task(batch, batch)] * 3).at(1, fixed([Task(batch, batch)] * 3).data).support["x"].shape == (2, 3)


def test_every_task_is_drawn_as_often():
    tasks = fixed([line(3 + i % 2, seed=i, info=np.int32(i)) for i in range(5)])
    drawn = jax.jit(jax.vmap(tasks.sample, (0, None)))(jax.random.split(jax.random.key(0), 2000), tasks.data)
    np.testing.assert_allclose(np.bincount(drawn.info) / 2000, 0.2, atol=0.05)  # five standard deviations


def test_what_is_on_the_device_is_the_examples_and_no_padding():
    rng = np.random.default_rng(0)
    tasks = [line(size, 10) for size in [*rng.integers(5, 50, 200), 5000]]
    num_bytes = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert num_bytes(fixed(tasks).data) < 1.1 * num_bytes(tasks)  # 16 bytes for each of 201 tasks, of 88 at least


def test_training_on_a_list_compiles_once_and_lists_of_one_shape_share_it(num_compiled):
    first, second = (fixed([line(3, seed=i + first) for i in range(4)]) for first in (0, 10))
    train = lambda tasks: fit(
        jax.random.key(0), REGRESSION, tasks, num_outer_steps=3, num_tasks=2, chunk_size=2, progress=False
    )
    train(first)
    num_compiled()
    train(second)
    train(first)
    assert num_compiled() == 0


@pytest.mark.parametrize(
    ("tasks", "match"),
    [
        ([], r"tasks must be a list of jaxmeta.Task, or a stacked one, got \[\]"),
        (iter([line(3)]), "tasks must be a list"),
        ([line(3), 5], r"tasks\[1\] \('b'\) must be a jaxmeta.Task\(support, query\), got int"),
        ([line(3), line(4)._replace(query=None)], r"query set of tasks\[1\] \('b'\) must hold arrays, got None"),
        ([line(3), Task(([1.0],), ([1.0],))], r"support set of tasks\[1\] \('b'\) must be numpy or jax arrays .* 1.0"),
        ([line(3), Task((np.ones((3, 1)), np.ones((2, 1))), (np.ones(1),))], r"\('b'\) must be arrays \[B, ...\]"),
        ([line(3), line(0)], r"support set of tasks\[1\] \('b'\) must be arrays .* one at least"),
        ([line(3), line(4, dtype=np.float16)], r"\('a'\) and .*\('b'\).* x .* float32\[1\] .* float16\[1\] in"),
        ([line(3), episode(2, 2)], r"support set is float32\[1\] in .*\('a'\) and float32\[2\] in .*\('b'\)"),
        ([episode(2, 2), episode(1, 2)], r"labels of tasks\[1\] \('b'\) must be class numbers .* got \[0\]"),
        ([Task(*2 * ({"x": np.ones(n)},)) for n in (3, 4)], r"tasks\[1\] .* only pairs .* set of tasks\[0\] .* dict"),
        ([line(3, info="north"), line(3, info="south")], r"info of tasks\[0\] \('a'\) must be numbers"),
        ([line(3, info=1.0), line(3)], r"info of tasks\[1\] \('b'\) must be numbers, of the same shapes"),
        (episode(2, 2), r"support sets of stacked tasks must be arrays \[N, B, ...\]"),
        ([Task(Examples(np.ones((2, 1)), np.ones((2, 1)), np.zeros(2)), (1,))] * 2, r"weight in .*\('a'\)"),
    ],
)
def test_what_is_wrong_is_named(tasks, match):
    with pytest.raises(ValueError, match=match):
        fixed(tasks, names=["a", "b"])


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["a"], "as many as there are tasks, 2, got 1"),
        (["a", "a"], r"must differ, got \['a'\] more than once"),
        ("ab", "list of strings"),
    ],
)
def test_wrong_names_are_refused(names, match):
    with pytest.raises(ValueError, match=match):
        fixed([line(3), line(4)], names=names)


# Parts


TASKS = fixed(LINES, names=NAMES)


def same_task(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [({}, [18, 6, 6]), ({"fractions": (0.5, 0.5)}, [15, 15]), ({"counts": (20, 4, 6), "seed": 3}, [20, 4, 6])],
    ids=str,
)
def test_parts_are_all_tasks_each_in_one_and_share_the_arrays(asked, sizes):
    parts = split_tasks(TASKS, **asked)
    assert sorted(name for part in parts for name in part.names) == sorted(NAMES)
    assert sum(part.size for part in parts) == 30
    for part in parts:
        numbers = [NAMES.index(name) for name in part.names]
        assert numbers == sorted(numbers) and len(numbers) == part.size
        assert part.data["tasks"] is TASKS.data
        same_task(part.at(1, part.data), TASKS.at(numbers[1], TASKS.data))
    assert [part.size for part in parts] == sizes


def test_the_seed_decides_who_is_where():
    first, again, other = (split_tasks(TASKS, seed=seed)[2].names for seed in (0, 0, 1))
    assert first == again != other


def test_parts_by_names_have_those_in_that_order_and_are_drawn_from():
    test, train = ["site 7", "site 2"], NAMES[10:12]
    parts = split_tasks(TASKS, names={"test": test, "train": train})
    assert [part.names for part in parts] == [train, test]
    same_task(parts[1].at(0, parts[1].data), TASKS.at(7, TASKS.data))
    drawn = jax.jit(jax.vmap(parts[1].sample, (0, None)))(jax.random.split(jax.random.key(0), 400), parts[1].data)
    for i in (7, 2):  # each as likely, within five standard deviations
        assert abs(np.mean(drawn.support.x[:, 0, 0] == LINES[i].support[0][0, 0]) - 0.5) < 0.125
    again = split_tasks(parts[0], counts=(1, 1))
    assert {name for part in again for name in part.names} == set(train)
    np.testing.assert_allclose(
        report_of(REGRESSION, parts[1]).samples["mse"], alone(REGRESSION, [LINES[7], LINES[2]])["mse"], rtol=2e-6
    )


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"tasks": jaxmeta.tasks.linear()}, "tasks must be finite to be split"),
        ({"fractions": (0.5, 0.2)}, r"fractions must sum to 1, got \(0.5, 0.2\), which sum to 0.7"),
        ({"fractions": (0.99, 0.01, 0)}, "fractions must give each part a task"),
        ({"fractions": 0.5}, "fractions must be of two parts or three"),
        ({"fractions": (1.5, -0.5)}, r"fractions\[1\] must be a finite number >= 0"),
        ({"counts": (20, 5)}, "counts must sum to the 30 tasks that there are"),
        ({"counts": (30, 0)}, r"counts\[1\] must be an integer >= 1"),
        ({"names": {"train": ["nowhere"]}}, r"names of train must be names of tasks, .* got \['nowhere'\]"),
        ({"names": {"train": ["site 1"], "test": ["site 1"]}}, "must differ, got .*site 1"),
        ({"names": {"dev": ["site 1"]}}, "keys train, validation, test"),
        ({"names": {"test": []}}, "names of test must be a list of names"),
        ({"names": {"test": ["site 1"]}, "counts": (15, 15)}, "must not both be given"),
        ({"tasks": fixed(LINES), "names": {"test": ["site 1"]}}, "need tasks with names"),
        ({"seed": -1}, "seed must be an integer >= 0"),
    ],
    ids=str,
)
def test_wrong_parts_are_refused(asked, match):
    with pytest.raises(ValueError, match=match):
        split_tasks(**{"tasks": TASKS, **asked})


def test_the_only_task_may_hold_any_arrays_and_is_judged_once():
    few, many = (line(size).support for size in (3, 8))  # of other sizes, which fixed refuses
    tasks = single(Task((few, many), many))
    learner = jaxmeta.maml(
        lambda key: jnp.ones(()),
        lambda slope, batch: (jnp.mean((slope * batch[0][0] - batch[0][1]) ** 2), {}),
        outer_loss_fn=lambda slope, batch: (jnp.mean((slope * batch[0] - batch[1]) ** 2), {}),
    )
    report = report_of(learner, tasks)
    assert report.num_tasks == 1
    np.testing.assert_allclose(report.samples["loss"][0, 0], np.mean((many[0] - many[1]) ** 2), rtol=1e-6)
    with pytest.raises(ValueError, match="must be arrays"):
        fixed([Task((few, many), many)])
    for wrong in ((), Task("none", few)):
        with pytest.raises(ValueError, match="task must be of numpy or jax arrays of numbers, one at least"):
            single(wrong)

"""The evaluation protocol: which tasks, what statistics, what is printed and saved."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import MetaParams, Report, Task, TaskDistribution, adapt, evaluate

pytestmark = pytest.mark.usefixtures("strict_shapes")

TASKS = jaxmeta.tasks.linear(num_shots=3, num_queries=4)
LEARNER = jaxmeta.maml(
    lambda key: jax.random.normal(key, (2,)),
    jaxmeta.nn.mean_squared_error(lambda theta, x: theta[0] * x + theta[1]),
    inner_optimizer=adapt.sgd(0.3),
    num_inner_steps=2,
)
NUM_TASKS = 11


def report_of(key=1, **arguments):
    meta_params = LEARNER.init(jax.random.key(0)).meta_params
    return evaluate(jax.random.key(key), LEARNER, TASKS, meta_params, **{"num_tasks": NUM_TASKS, **arguments})


@pytest.fixture(scope="module")
def report(strict_shapes):
    return report_of()


def test_samples_are_the_learners_own_on_tasks_of_fixed_keys(report):
    meta_params = LEARNER.init(jax.random.key(0)).meta_params
    assert report.num_tasks == NUM_TASKS and list(report.samples) == ["mse"]
    assert report.samples["mse"].shape == (NUM_TASKS, 3)
    for i in (0, 4, NUM_TASKS - 1):
        task_key, adapt_key = jax.random.split(jax.random.fold_in(jax.random.key(1), i))
        curve = LEARNER.evaluate(adapt_key, meta_params, TASKS.sample(task_key, TASKS.data))["mse"]
        np.testing.assert_allclose(report.samples["mse"][i], curve, rtol=1e-5)  # float32, another order of sums


@pytest.mark.parametrize("batch_size", [1, 4, NUM_TASKS])
def test_the_batch_size_does_not_change_the_result(report, batch_size):
    np.testing.assert_allclose(report_of(batch_size=batch_size).samples["mse"], report.samples["mse"], rtol=1e-5)


def test_more_tasks_begin_with_the_same_tasks(report):
    more = report_of(num_tasks=NUM_TASKS + 5).samples["mse"]
    np.testing.assert_allclose(more[:NUM_TASKS], report.samples["mse"], rtol=1e-5)
    assert len(np.unique(more[:, 0])) == NUM_TASKS + 5


def test_the_key_decides_the_tasks(report, num_compiled):
    np.testing.assert_array_equal(report_of().samples["mse"], report.samples["mse"])
    num_compiled()
    assert not np.any(report_of(key=2).samples["mse"] == report.samples["mse"])
    assert num_compiled() <= 1  # of this test: a new key compiles no new evaluation


SAMPLES = np.array([[1, 10], [2, 20], [4, 0], [9, 50]], np.float32)


def test_statistics_are_those_of_the_textbook():
    summary = Report({"mse": SAMPLES}).metrics["mse"]
    np.testing.assert_allclose(summary["mean"], [4, 20])
    np.testing.assert_allclose(summary["median"], [3, 15])
    deviations = [np.sqrt((9 + 4 + 0 + 25) / 3), np.sqrt((100 + 0 + 400 + 900) / 3)]
    np.testing.assert_allclose(summary["ci95"], 1.96 * np.array(deviations) / 2)


def test_means_are_taken_in_float64():
    values = np.array([[1e8], [1.0], [1.0], [1.0]], np.float32)
    np.testing.assert_allclose(Report({"mse": values}).metrics["mse"]["mean"], [(1e8 + 3) / 4], rtol=1e-15)


def test_a_saved_report_is_its_numbers(report, tmp_path):
    named = report._replace(batch_norm="test batch")
    named.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content == {"num_tasks": NUM_TASKS, "batch_norm": "test batch", "unit": "step", "metrics": report.metrics}
    assert report_of(batch_norm="test batch").batch_norm == "test batch"


def test_the_table_holds_every_number(report):
    both = Report({"mse": SAMPLES, "accuracy": SAMPLES / 50}, batch_norm="test batch")
    lines = str(both).splitlines()
    assert "4 test tasks" in lines[0] and "batch norm: test batch" in lines[0] and len(lines) == 1 + 2 * 3
    for name, start in (("mse", 1), ("accuracy", 4)):
        assert lines[start].split() == [name, "mean", "±", "95%", "median"]
        for step, when in enumerate(("after 0 steps", "after 1 step")):
            summary = both.metrics[name]
            numbers = [f"{summary[statistic][step]:.4f}" for statistic in ("mean", "ci95", "median")]
            assert lines[start + 1 + step].split() == [*when.split(), *numbers]


def test_the_table_counts_in_the_learners_unit_and_what_has_no_curve_in_nothing():
    lines = str(Report({"return": SAMPLES, "total": SAMPLES.sum(1, keepdims=True)}, unit="episode")).splitlines()
    assert [line.split("  ")[0].strip() or line.split()[0] for line in lines[2:4]] == [
        "after 0 episodes",
        "after 1 episode",
    ]
    assert lines[5].split() == ["24.0000", f"{1.96 * np.std([11, 22, 4, 59], ddof=1) / 2:.4f}", "16.5000"]


def test_a_report_shows_itself_in_a_line_and_in_a_notebook_as_a_table():
    report = Report({"mse": np.array([[1.0, np.inf], [2.0, 1.0]])}, "test batch", "episode")
    assert repr(report) == "Report(2 test tasks, batch norm: test batch; mse 1.5 after 0 episodes, - after 1 episode)"
    table = report._repr_html_()
    assert table.startswith("<table><caption>2 test tasks, batch norm: test batch</caption>")
    assert "<th>mse after 1 episode</th><td>-</td><td>-</td><td>-</td><td>1 task diverged</td>" in table


def test_a_report_counts_in_the_unit_of_the_learner():
    learner = LEARNER._replace(unit="episode")
    meta_params = learner.init(jax.random.key(0)).meta_params
    assert evaluate(jax.random.key(1), learner, TASKS, meta_params, num_tasks=2).unit == "episode"


def test_a_diverged_task_is_reported_and_the_file_stays_json(tmp_path):
    report = Report({"mse": np.array([[1.0, np.inf], [2.0, 1.0], [3.0, np.nan]])})
    assert report.metrics["mse"] == {
        "mean": [2.0, None],
        "median": [2.0, None],
        "ci95": [pytest.approx(1.96 / np.sqrt(3)), None],
    }
    assert "2 tasks diverged" in str(report) and str(report).count("diverged") == 1
    report.save(tmp_path / "report.json")
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)


def test_one_report_is_ahead_of_another_task_by_task():
    rng = np.random.default_rng(0)
    tasks, gain = 100 * rng.normal(size=(50, 1)), 1 + 0.1 * rng.normal(size=(50, 1))
    ahead = Report({"return": np.hstack([tasks, tasks + gain])}).ahead_of(Report({"return": tasks}), "return")
    np.testing.assert_allclose(ahead["mean"], gain.mean(), rtol=1e-9)
    np.testing.assert_allclose(ahead["ci95"], 1.96 * gain.std(ddof=1) / np.sqrt(50), rtol=1e-9)
    with pytest.raises(ValueError, match="same 50 tasks, got a report of 4"):
        Report({"return": tasks}).ahead_of(Report({"return": tasks[:4]}), "return")
    for one, other in (("return", "mse"), ("mse", "return")):
        with pytest.raises(ValueError, match="metric must be one of mse for .*, got 'return'"):
            Report({one: tasks}).ahead_of(Report({other: tasks}), "return")


NAMED = Report(
    {
        "mse": np.array([[9, 1.0], [9, 4.0], [9, np.nan], [9, 0.5]]),
        "accuracy": np.array([[0, 0.9], [0, 0.2], [0, 0], [0, 1]]),
    },
    names=["north", "south", "east", "west"],
)


def test_rows_are_the_tasks_by_name_in_order_or_the_worst_first():
    assert NAMED.rows()[1] == {"task": "south", "mse": 4.0, "accuracy": 0.2}
    names = lambda *asked: [row["task"] for row in NAMED.rows(*asked)]
    assert names() == NAMED.names
    assert names("mse", "lowest") == ["east", "south", "north", "west"]  # who diverged is the worst
    assert names("accuracy", "highest") == ["east", "south", "north", "west"]
    assert names("accuracy", "lowest") == ["west", "north", "south", "east"]
    lines = str(NAMED.rows("mse", "lowest")).splitlines()
    assert lines[0] == "4 test tasks, after 1 step, the worst mse first"
    assert [line.split() for line in lines[1:3]] == [["task", "mse", "accuracy"], ["east", "-", "0.0000"]]
    assert "<tr><th>north</th><td>1.0000</td><td>0.9000</td></tr>" in NAMED.rows()._repr_html_()
    assert NAMED._replace(names=None).rows()[3]["task"] == 3
    for asked, match in ((("loss", "lowest"), "by must be one of"), (("mse", None), "best must be one of")):
        with pytest.raises(ValueError, match=match):
            NAMED.rows(*asked)


def test_a_report_says_which_tasks_are_at_the_ends_and_saves_all(tmp_path):
    ends = "mse from 0.5000 (west) to 4.0000 (south); accuracy from 0.0000 (east) to 1.0000 (west)"
    assert str(NAMED).splitlines()[-1] == f"after 1 step, of single tasks: {ends}" and ends in NAMED._repr_html_()
    NAMED.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert [row["mse"] for row in content["tasks"]] == [1, 4, None, 0.5]


SLOPES = np.linspace(-2, 2, 7).astype(np.float32)


def slope(index, slopes):
    x = jnp.linspace(-1, 1, 4)[:, None]
    batch = x, jnp.asarray(slopes)[index] * x
    return Task(batch, batch)


FINITE = TaskDistribution(
    lambda key, slopes: slope(jax.random.randint(key, (), 0, len(SLOPES)), slopes), SLOPES, at=slope, size=7
)


def test_a_finite_distribution_is_evaluated_task_by_task():
    """At the origin the error of a slope s is the mean of (s x)²: every row is known, and its place."""
    still = LEARNER._replace(init=lambda key: LEARNER.init(key)._replace(meta_params=MetaParams(jnp.zeros(2))))
    report = evaluate(jax.random.key(1), still, FINITE, MetaParams(jnp.zeros(2)), batch_size=3)
    expected = np.mean(np.square(np.outer(SLOPES, np.linspace(-1, 1, 4))), axis=1)
    np.testing.assert_allclose(report.samples["mse"][:, 0], expected, rtol=1e-5)
    named = FINITE._replace(names=list("abcdefg"))
    first = evaluate(jax.random.key(2), still, named, MetaParams(jnp.zeros(2)), num_tasks=3)
    assert first.names == ["a", "b", "c"] and report.names is None
    np.testing.assert_allclose(first.samples["mse"], report.samples["mse"][:3], rtol=1e-5)
    with pytest.raises(ValueError, match="num_tasks must be at most the 7 tasks that there are, got 8"):
        evaluate(jax.random.key(1), still, FINITE, MetaParams(jnp.zeros(2)), num_tasks=8)


def test_a_single_task_has_no_interval():
    single = FINITE._replace(sample=lambda key, slopes: slope(3, slopes), at=slope, size=1)
    report = report_of_tasks(single)
    assert report.num_tasks == 1 and report.metrics["mse"]["ci95"] == [None] * 3
    again = report_of_tasks(single, num_tasks=4).samples["mse"]
    np.testing.assert_allclose(again, np.tile(report.samples["mse"], (4, 1)), rtol=1e-5)  # this learner draws nothing


@pytest.mark.parametrize("metrics", [{}, {"mse": 1.0}, {"mse": np.ones((2, 2))}, np.ones(3)], ids=str)
def test_what_is_no_curve_is_refused(metrics):
    learner = LEARNER._replace(evaluate=lambda key, meta_params, task: metrics)
    with pytest.raises(ValueError, match=r"learner.evaluate must report a dict of curves \[K \+ 1\]"):
        evaluate(jax.random.key(1), learner, TASKS, LEARNER.init(jax.random.key(0)).meta_params)


def report_of_tasks(tasks, **arguments):
    return evaluate(jax.random.key(1), LEARNER, tasks, LEARNER.init(jax.random.key(0)).meta_params, **arguments)


@pytest.mark.parametrize(
    ("meta_params", "match"),
    [
        (lambda state: state, "such as state.meta_params, got MetaState$"),
        (lambda state: jax.tree.map(lambda x: jnp.stack([x] * 3), state.meta_params), r"of 3 seeds .*lambda x: x\[0\]"),
        (lambda state: state.meta_params._replace(params=jnp.ones(5)), r"at .params \(5,\) in place of \(2,\)$"),
        (lambda state: state.meta_params.params, "must be a jaxmeta.MetaParams, such as"),
    ],
    ids=["a state", "seeds", "another shape", "bare parameters"],
)
def test_what_is_not_this_learners_is_named_in_a_line(meta_params, match):
    with pytest.raises(ValueError, match=match) as error:
        evaluate(jax.random.key(1), LEARNER, TASKS, meta_params(LEARNER.init(jax.random.key(0))))
    assert len(str(error.value)) < 300

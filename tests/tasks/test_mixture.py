"""Several sources: drawn by their weights, padded to one form, trained on together and judged one by one."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import Examples, Task, TaskDistribution, adapt, evaluate, fit
from jaxmeta.tasks import few_shot, fixed, mixture
from jaxmeta.training import Validation
from jaxmeta.training.evaluate import _evaluate_tasks

pytestmark = pytest.mark.usefixtures("strict_shapes")

LEARNER = jaxmeta.maml(
    lambda key: jax.random.normal(key, (2,)),
    jaxmeta.nn.mean_squared_error(lambda theta, x: theta[0] * x + theta[1]),
    inner_optimizer=adapt.sgd(0.1),
)
X = np.linspace(-1, 1, 4, dtype=np.float32)[:, None]
SLOPES = fixed(
    [Task((X[:n], slope * X[:n]), (X, slope * X)) for n, slope in ((2, 1.0), (4, 3.0))], names=["mild", "bad"]
)


def drawn_slopes(num_shots, num_queries, scale=1.0):
    """Lines through the origin; their data is a number, which no two sources share."""

    def sample(key, data):
        slope = data * jax.random.normal(key)
        batch = lambda num_rows: (
            jnp.linspace(-1, 1, num_rows)[:, None],
            slope * jnp.linspace(-1, 1, num_rows)[:, None],
        )
        return Task(batch(num_shots), batch(num_queries))

    return TaskDistribution(sample, jnp.float32(scale))


SOURCES = {"flat": drawn_slopes(3, 5), "steep": drawn_slopes(6, 2, 4.0), "two": SLOPES}
MIXED = mixture(SOURCES)


def constant(value, num_rows=2):
    """A source whose tasks are all made of one number, and a drawn one that tells them apart."""

    def sample(key, data):
        batch = (jnp.full((num_rows, 1), data), jnp.full((num_rows, 1), data))
        return Task(batch, batch, info=jax.random.uniform(key))

    return TaskDistribution(sample, jnp.float32(value))


def draw(tasks, num_tasks, seed=0):
    return jax.jit(jax.vmap(tasks.sample, (0, None)))(jax.random.split(jax.random.key(seed), num_tasks), tasks.data)


@pytest.mark.parametrize(
    ("weights", "chances"),
    [
        (None, [1 / 3, 1 / 3, 1 / 3]),
        ({"a": 0, "b": 3, "c": 1}, [0, 0.75, 0.25]),
        ({"c": 1, "a": 1, "b": 0}, [0.5, 0, 0.5]),
    ],
)
def test_sources_are_drawn_by_their_weights_and_a_task_is_of_the_source_that_it_says(weights, chances):
    tasks = draw(mixture({"a": constant(0), "b": constant(1), "c": constant(2)}, weights=weights), 4000)
    shares = np.bincount(tasks.info["source"], minlength=3) / 4000
    np.testing.assert_allclose(shares, chances, atol=0.04)  # five standard deviations
    assert all(share > 0 or chance == 0 for share, chance in zip(shares, chances, strict=True))
    assert np.all(tasks.support[0][:, :, 0] == tasks.info["source"][:, None].astype(float))
    assert len(np.unique(tasks.info["info"])) > 3900


def test_tasks_of_one_shape_stay_as_they_are_and_info_where_it_has_one():
    same = mixture({"a": constant(0), "b": constant(1)})
    task = jax.eval_shape(same.sample, jax.random.key(0), same.data)
    assert type(task.support) is tuple and task.info["info"].shape == ()
    other = mixture({"a": constant(0), "b": drawn_slopes(2, 2)})
    assert jax.eval_shape(other.sample, jax.random.key(0), other.data).info["info"] == ()


def test_shorter_sources_are_padded_to_the_longest():
    """A task of a source is that source's, and then padding, whichever way it is drawn."""
    lengths = {"flat": (3, 5), "steep": (6, 2)}
    for number, (name, (num_shots, num_queries)) in enumerate(lengths.items()):
        key, source = jax.random.key(3), MIXED.sources[name]
        padded, own = source.sample(key, source.data), SOURCES[name].sample(key, SOURCES[name].data)
        for batch, (x, y), size, num in ((padded[0], own[0], 6, num_shots), (padded[1], own[1], 5, num_queries)):
            np.testing.assert_array_equal(batch.weight, np.arange(size) < num)
            np.testing.assert_array_equal(batch.x[:num], x)
            np.testing.assert_allclose(batch.y[:num], y, rtol=1e-6)
        assert padded.info["source"] == number
    two = MIXED.sources["two"]
    assert [two.at(i, two.data).support.weight.tolist() for i in range(2)] == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    drawn = draw(MIXED, 200)
    expected = np.array([3, 6, 0])[drawn.info["source"]]
    num_examples = drawn.support.weight.sum(axis=1)
    assert np.all((num_examples == expected) | ((expected == 0) & np.isin(num_examples, [2, 4])))


def test_class_numbers_say_of_how_many_classes_a_task_is():
    data = np.random.default_rng(0).integers(0, 255, (8, 6, 3)).astype(np.uint8)
    few = lambda num_ways, num_shots: few_shot(data, num_ways=num_ways, num_shots=num_shots, num_queries=num_shots)
    mixed = mixture({"some": few((2, 4), 1), "five": few(5, 1)})
    tasks = draw(mixed, 20)
    is_five = tasks.info["source"] == 1
    assert np.all((tasks.support.num_ways == 5) == is_five) and {2, 3, 4} >= set(
        tasks.query.num_ways[~is_five].tolist()
    )
    assert tasks.support.x.dtype == jnp.uint8 and np.all(tasks.support.weight.sum(axis=1) == tasks.support.num_ways)
    of_one_size = mixture({"six": few(6, 1), "three": few(3, 2)})
    for source, ways in zip(of_one_size.sources.values(), (6, 3), strict=True):
        support, query, _ = source.sample(jax.random.key(0), source.data)
        assert int(support.num_ways) == int(query.num_ways) == ways and support.weight is None
    same = mixture({"a": few(5, 1), "b": few(5, 1)})
    assert type(jax.eval_shape(same.sample, jax.random.key(0), same.data).support) is tuple


def test_weights_and_ways_that_sources_have_are_kept():
    def sample(key, data):
        batch = Examples(jax.random.normal(key, (3, 1)), jnp.array([0, 1, 1]), jnp.array([1, 1, 0]), jnp.int32(4))
        return Task(batch, batch)

    x = np.ones((2, 5, 1), np.float32)
    pairs = fixed(Task((x, np.tile(np.arange(5), (2, 1))), (x, np.tile(np.arange(5), (2, 1)))))
    mixed = mixture({"some": TaskDistribution(sample), "pairs": pairs})
    some, pair = (source.sample(jax.random.key(0), source.data) for source in mixed.sources.values())
    assert some.support.weight.tolist() == [1, 1, 0, 0, 0] and int(some.query.num_ways) == 4
    assert pair.support.weight.tolist() == [1] * 5 and int(pair.query.num_ways) == 5


def test_environments_parameters_mix_too():
    goals = {
        name: TaskDistribution(lambda key, data: {"goal": data + jax.random.normal(key)}, x)
        for name, x in (("near", jnp.float32(0)), ("far", jnp.float32(100)))
    }
    assert set(np.round(draw(mixture(goals), 30)["goal"] / 100).tolist()) == {0, 1}


# Judged


META_PARAMS = LEARNER.init(jax.random.key(0)).meta_params


@pytest.fixture(scope="module")
def report(strict_shapes):
    return evaluate(jax.random.key(1), LEARNER, MIXED, META_PARAMS, num_tasks=40)


def test_each_source_is_judged_as_if_it_were_alone_and_never_padded(report):
    assert report.sources == ["flat"] * 40 + ["steep"] * 40 + ["two"] * 2
    assert report.names == [None] * 80 + ["mild", "bad"]
    for number, (name, tasks) in enumerate(SOURCES.items()):
        num_tasks = None if name == "two" else 40
        key = jax.random.fold_in(jax.random.key(1), number)
        alone = evaluate(key, LEARNER, tasks, META_PARAMS, num_tasks=num_tasks)
        np.testing.assert_allclose(report.of(name).samples["mse"], alone.samples["mse"], rtol=1e-5)
        assert report.of(name).names == alone.names


def test_what_is_reported_of_all_is_the_average_over_sources(report):
    means, variances = [], []
    for source in SOURCES:
        values = report.of(source).samples["mse"].astype(float)
        means.append(values.mean(axis=0))
        variances.append(values.var(axis=0, ddof=1) / len(values))
    found = report.metrics["mse"]
    np.testing.assert_allclose(found["mean"], np.mean(means, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["ci95"], 1.96 * np.sqrt(np.sum(variances, axis=0)) / 3, rtol=1e-12)


def test_the_table_and_the_file_have_a_row_for_each_source(report, tmp_path):
    lines = str(report).splitlines()
    assert lines[0] == "82 test tasks of 3 sources" and len(lines) == 2 + 2 + 3
    for line, whose in zip(lines[3:], ["average", *SOURCES], strict=True):
        summary = (report if whose == "average" else report.of(whose)).metrics["mse"]
        numbers = [f"{summary[statistic][-1]:.4f}" for statistic in ("mean", "ci95", "median")]
        assert line.split() == [whose, "after", "1", "step", *numbers]
        assert f"{whose} after 1 step</th><td>{numbers[0]}" in report._repr_html_()
    report.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["sources"]["two"] == {"num_tasks": 2, "metrics": report.of("two").metrics}
    assert content["tasks"][-1] == {"source": "two", "task": "bad", "mse": report.samples["mse"][-1, -1].item()}
    assert content["tasks"][41]["task"] == 1 and content["metrics"] == report.metrics
    assert str(report.rows("mse", best="lowest")).splitlines()[0].startswith("82 test tasks of 3 sources, after 1 step")


def test_reports_of_the_same_sources_are_compared_by_the_average(report):
    other = report._replace(samples={"mse": report.samples["mse"] - 1})
    assert report.ahead_of(other, "mse") == {"mean": pytest.approx(1, abs=1e-6), "ci95": pytest.approx(0, abs=1e-6)}
    for field in ("names", "sources"):
        with pytest.raises(ValueError, match=f"other must be of the same tasks, but its {field} are not"):
            report.ahead_of(other._replace(**{field: None}), "mse")
    with pytest.raises(ValueError, match="source must be .* got 'waves': they are flat, steep, two"):
        report.of("waves")


def test_sources_that_are_not_finite_share_a_program():
    before = _evaluate_tasks._cache_size()
    tasks = mixture({f"{n} shots": drawn_slopes(n, 3) for n in (2, 5, 6, 7)})
    evaluate(jax.random.key(1), LEARNER, tasks, META_PARAMS, num_tasks=5)
    assert _evaluate_tasks._cache_size() == before + 1


def test_every_source_is_looked_at_before_anything_compiles():
    x = np.ones((2, 2, 1), np.float32)
    labels = lambda *rows: fixed(Task((x, np.array(rows)), (x, np.array(rows))))
    learner = jaxmeta.protonet(lambda key: jnp.ones(1), lambda params, x: params[None] * x, num_ways=2)
    tasks = mixture({"right": labels([0, 1], [1, 0]), "from 1": labels([1, 2], [2, 1])})
    for judge in (
        lambda: evaluate(jax.random.key(0), learner, tasks, learner.init(jax.random.key(0)).meta_params),
        lambda: fit(jax.random.key(0), learner, tasks, num_outer_steps=1, num_tasks=1),
    ):
        with pytest.raises(ValueError, match="num_ways|labels"):
            judge()


def test_training_goes_over_all_sources_and_a_validation_by_their_average(num_compiled):
    tasks = mixture({name: SOURCES[name] for name in ("flat", "steep")})
    validation = Validation(tasks=tasks, metric="mse", best="lowest", every=4, num_tasks=5, seed=3)
    run = lambda: fit(
        jax.random.key(0), LEARNER, tasks, num_outer_steps=8, num_tasks=4, progress=False, validate=validation
    )
    state, history = run()
    num_compiled()
    run()
    assert num_compiled() == 0
    best = history.validation["mse"].min()
    judged = evaluate(jax.random.key(3), LEARNER, tasks, state.meta_params, num_tasks=5).metrics["mse"]["mean"][-1]
    assert math.isclose(best, judged, rel_tol=1e-6) and len(history.validation["mse"]) == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"sources": {}}, "sources must be a dictionary"),
        ({"sources": [SLOPES]}, "sources must be a dictionary"),
        ({"sources": {"a": 5}}, r"sources\['a'\] must be a jaxmeta.TaskDistribution"),
        ({"sources": {"a": MIXED}}, r"sources\['a'\] is a mixture itself: name its sources, flat, steep, two"),
        (
            {"sources": {"a": TaskDistribution(lambda key, data: constant(0).sample(jax.random.key(0), 0.0))}},
            r"sources\['a'\].sample must draw with jax.random and the key .* tasks.fixed",
        ),
        (
            {"sources": {"a": constant(0), "b": fixed([Task((X[:, 0], X), (X, X))])}},
            r"sources\['a'\] and sources\['b'\] .* x of one in the support set is float32\[1\] in .* float32\[\] in",
        ),
        (
            {"sources": {"a": constant(0), "b": TaskDistribution(lambda key, data: {"goal": jax.random.normal(key)})}},
            r"sources\['b'\] must have the shapes of the others",
        ),
        ({"weights": {"flat": 1}}, "weights must be a number for each of flat, steep, two"),
        ({"weights": [1, 1, 1]}, "weights must be a number for each of"),
        ({"weights": {"flat": 1, "steep": -1, "two": 1}}, r"weights\['steep'\] must be a finite number >= 0"),
        ({"weights": {"flat": 0, "steep": 0, "two": 0}}, "weights must not all be 0"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        mixture(**{"sources": SOURCES, **arguments})

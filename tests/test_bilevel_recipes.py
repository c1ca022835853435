"""Recipes of bilevel problems and of streams: what they are compared with is right, and they reach their figures."""

import dataclasses
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import Task, TaskDistribution, nn
from jaxmeta.__main__ import main
from jaxmeta.recipes.bilevel import BILEVEL, area_under_roc
from jaxmeta.recipes.bilevel import _logit as of_penalty
from jaxmeta.recipes.bilevel import _mislabelled as mislabelled
from jaxmeta.recipes.bilevel import _of_residual as of_residual
from jaxmeta.recipes.bilevel import _penalty as penalty_of
from jaxmeta.recipes.bilevel import _plain_loss as plain_loss
from jaxmeta.recipes.streams import STREAMS
from jaxmeta.recipes.streams import _chain as chain
from jaxmeta.recipes.streams import _counted_chain as counted_chain
from jaxmeta.recipes.streams import _drifting as drifting
from jaxmeta.recipes.streams import _kalman_filter as kalman_filter

TINY = {
    "num_outer_steps": 2,
    "num_tasks": 2,
    "num_eval_tasks": 4,
    "num_inner_steps": 2,
    "num_eval_steps": 2,
    "num_chunks": 4,
    "num_examples": 20,
    "num_queries": 10,
    "length": 4,
    "width": 4,
}


def tiny(name):
    config = (BILEVEL | STREAMS)[name].config()
    fields = {field.name for field in dataclasses.fields(config)}
    own = {"num_tasks": 1} if name == "data-cleaning" else {}
    return replace(config, **{field: value for field, value in (TINY | own).items() if field in fields})


@pytest.mark.parametrize("name", [*BILEVEL, *STREAMS])
def test_a_recipe_builds_and_its_training_tasks_fit_its_learner(name):
    """By shapes: the training below takes long to compile."""
    experiment = tiny(name).build()
    state = jax.eval_shape(experiment.learner.init, jax.random.key(0))
    sample = jax.vmap(experiment.train_tasks.sample, (0, None))
    keys = jax.random.split(jax.random.key(1), tiny(name).num_tasks)
    tasks = jax.eval_shape(sample, keys, experiment.train_tasks.data)
    after, metrics = jax.eval_shape(experiment.learner.update, jax.random.key(2), state, tasks)
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shapes(after) == shapes(state) and experiment.metric in metrics


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "data-cleaning" else pytest.mark.slow) for name in [*BILEVEL, *STREAMS]],
)
def test_a_recipe_trains_beside_what_it_is_compared_with(name, tmp_path):
    config = tiny(name)
    options = [
        word
        for field in TINY
        if hasattr(config, field)
        for word in (f"--{field.replace('_', '-')}", str(getattr(config, field)))
    ]
    assert main(["train", name, "--out", str(tmp_path / "run"), *options]) == 0
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    metric = config.build().metric
    num_steps = config.num_chunks if name in STREAMS else config.num_eval_steps + 1
    assert len(found["metrics"][metric]["mean"]) == num_steps and len(found["references"]) >= 2
    for reference in found["references"].values():
        assert len(reference[metric]["mean"]) == num_steps and np.all(np.isfinite(reference[metric]["mean"]))
    assert (tmp_path / "run" / "adaptation_curve.png").exists()


def test_the_area_under_the_roc_is_that_of_all_pairs():
    scores = jnp.array([0.3, 0.1, 0.3, 0.9, 0.5, 0.1, 0.7])
    is_positive = jnp.array([True, False, False, True, True, True, False])
    positive, negative = np.asarray(scores)[is_positive], np.asarray(scores)[~is_positive]
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    np.testing.assert_allclose(area_under_roc(scores, is_positive), np.mean(pairs), rtol=1e-6)


def test_as_many_labels_are_wrong_as_is_said_and_each_of_them_is():
    """Classes that are far apart are told by the nearest mean."""
    config = replace(tiny("data-cleaning"), num_examples=400, separation=100.0, fraction_wrong=0.25)
    data = mislabelled(jax.random.key(0), config)
    x, y = data.task.support
    nearest = jnp.argmin(jnp.linalg.norm(x[:, None] - data.means[None], axis=-1), axis=1)
    np.testing.assert_array_equal(nearest == y, data.is_right)
    assert int(jnp.sum(~data.is_right)) == 100
    x, y, _ = data.task.query
    np.testing.assert_array_equal(jnp.argmin(jnp.linalg.norm(x[:, None] - data.means[None], axis=-1), axis=1), y)


def test_a_loss_that_has_not_learned_is_that_of_squares_and_penalties_come_back():
    network, residual = nn.MLP((4,)), jnp.linspace(-3, 3, 7)
    meta_params = plain_loss(network, jax.random.key(0))
    np.testing.assert_allclose(of_residual(network, meta_params, residual), residual**2 / 2, rtol=1e-6)
    np.testing.assert_allclose(penalty_of(jnp.array([of_penalty(p) for p in (0.01, 1.0)])), [0.01, 1.0], rtol=1e-5)


def test_the_kalman_filter_is_the_conditional_mean():
    """By conditioning the joint Gaussian of all that was seen, of one stream, in float64."""
    config = replace(tiny("stream"), num_features=2, num_examples=2, memory=0.8, noise=0.4)
    mean = jnp.array([1.0, -2.0])
    task = drifting(jax.random.key(3), mean, config=config)
    x, y = (np.asarray(part, float) for part in task.support)
    age = np.repeat(np.arange(config.num_chunks), config.num_examples)
    rows, seen = x.reshape(-1, 2), y.ravel() - x.reshape(-1, 2) @ np.asarray(mean, float)
    cov = config.memory ** np.abs(age[:, None] - age) * (rows @ rows.T)
    expected = []
    for chunk in range(config.num_chunks):
        now, past = age == chunk, age < chunk
        known = cov[np.ix_(past, past)] + config.noise**2 * np.eye(past.sum())
        predicted = cov[np.ix_(now, past)] @ np.linalg.solve(known, seen[past])
        expected.append(np.mean((seen[now] - predicted) ** 2))
    found = kalman_filter(task, config=config, mean=mean)["mse"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_chain_goes_on_from_chunk_to_chunk_and_bayes_rule_counts_it():
    config = replace(tiny("stream-transformer"), num_tokens=3, concentration=0.5)
    task = chain(jax.random.key(0), (), config=config)
    tokens, following = (np.asarray(part).ravel() for part in task.support)
    np.testing.assert_array_equal(following[:-1], tokens[1:])
    counts, losses = np.full((3, 3), 0.5), []
    for token, after in zip(tokens, following, strict=True):
        losses.append(-np.log(counts[token, after] / counts[token].sum()))
        counts[token, after] += 1
    expected = np.mean(np.reshape(losses, (config.num_chunks, -1)), axis=1)
    np.testing.assert_allclose(counted_chain(task, concentration=0.5, num_tokens=3)["loss"], expected, rtol=1e-5)


def test_the_best_rate_is_that_of_eight_by_the_last_chunk():
    """θ ← θ − r 2 (θ − c): 1/2 is there after a step, and 1 goes to and fro."""
    config = replace(tiny("stream"), inner_learning_rate=1.0)
    learner = config.learner(lambda key: jnp.zeros(()), lambda w, meta_params, c: (jnp.sum((w - c) ** 2), {}))
    tasks = TaskDistribution(lambda key, data: Task(jnp.full((4, 1), jax.random.normal(key)), ()))
    found = config.at_the_best_rate(jax.random.key(0), learner, tasks, "loss", jnp.zeros(()))
    np.testing.assert_allclose(jnp.exp(found.meta_params.hyper), 0.5, rtol=1e-6)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="fraction_wrong must be between 0 and 1, got 0"):
        replace(tiny("data-cleaning"), fraction_wrong=0.0)
    with pytest.raises(ValueError, match="num_informative must be from 1 to num_features=50, got 51"):
        replace(tiny("hyperparameters"), num_informative=51)
    with pytest.raises(ValueError, match="num_chunks must be a multiple of num_inner_steps=3, got 4"):
        replace(tiny("stream"), num_inner_steps=3)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(name, seed) -> result.json of a whole run of a recipe."""

    def run(name, seed, *options):
        directory = tmp_path_factory.mktemp("runs") / name
        assert main(["train", name, "--seed", str(seed), "--out", str(directory), *options]) == 0
        return json.loads((directory / "result.json").read_text())

    return run


def is_below(result, reference):
    """By more than the interval of the differences."""
    ahead = result["references"][reference]["ahead"]
    return ahead["mean"] < -ahead["ci95"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_data_are_cleaned(seed, found):
    result = found("data-cleaning", seed, "--data-seed", str(seed))
    assert result["metrics"]["roc"]["mean"][-1] >= 0.95
    assert result["references"]["the right half alone"]["ahead"]["mean"] >= -0.01
    assert result["references"]["all alike"]["ahead"]["mean"] > 0.05


@pytest.mark.slow
def test_penalties_are_better_than_the_best_single_one(found):
    assert is_below(found("hyperparameters", 0), "one penalty, the best at test")


@pytest.mark.slow
def test_a_learned_loss_is_better_than_no_auxiliary_and_than_weights_of_1(found):
    result = found("learned-loss", 0)
    assert is_below(result, "no auxiliary") and is_below(result, "weights of 1")


@pytest.mark.slow
def test_a_drifting_line_is_followed(found):
    result = found("stream", 0)
    assert is_below(result, "frozen at the mean") and not is_below(result, "Kalman filter")
    ahead = result["references"]["adapted at its best rate"]["ahead"]  # from the mean, in hindsight: not better
    assert ahead["mean"] < ahead["ci95"]


@pytest.mark.slow
def test_a_transformer_that_adapts_reads_better_than_a_frozen_one_and_meta_training_is_why(found):
    result = found("stream-transformer", 0)
    assert is_below(result, "frozen") and not is_below(result, "Bayes-optimal")
    assert is_below(result, "adapted at its best rate")

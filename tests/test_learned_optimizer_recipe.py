"""The recipe of a learned optimizer: its digits, what it is compared with, and, slow, that it ends below Adam."""

import json
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxmeta.__main__ import main
from jaxmeta.recipes import RECIPES, learned_optimizer
from jaxmeta.recipes.learned_optimizer import TESTED_ON, TRAINED_ON, digits

SMALL = {
    "num_outer_steps": 2,
    "num_tasks": 2,
    "num_eval_tasks": 2,
    "num_units": 4,
    "num_other_units": 5,
    "num_inner_steps": 2,
    "num_eval_steps": 4,
    "num_pairs": 1,
}


def result(directory, **options):
    arguments = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", "learned-optimizer", "--out", str(directory), *arguments]) == 0
    return json.loads((directory / "result.json").read_text())


def test_a_task_is_of_its_digits_each_image_once_and_one_label_for_each_digit():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    digit_of = {image.tobytes(): label for image, label in zip((x / 16).astype(np.float32), y, strict=True)}
    assert not set(TRAINED_ON) & set(TESTED_ON)
    tasks = digits(TESTED_ON)
    for seed in range(2):
        task = jax.tree.map(np.asarray, tasks.sample(jax.random.key(seed), tasks.data))
        images = np.concatenate([task.support[0], task.query[0]])
        labels = np.concatenate([task.support[1], task.query[1]])
        assert len({image.tobytes() for image in images}) == len(images) == 5 * (120 + 20)
        assert len(task.support[1]) == 5 * 120 and {*np.unique(task.query[1])} == {*np.unique(task.support[1])}
        pairs = {(digit_of[image.tobytes()], label) for image, label in zip(images, labels, strict=True)}
        assert {digit for digit, _ in pairs} == set(TESTED_ON) and len(pairs) == len({label for _, label in pairs}) == 5


def test_each_task_that_is_trained_on_has_noise_of_its_own_deviation():
    clean, noisy = digits(TRAINED_ON), digits(TRAINED_ON, 0.3)
    stds = []
    for seed in range(20):
        key = jax.random.key(seed)
        differences = jax.tree.map(np.subtract, noisy.sample(key, noisy.data), clean.sample(key, clean.data))
        (support, labels), (query, query_labels) = differences.support, differences.query
        assert not labels.any() and not query_labels.any()
        assert np.std(query) == pytest.approx(np.std(support), rel=0.05)
        stds.append(np.std(support))
    assert max(stds) < 0.305 and 0.1 < np.mean(stds) < 0.2 and np.std(stds) > 0.04  # uniform from 0 to .3


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmeta\[digits\]'"):
        digits(TRAINED_ON)


@pytest.mark.parametrize("meta_gradient", ["persistent_evolution_strategy", "truncated", "exact"])
def test_every_meta_gradient_builds_and_its_update_keeps_its_types(meta_gradient):
    experiment = replace(RECIPES["learned-optimizer"].config(), meta_gradient=meta_gradient, **SMALL).build()
    state = jax.eval_shape(experiment.learner.init, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), SMALL["num_tasks"])
    tasks = jax.eval_shape(jax.vmap(experiment.train_tasks.sample, (0, None)), keys, experiment.train_tasks.data)
    after, _ = jax.eval_shape(experiment.learner.update, jax.random.key(2), state, tasks)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


@pytest.mark.slow
def test_it_trains_and_is_judged_beside_adam_on_two_networks(tmp_path, monkeypatch):
    rates = (1e-6, 0.1, 1e-5)
    monkeypatch.setattr(learned_optimizer, "RATES", rates)
    found = result(tmp_path / "run", **SMALL)
    wide = found["other_tests"]["a network of 5 hidden units"]
    for test in (found, wide):
        adam = test["references"]["Adam at its best rate"]["loss"]["mean"]
        assert len(test["metrics"]["loss"]["mean"]) == len(adam) == SMALL["num_eval_steps"] + 1
        assert test["metrics"]["loss"]["mean"][0] == pytest.approx(adam[0], rel=1e-5)  # the same starts
        assert adam[-1] < adam[0] - 0.01  # that of the rate which moves at all
        assert set(test["references"]) == {"Adam at its best rate", "Adam along a cosine"}
    assert wide["metrics"] != found["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_it_ends_below_adam_at_its_best_rate_on_held_out_digits_and_on_a_wider_network(seed, tmp_path):
    found = result(tmp_path / "run", seed=seed)
    assert found["seconds"] < 15 * 60
    for test in (found, *found["other_tests"].values()):
        ahead = test["references"]["Adam at its best rate"]["ahead"]
        assert ahead["mean"] + ahead["ci95"] < 0

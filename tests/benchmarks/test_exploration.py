"""The benchmark of E-MAML's term: its sums against loops over every sequence of pulls in NumPy, and what it left."""

import itertools
import json

import jax
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.exploration import CASES, ESTIMATORS, Case, adapted_return, meta_gradient, problem_of
from benchmarks.tables import RESULTS

SMALL = Case(num_episodes=2, num_hidden=2, rate=10.0)
LOGITS = np.array([0.3, -0.4, 0.2])


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def by_loops(logits, played_by, case=SMALL, has_ratios=False):
    """The mean return after a step on each sequence of pulls, of arms of which the last one is sure.

    With `has_ratios` a pull counts as often as `logits` make it likelier, which is what DiCE differentiates.
    """
    total = 0.0
    for paying in range(case.num_hidden):
        pays = np.append(np.eye(case.num_hidden)[paying], case.sure)
        for pulls in itertools.product(range(len(pays)), repeat=case.num_episodes):
            ratio = softmax(logits) / softmax(played_by) if has_ratios else np.ones(len(pays))
            step = sum(ratio[arm] * pays[arm] * (np.eye(len(pays))[arm] - softmax(logits)) for arm in pulls) / len(
                pulls
            )
            after = softmax(logits + case.rate * step) @ pays
            total += np.prod(softmax(played_by)[list(pulls)]) * after / case.num_hidden
    return total


def differences(fn, step=1e-6):
    return np.array([(fn(LOGITS + step * e) - fn(LOGITS - step * e)) / (2 * step) for e in np.eye(3)])


def test_with_the_term_it_is_the_gradient_of_the_return_and_without_it_that_of_pulls_that_stay(x64):
    problem, terms, at = problem_of(SMALL), ESTIMATORS["E-MAML"].terms, LOGITS[None]
    value = jax.jit(lambda params: adapted_return(problem, terms, params, params))(at)
    np.testing.assert_allclose(value, by_loops(LOGITS, LOGITS), rtol=1e-12)
    of = lambda name: jax.jit(lambda params: meta_gradient(problem, ESTIMATORS[name], params))(at)[0]
    with_term, without = differences(lambda x: by_loops(x, x)), differences(lambda x: by_loops(x, LOGITS))
    np.testing.assert_allclose(of("E-MAML"), with_term, atol=1e-9)
    np.testing.assert_allclose(of("log π · G"), without, atol=1e-9)
    np.testing.assert_allclose(of("DiCE"), differences(lambda x: by_loops(x, LOGITS, has_ratios=True)), atol=1e-9)
    assert with_term[2] < 0 < without[2]  # away from the sure arm, and towards it


def test_what_was_measured_is_that_the_term_makes_the_difference():
    rows = json.loads((RESULTS / "cpu" / "exploration.json").read_text())["rows"]
    for case in CASES:
        of = {row["estimator"]: row for row in rows if row["case"] == case}
        ours, without = of["E-MAML"], of["log π · G"]
        assert ours["return"][-1] > max(row["return"][-1] for row in of.values() if row is not ours)
        assert ours["return"][-1] > ours["most"] - 1e-3 and all(row["most"] < ours["most"] for row in (without,))
        assert ours["explored"][-1] > 0.99 and without["explored"][-1] < 0.5
        assert min(ours["slope"]) > 0 and without["slope"][len(without["slope"]) // 2] < 0
        assert min(ours["learners"]) > max(without["learners"]) and len(ours["learners"]) >= 3
        for row in (ours, without):
            assert abs(row["mean"] - row["return"][-1]) < 0.03


@pytest.mark.slow
def test_exploration(tmp_path):
    path = tmp_path / "exploration.json"
    assert main(["exploration", "--quick", "--json", str(path)]) == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    of = {row["estimator"]: row for row in json.loads(path.read_text())["rows"]}
    assert set(ESTIMATORS) < set(of) and len(of["E-MAML"]["learners"]) == 2
    assert of["E-MAML"]["mean"] > of["from scratch, rate x10"]["return"][0] > of["log π · G"]["mean"]

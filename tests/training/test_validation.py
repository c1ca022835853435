"""Validation: the best state is the best of those that there were, found again one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from jaxmeta import adapt, evaluate, fit
from jaxmeta.training import Validation
from jaxmeta.training.fit import _run_chunk

pytestmark = pytest.mark.usefixtures("strict_shapes")

TASKS = jaxmeta.tasks.linear(num_shots=3, num_queries=3)
LEARNER = jaxmeta.maml(
    lambda key: jax.random.normal(key, (2,)),
    jaxmeta.nn.mean_squared_error(lambda theta, x: theta[0] * x + theta[1]),
    inner_optimizer=adapt.sgd(0.1),
    optimizer=optax.sgd(2.0),  # restless: the last state is not the best
)
KEY = jax.random.key(0)
ASKED = {"tasks": TASKS, "metric": "mse", "best": "lowest", "every": 7, "num_tasks": 20, "seed": 3}


def run(num_steps, learner=LEARNER, **arguments):
    return fit(KEY, learner, TASKS, num_outer_steps=num_steps, num_tasks=2, chunk_size=10, progress=False, **arguments)


def judged(state):
    report = evaluate(jax.random.key(3), LEARNER, TASKS, state.meta_params, num_tasks=20)
    return float(np.mean(np.float64(report.samples["mse"][:, -1])))


@pytest.fixture(scope="module")
def by_hand(strict_shapes):
    """{step: (state, its error)}, each trained from the start."""
    states = {step: run(step)[0] for step in (7, 14, 21, 28, 35, 40)}
    return {step: (state, judged(state)) for step, state in states.items()}


def test_the_best_state_is_returned_and_the_curve_of_all(by_hand):
    state, history = run(40, validate=Validation(**ASKED))
    errors = {step: error for step, (_, error) in by_hand.items()}
    best = min(errors, key=errors.get)
    assert best != 40 and len(set(errors.values())) == 6
    assert history.validation["step"].tolist() == list(by_hand)
    np.testing.assert_allclose(history.validation["mse"], list(errors.values()), rtol=1e-6)
    assert int(state.step) == best
    jax.tree.map(np.testing.assert_array_equal, state, by_hand[best][0])
    assert history["loss"].shape == (40,)
    np.testing.assert_array_equal(history["loss"], run(40)[1]["loss"])
    assert "; 6 validations)" in repr(history)


def test_the_highest_is_the_other_end(by_hand):
    state, _ = run(40, validate=Validation(**{**ASKED, "best": "highest"}))
    assert int(state.step) == max(by_hand, key=lambda step: by_hand[step][1])


def test_patience_ends_the_run(by_hand):
    """After the first validation that has one before it that was better."""
    steps = list(by_hand)
    worse = next(i for i in range(1, 6) if by_hand[steps[i]][1] >= min(by_hand[step][1] for step in steps[:i]))
    state, history = run(40, validate=Validation(**ASKED, patience=1))
    assert history["loss"].shape == (steps[worse],)
    assert int(state.step) == min(steps[:worse], key=lambda step: by_hand[step][1])


def test_callbacks_see_what_was_found_and_a_run_that_they_end_is_validated(by_hand):
    seen = []

    def callback(state, metrics):
        seen.append((int(state.step), metrics.get("validation/mse")))
        return int(state.step) == 17

    state, history = run(17, validate=Validation(**ASKED), callbacks=[callback])
    assert [step for step, _ in seen] == [7, 14, 17] and all(value is not None for _, value in seen)

    state, history = run(40, validate=Validation(**{**ASKED, "every": 30}), callbacks=[lambda *args: True])
    assert history["loss"].shape == (10,) and history.validation["step"].tolist() == [10] and int(state.step) == 10


def test_validating_compiles_no_other_loop(by_hand):
    programs = _run_chunk._cache_size()
    run(40, validate=Validation(**ASKED))
    assert _run_chunk._cache_size() == programs


def test_no_validation_is_finite():
    def evaluate_to_nan(key, meta_params, task):
        return {"mse": jnp.full(2, jnp.nan)}

    with pytest.warns(UserWarning, match="no validation had a finite mse"):
        state, history = run(10, LEARNER._replace(evaluate=evaluate_to_nan), validate=Validation(**ASKED))
    assert int(state.step) == 10 and np.all(np.isnan(history.validation["mse"]))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"tasks": None}, "tasks must be a jaxmeta.TaskDistribution"),
        ({"metric": 3}, "metric must be the name"),
        ({"best": "max"}, "best must be one of highest, lowest, got 'max'"),
        ({"every": 0}, "every must be an integer >= 1"),
        ({"patience": 0}, "patience must be an integer >= 1"),
        ({"num_tasks": 1}, "num_tasks must be an integer >= 2"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**40}, r"seed must be below 2\*\*32"),  # it would be seed 0
    ],
)
def test_what_is_asked_for_wrongly_is_named(wrong, match):
    with pytest.raises(ValueError, match=match):
        Validation(**{**ASKED, **wrong})


def test_what_does_not_fit_the_run_is_named_before_anything_compiles(num_compiled):
    with pytest.raises(ValueError, match="validate.metric must be one of mse, .*got 'accuracy'"):
        run(10, validate=Validation(**{**ASKED, "metric": "accuracy"}))
    with pytest.raises(ValueError, match="validate must be a jaxmeta.training.Validation"):
        run(10, validate=TASKS)
    assert num_compiled() == 0
    with pytest.raises(ValueError, match="validate judges one run, but key holds 3 seeds"):
        fit(jax.random.split(KEY, 3), LEARNER, TASKS, num_outer_steps=1, num_tasks=2, validate=Validation(**ASKED))

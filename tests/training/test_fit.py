"""The outer loop: independent of chunks, pauses and other seeds; what it compiles; what it does with NaN."""

import re
import sys
import time
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tqdm import tqdm

import jaxmeta
from jaxmeta import TaskDistribution, adapt, fit
from jaxmeta.training import History
from jaxmeta.training.fit import _run_chunk

pytestmark = pytest.mark.usefixtures("strict_shapes")

CHUNK = 237
TASKS = jaxmeta.tasks.linear(num_shots=3, num_queries=3)
LOSS_FN = jaxmeta.nn.mean_squared_error(lambda theta, x: theta[0] * x + theta[1])
LEARNER = jaxmeta.meta_sgd(
    lambda key: jax.random.normal(key, (2,)),
    LOSS_FN,
    learning_rate=0.1,
    optimizer=optax.adam(1e-3),
)
ARGUMENTS = {"num_tasks": 2, "progress": False}


def run(key, num_steps, chunk_size=CHUNK, tasks=TASKS, learner=LEARNER, **arguments):
    return fit(key, learner, tasks, num_outer_steps=num_steps, chunk_size=chunk_size, **ARGUMENTS, **arguments)


def assert_same_bits(actual, expected):
    chex.assert_trees_all_equal_structs(actual, expected)
    chex.assert_trees_all_equal_dtypes(actual, expected)
    chex.assert_trees_all_equal(actual, expected)


@pytest.fixture(scope="module")
def key(strict_shapes):
    return jax.random.key(0)


@pytest.fixture(scope="module")
def whole(key):
    return run(key, 1000)


def test_a_run_in_chunks_of_500_and_of_237_is_bit_identical(key, whole):
    assert_same_bits(run(key, 1000, chunk_size=500), whole)


def test_a_run_learns_and_reports_every_step(whole):
    state, history = whole
    assert int(state.step) == 1000 and int(state.num_skipped) == 0
    assert {name: values.shape for name, values in history.items()} == dict.fromkeys(
        ["mse", "loss", "grad_norm", "is_finite"], (1000,)
    )
    assert np.all(history["is_finite"]) and np.all(np.isfinite(history["loss"]))
    early, late = history["loss"][:300], history["loss"][-300:]
    error = np.sqrt(early.var(ddof=1) / 300 + late.var(ddof=1) / 300)
    assert early.mean() - late.mean() > 4 * error


def test_every_step_has_its_own_tasks(key):
    """Parameters that never change, so that equal losses would be of equal tasks."""
    still = jaxmeta.maml(lambda key: jnp.ones(2), LOSS_FN, optimizer=optax.set_to_zero())
    assert len(np.unique(run(key, 500, learner=still)[1]["loss"])) > 495


def test_a_run_that_was_stopped_and_saved_goes_on_bit_identically(key, whole):
    state, first = run(key, 400)
    saved = jax.tree.map(np.array, state)
    state, second = run(key, 1000, state=saved)
    assert_same_bits(state, whole[0])
    assert_same_bits(History({name: np.concatenate([first[name], second[name]]) for name in first}), whole[1])


def test_a_finished_run_says_that_it_has_nothing_to_do(key, whole):
    with pytest.warns(UserWarning, match="nothing to do: the step of state is 1000 already") as warned:
        state, history = run(key, 1000, state=whole[0])
    assert [warning.filename for warning in warned] == [__file__]
    assert_same_bits(state, whole[0])
    assert history == {} and repr(history) == "History(0 outer steps)"


@pytest.mark.parametrize("metrics", [{}, {"loss": jnp.ones(2)}, jnp.ones(())], ids=str)
def test_what_is_no_scalar_is_refused(key, metrics):
    learner = LEARNER._replace(update=lambda key, state, tasks: (state, metrics))
    with pytest.raises(ValueError, match="learner.update must report a dict of scalars"):
        run(key, 5, learner=learner)


def test_fewer_steps_than_the_state_has_taken_are_refused(key, whole):
    with pytest.raises(ValueError, match="at least the step of state, 1000, got 100: .*num_outer_steps=1100"):
        run(key, 100, state=whole[0])


def test_a_callback_that_returns_true_ends_the_run(key, whole):
    """All callbacks of the chunk are called, and what is returned is what there is."""
    seen = []
    stops = lambda state, metrics: bool(state.step >= 400)
    state, history = run(key, 1000, callbacks=[stops, lambda state, metrics: seen.append(int(state.step))])
    assert int(state.step) == 474 and seen == [237, 474]
    assert_same_bits(history, jax.tree.map(lambda values: values[:474], whole[1]))


def test_a_callback_returns_nothing_or_a_truth(key):
    with pytest.raises(ValueError, match="callbacks must return None, or true where the run is to end, got 0.5"):
        run(key, 5, callbacks=[lambda state, metrics: 0.5])
    with pytest.raises(ValueError, match=r"callbacks must be a function of \(state, metrics\), got one of \(state\)"):
        run(key, 5, callbacks=[lambda state: None])


def test_a_saved_state_goes_on(key, whole, tmp_path):
    state, _ = run(key, 400)
    jaxmeta.training.save_state(tmp_path, 400, state)
    restored = jaxmeta.training.restore_state(tmp_path, jax.eval_shape(LEARNER.init, key))
    assert_same_bits(run(key, 1000, state=restored)[0], whole[0])


def test_a_history_shows_itself_in_a_line_and_in_a_notebook_as_a_table(whole):
    _, history = whole
    late = history["loss"][-100:].mean()
    assert re.search(rf"^History\(1,000 outer steps; .*loss {late:.4g}.* over the last 100\)$", repr(history))
    assert f"<th>loss</th><td>{late:.4g}</td>" in history._repr_html_()
    seeds = History({"loss": np.ones((3, 20)), "is_finite": np.array([[False] * 19 + [True]] * 3)})
    assert repr(seeds) == "History(20 outer steps of 3 seeds, 57 skipped; loss 1 over the last 2)"
    nothing = History({"loss": np.full(20, np.nan), "is_finite": np.zeros(20, bool)})
    assert repr(nothing) == "History(20 outer steps, 20 skipped; loss nan over the last 2)"


def test_the_callers_state_survives(key, whole):
    state = LEARNER.init(jax.random.key(5))
    before = jax.tree.map(np.array, state)
    run(key, 10, state=state)
    assert_same_bits(state, before)


def test_seeds_at_once_are_the_separate_runs(key):
    """Vectorised programs round differently: float32's 1e-7, over 50 small steps."""
    keys = jax.random.split(key, 3)
    state, history = run(keys, 50)
    assert history["loss"].shape == (3, 50) and state.step.tolist() == [50] * 3
    for i in range(3):
        separate = run(keys[i], 50)
        of_seed = jax.tree.map(lambda leaf, i=i: leaf[i], (state, history))
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-6), of_seed, separate)
    assert not np.allclose(history["loss"][0], history["loss"][1])


def test_the_second_call_and_the_shorter_last_chunk_compile_nothing(key, whole, num_compiled):
    programs = _run_chunk._cache_size()
    num_compiled()
    run(key, 1000)
    run(jax.random.key(1), CHUNK + 5)
    assert num_compiled() == 0 and _run_chunk._cache_size() == programs
    run(key, 7, chunk_size=7)  # the control: another chunk size is another program
    assert num_compiled() > 0 and _run_chunk._cache_size() == programs + 1


def test_the_second_call_traces_the_update_no_more(key):
    """The first does once, for the shapes of its metrics and for the loop; looking at tasks and labels needs none."""
    chex.clear_trace_counter()
    learner = LEARNER._replace(update=chex.assert_max_traces(lambda *args: LEARNER.update(*args), 1))
    run(key, 5, learner=learner)
    run(key, 9, learner=learner)


def test_the_second_call_with_seeds_compiles_nothing(key, num_compiled):
    keys = jax.random.split(key, 3)
    run(keys, 20)
    num_compiled()
    run(keys, 20)
    assert num_compiled() == 0


def test_a_chunk_stays_on_the_device_and_donates_its_state(key):
    state = jax.jit(LEARNER.init)(key)
    arguments = {"learner": LEARNER, "sample": TASKS.sample, "num_tasks": 2, "chunk_size": CHUNK}
    lowered = _run_chunk.lower(key, state, (), jnp.int32(5), **arguments)
    text = lowered.compile().as_text()
    assert not any(word in text for word in ("callback", "infeed", "outfeed", "send(", "recv("))
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert lowered.compile().memory_analysis().alias_size_in_bytes >= state_bytes
    length = jnp.int32(5)
    with jax.transfer_guard("disallow"):
        after, _ = _run_chunk(key, state, (), length, **arguments)
    assert int(after.step) == 5 and state.step.is_deleted()


def test_callbacks_see_every_chunk(key, whole):
    seen = []
    callback = lambda state, metrics: seen.append((int(state.step), metrics["loss"]))
    run(key, 500, callbacks=[callback])
    assert [step for step, _ in seen] == [237, 474, 500]
    assert_same_bits(np.concatenate([losses for _, losses in seen]), whole[1]["loss"][:500])


def test_the_progress_bar_shows_the_steps_and_a_metric(key, capsys):
    fit(key, LEARNER, TASKS, num_outer_steps=10, chunk_size=CHUNK, num_tasks=2)
    shown = capsys.readouterr().err
    assert "10/10" in shown and "mse=" in shown


def test_the_bars_time_does_not_count_compiling(key, monkeypatch):
    """Tracing sleeps; ten steps that do nothing take milliseconds."""
    bars = []

    class Bar(tqdm):
        def close(self):
            if not bars:
                bars.append(self.format_dict["elapsed"])
            super().close()

    def update(key, state, tasks):
        time.sleep(0.3)
        return state._replace(step=state.step + 1), {"loss": jnp.zeros(())}

    monkeypatch.setattr(sys.modules["jaxmeta.training.fit"], "tqdm", Bar)
    fit(key, LEARNER._replace(update=update), TASKS, num_outer_steps=10, chunk_size=10, num_tasks=2)
    assert bars[0] < 0.3


def with_nan(probability):
    def sample(key, data):
        nan_key, task_key = jax.random.split(key)
        task = TASKS.sample(task_key, data)
        bad = jax.random.bernoulli(nan_key, probability)
        return task._replace(query=jax.tree.map(lambda leaf: jnp.where(bad, jnp.nan, leaf), task.query))

    return TaskDistribution(sample)


def test_steps_that_are_not_finite_are_skipped_counted_and_warned_of(key):
    with pytest.warns(UserWarning, match="not finite are skipped, see state.num_skipped") as warned:
        state, history = run(key, 40, chunk_size=40, tasks=with_nan(0.2))
    assert [warning.filename for warning in warned] == [__file__]
    skipped = ~history["is_finite"]
    assert 0 < skipped.sum() == int(state.num_skipped) < 40 and int(state.step) == 40
    np.testing.assert_array_equal(np.isnan(history["loss"]), skipped)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.meta_params))


def test_a_run_of_which_no_step_is_finite_stops(key):
    with pytest.raises(FloatingPointError, match=r"no outer step after step 0 was finite.*Lower"):
        run(key, 40, chunk_size=20, tasks=with_nan(1.0))
    with pytest.warns(UserWarning), pytest.raises(FloatingPointError, match="after step 0 was finite, 10 in a row"):
        run(key, 40, chunk_size=9, tasks=with_nan(1.0))  # no chunk was long enough to be judged
    with pytest.warns(UserWarning, match="num_skipped"):  # too short to call it diverged
        state, _ = run(key, 9, chunk_size=9, tasks=with_nan(1.0))
    assert int(state.num_skipped) == 9


def test_a_diverging_inner_loop_is_said(key):
    learner = jaxmeta.maml(
        lambda key: jnp.ones(2),
        LOSS_FN,
        inner_optimizer=adapt.sgd(1e20),
        num_inner_steps=5,
    )
    with pytest.raises(FloatingPointError, match="inner"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        run(key, 20, learner=learner)

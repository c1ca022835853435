"""Checkpoints: a run goes on bit by bit, whatever moment it was killed at; nothing that is damaged is ever read."""

import resource
import shutil
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kills import Copies

import jaxmeta
from jaxmeta import fit
from jaxmeta.training import Checkpointer, JsonLines, Validation, restore_state, save_state, stored
from jaxmeta.training.files import locked
from jaxmeta.training.stored import Store, steps_in

pytestmark = pytest.mark.usefixtures("strict_shapes")

TASKS = jaxmeta.tasks.linear(num_shots=3, num_queries=3)
LEARNER = jaxmeta.meta_sgd(
    lambda key: jax.random.normal(key, (2,)),
    jaxmeta.nn.mean_squared_error(lambda theta, x: theta[0] * x + theta[1]),
    learning_rate=0.1,
    optimizer=optax.adam(1e-3),
)
KEY = jax.random.key(0)
VALIDATION = Validation(tasks=TASKS, metric="mse", best="highest", every=4, num_tasks=10)


def run(num_steps=20, key=KEY, num_tasks=2, **arguments):
    return fit(
        key, LEARNER, TASKS, num_outer_steps=num_steps, num_tasks=num_tasks, chunk_size=2, progress=False, **arguments
    )


def every(directory, steps=2):
    return Checkpointer(directory, every_steps=steps)


def assert_same_bits(actual, expected):
    chex.assert_trees_all_equal_structs(actual, expected)
    chex.assert_trees_all_equal_dtypes(actual, expected)
    chex.assert_trees_all_equal(actual, expected)


class Killed(BaseException):
    pass


def dies_at(step):
    def callback(state, metrics):
        if np.max(state.step) == step:
            raise Killed

    return callback


@pytest.fixture(scope="module")
def whole(strict_shapes):
    return run()


@pytest.fixture(scope="module")
def written(strict_shapes, tmp_path_factory):
    """A directory with checkpoints of steps 8, 10 and 12, not to be changed."""
    directory = tmp_path_factory.mktemp("written") / "run"
    run(12, checkpointer=every(directory))
    return directory


@pytest.fixture
def directory(written, tmp_path):
    """A copy, to do with as one likes."""
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("killed_at", [2, 14])
def test_a_killed_run_goes_on_bit_by_bit_by_the_same_call(killed_at, whole, tmp_path):
    with pytest.raises(Killed):
        run(checkpointer=every(tmp_path, 4), callbacks=[dies_at(killed_at)])
    saved = 4 * ((killed_at - 1) // 4)
    assert steps_in(tmp_path) == list(range(4, saved + 1, 4))
    state, history = run(checkpointer=every(tmp_path, 4))
    assert_same_bits(state, whole[0])
    assert_same_bits(dict(history), {name: values[saved:] for name, values in whole[1].items()})
    assert_same_bits(restore_state(tmp_path, jax.eval_shape(LEARNER.init, KEY)), whole[0])
    with warnings.catch_warnings():  # what is finished is found
        warnings.simplefilter("error")
        assert_same_bits(run(checkpointer=every(tmp_path))[0], whole[0])


def test_validation_goes_on_too(tmp_path):
    """The best state, the curve and the patience: all are as in one go, where the best came before the kill."""
    expected = run(24, validate=VALIDATION)
    assert int(expected[0].step) < 22
    with pytest.raises(Killed):
        run(24, validate=VALIDATION, checkpointer=every(tmp_path), callbacks=[dies_at(22)])
    state, history = run(24, validate=VALIDATION, checkpointer=every(tmp_path))
    assert_same_bits(state, expected[0])
    assert_same_bits(history.validation, expected[1].validation)


def test_seeds_go_on_too(tmp_path):
    keys = jax.random.split(KEY, 3)
    expected = run(8, key=keys)
    with pytest.raises(Killed):
        run(8, key=keys, checkpointer=every(tmp_path), callbacks=[dies_at(6)])
    assert_same_bits(run(8, key=keys, checkpointer=every(tmp_path))[0], expected[0])


def test_a_given_state_is_where_a_run_begins_and_a_checkpoint_where_it_goes_on(whole, tmp_path):
    state, _ = run(10)
    assert_same_bits(run(checkpointer=every(tmp_path), state=state)[0], whole[0])
    assert_same_bits(run(checkpointer=every(tmp_path), state=LEARNER.init(KEY))[0], whole[0])


def test_the_latest_are_kept_and_a_clock_says_when(tmp_path):
    run(12, checkpointer=Checkpointer(tmp_path / "all", every_seconds=0, max_to_keep=2))
    assert steps_in(tmp_path / "all") == [10, 12]
    run(12, checkpointer=Checkpointer(tmp_path / "end", every_seconds=1000))
    assert steps_in(tmp_path / "end") == [12]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"key": jax.random.key(1)}, "another key"),
        ({"num_tasks": 3}, "num_tasks 2 in place of 3"),
        ({"validate": VALIDATION}, "validate.metric None in place of mse"),
        ({"num_steps": 8}, "num_outer_steps must be at least the step of state, 12, got 8"),
    ],
)
def test_checkpoints_of_another_run_are_refused(arguments, says, written):
    with pytest.raises(ValueError, match=says):
        run(checkpointer=Checkpointer(written), **arguments)


def test_what_save_state_wrote_is_no_run(tmp_path):
    save_state(tmp_path, 3, LEARNER.init(KEY))
    with pytest.raises(ValueError, match=r"holds a state that save_state wrote: .*fit\(state=...\)"):
        run(checkpointer=Checkpointer(tmp_path))


def test_checkpoints_of_another_learner_are_refused(written):
    other = jax.eval_shape(LEARNER.init, KEY)._replace(opt_state=(), num_skipped=np.zeros((3,), np.int32))
    with pytest.raises(
        ValueError, match=r"another state: at \.num_skipped int32\[\] in place of int32\[3\], at \.opt_"
    ):
        restore_state(written, other)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"directory": 3}, "directory must be a path, got 3"),
        ({"every_seconds": -1}, "every_seconds"),
        ({"every_steps": 0}, "every_steps must be an integer >= 1, got 0"),
        ({"max_to_keep": 0}, "max_to_keep must be an integer >= 1, got 0"),
    ],
)
def test_wrong_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        Checkpointer(**{"directory": "run", **arguments})


def test_fit_takes_a_checkpointer_and_no_path():
    with pytest.raises(ValueError, match="checkpointer must be a jaxmeta.training.Checkpointer"):
        run(checkpointer="run")


def test_a_directory_is_held_against_a_second_run(tmp_path):
    with locked(tmp_path, "directory"), pytest.raises(ValueError, match="directory .* is in use by another run"):
        run(checkpointer=Checkpointer(tmp_path))


# What is there is not what was written


def test_a_state_of_anything_comes_back_as_it_was(tmp_path):
    state = {
        "keys": jax.random.split(jax.random.key(3), 2),
        "other keys": jax.random.key(4, impl="rbg"),
        "bfloat16": jnp.arange(3, dtype=jnp.bfloat16),
        "truth": jnp.array(True),
        "integers": (jnp.int8(-3), np.uint32(2**32 - 1)),
        "nothing": ((), None, {}, optax.EmptyState()),
        "no numbers": jnp.zeros((0, 3)),
        "not finite": jnp.array([jnp.nan, -0.0, jnp.inf]),
        "a/b": {"a.b": jnp.ones(())},
    }
    save_state(tmp_path, 1, state)
    restored = restore_state(tmp_path, jax.eval_shape(lambda: state))
    bits = lambda tree: jax.tree.map(lambda leaf: np.asarray(stored._numbers(leaf)).tobytes(), tree)
    chex.assert_trees_all_equal_structs(restored, state)
    assert bits(restored) == bits(state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
    assert jax.random.key_impl(restored["other keys"]) == jax.random.key_impl(state["other keys"])


def test_what_is_saved_is_the_state_as_it_was_though_its_buffers_are_given_away(tmp_path):
    """Arrays of a CPU share their memory with numpy's: without a copy, orbax writes what is there by then."""
    mine = np.ones(100_000, np.float32)
    donated = jnp.ones(100_000)
    store = Store(tmp_path, max_to_keep=1)
    store.begin(1, {"state": {"mine": mine, "donated": donated}}, {})
    mine[:] = 2
    jax.jit(lambda x: x + 1, donate_argnums=0)(donated).block_until_ready()
    store.close()
    restored = restore_state(tmp_path, {"mine": mine, "donated": mine})
    assert np.all(restored["mine"] == 1) and np.all(restored["donated"] == 1)
    assert not np.shares_memory(stored._on_host(array := jnp.ones(3)), np.asarray(array))


@pytest.mark.parametrize("step", [3, 2])
def test_a_step_that_is_not_above_what_is_there_is_refused(step, tmp_path):
    """It was passed over without a word."""
    save_state(tmp_path, 3, {"w": jnp.zeros(2)})
    with pytest.raises(ValueError, match=rf"step must be above 3, .*, got {step}: .*a folder of its own"):
        save_state(tmp_path, step, {"w": jnp.ones(2)})
    save_state(tmp_path, 4, {"w": jnp.ones(2)})
    assert restore_state(tmp_path, {"w": jnp.zeros(2)})["w"].tolist() == [1, 1] and steps_in(tmp_path) == [4]


def test_nothing_is_no_state(tmp_path):
    with pytest.raises(ValueError, match="state must be a pytree with at least one array"):
        save_state(tmp_path, 3, {"w": ()})


def test_what_is_unfinished_or_empty_is_no_checkpoint(whole, tmp_path):
    """A run that was killed during its first checkpoint could never go on: its remains counted as one."""
    (tmp_path / "14.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    for name in ("16", "007", "-1", "8.old", "state"):
        (tmp_path / name).mkdir()
    (tmp_path / "18").write_text("a file")
    with pytest.raises(ValueError, match="there is none in"):
        restore_state(tmp_path, jax.eval_shape(LEARNER.init, KEY))
    (tmp_path / "18").unlink()
    assert_same_bits(run(checkpointer=every(tmp_path, 16))[0], whole[0])
    assert steps_in(tmp_path) == [16, 20]
    assert not (tmp_path / "14.orbax-checkpoint-tmp").exists()


def test_a_renamed_checkpoint_is_none(directory, whole):
    (directory / "12").rename(directory / "16")
    with pytest.warns(UserWarning, match=r"step 16 in .* is damaged \(it is that of step 12, and was renamed\)"):
        state, history = run(checkpointer=every(directory))
    assert history.num_steps == 10
    assert_same_bits(state, whole[0])


def test_of_damaged_checkpoints_the_last_whole_one_is_used_and_they_are_put_aside(directory, whole):
    for step in (10, 12):
        shutil.rmtree(directory / str(step) / "state")
    with pytest.warns(UserWarning, match="is damaged") as warned:
        state, _ = run(checkpointer=every(directory))
    said = [str(warning.message) for warning in warned]
    assert [text.startswith(f"the checkpoint of step {step} in") for text, step in zip(said, (12, 10), strict=True)]
    assert all(text.endswith("that of step 8 is used") and "\n" not in text for text in said)
    assert_same_bits(state, whole[0])
    assert {path.name for path in directory.iterdir()} >= {"12.damaged", "10.damaged", "20"}


def test_where_all_are_damaged_it_says_so(directory):
    for path in directory.glob("*/about/metadata"):
        path.write_text("{}")
    with pytest.raises(
        ValueError, match=r"in .*run every one is damaged \(12: .*; 10: .*; 8: .*\): restore the folder"
    ):
        run(checkpointer=Checkpointer(directory))
    assert steps_in(directory) == [8, 10, 12]


def flips(directory, whole, number, seed=0):
    """Flips a bit of the latest checkpoint, again and again; (what was not said, what was)."""
    files = sorted(path for path in (directory / "12").rglob("*") if path.is_file() and path.stat().st_size)
    like, rng, silent, said = jax.eval_shape(LEARNER.init, KEY), np.random.default_rng(seed), [], 0
    (expected, _), (before, _) = whole
    for _ in range(number):
        path = files[rng.integers(len(files))]
        content = path.read_bytes()
        at, bit = int(rng.integers(len(content))), int(rng.integers(8))
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :])
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            restored = restore_state(directory, like)
        right = before if warned else expected
        said += bool(warned)
        try:
            assert_same_bits(restored, right)
        except AssertionError:
            silent.append((path, at, bit))
        path.write_bytes(content)
    return silent, said


@pytest.mark.parametrize("number", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_read(number, directory):
    """203 of 220 flips in a state of some size were read as other numbers."""
    silent, said = flips(directory, (run(12), run(10)), number)
    assert not silent and said  # the rest hit what nobody reads


def test_a_flipped_bit_in_the_numbers_is_seen_by_the_checksum_alone(tmp_path):
    """Numbers that do not compress are stored as they are, where nothing else looks at them."""
    state = {"w": jax.random.normal(KEY, (64, 64))}
    save_state(tmp_path, 1, state)
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"every one is damaged \(1: .*\)"):
        restore_state(tmp_path, state)


# Kills


@pytest.mark.parametrize("number", [3, pytest.param(None, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_of_a_checkpoint_goes_on_bit_by_bit(number, whole, tmp_path):
    """Before each operation on a file, of the first checkpoint, of the second, and while the first is removed."""

    def go(directory, num_steps, every_steps):
        log = JsonLines(directory / "metrics.jsonl")
        checkpointer = Checkpointer(directory / "state", every_steps=every_steps, max_to_keep=1)
        return run(num_steps, checkpointer=checkpointer, callbacks=[log])[0], log

    (tmp_path / "whole").mkdir(), (tmp_path / "run").mkdir()
    expected = go(tmp_path / "whole", 20, 20)[1]
    with Copies(tmp_path / "run", tmp_path / "copies") as copies:
        go(tmp_path / "run", 6, 2)
    moments = copies.directories
    chosen = moments if number is None else moments[:: len(moments) // number]
    print(f"{len(moments)} moments, {len(chosen)} tried")
    assert len(moments) > 20
    for directory in chosen:
        state, log = go(directory, 20, 20)
        assert_same_bits(state, whole[0])
        assert [line | {"seconds": 0} for line in log.lines()] == [line | {"seconds": 0} for line in expected.lines()]


def test_a_full_disk_is_an_error_and_what_was_saved_is_kept(tmp_path):
    """A real one is in tests/test_faults.py."""
    state = {"w": jax.random.normal(KEY, (100_000,))}
    save_state(tmp_path, 1, state)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"the checkpoint of step 2 could not be written to .*; that of step 1 is kept"
        ):
            save_state(tmp_path, 2, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_same_bits(restore_state(tmp_path, state), state)
    assert {path.name for path in tmp_path.iterdir()} == {"1"}

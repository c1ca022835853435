"""A run has diverged when ten outer steps in a row are not finite, whatever chunks they are looked at in."""

import itertools
import warnings

import numpy as np
import pytest

from jaxmeta.training.divergence import LIMIT, Watch


def cut(is_finite, chunk_size):
    return [is_finite[..., i : i + chunk_size] for i in range(0, is_finite.shape[-1], chunk_size)]


def watch(is_finite, chunk_size, begin=0):
    """What is said: the error, or None, and the warnings' seeds."""
    look, step = Watch(), begin
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            for chunk in cut(is_finite, chunk_size):
                look({"is_finite": chunk}, step)
                step += chunk.shape[-1]
            error = None
        except FloatingPointError as stopped:
            error = str(stopped)
    return error, [str(warning.message) for warning in warned if "diverged" in str(warning.message)]


def has_a_row(is_finite):
    """By hand: whether all seeds are in such a row at one step."""
    rows = [[len(list(group)) if not finite else 0 for finite, group in itertools.groupby(seed)] for seed in is_finite]
    if len(is_finite) == 1:
        return max(rows[0]) >= LIMIT
    steps = range(LIMIT, is_finite.shape[1] + 1)
    return any(not is_finite[:, step - LIMIT : step].any() for step in steps)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_chunks_change_nothing(num_seeds):
    rng, stopped = np.random.default_rng(0), 0
    for _ in range(100):
        is_finite = np.repeat(rng.uniform(size=(num_seeds, 12)) < 0.35, rng.integers(3, 8), axis=1)
        errors = {watch(is_finite if num_seeds > 1 else is_finite[0], chunk)[0] for chunk in (1, 3, 9, 10, 100)}
        assert len(errors) == 1
        stopped += (error := errors.pop()) is not None
        assert (error is not None) == has_a_row(is_finite)
    assert 0 < stopped < 100


@pytest.mark.parametrize("chunk_size", [1, 4, 50])
def test_a_dead_seed_among_living_ones_is_named_once_and_the_others_go_on(chunk_size):
    is_finite = np.ones((4, 50), bool)
    is_finite[1, 20:] = False
    is_finite[3, 5:15] = False  # and then it lives again
    is_finite[0, 5:14] = False  # not long enough
    error, said = watch(is_finite, chunk_size)
    assert error is None
    named = [text.split("diverged (")[1].split(")")[0] for text in said]
    assert named == (["1, 3"] if chunk_size == 50 else ["3", "1"])


def test_the_count_goes_on_with_a_run():
    first = Watch()
    with pytest.warns(UserWarning, match="not finite are skipped"):
        first({"is_finite": np.zeros(6, bool)}, 0)
    second = Watch(first.in_a_row.tolist())
    with pytest.raises(FloatingPointError, match="no outer step after step 0 was finite, 10 in a row"):
        second({"is_finite": np.zeros(6, bool)}, 6)


def test_learners_that_do_not_say_are_taken_to_be_finite():
    Watch()({"loss": np.zeros(20)}, 0)

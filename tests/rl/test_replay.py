"""Ring buffers against plain lists, one for each task; a plan against the bytes that are allocated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import rl
from jaxmeta.rl.replay import add_rows, empty_buffers, memory_plan, sample_rows

pytestmark = pytest.mark.usefixtures("strict_shapes")


def rows_of(start, number):
    """`number` rows that are told apart."""
    return {"x": jnp.arange(start, start + number, dtype=jnp.float32), "y": jnp.ones((number, 2)) * start}


ROW = jax.tree.map(lambda x: x[0], rows_of(0, 1))


def test_buffers_are_lists_of_which_the_oldest_go_and_never_mix():
    rng, capacity, add = np.random.default_rng(0), 7, jax.jit(add_rows)
    buffers, lists = empty_buffers(ROW, 3, capacity), [[], [], []]
    for step in range(20):
        index, number = rng.integers(3), (2, 3)[step % 2]
        buffers = add(buffers, index, rows_of(100 * step, number))
        lists[index] = (lists[index] + list(range(100 * step, 100 * step + number)))[-capacity:]
        for i, expected in enumerate(lists):
            assert sorted(buffers.rows["x"][i][: len(expected)].tolist()) == expected
            np.testing.assert_array_equal(buffers.rows["y"][i, :, 0], buffers.rows["x"][i] // 100 * 100)
    assert min(buffers.num_added) > capacity


@pytest.mark.slow
def test_only_what_is_there_is_drawn_and_all_of_it_as_often():
    """What was never written is poison, and so are the other buffers; counts within 4 sigma."""
    poison = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), empty_buffers(ROW, 3, 10).rows)
    buffers = add_rows(empty_buffers(ROW, 3, 10)._replace(rows=poison), 1, rows_of(0, 4))
    drawn = sample_rows(jax.random.key(0), buffers, 1, 4000)
    values, counts = np.unique(drawn["x"], return_counts=True)
    assert values.tolist() == [0, 1, 2, 3]
    assert np.all(np.abs(counts - 1000) < 4 * np.sqrt(4000 * 0.25 * 0.75))
    assert np.isnan(sample_rows(jax.random.key(0), buffers._replace(num_added=jnp.array([1, 4, 0])), 0, 5)["x"]).all()


def test_a_full_buffer_is_drawn_as_a_whole():
    buffers = add_rows(add_rows(empty_buffers(ROW, 1, 5), 0, rows_of(0, 4)), 0, rows_of(10, 4))
    assert set(sample_rows(jax.random.key(0), buffers, 0, 200)["x"].tolist()) == {3, 10, 11, 12, 13}


def test_a_visit_that_no_buffer_holds_is_refused():
    with pytest.raises(ValueError, match="rows must be at most the 3 that a buffer holds, got 4"):
        add_rows(empty_buffers(ROW, 1, 3), 0, rows_of(0, 4))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_left_out(bad):
    """One of them made every later update not finite: what is added is what is counted."""
    row = {"reward": jnp.zeros(()), "observation": jnp.zeros(2), "done": jnp.bool_(False)}
    rows = {
        "reward": jnp.array([1.0, bad, 3.0, 4.0]),
        "observation": jnp.zeros((4, 2)).at[2, 1].set(bad),
        "done": jnp.ones(4, bool),
    }
    buffers = jax.jit(add_rows)(empty_buffers(row, 2, 4), 1, rows)
    np.testing.assert_array_equal(buffers.rows["reward"], [[0, 0, 0, 0], [1, 4, 0, 0]])
    np.testing.assert_array_equal(buffers.num_added, [0, 2])
    again = add_rows(add_rows(buffers, 1, rows), 1, rows)
    np.testing.assert_array_equal(again.rows["reward"], [[0, 0, 0, 0], [1, 4, 1, 4]])
    np.testing.assert_array_equal(again.num_added, [0, 6])


def test_an_indexed_task_knows_which_it_is():
    tasks = rl.indexed_tasks({"a": np.arange(5.0), "b": np.arange(5)[:, None] * 10})
    drawn = jax.vmap(tasks.sample, (0, None))(jax.random.split(jax.random.key(0), 1000), tasks.data)
    index, third = drawn.index, tasks.at(3, tasks.data)
    assert tasks.size == drawn.num_tasks == 5
    assert (int(third.index), third.params["a"], third.num_tasks) == (3, 3.0, 5)
    np.testing.assert_array_equal(drawn.params["a"], index)
    np.testing.assert_array_equal(drawn.params["b"][:, 0], 10 * index)
    assert np.all(np.abs(np.bincount(index, minlength=5) - 200) < 4 * np.sqrt(1000 * 0.2 * 0.8))


def test_a_plan_is_what_is_allocated():
    plan = memory_plan(ROW, num_tasks=3, capacity=70)
    rows = jax.tree.leaves(empty_buffers(ROW, 3, 70).rows)
    assert plan.num_bytes == sum(leaf.nbytes for leaf in rows) == 3 * 70 * 12
    assert "3 tasks, 70 transitions each of 12 bytes (x 4, y 8)" in str(plan)


def test_what_does_not_fit_is_refused_with_the_largest_that_does():
    budget = 3 * 70 * 12 + 5
    assert memory_plan(ROW, 3, 70, budget).num_bytes <= budget
    with pytest.raises(ValueError, match="capacity must be at most 70, got 71: 3 tasks take .* MiB, of .* MiB"):
        memory_plan(ROW, 3, 71, budget)
    with pytest.raises(ValueError, match="fewer tasks: not one row of each fits"):
        memory_plan(ROW, 300, 1, budget)

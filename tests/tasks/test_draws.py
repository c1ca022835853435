"""Draws without replacement: by enumeration every ordered choice comes from one way to draw, so all are as likely."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmeta.tasks.draws import draw, draw_of_any, swapped


@pytest.mark.parametrize(("num", "total"), [(1, 1), (1, 5), (2, 2), (3, 3), (3, 6), (4, 5), (5, 5)])
def test_every_ordered_choice_comes_from_as_many_draws_of_places(num, total):
    """Places i are uniform from i to total − 1, and independent: total! / (total − num)! equally likely rows."""
    places = np.array(list(itertools.product(*(range(i, total) for i in range(num)))), np.int32)
    chosen = {tuple(row) for row in np.asarray(jax.vmap(swapped)(places)).tolist()}
    assert len(places) == math.perm(total, num)
    assert chosen == set(itertools.permutations(range(total), num))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 60))
@settings(deadline=None)
def test_swapped_is_the_shuffle_of_fisher_and_yates(seed, num, more):
    rng, num = np.random.default_rng(seed), min(num, 40)
    total = num + more
    places = np.array([rng.integers(i, total) for i in range(num)], np.int32)
    entries = list(range(total))
    for i, place in enumerate(places):
        entries[i], entries[place] = entries[place], entries[i]
    padded = np.concatenate([places, np.arange(num, 40, dtype=np.int32)])  # one shape, one program
    assert np.asarray(jax.jit(swapped)(padded))[:num].tolist() == entries[:num]


def test_draws_are_distinct_in_range_and_uniform():
    """5 σ of 4,000 draws; by enumeration above nothing else can fail than the places' own draw."""
    totals = jnp.array([3, 4, 1000], jnp.int32)
    keys = jax.random.split(jax.random.key(0), (4000, 3))
    drawn = np.asarray(
        jax.jit(jax.vmap(jax.vmap(lambda key, total: draw_of_any(key, 3, total)), (0, None)))(keys, totals)
    )
    assert drawn.dtype == np.int32
    for i, total in enumerate([3, 4]):
        for place in drawn[:, i].T:
            frequency = np.bincount(place, minlength=total) / 4000
            np.testing.assert_allclose(frequency, 1 / total, atol=5 * np.sqrt(1 / total / 4000))
    assert all(len(set(row)) == 3 for row in drawn.reshape(-1, 3).tolist())
    assert 980 < drawn[:, 2].max() < 1000 and 0 <= drawn[:, 2].min() < 20


def test_the_program_does_not_depend_on_the_total(num_compiled):
    compiled = jax.jit(lambda key, total: draw_of_any(key, 4, total))
    key = jax.random.key(0)
    compiled(key, jnp.int32(5))
    num_compiled()
    compiled(key, jnp.int32(5_000_000))
    assert num_compiled() == 0


def test_all_of_a_known_number():
    assert sorted(draw(jax.random.key(0), 7, 7).tolist()) == list(range(7))

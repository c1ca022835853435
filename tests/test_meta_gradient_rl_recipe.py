"""The recipe of an agent that learns its own γ and λ; beside a grid of fixed ones with `-m slow`."""

import json
import time
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta.__main__ import main
from jaxmeta.recipes.meta_gradient_rl import GRID, META_GRADIENT_RL

CONFIG = META_GRADIENT_RL["meta-gradient-rl"].config()


@pytest.mark.slow
def test_the_recipe_trains_beside_numbers_that_stay(tmp_path):
    small = ("--num-outer-steps", "2", "--num-eval-tasks", "2", "--num-episodes", "2", "--hidden", "2")
    assert main(["train", "meta-gradient-rl", "--out", str(tmp_path / "run"), *small]) == 0
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(found["metrics"]["return"]["mean"]) == 11 and found["num_tasks"] == 2
    assert set(found["references"]) == {"as at first", "both low", "both high"}


@pytest.mark.parametrize("num_target_steps", [0, 4])
def test_the_recipe_builds_and_its_task_fits_its_learner(num_target_steps):
    experiment = replace(CONFIG, num_target_steps=num_target_steps).build()
    state = jax.eval_shape(experiment.learner.init, jax.random.key(0))
    sample = jax.vmap(experiment.train_tasks.sample, (0, None))
    tasks = jax.eval_shape(sample, jax.random.split(jax.random.key(1), 1), experiment.train_tasks.data)
    after, _ = jax.eval_shape(experiment.learner.update, jax.random.key(2), state, tasks)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    fixed = CONFIG.fixed(0.7, 0.3)
    assert jax.tree.structure(fixed.params) == jax.tree.structure(state.meta_params.params)
    assert ("bootstrapped" in experiment.protocol) == bool(num_target_steps)


@pytest.mark.slow
def test_what_is_learned_online_is_not_below_the_median_of_a_grid():
    """The mean of the last tenth of a run, of 3 seeds, with at most half more of a run's environment steps."""
    learner, family, keys = CONFIG.learner(), CONFIG.family(), jax.random.split(jax.random.key(0), 3)
    task = family.train.sample(keys[0], family.train.data)
    pairs = [CONFIG.fixed(discount, gae_lambda) for discount in GRID[0] for gae_lambda in GRID[1]]
    run = jax.jit(lambda key, pair: learner.evaluate(key, pair, task)["return"])
    seeds = jax.vmap(run, (0, None))
    grid = np.asarray(jax.jit(jax.vmap(seeds, (None, 0)))(keys, jax.tree.map(lambda *x: jnp.stack(x), *pairs)))
    last_tenth = lambda curves: curves[..., -(curves.shape[-1] // 10) :].mean(axis=-1)
    fixed = np.sort(last_tenth(grid).mean(axis=1))
    train = lambda keys: jaxmeta.fit(
        keys, learner, family.train, num_outer_steps=CONFIG.num_outer_steps, num_tasks=1, progress=False
    )
    online = last_tenth(train(keys)[1]["return"]).mean()
    print(f"online {online:.3f}, grid {np.array2string(fixed, precision=3)}")
    assert online > fixed[0] and online >= np.median(fixed)


@pytest.mark.slow
def test_what_is_learned_online_plays_half_more_episodes_than_a_run_at_most():
    """And takes about twice the processor's seconds, of compiled loops of as many of the agent's steps: printed."""
    inner = CONFIG.num_inner_steps * CONFIG.num_episodes
    assert (inner + CONFIG.num_outer_episodes) / inner <= 1.5
    learner, family, key = CONFIG.learner(), CONFIG.family(), jax.random.key(0)
    task = family.train.sample(key, family.train.data)
    tasks = jax.tree.map(lambda leaf: leaf[None], task)
    step = lambda state, key: learner.update(key, state, tasks)
    online = jax.jit(lambda keys: jax.lax.scan(step, learner.init(keys[0]), keys)[1])
    fixed = jax.jit(lambda key: learner.evaluate(key, CONFIG.fixed(0.9, 0.9), task))
    runs = [partial(fixed, key), partial(online, jax.random.split(key, CONFIG.num_outer_steps))]

    def seconds(run):
        start = time.process_time()
        jax.block_until_ready(run())
        return time.process_time() - start

    samples = np.array([[seconds(run) for run in runs] for _ in range(16)][1:])  # the first compiles
    of_fixed, of_online = np.median(samples, axis=0)
    print(f"seconds of an online run, in those of a fixed one: {of_online / of_fixed:.2f}")

"""What meta-RL's training is timed beside: the same policy without learning, and a random one."""

from collections.abc import Callable, Collection
from typing import TypeAlias

import jax
import jax.numpy as jnp

from benchmarks.shared.flops import count_flops
from benchmarks.shared.measure import Program, jax_program
from jaxmeta import rl
from jaxmeta.rl import oracles
from jaxmeta.types import MetaLearner, PyTree

TRAINING, ROLLOUT, ENVIRONMENT = "training", "rollout", "environment alone"
SEEDS = "training, 4 seeds together"

Built: TypeAlias = tuple[dict[str, Program], dict[str, int], dict[str, int]]
"""By contender the program, its floating-point operations, and the environment's steps in it."""


def of_trials(family: rl.Family, learner: MetaLearner, num_tasks: int, num_episodes: int) -> Built:
    """Of a learner that acts and learns in whole trials."""
    trial = rl.trial(family.environment, num_episodes=num_episodes)
    assert learner.agent is not None
    agent_of = learner.agent
    state = learner.init(jax.random.key(0))
    keys, tasks = drawn(family, num_tasks)

    def play(agent: rl.Agent, keys: jax.Array, tasks: PyTree) -> PyTree:
        run = lambda key, task: rl.rollout(key, trial, *agent, task)[1]
        transitions = jax.vmap(run, out_axes=1)(keys, tasks)
        return transitions.reward, transitions.extras

    at_random = oracles.random_policy(family.environment.action_space)
    functions = {
        TRAINING: (learner.update, (jax.random.key(2), state, tasks)),
        ROLLOUT: (
            lambda state, *args: play(agent_of(state.meta_params), *args),
            (state, keys, tasks),
        ),
        ENVIRONMENT: (lambda *args: play(at_random, *args), (keys, tasks)),
    }
    return built(functions, dict.fromkeys(functions, num_tasks * trial.num_steps))


def of_gradients(
    family: rl.Family,
    learner: MetaLearner,
    num_tasks: int,
    num_episodes: int,
    *,
    num_seeds: int = 0,
    uncounted: Collection[str] = (),
) -> Built:
    """Of a learner with one inner step, which plays twice, before it and after it; and of several seeds, if any. What
    is `uncounted` searches along a line, of a length that no one knows."""
    trial = rl.trial(family.environment)
    state = learner.init(jax.random.key(0))
    keys, tasks = drawn(family, num_tasks)
    num_steps = 2 * num_tasks * num_episodes * trial.num_steps
    assert learner.agent is not None
    agent_of = learner.agent

    def play(agent: rl.Agent, keys: jax.Array, tasks: PyTree) -> PyTree:
        run = lambda key, task: rl.rollout(key, trial, *agent, task)[1]
        episodes = lambda key, task: jax.vmap(run, (0, None))(jax.random.split(key, 2 * num_episodes), task)
        transitions = jax.vmap(episodes)(keys, tasks)
        return transitions.reward, transitions.extras

    repeated = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * num_seeds), tree)
    at_random = oracles.random_policy(family.environment.action_space)
    functions: dict[str, tuple[Callable, tuple]] = {TRAINING: (learner.update, (jax.random.key(2), state, tasks))}
    if num_seeds:
        seeds = (jax.random.split(jax.random.key(2), num_seeds), repeated(state), repeated(tasks))
        functions[SEEDS] = (jax.vmap(learner.update), seeds)
    functions[ROLLOUT] = (lambda state, *args: play(agent_of(state.meta_params), *args), (state, keys, tasks))
    functions[ENVIRONMENT] = (lambda *args: play(at_random, *args), (keys, tasks))
    times = {who: num_seeds if who == SEEDS else 1 for who in functions}
    return built(functions, {who: of * num_steps for who, of in times.items()}, uncounted)


def drawn(family: rl.Family, num_tasks: int) -> tuple[jax.Array, PyTree]:
    keys = jax.random.split(jax.random.key(1), num_tasks)
    return keys, jax.vmap(family.train.sample, (0, None))(keys, family.train.data)


def built(
    functions: dict[str, tuple[Callable, tuple]], num_steps: dict[str, int], uncounted: Collection[str] = ()
) -> Built:
    programs = {who: jax_program(jax.jit(fn), *args) for who, (fn, args) in functions.items()}
    flops = {who: count_flops(fn, *args) for who, (fn, args) in functions.items() if who not in uncounted}
    return programs, flops, num_steps

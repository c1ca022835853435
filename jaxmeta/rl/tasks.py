"""Families from samplers and from lists of tasks, and what is noticed of an environment whose task does not stay."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import a_key, check_arguments, check_pure, check_uses_key
from jaxmeta.rl.env import (
    Continuous,
    Environment,
    Family,
    call_reset,
    call_step,
    check_environment,
    check_unchanged,
    name_of,
    strong,
)
from jaxmeta.traced import copied_inputs, used_inputs
from jaxmeta.types import PyTree, TaskDistribution

_CONSTANT = (
    ". Where one task is wanted, say so: finite_family(environment, tasks, tasks), tasks with a leading axis of 1"
)


def family(environment: Environment, sample_fn: Callable, test_sample_fn: Callable | None = None) -> Family:
    """A family from `(key) -> params`: the one line that makes meta-learning tasks of an environment.

    What the environment draws of a task itself (its `draw`, as gymnax's PointRobot its goal) is drawn with it.

    Nothing is run here, but looked at while it is traced: what the environment returns; whether the samplers use their
    key, and nothing draws with `np.random`; and whether the task stays. It does not where `reset` draws something that
    no step changes, such as a goal: each episode of a task would have another one. What cannot be told so is a goal
    that a step computes anew, or that is one array with the position.

    Args:
      environment: an `Environment`, such as `from_gymnax("Pendulum-v1")`.
      sample_fn: (key) -> params, draws a training task.
      test_sample_fn: draws a test task; `sample_fn` if None, right where no task is drawn twice.

    Raises:
      ValueError: `environment` is no environment, or a sampler is no function; one of their functions returns something
        else than it has to, does not depend on its key, or draws with `np.random`; `reset` moves the task.

    >>> from jaxmeta.rl import families
    >>> environment = families.navigation().environment
    >>> north = family(environment, lambda key: families.Goal(jnp.append(0.0, jax.random.uniform(key))))
    >>> north.train.sample(jax.random.key(0), north.train.data).goal.shape
    (2,)
    """
    check_environment("environment", environment)
    check_arguments("sample_fn", sample_fn, ("key",), "it returns the params of a task")
    test_sample_fn = sample_fn if test_sample_fn is None else test_sample_fn
    check_arguments("test_sample_fn", test_sample_fn, ("key",), "it returns the params of a task")
    train = _drawn("sample_fn", environment, sample_fn)
    test = train if test_sample_fn is sample_fn else _drawn("test_sample_fn", environment, test_sample_fn)
    _check_task_stays(environment, jax.eval_shape(train.sample, a_key(), ()))
    return Family(environment, train, test)


def finite_family(environment: Environment, train: PyTree, test: PyTree) -> Family:
    """A family of tasks that are all there, stacked along a leading axis; each is as likely.

    `train.at(index, train.data)` is the task of a number below `train.size`, and so in `test`: `evaluate` goes over all
    of them. Where they are arrays of numpy, a task has jax's default precision where it is sampled. What is looked at
    while it is traced is that of `family`.

    Args:
      environment: an `Environment`.
      train: training tasks, a pytree of arrays with a leading axis, an entry for each task.
      test: test tasks, likewise; the same as `train` where all are trained on.

    Raises:
      ValueError: `environment` is no environment, or tasks are not stacked; errors of `family`.

    >>> from jaxmeta.rl import families
    >>> environment = families.navigation().environment
    >>> goals = families.Goal(jnp.array([[0.0, 0.5], [0.5, 0.0], [0.0, -0.5]]))
    >>> train, test = jax.tree.map(lambda g: g[:2], goals), jax.tree.map(lambda g: g[2:], goals)
    >>> finite_family(environment, train, test).test.sample(jax.random.key(0), test).goal.tolist()
    [0.0, -0.5]
    """
    check_environment("environment", environment)
    distributions = _stacked("train", train), _stacked("test", test)
    _check_task_stays(environment, jax.eval_shape(lambda: task_at(0, train)))
    return Family(environment, *distributions)


def _drawn(name: str, environment: Environment, sample_fn: Callable) -> TaskDistribution:
    def sample(key: jax.Array, data: PyTree) -> PyTree:
        if environment.draw is None:
            return strong(sample_fn(key))
        params_key, draw_key = jax.random.split(key)
        return strong(environment.draw(draw_key, sample_fn(params_key)))

    check_uses_key(name, sample, a_key(), (), remedy=_CONSTANT)
    return TaskDistribution(sample)


def num_stacked(name: str, tasks: PyTree) -> int:
    """How many tasks there are along the leading axis that all arrays of `tasks` share."""
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(tasks)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise ValueError(f"{name} must be stacked tasks, every array with the same leading axis, got axes {sizes}")
    return sizes.pop()[0]


def _stacked(name: str, tasks: PyTree) -> TaskDistribution:
    size = num_stacked(name, tasks)

    def sample(key: jax.Array, tasks: PyTree) -> PyTree:
        return task_at(jax.random.randint(key, (), 0, len(jax.tree.leaves(tasks)[0])), tasks)

    return TaskDistribution(sample, tasks, at=task_at, size=size)


def task_at(index: jax.Array | int, tasks: PyTree) -> PyTree:
    """The task of a number, of jax's default precision where arrays are numpy's."""
    return strong(jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], tasks))


def _check_task_stays(environment: Environment, task: PyTree) -> None:
    """No field of its state is drawn by `reset` and handed through by `step`; `task` is its shapes."""
    moving = [name for name in _drawn_and_kept(environment, task) if name not in environment.initial]
    if moving:
        raise ValueError(
            f"environment must leave the task as it is, but its reset draws {', '.join(moving)}, which no step changes:"
            " each episode of a task would have another one. Take it from params; of an environment of gymnax's kind, "
            f"from_gymnax(..., pins={tuple(moving)}) draws it with the task. Where it is only how an episode starts, "
            f"environment._replace(initial={tuple(moving)}) says so"
        )


def _drawn_and_kept(environment: Environment, task: PyTree) -> list[str]:
    """The fields of the state that depend on the key of `reset`, and that `step` returns as they were."""
    key, space = a_key(), environment.action_space
    from_reset, (observation, state) = check_pure(
        "reset of environment", lambda key, task: call_reset(environment, key, task), key, task
    )

    def step(key: jax.Array, state: PyTree, action: jax.Array, task: PyTree, observation: PyTree) -> PyTree:
        next_observation, next_state, *_ = call_step(environment, key, state, action, task)
        check_unchanged("step of environment", "observation", next_observation, observation)
        return next_state

    shape, dtype = (np.shape(space.low), float) if isinstance(space, Continuous) else ((), jnp.int32)
    action = jax.eval_shape(lambda: jnp.zeros(shape, dtype))
    from_step, _ = check_pure("step of environment", step, key, state, action, task, observation)

    num_observed, num_outputs = len(jax.tree.leaves(observation)), len(from_reset.jaxpr.outvars)
    is_drawn = lambda i: used_inputs(from_reset, [output == num_observed + i for output in range(num_outputs)])[0]
    is_kept = lambda i: copied_inputs(from_step, i) == {1 + i}  # the key is the first input
    paths = jax.tree_util.tree_leaves_with_path(state)
    return [name_of(path) or "state" for i, (path, _) in enumerate(paths) if is_kept(i) and is_drawn(i)]

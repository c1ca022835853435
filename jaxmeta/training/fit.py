"""The outer loop: sample tasks, update, repeat, as one compiled program per chunk of steps.

The key of step t is `fold_in(key, t)`, so that a run does not depend on how it is cut into chunks, and goes on from a
saved state exactly as if it had never stopped.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import (
    a_key,
    check_distribution,
    check_integer,
    check_key,
    check_learner,
    check_like,
    check_metrics,
    check_pure,
)
from jaxmeta.devices import SHARED, along, any_process, can_share, known_everywhere, on_each, replicated
from jaxmeta.training.callbacks import Callback, Callbacks
from jaxmeta.training.checkpoint import Checkpointer, Saver, of_key, saving
from jaxmeta.training.divergence import Watch
from jaxmeta.training.history import History
from jaxmeta.training.looks import look_at_size, look_at_tasks
from jaxmeta.training.validation import Validation, Validator, check_validation
from jaxmeta.types import MetaLearner, MetaState, Metrics, PyTree, TaskDistribution
from jaxmeta.words import short

with warnings.catch_warnings():  # in a notebook without widgets the bar is one of text, which needs no word
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm


def fit(
    key: jax.Array,
    learner: MetaLearner,
    tasks: TaskDistribution,
    *,
    num_outer_steps: int,
    num_tasks: int,
    state: MetaState | None = None,
    validate: Validation | None = None,
    checkpointer: Checkpointer | None = None,
    chunk_size: int = 100,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
) -> tuple[MetaState, History]:
    """Meta-trains until `state.step` is `num_outer_steps`, or `validate` or a callback ends the run.

    Each chunk is one compiled, donated loop that samples its tasks itself; the second call with the same learner and
    tasks compiles nothing. Outer steps that are not finite are skipped and counted, with a warning.

    Before anything compiles, what would go wrong in silence is looked at: that the sampler depends on its key; that
    neither it nor `init_fn` draws with `np.random`, which would be a constant; and the labels of one task.

    Args:
      key: a typed key, or `[S]` of them to train S seeds at once: states and metrics then have a leading axis S.
        `jaxmeta.over_devices` shares them, where they share out evenly, in the place of the tasks.
      learner: what to train.
      tasks: p(T), where its tasks come from.
      num_outer_steps: outer steps altogether, those that `state` has taken included.
      num_tasks: N, tasks of an outer step, at least 1.
      state: where to go on from, with the same key; a new one if None. It is copied, not consumed. See
        `training.save_state` and `training.restore_state`. Where `checkpointer` holds a checkpoint it is that.
      validate: a `training.Validation`: tasks apart that the state is judged on every so many steps. The best state is
        returned, not the last, and the run ends early when its patience does. Of one seed only.
      checkpointer: a `training.Checkpointer`, which saves the run as it goes; where it holds a checkpoint of this run,
        the run goes on from there, bit by bit as if it had never stopped, and the history is that of the steps from
        there on. The learner and the tasks are not saved: give the same.
      chunk_size: outer steps between two looks at the metrics, at least 1. It changes nothing in the result.
      callbacks: each called after a chunk with the state and the chunk's metrics, `[chunk]`, and the scalars
        `"validation/..."` where it was validated. One that returns true ends the run; one that raises is named in a
        warning, once, and the run goes on. The state's buffers are given to the next chunk: copy what is to be kept.
      progress: whether to show a bar with the rate, the time left and the loss.

    Returns:
      The state, and a `training.History`: the metrics of every step taken, `[steps]` each. With `validate` the state is
      the one that did best, as `state.step` says, the history that of all steps, and `history.validation` the curve; to
      go on from that state is to take the steps after it anew.

    Raises:
      ValueError: an argument is wrong, or something about `tasks`; the checkpoints are all damaged, of another run, or
        in use by another one.
      FloatingPointError: ten outer steps in a row were not finite, of many seeds those of all, so that the run cannot
        go on. Where some seeds live, those that do not are named in a warning.
      OSError: a checkpoint could not be written, as on a full disk; those before it are kept.

    >>> import jaxmeta
    >>> init_fn = lambda key: {"w": jnp.zeros(()), "b": jnp.zeros(())}
    >>> def loss_fn(params, batch):
    ...     x, y = batch
    ...     return jnp.mean((params["w"] * x + params["b"] - y) ** 2), {}
    >>> learner = jaxmeta.maml(init_fn, loss_fn, inner_optimizer=jaxmeta.adapt.sgd(0.5))
    >>> tasks = jaxmeta.tasks.linear()
    >>> state, history = fit(jax.random.key(0), learner, tasks, num_outer_steps=20, num_tasks=4, progress=False)
    >>> int(state.step), history["loss"].shape
    (20, (20,))
    """
    check_key("key", key)
    check_learner("learner", learner)
    check_distribution("tasks", tasks)
    check_integer("num_outer_steps", num_outer_steps, minimum=1)
    check_integer("num_tasks", num_tasks, minimum=1)
    check_integer("chunk_size", chunk_size, minimum=1)
    called = Callbacks(callbacks)
    with _saving(checkpointer, key, learner, num_tasks, validate) as saver:
        found = saver.trees if saver else {}
        state = found.get("state", state)
        meta_params = _look_at_state(key, learner, state, num_outer_steps, is_found=bool(found)).meta_params
        look_at_tasks("tasks", tasks, learner, meta_params, is_test=False)
        look_at_size(num_tasks, tasks, num_seeds=len(key) if key.ndim else 1)
        if validate is not None:
            check_validation(validate, learner, meta_params, len(key) if key.ndim else None)
        validator = None if validate is None else Validator(validate, learner)
        watch = Watch()
        if saver and found:
            watch = Watch(saver.progress["in_a_row"])
            if validator:
                validator.resume(saver.progress["validation"], replicated(found.get("best")))

        init_key, run_key = jnp.moveaxis((jax.vmap if key.ndim else lambda fn: fn)(jax.random.split)(key), -1, 0)
        state = _quick_init()(init_key, learner=learner) if state is None else jax.tree.map(jnp.copy, replicated(state))
        state, data = replicated((state, tasks.data))
        run_chunk = partial(
            _run_chunk,
            run_key,
            data=data,
            learner=learner,
            sample=tasks.sample,
            num_tasks=num_tasks,
            chunk_size=chunk_size,
        )
        step = int(np.max(state.step))
        with tqdm(total=num_outer_steps, initial=step, unit=" steps", disable=not progress) as bar:
            state, history = _loop(
                run_chunk, state, step, num_outer_steps, chunk_size, validator, watch, called, saver, bar
            )
    names = history[0] if history else ()
    whole = {name: np.concatenate([metrics[name] for metrics in history], axis=-1) for name in names}
    if validator is None:
        return state, History(whole)
    return validator.chosen(state), History(whole, validator.found())


def _loop(
    run_chunk: Callable,
    state: MetaState,
    step: int,
    num_outer_steps: int,
    chunk_size: int,
    validator: Validator | None,
    watch: Watch,
    callbacks: Callbacks,
    saver: Saver | None,
    bar: tqdm,
) -> tuple[MetaState, list[dict[str, np.ndarray]]]:
    """The state after the last chunk, and the metrics of each. Callbacks see a chunk before it is saved, so that what
    they write of it is there when a run goes on from that checkpoint."""
    is_over, history = validator is not None and validator.has_no_patience(), []
    if step < num_outer_steps and not is_over:
        state, _ = run_chunk(state, length=0)  # takes no step: it compiles
        bar.unpause()  # so that the rate and the time left are those of steps
    while step < num_outer_steps and not is_over:
        length = min(chunk_size, num_outer_steps - step, validator.steps_until(step) if validator else chunk_size)
        state, metrics = run_chunk(state, length=length)
        metrics = {name: np.moveaxis(np.asarray(values)[:length], 0, -1) for name, values in metrics.items()}
        watch(metrics, step)
        history.append(metrics)
        before, step = step, step + length
        if validator and (step == num_outer_steps or validator.is_due(step)):
            metrics = {**metrics, **validator(state)}
        _show(bar, metrics, length)
        is_over = any_process(callbacks(state, metrics)) or (validator is not None and validator.has_no_patience())
        if saver and (is_over or step == num_outer_steps or saver.is_due(before, step)):
            best, found = (validator.best, validator.progress()) if validator else (None, None)
            saver.save(step, state, best, {"in_a_row": watch.in_a_row.tolist(), "validation": found})
    return state, history


def _saving(
    checkpointer: Checkpointer | None, key: jax.Array, learner: MetaLearner, num_tasks: int, validate: Validation | None
) -> contextlib.AbstractContextManager[Saver | None]:
    """What saves the run, with what it found of it."""
    if checkpointer is None:
        return contextlib.nullcontext()
    if not isinstance(checkpointer, Checkpointer):
        raise ValueError(f"checkpointer must be a jaxmeta.training.Checkpointer(directory), got {short(checkpointer)}")
    check_pure("init_fn", learner.init, a_key())
    like = jax.eval_shape((jax.vmap if key.ndim else lambda fn: fn)(learner.init), key)
    judged = ("metric", "best", "every", "num_tasks", "seed")
    validation = {f"validate.{name}": getattr(validate, name) for name in judged} if validate else {}
    return saving(checkpointer, {"key": of_key(key), "num_tasks": num_tasks, **validation}, like)


def _look_at_state(
    key: jax.Array, learner: MetaLearner, state: MetaState | None, num_outer_steps: int, *, is_found: bool = False
) -> MetaState:
    """Looks at `init` and at a state to go on from, given or found saved; the shapes of a state of one seed."""
    if state is None:
        _, shapes = check_pure("init_fn", learner.init, a_key())
        return shapes
    over_seeds = jax.vmap if key.ndim else lambda fn: fn
    check_like("state", state, jax.eval_shape(over_seeds(learner.init), key), "a state of this learner")
    step = int(np.max(np.asarray(state.step)))
    counts = "num_outer_steps counts outer steps altogether, those that the state has taken included"
    if step > num_outer_steps:
        raise ValueError(
            f"num_outer_steps must be at least the step of state, {step}, got {num_outer_steps}: {counts}; for "
            f"{num_outer_steps} more say num_outer_steps={step + num_outer_steps}"
        )
    if step == num_outer_steps and not is_found:
        warnings.warn(f"nothing to do: the step of state is {step} already, and {counts}", stacklevel=3)
    return jax.eval_shape(learner.init, a_key())


def _show(bar: tqdm, metrics: dict[str, np.ndarray], length: int) -> None:
    shown = metrics.keys() - {"loss", "grad_norm", "is_finite", "num_env_steps"} or {"loss"}
    bar.set_postfix({name: f"{metrics[name].mean():.3g}" for name in sorted(shown)}, refresh=False)
    bar.update(length)


@cache
def _quick_init() -> Callable:
    """`_init` runs once, and is compiled less thoroughly, in a third of the time: the same bits come out."""
    is_quick = jax.default_backend() == "cpu" and "optimization_level" not in os.environ.get("XLA_FLAGS", "")
    options = {"xla_backend_optimization_level": 1} if is_quick else None
    return jax.jit(_init, static_argnames="learner", compiler_options=options)


def _init(key: jax.Array, *, learner: MetaLearner) -> MetaState:
    return jax.vmap(learner.init)(key) if key.ndim else learner.init(key)


@partial(jax.jit, static_argnames=("learner", "sample", "num_tasks", "chunk_size"), donate_argnames=("state",))
def _run_chunk(
    key: jax.Array,
    state: MetaState,
    data: PyTree,
    length: int,
    *,
    learner: MetaLearner,
    sample: Callable,
    num_tasks: int,
    chunk_size: int,
) -> tuple[MetaState, Metrics]:
    """`length` outer steps; metrics `[chunk_size, ...]`. `length` is traced, so that the last, shorter chunk of a run
    does not compile again. Of several seeds each device has its share, where they share out."""

    task_keys = getattr(learner, "task_keys", None) or (lambda key, state, number: jax.random.split(key, number))

    def run(everywhere: tuple[PyTree, int], of_seeds: tuple[jax.Array, MetaState]) -> tuple[MetaState, Metrics]:
        (data, length), (key, state) = everywhere, of_seeds

        def step(key: jax.Array, state: MetaState) -> tuple[MetaState, Metrics]:
            task_key, update_key = jax.random.split(jax.random.fold_in(key, state.step))
            tasks = jax.vmap(sample, (0, None))(task_keys(task_key, state, num_tasks), data)
            state, metrics = learner.update(update_key, state, tasks)
            check_metrics("learner.update", metrics, ndim=0)
            return state, metrics

        # traced once, for the shapes and for what runs
        over_seeds = jax.jit(jax.vmap(step) if key.ndim else step, inline=True)

        def body(i: jax.Array, carry: tuple[MetaState, Metrics]) -> tuple[MetaState, Metrics]:
            state, metrics = over_seeds(key, carry[0])
            return state, jax.tree.map(lambda buffer, value: buffer.at[i].set(value), carry[1], metrics)

        _, shapes = jax.eval_shape(over_seeds, key, state)
        buffers = jax.tree.map(lambda shape: jnp.zeros((chunk_size, *shape.shape), shape.dtype), shapes)
        return jax.lax.fori_loop(0, length, body, (state, buffers))

    if key.ndim and can_share(len(key)):
        run = on_each(run, (SHARED, along(1)))
    state, metrics = run((data, length), (key, state))
    return state, known_everywhere(metrics)

"""A run of a recipe in a directory of its own: meta-train, evaluate, draw, so that a killed run can go on.

| file            | what                                                                                     |
|-----------------|------------------------------------------------------------------------------------------|
| `config.json`   | the recipe, the seed and every field                                                     |
| `metrics.jsonl` | a line for each hundredth of the run: step, seconds, the means of the training metrics    |
| `state/`        | the last three checkpoints, one every half minute, see `training.Checkpointer`            |
| `*.png`         | the learning curve, the adaptation curve, the recipe's own pictures                       |
| `result.json`   | the test tasks' metrics before and after each step of adaptation, and what they are      |
|                 | compared with, of other tests too; written last, so that a run that has it is finished   |
| `lock`          | is held while the run runs                                                                |
"""

import contextlib
import dataclasses
import logging
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax

from jaxmeta import __version__, plotting
from jaxmeta.checks import check_seed
from jaxmeta.devices import any_process, check_shares, num_cores, num_sharing, over_devices
from jaxmeta.recipes import RECIPES, Experiment, Outer
from jaxmeta.recipes.experiment import Recipe
from jaxmeta.run_directory import claimed, differences, listed, new_directory, read_config, write
from jaxmeta.signals import Asked, Terminated, terminable
from jaxmeta.training import Checkpointer, JsonLines, Report, evaluate, fit, restore_state
from jaxmeta.training.files import writing
from jaxmeta.types import MetaParams, MetaState, Task, TaskDistribution
from jaxmeta.words import counted

Judged: TypeAlias = tuple[Report, dict[str, Report]]
_SECONDS_BETWEEN_SAVES = 30
_WITHOUT_EFFECT = {"num_eval_tasks", "microbatch", "data_dir"}  # fields that do not change what is to be reached
_VERSIONS = {
    "jaxmeta": __version__,
    "python": platform.python_version(),
    **{library.__name__: library.__version__ for library in (jax, jaxlib, flax, optax, np)},
}


def train_recipe(
    name: str, config: Outer, seed: int, out: Path | None, resume: bool, num_devices: int | None = 1
) -> Report:
    """Runs a recipe and writes everything under `out`, by default a new directory under `runs`.

    Its tasks are shared by the first `num_devices` of `jax.devices()`, by all if None. Of several processes, which call
    it alike with the same `out`, the first one prints and writes.

    Raises:
      ValueError: the seed or a field is wrong, or `out` holds another run; nothing is written then.
      Terminated: SIGTERM came; the end of the chunk is saved.
    """
    check_seed("seed", seed)
    experiment = config.build()
    sharing = partial(over_devices, num_devices) if num_devices != 1 else contextlib.nullcontext
    with sharing():
        if num_sharing() and not _has_examples(experiment):
            check_shares(config.num_tasks)
    out = new_directory(name, seed, resume) if out is None else out
    with terminable() as asked, claimed(name, config, seed, out, resume, num_devices):
        try:
            return _run(name, config, seed, out, experiment, asked, sharing)
        except OSError as error:
            raise OSError(f"{error}. Once that is mended, go on with --resume --out {out}") from error


def _run(
    name: str, config: Outer, seed: int, directory: Path, experiment: Experiment, asked: Asked, sharing: Callable
) -> Report:
    changed = differences(_as_the_recipe(RECIPES[name], config), dataclasses.asdict(config))
    print(f"{name}, seed {seed}, on {_device()}\n{experiment.protocol}")
    with sharing():
        print(_shares(config.num_tasks, experiment))
    if changed:
        print(f"not as the recipe: {listed(changed, 'the recipe has')}")
    print(f"under {directory}", flush=True)

    log = JsonLines(directory / "metrics.jsonl")
    test_key, picture_key = _test_keys()
    with sharing():
        state = _train(experiment, config, seed, log, directory, asked)
        print(f"evaluating on {counted(_num_tests(config, experiment.test_tasks), 'test task')}", flush=True)
        report, references = _evaluate(experiment, config, test_key, state, experiment.test_tasks)
        others = _evaluate_others(experiment, config, test_key, state)
    if jax.process_index() == 0:
        beside = references | {f"on {other}": found for other, (found, _) in others.items()}
        meta_params = jax.tree.map(jnp.asarray, jax.device_get(state.meta_params))  # of this process, which draws alone
        _draw(directory, name, experiment, report, beside, log, picture_key, meta_params)
    found = {
        "recipe": name,
        "seed": seed,
        "seconds": round(log.seconds(), 1),
        "device": _device(),
        "versions": _VERSIONS,
        "num_skipped": int(state.num_skipped),
        **_result(report, references, experiment.metric),
    }
    if others:
        found["other_tests"] = {other: _result(*judged, experiment.metric) for other, judged in others.items()}
    if jax.process_index() == 0:
        write(directory / "result.json", found)
    _print_tables(experiment, report, references, others)
    if changed.keys() <= _WITHOUT_EFFECT:
        print(f"to reach: {RECIPES[name].figure}")
    print(f"{log.seconds():.0f} s; written to {directory}")
    return report


def _train(
    experiment: Experiment, config: Outer, seed: int, log: JsonLines, directory: Path, asked: Asked
) -> MetaState:
    """From the last checkpoint on, if there is one."""
    train_key, *_ = jax.random.split(jax.random.key(seed), 3)
    with _choices_on_stdout(), asked.while_training(), _failing():
        state, _ = fit(
            train_key,
            experiment.learner,
            experiment.train_tasks,
            num_outer_steps=config.num_outer_steps,
            num_tasks=config.num_tasks,
            chunk_size=max(1, config.num_outer_steps // 100),
            checkpointer=Checkpointer(directory / "state", every_seconds=_SECONDS_BETWEEN_SAVES),
            callbacks=[partial(_log, log), asked.after_a_chunk],
            progress=jax.process_index() == 0,
        )
    if any_process(asked.to_end):
        raise Terminated
    return state


def _log(log: JsonLines, state: MetaState, metrics: dict[str, np.ndarray]) -> None:
    """The metrics are part of what a run is for: it ends where they cannot be written, before their steps are saved."""
    try:
        log(state, metrics)
    except Exception as error:
        raise _NotLogged(error) from error


class _NotLogged(BaseException):
    """What `fit` does not take for an error of a callback, which it would survive; it has that error."""


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except _NotLogged as stopped:
        raise stopped.args[0] from None


def _result(report: Report, references: dict[str, Report], metric: str) -> dict[str, Any]:
    return {
        **report.content(),
        "references": {
            name: {**found.metrics, "ahead": report.ahead_of(found, metric)} for name, found in references.items()
        },
    }


def evaluate_directory(directory: Path, num_tasks: int | None, data_dir: str | None) -> Report:
    """Evaluates a finished run again, on the same test tasks unless their number differs.

    Raises:
      ValueError: `directory` holds no run.
    """
    name, seed, config = read_config(directory)
    if num_tasks is not None:
        config = dataclasses.replace(config, num_eval_tasks=num_tasks)
    if data_dir is not None:
        if not hasattr(config, "data_dir"):
            raise ValueError(f"--data-dir is for recipes that read data, and {name} draws its own")
        where: dict[str, Any] = {"data_dir": data_dir}
        config = dataclasses.replace(config, **where)
    experiment = config.build()
    test_key, _ = _test_keys()
    state = _restore(directory, experiment)
    report, references = _evaluate(experiment, config, test_key, state, experiment.test_tasks)
    others = _evaluate_others(experiment, config, test_key, state)
    print(f"{name}, seed {seed}, after {counted(int(state.step), 'outer step')}, on {_device()}\n{experiment.protocol}")
    _print_tables(experiment, report, references, others)
    return report


@contextlib.contextmanager
def _choices_on_stdout() -> Iterator[None]:
    """Shows what the library chooses by itself, such as `adapt.auto` its schedule."""
    logger, handler = logging.getLogger("jaxmeta"), logging.StreamHandler(sys.stdout)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library may have left a handler at the root, which would say it again
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _test_keys() -> tuple[jax.Array, jax.Array]:
    """The same test tasks whatever the seed, so that runs compare."""
    _, test_key, picture_key = jax.random.split(jax.random.key(0), 3)
    return test_key, picture_key


def _evaluate(
    experiment: Experiment, config: Outer, key: jax.Array, state: MetaState, tasks: TaskDistribution
) -> Judged:
    """The learner, and what it is compared with, on the same test tasks."""
    judge = partial(evaluate, num_tasks=_num_tests(config, tasks), batch_size=experiment.eval_batch_size)
    report = judge(key, experiment.learner, tasks, state.meta_params, batch_norm=experiment.batch_norm)
    references = experiment.references(key).items()
    return report, {name: judge(key, learner, tasks, params) for name, (learner, params) in references}


def _num_tests(config: Outer, tasks: TaskDistribution) -> int:
    """Of a finite family at most all."""
    return config.num_eval_tasks if tasks.size is None else min(config.num_eval_tasks, tasks.size)


def _evaluate_others(experiment: Experiment, config: Outer, key: jax.Array, state: MetaState) -> dict[str, Judged]:
    others = {name: experiment._replace(test_tasks=tasks) for name, tasks in experiment.other_tests.items()}
    others |= experiment.others
    return {name: _evaluate(other, config, key, state, other.test_tasks) for name, other in others.items()}


def _print_tables(
    experiment: Experiment, report: Report, references: dict[str, Report], others: dict[str, Judged]
) -> None:
    print(_table(report, references, experiment.metric))
    for name, judged in others.items():
        print(f"on {name}: {_table(*judged, experiment.metric)}")


def _table(report: Report, references: dict[str, Report], metric: str) -> str:
    lines = [str(report)]
    for name, found in references.items():
        ahead = report.ahead_of(found, metric)
        difference = (
            "" if ahead["mean"] is None else f"; {metric} above it by {ahead['mean']:.4f} ± {ahead['ci95']:.4f}"
        )
        lines.append(f"beside it, {name}{difference}: {found}")
    return "\n".join(lines)


def _draw(
    directory: Path,
    name: str,
    experiment: Experiment,
    report: Report,
    references: dict[str, Report],
    log: JsonLines,
    key: jax.Array,
    meta_params: MetaParams,
) -> None:
    lines, metric = log.lines(), experiment.metric
    trained = experiment.train_metric or metric
    steps, values = (np.array([line[column] for line in lines], float) for column in ("step", trained))
    figures = experiment.pictures(key, meta_params, name) | {
        "learning_curve.png": plotting.learning_curve(steps, values, trained, name),
        "adaptation_curve.png": plotting.report(
            report,
            names=[metric],
            title=f"{name}, {counted(report.num_tasks, 'test task')}",
            adaptation=experiment.adaptation,
            references={reference: found for reference, found in references.items() if metric in found.samples},
        ),
    }
    for file, figure in figures.items():
        with writing(directory / file):
            figure.savefig(directory / file)


def _as_the_recipe(recipe: Recipe, config: Outer) -> dict[str, Any]:
    """The recipe's settings for what `config` asks of the fields `by`, which themselves are as in the recipe."""
    default = recipe.config()
    return dataclasses.asdict(recipe.settings_for(config)) | {field: getattr(default, field) for field in recipe.by}


def _restore(directory: Path, experiment: Experiment) -> MetaState:
    return restore_state(directory / "state", jax.eval_shape(experiment.learner.init, jax.random.key(0)))


def _has_examples(experiment: Experiment) -> bool:
    """Whether devices can share the examples of its tasks where they cannot share the tasks."""
    tasks = experiment.train_tasks
    return isinstance(jax.eval_shape(tasks.sample, jax.random.key(0), tasks.data), Task)


def _shares(num_tasks: int, experiment: Experiment) -> str:
    """How many devices the tasks are shared by, or the examples of each, and why not by more."""
    if num_devices := num_sharing():
        who, what = counted(num_devices, "device"), counted(num_tasks, "task")
        if num_tasks % num_devices:
            return f"{who} share the examples of each of {what}"
        return f"{who} share {what}, {num_tasks // num_devices} each"
    is_cpu = jax.default_backend() == "cpu"
    available, what = (num_cores(), "core") if is_cpu else (len(jax.devices()), "device")
    if available == 1:
        return f"one {what}: nothing is shared"
    if num_tasks % available and not _has_examples(experiment):
        return f"on one device: {counted(num_tasks, 'task')} do not share out to {available} {what}s"
    gain = "which gains where networks are large, and loses where they are small: " if is_cpu else ""
    shared = "the examples of each task" if num_tasks % available else "the tasks"
    return f"on one device: --num-devices {available} shares {shared} by all {what}s, {gain}docs/how-to/devices.md"


def _device() -> str:
    """What this process may use, and the others."""
    devices, num_processes = jax.devices(), jax.process_count()
    of = f" in {num_processes} processes" if num_processes > 1 else ""
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}{of}"
    return f"cpu ({counted(num_cores(), 'core')}{f', {len(devices)} devices{of}' if len(devices) > 1 else ''})"

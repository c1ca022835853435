"""A run of a recipe in a directory of its own: meta-train, evaluate, draw, so that a killed run can go on.

| file            | what                                                                                     |
|-----------------|------------------------------------------------------------------------------------------|
| `config.json`   | the recipe, the seed and every field                                                     |
| `metrics.jsonl` | a line for each hundredth of the run: step, seconds, the means of the training metrics    |
| `state/`        | the meta-parameters and the outer optimizer's state, saved at least every half minute     |
| `*.png`         | the learning curve, the adaptation curve, the recipe's own pictures                       |
| `result.json`   | the test tasks' metrics before and after each step of adaptation, and what they are      |
|                 | compared with, of other tests too; written last, so that a run that has it is finished   |
"""

import contextlib
import dataclasses
import json
import logging
import platform
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import flax
import jax
import jaxlib
import numpy as np
import optax

from jaxmeta import __version__, plotting
from jaxmeta.checks import check_seed
from jaxmeta.devices import num_cores
from jaxmeta.recipes import RECIPES, Experiment, Outer
from jaxmeta.recipes.experiment import Recipe, from_dict
from jaxmeta.training import Report, evaluate, fit, restore_state, save_state
from jaxmeta.types import MetaState, TaskDistribution
from jaxmeta.words import counted

Judged: TypeAlias = tuple[Report, dict[str, Report]]
_SECONDS_BETWEEN_SAVES = 30
_WITHOUT_EFFECT = {"num_eval_tasks", "microbatch", "data_dir"}  # fields that do not change what is to be reached
_VERSIONS = {
    "jaxmeta": __version__,
    "python": platform.python_version(),
    **{library.__name__: library.__version__ for library in (jax, jaxlib, flax, optax, np)},
}


def train_recipe(name: str, config: Outer, seed: int, out: Path | None, resume: bool) -> Report:
    """Runs a recipe and writes everything under `out`, by default a new directory under `runs`.

    Raises:
      ValueError: the seed or a field is wrong, or `out` holds another run; nothing is written then.
    """
    check_seed("seed", seed)
    experiment = config.build()
    directory = _claim(name, config, seed, out, resume)
    changed = _differences(_as_the_recipe(RECIPES[name], config), dataclasses.asdict(config))
    print(f"{name}, seed {seed}, on {_device()}\n{experiment.protocol}")
    if changed:
        print(f"not as the recipe: {_listed(changed, 'the recipe has')}")
    print(f"under {directory}", flush=True)

    log = _Log(directory)
    state = _train(experiment, config, seed, log)
    print(f"evaluating on {counted(config.num_eval_tasks, 'test task')}", flush=True)
    test_key, picture_key = _test_keys()
    report, references = _evaluate(experiment, config, test_key, state, experiment.test_tasks)
    others = _evaluate_others(experiment, config, test_key, state)
    beside = references | {f"on {other}": found for other, (found, _) in others.items()}
    _draw(directory, name, experiment, report, beside, log, picture_key, state)
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
    _write(directory / "result.json", found)
    _print_tables(experiment, report, references, others)
    if changed.keys() <= _WITHOUT_EFFECT:
        print(f"to reach: {RECIPES[name].figure}")
    print(f"{log.seconds():.0f} s; written to {directory}")
    return report


def _train(experiment: Experiment, config: Outer, seed: int, log: "_Log") -> MetaState:
    """From the last checkpoint on, if there is one."""
    train_key, *_ = jax.random.split(jax.random.key(seed), 3)
    has_checkpoint = any(log.directory.glob("state/[0-9]*"))
    state = _restore(log.directory, experiment) if has_checkpoint else None
    log.drop_after(0 if state is None else int(state.step))
    if state is not None and int(state.step) == config.num_outer_steps:
        return state  # killed while it was judged or drawn
    with _choices_on_stdout():
        state, _ = fit(
            train_key,
            experiment.learner,
            experiment.train_tasks,
            state=state,
            num_outer_steps=config.num_outer_steps,
            num_tasks=config.num_tasks,
            chunk_size=max(1, config.num_outer_steps // 100),
            callbacks=[log],
        )
    log.save(state)
    return state


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
    name, seed, config = _read_config(directory)
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


class _Log:
    """Called by `fit` after each chunk: a line of metrics, and now and then a checkpoint."""

    def __init__(self, directory: Path):
        self.directory, self.path = directory, directory / "metrics.jsonl"
        self.start = self.last_save = time.monotonic()
        self.seconds_before = 0.0

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def drop_after(self, step: int) -> None:
        """Forgets what a killed run logged after its last checkpoint."""
        kept = [line for line in self.lines() if line["step"] <= step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.seconds_before = kept[-1]["seconds"] if kept else 0.0

    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.start

    def __call__(self, state: MetaState, metrics: dict[str, np.ndarray]) -> None:
        means = {name: float(np.mean(values)) for name, values in metrics.items()}
        line = {"step": int(state.step), "seconds": round(self.seconds(), 2), **means}
        finite = {name: value if np.isfinite(value) else None for name, value in line.items()}  # JSON has no NaN
        with self.path.open("a") as file:
            file.write(json.dumps(finite) + "\n")
        if time.monotonic() - self.last_save > _SECONDS_BETWEEN_SAVES:
            self.save(state)

    def save(self, state: MetaState) -> None:
        save_state(self.directory / "state", int(state.step), state)
        self.last_save = time.monotonic()


def _evaluate(
    experiment: Experiment, config: Outer, key: jax.Array, state: MetaState, tasks: TaskDistribution
) -> Judged:
    """The learner, and what it is compared with, on the same test tasks; of a finite family at most all."""
    num_tasks = config.num_eval_tasks if tasks.size is None else min(config.num_eval_tasks, tasks.size)
    judge = partial(evaluate, num_tasks=num_tasks, batch_size=experiment.eval_batch_size)
    report = judge(key, experiment.learner, tasks, state.meta_params, batch_norm=experiment.batch_norm)
    references = experiment.references(key).items()
    return report, {name: judge(key, learner, tasks, params) for name, (learner, params) in references}


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
    log: _Log,
    key: jax.Array,
    state: MetaState,
) -> None:
    lines, metric = log.lines(), experiment.metric
    trained = experiment.train_metric or metric
    steps, values = (np.array([line[column] for line in lines], float) for column in ("step", trained))
    figures = experiment.pictures(key, state.meta_params, name) | {
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
        figure.savefig(directory / file)


def _claim(name: str, config: Outer, seed: int, out: Path | None, resume: bool) -> Path:
    """The run's directory, with `config.json` in it. A directory that holds something else is left as it is."""
    content = {"recipe": name, "seed": seed, **dataclasses.asdict(config)}
    if out is None:
        if resume:
            raise ValueError("--resume goes on with the run in a directory: name it with --out DIR")
        names = (Path("runs") / f"{name}-seed{seed}{suffix}" for suffix in ["", *(f"-{i}" for i in range(2, 10_000))])
        out = next(path for path in names if not path.exists())
    if resume:
        if differ := _differences(_read_json(out / "config.json"), json.loads(json.dumps(content))):
            raise ValueError(f"--out {out} holds a run with other settings: {_listed(differ, 'the run has')}")
        if (out / "result.json").exists():
            raise ValueError(f"--out {out} holds a finished run; see it with: jaxmeta evaluate {out}")
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        remedy = "or add --resume to go on with the run there" if (out / "config.json").exists() else "or empty it"
        raise ValueError(f"--out {out} is not empty: name a new directory with --out DIR, {remedy}")
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "config.json", content)
    return out


def _as_the_recipe(recipe: Recipe, config: Outer) -> dict[str, Any]:
    """The recipe's settings for what `config` asks of the fields `by`, which themselves are as in the recipe."""
    default = recipe.config()
    return dataclasses.asdict(recipe.settings_for(config)) | {field: getattr(default, field) for field in recipe.by}


_NONE = "not a field"


def _differences(there: dict[str, Any], here: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, with both values; those of an option that has fields are named `option.field`."""
    there, here = dict(_flat(there)), dict(_flat(here))
    values = {name: (there.get(name, _NONE), here.get(name, _NONE)) for name in there | here}
    return {name: (one, other) for name, (one, other) in values.items() if one != other}


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _listed(differences: dict[str, tuple[Any, Any]], who: str) -> str:
    return ", ".join(f"{name} {here} ({who} {there})" for name, (there, here) in differences.items())


def _read_config(directory: Path) -> tuple[str, int, Outer]:
    content = _read_json(directory / "config.json")
    name, seed = content.pop("recipe", None), content.pop("seed", None)
    if name not in RECIPES:
        raise ValueError(f"DIR {directory} holds a run of {name!r}, which is no recipe of this version")
    try:
        return name, seed, from_dict(type(RECIPES[name].config()), content)
    except TypeError as error:
        raise ValueError(f"DIR {directory} holds a run of another version: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"DIR {path.parent} holds no run of jaxmeta: {error}") from error


def _restore(directory: Path, experiment: Experiment) -> MetaState:
    return restore_state(directory / "state", jax.eval_shape(experiment.learner.init, jax.random.key(0)))


def _write(path: Path, content: dict[str, Any]) -> None:
    """All or nothing."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    temporary.replace(path)


def _device() -> str:
    """What this process may use."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    return f"cpu ({counted(num_cores(), 'core')}{f', {len(devices)} devices' if len(devices) > 1 else ''})"

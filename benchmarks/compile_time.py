"""Seconds to trace and to compile a meta-step against inner steps, tasks and depth.

The inner loop of jaxmeta is a scan, that of plain JAX a Python loop: its program grows with the number of inner steps.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import jax
import numpy as np

from benchmarks.shared.cases import Case, cast, conv4, episodes
from benchmarks.shared.contenders import plain_update
from benchmarks.shared.measure import summary
from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import legend_below, panels, words
from benchmarks.shared.report import Row, print_table, write_report
from jaxmeta import Task, adapt, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Options(CommonOptions):
    num_samples: int = 3
    """Samples, each after JAX has forgotten all programs."""


def _mlp(num_tasks: int, num_steps: int, depth: int) -> Case:
    tasks = episodes(num_tasks, 5, 1, 15, (64,))
    return Case(nn.MLP((64,) * depth, 5), nn.cross_entropy, tasks, num_steps, 0.1)


def _conv4(num_tasks: int, num_steps: int, depth: int) -> Case:
    return conv4(num_tasks, num_steps)


_AT = {"num_tasks": 8, "num_steps": 5, "depth": 4}
# case: (num_tasks, num_steps, depth) -> Case, and the values that each of them takes while the others stay at _AT
Swept: TypeAlias = tuple[Callable[..., Case], dict[str, Sequence[int]]]
CASES: dict[str, Swept] = {
    "mlp": (_mlp, {"num_steps": (1, 5, 10, 20), "num_tasks": (1, 8, 64), "depth": (2, 4, 8, 16)}),
    "conv4": (_conv4, {"num_steps": (1, 5, 10), "num_tasks": (1, 8, 32)}),
}
_QUICK: dict[str, Swept] = {"mlp": (_mlp, {"num_steps": (1, 2)})}
_LABELS = {"num_steps": "inner steps K", "num_tasks": "tasks", "depth": "layers"}


def run(options: Options, path: Path) -> Sequence[Row]:
    num_samples = 1 if options.quick else options.num_samples
    rows: list[Row] = []
    for name, (build, sweeps) in choose(options.cases or "*", _QUICK if options.quick else CASES).items():
        for sweep, values in sweeps.items():
            for at in ({**_AT, sweep: value} for value in values):
                for method, samples in interleaved_samples(build(**at), num_samples).items():
                    trace, compile_ = (summary(list(column)) for column in zip(*samples, strict=True))
                    row = {"case": name, "sweep": sweep, "method": method, **at}
                    rows.append({**row, "trace": trace, "compile": compile_})
        _print_case([row for row in rows if row["case"] == name])
        write_report(path, "compile_time", rows, draw)  # after each case: a run that is killed loses nothing
    return rows


def interleaved_samples(case: Case, num_samples: int) -> dict[str, list[tuple[float, float]]]:
    """For each method its (trace seconds, compile seconds), the methods taking turns."""
    samples: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for _ in range(num_samples):
        for method, program in METHODS.items():
            jax.clear_caches()
            fn, arguments = program(case)
            samples[method].append(trace_and_compile(fn, arguments))
    return samples


def trace_and_compile(fn: Callable, arguments: tuple) -> tuple[float, float]:
    """Seconds until XLA has the program, and seconds that it takes to compile it."""
    start = time.perf_counter()
    lowered = jax.jit(fn).lower(*arguments)
    middle = time.perf_counter()
    lowered.compile()
    return middle - start, time.perf_counter() - middle


def _jaxmeta(strategy: adapt.MetaGradient) -> Callable[[Case], tuple[Callable, tuple]]:
    def program(case: Case) -> tuple[Callable, tuple]:
        learner = case.maml(meta_gradient=strategy)
        return learner.update, jax.eval_shape(lambda key: (key, learner.init(key), _tasks(case)), jax.random.key(0))

    return program


def _plain(case: Case) -> tuple[Callable, tuple]:
    init, update = plain_update(case)
    return update, jax.eval_shape(lambda key: (init(case.init(key)), _tasks(case)), jax.random.key(0))


def _tasks(case: Case) -> Task:
    return cast(case.tasks, np.float32)


METHODS = {
    "jaxmeta, auto": _jaxmeta(adapt.auto()),
    "jaxmeta, exact": _jaxmeta(adapt.exact()),
    "jaxmeta, mixed mode": _jaxmeta(adapt.mixed_mode()),
    "plain JAX": _plain,
}


def _print_case(rows: Sequence[Row]) -> None:
    print(
        f"\n{rows[0]['case']}, where not swept: " + ", ".join(f"{_LABELS[key]} {value}" for key, value in _AT.items())
    )
    print_table(
        ["method", "sweep", "value", "trace s", "min", "max", "compile s", "min", "max"],
        [
            [row["method"], _LABELS[row["sweep"]], row[row["sweep"]]]
            + [row[part][key] for part in ("trace", "compile") for key in ("median", "min", "max")]
            for row in rows
        ],
    )


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """A row of panels for each case, one for each sweep: compiling as lines, tracing dashed."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    sweeps = list(_LABELS)
    figure, axes = panels(len(names), len(sweeps), f"Tracing and compiling one meta-step, on {device}")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for panels_of_case, name in zip(axes, names, strict=True):
        for panel, sweep in zip(panels_of_case, sweeps, strict=True):
            swept = [row for row in rows if row["case"] == name and row["sweep"] == sweep]
            for method in methods:
                chosen = [row for row in swept if row["method"] == method]
                for part, line in (("compile", "-"), ("trace", "--")):
                    low, middle, high = (
                        np.array([row[part][key] for row in chosen]) for key in ("min", "median", "max")
                    )
                    look = words(method) | {"linestyle": line, "label": f"{method}: {part}"}
                    x, whiskers = [row[sweep] for row in chosen], [middle - low, high - middle]
                    panel.errorbar(x, middle, whiskers, markersize=4, capsize=2, **look)
            fixed = ", ".join(f"{_LABELS[key]} {value}" for key, value in _AT.items() if key != sweep)
            panel.set(xlabel=_LABELS[sweep], ylabel="seconds", xscale="log", ylim=(0, None))
            panel.set_title(f"{name}: {fixed}", fontsize=9)
            ticks = sorted({row[sweep] for row in swept})
            panel.set_xticks(ticks, [str(tick) for tick in ticks])
            panel.minorticks_off()
            panel.set_visible(bool(swept))
    legend_below(figure, axes.flat, num_columns=len(methods))
    return figure

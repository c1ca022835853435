"""Memory and time of a meta-step against inner steps, tasks and model size, for every strategy.

Strategies that compile to the same program, as `auto` and what it has chosen, are timed once and share the samples.
Memory is what the compiled program says of its temporary buffers. Beside it, at a few points, stands what the process
really took: the growth of its resident memory while it ran the step, each point in a process of its own.
"""

import multiprocessing
import re
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks.shared.cases import Case, cast, episodes, regression, sequences, sinusoid
from benchmarks.shared.measure import Program, interleave, jax_program, summary
from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import legend_below, panels, style
from benchmarks.shared.report import Row, print_table, write_report
from benchmarks.shared.strategies import APPROXIMATE, EXACT, Strategies
from jaxmeta import adapt, nn
from jaxmeta.plotting.costs import draw_costs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRATEGIES = {**EXACT, **{name: APPROXIMATE[name] for name in ("first order", "truncated(1)")}}
LEARNS_RATES = {"exact": EXACT["exact"], "forward mode": lambda k: adapt.forward_mode()}


class Model(NamedTuple):
    """A network of any size, and what is swept around the point `at`. build: (size, num_tasks, num_steps) -> Case."""

    build: Callable[..., Case]
    at: dict[str, int]
    sweeps: dict[str, Sequence[int]]
    size_name: str = "width"
    inner_optimizer: adapt.InnerOptimizer | None = None
    strategies: Strategies = STRATEGIES


@dataclass(frozen=True)
class Options(CommonOptions):
    num_rounds: int = 9
    """Samples of the time of each point."""
    max_bytes: int = 4 * 2**30
    """Programs that need more temporary memory are compiled but not run."""
    max_flops: float = 4e11
    """Meta-steps that need more arithmetic are compiled but not run."""
    processes: bool = True
    """Measure some points in processes of their own."""


def _few_shot_mlp(size: int, num_tasks: int, num_steps: int) -> Case:
    tasks = episodes(num_tasks, 5, 1, 15, (784,))
    return Case(nn.MLP((size, size // 2, 64, 64), 5), nn.cross_entropy, tasks, num_steps, 0.1)


def _wide_mlp(size: int, num_tasks: int, num_steps: int) -> Case:
    tasks = episodes(num_tasks, 10, 100, 10, (64,))
    return Case(nn.MLP((size,) * 3, 10), nn.cross_entropy, tasks, num_steps, 0.1)


def _small_mlp(size: int, num_tasks: int, num_steps: int) -> Case:
    return Case(nn.MLP((size,) * 3), nn.mean_squared_error, regression(num_tasks, 20, 20), num_steps, 0.01)


def _transformer(size: int, num_tasks: int, num_steps: int, remat: bool = False) -> Case:
    tasks = sequences(num_tasks, 4, 4, 128, 64)
    network = nn.Transformer(num_outputs=64, max_length=128, num_tokens=64, num_layers=size, width=64, remat=remat)
    return Case(network, nn.cross_entropy, tasks, num_steps, 0.1)


_STEPS = (1, 5, 20, 100, 500)
_MEASURED_STEPS = 20  # where a process of its own shows what it really takes
_ADAM = adapt.from_optax(optax.adam(1e-2, eps_root=1e-8))
MODELS = {
    "few-shot-mlp": Model(
        _few_shot_mlp,
        at={"size": 256, "num_tasks": 16, "num_steps": 5},
        sweeps={"num_steps": _STEPS, "num_tasks": (1, 4, 16, 64), "size": (64, 256, 1024)},
    ),
    "wide-mlp": Model(
        _wide_mlp,
        at={"size": 512, "num_tasks": 4, "num_steps": 5},
        sweeps={"num_steps": _STEPS, "num_tasks": (1, 4, 16), "size": (128, 512, 2048)},
    ),
    "small-mlp-adam": Model(
        _small_mlp,
        at={"size": 64, "num_tasks": 4, "num_steps": 100},
        sweeps={"num_steps": _STEPS, "num_tasks": (1, 4, 16, 64), "size": (16, 64, 256)},
        inner_optimizer=_ADAM,
    ),
    "transformer": Model(
        _transformer,
        at={"size": 4, "num_tasks": 4, "num_steps": 5},
        sweeps={"num_steps": (1, 5, 20), "num_tasks": (1, 4)},
        size_name="layers",
    ),
    # the columns of MixFlow-MG's paper: `exact` of the first; `exact, remat` and `mixed mode` of the second
    **{
        name: Model(
            partial(_transformer, remat=remat),
            at={"size": 4, "num_tasks": 1, "num_steps": 2},
            sweeps={"num_steps": (2, 4, 8)},
            size_name="layers",
            inner_optimizer=_ADAM,
            strategies={label: EXACT[label] for label in ("exact", "exact, remat", "mixed mode")},
        )
        for name, remat in (("transformer-adam", False), ("transformer-adam-remat", True))
    },
    "learned-rates": Model(
        _small_mlp,
        at={"size": 64, "num_tasks": 4, "num_steps": 100},
        sweeps={"num_steps": _STEPS},
        inner_optimizer=adapt.lslr(0.01, num_inner_steps=1),
        strategies=LEARNS_RATES,
    ),
}
QUICK_MODELS = {
    "tiny-mlp": Model(
        lambda size, num_tasks, num_steps: sinusoid(num_tasks, num_steps)._replace(network=nn.MLP((size,))),
        at={"size": 8, "num_tasks": 2, "num_steps": 4},
        sweeps={"num_steps": (1, 4)},
    )
}


def run(options: Options, path: Path) -> Sequence[Row]:
    models = choose(options.cases or "*", QUICK_MODELS if options.quick else MODELS)
    rows: list[Row] = []
    for name, model in models.items():
        done: dict[tuple, list[Row]] = {}  # the sweeps cross
        for sweep, values in model.sweeps.items():
            for at in ({**model.at, sweep: value} for value in values):
                if (*at.values(),) not in done:
                    done[(*at.values(),)] = measure(name, model, at, options)
                rows += [{"sweep": sweep, **row} for row in done[(*at.values(),)]]
        if options.processes and not options.quick:
            _add_process_peaks(name, model, rows)
        _print_model(model, [row for row in rows if row["case"] == name])
        write_report(path, "memory", rows, draw)  # after each case: a run that is killed loses nothing
    return rows


def measure(name: str, model: Model, at: dict[str, int], options: Options) -> list[Row]:
    """A row for each strategy at one point; those that may run are timed in turns."""
    flops = model.build(**at).flops()
    rows: dict[str, Row] = {}
    programs: dict[str, Program] = {}
    timed_as: dict[str, str] = {}  # of a strategy, whose program is its own
    with_text: dict[str, str] = {}
    for strategy in model.strategies:
        compiled, arguments = compile_step(model, strategy, at)
        size = compiled.memory_analysis().temp_size_in_bytes
        rows[strategy] = {"case": name, "strategy": strategy, **at, "flops": flops, "temporary_bytes": size}
        if size <= options.max_bytes and flops <= options.max_flops:
            timed_as[strategy] = with_text.setdefault(_instructions(compiled), strategy)
            if timed_as[strategy] == strategy:
                programs[strategy] = jax_program(compiled, *arguments)
    num_rounds = 2 if options.quick else options.num_rounds
    samples = interleave(programs, num_rounds=num_rounds, max_seconds=5.0)
    for strategy, who in timed_as.items():
        rows[strategy] |= summary(samples[who])
    if "auto" in timed_as:
        exact = [samples[who] for strategy, who in timed_as.items() if strategy in EXACT]
        rows["auto"]["relative_to_fastest"] = max(_relative(samples[timed_as["auto"]], of) for of in exact)
    return list(rows.values())


def _instructions(compiled: Any) -> str:
    """What the program does, without where in the code it comes from."""
    lines = (line for line in compiled.as_text().splitlines() if " = " in line)
    return re.sub(r", metadata=\{[^}]*\}", "", "\n".join(lines))


def _relative(times: Sequence[float], others: Sequence[float]) -> float:
    """The median over rounds, so that neighbours, which have met the same machine, are compared."""
    return statistics.median(time / other for time, other in zip(times, others, strict=False))


def compile_step(model: Model, strategy: str, at: dict[str, int]) -> tuple[Any, tuple]:
    """The compiled meta-step, all tasks at once, and its arguments."""
    case = model.build(**at)
    how = {"inner_optimizer": model.inner_optimizer} if model.inner_optimizer else {}
    meta_gradient = model.strategies[strategy](case.num_steps)
    learner = case.maml(meta_gradient=meta_gradient, microbatch=case.num_tasks, **how)
    key = jax.random.key(0)
    arguments = (key, jax.jit(learner.init)(key), cast(case.tasks, np.float32))
    return jax.jit(learner.update).lower(*arguments).compile(), arguments


def process_growth(name: str, strategy: str, at: dict[str, int]) -> int | None:
    """Bytes by which the most that this process ever holds grows when it runs a step; None where Linux is not."""
    compiled, arguments = compile_step(MODELS[name], strategy, at)
    return peak_growth(lambda: jax.block_until_ready(compiled(*arguments)))


def peak_growth(work: Callable[[], Any]) -> int | None:
    device = jax.local_devices()[0]
    if stats := device.memory_stats():  # a GPU or TPU
        work()
        return device.memory_stats()["peak_bytes_in_use"] - stats["bytes_in_use"]
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    reset.write_text("5")  # the peak starts anew; getrusage's would also hold that of the parent before exec
    before = _peak_bytes()
    work()
    return _peak_bytes() - before


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _add_process_peaks(name: str, model: Model, rows: list[Row]) -> None:
    spawn = multiprocessing.get_context("spawn")  # a new interpreter for each point
    for row in rows:
        is_measured = row["case"] == name and row["sweep"] == "num_steps" and row["num_steps"] == _MEASURED_STEPS
        if is_measured and "median" in row:
            at = {key: row[key] for key in model.at}
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                row["process_bytes"] = pool.submit(process_growth, name, row["strategy"], at).result()


def _print_model(model: Model, rows: Sequence[Row]) -> None:
    print(f"\n{rows[0]['case']}, " + ", ".join(f"{_label(model, key)} {value}" for key, value in model.at.items()))
    mebibytes = lambda size: None if size is None else size / 2**20
    print_table(
        ["strategy", "sweep", "value", "MiB", "MiB of process", "ms", "min", "max", "of the fastest exact"],
        [
            [
                row["strategy"],
                _label(model, row["sweep"]),
                row[row["sweep"]],
                mebibytes(row["temporary_bytes"]),
                mebibytes(row.get("process_bytes")),
                *(1e3 * row[key] if key in row else None for key in ("median", "min", "max")),
                row.get("relative_to_fastest"),
            ]
            for row in rows
        ],
    )


def _label(model: Model, key: str) -> str:
    return {"num_steps": "inner steps K", "num_tasks": "tasks", "size": model.size_name}[key]


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """A row of panels for each model: temporary memory along every sweep, and time against inner steps."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    title = f"Memory and time of one meta-step, all tasks at once, on {device}"
    title += "\nlarge circles: by how much the memory of a process of its own grew"
    figure, axes = panels(len(names), 4, title, width=3.7)
    for panels_of_model, name in zip(axes, names, strict=True):
        model = (MODELS | QUICK_MODELS)[name]
        plots = [(sweep, "temporary_bytes") for sweep in ("num_steps", "num_tasks", "size")] + [("num_steps", "median")]
        for panel, (sweep, quantity) in zip(panels_of_model, plots, strict=True):
            swept = [row for row in rows if row["case"] == name and row["sweep"] == sweep]
            panel.set_visible(bool(swept))
            _draw_sweep(panel, swept, sweep, quantity)
            at = ", ".join(f"{_label(model, k)} {v}" for k, v in _fixed(rows, name, sweep).items())
            panel.set_title(f"{name}: {at}" if at else name, fontsize=9)
            label = "time (ms)" if quantity == "median" else "temporary memory (MiB)"
            panel.set(xlabel=_label(model, sweep), ylabel=label)
    legend_below(figure, axes.flat, num_columns=4)
    return figure


def _fixed(rows: Sequence[Row], name: str, sweep: str) -> dict[str, int]:
    """What stayed as it was along a sweep."""
    row = next((row for row in rows if row["case"] == name and row["sweep"] == sweep), {})
    return {key: row[key] for key in ("size", "num_tasks", "num_steps") if key in row and key != sweep}


def _draw_sweep(panel: "Axes", rows: Sequence[Row], sweep: str, quantity: str) -> None:
    unit = 1e3 if quantity == "median" else 2**-20
    curves: dict[str, Any] = {}
    for strategy in STRATEGIES | LEARNS_RATES:
        points = [(row[sweep], unit * row[quantity]) for row in rows if row["strategy"] == strategy and quantity in row]
        if points:
            curves[strategy] = tuple(zip(*points, strict=True))
    looks = {strategy: style(strategy) for strategy in curves}
    draw_costs(panel, curves, looks, highlight="auto")  # which lies under what it has chosen
    for row in rows:
        if row.get("process_bytes") and quantity != "median":
            color = style(row["strategy"]).color
            panel.plot(row[sweep], unit * row["process_bytes"], "o", color=color, fillstyle="none", markersize=9)

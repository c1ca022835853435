"""More devices: what they tell each other, what that costs on a CPU, and what it would on accelerators.

Weak scaling gives each device as many tasks, strong scaling shares the same tasks. Beside each update over D devices
stand the same D programs on the same devices without the all-reduce: a machine with fewer cores than devices slows
both, and what is left between them is the communication. Bytes and collectives are counted in the compiled program.

The prediction takes the time of an update of one accelerator, as it was measured, and a stated interconnect:

    t_D = t_1 + 2 (g − 1)/g B / b_in + 2 log₂(g) a_in  +  2 (h − 1)/h (B / g) / b_out + 2 log₂(h) a_out

for B bytes, D = g h accelerators, g in each of h hosts; b and a are bandwidths and latencies. Nothing overlaps.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax

import jaxmeta
from benchmarks.shared.cases import FAMILIES, Case
from benchmarks.shared.measure import Program, interleave, jax_program, summary
from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import panels
from benchmarks.shared.report import Row, print_table, write_report
from benchmarks.tables import RESULTS
from jaxmeta.devices import SHARED, on_each
from jaxmeta.outer.cost import num_bytes
from jaxmeta.types import PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUM_DEVICES = (1, 2, 4, 8)
_NUM_TASKS = 8  # of a device in weak scaling, of all in strong
_MEASURED = {"sinusoid": 1, "omniglot-mlp": 1}  # inner steps
_PREDICTED = ("omniglot-mlp-t32-k5", "conv4-t32-k1", "transformer-t4-k1")

_PREDICTED_FOR = (8, 64, 512)
_CONTENDER = "jaxmeta, over devices"


class Interconnect(NamedTuple):
    """Accelerators of a host, and the bytes a second and seconds of latency within a host and between hosts."""

    num_in_host: int = 8
    bandwidth_in: float = 450e9
    latency_in: float = 3e-6
    bandwidth_out: float = 50e9
    latency_out: float = 10e-6


ASSUMED = Interconnect()  # NVLink 4, one direction, and a link of 400 Gb/s for each accelerator


@dataclass(frozen=True)
class Options(CommonOptions):
    num_rounds: int = 7
    """Samples of each program."""


def prepare() -> None:
    """As many devices as are measured; where JAX runs already it stays as it is."""
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", _NUM_DEVICES[-1])


def cases() -> dict[str, Callable[[], tuple[Case, int]]]:
    """`family-weak-dD` and `family-strong-dD`: a case and its devices."""
    build = lambda family, num_tasks, num_devices: (FAMILIES[family][0](num_tasks, _MEASURED[family]), num_devices)
    kinds = {"weak": lambda d: _NUM_TASKS * d, "strong": lambda d: _NUM_TASKS}
    return {
        f"{family}-{kind}-d{d}": partial(build, family, number(d), d)
        for family in _MEASURED
        for kind, number in kinds.items()
        for d in _NUM_DEVICES
        if d <= jax.device_count()
    }


def run(options: Options, path: Path) -> Sequence[Row]:
    chosen = choose(options.cases or ("sinusoid-weak" if options.quick else "*"), cases())
    num_rounds = 2 if options.quick else options.num_rounds
    rows = [measured(name, *build(), num_rounds=num_rounds) for name, build in chosen.items()]
    if not options.cases:
        rows += [prediction(name) for name in _PREDICTED[: 1 if options.quick else None]]
    _print(rows)
    write_report(path, "scaling", rows, draw)
    return rows


def measured(name: str, case: Case, num_devices: int, *, num_rounds: int) -> Row:
    """The update over D devices, and D programs of the same shares that do not tell each other anything."""
    learner = case.maml()
    with jaxmeta.over_devices(num_devices):
        arguments = jaxmeta.replicated((jax.random.key(0), learner.init(jax.random.key(0)), case.tasks))
        together = jax.jit(learner.update).lower(*arguments).compile()
        apart = jax.jit(partial(_apart, learner)).lower(*arguments).compile()
        programs: dict[str, Program] = {
            "together": jax_program(together, *arguments),
            "apart": jax_program(apart, *arguments),
        }
        seconds = {which: summary(of) for which, of in interleave(programs, num_rounds=num_rounds).items()}
    return {
        "case": name,
        "contender": _CONTENDER,
        "num_devices": num_devices,
        "num_tasks": case.num_tasks,
        **collectives(together.as_text() or ""),
        "seconds": seconds["together"],
        "seconds_apart": seconds["apart"],
        "efficiency_of_communication": seconds["apart"]["median"] / seconds["together"]["median"],
    }


def _apart(learner: jaxmeta.MetaLearner, key: jax.Array, state: PyTree, tasks: PyTree) -> PyTree:
    """What each device would do alone with its share."""

    def update(everywhere: tuple[jax.Array, jaxmeta.MetaState], share: PyTree) -> PyTree:
        key, state = everywhere
        return jax.tree.map(lambda x: x[None], learner.update(key, state, share))

    return on_each(update, SHARED)((key, state), tasks)


def collectives(text: str) -> dict[str, int]:
    """The all-reduces and other collectives of a compiled program, and the bytes that are reduced.

    >>> collectives("%a = (f32[3]{0}, f32[2,2]{1,0}) all-reduce(%b, %c), channel_id=1")
    {'num_all_reduces': 1, 'num_others': 0, 'bytes_reduced': 28}
    """
    kinds = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text)
    reduced = [shapes for shapes, kind in found if kind == "all-reduce"]
    size = lambda dtype, shape: int(dtype) // 8 * math.prod(int(n) for n in shape.split(",") if n)
    num_bytes = sum(size(*array) for shapes in reduced for array in re.findall(r"[fsu](\d+)\[([\d,]*)\]", shapes))
    return {"num_all_reduces": len(reduced), "num_others": len(found) - len(reduced), "bytes_reduced": num_bytes}


def prediction(name: str, interconnect: Interconnect = ASSUMED) -> Row:
    """Weak scaling of a case whose update was timed on an accelerator, with the tasks that it had there for each."""
    path = RESULTS / "nvidia-h200" / "throughput.json"
    timed = next(
        row for row in json.loads(path.read_text())["rows"] if (row["case"], row["contender"]) == (name, "jaxmeta")
    )
    family, num_steps = name.split("-t")[0], timed["num_steps"]
    params = jax.eval_shape(FAMILIES[family][0](timed["num_tasks"], num_steps).init, jax.random.key(0))
    size = num_bytes(params)
    predicted = {}
    for num_devices in _PREDICTED_FOR:
        seconds = all_reduce_seconds(size, num_devices, interconnect)
        efficiency = timed["median"] / (timed["median"] + seconds)
        predicted[str(num_devices)] = {
            "all_reduce_seconds": seconds,
            "efficiency": efficiency,
            "tasks_per_second": num_devices * timed["num_tasks"] / timed["median"] * efficiency,
        }
    return {
        "case": f"{name}-predicted",
        "contender": _CONTENDER,
        "num_tasks_of_each": timed["num_tasks"],
        "seconds_of_one": timed["median"],
        "bytes_reduced": size,
        "interconnect": interconnect._asdict(),
        "predicted": predicted,
    }


def all_reduce_seconds(num_bytes: int, num_devices: int, of: Interconnect = ASSUMED) -> float:
    """Of one all-reduce: within each host, then of each accelerator's part between hosts.

    >>> one_host = Interconnect(num_in_host=8, bandwidth_in=7.0, latency_in=0.0)
    >>> all_reduce_seconds(4, 8, one_host)
    1.0
    """
    in_host = min(num_devices, of.num_in_host)
    hosts = num_devices // in_host
    within = 2 * (in_host - 1) / in_host * num_bytes / of.bandwidth_in + 2 * math.log2(in_host) * of.latency_in
    between = 2 * (hosts - 1) / hosts * num_bytes / in_host / of.bandwidth_out + 2 * math.log2(hosts) * of.latency_out
    return within + between


def _print(rows: Sequence[Row]) -> None:
    line = lambda row: (
        row["case"],
        row["num_tasks"],
        row["num_all_reduces"],
        row["num_others"],
        row["bytes_reduced"],
        1e3 * row["seconds"]["median"],
        1e3 * row["seconds_apart"]["median"],
        row["efficiency_of_communication"],
    )
    headings = ("case", "tasks", "all-reduces", "others", "bytes", "ms", "ms apart", "efficiency")
    print_table(headings, [line(row) for row in rows if "seconds" in row])
    predicted = [row for row in rows if "predicted" in row]
    if predicted:
        print(f"\npredicted for {ASSUMED}")
        of = lambda row: (row["case"], row["bytes_reduced"], *(p["efficiency"] for p in row["predicted"].values()))
        print_table(("case", "bytes", "8", "64", "512"), [of(row) for row in predicted])


def draw(rows: Sequence[Row], where: str) -> "Figure":
    """The efficiency of the communication against the devices: measured, and predicted."""
    figure, ((left, right),) = panels(1, 2, f"Scaling: update without the all-reduce / update, {where}")
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if "predicted" in row:
            points = [(int(d), of["efficiency"]) for d, of in row["predicted"].items()]
            right.plot(*zip(*points, strict=True), "o-", label=row["case"].removesuffix("-predicted"))
        else:
            curve = curves.setdefault(row["case"].rpartition("-d")[0], [])
            curve.append((row["num_devices"], row["efficiency_of_communication"]))
    for name, points in curves.items():
        left.plot(*zip(*sorted(points), strict=True), "o-", label=name)
    titles = {"measured here": (left, _NUM_DEVICES), "predicted for accelerators": (right, _PREDICTED_FOR)}
    for title, (axes, numbers) in titles.items():
        axes.set(xscale="log", xlabel="devices", ylim=(0, 1.3), title=title)
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.minorticks_off()
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    return figure

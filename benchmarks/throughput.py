"""Tasks per second of one exact meta-step: jaxmeta, plain JAX and PyTorch's libraries in turns.

All have the same weights, tasks and loss. First each shows in float64 that it computes the same meta-gradient; one that
does not is not timed. The limit is the rate of a large matrix product, which takes its turns with the rest.
"""

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import jax
import numpy as np

from benchmarks.shared.cases import FAMILIES, Case
from benchmarks.shared.contenders import (
    JAXMETA,
    JAXMETA_DEVICES,
    JAXMETA_LOOP,
    PLAIN,
    Contender,
    MetaStep,
    Unavailable,
    plain_gradient,
    relative_error,
)
from benchmarks.shared.measure import float64, interleave, matrix_product, summary
from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import panels, style
from benchmarks.shared.report import Row, print_table, text, write_report
from jaxmeta.devices import num_cores
from jaxmeta.types import PyTree
from jaxmeta.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Checked: TypeAlias = tuple[Contender, MetaStep | None, dict[str, Any]]  # and the errors, or why it is left out

_QUICK = "sinusoid-t25-k1,omniglot-mlp-t32-k1"
_TOLERANCE_FLOAT64 = 1e-9
_TOLERANCE_CUDNN = 1e-7  # on an H200 plain JAX's conv4 is off the CPU's by 1e-8, and jaxmeta's by 2e-15
_TOLERANCE = {"float32": 1e-1, "tf32": 3e-1}  # wide: batch norm and a large inner rate multiply rounding errors
_LARGE = 1e11  # FLOPs of a meta-step
_TOLERANCE_OF_A_TASK = 1e-3  # on which rounding flips no unit
_PRODUCT = "matrix product"


@dataclass(frozen=True)
class Options(CommonOptions):
    num_rounds: int = 11
    """Samples of each contender."""
    precision: Literal["float32", "tf32"] = "float32"
    """Of products on NVIDIA GPUs, for all contenders."""
    without: str | None = None
    """Contenders to leave out, with commas between: torch.compile takes minutes to compile a case."""


def cases() -> dict[str, Callable[[], Case]]:
    """`family-tN-kK` for each N tasks and K inner steps of each family."""
    return {
        f"{family}-t{num_tasks}-k{num_steps}": partial(build, num_tasks, num_steps)
        for family, (build, variants) in FAMILIES.items()
        for num_tasks, num_steps in variants
    }


def prepare() -> None:
    """Makes a device of each core of a CPU; where JAX runs already it stays as it is."""
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", num_cores())


def run(options: Options, path: Path) -> Sequence[Row]:
    chosen = choose(options.cases or (_QUICK if options.quick else "*"), cases())
    contenders = [JAXMETA_LOOP, JAXMETA_DEVICES, PLAIN, *_peers(options.precision)]
    left_out = choose(options.without, {of.name: of for of in contenders}) if options.without else {}
    contenders = [JAXMETA, *(of for of in contenders if of.name not in left_out)]
    num_rounds = 3 if options.quick else options.num_rounds
    rows: list[Row] = []
    with jax.default_matmul_precision("highest" if options.precision == "float32" else "tensorfloat32"):
        for name, build in chosen.items():
            rows += compete(name, build(), contenders, num_rounds, _TOLERANCE[options.precision])
            _print_case([row for row in rows if row["case"] == name])
            write_report(path, "throughput", rows, draw)  # after each case: a run that is killed loses nothing
    return rows


def compete(
    name: str, case: Case, contenders: Sequence[Contender], num_rounds: int, tolerance: float = _TOLERANCE["float32"]
) -> list[Row]:
    """A row for each contender, jaxmeta among them: checked and timed, or why not; and one for the matrix product."""
    params = jax.tree.map(np.asarray, case.init(jax.random.key(0)))
    built, rows = {}, {}
    for contender, step, verdict in in_best_layouts(check(case, params, contenders, tolerance)):
        rows[contender.name] = {"case": name, "contender": contender.name, **verdict}
        if step is not None:
            built[contender.name] = step
    if JAXMETA.name not in built:
        raise RuntimeError(f"{name}: jaxmeta computes {rows[JAXMETA.name]['skipped']}")
    product = matrix_product()
    programs = {who: step.program for who, step in built.items()} | {_PRODUCT: product.program}
    times = {who: summary(samples) for who, samples in interleave(programs, num_rounds=num_rounds).items()}

    rate = product.flops / times[_PRODUCT]["median"]
    rows[_PRODUCT] = {"case": name, "contender": _PRODUCT, "flops": product.flops, **times[_PRODUCT]}
    flops = case.flops()
    for who in built:
        seconds = times[who]["median"]
        rows[who] |= {
            "num_tasks": case.num_tasks,
            "num_steps": case.num_steps,
            "flops": flops,
            "tasks_per_second": case.num_tasks / seconds,
            "speed_relative_to_jaxmeta": times[JAXMETA.name]["median"] / seconds,
            "fraction_of_matrix_product_rate": flops / seconds / rate,
            **times[who],
        }
    return list(rows.values())


def check(case: Case, params: PyTree, contenders: Sequence[Contender], tolerance: float) -> Iterator[Checked]:
    """Builds each contender; yields it, its meta-step or None, and its errors or the reason why it is left out.

    The reference is plain JAX, task by task. In float64, on the CPU, two of the tasks suffice, or one with a fifth of
    its examples where even these take many minutes; the program to be timed, in float32, is then held against the
    reference in float32. Where ReLU's kink makes these differ, one of the tasks
    has to agree.
    """
    two = _first(case, 2) if case.flops() < _LARGE else _thinned(case, 0)
    with float64(), jax.default_device(jax.local_devices(backend="cpu")[0]):
        exact = plain_gradient(two, params, np.float64)
    plain = plain_gradient(case, params, np.float32)
    of_task = cache(lambda i: plain_gradient(_thinned(case, i), params, np.float32))
    for contender in contenders:
        try:
            with float64():
                error64 = relative_error(contender.build(two, params, np.float64).gradient, exact)
            step = contender.build(case, params, np.float32)
        except Unavailable as reason:
            yield contender, None, {"skipped": str(reason)}
            continue
        errors = {"error_float64": error64, "error_float32": relative_error(step.gradient, plain)}
        agrees, agrees_as_timed = error64 <= _tolerance_float64(contender), errors["error_float32"] <= tolerance
        if agrees and not agrees_as_timed:
            errors["error_float32_of_a_task"] = _least_error_of_a_task(contender, case, params, of_task)
            agrees_as_timed = errors["error_float32_of_a_task"] <= _TOLERANCE_OF_A_TASK
        if agrees and agrees_as_timed:
            yield contender, step, errors
        else:
            message = f"another meta-gradient: relative error {error64:.1e} in float64"
            names = {"error_float32": "as timed", "error_float32_of_a_task": "on the task that agrees best"}
            message += "".join(f", {errors[key]:.1e} {name}" for key, name in names.items() if key in errors)
            yield contender, None, {"skipped": message, **errors}


def in_best_layouts(checked: Iterable[Checked]) -> Iterator[Checked]:
    """Of neighbours with one name that are right, the one whose first few steps, in turns, are the fastest.

    Its verdict tells the seconds of all. Where there is one or none there is nothing to tell.
    """
    for _, layouts in itertools.groupby(checked, key=lambda entry: entry[0].name):
        entries = list(layouts)
        right = {entry[0].layout: entry for entry in entries if entry[1] is not None}
        if len(right) < 2:
            yield next(iter(right.values()), entries[0])
            continue
        programs = {layout: step.program for layout, (_, step, _) in right.items() if step is not None}
        samples = interleave(programs, num_rounds=3, max_seconds=1.0)
        seconds = {layout: statistics.median(of_layout) for layout, of_layout in samples.items()}
        contender, step, verdict = right[min(seconds, key=seconds.__getitem__)]
        yield contender, step, {**verdict, "layout": contender.layout, "seconds_of_layouts": seconds}


def _tolerance_float64(contender: Contender) -> float:
    """Of cuDNN's convolutions on a GPU, or 1e-9: jaxmeta has none of them."""
    has_cudnn = jax.default_backend() == "gpu" and not contender.name.startswith(JAXMETA.name)
    return _TOLERANCE_CUDNN if has_cudnn else _TOLERANCE_FLOAT64


def _least_error_of_a_task(
    contender: Contender, case: Case, params: PyTree, reference: Callable[[int], PyTree]
) -> float:
    """In float32, of the tasks in turn until one agrees.

    Where rounding puts one unit before a ReLU on the other side of zero, the meta-gradient of its task jumps, after a
    few inner steps by per cents. That befalls some of the tasks; a program that is wrong is wrong on every one.
    """
    least = np.inf
    for i in range(case.num_tasks):
        gradient = contender.build(_repeated(_thinned(case, i), case.num_tasks), params, np.float32).gradient
        least = min(least, relative_error(gradient, reference(i)))
        if least <= _TOLERANCE_OF_A_TASK:
            break
    return least


def _first(case: Case, number: int) -> Case:
    return case._replace(tasks=jax.tree.map(lambda x: x[:number], case.tasks))


def _thinned(case: Case, index: int) -> Case:
    """One of the tasks alone, with a fifth of its examples: of fewer, fewer flip."""
    return case._replace(tasks=jax.tree.map(lambda x: x[index : index + 1, ::5], case.tasks))


def _repeated(case: Case, number: int) -> Case:
    """One task so often that they fill the batch, whose meta-gradient is then its own."""
    return case._replace(tasks=jax.tree.map(lambda x: np.repeat(x, number, axis=0), case.tasks))


def _peers(precision: str) -> list[Contender]:
    try:
        from benchmarks.shared import peers
    except ImportError as error:
        print(f"without PyTorch's libraries ({error}): pip install -e '.[peers]' adds them")
        return []
    peers.set_precision(allow_tf32=precision == "tf32")
    return peers.CONTENDERS


def _print_case(rows: Sequence[Row]) -> None:
    product = next(row for row in rows if row["contender"] == _PRODUCT)
    print(f"\n{rows[0]['case']}; matrix product {product['flops'] / product['median'] / 1e9:,.0f} GFLOP/s")
    timed = [row for row in rows if "tasks_per_second" in row]
    print_table(
        ["", "tasks/s", "× jaxmeta", "of product", "ms", "min", "max", "error float64", "float32"],
        [
            [
                row["contender"],
                row["tasks_per_second"],
                row["speed_relative_to_jaxmeta"],
                f"{row['fraction_of_matrix_product_rate']:.1%}",
                *(1e3 * row[key] for key in ("median", "min", "max")),
                f"{row['error_float64']:.0e}",
                f"{row['error_float32']:.0e}",
            ]
            for row in timed
        ],
    )
    for row in rows:
        if "skipped" in row:
            print(f"{row['contender']}: {row['skipped']}")
        if "layout" in row:
            seconds = ", ".join(f"{layout} {1e3 * s:.3g} ms" for layout, s in row["seconds_of_layouts"].items())
            print(f"{row['contender']}: {row['layout']}, of {seconds}")


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """A panel of bars for each case: the median of tasks per second, with whiskers from the slowest to the fastest."""
    timed = [row for row in rows if "tasks_per_second" in row]
    names = list(dict.fromkeys(row["case"] for row in timed))
    num_columns = min(2, len(names))
    num_rows = -(-len(names) // num_columns)
    figure, axes = panels(num_rows, num_columns, f"One exact meta-step, float32, on {device}", width=5.6, height=2.4)
    for panel, name in zip(axes.flat, names, strict=False):
        for i, row in enumerate(row for row in timed if row["case"] == name):
            speed, slowest, fastest = (row["num_tasks"] / row[key] for key in ("median", "max", "min"))
            color = style(row["contender"]).color
            panel.barh(i, speed, xerr=[[speed - slowest], [fastest - speed]], color=color, capsize=3)
            percent = 100 * row["fraction_of_matrix_product_rate"]
            label = f" {text(speed)}/s = {row['speed_relative_to_jaxmeta']:.2g}× ({text(percent)}%)"
            panel.text(fastest, i, label, va="center", fontsize=8)
        labels = [row["contender"] for row in timed if row["case"] == name]
        panel.set_yticks(range(len(labels)), labels)
        panel.invert_yaxis()
        panel.set_xlim(0, 1.7 * max(row["num_tasks"] / row["min"] for row in timed if row["case"] == name))
        panel.set(title=_title(next(row for row in timed if row["case"] == name)), xlabel="tasks per second")
        panel.locator_params(axis="x", nbins=5)
        panel.grid(False, axis="y")
    for panel in axes.flat[len(names) :]:
        panel.set_visible(False)
    figure.supxlabel("×: speed relative to jaxmeta; %: of this machine's matrix-product rate", fontsize=9)
    return figure


def _title(row: Row) -> str:
    family = row["case"].rsplit("-t", 1)[0]
    return f"{family}, {counted(row['num_tasks'], 'task')}, K = {row['num_steps']}"

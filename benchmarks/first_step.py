"""Seconds that a new process takes to its first meta-step, after the imports, beside PyTorch's.

Every sample is a process of its own. "Cold" is one that finds nothing on disk, and traces and compiles; "warm" the next
one, for which `jaxmeta.keep_compiled` has kept what was compiled. PyTorch compiles nothing.
"""

import importlib.util
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

import jaxmeta
from benchmarks.shared.cases import Case, cast, conv4, sinusoid, transformer
from benchmarks.shared.measure import summary
from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import panels
from benchmarks.shared.report import Row, print_table, write_report
from jaxmeta import TaskDistribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASES: dict[str, tuple[Callable[[int, int], Case], int, int]] = {
    "sinusoid-t25-k1": (sinusoid, 25, 1),
    "conv4-t8-k1": (conv4, 8, 1),
    "conv4-t8-k5": (conv4, 8, 5),
    "transformer-t4-k1": (transformer, 4, 1),
}
_QUICK = ("sinusoid-t25-k1",)


@dataclass(frozen=True)
class Options(CommonOptions):
    num_samples: int = 3
    """Processes of each kind."""


def run(options: Options, path: Path) -> Sequence[Row]:
    cases = choose(options.cases or (",".join(_QUICK) if options.quick else "*"), CASES)
    if importlib.util.find_spec("torch") is None:
        print("without PyTorch: pip install -e '.[peers]'")
    rows: list[Row] = []
    for name in cases:
        samples = interleaved_samples(name, 1 if options.quick else options.num_samples)
        rows += [{"case": name, "contender": who, "seconds": summary(found)} for who, found in samples.items()]
        write_report(path, "first_step", rows, draw)  # after each case: a run that is killed loses nothing
    print_table(
        ["case", "contender", "s", "min", "max"],
        [[row["case"], row["contender"], *(row["seconds"][key] for key in ("median", "min", "max"))] for row in rows],
    )
    return rows


def interleaved_samples(name: str, num_samples: int) -> dict[str, list[float]]:
    """For each contender its seconds, the processes taking turns: a cold one, a warm one, PyTorch's."""
    samples: dict[str, list[float]] = {"jaxmeta, cold": [], "jaxmeta, warm": []}
    for _ in range(num_samples):
        with tempfile.TemporaryDirectory() as folder:
            for found in samples.values():
                found.append(_in_a_new_process(first_step_of_jaxmeta, name, folder))
    if importlib.util.find_spec("torch") is not None:
        samples["torch.func"] = [_in_a_new_process(first_step_of_torch, name) for _ in range(num_samples)]
    return samples


def _in_a_new_process(fn: Callable[..., float], *args: str) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(fn, *args).result()


def _case(name: str) -> Case:
    build, num_tasks, num_steps = CASES[name]
    return build(num_tasks, num_steps)


def first_step_of_jaxmeta(name: str, folder: str) -> float:
    """`fit` takes one step, with what it looks at before."""
    jaxmeta.keep_compiled(folder)
    case = _case(name)
    jax.devices()
    start = time.perf_counter()
    learner = case.maml()
    one_of = lambda key, data: jax.tree.map(lambda x: x[jax.random.randint(key, (), 0, len(x))], data)
    tasks = TaskDistribution(one_of, cast(case.tasks, np.float32))
    state, _ = jaxmeta.fit(
        jax.random.key(0), learner, tasks, num_outer_steps=1, num_tasks=case.num_tasks, progress=False
    )
    jax.block_until_ready(state)
    return time.perf_counter() - start


def first_step_of_torch(name: str) -> float:
    """What the contender builds has taken its first step; its initial weights are made before."""
    from benchmarks.shared.peers import by_name

    case = _case(name)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(case.init, jax.random.key(0))
    params = jax.tree.map(lambda shape: rng.normal(0, 0.05, shape.shape).astype(np.float32), shapes)
    start = time.perf_counter()
    by_name("torch.func").build(case, params, np.float32)
    return time.perf_counter() - start


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """A panel for each case, a bar for each contender, with the range of its samples."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = panels(1, len(names), f"Seconds to the first meta-step, on {device}", height=2.0)
    for panel, name in zip(axes.flat, names, strict=True):
        chosen = [row for row in rows if row["case"] == name][::-1]
        low, middle, high = (np.array([row["seconds"][key] for row in chosen]) for key in ("min", "median", "max"))
        panel.barh([row["contender"] for row in chosen], middle, xerr=[middle - low, high - middle], capsize=2)
        panel.set(xlabel="seconds", title=name)
    return figure

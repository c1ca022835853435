"""How many inner steps fit in 1 GiB, for each network and strategy, beside higher and PyTorch with checkpoints.

Of one outer step of one task, in float32. For jaxmeta a program is compiled and not run, and asked for its temporary
buffers; for PyTorch a process of its own takes the step, and its growth is measured.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from benchmarks.memory import Model, compile_step, peak_growth
from benchmarks.shared.cases import FAMILIES, Case
from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import panels, style
from benchmarks.shared.report import Row, print_table, write_report
from jaxmeta.types import PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRATEGIES = ("exact", "exact, segments", "mixed mode", "mixed mode, segments")
PEERS = ("higher", "PyTorch, checkpoints")
NETWORKS = ("sinusoid", "omniglot-mlp", "conv4", "mini-imagenet", "resnet12", "transformer")
_SMALL = "sinusoid"
_FURTHER = 20  # times as many steps are tried next, at most
_MOST_TRIES = 12


@dataclass(frozen=True)
class Options(CommonOptions):
    budget: int = 2**30
    """Bytes that a step may take."""
    most_steps: int = 2_000
    """As many that fit are enough."""


def run(options: Options, path: Path) -> Sequence[Row]:
    chosen = choose(options.cases or ("sinusoid" if options.quick else "*"), dict.fromkeys(NETWORKS))
    rows: list[Row] = []
    for network in chosen:
        for row in measure(network, options):
            rows.append(row)
            write_report(path, "longest_loop", rows, draw)  # a process may take an hour: what is killed loses nothing
        _print_network([row for row in rows if row["case"] == network])
    return rows


def measure(network: str, options: Options) -> Iterator[Row]:
    """A row for each strategy and each peer that is installed."""
    methods: dict[str, Callable[[int], int]] = {
        strategy: partial(temporary_bytes, network, strategy) for strategy in STRATEGIES
    }
    if not options.quick and _has_peers():
        methods |= {peer: partial(process_bytes, network, peer) for peer in PEERS}
    for method, bytes_of in methods.items():
        steps, size = longest(bytes_of, options.budget, options.most_steps)
        row = {"case": network, "method": method, "num_steps": steps, "bytes": size}
        yield row | {"budget": options.budget, "most_steps": options.most_steps}


def longest(bytes_of: Callable[[int], int], budget: int, most_steps: int) -> tuple[int, int]:
    """The largest K up to `most_steps` with bytes_of(K) <= budget, to 2%, and its bytes; 0 and those of K = 1 if none.

    Args:
      bytes_of: what K steps take, which does not fall with K.
      budget: bytes.
      most_steps: K is at most this.

    >>> longest(lambda k: 100 + 7 * k, 1000, 10_000)
    (128, 996)
    """
    sizes = {1: bytes_of(1)}
    low, high, steps = 1, most_steps + 1, min(5, most_steps)
    if sizes[1] > budget:
        return 0, sizes[1]
    for attempt in range(_MOST_TRIES):
        close = max(1, low // 50)
        if high - low <= close:
            break
        sizes[steps] = bytes_of(steps)
        low, high = (steps, high) if sizes[steps] <= budget else (low, steps)
        first, last = (low, high) if high in sizes else sorted(sizes)[-2:]
        slope = (sizes[last] - sizes[first]) / (last - first)
        straight = first + (budget - sizes[first]) / slope if slope > 0 else _FURTHER * low
        halved = attempt % 3 == 2 and high in sizes  # for what is not a straight line
        guess = (low + high) // 2 if halved else int(min(straight, _FURTHER * low))
        steps = min(max(guess, low + max(1, low // 50)), high - 1)
    return low, sizes[low]


def case_of(network: str, num_steps: int) -> Case:
    build, _ = FAMILIES[network]
    return build(1, num_steps)


def temporary_bytes(network: str, strategy: str, num_steps: int) -> int:
    model = Model(lambda num_tasks, num_steps: case_of(network, num_steps), at={}, sweeps={})
    compiled, _ = compile_step(model, strategy, {"num_tasks": 1, "num_steps": num_steps})
    return compiled.memory_analysis().temp_size_in_bytes


def process_bytes(network: str, peer: str, num_steps: int) -> int:
    spawn = multiprocessing.get_context("spawn")  # a new interpreter, in which nothing was compiled
    params = {name: _initial(name) for name in (_SMALL, network)}
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_growth, network, peer, params, num_steps).result()


@cache
def _initial(network: str) -> PyTree:
    return jax.tree.map(np.asarray, case_of(network, 1).init(jax.random.key(0)))


def _growth(network: str, peer: str, params: dict[str, PyTree], num_steps: int) -> int:
    """Of this process while the peer takes its step, after a small one that loads what it needs."""
    from benchmarks.shared.peers import by_name

    step = lambda name, case: by_name(peer).build(case, params[name], np.float32)
    step(_SMALL, case_of(_SMALL, 1))
    case = case_of(network, num_steps)
    growth = peak_growth(lambda: step(network, case))
    if growth is None:
        raise RuntimeError("how much a process takes is known on Linux only")
    return growth


def _has_peers() -> bool:
    try:
        import higher  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        print(f"without PyTorch ({error}): pip install -e '.[peers]' adds it")
        return False
    return True


def _print_network(rows: Sequence[Row]) -> None:
    print(f"\n{rows[0]['case']}: inner steps in {rows[0]['budget'] / 2**20:,.0f} MiB")
    print_table(["", "K", "MiB"], [[row["method"], shown(row), row["bytes"] / 2**20] for row in rows])


def shown(row: Row) -> str:
    """The number of steps, and whether more would fit."""
    return f"{'≥ ' if row['num_steps'] == row['most_steps'] else ''}{row['num_steps']:,}"


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """A panel of bars for each network."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    title = f"Inner steps of one task that fit in {rows[0]['budget'] / 2**30:.3g} GiB, on {device}"
    figure, axes = panels(-(-len(names) // 2), min(2, len(names)), title, width=5.6, height=2.2)
    for panel in axes.flat[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(axes.flat, names, strict=False):
        of_case = [row for row in rows if row["case"] == name]
        for i, row in enumerate(of_case):
            panel.barh(i, max(row["num_steps"], 0.5), color=style(row["method"]).color)
            panel.text(max(row["num_steps"], 0.5), i, f" {shown(row)}", va="center", fontsize=8)
        panel.set_yticks(range(len(of_case)), [row["method"] for row in of_case])
        panel.invert_yaxis()
        panel.set(title=name, xlabel="inner steps K", xscale="log", xlim=(0.5, 6 * rows[0]["most_steps"]))
        panel.grid(False, axis="y")
    return figure

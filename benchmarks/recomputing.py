"""Memory of one outer step of ResNet-12 that keeps what is between its convolutions, or computes it anew.

On one device, and of one task that several devices share. Programs are compiled and not run; bytes are those of their
temporary buffers, as XLA says, of all devices together.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import jaxmeta
from benchmarks.shared.cases import Case, cast, resnet12
from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.pictures import panels
from benchmarks.shared.report import Row, print_table, write_report
from jaxmeta.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUM_DEVICES = (1, 2)


@dataclass(frozen=True)
class Options(CommonOptions):
    num_steps: int = 1
    """K, inner steps."""


def prepare() -> None:
    """As many devices as are asked for; where JAX runs already it stays as it is."""
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", _NUM_DEVICES[-1])


def run(options: Options, path: Path) -> Sequence[Row]:
    rows: list[Row] = [
        {
            "case": f"{'tiny' if options.quick else 'resnet12'}-k{options.num_steps}-d{num_devices}",
            "recomputes": recomputes,
            "num_devices": num_devices,
            "temporary_bytes": temporary_bytes(case_of(recomputes, options), num_devices),
        }
        for num_devices in _NUM_DEVICES
        if num_devices <= jax.device_count()
        for recomputes in (False, True)
    ]
    print_table(
        ["case", "recomputes", "GiB in all"],
        [[row["case"], str(row["recomputes"]), row["temporary_bytes"] / 2**30] for row in rows],
    )
    write_report(path, "recomputing", rows, draw)
    return rows


def case_of(recomputes: bool, options: Options) -> Case:
    """One task of the case resnet12 of the other benchmarks; with `quick` of a narrow network."""
    case = resnet12(1, options.num_steps)
    narrow: dict[str, Any] = {"widths": (4, 4)} if options.quick else {}
    return case._replace(network=case.network.clone(recomputes=recomputes, **narrow))


def temporary_bytes(case: Case, num_devices: int) -> int:
    learner = case.maml()
    key = jax.random.key(0)
    with jaxmeta.over_devices(num_devices):
        arguments = (key, jax.eval_shape(learner.init, key), cast(case.tasks, np.float32))
        compiled: Any = jax.jit(learner.update).lower(*arguments).compile()
    return num_devices * compiled.memory_analysis().temp_size_in_bytes


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """A pair of bars for each number of devices."""
    figure, ((axes,),) = panels(1, 1, f"Memory of one outer step of ResNet-12, compiled for {device}")
    for recomputes, offset in ((False, -0.2), (True, 0.2)):
        here = [row for row in rows if row["recomputes"] == recomputes]
        bytes_ = [row["temporary_bytes"] / 2**30 for row in here]
        label = "norms and activations computed anew" if recomputes else "all kept"
        axes.bar([i + offset for i in range(len(here))], bytes_, width=0.4, label=label)
    names = [counted(row["num_devices"], "device") for row in here]
    axes.set(xticks=range(len(here)), xticklabels=names, ylabel="GiB in all")
    axes.legend(frameon=False)
    return figure

"""What a benchmark leaves: a table on the screen, a JSON file with the machine and every sample, and a picture."""

import importlib.metadata
import json
import math
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxmeta.devices import num_cores
from jaxmeta.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]

_LIBRARIES = (
    *("jaxmeta", "jax", "jaxlib", "flax", "optax", "numpy"),
    *("torch", "parallel-metalearn", "higher", "torchopt", "learn2learn", "xminigrid", "distrax"),
)


def machine() -> dict[str, Any]:
    """Versions and device, all that a figure depends on besides the program."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:  # of the peers; their contenders say so
            continue
    device = jax.devices()[0]
    kind = {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()}
    if device.platform == "gpu":
        kind |= _nvidia()
    return {"versions": versions, "device": {**kind, "processor": platform.machine(), "cores": num_cores()}}


def _nvidia() -> dict[str, str]:
    """The driver and the highest clocks of the first NVIDIA GPU, which the device does not tell; nothing elsewhere."""
    fields = ("driver_version", "clocks.max.sm", "clocks.max.memory")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        first = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return {}
    return dict(zip(fields, first.split(", "), strict=True))


def default_path(name: str, quick: bool) -> Path:
    """`benchmarks/results/<device>/NAME.json`; with `quick`, which must not overwrite a real result, under `runs/`."""
    device = jax.devices()[0]
    kind = "cpu" if device.platform == "cpu" else re.sub(r"[^a-z0-9]+", "-", device.device_kind.lower()).strip("-")
    folder = Path("runs", "benchmarks") if quick else Path(__file__).parents[1] / "results"
    return folder / kind / f"{name}.json"


def write_report(path: Path, name: str, rows: Sequence[Row], draw: Callable[[Sequence[Row], str], "Figure"]) -> None:
    """Writes the JSON file and its picture, and says where.

    Rows of other cases that the file already has are kept, in its order, if they come from the same machine and
    versions, so that a long benchmark may be run case by case.
    """
    where = machine()
    old, new = _rows_before(path, where), {row["case"] for row in rows}
    order = list(dict.fromkeys(row["case"] for row in (*old, *rows)))
    rows = sorted([*(row for row in old if row["case"] not in new), *rows], key=lambda row: order.index(row["case"]))
    report = {"benchmark": name, "written": datetime.now(UTC).isoformat(timespec="seconds"), **where, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite(report), indent=1, allow_nan=False) + "\n")
    device = where["device"]
    draw(rows, _name_of(device)).savefig(path.with_suffix(".png"))
    print(f"\n{path}\n{path.with_suffix('.png')}")


def _name_of(device: dict[str, Any]) -> str:
    """What a picture says that it was measured on."""
    return f"{device['kind']}, {counted(device['cores'], 'core')}" if device["platform"] == "cpu" else device["kind"]


def _finite(value: Any) -> Any:
    """None, which JSON has, for the numbers that it has not."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rows_before(path: Path, where: dict[str, Any]) -> list[Row]:
    """Those of the file that is already there, if they come from the same machine and versions."""
    if not path.exists():
        return []
    old = json.loads(path.read_text())
    return old["rows"] if all(old.get(key) == value for key, value in where.items()) else []


def print_table(headings: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as they need to be, the first to the left and the others to the right.

    >>> print_table(["name", "ms"], [["a", 1.5], ["long", 12]])
    name   ms
    a     1.5
    long   12
    """
    cells = [[text(cell) for cell in line] for line in (headings, *lines)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    for line in cells:
        first, *others = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


def text(value: Any) -> str:
    """Three digits of a number, a dash where there is none."""
    if value is None:
        return "–"
    return (
        f"{value:.3g}"
        if isinstance(value, float) and value < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )

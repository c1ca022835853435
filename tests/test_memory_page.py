"""The table of docs/how-to/memory.md has the figures of the committed benchmark."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CASES = (("small-mlp-adam", 100), ("small-mlp-adam", 500), ("learned-rates", 500), ("transformer", 20))
LEAST = "mixed mode, segments"


def test_the_figures_are_those_measured():
    rows = json.loads((ROOT / "benchmarks/results/cpu/memory.json").read_text())["rows"]
    measured = {
        (row["case"], row["num_steps"], row["strategy"]): f"{row['temporary_bytes'] / 2**20:,.1f} MiB"
        for row in rows
        if row["sweep"] == "num_steps"
    }
    page = (ROOT / "docs/how-to/memory.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("|") and "MiB" in line]
    for (case, num_steps), line in zip(CASES, table, strict=True):
        strategies = ("exact", "forward mode") if case == "learned-rates" else ("exact", "auto", LEAST)
        expected = [measured[case, num_steps, strategy] for strategy in strategies]
        assert re.findall(r"[\d,.]+ MiB", line) == expected
        assert f"| {num_steps} |" in line

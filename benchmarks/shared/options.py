"""The options that every benchmark has, and choosing cases by name."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    quick: bool = False
    """Few cases and few rounds, under a minute; writes under runs/ unless --json says where."""
    json: Path | None = None
    """File to write, the picture beside it; benchmarks/results/DEVICE/NAME.json if None."""
    cases: str | None = None
    """Cases to run, with commas between; sinusoid stands for all sinusoid-..., and * for anything. All if None."""


class UnknownCase(ValueError):
    """A name that chooses no case; the message says which there are."""


def choose(names: str, table: Mapping[str, T]) -> dict[str, T]:
    """The entries of `table` that `names` chooses: by name, by what comes before a hyphen, or with a *.

    Raises:
      UnknownCase: a name that chooses nothing.

    >>> choose("conv4-t8", {"mlp-t1-k1": 0, "conv4-t8-k1": 1, "conv4-t8-k5": 2})
    {'conv4-t8-k1': 1, 'conv4-t8-k5': 2}
    """
    chosen: dict[str, T] = {}
    for name in names.split(","):
        found = {key: value for key, value in table.items() if fnmatchcase(f"{key}-", f"{name}-*")}
        found = found or {key: value for key, value in table.items() if fnmatchcase(key, name)}
        if not found:
            near = difflib.get_close_matches(name, table, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UnknownCase(f"there is no case {name!r}: {hint}the cases are {', '.join(table)}")
        chosen |= found
    return chosen

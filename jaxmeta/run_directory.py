"""The directory of a run: whose it is, and what its `config.json` says."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxmeta.checks import check_integer
from jaxmeta.devices import any_process
from jaxmeta.recipes import RECIPES, Outer
from jaxmeta.recipes.experiment import from_dict
from jaxmeta.training.files import locked, write_whole
from jaxmeta.words import short


@contextlib.contextmanager
def claimed(name: str, config: Outer, seed: int, out: Path, resume: bool, num_devices: int | None) -> Iterator[None]:
    """`out` is this run's, with `config.json` in it. Of several processes the first one claims it; the others print
    nothing, and end where it could not."""
    refused: Exception | None = None
    with contextlib.ExitStack() as held:
        if jax.process_index() == 0:
            try:
                _check(name, config, seed, out, resume)
                held.enter_context(locked(out, "--out"))
                _check(name, config, seed, out, resume)  # by now it may be another's
                if not resume:
                    write(out / "config.json", _content(name, config, seed, num_devices))
            except (ValueError, OSError) as error:
                refused = error
        else:
            held.enter_context(contextlib.redirect_stdout(held.enter_context(open(os.devnull, "w"))))
        if any_process(refused is not None):
            raise refused or ValueError("process 0 says what is wrong, and the others end with it")
        yield


def new_directory(name: str, seed: int, resume: bool) -> Path:
    """The first under `runs` that is not there."""
    if resume:
        raise ValueError("--resume goes on with the run in a directory: name it with --out DIR")
    names = (Path("runs") / f"{name}-seed{seed}{suffix}" for suffix in ["", *(f"-{i}" for i in range(2, 10_000))])
    return next(path for path in names if not path.exists())


def _content(name: str, config: Outer, seed: int, num_devices: int | None = 1) -> dict[str, Any]:
    shared = {} if num_devices == 1 else {"num_devices": num_devices or len(jax.devices())}
    return {"recipe": name, "seed": seed, **shared, **dataclasses.asdict(config)}


def num_devices_of(directory: Path) -> int:
    """Of the run in `directory`: on as many it goes on to the same numbers, on others to those but for rounding."""
    number = _read_json(directory / "config.json").get("num_devices", 1)
    check_integer(f"num_devices in {directory / 'config.json'}", number, minimum=1)
    return number


def _check(name: str, config: Outer, seed: int, out: Path, resume: bool) -> None:
    """That it is nobody's, or with `resume` this run's. One that holds something else is left as it is."""
    if resume:
        here = json.loads(json.dumps(_content(name, config, seed)))
        there = _read_json(out / "config.json")
        there.pop("num_devices", None)
        if differ := differences(there, here):
            raise ValueError(f"--out {out} holds a run with other settings: {listed(differ, 'the run has')}")
        if (out / "result.json").exists():
            raise ValueError(f"--out {out} holds a finished run; see it with: jaxmeta evaluate {out}")
        return
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {"lock"}):
        remedy = "or add --resume to go on with the run there" if (out / "config.json").exists() else "or empty it"
        raise ValueError(f"--out {out} is not empty: name a new directory with --out DIR, {remedy}")


_NONE = "not a field"


def differences(there: dict[str, Any], here: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, with both values; named as by `_flat`."""
    there, here = dict(_flat(there)), dict(_flat(here))
    values = {name: (there.get(name, _NONE), here.get(name, _NONE)) for name in there | here}
    return {name: (one, other) for name, (one, other) in values.items() if one != other}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields and their values; those of an option that has fields are named `option.field`."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def listed(differences: dict[str, tuple[Any, Any]], who: str) -> str:
    return ", ".join(f"{name} {here} ({who} {short(there, 60)})" for name, (there, here) in differences.items())


def read_config(directory: Path) -> tuple[str, int, Outer]:
    content = _read_json(directory / "config.json")
    name, seed = content.pop("recipe", None), content.pop("seed", None)
    content.pop("num_devices", None)
    if not isinstance(name, str) or name not in RECIPES:
        raise ValueError(f"DIR {directory} holds a run of {short(name)}, which is no recipe of this version")
    try:
        if type(seed) is not int:
            raise TypeError(f"seed must be int, got {short(seed)}")
        return name, seed, from_dict(type(RECIPES[name].config()), content)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"DIR {directory} holds a run of another version, or {directory / 'config.json'} was edited: {error}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold an object, got {short(content)}")
        json.dumps(content, allow_nan=False)
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"DIR {path.parent} holds no run of jaxmeta: {path.name}: {error}") from error


def write(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")

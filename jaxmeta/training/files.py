"""Files that a kill at any moment leaves whole, and locks that a dead process does not hold."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: without locks
    fcntl = None  # type: ignore[assignment]


def write_whole(path: Path, text: str) -> None:
    """All or nothing: what was there before stays until all of `text` is on disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def locked(directory: Path, name: str) -> Iterator[None]:
    """Holds the file `lock` in `directory`, which is made if it is not there; the system lets go of a dead process's.

    Raises:
      ValueError: another run holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{name} {directory} is in use by another run that has not ended: wait for it, end it, or name "
                    "another directory"
                ) from None
        yield


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The objects of a file with one in each line, and the number of its last line where that is torn, else None.

    Blank lines do not count. A line is torn where a process died, or the disk was full, while it was written.

    Raises:
      ValueError: a line before the last is none.
    """
    content, torn = [], None
    numbered = enumerate(path.read_bytes().split(b"\n") if path.exists() else [], 1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    for number, line in lines:
        try:
            content.append(_object(line))
        except ValueError as error:
            if number != lines[-1][0]:
                raise ValueError(
                    f"line {number} of {path} must be a JSON object: {error}; mend it or remove it"
                ) from None
            torn = number
    return content, torn


def _object(line: bytes) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"it is {type(value).__name__}")
    return value

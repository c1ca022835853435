"""Files that a kill at any moment leaves whole, and locks that a dead process does not hold."""

import contextlib
import json
import os
import re
import warnings
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
    try:
        with writing(path), temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file that could not be written, which the system's error does not on a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} could not be written: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """An error in one line: that of the system where there is one in it, which libraries wrap in pages."""
    number: BaseException | None = error
    while number is not None:
        if isinstance(number, OSError) and number.strerror:
            return number.strerror
        number = number.__cause__ or number.__context__
    text = " ".join(str(error).split())
    known = re.search(r"No space left on device|File too large|Disk quota exceeded|Read-only file system", text)
    if known:
        return known.group()
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"


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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of `JsonLines`; none where there is no file.

    One that is torn, as where a process died or the disk was full while it was written, is dropped with a warning; a
    blank one does not count.
    """
    content, torn = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.exists() else [], 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            content.append({**value, "step": int(value["step"]), "seconds": float(value["seconds"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            torn.append(number)
    if torn:
        numbers = ", ".join(map(str, torn))
        warnings.warn(f"{path}: torn in line {numbers} of {number}, which is dropped", stacklevel=3)
    return content

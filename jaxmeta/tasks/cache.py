"""What was decoded once and is kept: files that are whole and intact, or not there."""

import hashlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

_DIGEST = hashlib.sha256().digest_size


def check_folder(name: str, value: Any) -> Path:
    """The path of a folder, which may not be there."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or "\0" in str(os.fspath(value)):
        raise ValueError(f"{name} must be the path of a folder, got {value!r}")
    return Path(os.path.expanduser(value))


def cache_folder(cache_dir: Any = None) -> Path:
    """Where things are kept: `cache_dir`, or what JAXMETA_CACHE names, or a folder in the user's cache."""
    if cache_dir is not None:
        return check_folder("cache_dir", cache_dir)
    if folder := os.environ.get("JAXMETA_CACHE"):
        return check_folder("JAXMETA_CACHE", folder)
    import pooch  # type: ignore[import-untyped]

    return Path(pooch.os_cache("jaxmeta"))


def is_writable(folder: Path) -> bool:
    """Whether files can be made there; the folder is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def read_cached(path: Path) -> np.ndarray | None:
    """What `write_cached` wrote, uint8 [bytes], or None if the file is not there or not intact.

    The file is mapped into memory, so that what is large is not there twice; changes of the array stay in memory.
    """
    try:
        content = np.memmap(path, np.uint8, mode="c")
    except (OSError, ValueError):  # the latter for an empty file
        return None
    if len(content) < _DIGEST or hashlib.sha256(content[_DIGEST:].data).digest() != content[:_DIGEST].tobytes():
        return None
    return content[_DIGEST:]


def write_cached(path: Path, *parts: bytes | memoryview, what: str) -> None:
    """SHA-256 and then the parts' bytes: all or nothing, also when another process writes the same file.

    Where it cannot be written there is a warning, which calls it `what`, at the caller of the caller.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            temporary = Path(scratch) / path.name
            with temporary.open("wb") as file:
                for part in (digest.digest(), *parts):
                    file.write(part)
            os.replace(temporary, path)
    except OSError as error:
        warnings.warn(
            f"{what} is not cached, and will be decoded again next time: {error}. "
            "Name a folder that can be written with cache_dir or the environment variable JAXMETA_CACHE",
            stacklevel=3,
        )

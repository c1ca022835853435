"""What XLA has compiled, kept on disk for the next process."""

import os
import warnings
from pathlib import Path
from typing import Any

import jax

from jaxmeta.tasks.cache import cache_folder, is_writable

_MOST_BYTES = 2**30  # a convolutional network's outer loop takes half of a MiB


def keep_compiled(cache_dir: str | os.PathLike | None = None) -> Path | None:
    """Keeps what is compiled from here on, so that a later process reads it in place of compiling it: call it first.

    It is JAX's own persistent compilation cache, with a place of its own and every program in it, also one that
    compiles in less than a second. An entry belongs to one program of certain shapes, one kind of device or processor,
    one version of jaxlib and the same XLA flags. Several processes may share the folder. An entry that is damaged is
    said in a warning, and the program compiled. Where the folder holds more than a GiB, what was not used for longest
    goes. Who may write there may run code in your process: it has to be yours.

    The command `jaxmeta` does so by itself. JAX_ENABLE_COMPILATION_CACHE=false in the environment turns it off, and
    where JAX_COMPILATION_CACHE_DIR names a folder it is that, with JAX's defaults.

    Args:
      cache_dir: where they are kept: by default "compiled" in the folder that the environment variable JAXMETA_CACHE
        names, or else in the user's cache folder.

    Returns:
      The folder; None if nothing is kept, because that is turned off or, with a warning, the folder cannot be written.

    Raises:
      ValueError: `cache_dir` is no path, or JAX keeps programs in another folder already.

    Source: JAX, "Persistent compilation cache", https://docs.jax.dev/en/latest/persistent_compilation_cache.html

    >>> keep_compiled(0)
    Traceback (most recent call last):
    ValueError: cache_dir must be the path of a folder, got 0
    """
    folder = (cache_folder() / "compiled" if cache_dir is None else cache_folder(cache_dir)).absolute()
    config: Any = jax.config  # whose fields mypy does not know
    if not config.jax_enable_compilation_cache:
        return None
    if used := config.jax_compilation_cache_dir:
        if cache_dir is not None and Path(used) != folder:
            raise ValueError(f"cache_dir must be {used}, where JAX keeps programs already, got {cache_dir!r}")
        return Path(used)
    if not is_writable(folder):
        warnings.warn(
            f"compiled programs are not kept: {folder} cannot be written. Name another folder with cache_dir or the "
            "environment variable JAXMETA_CACHE",
            stacklevel=2,
        )
        return None
    _forget(folder, _MOST_BYTES)
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def _forget(folder: Path, most_bytes: int) -> None:
    """Removes what was not used for longest, until the rest is no more than so many bytes."""
    found = []
    for path in folder.glob("*-cache"):
        try:
            stat = path.stat()
        except OSError:  # another process has removed it
            continue
        found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    for _, size, path in sorted(found, reverse=True):
        most_bytes -= size
        if most_bytes < 0:
            try:
                path.unlink(missing_ok=True)
            except OSError:  # not ours
                continue

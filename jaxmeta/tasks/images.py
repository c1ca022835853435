"""Images grouped by class, decoded once from their files and kept."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxmeta.checks import check_choice, check_integer
from jaxmeta.devices import num_cores
from jaxmeta.tasks.by_class import listing
from jaxmeta.tasks.cache import cache_folder, read_cached, write_cached
from jaxmeta.tasks.decode import COLOURS, decode
from jaxmeta.tasks.walk import File
from jaxmeta.words import counted, short

_VERSION = 1  # of what `decode` makes of a file, and of the cached form: raise it when either changes


class Images(dict[Any, np.ndarray]):
    """{class: uint8 [n, size, size, 3]}, or [n, size, size] in grey: a dict whose text says what is in it.

    Attributes:
      broken: {file: why} of the images that could not be read and are left out.
      num_ignored: files that are no images, as their names say.

    >>> Images({"cat": np.zeros((12, 84, 84, 3), np.uint8), "dog": np.zeros((40, 84, 84, 3), np.uint8)})
    Images(2 classes of 12 to 40 images, median 26, 52 in all, 84 x 84 RGB)
    """

    broken: dict[str, str]
    num_ignored: int

    def __init__(self, classes: Any = (), broken: Mapping[str, str] | None = None, num_ignored: int = 0):
        super().__init__(classes)
        self.broken, self.num_ignored = dict(broken or {}), num_ignored

    def summary(self) -> str:
        """How many classes of how many images of which size, and how many files were broken."""
        if not self:
            return "no classes"
        counts = [len(images) for images in self.values()]
        least, most, median = min(counts), max(counts), np.median(counts)
        each = f"{least:,} to {most:,} images, median {median:g}" if least < most else counted(least, "image")
        _, height, width, *channels = np.shape(next(iter(self.values())))
        broken = f", {len(self.broken):,} broken and left out" if self.broken else ""
        ignored = f", {counted(self.num_ignored, 'other file')} ignored" if self.num_ignored else ""
        what = f"{height} x {width} {'RGB' if channels else 'grey'}{broken}{ignored}"
        return f"{counted(len(self), 'class', 'classes')} of {each}, {sum(counts):,} in all, {what}"

    def __repr__(self) -> str:
        return f"Images({self.summary()})"


def check_images(size: Any, color: Any) -> None:
    """What images are to become."""
    check_integer("size", size, minimum=1)
    check_choice("color", color, COLOURS)


def read_images(
    files: Mapping[str, list[File]],
    *,
    size: int,
    color: str,
    cache_dir: str | os.PathLike[str] | None,
    progress: bool,
) -> Images:
    """The images of each class, from the cache if they are there.

    Args:
      files: of each class.
      size: of both sides, in pixels.
      color: "RGB" or "L".
      cache_dir: as for `image_folder`.
      progress: whether to show a bar while decoding.

    Raises:
      ValueError: all images of a class are broken.
    """
    listed = [file for of_class in files.values() for file in of_class]
    shape = (size, size, *COLOURS[color])
    cached = cache_folder(cache_dir) / f"images-{_key(files, shape)}.bin"
    found = _read(cached, len(listed), shape)
    if found is None:
        pixels, problems = _decode_all(listed, size, color, progress)
        _check_that_none_runs_dry(files, problems)
        _write(cached, pixels, problems)
    else:
        pixels, problems = found
    ends = np.cumsum([sum(file.name not in problems for file in of_class) for of_class in files.values()])
    return Images(zip(files, np.split(pixels, ends[:-1]), strict=True), problems)


def _key(files: Mapping[str, list[File]], shape: tuple[int, ...]) -> str:
    """A digest of all that the pixels depend on; a file is the same if its name, size and time are."""
    what = {name: [(file.name, file.size, file.modified) for file in of_class] for name, of_class in files.items()}
    return hashlib.sha256(json.dumps([_VERSION, shape, list(what.items())]).encode()).hexdigest()[:32]


def _read(path: Path, num_files: int, shape: tuple[int, ...]) -> tuple[np.ndarray, dict[str, str]] | None:
    """Pixels and problems as `_write` has written them."""
    content = read_cached(path)
    if content is None:
        return None
    begin = 8 + int.from_bytes(content[:8].tobytes(), "little")
    problems = json.loads(content[8:begin].tobytes())
    return np.asarray(content[begin:]).reshape(num_files - len(problems), *shape), problems


def _write(path: Path, pixels: np.ndarray, problems: dict[str, str]) -> None:
    """The length of the problems' JSON, that JSON, and then the pixels."""
    text = json.dumps(problems).encode()
    write_cached(path, len(text).to_bytes(8, "little"), text, pixels.data, what="what was decoded of the images")


def _decode_all(files: list[File], size: int, color: str, progress: bool) -> tuple[np.ndarray, dict[str, str]]:
    """The pixels of the files that could be read [n, size, size, ...], in order, and what was wrong with the others."""
    from tqdm.auto import tqdm

    pixels = np.empty((len(files), size, size, *COLOURS[color]), np.uint8)

    def read(i: int) -> str | None:
        try:
            pixels[i] = decode(files[i].path, size, color)
        except MemoryError:
            raise
        except Exception as error:  # whatever broken or hostile bytes make Pillow raise
            return _why(error)
        return None

    pool = ThreadPoolExecutor(num_cores())  # Pillow lets go of the interpreter while it decodes
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of odd files
            read_files = pool.map(read, range(len(files)))
            found = list(tqdm(read_files, total=len(files), unit=" images", disable=not progress))
    finally:
        pool.shutdown(cancel_futures=True)  # where it was interrupted
    kept = [i for i, why in enumerate(found) if why is None]
    for to, i in enumerate(kept):  # in place: a second array might not fit
        if to != i:
            pixels[to] = pixels[i]
    return pixels[: len(kept)], {file.name: why for file, why in zip(files, found, strict=True) if why is not None}


def _why(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join((text or type(error).__name__).split())[:200]


def _check_that_none_runs_dry(files: Mapping[str, list[File]], problems: Mapping[str, str]) -> None:
    dry = [name for name, of_class in files.items() if all(file.name in problems for file in of_class)]
    if dry:
        first, named = files[dry[0]][0].name, listing(short(name) for name in dry)
        raise ValueError(
            f"all images of {counted(len(dry), 'class', 'classes')} are broken, {named}: "
            f"replace them, or take them away; the first is {short(first)} ({problems[first]})"
        )

"""CIFAR-FS and FC100: the 100 classes of CIFAR-100, 600 photographs of 32x32 pixels each, as few-shot tasks.

"Learning Multiple Layers of Features from Tiny Images", Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
Both take all images of a class, from its training and its test file, and differ in which classes are learned from: see
`jaxmeta.tasks.splits`.

The binary version is read, as the Python one is pickles, which can run code. It is read in memory, never extracted, and
nothing is unpacked whose size is not bounded beforehand.
"""

import gzip
import io
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Unpack

import numpy as np

from jaxmeta.checks import check_choice
from jaxmeta.signatures import names_options_of
from jaxmeta.tasks import splits
from jaxmeta.tasks.archives import download, reading
from jaxmeta.tasks.cache import cache_folder, check_folder, is_writable
from jaxmeta.tasks.episodes import Options, episodes
from jaxmeta.tasks.images import Images
from jaxmeta.types import TaskDistribution

_URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
_MD5 = "03b5dce01913d631647c71ecec9e9cb8"
_FOLDER = "cifar-100-binary"
_LABELS = "fine_label_names.txt"
_EXAMPLES = {"train.bin": 500, "test.bin": 100}  # of each class
_CLASSES, _SIZE = 100, 32
_RECORD = 2 + 3 * _SIZE**2  # the superclass, the class, and the pixels: red, green, blue

# The official archive has 168.5 MB and unpacks to 184.4 MB in five entries.
_MAX_ARCHIVE = _MAX_UNPACKED = 192 * 2**20
_MAX_ENTRIES = 16
_MAX_LABELS = 16 * 2**10


@names_options_of(episodes)
def cifar_fs(
    split: str, *, data_dir: str | os.PathLike[str] | None = None, **options: Unpack[Options]
) -> TaskDistribution:
    """Few-shot tasks over CIFAR-FS: 64, 16 and 20 classes of CIFAR-100, drawn at random once and for all.

    "Meta-learning with differentiable closed-form solvers", Bertinetto et al. 2019, https://arxiv.org/abs/1805.08136

    Other arguments as in `few_shot`. The paper's classes are not rotated.

    Args:
      split: "train", "validation" or "test".
      data_dir: where the official archive is; see `load_cifar100`, also for what happens without one.

    Returns:
      `few_shot` tasks with x uint8 [B, 32, 32, 3], red, green and blue: divide by 255. Class i of `info` is
      `splits.classes("cifar_fs", split)[i]`.

    Raises:
      ValueError: a wrong argument, or an archive that is not what it should be.
      OSError: the data could be neither read nor downloaded.

    >>> tasks = cifar_fs("train", num_ways=5, num_shots=1)  # doctest: +SKIP
    >>> (x, y), query, classes = tasks.sample(jax.random.key(0), tasks.data)  # doctest: +SKIP
    >>> x.shape  # doctest: +SKIP
    (5, 32, 32, 3)
    """
    return _benchmark("cifar_fs", split, data_dir, options)


@names_options_of(episodes)
def fc100(
    split: str, *, data_dir: str | os.PathLike[str] | None = None, **options: Unpack[Options]
) -> TaskDistribution:
    """Few-shot tasks over FC100: 60, 20 and 20 classes of CIFAR-100, no superclass of which is in two splits.

    It is harder than CIFAR-FS: people are in the test, and nothing like them is learned from.
    "TADAM: Task dependent adaptive metric for improved few-shot learning", Oreshkin et al. 2018,
    https://arxiv.org/abs/1805.10123

    Other arguments as in `few_shot`.

    Args:
      split: "train", "validation" or "test".
      data_dir: as in `cifar_fs`.

    Returns:
      `few_shot` tasks with x uint8 [B, 32, 32, 3], red, green and blue: divide by 255. Class i of `info` is
      `splits.classes("fc100", split)[i]`.

    Raises:
      ValueError: a wrong argument, or an archive that is not what it should be.
      OSError: the data could be neither read nor downloaded.

    >>> tasks = fc100("test", num_ways=5, num_shots=5)  # doctest: +SKIP
    >>> (x, y), query, classes = tasks.sample(jax.random.key(0), tasks.data)  # doctest: +SKIP
    >>> x.shape  # doctest: +SKIP
    (25, 32, 32, 3)
    """
    return _benchmark("fc100", split, data_dir, options)


def load_cifar100(
    data_dir: str | os.PathLike[str] | None = None, *, cache_dir: str | os.PathLike[str] | None = None
) -> Images:
    """All images by class: {name: uint8 [600, 32, 32, 3]}, red, green and blue, in the order of the 100 fine labels.

    A class has its 500 images of the training file first and then its 100 of the test file, as they come there. The
    arrays are views of one, uint8 [100, 600, 32, 32, 3], of 184 MB.

    Args:
      data_dir: a folder, possibly read-only, with the official `cifar-100-binary.tar.gz`, or with the folder
        `cifar-100-binary` that is in it. Without it the archive is downloaded, unless the cache has it already.
      cache_dir: where the download is kept: by default the folder that the environment variable JAXMETA_CACHE names,
        or else the user's cache folder. If it cannot be written, the download is not kept.

    Raises:
      ValueError: the archive is missing, corrupt, incomplete, or its labels are not those of CIFAR-100.
      OSError: the archive could not be read; its subclass ConnectionError: it could not be downloaded.

    >>> load_cifar100("data")  # doctest: +SKIP
    Images(100 classes of 600 images, 60,000 in all, 32 x 32 RGB)
    """
    source, archive = (
        _download(cache_folder(cache_dir)) if data_dir is None else _find(check_folder("data_dir", data_dir))
    )
    with reading(str(source), f". Replace it by {_URL}"):
        return _decode(_read_folder(source) if archive is None else _unpack(archive))


def _benchmark(name: str, split: str, data_dir: str | os.PathLike[str] | None, options: Options) -> TaskDistribution:
    check_choice("split", split, ("train", "validation", "test"))

    def read() -> dict[str, np.ndarray]:
        images = load_cifar100(data_dir)
        return {chosen: images[chosen] for chosen in splits.classes(name, split)}

    return episodes(read, **options)


# Where the archive is


def _find(folder: Path) -> tuple[Path, bytes | None]:
    """The archive's path and content, or that of the folder that is in it, and None."""
    archive = folder / _URL.rsplit("/", 1)[1]
    if archive.is_file():
        if archive.stat().st_size > _MAX_ARCHIVE:
            raise ValueError(
                f"{archive} is larger than {_MAX_ARCHIVE} bytes, which is not CIFAR-100. Replace it by {_URL}"
            )
        return archive, archive.read_bytes()
    if (folder / _FOLDER).is_dir():
        return folder / _FOLDER, None
    raise ValueError(
        f"data_dir {folder} has neither {archive.name} nor the folder {_FOLDER}: put {_URL} there (the binary version, "
        "not that for Python), or leave data_dir out to download it"
    )


def _download(cache: Path) -> tuple[Path, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        path = download(_URL, _MD5, cache if is_writable(cache) else Path(scratch))
        return path, path.read_bytes()


# Decoding


def _size_of(name: str) -> int:
    return _CLASSES * _EXAMPLES[name] * _RECORD


def _read_folder(folder: Path) -> dict[str, memoryview]:
    """The content of the three files, of which none is read that has not the size it must have."""
    files = {}
    for name in (_LABELS, *_EXAMPLES):
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        _check_size(name, path.stat().st_size)
        files[name] = memoryview(path.read_bytes())
    return files


def _unpack(archive: bytes) -> dict[str, memoryview]:
    """The same of an archive, without a copy. It is unpacked to its end, where its checksum is."""
    with gzip.open(io.BytesIO(archive)) as file:
        content = file.read(_MAX_UNPACKED + 1)
    if len(content) > _MAX_UNPACKED:
        raise ValueError(f"unpacks to more than {_MAX_UNPACKED} bytes, which is not CIFAR-100")
    files: dict[str, memoryview] = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as entries:
        for count, entry in enumerate(entries):
            if count == _MAX_ENTRIES:
                raise ValueError(f"more than {_MAX_ENTRIES} entries, where there are five in CIFAR-100")
            folder, _, name = entry.name.removeprefix("./").rpartition("/")
            if folder != _FOLDER or name not in (_LABELS, *_EXAMPLES):
                continue
            if not entry.isreg() or entry.issparse() or name in files:
                raise ValueError(f"{entry.name!r} is there twice, or no plain file")
            _check_size(name, entry.size)
            files[name] = memoryview(content)[entry.offset_data : entry.offset_data + entry.size]
    if missing := {_LABELS, *_EXAMPLES} - files.keys():
        raise ValueError(f"{', '.join(sorted(missing))} missing in its folder {_FOLDER}")
    return files


def _check_size(name: str, size: int) -> None:
    if name == _LABELS:
        if size > _MAX_LABELS:
            raise ValueError(f"{name} has {size} bytes, where at most {_MAX_LABELS} are expected")
    elif size != _size_of(name):
        raise ValueError(f"{name} has {size} bytes, where {_size_of(name)} are expected: it is cut, or not CIFAR-100's")


def _decode(files: dict[str, memoryview]) -> Images:
    names = _check_labels(str(files[_LABELS], "utf-8").split())
    images = np.empty((_CLASSES, sum(_EXAMPLES.values()), _SIZE, _SIZE, 3), np.uint8)
    start = 0
    for name, examples in _EXAMPLES.items():
        records = np.frombuffer(files[name], np.uint8).reshape(-1, _RECORD)
        labels = records[:, 1]
        if not np.array_equal(np.bincount(labels, minlength=_CLASSES), np.full(_CLASSES, examples)):
            raise ValueError(f"{name} has not {examples} images of each of the labels 0 to {_CLASSES - 1}")
        of_class = np.argsort(labels, kind="stable").reshape(_CLASSES, examples)
        for label, chosen in enumerate(of_class):  # one by one, as the file and the images are in memory already
            pixels = records[chosen, 2:].reshape(examples, 3, _SIZE, _SIZE)
            images[label, start : start + examples] = np.moveaxis(pixels, 1, -1)
        start += examples
    return Images(zip(names, images, strict=True))


def _check_labels(found: list[str]) -> list[str]:
    """The names of the 100 classes, which the archive must have in alphabetical order.

    The splits call five of them maple_tree and its like, as the Python version does; in copies of the binary version
    they are maple and its like.
    """
    names = sorted(name for split in ("train", "validation", "test") for name in splits.classes("cifar_fs", split))
    if [name.removesuffix("_tree") for name in found] != [name.removesuffix("_tree") for name in names]:
        raise ValueError(f"{_LABELS} does not name the 100 classes of CIFAR-100, apple to worm")
    return names

"""Omniglot: 1,623 handwritten characters, each drawn by 20 people, as few-shot tasks.

"Human-level concept learning through probabilistic program induction", Lake, Salakhutdinov and Tenenbaum, Science
2015, https://doi.org/10.1126/science.aab3050. The protocol is that of Santoro et al. 2016
(https://arxiv.org/abs/1605.06065) and Vinyals et al. 2016 (https://arxiv.org/abs/1606.04080), as used by MAML (Finn
et al. 2017, https://arxiv.org/abs/1703.03400): 1,200 characters to learn from, 423 to test, and rotations by multiples
of 90 degrees as new classes in both.

The archives may come from anywhere: they are read in memory, never extracted, and nothing is unpacked whose size is
not bounded beforehand.
"""

import hashlib
import io
import os
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np

from jaxmeta.checks import check_choice, check_integer
from jaxmeta.signatures import names_options_of
from jaxmeta.tasks.alphabets import alphabet_of_each
from jaxmeta.tasks.archives import download, reading
from jaxmeta.tasks.cache import cache_folder, check_folder, is_writable, read_cached, write_cached
from jaxmeta.tasks.class_splits import permutation
from jaxmeta.tasks.episodes import Upright, episodes
from jaxmeta.types import TaskDistribution
from jaxmeta.words import short


class _Part(NamedTuple):
    name: str
    md5: str  # of the official zip
    first: int  # the official number XXXX of its first character
    characters: int


_PARTS = (
    _Part("images_background", "68d2efa1b9178cc56df9314c21c6e718", first=1, characters=964),
    _Part("images_evaluation", "6b91aef0f799c5bb55b94e3f2daec811", first=965, characters=659),
)
_URL = "https://github.com/brendenlake/omniglot/raw/master/python"
_DRAWINGS = 20
_SOURCE_SIZE, _SIZE = 105, 28
_SPLITS = {"train": slice(0, 1100), "validation": slice(1100, 1200), "test": slice(1200, None)}

# The official zips have 10 MB, the arrays 212 MB when they are not compressed, a drawing has 500 bytes.
_MAX_ARCHIVE = {".zip": 32 * 2**20, ".npz": 256 * 2**20}
_MAX_DRAWING = 16 * 2**10


@names_options_of(episodes)
def omniglot(
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    same_alphabet: bool = False,
    seed: int = 0,
    **options: Unpack[Upright],
) -> TaskDistribution:
    """Few-shot tasks over the characters of one split and their rotations.

    The 1,623 characters are permuted by `seed`; 1,100 are for training, 100 for validation (these are MAML's 1,200)
    and 423 for the test. Each rotation by 0, 90, 180 or 270 degrees is a class of its own: with C characters in the
    split, class `r * C + c` is character c rotated r times by 90 degrees, anticlockwise, when it is drawn.

    Other arguments as in `few_shot`; a class has 20 drawings.

    Args:
      split: "train", "validation" or "test".
      data_dir: where the official archives are; see `load_omniglot`, also for what happens without one.
      same_alphabet: whether the classes of a task are characters of one of the 50 alphabets, rotated alike, which are
        harder to tell apart. An alphabet with fewer than `num_ways` characters in the split is left out.
      seed: an integer ≥ 0, chooses the characters of the splits; results with different seeds do not compare.

    Returns:
      `few_shot` tasks with x uint8 [B, 28, 28]: divide by 255 and ink is 1, paper 0.

    Raises:
      ValueError: a wrong argument, or archives that are not what they should be.
      OSError: the data could be neither read nor downloaded.

    >>> tasks = omniglot("train", num_ways=20, num_shots=1)  # doctest: +SKIP
    >>> (x, y), query, classes = tasks.sample(jax.random.key(0), tasks.data)  # doctest: +SKIP
    >>> x.shape  # doctest: +SKIP
    (20, 28, 28)
    """
    check_choice("split", split, _SPLITS)
    check_integer("seed", seed, 0)
    if not isinstance(same_alphabet, bool):
        raise ValueError(f"same_alphabet must be True or False, got {short(same_alphabet)}")
    characters = _characters(split, seed)
    groups = alphabet_of_each()[characters] if same_alphabet else None
    return episodes(lambda: load_omniglot(data_dir)[characters], rotations=True, groups=groups, **options)


def load_omniglot(
    data_dir: str | os.PathLike[str] | None = None, *, cache_dir: str | os.PathLike[str] | None = None
) -> np.ndarray:
    """All drawings, uint8 [1623, 20, 28, 28]: ink is 255, so that networks divide by 255 and ink is 1; paper is 0.

    Characters come in the official numbering, the 964 of the background set before the 659 of the evaluation set.
    Decoding takes seconds and is done once: the result is cached under a name with a digest of the archives.

    Args:
      data_dir: a folder, possibly read-only, with the official `images_background.zip` and
        `images_evaluation.zip`, or the arrays `images_background.npz` and `images_evaluation.npz` (`images` bool
        [characters, 20, 105, 105], True is paper), which give the same result bit for bit. Without it the
        official zips are downloaded, unless the cache has them already.
      cache_dir: where decoded images and downloads are kept: by default the folder that the environment variable
        JAXMETA_CACHE names, or else the user's cache folder. If it cannot be written, a warning says so.

    Raises:
      ValueError: an archive is missing, corrupt, incomplete, or has anything in it that does not belong there.
      OSError: an archive could not be read; its subclass ConnectionError: it could not be downloaded.

    >>> load_omniglot("data/omniglot").shape  # doctest: +SKIP
    (1623, 20, 28, 28)
    """
    cache = cache_folder(cache_dir)
    archives = None if data_dir is None else _read_archives(check_folder("data_dir", data_dir))
    md5s = [part.md5 for part in _PARTS] if archives is None else [_md5(content) for _, content in archives]
    # The name has what the images depend on: the size and filter of `_shrink`, and the archives.
    cached = cache / f"omniglot-{_SIZE}-lanczos-{_md5(''.join(md5s).encode())}.bin"
    images = _read_images(cached)
    if images is None:
        archives = archives or _download(cache)
        images = np.concatenate([_decode(*archive, part) for archive, part in zip(archives, _PARTS, strict=True)])
        write_cached(cached, images.data, what="the decoded Omniglot")
    return images


# Splits


def _characters(split: str, seed: int) -> np.ndarray:
    """The indices of a split's characters."""
    return permutation(sum(part.characters for part in _PARTS), seed)[_SPLITS[split]]


# Where the archives are and where the result is kept


def _read_archives(folder: Path) -> list[tuple[Path, bytes]]:
    """The path and content of each part's archive."""
    archives = []
    for part in _PARTS:
        paths = [folder / f"{part.name}{suffix}" for suffix in _MAX_ARCHIVE]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise ValueError(
                f"data_dir {folder} has neither {paths[0].name} nor {paths[1].name}: "
                f"put {_URL}/{paths[0].name} there, or leave data_dir out to download it"
            )
        if path.stat().st_size > _MAX_ARCHIVE[path.suffix]:
            raise ValueError(
                f"{path} is larger than {_MAX_ARCHIVE[path.suffix]} bytes, which is not Omniglot{_remedy(part)}"
            )
        archives.append((path, path.read_bytes()))
    return archives


def _download(cache: Path) -> list[tuple[Path, bytes]]:
    """The official zips, kept in the cache if it can be written."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = cache if is_writable(cache) else Path(scratch)
        paths = [download(f"{_URL}/{part.name}.zip", part.md5, folder) for part in _PARTS]
        return [(path, path.read_bytes()) for path in paths]


def _read_images(path: Path) -> np.ndarray | None:
    """The images that are cached, if they are."""
    shape = (sum(part.characters for part in _PARTS), _DRAWINGS, _SIZE, _SIZE)
    content = read_cached(path)
    return np.array(content).reshape(shape) if content is not None and len(content) == np.prod(shape) else None


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


# Decoding


def _decode(path: Path, content: bytes, part: _Part) -> np.ndarray:
    """Archive -> uint8 [part.characters, 20, 28, 28]."""
    with reading(str(path), _remedy(part)), zipfile.ZipFile(io.BytesIO(content)) as archive:
        images, found = (_decode_zip if path.suffix == ".zip" else _decode_npz)(archive, part)
        if not found.all():
            character, drawing = np.argwhere(~found)[0]
            raise ValueError(
                f"{(~found).sum()} of {found.size} drawings are missing, the first is "
                f"{character + part.first:04}_{drawing + 1:02}.png"
            )
        return images


def _remedy(part: _Part) -> str:
    return f". Replace the file by {_URL}/{part.name}.zip"


def _decode_zip(archive: zipfile.ZipFile, part: _Part) -> tuple[np.ndarray, np.ndarray]:
    """The images of a zip of drawings, and which of them [part.characters, 20] it has."""
    images, found = _empty(part)
    if len(archive.infolist()) > 4 * found.size:  # twice the drawings with Finder's files, and room for folders
        raise ValueError(f"{len(archive.infolist())} entries are too many for {found.size} drawings")
    for entry in archive.infolist():
        with reading(repr(entry.orig_filename)):
            index = _drawing_index(entry.orig_filename, part)
            if index is None:
                continue
            if found[index]:
                raise ValueError("this drawing is there twice")
            with _open(archive, entry, _MAX_DRAWING) as file:
                # With a size, as read() would inflate all that comes before it cuts it to the size the entry claims.
                images[index] = _shrink(_decode_png(file.read(_MAX_DRAWING)))
            found[index] = True
    return images, found


def _decode_npz(archive: zipfile.ZipFile, part: _Part) -> tuple[np.ndarray, np.ndarray]:
    """The same for the arrays, read one character at a time: what a header claims is never allocated."""
    images, found = _empty(part)
    entries = {entry.orig_filename: entry for entry in archive.infolist()}
    if "images.npy" not in entries or not entries.keys() <= {"images.npy", "labels.npy"} or len(archive.infolist()) > 2:
        raise ValueError("an archive of arrays must have images.npy, labels.npy and nothing else")
    expected = ((part.characters, _DRAWINGS, _SOURCE_SIZE, _SOURCE_SIZE), False, np.dtype(bool))
    size = _DRAWINGS * _SOURCE_SIZE**2
    with (
        reading("'images.npy'"),
        _open(archive, entries["images.npy"], 2**16 + part.characters * size) as file,
    ):
        if np.lib.format.read_magic(file) != (1, 0):  # in later versions a header may have 4 GB
            raise ValueError("not in version 1.0 of the npy format, as np.savez writes it")
        if (header := np.lib.format.read_array_header_1_0(file)) != expected:
            raise ValueError(f"(shape, fortran_order, dtype) must be {expected}, got {header}")
        for character in range(part.characters):
            pixels = file.read(size)
            if len(pixels) < size:
                raise ValueError("truncated: fewer bytes than its header says")
            drawings = np.frombuffer(pixels, np.uint8).reshape(expected[0][1:])
            images[character] = [_shrink(drawing != 0) for drawing in drawings]  # True is 255 in the known files
        if file.read(1):
            raise ValueError("more bytes than its header says")
    found[:] = True
    return images, found


def _empty(part: _Part) -> tuple[np.ndarray, np.ndarray]:
    shape = (part.characters, _DRAWINGS)
    return np.zeros((*shape, _SIZE, _SIZE), np.uint8), np.zeros(shape, bool)


def _drawing_index(name: str, part: _Part) -> tuple[int, int] | None:
    """`.../XXXX_YY.png` -> its place in the part, None for folders and for what macOS adds."""
    folders, file = name.split("/")[:-1], name.split("/")[-1]
    if name.startswith("/") or ".." in (*folders, file) or "\\" in name or ":" in name:
        raise ValueError("a path that leads out of the archive")
    if file in ("", ".DS_Store") or "__MACOSX" in folders:
        return None
    match = re.fullmatch(r"([0-9]{4})_([0-9]{2})\.png", file)
    if match is None:
        raise ValueError("not a drawing XXXX_YY.png")
    character, drawing = int(match[1]) - part.first, int(match[2]) - 1
    if not (0 <= character < part.characters and 0 <= drawing < _DRAWINGS):
        last = part.first + part.characters - 1
        raise ValueError(f"{part.name} has the drawings {part.first:04}_01.png to {last:04}_{_DRAWINGS}.png")
    return character, drawing


def _open(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, max_size: int) -> Any:
    """A file to read an entry from, whose memory is bounded by what is read at a time."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile bounds only these two
        raise ValueError(f"compressed by method {entry.compress_type}, only deflate is accepted")
    if entry.file_size > max_size:
        raise ValueError(f"unpacks to {entry.file_size} bytes, more than {max_size}")
    return archive.open(entry)


def _decode_png(content: bytes) -> np.ndarray:
    """PNG -> bool [105, 105], True is paper."""
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        if image.size != (_SOURCE_SIZE, _SOURCE_SIZE) or image.mode != "1":  # known before any pixel is unpacked
            raise ValueError(
                f"a drawing has {_SOURCE_SIZE}x{_SOURCE_SIZE} pixels of 1 bit, this has {image.size} of {image.mode!r}"
            )
        return np.asarray(image)


def _shrink(paper: np.ndarray) -> np.ndarray:
    """bool [105, 105], True is paper -> uint8 [28, 28], 255 is ink.

    Lanczos is the filter of MAML's preprocessing. It is applied to grey pixels, because for 1-bit images Pillow takes
    the nearest pixel whatever the filter, and strokes of two pixels break up.
    """
    from PIL import Image

    ink = Image.fromarray(np.where(paper, 0, 255).astype(np.uint8))
    return np.asarray(ink.resize((_SIZE, _SIZE), Image.Resampling.LANCZOS))

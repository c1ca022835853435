"""One's own images: a folder for each class, as torchvision's ImageFolder has it.

What is in such a folder comes from anywhere. Nothing outside of it is read, wherever its links lead, and no name in it
is trusted to be printable.
"""

import os
import warnings
from pathlib import Path
from typing import Any

from jaxmeta.checks import check_choice
from jaxmeta.tasks.by_class import listing
from jaxmeta.tasks.cache import check_folder
from jaxmeta.tasks.decode import EXTENSIONS
from jaxmeta.tasks.images import Images, check_images, read_images
from jaxmeta.tasks.walk import Found, entries, find_files, folders_in, is_within
from jaxmeta.words import counted, short

_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


def image_folder(
    path: str | os.PathLike[str],
    *,
    size: int = 84,
    split: str | None = None,
    color: str = "RGB",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Images:
    """The images of a folder that has a folder for each class, decoded once: what `few_shot` takes.

        path/CLASS/IMAGE    or    path/train/CLASS/IMAGE, path/val/..., path/test/...    with `split`

    Images may lie deeper inside of a class's folder. They are files that end in .jpg, .jpeg, .png, .ppm, .bmp, .pgm,
    .tif, .tiff or .webp, in small or capital letters, as for torchvision's ImageFolder
    (https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.ImageFolder.html); other files, and what has
    a name that begins with a dot, is not looked at.

    Of each image the middle square is taken: scaled (Lanczos) so that its shorter side is `size`, and cropped at the
    centre. It is turned as its EXIF orientation says; grey, palette, CMYK and 16-bit pixels are converted to `color`
    with their full range, and what is transparent shows white. Of an animation the first frame counts.

    What cannot be read is named in a warning and left out: broken images, those with more pixels than
    `PIL.Image.MAX_IMAGE_PIXELS`, links that lead outside of `path` or in a circle, classes without any image.

    Decoding takes the cores that there are, and shows a bar. The result is kept in a file whose name is a digest of all
    files' names, sizes and times and of the options; changed files are decoded anew, all of them, and the older file
    may be deleted. It is mapped into memory: what is not looked at costs none.

    Args:
      path: the folder.
      size: of both sides of the result, in pixels.
      split: "train", "validation" (or "val", "valid") or "test", to read that folder in `path`.
      color: "RGB" or "L", grey.
      cache_dir: where decoded images are kept: by default the folder that the environment variable JAXMETA_CACHE
        names, or else the user's cache folder. If it cannot be written, a warning says so.
      progress: whether to show a bar while decoding.

    Returns:
      {class: uint8 [n, size, size, 3]}, or [n, size, size] in grey, sorted by name, which may have a different n each.
      They are views of one array; images are in the order of their names.

    Raises:
      ValueError: a wrong argument; no such folder, or no classes in it; folders of splits, and no `split`; a class
        whose images are all broken.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as path:
    ...     for name in ("cat", "cat", "dog"):
    ...         os.makedirs(f"{path}/{name}", exist_ok=True)
    ...         Image.new("RGB", (40, 30), "red").save(f"{path}/{name}/{len(os.listdir(f'{path}/{name}'))}.png")
    ...     image_folder(path, size=28, cache_dir=f"{path}/.cache", progress=False)
    Images(2 classes of 1 to 2 images, median 1.5, 3 in all, 28 x 28 RGB)
    """
    check_images(size, color)
    root = existing_folder("path", path)
    found = find_classes(root, root if split is None else _folder_of(root, split))
    return read_found(found, size=size, color=color, cache_dir=cache_dir, progress=progress)


def read_found(found: Found, **options: Any) -> Images:
    """What was found, decoded, with a warning for whoever called the reader of what is left out."""
    images = read_images(found.files, **options)
    images.num_ignored = found.num_ignored
    for what, left_out in (("could not be read", images.broken), ("skipped", found.skipped)):
        if left_out:
            listed = listing(f"{short(name, width=80)} ({why})" for name, why in left_out.items())
            warnings.warn(
                f"{counted(len(left_out), 'file or folder', 'files or folders')} {what}: {listed}", stacklevel=3
            )
    return images


def existing_folder(name: str, value: Any, remedy: str = "") -> Path:
    """The path of a folder that is there."""
    folder = check_folder(name, value)
    if not folder.is_dir():
        raise ValueError(f"{name} must be a folder that is there, got {short(str(folder))}{remedy}")
    return folder


# Splits


def splits_of(root: Path) -> dict[str, Path]:
    """The folders that are named after splits, by the names that splits have here; none where these are classes.

    A class may be called train, so one such name among others is no split.
    """
    folders = folders_in(root)
    named: dict[str, Path] = {}
    for entry in folders:
        if (split := _SPLITS.get(entry.name.lower())) is not None:
            if split in named:
                raise ValueError(f"path has two folders of a split, {named[split].name} and {entry.name}: rename one")
            named[split] = root / entry.name
    return named if len(named) > 1 or len(named) == len(folders) else {}


def _folder_of(root: Path, split: str) -> Path:
    check_choice("split", split, _SPLITS)
    named = splits_of(root)
    if _SPLITS[split] not in named:
        there = f"there are {', '.join(folder.name for folder in named.values())}" if named else "there are no splits"
        raise ValueError(f"split must be a folder of path {short(str(root))}, got {split!r}: {there}")
    folder = named[_SPLITS[split]]
    if not is_within(root, folder):
        raise ValueError(f"split must be a folder of path {short(str(root))}, got {split!r}: a link that leads outside")
    return folder


# Finding the files


def find_classes(root: Path, folder: Path) -> Found:
    """The images of each folder in `folder`, which is `root` or in it; nothing outside of `root` is looked at.

    Raises:
      ValueError: there is no class with an image, or there are splits.
    """
    if folder == root and (named := splits_of(root)):
        names = ", ".join(path.name for path in named.values())
        raise ValueError(
            f"path {short(str(root))} has folders of splits, {names}: say which one to read, as in "
            f"split={next(iter(named))!r}"
        )
    found = find_files(root, {entry.name: entry.path for entry in folders_in(folder)}, EXTENSIONS)
    empty = [name for name, files in found.files.items() if not files]
    files = {name: files for name, files in found.files.items() if files}
    if not files:
        others = counted(len(entries(folder)) - len(found.files), "other entry", "other entries")
        raise ValueError(
            f"path {short(str(folder))} has no images in folders of their classes, but "
            f"{counted(len(found.files), 'folder')} and {others}. "
            "Expected is path/CLASS/IMAGE, as in path/cat/1.jpg, with images of any number for each class"
        )
    without = ((folder / name).relative_to(root).as_posix() for name in empty)
    return found._replace(files=files, skipped=dict.fromkeys(without, "a class without images") | found.skipped)

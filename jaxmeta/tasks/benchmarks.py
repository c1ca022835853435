"""Benchmarks of photographs that may not be handed on: Mini-ImageNet, tiered-ImageNet and CUB, read from your folders.

Nothing is downloaded. The classes of each split are the published ones, see `jaxmeta.tasks.splits`; images are cut to
their middle square and scaled to 84 x 84 as `image_folder` does, and kept decoded. What papers report depends on such
things: some squeeze the whole image into the square, some crop at random while training.
"""

import csv
import os
from pathlib import Path
from typing import Any, Unpack

from jaxmeta.checks import check_choice
from jaxmeta.signatures import names_options_of
from jaxmeta.tasks import splits
from jaxmeta.tasks.by_class import listing
from jaxmeta.tasks.decode import EXTENSIONS
from jaxmeta.tasks.episodes import Options, episodes
from jaxmeta.tasks.folder import existing_folder, read_found, splits_of
from jaxmeta.tasks.images import Images, check_images
from jaxmeta.tasks.walk import File, Found, find_files, is_within
from jaxmeta.types import TaskDistribution
from jaxmeta.words import counted, short

_SPLITS = ("train", "validation", "test")
_IMAGENET = (
    "its images are those of ImageNet (ILSVRC2012), which https://www.image-net.org gives to who agrees to its terms"
)
_MINI = (
    f": {_IMAGENET}. Expected is a folder for each WordNet id, DIR/n01532829/IMAGE, itself or within train, val and "
    "test; or Ravi and Larochelle's DIR/images/IMAGE with DIR/train.csv, val.csv and test.csv, whose lines are "
    "filename,label, from https://github.com/twitter-research/meta-learning-lstm"
)
_TIERED = (
    f": {_IMAGENET}. Expected is a folder for each WordNet id, DIR/train/n01530575/IMAGE, DIR/val/..., DIR/test/..., "
    "or all in one; https://github.com/renmengye/few-shot-ssl-public says which images these are"
)
_CUB = (
    ": get CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/ and unpack it. Expected is "
    "DIR/CUB_200_2011/images/001.Black_footed_Albatross/IMAGE, or a DIR further in"
)


@names_options_of(episodes)
def mini_imagenet(
    split: str, *, data_dir: str | os.PathLike[str], size: int = 84, **options: Unpack[Options]
) -> TaskDistribution:
    """Few-shot tasks over Mini-ImageNet: 64, 16 and 20 classes of ImageNet, with 600 photographs of each.

    "Matching Networks for One Shot Learning", Vinyals et al. 2016, https://arxiv.org/abs/1606.04080, in the split of
    "Optimization as a Model for Few-Shot Learning", Ravi and Larochelle 2017, https://openreview.net/forum?id=rJY0-Kcll

    Other arguments as in `few_shot`.

    Args:
      split: "train", "validation" or "test".
      data_dir: your folder: a folder for each WordNet id, as in `data_dir/n01532829/IMAGE`, or these within `train`,
        `val` and `test`; or all images in `data_dir/images`, and their classes in `data_dir/train.csv`, `val.csv` and
        `test.csv`, which have lines `filename,label` after a heading.
      size: of both sides, in pixels.

    Returns:
      `few_shot` tasks with x uint8 [B, size, size, 3]. Class i of `info` is
      `splits.classes("mini_imagenet", split)[i]`.

    Raises:
      ValueError: a wrong argument, or a folder without a class of the split, which it names.

    >>> tasks = mini_imagenet("train", data_dir="data/mini-imagenet", num_shots=5)  # doctest: +SKIP
    """
    return episodes(lambda: _read("mini_imagenet", split, data_dir, size, _MINI), **options)


@names_options_of(episodes)
def tiered_imagenet(
    split: str, *, data_dir: str | os.PathLike[str], size: int = 84, **options: Unpack[Options]
) -> TaskDistribution:
    """Few-shot tasks over tiered-ImageNet: 351, 97 and 160 classes, no category of which is in two splits.

    "Meta-Learning for Semi-Supervised Few-Shot Classification", Ren et al. 2018, https://arxiv.org/abs/1803.00676.
    All of it are 779,165 photographs: 16.5 GB at 84 x 84, of which each split is read, and kept, by itself.

    Other arguments as in `few_shot`.

    Args:
      split: "train", "validation" or "test".
      data_dir: your folder: `data_dir/train/n01530575/IMAGE`, `data_dir/val/...`, `data_dir/test/...`, a folder for
        each WordNet id, or these folders in one.
      size: of both sides, in pixels.

    Returns:
      `few_shot` tasks with x uint8 [B, size, size, 3]. Class i of `info` is
      `splits.classes("tiered_imagenet", split)[i]`.

    Raises:
      ValueError: a wrong argument, or a folder without a class of the split, which it names.

    >>> tasks = tiered_imagenet("test", data_dir="data/tiered-imagenet", num_shots=5)  # doctest: +SKIP
    """
    return episodes(lambda: _read("tiered_imagenet", split, data_dir, size, _TIERED), **options)


@names_options_of(episodes)
def cub(
    split: str, *, data_dir: str | os.PathLike[str], size: int = 84, **options: Unpack[Options]
) -> TaskDistribution:
    """Few-shot tasks over CUB-200-2011, birds of 200 species with 41 to 60 photographs each: 100, 50 and 50 species.

    "The Caltech-UCSD Birds-200-2011 Dataset", Wah et al. 2011, https://www.vision.caltech.edu/datasets/cub_200_2011/,
    in the split of "A Closer Look at Few-shot Classification", Chen et al. 2019, https://arxiv.org/abs/1904.04232.
    Whole photographs are cut to their middle square, not the boxes around the birds.

    Other arguments as in `few_shot`.

    Args:
      split: "train", "validation" or "test".
      data_dir: the folder that the official archive was unpacked in, with
        `data_dir/CUB_200_2011/images/001.Black_footed_Albatross/IMAGE`, or `CUB_200_2011`, or `images` in it.
      size: of both sides, in pixels.

    Returns:
      `few_shot` tasks with x uint8 [B, size, size, 3]. Class i of `info` is `splits.classes("cub", split)[i]`.

    Raises:
      ValueError: a wrong argument, or a folder without a class of the split, which it names.

    >>> tasks = cub("train", data_dir="data", num_shots=5)  # doctest: +SKIP
    """
    return episodes(lambda: _read("cub", split, data_dir, size, _CUB), **options)


def _read(name: str, split: str, data_dir: Any, size: int, remedy: str) -> Images:
    """The images of a split's classes, sorted by name."""
    check_choice("split", split, _SPLITS)
    check_images(size, "RGB")
    root = existing_folder("data_dir", data_dir, remedy)
    wanted = splits.classes(name, split)
    found = _listed_in_csv(root, split) if (root / "images").is_dir() and name == "mini_imagenet" else None
    found = found or _in_folders(root, split, wanted)
    missing = [of_class for of_class in wanted if not found.files.get(of_class)]
    if missing:
        raise ValueError(
            f"data_dir {short(str(root))} has no images of {len(missing):,} of the "
            f"{counted(len(wanted), 'class', 'classes')} of {split}, {listing(missing)}{remedy}"
        )
    found = found._replace(files={of_class: found.files[of_class] for of_class in wanted})
    return read_found(found, size=size, color="RGB", cache_dir=None, progress=True)


def _in_folders(root: Path, split: str, wanted: list[str]) -> Found:
    """A folder for each class: in that of the split, in the folder itself, or further in, as CUB's archive has them."""
    places = [splits_of(root).get(split), root / "CUB_200_2011" / "images", root / "images", root]
    first = next(place for place in places if place is not None and place.is_dir())
    folders = {of_class: str(first / of_class) for of_class in wanted if (first / of_class).is_dir()}
    return find_files(root, folders, EXTENSIONS)


def _listed_in_csv(root: Path, split: str) -> Found | None:
    """All images in one folder, and their classes in a file for each split; None without such a file."""
    path = root / f"{'val' if split == 'validation' else split}.csv"
    if not path.is_file():
        return None
    files: dict[str, list[File]] = {}
    skipped: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
        reader = csv.DictReader(lines)
        if not {"filename", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} must have the columns filename, label, got {short(reader.fieldnames)}")
        for line in reader:
            _keep(root, line["filename"], line["label"], files, skipped)
    return Found({name: sorted(of_class) for name, of_class in sorted(files.items())}, skipped, 0)


def _keep(root: Path, name: str, label: str, files: dict[str, list[File]], skipped: dict[str, str]) -> None:
    """The file of a line, if it is one within the folder."""
    path = root / "images" / name
    if not is_within(root, path):
        skipped[name] = "leads outside"
    elif not path.is_file():
        skipped[name] = "not there"
    else:
        found = path.stat()
        files.setdefault(label, []).append(File(f"images/{name}", str(path), found.st_size, found.st_mtime_ns))

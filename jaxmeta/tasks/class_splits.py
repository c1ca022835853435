"""Splits by class: what is tested are classes that were never trained on."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from jaxmeta.checks import check_integer, check_number
from jaxmeta.tasks.by_class import listing
from jaxmeta.tasks.images import Images
from jaxmeta.words import counted, short

_NAMES = ("train", "validation", "test")


def split_classes(
    images: Mapping[Any, np.ndarray],
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    names: Mapping[str, Iterable[Any]] | None = None,
    seed: int = 0,
) -> tuple[Images, Images, Images]:
    """A dict {class: examples} in three, by its classes: to train, to choose settings by, and to test.

    By `fractions` the sorted classes are permuted by `seed` and cut, the same way on every machine and with every
    version; the default are Mini-ImageNet's 64, 16 and 20 of 100. By `names` they are those that you name.

    Args:
      images: what `image_folder` gives, or any dict of arrays [n, ...] whose keys can be sorted.
      fractions: of the classes that are for training, validation and the test; they sum to 1, and one above 0 gives at
        least one class.
      names: lists of classes, {"train": [...], "validation": [...], "test": [...]}, in place of `fractions`; one
        that is left out is empty, and a class in none of them is in no split.
      seed: an integer ≥ 0, of the permutation; results with different seeds do not compare.

    Returns:
      (train, validation, test), each with its classes sorted; views, nothing is copied.

    Raises:
      ValueError: a wrong argument, such as a class that is named twice or not there.

    >>> images = {name: np.zeros((3, 8, 8), np.uint8) for name in "abcdefghij"}
    >>> [list(split) for split in split_classes(images)]
    [['a', 'b', 'c', 'd', 'g', 'i'], ['e', 'h'], ['f', 'j']]
    >>> [list(split) for split in split_classes(images, names={"train": "abc", "test": ["j"]})]
    [['a', 'b', 'c'], [], ['j']]
    """
    if not isinstance(images, Mapping) or not images:
        raise ValueError(f"images must be a dict {{class: array [n, ...]}} with a class at least, got {short(images)}")
    check_integer("seed", seed, 0)
    chosen = _by_fractions(sorted(images), fractions, seed) if names is None else _by_names(images, names)
    train, validation, test = (Images((name, images[name]) for name in sorted(split)) for split in chosen)
    return train, validation, test


def permutation(num: int, seed: int) -> np.ndarray:
    """A permutation [num] by sorting PCG64's raw output.

    NumPy keeps that stream the same in all its versions, which it does not promise for `Generator.permutation`.
    """
    return np.argsort(np.random.PCG64(seed).random_raw(num), kind="stable")


def _by_fractions(classes: list[Any], fractions: Any, seed: int) -> list[list[Any]]:
    if not isinstance(fractions, Sequence) or len(fractions) != 3:
        raise ValueError(f"fractions must be three, of train, validation and test, got {short(fractions)}")
    for name, fraction in zip(_NAMES, fractions, strict=True):
        check_number(f"fractions of {name}", fraction)
    if abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must sum to 1, got {short(tuple(fractions))}, which sum to {sum(fractions):g}")
    ends = np.round(np.cumsum([0.0, *fractions]) * len(classes), 6).round().astype(int)
    order = permutation(len(classes), seed)
    splits = [[classes[i] for i in order[begin:end]] for begin, end in pairwise(ends)]
    for name, fraction, split in zip(_NAMES, fractions, splits, strict=True):
        if fraction and not split:
            raise ValueError(
                f"fractions must give {name} a class, got {fraction:g} of {counted(len(classes), 'class', 'classes')}: "
                "raise it, set it to 0, or name the classes by names={'train': [...], ...}"
            )
    return splits


def _by_names(images: Mapping[Any, Any], names: Any) -> list[list[Any]]:
    if not isinstance(names, Mapping) or not set(names) <= set(_NAMES) or not names:
        raise ValueError(f"names must be a dict with the keys {', '.join(_NAMES)}, got {short(names)}")
    lists = [list(names.get(name, ())) for name in _NAMES]
    named = [name for split in lists for name in split]
    if unknown := [name for name in named if name not in images]:
        raise ValueError(f"names must be classes of images, and {listing(map(short, unknown))} is none of them")
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise ValueError(f"names must have a class once, in one split, got {listing(map(short, twice))} more than once")
    return lists

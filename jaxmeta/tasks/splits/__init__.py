"""The published splits of image benchmarks: which classes are for training, validation and the test.

Results compare only where the classes are the same, so the lists are data here and not drawn. Each file beside this one
says whose paper the split is and in which public repositories it was found, all of which agree: those of the authors
and at least one that was kept by others.

| name | train, validation, test | classes are |
|---|---|---|
| `"cifar_fs"` | 64, 16, 20 | fine labels of CIFAR-100, Bertinetto et al. 2019 (https://arxiv.org/abs/1805.08136) |
| `"fc100"` | 60, 20, 20 | the same, by 12, 4, 4 superclasses, Oreshkin et al. 2018 (https://arxiv.org/abs/1805.10123) |
| `"mini_imagenet"` | 64, 16, 20 | WordNet ids, Ravi and Larochelle 2017 (https://openreview.net/forum?id=rJY0-Kcll) |
| `"tiered_imagenet"` | 351, 97, 160 | WordNet ids, Ren et al. 2018 (https://arxiv.org/abs/1803.00676) |
| `"cub"` | 100, 50, 50 | folders of CUB-200-2011, Chen et al. 2019 (https://arxiv.org/abs/1904.04232) |
"""

import json
from importlib import resources

from jaxmeta.checks import check_choice

__all__ = ["classes"]

_NAMES = ("cifar_fs", "cub", "fc100", "mini_imagenet", "tiered_imagenet")
_SPLITS = ("train", "validation", "test")


def classes(name: str, split: str) -> list[str]:
    """The names of a split's classes, sorted: folders of the data set, or the labels that its files use.

    Args:
      name: "cifar_fs", "cub", "fc100", "mini_imagenet" or "tiered_imagenet".
      split: "train", "validation" or "test".

    Raises:
      ValueError: there is no such benchmark or split.

    >>> classes("mini_imagenet", "test")[:3]
    ['n01930112', 'n01981276', 'n02099601']
    >>> [len(classes("tiered_imagenet", split)) for split in ("train", "validation", "test")]
    [351, 97, 160]
    """
    check_choice("name", name, _NAMES)
    check_choice("split", split, _SPLITS)
    return json.loads((resources.files(__name__) / f"{name}.json").read_text(encoding="utf-8"))[split]

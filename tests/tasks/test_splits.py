"""The published splits: not edited, and by the rules that their papers give."""

import hashlib
import json
import re
from importlib import resources

import pytest

from jaxmeta.tasks import splits

# (number of classes, the beginning of the SHA-256 of its lines), as when the sources that a file lists were compared.
PUBLISHED = {
    ("cifar_fs", "train"): (64, "e40c037757741c61"),
    ("cifar_fs", "validation"): (16, "e02b317c48c94270"),
    ("cifar_fs", "test"): (20, "2a35675fcdddfebb"),
    ("cub", "train"): (100, "2d722db6b72d1c60"),
    ("cub", "validation"): (50, "a3c78978123bb85b"),
    ("cub", "test"): (50, "4d217f7926cdc28b"),
    ("fc100", "train"): (60, "af96f5ba1e118915"),
    ("fc100", "validation"): (20, "746350fa6cdcb340"),
    ("fc100", "test"): (20, "9df56bf75fee16f6"),
    ("mini_imagenet", "train"): (64, "0f107a65ea80bf1e"),
    ("mini_imagenet", "validation"): (16, "489f8af43b256009"),
    ("mini_imagenet", "test"): (20, "0db5287e659efd33"),
    ("tiered_imagenet", "train"): (351, "815386e653f6b4c8"),
    ("tiered_imagenet", "validation"): (97, "4ee5b13fa317a860"),
    ("tiered_imagenet", "test"): (160, "d168485c0b36dae9"),
}
NAMES = sorted({name for name, _ in PUBLISHED})
SPLITS = ("train", "validation", "test")

# The superclass of each fine label of CIFAR-100, in alphabetical order of both, as the archive has them.
SUPERCLASSES = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1),
    *(10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12),
    *(12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0),
    *(17, 8, 14, 13),
]


def all_classes(name):
    return sorted(chosen for split in SPLITS for chosen in splits.classes(name, split))


@pytest.mark.parametrize(("name", "split"), PUBLISHED)
def test_a_list_is_the_published_one(name, split):
    classes = splits.classes(name, split)
    assert (len(classes), hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]) == PUBLISHED[name, split]
    assert classes == sorted(classes)


@pytest.mark.parametrize("name", NAMES)
def test_no_class_is_in_two_splits_and_a_file_says_where_it_is_from(name):
    classes = all_classes(name)
    assert len(set(classes)) == len(classes)
    about = json.loads((resources.files(splits) / f"{name}.json").read_text())
    assert "https://" in about["paper"] and len(about["agree"]) >= 2
    assert all(re.match(r"github\.com/[\w-]+/[\w-]+ at [0-9a-f]{12}: ", source) for source in about["agree"])


def test_fc100_is_tadams_superclasses():
    fine = all_classes("cifar_fs")
    assert fine == all_classes("fc100") and len(fine) == len(SUPERCLASSES) == 100
    chosen = {"validation": {8, 11, 13, 16}, "test": {0, 7, 12, 14}}  # the rest are to train with
    chosen["train"] = set(range(20)) - chosen["validation"] - chosen["test"]
    for split, superclasses in chosen.items():
        assert splits.classes("fc100", split) == [
            name for name, superclass in zip(fine, SUPERCLASSES, strict=True) if superclass in superclasses
        ]


def test_cub_is_every_second_and_every_fourth_class():
    birds = all_classes("cub")
    assert [bird[:4] for bird in birds] == [f"{number:03}." for number in range(1, 201)]
    for split, chosen in (("train", birds[::2]), ("validation", birds[1::4]), ("test", birds[3::4])):
        assert splits.classes("cub", split) == chosen


@pytest.mark.parametrize("name", ["mini_imagenet", "tiered_imagenet"])
def test_classes_of_imagenet_are_wordnet_ids(name):
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in all_classes(name))


@pytest.mark.parametrize(
    ("arguments", "named"), [(("mini", "train"), "name"), (("../cub", "test"), "name"), (("cub", "val"), "split")]
)
def test_what_is_not_there_is_an_error(arguments, named):
    with pytest.raises(ValueError, match=f"^{named} must be one of .*{arguments[named == 'split']}"):
        splits.classes(*arguments)

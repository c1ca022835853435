"""Mini-ImageNet, tiered-ImageNet and CUB: tiny folders of the same form, two classes for each split."""

import jax
import numpy as np
import pytest
from PIL import Image

from jaxmeta.tasks import benchmarks, cub, mini_imagenet, splits, tiered_imagenet

READERS = {"mini_imagenet": mini_imagenet, "tiered_imagenet": tiered_imagenet, "cub": cub}
FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def little(name, split):
    return splits.classes(name, split)[:2]


@pytest.fixture(autouse=True)
def two_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))
    whole = splits.classes
    monkeypatch.setattr(benchmarks.splits, "classes", lambda name, split: whole(name, split)[:2])


def write(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade, 0, 0)).save(path)


def write_all(name, place):
    """Images of each split whose red is 40 times the number of their class among all; `place(split, class, i)`."""
    for number, (split, chosen) in enumerate((s, c) for s in FOLDERS for c in splits.classes(name, s)):
        for i in range(3):
            write(place(split, chosen, i), 40 * number)


LAYOUTS = {
    ("mini_imagenet", "a folder for each class"): lambda root, split, chosen, i: root / chosen / f"{i}.png",
    ("mini_imagenet", "by split"): lambda root, split, chosen, i: root / FOLDERS[split] / chosen / f"{i}.png",
    ("mini_imagenet", "lists"): lambda root, split, chosen, i: root / "images" / f"{chosen}{i}.png",
    ("tiered_imagenet", "by split"): lambda root, split, chosen, i: root / FOLDERS[split] / chosen / f"{i}.png",
    ("tiered_imagenet", "a folder for each class"): lambda root, split, chosen, i: root / chosen / f"{i}.png",
    ("cub", "as unpacked"): lambda root, split, chosen, i: root / "CUB_200_2011" / "images" / chosen / f"{i}.png",
    ("cub", "further in"): lambda root, split, chosen, i: root / "images" / chosen / f"{i}.png",
    ("cub", "images"): lambda root, split, chosen, i: root / chosen / f"{i}.png",
}


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_each_split_has_its_published_classes_in_order(name, layout, tmp_path):
    write_all(name, lambda *where: LAYOUTS[name, layout](tmp_path / "data", *where))
    if layout == "lists":
        for split, folder in FOLDERS.items():
            lines = [f"{chosen}{i}.png,{chosen}" for i in range(3) for chosen in splits.classes(name, split)[::-1]]
            other = lines[0].replace(",n", ",another n")  # a class that is in no split
            (tmp_path / "data" / f"{folder}.csv").write_text("\n".join(["filename,label", *lines, other]))
    for number, split in enumerate(FOLDERS):
        tasks = READERS[name](split, data_dir=tmp_path / "data", size=4, num_ways=2, num_queries=2)
        counts, reds = tasks.data.counts.tolist(), np.asarray(tasks.data.examples)[:, 0, 0, 0].tolist()
        assert counts == [3, 3] and reds == 3 * [80 * number] + 3 * [80 * number + 40]
        assert jax.eval_shape(tasks.sample, jax.random.key(0), tasks.data).query[0].shape == (4, 4, 4, 3)


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("mini_imagenet", "https://www.image-net.org"),
        ("tiered_imagenet", "https://www.image-net.org"),
        ("cub", "https://www.vision.caltech.edu/datasets/cub_200_2011/"),
    ],
)
def test_what_is_missing_is_named_with_where_to_get_it(name, home, tmp_path):
    first, second = splits.classes(name, "test")
    with pytest.raises(ValueError, match=f"data_dir must be a folder that is there, got 'nowhere': .*{home}"):
        READERS[name]("test", data_dir="nowhere")
    write(tmp_path / "data" / first / "1.png", 0)
    for is_empty in (False, True):
        if is_empty:
            (tmp_path / "data" / second).mkdir()
        with pytest.raises(ValueError, match=f"no images of 1 of the 2 classes of test, {second}: .*{home}"):
            READERS[name]("test", data_dir=tmp_path / "data")
    with pytest.raises(ValueError, match="split must be one of test, train, validation, got 'val'"):
        READERS[name]("val", data_dir=tmp_path / "data")
    with pytest.raises(ValueError, match="num_ways must be an integer >= 1"):
        READERS[name]("test", data_dir="nowhere", num_ways=0)


def test_a_list_does_not_lead_outside_and_says_what_is_not_there(tmp_path):
    root, (first, second) = tmp_path / "data", splits.classes("mini_imagenet", "test")
    for file in ("data.png", "data/images/a.png", "data/images/b.png"):  # the first begins as the folder does
        write(tmp_path / file, 0)
    (root / "test.csv").write_text(
        f"filename,label\na.png,{first}\n../../data.png,{first}\ngone.png,{first}\nb.png,{second}\n"
    )
    with pytest.warns(UserWarning, match=r"2 files or folders skipped: '../../data.png' \(leads outside\), 'gone"):
        benchmarks._read("mini_imagenet", "test", root, 4, "")
    (root / "test.csv").write_text("a.png\n")
    with pytest.raises(ValueError, match=r"test.csv must have the columns filename, label, got \['a.png'\]"):
        benchmarks._read("mini_imagenet", "test", root, 4, "")

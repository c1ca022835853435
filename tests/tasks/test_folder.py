"""A folder of images: what is read of it, and that nothing else is; the cache; splits by class; the recipe for it."""

import json
import os
import random
import struct
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from jaxmeta import runs
from jaxmeta.__main__ import main
from jaxmeta.tasks import few_shot, image_folder, images, split_classes
from jaxmeta.tasks.decode import decode

HALVES = np.zeros((30, 40, 3), np.uint8)  # red above, blue below; brighter to the right
HALVES[:15, :, 0] = HALVES[15:, :, 2] = np.linspace(100, 250, 40).astype(np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path, pixels=HALVES, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def read(path, size=8, **options):
    return image_folder(path, size=size, progress=False, **options)


@pytest.fixture
def data(tmp_path):
    """Three classes of 3, 2 and 1 images."""
    for name in ("bee/1.png", "bee/2/deep/2.PNG", "bee/3.bmp", "ant/1.jpg", "ant/2.tiff", "cat/1.webp"):
        write(tmp_path / "data" / name)
    return tmp_path / "data"


def names_of(found):
    return {name: len(pixels) for name, pixels in found.items()}


# What is read


def test_classes_are_folders_sorted_and_their_images_views_of_one_array(data):
    (data / "notes.txt").write_text("no image")
    (data / "bee" / "notes.txt").write_text("no image")
    (data / ".hidden").mkdir()
    write(data / "bee" / "2" / "deep" / "2.PNG", HALVES[::-1])
    found = read(data)
    is_turned = [image[0, 0, 2] > image[0, 0, 0] for image in found["bee"]]  # 1.png, 2/deep/2.PNG, 3.bmp
    assert is_turned == [False, True, False]
    assert list(found) == ["ant", "bee", "cat"] and names_of(found) == {"ant": 2, "bee": 3, "cat": 1}
    assert found["bee"].dtype == np.uint8 and found["bee"].shape == (3, 8, 8, 3)
    assert np.shares_memory(found["ant"].base, found["cat"])
    assert repr(found) == "Images(3 classes of 1 to 3 images, median 2, 6 in all, 8 x 8 RGB, 1 other file ignored)"
    tasks = few_shot({name: found[name] for name in ("ant", "bee")}, num_ways=2, num_shots=1, num_queries=1)
    assert jax.eval_shape(tasks.sample, jax.random.key(0), tasks.data).support[0].shape == (2, 8, 8, 3)


def test_the_middle_square_is_scaled(tmp_path):
    """Against the mean of the pixels that one of the result covers: 3 x 3 of a smooth ramp."""
    ramp = np.add.outer(4 * np.arange(30), 3 * np.arange(50)).astype(np.uint8)
    write(tmp_path / "ramp.png", ramp)
    expected = ramp[:, 10:40].reshape(10, 3, 10, 3).mean((1, 3))
    np.testing.assert_allclose(decode(tmp_path / "ramp.png", 10, "L")[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_images_are_turned_as_the_camera_says(tmp_path, orientation):
    upright = Image.fromarray(HALVES)
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of each, as PIL.Image.Transpose numbers them
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(tmp_path / "turned.png", upright.transpose(Image.Transpose(turns[orientation])), exif=exif)
    write(tmp_path / "upright.png", upright)
    np.testing.assert_array_equal(
        decode(tmp_path / "turned.png", 10, "RGB"), decode(tmp_path / "upright.png", 10, "RGB")
    )


GREY = HALVES.max(axis=2)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY), GREY),
        (Image.fromarray(GREY.astype(np.uint16) * 257), GREY),
        (Image.fromarray(np.where(HALVES > 0, 255, 0).astype(np.uint8).max(axis=2) > 0), np.full_like(GREY, 255)),
        (Image.fromarray(HALVES).quantize(256), HALVES),
        (Image.fromarray(HALVES).convert("CMYK"), HALVES),
        (Image.fromarray(np.dstack([HALVES, np.zeros_like(GREY)])), np.full_like(HALVES, 255)),
        (Image.fromarray(np.dstack([GREY, np.full_like(GREY, 255)])), GREY),
    ],
    ids=["grey", "16 bits", "1 bit", "palette", "CMYK", "transparent", "opaque"],
)
def test_whatever_pixels_are_they_become_colours_and_greys(tmp_path, image, expected):
    path = tmp_path / "image.tiff"
    write(path, image)
    write(tmp_path / "expected.png", expected)
    for color in ("RGB", "L"):
        got, wanted = (decode(file, 10, color).astype(int) for file in (path, tmp_path / "expected.png"))
        assert got.shape == ((10, 10, 3) if color == "RGB" else (10, 10))
        assert np.abs(got - wanted).max() <= 4  # of quantising


def test_a_jpeg_decoded_small_is_as_if_decoded_whole(tmp_path):
    sharp = HALVES.copy()
    sharp[::2, ::2] = 0
    large = Image.fromarray(sharp).resize((800, 600), Image.Resampling.NEAREST)
    write(tmp_path / "large.jpg", large, quality=95)
    write(tmp_path / "large.png", large)
    for color, size in (("RGB", 10), ("L", 10), ("RGB", 100)):
        small, whole = (decode(tmp_path / f"large.{ending}", size, color).astype(int) for ending in ("jpg", "png"))
        assert np.abs(small - whole).max() < 8


# What is left out, and named


def bomb(width, height):
    """A PNG that claims to be of this size."""
    chunk = lambda name, content: (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    )
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_broken_images_are_named_and_left_out_again_from_the_cache(data):
    expected = {name: pixels.copy() for name, pixels in read(data).items()}
    whole = (data / "bee" / "1.png").read_bytes()
    write(data / "other", format="PCX")  # of a format that is not read, whatever its name says
    for name, content in {
        "empty": b"",
        "text": b"<html>",
        "pcx": (data / "other").read_bytes(),
        "cut": whole[: len(whole) // 2],
        "large": bomb(10_000, 9_000),
        "huge": bomb(60_000, 60_000),
    }.items():
        (data / "ant" / f"{name}.png").write_bytes(content)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"6 files or folders could not be read: 'ant/cut.png' .*'ant/empty.png'"):
            found = read(data)
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).all() for name in expected)
        assert "more than PIL.Image.MAX_IMAGE_PIXELS" in found.broken["ant/large.png"]
        assert found.broken.keys() == {f"ant/{name}.png" for name in ("empty", "text", "pcx", "cut", "large", "huge")}
        assert ", 6 broken and left out" in found.summary()


def test_a_class_that_runs_dry_is_an_error_and_one_without_images_is_named(data):
    (data / "void").mkdir()
    with pytest.warns(UserWarning, match=r"1 file or folder skipped: 'void' \(a class without images\)$"):
        assert names_of(read(data)) == {"ant": 2, "bee": 3, "cat": 1}
    (data / "void").rmdir()
    (data / "cat" / "1.webp").write_bytes(b"?")
    with pytest.raises(
        ValueError, match=r"all images of 1 class are broken, 'cat': replace them.*'cat/1.webp' \(no im"
    ):
        read(data)


def test_links_that_lead_outside_or_in_a_circle_are_not_followed(data, tmp_path):
    expected = names_of(read(data))
    secret = tmp_path / "data of others"  # whose path begins as that of the data
    write(secret / "a.png")
    links = {
        "stolen": secret,
        "bee/stolen": secret,
        "bee/a.png": secret / "a.png",
        "bee/2/circle": data / "bee",
        "alias": data / "bee",
        "root": data,
        "self": data / "self",
        "ant/self.png": data / "ant" / "self.png",
        "ant/gone.png": data / "nowhere.png",
    }
    for name, target in links.items():
        (data / name).symlink_to(target)
    os.mkfifo(data / "ant" / "pipe.png")
    with pytest.warns(UserWarning) as warned:
        assert names_of(read(data)) == expected
    (message,) = (str(warning.message) for warning in warned)
    assert message.startswith("9 files or folders skipped: ") and "'stolen' (a link that leads outside)" in message
    assert message.endswith(" and 4 more")


def test_links_within_the_folder_are_followed(data):
    (data / "dog").mkdir()
    (data / "dog" / "one.png").symlink_to(data / "bee" / "1.png")
    found = read(data)
    np.testing.assert_array_equal(found["dog"][0], found["bee"][0])
    (data / "train").mkdir()  # a class may be called so
    write(data / "train" / "1.png")
    assert list(read(data)) == ["ant", "bee", "cat", "dog", "train"]


def test_odd_names_and_deep_trees(data):
    odd = os.fsdecode(b"caf\xe9\n'")
    write(data / "new\nline" / "1.png")
    try:
        os.makedirs(data / odd)
    except OSError:
        pytest.skip("this system has no such names")
    write(data / odd / "1.png")
    deep = data / "deep" / Path(*["d"] * 100)
    write(deep / "1.png")
    (data / odd / "2.png").write_bytes(b"?")
    with pytest.warns(UserWarning, match="could not be read") as warned:
        found = read(data)
    str(warned[0].message).encode()  # can be printed
    assert {odd, "new\nline", "deep"} < set(found) and len(found["deep"]) == 1


# Splits


@pytest.mark.parametrize("name", ["val", "validation", "valid", "Val"])
def test_splits_are_folders_when_asked_for_and_never_classes(data, tmp_path, name):
    root = tmp_path / "split"
    root.mkdir()
    os.rename(data, root / "train")
    write(root / name / "dog" / "1.png")
    assert list(read(root, split="train")) == ["ant", "bee", "cat"]
    for known in ("val", "validation", "valid"):
        assert list(read(root, split=known)) == ["dog"]
    with pytest.raises(ValueError, match=f"has folders of splits, .*{name}.*: say which one to read, as in split='"):
        read(root)
    with pytest.raises(ValueError, match="split must be a folder of path .*, got 'test': there are"):
        read(root, split="test")


def test_a_split_is_one_folder_and_within(data, tmp_path):
    root = tmp_path / "split"
    write(root / "val" / "dog" / "1.png")
    (root / "train").symlink_to(data)
    with pytest.raises(ValueError, match="got 'train': a link that leads outside"):
        read(root, split="train")
    (root / "val" / "all").symlink_to(root / "val")
    with pytest.warns(UserWarning, match=r"1 file or folder skipped: 'val/all' \(a link to what is read already\)"):
        assert list(read(root, split="val")) == ["dog"]
    (root / "valid").mkdir()
    with pytest.raises(ValueError, match="path has two folders of a split, val and valid: rename one"):
        read(root)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"size": 0}, "size must be an integer >= 1, got 0"),
        ({"color": "BGR"}, "color must be one of L, RGB, got 'BGR'"),
        ({"split": "dev"}, "split must be one of test, train, val, valid, validation, got 'dev'"),
        ({"split": "train"}, "split must be a folder of path .*, got 'train': there are no splits"),
        ({"path": "nowhere"}, "path must be a folder that is there, got 'nowhere'"),
        ({"path": 3}, "path must be the path of a folder, got 3"),
    ],
)
def test_wrong_arguments_are_named(data, arguments, says):
    with pytest.raises(ValueError, match=says):
        image_folder(**{"path": data, "progress": False, **arguments})


def test_a_folder_without_classes_says_what_is_expected(tmp_path):
    write(tmp_path / "flat" / "1.png")
    with pytest.raises(
        ValueError, match=r"no images in folders of their classes, but 0 folders and 1 other entry\. Exp"
    ):
        read(tmp_path / "flat")


# The cache


def refuse(*_):
    raise AssertionError("decoded again")


def test_the_second_time_nothing_is_decoded_until_a_file_changes(data, cache, monkeypatch):
    first = read(data)
    with monkeypatch.context() as patched:
        patched.setattr(images, "decode", refuse)
        again = read(data)
        assert list(again) == list(first) and all((again[name] == first[name]).all() for name in first)
        again["ant"][:] = 0  # of this array alone
        assert (read(data)["ant"] == first["ant"]).all()
        for other in ({"size": 9}, {"color": "L"}):
            with pytest.raises(ValueError, match="decoded again"):  # all are broken then
                read(data, **other)
    write(data / "cat" / "1.webp", HALVES[::-1].copy())
    assert (read(data)["cat"] != first["cat"]).any()
    path = data / "ant" / "2.tiff"
    later = path.stat().st_mtime_ns + 10**9
    for content in (path.read_bytes(), path.read_bytes() + b"\0"):  # its time alone changes, then its size alone
        path.write_bytes(content)
        os.utime(path, ns=(later, later))
        read(data)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[:90] + bytes([b[90] ^ 1]) + b[91:]])
def test_a_damaged_cache_is_decoded_again(data, cache, damage):
    first = {name: pixels.copy() for name, pixels in read(data).items()}
    (file,) = cache.iterdir()
    intact = file.read_bytes()
    file.write_bytes(damage(intact))
    assert all((pixels == first[name]).all() for name, pixels in read(data).items())
    assert file.read_bytes() == intact and list(cache.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_is_a_warning(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"is not cached, and will be decoded again next time.*cache_dir"):
        assert names_of(read(data, cache_dir=tmp_path / "file" / "cache")) == {"ant": 2, "bee": 3, "cat": 1}


# Splits by class


@given(st.integers(5, 60), st.integers(0, 5), st.randoms())
@settings(deadline=None)
def test_splits_by_fractions_have_each_class_once_whatever_the_order(num, seed, random):
    names = [f"c{i}" for i in range(num)]
    shuffled = random.sample(names, num)
    splits = split_classes({name: np.zeros((1, 2, 2)) for name in shuffled}, seed=seed)
    assert sorted(name for split in splits for name in split) == sorted(names)
    assert all(abs(len(split) - share * num) <= 1 for split, share in zip(splits, (0.64, 0.16, 0.2), strict=True))
    again = split_classes({name: np.zeros((1, 2, 2)) for name in names}, seed=seed)
    assert [list(split) for split in splits] == [list(split) for split in again]


def test_the_split_of_seed_0_is_recorded():
    classes = {f"{i:02}": np.zeros((1, 2, 2)) for i in range(10)}
    assert [list(split) for split in split_classes(classes)][1:] == [["04", "07"], ["05", "09"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"images": {}}, "images must be a dict"),
        ({"fractions": (0.5, 0.5)}, "fractions must be three"),
        ({"fractions": (0.5, 0.5, 0.5)}, "fractions must sum to 1, got .* sum to 1.5"),
        ({"fractions": (1.5, -0.5, 0)}, "fractions of validation must be a finite number >= 0"),
        ({"fractions": (0.9, 0.05, 0.05)}, "fractions must give validation a class, got 0.05 of 4 classes"),
        ({"names": {"train": ["a", "zebra"]}}, "names must be classes of images, and 'zebra' is none of them"),
        ({"names": {"train": ["a"], "test": ["a"]}}, "names must have a class once, in one split, got 'a' more than"),
        ({"names": {"train": ["a", "a"]}}, "names must have a class once, in one split, got 'a' more than"),
        ({"names": {"dev": ["a"]}}, "names must be a dict with the keys train, validation, test"),
        ({"seed": -1}, "seed must be an integer >= 0"),
    ],
)
def test_a_wrong_split_is_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        split_classes(**{"images": {name: np.zeros((1, 2)) for name in "abcd"}, **arguments})


# The recipe


def draw_shapes(root, num_classes=30, seed=0):
    """Classes of 8 to 20 images of a polygon: its colours and corners are the class's, its place and turn its own."""
    choose = random.Random(seed)
    for c in range(num_classes):
        colours = [tuple(choose.randrange(256) for _ in range(3)) for _ in range(2)]
        corners = choose.randrange(3, 8)
        for i in range(choose.randrange(8, 21)):
            image = Image.new("RGB", (50, 40), colours[0])
            place = (choose.randrange(18, 32), choose.randrange(14, 26), choose.randrange(8, 14))
            ImageDraw.Draw(image).regular_polygon(place, corners, choose.randrange(360), fill=colours[1])
            write(root / f"class{c:02}" / f"{i}.png", image)


BRIEFLY = ("--size", "16", "--num-filters", "8", "--num-eval-tasks", "40", "--num-outer-steps", "60")


def test_the_recipe_learns_and_says_what_it_read(tmp_path, capsys, monkeypatch):
    evaluated = []
    judge = runs._evaluate
    monkeypatch.setattr(runs, "_draw", lambda *_: None)
    monkeypatch.setattr(runs, "_evaluate", lambda *given: evaluated.append((found := judge(*given))[0]) or found)
    draw_shapes(tmp_path / "shapes")
    (tmp_path / "shapes" / "class00" / "broken.png").write_bytes(b"?")
    folder, run = str(tmp_path / "shapes"), tmp_path / "run"
    with pytest.warns(UserWarning, match="class00/broken.png"):
        assert main(["train", "maml-folder", "--data-dir", folder, "--out", str(run), *BRIEFLY]) == 0
    said = capsys.readouterr().out
    assert "30 classes of 8 to " in said and "16 x 16 RGB, 1 broken and left out; 19 classes to train, 5 left" in said
    accuracy = json.loads((run / "result.json").read_text())["metrics"]["accuracy"]["mean"]
    assert accuracy[0] < 0.3 and accuracy[-1] > 0.6  # chance is 0.2
    (report,) = evaluated
    os.rename(folder, tmp_path / "moved")
    monkeypatch.setattr(runs, "_evaluate", lambda *_: (report, {}))
    with pytest.warns(UserWarning, match="class00/broken.png"):
        assert main(["evaluate", str(run), "--data-dir", str(tmp_path / "moved")]) == 0
    assert f"images of {tmp_path / 'moved'}: 30 classes" in capsys.readouterr().out


def test_the_recipe_reads_splits_that_are_there_and_says_what_to_give(data, tmp_path, capsys):
    said = lambda *arguments: (main(["train", "maml-folder", *arguments]), capsys.readouterr().err)[1]
    assert "data_dir must be your folder of images, got None: give --data-dir DIR" in said()
    assert "data_dir must be a folder that is there, got 'nowhere'" in said("--data-dir", "nowhere")
    for split in ("train", "test"):
        (tmp_path / "split").mkdir(exist_ok=True)
        for name in "abcdef"[: 6 if split == "train" else 4]:
            write(tmp_path / "split" / split / name / "1.png")
    assert "num_ways must be at most the 4 classes of the split test, got 5: there are 6 (train) + 4 (test)" in said(
        "--data-dir", str(tmp_path / "split")
    )
    os.rename(tmp_path / "split" / "test", tmp_path / "split" / "val")
    assert "has no folder test beside train, val" in said("--data-dir", str(tmp_path / "split"))


@pytest.mark.slow
def test_the_recipe_as_it_is_tells_shapes_apart(tmp_path):
    draw_shapes(tmp_path / "shapes")
    assert main(["train", "maml-folder", "--data-dir", str(tmp_path / "shapes"), "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["accuracy"]["mean"][-1] > 0.9

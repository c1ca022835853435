import functools
import hashlib
import importlib
import io
import re
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxmeta.tasks.alphabets import ALPHABETS, alphabet_of_each
from jaxmeta.tasks.few_shot import few_shot
from jaxmeta.tasks.omniglot import load_omniglot, omniglot

module = importlib.import_module("jaxmeta.tasks.omniglot")  # in jaxmeta.tasks the name is the function

# A little Omniglot: three characters, two of them "background". Its names are numbered as the real ones are.
LITTLE = (
    module._Part("images_background", "", first=1, characters=2),
    module._Part("images_evaluation", "", first=3, characters=1),
)
PAPER = np.random.default_rng(0).random((3, 20, 105, 105)) > 0.2
DEAD_URL = "http://127.0.0.1:9"  # the discard port: nothing listens


def png(paper):
    file = io.BytesIO()
    Image.fromarray(paper).save(file, "PNG")
    return file.getvalue()


@functools.cache
def drawings(part):
    """The entries of the official zip, in an order that is not sorted."""
    numbers = [(c, d) for c in range(part.first, part.first + part.characters) for d in range(1, 21)]
    return {
        f"{part.name}/Alphabet/character{c:02}/{c:04}_{d:02}.png": png(PAPER[c - 1, d - 1])
        for c, d in sorted(numbers, key=lambda number: number[1] % 7)
    }


def write_zip(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            # Written by hand, as zipfile cleans up names that are not clean.
            info = zipfile.ZipInfo("x" * len(name))
            info.filename = info.orig_filename = name
            info.compress_type = compression
            archive.writestr(info, content)
    return path


def write_zips(folder):
    for part in LITTLE:
        write_zip(folder / f"{part.name}.zip", drawings(part).items())


def write_npzs(folder, save=np.savez_compressed):
    for part, paper in zip(LITTLE, (PAPER[:2], PAPER[2:]), strict=True):
        labels = np.tile(np.arange(part.characters)[:, None], 20)
        save(folder / f"{part.name}.npz", images=paper, labels=labels)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(module, "_URL", DEAD_URL)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def little(monkeypatch, tmp_path):
    """Folders for data and cache, in a world where Omniglot is little."""
    monkeypatch.setattr(module, "_PARTS", LITTLE)
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    return folder, tmp_path / "cache"


def expected_images(paper):
    """Lanczos by another road: through floating point."""
    ink = [Image.fromarray(np.where(p, 0, 255).astype(np.float32)) for p in paper.reshape(-1, 105, 105)]
    shrunk = [np.asarray(image.resize((28, 28), Image.Resampling.LANCZOS)) for image in ink]
    return np.clip(np.reshape(shrunk, (*paper.shape[:2], 28, 28)), 0, 255)


# Good archives


def test_zips_and_arrays_give_the_same_images_in_the_official_order(little):
    folder, _ = little
    results = []
    for write in (write_zips, write_npzs, functools.partial(write_npzs, save=np.savez)):
        for file in folder.iterdir():
            file.unlink()
        write(folder)
        results.append(load_omniglot(folder))
    assert results[0].shape == (3, 20, 28, 28) and results[0].dtype == np.uint8 and results[0].flags.writeable
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    # Pillow clips 8-bit pixels after each of the two passes; another drawing would differ by 30.
    assert np.abs(results[0] - expected_images(PAPER)).mean(axis=(2, 3)).max() < 3


def test_ink_is_255_and_paper_is_0(little):
    paper = np.ones((105, 105), bool)
    paper[:, 45:60] = False  # a thick vertical stroke
    shrunk = module._shrink(paper)
    assert (shrunk[:, 13:15] == 255).all() and (shrunk[:, :9] == 0).all() and (shrunk[:, 19:] == 0).all()


def test_folders_and_what_macos_adds_are_ignored(little):
    folder, _ = little
    write_zips(folder)
    images = load_omniglot(folder)
    extra = [("images_background/", b""), ("images_background/.DS_Store", b"x"), ("__MACOSX/a/._0001_01.png", b"x")]
    write_zip(folder / "images_background.zip", [*extra, *drawings(LITTLE[0]).items()])
    np.testing.assert_array_equal(load_omniglot(folder), images)


def test_drawings_need_no_folders_and_no_compression(little):
    folder, _ = little
    write_zips(folder)
    images = load_omniglot(folder)
    flat = [(Path(name).name, content) for name, content in drawings(LITTLE[0]).items()]
    write_zip(folder / "images_background.zip", flat, zipfile.ZIP_STORED)
    np.testing.assert_array_equal(load_omniglot(folder), images)


# Hostile and broken archives


def bomb(width, height):
    """A PNG that claims to be of this size."""
    content = bytearray(png(PAPER[0, 0]))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


FIRST, SECOND = list(drawings(LITTLE[0]))[:2]
BAD_ENTRIES = {
    "absolute": ({FIRST: None, "/tmp/0001_01.png": png(PAPER[0, 0])}, "/tmp/0001_01.png", "out of the archive"),
    "parent": ({FIRST: None, "a/../../0001_01.png": png(PAPER[0, 0])}, "a/../../0001_01.png", "out of the archive"),
    "parent of a folder": ({"../": b""}, "../", "out of the archive"),
    "parent within what is ignored": ({"__MACOSX/../x": b""}, "__MACOSX/../x", "out of the archive"),
    "drive": ({FIRST: None, "C:0001_01.png": png(PAPER[0, 0])}, "C:0001_01.png", "out of the archive"),
    "backslash": ({FIRST: None, "a\\0001_01.png": png(PAPER[0, 0])}, r"a\\\\0001_01.png", "out of the archive"),
    "large": ({FIRST: b"\0" * (module._MAX_DRAWING + 1)}, FIRST, "unpacks to 16385 bytes, more than 16384"),
    "stranger": ({"images_background/readme.txt": b"hello"}, "readme.txt", "not a drawing"),
    "script": ({"a/0001_01.png.py": b"print()"}, "0001_01.png.py", "not a drawing"),
    "zero": ({"a/0000_01.png": png(PAPER[0, 0])}, "0000_01.png", "0001_01.png to 0002_20.png"),
    "other part": ({"a/0003_01.png": png(PAPER[0, 0])}, "0003_01.png", "0001_01.png to 0002_20.png"),
    "21st": ({"a/0001_21.png": png(PAPER[0, 0])}, "0001_21.png", "0001_01.png to 0002_20.png"),
    "twice": ({"b/0001_07.png": png(PAPER[0, 6])}, "0001_07.png", "there twice"),
    "missing": ({FIRST: None, SECOND: None}, "images_background.zip", "2 of 40 drawings are missing, the first is 000"),
    "not PNG": ({FIRST: b"GIF89a"}, FIRST, "truncated or corrupt"),
    "empty": ({FIRST: b""}, FIRST, "truncated or corrupt"),
    "cut PNG": ({FIRST: png(PAPER[0, 0])[:-200]}, FIRST, "truncated or corrupt"),
    "small PNG": ({FIRST: png(PAPER[0, 0, :104])}, FIRST, r"105x105 pixels of 1 bit, this has \(105, 104\)"),
    "grey PNG": ({FIRST: png(np.zeros((105, 105), np.uint8))}, FIRST, "105x105 pixels of 1 bit, .* of 'L'"),
    "wide PNG": ({FIRST: bomb(8000, 8000)}, FIRST, r"105x105 pixels of 1 bit, this has \(8000, 8000\)"),
    "PNG bomb": ({FIRST: bomb(60000, 60000)}, FIRST, "DecompressionBombError"),
    "too many": ({f"{i}/": b"" for i in range(121)}, "images_background.zip", "161 entries are too many"),
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_a_bad_entry_is_refused_with_its_name(little, case):
    folder, cache = little
    changes, entry, problem = BAD_ENTRIES[case]
    write_zips(folder)
    entries = {name: content for name, content in {**drawings(LITTLE[0]), **changes}.items() if content is not None}
    write_zip(folder / "images_background.zip", entries.items())
    with pytest.raises(ValueError, match=problem) as caught:
        load_omniglot(folder)
    assert str(folder / "images_background.zip") in str(caught.value)
    assert re.search(entry, str(caught.value))
    assert f"{DEAD_URL}/images_background.zip" in str(caught.value)  # the remedy
    assert not cache.exists()


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_unpacks_without_a_bound_is_refused(little, compression):
    folder, _ = little
    write_zips(folder)
    write_zip(folder / "images_background.zip", drawings(LITTLE[0]).items(), compression)
    with pytest.raises(ValueError, match="only deflate"):
        load_omniglot(folder)


@pytest.mark.parametrize("suffix", [".zip", ".npz"])
def test_a_large_archive_is_refused_before_it_is_read(little, monkeypatch, suffix):
    folder, _ = little
    (write_zips if suffix == ".zip" else write_npzs)(folder)
    monkeypatch.setitem(module._MAX_ARCHIVE, suffix, 1000)
    with pytest.raises(ValueError, match=rf"images_background\{suffix} is larger than 1000 bytes.*Replace"):
        load_omniglot(folder)


def peak_memory_of_refusal(folder, match):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=match):
            load_omniglot(folder)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_entry_that_lies_about_its_size_takes_no_memory(little):
    folder, _ = little
    write_zips(folder)
    size = 64 * 2**20
    path = write_zip(folder / "images_background.zip", [("0001_01.png", b"\0" * size)])
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", 100)))
    assert peak_memory_of_refusal(folder, "0001_01.png") < 4 * 2**20


def npy(shape, content=b"", dtype=bool, fortran_order=False, version=(1, 0)):
    file = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": fortran_order, "shape": shape}
    write = np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0
    write(file, header)
    return file.getvalue() + content


SHAPE, PIXELS = (2, 20, 105, 105), PAPER[:2].tobytes()
BAD_ARRAYS = {
    "lying shape": ({"images.npy": npy((10**6, 20, 105, 105))}, "must be .*1000000"),
    "evaluation's shape": ({"images.npy": npy((1, 20, 105, 105), PAPER[2].tobytes())}, "must be"),
    "dtype": ({"images.npy": npy(SHAPE, PIXELS, np.uint8)}, "must be .*uint8"),
    "objects": ({"images.npy": npy(SHAPE, b"cos\nsystem\n(S'false'\ntR.", object)}, "must be"),
    "Fortran order": ({"images.npy": npy(SHAPE, PIXELS, fortran_order=True)}, "must be .*True"),
    "version": ({"images.npy": npy(SHAPE, PIXELS, version=(2, 0))}, "version 1.0"),
    "short": ({"images.npy": npy(SHAPE, PIXELS[:-1])}, "truncated"),
    "long": ({"images.npy": npy(SHAPE, PIXELS + b"\1")}, "more bytes"),
    "large": ({"images.npy": npy(SHAPE, PIXELS + bytes(2**16))}, "unpacks to"),
    "empty": ({"images.npy": b""}, "reading magic string"),
    "no header": ({"images.npy": b"\x93NUMPY\1\0\x10\0" + b"{" * 16}, "truncated or corrupt"),
    "no images": ({"labels.npy": npy((2, 20))}, "must have images.npy"),
    "other arrays": ({"images.npy": npy(SHAPE, PIXELS), "../more.npy": npy((1,))}, "nothing else"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused_without_allocating_what_they_claim(little, case):
    folder, cache = little
    entries, problem = BAD_ARRAYS[case]
    write_npzs(folder)
    write_zip(folder / "images_background.npz", entries.items())
    assert peak_memory_of_refusal(folder, rf"images_background\.npz: .*{problem}.*Replace the file by") < 4 * 2**20
    assert not cache.exists()


LITTLEST = module._Part("images_background", "", first=1, characters=1)


@functools.cache
def littlest(suffix):
    """The content of an archive with one character, and its images."""
    file = io.BytesIO()
    if suffix == ".zip":
        write_zip(file, drawings(LITTLEST).items())
    else:
        np.savez_compressed(file, images=PAPER[:1], labels=np.zeros((1, 20), int))
    return file.getvalue(), module._decode(Path("intact" + suffix), file.getvalue(), LITTLEST)


@given(st.sampled_from([".zip", ".npz"]), st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=40)
def test_a_truncated_archive_is_refused(suffix, fraction):
    content, _ = littlest(suffix)
    with pytest.raises(ValueError, match=r"^cut.*truncated or corrupt.*Replace the file by"):
        module._decode(Path("cut" + suffix), content[: int(fraction * len(content))], LITTLEST)


@given(st.sampled_from([".zip", ".npz"]), st.data())
@settings(deadline=None, max_examples=150)
def test_a_corrupt_archive_is_refused_or_gives_the_right_images(suffix, data):
    content, images = littlest(suffix)
    # Half of the changes are where the structure is, in the last 2,000 bytes.
    place = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(len(content) - 2000, len(content) - 1)))
    corrupt = bytearray(content)
    corrupt[place] ^= data.draw(st.integers(1, 255))
    try:
        np.testing.assert_array_equal(module._decode(Path("bad" + suffix), bytes(corrupt), LITTLEST), images)
    except ValueError as error:
        assert re.match(r"bad\.(zip|npz): .*Replace the file by", str(error), re.DOTALL)


# Folders and the cache


def test_a_folder_without_archives_is_refused(little):
    folder, _ = little
    with pytest.raises(
        ValueError, match=r"^data_dir .* neither images_background\.zip nor images_background\.npz: put"
    ):
        load_omniglot(folder)
    write_zips(folder)
    (folder / "images_evaluation.zip").unlink()
    with pytest.raises(ValueError, match=r"^data_dir .* neither images_evaluation\.zip"):
        load_omniglot(folder)


@given(st.sampled_from(["data_dir", "cache_dir"]), st.one_of(st.integers(), st.just(""), st.just("a\0"), st.binary()))
def test_a_wrong_path_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        load_omniglot(**{"data_dir": ".", "cache_dir": ".", name: value})


def refuse_to_decode(*_):
    raise AssertionError("decoded again")


def test_the_second_time_nothing_is_decoded(little, monkeypatch):
    folder, cache = little
    write_zips(folder)
    images = load_omniglot(folder)
    monkeypatch.setattr(module, "_decode", refuse_to_decode)
    again = load_omniglot(folder)
    np.testing.assert_array_equal(again, images)
    assert again.dtype == np.uint8 and again.flags.writeable
    assert len(list(cache.iterdir())) == 1


def test_cache_dir_comes_before_the_environment(little, tmp_path):
    folder, cache = little
    write_zips(folder)
    load_omniglot(folder, cache_dir=tmp_path / "other" / "cache")
    assert list((tmp_path / "other" / "cache").iterdir()) and not cache.exists()


def test_sources_do_not_mix(little):
    folder, cache = little
    write_zips(folder)
    images = load_omniglot(folder)
    swapped = dict(zip(drawings(LITTLE[1]), list(drawings(LITTLE[1]).values())[::-1], strict=True))
    write_zip(folder / "images_evaluation.zip", swapped.items())
    changed = load_omniglot(folder)
    assert (changed[:2] == images[:2]).all() and (changed[2] != images[2]).any()
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: hashlib.sha256(content[32:-784]).digest() + content[32:-784],
    ],
    ids=["empty", "truncated", "longer", "a pixel", "the digest", "another shape"],
)
def test_a_damaged_cache_is_rebuilt(little, damage):
    folder, cache = little
    write_zips(folder)
    images = load_omniglot(folder)
    (cached,) = cache.iterdir()
    intact = cached.read_bytes()
    cached.write_bytes(damage(intact))
    np.testing.assert_array_equal(load_omniglot(folder), images)
    assert cached.read_bytes() == intact and list(cache.iterdir()) == [cached]


def test_without_a_cache_there_is_a_warning_and_the_images(little, tmp_path):
    folder, _ = little
    write_zips(folder)
    images = load_omniglot(folder)
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="not cached.*cache_dir"):
        uncached = load_omniglot(folder, cache_dir=tmp_path / "file" / "cache")
    np.testing.assert_array_equal(uncached, images)


def test_a_failure_to_write_leaves_nothing_in_the_cache(little, monkeypatch):
    folder, cache = little
    write_zips(folder)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(module.os, "replace", full)
    with pytest.warns(UserWarning, match="no space left"):
        load_omniglot(folder)
    assert list(cache.iterdir()) == []


# Downloads, from a server on this machine


@pytest.fixture
def server(little, monkeypatch, tmp_path, serve):
    """A folder that is served in place of the official one."""
    folder = tmp_path / "served"
    folder.mkdir()
    write_zips(folder)
    parts = [part._replace(md5=module._md5((folder / f"{part.name}.zip").read_bytes())) for part in LITTLE]
    monkeypatch.setattr(module, "_PARTS", tuple(parts))
    monkeypatch.setattr(module, "_URL", serve(folder))
    return folder


def test_a_download_is_decoded_and_cached(server, little, monkeypatch):
    folder, cache = little
    images = load_omniglot()
    monkeypatch.setattr(module, "_URL", DEAD_URL)
    monkeypatch.setattr(module, "_decode", refuse_to_decode)
    np.testing.assert_array_equal(load_omniglot(), images)
    shutil.copytree(server, folder, dirs_exist_ok=True)
    np.testing.assert_array_equal(load_omniglot(folder), images)  # the official zips, wherever they are
    monkeypatch.undo()
    assert {file.name for file in cache.iterdir() if file.suffix == ".zip"} == {f"{part.name}.zip" for part in LITTLE}


def test_a_download_without_a_cache_still_gives_the_images(server, tmp_path):
    images = load_omniglot()
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="not cached"):
        np.testing.assert_array_equal(load_omniglot(cache_dir=tmp_path / "file"), images)


def test_a_wrong_download_is_refused_and_not_kept(server, little):
    _, cache = little
    (server / "images_background.zip").write_bytes(b"<html>sign in to this network</html>")
    with pytest.raises(ValueError, match=r"images_background\.zip is not the official file.*hash.*--data-dir"):
        load_omniglot()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("url", [None, DEAD_URL], ids=["404", "no network"])
def test_a_failed_download_names_the_url_and_the_way_out(server, little, monkeypatch, url):
    _, cache = little
    if url:
        monkeypatch.setattr(module, "_URL", url)
    (server / "images_background.zip").unlink()
    with pytest.raises(ConnectionError, match=f"could not download {module._URL}/images_background.zip.*--data-dir"):
        load_omniglot()
    assert list(cache.iterdir()) == []


# The splits and their tasks


@pytest.fixture
def numbered(monkeypatch):
    """1,623 characters of 2x2 pixels: two for the number of the character, one for that of the drawing, and 255."""
    images = np.full((1623, 20, 2, 2), 255, np.uint8)
    images[:, :, 0, 0] = np.arange(1623)[:, None] // 250
    images[:, :, 0, 1] = np.arange(1623)[:, None] % 250
    images[:, :, 1, 0] = np.arange(20)
    monkeypatch.setattr(module, "load_omniglot", lambda data_dir=None: images)
    return images


def characters_of(images):
    return images[:, 0, 0, 0].astype(int) * 250 + images[:, 0, 0, 1]


def test_splits_are_1100_and_100_and_423_characters_and_share_none(numbered):
    splits = [characters_of(np.asarray(omniglot(split).data)) for split in ("train", "validation", "test")]
    assert [len(split) for split in splits] == [1100, 100, 423]
    assert sorted(np.concatenate(splits)) == list(range(1623))
    np.testing.assert_array_equal(splits[0], characters_of(np.asarray(omniglot("train", seed=0).data)))
    assert set(splits[0]) != set(characters_of(np.asarray(omniglot("train", seed=1).data)))


def test_the_split_of_seed_0_is_recorded():
    """These never change: results of different versions are over the same characters."""
    assert module._characters("train", 0)[:5].tolist() == [855, 921, 269, 1185, 11]
    assert module._characters("validation", 0)[:5].tolist() == [392, 1131, 1389, 432, 1225]
    assert module._characters("test", 0)[:5].tolist() == [1091, 1145, 752, 391, 80]


def test_tasks_are_those_of_rotations_that_are_written_out(numbered):
    """As they were at first: four times the memory, and the same tasks bit for bit."""
    upright = numbered[module._characters("test", 0)]
    written = np.concatenate([np.rot90(upright, turns, axes=(2, 3)) for turns in range(4)])
    sizes = {"num_ways": 5, "num_shots": 1, "num_queries": 2}
    tasks, reference = omniglot("test", **sizes), few_shot(written, **sizes)
    assert tasks.data.nbytes * 4 == reference.data.nbytes
    task, expected = (sample_many(each, 30) for each in (tasks, reference))
    jax.tree.map(np.testing.assert_array_equal, task, expected)
    assert set((task.info // len(upright)).flat) == {0, 1, 2, 3}


def sample_many(tasks, num_tasks):
    keys = jax.random.split(jax.random.key(0), num_tasks)
    return jax.device_get(jax.jit(jax.vmap(tasks.sample, (0, None)))(keys, tasks.data))


def test_tasks_of_one_alphabet(numbered):
    tasks = omniglot("test", num_ways=5, num_shots=1, num_queries=1, same_alphabet=True)
    classes = sample_many(tasks, 200).info
    characters = module._characters("test", 0)
    turns, upright = np.divmod(classes, len(characters))
    alphabets = alphabet_of_each()[characters[upright]]
    assert (alphabets == alphabets[:, :1]).all() and (turns == turns[:, :1]).all()
    assert all(len(set(row)) == 5 for row in classes)
    assert len(set(alphabets[:, 0])) > 35 and set(turns[:, 0]) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match=r"^groups must have one with num_ways = 20 .* got 50 groups, 'Old_Church"):
        omniglot("test", num_ways=20, same_alphabet=True)


def test_ranges_and_augmentation_go_on_to_few_shot(numbered):
    tasks = omniglot("test", num_ways=(2, 3), num_queries=1, augment=lambda key, image: image * 0)
    support, _, _ = sample_many(tasks, 2)
    assert support.weight.shape == (2, 3) and not support.x.any()


def test_tasks_have_the_shapes_asked_for(numbered):
    tasks = omniglot("test", num_ways=20, num_shots=5, num_queries=15)
    task = jax.eval_shape(tasks.sample, jax.random.key(0), tasks.data)
    assert task.support[0].shape == (100, 2, 2) and task.query[0].shape == (300, 2, 2)
    assert task.support[0].dtype == np.uint8 and task.info.shape == (20,)


@given(
    st.one_of(
        st.tuples(st.just("split"), st.one_of(st.text(), st.none(), st.integers())),
        st.tuples(
            st.sampled_from(["seed", "num_ways", "num_shots", "num_queries", "same_alphabet"]),
            st.one_of(st.integers(max_value=-1), st.floats(), st.none(), st.text()),
        ),
        st.tuples(st.just("data_dir"), st.one_of(st.integers(), st.just(""))),
    )
)
def test_a_wrong_argument_is_named(bad):
    name, value = bad
    with pytest.raises(ValueError, match=f"^{name} must be"):
        omniglot(**{"split": "train", "data_dir": "nowhere", name: value})


# The real data


def test_the_official_zip_and_the_arrays_agree_bit_for_bit(omniglot_dir, omniglot_images):
    small = omniglot_dir / "images_background_small1.zip"
    if not small.is_file():
        pytest.skip(f"no {small}")
    with zipfile.ZipFile(small) as archive:
        images, found = module._decode_zip(archive, module._PARTS[0])
    assert found.all(axis=1).sum() == 136 and found.sum() == 136 * 20
    np.testing.assert_array_equal(images[found], omniglot_images[:964][found])


def test_alphabets_are_those_of_the_official_paths(omniglot_dir):
    """Eight are in the small zips, 242 characters."""
    assert len(ALPHABETS) == len({name for name, _ in ALPHABETS}) == 50
    assert sum(count for _, count in ALPHABETS[:30]) == 964 and len(alphabet_of_each()) == 1623
    found = {}
    for path in omniglot_dir.glob("images_background_small?.zip"):
        with zipfile.ZipFile(path) as archive:
            drawings = [name.split("/") for name in archive.namelist() if name.endswith(".png")]
        found |= {int(file[:4]): alphabet for *_, alphabet, _, file in drawings}
    for number, alphabet in found.items():
        assert alphabet_of_each()[number - 1] == alphabet
    assert len(found) in (0, 242)


def test_an_incomplete_official_zip_is_refused(omniglot_dir, tmp_path):
    small = omniglot_dir / "images_background_small1.zip"
    if not small.is_file():
        pytest.skip(f"no {small}")
    with pytest.raises(ValueError, match=r"16560 of 19280 drawings are missing, the first is 0\d\d\d_01\.png"):
        module._decode(small, small.read_bytes(), module._PARTS[0])


def test_the_real_images_are_thin_ink_on_paper(omniglot_images):
    assert omniglot_images.shape == (1623, 20, 28, 28) and omniglot_images.dtype == np.uint8
    assert omniglot_images.min() == 0 and omniglot_images.max() == 255
    assert 0.05 < omniglot_images.mean() / 255 < 0.12
    assert omniglot_images.any(axis=(2, 3)).all()


def test_the_nearest_neighbour_is_better_than_chance(omniglot_dir, omniglot_cache, omniglot_images, monkeypatch):
    """Vinyals et al. report 41.7% for raw pixels, 5 ways and 1 shot; any confusion of labels would give 20%."""
    monkeypatch.setenv("JAXMETA_CACHE", str(omniglot_cache))
    tasks = omniglot("test", data_dir=omniglot_dir, num_ways=5, num_shots=1, num_queries=5)
    keys = jax.random.split(jax.random.key(0), 200)
    (x, _), (query_x, query_y), _ = jax.device_get(jax.jit(jax.vmap(tasks.sample, (0, None)))(keys, tasks.data))
    distance = np.sum((query_x[:, :, None] / 255 - x[:, None] / 255) ** 2, axis=(3, 4))
    assert np.mean(distance.argmin(axis=2) == query_y) > 0.38

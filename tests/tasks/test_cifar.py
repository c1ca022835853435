"""CIFAR-FS and FC100 from small archives of the official format: 100 classes of 3 + 2 images."""

import functools
import gzip
import hashlib
import importlib
import io
import re
import tarfile
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmeta.tasks import cifar_fs, fc100, load_cifar100, splits

module = importlib.import_module("jaxmeta.tasks.cifar")

NAMES = sorted(name for split in ("train", "validation", "test") for name in splits.classes("cifar_fs", split))
DEAD_URL = "http://127.0.0.1:9/cifar-100-binary.tar.gz"  # the discard port: nothing listens
LITTLE = {"train.bin": 3, "test.bin": 2}
OFFICIAL = dict(module._EXAMPLES)


def records(examples, seed):
    """The content of a file: images of each class in random order."""
    rng = np.random.default_rng(seed)
    content = rng.integers(0, 256, (100 * examples, 3074), np.uint8)
    content[:, 0] %= 20
    content[:, 1] = rng.permutation(np.repeat(np.arange(100), examples))
    return content.tobytes()


FILES = {
    "train.bin": records(3, seed=0),
    "test.bin": records(2, seed=1),
    "fine_label_names.txt": "\n".join([*NAMES, "", ""]).encode(),
    "coarse_label_names.txt": b"aquatic_mammals\n",
}


def tar_gz(entries, folder="cifar-100-binary"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        directory = tarfile.TarInfo(folder)
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for name, content in entries:
            entry = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(f"{folder}/{name}")
            if entry is not content:
                entry.size = len(content)
            archive.addfile(entry, None if entry is content else io.BytesIO(content))
    return file.getvalue()


@functools.cache
def intact():
    return tar_gz(FILES.items())


@functools.cache
def expected():
    """Image by image, as the format is described."""
    images = {name: [] for name in NAMES}
    for file in ("train.bin", "test.bin"):
        for start in range(0, len(FILES[file]), 3074):
            record = FILES[file][start : start + 3074]
            image = np.empty((32, 32, 3), np.uint8)
            for channel in range(3):
                for row in range(32):
                    at = 2 + 1024 * channel + 32 * row
                    image[row, :, channel] = list(record[at : at + 32])
            images[NAMES[record[1]]].append(image)
    return {name: np.stack(of_class) for name, of_class in images.items()}


def same(images):
    return list(images) == NAMES and all(np.array_equal(images[name], expected()[name]) for name in NAMES)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(module, "_URL", DEAD_URL)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def little(monkeypatch, tmp_path):
    """A folder with the archive, in a world where CIFAR-100 is little."""
    monkeypatch.setattr(module, "_EXAMPLES", LITTLE)
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "cifar-100-binary.tar.gz").write_bytes(intact())
    return folder


def test_the_sizes_are_those_of_the_official_files():
    assert module._EXAMPLES == OFFICIAL == {"train.bin": 500, "test.bin": 100}
    assert module._size_of("train.bin") == 153_700_000 and module._size_of("test.bin") == 30_740_000
    assert module._MAX_ARCHIVE > 168_513_733 and module._MAX_UNPACKED > 153_700_000 + 30_740_000 + 16 * 1024
    assert len(NAMES) == 100 and (NAMES[0], NAMES[-1]) == ("apple", "worm")


# Good archives


def test_images_are_grouped_by_class_from_an_archive_and_from_its_folder(little):
    images = load_cifar100(little)
    assert same(images) and images["whale"].dtype == np.uint8 and images["whale"].flags.writeable
    assert repr(images) == "Images(100 classes of 5 images, 500 in all, 32 x 32 RGB)"
    assert len({id(of_class.base) for of_class in images.values()}) == 1  # views of one array
    (little / "cifar-100-binary.tar.gz").unlink()
    (little / "cifar-100-binary").mkdir()
    for name, content in FILES.items():
        (little / "cifar-100-binary" / name).write_bytes(content)
    assert same(load_cifar100(little))


def test_labels_may_be_called_maple_or_maple_tree(little):
    short = FILES["fine_label_names.txt"].replace(b"_tree", b"")
    (little / "cifar-100-binary.tar.gz").write_bytes(tar_gz((FILES | {"fine_label_names.txt": short}).items()))
    assert same(load_cifar100(little))


@pytest.mark.parametrize(("reader", "name"), [(cifar_fs, "cifar_fs"), (fc100, "fc100")])
def test_tasks_are_of_the_published_classes(little, reader, name):
    for split in ("train", "validation", "test"):
        augment = (lambda key, image: 255 - image) if split == "test" else None
        tasks = reader(split, data_dir=little, num_ways=7, num_shots=2, num_queries=3, augment=augment)
        (x, y), (query_x, _), classes = tasks.sample(jax.random.key(0), tasks.data)
        assert x.shape == (14, 32, 32, 3) and query_x.shape == (21, 32, 32, 3) and x.dtype == np.uint8
        for way, chosen in enumerate(classes):
            of_class = expected()[splits.classes(name, split)[chosen]]
            drawn = np.concatenate([x[np.asarray(y) == way], query_x[3 * way : 3 * way + 3]])
            assert {image.tobytes() for image in (255 - drawn if augment else drawn)} == {
                image.tobytes() for image in of_class
            }  # all five of it


# Hostile and broken archives


def entry(name, **fields):
    info = tarfile.TarInfo(f"cifar-100-binary/{name}")
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def relabelled(old, new):
    content = np.frombuffer(FILES["test.bin"], np.uint8).reshape(-1, 3074).copy()
    content[content[:, 1] == old, 1] = new
    return content.tobytes()


BAD_ENTRIES = {
    "twice": ({}, "there twice"),
    "short": ({"train.bin": FILES["train.bin"][:-1]}, "train.bin has 922199 bytes, where 922200 are expected"),
    "long": ({"test.bin": FILES["test.bin"] + b"\0"}, "test.bin has 614801 bytes"),
    "CIFAR-10's": ({"train.bin": bytes(300 * 3073)}, "train.bin has 921900 bytes"),
    "swapped": ({"train.bin": FILES["test.bin"], "test.bin": FILES["train.bin"]}, "train.bin has 614800 bytes"),
    "missing": ({"test.bin": None}, "test.bin missing in its folder cifar-100-binary"),
    "no labels": ({"fine_label_names.txt": None}, "fine_label_names.txt missing"),
    "link": ({"test.bin": entry("test.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd")}, "no plain file"),
    "hard link": ({"test.bin": entry("test.bin", type=tarfile.LNKTYPE, linkname="train.bin")}, "no plain file"),
    "device": ({"test.bin": entry("test.bin", type=tarfile.CHRTYPE)}, "no plain file"),
    "other label": ({"test.bin": relabelled(99, 100)}, "test.bin has not 2 images of each of the labels 0 to 99"),
    "a class too many": ({"test.bin": relabelled(7, 8)}, "test.bin has not 2 images of each"),
    "names": ({"fine_label_names.txt": "\n".join(NAMES[::-1]).encode()}, "does not name the 100 classes"),
    "99 names": ({"fine_label_names.txt": "\n".join(NAMES[1:]).encode()}, "does not name the 100 classes"),
    "not text": ({"fine_label_names.txt": b"\xff\xfe"}, "can't decode"),
    "long names": ({"fine_label_names.txt": bytes(2**14 + 1)}, "fine_label_names.txt has 16385 bytes"),
    "many": ({f"{number}": b"" for number in range(16)}, "more than 16 entries"),
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_a_bad_entry_is_refused_with_its_name(little, case):
    changes, problem = BAD_ENTRIES[case]
    entries = [(name, content) for name, content in (FILES | changes).items() if content is not None]
    if case == "twice":
        entries *= 2
    path = little / "cifar-100-binary.tar.gz"
    path.write_bytes(tar_gz(entries))
    with pytest.raises(ValueError, match=rf"^{path}: .*{problem}.*Replace it by {DEAD_URL}$"):
        load_cifar100(little)


def test_entries_of_other_folders_are_not_read(little):
    (little / "cifar-100-binary.tar.gz").write_bytes(tar_gz(FILES.items(), folder="../cifar-100-binary"))
    with pytest.raises(ValueError, match=r"fine_label_names\.txt, test\.bin, train\.bin missing"):
        load_cifar100(little)
    assert [path.name for path in little.iterdir()] == ["cifar-100-binary.tar.gz"]


def test_what_unpacks_to_too_much_takes_no_more_memory_than_the_bound(little, monkeypatch):
    monkeypatch.setattr(module, "_MAX_UNPACKED", 2**20)
    (little / "cifar-100-binary.tar.gz").write_bytes(gzip.compress(bytes(64 * 2**20), 1))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="unpacks to more than 1048576 bytes"):
            load_cifar100(little)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_a_large_archive_is_refused_before_it_is_read(little, monkeypatch):
    monkeypatch.setattr(module, "_MAX_ARCHIVE", 1000)
    with pytest.raises(ValueError, match=r"tar\.gz is larger than 1000 bytes.*Replace it by"):
        load_cifar100(little)


def test_a_sparse_entry_is_refused(little):
    sparse = entry("test.bin", type=tarfile.GNUTYPE_SPARSE)
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % len(FILES["test.bin"])  # its size when expanded
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    others = [(name, content) for name, content in FILES.items() if name != "test.bin"]
    content = gzip.decompress(tar_gz(others))
    (little / "cifar-100-binary.tar.gz").write_bytes(gzip.compress(bytes(header) + content, 1))
    with pytest.raises(ValueError, match="no plain file"):
        load_cifar100(little)


@given(st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=15)
def test_a_truncated_archive_is_refused(fraction):
    with pytest.raises(ValueError, match="^cut: truncated or corrupt"), module.reading("cut"):
        module._unpack(intact()[: int(fraction * len(intact()))])


@given(st.data())
@settings(deadline=None, max_examples=30)
def test_a_corrupt_archive_is_refused_or_gives_the_right_files(data):
    """Half of the changes are where the structure is."""
    last = len(intact()) - 1
    place = data.draw(st.one_of(st.integers(0, last), st.integers(0, 600), st.integers(last - 200, last)))
    corrupt = bytearray(intact())
    corrupt[place] ^= data.draw(st.integers(1, 255))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_EXAMPLES", LITTLE)
        try:
            with module.reading("bad"):
                files = module._unpack(bytes(corrupt))
        except ValueError as error:
            assert str(error).startswith("bad: ")
        else:
            assert all(files[name] == FILES[name] for name in files)


@pytest.mark.parametrize("case", ["short", "labels"])
def test_a_bad_file_of_a_folder_is_refused(little, case):
    (little / "cifar-100-binary.tar.gz").unlink()
    folder = little / "cifar-100-binary"
    folder.mkdir()
    with pytest.raises(ValueError, match=rf"^{folder}: fine_label_names.txt is missing\. Replace it by"):
        load_cifar100(little)
    for name, content in FILES.items():
        (folder / name).write_bytes(content[:-1] if (case, name) == ("short", "test.bin") else content)
    if case == "labels":
        (folder / "fine_label_names.txt").write_bytes(b"airplane\nautomobile\n")
    with pytest.raises(ValueError, match=rf"^{folder}: .*(614799 bytes|does not name).*Replace it by"):
        load_cifar100(little)


def test_a_folder_without_the_archive_is_refused(little, tmp_path):
    with pytest.raises(
        ValueError, match=r"^data_dir .* has neither cifar-100-binary\.tar\.gz nor the folder.*not that"
    ):
        load_cifar100(tmp_path)
    for name in ("data_dir", "cache_dir"):
        with pytest.raises(ValueError, match=f"^{name} must be the path of a folder"):
            load_cifar100(**{name: 3})


# Downloads, from a server on this machine


@pytest.fixture
def server(little, monkeypatch, serve):
    """The folder is served in place of the official one."""
    monkeypatch.setattr(module, "_MD5", hashlib.md5(intact()).hexdigest())
    monkeypatch.setattr(module, "_URL", f"{serve(little)}/cifar-100-binary.tar.gz")
    return little


def test_a_download_is_kept_and_used_again(server, monkeypatch, tmp_path):
    assert same(load_cifar100())
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cifar-100-binary.tar.gz"]
    monkeypatch.setattr(module, "_URL", DEAD_URL)
    assert same(load_cifar100())
    (tmp_path / "file").touch()
    with pytest.raises(ConnectionError, match=f"could not download {DEAD_URL}.*--data-dir"):
        load_cifar100(cache_dir=tmp_path / "file")


def test_a_wrong_download_is_refused_and_not_kept(server, tmp_path):
    (server / "cifar-100-binary.tar.gz").write_bytes(b"<html>sign in to this network</html>")
    with pytest.raises(ValueError, match=r"tar\.gz is not the official file.*hash.*--data-dir"):
        load_cifar100()
    assert list((tmp_path / "cache").iterdir()) == []


# Arguments


@pytest.mark.parametrize("reader", [cifar_fs, fc100])
@pytest.mark.parametrize("name", ["split", "num_ways", "num_shots", "num_queries"])
def test_a_wrong_argument_is_named_before_anything_is_read(reader, name, monkeypatch):
    monkeypatch.setattr(module, "load_cifar100", lambda data_dir: pytest.fail("read"))
    for value in (0, None, "val"):
        with pytest.raises(ValueError, match=f"^{name} must be .*{re.escape(repr(value))}"):
            reader(**{"split": "train", name: value})


@pytest.mark.slow
def test_an_archive_of_the_full_size(tmp_path):
    """Black but for the last pixel, which is the label: 184 MB that are quickly packed."""
    files = dict(FILES)
    for name, examples in OFFICIAL.items():
        content = np.zeros((100 * examples, 3074), np.uint8)
        content[:, 1] = content[:, -1] = np.tile(np.arange(100), examples)
        files[name] = content.tobytes()
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(tar_gz(files.items()))
    tasks = cifar_fs("test", data_dir=tmp_path, num_ways=20, num_shots=1, num_queries=599)
    (x, _), _, classes = tasks.sample(jax.random.key(0), tasks.data)
    names = np.array(NAMES)[np.asarray(x[:, -1, -1, 2])]
    assert names.tolist() == [splits.classes("cifar_fs", "test")[chosen] for chosen in classes]
    with pytest.raises(ValueError, match=r"num_shots \+ num_queries must be at most .* \(600\)"):
        cifar_fs("test", data_dir=tmp_path, num_shots=1, num_queries=600)

"""Glyphs: which characters are classes, that no two are the same picture, how they are drawn and split."""

import importlib
import unicodedata

import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image

from jaxmeta.tasks.glyphs import glyphs, load_glyphs

module = importlib.import_module("jaxmeta.tasks.glyphs")  # in jaxmeta.tasks the name is the function

CODES = [
    *range(ord("0"), ord("z") + 1),
    *map(ord, "²ÀÁàáéΑΒΓΔΟΩαβοАБДОЯабоя"),
    *range(ord("Ա"), ord("Խ") + 1),
    *range(ord("ა"), ord("კ") + 1),
    *map(ord, "←↑→↓∂∑√≠"),
]
NAMES = {code: unicodedata.name(chr(code)) for code in CODES}


@pytest.fixture(scope="module")
def faces():
    return module._faces()


@pytest.fixture(scope="module")
def pictures(faces):
    """{code: {face: picture}} of CODES."""
    inks = {code: {f: module._ink(face, code) for f, face in enumerate(faces)} for code in CODES}
    return {code: {f: module._picture(ink) for f, ink in of.items() if ink} for code, of in inks.items()}


@pytest.fixture(scope="module")
def classes(faces):
    return module._classes(faces, sorted(CODES))


@pytest.fixture
def a_few(monkeypatch, tmp_path):
    """`load_glyphs` renders CODES and no more."""
    monkeypatch.setattr(module, "_code_points", lambda faces: sorted(CODES))
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path))
    return tmp_path


def alike(code, other, shades):
    """The criterion of the module's docstring, in integers."""
    folds = {unicodedata.normalize("NFKC", chr(each)).casefold() for each in (code, other)}
    shared = shades[code].keys() & shades[other].keys()
    a, b = (np.array([shades[each][face] for face in sorted(shared)]) for each in (code, other))
    total = np.sum(a**2) + np.sum(b**2)
    return total > 0 and (6 if len(folds) == 1 else 20) * np.sum((a - b) ** 2) <= total


def test_the_classes_are_those_of_the_criterion(faces, pictures):
    codes = [*sorted(CODES)[::3], ord("Ω")]
    shade = lambda picture: picture.astype(int).reshape(14, 2, 14, 2).sum(axis=(1, 3)) // 64
    shades = {code: {face: shade(picture) for face, picture in pictures[code].items()} for code in codes}
    expected, seen = [], set()
    for code in codes:
        own = {picture.tobytes() for picture in pictures[code].values()}
        if len(own) < 8:
            continue
        if not own & seen and not any(alike(code, other, shades) for other in expected):
            expected.append(code)
        seen |= own
    found = module._classes(faces, codes)
    assert list(found) == expected and len(expected) < len(codes)
    assert all(len(inks) == len({p.tobytes() for p in pictures[code].values()}) for code, inks in found.items())


def test_look_alikes_are_one_class_and_other_letters_two(classes):
    there = set(map(chr, classes))
    assert set("AOSRregGDQ0BEFhbé") <= there and set("ДБЯΔΓ→←↑↓") <= there
    assert not set("oszxcvΑАΟОοоΒа²Á") & there  # what is a small capital, of another script, or differs in an accent


def test_no_picture_is_in_two_classes(classes, pictures):
    owner = {}
    for code in classes:
        for picture in pictures[code].values():
            assert owner.setdefault(picture.tobytes(), code) == code


def test_no_two_drawings_are_the_same(a_few):
    drawings = np.concatenate(list(load_glyphs().values()))
    assert len(np.unique(drawings.reshape(len(drawings), -1), axis=0)) == len(drawings)


def test_drawings_are_ink_on_paper_and_whole(a_few):
    for name, drawings in load_glyphs().items():
        assert drawings.shape == (20, 28, 28) and drawings.dtype == np.uint8
        assert np.all(drawings.max(axis=(1, 2)) > 100), name
        edge = drawings.copy()
        edge[:, 1:-1, 1:-1] = 0
        assert edge.sum() < 0.01 * drawings.sum(), name
        for drawing in drawings:
            ys, xs = np.nonzero(drawing > 0)
            assert 9 <= max(np.ptp(ys), np.ptp(xs)) + 1 <= 24, name  # of a slanted stroke the box is larger


def rectangle(width, height):
    """Ink with the empty edge that `_ink` leaves."""
    image = Image.new("L", (width + 2, height + 2))
    image.paste(255, (1, 1, width + 1, height + 1))
    return image


def ink_of(picture):
    """The ink's sum, its centre and its standard deviations, all (y, x), in pixels."""
    weight = picture / 255
    at = np.arange(28) + 0.5
    total = weight.sum()
    centre = np.array([weight.sum(1) @ at, weight.sum(0) @ at]) / total
    spread = np.sqrt(np.array([weight.sum(1) @ at**2, weight.sum(0) @ at**2]) / total - centre**2)
    return total, centre, spread


def test_a_picture_has_its_longer_side_of_20_pixels_in_the_middle():
    picture = module._picture(rectangle(40, 20))
    total, centre, spread = ink_of(picture)
    scale = 20 / 42
    np.testing.assert_allclose(total, 40 * 20 * scale**2, rtol=0.02)
    np.testing.assert_allclose(centre, [14, 14], atol=0.02)
    np.testing.assert_allclose(spread * np.sqrt(12), [20 * scale, 40 * scale], rtol=0.02)
    assert picture[14, 14] == 255 and picture[:8].max() == picture[:, :3].max() == 0


def test_a_picture_is_stretched_slanted_turned_and_moved_as_it_says():
    """Against moments in closed form: a rectangle of w by h has the covariance M diag(w², h²) M^T / 12."""
    turn, slant, stretch, side, move = 0.25, 0.2, -0.15, 18.0, (0.5, -1.0)
    picture = module._picture(rectangle(30, 40), turn, slant, stretch, side, move)
    rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = rotate @ np.array([[1, slant], [0, 1]]) @ np.diag([np.exp(stretch / 2), np.exp(-stretch / 2)])
    scale = side / np.max(np.abs(matrix) @ [32, 42])
    covariance = scale**2 * matrix @ np.diag([30**2, 40**2]) @ matrix.T / 12
    total, centre, spread = ink_of(picture)
    np.testing.assert_allclose(total, 30 * 40 * scale**2, rtol=0.02)
    np.testing.assert_allclose(spread[::-1] ** 2, np.diag(covariance), rtol=0.04)
    np.testing.assert_allclose(centre[::-1], [14 + 1.5, 14 - 3], atol=0.05)


def test_what_is_moved_stays_within_the_picture():
    picture = module._picture(rectangle(40, 40), side=26.0, move=(1.0, -1.0))
    ys, xs = np.nonzero(picture)
    assert (ys.min(), xs.max()) == (0, 27) and ys.max() <= 26 and xs.min() >= 1
    assert picture.sum() / 255 == pytest.approx(40 * 40 * (26 / 42) ** 2, rel=0.02)


def test_a_cached_set_is_the_rendered_one(a_few, monkeypatch):
    rendered = load_glyphs()
    (cached,) = a_few.iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(module, "_classes", None)  # nothing is rendered
        again = load_glyphs()
    assert list(again) == list(rendered) == [NAMES[code] for code in sorted(CODES) if NAMES[code] in rendered]
    assert all((again[name] == rendered[name]).all() for name in rendered)
    cached.write_bytes(cached.read_bytes()[:-1])
    third = load_glyphs()  # rendered anew, without anything random
    assert all((third[name] == rendered[name]).all() for name in rendered)
    base = third["LATIN CAPITAL LETTER A"].base
    assert base is not None and all(np.shares_memory(base, drawings) for drawings in third.values())


def test_a_cached_set_is_of_its_fonts_and_of_what_renders_them(faces, monkeypatch):
    digests = {module._digest(faces), module._digest([*faces[:-1], faces[-1]._replace(content=b"another")])}
    monkeypatch.setattr("PIL.__version__", "0.0")
    assert len(digests | {module._digest(faces)}) == 3


def test_splits_share_no_character_and_held_out_scripts_none_with_the_seen():
    script = {name: module._script(code) for code, name in NAMES.items() if module._script(code)}
    names, seen = list(script), ("latin", "greek", "cyrillic")
    parts = {split: module._characters(names, split, 0, seen) for split in ("train", "validation", "test", "held_out")}
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert {script[name] for name in parts["held_out"]} == {"armenian", "georgian", "arrows", "mathematics", "signs"}
    assert all(script[name] in seen for split in ("train", "validation", "test") for name in parts[split])
    sizes = [len(parts[split]) for split in ("train", "validation", "test")]
    np.testing.assert_allclose(np.divide(sizes, sum(sizes)), [0.7, 0.1, 0.2], atol=0.02)
    assert module._characters(names[::-1], "train", 0, seen[::-1]) == parts["train"]
    assert module._characters(names, "train", 1, seen) != parts["train"]


def test_a_class_less_moves_others_over_a_border_at_most():
    names = [NAMES[code] for code in CODES]
    before = {s: set(module._characters(names, s, 0, module._SEEN)) for s in module._SPLITS}
    after = {s: set(module._characters(names[1:], s, 0, module._SEEN)) for s in module._SPLITS}
    moved = [name for s in before for name in before[s] - after[s] if name != names[0]]
    assert len(moved) <= 2


def test_scripts_by_unicodes_names_and_categories():
    expected = {"é": "latin", "ﬁ": "latin", "Ω": "greek", "я": "cyrillic", "Ա": "armenian", "ა": "georgian", "ກ": "lao"}
    expected |= {"→": "arrows", "⇀": "arrows", "∑": "mathematics", "7": "signs", "€": "signs", "♥": "signs"}
    expected |= dict.fromkeys(["\u0301", "ʰ", "(", " ", "\n", "⠿", "╬", "\ue000", "א"])
    assert {character: module._script(ord(character)) for character in expected} == expected


def test_tasks_are_of_new_drawings_and_of_their_split(a_few):
    tasks = glyphs("train", num_ways=4, num_shots=5, num_queries=15, scripts=("latin", "signs"))
    task = jax.device_get(tasks.sample(jax.random.key(0), tasks.data))
    x = np.concatenate([task.support[0], task.query[0]])
    assert x.shape == (80, 28, 28) and x.dtype == np.uint8
    assert len(np.unique(x.reshape(80, -1), axis=0)) == 80  # of the same face too
    images = load_glyphs()
    names = module._characters(list(images), "train", 0, ("latin", "signs"))
    for label, number in enumerate(task.info):
        own = {drawing.tobytes() for drawing in images[names[number]]}
        assert own == {
            drawing.tobytes() for part in (task.support, task.query) for drawing in part[0][part[1] == label]
        }


def test_rotations_are_classes_where_they_are_asked_for(a_few):
    tasks = glyphs("held_out", num_ways=40, num_queries=1, rotations=True)
    assert jax.eval_shape(tasks.sample, jax.random.key(0), tasks.data).info.shape == (40,)
    with pytest.raises(ValueError, match="num_ways must be at most"):
        glyphs("held_out", num_ways=40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "Train"}, "split must be one of held_out, test, train, validation, got 'Train'"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"num_ways": 0}, "num_ways must be"),
        ({"scripts": "latin"}, "scripts must be a sequence with some of latin, greek, .*got 'latin'"),
        ({"scripts": ()}, "scripts must be a sequence"),
        ({"scripts": ("latin", "klingon")}, "scripts must be a sequence .*klingon"),
        ({"scripts": (["latin"],)}, "scripts must be a sequence"),
        ({"split": "held_out", "scripts": module._SCRIPTS}, "scripts must leave one out for split='held_out'"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_rendered(arguments, message, monkeypatch):
    monkeypatch.setattr(module, "load_glyphs", None)
    with pytest.raises(ValueError, match=message):
        glyphs(**{"split": "train", **arguments})


def test_fonts_that_are_not_there_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(OSError, match=r"DejaVuSans\.ttf could not be read.*--force-reinstall matplotlib"):
        load_glyphs()


@pytest.mark.slow
def test_the_whole_set_has_the_sizes_that_are_documented(monkeypatch, tmp_path):
    """A few classes more or less where FreeType or the fonts are of another release."""
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path))
    images = load_glyphs()
    drawings = np.concatenate(list(images.values())).reshape(-1, 28 * 28)
    assert len(np.unique(drawings, axis=0)) == len(drawings)
    rows = dict.fromkeys(("train", "validation", "test", "held_out"))
    for split in rows:
        (documented,) = (line for line in glyphs.__doc__.splitlines() if f'| "{split}"' in line)
        found = len(module._characters(list(images), split, 0, module._SEEN))
        assert found == pytest.approx(int(documented.split("|")[2]), rel=0.02)

"""Glyphs: characters of many scripts in up to 16 typefaces, as few-shot tasks without any download.

They are rendered from the text faces that come with matplotlib: DejaVu Sans, Sans Mono and Serif
(https://dejavu-fonts.github.io) and STIX General (https://www.stixfonts.org), each regular, bold, slanted and both. A
class is a character, and its examples are drawings of it in these faces, a little turned, slanted, stretched, scaled
and moved. The set has the form of Omniglot, 20 drawings of 28 × 28 pixels for each class, and is a benchmark of its
own: an accuracy on one is none on the other.

Exactly: the code points that belong to a script below and that at least 8 faces have are rendered in each of them, and
scaled so that the longer side takes 20 of 28 pixels: size tells nothing apart, no more than in Omniglot. Of faces with
the same picture of a code point one is kept. In their order, code points with 8 pictures or more become classes, but
for those with a picture that an earlier code point has too, in whatever face, and for those that look like an earlier
class: over the faces f that both have, with a_f and b_f their pictures in 14 × 14 pixels and 16 shades,

    Σ_f |a_f − b_f|² ≤ t Σ_f (|a_f|² + |b_f|²),    t = 1/20, or 1/6 for variants of one letter,

which are those of the same NFKC casefold, such as o, O and ₒ. So A stands for Greek Α and Cyrillic А too, O for o, and
È for É, while R and r are two classes, and so are e and é.
"""

import hashlib
import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import numpy as np

from jaxmeta.checks import check_choice, check_integer
from jaxmeta.signatures import names_options_of
from jaxmeta.tasks.cache import cache_folder, read_cached, write_cached
from jaxmeta.tasks.episodes import Options, episodes
from jaxmeta.tasks.images import Images
from jaxmeta.types import TaskDistribution
from jaxmeta.words import short

if TYPE_CHECKING:
    from PIL.Image import Image

_ALPHABETS = ("latin", "greek", "cyrillic", "armenian", "georgian", "lao")  # as the names of their letters begin
_SCRIPTS = (*_ALPHABETS, "arrows", "mathematics", "signs")
_SEEN = ("latin", "greek", "cyrillic", "arrows", "mathematics", "signs")
_SPLITS = {"train": (0, 70), "validation": (70, 80), "test": (80, 100)}  # per cent of the characters of seen scripts

_SIGNS = {"Nd", "Nl", "No", "Po", "Sc", "So"}  # Unicode's categories: numbers, punctuation, currencies, other symbols
_PIECES = (*range(0x2500, 0x25A0), *range(0x2800, 0x2900))  # of frames, blocks and Braille: told apart by their place

_STYLES = ("", "-Bold", "-Oblique", "-BoldOblique")
_FONTS = (
    *(f"DejaVuSans{style}" for style in _STYLES),
    *(f"DejaVuSansMono{style}" for style in _STYLES),
    *(f"DejaVuSerif{style.replace('Oblique', 'Italic')}" for style in _STYLES),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
_MIN_FACES = 8
_EM, _CANVAS = 48, 128  # pixels of what is rendered first; the widest arrow is far from the canvas' edge

_CODE = np.dtype("<u4")  # of the code points in the cache
_DRAWINGS, _SIZE, _SIDE = 20, 28, 20
_OVERSAMPLING = 2
# How far a drawing is from the picture, at most: radians, a slope, a ratio's logarithm, pixels.
_TURN, _SLANT, _STRETCH, _MOVE = 0.26, 0.2, 0.2, 3.0
_SMALLEST, _LARGEST = 16.0, 22.0  # the longer side of a drawing, pixels


@names_options_of(episodes)
def glyphs(
    split: str, *, seed: int = 0, scripts: Sequence[str] = _SEEN, **options: Unpack[Options]
) -> TaskDistribution:
    """Few-shot tasks over the characters of one split of `load_glyphs`, which are rendered and not downloaded.

    The characters of the seen scripts, `scripts`, are in an order that `seed` chooses: the first 70% are for training,
    10% for validation, 20% for the test. What all other scripts have is the split "held_out": characters of alphabets
    that training has seen nothing of, a test across domains. With the scripts as they are by default:

    | split        | classes | scripts                                              |
    |--------------|---------|------------------------------------------------------|
    | "train"      | 785     | latin, greek, cyrillic, arrows, mathematics, signs   |
    | "validation" | 112     | the same                                             |
    | "test"       | 225     | the same                                             |
    | "held_out"   | 205     | armenian, georgian, lao                              |

    A benchmark of its own, which is not Omniglot. Other arguments as in `few_shot`; a class has 20 drawings. Rotations
    are classes only where they are asked for, and better so while training alone: printed characters are often
    rotations of one another, as d is of p and ← of →.

    Args:
      split: "train", "validation", "test" or "held_out".
      seed: an integer ≥ 0, chooses the characters of the splits; results with different seeds do not compare.
      scripts: those that are seen: some of "latin", "greek", "cyrillic", "armenian", "georgian", "lao", "arrows",
        "mathematics", "signs" (digits, punctuation, currencies and other symbols). What looks alike in two scripts is
        in the first of them, so that cyrillic is without what latin has.

    Returns:
      `few_shot` tasks with x uint8 [B, 28, 28]: divide by 255 and ink is 1, paper 0.

    Raises:
      ValueError: a wrong argument.
      OSError: matplotlib was installed without its fonts.

    >>> tasks = glyphs("train", num_ways=20, num_shots=1)  # doctest: +SKIP
    >>> (x, y), query, classes = tasks.sample(jax.random.key(0), tasks.data)  # doctest: +SKIP
    >>> x.shape  # doctest: +SKIP
    (20, 28, 28)
    """
    check_choice("split", split, (*_SPLITS, "held_out"))
    check_integer("seed", seed, 0)
    _check_scripts(scripts, split)

    def read() -> dict[str, np.ndarray]:
        images = load_glyphs()
        return {name: images[name] for name in _characters(list(images), split, seed, scripts)}

    return episodes(read, **options)


def load_glyphs(*, cache_dir: str | os.PathLike[str] | None = None) -> Images:
    """All classes by the Unicode name of their character, in the order of code points, each 20 drawings.

    Every face of a character is drawn equally often, up to one, and no two drawings of the set are the same. They
    depend on nothing random. Other releases of matplotlib's fonts and of FreeType may render some pixels differently,
    and then have a class more or less.

    Rendering takes seconds and is done once: the result is cached under a name with a digest of all that it depends on.

    Args:
      cache_dir: where it is kept: by default the folder that the environment variable JAXMETA_CACHE names, or else the
        user's cache folder. If it cannot be written, a warning says so.

    Returns:
      `Images`, {name: uint8 [20, 28, 28]}, views of one array. Ink is 255, so that networks divide by 255 and ink is 1;
      paper is 0.

    Raises:
      ValueError: `cache_dir` is no path.
      OSError: matplotlib was installed without its fonts.

    >>> load_glyphs()["GREEK SMALL LETTER XI"].shape  # doctest: +SKIP
    (20, 28, 28)
    """
    faces = _faces()
    cached = cache_folder(cache_dir) / f"glyphs-{_SIZE}-{_digest(faces)}.bin"
    content = read_cached(cached)
    if content is None:
        inks = _classes(faces, _code_points(faces))
        codes = np.array(list(inks), _CODE)
        images = np.stack([_drawings(code, inks[code]) for code in inks])
        write_cached(cached, codes.data, images.data, what="the rendered set of glyphs")
    else:
        num = len(content) // (_CODE.itemsize + _DRAWINGS * _SIZE**2)
        codes = content[: num * _CODE.itemsize].view(_CODE)
        images = content[num * _CODE.itemsize :].reshape(num, _DRAWINGS, _SIZE, _SIZE)
    return Images({unicodedata.name(chr(code)): own for code, own in zip(codes, images, strict=True)})


# Scripts and splits


def _check_scripts(scripts: Any, split: str) -> None:
    listed = ", ".join(_SCRIPTS)
    is_listed = not isinstance(scripts, str) and isinstance(scripts, Sequence) and len(scripts) > 0
    if not is_listed or any(script not in _SCRIPTS for script in scripts):
        raise ValueError(f"scripts must be a sequence with some of {listed}, got {short(scripts)}")
    if split == "held_out" and set(scripts) == set(_SCRIPTS):
        raise ValueError(f"scripts must leave one out for split='held_out', got all of {listed}")


def _script(code: int) -> str | None:
    """Of a code point, by its name and category in Unicode's database; None if it is to be no class."""
    name, category = unicodedata.name(chr(code), ""), unicodedata.category(chr(code))
    alphabet = name.split(" ")[0].lower()
    if category.startswith("L") and alphabet in _ALPHABETS:
        return alphabet
    if "ARROW" in name or "HARPOON" in name:
        return "arrows"
    if category == "Sm":
        return "mathematics"
    return "signs" if category in _SIGNS and code not in _PIECES else None


def _characters(names: Sequence[str], split: str, seed: int, scripts: Sequence[str]) -> list[str]:
    """The names of a split's classes. A class more or less moves no other one, but over a border of the splits."""
    of_seen = [name for name in names if _script(ord(unicodedata.lookup(name))) in scripts]
    if split == "held_out":
        return [name for name in names if name not in set(of_seen)]
    first, last = (len(of_seen) * part // 100 for part in _SPLITS[split])
    shuffled = sorted(of_seen, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    return shuffled[first:last]


# Faces


class _Face(NamedTuple):
    fonts: tuple[Any, ...]  # Pillow's, of two sizes: the larger one is for what is small
    codes: frozenset[int]  # the code points that it has
    content: bytes


def _faces() -> list[_Face]:
    import matplotlib
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    folder, faces = Path(matplotlib.get_data_path(), "fonts", "ttf"), []
    for path in (folder / f"{name}.ttf" for name in _FONTS):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise OSError(
                f"matplotlib's font {path} could not be read: {error}. Glyphs are drawn with the fonts that come with "
                "matplotlib on the package index: pip install --force-reinstall matplotlib"
            ) from error
        fonts = tuple(ImageFont.truetype(str(path), em, layout_engine=ImageFont.Layout.BASIC) for em in (_EM, 4 * _EM))
        faces.append(_Face(fonts, frozenset(FT2Font(str(path)).get_charmap()), content))
    return faces


def _digest(faces: Sequence[_Face]) -> str:
    """Of all that the drawings depend on: the fonts, what renders and names them, and this file."""
    from PIL import __version__, features

    versions = (__version__, features.version("freetype2"), unicodedata.unidata_version)
    digest = hashlib.sha256(" ".join(map(str, versions)).encode() + Path(__file__).read_bytes())
    for face in faces:
        digest.update(face.content)
    return digest.hexdigest()[:32]


def _code_points(faces: Sequence[_Face]) -> list[int]:
    """Those of a script that enough faces have."""
    codes = sorted(frozenset().union(*(face.codes for face in faces)))
    return [code for code in codes if sum(code in face.codes for face in faces) >= _MIN_FACES and _script(code)]


# Pictures and drawings


def _ink(face: _Face, code: int) -> "Image | None":
    """A code point in large, 255 on 0, with an edge of one empty pixel; None where the face has nothing to show."""
    if code not in face.codes:
        return None
    ink = _rendered(face.fonts[0], code)
    return ink if ink is None or max(ink.size) > _SIDE else _rendered(face.fonts[1], code)


def _rendered(font: Any, code: int) -> "Image | None":
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (_CANVAS * font.size // _EM,) * 2)
    middle = canvas.width // 2
    ImageDraw.Draw(canvas).text((middle, middle), chr(code), fill=255, font=font, anchor="mm")
    box = canvas.getbbox()
    return box and canvas.crop((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1))


def _picture(
    ink: "Image",
    turn: float = 0.0,
    slant: float = 0.0,
    stretch: float = 0.0,
    side: float = _SIDE,
    move: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """uint8 [28, 28]: ink stretched, slanted, turned, scaled so that its longer side has `side` pixels, and moved by
    `move`, from −1 to 1, of 3 pixels, or of what keeps it within the picture."""
    from PIL import Image

    cos, sin, wide = math.cos(turn), math.sin(turn), math.exp(stretch / 2)
    a, b = cos * wide, (cos * slant - sin) / wide  # the matrix ((a, b), (c, d)) stretches, then slants, then turns
    c, d = sin * wide, (sin * slant + cos) / wide
    width, height = abs(a) * ink.width + abs(b) * ink.height, abs(c) * ink.width + abs(d) * ink.height
    scale = side / max(width, height)
    x, y = (
        _SIZE / 2 + part * min(_MOVE, (_SIZE - scale * length) / 2)
        for part, length in zip(move, (width, height), strict=True)
    )
    back = 1 / (scale * (a * d - b * c))  # Pillow asks where a pixel comes from: by the inverse
    a, b, c, d = back * d, -back * b, -back * c, back * a
    row = (a / _OVERSAMPLING, b / _OVERSAMPLING, ink.width / 2 - a * x - b * y)
    column = (c / _OVERSAMPLING, d / _OVERSAMPLING, ink.height / 2 - c * x - d * y)
    size = (_OVERSAMPLING * _SIZE,) * 2
    large = ink.transform(size, Image.Transform.AFFINE, row + column, Image.Resampling.BILINEAR)
    return np.asarray(large.reduce(_OVERSAMPLING))


def _drawings(code: int, inks: Sequence["Image"]) -> np.ndarray:
    """uint8 [20, 28, 28]: one of each face in turn, by PCG64's raw output, which NumPy keeps in all its versions."""
    raw = np.random.PCG64(code).random_raw((_DRAWINGS, 6))
    uniform = 2 * (raw >> np.uint64(11)) * 2.0**-53 - 1  # from −1 to 1
    middle, spread = (_LARGEST + _SMALLEST) / 2, (_LARGEST - _SMALLEST) / 2
    return np.stack(
        [
            _picture(
                inks[i % len(inks)], _TURN * turn, _SLANT * slant, _STRETCH * stretch, middle + spread * side, (x, y)
            )
            for i, (turn, slant, stretch, side, x, y) in enumerate(uniform.tolist())
        ]
    )


# Classes


def _classes(faces: Sequence[_Face], codes: Sequence[int]) -> dict[int, list["Image"]]:
    """{code point of a class: its inks, in faces whose pictures differ}."""
    inks, pictures = {}, {}
    for code in codes:
        by_face = {f: ink for f, face in enumerate(faces) if (ink := _ink(face, code))}
        shown = {f: _picture(ink) for f, ink in by_face.items()}
        distinct = {picture.tobytes(): by_face[f] for f, picture in shown.items()}
        if len(distinct) >= _MIN_FACES:
            inks[code], pictures[code] = list(distinct.values()), shown
    return {code: inks[code] for code in _unlike(pictures, len(faces))}


def _unlike(pictures: dict[int, dict[int, np.ndarray]], num_faces: int) -> list[int]:
    """The code points, of {code point: {face: picture}}, with no picture of an earlier one, that look like none of the
    earlier ones in the result."""
    codes = list(pictures)
    alike = _alike(codes, pictures, num_faces)
    kept: list[int] = []
    seen: set[bytes] = set()
    for i, code in enumerate(codes):
        own = {picture.tobytes() for picture in pictures[code].values()}
        if not alike[i, kept].any() and not own & seen:
            kept.append(i)
        seen |= own
    return [codes[i] for i in kept]


def _alike(codes: Sequence[int], pictures: dict[int, dict[int, np.ndarray]], num_faces: int) -> np.ndarray:
    """bool [codes, codes], by the sums over faces. All numbers are integers below 2^24, which float32 adds exactly."""
    half = _SIZE // 2
    shades = np.zeros((len(codes), num_faces, half, half), np.float32)
    for i, code in enumerate(codes):
        for f, picture in pictures[code].items():
            shades[i, f] = picture.reshape(half, 2, half, 2).sum(axis=(1, 3), dtype=np.uint16) // 64
    flat, squares = shades.reshape(len(codes), -1), np.square(shades).sum(axis=(2, 3))
    of_shared = squares @ (squares > 0).astype(np.float32).T  # Σ_f |a_f|² over the faces that both have
    total = of_shared + of_shared.T
    letters = np.unique([unicodedata.normalize("NFKC", chr(code)).casefold() for code in codes], return_inverse=True)[1]
    parts = np.where(letters[:, None] == letters, np.float32(6), np.float32(20))
    return (parts * (total - 2 * (flat @ flat.T)) <= total) & (total > 0)

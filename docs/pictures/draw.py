"""Draws the pictures of the documentation: `python docs/pictures/draw.py`, in the project's folder, after any change.

- two_loops.svg and rooms.svg, for docs/concepts.md. Text is drawn as paths, so that it looks the same everywhere, on a
  white background, so that it is read on a dark page too. What rooms.svg shows is read from ROOMS of
  tests/test_imports.py, and is written into the file in words too, which tests/test_plotting.py compares.
- the pictures of docs/how-to/pictures.md: the figures that its python makes, in fewer colours, for smaller files.
"""

import ast
import contextlib
import io
import itertools
import os
import re
import tempfile
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from jaxmeta import plotting

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

BLUE, ORANGE, GREEN, GREY, INK = "#0072b2", "#d55e00", "#009e73", "#8a8a8a", "#222222"
PALE = {BLUE: "#e3f0f8", ORANGE: "#fbe9df", GREEN: "#e0f3ed", GREY: "#f1f1f1"}


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes in inches on white paper with round corners."""
    figure = Figure(figsize=(width, height))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    box(axes, width / 2, height / 2, width - 0.1, height - 0.1, GREY, fill="white", line=0.8)
    return figure, axes


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    color: str,
    *,
    fill: str | None = None,
    line: float = 1.3,
) -> None:
    """A rounded box around (x, y)."""
    style = "round,pad=0,rounding_size=0.09"
    shape = FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle=style)
    shape.set(edgecolor=color, facecolor=PALE[color] if fill is None else fill, linewidth=line)
    axes.add_patch(shape)


def arrow(axes: Axes, start: tuple, end: tuple, color: str = INK, *, line: str = "-", bend: float = 0.0) -> None:
    look = {"arrowstyle": "-|>", "mutation_scale": 9, "connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color=color, linewidth=1.3, linestyle=line, **look))


def write(axes: Axes, x: float, y: float, text: str, size: float = 9.0, **options: object) -> None:
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": size, "color": INK, **options})


def two_loops() -> Figure:
    """The outer loop over tasks, the inner loop in each, and the way of the meta-gradient back through both."""
    figure, axes = canvas(7.4, 4.5)
    middle, start, end = 2.25, 1.2, 6.2  # the height of the shared θ and of the mean, where they end and begin
    box(axes, 0.72, middle, 0.96, 0.9, BLUE)
    write(axes, 0.72, 2.4, "θ", 17, weight="bold")
    write(axes, 0.72, 2.02, "shared by tasks", 8)
    box(axes, 6.68, middle, 0.96, 0.9, GREEN)
    write(axes, 6.68, 2.36, "mean", 10, weight="bold")
    write(axes, 6.68, 2.08, "over tasks", 8.5)
    nodes = {"θ": 2.06, "θ¹": 2.96, "…": 3.56, "θ′": 4.16, "L": 5.24}
    for y, name in ((3.52, "task 1"), (middle, "task 2"), (0.98, "task N")):
        box(axes, 3.66, y, 3.84, 1.06, GREY)
        write(axes, 1.84, y + 0.4, name, 8.5, ha="left", weight="bold")
        for text, x in nodes.items():
            if text != "…":
                box(axes, x, y, 0.4, 0.36, GREEN if text == "L" else BLUE)
            write(axes, x, y, text, 11, weight="bold")
        places = [*nodes.values()]
        for left, right in itertools.pairwise(places):
            _there_and_back(axes, (left + 0.2, y), (right - 0.2, y), GREEN if right == nodes["L"] else BLUE)
        write(axes, 2.51, y + 0.26, "support", 8, color=BLUE)
        write(axes, 3.86, y + 0.26, "support", 8, color=BLUE)
        write(axes, 4.7, y + 0.26, "query", 8, color=GREEN)
        write(axes, 3.0, y - 0.38, "K steps of  θ − α ∇L(θ; support)", 8, color=BLUE)
        write(axes, 4.95, y - 0.38, "L(θ′; query)", 8, color=GREEN)
        near = middle + 0.24 * (y - middle)
        _there_and_back(axes, (start, near), (nodes["θ"] - 0.2, y), BLUE)
        _there_and_back(axes, (nodes["L"] + 0.2, y), (end, near), GREEN)
    write(axes, 3.66, 1.615, "⋮", 12)
    write(
        axes,
        0.22,
        4.22,
        "outer loop: draw tasks, adapt θ to each, improve θ by the meta-gradient",
        10,
        ha="left",
        weight="bold",
    )
    write(axes, 0.72, 1.32, "outer step:", 8, color=ORANGE)
    write(axes, 0.72, 1.1, "θ − β · gradient", 8, color=ORANGE)
    arrow(axes, (0.5, 1.45), (0.5, 1.78), ORANGE)
    arrow(axes, (0.22, 0.26), (0.52, 0.26), BLUE)
    write(axes, 0.6, 0.26, "inner loop: adapts", 8.5, ha="left", color=BLUE)
    arrow(axes, (2.5, 0.26), (2.2, 0.26), ORANGE, line="--")
    write(
        axes,
        2.58,
        0.26,
        "meta-gradient: back through the query loss and through every inner step",
        8.5,
        ha="left",
        color=ORANGE,
    )
    return figure


def _there_and_back(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    """An arrow forward, and the gradient's below it."""
    arrow(axes, (start[0], start[1] + 0.06), (end[0], end[1] + 0.06), color)
    arrow(axes, (end[0], end[1] - 0.08), (start[0], start[1] - 0.08), ORANGE, line="--")


GROUND = ("types", "checks", "words", "traced", "signatures")
TOP = ("recipes", "run_directory", "runs", "signals", "compiled", "__main__", "")
PLACES = {
    "tasks": (0.95, 2.6, "task distributions"),
    "adapt": (2.55, 3.15, "inner loop,\nmeta-gradients"),
    "outer": (3.35, 2.05, "the outer step"),
    "rl": (4.2, 3.15, "environments,\nrollouts"),
    "nn": (5.0, 2.05, "networks, losses"),
    "algorithms": (3.35, 4.25, "one file, one paper"),
    "devices": (4.35, 1.2, "sharing tasks"),
    "training": (6.5, 2.6, "fit, evaluate"),
    "plotting": (6.5, 3.7, "pictures"),
}
WIDTH, HEIGHT = 1.36, 0.62


def rooms_of_tests() -> dict[str, set[str] | None]:
    """ROOMS of tests/test_imports.py, which a test holds the imports to."""
    for node in ast.parse((ROOT / "tests" / "test_imports.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ROOMS":
            return eval(compile(ast.Expression(node.value), "ROOMS", "eval"), {"set": set})
    raise ValueError("tests/test_imports.py has no ROOMS")


def in_words(rooms: dict[str, set[str] | None]) -> str:
    """Who may import whom."""
    return "; ".join(f"{name}: {'all' if of is None else ', '.join(sorted(of))}" for name, of in sorted(rooms.items()))


def rooms(may_import: dict[str, set[str] | None]) -> Figure:
    """The rooms of the package: everything stands on the ground, arrows say what else a room may import."""
    assert {*GROUND, *TOP, *PLACES} == may_import.keys(), "each room needs a place in this picture"
    figure, axes = canvas(7.4, 5.6)
    box(axes, 3.7, 5.1, 6.9, 0.62, ORANGE)
    write(axes, 3.7, 5.22, "recipes, runs, the command jaxmeta", 10.5, weight="bold")
    write(axes, 3.7, 4.98, "may import everything below", 8.5)
    box(axes, 3.7, 0.47, 6.9, 0.62, GREY)
    write(axes, 3.7, 0.59, "types, checks", 10.5, weight="bold")
    write(axes, 3.7, 0.35, "all may import them; below are words, traced and signatures, which some import too", 8.5)
    for name, (x, y, what) in PLACES.items():
        box(axes, x, y, WIDTH, HEIGHT, BLUE)
        lines = what.count("\n") + 1
        write(axes, x, y + 0.09 + 0.055 * (lines - 1), name, 10.5, weight="bold")
        write(axes, x, y - 0.13 - 0.02 * (lines - 1), what, 8, linespacing=1.0)
        assert {"types", "checks"} <= (may_import[name] or set()), name
    for name, of in may_import.items():
        for other in sorted(of or ()):
            if name in PLACES and other in PLACES:
                start, end, bend = _between(name, other)
                arrow(axes, start, end, INK, bend=bend)
    write(axes, 0.3, 3.98, "A → B: A may import B", 8.5, ha="left")
    return figure


def _between(name: str, other: str) -> tuple[tuple[float, float], tuple[float, float], float]:
    """From the edge of one box to that of the other."""
    (x, y, _), (to_x, to_y, _) = PLACES[name], PLACES[other]
    half = WIDTH / 2
    special = {
        ("algorithms", "nn"): ((x + half, y), (to_x + 0.45, to_y + HEIGHT / 2), -0.38),
        ("algorithms", "outer"): ((x, y - HEIGHT / 2), (to_x, to_y + HEIGHT / 2), 0.0),
        ("adapt", "devices"): ((x - 0.35, y - HEIGHT / 2), (to_x - half, to_y), 0.38),
        ("tasks", "devices"): ((x, y - HEIGHT / 2), (to_x - half, to_y - 0.15), 0.3),
        ("training", "devices"): ((x - 0.2, y - HEIGHT / 2), (to_x + half, to_y), -0.25),
    }
    if (name, other) in special:
        return special[name, other]
    toward = max(-0.45, min(0.45, (to_x - x) * 0.5))
    return (x + toward, y - HEIGHT / 2), (to_x - toward, to_y + HEIGHT / 2), 0.0


def save(figure: Figure, name: str, description: str) -> None:
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "jaxmeta"}):
        figure.savefig(HERE / name, metadata={"Date": None, "Creator": None, "Description": description})


def of_the_page() -> None:
    """Runs the python of docs/how-to/pictures.md, and draws the figures that it makes, by the names it gives them."""
    text = (HERE.parent / "how-to" / "pictures.md").read_text()
    python = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    names: dict = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        exec(compile(python, "pictures.md", "exec"), names)
    for name, value in names.items():
        if isinstance(value, Figure):
            written = io.BytesIO()
            value.savefig(written)
            small = Image.open(written).convert("RGB").quantize(64, dither=Image.Dither.NONE)
            small.save(HERE / f"{name}.png", optimize=True)
        elif isinstance(value, plotting.Animation) and f"{name}.gif" in text:
            value.save(HERE / f"{name}.gif")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    save(two_loops(), "two_loops.svg", two_loops.__doc__ or "")
    save(rooms(rooms_of_tests()), "rooms.svg", in_words(rooms_of_tests()))
    if (HERE.parent / "how-to" / "pictures.md").exists():
        of_the_page()

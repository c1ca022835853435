"""The frame of the benchmarks' pictures: panels in rows, in the style of `jaxmeta.plotting`, without pyplot."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmeta.plotting import METHODS, Style
from jaxmeta.plotting.frame import legend_below, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["legend_below", "panels", "style", "words"]

_OF_BENCHMARKS: dict[str, Style] = {
    # contenders
    "jaxmeta": METHODS["auto"],
    "jaxmeta, as fit": Style("#56b4e9", "P"),
    "jaxmeta, over devices": Style("#009e73", "v"),
    "jaxmeta, cold": METHODS["auto"],
    "jaxmeta, warm": Style("#009e73", "v"),
    "plain JAX": Style("#cc79a7", "*"),
    "torch.func": Style("#d55e00", "s"),
    "torch.compile": Style("#999999", "<", ":"),
    "parallel-metalearn": Style("#332288", "h", "-."),
    "PyTorch, checkpoints": Style("#332288", "h", "-."),
    "higher": Style("#e69f00", "D"),
    "TorchOpt": Style("#8c510a", "^"),
    "learn2learn": Style("#7b3294", "X"),
    # bilevel solvers
    "implicit": Style("#999999", "<", ":"),
    "implicit, warm": Style("#e69f00", "P", "--"),
    "SOBA": Style("#0072b2", "o"),
    "AmIGO": Style("#cc79a7", "*"),
    "StocBiO": Style("#7b3294", "X", ":"),
    # parts of meta-RL's training
    "training": Style("#0072b2", "o"),
    "training, 4 seeds together": Style("#56b4e9", "P", "--"),
    "rollout": Style("#d55e00", "s", "-."),
    "environment alone": Style("#999999", "<", ":"),
    "XLand-MiniGrid's own loop": Style("#e69f00", "D"),
    "PyTorch, step by step": Style("#7b3294", "X"),
    # what RL² remembers with
    "gru": Style("#0072b2", "o"),
    "min_gru": Style("#d55e00", "s", "-."),
    "causal_transformer": Style("#009e73", "v"),
    "E-RL²": Style("#cc79a7", "*", ":"),
    # precisions
    "float32": Style("#000000", "p"),
    "bfloat16 parameters": Style("#8c510a", "^"),
    "paper": Style("#56b4e9", "P"),
}
_UNKNOWN = Style("#000000", ".", ":")  # what was measured for hours is drawn all the same


def style(name: str) -> Style:
    """How a method is drawn, in all pictures alike; `jaxmeta, NAME` as the meta-gradient NAME.

    >>> style("jaxmeta, exact") == style("exact"), style("auto") == style("forward mode")
    (True, False)
    """
    styles = METHODS | _OF_BENCHMARKS
    return styles[name] if name in styles else styles.get(name.removeprefix("jaxmeta, "), _UNKNOWN)


def words(name: str) -> dict[str, Any]:
    """A method's style in matplotlib's words, and its label."""
    color, marker, line = style(name)
    return {"color": color, "marker": marker, "linestyle": line, "label": name}


def panels(
    num_rows: int, num_columns: int, title: str, *, width: float = 4.2, height: float = 3.0
) -> "tuple[Figure, np.ndarray]":
    """A figure and its axes [row][column], of `width` by `height` inches each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * num_columns, height * num_rows + 0.5), layout="constrained", dpi=150)
    rows = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes in rows.flat:
        plain(axes)
    figure.suptitle(title)
    return figure, rows

"""Error of the meta-gradient against the exact one in float64: approximations and precisions.

Approximations are computed in float64, so that their error is theirs alone; precisions are those of the exact gradient.
Reptile gives a direction, and is judged after the best rescaling. Samples are initialisations.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

import jaxmeta
from benchmarks.shared.cases import Case, cast, conv4, omniglot_mlp, sinusoid
from benchmarks.shared.measure import float64, summary
from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import legend_below, panels, words
from benchmarks.shared.report import Row, print_table, write_report
from benchmarks.shared.strategies import APPROXIMATE, EXACT
from jaxmeta import adapt

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Precision(NamedTuple):
    dtype: DTypeLike
    matmul: str = "highest"


FLOAT64 = Precision(np.float64)
PRECISIONS = {"float32": Precision(np.float32), "bfloat16 parameters": Precision(jnp.bfloat16, "default")}
TF32 = {"TF32 products": Precision(np.float32, "tensorfloat32")}  # of NVIDIA GPUs only

STRENGTH = 2.0
_IMPLICIT = "implicit, 5 steps of CG"  # against the exact gradient of the same proximal loop, of strength 2

CASES: dict[str, Callable[[int, int], Case]] = {"sinusoid": sinusoid, "omniglot-mlp": omniglot_mlp, "conv4": conv4}
_QUICK = {"sinusoid": sinusoid}


@dataclass(frozen=True)
class Options(CommonOptions):
    num_tasks: int = 4
    """Tasks of a meta-gradient."""
    num_samples: int = 5
    """Initialisations."""


def run(options: Options, path: Path) -> Sequence[Row]:
    chosen = choose(options.cases or "*", _QUICK if options.quick else CASES)
    steps, num_samples = ((2,), 2) if options.quick else ((1, 5, 10, 20), options.num_samples)
    rows: list[Row] = []
    for name, build in chosen.items():
        for num_steps in steps:
            rows += errors(name, build(options.num_tasks, num_steps), num_samples)
        _print_case([row for row in rows if row["case"] == name])
        write_report(path, "gradient_error", rows, draw)  # after each case: a run that is killed loses nothing
    return rows


def errors(name: str, case: Case, num_samples: int) -> list[Row]:
    """A row for each approximation and each precision."""
    num_steps = case.num_steps
    references = {
        strength: gradients(case, EXACT["exact"](num_steps), FLOAT64, num_samples, strength)
        for strength in (0.0, STRENGTH)
    }
    precisions = PRECISIONS | (TF32 if jax.default_backend() == "gpu" else {})
    approximations = APPROXIMATE | {_IMPLICIT: lambda k: adapt.implicit()}
    methods = {method: ("approximation", strategy, FLOAT64) for method, strategy in approximations.items()}
    methods |= {method: ("precision", EXACT["exact"], precision) for method, precision in precisions.items()}
    rows = []
    for method, (kind, strategy, precision) in methods.items():
        strength = STRENGTH if method == _IMPLICIT else 0.0
        exact = references[strength]
        actual = gradients(case, strategy(num_steps), precision, num_samples, strength)
        cosines = [cosine(a, e) for a, e in zip(actual, exact, strict=True)]
        distance = sine if method == "reptile" else relative_distance
        relative = [distance(a, e) for a, e in zip(actual, exact, strict=True)]
        rows.append(
            {
                "case": name,
                "method": method,
                "kind": kind,
                "num_steps": num_steps,
                "num_tasks": case.num_tasks,
                "relative_error": summary(relative),
                "cosine": summary(cosines),
            }
        )
    return rows


def relative_distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """||actual − expected|| / ||expected||."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of the angle between two vectors.

    >>> cosine(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    1.0
    """
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def sine(a: np.ndarray, b: np.ndarray) -> float:
    """The relative distance of `a`, rescaled as is best, to `b`.

    >>> sine(np.array([5.0, 0.0]), np.array([2.0, 0.0]))
    0.0
    """
    return relative_distance(a * (a @ b) / (a @ a), b)


def gradients(
    case: Case, strategy: adapt.MetaGradient, precision: Precision, num_samples: int, strength: float
) -> list[np.ndarray]:
    """The meta-gradients at so many initialisations, as vectors in float64; `strength` is that of a proximal loop."""
    learner = jaxmeta.maml(
        lambda key: cast(case.init(key), precision.dtype),
        case.loss,
        inner_optimizer=adapt.proximal(adapt.sgd(case.learning_rate), strength),
        num_inner_steps=case.num_steps,
        meta_gradient=strategy,
        optimizer=optax.trace(decay=0.0),  # its state is the gradient
    )
    with ExitStack() as context:
        if precision.dtype == np.float64:
            context.enter_context(float64())
        context.enter_context(jax.default_matmul_precision(precision.matmul))
        init, update = jax.jit(learner.init), jax.jit(learner.update)
        tasks, vectors = cast(case.tasks, precision.dtype), []
        for key in jax.random.split(jax.random.key(0), num_samples):
            state, _ = update(key, init(key), tasks)
            leaves = jax.tree.leaves(state.opt_state.trace.params)
            vectors.append(np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in leaves]))
    return vectors


def _print_case(rows: Sequence[Row]) -> None:
    print(f"\n{rows[0]['case']}, {rows[0]['num_tasks']} tasks: median, least and largest over initialisations")
    print_table(
        ["method", "K", "relative error", "min", "max", "1 − cosine", "min", "max"],
        [
            [
                row["method"],
                row["num_steps"],
                *(f"{row['relative_error'][key]:.1e}" for key in ("median", "min", "max")),
                *(f"{1 - row['cosine'][key]:.1e}" for key in ("median", "max", "min")),
            ]
            for row in rows
        ],
    )


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """A row of panels for each case: relative error and 1 − cosine against inner steps."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    title = f"The meta-gradient against the exact one in float64, on {device}"
    figure, axes = panels(len(names), 2, title, width=5.0)
    for (error_panel, cosine_panel), name in zip(axes, names, strict=True):
        for method in methods:
            chosen = [row for row in rows if row["case"] == name and row["method"] == method]
            x = np.array([row["num_steps"] for row in chosen])
            relative = [[row["relative_error"][key] for row in chosen] for key in ("min", "median", "max")]
            low, middle, high = np.array(relative, float)
            shown = middle > 0  # a logarithm has no 0: truncated(K) is exact
            whiskers = [(middle - low)[shown], (high - middle)[shown]]
            error_panel.errorbar(x[shown], middle[shown], whiskers, capsize=2, markersize=5, **words(method))
            distance = 1 - np.array([row["cosine"]["median"] for row in chosen], float)
            shown = distance > 1e-15
            cosine_panel.plot(x[shown], distance[shown], markersize=5, **words(method))
        for panel, label in ((error_panel, "relative error"), (cosine_panel, "1 − cosine")):
            panel.set(yscale="log", xlabel="inner steps K", ylabel=label, title=name)
            panel.set_xticks(sorted({row["num_steps"] for row in rows}))
    legend_below(figure, axes.flat, num_columns=3)
    return figure

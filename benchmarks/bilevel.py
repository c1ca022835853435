"""Suboptimality of bilevel solvers against gradients and seconds, on quadratics whose minimum is known.

The simulated problem of benchopt's bilevel benchmark: inner and outer losses are quadratics with eigenvalues from .1 to
1 and weak cross terms, so that η ↦ L'(θ*(η), η) is one too, in closed form. All start alike, and take the same outer
rate. A gradient is counted for each gradient, and for each product with a Hessian or a Jacobian, of either loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmeta
from benchmarks.shared.measure import Program, float64, interleave, jax_program, summary
from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import legend_below, panels, words
from benchmarks.shared.report import Row, print_table, write_report
from jaxmeta import Task, adapt
from jaxmeta.types import PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INNER_RATE, OUTER_RATE, NUM_UNITS = 1.0, 0.5, 20  # outer steps of a compiled loop
STRENGTHS = 0.1, 1.0, 0.1  # least and largest eigenvalue, cross terms


class Quadratic(NamedTuple):
    """L = θᵀAθ/2 + θᵀGη + aᵀθ, L' = θᵀFθ/2 + θᵀPη + ηᵀDη/2 + fᵀθ, of numpy arrays."""

    A: np.ndarray
    G: np.ndarray
    a: np.ndarray
    F: np.ndarray
    P: np.ndarray
    D: np.ndarray
    f: np.ndarray

    def inner(self, params, meta_params):
        return params @ self.A @ params / 2 + params @ (self.G @ meta_params) + self.a @ params

    def outer(self, params, meta_params):
        of_params = params @ self.F @ params / 2 + params @ (self.P @ meta_params) + self.f @ params
        return of_params + meta_params @ self.D @ meta_params / 2

    def value(self) -> tuple[np.ndarray, np.ndarray, float]:
        """(Q, q, the minimum) of L'(θ*(η), η) = ηᵀQη/2 + qᵀη + constant."""
        response, offset = -np.linalg.solve(self.A, self.G), -np.linalg.solve(self.A, self.a)
        cross = response.T @ self.P
        curvature = response.T @ self.F @ response + cross + cross.T + self.D
        slope = response.T @ (self.F @ offset + self.f) + self.P.T @ offset
        return curvature, slope, -slope @ np.linalg.solve(curvature, slope) / 2


def quadratic(dim: int) -> Quadratic:
    rng = np.random.default_rng(0)
    low, high, cross = STRENGTHS

    def positive() -> np.ndarray:
        basis, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
        return basis @ np.diag(np.linspace(low, high, dim)) @ basis.T

    mixed = lambda: cross * rng.normal(size=(dim, dim)) / np.sqrt(dim)
    vector = lambda: rng.normal(size=dim)
    return Quadratic(positive(), mixed(), vector(), positive(), mixed(), positive(), vector())


class Solver(NamedTuple):
    """How a window is differentiated. num_gradients: (K, dim) -> what an outer step takes."""

    strategy: adapt.MetaGradient
    num_inner_steps: int
    num_gradients: Callable[[int, int], int]


_neumann, _implicit = adapt.neumann_series, adapt.implicit
_unrolled = lambda k, dim: 3 * k + 2  # each step's gradient, and on the way back products with H and with C
SOLVERS = {
    "exact": Solver(adapt.exact(), 50, _unrolled),
    "mixed mode": Solver(adapt.mixed_mode(), 50, _unrolled),
    "forward mode": Solver(adapt.forward_mode(lambda path: True), 50, lambda k, dim: k * (1 + dim) + 2),
    "implicit": Solver(_implicit(solver=adapt.conjugate_gradient(20), warm_start=False), 50, lambda k, dim: k + 23),
    "implicit, warm": Solver(_implicit(solver=adapt.conjugate_gradient(5)), 10, lambda k, dim: k + 8),
    "SOBA": Solver(_implicit(solver=_neumann(1)), 1, lambda k, dim: k + 4),
    "AmIGO": Solver(_implicit(solver=_neumann(10)), 10, lambda k, dim: k + 13),
    "StocBiO": Solver(_implicit(solver=_neumann(10), warm_start=False), 10, lambda k, dim: k + 12),
}
CASES = {"quadratic-20": 20, "quadratic-100": 100, "quadratic-250": 250}
QUICK_CASES = {"quadratic-5": 5}
_PEER = "TorchOpt"
_FORWARD_UP_TO = 100  # dimensions: each is a tangent


@dataclass(frozen=True)
class Options(CommonOptions):
    num_rounds: int = 5
    """Samples of the time of each solver."""
    num_outer_steps: int = 1000
    """Outer steps of each curve."""


def run(options: Options, path: Path) -> Sequence[Row]:
    cases = choose(options.cases or "*", QUICK_CASES if options.quick else CASES)
    rows: list[Row] = []
    with float64():
        for name, dim in cases.items():
            rows += compete(name, quadratic(dim), options)
            _print_case([row for row in rows if row["case"] == name])
            write_report(path, "bilevel", rows, draw)
    return rows


def learner_of(problem: Quadratic, solver: Solver) -> jaxmeta.MetaLearner:
    dim = len(problem.a)
    return jaxmeta.bilevel(
        lambda key, meta_params: jnp.zeros(dim),
        lambda key: jnp.ones(dim),
        lambda params, meta_params, batch: (problem.inner(params, meta_params), {}),
        num_inner_steps=solver.num_inner_steps,
        outer_loss_fn=lambda params, meta_params, batch: (problem.outer(params, meta_params), {}),
        inner_optimizer=adapt.sgd(INNER_RATE),
        meta_gradient=solver.strategy,
        optimizer=optax.sgd(OUTER_RATE),
    )


def several_steps(problem: Quadratic, solver: Solver) -> tuple[Callable, PyTree]:
    """state -> (state, the η before each of `NUM_UNITS` outer steps), compiled; and the first state."""
    learner, task = learner_of(problem, solver), Task(*2 * (jnp.zeros((1, 1)),))
    key = jax.random.key(0)

    def step(state, _):
        return learner.update(key, state, task)[0], state.meta_params.params

    return jax.jit(lambda state: jax.lax.scan(step, state, length=NUM_UNITS)), learner.init(key)


def compete(name: str, problem: Quadratic, options: Options) -> list[Row]:
    """A row for each solver, with its curve; and one of the peer, whose curve is that of `exact`."""
    dim, num_rounds = len(problem.a), 2 if options.quick else options.num_rounds
    curvature, slope, least = problem.value()
    rows: dict[str, Row] = {}
    programs: dict[str, Program] = {}
    for label, solver in SOLVERS.items():
        row = {"case": name, "solver": label, "dim": dim, "num_inner_steps": solver.num_inner_steps}
        if label == "forward mode" and dim > _FORWARD_UP_TO:
            print(f"{name}: {label} is skipped, for it takes {dim} tangents")
            continue
        steps, state = several_steps(problem, solver)
        programs[label] = jax_program(steps, state)._replace(num_units=NUM_UNITS)
        etas = []
        for _ in range(1 if options.quick else options.num_outer_steps // NUM_UNITS):
            state, some = steps(state)
            etas.append(np.asarray(some))
        values = [eta @ curvature @ eta / 2 + slope @ eta - least for eta in np.concatenate(etas)]
        gradients = solver.num_gradients(solver.num_inner_steps, dim)
        rows[label] = row | {"gradients_per_step": gradients, "suboptimality": values}
        if label == "exact" and (peer := _peer(problem, etas[0][1])) is not None:
            programs[_PEER], rows[_PEER] = peer, {**rows["exact"], "solver": _PEER}
    for label, samples in interleave(programs, num_rounds=num_rounds, max_seconds=10.0).items():
        rows[label] |= summary(samples)
    return list(rows.values())


def _peer(problem: Quadratic, after_one_step: np.ndarray) -> Program | None:
    """The same unrolled meta-step by TorchOpt, where it is installed."""
    try:
        from benchmarks.shared import peers
    except ImportError as error:
        print(f"{_PEER} is left out: {error}; pip install -e '.[peers]'")
        return None
    program, theirs = peers.torchopt_bilevel(problem, SOLVERS["exact"].num_inner_steps, INNER_RATE, OUTER_RATE)
    if not np.allclose(theirs, after_one_step, rtol=1e-10, atol=0):
        raise RuntimeError(f"{_PEER} takes another step: what is learned differs by {np.ptp(theirs - after_one_step)}")
    return program


def _print_case(rows: Sequence[Row]) -> None:
    print(f"\n{rows[0]['case']}")
    exact = next(row for row in rows if row["solver"] == "exact")
    print_table(
        ["solver", "K", "gradients per step", "µs per step", "as fast as exact", "suboptimality", "seconds to 1e-8"],
        [
            [
                row["solver"],
                row["num_inner_steps"],
                row["gradients_per_step"],
                1e6 * row["median"],
                exact["median"] / row["median"],
                f"{max(row['suboptimality'][-1], 0):.1e}",
                _seconds_to(row, 1e-8),
            ]
            for row in rows
        ],
    )


def _seconds_to(row: Row, target: float) -> float | None:
    reached = [step for step, value in enumerate(row["suboptimality"]) if value <= target]
    return reached[0] * row["median"] if reached else None


def _until_rounding(values: np.ndarray, least: float = 1e-13) -> np.ndarray:
    """Up to where rounding is all that is left."""
    is_there = values <= least
    end = int(np.argmax(is_there)) + 1 if is_there.any() else len(values)
    return np.maximum(values[:end], least)


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """For each case a panel against gradients and one against seconds."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = panels(len(names), 2, f"Suboptimality of the outer loss, on {device}")
    for of_case, name in zip(axes, names, strict=True):
        for panel, (unit, label) in zip(
            of_case, (("gradients_per_step", "gradients"), ("median", "seconds")), strict=True
        ):
            for row in (row for row in rows if row["case"] == name):
                values = _until_rounding(np.array(row["suboptimality"]))
                panel.loglog(row[unit] * np.arange(1, len(values) + 1), values, markevery=0.2, **words(row["solver"]))
            label = "gradients" if unit == "gradients_per_step" else "seconds"
            panel.set(title=name, xlabel=label, ylabel="suboptimality")
    legend_below(figure, axes.flat, num_columns=5)
    return figure

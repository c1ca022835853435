"""Bias and variance of the meta-gradient estimators of meta-RL, on an MDP small enough for the exact one.

The inner step is taken on sampled episodes; what it led to is summed over all episodes, so that whatever varies is the
estimator's own. Exact is the gradient of J(θ + α ∇J(θ)). E-MAML's own objective, with the expectation over the inner
episodes outside, tends to it with their number. Everything is in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shared.enumerated import (
    PARAMS,
    Episodes,
    all_episodes,
    expected_adapted_return,
    expected_return,
    log_prob,
    probability,
    reward_to_go,
    values,
)
from benchmarks.shared.measure import float64
from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import legend_below, panels, words
from benchmarks.shared.report import Row, print_table, write_report
from jaxmeta.rl import objectives

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE = 0.4
CASES = {"horizon-3": 3, "horizon-5": 5}


class Data(NamedTuple):
    """All episodes, and what is known of them, `[T, M]`: reward to go, and the exact value of each state."""

    episodes: Episodes
    to_go: jax.Array
    value: jax.Array


class Estimator(NamedTuple):
    """Terms of the inner loss, (log π, data) -> `[T, M]`; whether the inner step's own derivative counts; and whether
    inner episodes get credit for the return after adaptation, less a baseline or not."""

    terms: Callable[[jax.Array, Data], jax.Array]
    first_order: bool = False
    credit: bool = False
    baseline: bool = False


def _reinforce(log_prob: jax.Array, data: Data) -> jax.Array:
    return objectives.reinforce(log_prob, data.to_go)


ESTIMATORS = {
    "first order": Estimator(_reinforce, first_order=True),
    "log π · G": Estimator(_reinforce),
    "LVC": Estimator(lambda log_prob, data: objectives.lvc(log_prob, data.to_go)),
    "LVC, baseline": Estimator(lambda log_prob, data: objectives.lvc(log_prob, data.to_go - data.value)),
    "DiCE": Estimator(lambda log_prob, data: objectives.dice(log_prob, data.episodes.reward)),
    "DiCE, baseline": Estimator(lambda log_prob, data: objectives.dice(log_prob, data.episodes.reward, data.value)),
    "loaded DiCE, baseline": Estimator(
        lambda log_prob, data: objectives.loaded_dice(log_prob, data.to_go - data.value)
    ),
    "E-MAML": Estimator(_reinforce, credit=True),
    "E-MAML, baseline": Estimator(_reinforce, credit=True, baseline=True),
}


@dataclass(frozen=True)
class Options(CommonOptions):
    num_samples: int = 4000
    """Estimates of each estimator and each number of episodes."""


def run(options: Options, path: Path) -> Sequence[Row]:
    chosen = choose(options.cases or ("horizon-3" if options.quick else "*"), CASES)
    num_episodes, num_samples = ((4, 64), 500) if options.quick else ((1, 4, 16, 64, 256, 1024), options.num_samples)
    rows: list[Row] = []
    for name, horizon in chosen.items():
        with float64():
            rows += errors(name, horizon, num_episodes, num_samples)
        _print_case([row for row in rows if row["case"] == name])
        write_report(path, "estimators", rows, draw)
    return rows


def errors(case: str, horizon: int, num_episodes: Sequence[int], num_samples: int) -> list[Row]:
    """A row for each estimator and each number of inner episodes, relative to the norm of the exact meta-gradient:

    bias:      of the mean of all samples; `bias_standard_error` is what it would be by chance
    deviation: the root of the sum of the variances
    error:     the root mean square of a sample's distance
    limit:     the bias that infinitely many episodes leave, computed without samples; not of E-MAML
    hessian_*: bias and deviation of the Hessian of one episode's inner loss, likewise
    """
    data, likelihood = _data(horizon)
    exact = jax.jit(jax.grad(lambda params: expected_adapted_return(params, data.episodes, RATE)))(PARAMS)
    relative = lambda distance: float(np.linalg.norm(distance) / np.linalg.norm(exact))
    rows = []
    for name, estimator in ESTIMATORS.items():
        estimate = jax.jit(lambda counts, estimator=estimator: _estimates(estimator, data, counts))
        in_the_limit = np.broadcast_to(likelihood, (num_samples, len(likelihood)))  # so many for one compilation
        known = {} if estimator.credit else {"limit": relative(estimate(in_the_limit)[0] - exact)}
        if not (estimator.credit or estimator.first_order):
            known |= _hessian(estimator, data, likelihood)
        for number in num_episodes:
            counts = np.random.default_rng(number).multinomial(number, likelihood, size=num_samples)
            samples = np.asarray(estimate(counts.astype(float)))
            deviation = relative(samples.std(0, ddof=1))
            rows.append(
                {
                    "case": case,
                    "estimator": name,
                    "num_episodes": number,
                    "num_samples": num_samples,
                    "bias": relative(samples.mean(0) - exact),
                    "bias_standard_error": deviation / num_samples**0.5,
                    "deviation": deviation,
                    "error": relative(samples - exact) / num_samples**0.5,
                    **known,
                }
            )
    return rows


def _data(horizon: int) -> tuple[Data, np.ndarray]:
    """All episodes, and how likely each is."""
    episodes = all_episodes(horizon=horizon)
    value = jnp.asarray(values(PARAMS, horizon=horizon))[jnp.arange(horizon)[:, None], episodes.state]
    likelihood = np.asarray(probability(jnp.asarray(PARAMS), episodes))
    return Data(episodes, reward_to_go(episodes), value), likelihood / likelihood.sum()


def _estimates(estimator: Estimator, data: Data, counts: jax.Array) -> jax.Array:
    """Meta-gradients `[R, S, A]` from R batches of inner episodes, `[R, M]`: how often each episode is in it."""
    params = jnp.asarray(PARAMS)
    baseline = expected_adapted_return(params, data.episodes, RATE) if estimator.baseline else 0.0

    def objective(params: jax.Array, counts: jax.Array) -> jax.Array:
        inner_loss = lambda params: jnp.sum(estimator.terms(log_prob(params, data.episodes), data), axis=0) @ counts
        gradient = jax.grad(inner_loss)(params) / jnp.sum(counts)
        adapted = params - RATE * (jax.lax.stop_gradient(gradient) if estimator.first_order else gradient)
        value = expected_return(adapted, data.episodes)
        if not estimator.credit:
            return value
        all_log_probs = jnp.sum(log_prob(params, data.episodes), axis=0) @ counts
        return value + jax.lax.stop_gradient(value - baseline) * all_log_probs

    one = lambda counts: jax.grad(objective)(params, counts)
    return jax.lax.map(one, jnp.asarray(counts), batch_size=min(100, len(counts)))


def _hessian(estimator: Estimator, data: Data, likelihood: np.ndarray) -> dict[str, float]:
    """Bias and deviation of −∇² of the inner loss of one episode, relative to the norm of ∇²J."""

    def inner_loss(params: jax.Array) -> jax.Array:
        return -jnp.sum(estimator.terms(log_prob(params, data.episodes), data), axis=0)

    each = np.asarray(jax.jit(jax.jacfwd(jax.jacrev(inner_loss)))(PARAMS)).reshape(len(likelihood), -1)
    exact = np.ravel(jax.jit(jax.hessian(lambda params: expected_return(params, data.episodes)))(PARAMS))
    mean = likelihood @ each
    variance = np.sum(likelihood @ (each - mean) ** 2)
    norm = np.linalg.norm(exact)
    return {
        "hessian_bias": float(np.linalg.norm(mean - exact) / norm),
        "hessian_deviation": float(variance**0.5 / norm),
    }


def _print_case(rows: Sequence[Row]) -> None:
    case, numbers = rows[0]["case"], list(dict.fromkeys(row["num_episodes"] for row in rows))
    of = {name: [row for row in rows if row["estimator"] == name] for name in ESTIMATORS}
    for key, title in (("error", "root mean square error"), ("deviation", "deviation"), ("bias", "bias of the mean")):
        print(f"\n{case}: {title} with so many inner episodes, relative to the exact meta-gradient")
        print_table(["estimator", *map(str, numbers)], [[name, *(row[key] for row in of[name])] for name in of])
    print(f"\n{case}: bias with infinitely many episodes, and of the Hessian of one, relative to the exact ones")
    keys = ("limit", "hessian_bias", "hessian_deviation")
    print_table(
        ["estimator", "meta-gradient, bias", "Hessian, bias", "Hessian, deviation"],
        [[name, *(f"{of[name][0][key]:.1e}" if key in of[name][0] else None for key in keys)] for name in of],
    )


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """A row of panels for each case: error, deviation and bias against the number of inner episodes."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    numbers = sorted({row["num_episodes"] for row in rows})
    title = "Meta-gradients from sampled inner episodes, relative to the norm of the exact one"
    figure, axes = panels(len(names), 3, title, width=4.2, height=3.4)
    for line, name in zip(axes, names, strict=True):
        for estimator in ESTIMATORS:
            chosen = [row for row in rows if row["case"] == name and row["estimator"] == estimator]
            for panel, key in zip(line, ("error", "deviation", "bias"), strict=True):
                # a bias is shown where it is more than chance
                shown = [row for row in chosen if key != "bias" or row["bias"] > 2 * row["bias_standard_error"]]
                x, y = ([row[of] for row in shown] for of in ("num_episodes", key))
                panel.plot(x, y, markersize=4, **words(estimator))
        for panel, label in zip(line, ("root mean square error", "deviation", "bias, if over 2σ"), strict=True):
            panel.set(xscale="log", yscale="log", xlabel="inner episodes", ylabel=label, title=name)
            panel.set_xticks(numbers, map(str, numbers))
            panel.minorticks_off()
    legend_below(figure, axes.flat, num_columns=5)
    return figure

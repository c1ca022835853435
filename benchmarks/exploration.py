"""What E-MAML's term is worth where exploring has to be paid for: a bandit of which every batch of pulls is enumerated.

One arm pays the same in all tasks; of the others one pays 1, in each task another, and the rest nothing. An episode is
one pull. The return after one inner step on a batch of them, E_{batch ~ π_θ} J(θ + α g(θ, batch)), is a sum over all
batches and tasks, in float64. Its gradient is E-MAML's; it is followed beside what is left of it without the term, and
what DiCE inside makes of that. The learners themselves, from samples, are judged by the same sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import stdtrit

import jaxmeta
from benchmarks.shared.enumerated import (
    MDP,
    Batches,
    Episodes,
    all_batches,
    all_episodes,
    expected_return,
    likelihood,
    log_prob,
    reward_to_go,
)
from benchmarks.shared.measure import float64
from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import legend_below, panels, words
from benchmarks.shared.report import Row, print_table, write_report
from jaxmeta.recipes import RECIPES
from jaxmeta.recipes.maml_rl import SCRATCH, HiddenArm, Surrogate
from jaxmeta.rl import mlp_policy, objectives

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Case(NamedTuple):
    """`rate` is α, of logits."""

    num_episodes: int
    num_hidden: int = 3
    sure: float = 0.5
    rate: float = 20.0


CASES = {"pulls-4": Case(4), "pulls-2": Case(2)}
RATE, NUM_STARTS, EVERY = 0.05, 64, 10  # of Adam; where it starts for the most; steps between what is kept


class Problem(NamedTuple):
    """All episodes of each task, and all batches of them."""

    tasks: Episodes
    batches: Batches
    rate: float


class Estimator(NamedTuple):
    """An inner loss by its terms `(log_prob, episodes)`, whether the term is added, and the learner's surrogate."""

    terms: Callable[[jax.Array, Episodes], jax.Array]
    credit: bool
    surrogate: Surrogate


def _reinforce(log_prob: jax.Array, episodes: Episodes) -> jax.Array:
    return objectives.reinforce(log_prob, reward_to_go(episodes))


ESTIMATORS = {
    "E-MAML": Estimator(_reinforce, True, Surrogate(estimator="biased", exploration_weight=1.0)),
    "log π · G": Estimator(_reinforce, False, Surrogate(estimator="biased")),
    "DiCE": Estimator(
        lambda log_prob, episodes: objectives.dice(log_prob, episodes.reward), False, Surrogate(estimator="dice")
    ),
}


@dataclass(frozen=True)
class Options(CommonOptions):
    num_steps: int = 500
    """Steps of Adam along each gradient."""
    num_seeds: int = 5
    """Learners of each kind, trained from samples."""


def run(options: Options, path: Path) -> Sequence[Row]:
    chosen = choose(options.cases or ("pulls-2" if options.quick else "*"), CASES)
    if options.quick:
        options = replace(options, num_steps=100, num_seeds=2)
    rows: list[Row] = []
    for name, case in chosen.items():
        rows += measure(name, case, options)
        _print_case([row for row in rows if row["case"] == name])
        write_report(path, "exploration", rows, draw)
    return rows


def problem_of(case: Case) -> Problem:
    hidden = np.eye(case.num_hidden)
    reward = np.concatenate([hidden, np.full((case.num_hidden, 1), case.sure)], axis=1)
    num_arms = case.num_hidden + 1
    of_task = [all_episodes(MDP(np.ones(1), np.ones((1, num_arms, 1)), row[None]), horizon=1) for row in reward]
    return Problem(jax.tree.map(lambda *x: jnp.stack(x), *of_task), all_batches(num_arms, case.num_episodes), case.rate)


def adapted_return(problem: Problem, terms: Callable, params: jax.Array, played_by: jax.Array) -> jax.Array:
    """The mean over tasks of E J(θ + α g(θ, batch)), batches played by `played_by`, which is θ for the objective."""

    def of_task(episodes: Episodes) -> jax.Array:
        def after(counts: jax.Array) -> jax.Array:
            inner_loss = lambda params: jnp.sum(terms(log_prob(params, episodes), episodes), 0) @ counts / counts.sum()
            return expected_return(params - problem.rate * jax.grad(inner_loss)(params), episodes)

        return likelihood(played_by, episodes, problem.batches) @ jax.vmap(after)(problem.batches.counts)

    return jnp.mean(jax.vmap(of_task)(problem.tasks))


def meta_gradient(problem: Problem, estimator: Estimator, params: jax.Array) -> jax.Array:
    """What the estimator expects; with the term it is the gradient of `adapted_return`."""
    played_by = lambda params: params if estimator.credit else jax.lax.stop_gradient(params)
    return jax.grad(lambda params: adapted_return(problem, estimator.terms, params, played_by(params)))(params)


def trained(problem: Problem, estimator: Estimator, start: jax.Array, num_steps: int) -> jax.Array:
    """Parameters along Adam's steps uphill, `[num_steps + 1, 1, A]`."""
    adam = optax.adam(RATE)

    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        params, state = carry
        updates, state = adam.update(-meta_gradient(problem, estimator, params), state)
        return (optax.apply_updates(params, updates), state), params

    (last, _), path = jax.lax.scan(step, (start, adam.init(start)), None, num_steps)
    return jnp.concatenate([path, last[None]])


def measure(name: str, case: Case, options: Options) -> list[Row]:
    """A row for each estimator, and for training from scratch:

    return:   after one inner step, along its training; the last of them is what it reaches
    explored: the share of pulls before adaptation that are not of the sure arm, likewise
    slope:    of the objective, or of what the estimator makes of it, along the logits of the arms to be explored, where
              the shares of such pulls are `shares`
    most:     the highest return that its training reached from 64 random starts
    learners: the return of each learner trained from samples
    """
    with float64():
        problem = problem_of(case)
        start = jnp.zeros((1, case.num_hidden + 1))
        value = jax.jit(lambda params: adapted_return(problem, _reinforce, params, params))
        common = {"case": name, **case._asdict()}
        rows: list[Row] = []
        for scale in SCRATCH:
            there = problem._replace(rate=scale * case.rate)
            reached = float(adapted_return(there, _reinforce, start, start))
            rows.append({**common, "estimator": f"from scratch, rate x{scale}", "return": [reached]})
        for estimator_name, estimator in ESTIMATORS.items():
            exact = _exact(problem, estimator, start, value, options.num_steps)
            rows.append({**common, "estimator": estimator_name, **exact})
    for row, estimator in zip(rows[len(SCRATCH) :], ESTIMATORS.values(), strict=True):
        logits = learners(case, estimator, options.num_seeds)
        with float64():
            row["learners"] = [float(value(jnp.asarray(of_seed, float)[None])) for of_seed in logits]
        row |= {"mean": float(np.mean(row["learners"])), "ci95": ci95_of_seeds(row["learners"])}
    return rows


def _exact(problem: Problem, estimator: Estimator, start: jax.Array, value: Callable, num_steps: int) -> Row:
    """What is computed without samples."""
    run = jax.jit(partial(trained, problem, estimator, num_steps=num_steps))
    kept = run(start)[::EVERY]
    explored = 1 - jax.nn.softmax(kept[:, 0])[:, -1]
    starts = 2 * jax.random.normal(jax.random.key(0), (NUM_STARTS, *start.shape))
    most = jnp.max(jax.vmap(value)(jax.vmap(run)(starts)[:, -1]))
    shares = np.linspace(0.02, 0.98, 33)
    sure = jnp.log((1 - shares) / shares * (start.size - 1))
    gradients = jax.jit(jax.vmap(partial(meta_gradient, problem, estimator)))(
        jax.vmap(lambda logit: start.at[0, -1].set(logit))(sure)
    )
    return {
        "every": EVERY,
        "return": jax.vmap(value)(kept).tolist(),
        "explored": explored.tolist(),
        "most": float(most),
        "shares": shares.tolist(),
        "slope": gradients[:, 0, :-1].sum(1).tolist(),
    }


def learners(case: Case, estimator: Estimator, num_seeds: int) -> np.ndarray:
    """The logits `[num_seeds, A]` of policies that `maml_rl` trained, by the recipe's settings, from samples."""
    recipe: HiddenArm = replace(
        RECIPES["e-maml-bandit"].config(),
        num_hidden=case.num_hidden,
        sure=case.sure,
        num_episodes=case.num_episodes,
        inner_learning_rate=case.rate / 2,  # a logit is a weight and a bias, each of which takes the step
        surrogate=estimator.surrogate,
    )
    keys = jax.random.split(jax.random.key(0), num_seeds)
    state, _ = jaxmeta.fit(
        keys,
        recipe.learner(),
        recipe.train_tasks(),
        num_outer_steps=recipe.num_outer_steps,
        num_tasks=recipe.num_tasks,
    )
    policy = mlp_policy(recipe.family(), hidden=recipe.hidden)
    return np.asarray(jax.vmap(lambda params: policy.apply(params, jnp.ones(1)).logits)(state.meta_params.params))


def ci95_of_seeds(values: Sequence[float]) -> float:
    """Half the width of the interval of their mean: t s / √n, t Student's, for they are few.

    >>> round(ci95_of_seeds([1.0, 2.0, 3.0]), 2)
    2.48
    """
    return float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values)))


def _print_case(rows: Sequence[Row]) -> None:
    case = rows[0]
    print(f"\n{case['case']}: return after one step on {case['num_episodes']} pulls; the sure arm pays {case['sure']}")
    lines = [
        [
            row["estimator"],
            row["return"][-1],
            row.get("most"),
            row["explored"][-1] if "explored" in row else None,
            f"{row['mean']:.3f} ± {row['ci95']:.3f}" if "mean" in row else None,
        ]
        for row in rows
    ]
    print_table(["estimator", "exact gradient", "most of 64 starts", "explored", "learners"], lines)


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """A row of panels for each case: the return along training, and where the gradients lead."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    title = "Where exploring has to be paid for: the exact return after one inner step, and its gradient"
    figure, axes = panels(len(names), 2, title, width=5.2, height=3.2)
    for (left, right), name in zip(axes, names, strict=True):
        case = [row for row in rows if row["case"] == name]
        num_steps = max((len(row["return"]) - 1) * row["every"] for row in case if "every" in row)
        for row in case:
            shown = words(row["estimator"])
            if "every" not in row:
                left.plot([0, num_steps], row["return"] * 2, markersize=4, **shown)
                continue
            x = np.arange(len(row["return"])) * row["every"]
            left.plot(x, row["return"], markersize=4, markevery=5, **shown)
            dots = {"color": shown["color"], "marker": shown["marker"], "linestyle": ""}
            left.plot([num_steps * 1.05] * len(row["learners"]), row["learners"], markersize=4, alpha=0.6, **dots)
            right.plot(row["shares"], row["slope"], markersize=4, markevery=4, **shown)
        left.axhline(case[0]["sure"], color="#bbbbbb", linewidth=1)
        right.axhline(0, color="#bbbbbb", linewidth=1)
        left.set(xlabel="step along the exact gradient; on the right learners", ylabel="return", title=name)
        right.set(xlabel="share of pulls that explore", ylabel="slope towards exploring", title=name)
    legend_below(figure, axes.flat, num_columns=5)
    return figure

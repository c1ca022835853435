"""Environment steps that meta-RL takes to learn 2D navigation: MAML by TRPO, PEARL and RL², judged as they train.

Each recipe trains as `jaxmeta train` does, and after every twentieth of the run adapts to the same test tasks: MAML by
one inner step on 20 episodes, as it was trained for, PEARL by two episodes of context, RL² in the last episode of its
trial. The level is where MAML ends, the mean of its last three evaluations; counted are the steps of meta-training
until a contender is there for the first time. PEARL was made to need 20 to 100 times fewer (Rakelly et al. 2019,
https://arxiv.org/abs/1903.08254).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import legend_below, panels, words
from benchmarks.shared.report import Row, print_table, write_report
from jaxmeta.algorithms import Replay
from jaxmeta.recipes.maml_rl import MAML_RL, GradientRL
from jaxmeta.recipes.pearl import PEARL, Pearl
from jaxmeta.recipes.rl2 import RL2, RL2_RECIPES
from jaxmeta.rl.on_policy import PPO
from jaxmeta.training import evaluate, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEVEL = "MAML"


class Contender(NamedTuple):
    """A recipe; environment steps of one of its outer steps; and which of its returns at test counts."""

    config: Callable[[], Any]
    steps: Callable[[Any, int], int]
    judged: int


def _steps_of_gradients(config: GradientRL, max_steps: int) -> int:
    return config.num_tasks * config.num_episodes * (config.num_inner_steps + 1) * max_steps


def _steps_of_pearl(config: Pearl, max_steps: int) -> int:
    return config.num_tasks * sum(config.visits.num_steps(max_steps))


def _steps_of_rl2(config: RL2, max_steps: int) -> int:
    return config.num_tasks * config.num_episodes * max_steps


CONTENDERS = {
    _LEVEL: Contender(MAML_RL["maml-navigation"].config, _steps_of_gradients, 1),
    "PEARL": Contender(PEARL["pearl-navigation"].config, _steps_of_pearl, 2),
    "RL²": Contender(RL2_RECIPES["rl2-navigation"].config, _steps_of_rl2, -1),
}
_QUICK: dict[str, dict[str, Any]] = {
    _LEVEL: {"num_outer_steps": 20, "num_tasks": 2, "num_episodes": 2, "hidden": (4,)},
    "PEARL": {
        "num_outer_steps": 20,
        "num_tasks": 2,
        "replay": Replay(num_gradient_steps=1, capacity=1000, batch_size=32, num_context=60),
        "num_train_tasks": 3,
        "hidden": (4,),
    },
    "RL²": {"num_outer_steps": 20, "num_tasks": 2, "ppo": PPO(), "num_units": 4, "num_critic_units": 4},
}


@dataclass(frozen=True)
class Options(CommonOptions):
    seed: int = 0
    """Of all of them."""
    num_points: int = 20
    """Evaluations of each."""
    num_eval_tasks: int = 100
    """Test tasks of each evaluation."""


def run(options: Options, path: Path) -> Sequence[Row]:
    rows: list[Row] = []
    for name, contender in choose(options.cases or "*", CONTENDERS).items():
        config = replace(contender.config(), **_QUICK[name]) if options.quick else contender.config()
        rows.append({"case": name, "seed": options.seed, **measure(contender, config, options)})
        _compare(rows)
        write_report(path, "sample_efficiency", rows, draw)  # after each: a run that is killed loses nothing
    headings = ["", "steps in all", "return at last", "steps to MAML's level", "times fewer"]
    keys = ("steps_to_level", "times_fewer")
    print_table(
        headings,
        [[row["case"], f"{row['steps'][-1]:,}", row["return"][-1], *(row[key] for key in keys)] for row in rows],
    )
    return rows


def _compare(rows: Sequence[Row]) -> None:
    """Steps to MAML's level, and how many times fewer than MAML's; None where it was not run, or not reached."""
    level = _level(rows)
    for row in rows:
        row["steps_to_level"] = None if level is None else reached(row["steps"], row["return"], level)
    of_maml = next((row["steps_to_level"] for row in rows if row["case"] == _LEVEL), None)
    for row in rows:
        has_both = of_maml is not None and row["steps_to_level"] is not None
        row["times_fewer"] = of_maml / row["steps_to_level"] if has_both else None


def measure(contender: Contender, config: Any, options: Options) -> Row:
    """Steps taken and the return at test, after every part of the run."""
    experiment = config.build()
    each = contender.steps(config, config.family().environment.max_steps)
    steps, returns, intervals = [], [], []

    def judge(state: Any, metrics: Any) -> None:
        report = evaluate(
            jax.random.key(0),
            experiment.learner,
            experiment.test_tasks,
            state.meta_params,
            num_tasks=options.num_eval_tasks,
            batch_size=experiment.eval_batch_size,
        )
        of = report.metrics["return"]
        steps.append(int(state.step) * each)
        returns.append(of["mean"][contender.judged])
        intervals.append(of["ci95"][contender.judged])

    fit(
        jax.random.key(options.seed),
        experiment.learner,
        experiment.train_tasks,
        num_outer_steps=config.num_outer_steps,
        num_tasks=config.num_tasks,
        chunk_size=max(1, config.num_outer_steps // options.num_points),
        callbacks=[judge],
    )
    return {"steps": steps, "return": returns, "ci95": intervals, "protocol": experiment.protocol}


def _level(rows: Sequence[Row]) -> float | None:
    return next((float(np.mean(row["return"][-3:])) for row in rows if row["case"] == _LEVEL), None)


def reached(steps: Sequence[int], returns: Sequence[float], level: float) -> int | None:
    """The first number of steps at which the return is at least the level.

    >>> reached([10, 20, 30], [-5.0, -1.0, -2.0], -2.0)
    20
    """
    return next((step for step, value in zip(steps, returns, strict=True) if value >= level), None)


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """The return at test against the steps of meta-training."""
    figure, [[panel]] = panels(1, 1, f"2D navigation, 100 test tasks, on {device}", width=6.0, height=3.6)
    for row in rows:
        x, y, interval = (np.asarray(row[key]) for key in ("steps", "return", "ci95"))
        look = words(row["case"])
        panel.plot(x, y, markersize=4, **look)
        panel.fill_between(x, y - interval, y + interval, color=look["color"], alpha=0.15, linewidth=0)
    level = _level(rows)
    if level is not None:
        panel.axhline(level, color="0.5", linestyle=":", label="where MAML ends")
    panel.set(xscale="log", xlabel="environment steps of meta-training", ylabel="return after adaptation")
    legend_below(figure, [panel], num_columns=4)
    return figure

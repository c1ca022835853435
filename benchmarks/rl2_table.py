"""The table of the RL² paper: what it collects in bandits and MDPs, beside the authors' figures and simple strategies.

Each cell is meta-trained from nothing with the paper's network and batch (GRUs of 256 units, 250,000 steps an update),
by PPO, and judged by the total reward in 1,000 test tasks. That takes an accelerator. `--cases` trains some of the
cells; each is written when it is done.

Duan et al., "RL²: Fast Reinforcement Learning via Slow Reinforcement Learning" (2016), tables 1 and 2,
https://arxiv.org/abs/1611.02779
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax

from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import legend_below, panels, words
from benchmarks.shared.report import Row, print_table, write_report
from jaxmeta.recipes.rl2 import MDPRL2, RL2, BanditRL2
from jaxmeta.rl import Agent, reference_learner
from jaxmeta.rl.on_policy import PPO, Advantages
from jaxmeta.training import Report, evaluate, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BATCH = 250_000  # steps of an update
_PPO = PPO(num_epochs=2, num_minibatches=32)
_STRATEGIES = ("Gittins", "UCB1, tuned", "Thompson", "PSRL", "random")


class Cell(NamedTuple):
    """A recipe's fields, and RL²'s total in the paper."""

    config: RL2
    paper: float | None


def _bandit(num_arms: int, num_pulls: int, paper: float | None, **fields) -> Cell:
    recipe = {
        "num_units": 256,
        "num_critic_units": 128,
        "num_outer_steps": 1000,
        "learning_rate": 1e-3,
    }
    num_tasks = _BATCH // num_pulls // 64 * 64
    entropy = 0.01 if num_pulls < 100 else 0.02
    config = BanditRL2(
        num_arms=num_arms,
        num_pulls=num_pulls,
        **{**recipe, "num_tasks": num_tasks, "ppo": _PPO, "entropy_weight": entropy, **fields},
    )
    return Cell(config, paper)


def _mdp(num_episodes: int, paper: float) -> Cell:
    num_tasks = max(32, _BATCH // (10 * num_episodes) // 32 * 32)
    return Cell(
        MDPRL2(
            num_episodes=num_episodes,
            num_units=256,
            num_critic_units=128,
            num_layer_units=128,
            num_outer_steps=5000,
            num_tasks=num_tasks,
            ppo=_PPO,
            learning_rate=1e-3,
            advantages=Advantages(gae_lambda=0.5),
            entropy_weight=0.03,
            final_entropy_weight=0.0,
        ),
        paper,
    )


CELLS = {
    **{
        f"bandit-k{num_arms}-n{num_pulls}": _bandit(num_arms, num_pulls, paper)
        for num_pulls, of_arms in {
            10: {5: 6.7, 10: 6.7, 50: 6.8},
            100: {5: 78.7, 10: 83.5, 50: 84.9},
            500: {5: 401.6, 10: 432.5, 50: 438.9},
        }.items()
        for num_arms, paper in of_arms.items()
    },
    **{f"mdp-n{n}": _mdp(n, paper) for n, paper in {10: 156.2, 25: 445.7, 50: 936.1, 75: 1428.8, 100: 1913.7}.items()},
    "tiny": _bandit(2, 4, None, num_units=8, num_critic_units=4, num_tasks=64, num_outer_steps=5),
}


@dataclass(frozen=True)
class Options(CommonOptions):
    num_seeds: int = 1
    """Seeds of each cell."""
    num_outer_steps: int | None = None
    """Outer steps instead of the cell's own."""


def run(options: Options, path: Path) -> Sequence[Row]:
    chosen = choose(options.cases or ("tiny" if options.quick else "bandit,mdp"), CELLS)
    rows: list[Row] = []
    for name, cell in chosen.items():
        config = (
            cell.config
            if options.num_outer_steps is None
            else replace(cell.config, num_outer_steps=options.num_outer_steps)
        )
        rows += measure(name, cell._replace(config=config), options.num_seeds)
        _print_cell([row for row in rows if row["case"] == name])
        write_report(path, "rl2_table", rows, draw)  # after each cell: a run that is killed loses nothing
    return rows


def measure(name: str, cell: Cell, num_seeds: int) -> list[Row]:
    """RL² of each seed, the paper's figure, and the strategies on the same test tasks."""
    config = cell.config
    family, test_key = config.family(), jax.random.key(0)
    judge = lambda learner, params: evaluate(
        test_key, learner, family.test, params, num_tasks=config.num_eval_tasks, batch_size=250
    )
    rows = [] if cell.paper is None else [{"case": name, "contender": "paper", "total": cell.paper}]
    for strategy, agent in config.oracles().items():
        if strategy in _STRATEGIES and isinstance(agent, Agent):
            learner = reference_learner(agent, family.environment, num_episodes=config.num_episodes, by_episode=True)
            rows.append(
                {"case": name, "contender": strategy, **_total(judge(learner, learner.init(test_key).meta_params))}
            )
    learner = config.build().learner
    for seed in range(num_seeds):
        start = time.monotonic()
        state, _ = fit(
            jax.random.key(1 + seed),
            learner,
            family.train,
            num_outer_steps=config.num_outer_steps,
            num_tasks=config.num_tasks,
        )
        at = {"case": name, "contender": "RL²", "seed": seed, "seconds": time.monotonic() - start}
        at |= {"num_skipped": int(state.num_skipped), "protocol": config.protocol()}
        rows.append({**at, **_total(judge(learner, state.meta_params))})
    return rows


def _total(report: Report) -> Row:
    """Of a trial: the mean over tasks, and its 95% interval."""
    total = report.metrics["total"]
    return {"total": total["mean"][0], "ci95": total["ci95"][0]}


def _print_cell(rows: Sequence[Row]) -> None:
    print(f"\n{rows[0]['case']}")
    print_table(
        ["", "total", "ci95", "seconds"],
        [[row["contender"], row["total"], row.get("ci95"), row.get("seconds")] for row in rows],
    )


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """What each collects, as a share of the best strategy's in that cell."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, [[panel]] = panels(1, 1, f"RL² and its paper's figures, on {device}", width=1.2 + 0.7 * len(cases))
    best = {case: max(row["total"] for row in rows if row["case"] == case and "seed" not in row) for case in cases}
    contenders = ("RL²", "paper", *_STRATEGIES)
    for who in contenders:
        of = [row for row in rows if row["contender"] == who]
        share = [row["total"] / best[row["case"]] for row in of]
        panel.plot([cases.index(row["case"]) for row in of], share, alpha=0.8, **words(who) | {"linestyle": ""})
    panel.set_xticks(range(len(cases)), cases, rotation=45, ha="right")
    panel.set(ylabel="total reward, of the best other")
    legend_below(figure, [panel], num_columns=4)
    return figure

"""What RL² remembers with: GRU, minimal GRU and causal transformer on random MDPs, reward and speed; and E-RL².

All have the settings of the recipe `rl2-mdp`, but fewer outer steps, and are judged on the same test tasks.
Timed are updates, in turns, of trials as long as in training and five times as long, with as many environment steps:
a GRU goes through a trial step by step, a minimal GRU by a parallel scan, a transformer by products of all pairs.
In E-RL² the rewards of the first episodes are not counted in training (Stadie et al. 2018,
https://arxiv.org/abs/1803.01118).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from benchmarks.shared.measure import Program, interleave, jax_program, summary
from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import legend_below, panels, words
from benchmarks.shared.report import Row, print_table, write_report
from benchmarks.shared.rl_programs import drawn
from jaxmeta.recipes.rl2 import MDPRL2, RL2_RECIPES
from jaxmeta.rl.on_policy import PPO
from jaxmeta.training import evaluate, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RECIPE: MDPRL2 = RL2_RECIPES["rl2-mdp"].config()
_TINY = replace(_RECIPE, num_episodes=2, num_tasks=8, num_units=4, num_critic_units=4, ppo=PPO(num_minibatches=2))
_LONGER = 5  # times a trial of training


@dataclass(frozen=True)
class Options(CommonOptions):
    seed: int = 0
    """Of all of them."""
    num_outer_steps: int = 250
    """As many as each trains for; the recipe's are fourteen times as many."""
    num_eval_tasks: int = _RECIPE.num_eval_tasks
    """Test tasks."""
    num_rounds: int = 5
    """Samples of the time of an update."""


def contenders(base: MDPRL2) -> dict[str, MDPRL2]:
    cores = {core: replace(base, core=core) for core in ("gru", "min_gru", "causal_transformer")}
    return cores | {"E-RL²": replace(base, num_exploration_episodes=base.num_episodes // 5 or 1)}


def run(options: Options, path: Path) -> Sequence[Row]:
    chosen = choose(options.cases or "*", contenders(_TINY if options.quick else _RECIPE))
    speed = steps_per_second(chosen, options)
    rows: list[Row] = []
    for name, config in chosen.items():
        config = replace(config, num_outer_steps=2 if options.quick else options.num_outer_steps)
        found = learned(config, options)
        rows.append({"case": name, "seed": options.seed, "num_outer_steps": config.num_outer_steps, **found})
        rows[-1]["steps_per_second"] = speed[name]
        write_report(path, "cores", rows, draw)  # after each: a run that is killed loses nothing
    lengths = [*rows[0]["steps_per_second"]]
    print_table(
        ["", "total", "±", "first episode", "last", *(f"steps/s, trials of {length}" for length in lengths)],
        [
            [row["case"], row["total"], row["ci95"], row["return"][0], row["return"][-1]]
            + [f"{row['steps_per_second'][length]['median']:,.0f}" for length in lengths]
            for row in rows
        ],
    )
    return rows


def learned(config: MDPRL2, options: Options) -> Row:
    """What it gets in test tasks, after training: in a trial, and in each of its episodes."""
    experiment = config.build()
    state, _ = fit(
        jax.random.key(options.seed),
        experiment.learner,
        experiment.train_tasks,
        num_outer_steps=config.num_outer_steps,
        num_tasks=config.num_tasks,
    )
    report = evaluate(
        jax.random.key(0),
        experiment.learner,
        experiment.test_tasks,
        state.meta_params,
        num_tasks=8 if options.quick else options.num_eval_tasks,
        batch_size=experiment.eval_batch_size,
    )
    total, by_episode = report.metrics["total"], report.metrics["return"]
    found = {"total": total["mean"][0], "ci95": total["ci95"][0], "return": by_episode["mean"]}
    return {**found, "return_ci95": by_episode["ci95"], "protocol": experiment.protocol}


def steps_per_second(chosen: dict[str, MDPRL2], options: Options) -> dict[str, dict[str, dict]]:
    """Environment steps per second of an update, by contender and by the steps of a trial."""
    found: dict[str, dict[str, dict]] = {name: {} for name in chosen}
    for longer in (1, _LONGER):
        programs, num_steps = {}, {}
        for name, config in chosen.items():
            length, programs[name], num_steps[name] = _update_of(config, longer)
        samples = interleave(programs, num_rounds=2 if options.quick else options.num_rounds)
        for name, seconds in samples.items():
            found[name][str(length)] = summary([num_steps[name] / each for each in seconds])
    return found


def _update_of(config: MDPRL2, longer: int) -> tuple[int, Program, int]:
    """The steps of a trial, an update, and the environment steps of that."""
    each = config.ppo.num_minibatches
    num_tasks = max(1, config.num_tasks // longer // each) * each
    config = replace(config, num_episodes=longer * config.num_episodes, num_tasks=num_tasks)
    learner, family = config.learner(), config.family()
    _, tasks = drawn(family, num_tasks)
    update = jax_program(jax.jit(learner.update), jax.random.key(2), learner.init(jax.random.key(0)), tasks)
    length = config.num_episodes * family.environment.max_steps
    return length, update, num_tasks * length


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """What each gets, episode by episode."""
    figure, [[panel]] = panels(1, 1, f"RL² on random MDPs, on {device}", width=6.0, height=3.6)
    for row in rows:
        y, interval = np.asarray(row["return"]), np.asarray(row["return_ci95"])
        x, look = np.arange(1, len(y) + 1), words(row["case"])
        panel.plot(x, y, markersize=4, **look)
        panel.fill_between(x, y - interval, y + interval, color=look["color"], alpha=0.15, linewidth=0)
    panel.set(xlabel="episode of a trial", ylabel="return in test tasks")
    legend_below(figure, [panel], num_columns=4)
    return figure

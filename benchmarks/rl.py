"""Environment steps per second of RL²: training, beside the rollout alone and beside the environment alone.

The three take turns: a whole update (play, values, one epoch of gradients), as many trials played by the
same recurrent policy without learning, and played at random. What is between them is what the network costs, and what
learning does. The limit is the rate of a large matrix product, which takes its turns with the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax

import jaxmeta
from benchmarks.flops import count_flops
from benchmarks.measure import Program, interleave, jax_program, matrix_product, summary
from benchmarks.options import Options as CommonOptions
from benchmarks.options import choose
from benchmarks.pictures import COLORS, MARKERS, legend_below, panels
from benchmarks.report import Row, print_table, write_report
from jaxmeta import nn, rl
from jaxmeta.rl import families, oracles
from jaxmeta.types import PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TRAINING, _ROLLOUT, _ENVIRONMENT, _PRODUCT = "training", "rollout", "environment alone", "matrix product"
CONTENDERS = (_TRAINING, _ROLLOUT, _ENVIRONMENT)
_STEPS_OF_A_MINIBATCH = 12_800  # so that what is kept for its gradients stays near the cache


@dataclass(frozen=True)
class Options(CommonOptions):
    num_rounds: int = 7
    """Samples of each contender."""


class Case(NamedTuple):
    """A family, the episodes of a trial, N trials of an update, and the GRU's width."""

    family: Callable[[], rl.Family]
    num_episodes: int
    num_tasks: int
    num_units: int


def cases() -> dict[str, Case]:
    """`family-nN-hH`: N swept at a width of 64, and the width at N = 1,024."""
    of: dict[str, tuple[Callable[[], rl.Family], int]] = {
        "bandit": (partial(families.bernoulli_bandit, num_arms=5, num_pulls=10), 1),
        "mdp": (families.tabular_mdp, 10),
    }
    sizes = [(256, 64), (1024, 64), (4096, 64), (1024, 128), (1024, 256)]
    return {f"{name}-n{n}-h{h}": Case(*what, n, h) for name, what in of.items() for n, h in sizes} | {
        "tiny-n32-h8": Case(partial(families.bernoulli_bandit, num_arms=2, num_pulls=4), 1, 32, 8)
    }


def run(options: Options, path: Path) -> Sequence[Row]:
    chosen = choose(options.cases or ("tiny" if options.quick else "bandit,mdp"), cases())
    rows: list[Row] = []
    for name, case in chosen.items():
        rows += measure(name, case, 3 if options.quick else options.num_rounds)
        _print_case([row for row in rows if row["case"] == name])
        write_report(path, "rl", rows, draw)  # after each case: a run that is killed loses nothing
    return rows


def measure(name: str, case: Case, num_rounds: int) -> list[Row]:
    programs, flops, num_steps = build(case)
    product = matrix_product()
    times = {
        who: summary(samples)
        for who, samples in interleave(programs | {_PRODUCT: product.program}, num_rounds=num_rounds).items()
    }
    rate = product.flops / times[_PRODUCT]["median"]
    at = {"case": name, "num_tasks": case.num_tasks, "num_units": case.num_units}
    return [
        {
            **at, "contender": who, "flops": flops[who], "steps_per_second": num_steps / times[who]["median"],
            "share_of_rollout": times[_ROLLOUT]["median"] / times[who]["median"],
            "fraction_of_matrix_product_rate": flops[who] / times[who]["median"] / rate, **times[who],
        }
        for who in CONTENDERS
    ] + [{**at, "contender": _PRODUCT, "flops": product.flops, **times[_PRODUCT]}]  # fmt: skip


def build(case: Case) -> tuple[dict[str, Program], dict[str, int], int]:
    """The programs, their floating-point operations, and the environment's steps in each."""
    family, core = case.family(), nn.gru(case.num_units)
    trial = rl.trial(family.environment, num_episodes=case.num_episodes)
    num_steps = case.num_tasks * trial.num_steps
    num_minibatches = max(4, num_steps // _STEPS_OF_A_MINIBATCH)
    learner = jaxmeta.rl2(family, num_episodes=case.num_episodes, actor=core, num_minibatches=num_minibatches)
    state = learner.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), case.num_tasks)
    tasks = jax.vmap(family.train.sample, (0, None))(keys, family.train.data)

    def play(agent: rl.Agent, keys: jax.Array, tasks: PyTree) -> PyTree:
        run = lambda key, task: rl.rollout(key, trial, *agent, task)[1]
        transitions = jax.vmap(run, out_axes=1)(keys, tasks)
        return transitions.reward, transitions.extras

    at_random = oracles.random_policy(family.environment.action_space)
    functions = {
        _TRAINING: (learner.update, (jax.random.key(2), state, tasks)),
        _ROLLOUT: (
            lambda state, *args: play(jaxmeta.rl2_agent(family, core, state.meta_params), *args),
            (state, keys, tasks),
        ),
        _ENVIRONMENT: (lambda *args: play(at_random, *args), (keys, tasks)),
    }
    programs = {who: jax_program(jax.jit(fn), *args) for who, (fn, args) in functions.items()}
    flops = {who: count_flops(fn, *args) for who, (fn, args) in functions.items()}
    return programs, flops, num_steps


def _print_case(rows: Sequence[Row]) -> None:
    print(f"\n{rows[0]['case']}")
    print_table(
        ["", "steps/s", "of rollout", "of product", "ms", "min", "max"],
        [
            [
                row["contender"], row["steps_per_second"], f"{row['share_of_rollout']:.0%}",
                f"{row['fraction_of_matrix_product_rate']:.0%}",
                *(1e3 * row[key] for key in ("median", "min", "max")),
            ]
            for row in rows if row["contender"] != _PRODUCT
        ],
    )  # fmt: skip


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """A row of panels for each family: steps per second against trials, and against the GRU's width."""
    timed = [row for row in rows if "steps_per_second" in row]
    names = list(dict.fromkeys(row["case"].split("-")[0] for row in timed))
    figure, axes = panels(len(names), 2, f"RL², one epoch of PPO, float32, on {device}")
    sweeps = {"num_tasks": ("num_units", "parallel trials"), "num_units": ("num_tasks", "width of the GRU")}
    for panels_of_name, name in zip(axes, names, strict=True):
        of_name = [row for row in timed if row["case"].startswith(f"{name}-")]
        for panel, (swept, (fixed, label)) in zip(panels_of_name, sweeps.items(), strict=True):
            values = [row[fixed] for row in of_name]
            at = max(set(values), key=values.count)
            for who, color, marker in zip(CONTENDERS, COLORS, MARKERS, strict=False):
                chosen = sorted(
                    (row for row in of_name if row["contender"] == who and row[fixed] == at), key=lambda row: row[swept]
                )
                x, y = ([row[key] for row in chosen] for key in (swept, "steps_per_second"))
                panel.plot(x, y, color=color, marker=marker, label=who)
            ticks = sorted({row[swept] for row in of_name if row[fixed] == at})
            panel.set(xscale="log", yscale="log", xlabel=label, ylabel="steps per second", title=name)
            panel.set_xticks(ticks, [str(tick) for tick in ticks])
            panel.minorticks_off()
    legend_below(figure, axes.flat, num_columns=3)
    return figure

"""Environment steps per second of meta-RL: training, beside the rollout alone and beside the environment alone.

The three take turns: a whole update (RL²: play, values of a critic of half the width, one epoch of gradients; ProMP:
play, adapt, play, five steps through the inner one; PEARL: play under the prior and under the belief, gradient steps on
what buffers hold), as many steps played by the same policy without learning, and played at random. What is between them
is what the network costs, and what learning does. ProMP is also timed with several seeds in one program. The limit is
the rate of a large matrix product, which takes its turns with the rest.

Cases `xland`, `trpo` and `vpg` are beside others' loops, where these can be run: RL² on XLand-MiniGrid beside its own
training loop (`--xland-checkout PATH`), and MAML on 2D navigation beside a loop on the host in PyTorch.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

import jaxmeta
from benchmarks.shared.contenders import Unavailable
from benchmarks.shared.measure import interleave, matrix_product, summary
from benchmarks.shared.options import Options as CommonOptions
from benchmarks.shared.options import choose
from benchmarks.shared.pictures import legend_below, panels, words
from benchmarks.shared.report import Row, print_table, write_report
from benchmarks.shared.rl_beside import PYTORCH, XLAND, HostCase, XLandCase, build_host, build_xland
from benchmarks.shared.rl_programs import (
    ENVIRONMENT,
    ROLLOUT,
    SEEDS,
    TRAINING,
    Built,
    built,
    drawn,
    of_gradients,
    of_trials,
)
from jaxmeta import nn, rl
from jaxmeta.rl import families, oracles
from jaxmeta.types import PyTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PRODUCT, _NUM_SEEDS = "matrix product", 4
CONTENDERS = (TRAINING, SEEDS, ROLLOUT, ENVIRONMENT, XLAND, PYTORCH)


@dataclass(frozen=True)
class Options(CommonOptions):
    num_rounds: int = 7
    """Samples of each contender."""
    xland_checkout: Path | None = None
    """A checkout of github.com/dunnolab/xland-minigrid, whose `training/train_meta_task.py` competes in cases xland."""


class Case(NamedTuple):
    """RL²: a family, the episodes of a trial, N trials of an update, and the GRU's width."""

    family: Callable[[], rl.Family]
    num_episodes: int
    num_tasks: int
    size: int


class GradientCase(NamedTuple):
    """ProMP: a family, N tasks of an update, and the episodes that each inner step, and the outer one, learns from."""

    family: Callable[[], rl.Family]
    num_tasks: int
    size: int


class BeliefCase(NamedTuple):
    """PEARL, its context all of a visit: a family, N tasks visited, and gradient steps of an update."""

    family: Callable[[], rl.Family]
    num_tasks: int
    size: int


_OTHER = {"num_tasks": "size", "size": "num_tasks"}  # what stays as it is where one of the two is swept
LEARNERS = {
    **dict.fromkeys(("bandit", "mdp", "xland", "tiny"), "RL²"),
    **dict.fromkeys(("navigation", "tinygradient"), "ProMP"),
    **dict.fromkeys(("pearl", "tinybelief"), "PEARL"),
    **dict.fromkeys(("trpo", "vpg"), "MAML"),
}

AnyCase: TypeAlias = Case | GradientCase | BeliefCase | XLandCase | HostCase
SIZES = {
    Case: "width of the GRU",
    GradientCase: "episodes of a step",
    BeliefCase: "gradient steps of an update",
    XLandCase: "episodes of a trial",
    HostCase: "episodes of a step",
}


def cases() -> dict[str, AnyCase]:
    """`family-nN-hH`: N swept at a width of 64, and the width at N = 1,024. `family-nN-eE`: the same for episodes, and
    `pearl-nN-gG` for gradient steps."""
    of: dict[str, tuple[Callable[[], rl.Family], int]] = {
        "bandit": (partial(families.bernoulli_bandit, num_arms=5, num_pulls=10), 1),
        "mdp": (families.tabular_mdp, 10),
    }
    sizes = [(256, 64), (1024, 64), (4096, 64), (1024, 128), (1024, 256)]
    recurrent = {f"{name}-n{n}-h{h}": Case(*what, n, h) for name, what in of.items() for n, h in sizes}
    episodes = [(10, 20), (20, 20), (40, 20), (20, 5), (20, 80)]
    gradient = {f"navigation-n{n}-e{e}": GradientCase(families.navigation, n, e) for n, e in episodes}
    steps = [(5, 100), (10, 100), (20, 100), (10, 30), (10, 300)]
    belief = {f"pearl-n{n}-g{g}": BeliefCase(families.navigation, n, g) for n, g in steps}
    small = partial(families.bernoulli_bandit, num_arms=2, num_pulls=4)
    tiny: dict[str, AnyCase] = {
        "tiny-n32-h8": Case(small, 1, 32, 8),
        "tinygradient-n4-e2": GradientCase(small, 4, 2),
        "tinybelief-n2-g2": BeliefCase(families.pendulum, 2, 2),
    }
    beside: dict[str, AnyCase] = {
        **{f"xland-n{n}-e{e}": XLandCase(n, e) for n, e in [(512, 1), (256, 8)]},
        "trpo-n10-e20": HostCase(10, 20, jaxmeta.TRPO()),
        "vpg-n10-e20": HostCase(10, 20, jaxmeta.VPG()),
    }
    return {**recurrent, **gradient, **belief, **beside, **tiny}


def run(options: Options, path: Path) -> Sequence[Row]:
    chosen = choose(
        options.cases
        or ("tiny,tinygradient,tinybelief" if options.quick else "bandit,mdp,navigation,pearl,xland,trpo,vpg"),
        cases(),
    )
    rows: list[Row] = []
    for name, case in chosen.items():
        try:
            rows += measure(name, case, 3 if options.quick else options.num_rounds, options.xland_checkout)
        except Unavailable as error:
            print(f"{name} is left out: {error}")
            continue
        _print_case([row for row in rows if row["case"] == name])
        write_report(path, "rl", rows, draw)  # after each case: a run that is killed loses nothing
    return rows


def measure(name: str, case: AnyCase, num_rounds: int, xland_checkout: Path | None = None) -> list[Row]:
    builders: dict[type, Callable] = {
        Case: build,
        GradientCase: build_gradient,
        BeliefCase: build_belief,
        XLandCase: partial(build_xland, checkout=xland_checkout),
        HostCase: build_host,
    }
    programs, flops, num_steps = builders[type(case)](case)
    product = matrix_product()
    times = {
        who: summary(samples)
        for who, samples in interleave(programs | {_PRODUCT: product.program}, num_rounds=num_rounds).items()
    }
    rate = product.flops / times[_PRODUCT]["median"]
    at = {"case": name, "num_tasks": case.num_tasks, "size": case.size, "swept": SIZES[type(case)]}
    rows = [
        {
            **at,
            "contender": who,
            "flops": flops.get(who),
            "steps_per_second": num_steps[who] / times[who]["median"],
            "share_of_rollout": num_steps[who] / num_steps[ROLLOUT] * times[ROLLOUT]["median"] / times[who]["median"],
            "fraction_of_matrix_product_rate": flops[who] / times[who]["median"] / rate if who in flops else None,
            **times[who],
        }
        for who in programs
    ]
    if isinstance(case, BeliefCase):
        rows[0]["updates_per_second"] = case.size / times[TRAINING]["median"]
    return [*rows, {**at, "contender": _PRODUCT, "flops": product.flops, **times[_PRODUCT]}]


def build(case: Case) -> Built:
    """The programs, their floating-point operations, and the environment's steps in each."""
    family, core = case.family(), nn.gru(case.size)
    learner = jaxmeta.rl2(
        family,
        num_episodes=case.num_episodes,
        actor=core,
        critic=nn.gru(case.size // 2),
        outer=jaxmeta.PPO(num_minibatches=4),
    )
    return of_trials(family, learner, case.num_tasks, case.num_episodes)


def build_gradient(case: GradientCase) -> Built:
    """The same for ProMP with one inner step, which plays twice: before it and after it."""
    family = case.family()
    policy = rl.mlp_policy(family)
    learner = jaxmeta.promp(policy.init, policy.apply, family.environment, num_episodes=case.size)
    return of_gradients(family, learner, case.num_tasks, case.size, num_seeds=_NUM_SEEDS)


def build_belief(case: BeliefCase) -> Built:
    """The same for PEARL, which plays an episode under the prior, and one under the belief."""
    family = case.family()
    networks = jaxmeta.mlp_actor_critic(family, latent_size=5, hidden=(64, 64))
    encoder = jaxmeta.mlp_encoder(family, latent_size=5)
    replay = jaxmeta.Replay(num_gradient_steps=case.size, num_batch_tasks=16, batch_size=32)
    learner = jaxmeta.pearl(family, networks, encoder, num_train_tasks=100, replay=replay)
    state = learner.init(jax.random.key(0))
    keys, tasks = drawn(family, case.num_tasks)
    indexed = rl.IndexedTask(jnp.arange(case.num_tasks), tasks, 100)
    trial = rl.trial(family.environment, num_episodes=2)

    def play(agent: rl.Agent, keys: jax.Array, tasks: PyTree) -> PyTree:
        transitions = jax.vmap(lambda key, task: rl.rollout(key, trial, *agent, task)[1])(keys, tasks)
        return transitions.reward, transitions.extras

    def act(state: PyTree, *args) -> PyTree:
        assert learner.agent is not None
        return play(learner.agent(state.meta_params, is_greedy=True), *args)

    at_random = oracles.random_policy(family.environment.action_space)
    functions = {
        TRAINING: (learner.update, (jax.random.key(2), state, indexed)),
        ROLLOUT: (act, (state, keys, tasks)),
        ENVIRONMENT: (lambda *args: play(at_random, *args), (keys, tasks)),
    }
    return built(functions, dict.fromkeys(functions, case.num_tasks * trial.num_steps))


def _print_case(rows: Sequence[Row]) -> None:
    print(f"\n{rows[0]['case']}")
    print_table(
        ["", "steps/s", "of rollout", "of product", "ms", "min", "max"],
        [
            [
                row["contender"],
                row["steps_per_second"],
                f"{row['share_of_rollout']:.0%}",
                None if row["flops"] is None else f"{row['fraction_of_matrix_product_rate']:.0%}",
                *(1e3 * row[key] for key in ("median", "min", "max")),
            ]
            for row in rows
            if row["contender"] != _PRODUCT
        ],
    )
    if "updates_per_second" in rows[0]:
        print(f"{rows[0]['updates_per_second']:,.0f} gradient steps per second in training")


def draw(rows: Sequence[Row], device: str) -> "Figure":
    """Steps per second: a panel for each sweep of a family's cases, or one with its cases side by side."""
    of_family: dict[str, list[Row]] = {}
    for row in rows:
        if "steps_per_second" in row:
            of_family.setdefault(row["case"].split("-")[0], []).append(row)
    parts = [(name, swept) for name, of in of_family.items() for swept in _sweeps(of) or (None,)]
    num_columns = 2 if any(swept for _, swept in parts) else min(3, len(parts))
    title = f"{_learners(of_family)}, float32, on {device}"
    figure, axes = panels(math.ceil(len(parts) / num_columns), num_columns, title)
    drawn, left_over = axes.flat[: len(parts)], axes.flat[len(parts) :]
    for panel, (name, swept) in zip(drawn, parts, strict=True):
        panel.set(yscale="log", ylabel="steps per second", title=name)
        if swept is None:
            _draw_side_by_side(panel, of_family[name])
        else:
            _draw_sweep(panel, of_family[name], swept)
    for panel in left_over:
        panel.remove()
    legend_below(figure, drawn, num_columns=3)
    return figure


def _learners(names: Iterable[str]) -> str:
    """RL² (bandit, mdp), PEARL (pearl): who learns in these families."""
    of_learner: dict[str, list[str]] = {}
    for name in names:
        of_learner.setdefault(LEARNERS[name], []).append(name)
    return ", ".join(f"{learner} ({', '.join(of)})" for learner, of in of_learner.items())


def _sweeps(rows: Sequence[Row]) -> list[str]:
    """What a family's cases differ in while the other is as it mostly is: the number of tasks, the size, or both."""
    return [swept for swept in _OTHER if len({row[swept] for row in _along(rows, swept)}) > 1]


def _along(rows: Sequence[Row], swept: str) -> list[Row]:
    """The rows of a sweep, in its order."""
    values = [row[_OTHER[swept]] for row in rows]
    at = max(values, key=values.count)
    return sorted((row for row in rows if row[_OTHER[swept]] == at), key=lambda row: row[swept])


def _draw_sweep(panel: "Axes", rows: Sequence[Row], swept: str) -> None:
    chosen = _along(rows, swept)
    for who in CONTENDERS:
        points = [(row[swept], row["steps_per_second"]) for row in chosen if row["contender"] == who]
        if points:
            panel.plot(*zip(*points, strict=True), **words(who))
    ticks = sorted({row[swept] for row in chosen})
    panel.set(xscale="log", xlabel="tasks" if swept == "num_tasks" else rows[0]["swept"])
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.minorticks_off()


def _draw_side_by_side(panel: "Axes", rows: Sequence[Row]) -> None:
    cases = list(dict.fromkeys((row["num_tasks"], row["size"]) for row in rows))
    for who in CONTENDERS:
        of = [row for row in rows if row["contender"] == who]
        x = [cases.index((row["num_tasks"], row["size"])) for row in of]
        if of:
            panel.plot(x, [row["steps_per_second"] for row in of], **words(who) | {"linestyle": ""})
    panel.set(xlabel=f"tasks × {rows[0]['swept']}", xlim=(-0.5, len(cases) - 0.5))
    panel.set_xticks(range(len(cases)), [f"{num_tasks} × {size}" for num_tasks, size in cases])

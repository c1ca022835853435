"""What is said of committed results: sentences and tables of benchmarks/results, for the README and the site.

`python -m benchmarks.tables` writes the README's tables anew, after a result was measured again; the site's pages have
theirs from here whenever it is built (docs/hooks.py), for which reason nothing here needs JAX.
"""

import json
import operator
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


class Shown(NamedTuple):
    """Which figures of a recipe's result are said: of which metrics, after how much adaptation.

    Attributes:
      steps: for each metric the numbers of inner steps or episodes; none where there is one figure only.
      unit: of adaptation.
      beside: the references whose last figure of the first metric is said too, of every test.
      options: of a result beside the recipe's own, what its command has, where more settings follow from it.
    """

    steps: Mapping[str, Sequence[int]]
    unit: str = "step"
    beside: Sequence[str] = ()
    options: str = ""


SHOWN = {
    "maml-sinusoid": Shown({"mse": (1, 10)}),
    "maml-linear": Shown({"mse": (1,)}),
    "maml-quadratic": Shown({"mse": (1,)}),
    "fomaml-sinusoid": Shown({"mse": (1, 10)}),
    "meta-sgd-sinusoid": Shown({"mse": (1,)}),
    "reptile-sinusoid": Shown({"mse": (1, 10)}),
    "cavia-sinusoid": Shown({"mse": (1, 10)}),
    "anil-omniglot": Shown({"accuracy": (3,)}),
    "maml-omniglot": Shown({"accuracy": (3,)}),
    "maml-omniglot-5x5": Shown({"accuracy": (3,)}, options="--num-shots 5"),
    "maml-omniglot-20x1": Shown({"accuracy": (5,)}, options="--num-ways 20"),
    "maml++-omniglot": Shown({"accuracy": (3,)}),
    "imaml-omniglot": Shown({"accuracy": (10,)}),
    "maml-glyphs": Shown({"accuracy": (3,)}, beside=("nearest centroid in pixels",)),
    "protonet-glyphs": Shown({"accuracy": (1,)}, beside=("nearest centroid in pixels",)),
    "protonet-omniglot": Shown({"accuracy": (1,)}),
    "ridge-omniglot": Shown({"accuracy": (1,)}),
    "maml-folder": Shown({"accuracy": (3,)}),
    "maml-navigation": Shown({"return": (1, 3)}),
    "promp-navigation": Shown({"return": (1, 3)}),
    "promp-corners": Shown({"reached": (1, 3)}),
    "e-maml-bandit": Shown(
        {"return": (1,)}, beside=("without the term", "from scratch, rate x1", "from scratch, rate x10")
    ),
    "maml-bandit": Shown({"return": (1,)}),
    "maml-gridworld": Shown({"reached": (0, 1, 3)}),
    "maml-cartpole": Shown({"return": (0, 1)}),
    "rl2-bandit": Shown({"return": ()}),
    "rl2-bandit-50x10": Shown({"return": ()}, options="--num-arms 50"),
    "rl2-bandit-10x100": Shown({"return": ()}, options="--num-arms 10 --num-pulls 100"),
    "rl2-mdp": Shown({"total": (), "return": (0, 9)}, unit="episode"),
    "rl2-gridworld": Shown({"return": (0, 3)}, unit="episode"),
    "rl2-navigation": Shown({"return": (0, 1)}, unit="episode"),
    "rl2-navigation-scaled": Shown({"return": (0, 1)}, unit="episode", options="--scale 1000 --normalize"),
    "rl2-maze": Shown({"return": ()}),
    "rl2-xland": Shown({"return": (0, 7)}, unit="episode", beside=("random", "no memory")),
    "varibad-gridworld": Shown({"return": (0, 3)}, unit="episode"),
    "varibad-navigation": Shown({"return": (0, 1)}, unit="episode"),
    "pearl-navigation": Shown({"return": (0, 2, 3)}, unit="episode"),
    "pearl-point-robot": Shown({"return": (0, 5, 20), "solved": (20,)}, unit="episode"),
    "pearl-pendulum": Shown({"return": (0, 1, 3)}, unit="episode"),
    "pearl-cartpole": Shown({"return": (0, 1, 3)}, unit="episode"),
    "pearl-gridworld": Shown({"return": (0, 2, 8)}, unit="episode"),
    "pearl-cheetah-vel": Shown({"return": (0, 2)}, unit="episode"),
    "hyperparameters": Shown({"loss": (200,)}, beside=("one penalty, the best at test", "penalties of the prior")),
    "data-cleaning": Shown({"accuracy": (50,), "roc": (50,)}, beside=("the right half alone", "all alike")),
    "learned-loss": Shown({"mse": (50,)}, beside=("no auxiliary", "weights of 1")),
    "stream": Shown({"mse": (99,)}, beside=("frozen at the mean", "adapted at its best rate", "Kalman filter")),
    "stream-transformer": Shown({"loss": (15,)}, beside=("frozen", "adapted at its best rate", "Bayes-optimal")),
    "meta-gradient-rl": Shown({"return": (0, 500)}, beside=("as at first",)),
    "learned-optimizer": Shown({"loss": (100,)}, beside=("Adam at its best rate", "Adam along a cosine")),
}


def folder_of(name: str) -> Path:
    """The results of a recipe, which are in the folder cpu, or those of another device, `nvidia-h200/maml-omniglot`."""
    return RESULTS / name if "/" in name else RESULTS / "cpu" / name


@cache
def content(path: Path) -> Any:
    return json.loads(path.read_text())


def result_of(name: str) -> dict[str, Any]:
    """The committed result.json.

    Raises:
      KeyError: there is none; the message says which there are.
    """
    path = folder_of(name) / "result.json"
    if not path.is_file():
        there = sorted(str(found.parent.relative_to(RESULTS)) for found in RESULTS.glob("*/*/result.json"))
        raise KeyError(f"no result {name!r}: there are {', '.join(there)}".replace("cpu/", ""))
    return content(path)


def seeds_of(name: str) -> list[dict[str, Any]]:
    """The committed result.json, and those of further seeds, result-seed1.json and so on.

    >>> [result["seed"] for result in seeds_of("rl2-mdp")]
    [0, 1, 2]
    """
    return [result_of(name), *map(content, sorted(folder_of(name).glob("result-seed*.json")))]


def measured(name: str) -> str:
    """A result in a sentence: means over test tasks with 95% intervals; of several seeds the mean, with that of seeds.

    >>> measured("meta-sgd-sinusoid")
    'mse 0.3868 ± 0.0464 after 1 step'
    """
    results = seeds_of(name)
    shown = SHOWN.get(name, SHOWN[results[0]["recipe"]])
    figures = [_of_test(results, shown)]
    for other in results[0].get("other_tests", {}):
        figures.append(f"on {other}: {_of_test([result['other_tests'][other] for result in results], shown)}")
    return "; ".join(figures)


def _of_test(results: Sequence[Mapping[str, Any]], shown: Shown) -> str:
    """What is shown of one test, by seed, and in brackets the references beside it, of the first seed."""
    metrics = [result["metrics"] for result in results]
    figures = [figure for metric, steps in shown.steps.items() for figure in _figures(metrics, metric, steps, shown)]
    first = next(iter(shown.steps))
    beside = [f"{name} {results[0]['references'][name][first]['mean'][-1]:.4f}" for name in shown.beside]
    return "; ".join(figures) + (f" ({', '.join(beside)})" if beside else "")


_STUDENT_T = {2: 12.706205, 3: 4.302653}  # of so many seeds, two sides, 95%


def over_seeds(means: Sequence[float], ci95: Sequence[float]) -> tuple[float, float]:
    """Of one seed its mean over test tasks and the interval of that; of several their mean, and the interval of that:
    t s / √n.

    >>> over_seeds([0.5], [0.1]), [round(number, 2) for number in over_seeds([1.0, 2.0, 3.0], [0.1, 0.1, 0.1])]
    ((0.5, 0.1), [2.0, 2.48])
    """
    if len(means) == 1:
        return means[0], ci95[0]
    return statistics.mean(means), _STUDENT_T[len(means)] * statistics.stdev(means) / len(means) ** 0.5


def _figures(seeds: Sequence[Mapping[str, Any]], metric: str, steps: Sequence[int], shown: Shown) -> Iterable[str]:
    """`metric mean ± ci95 after 3 steps`, and of the same metric no name again."""
    by_seed = (zip(*(metrics[metric][statistic] for metrics in seeds), strict=True) for statistic in ("mean", "ci95"))
    mean, ci95 = zip(*map(over_seeds, *by_seed), strict=True)
    if not steps:
        if len(mean) > 1:
            raise ValueError(f"{metric} was measured {len(mean)} times: say in SHOWN after how many {shown.unit}s")
        yield f"{metric} {mean[0]:.4f} ± {ci95[0]:.4f}"
    for i, step in enumerate(steps):
        name = "" if i else f"{metric} "
        yield f"{name}{mean[step]:.4f} ± {ci95[step]:.4f} after {step} {shown.unit}{'' if step == 1 else 's'}"


def command(name: str) -> str:
    """What measures a result again: the recipe, and of a folder beside the recipe's own what is different there.

    >>> command("maml-sinusoid"), command("rl2-bandit-5x100")
    ('jaxmeta train maml-sinusoid', 'jaxmeta train rl2-bandit --num-pulls 100')
    """
    recipe = result_of(name)["recipe"]
    if name in SHOWN and SHOWN[name].options:
        return f"jaxmeta train {recipe} {SHOWN[name].options}"
    own, here = folder_of(recipe) / "config.json", folder_of(name) / "config.json"
    options = ""
    if own.parent.parent == here.parent.parent and own != here:  # on another device a recipe has its own defaults
        there = dict(_flat(content(own)))
        options = "".join(
            f" --{option.replace('_', '-')} {value}"
            for option, value in _flat(content(here))
            if there.get(option) != value
        )
    return f"jaxmeta train {recipe}{options}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@cache
def row_of(recipe: str) -> tuple[str, str]:
    """What a recipe is, and what it has to reach, as the README's table has them from jaxmeta.recipes."""
    (row,) = re.findall(rf"^\| `{re.escape(recipe)}` \|(.*)\|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    what, to_reach, *_ = (cell.strip() for cell in row.split("|"))
    return what, to_reach


def recipe(name: str) -> str:
    """A table of one result: what, to reach, measured, time, command."""
    result = result_of(name)
    (what, to_reach), again = row_of(result["recipe"]), command(name)
    device = re.sub(r"^cpu \((.*) (cores?)\)$", r"\1 CPU \2", result["device"]).removeprefix("1 x ")
    num_seeds, tasks = len(seeds_of(name)), f"{result['num_tasks']:,} test tasks"
    means = f"means of {tasks}, 95% interval, seed {result['seed']}"
    if num_seeds > 1:
        means = f"mean of {num_seeds} seeds, 95% interval of that; {tasks} each"
    figure = f"{measured(name)} ({means})"
    lines = {
        "what": what,
        "to reach": to_reach,
        "measured": figure,
        "time": f"{result['seconds']:,.0f} s on {device}",
        "command": f"`{again}`",
    }
    if " --" in again:
        del lines["to reach"]  # which is the recipe's as it is
    return _markdown(["recipe", f"`{result['recipe']}`"], list(lines.items()))


def throughput(device: str, cases: Sequence[str] = ()) -> str:
    """The table of milliseconds of one exact meta-step, medians; a contender that was not timed has a dash.

    Args:
      device: a folder of benchmarks/results.
      cases: those that have a line; all if empty.

    Raises:
      KeyError: the device has no throughput.json; the message says which have.
    """
    path = RESULTS / device / "throughput.json"
    if not path.is_file():
        there = sorted(found.parent.name for found in RESULTS.glob("*/throughput.json"))
        raise KeyError(f"no throughput of {device!r}: there is that of {', '.join(there)}")
    timed = {(row["case"], row["contender"]): row for row in content(path)["rows"] if "median" in row}
    all_timed = dict.fromkeys(who for _, who in timed if who != "matrix product")
    contenders = sorted(all_timed, key=lambda who: not who.startswith("jaxmeta"))  # ours first, else as measured
    median = lambda case, who: _milliseconds(timed[case, who]["median"]) if (case, who) in timed else "–"
    lines = [
        [
            f"`{case}`",
            *(median(case, who) for who in contenders),
            f"{100 * timed[case, 'jaxmeta']['fraction_of_matrix_product_rate']:.2g}%",
        ]
        for case in dict.fromkeys(case for case, _ in timed)
        if not cases or case in cases
    ]
    names = [who.removeprefix("jaxmeta, ") for who in contenders]
    return _markdown(["case, tasks, K", *names, "of the product"], lines)


def scaling(device: str) -> str:
    """The table of what devices tell each other, and what is left of the speed of as many that do not."""
    lines = [
        [
            f"`{row['case']}`",
            str(row["num_tasks"]),
            str(row["num_all_reduces"]),
            f"{row['bytes_reduced']:,}",
            f"{row['efficiency_of_communication']:.2f}",
        ]
        for row in content(RESULTS / device / "scaling.json")["rows"]
        if "seconds" in row
    ]
    return _markdown(["case, devices", "tasks", "all-reduces", "bytes", "efficiency"], lines)


def predicted(device: str) -> str:
    """The table of what is predicted for accelerators: the efficiency of weak scaling."""
    rows = [row for row in content(RESULTS / device / "scaling.json")["rows"] if "predicted" in row]
    numbers = list(rows[0]["predicted"])
    lines = [
        [
            f"`{row['case'].removesuffix('-predicted')}`",
            f"{row['bytes_reduced']:,}",
            _milliseconds(row["seconds_of_one"]),
            *(f"{row['predicted'][number]['efficiency']:.2f}" for number in numbers),
        ]
        for row in rows
    ]
    return _markdown(["case, tasks of each, K", "bytes", "ms of one", *numbers], lines)


def longest_loop(device: str) -> str:
    """The table of how many inner steps fit in a budget; where as many as were tried do, it says so."""
    rows = {(row["case"], row["method"]): row for row in content(RESULTS / device / "longest_loop.json")["rows"]}
    networks, methods = (list(dict.fromkeys(key[i] for key in rows)) for i in (0, 1))
    lines = [[f"`{network}`", *(_steps(rows.get((network, method))) for method in methods)] for network in networks]
    return _markdown(["network", *methods], lines)


def _steps(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{'≥ ' if row['num_steps'] == row['most_steps'] else ''}{row['num_steps']:,}"


def _milliseconds(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def _markdown(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join([_line(heading), f"|{'---|' * len(heading)}", *map(_line, lines)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


_NUMBER = r"[-+0-9.e*]+"


def figure(file: str, path: str, form: str) -> str:
    """A number of a JSON file of benchmarks/results, for prose.

    `path` goes down by names and indices, and into a list by what its entry has: `rows[case=conv4-t8-k1 &
    contender=jaxmeta].median`. Several paths, and numbers, may be joined by + * and /, taken from left to right: `...
    * 1000`, `... / 2**20`. `form` is a format specification.

    >>> figure("cpu/maml-sinusoid/result.json", "metrics.mse.mean[1]", ".3f")
    '0.627'
    >>> figure("cpu/maml-sinusoid/result.json", "metrics.mse.mean[1] * 1000", ",.0f")
    '627'

    Raises:
      KeyError: there is no such file or no such entry, or there are several.
    """
    if not (RESULTS / file).is_file():
        raise KeyError(f"no file benchmarks/results/{file}")
    whole = content(RESULTS / file)
    first, *others = re.split(r" ([+*/]) ", path)
    operand = lambda text: _number(text) if re.fullmatch(_NUMBER, text) else _entry(whole, text)
    value = operand(first)
    for operation, other in zip(others[::2], others[1::2], strict=True):
        value = {"+": operator.add, "*": operator.mul, "/": operator.truediv}[operation](value, operand(other))
    return format(value, form)


def _number(text: str) -> float:
    base, _, exponent = text.partition("**")
    return float(base) ** float(exponent or 1)


def _entry(value: Any, path: str) -> Any:
    for name, inside in re.findall(r"([^.\[\]]+)|\[([^\]]*)\]", path):
        try:
            value = _chosen(value, inside) if inside else value[name]
        except (KeyError, IndexError, TypeError) as error:
            there = f", there are {', '.join(value)}" if isinstance(value, dict) else ""
            raise KeyError(f"nothing at {inside or name!r} of {path!r}{there}: {error}") from error
    return value


def _chosen(rows: Sequence[Any], which: str) -> Any:
    if re.fullmatch(r"-?[0-9]+", which):
        return rows[int(which)]
    conditions = [tuple(part.strip() for part in condition.split("=")) for condition in which.split("&")]
    found = [row for row in rows if all(str(row.get(key)) == value for key, value in conditions)]
    if len(found) != 1:
        raise KeyError(f"{len(found)} entries have {which}")
    return found[0]


def readme(text: str, described: Mapping[str, Any]) -> str:
    """A README with its tables as the results have them: each recipe's row and each case's times that are there.

    The row of a recipe without a result goes; a recipe's first row is put there by hand, where it belongs.

    Args:
      text: the README.
      described: jaxmeta.recipes.RECIPES.
    """
    lines = []
    for line in text.splitlines():
        name = re.match(r"\| `([^`]+)` \|", line)
        if not name or name[1] not in described:
            lines.append(line)
        elif (folder_of(name[1]) / "result.json").is_file():
            lines.append(_row(name[1], described[name[1]]))
    marked = r"(<!-- throughput (\S+) -->\n)(.*?)(\n<!-- /throughput -->)"
    cases_of = lambda table: re.findall(r"^\| `(\S+)` \|", table, flags=re.MULTILINE)
    renewed = lambda found: f"{found[1]}{throughput(found[2], cases_of(found[3]))}{found[4]}"
    return re.sub(marked, renewed, "\n".join(lines) + "\n", flags=re.DOTALL)


def _row(name: str, recipe: Any) -> str:
    return _line(
        [f"`{name}`", recipe.description, recipe.figure, measured(name), f"{result_of(name)['seconds']:.0f} s"]
    )


def main() -> None:
    from jaxmeta.recipes import RECIPES

    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(), RECIPES))


if __name__ == "__main__":
    main()

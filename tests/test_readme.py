"""The README is what a stranger types: its example runs, its commands and files exist."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats

import jaxmeta
from jaxmeta.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"


EXAMPLE, RL_EXAMPLE = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_runs_and_learns(capsys):
    names = {}
    exec(compile(EXAMPLE, "README.md", "exec"), names)
    assert "600 test tasks" in capsys.readouterr().out
    accuracy = jaxmeta.evaluate(
        jax.random.key(1), names["learner"], names["tasks"], names["state"].meta_params
    ).metrics["accuracy"]["mean"]
    assert accuracy[0] < 0.3 < 0.5 < accuracy[3]  # chance is 0.2
    assert jax.tree.map(jax.numpy.shape, names["params"]) == {"w": (64, 5), "b": (5,)}


def test_the_example_of_reinforcement_learning_runs_and_learns():
    names = {}  # as pasted, alone
    exec(compile(RL_EXAMPLE, "README.md", "exec"), names)
    mean = names["report"].metrics["return"]["mean"]
    assert mean[0] < 6 and mean[1] > 7  # 5 by chance, 8.3 for who is told the best arm
    assert names["played"].reward.shape == (10,) and names["adapted"].transitions.reward.shape == (1, 10, 20)


MEASURED = [name for name in RECIPES if (RESULTS / "cpu" / name / "result.json").is_file()]


def test_a_recipe_is_in_the_tables_if_it_has_a_committed_result_and_only_then():
    """The others are in `jaxmeta list`, as the README says."""
    rows = [name for name in re.findall(r"^\| `([^`]+)` \|", README, flags=re.MULTILINE) if name in RECIPES]
    assert sorted(rows) == sorted(MEASURED)
    assert len(MEASURED) == len(RECIPES) or "no row; `jaxmeta list` has all" in README


def test_every_file_that_is_named_exists():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"^(jaxmeta/\S+|tests/\S+)  ", README, flags=re.MULTILINE):
        assert (ROOT / path).exists(), path


def over_seeds(metrics, index):
    """The mean of seeds and half the width of its interval, by SciPy; of one seed, what its report says."""
    means = [metric["mean"][index] for metric in metrics]
    if len(means) == 1:
        return means[0], metrics[0]["ci95"][index]
    return np.mean(means), scipy.stats.t.ppf(0.975, len(means) - 1) * scipy.stats.sem(means)


def figures_are_those_of(tests, text):
    """`metric mean ± ci95 after 3 steps`, the metric for what follows too, and `(reference mean)`."""
    figures = re.findall(r"(?:(\w+) )?(-?[0-9.]+) ± ([0-9.]+)(?: after ([0-9]+) (?:step|episode)s?)?", text)
    assert figures and text.count("±") == len(figures)
    metrics = []
    for name_of_metric, mean, ci95, step in figures:
        metrics = [test["metrics"][name_of_metric] for test in tests] if name_of_metric else metrics
        assert step or len(metrics[0]["mean"]) == 1
        assert (float(mean), float(ci95)) == pytest.approx(over_seeds(metrics, int(step or 0)), rel=1e-6, abs=5.1e-5)
    for reference, mean in re.findall(r"\((nearest [^(]+) ([0-9.]+)\)", text):
        assert mean == f"{tests[0]['references'][reference][figures[0][0]]['mean'][-1]:.4f}"


@pytest.mark.parametrize("name", MEASURED)
def test_the_figures_in_the_table_are_those_of_the_results(name):
    """`metric mean ± ci95 after 3 steps`. The metric stays for what follows."""
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
    *_, measured, seconds, _ = (cell.strip() for cell in row.split("|"))
    assert RECIPES[name].figure in row
    folder = RESULTS / "cpu" / name
    seeds = [json.loads(path.read_text()) for path in (folder / "result.json", *folder.glob("result-seed*.json"))]
    assert sorted(seed["seed"] for seed in seeds) in ([0], [0, 1, 2])
    result = seeds[0]
    assert result["recipe"] == name and seconds == f"{result['seconds']:.0f} s"
    own, *others = re.split(r"; on (?=[^;]*: )", measured)
    figures_are_those_of(seeds, own)
    for other in others:
        test, text = other.split(": ", 1)
        figures_are_those_of([seed["other_tests"][test] for seed in seeds], text)
    references = result.get("references", {})
    if "random" in references:  # a row below chance is no recipe
        assert result["metrics"]["return"]["mean"][-1] >= references["random"]["return"]["mean"][-1]


def test_the_times_in_the_table_are_those_of_the_results():
    """Milliseconds, medians, three digits or more; a contender that was not timed has a dash. Some of the cases."""
    digits = lambda ms: f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"
    rows = json.loads((RESULTS / "cpu" / "throughput.json").read_text())["rows"]
    (table,) = re.findall(r"<!-- throughput cpu -->\n(.*?)<!-- /throughput -->", README, flags=re.DOTALL)
    heading, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    ours = ("as fit", "over devices")
    contenders = [f"jaxmeta, {name}" if name in ours else name for name in heading[1:-1]]
    assert len(lines) > 5
    for line in lines:
        timed = {row["contender"]: row for row in rows if f"`{row['case']}`" == line[0] and "median" in row}
        median = lambda name, timed=timed: digits(1e3 * timed[name]["median"]) if name in timed else "–"
        assert line[1:-1] == [median(name) for name in contenders]
        assert line[-1] == f"{100 * timed['jaxmeta']['fraction_of_matrix_product_rate']:.2g}%"


def test_no_measured_figure_stands_outside_the_tables():
    """Where no test would hold it. Versions and arguments are in code."""
    prose = re.sub(r"```.*?```|`[^`]*`|^\|.*?$|^    .*?$|\]\([^)]*\)", "", README, flags=re.DOTALL | re.MULTILINE)
    figures = re.findall(r"\d*\.\d+\S*|±.*", prose)
    assert figures == ["3.11", "2.0."]  # Python's version, and the licence's

"""Each benchmark runs on its smallest setting, and leaves JSON that says all and a picture."""

import itertools
import json
import sys

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    bilevel,
    compile_time,
    cores,
    estimators,
    gradient_error,
    longest_loop,
    memory,
    rl,
    rl2_table,
    scaling,
    shared,
    throughput,
)
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.shared import report, xland
from benchmarks.shared.options import UnknownCase, choose
from benchmarks.shared.pictures import style
from benchmarks.shared.report import write_report
from benchmarks.shared.strategies import EXACT
from benchmarks.tables import RESULTS


def quick(tmp_path, name, *arguments):
    path = tmp_path / f"{name}.json"
    assert main([name, "--quick", "--json", str(path), *arguments]) == 0
    report = json.loads(path.read_text())
    assert report["benchmark"] == name and report["versions"]["jax"] and report["device"]["kind"]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return report["rows"]


@pytest.mark.slow  # who competes, and how, is in test_contenders.py
def test_throughput_without_pytorch_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.shared.peers", None)  # as if PyTorch were not installed
    monkeypatch.delattr(shared, "peers", raising=False)
    rows = quick(tmp_path, "throughput", "--cases", "sinusoid-t25-k1")
    assert "pip install -e '.[peers]'" in capsys.readouterr().out
    *timed, product = (row for row in rows if "skipped" not in row)
    assert [row["contender"] for row in timed] == ["jaxmeta", "jaxmeta, as fit", "plain JAX"]
    assert product["contender"] == "matrix product"
    assert [row["skipped"] for row in rows if "skipped" in row] == ["2 tasks and 1 devices: nothing to share"]
    for row in timed:
        assert len(row["samples"]) == 3 and row["min"] <= row["median"] <= row["max"]
        assert row["tasks_per_second"] > 0 and 0 < row["fraction_of_matrix_product_rate"] < 1


def compete_by(monkeypatch, compete):
    """Throughput without peers, prints and pictures."""
    monkeypatch.setattr(throughput, "compete", compete)
    monkeypatch.setattr(throughput, "_peers", lambda precision: [])
    monkeypatch.setattr(throughput, "_print_case", lambda rows: None)
    monkeypatch.setattr(throughput, "draw", lambda rows, device: _Figure())


def test_throughput_keeps_the_cases_before_one_that_fails(tmp_path, monkeypatch):
    path = tmp_path / "throughput.json"

    def second_fails(name, *_):
        if name == "sinusoid-t25-k5":
            raise RuntimeError("killed")
        return [{"case": name}]

    compete_by(monkeypatch, second_fails)
    with pytest.raises(RuntimeError, match="killed"):
        main(["throughput", "--quick", "--cases", "sinusoid", "--json", str(path)])
    assert json.loads(path.read_text())["rows"] == [{"case": "sinusoid-t25-k1"}]


def test_throughput_leaves_out_who_is_named(tmp_path, monkeypatch, capsys):
    competed = []

    def names_of(name, case, contenders, *_):
        competed.extend(contender.name for contender in contenders)
        return [{"case": name}]

    compete_by(monkeypatch, names_of)
    arguments = ["throughput", "--cases", "sinusoid-t25-k1", "--json", str(tmp_path / "throughput.json"), "--without"]
    assert main([*arguments, "plain JAX,jaxmeta*devices"]) == 0
    assert competed == ["jaxmeta", "jaxmeta, as fit"]
    assert main([*arguments, "plain-JAX"]) == 2
    assert "did you mean plain JAX?" in capsys.readouterr().err


DRAWN_TOGETHER = {
    "memory": [*(memory.STRATEGIES | memory.LEARNS_RATES)],
    "longest_loop": [*longest_loop.STRATEGIES, *longest_loop.PEERS],
    "estimators": [*estimators.ESTIMATORS],
    "rl": [*rl.CONTENDERS],
    "bilevel": [*bilevel.SOLVERS, "TorchOpt"],
    "rl2_table": ["RL²", "paper", *rl2_table._STRATEGIES],
    "cores": [*cores.contenders(cores._TINY)],
}


def names_drawn(path):
    rows = json.loads(path.read_text())["rows"]
    keys = {"sample_efficiency": "case", "cores": "case", "memory": "strategy", "bilevel": "solver"}
    keys |= dict.fromkeys(("estimators", "exploration"), "estimator")
    key = keys.get(path.stem) or ("method" if "method" in rows[0] else "contender")
    return [name for name in dict.fromkeys(row[key] for row in rows) if name != "matrix product"]  # a yardstick


OF_STYLE = [path for path in RESULTS.glob("*/*.json") if path.stem != "recomputing"]  # whose two bars have a legend


@pytest.mark.parametrize("name", [*DRAWN_TOGETHER, *OF_STYLE])
def test_what_is_drawn_together_is_told_apart_with_and_without_colours(name):
    names = DRAWN_TOGETHER[name] if isinstance(name, str) else names_drawn(name)
    for one, other in itertools.combinations(names, 2):
        a, b = style(one), style(other)
        assert (a.marker, a.line) != (b.marker, b.line), (one, other)
        assert a.color != b.color or other == f"{one}, baseline", (one, other)


def test_a_method_has_the_same_colour_in_all_benchmarks():
    assert style("jaxmeta, auto") == style("auto") == style("jaxmeta") != style("forward mode")
    assert style("jaxmeta, mixed mode") == style("mixed mode")


def test_the_driver_and_clocks_of_a_gpu_are_recorded_where_nvidia_smi_tells_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report._nvidia() == {}
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '580.1, 1980 MHz, 3201 MHz'\necho '580.1, 1 MHz, 2 MHz'\n")
    tool.chmod(0o755)
    told = {"driver_version": "580.1", "clocks.max.sm": "1980 MHz", "clocks.max.memory": "3201 MHz"}
    assert report._nvidia() == told
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert report._nvidia() == {}


def test_bilevel_solvers_go_to_the_minimum_that_is_known(tmp_path, monkeypatch):
    """Of losses that numpy's own gradient descent on the closed form reaches too."""
    kept = {name: bilevel.SOLVERS[name] for name in ("exact", "SOBA")}
    monkeypatch.setattr(bilevel, "SOLVERS", kept)
    monkeypatch.setattr(bilevel, "_peer", lambda *_: None)
    rows = {row["solver"]: row["suboptimality"] for row in quick(tmp_path, "bilevel")}
    curvature, slope, least = (problem := bilevel.quadratic(5)).value()
    eta, expected = np.ones(5), []
    for _ in range(bilevel.NUM_UNITS):
        expected.append(eta @ curvature @ eta / 2 + slope @ eta - least)
        eta = eta - bilevel.OUTER_RATE * (curvature @ eta + slope)
    np.testing.assert_allclose(rows["exact"], expected, rtol=0.02)  # 50 steps of .9 are not the solution yet
    assert rows["SOBA"][0] == expected[0] and 0 < rows["SOBA"][-1] < 0.2 * expected[0] and len(problem.a) == 5


@pytest.mark.parametrize(
    "strategies", [("exact", "first order"), pytest.param(tuple(memory.STRATEGIES), marks=pytest.mark.slow)]
)
def test_memory(tmp_path, monkeypatch, strategies):
    monkeypatch.setitem(memory.QUICK_MODELS, "tiny-mlp", tiny(strategies))
    rows = quick(tmp_path, "memory")
    size = {(row["strategy"], row["num_steps"]): row["temporary_bytes"] for row in rows if row["sweep"] == "num_steps"}
    assert {strategy for strategy, _ in size} == set(strategies)
    assert size["exact", 4] > size["exact", 1] > 0
    assert size["first order", 4] < size["exact", 4]
    assert all(len(row["samples"]) == 2 for row in rows)


def test_memory_times_a_program_once_and_auto_against_the_fastest():
    model = tiny(["auto", "exact", "mixed mode", "first order"])
    rows = {row["strategy"]: row for row in memory.measure("m", model, model.at, memory.Options(quick=True))}
    assert rows["auto"]["samples"] == rows["exact"]["samples"] != rows["mixed mode"]["samples"]
    pairs = zip(rows["auto"]["samples"], rows["mixed mode"]["samples"], strict=True)
    assert rows["auto"]["relative_to_fastest"] == max(1.0, np.median([a / b for a, b in pairs]))


def test_memory_compiles_but_does_not_run_what_is_too_large():
    model = tiny(["exact"])
    (row,) = memory.measure("m", model, model.at, memory.Options(max_bytes=0))
    assert "median" not in row and row["temporary_bytes"] > 0


def tiny(strategies):
    model = memory.QUICK_MODELS["tiny-mlp"]
    return model._replace(strategies={name: memory.STRATEGIES[name] for name in strategies})


@pytest.mark.slow
def test_a_process_grows_by_at_least_what_the_program_says():
    at = {"size": 256, "num_tasks": 16, "num_steps": 20}
    compiled, _ = memory.compile_step(memory.MODELS["few-shot-mlp"], "exact", at)
    rows = [{"case": "few-shot-mlp", "strategy": "exact", "sweep": "num_steps", "median": 1.0, **at}]
    memory._add_process_peaks("few-shot-mlp", memory.MODELS["few-shot-mlp"], rows)
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary <= rows[0]["process_bytes"] < 2 * temporary  # it holds the buffers, and outputs and workspaces


@pytest.mark.parametrize(
    ("bytes_of", "most"),
    [(lambda k: 100 + 7 * k, 128), (lambda k: 50 + 90 * k**0.5, 111), (lambda k: 10 + k * k / 50, 222)],
)
def test_the_longest_loop_that_fits_is_found(bytes_of, most):
    """To 2%, in a few tries, however memory grows."""
    asked = []
    steps, size = longest_loop.longest(lambda k: asked.append(k) or bytes_of(k), 1000, 10_000)
    assert 0.98 * most <= steps <= most and size == bytes_of(steps) and len(asked) < 10


def test_a_loop_that_never_fits_and_one_that_always_does():
    assert longest_loop.longest(lambda k: 2000, 1000, 10_000) == (0, 2000)
    assert longest_loop.longest(lambda k: 10, 1000, 10_000) == (10_000, 10)


def test_a_longest_loop_that_is_stopped_keeps_what_was_found(tmp_path, monkeypatch):
    def bytes_of(network, strategy, k):
        if strategy == "mixed mode":
            raise KeyboardInterrupt
        return k * 2**20

    monkeypatch.setattr(longest_loop, "temporary_bytes", bytes_of)
    with pytest.raises(KeyboardInterrupt):
        longest_loop.run(longest_loop.Options(quick=True), tmp_path / "found.json")
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["exact", "exact, segments"]


def test_longest_loop(tmp_path, monkeypatch, capsys):
    kept = {"exact": 10, "exact, segments": 1, "mixed mode": 5, "mixed mode, segments": 0}
    monkeypatch.setattr(longest_loop, "temporary_bytes", lambda network, strategy, k: kept[strategy] * k * 2**20)
    rows = {row["method"]: row for row in quick(tmp_path, "longest_loop")}
    assert (
        rows["exact"]["num_steps"] in (101, 102) and rows["exact"]["bytes"] == rows["exact"]["num_steps"] * 10 * 2**20
    )
    assert rows["mixed mode, segments"]["num_steps"] == rows["mixed mode, segments"]["most_steps"]
    assert "≥ 2,000" in capsys.readouterr().out


@pytest.mark.slow
def test_longer_loops_take_more_and_segments_less():
    bytes_of = lambda strategy, k: longest_loop.temporary_bytes("sinusoid", strategy, k)
    assert bytes_of("exact", 100) > bytes_of("exact", 10) > 0
    assert bytes_of("exact, segments", 100) < bytes_of("exact", 100) / 4


@pytest.mark.slow
def test_recomputing_compiles_two_programs_for_each_number_of_devices(tmp_path):
    """Of one device, as there is here; what recomputes is another program, and holds something else."""
    kept, recomputed = quick(tmp_path, "recomputing")
    assert (kept["recomputes"], recomputed["recomputes"], kept["num_devices"]) == (False, True, 1)
    assert 0 < kept["temporary_bytes"] != recomputed["temporary_bytes"] > 0


@pytest.mark.slow
def test_gradient_error(tmp_path):
    rows = quick(tmp_path, "gradient_error")
    error = {row["method"]: row["relative_error"]["median"] for row in rows}
    assert 1e-3 < error["truncated(1)"] == error["truncated(K/2)"] < error["first order"]  # K = 2
    assert 1e-9 < error["float32"] < 1e-4 < error["bfloat16 parameters"] < 0.2
    assert all(len(row["relative_error"]["samples"]) == 2 for row in rows)
    assert all(-1 <= row["cosine"]["min"] <= row["cosine"]["max"] <= 1 + 1e-12 for row in rows)


def test_exact_strategies_have_no_error(x64):
    case = gradient_error.CASES["sinusoid"](2, 4)
    names = ("exact", "exact, segments", "mixed mode, segments, gradients saved")
    float64 = gradient_error.FLOAT64
    expected, *others = (gradient_error.gradients(case, EXACT[name](4), float64, 1, 0.0)[0] for name in names)
    assert all(gradient_error.relative_distance(other, expected) < 1e-12 for other in others)


def test_sine_and_cosine_of_known_vectors():
    a, b = np.array([3.0, 0.0]), np.array([1.0, 1.0])
    assert gradient_error.cosine(a, b) == pytest.approx(np.sqrt(0.5))
    assert gradient_error.sine(a, b) == pytest.approx(np.sqrt(0.5))
    assert gradient_error.relative_distance(a, b) == pytest.approx(np.sqrt(5 / 2))


@pytest.mark.slow
@pytest.mark.slow
def test_first_step(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")  # in the processes that it starts
    rows = {row["contender"]: row["seconds"] for row in quick(tmp_path, "first_step")}
    assert 0 < rows["jaxmeta, warm"]["median"] < rows["jaxmeta, cold"]["median"]


@pytest.mark.slow  # compiling is what it measures
def test_compile_time(tmp_path):
    rows = quick(tmp_path, "compile_time")
    assert {row["method"] for row in rows} == set(compile_time.METHODS)
    assert all(row[part]["samples"][0] > 0 for row in rows for part in ("trace", "compile"))


def test_a_result_goes_to_the_folder_of_its_device_and_a_quick_one_elsewhere():
    assert report.default_path("throughput", quick=False) == RESULTS / "cpu" / "throughput.json"
    assert RESULTS not in report.default_path("throughput", quick=True).absolute().parents


def test_rows_of_other_cases_are_kept_if_the_machine_is_the_same(tmp_path):
    path = tmp_path / "report.json"
    draw = lambda rows, device: _Figure()
    write_report(path, "throughput", [{"case": "a", "x": 1}, {"case": "b", "x": 1}], draw)
    write_report(path, "throughput", [{"case": "c", "x": 2}, {"case": "a", "x": 2}], draw)
    expected = [{"case": "a", "x": 2}, {"case": "b", "x": 1}, {"case": "c", "x": 2}]
    assert json.loads(path.read_text())["rows"] == expected
    old = json.loads(path.read_text())
    old["versions"]["jax"] = "0.0"
    path.write_text(json.dumps(old))
    write_report(path, "throughput", [{"case": "b", "x": 3}], draw)
    assert json.loads(path.read_text())["rows"] == [{"case": "b", "x": 3}]


def test_what_is_not_finite_becomes_null(tmp_path):
    path = tmp_path / "report.json"
    write_report(path, "throughput", [{"case": "a", "x": [float("nan"), 1.0]}], lambda rows, device: _Figure())
    assert json.loads(path.read_text())["rows"] == [{"case": "a", "x": [None, 1.0]}]


class _Figure:
    def savefig(self, path):
        path.touch()


def test_the_command_lists_and_corrects(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in BENCHMARKS)
    assert main(["troughput"]) == 2
    assert "did you mean throughput?" in capsys.readouterr().err
    assert main(["memory", "--cases", "few-shot-mpl"]) == 2
    assert "did you mean few-shot-mlp?" in capsys.readouterr().err


def test_cases_are_chosen_by_name_family_or_star():
    table = dict.fromkeys(["conv4-t8-k1", "conv4-t8-k5", "conv4-20way-t4-k1", "mlp-t8-k1"])
    assert list(choose("conv4-t8", table)) == ["conv4-t8-k1", "conv4-t8-k5"]
    assert list(choose("*-k5,mlp", table)) == ["conv4-t8-k5", "mlp-t8-k1"]
    with pytest.raises(UnknownCase, match="did you mean mlp-t8-k1"):
        choose("conv4,mlp-t8-k2", table)


@pytest.mark.slow  # flax compiles each layer
def test_the_encoder_beside_xlands_loop_is_embeddings_and_three_convolutions():
    """In fewer operations: against flax's convolutions of the embeddings, as theirs are."""
    core, view_size = xland.conv_gru(5, 3), 5
    params = core.init(jax.random.key(0), 2 * view_size**2 + 13)
    keys = jax.random.split(jax.random.key(1), 3)
    tile, color = (jax.random.randint(key, (2, 5, 5), 0, n) for key, n in zip(keys[:2], (13, 12), strict=True))
    others = jax.random.normal(keys[2], (2, 13))  # the way it faces, its action, and three numbers
    x = jnp.concatenate([tile.reshape(2, -1), color.reshape(2, -1), others], axis=1)
    seen = jnp.concatenate([params["tile"][tile], params["color"][color]], axis=-1)
    for of in params["convolutions"]:
        convolution = flax.linen.Conv(of["bias"].size, (2, 2), padding="VALID")
        seen = flax.linen.relu(convolution.apply({"params": of}, seen))
    expected = [seen.reshape(2, -1), others[:, :4] @ params["facing"], others[:, 4:10] @ params["action"]]
    expected = [*expected, others[:, 10:]]
    np.testing.assert_allclose(xland.encoded(params, x, 5), np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_rl(tmp_path):
    rows = quick(tmp_path, "rl")
    of = lambda name: {row["contender"]: row for row in rows if row["case"].startswith(name)}
    assert list(of("tiny-")) == ["training", "rollout", "environment alone", "matrix product"]
    for name, differentiated in {"tiny-": 3, "tinygradient-": 1, "tinybelief-": 1}.items():
        training, rollout, environment = (of(name)[who] for who in ("training", "rollout", "environment alone"))
        assert environment["flops"] == 0 < rollout["flops"] < training["flops"] / differentiated
        assert training["steps_per_second"] < rollout["steps_per_second"] and 0 < training["share_of_rollout"] < 1
    seeds = of("tinygradient-")["training, 4 seeds together"]
    assert seeds["flops"] == 4 * of("tinygradient-")["training"]["flops"]
    training = of("tinybelief-")["training"]
    assert np.isclose(training["steps_per_second"], training["updates_per_second"] / 2 * 2 * 2 * 200)


def test_the_picture_of_rl_names_who_learns_and_has_a_panel_for_each_sweep_or_one_for_all_cases():
    def rows_of(case, num_tasks, size):
        at = {"case": case, "num_tasks": num_tasks, "size": size, "swept": "episodes"}
        return [{**at, "contender": who, "steps_per_second": 1e3} for who in ("training", "rollout")]

    apart = [*rows_of("xland-n512-e1", 512, 1), *rows_of("xland-n256-e8", 256, 8), *rows_of("trpo-n10-e20", 10, 20)]
    swept = [*rows_of("bandit-n8-h4", 8, 4), *rows_of("bandit-n16-h4", 16, 4), *rows_of("bandit-n8-h8", 8, 8)]
    points = lambda figure: [sum(len(line.get_xdata()) for line in axes.lines) for axes in figure.axes]
    assert points(rl.draw(apart, "paper")) == [4, 2]  # each case once
    assert points(rl.draw([*swept, *apart], "paper")) == [4, 4, 4, 2]
    assert rl.draw([*swept, *apart], "paper").get_suptitle() == "RL² (bandit, xland), MAML (trpo), float32, on paper"
    assert {name.split("-")[0] for name in rl.cases()} == set(rl.LEARNERS)


@pytest.mark.slow  # RL² learns in its own tests, and the oracles have their published totals in theirs
def test_rl2_table(tmp_path):
    rows = {row["contender"]: row for row in quick(tmp_path, "rl2_table")}
    assert list(rows) == ["Gittins", "Thompson", "UCB1, tuned", "random", "RL²"]
    assert rows["random"]["total"] < rows["Thompson"]["total"] < rows["Gittins"]["total"] < 4
    assert rows["RL²"]["seed"] == 0 and 1 < rows["RL²"]["total"] < 4


@pytest.mark.slow
def test_cores_of_rl2(tmp_path):
    [row] = quick(tmp_path, "cores", "--cases", "gru")
    assert len(row["return"]) == 2 and row["total"] == pytest.approx(sum(row["return"]), rel=1e-5)
    assert 5 < row["return"][0] < 30  # of 10 steps, mostly near 1 each
    assert list(row["steps_per_second"]) == ["20", "100"]


@pytest.mark.slow
def test_sample_efficiency(tmp_path):
    rows = {row["case"]: row for row in quick(tmp_path, "sample_efficiency", "--num-points", "2")}
    assert rows["MAML"]["steps"] == [10 * 2 * 2 * 2 * 100, 20 * 2 * 2 * 2 * 100]
    assert rows["PEARL"]["steps"] == [10 * 2 * 60, 20 * 2 * 60]
    assert rows["RL²"]["steps"] == [10 * 2 * 2 * 100, 20 * 2 * 2 * 100]
    assert rows["MAML"]["times_fewer"] in (1, None)


def test_cells_of_the_rl2_table_have_a_batch_of_the_papers_size():
    for name, cell in rl2_table.CELLS.items():
        config = cell.config
        num_steps = config.num_tasks * config.num_episodes * config.family().environment.max_steps
        assert name == "tiny" or 200_000 < num_steps <= 250_000
        assert config.num_tasks % config.ppo.num_minibatches == 0


@pytest.mark.slow
def test_scaling_counts_one_all_reduce_of_the_gradient_and_predicts(tmp_path):
    """Of one device, as there is here; its bytes are those of the parameters, of two metrics and the loss."""
    measured, predicted = quick(tmp_path, "scaling")
    assert measured["case"] == "sinusoid-weak-d1"
    assert measured["num_others"] == 0 and measured["num_all_reduces"] <= 1
    assert 0 < measured["efficiency_of_communication"] < 10
    efficiencies = [of["efficiency"] for of in predicted["predicted"].values()]
    assert 1 > efficiencies[0] > efficiencies[1] > efficiencies[2] > 0


def test_an_all_reduce_over_hosts_takes_the_rings_bytes_and_the_trees_steps():
    """16 accelerators in two hosts: 7/4 of the bytes within, then an eighth of them between."""
    of = scaling.Interconnect(8, bandwidth_in=2.0, latency_in=0.1, bandwidth_out=0.5, latency_out=1.0)
    np.testing.assert_allclose(scaling.all_reduce_seconds(16, 16, of), 7 / 4 * 16 / 2 + 6 * 0.1 + 2 / 0.5 + 2 * 1.0)

"""The command, as a stranger uses it: what it writes, what it says of a wrong call, and that a killed run goes on."""

import contextlib
import functools
import io
import json
import logging
import os
import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxmeta import __version__, run_directory, runs
from jaxmeta.__main__ import main
from jaxmeta.recipes import RECIPES
from jaxmeta.training import JsonLines, Report
from jaxmeta.training.checkpoint import restore_state, save_state

SMALL = ["--num-outer-steps", "8", "--num-tasks", "3", "--num-eval-tasks", "5", "--num-eval-steps", "3"]


def train(out, *arguments, recipe="maml-sinusoid"):
    return main(["train", recipe, "--out", str(out), *SMALL, *arguments])


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def lines(directory):
    kept = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in kept]


@pytest.fixture(scope="module", autouse=True)
def built_once():
    """Runs of the same settings share an experiment, and what it has compiled."""
    kind = type(RECIPES["maml-sinusoid"].config())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "build", functools.cache(kind.build))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, not to be changed; what it said is beside it."""
    directory = tmp_path_factory.mktemp("runs") / "sinusoid"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert train(directory, "--seed", "3") == 0
    (directory.parent / "said.txt").write_text(said.getvalue())
    return directory


def test_list_names_every_recipe_its_figure_and_its_minutes(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name, recipe in RECIPES.items():
        assert (
            name in printed and recipe.figure in printed and recipe.paper in printed and recipe.description in printed
        )


def test_result_has_the_promised_shape(finished):
    result = json.loads((finished / "result.json").read_text())
    assert result["recipe"] == "maml-sinusoid" and result["seed"] == 3 and result["num_tasks"] == 5
    assert result["seconds"] > 0 and result["device"] and result["versions"]["jax"]
    assert set(result["metrics"]) == {"mse"}
    for statistic in ("mean", "median", "ci95"):
        values = result["metrics"]["mse"][statistic]
        assert len(values) == 4 and np.all(np.isfinite(values))  # K + 1


def test_config_has_every_field_and_the_choices_made(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["recipe"] == "maml-sinusoid" and config["seed"] == 3
    assert config["num_outer_steps"] == 8 and config["inner_learning_rate"] == 0.01 and config["hidden"] == [40, 40]


def test_metrics_have_a_line_for_each_chunk(finished):
    assert [line["step"] for line in lines(finished)] == list(range(1, 9))
    assert all(np.isfinite(line["mse"]) for line in lines(finished))


def test_pictures_are_pictures(finished):
    from PIL import Image

    names = {path.name for path in finished.glob("*.png")}
    assert names == {"adaptation.png", "adaptation_curve.png", "learning_curve.png"}
    for name in names:
        with Image.open(finished / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(image.size[0] * image.size[1])) > 10  # not blank


def test_a_run_with_settings_of_its_own_names_them_and_not_the_recipes_figure(finished):
    said = (finished.parent / "said.txt").read_text()
    assert "not as the recipe: num_outer_steps 8 (the recipe has 50000), num_tasks 3 (the recipe has 25), " in said
    assert "to reach" not in said and RECIPES["maml-sinusoid"].figure not in said
    assert re.search(
        "nothing is shared|on one device: --num-devices (3 shares the tasks|[^3]* shares the examples of each) ", said
    )


def test_evaluate_finds_the_same_figures_again(finished, capsys):
    assert main(["evaluate", str(finished)]) == 0
    printed = capsys.readouterr().out
    result = json.loads((finished / "result.json").read_text())
    for value in result["metrics"]["mse"]["mean"]:
        assert f"{value:10.4f}" in printed


def test_evaluate_on_other_numbers_of_tasks(finished, capsys):
    assert main(["evaluate", str(finished), "--num-tasks", "7"]) == 0
    assert "7 test tasks" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds_between_saves", "steps_to_go"), [(0, 3), (1000, 8)])
def test_a_killed_run_goes_on_as_if_it_had_not_stopped(
    seconds_between_saves, steps_to_go, finished, tmp_path, monkeypatch
):
    """From its last checkpoint, or from the start where it had none yet."""

    class Killed(BaseException):
        pass

    log = JsonLines.__call__

    def log_and_die(self, state, metrics):
        log(self, state, metrics)
        if int(state.step) == 6:
            raise Killed

    monkeypatch.setattr(runs, "_draw", lambda *_: None)
    monkeypatch.setattr(runs, "_SECONDS_BETWEEN_SAVES", seconds_between_saves)
    monkeypatch.setattr(JsonLines, "__call__", log_and_die)
    with pytest.raises(Killed):
        train(tmp_path / "run", "--seed", "3")
    steps = []
    monkeypatch.setattr(JsonLines, "__call__", lambda self, state, metrics: steps.append(log(self, state, metrics)))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 7, "secon')  # as a kill may leave it

    with pytest.warns(UserWarning, match=r"metrics.jsonl: torn in line 8 of 8, which is dropped"):
        assert train(tmp_path / "run", "--seed", "3", "--resume") == 0
    assert len(steps) == steps_to_go
    assert lines(tmp_path / "run") == lines(finished)
    resumed, whole = (json.loads((run / "result.json").read_text()) for run in (tmp_path / "run", finished))
    assert resumed["metrics"] == whole["metrics"]


def test_a_run_killed_before_all_its_pictures_are_drawn_gets_them_on_resume(finished, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for written in ("result.json", "adaptation.png", "learning_curve.png", "adaptation_curve.png"):
        (run / written).unlink()
    report = Report({"mse": np.ones((5, 4))})
    monkeypatch.setattr(runs, "_evaluate", lambda *_: (report, {}))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(runs.plotting, "learning_curve", die)
        train(run, "--seed", "3", "--resume")
    assert train(run, "--seed", "3", "--resume") == 0
    assert {path.name for path in run.iterdir()} == {path.name for path in finished.iterdir()}


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxmeta {__version__}\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_device_is_what_the_process_may_use(monkeypatch):
    cores = os.sched_getaffinity(0)
    monkeypatch.setattr("jax.devices", lambda devices=jax.devices(): devices[:1])
    try:
        os.sched_setaffinity(0, {min(cores)})  # as `taskset` does
        assert runs._device() == "cpu (1 core)"
        monkeypatch.setattr("jax.devices", lambda devices=jax.devices(): 4 * devices)
        assert runs._device() == "cpu (1 core, 4 devices)"
    finally:
        os.sched_setaffinity(0, cores)
    assert runs._device().startswith(f"cpu ({len(cores)} core")


def test_a_checkpoint_leaves_the_root_logger_as_it_was(tmp_path, monkeypatch):
    """orbax's first line gives it a handler, which says again what the command has said, and keeps a user's own
    `logging.basicConfig` from having any effect."""
    monkeypatch.setattr(logging.root, "handlers", [])
    save_state(tmp_path / "state", 1, {"w": np.ones(2)})
    assert logging.root.handlers == []
    mine = logging.NullHandler()
    logging.root.addHandler(mine)
    restore_state(tmp_path / "state", {"w": np.zeros(2)})
    assert logging.root.handlers == [mine]


def test_what_is_chosen_is_said_once_whatever_handler_is_at_the_root(monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler()])
    with runs._choices_on_stdout():
        logging.getLogger("jaxmeta").info("auto chooses")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("auto chooses\n", "")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "usage"),
        (["trian"], "there is no command 'trian'"),
        (["train", "maml-sinusiod"], "did you mean maml-sinusoid?"),
        (["train", "maml-sinusoid", "--num-outer-step", "3"], "--num-outer-steps"),
        (["train", "maml-sinusoid", "--num-outer-steps", "many"], "--num-outer-steps"),
        (["train", "maml-sinusoid", "--num-outer-steps", "0"], "num_outer_steps must be an integer >= 1, got 0"),
        (["train", "maml-sinusoid", "--num-shots", "-1"], "num_shots"),
        (["train", "maml-sinusoid", "--inner-learning-rate", "nan"], "learning_rate"),
        (["train", "maml-sinusoid", "--seed", str(2**40)], "seed must be below 2**32, got 1099511627776"),  # ran as 0
        (["train", "maml-sinusoid", "--seed", "-1"], "seed must be an integer >= 0, got -1"),
        (["train", "stream", "--memory", "99"], "memory must be a finite number from 0 to 1, got 99"),
        (["train", "maml-sinusoid", "--resume"], "--out DIR"),
        (["train", "maml-omniglot", "--data-dir", "nowhere"], "data_dir"),
        (["evaluate", "nowhere"], "holds no run of jaxmeta"),
        (["list", "all"], "takes no arguments"),
    ],
)
def test_a_wrong_call_says_what_to_type_with_status_2(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(argv)
    except SystemExit as stopped:  # tyro's own
        status = stopped.code
    printed = capsys.readouterr()
    assert status == 2
    assert says in printed.err + printed.out
    assert "Traceback" not in printed.err
    assert not list(tmp_path.rglob("*"))  # nothing written


@pytest.mark.parametrize("arguments", [[], ["--seed", "4", "--resume"], ["--seed", "3", "--resume"]])
def test_a_directory_that_holds_a_run_is_left_as_it_is(finished, arguments, capsys):
    """Without --resume, with another seed, and finished already."""
    before = contents(finished)
    assert train(finished, *arguments) == 2
    assert f"--out {finished}" in capsys.readouterr().err
    assert contents(finished) == before


def test_resuming_with_other_settings_names_those_that_differ(finished, capsys):
    assert train(finished, "--seed", "4", "--num-shots", "7", "--resume") == 2
    said = capsys.readouterr().err
    assert "holds a run with other settings: seed 4 (the run has 3), num_shots 7 (the run has 5)\n" in said


def test_options_with_fields_differ_field_by_field():
    there, here = {"outer": {"clip": 0.2, "steps": 1}, "gone": 1}, {"outer": {"clip": 0.3, "steps": 1}, "new": [2]}
    assert run_directory.differences(there, here) == {
        "outer.clip": (0.2, 0.3),
        "gone": (1, "not a field"),
        "new": ("not a field", [2]),
    }


def test_a_directory_of_something_else_is_left_as_it_is(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert train(tmp_path) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_runs_without_a_name_get_directories_of_their_own(tmp_path, monkeypatch, capsys):
    """And as they are the recipe's own settings, all but how many tasks it is judged on, they say what to reach."""
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES["maml-linear"]
    short = replace(recipe.config(), num_outer_steps=2, num_tasks=3, num_eval_tasks=5)
    monkeypatch.setitem(RECIPES, "maml-linear", recipe._replace(config=lambda: short))
    monkeypatch.setattr(runs, "_draw", lambda *_: None)
    for _ in range(2):
        assert main(["train", "maml-linear", "--num-eval-tasks", "4"]) == 0
    assert f"to reach: {recipe.figure}\n" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["maml-linear-seed0", "maml-linear-seed0-2"]


def test_a_run_whose_checkpoint_is_lost_says_so(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "state")
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "checkpoint" in capsys.readouterr().err


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "maml-omniglot", "--help"])
    assert stopped.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for explained in ("--data-dir", "downloaded into a cache if None", "--num-ways", "Classes of a task", "--seed"):
        assert explained in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-devices", "1000"], r"num_devices must be at most \d+, got 1000"),
        (["--num-devices", "0"], "num_devices must be an integer >= 1, got 0"),
        (["--process-id", "1"], "are for --distributed: add it"),
        (["--distributed", "--process-id", "1"], "coordinator and num_processes must be given"),
    ],
)
def test_devices_and_processes_are_looked_at_before_anything_is_written(tmp_path, capsys, arguments, message):
    assert train(tmp_path / "run", *arguments) == 2
    assert re.search(message, capsys.readouterr().err) and not list(tmp_path.iterdir())


def test_processes_need_the_name_of_a_directory(capsys):
    assert main(["train", "maml-sinusoid", "--distributed"]) == 2
    assert "--distributed needs --out DIR" in capsys.readouterr().err

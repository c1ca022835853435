"""The command where something goes wrong: a line that says what and what to do, and a run that goes on."""

import contextlib
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest
from kills import Copies

from jaxmeta import runs
from jaxmeta.__main__ import main
from jaxmeta.recipes import RECIPES
from jaxmeta.training import JsonLines

SMALL = ["--num-outer-steps", "8", "--num-tasks", "3", "--num-eval-tasks", "5", "--num-eval-steps", "3"]


@pytest.fixture(scope="module", autouse=True)
def built_once():
    kind = type(RECIPES["maml-sinusoid"].config())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "build", functools.cache(kind.build))
        patch.setattr(runs, "_draw", lambda *_: None)
        patch.setattr(runs, "_SECONDS_BETWEEN_SAVES", 0)
        yield


def train(out, *arguments):
    return main(["train", "maml-sinusoid", "--out", str(out), *SMALL, *arguments])


def found(directory):
    """What a run has found, but for seconds."""
    result = json.loads((directory / "result.json").read_text())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in part.items() if name != "seconds"} for part in (result, *lines)]


@pytest.fixture(scope="module")
def finished(built_once, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    with contextlib.redirect_stdout(io.StringIO()):
        assert train(directory) == 0
    return directory


@pytest.fixture
def unfinished(finished, tmp_path):
    """A copy that has no result yet."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


def said(capsys):
    """What went wrong, in a line."""
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("jaxmeta: ")]
    assert len(error) == 1
    return error[0]


def test_sigterm_ends_the_run_when_the_chunk_does_and_it_goes_on(finished, tmp_path, capsys, monkeypatch):
    log = JsonLines.__call__

    def log_and_ask(self, state, metrics):
        log(self, state, metrics)
        if int(state.step) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one kills

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "__call__", log_and_ask)
        assert train(tmp_path / "run") == 143
    assert "go on with --resume and --out DIR" in said(capsys)
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "run" / "state" / "5").is_dir()
    assert train(tmp_path / "run", "--resume") == 0
    assert found(tmp_path / "run") == found(finished)


def test_sigterm_while_a_run_is_judged_ends_it_at_once(unfinished, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_evaluate", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert train(unfinished, "--resume") == 143


def test_of_two_that_go_on_with_one_run_the_second_is_refused(unfinished, capsys):
    """By what a dead process does not hold: the system lets go."""
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    command = [sys.executable, "-S", "-c", f"{hold}; time.sleep(60)", str(unfinished / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert train(unfinished, "--resume") == 2
        assert f"--out {unfinished} is in use by another run that has not ended" in said(capsys)
        other.kill()
    assert train(unfinished, "--resume") == 0


@contextlib.contextmanager
def files_of_at_most(num_bytes):
    """As a full disk: what is written beyond is refused by the system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("what", ["metrics.jsonl", "checkpoint of step 1"])
def test_a_full_disk_is_said_in_a_line_and_the_run_goes_on(what, finished, tmp_path, capfd, monkeypatch):
    """While a line of metrics is written, and while the first checkpoint is."""
    run, log, is_log = tmp_path / "run", JsonLines.__call__, what == "metrics.jsonl"

    def limited(self, state, metrics):
        with files_of_at_most(300) if is_log else contextlib.nullcontext():
            log(self, state, metrics)

    with monkeypatch.context() as patch, contextlib.nullcontext() if is_log else files_of_at_most(3000):
        patch.setattr(JsonLines, "__call__", limited)
        patch.setattr(runs, "_SECONDS_BETWEEN_SAVES", 1000 if is_log else 0)  # the limit is on all that is written
        assert train(run) == 1
    printed = capfd.readouterr().err
    lines = [line for line in printed.splitlines() if line.startswith("jaxmeta: ")]
    assert len(lines) == 1 and what in lines[0] and "File too large" in lines[0] and "Traceback" not in printed
    assert lines[0].endswith(f"go on with --resume --out {run}")
    with pytest.warns(UserWarning, match="torn in line") if is_log else contextlib.nullcontext():
        assert train(run, "--resume") == 0
    assert found(run) == found(finished)


def test_memory_that_ran_out_is_said_in_a_line(unfinished, capsys, monkeypatch):
    real = "RESOURCE_EXHAUSTED: Out of memory allocating 1840000000448 bytes."
    for error in (jax.errors.JaxRuntimeError(real), MemoryError("Unable to allocate 7.28 TiB")):

        def runs_out(*_, error=error):
            raise error

        monkeypatch.setattr(runs, "_evaluate", runs_out)
        assert train(unfinished, "--resume") == 1
        text = said(capsys)
        assert "--microbatch" in text and ("1840000000448" in text or "7.28 TiB" in text)


def test_a_run_that_diverges_does_not_end_well(tmp_path, capsys):
    """Chunks of five steps, of which none was long enough to be judged."""
    arguments = ["--num-outer-steps", "500", "--inner-learning-rate", "1e30", "--num-eval-tasks", "5"]
    with pytest.warns(UserWarning, match="not finite are skipped"):
        status = main(["train", "maml-linear", "--out", str(tmp_path), "--num-tasks", "2", *arguments])
    assert status == 1
    assert "no outer step after step 0 was finite, 10 in a row: the run has diverged. Lower the" in said(capsys)
    assert not (tmp_path / "result.json").exists()


def edited(**changes):
    return lambda content: {name: value for name, value in {**content, **changes}.items() if value is not ...}


EDITS = {
    "no JSON": "{",
    "nothing": "",
    "a list": "[1, 2]",
    "a number": "3",
    "no text": b"\xff\xfe\x00",
    "nested": "[" * 100_000,
    "too many digits": '{"seed": ' + "9" * 5000 + "}",
    "NaN": lambda content: json.dumps(content).replace("0.001", "NaN"),
    "no recipe": edited(recipe=...),
    "a recipe that is none": edited(recipe="maml-sinusiod"),
    "a recipe that is a list": edited(recipe=["maml-sinusoid"]),
    "a seed that is text": edited(seed="0"),
    "an unknown field": edited(num_shot=5),
    "a missing field": edited(num_outer_steps=...),
    "text for a number": edited(num_tasks="3"),
    "a float for an integer": edited(num_tasks=3.5),
    "null": edited(num_inner_steps=None),
    "a list for a number": edited(learning_rate=[0.1]),
    "an object for a number": edited(learning_rate={"rate": 0.1}),
    "numbers that are text in a list": edited(hidden=["40", 40]),
    "a list in a list": edited(hidden=[[40], 40]),
    "a truth for a number": edited(num_tasks=True),
    "a choice that is none": edited(schedule="cosin"),
    "another network": edited(hidden=[40, 39]),
    "negative": edited(num_shots=-1),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("command", ["evaluate", "resume"])
def test_an_edited_configuration_is_said_in_a_line(edit, command, finished, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    os.symlink(finished / "state", tmp_path / "state")
    content = json.loads((finished / "config.json").read_text())
    text = edit(content) if callable(edit) else edit
    text = json.dumps(text) if isinstance(text, dict) else text
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    status = main(["evaluate", str(tmp_path)]) if command == "evaluate" else train(tmp_path, "--resume")
    assert status == 2
    text = said(capsys)
    assert str(tmp_path) in text and len(text) < 700


RUNS = {
    "maml-sinusoid": " ".join(SMALL),
    "rl2-bandit": "--num-outer-steps 6 --num-tasks 8 --num-eval-tasks 4 --num-units 4 --num-critic-units 4",
    "pearl-navigation": (
        "--num-outer-steps 4 --num-tasks 2 --num-eval-tasks 4 --num-reference-steps 0 --num-train-tasks 3 --hidden 4 "
        "--replay.num-gradient-steps 2 --replay.num-batch-tasks 2 --replay.batch-size 2 --replay.num-context 4 "
        "--replay.capacity 200"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RUNS)
def test_a_run_killed_at_any_moment_finds_what_an_uninterrupted_one_does(recipe, tmp_path, monkeypatch):
    """Of all moments 20 while it trains, and the last; the compiled programs are those of the first run."""
    kind = type(RECIPES[recipe].config())
    monkeypatch.setattr(kind, "build", functools.cache(kind.build))
    go = lambda out, *more: main(["train", recipe, "--out", str(out), *RUNS[recipe].split(), *more])
    assert go(tmp_path / "whole") == 0
    with Copies(tmp_path / "run", tmp_path / "copies") as copies:
        assert go(tmp_path / "run") == 0
    moments = [run for run in copies.directories if (run / "config.json").exists()]
    unfinished = [run for run in moments if not (run / "result.json").exists()]
    chosen = unfinished[:: max(1, len(unfinished) // 20)]
    print(f"{len(unfinished)} moments, {len(chosen)} tried")
    for run in chosen:
        assert go(run, "--resume") == 0
        assert found(run) == found(tmp_path / "whole")


PROCESS = (
    "import sys; from jaxmeta import runs; from jaxmeta.__main__ import main; "
    "runs._SECONDS_BETWEEN_SAVES = 0; sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "num_steps"), [("maml-sinusoid", 5000), ("rl2-bandit", 1000), ("pearl-navigation", 300)]
)
def test_a_process_that_is_killed_twenty_times_finds_what_an_uninterrupted_one_does(recipe, num_steps, tmp_path):
    """By the system's SIGKILL, up to half a second after its first checkpoint; one is written after every chunk."""
    command = [
        sys.executable,
        "-c",
        PROCESS,
        "train",
        recipe,
        *RUNS[recipe].split(),
        "--num-outer-steps",
        str(num_steps),
    ]
    go = lambda out, *more: subprocess.Popen([*command, "--out", str(out), *more], stdout=subprocess.DEVNULL)
    last = lambda: max(
        (int(path.name) for path in (tmp_path / "run" / "state").glob("*") if path.name.isdigit()), default=0
    )
    moments, steps = random.Random(0), [0]
    for _ in range(20):
        known = (tmp_path / "run" / "config.json").exists()
        with go(tmp_path / "run", *["--resume"] * known) as run:
            while last() <= steps[-1] and run.poll() is None:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.5))
            run.kill()
        steps.append(last())
        if steps[-1] == num_steps:
            break
    print(f"killed {len(steps) - 1} times, after the steps {steps[1:]}")
    assert len(steps) > 5
    if not (tmp_path / "run" / "result.json").exists():
        with go(tmp_path / "run", "--resume") as run:
            assert run.wait() == 0
    with go(tmp_path / "whole") as whole:
        assert whole.wait() == 0
    assert found(tmp_path / "run") == found(tmp_path / "whole")

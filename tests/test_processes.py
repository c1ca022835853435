"""Several processes, each with several devices, on the loopback: the numbers of one, and what it takes to go on."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxmeta

ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(jaxmeta.__file__).parents[1])}
PROGRAM = [sys.executable, str(Path(__file__).with_name("one_process.py"))]


def address():
    """One that is free."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return f"localhost:{found.getsockname()[1]}"


def start(*arguments, program=PROGRAM):
    command = [*program, *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def together(num_processes, num_devices, directory, num_steps):
    where = address()
    return [start(num_devices, directory, num_steps, where, num_processes, i) for i in range(num_processes)]


def numbers(processes):
    """What each prints last, of its first directory and of the second; once all have ended well."""
    ends = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors[-2000:]
    return [found for output, _ in ends for found in json.loads(output.splitlines()[-1])]


def assert_close(found, expected):
    """float32, another order of sums."""
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)


def test_two_processes_have_the_numbers_of_one_and_one_goes_on(tmp_path):
    """Trained and judged over two devices in each of two processes, then by one process without devices to share."""
    first, second = numbers(together(2, 2, tmp_path / "together", 4))
    assert first == second
    expected, found = numbers([start(0, f"{tmp_path / 'alone'},{tmp_path / 'together'}", 8)])
    np.testing.assert_allclose(first["loss"], expected["loss"][:4], rtol=1e-4)
    assert len(found["loss"]) == 4
    assert_close(found, expected | {"loss": expected["loss"][4:]})


@pytest.mark.slow
def test_four_processes_a_death_and_two_that_go_on(tmp_path):
    """The others say so within a minute; started again, fewer and with more devices, they end where one does."""
    (expected,) = numbers([start(4, tmp_path / "alone", 8)])
    assert_close(numbers(together(4, 2, tmp_path / "whole", 8))[0], expected)

    run = together(4, 1, tmp_path / "killed", 2000)
    for line in run[0].stdout:
        if line.split() == ["step", "20"]:
            break
    run[2].send_signal(signal.SIGKILL)
    died = time.monotonic()
    for process in run[:2] + run[3:]:
        _, errors = process.communicate(timeout=60)
        assert process.returncode not in (0, None) and errors
    assert time.monotonic() - died < 60
    run[2].communicate()

    last = max(int(path.name) for path in (tmp_path / "killed").iterdir() if path.name.isdigit())
    assert last >= 18
    found = numbers(together(2, 4, tmp_path / "killed", last + 4))
    assert all(len(of["loss"]) == 4 for of in found) and found[0] == found[1]
    (whole,) = numbers([start(0, tmp_path / "from nothing", last + 4)])
    assert_close(found[0], whole | {"loss": whole["loss"][-4:]})


COUNTS = {"--num-outer-steps": 20, "--num-tasks": 24, "--num-eval-tasks": 20, "--num-devices": 2}
RECIPE = ["train", "maml-linear", *itertools.chain(*COUNTS.items())]


@pytest.mark.slow
def test_a_recipe_in_two_processes_is_that_of_one_and_one_writes(tmp_path):
    jaxmeta_ = [sys.executable, "-m", "jaxmeta"]
    shared = ["--distributed", "--coordinator", address(), "--num-processes", 2, "--out", tmp_path / "two"]
    runs = [start(*RECIPE, *shared, "--process-id", i, program=jaxmeta_) for i in range(2)]
    runs.append(start(*RECIPE, "--out", tmp_path / "one", program=jaxmeta_))
    said = []
    for run in runs:
        output, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors[-2000:]
        said.append(output)
    assert "4 devices in 2 processes" in said[0] and "evaluating" not in said[1]
    two, one = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("two", "one"))
    np.testing.assert_allclose(two["metrics"]["mse"]["mean"], one["metrics"]["mse"]["mean"], rtol=1e-4)
    logged = [len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) for name in ("two", "one")]
    assert logged == [20, 20]
    content = json.loads((tmp_path / "two" / "config.json").read_text())
    assert content["num_devices"] == 4

"""Taking turns, and what is kept of them."""

import time

import pytest

from benchmarks.shared.measure import Program, interleave, seconds_per_step, summary


def recorder(log, name, seconds):
    def step():
        log.append(name)
        time.sleep(seconds)

    return Program(step, lambda: log.append(f"{name} waits"))


def test_programs_take_turns_in_an_order_that_rotates():
    log = []
    programs = {name: recorder(log, name, 1e-3) for name in "abc"}
    samples = interleave(programs, num_rounds=4, min_seconds=1e-4)
    turns = [entry for entry in log if "waits" not in entry][3:]  # after the calibration
    assert turns == list("abcbcacababc")
    assert {name: len(times) for name, times in samples.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(t >= 1e-3 for times in samples.values() for t in times)


def test_a_fast_program_runs_many_steps_and_waits_once_a_sample(monkeypatch):
    """By a clock of its own, on which a step takes exactly 2 ms; the first is the calibration, the second warms up."""
    log = []
    monkeypatch.setattr("benchmarks.shared.measure.time.perf_counter", lambda: 2e-3 * log.count("fast"))
    interleave({"fast": recorder(log, "fast", 0)}, num_rounds=1, min_seconds=0.02)
    assert (log.count("fast"), log.count("fast waits")) == (1 + 1 + 10, 3)


def test_a_slow_program_sits_out_after_three_samples():
    log = []
    programs = {"slow": recorder(log, "slow", 0.02), "quick": recorder(log, "quick", 1e-3)}
    samples = interleave(programs, num_rounds=6, min_seconds=1e-4, max_seconds=0.03)
    assert len(samples["slow"]) == 3 and len(samples["quick"]) == 6


def test_a_program_slower_than_three_samples_may_be_is_run_once():
    log = []
    programs = {"slow": recorder(log, "slow", 0.05), "quick": recorder(log, "quick", 1e-3)}
    samples = interleave(programs, num_rounds=2, min_seconds=1e-4, max_seconds=0.015)
    assert log.count("slow") == 1 and len(samples["slow"]) == 1 and samples["slow"][0] >= 0.05
    assert len(samples["quick"]) == 2


def test_a_sample_is_seconds_per_step():
    assert seconds_per_step(recorder([], "a", 0.005), 4) == pytest.approx(0.005, rel=1)


def test_summary_keeps_every_sample():
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "samples": [3.0, 1.0, 2.0]}

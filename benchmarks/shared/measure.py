"""Timing that can be believed: contenders take turns in one process, and every sample is kept."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.experimental
import jax.numpy as jnp


class Program(NamedTuple):
    """Something to time. `step()` starts `num_units` of work and may return before it is done; `wait()` waits."""

    step: Callable[[], None]
    wait: Callable[[], None]
    num_units: int = 1


def seconds_per_step(program: Program, num_steps: int) -> float:
    """One sample, per unit of work: `num_steps` steps in a row, and one wait for the last, as in training.

    Short ones come after one that is not timed: what ran before has left caches and memory to itself, which made a
    large product, the yardstick, a third slower than in a row.
    """
    if num_steps > 1:
        program.step()
        program.wait()
    start = time.perf_counter()
    for _ in range(num_steps):
        program.step()
    program.wait()
    return (time.perf_counter() - start) / (num_steps * program.num_units)


def interleave(
    programs: dict[str, Program],
    *,
    num_rounds: int,
    min_seconds: float = 0.25,
    max_seconds: float = 20.0,
) -> dict[str, list[float]]:
    """Seconds per step of programs that take turns, so that a busy moment of the machine meets all of them.

    In each round every program runs once, in an order that rotates, and so often that a sample lasts `min_seconds`.

    Args:
      programs: what to time, warmed up: compiled, and run once.
      num_rounds: R, samples of each program.
      min_seconds: a sample runs as many steps as take this long.
      max_seconds: a program that has taken this long, three samples or more, sits out the remaining rounds; one whose
        first step takes three times as long sits out all of them, and that step is its sample.

    Returns:
      For each program its samples in seconds per step, R of them or, of a slow one, at least min(R, 3), or one.

    >>> work = Program(step=lambda: None, wait=lambda: None)
    >>> {name: len(samples) for name, samples in interleave({"a": work}, num_rounds=2, min_seconds=1e-5).items()}
    {'a': 2}
    """
    first = {name: seconds_per_step(program, 1) for name, program in programs.items()}
    call = {name: max(1e-7, program.num_units * first[name]) for name, program in programs.items()}
    num_steps = {name: max(1, math.ceil(min_seconds / seconds)) for name, seconds in call.items()}
    samples = {name: [seconds] if call[name] > 3 * max_seconds else [] for name, seconds in first.items()}
    names = [name for name in programs if not samples[name]]
    for round_ in range(num_rounds):
        start = round_ % max(1, len(names))
        for name in names[start:] + names[:start]:
            taken = num_steps[name] * programs[name].num_units * sum(samples[name])
            if len(samples[name]) < 3 or taken < max_seconds:
                samples[name].append(seconds_per_step(programs[name], num_steps[name]))
    return samples


def summary(samples: list[float]) -> dict[str, Any]:
    """Median, least, most, and the samples themselves, in seconds."""
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples), "samples": samples}


class MatrixProduct(NamedTuple):
    """A large product of square matrices, the yardstick: what this machine reaches when nothing else slows it."""

    program: Program
    flops: int


def matrix_product() -> MatrixProduct:
    """`MatrixProduct` of the size that fills the backend: side 2,048 on a CPU, 8,192 elsewhere."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    return MatrixProduct(jax_program(jax.jit(jnp.dot), jnp.ones((side, side)), jnp.ones((side, side))), 2 * side**3)


def jax_program(compiled: Callable, *args) -> Program:
    """Calls `compiled(*args)` at each step; warmed up."""
    result = [jax.block_until_ready(compiled(*args))]

    def step() -> None:
        result[0] = compiled(*args)

    return Program(step, lambda: jax.block_until_ready(result[0]))


def float64():
    """A context with float64, by the name that this release of jax has for it."""
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64(True)

"""What `fit` calls after a chunk: a callback looks on, and does not end the run by an error of its own."""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmeta.checks import check_arguments
from jaxmeta.training.files import read_lines, write_whole, writing
from jaxmeta.types import MetaState
from jaxmeta.words import short

Callback = Callable[[MetaState, dict[str, np.ndarray]], bool | None]


class Callbacks:
    """All callbacks of a run; of each that raises, the first error is said, and it is called again all the same."""

    def __init__(self, callbacks: Any):
        if not isinstance(callbacks, Iterable):
            raise ValueError(f"callbacks must be functions (state, metrics) -> None in a list, got {short(callbacks)}")
        self.callbacks: list[Callback] = list(callbacks)
        for callback in self.callbacks:
            check_arguments("callbacks", callback, ("state", "metrics"), "one that returns true ends the run")
        self.failed: set[int] = set()

    def __call__(self, state: MetaState, metrics: dict[str, np.ndarray]) -> bool:
        """Calls all of them; whether one wants the run to end."""
        answers = [self._answer(number, state, metrics) for number in range(len(self.callbacks))]
        for answer in answers:
            if answer is not None and not isinstance(answer, bool | np.bool_):
                raise ValueError(f"callbacks must return None, or true where the run is to end, got {short(answer)}")
        return any(answers)

    def _answer(self, number: int, state: MetaState, metrics: dict[str, np.ndarray]) -> Any:
        callback = self.callbacks[number]
        try:
            return callback(state, metrics)
        except Exception as error:
            if number not in self.failed:
                self.failed.add(number)
                warnings.warn(
                    f"a callback raised at step {int(np.max(state.step))}, and the run goes on without it: "
                    f"{short(callback)}: {type(error).__name__}: {error} ({_where(error)}). It is called again after "
                    "each chunk; what else it raises is not said",
                    stacklevel=5,
                )
            return None


def _where(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}" if trace else "nowhere"


class JsonLines:
    """A callback of `fit` that writes a line of JSON for each chunk: the step, seconds, the mean of each metric.

    Of S seeds a mean is a list of S; what is not finite is null. A run that goes on goes on in its file: what was
    written of steps that are taken anew is dropped, a torn line with a warning, and seconds are counted on. Of several
    processes one writes.

    Args:
      path: the file, in a folder that is there. It is of one run.

    >>> import tempfile
    >>> log = JsonLines(Path(tempfile.mkdtemp()) / "metrics.jsonl")
    >>> state = MetaState(np.int32(2), (), (), np.int32(0))
    >>> log(state, {"loss": np.array([1.0, 0.5])})
    >>> log.lines()[0]["step"], log.lines()[0]["loss"]
    (2, 0.75)
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._start = time.monotonic()
        self._seconds_before: float | None = None  # None: not known yet
        self._is_begun = False

    def lines(self) -> list[dict[str, Any]]:
        """What is in the file."""
        return read_lines(self.path)

    def seconds(self) -> float:
        """Of the run, those before it was interrupted included."""
        if self._seconds_before is None:
            self._seconds_before = max((line["seconds"] for line in self.lines()), default=0.0)
        return self._seconds_before + time.monotonic() - self._start

    def __call__(self, state: MetaState, metrics: dict[str, np.ndarray]) -> None:
        if jax.process_index() != 0:
            return
        step = int(np.max(state.step))
        if not self._is_begun:
            self._begin_after(step - _num_steps(metrics))
            self._is_begun = True
        means = {name: _finite(mean) for name, mean in _means(metrics).items()}
        line = {"step": step, "seconds": round(self.seconds(), 2), **means}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def _begin_after(self, step: int) -> None:
        """Forgets what was written of later steps by a run that was killed."""
        kept = [line for line in self.lines() if line["step"] <= step]
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._seconds_before = kept[-1]["seconds"] if kept else 0.0


class TensorBoard:
    """A callback of `fit` that writes the mean of each metric over a chunk for TensorBoard, from a thread of its own.

    Of S seeds a metric is S curves, `name/0` to `name/S-1`. In a run that goes on TensorBoard drops what was written of
    steps that are taken anew. Of several processes one writes. Needs `pip install 'jaxmeta[tensorboard]'`, which is
    tensorboardX, https://github.com/lanpa/tensorboardX: what it writes needs no TensorFlow, and TensorBoard shows it.

    Args:
      directory: of the run, made if it is not there: `tensorboard --logdir` shows it, or all runs of the folder above.

    Raises:
      ImportError: tensorboardX is not installed.

    >>> callbacks = [TensorBoard("runs/0")]  # doctest: +SKIP
    """

    def __init__(self, directory: str | os.PathLike):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard needs tensorboardX: pip install 'jaxmeta[tensorboard]'") from error
        self.directory = os.fspath(directory)
        self._make: Callable[..., Any] = SummaryWriter
        self._writer: Any = None  # the file is made when there is something to write

    def close(self) -> None:
        """Waits until all is written, which the end of the process does too."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __call__(self, state: MetaState, metrics: dict[str, np.ndarray]) -> None:
        if jax.process_index() != 0:
            return
        step = int(np.max(state.step))
        if self._writer is None:
            begin = step - _num_steps(metrics)
            self._writer = self._make(self.directory, purge_step=begin + 1, flush_secs=10)
        for name, mean in _means(metrics).items():
            for seed, value in enumerate(np.atleast_1d(mean)):
                self._writer.add_scalar(f"{name}/{seed}" if np.ndim(mean) else name, float(value), step)


def _num_steps(metrics: dict[str, np.ndarray]) -> int:
    """Outer steps of a chunk; what validation found is scalars."""
    return max(np.shape(values)[-1] for values in metrics.values() if np.ndim(values))


def _means(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Over the steps of a chunk: a number, of S seeds [S]."""
    return {
        name: np.mean(values, axis=-1) if np.ndim(values) else np.asarray(values) for name, values in metrics.items()
    }


def _finite(mean: np.ndarray) -> Any:
    """As JSON has it, which knows no NaN."""
    numbers = np.asarray(mean, float).astype(object)
    numbers[~np.isfinite(mean)] = None
    return numbers.tolist()

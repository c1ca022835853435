"""What `fit` calls after a chunk: a callback looks on, and does not end the run by an error of its own."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxmeta.checks import check_arguments
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

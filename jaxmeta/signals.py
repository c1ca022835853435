"""What SIGTERM does to a run: it ends when there is something to save, and says so by the status of the process."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxmeta.types import MetaState


class Terminated(KeyboardInterrupt):
    """The system asked the process to end, by SIGTERM; `status` is that of the command."""

    status = 128 + signal.SIGTERM


class Asked:
    """What SIGTERM does: it ends training when the chunk does, and what saves nothing at once; a second one kills."""

    def __init__(self) -> None:
        self.to_end = self._can_wait = False

    def __call__(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.to_end = True
        if not self._can_wait:
            raise Terminated

    def after_a_chunk(self, state: MetaState, metrics: dict[str, np.ndarray]) -> bool:
        self._can_wait = True  # from here on there is something to save, and nothing long is compiled
        return self.to_end

    @contextlib.contextmanager
    def while_training(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._can_wait = False


@contextlib.contextmanager
def terminable() -> Iterator[Asked]:
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():  # which alone is told of signals
        yield asked
        return
    before = signal.signal(signal.SIGTERM, asked)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)

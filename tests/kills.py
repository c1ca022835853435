"""What a kill leaves behind: copies of a run's directory, one of every moment."""

import contextlib
import os
import sys
import threading
from pathlib import Path

OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}


class Copies:
    """Copies a directory before each operation of Python's on its files, as a kill at that moment would leave it."""

    active = None

    def __init__(self, directory, to):
        self.directory, self.to, self.seen, self.lock = Path(directory), Path(to), {}, threading.Lock()

    def __enter__(self):
        if not hasattr(Copies, "hook"):
            Copies.hook = lambda event, args: Copies.active and Copies.active.look(event, args)
            sys.addaudithook(Copies.hook)
        Copies.active = self
        return self

    def __exit__(self, *_):
        Copies.active = None
        self.copy()

    def look(self, event, args):
        is_of_files = event in OPERATIONS and isinstance(args[0], str | bytes | os.PathLike)
        if is_of_files and str(self.directory) in os.fsdecode(args[0]):
            self.copy()

    def copy(self):
        """The checkpoints first: what is beside them is as it was then or later, as in a process that is killed."""
        if not self.lock.acquire(blocking=False):  # another thread copies, or our own copying is looked at
            return
        Copies.active = None
        try:
            files = {}
            for path in sorted(self.paths(), key=lambda path: "state" not in path.parts):
                with contextlib.suppress(OSError):  # by now it is gone
                    files[path.relative_to(self.directory)] = None if path.is_dir() else path.read_bytes()
            moment = tuple((str(path), content and len(content)) for path, content in files.items())
            if moment not in self.seen:
                self.seen[moment] = to = self.to / str(len(self.seen))
                for path, content in files.items():
                    (to / path if content is None else (to / path).parent).mkdir(parents=True, exist_ok=True)
                    if content is not None:
                        (to / path).write_bytes(content)
                to.mkdir(parents=True, exist_ok=True)
        finally:
            Copies.active = self
            self.lock.release()

    def paths(self):
        """An error here would be one of the operation that is looked at."""
        while True:
            with contextlib.suppress(FileNotFoundError):  # another thread has renamed a folder meanwhile: look again
                return list(self.directory.rglob("*"))

    @property
    def directories(self):
        return list(self.seen.values())

"""Finding the files of each class in folders that come from anywhere: nothing outside of their root is looked at."""

import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple


class File(NamedTuple):
    """A file as it was found: where, and what tells whether it is the same as before.

    Attributes:
      name: relative to the root, with slashes.
      path: where it is read.
      size: in bytes.
      modified: in nanoseconds.
    """

    name: str
    path: str
    size: int
    modified: int


class Found(NamedTuple):
    """What there is before anything is decoded.

    Attributes:
      files: of each class, sorted by name.
      skipped: {what is not read: why}.
      num_ignored: files with another ending.
    """

    files: dict[str, list[File]]
    skipped: dict[str, str]
    num_ignored: int


def entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted, without what is hidden."""
    with os.scandir(folder) as found:
        return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)


def folders_in(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """The folders among them, and links to one."""

    def is_folder(entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a link to itself
            return False

    return [entry for entry in entries(folder) if is_folder(entry)]


def is_within(root: str | os.PathLike[str], path: str | os.PathLike[str]) -> bool:
    """Whether a path, its links followed, is in a folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def find_files(root: str | os.PathLike[str], folders: Mapping[str, str], endings: Collection[str]) -> Found:
    """The files with these endings, in lower case, in the folder of each class and below.

    Real folders come before links, and each is read once: a link to one is a second way to the same files, which is not
    taken, and a circle ends.
    """
    walk = _Walk(os.fspath(root), tuple(endings))
    walk.seen |= {os.path.realpath(os.path.dirname(path)) for path in folders.values()}
    walk.files = {name: [] for name in sorted(folders)}
    for name in walk.files:
        if os.path.islink(folders[name]):
            walk.links.append((name, folders[name]))
        else:
            walk.read(name, folders[name])
    while walk.links:
        walk.read(*walk.links.pop(0))
    return Found({name: sorted(files) for name, files in walk.files.items()}, walk.skipped, walk.num_ignored)


class _Walk:
    """Goes through folders without recursion, as they may be deeper than Python's stack."""

    def __init__(self, root: str, endings: tuple[str, ...]):
        self.root, self.endings = root, endings
        self.real_root = os.path.realpath(root)
        self.seen = {self.real_root}
        self.links: list[tuple[str, str]] = []
        self.files: dict[str, list[File]] = {}
        self.skipped: dict[str, str] = {}
        self.num_ignored = 0

    def read(self, name: str, folder: str) -> None:
        """All of a folder, but links to others, which are put off."""
        todo = [(folder, os.path.realpath(folder))]
        while todo:
            folder, real = todo.pop()
            if not self._may_read(folder, real):
                continue
            try:
                for entry in entries(folder):
                    if self._is_folder(name, entry):
                        todo.append((entry.path, os.path.join(real, entry.name)))
            except OSError as error:
                self._skip(folder, error.strerror or str(error))

    def _may_read(self, folder: str, real: str) -> bool:
        if not Path(real).is_relative_to(self.real_root):
            self._skip(folder, "a link that leads outside")
        elif real in self.seen:
            self._skip(folder, "a link to what is read already")
        else:
            self.seen.add(real)
            return True
        return False

    def _is_folder(self, name: str, entry: os.DirEntry[str]) -> bool:
        """Whether it is a real folder, to be read now; what else there is is kept, put off, counted or skipped."""
        try:
            if entry.is_dir(follow_symlinks=False):
                return True
            if entry.is_symlink() and not is_within(self.real_root, entry.path):
                self._skip(entry.path, "a link that leads outside")
            elif entry.is_dir():
                self.links.append((name, entry.path))
            elif not entry.name.lower().endswith(self.endings):
                self.num_ignored += 1
            elif stat.S_ISREG((found := entry.stat()).st_mode):
                self.files[name].append(File(self._name(entry.path), entry.path, found.st_size, found.st_mtime_ns))
            else:
                self._skip(entry.path, "not a file")  # a pipe would wait for ever
        except OSError as error:
            self._skip(entry.path, error.strerror or str(error))
        return False

    def _skip(self, path: str, why: str) -> None:
        self.skipped[self._name(path)] = why

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self.root).replace(os.sep, "/")

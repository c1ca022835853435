"""What archives of data sets have in common: how they are downloaded, and what is raised where they are not intact."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def reading(name: str, remedy: str = "") -> Iterator[None]:
    """Whatever broken or hostile bytes make a decoder raise, it becomes a ValueError.

    It grows from the inside out: the problem, the entry, the file, the remedy.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}{remedy}") from None
    except Exception as error:
        raise ValueError(f"{name}: truncated or corrupt ({error!r}){remedy}") from error


def download(url: str, md5: str, folder: Path) -> Path:
    """The official file, in `folder`, where it stays. A failed download leaves nothing there."""
    import pooch  # type: ignore[import-untyped]

    name = url.rsplit("/", 1)[1]
    elsewhere = "get it elsewhere and name its folder with data_dir, --data-dir on the command line"
    try:
        return Path(pooch.retrieve(url, known_hash=f"md5:{md5}", fname=name, path=folder))
    except OSError as error:
        raise ConnectionError(f"could not download {url}: {error}. Without a network, {elsewhere}") from error
    except ValueError as error:
        raise ValueError(
            f"what came from {url} is not the official file: {error}. Try again, or {elsewhere}"
        ) from error

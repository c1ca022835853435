"""Makes every notebook of the script beside it: `python notebooks/sync.py`, after a script or the address changed.

A script (jupytext's py:percent) is what is written and reviewed; its notebook, without outputs, is what Colab and
Jupyter open. Where `[project.urls]` in pyproject.toml has a `Repository`, notebooks and README get a badge that opens
them in Colab; where it has none, there is no link. `--check` writes nothing, and fails where a file is out of date.
"""

import re
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def scripts() -> list[Path]:
    return sorted(FOLDER.glob("[0-9]*.py"))


def repository() -> str | None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    return urls.get("Repository", "").rstrip("/") or None


def badge(script: Path, repository: str) -> str:
    where = f"{repository.removeprefix('https://')}/blob/main/notebooks/{script.stem}.ipynb"
    colab = "https://colab.research.google.com"
    return f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/{where.replace('github.com', 'github', 1)})"


def notebook_of(script: Path, repository: str | None) -> str:
    """The notebook's text: the script's cells, numbered, so that the same script always gives the same file."""
    cells = jupytext.reads(script.read_text(), fmt="py:percent").cells
    if repository:
        cells.insert(0, nbformat.v4.new_markdown_cell(badge(script, repository)))
    for number, cell in enumerate(cells):
        cell["id"], cell["metadata"] = f"cell-{number}", {}
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL)) + "\n"


def listed(script: Path, repository: str | None) -> str:
    """A line of README's list: the title, and the first paragraph's first sentence."""
    first = jupytext.reads(script.read_text(), fmt="py:percent").cells[0].source
    title, text = re.match(r"# (.+)\n\n(.+)", first, re.DOTALL).groups()
    sentence = re.split(r"(?<=\.)\s", text, maxsplit=1)[0].replace("\n", " ")
    link = f"[{script.stem[0]}. {title}](notebooks/{script.stem}.ipynb)"
    return f"- {link}{' ' + badge(script, repository) if repository else ''}: {sentence}"


def files(repository: str | None) -> dict[Path, str]:
    """Each file that this command writes, and its text."""
    readme = ROOT / "README.md"
    lines = "\n".join(listed(script, repository) for script in scripts())
    marked = r"(<!-- notebooks -->\n).*?(<!-- /notebooks -->)"
    text = re.sub(marked, lambda found: f"{found[1]}{lines}\n{found[2]}", readme.read_text(), flags=re.DOTALL)
    made = {script.with_suffix(".ipynb"): notebook_of(script, repository) for script in scripts()}
    return {**made, readme: text}


def main() -> None:
    old = [path for path, text in files(repository()).items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv and old:
        sys.exit(f"out of date: {', '.join(path.name for path in old)}: run `python notebooks/sync.py`")
    for path in old:
        path.write_text(files(repository())[path])
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()

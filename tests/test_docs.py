"""The documentation: its python runs as pasted, from the top of a page to its end, and the site builds without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# A block with another library's name as its title is theirs, and is not run.
BLOCK = re.compile(r'^( *)```python(?: title="jaxmeta")?\n(.*?)^\1```$', re.DOTALL | re.MULTILINE)


def python_of(page: Path) -> str:
    """The page's blocks, each on its own lines, so that an error names the page's line."""
    text, lines = page.read_text(), []
    for block in BLOCK.finditer(text):
        first = text[: block.start(2)].count("\n")
        indent = len(block[1])
        lines += [""] * (first - len(lines)) + [line[indent:] for line in block[2].splitlines()]
    return "\n".join(lines)


PAGES = {str(page.relative_to(DOCS)): python for page in sorted(DOCS.rglob("*.md")) if (python := python_of(page))}


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(PAGES[page], page, "exec"), {"__name__": "__main__"})


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "site" / "index.html").is_file()

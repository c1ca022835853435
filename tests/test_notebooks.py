"""The notebooks: made of their scripts, alike in how they begin, and executed from top to bottom in a kernel."""

import importlib.util
import time
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location("sync", ROOT / "notebooks" / "sync.py")
sync = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sync)


def test_notebooks_and_readme_are_what_the_command_makes_of_the_scripts():
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in sync.scripts()]
    for path, text in sync.files(sync.repository()).items():
        assert path.read_text() == text, f"{path.name}: run `python notebooks/sync.py`"


def test_a_public_address_makes_badges_and_none_makes_no_link():
    for path, text in sync.files("https://github.com/somebody/jaxmeta").items():
        for stem in [path.stem] if path.suffix == ".ipynb" else [path.stem for path in NOTEBOOKS]:
            where = f"github/somebody/jaxmeta/blob/main/notebooks/{stem}.ipynb"
            picture = "![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)"
            assert f"[{picture}](https://colab.research.google.com/{where})" in text
    if sync.repository() is None:
        assert not any("colab.research.google.com" in path.read_text() for path in (*NOTEBOOKS, ROOT / "README.md"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_begins_with_its_title_and_installs_only_what_is_missing(path, monkeypatch):
    title, install, *cells = nbformat.read(path, as_version=4).cells
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("installs what is there"))
    exec(compile(install.source, path.name, "exec"), {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    installed = []
    monkeypatch.setattr("subprocess.run", lambda command, check: installed.append(command[-1]))
    monkeypatch.chdir(path.parent)
    exec(compile(install.source, path.name, "exec"), {})
    assert installed[0] == str(ROOT)  # the checkout it lies in
    monkeypatch.chdir("/")
    exec(compile(install.source, path.name, "exec"), {})
    assert "jaxmeta" in installed
    for cell in cells:
        assert not (cell.cell_type == "code" and "pip" in cell.source)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom_in_three_minutes(path):
    notebook = nbformat.read(path, as_version=4)
    started = time.monotonic()
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert time.monotonic() - started < 180
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    said = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert not [text for text in said if "Warning" in text]

"""The documentation: its python runs as pasted, from a page's top to its end, and the site builds without a warning."""

import importlib
import inspect
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mkdocs.config import load_config
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from benchmarks import tables
from jaxmeta import run_directory, runs
from jaxmeta.__main__ import main
from jaxmeta.recipes import RECIPES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FENCED = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
RUN = ("python", 'python title="jaxmeta"')  # a block with another library's name as its title is theirs, and is not run
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if "```python" in page.read_text())


def blocks_of(text: str) -> Iterator[tuple[str, str | None]]:
    """A page's python, each block on its own lines, so that errors name the page's; and what is shown to come out."""
    found = list(FENCED.finditer(text))
    for block, following in zip(found, [*found[1:], None], strict=True):
        if block[2] in RUN:
            shown = following and not following[2] and not text[block.end() : following.start()].strip()
            python = re.sub(rf"^{block[1]}", "", block[3], flags=re.MULTILINE)
            yield "\n" * text[: block.start(3)].count("\n") + python, following[3] if shown else None


def looks_like(printed: str, shown: str) -> bool:
    """Whether they differ in numbers and spaces only, which another machine's may; `…` stands for any lines."""
    plain = lambda text: re.sub(r"\s+", "", re.sub(r"[-−]?\d[\d.,]*(e[-+]?\d+)?", "#", text))
    return re.fullmatch(re.escape(plain(shown)).replace("…", ".*"), plain(printed)) is not None


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_and_prints_what_is_shown(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for python, shown in blocks_of((DOCS / page).read_text()):
        exec(compile(python, page, "exec"), names)
        printed = capsys.readouterr().out
        assert shown is None or looks_like(printed, shown), f"{page} shows\n{shown}\nand prints\n{printed}"


def test_the_site_builds_without_a_warning(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (site / "index.html").is_file()
    pages = {page: page.read_text() for page in site.rglob("*.html")}

    fetched = r'<(?:script|img|iframe|source)[^>]* src="?(?:https?:)?//[^>]*>|<link[^>]* href="?(?:https?:)?//[^>]*>'
    assert not {str(page): found for page, text in pages.items() if (found := re.findall(fetched, text))}
    anchors = [anchor for text in pages.values() for anchor in re.findall(r'<h\d id="(jaxmeta[\w.]*)"', text)]
    assert public() <= set(anchors) and len(anchors) == len(set(anchors))
    index = json.loads((site / "search" / "search_index.json").read_text())
    found = [entry["location"] for entry in index["docs"] if "truncated" in f"{entry['title']} {entry['text']}".lower()]
    assert "api/adapt/#jaxmeta.adapt.truncated" in found


@pytest.fixture
def shown(tmp_path):
    """A page's text as the hook leaves it, and the site's files then."""
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path))
    config.plugins._current_plugin = "hooks"  # as mkdocs has it while a hook runs

    def show(text: str) -> tuple[str, Files]:
        files = Files([File.generated(config, "algorithms/page.md", content=text)])
        page = Page(None, files.get_file_from_path("algorithms/page.md"), config)
        return hooks["on_page_markdown"](text, page=page, config=config, files=files), files

    return show


def test_figures_are_those_of_the_results(shown):
    result = json.loads((ROOT / "benchmarks/results/cpu/maml-sinusoid/result.json").read_text())
    mse = [f"{result['metrics']['mse']['mean'][k]:.4f} ± {result['metrics']['mse']['ci95'][k]:.4f}" for k in (1, 10)]
    sentence = f"mse {mse[0]} after 1 step; {mse[1]} after 10 steps"
    assert shown("MAML: {{ result maml-sinusoid }}.")[0] == f"MAML: {sentence}."
    assert f"| measured | {sentence} (" in shown("{{ recipe maml-sinusoid }}")[0]
    assert shown("{{ result nvidia-h200/maml-omniglot }}")[0] != shown("{{ result maml-omniglot }}")[0]
    times = shown("{{ throughput nvidia-h200 }}")[0]
    assert times.startswith("| case, tasks, K | jaxmeta | as fit | plain JAX | torch.func | of the product |\n|---|")
    assert shown("{{ longest_loop cpu }}")[0].startswith("| network | exact | exact, segments | mixed mode |")
    again = shown("{{ figure cpu/maml-sinusoid/result.json | metrics.mse.mean[1] | .4f }}")[0]
    assert again == mse[0].split(" ")[0]


def test_a_picture_becomes_a_file_of_the_site(shown):
    text, files = shown("{{ picture cpu/maml-sinusoid/adaptation.png | Sinusoids }}")
    assert "![Sinusoids](../results/cpu/maml-sinusoid/adaptation.png)" in text
    picture = (ROOT / "benchmarks/results/cpu/maml-sinusoid/adaptation.png").read_bytes()
    assert files.get_file_from_path("results/cpu/maml-sinusoid/adaptation.png").content_bytes == picture


@pytest.mark.parametrize(
    "marker",
    [
        "{{ result maml-sinusoids }}",
        "{{ recipe of }}",
        "{{ throughput tpu }}",
        "{{ picture cpu/none.png | alt }}",
        "{{ picture cpu/rl.png }}",
        "{{ figure cpu/rl.json | rows[case=none].median | .3f }}",
        "{{ figure cpu/rl.json | rows.median | .3f }}",
        "{{ figure cpu/rl.json | rows[0].median | q }}",
        "{{ results maml-sinusoid }}",
        "{{ docstring jaxmeta.none }}",
        "{{ names api/none.md }}",
    ],
)
def test_what_a_page_names_and_is_not_there_ends_the_build(shown, marker):
    with pytest.raises(PluginError, match=re.escape(f"algorithms/page.md: {marker}: ")):
        shown(f"as in {marker}")


def test_the_readme_and_the_site_say_the_same():
    readme = (ROOT / "README.md").read_text()
    assert tables.readme(readme, RECIPES) == readme, "python -m benchmarks.tables writes the README's tables anew"
    measured = {name: recipe for name, recipe in RECIPES.items() if (tables.folder_of(name) / "result.json").is_file()}
    assert all(tables.row_of(name) == (recipe.description, recipe.figure) for name, recipe in measured.items())
    assert {name for name, shown in tables.SHOWN.items() if not shown.options} == set(RECIPES)


@pytest.mark.parametrize("name", [name for name, shown in tables.SHOWN.items() if shown.options])
def test_the_command_of_a_result_has_the_settings_that_it_was_measured_with(name, monkeypatch):
    parsed = []
    monkeypatch.setattr(runs, "train_recipe", lambda recipe, config, *_: parsed.append((recipe, config)))
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    assert main(tables.command(name).split()[1:]) == 0
    recipe, _, config = run_directory.read_config(tables.folder_of(name))
    assert parsed == [(recipe, config)]


def test_the_public_address_is_that_of_the_project_or_there_is_none(tmp_path, monkeypatch):
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    on_config = hooks["on_config"]
    monkeypatch.setitem(on_config.__globals__, "ROOT", tmp_path)
    for urls, edit in [("", None), ('Repository = "https://github.com/some/one"', "edit/main/docs/")]:
        (tmp_path / "pyproject.toml").write_text(f"[project]\nname = 'x'\n[project.urls]\n{urls}\n")
        config = on_config(load_config(str(ROOT / "mkdocs.yml")))
        assert config.edit_uri == edit and bool(config.repo_url) == bool(edit)


ROOMS = ("adapt", "nn", "outer", "plotting", "rl", "tasks", "tasks.augment", "training")
ROOMS_OF_RL = ("distributions", "families", "objectives", "on_policy", "oracles", "recurrent", "replay", "returns")


def public() -> set[str]:
    """Every public name by its shortest path: what `__all__` has, or where there is none what a module defines."""
    places: dict[object, str] = {}
    modules = ["jaxmeta", *(f"jaxmeta.{room}" for room in ROOMS), *(f"jaxmeta.rl.{room}" for room in ROOMS_OF_RL)]
    for module in map(importlib.import_module, modules):
        is_own = lambda value, module=module: getattr(value, "__module__", None) == module.__name__
        has_text = lambda value: inspect.isfunction(value) or inspect.isclass(value)
        own = [name for name, value in vars(module).items() if is_own(value) and has_text(value) and name[0] != "_"]
        for name in getattr(module, "__all__", own):
            value, path = getattr(module, name), f"{module.__name__}.{name}"
            places.setdefault(id(value) if has_text(value) or inspect.ismodule(value) else path, path)
    return set(places.values())


ENTRIES = re.compile(r"^::: (\S+)$", re.MULTILINE)


def test_the_api_has_every_public_name_once():
    entries = [name for page in sorted((DOCS / "api").rglob("*.md")) for name in ENTRIES.findall(page.read_text())]
    assert set(entries) - public() == set()
    assert public() - set(entries) == set()
    assert len(entries) == len(set(entries)) > 200


def test_every_field_that_is_public_is_documented():
    """Of tuples with names, dataclasses and flax modules: in a list of attributes, or below the field."""
    missing = {}
    for name in public():
        module, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(module), last)
        if not inspect.isclass(value):
            continue
        fields = [field for field in inspect.get_annotations(value) if field[0] != "_"]
        source = inspect.getsource(value)
        listed = set(re.findall(r"^ +(\w+): ", inspect.getdoc(value), re.MULTILINE))
        below = set(re.findall(r'^    (\w+):[^\n]*\n    """', source, re.MULTILINE))
        missing[name] = [field for field in fields if field not in listed | below | {"parent", "name"}]
    assert len(missing) > 30 and not {name: fields for name, fields in missing.items() if fields}

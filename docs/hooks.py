"""What mkdocs takes from the project itself: figures from benchmarks/results, pictures, the public address.

In a page stands, and is replaced when the site is built:

    {{ result maml-sinusoid }}                 a result in a sentence
    {{ recipe maml-sinusoid }}                 a table: what, to reach, measured, time, command
    {{ throughput cpu }}                       the table of times of one device
    {{ scaling cpu }}, {{ predicted cpu }}     the tables of python -m benchmarks scaling
    {{ longest_loop cpu }}                     the table of inner steps that fit in 1 GiB
    {{ figure FILE | PATH | FORMAT }}          a number of benchmarks/results/FILE, see benchmarks.tables.figure
    {{ picture cpu/rl.png | what is in it }}   a picture of benchmarks/results, which becomes a file of the site
    {{ docstring jaxmeta.algorithms.maml }}    what a module says of itself
    {{ names api/maml.md }}                    a table of the public names on a page, and what each is
    {{ notebooks }}                            a list of the notebooks, which become files of the site

NAME may be a folder of another device, nvidia-h200/maml-omniglot. An unknown name ends the build.
"""

import ast
import json
import posixpath
import re
import sys
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path += [path for path in (str(ROOT), str(ROOT / "docs")) if path not in sys.path]

import griffe_extension as reading  # noqa: E402

from benchmarks import tables  # noqa: E402

MARKER = re.compile(r"\{\{ +(\w+)(?: +(.+?))? +\}\}")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The project's public address, if it has one: without it there is no link to it."""
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {}).get("Repository")
    if address:
        config.repo_url = address.rstrip("/")
        host = urlsplit(address).netloc
        config.repo_name = {"github.com": "GitHub", "gitlab.com": "GitLab"}.get(host, host)
        config.edit_uri = {"github.com": "edit/main/docs/", "gitlab.com": "-/edit/main/docs/"}.get(host)
    return config


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with each marker replaced."""

    def text_of(marker: re.Match[str]) -> str:
        kind, *arguments = marker[1], *(part.strip() for part in (marker[2] or "").split(" | ") if part)
        try:
            if kind == "picture":
                return _picture(*arguments, page=page, config=config, files=files)
            if kind == "notebooks":
                return _notebooks(page=page, config=config, files=files)
            kinds = {
                "result": tables.measured,
                "recipe": tables.recipe,
                "throughput": tables.throughput,
                "figure": tables.figure,
                "scaling": tables.scaling,
                "predicted": tables.predicted,
                "longest_loop": tables.longest_loop,
                "docstring": _docstring,
                "names": _names,
            }
            if kind not in kinds:
                raise KeyError(f"a marker is one of {', '.join(kinds)}, picture, notebooks")
            return kinds[kind](*arguments)
        except (KeyError, ValueError, TypeError) as error:
            raise PluginError(f"{page.file.src_uri}: {marker[0]}: {error.args[0]}") from error

    return MARKER.sub(text_of, markdown)


def _picture(path: str, alt: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    there = tables.RESULTS / path
    if not there.is_file():
        raise KeyError(f"no picture benchmarks/results/{path}")
    link = _link(f"results/{path}", there, page=page, config=config, files=files)
    return f"[![{alt}]({link})]({link})"  # a click shows it in full size


def _notebooks(*, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Each title, and the first sentence under it."""
    lines = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        texts = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
        title, text = next(text for text in texts if text.startswith("# ")).removeprefix("# ").split("\n\n", 1)
        link = _link(f"notebooks/{path.name}", path, page=page, config=config, files=files)
        sentence = re.split(r"(?<=\.)\s", text, maxsplit=1)[0].replace("\n", " ")
        lines.append(f"{path.name[0]}. [{title}]({link}): {sentence}")
    return "\n".join(lines)


def _link(uri: str, there: Path, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """From the page to a file of the project, which becomes one of the site."""
    if files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, abs_src_path=str(there)))
    return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")


def _docstring(module: str) -> str:
    """Of a module, as the API's pages show those of functions."""
    text = ast.get_docstring(_parsed(module))
    if not text:
        raise KeyError(f"{module} says nothing of itself")
    return reading.as_markdown(text, _by_place(), module, set())


def _names(path: str) -> str:
    """Of each entry of a page of the API: its name, and its docstring's first sentence."""
    file = ROOT / "docs" / path
    if not file.is_file():
        raise KeyError(f"no page docs/{path}")
    lines = ["| name | what it is |", "|---|---|"]
    for name in dict.fromkeys(reading.ENTRY.findall(file.read_text())):
        place, text = _found(name)
        said = re.split(r"(?<=[^.]\.)\s|\n\n", text.strip())[0].rstrip(".:")
        text = reading.as_markdown(" ".join(said.split()), _by_place(), place.rsplit(".", 1)[0], set())
        lines.append(f"| [`{name.removeprefix('jaxmeta.')}`][{name}] | {text.replace('|', '&#124;')} |")
    return "\n".join(lines)


@cache
def _by_place() -> dict[str, str]:
    """The public names by where they are defined."""
    return {_found(name)[0]: name for name in reading.public_names()}


@cache
def _found(name: str) -> tuple[str, str]:
    """Where a name is defined, and what is said of it: in its module, or where that imports it from."""
    module, _, last = name.rpartition(".")
    body = _parsed(module).body if module else []
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == last:
            return name, ast.get_docstring(node) or ""
        if isinstance(node, ast.Assign | ast.AnnAssign) and ast.unparse(node).startswith((f"{last} =", f"{last}: ")):
            return name, ast.literal_eval(below.value) if isinstance(below, ast.Expr) else ""
        is_import = isinstance(node, ast.ImportFrom) and node.module != module
        if is_import and last in {alias.name for alias in node.names}:
            return _found(f"{node.module}.{last}")
    return name, ast.get_docstring(_parsed(name)) or ""


@cache
def _parsed(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return ast.parse(file.read_text())
    raise KeyError(f"nothing is called {module}")

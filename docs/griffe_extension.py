"""How docstrings become pages: what griffe, which reads the code without running it, does not know of them.

- Doctests become code blocks, as they stand.
- A public name in backticks becomes a link to its entry: `adapt.sgd`, `jaxmeta.maml`, and in its own module `sgd`.
- `**options` of a function under `names_options_of(constructor)` become the arguments that they are.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import griffe

PAGES = Path(__file__).parent / "api"
DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1.*\S.*)*", re.MULTILINE)
CODE = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)((?:\([^`]*\))?)`(?![`\]])")
# Functions of a learner, and words of every day, where no module is named before them.
NO_LINKS = {"adapt", "agent", "evaluate", "family", "history", "init", "outer", "replay", "report", "returns", "sac"}
NO_LINKS |= {"tasks", "trial", "training", "update", "recurrent", "rollout", "rl", "nn", "plan", "lines", "episode"}


def public_names() -> list[str]:
    """The names that the pages of docs/api show, by their shortest public path."""
    entry = re.compile(r"^::: (jaxmeta\S*)$", re.MULTILINE)
    return [name for page in sorted(PAGES.rglob("*.md")) for name in entry.findall(page.read_text())]


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: object) -> None:
        """Once the package is read."""
        members = list(_members(pkg))
        for member in members:
            if member.is_function:
                _name_options(member)
        _prefer_functions(pkg)
        names = set(public_names())
        by_place = {pkg[name.removeprefix("jaxmeta.")].canonical_path: name for name in names}
        for member in members:
            if member.docstring:
                text = DOCTEST.sub(lambda block: f"```pycon\n{block[0]}\n```", member.docstring.value)
                member.docstring.value = "\n".join(_with_links(text, member, names, by_place))


def _prefer_functions(package: griffe.Module) -> None:
    """`jaxmeta.adapt.auto` is the function that the module of this name has, where the package imports it so."""
    rooms = [member for member in _members(package) if member.is_module and member.is_init_module]
    files = {name for room in rooms for name in room.modules}
    found = [
        (room, name, _at(package, path))
        for room in rooms
        for name, path in room.imports.items()
        if name in files and path.startswith("jaxmeta.")
    ]
    for room, name, target in found:
        if not target.is_module:
            room.members[name] = griffe.Alias(name, target, parent=room)


def _at(package: griffe.Module, path: str) -> griffe.Object:
    """What is there, where the room that it is in has it from, if not from itself."""
    found: griffe.Object = package
    *rooms, name = path.split(".")[1:]
    for room in rooms:
        found = found.members[room]
    there = found.imports.get(name, path) if found.is_module else path
    return found.members[name] if there == path else _at(package, there)


def _members(obj: griffe.Object) -> Iterator[griffe.Object]:
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from _members(member)


def _with_links(text: str, member: griffe.Object, names: set[str], by_place: dict[str, str]) -> Iterator[str]:
    """The lines, with links outside of code blocks and never to where one already is."""
    own = by_place.get(member.canonical_path)
    parameters = {parameter.name for parameter in member.parameters} if member.is_function else set()

    def linked(code: re.Match[str]) -> str:
        name = code[1]
        if name in parameters or name in NO_LINKS:
            return code[0]
        known = [path for path in (f"jaxmeta.{name}", f"jaxmeta.rl.{name}", name) if path in names]
        found = known[0] if known else by_place.get(f"{member.module.canonical_path}.{name}")
        return code[0] if found in (None, own) else f"[{code[0]}][{found}]"

    is_fenced = is_indented = False
    before = ""
    for line in text.split("\n"):
        is_fence = line.startswith("```")
        is_indented = line.startswith("    ") and (is_indented or not before.strip())
        yield line if is_fenced or is_fence or is_indented else CODE.sub(linked, line)
        is_fenced ^= is_fence
        before = line


def _name_options(function: griffe.Function) -> None:
    for decorator in function.decorators:
        called = re.fullmatch(r"names_options_of\((\w+)\)", str(decorator.value))
        options = next((p for p in function.parameters if p.kind is griffe.ParameterKind.var_keyword), None)
        if not called or options is None:
            continue
        theirs = _resolve(function.module, called[1]).parameters
        (typed,) = re.findall(r"Unpack\[(\w+)\]", str(options.annotation))
        del function.parameters["options"]
        for name in _fields(_resolve(function.module, typed)):
            given = theirs[name]
            function.parameters.add(
                griffe.Parameter(
                    name, annotation=given.annotation, kind=griffe.ParameterKind.keyword_only, default=given.default
                )
            )


def _resolve(module: griffe.Module, name: str) -> griffe.Object:
    found = module.members[name]
    return found.final_target if found.is_alias else found


def _fields(typed: griffe.Class) -> list[str]:
    bases = [_resolve(typed.module, str(base)) for base in typed.bases if str(base) != "TypedDict"]
    return [*(field for base in bases for field in _fields(base)), *typed.members]

"""How docstrings become pages: what griffe, which reads the code without running it, does not know of them.

- Doctests become code blocks, as they stand.
- A public name in backticks becomes a link to its entry: `adapt.sgd`, `jaxmeta.maml`, `sgd` where there is but one.
- `**options` of a function under `names_options_of(constructor)` become the arguments that they are.
- Tuples with names and flax modules get the signature that they are made by; what a dataclass says below its fields
  becomes a list of them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import griffe

PAGES = Path(__file__).parent / "api"
DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1.*\S.*)*", re.MULTILINE)
CODE = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)((?:\([^`]*\))?)`(?![`\]])")
# Words that mean something else where they stand alone: fields, arguments, functions of a learner.
WORDS = {"adapt", "after", "episode", "evaluate", "family", "history", "lines", "outer", "plan", "recurrent", "replay"}
WORDS |= {"report", "returns", "rl", "nn", "rollout", "sac", "styles", "tasks", "training", "trial", "truncated"}
WORDS |= {"counted", "linear", "conv", "lvc", "dice", "goal", "reptile", "objectives"}
ENTRY = re.compile(r"^::: (jaxmeta\S*)$", re.MULTILINE)


def public_names() -> list[str]:
    """The names that the pages of docs/api show, by their shortest public path."""
    return [name for page in sorted(PAGES.rglob("*.md")) for name in ENTRY.findall(page.read_text())]


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: object) -> None:
        """Once the package is read."""
        members = list(_members(pkg))
        for member in members:
            if member.is_function:
                _name_options(member)
            elif member.is_class:
                _sign(member)
        said = {member: _said(member) for member in members if member.is_class}
        for member, fields in said.items():
            _list_fields(member, fields)
        _prefer_functions(pkg)
        names = public_names()
        by_place = {pkg[name.removeprefix("jaxmeta.")].canonical_path: name for name in names}
        for member in members:
            if member.docstring:
                inside = {part.name for part in member.parameters} if member.is_function else set()
                inside |= set(member.members) if member.is_class else set()
                here = {place: name for place, name in by_place.items() if place != member.canonical_path}
                place = member.canonical_path if member.is_module else member.module.canonical_path
                text = _with_type(member) if member.is_function else member.docstring.value
                member.docstring.value = as_markdown(text, here, place, inside)


def _members(obj: griffe.Object) -> Iterator[griffe.Object]:
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from _members(member)


def as_markdown(text: str, by_place: dict[str, str], module: str, inside: set[str]) -> str:
    """A docstring with doctests as code blocks, and links outside of code blocks.

    Args:
      text: the docstring.
      by_place: public names by where they are defined, `jaxmeta.adapt.optimizers.sgd`.
      module: where the docstring is.
      inside: names that mean something else there, such as arguments.
    """
    public = set(by_place.values())

    def linked(code: re.Match[str]) -> str:
        name, call = code[1], code[2]
        if name in inside or (name in WORDS and not call):
            return code[0]
        whole = [path for path in (f"jaxmeta.{name}", f"jaxmeta.rl.{name}", name) if path in public]
        alone = [path for path in public if path.rsplit(".", 1)[-1] == name]
        found = by_place.get(f"{module}.{name}") or next(iter(whole), alone[0] if len(alone) == 1 else None)
        return f"[{code[0]}][{found}]" if found else code[0]

    lines, is_fenced, is_indented, before = [], False, False, ""
    for line in DOCTEST.sub(lambda block: f"```pycon\n{block[0]}\n```", text).split("\n"):
        is_fence = line.startswith("```")
        is_indented = line.startswith("    ") and (is_indented or not before.strip())
        lines.append(line if is_fenced or is_fence or is_indented else CODE.sub(linked, line))
        is_fenced ^= is_fence
        before = line
    return "\n".join(lines)


def _with_type(function: griffe.Function) -> str:
    """The docstring, what it returns begun by the type: else whatever is before a colon there is taken for one."""
    lines = function.docstring.value.split("\n")
    if "Returns:" in lines and function.returns is not None:
        first = lines.index("Returns:") + 1
        lines[first] = f"  {function.returns}: {lines[first].strip()}"
    return "\n".join(lines)


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


def _sign(cls: griffe.Class) -> None:
    """Gives tuples with names and flax modules the signature that Python makes of their fields."""
    if not {str(base).rsplit(".", 1)[-1] for base in cls.bases} & {"NamedTuple", "Module"} or "__init__" in cls.members:
        return
    first = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    fields = [
        griffe.Parameter(
            name, annotation=field.annotation, kind=griffe.ParameterKind.positional_or_keyword, default=field.value
        )
        for name, field in cls.attributes.items()
        if field.annotation is not None and not name.startswith("_") and "property" not in field.labels
    ]
    cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(first, *fields)))


def _said(cls: griffe.Class) -> dict[str, str]:
    """What is said below the fields of a dataclass, those that it inherits first."""
    said = {}
    for base in cls.bases:
        inherited = cls.module.members.get(str(base))
        if inherited and (not inherited.is_alias or inherited.target_path.startswith("jaxmeta.")):
            said |= _said(_resolve(cls.module, str(base)))
    documented = {name: field for name, field in cls.attributes.items() if field.docstring}
    return said | {
        name: " ".join(field.docstring.value.split())
        for name, field in documented.items()
        if "property" not in field.labels
    }


def _list_fields(cls: griffe.Class, said: dict[str, str]) -> None:
    """Makes a section of the docstring of what is said below the fields."""
    if not said or not cls.docstring:
        return
    lines, listed = cls.docstring.value.split("\n"), [f"  {name}: {text}" for name, text in said.items()]
    if "Attributes:" in lines:
        at = lines.index("Attributes:") + 1
        lines[at:at] = listed
    else:
        at = next((i for i, line in enumerate(lines) if line == "Raises:" or line.startswith(">>>")), len(lines))
        lines[at:at] = ["", "Attributes:", *listed, ""]
    cls.docstring.value = "\n".join(lines)
    for name in said.keys() & cls.attributes.keys():
        cls.attributes[name].docstring = None


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

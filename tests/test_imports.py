"""The architecture's arrows, held by parsing the imports; what `import jaxmeta` brings with it, and what it costs."""

import ast
import functools
import graphlib
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmeta

ROOT = Path(jaxmeta.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}

# room: the rooms of jaxmeta that it may import besides itself. A file that has no room here fails the test.
ROOMS = {
    "words": set(),
    "traced": set(),
    "signatures": set(),
    "types": {"words"},
    "checks": {"types", "words", "traced"},
    "devices": {"types", "checks"},
    "outer": {"types", "words", "checks", "devices"},
    "adapt": {"types", "words", "traced", "checks", "devices", "outer"},
    "tasks": {"types", "words", "signatures", "checks", "devices"},
    "compiled": {"tasks"},
    "nn": {"types", "checks", "devices"},
    "rl": {"types", "words", "traced", "checks", "devices", "outer", "nn"},
    "algorithms": {"types", "signatures", "checks", "devices", "outer", "adapt", "nn", "rl"},
    "training": {"types", "words", "traced", "checks", "devices"},
    "plotting": {"words", "checks", "types", "training"},
    "run_directory": {"words", "checks", "devices", "recipes", "training"},
    "signals": {"types"},
    "runs": None,  # None: everything
    "recipes": None,
    "__main__": None,
    "": None,  # jaxmeta/__init__.py
}


@functools.cache
def imports_of(path):
    """The absolute names of all modules, or of what in them, that a file imports, wherever it does."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide where they lead"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def module_of(name):
    """The module of the package that holds `name`."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def within(path):
    return {module_of(name) for name in imports_of(path) if name.split(".")[0] == "jaxmeta"}


def room_of(module):
    return module.removeprefix("jaxmeta").split(".")[min(1, module.count("."))]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_room_may(module):
    room = room_of(module)
    assert room in ROOMS, f"{module} is in no room: say in ROOMS what it may import"
    allowed = ROOMS[room]
    if allowed is not None:
        assert {room_of(other) for other in within(MODULES[module])} <= allowed | {room}


def test_no_import_is_part_of_a_cycle():
    """Among files; a package's own `__init__` stands for what it imports."""
    list(graphlib.TopologicalSorter({name: within(path) - {name} for name, path in MODULES.items()}).static_order())


OTHERS = ("gymnax", "gymnasium", "jumanji", "navix", "craftax")
IN_FAMILIES = {"brax": "jaxmeta.rl.families.brax", "xminigrid": "jaxmeta.rl.families.xland"}


@pytest.mark.parametrize(
    ("package", "user"), [*((name, f"jaxmeta.rl.{name}") for name in OTHERS), *IN_FAMILIES.items()]
)
def test_environments_of_others_are_imported_in_one_place(package, user):
    users = {name for name, path in MODULES.items() for other in imports_of(path) if other.split(".")[0] == package}
    assert users == {user}


def test_types_need_jax_alone():
    """And the words in which they show themselves."""
    others = {name.split(".")[0] for name in imports_of(MODULES["jaxmeta.types"])}
    assert others - set(sys.stdlib_module_names) == {"jax", "jaxmeta"}


def run_python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT.parent).stdout


@pytest.mark.parametrize("module", ["jaxmeta", "jaxmeta.rl"])
def test_importing_jaxmeta_imports_nothing_heavy_and_computes_nothing(module):
    after = "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized(), *sys.modules)"
    initialized, *loaded = run_python(f"import sys, {module}; {after}").split()
    heavy = {*OTHERS, *IN_FAMILIES, "matplotlib", "orbax", "torch", "pandas", "scipy.stats", "equinox", "tyro"}
    assert not heavy & set(loaded)
    assert initialized == "False"


def test_importing_jaxmeta_costs_half_a_second_more_than_its_dependencies_at_most():
    """The median of three processes, in each of which the dependencies are there already."""
    timed = "start = time.process_time(); import jaxmeta; print(time.process_time() - start)"
    costs = [float(run_python(f"import time, jax, flax.linen, optax; {timed}")) for _ in range(3)]
    assert statistics.median(costs) < 0.5

"""`inspect.signature` of whatever is public names every argument, with its type and a default that one can read."""

import importlib
import inspect

import pytest
from flax import linen as nn

from jaxmeta import adapt

MODULES = (
    "jaxmeta",
    "jaxmeta.adapt",
    "jaxmeta.nn",
    "jaxmeta.outer",
    "jaxmeta.rl",
    "jaxmeta.rl.families",
    "jaxmeta.rl.oracles",
    "jaxmeta.tasks",
    "jaxmeta.tasks.augment",
    "jaxmeta.training",
)
MODULES_OF_FUNCTIONS = ("jaxmeta.rl.objectives", "jaxmeta.rl.replay", "jaxmeta.rl.returns", "jaxmeta.plotting")

OF_AN_OPTIMIZER = {"jaxmeta.outer.apply_gradient", "jaxmeta.outer.outer_step"}  # `**extra` is whatever it takes
OF_FLAX = ("parent", "name")  # what every module has besides its own fields


def public():
    """(name, callable) of all that `__all__` names, or that a module of functions defines."""
    for name in MODULES + MODULES_OF_FUNCTIONS:
        module = importlib.import_module(name)
        own = [k for k, v in vars(module).items() if getattr(v, "__module__", "") == name and not k.startswith("_")]
        for attribute in getattr(module, "__all__", own):
            value = getattr(module, attribute)
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{name}.{attribute}", value


def faults(value):
    signature = inspect.signature(value.__call__ if getattr(value, "_is_protocol", False) else value)
    others = OF_FLAX if inspect.isclass(value) and issubclass(value, nn.Module) else ("self",)
    for name, parameter in signature.parameters.items():
        if name in others:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            yield f"{parameter} hides what may be given"
        if parameter.annotation is parameter.empty:
            yield f"{name} has no type"
        if " at 0x" in repr(parameter.default):
            yield f"the default of {name} is an address, {parameter.default!r}"
    if inspect.isfunction(value) and signature.return_annotation is signature.empty:
        yield "what it returns has no type"


def test_a_signature_names_types_and_defaults():
    found = {name: list(faults(value)) for name, value in public() if name not in OF_AN_OPTIMIZER}
    assert len(found) > 100
    assert not {name: found[name] for name in found if found[name]}


def test_faults_are_noticed():
    """The control."""

    def hides(x: int, *args: int, y=1, z: object = len, key: object = lambda: 0, **options: int) -> int: ...

    assert [fault.split()[0] for fault in faults(hides)] == ["*args:", "y", "the", "**options:"]
    assert list(faults(lambda x: x)) == ["x has no type", "what it returns has no type"]


@pytest.mark.parametrize("name", ["MetaGradient", "Solver", "Trace", "Adapted", "InnerOptimizer"])
def test_a_contract_has_text_and_an_example(name):
    text = inspect.getdoc(getattr(adapt, name))
    assert len(text.splitlines()) > 5 and ">>> " in text


def test_help_reaches_the_rules_of_auto():
    assert "plain reverse mode" in adapt.auto.__doc__ and "√K segments" in adapt.auto.__doc__

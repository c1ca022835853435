"""The command `jaxmeta`: list, train, evaluate. What is wrong with a call is said in a line or two, with status 2."""

import contextlib
import dataclasses
import difflib
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxmeta import __version__

if TYPE_CHECKING:
    from jaxmeta.recipes import Recipe

USAGE = """usage: jaxmeta COMMAND

  jaxmeta list                          the recipes
  jaxmeta train RECIPE [--seed INT] [--out DIR] [--resume] [--num-devices INT] [--distributed] [--FIELD VALUE ...]
                                        meta-train, evaluate, draw; jaxmeta train RECIPE --help explains every field
  jaxmeta evaluate DIR [--num-tasks INT] [--data-dir DIR]
                                        evaluate a run again
  jaxmeta --version"""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    seed: int = 0
    """Seed of everything random, from 0 to 2**32 - 1."""
    out: Path | None = None
    """Directory of the run; a new one under runs/ if None."""
    resume: bool = False
    """Go on with the run in --out, from its last checkpoint."""
    num_devices: int | None = None
    """Devices that share the tasks of an outer step; of a CPU, so many of its cores. If None those of the run that
    --resume goes on with, else 1. With --distributed, those of each process; all if None."""
    distributed: bool = False
    """Train together with other processes, each started by this command: docs/how-to/devices.md."""
    coordinator: str | None = None
    """With --distributed, HOST:PORT of process 0; left out under Slurm, Open MPI, Kubernetes or on a TPU."""
    num_processes: int | None = None
    """With --coordinator, how many processes there are."""
    process_id: int | None = None
    """With --coordinator, which of them this is, from 0 on."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    dir: Annotated[Path, tyro.conf.Positional]
    """Directory of a run."""
    num_tasks: int | None = None
    """Test tasks; as in the run if None."""
    data_dir: str | None = None
    """Folder with the data, for recipes that have it; as in the run if None."""


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv == ["--version"]:
        print(f"jaxmeta {__version__}")
        return 0
    commands = {"list": _list, "train": _train, "evaluate": _evaluate}
    if argv[0] not in commands:
        return _fail(f"there is no command {argv[0]!r}\n{USAGE}")
    shown, warnings.formatwarning = warnings.formatwarning, lambda message, *_, **__: f"\njaxmeta: {message}\n"
    try:
        commands[argv[0]](argv[1:])
    except ValueError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, FloatingPointError, ImportError) as error:  # the last where a recipe needs an extra
        return _fail(str(error), status=1)
    except (MemoryError, RuntimeError) as error:  # jax's own is the latter
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail(_out_of_memory(error), status=1)
    except KeyboardInterrupt as error:
        asked = "stopped; what was saved is kept, go on with --resume and --out DIR"
        return _fail(asked, status=getattr(error, "status", 130))
    finally:
        warnings.formatwarning = shown
    return 0


def _out_of_memory(error: BaseException) -> str:
    found = re.search(r"Out of memory[^.]*?allocat\w* [\d,.]+ ?\w*", str(error))
    what = found.group() if found else str(error).splitlines()[0][:160] if str(error) else "Out of memory"
    return (
        f"{what}: fewer of --num-tasks, or, where the recipe has it, a --microbatch of so many tasks at a time, takes "
        "less; docs/how-to/memory.md says what takes how much"
    )


def _fail(message: str, status: int = 2) -> int:
    print(f"jaxmeta: {message}", file=sys.stderr)
    return status


def _list(argv: list[str]) -> None:
    if argv:
        raise ValueError(f"list takes no arguments, got {' '.join(argv)}")
    from jaxmeta.recipes import RECIPES

    for name, recipe in RECIPES.items():
        print(f"{name:18} {recipe.description}\n{'':18} {recipe.paper}")
        print(f"{'':18} to reach: {recipe.figure}; about {recipe.minutes:g} min on a laptop\n")
    print("jaxmeta train RECIPE runs one; jaxmeta train RECIPE --help explains its fields")


def _train(argv: list[str]) -> None:
    from jaxmeta.recipes import RECIPES

    if not argv or argv[0] in ("-h", "--help"):
        print(f"{USAGE}\n\nrecipes: {', '.join(RECIPES)}")
        return
    name = argv[0]
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no recipe {name!r}: {hint}the recipes are {', '.join(RECIPES)}")
    from jaxmeta.compiled import keep_compiled
    from jaxmeta.runs import train_recipe

    recipe = RECIPES[name]
    options, config = _parsed(name, recipe, recipe.config(), argv[1:])
    if recipe.by:  # what was not given follows from those fields
        options, config = _parsed(name, recipe, recipe.settings_for(config), argv[1:])
    num_devices = _chosen_devices(options)
    keep_compiled()
    train_recipe(name, config, options.seed, options.out, options.resume, num_devices)


def _chosen_devices(options: TrainOptions) -> int | None:
    """Of this run, None for all of all processes; JAX is told before anything of it runs."""
    import jax

    from jaxmeta.checks import check_integer
    from jaxmeta.devices import join_processes
    from jaxmeta.run_directory import num_devices_of

    number, others = options.num_devices, (options.coordinator, options.num_processes, options.process_id)
    if number is not None:
        check_integer("num_devices", number, minimum=1)
    elif options.resume and options.out is not None and not options.distributed:
        number = num_devices_of(options.out)
    if number is not None and number > 1:
        with contextlib.suppress(RuntimeError):  # it has devices already, and `over_devices` says if they are too few
            jax.config.update("jax_num_cpu_devices", number)
    if not options.distributed:
        if any(option is not None for option in others):
            raise ValueError("--coordinator, --num-processes and --process-id are for --distributed: add it")
        return number or 1
    if options.out is None:
        raise ValueError("--distributed needs --out DIR, a folder that all processes see")
    join_processes(*others)
    return None


def _parsed(name: str, recipe: "Recipe", default: Any, argv: list[str]) -> tuple[TrainOptions, Any]:
    """The options of the run and the recipe's configuration: what is given in `argv`, the rest from `default`."""
    flat = tyro.conf.arg(name="")  # --num-tasks, and --ppo.clip of what is nested in a recipe
    arguments = dataclasses.make_dataclass(
        "Train", [("run", Annotated[TrainOptions, flat]), ("recipe", Annotated[type(default), flat])]
    )
    by = " and ".join(f"{field} {getattr(default, field)}" for field in recipe.by)
    follow = f"\nThe defaults below are for {by}, and follow them." if by else ""
    parsed = tyro.cli(
        arguments,
        prog=f"jaxmeta train {name}",
        description=f"{recipe.description}. {recipe.paper}\nTo reach: {recipe.figure}.{follow}",
        args=argv,
        default=arguments(TrainOptions(), default),
    )
    return parsed.run, parsed.recipe


def _evaluate(argv: list[str]) -> None:
    options = tyro.cli(EvaluateOptions, prog="jaxmeta evaluate", args=argv)
    from jaxmeta.compiled import keep_compiled
    from jaxmeta.runs import evaluate_directory

    keep_compiled()
    evaluate_directory(options.dir, options.num_tasks, options.data_dir)


if __name__ == "__main__":
    sys.exit(main())

"""The command: `python -m benchmarks NAME [--quick] [--json FILE] [--cases A,B]`."""

import difflib
import importlib
import sys
from collections.abc import Sequence

import tyro

BENCHMARKS = (
    "throughput",
    "memory",
    "longest_loop",
    "recomputing",
    "gradient_error",
    "compile_time",
    "first_step",
    "estimators",
    "exploration",
    "bilevel",
    "rl",
    "rl2_table",
    "cores",
    "sample_efficiency",
    "scaling",
)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name = argv[0]
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        return _fail(f"there is no benchmark {name!r}{hint}\n\n{_usage()}")
    from benchmarks.shared.options import UnknownCase
    from benchmarks.shared.report import default_path

    benchmark = importlib.import_module(f"benchmarks.{name}")
    options = tyro.cli(
        benchmark.Options, args=argv[1:], prog=f"python -m benchmarks {name}", description=benchmark.__doc__
    )
    if prepare := getattr(benchmark, "prepare", None):
        prepare()  # what has to be said before JAX runs
    try:
        benchmark.run(options, options.json or default_path(name, options.quick))
    except UnknownCase as error:
        return _fail(str(error))
    return 0


def _usage() -> str:
    lines = [
        "usage: python -m benchmarks NAME [--quick] [--json FILE] [--cases A,B]; NAME --help explains them",
        "",
    ]
    for name in BENCHMARKS:
        doc = importlib.import_module(f"benchmarks.{name}").__doc__ or ""
        lines.append(f"  {name:16} {doc.splitlines()[0]}")
    return "\n".join(lines)


def _fail(message: str) -> int:
    print(f"benchmarks: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

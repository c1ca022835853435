"""What all tests share: float64, strict shapes and the real Omniglot, for those that ask for them."""

import gc
import os
import sys
from pathlib import Path

import jax
import jax.experimental
import jax.monitoring
import optax
import pytest

from jaxmeta.recipes.maml_rl import GradientRL
from jaxmeta.recipes.varibad import VariBAD
from jaxmeta.run_directory import read_config
from jaxmeta.runs import _restore
from jaxmeta.tasks.omniglot import load_omniglot

collect_ignore = ["one_process.py", "shared_updates.py"]  # programs, which tests start

sys.path.insert(0, str(Path(__file__).parent))  # for `reference`, whatever pytest's import mode


def _float64():
    """A context with float64, by the name that this release of jax has for it."""
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64(True)


# Sums and their order are those of XLA, which optimises as ever; what writes machine code need neither polish it, nor
# divide it among threads, nor take the way through MLIR, whose code is faster and takes three times as long to write.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)


def pytest_configure(config):
    """Most of what the check waits for is compiling, and its programs run for moments. `-m slow` trains."""
    if config.option.markexpr == "not slow":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_TO_COMPILE}".strip()
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # of programs that tests start; nothing in the user's home
    jax.config.update("jax_enable_compilation_cache", False)
    jax.devices()  # the flags are read, and benchmarks leave the number of devices alone
    jax.config.update("jax_traceback_in_locations_limit", 0)  # which line of python an operation is of: nobody asks
    jax.config.update("jax_traceback_filtering", "off")  # thousands of errors are expected, and none is looked at


def pytest_collection_finish():
    """Tracing makes millions of small objects, few of them in cycles: look for those less often, and never again among
    the modules and tests that are there for good."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture
def x64():
    """Float64 for one test."""
    with _float64():
        yield


@pytest.fixture(scope="module")
def x64_module():
    """Float64 for all tests of a module."""
    with _float64():
        yield


@pytest.fixture(scope="module")
def strict_shapes():
    """A vector and a matrix do not broadcast: `jax_numpy_rank_promotion="raise"` for all tests of a module."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def omniglot_dir():
    """A folder with the real archives."""
    beside = Path(__file__).parents[1].parent / "shared" / "data" / "omniglot"
    folder = Path(os.environ.get("JAXMETA_OMNIGLOT") or beside)
    if not folder.is_dir():
        pytest.skip(f"no Omniglot at {folder}: name a folder with its archives in JAXMETA_OMNIGLOT")
    return folder


@pytest.fixture(scope="session")
def omniglot_cache(tmp_path_factory):
    """Where the real data is decoded to, once for all workers of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "omniglot_cache"


@pytest.fixture(scope="session")
def omniglot_images(omniglot_dir, omniglot_cache):
    return load_omniglot(omniglot_dir, cache_dir=omniglot_cache)


@pytest.fixture
def schedule_ends_with_the_run():
    """(directory of a run) -> asserts that a cosine counts the optimizer's steps, or it ends too early or never."""

    def check(directory):
        _, _, config = read_config(directory)
        state = _restore(directory, config.build())
        counts = {int(count) for _, count in optax.tree.get_all_with_path(state.opt_state, "count")}
        has_no_rate = isinstance(config, GradientRL) and config.outer == "trpo"  # RL²'s critic has one
        of_beliefs = {config.num_model_steps()} if isinstance(config, VariBAD) else set()
        assert counts == (set() if has_no_rate else {config.num_optimizer_steps()} | of_beliefs)

    return check


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Forget compiled programs before a process has too many: each has memory maps of its own, of which Linux gives a
    process 65,530, and LLVM kills one that asks for more."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


_compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: _compiled.append(event) if "backend_compile" in event else None
)


@pytest.fixture
def num_compiled():
    """() -> how many programs XLA has compiled since the last call."""

    def count():
        number = len(_compiled)
        _compiled.clear()
        return number

    count()
    return count

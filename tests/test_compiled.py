"""What is compiled once is read by the next process; damage, another process and a full house do no harm."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import jaxmeta
from jaxmeta import compiled

events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))


@pytest.fixture
def switched_on(tmp_path, monkeypatch):
    """JAX as a new process finds it, where tests of others keep nothing; the default folder."""
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path))
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
    yield tmp_path / "compiled"
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    compilation_cache.reset_cache()


def compute():
    """A program that JAX has not seen in this process, though its text is always the same; whether it was read."""
    events.clear()
    result = jax.jit(lambda x: jnp.sin(x) @ x)(np.full((3, 3), 2.0, np.float32))
    return result.tolist(), "/jax/compilation_cache/cache_hits" in events


def test_a_program_is_compiled_once_and_then_read(switched_on):
    assert jaxmeta.keep_compiled() == switched_on
    expected, was_read = compute()
    assert not was_read and list(switched_on.glob("jit__lambda-*-cache"))
    assert compute() == (expected, True)
    assert jaxmeta.keep_compiled() == jaxmeta.keep_compiled(switched_on) == switched_on


@pytest.mark.parametrize("damage", [lambda content: content[:100], lambda content: b"", lambda content: content[::-1]])
def test_a_damaged_entry_is_said_and_compiled_anew(switched_on, damage):
    jaxmeta.keep_compiled()
    expected, _ = compute()
    for path in switched_on.glob("*-cache"):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="reading persistent compilation cache entry"):
        assert compute() == (expected, False)


def test_it_is_turned_off_by_jaxs_own_switch(switched_on):
    jax.config.update("jax_enable_compilation_cache", False)
    assert jaxmeta.keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir is None and not switched_on.exists()


def test_a_folder_that_cannot_be_written_is_a_warning(switched_on):
    switched_on.write_text("no folder")
    with pytest.warns(UserWarning, match=f"{switched_on} cannot be written.*JAXMETA_CACHE"):
        assert jaxmeta.keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir is None
    compute()


def test_where_the_user_keeps_programs_already_stays(switched_on, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert jaxmeta.keep_compiled() == tmp_path / "mine"
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 1.0
    with pytest.raises(ValueError, match="cache_dir must be .*mine, where JAX keeps programs already, got .*other"):
        jaxmeta.keep_compiled(tmp_path / "other")


def test_what_was_not_used_for_longest_goes(tmp_path):
    ages = {"old-cache": 1, "middle-cache": 2, "new-cache": 3, "other": 0}
    for name, age in ages.items():
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (age, age))
    os.utime(tmp_path / "old-cache", (4, 1))  # it was read since
    compiled._forget(tmp_path, 20)
    assert {path.name for path in tmp_path.iterdir()} == {"old-cache", "new-cache", "other"}


@pytest.mark.slow
def test_processes_at_once_share_a_folder(tmp_path):
    code = "import jaxmeta, sys; print(jaxmeta.keep_compiled(sys.argv[1])); from test_compiled import compute; "
    path = os.pathsep.join([str(Path(jaxmeta.__file__).parents[1]), str(Path(__file__).parent)])
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "true", "PYTHONPATH": path}
    command = [sys.executable, "-W", "error", "-c", code + "print(*compute())", str(tmp_path)]
    start = lambda: subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    together = [process.communicate()[0].splitlines() for process in [start() for _ in range(3)]]
    later = start().communicate()[0].splitlines()
    assert later[0] == str(tmp_path) and later[1].endswith(" True")
    assert {lines[1].rpartition(" ")[0] for lines in (*together, later)} == {later[1].rpartition(" ")[0]}

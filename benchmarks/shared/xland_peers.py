"""XLand-MiniGrid's own training loop, `training/train_meta_task.py` of a checkout of its repository, to be timed.

Nothing of it is here: its files are run as they are, but for two defaults of a class in `utils.py`, which are arrays,
and which Python 3.11 and newer refuse.
"""

import re
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from benchmarks.shared.contenders import Unavailable
from benchmarks.shared.measure import Program, jax_program
from jaxmeta.rl.families import Ruleset

_FILES = ("nn", "utils", "train_meta_task")  # in the order in which they import each other


def own_loop(checkout: Path | None, rulesets: Ruleset, *, num_envs: int, num_steps: int, num_chunks: int) -> Program:
    """`num_chunks` of its updates, each of `num_steps` steps in `num_envs` environments, on the given rulesets.

    Args:
      checkout: where its repository is.
      rulesets: stacked, in the place of its benchmark, which would be a download.
      num_envs: environments side by side.
      num_steps: of an update, in each.
      num_chunks: updates of a call.

    Raises:
      Unavailable: there is no checkout, or a package of its script's is missing.
    """
    if checkout is None:
        raise Unavailable("give --xland-checkout PATH, a checkout of github.com/dunnolab/xland-minigrid")
    module = _train_meta_task(checkout)
    config = module.TrainConfig(
        rnn_hidden_dim=64,
        head_hidden_dim=64,
        num_envs=num_envs,
        num_steps_per_env=num_chunks * num_steps,
        num_steps_per_update=num_steps,
        total_timesteps=num_envs * num_chunks * num_steps,
        num_minibatches=8,
        eval_num_envs=jax.local_device_count(),
        eval_num_episodes=0,  # its evaluation is not timed
    )
    with mock.patch("xminigrid.load_benchmark", lambda name: _benchmark(rulesets)):
        rng, env, env_params, benchmark, start, state = module.make_states(config)
    devices = jax.local_devices()
    args = (jax.random.split(rng, len(devices)), module.replicate(state, devices), module.replicate(start, devices))
    return jax_program(module.make_train(env, env_params, benchmark, config), *args)


def _benchmark(rulesets: Ruleset) -> Any:
    from xminigrid.benchmarks import Benchmark

    rules = rulesets.rules if rulesets.rules.shape[1] else np.zeros((len(rulesets.goal), 1, 7), np.uint8)
    num_rules = np.full(len(rulesets.goal), rulesets.rules.shape[1])
    parts = {"goals": rulesets.goal, "rules": rules, "init_tiles": rulesets.objects, "num_rules": num_rules}
    return Benchmark(**jax.tree.map(jax.numpy.asarray, parts))


def _train_meta_task(checkout: Path) -> Any:
    """Its script as a module; its files import each other by their bare names."""
    others = {name: sys.modules.pop(name, None) for name in _FILES}
    try:
        for name in _FILES:
            path = checkout / "training" / f"{name}.py"
            if not path.is_file():
                raise Unavailable(f"there is no {path}: --xland-checkout is the folder that has training/ in it")
            source = re.sub(r"(: jax\.Array = )jnp\.asarray\((0(?:\.0)?)\)$", r"\g<1>\2", path.read_text(), flags=re.M)
            module = sys.modules[name] = types.ModuleType(name)
            exec(compile(source, str(path), "exec"), module.__dict__)
    except ImportError as error:
        raise Unavailable(f"{error}: pip install distrax pyrallis wandb, which its script imports") from error
    finally:
        for name, other in others.items():
            sys.modules.pop(name, None)
            if other is not None:
                sys.modules[name] = other
    return module

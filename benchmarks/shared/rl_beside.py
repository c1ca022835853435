"""Meta-RL beside the loops of others: XLand-MiniGrid's own, and one on the host in PyTorch."""

from pathlib import Path
from typing import NamedTuple

import jax

import jaxmeta
from benchmarks.shared.contenders import Unavailable
from benchmarks.shared.rl_programs import TRAINING, Built, drawn, of_gradients, of_trials
from benchmarks.shared.xland import conv_gru
from jaxmeta import rl
from jaxmeta.rl import families
from jaxmeta.rl.on_policy import PolicyStep

XLAND, PYTORCH = "XLand-MiniGrid's own loop", "PyTorch, step by step"
HORIZON = 32  # steps of an episode on XLand-MiniGrid


class XLandCase(NamedTuple):
    """RL² on XLand-MiniGrid with the network of its own loop: N trials of so many episodes of 32 steps."""

    num_tasks: int
    size: int


class HostCase(NamedTuple):
    """MAML on 2D navigation: N tasks, the episodes that the inner step, and the outer one, learns from, and by what."""

    num_tasks: int
    size: int
    outer: PolicyStep


def build_xland(case: XLandCase, checkout: Path | None) -> Built:
    """RL², and XLand-MiniGrid's own loop of as many steps and the same sizes, where there is one.

    Of a trial those steps count that come before the end of its last episode; of theirs all do. An actor and a critic
    of their own learn here; theirs is one network with two heads.
    """
    try:
        family = families.xland(one_hot=False, horizon=HORIZON)
    except ImportError as error:
        raise Unavailable(str(error)) from error
    learner = jaxmeta.rl2(
        family, num_episodes=case.size, actor=conv_gru(5), outer=jaxmeta.PPO(num_minibatches=8), entropy_weight=0.01
    )
    programs, flops, num_steps = of_trials(family, learner, case.num_tasks, case.size)
    _, tasks = drawn(family, case.num_tasks)
    _, metrics = jax.jit(learner.update)(jax.random.key(2), learner.init(jax.random.key(0)), tasks)
    num_steps[TRAINING] = int(metrics["num_env_steps"])
    length, num_chunks = case.size * HORIZON, max(1, 4 // case.size)
    try:
        from benchmarks.shared.xland_peers import own_loop

        programs[XLAND] = own_loop(
            checkout, family.train.data, num_envs=case.num_tasks, num_steps=length, num_chunks=num_chunks
        )
    except Unavailable as error:
        print(f"{XLAND} is left out: {error}")
        return programs, flops, num_steps
    return programs, flops, num_steps | {XLAND: case.num_tasks * length * num_chunks}


def build_host(case: HostCase) -> Built:
    """MAML, and the same in PyTorch, where that is installed."""
    family = families.navigation()
    policy = rl.mlp_policy(family)
    learner = jaxmeta.maml_rl(*policy, family.environment, num_episodes=case.size, outer=case.outer)
    by_trpo = isinstance(case.outer, jaxmeta.TRPO)
    uncounted = (TRAINING,) if by_trpo else ()
    programs, flops, num_steps = of_gradients(family, learner, case.num_tasks, case.size, uncounted=uncounted)
    try:
        from benchmarks.shared.navigation_peers import own_loop
    except ImportError as error:
        print(f"{PYTORCH} is left out: {error}")
        return programs, flops, num_steps
    programs[PYTORCH], num_steps[PYTORCH] = own_loop(case.num_tasks, case.size, by_trpo=by_trpo)
    return programs, flops, num_steps

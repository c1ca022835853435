"""The Bayes-optimal policy of a few tabular MDPs that are equally likely, by dynamic programming over what was seen.

While rewards are the same in all of them, and so tell nothing, a belief is the counts of transitions. Their number
grows fast: this is for MDPs that are small, beside which bounds and learners can be laid.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_instance, check_integer
from jaxmeta.rl.families.discrete import TabularMDP
from jaxmeta.rl.rollout import Agent
from jaxmeta.rl.trials import Inputs

MAX_NODES = 200_000


class Node(NamedTuple):
    """Where a trial may stand: the state, how often each transition was seen `[S, A, S]`, and where each leads,
    `[A, S]`, as an index of the next step's nodes."""

    state: int
    counts: np.ndarray
    following: np.ndarray


class Lookup(NamedTuple):
    """Of all nodes `[M]`, one step after the other: the best action, and what follows, `[M, A, S]`."""

    best: jax.Array
    following: jax.Array


def bayes_optimal_mdp(mdps: TabularMDP, *, num_episodes: int = 1, horizon: int = 10) -> tuple[float, Agent]:
    """The best that any policy can do that is told the MDPs, but not which of them it is in; and the policy that does.

        V_t(s, c) = max_a r(s, a) + Σ_{s'} p(s' | s, a, c) V_{t+1}(s', c + (s, a, s')),   p of the posterior by counts c

    over whole trials in the environment of `tabular_mdp`: an episode begins in state 0, and the state in which it ended
    is not seen. Computed in float64 on the host, once; the policy only looks up.

    Whoever is told which it is has no less, `plan`, in mean over the MDPs; and no other policy has more, such as `psrl`
    and `exploration_bonus`. These hold for `tabular_mdp` too, whose own optimum nobody knows:

        mean_i V(π, M_i)  ≤  V_0  ≤  E mean_i max_π V(π, M_i)        for every π

    Duff, "Optimal Learning: Computational Procedures for Bayes-Adaptive Markov Decision Processes" (2002),
    https://scholarworks.umass.edu/dissertations/AAI3039353; the bounds: Dimitrakakis, "Tree Exploration for Bayesian RL
    Exploration" (2008), https://arxiv.org/abs/0902.0392

    Args:
      mdps: N of them, stacked: P `[N, S, A, S]`, and mean rewards `[N, S, A]`, the same in all.
      num_episodes: E, episodes of the trial. The policy must not be run for more.
      horizon: H, steps of an episode.

    Returns:
      The expected total reward of a trial, and the agent.

    Raises:
      ValueError: `mdps` are no stacked `TabularMDP`s or differ in their rewards, a count is not a positive integer, or
        there is too much that can be seen.

    Two MDPs whose actions 0 and 1 are swapped, where state 1 pays: after an episode it is known which.

    >>> to = np.eye(2)[[[0, 1], [1, 1]]]  # action 1 goes from state 0 to 1, where both stay
    >>> mdps = TabularMDP(np.stack([to, to[:, ::-1]]), np.array([[[0.0, 0.0], [1.0, 1.0]]] * 2))
    >>> bayes_optimal_mdp(mdps, num_episodes=2, horizon=3)[0]  # 2 or, a step later, 1; then 2
    3.5
    """
    transitions, rewards = _checked(mdps)
    check_integer("num_episodes", num_episodes, minimum=1)
    check_integer("horizon", horizon, minimum=1)
    levels = _enumerate(transitions, num_episodes * horizon, horizon)
    value, best = np.zeros(1 + max(node.following.max() for node in levels[-1])), list[int]()
    for level in reversed(levels):
        q = np.stack([_worth(transitions, rewards, node, value) for node in level])
        value, best = q.max(axis=1), q.argmax(axis=1).tolist() + best
    offsets = np.cumsum([len(level) for level in levels])
    following = [node.following + offset for level, offset in zip(levels, offsets, strict=True) for node in level]
    lookup = Lookup(jnp.asarray(best, jnp.int32), jnp.asarray(np.stack(following), jnp.int32))
    return float(value[0]), Agent(_follow, lookup, jnp.int32(0))


def _checked(mdps: TabularMDP) -> tuple[np.ndarray, np.ndarray]:
    """P `[N, S, A, S]`, and the rewards `[S, A]` of all."""
    check_instance("mdps", mdps, TabularMDP)
    transitions, rewards = (np.asarray(of, float) for of in mdps)
    if transitions.ndim != 4 or rewards.shape != transitions.shape[:3] or transitions.shape[1] != transitions.shape[3]:
        raise ValueError(
            f"mdps must be stacked, transitions [N, S, A, S] and rewards [N, S, A], got {transitions.shape} and "
            f"{rewards.shape}"
        )
    if np.any(rewards != rewards[0]):
        raise ValueError("mdps must have the same rewards, whose noise would tell them apart else; got others")
    return transitions, rewards[0]


def _posterior(transitions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of each MDP, `[N]`."""
    chance = np.prod(transitions**counts, axis=(1, 2, 3))
    return chance / chance.sum()


def _predicted(transitions: np.ndarray, node: Node) -> np.ndarray:
    """p(s' | s, a) of a node, `[A, S]`."""
    return np.tensordot(_posterior(transitions, node.counts), transitions[:, node.state], axes=1)


def _worth(transitions: np.ndarray, rewards: np.ndarray, node: Node, value: np.ndarray) -> np.ndarray:
    """Of each action, `[A]`, by the values of the next step's nodes."""
    return rewards[node.state] + np.sum(_predicted(transitions, node) * value[node.following], axis=1)


def _enumerate(transitions: np.ndarray, num_steps: int, horizon: int) -> list[list[Node]]:
    """What can be reached, step by step."""
    nothing = np.zeros(transitions.shape[1:], np.int16)
    reached, levels, total = [(0, nothing)], list[list[Node]](), 0
    for t in range(num_steps):
        total += len(reached)
        if total > MAX_NODES:
            raise ValueError(f"mdps, num_episodes and horizon must be smaller: over {MAX_NODES} beliefs in {t} steps")
        levels.append([Node(*of, np.zeros(nothing.shape[1:], np.int64)) for of in reached])
        index: dict[tuple[int, bytes], int] = {}
        following: list[tuple[int, np.ndarray]] = []
        for node in levels[-1]:
            for action, to in zip(*np.nonzero(_predicted(transitions, node) > 0), strict=True):
                after = _seen(node, action, to) if (t + 1) % horizon else (0, node.counts)
                place = index.setdefault((after[0], after[1].tobytes()), len(index))
                following += [after] if place == len(following) else []
                node.following[action, to if (t + 1) % horizon else slice(None)] = place
        reached = following
    return levels


def _seen(node: Node, action: int, to: int) -> tuple[int, np.ndarray]:
    counts = node.counts.copy()
    counts[node.state, action, to] += 1
    return int(to), counts


def _follow(key: jax.Array, lookup: Lookup, node: jax.Array, inputs: Inputs):
    """As an `rl.Policy`."""
    reached = lookup.following[node, jnp.maximum(inputs.action, 0), jnp.argmax(inputs.observation)]
    node = jnp.where(inputs.no_action, node, reached)
    return lookup.best[node], node, ()

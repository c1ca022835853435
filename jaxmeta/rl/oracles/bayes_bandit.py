"""The Bayes-optimal policy of Bernoulli bandits whose arms pay with p ~ U(0, 1), by dynamic programming over beliefs.

Arms are exchangeable, so that a belief is the sorted list of the arms' count pairs: 5 arms and 10 pulls have
1,951 of them in place of millions. A pair is one number, its code: s (n + 1) + f for s successes and f failures.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import check_integer
from jaxmeta.rl.rollout import Agent
from jaxmeta.rl.trials import Inputs

MAX_SIZE = 20_000_000  # beliefs × arms², some hundred MB while they are enumerated


class Beliefs(NamedTuple):
    """All beliefs after the same number of pulls: their sorted codes `[M, A]`, and where each pull leads, as indices
    `[M, A, 2]` into the next `Beliefs`: pull number `place` in the sorted list, and be paid 0 or 1."""

    codes: np.ndarray
    following: np.ndarray


class Plan(NamedTuple):
    """Of all beliefs, one after the other: the best place `[S]`, and what follows, `[S, A, 2]`."""

    best: jax.Array
    following: jax.Array


class Belief(NamedTuple):
    """Which belief it is, and the code of each arm, `[A]`."""

    node: jax.Array
    codes: jax.Array


def bayes_optimal_bandit(num_arms: int, num_pulls: int) -> tuple[float, Agent]:
    """The best that any policy can do on `bernoulli_bandit`, and the policy that does it.

        V_r(belief) = max_a p_a (1 + V_{r−1}(a paid)) + (1 − p_a) V_{r−1}(a did not),   p_a = (1 + s_a)/(2 + s_a + f_a)

    with r pulls left and V_0 = 0. Computed in float64 on the host, once; the policy only looks up.

    Args:
      num_arms: A, the number of arms, at least 1.
      num_pulls: n, the pulls of a trial. The policy must not be run for more.

    Returns:
      The expected total reward, and the agent.

    Raises:
      ValueError: a count is not a positive integer, or there are too many beliefs, as for 5 arms and 30 pulls.

    >>> value, agent = bayes_optimal_bandit(5, 10)
    >>> round(value, 4)
    6.66
    """
    check_integer("num_arms", num_arms, minimum=1)
    check_integer("num_pulls", num_pulls, minimum=1)
    levels = _enumerate(num_arms, num_pulls)
    value = np.zeros(levels[-1].following.max() + 1)
    best: list[np.ndarray] = []
    for level in reversed(levels):
        s, f = np.divmod(level.codes, num_pulls + 1)
        p = (1 + s) / (2 + s + f)
        q = p * (1 + value[level.following[..., 1]]) + (1 - p) * value[level.following[..., 0]]
        value = q.max(-1)
        best.insert(0, q.argmax(-1))
    offsets = np.cumsum([len(level.codes) for level in levels])
    following = [level.following + offset for level, offset in zip(levels, offsets, strict=True)]
    plan = Plan(*(jnp.asarray(np.concatenate(parts), jnp.int32) for parts in (best, following)))
    start = Belief(jnp.int32(0), jnp.zeros(num_arms, jnp.int32))
    return float(value[0]), Agent(_follow(num_pulls), plan, start)


def _enumerate(num_arms: int, num_pulls: int) -> list[Beliefs]:
    """The beliefs after 0 .. n − 1 pulls."""
    codes = np.zeros((1, num_arms), np.int32)
    levels = []
    for pulls in range(num_pulls):
        if len(codes) * num_arms**2 > MAX_SIZE:
            raise ValueError(
                f"num_arms and num_pulls must be smaller: {num_arms} arms have {len(codes)} beliefs after {pulls} of "
                f"{num_pulls} pulls; gittins is close to optimal"
            )
        places = np.arange(num_arms)
        same = (codes[:, :, None] == codes[:, None]).argmax(-1)  # the first place with the same pair stands for all
        row, place = np.nonzero(same == places)
        reached = np.repeat(codes[row, None], 2, axis=1)
        reached[np.arange(len(row)), :, place] += np.array([1, num_pulls + 1], np.int32)
        following, index = _unique_rows(np.sort(reached, axis=-1).reshape(-1, num_arms), (num_pulls + 1) ** 2)
        of_place = np.zeros((len(codes), num_arms, 2), np.int64)
        of_place[row, place] = index.reshape(-1, 2)
        levels.append(Beliefs(codes, np.take_along_axis(of_place, same[..., None], axis=1)))
        codes = following
    return levels


def _unique_rows(rows: np.ndarray, base: int) -> tuple[np.ndarray, np.ndarray]:
    """`np.unique(rows, axis=0, return_inverse=True)`, many times faster: several codes < base in one number."""
    width = max(1, int(62 // np.log2(base)))
    chunks = [rows[:, first : first + width].astype(np.int64) for first in range(0, rows.shape[1], width)]
    order = np.lexsort([chunk @ base ** np.arange(chunk.shape[1], dtype=np.int64) for chunk in chunks])
    is_new = np.append(True, (rows[order][1:] != rows[order][:-1]).any(-1))
    inverse = np.empty(len(rows), np.int64)
    inverse[order] = np.cumsum(is_new) - 1
    return rows[order][is_new], inverse


def _follow(num_pulls: int):
    def policy(key: jax.Array, plan: Plan, belief: Belief, inputs: Inputs):
        paid = inputs.reward.astype(jnp.int32)
        arm = jnp.maximum(inputs.action, 0)
        place = jnp.argmax(jnp.argsort(belief.codes) == arm)
        node = jnp.where(inputs.no_action, belief.node, plan.following[belief.node, place, paid])
        gain = jnp.where(inputs.no_action, 0, jnp.where(paid == 1, num_pulls + 1, 1))
        belief = Belief(node, belief.codes.at[arm].add(gain))
        return jnp.argsort(belief.codes)[plan.best[node]].astype(jnp.int32), belief, ()

    return policy

"""What a learner is compared with: policies that are optimal, or known from theory, where the tasks are simple enough.

Each is an `Agent(policy, params, carry)` and runs through the same rollout as a learned one:
`rollout(key, trial, *agent, task)`. Those named `optimal_*` are told the task; `bayes_optimal_*` know its distribution.
"""

from jaxmeta.rl.oracles.bandits import (
    epsilon_greedy,
    gittins,
    gittins_approximation,
    gittins_table,
    optimistic_thompson,
    thompson,
    tuned_ucb1,
    ucb1,
)
from jaxmeta.rl.oracles.bayes_bandit import bayes_optimal_bandit
from jaxmeta.rl.oracles.gridworld import bayes_optimal_gridworld, optimal_gridworld
from jaxmeta.rl.oracles.mdp import optimal_mdp, plan, psrl

__all__ = [
    "bayes_optimal_bandit",
    "bayes_optimal_gridworld",
    "epsilon_greedy",
    "gittins",
    "gittins_approximation",
    "gittins_table",
    "optimal_gridworld",
    "optimal_mdp",
    "optimistic_thompson",
    "plan",
    "psrl",
    "thompson",
    "tuned_ucb1",
    "ucb1",
]

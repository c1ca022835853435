"""What a learner is compared with: policies that are optimal, or known from theory, where the tasks are simple enough.

Each is an `Agent(policy, params, carry)` and runs through the same rollout as a learned one:
`rollout(key, trial, *agent, task)`; `jaxmeta.rl.reference_learner` makes a baseline for `evaluate` of it. Those named
`optimal_*` and the controllers are told the task; `bayes_optimal_*` know its distribution. `gridworld_belief` is what
such a one believes, of anybody's steps.
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
from jaxmeta.rl.oracles.bayes_finite import bayes_optimal
from jaxmeta.rl.oracles.bayes_mdp import bayes_optimal_mdp
from jaxmeta.rl.oracles.control import balance_cartpole, swing_up_pendulum
from jaxmeta.rl.oracles.fixed import optimal_bandit, optimal_navigation, random_policy
from jaxmeta.rl.oracles.gaussian_bandits import (
    bayes_optimal_gaussian_bandit,
    gaussian_bandit_bound,
    gaussian_gittins,
    gaussian_thompson,
)
from jaxmeta.rl.oracles.gridworld import bayes_optimal_gridworld, gridworld_belief, optimal_gridworld
from jaxmeta.rl.oracles.mdp import exploration_bonus, optimal_mdp, plan, psrl
from jaxmeta.rl.oracles.memory import bayes_optimal_t_maze, optimal_key_to_door, optimal_t_maze

__all__ = [
    "balance_cartpole",
    "bayes_optimal",
    "bayes_optimal_bandit",
    "bayes_optimal_gaussian_bandit",
    "bayes_optimal_gridworld",
    "bayes_optimal_mdp",
    "bayes_optimal_t_maze",
    "epsilon_greedy",
    "exploration_bonus",
    "gaussian_bandit_bound",
    "gaussian_gittins",
    "gaussian_thompson",
    "gittins",
    "gittins_approximation",
    "gittins_table",
    "gridworld_belief",
    "optimal_bandit",
    "optimal_gridworld",
    "optimal_key_to_door",
    "optimal_mdp",
    "optimal_navigation",
    "optimal_t_maze",
    "optimistic_thompson",
    "plan",
    "psrl",
    "random_policy",
    "swing_up_pendulum",
    "thompson",
    "tuned_ucb1",
    "ucb1",
]

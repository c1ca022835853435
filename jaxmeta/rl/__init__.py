"""Meta-reinforcement-learning: environments whose task is an argument, trials, rollouts, and what is computed of them.

How the pieces meet: a `Family` is an `Environment`, two pure functions that take the task as `params`, with a `train`
and a `test` distribution over tasks; `family` and `finite_family` make one and look, by traces, whether the task stays.
`trial(environment, num_episodes=n)` holds one task over n episodes, resets between them and builds what a policy sees,
`Inputs`; `rollout(key, trial, policy, params, carry, task)` scans a policy through it and returns `Transition`s `[T]`,
or `[T, E]` under `vmap`. RL² takes one long trial, scores it as a whole, and replays its recurrent policy on
`trial.encode(inputs)`; MAML takes E trials of one episode each, whose `gae` or `discounted_returns` with a linear
baseline enter the inner loss; PEARL stores transitions with their `next_observation` in a `replay` for each of its
`indexed_tasks`. `objectives` are the losses of policy gradients and say which Hessian each has; `trust_region` is an
optax transformation for a step that keeps the policy close. What RL² and MAML share, advantages and how a policy steps
on them, is in `on_policy`; what a user measures of what was played goes through `metrics`; `recurrent` makes a policy
and a value of any recurrent network. Policies act through `distributions`; `oracles` are policies of the same
signature, so that what a learner is compared with runs through the same rollout, and as a `reference_learner` through
the same `evaluate`. What `from_gymnax`, `from_jumanji`, `from_navix` and `from_craftax` make of others' environments is
an `Environment` as well; `from_gymnasium` calls those that run on the host.
"""

from jaxmeta.rl import distributions, families, objectives, on_policy, oracles, recurrent, replay, returns
from jaxmeta.rl.craftax import from_craftax
from jaxmeta.rl.env import Continuous, Discrete, Environment, Family
from jaxmeta.rl.gymnasium import from_gymnasium
from jaxmeta.rl.gymnax import Pinned, from_gymnax, make_gymnax
from jaxmeta.rl.jumanji import from_jumanji
from jaxmeta.rl.levels import Level
from jaxmeta.rl.navix import from_navix
from jaxmeta.rl.observe import Moments, Normalization, Seen, running_moments
from jaxmeta.rl.policies import PolicyNetwork, mlp_policy, mlp_policy_and_value
from jaxmeta.rl.references import reference_learner
from jaxmeta.rl.replay import IndexedTask, indexed_tasks
from jaxmeta.rl.rollout import Agent, Policy, Transition, episode_of, episode_returns, rollout
from jaxmeta.rl.tasks import family, finite_family
from jaxmeta.rl.trials import Inputs, Outcome, Trial, TrialState, trial
from jaxmeta.rl.trust_region import TrustRegion, TrustRegionState, trust_region

__all__ = [
    "Agent",
    "Continuous",
    "Discrete",
    "Environment",
    "Family",
    "IndexedTask",
    "Inputs",
    "Level",
    "Moments",
    "Normalization",
    "Outcome",
    "Pinned",
    "Policy",
    "PolicyNetwork",
    "Seen",
    "Transition",
    "Trial",
    "TrialState",
    "TrustRegion",
    "TrustRegionState",
    "distributions",
    "episode_of",
    "episode_returns",
    "families",
    "family",
    "finite_family",
    "from_craftax",
    "from_gymnasium",
    "from_gymnax",
    "from_jumanji",
    "from_navix",
    "indexed_tasks",
    "make_gymnax",
    "mlp_policy",
    "mlp_policy_and_value",
    "objectives",
    "on_policy",
    "oracles",
    "recurrent",
    "reference_learner",
    "replay",
    "returns",
    "rollout",
    "running_moments",
    "trial",
    "trust_region",
]

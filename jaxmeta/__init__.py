"""jaxmeta: meta-learning as pure functions, in JAX.

A meta-learner is a tuple of pure functions (`init`, `update`, `adapt`, `evaluate`) written for one task, `vmap`ped over
tasks and compiled with its whole outer loop into one XLA program. How the inner loop is differentiated is an argument.

    import jax, jaxmeta

    learner = jaxmeta.maml(init_fn, loss_fn, inner_optimizer=jaxmeta.adapt.sgd(0.01), num_inner_steps=1)
    tasks = jaxmeta.tasks.sinusoid(num_shots=10)
    state, history = jaxmeta.fit(jax.random.key(0), learner, tasks, num_outer_steps=10_000, num_tasks=25)
    print(jaxmeta.evaluate(jax.random.key(1), learner, tasks, state.meta_params))
"""

from jaxmeta import adapt, nn, outer, plotting, rl, tasks, training
from jaxmeta.algorithms import (
    A2C,
    ELBO,
    AgentLosses,
    MetaTest,
    Problems,
    Replay,
    SoftActorCritic,
    Surrogate,
    Visits,
    actor_critic_losses,
    anil,
    bilevel,
    boil,
    bootstrapped,
    cavia,
    e_maml,
    fine_tune,
    fomaml,
    imaml,
    maml,
    maml_plus_plus,
    maml_rl,
    meta_gradient_rl,
    meta_sgd,
    mlp_actor_critic,
    mlp_decoder,
    mlp_encoder,
    multi_step_weights,
    pearl,
    promp,
    proto_maml,
    protonet,
    reptile,
    ridge,
    rl2,
    sac,
    simple_shot,
    varibad,
)
from jaxmeta.compiled import keep_compiled
from jaxmeta.devices import join_processes, over_devices, replicated
from jaxmeta.rl.on_policy import PPO, TRPO, VPG, Advantages
from jaxmeta.training import Report, evaluate, fit
from jaxmeta.types import Examples, MetaLearner, MetaParams, MetaState, Task, TaskDistribution

__version__ = "0.1.0"

__all__ = [
    "A2C",
    "ELBO",
    "PPO",
    "TRPO",
    "VPG",
    "Advantages",
    "AgentLosses",
    "Examples",
    "MetaLearner",
    "MetaParams",
    "MetaState",
    "MetaTest",
    "Problems",
    "Replay",
    "Report",
    "SoftActorCritic",
    "Surrogate",
    "Task",
    "TaskDistribution",
    "Visits",
    "actor_critic_losses",
    "adapt",
    "anil",
    "bilevel",
    "boil",
    "bootstrapped",
    "cavia",
    "e_maml",
    "evaluate",
    "fine_tune",
    "fit",
    "fomaml",
    "imaml",
    "join_processes",
    "keep_compiled",
    "maml",
    "maml_plus_plus",
    "maml_rl",
    "meta_gradient_rl",
    "meta_sgd",
    "mlp_actor_critic",
    "mlp_decoder",
    "mlp_encoder",
    "multi_step_weights",
    "nn",
    "outer",
    "over_devices",
    "pearl",
    "plotting",
    "promp",
    "proto_maml",
    "protonet",
    "replicated",
    "reptile",
    "ridge",
    "rl",
    "rl2",
    "sac",
    "simple_shot",
    "tasks",
    "training",
    "varibad",
]

"""Wrong arguments, generated over everything public: a `ValueError` that names the argument, and never a run.

What is wrong of a parameter follows from its annotation, and what else is from `SPECIAL`. `VALID` has a good call of
every function and every bundle of options that is public, so that a new one fails without.
"""

import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_signatures import public

import jaxmeta
from jaxmeta import Task, adapt, nn, rl, tasks
from jaxmeta.training import Report

pytestmark = pytest.mark.usefixtures("strict_shapes")


def init_fn(key):
    return {"body": jnp.ones(()), "head": jnp.ones(())}


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((params["body"] * params["head"] * x - y) ** 2), {}


KEY = jax.random.key(0)
LEARNER = jaxmeta.maml(init_fn, loss_fn)
LINES = tasks.linear(num_shots=4, num_queries=4)
STATE = jax.eval_shape(LEARNER.init, KEY)
META_PARAMS = STATE.meta_params
IMAGES = np.zeros((4, 5, 3, 3), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
BANDIT, PLANE = rl.families.bernoulli_bandit(), rl.families.navigation()
ENVIRONMENT = {"environment": BANDIT.environment}
CURVES = {"loss": np.ones(3)}
REPORT = Report({"loss": np.arange(8.0).reshape(4, 2)}, sources=["ink", "ink", "birds", "birds"])
STEPS = dict.fromkeys(("reward", "value", "next_value", "terminated", "truncated"), np.zeros(3))
TERMS = dict.fromkeys(("log_prob", "old_log_prob", "advantage"), np.zeros(3))

LOSSES = {"init_fn": init_fn, "loss_fn": loss_fn}
CLASSIFIER = {"init_fn": init_fn, "embed_fn": lambda params, x: params["head"] * x, "num_ways": 2}
BASELINE = CLASSIFIER | {"num_classes": 3, "num_features": 1}
OF_POLICY = {"init_fn": init_fn, "apply_fn": lambda params, observation: None, **ENVIRONMENT}
OFF_POLICY = {"family": PLANE, "num_train_tasks": 2, "replay": jaxmeta.Replay(capacity=200)}
ARMS = {"num_arms": 2, "num_pulls": 3}
IN_FOLDER = {"split": "test", "data_dir": "no/such/folder"}  # what is wrong is said before the folder is read
_WORDS = ("title", "xlabel", "pull", "step", "adaptation", "highlight")
CONV = {"x": jnp.ones((1, 4, 4, 1)), "kernel": jnp.ones((3, 3, 1, 2))}
NORM = {"scale": jnp.ones(2), "bias": jnp.ones(2)}
TASKS_OF_LINES = Task(*[(np.ones((10, 3, 1)),) * 2] * 2)
MDP = rl.families.TabularMDP(np.ones((1, 1, 1)), np.ones((1, 1)))
MAZE = {"environment": rl.families.t_maze(length=1).environment, "tasks": rl.families.t_maze(length=1).train.data}
MDPS = rl.families.TabularMDP(np.ones((2, 1, 1, 1)), np.ones((2, 1, 1)))

DRAWN = (np.zeros((2, 4, 4)), np.array([0, 1]))


class Stub:
    reset_env = step_env = action_space = lambda self, *args: rl.Discrete(2)


# A good call of each: what is wrong below is the one argument that is not as here.
VALID = {
    "A2C": {},
    "ELBO": {},
    "PPO": {},
    "TRPO": {},
    "Advantages": {},
    "MetaTest": {},
    "Replay": {},
    "SoftActorCritic": {},
    "Surrogate": {},
    "Visits": {},
    "actor_critic_losses": {"apply_fn": OF_POLICY["apply_fn"], **ENVIRONMENT},
    "anil": LOSSES,
    "bilevel": {
        "init_fn": lambda key, meta_params: jnp.zeros(()),
        "meta_init_fn": lambda key: jnp.zeros(()),
        "loss_fn": lambda params, meta_params, batch: (params, {}),
        "num_inner_steps": 2,
    },
    "boil": LOSSES,
    "bootstrapped": {
        "loss_fn": lambda params, meta_params, batch: (params, {}),
        "outer_loss_fn": lambda params, meta_params, batch: (params, {}),
        "num_target_steps": 2,
        "target_optimizer": optax.sgd(0.1),
    },
    "cavia": LOSSES,
    "e_maml": OF_POLICY,
    "evaluate": {"key": KEY, "learner": LEARNER, "tasks": LINES, "meta_params": META_PARAMS},
    "fine_tune": BASELINE,
    "fit": {"key": KEY, "learner": LEARNER, "tasks": LINES, "num_outer_steps": 1, "num_tasks": 1, "progress": False},
    "fomaml": LOSSES,
    "imaml": LOSSES,
    "join_processes": {},
    "maml": LOSSES,
    "maml_plus_plus": LOSSES | {"num_annealing_steps": 10},
    "maml_rl": OF_POLICY,
    "meta_gradient_rl": OF_POLICY,
    "meta_sgd": LOSSES,
    "mlp_actor_critic": {"family": PLANE},
    "mlp_decoder": {"family": PLANE},
    "mlp_encoder": {"family": PLANE},
    "multi_step_weights": {"num_inner_steps": 2, "num_outer_steps": 3},
    "over_devices": {},
    "pearl": OFF_POLICY
    | {
        "actor_critic": jaxmeta.mlp_actor_critic(PLANE, latent_size=2),
        "encoder": jaxmeta.mlp_encoder(PLANE, latent_size=2),
    },
    "promp": OF_POLICY,
    "proto_maml": CLASSIFIER,
    "protonet": CLASSIFIER,
    "reptile": LOSSES,
    "ridge": CLASSIFIER,
    "rl2": {"family": BANDIT, "actor": nn.gru(4), "num_episodes": 2},
    "sac": OFF_POLICY | {"actor_critic": jaxmeta.mlp_actor_critic(PLANE)},
    "simple_shot": BASELINE,
    "varibad": {"family": BANDIT, "decoder": jaxmeta.mlp_decoder(BANDIT), "num_episodes": 2},
    "adapt.adapt_only": {"optimizer": adapt.sgd(0.1), "where": "head"},
    "adapt.auto": {},
    "adapt.conjugate_gradient": {},
    "adapt.evolution_strategy": {},
    "adapt.exact": {},
    "adapt.forward_mode": {},
    "adapt.from_optax": {"transform": optax.sgd(0.1)},
    "adapt.implicit": {},
    "adapt.learned_optimizer": {},
    "adapt.lslr": {"learning_rate": 0.1, "num_inner_steps": 2},
    "adapt.meta_sgd": {"learning_rate": 0.1},
    "adapt.mixed_mode": {},
    "adapt.neumann_series": {},
    "adapt.per_step": {"optimizer": adapt.sgd(0.1), "where": "head", "num_inner_steps": 2},
    "adapt.persistent_evolution_strategy": {"num_truncations": 2},
    "adapt.proximal": {"optimizer": adapt.sgd(0.1), "strength": 1.0},
    "adapt.sgd": {"learning_rate": 0.1},
    "adapt.truncated": {"num_exact": 0},
    "adapt.unroll": {
        "optimizer": adapt.sgd(0.1),
        "loss_fn": lambda params, batch: (jnp.sum(params), {}),
        "draw": lambda source, params: source,
        "meta_params": jaxmeta.MetaParams(jnp.ones(2)),
        "sources": jnp.arange(4),
    },
    "nn.MLP": {},
    "nn.BatchNorm": {},
    "nn.Conv": {"features": 2, "kernel_size": 3},
    "nn.Conv4": {"num_classes": 2},
    "nn.ConvBatchNorm": {"features": 2, "kernel_size": 3},
    "nn.ResNet12": {"num_classes": 2},
    "nn.Transformer": {"num_outputs": 2, "max_length": 4, "num_tokens": 2},
    "nn.batch_norm": {"x": jnp.ones((3, 2)), **NORM},
    "nn.causal_transformer": {"max_steps": 4},
    "nn.conv": CONV,
    "nn.conv_batch_norm": CONV | NORM,
    "nn.cross_entropy": {"apply_fn": lambda params, x: x},
    "nn.feed_forward": {},
    "nn.gru": {},
    "nn.lstm": {},
    "nn.mask_logits": {"logits": np.zeros((2, 3), np.float32), "num_ways": 2},
    "nn.mean_squared_error": {"apply_fn": lambda params, x: x},
    "nn.min_gru": {},
    "nn.sum_squared_error": {"apply_fn": lambda params, x: x},
    "nn.support_statistics": {"apply_fn": nn.BatchNorm().apply},
    "nn.with_layers": {"core": nn.gru(4)},
    "rl.TrustRegion": {},
    "rl.family": ENVIRONMENT | {"sample_fn": lambda key: rl.families.Bandit(jax.random.uniform(key, (5,)))},
    "rl.finite_family": ENVIRONMENT | dict.fromkeys(("train", "test"), rl.families.Bandit(np.ones((2, 5)))),
    "rl.indexed_tasks": {"tasks": np.ones(2)},
    "rl.from_craftax": {"environment": "Craftax-Classic-Symbolic-v1"},
    "rl.from_gymnasium": {"environment": "CartPole-v1", "set_task_fn": lambda env, task: None},
    "rl.from_gymnax": {"environment": Stub(), "max_steps": 3},
    "rl.from_jumanji": {"environment": "Maze-v0"},
    "rl.from_navix": {"environment": "Navix-Empty-5x5-v0"},
    "rl.make_gymnax": {"name": "CartPole-v1"},
    "rl.mlp_policy": {"family": BANDIT},
    "rl.mlp_policy_and_value": {"family": BANDIT},
    "rl.reference_learner": ENVIRONMENT | {"agent": rl.oracles.epsilon_greedy(5)},
    "rl.rollout": {
        "key": KEY,
        "trial": rl.trial(BANDIT.environment),
        "policy": rl.oracles.epsilon_greedy(5).policy,
        "params": (),
        "carry": rl.oracles.epsilon_greedy(5).carry,
        "task": rl.families.Bandit(np.ones(5, np.float32)),
    },
    "rl.running_moments": {"family": BANDIT},
    "rl.trial": ENVIRONMENT,
    "rl.trust_region": {},
    **{f"rl.families.{name}": {} for name in ("bernoulli_bandit", "gaussian_bandit", "krazy_world", "tabular_mdp")},
    **{f"rl.families.{name}": {} for name in ("cartpole", "key_to_door", "point_robot", "t_maze")},
    **{f"rl.oracles.{name}": {"num_arms": 2} for name in ("thompson", "optimistic_thompson", "ucb1", "tuned_ucb1")},
    **{f"rl.oracles.{name}": ARMS for name in ("gittins", "gittins_approximation", "bayes_optimal_bandit")},
    "rl.oracles.bayes_optimal": MAZE,
    "rl.oracles.bayes_optimal_gaussian_bandit": {"num_pulls": 3},
    "rl.oracles.bayes_optimal_mdp": {"mdps": MDPS, "num_episodes": 1, "horizon": 2},
    "rl.oracles.bayes_optimal_t_maze": {},
    "rl.oracles.epsilon_greedy": {"num_arms": 2},
    "rl.oracles.exploration_bonus": {},
    "rl.oracles.gaussian_bandit_bound": ARMS,
    "rl.oracles.gaussian_gittins": ARMS,
    "rl.oracles.gaussian_thompson": {"num_arms": 2},
    "rl.oracles.gittins_table": {"num_pulls": 3},
    "rl.oracles.bayes_optimal_gridworld": {"horizon": 3, "num_episodes": 1},
    "rl.oracles.optimal_key_to_door": {"task": rl.families.KeyAndDoor(np.zeros(2, int), np.ones(2, int))},
    "rl.oracles.optimal_mdp": {"mdp": MDP, "horizon": 2},
    "rl.oracles.plan": {"mdp": MDP, "horizon": 2},
    "rl.oracles.psrl": {},
    "rl.oracles.random_policy": {"action_space": rl.Discrete(2)},
    "rl.objectives.loaded_dice": {"log_prob": np.zeros(3), "advantage": np.zeros(3)},
    "rl.objectives.ppo_clip": TERMS | {"clip": 0.2},
    "rl.replay.empty_buffers": {"row": np.ones(2, np.float32), "num_tasks": 2, "capacity": 3},
    "rl.replay.memory_plan": {"row": {"x": np.ones(2, np.float32)}, "num_tasks": 2, "capacity": 3},
    "rl.returns.discounted_returns": {"reward": np.zeros(3), "done": np.zeros(3), "discount": 0.9},
    "rl.returns.gae": STEPS | {"discount": 0.9, "lambda_": 0.9},
    "rl.returns.fit_linear_baseline": {"features": np.eye(3, 2), "returns": np.zeros(3)},
    "tasks.all_classes": {"data": IMAGES, "batch_size": 2},
    "tasks.cifar_fs": IN_FOLDER,
    "tasks.cub": IN_FOLDER,
    "tasks.fc100": IN_FOLDER,
    "tasks.few_shot": {"data": IMAGES, "num_ways": 2, "num_shots": 1, "num_queries": 1},
    "tasks.fixed": {"tasks": TASKS_OF_LINES},
    "tasks.glyphs": {"split": "test"},
    "tasks.image_folder": {"path": "no/such/folder"},
    "tasks.linear": {},
    "tasks.mini_imagenet": IN_FOLDER,
    "tasks.mixture": {"sources": {"lines": LINES}},
    "tasks.omniglot": IN_FOLDER,
    "tasks.polynomial_optimum": {"degree": 1, "num_shots": 2, "noise": 0.1},
    "tasks.quadratic": {},
    "tasks.single": {"task": Task((np.ones((3, 1)),) * 2, (np.ones((3, 1)),) * 2)},
    "tasks.sinusoid": {},
    "tasks.split_classes": {"images": {name: np.zeros((3, 2, 2)) for name in "abcdefghij"}},
    "tasks.split_tasks": {"tasks": tasks.fixed(TASKS_OF_LINES)},
    "tasks.tiered_imagenet": IN_FOLDER,
    "tasks.augment.chain": {"augments": [tasks.augment.random_flip()]},
    "tasks.augment.color_jitter": {},
    "tasks.augment.random_crop": {"padding": 1},
    "training.Checkpointer": {"directory": "run"},
    "training.Validation": {"tasks": LINES, "metric": "loss", "best": "lowest"},
    "training.mean_ranks": {"reports": {"a": REPORT, "b": REPORT}, "metric": "loss", "best": "lowest"},
    "plotting.adaptation_curves": {"reports": {"a": REPORT}},
    "plotting.animation": {"played": {"": None}, "task": ()},
    "plotting.beliefs": {"grids": {"exact": np.ones((2, 5, 5)) / 25}},
    "plotting.cost": {"num_steps": [1, 2], "time": {"a": [1.0, 2.0]}},
    "plotting.episode": {**dict.fromkeys(("support", "query"), DRAWN), "predictions": np.array([0, 1])},
    "plotting.figure": {},
    "plotting.history": {"metrics": CURVES},
    "plotting.learning_curves": {"histories": {"a": CURVES}},
    "plotting.regret": {"regrets": {"a": np.ones((2, 3))}},
    "plotting.report": {"found": REPORT},
    "plotting.trajectories": {"points": np.zeros((1, 2, 4, 1, 2))},
}
# What trains, reads or draws where it is called is called with what is wrong alone.
NOT_RUN = {"evaluate", "fit", "join_processes", "tasks.glyphs", "tasks.image_folder", "plotting.animation"}
NOT_RUN |= {name for name, valid in VALID.items() if valid is IN_FOLDER}
NOT_RUN |= {"rl.from_craftax", "rl.from_jumanji", "rl.from_navix"}  # which need their extras
OF_ARRAYS = {  # what they are given is computed with, or drawn; and what takes nothing but a folder
    *("replicated", "nn.max_pool", "nn.weighted_mean", "training.restore_state", "training.save_state"),
    *(
        f"outer.{name}"
        for name in ("apply_gradient", "chosen_optimizer", "counted", "initial_state", "mean_over_tasks")
    ),
    *(f"outer.{name}" for name in ("for_each_task", "mean_over_shares", "shared_out")),
    *("outer.outer_step", "outer.over_tasks", "rl.episode_of", "rl.episode_returns", "rl.returns.linear_features"),
    *(f"rl.objectives.{name}" for name in ("reinforce", "importance_weighted", "lvc", "dice")),
    *("rl.replay.add_rows", "rl.replay.sample_rows"),
    *(f"rl.families.{name}" for name in ("ant_goal", "cheetah_direction", "cheetah_velocity")),  # of the extra brax
    "rl.families.xland",  # of the extra xland; its wrong arguments are in tests/rl/test_xland.py
    *(f"rl.oracles.{name}" for name in ("balance_cartpole", "gridworld_belief", "optimal_bandit", "optimal_gridworld")),
    *("keep_compiled", "rl.oracles.optimal_navigation", "rl.oracles.optimal_t_maze", "rl.oracles.swing_up_pendulum"),
    *(f"tasks.load_{name}" for name in ("cifar100", "glyphs", "omniglot")),
    *(f"plotting.draw_{name}" for name in ("cartpole", "grid", "pendulum", "plane")),
    *(f"plotting.{name}" for name in ("after", "learning_curve", "lines", "regression_adaptation", "styles")),
}
AS_THEY_ARE = {  # (any or a name, argument): words of pictures, and what is looked at with the data, by `few_shot`
    *(("fit", "progress"), ("tasks.image_folder", "progress"), ("tasks.image_folder", "cache_dir")),
    *((name, argument) for name in NOT_RUN for argument in ("augment", "rotations", "split")),
    *((name, argument) for name in VALID if name.startswith("plotting.") for argument in _WORDS),
}

# What is wrong, by kind. `junk` is wrong for everything.
junk = st.one_of(
    st.text(max_size=3), st.binary(max_size=2), st.just([]), st.just({}), st.just(()), st.just(object()), st.just(1j)
)
non_finite = st.sampled_from([math.nan, math.inf, -math.inf, np.float32("nan"), jnp.float32("nan"), jnp.float32("inf")])
booleans = st.sampled_from([True, False, np.True_, np.False_])
floats = st.floats(allow_nan=False, allow_infinity=False)
arrays = st.sampled_from([np.ones(2), jnp.ones(2), jnp.bool_(True), jnp.complex64(1j), KEY])
number_of_none = st.one_of(junk, non_finite, booleans, arrays)
integer_of_none = st.one_of(junk, non_finite, booleans, floats, arrays, st.just(np.float32(2.0)))
negative = st.one_of(
    st.floats(max_value=-1e-30, allow_infinity=False), st.integers(max_value=-1), st.just(jnp.float32(-0.1))
)
above_1 = st.one_of(st.floats(min_value=1.001, allow_infinity=False), st.integers(2, 99), st.just(jnp.float32(99)))
no_flag = st.one_of(junk, non_finite, floats, st.integers(), arrays, st.just("False"))
no_function = st.one_of(junk, non_finite, booleans, floats, st.integers(), st.just(nn.MLP))
no_name = st.one_of(non_finite, booleans, st.integers(), st.just(b"mse"), st.just(object()), st.just(["mse"]))

AT_LEAST_0 = {
    "num_exact",
    "seed",
    "num_context",
    "latent_size",
    "num_extra_steps",
    "degree",
    "first_step",
    "max_queries",
}
AT_LEAST_0 |= {"num_target_steps", "num_kept"}
SHARES = {"discount", "gae_lambda", "lambda_", "target_rate", "decay", "clip", "step_size", "second_decay"}
SHARES |= {"backtrack", "brightness", "contrast", "saturation"}
OF_ANY_SIGN = {"target_entropy"}
STRATEGIES = ("auto", "exact", "mixed_mode", "forward_mode", "first_order", "truncated", "implicit", "reptile")
UNCALLED = {  # something of another kind, and what makes one in the place of one
    adapt.InnerOptimizer: [adapt.sgd, adapt.exact(), optax.sgd(0.1)],
    adapt.MetaGradient: [*(getattr(adapt, name) for name in STRATEGIES), adapt.evolution_strategy, adapt.sgd(0.1)],
    adapt.Solver: [adapt.conjugate_gradient, adapt.neumann_series, adapt.exact()],
    optax.GradientTransformation: [optax.adam, adapt.sgd(0.1), len],
    jaxmeta.TaskDistribution: [tasks.sinusoid, Task((), ())],
    jaxmeta.MetaLearner: [jaxmeta.maml, LEARNER[:3]],
    jaxmeta.MetaParams: [STATE, {"body": 1.0}],
    jaxmeta.MetaState: [META_PARAMS, LINES],
    rl.Environment: [BANDIT, rl.families.navigation, BANDIT.environment._replace(max_steps=0)],
    rl.Family: [BANDIT.environment, rl.families.navigation],
    rl.Normalization: [rl.running_moments, BANDIT],
    rl.Trial: [BANDIT.environment, rl.trial],
    nn.Recurrent: [nn.gru, nn.MLP((4,))],
}


# What is wrong of one argument alone, beside what its annotation says.
infinite_box = rl.Continuous(np.zeros(1), np.full(1, np.inf))
unstacked = st.sampled_from([(), jnp.ones(()), np.zeros((0, 2)), (np.zeros((2, 1)), np.zeros((3, 1)))])
key = st.sampled_from([np.zeros(2, np.uint32), 0, None, len, jnp.ones(2)])
zero = st.sampled_from([0, 0.0, jnp.float32(0)])
two_arguments = st.sampled_from([lambda params, batch, key: None, lambda batch: None])
with_key = st.just(lambda params, x, key: x)
widths = st.one_of(st.sampled_from([(2, 0), (2, 1.5), (-1,), "40", np.ones(2)]))
of_losses = {"loss_fn": two_arguments}
of_heads = {"embed_fn": with_key}
of_replay = {
    "replay": st.one_of(
        st.integers(1, 199).map(lambda capacity: jaxmeta.Replay(capacity=capacity)),
        st.integers(201, 999).map(lambda num_context: jaxmeta.Replay(num_context=num_context)),
    ),
    "visits": st.integers(1, 99).map(lambda n: jaxmeta.Visits(num_prior_steps=n, infers_each_episode=True)),
    "actor_critic": st.sampled_from([BANDIT, None, 1]),
}
SPECIAL = {
    **dict.fromkeys(("maml", "fomaml", "meta_sgd", "anil", "boil", "cavia", "maml_plus_plus"), of_losses),
    **dict.fromkeys(("protonet", "proto_maml", "fine_tune", "simple_shot"), of_heads),
    "imaml": of_losses | {"strength": zero},
    "reptile": of_losses | {"num_inner_steps": st.just(1)},
    "ridge": of_heads | {"regularization": zero, "scale": zero},
    "bilevel": {"lifetime": st.sampled_from([1, 3])},
    "evaluate": {"key": key, "num_tasks": st.just(1)},
    "fit": {"key": key, "callbacks": st.sampled_from([[1], "ab", [len]]), "validate": st.just(LINES)},
    "maml_rl": {"optimizer": st.just(optax.adam(0.1))},  # TRPO has none
    "mlp_actor_critic": {"hidden": widths},
    "mlp_decoder": {"hidden": widths, "latent_size": st.just(0), "std": zero},
    "mlp_encoder": {"hidden": widths, "latent_size": st.just(0)},
    "pearl": of_replay | {"encoder": st.sampled_from([jaxmeta.mlp_actor_critic(PLANE), 1])},
    "sac": of_replay,
    "rl2": {
        "actor": st.just(nn.causal_transformer(19)),
        "truncation": st.just(7),
        "max_grad_norm": zero,
        "num_exploration_episodes": st.just(2),
    },
    "varibad": {
        "decoder": st.sampled_from([jaxmeta.mlp_decoder, jaxmeta.mlp_encoder(PLANE), None, 1]),
        "encoder": st.just(nn.causal_transformer(19)),
        "actor": st.just(nn.causal_transformer(19)),
        "truncation": st.just(7),
        "max_grad_norm": zero,
        "elbo": st.just(jaxmeta.ELBO(num_steps=21)),
        "outer": st.just(jaxmeta.TRPO()),
    },
    "TRPO": {"max_kl": zero, "backtrack": zero},
    "adapt.evolution_strategy": {"std": zero},
    "adapt.learned_optimizer": {
        "hidden": widths,
        "seed": st.integers(min_value=2**32),
        "decays": st.sampled_from([(), (1.0,), (0.9, jnp.float32(-0.1)), (0.5, 2)]),
    },
    "adapt.from_optax": {"transform": st.sampled_from([optax.sgd, len, adapt.sgd(0.1)])},
    "nn.MLP": {"hidden": widths},
    "nn.BatchNorm": {"epsilon": zero},
    "nn.ResNet12": {"widths": st.one_of(widths, st.just(()))},
    "nn.Transformer": {
        "max_length": st.integers(1, 3),
        "width": st.integers(1, 3),
        "num_heads": st.integers(min_value=129),
    },
    "nn.causal_transformer": {"num_units": st.just(6), "num_heads": st.just(3)},
    "nn.conv": {"x": st.just(np.ones((1, 4, 4, 1), np.uint8))},
    "nn.mask_logits": {"num_ways": st.integers(min_value=4)},
    "nn.support_statistics": {"apply_fn": st.just(lambda params, x: x)},
    "rl.TrustRegion": {"max_kl": zero, "backtrack": zero},
    "rl.finite_family": {"train": unstacked, "test": unstacked},
    "rl.from_gymnax": {"environment": st.sampled_from([1, None, object(), len])},
    "rl.indexed_tasks": {"tasks": unstacked},
    "rl.make_gymnax": {"name": st.text(max_size=3)},
    "rl.mlp_policy": {"hidden": widths, "min_std": zero},
    "rl.mlp_policy_and_value": {"hidden": widths, "min_std": zero},
    "rl.running_moments": {"max_deviations": zero},
    "rl.rollout": {"policy": st.sampled_from([1, "policy", len, rl.oracles.epsilon_greedy])},
    "rl.families.key_to_door": {"size": st.just(1)},
    "rl.families.krazy_world": {"size": st.integers(1, 5), "num_goals": st.integers(min_value=11)},
    **{
        f"rl.oracles.{name}": {"num_pulls": st.integers(min_value=201)}
        for name in (
            "bayes_optimal_gaussian_bandit",
            "gaussian_bandit_bound",
            "gaussian_gittins",
            "gittins_table",
        )
    },
    "rl.oracles.bayes_optimal": {"tasks": unstacked},
    "rl.oracles.random_policy": {"action_space": st.sampled_from([infinite_box, 2, None, BANDIT])},
    "rl.objectives.loaded_dice": {"advantage": st.sampled_from([np.zeros(2), np.zeros((3, 1)), 1.0])},
    "rl.objectives.ppo_clip": {"old_log_prob": st.sampled_from([np.zeros(2), np.zeros((3, 1)), 1.0])},
    "tasks.all_classes": {"batch_size": st.integers(min_value=50)},
    "tasks.few_shot": {
        "num_ways": st.integers(min_value=5),
        "num_shots": st.integers(min_value=5),
        "data": st.sampled_from([np.zeros(3), np.array([["a"]]), jnp.ones(()), None, 1, 0 * IMAGES]),
        "augment": st.sampled_from([lambda image: image, lambda key, x: x > 0]),
        "groups": st.sampled_from([1, 0.5, "abcd", [0, 1], [0, 1, 2, 3]]),
    },
    "tasks.fixed": {"tasks": st.sampled_from([(), 1, "task", [1], Task((), ())]), "names": st.just(["a"])},
    "tasks.mixture": {"sources": st.sampled_from([{}, {"a": 1}, {1: LINES}])},
    "tasks.split_tasks": {"tasks": st.just(LINES), "fractions": st.sampled_from([(0.5, 0.6), (1.5, -0.5), (1, 0)])},
    "tasks.split_classes": {"fractions": st.sampled_from([(0.5, 0.6, 0.1), (1.5, -0.5, 0), (1,)])},
    "tasks.augment.chain": {"augments": st.sampled_from([[], [1], [len], tasks.augment.random_flip()])},
    "training.Validation": {"num_tasks": st.just(1), "seed": st.integers(min_value=2**32)},
}


def members(annotation):
    """The types that a parameter may have."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [member for each in typing.get_args(annotation) for member in members(each)]
    return [annotation]


def wrong(parameter, name):
    """A strategy of what the parameter of the function must not be; None where nothing is known of it."""
    own = SPECIAL.get(name, {}).get(parameter.name)
    of_kind = _wrong_of_kind(parameter, name)
    if of_kind is None or own is None:
        return of_kind if own is None else own
    return st.one_of(of_kind, own)


def _wrong_of_kind(parameter, name):
    of = members(parameter.annotation)
    origins = {typing.get_origin(member) or member for member in of}
    none = [] if type(None) in of else [st.none()]
    if bool in of:
        return st.one_of(no_flag, *none)
    if int in of:
        return st.one_of(integer_of_none, st.integers(max_value=-1 if parameter.name in AT_LEAST_0 else 0), *none)
    if float in of:
        bounds = [] if parameter.name in OF_ANY_SIGN else [negative]
        bounds += (
            [above_1]
            if parameter.name in SHARES or (name.endswith("epsilon_greedy") and "eps" in parameter.name)
            else []
        )
        return st.one_of(number_of_none, *bounds, *none)
    for kind, others in UNCALLED.items():
        if kind in of:
            return st.one_of(junk, st.integers(), st.sampled_from(others), *none)
    if typing.Any in of and Callable in origins:  # names of parameters
        return st.sampled_from([1, 0.5, {}, (), object(), nn.MLP])
    if Callable in origins:
        return st.one_of(no_function, *none)
    if typing.Literal in origins or str in of:
        return st.one_of(no_name, *none, *([st.just("moving")] if typing.Literal in origins else []))
    if {Sequence, Collection, Iterable, Mapping} & origins:
        return st.one_of(st.integers(), floats, st.just(object()), st.just(len), *none)
    if any(hasattr(member, "__post_init__") for member in of):
        return st.one_of(junk, st.integers(), st.sampled_from([of[0], jaxmeta.Visits, optax.adam(0.1)]))
    return None


def functions():
    """{name: function or bundle of options} of all that is public and takes something; a record only holds, and is
    looked at where it is taken."""
    found, seen = {}, set()
    for name, value in public():
        is_record = inspect.isclass(value) and not hasattr(value, "__post_init__")
        if not is_record and inspect.signature(value).parameters and id(value) not in seen:
            seen.add(id(value))
            found[name.removeprefix("jaxmeta.")] = value
    return found


FUNCTIONS = functions()
INPUTS = {"nn.MLP": jnp.ones((1, 1)), "nn.Transformer": jnp.zeros((1, 4), int)}


def call(name, arguments):
    """A flax module looks at its fields where it is given its first input."""
    made = FUNCTIONS[name](**arguments)
    if isinstance(made, flax.linen.Module):
        jax.eval_shape(made.init, KEY, INPUTS.get(name, jnp.ones((1, 28, 28, 1))))


def parameters(name):
    of_flax = ("parent", "name") if issubclass(type(FUNCTIONS[name]), type(flax.linen.Module)) else ()
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        if parameter.name not in of_flax and (name, parameter.name) not in AS_THEY_ARE:
            strategy = wrong(parameter, name)
            if strategy is not None:
                yield parameter.name, strategy


def test_everything_public_has_a_good_call():
    assert FUNCTIONS.keys() == VALID.keys() | OF_ARRAYS
    assert not VALID.keys() & OF_ARRAYS and SPECIAL.keys() <= VALID.keys()
    assert sum(len(list(parameters(name))) for name in VALID) > 400


def refuses(name, argument, strategy, num_examples):
    quick = settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    @quick
    @given(strategy)
    def is_refused(value):
        with pytest.raises(ValueError, match=argument) as caught:
            call(name, {**VALID[name], argument: value})
        assert len(str(caught.value)) > len(argument) + 10  # and says what it must be

    is_refused()


@pytest.mark.parametrize("name", VALID)
def test_a_wrong_argument_is_a_value_error_that_names_it(name, num_compiled):
    if name not in NOT_RUN:
        call(name, VALID[name])  # the control: an error below is of the wrong argument, not of the others
    num_compiled()
    for argument, strategy in parameters(name):
        refuses(name, argument, strategy, num_examples=3)
    assert num_compiled() == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", VALID)
def test_many_wrong_arguments_are_all_refused(name):
    for argument, strategy in parameters(name):
        refuses(name, argument, strategy, num_examples=60)

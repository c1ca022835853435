"""What every meta-learner of reinforcement learning promises, by shapes alone: types are kept, seeds and tasks vmap."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxmeta
from jaxmeta import PPO, TRPO, VPG, Advantages, Surrogate, adapt, nn, rl

pytestmark = pytest.mark.usefixtures("strict_shapes")

FAMILY = rl.families.navigation()
FAMILY = FAMILY._replace(environment=FAMILY.environment._replace(max_steps=10))  # 100 take longer to trace
POLICY = rl.mlp_policy(FAMILY, hidden=(4,))
ADAM = optax.adam(1e-3)


def learners():
    """Every estimator, outer loop, inner optimizer, recurrent network, and every two of them; every constructor."""

    def make(constructor, outer=VPG(), **kwargs):
        optimizer = None if isinstance(outer, TRPO) else ADAM
        arguments = {"num_episodes": 2, "num_inner_steps": 2, "outer": outer, "optimizer": optimizer, **kwargs}
        return constructor(*POLICY, FAMILY.environment, **arguments)

    outers = {"vpg": VPG(), "ppo": PPO(num_epochs=2, num_minibatches=3), "trpo": TRPO()}
    inners = [
        ("meta_sgd", adapt.meta_sgd(0.1)),
        ("anil", adapt.adapt_only(adapt.sgd(0.1), "head")),
        ("adam", adapt.from_optax(optax.adam(0.1, eps_root=1e-8))),
    ]
    for i, estimator in enumerate(("biased", "lvc", "dice")):  # each with each of two others, in nine
        for j, (name, outer) in enumerate(outers.items()):
            inner_name, inner = inners[(i + j) % 3]
            surrogate = Surrogate(estimator=estimator)
            how = {"outer": outer, "surrogate": surrogate, "inner_optimizer": inner}
            learner = make(jaxmeta.maml_rl, microbatch=1, **how)  # left alone it is chosen, by a trace more: below
            yield f"{estimator} {name} {inner_name}", learner
    yield "no baseline", make(jaxmeta.maml_rl, baseline="none", advantages=Advantages(normalize=False))
    yield "first order", make(jaxmeta.maml_rl, meta_gradient=adapt.first_order())
    yield "e_maml", make(jaxmeta.e_maml)
    yield "normalized", make(jaxmeta.maml_rl, normalization=rl.running_moments(FAMILY))
    yield "rl2 normalized", jaxmeta.rl2(FAMILY, actor=nn.gru(4), outer=PPO(), normalization=rl.running_moments(FAMILY))
    yield "promp", make(jaxmeta.promp, outer=PPO(num_epochs=2))
    small = {"num_episodes": 2, "outer": PPO(), "optimizer": ADAM}
    cores = {"gru": nn.gru(4), "lstm": nn.lstm(4), "min_gru": nn.min_gru(4)}
    cores |= {"transformer": nn.causal_transformer(20, num_units=4, num_heads=2)}
    outers = {"ppo": PPO(num_epochs=2), "trpo": TRPO(num_critic_epochs=2), "vpg": VPG()}
    for core_name, core in cores.items():
        options = {"truncation": 5, "num_exploration_episodes": 1} if core_name == "gru" else {}
        for name, outer in outers.items():
            yield f"rl2 {core_name} {name}", jaxmeta.rl2(FAMILY, actor=core, **{**small, "outer": outer, **options})
    decoder = jaxmeta.mlp_decoder(FAMILY, latent_size=3, hidden=(2,), with_next_observation=True)
    elbo = jaxmeta.ELBO(num_steps=5, num_epochs=2, num_minibatches=3, num_kept=7)
    yield "varibad", jaxmeta.varibad(FAMILY, decoder, encoder=nn.gru(4), truncation=5, elbo=elbo, **small)


LEARNERS = dict(learners())
over_learners = pytest.mark.parametrize("name", LEARNERS)


def types(tree):
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda tree: tree, tree))
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


def tasks_of(num_tasks):
    sample = jax.vmap(FAMILY.train.sample, (0, None))
    return jax.eval_shape(sample, jax.random.split(jax.random.key(0), num_tasks), FAMILY.train.data)


@over_learners
def test_an_update_keeps_the_types_of_its_state(name):
    learner = LEARNERS[name]
    state = jax.eval_shape(learner.init, jax.random.key(0))
    after, metrics = jax.eval_shape(learner.update, jax.random.key(1), state, tasks_of(3))
    assert types(after) == types(state)
    assert {"return", "loss", "is_finite", "num_env_steps"} <= set(metrics)
    assert {metric.shape for metric in metrics.values()} == {()}


@pytest.mark.parametrize(
    "name", ["dice trpo anil", "e_maml", "promp", "rl2 gru ppo", "rl2 transformer vpg", "rl2 gru trpo", "varibad"]
)
def test_an_update_vmaps_over_seeds_and_adapt_and_evaluate_over_tasks(name):
    learner = LEARNERS[name]
    keys = jax.random.split(jax.random.key(0), 2)
    states = jax.eval_shape(jax.vmap(learner.init), keys)
    seeds_tasks = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, 3, *x.shape[1:]), x.dtype), tasks_of(3))
    after, _ = jax.eval_shape(jax.vmap(learner.update), keys, states, seeds_tasks)
    assert types(after) == types(states)
    meta_params = jax.eval_shape(learner.init, jax.random.key(0)).meta_params
    over_tasks = lambda fn: jax.eval_shape(jax.vmap(fn, (0, None, 0)), keys, meta_params, tasks_of(2))
    shapes = {name: curve.shape for name, curve in over_tasks(learner.evaluate).items()}
    adapted = over_tasks(learner.adapt)
    if name == "varibad":
        assert shapes == {"return": (2, 2), "total": (2, 1), "belief_std": (2, 2)}
        assert adapted.belief.mean.shape == (2, 3)
    elif name.startswith("rl2"):
        assert shapes == {"return": (2, 2), "total": (2, 1)}
        assert {leaf.shape[0] for leaf in jax.tree.leaves(adapted)} == {2}
    else:
        assert shapes == {"return": (2, 3)}
        assert adapted.transitions.reward.shape == (2, 2, 10, 2)


@pytest.mark.parametrize("name", ["lvc vpg anil", "dice trpo anil", "rl2 lstm ppo", "rl2 gru trpo", "varibad"])
def test_an_update_keeps_the_precision_of_parameters_beside_data_of_another(x64, name):
    learner = LEARNERS[name]
    state = jax.eval_shape(learner.init, jax.random.key(0))
    after, metrics = jax.eval_shape(learner.update, jax.random.key(1), state, tasks_of(3))
    assert types(after) == types(state) and metrics["return"].dtype == jnp.float64


OFF_POLICY = jaxmeta.sac(FAMILY, jaxmeta.mlp_actor_critic(FAMILY, hidden=(2,)), num_train_tasks=1)


@pytest.mark.parametrize(
    "learner",
    [LEARNERS["promp"], LEARNERS["rl2 gru ppo"], LEARNERS["varibad"], OFF_POLICY],
    ids=["promp", "rl2", "varibad", "sac"],
)
def test_a_state_in_the_place_of_its_meta_params_is_refused(learner):
    state, task = jax.eval_shape(learner.init, jax.random.key(0)), FAMILY.test.sample(jax.random.key(1), ())
    for fn in (learner.adapt, learner.evaluate):
        with pytest.raises(ValueError, match=r"such as state.meta_params, got MetaState"):
            fn(jax.random.key(2), state, task)
    with pytest.raises(ValueError, match=r"such as state.meta_params, got MetaState"):
        learner.agent(state)


def test_a_flax_init_as_init_fn_is_refused():
    learner = jaxmeta.maml_rl(nn.MLP((2,)).init, POLICY.apply, FAMILY.environment)
    with pytest.raises(ValueError, match="init_fn must be a function of a key alone"):
        learner.init(jax.random.key(0))

"""Each learner's update on one device and over several, and once more from its state as a checkpoint gives it back.

A line of JSON each: run by test_over_devices.py.

python tests/shared_updates.py NUM_DEVICES [NAME ...]
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmeta
from jaxmeta import nn, rl
from jaxmeta.training import restore_state, save_state

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "rl")]

FAMILY = rl.families.navigation()
FAMILY = FAMILY._replace(environment=FAMILY.environment._replace(max_steps=4))
ADAM = optax.adam(1e-3)


def played(number):
    """Tasks of the family."""
    keys = jax.random.split(jax.random.key(0), number)
    return jax.vmap(FAMILY.train.sample, (0, None))(keys, FAMILY.train.data)


def off_policy(encoder, **options):
    size = 0 if encoder is None else encoder.latent_size
    networks = jaxmeta.mlp_actor_critic(FAMILY, latent_size=size, hidden=(3,))
    visits = jaxmeta.Visits(num_prior_steps=3, num_posterior_steps=2)
    replay = jaxmeta.Replay(capacity=8, num_gradient_steps=2, batch_size=3, num_batch_tasks=4)
    how = {"num_train_tasks": 6, "replay": replay, "visits": visits, **options}
    return jaxmeta.sac(FAMILY, networks, **how) if encoder is None else jaxmeta.pearl(FAMILY, networks, encoder, **how)


def every():
    """(name, learner, its tasks): those of the contract tests too."""
    import test_contracts as supervised
    import test_learner_contracts as reinforced

    of = {"actor": nn.min_gru(2), "optimizer": ADAM, "num_episodes": 2}
    yield "rl2", jaxmeta.rl2(FAMILY, outer=jaxmeta.PPO(num_epochs=2, num_minibatches=2), **of), played(8)
    decoder = jaxmeta.mlp_decoder(FAMILY, latent_size=2, hidden=(2,), with_next_observation=True)
    two = jaxmeta.PPO(num_minibatches=2)
    of_beliefs = {
        "encoder": nn.min_gru(2),
        "actor": nn.feed_forward(2),
        "elbo": jaxmeta.ELBO(num_steps=3, num_minibatches=2, num_kept=9),
    }
    yield "varibad", jaxmeta.varibad(FAMILY, decoder, outer=two, **of_beliefs), played(8)
    tasks = rl.IndexedTask(jnp.arange(4), played(4), 6)
    yield "pearl", off_policy(jaxmeta.mlp_encoder(FAMILY, latent_size=2, hidden=(2,))), tasks

    how = {"normalization": rl.running_moments(FAMILY)}
    yield "rl normalized rl2", jaxmeta.rl2(FAMILY, outer=two, **of, **how), played(8)
    yield "rl normalized pearl", off_policy(jaxmeta.mlp_encoder(FAMILY, latent_size=2, hidden=(2,)), **how), tasks
    policy, how = rl.mlp_policy(FAMILY, hidden=(2,)), how | {"outer": jaxmeta.VPG(), "num_episodes": 2}
    yield "rl normalized maml", jaxmeta.maml_rl(*policy, FAMILY.environment, **how), played(4)

    yield "sac", off_policy(None), rl.IndexedTask(jnp.arange(4), played(4), 6)
    for name, learner in supervised.learners(jnp.float64):
        if name != "bilevel":  # of two problems; here it has four
            yield name, learner, supervised.make_tasks(8, name)
    living = lambda params, m, batch: supervised.loss_fn(jax.tree.map(jnp.add, params, m), batch)
    ones = lambda *_: {"body": jnp.ones(()), "head": jnp.ones(())}
    yield "bilevel", jaxmeta.bilevel(ones, ones, living, num_inner_steps=2, num_problems=4), supervised.make_tasks(4)
    of = {"num_agents": 4, "num_episodes": 2}
    agent = rl.mlp_policy_and_value(FAMILY, hidden=(2,))
    yield "meta_gradient_rl", jaxmeta.meta_gradient_rl(*agent, FAMILY.environment, **of), played(4)
    for name, learner in reinforced.learners():
        if "trpo" not in name:
            yield f"rl {name}", learner, played(12)
    trpo = jaxmeta.TRPO(damping=0.1)  # with less, conjugate gradients make 1e-4 of what is rounded
    how = {"outer": trpo, "num_episodes": 2}
    policy, dice = rl.mlp_policy(FAMILY, hidden=(2,)), jaxmeta.Surrogate(estimator="dice")
    yield "rl trpo", jaxmeta.maml_rl(*policy, FAMILY.environment, surrogate=dice, **how), played(4)
    yield "rl trpo rl2", jaxmeta.rl2(FAMILY, actor=nn.min_gru(2), optimizer=ADAM, **how), played(4)


def wide(leaf):
    """In float64, so that all that is reduced is of one dtype."""
    return leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def collectives(text):
    """How often each of them is in a compiled program."""
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    found = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}
    return {kind: number for kind, number in found.items() if number}


def difference(tree, other):
    """The largest between numbers of two trees, of what is more than 1."""
    largest = 0.0
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        a, b = (np.asarray(x, float) for x in (a, b))
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        largest = max(largest, np.max(np.abs(a - b) / np.maximum(np.abs(a), 1), initial=0, where=~np.isnan(a)))
    return largest


def goes_on(update, key, state, tasks):
    """Whether what follows a state that was saved and read is, bit by bit, what follows the state."""
    with tempfile.TemporaryDirectory() as directory:
        save_state(directory, int(state.step), state)
        restored = restore_state(directory, jax.eval_shape(lambda state: state, state))
    after, again = (jax.tree.leaves(update(*jaxmeta.replicated((key, s, tasks)))) for s in (state, restored))
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(after, again, strict=True))


def main(num_devices, names):
    for name, learner, tasks in every():
        if names and name not in names:
            continue
        arguments = jax.tree.map(wide, (jax.random.key(2), jax.jit(learner.init)(jax.random.key(1)), tasks))
        alone = jax.jit(learner.update)(*arguments)
        with jaxmeta.over_devices(num_devices):
            arguments = jaxmeta.replicated(arguments)
            program = jax.jit(learner.update).lower(*arguments).compile()
            after = program(*arguments)
            error = difference(alone, after)
            resumed = goes_on(program, jax.random.key(3), after[0], arguments[2])
        reals = [leaf.dtype for leaf in jax.tree.leaves(alone) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        counts = collectives(program.as_text())
        found = {"name": name, "error": error, "resumed": resumed, "dtypes": len(set(reals)), **counts}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

"""Every learner over several devices: the numbers of one, one all-reduce for a step of the outer optimizer."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxmeta
from jaxmeta import nn, rl
from jaxmeta.devices import check_shares
from jaxmeta.outer.cost import inner_jaxprs


def run(*command):
    """What a program prints, line by line, in a process anew, which has devices of its own."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(jaxmeta.__file__).parents[1])}
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def updates(*names, num_devices):
    program = Path(__file__).with_name("shared_updates.py")
    return [json.loads(line) for line in run(str(program), str(num_devices), *names)]


def check(found):
    """float64, another order of sums. A trust region reduces for each product of its conjugate gradients too; what is
    reported in float32 is reduced beside a gradient of float64."""
    name = found["name"]
    assert found["error"] < 1e-9 and found["resumed"], found
    most = found["dtypes"] * (2 if name == "varibad" else 1)  # of which the model and the policy step apart
    assert found["all-reduce"] > 1 if "trpo" in name else 1 <= found["all-reduce"] <= most, found
    assert found.keys() <= {"name", "error", "resumed", "dtypes", "all-reduce", "all-gather"}, found
    has_played = name in ("rl2", "varibad", "pearl", "sac") or name.startswith("rl ")
    assert ("all-gather" in found) == has_played, found


def count(jaxpr, names=("psum", "all_gather")):
    """How often each primitive is in a program, and in the programs in it."""
    found = Counter(equation.primitive.name for equation in jaxpr.eqns)
    for equation in jaxpr.eqns:
        for inner in inner_jaxprs(equation.params):
            found += count(inner, names)
    return Counter({name: found[name] for name in names})


def traced():
    """(learner, its tasks, whether it learns from what it has played) by name: a constructor of each kind."""
    images = jnp.zeros((2, 4, 1)), jnp.zeros((2, 4), int)
    embed = lambda w, x: jnp.concatenate([w * x, x], axis=1)
    init, ways = (lambda key: jnp.ones(())), {"num_classes": 2, "num_features": 2}
    loss = lambda w, batch: (jnp.mean((w * batch[0] - batch[1]) ** 2), {})
    episodes = jaxmeta.Task(images, images)
    yield "maml", jaxmeta.maml(init, loss, microbatch=1), episodes, False
    yield "protonet", jaxmeta.protonet(init, embed, num_ways=2, microbatch=1), episodes, False
    yield "fine_tune", jaxmeta.fine_tune(init, embed, num_ways=2, microbatch=1, **ways), jaxmeta.Task((), images), False
    family = rl.families.navigation()
    tasks = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(0)), family.train.data)
    policy, core = rl.mlp_policy(family, hidden=(2,)), nn.min_gru(2)
    how = {"outer": jaxmeta.VPG(), "num_episodes": 2, "microbatch": 1}
    yield "maml_rl", jaxmeta.maml_rl(*policy, family.environment, **how), tasks, True
    yield "rl2", jaxmeta.rl2(family, actor=core, outer=jaxmeta.PPO(num_minibatches=2)), tasks, True
    networks = jaxmeta.mlp_actor_critic(family, latent_size=1, hidden=(2,))
    encoder = jaxmeta.mlp_encoder(family, latent_size=1, hidden=(2,))
    indexed = rl.IndexedTask(jnp.arange(2), tasks, 2)
    yield "pearl", jaxmeta.pearl(family, networks, encoder, num_train_tasks=2), indexed, True


KINDS = {name: (learner, tasks, has_played) for name, learner, tasks, has_played in traced()}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_learned_from_is_one_sum_over_devices(name):
    """By the program that is traced; below by the one that is compiled, and its numbers."""
    learner, tasks, has_played = KINDS[name]
    state = jax.eval_shape(learner.init, jax.random.key(0))
    with jaxmeta.over_devices(1):
        found = count(jax.make_jaxpr(learner.update)(jax.random.key(1), state, tasks).jaxpr)
    assert found["psum"] == 1 and (found["all_gather"] > 0) == has_played


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [2, 4])
def test_every_learner_is_that_of_one_device(num_devices):
    found = updates(num_devices=num_devices)
    assert len(found) > 50
    for line in found:
        check(line)


SEEDS = """
import jax, jax.numpy as jnp, numpy as np, jaxmeta
jax.config.update("jax_num_cpu_devices", 2)
learner = jaxmeta.maml(lambda key: jax.random.normal(key), lambda w, b: (jnp.mean((w * b[0] - b[1]) ** 2), {}))
def train(num_seeds, num_outer_steps, state=None):
    keys = jax.random.split(jax.random.key(0), num_seeds)
    counts = {"num_outer_steps": num_outer_steps, "num_tasks": 3, "chunk_size": 2}
    return jaxmeta.fit(keys, learner, jaxmeta.tasks.linear(), progress=False, state=state, **counts)
alone = train(4, 5)
with jaxmeta.over_devices():
    together = train(4, 5)
    half, _ = train(4, 2)
    goes_on, _ = train(4, 5, half)
    examples = train(3, 5)
print(tuple(together[0].step.sharding.spec), together[1]["loss"].shape)
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
jax.tree.map(close, alone, together)
jax.tree.map(close, train(3, 5), examples)
jax.tree.map(np.testing.assert_array_equal, together[0], goes_on)
"""


def test_seeds_are_shared_where_they_share_out_and_their_tasks_or_examples_where_not():
    """With three tasks, which two devices could not share."""
    assert run("-c", SEEDS) == ["('devices',) (4, 5)"]


EXAMPLES = """
import sys, jax, jax.numpy as jnp, optax, jaxmeta
ALL = sys.argv.pop() == "all"
sys.path.insert(0, sys.argv.pop())
sys.argv.append("2")  # devices
from shared_updates import collectives, difference
side = 16 if ALL else 6
labels = lambda number: jnp.arange(3 * number).reshape(3, -1) % 3
images = lambda number, key: (jax.random.normal(key, (3, number, side, side, 2)), labels(number))
keys = jax.random.split(jax.random.key(0))
tasks = jaxmeta.Task(images(5, keys[0]), images(7, keys[1]))
how = {"optimizer": optax.sgd(1.0)}
def small(params, x):
    x = jaxmeta.nn.conv_batch_norm(x, params["first"], jnp.ones(24), jnp.zeros(24))
    return jnp.mean(jax.nn.relu(jaxmeta.nn.conv(x, params["second"])), axis=(1, 2))
def init_small(key):
    return {"first": jax.random.normal(key, (3, 3, 2, 24)), "second": jax.random.normal(key, (3, 3, 24, 3))}
def learners():
    plain = {"meta_gradient": jaxmeta.adapt.exact(), "microbatch": 1}
    yield jaxmeta.maml(init_small, jaxmeta.nn.cross_entropy(small), **how, **plain)
    for strided in (False, True):
        net = jaxmeta.nn.Conv4(3, num_filters=16, strided=strided)
        init = lambda key: net.init(key, jnp.zeros((1, 16, 16, 2)))
        yield jaxmeta.maml(init, jaxmeta.nn.cross_entropy(net.apply), num_inner_steps=2, **how)
    embed = lambda params, x: net.apply(params, x)
    yield jaxmeta.ridge(init, embed, num_ways=3, **how)
    yield jaxmeta.fine_tune(init, embed, num_ways=3, num_classes=3, num_features=3, **how)
for i, learner in enumerate(learners()):
    if i and not ALL:
        break
    given = jax.random.key(1), learner.init(jax.random.key(2)), tasks if i < 4 else tasks._replace(support=())
    alone = jax.jit(learner.update)(*given)
    with jaxmeta.over_devices():
        program = jax.jit(learner.update).lower(*jaxmeta.replicated(given)).compile()
        shared = program(*jaxmeta.replicated(given))
    whole = jax.jit(learner.update).lower(*given).compile().cost_analysis()["flops"]
    assert program.cost_analysis()["flops"] < 0.75 * whole  # of a device; three of five images and four of seven
    assert difference(alone, shared) < 1e-11, (i, difference(alone, shared))
    text = program.as_text()
    large = [line for line in text.splitlines() if " all-gather(" in line and "= f64[" in line]
    assert shared[0].step.sharding.is_fully_replicated and collectives(text)["all-reduce"] > 4, collectives(text)
    assert not large, large
    print(i)
"""


@pytest.mark.parametrize("which", ["one", pytest.param("all", marks=pytest.mark.slow)])
def test_devices_share_the_examples_of_tasks_that_they_cannot_share(which):
    """Numbers of examples that they cannot share out evenly either; nothing is gathered, sums are all they tell."""
    found = run("-c", EXAMPLES, str(Path(__file__).parent), which)
    assert found == [str(i) for i in range({"one": 1, "all": 5}[which])]


def test_each_device_has_its_part_of_every_tasks_examples_and_all_of_a_few():
    """By the program that is traced: of 3 tasks, x and y of 5 queries, and not of a single support example."""
    loss = lambda w, batch: (jnp.mean((w * batch[0] - batch[1]) ** 2), {})
    learner = jaxmeta.maml(lambda key: jnp.ones(()), loss, microbatch=1, meta_gradient=jaxmeta.adapt.exact())
    tasks = jaxmeta.Task(*((jnp.ones((3, number)), jnp.ones((3, number))) for number in (1, 5)))
    state = jax.eval_shape(learner.init, jax.random.key(0))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("devices",))):
        equations = jax.make_jaxpr(learner.update)(jax.random.key(1), state, tasks).jaxpr.eqns
    specs = [
        tuple(equation.params["sharding"].spec)
        for equation in equations
        if equation.primitive.name == "sharding_constraint"
    ]
    assert specs.count((None, "devices")) == 2 and len(specs) > 2


def test_what_has_no_examples_asks_for_tasks_that_share_out():
    family = rl.families.navigation()
    learner = jaxmeta.maml_rl(*rl.mlp_policy(family, hidden=(2,)), family.environment, outer=jaxmeta.VPG())
    state = jax.eval_shape(learner.init, jax.random.key(0))
    tasks = jax.vmap(family.train.sample, (0, None))(jax.random.split(jax.random.key(0), 3), family.train.data)
    of_two = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("devices",)))
    with of_two, pytest.raises(ValueError, match="multiple of the 2 devices, got 3: the nearest are 2 and 4"):
        jax.eval_shape(learner.update, jax.random.key(1), state, tasks)


@pytest.mark.parametrize(
    ("number", "num_parts", "message"),
    [
        (5, 1, None),
        (5, 2, "multiple of the 1 devices times 2 minibatches, got 5: the nearest are 4 and 6"),
        (1, 2, "got 1: the nearest is 2"),
    ],
)
def test_the_nearest_numbers_are_named(number, num_parts, message):
    check_shares(number, num_parts)  # nothing is shared
    with jaxmeta.over_devices(1):
        if message is None:
            return check_shares(number, num_parts)
        with pytest.raises(ValueError, match=message):
            check_shares(number, num_parts)


def test_a_share_is_not_shared_again():
    """In it `num_sharing` is none, or a learner of a seed would wait for devices that do not come."""
    from jaxmeta.devices import SHARED, num_sharing, on_each

    seen = []
    with jaxmeta.over_devices(1):
        jax.jit(on_each(lambda _, x: seen.append(num_sharing()) or x, SHARED))(0, jnp.zeros(1))
        seen.append(num_sharing())
    assert seen == [None, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", 2, None), "process_id must be given where one of coordinator, num_processes, process_id is"),
        (("localhost", 2, 0), r'coordinator must be the "HOST:PORT" of process 0, got \'localhost\''),
        (("localhost:1", 0, 0), "num_processes must be"),
        (("localhost:1", 2, 2), "process_id must be less than num_processes=2, got 2"),
    ],
)
def test_errors_of_processes(arguments, message):
    with pytest.raises(ValueError, match=message):
        jaxmeta.join_processes(*arguments)

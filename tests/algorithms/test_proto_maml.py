"""Proto-MAML, and a start of the inner loop in general: against loops written by hand, under every strategy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from jax.flatten_util import ravel_pytree
from reference import assert_close

import jaxmeta
from jaxmeta import Examples, MetaParams, Task, adapt
from jaxmeta.algorithms.cavia import context_only
from jaxmeta.algorithms.closed_form import Adapted, AffineHead

pytestmark = pytest.mark.usefixtures("x64_module", "strict_shapes")

N, WAYS, K, RATE = 2, 3, 2, 0.2


def init_fn(key):
    return {"w": jax.random.normal(key, (2, 4)), "scale": jnp.full(4, 0.9)}


def embed_fn(params, x):
    return jnp.tanh(x @ params["w"]) * params["scale"][None]


def make_task(seed, num_shots=(2, 1, 3), num_queries=4):
    """Classes with different numbers of shots, in no order."""
    generator = np.random.default_rng(seed)

    def batch(counts):
        labels = generator.permutation(np.repeat(np.arange(len(counts)), counts))
        return jnp.asarray(generator.normal(size=(len(labels), 2)) + labels[:, None]), jnp.asarray(labels, jnp.int32)

    return Task(batch(num_shots), batch([num_queries] * len(num_shots)))


TASKS = jax.tree.map(lambda *leaves: np.stack(leaves), *(make_task(seed) for seed in range(N)))
KEY = jax.random.key(1)


def one(i=0):
    return jax.tree.map(lambda leaf: leaf[i], TASKS)


# By hand: the parameters of a task are a pair (θ, (W, b)).


def start(theta, support):
    x, labels = support
    z = embed_fn(theta, x)
    means = [jnp.sum(jnp.where((labels == n)[:, None], z, 0), axis=0) / jnp.sum(labels == n) for n in range(WAYS)]
    return theta, (jnp.stack([2 * c for c in means], axis=1), jnp.stack([-(c @ c) for c in means]))


def loss(pair, batch):
    (theta, (weights, bias)), (x, labels) = pair, batch
    log_p = jax.nn.log_softmax(embed_fn(theta, x) @ weights + bias[None])
    return -jnp.mean(log_p[jnp.arange(len(labels)), labels])


def mean_gradient(query_loss, *args):
    """Of (*args, task) -> loss, and the loss itself, the mean over tasks."""
    of_task = lambda task: jax.value_and_grad(query_loss, tuple(range(len(args))))(*args, task)
    return jax.jit(lambda tasks: jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.vmap(of_task)(tasks)))(TASKS)


def of_loop(theta, hyper, update, num_constant=0):
    """(loss, ∂/∂θ, ∂/∂hyper), the mean over tasks, of `reference.adapt` from prototypes that are differentiated."""

    def query_loss(theta, hyper, task):
        batches = [task.support] * K
        return loss(reference.adapt(loss, update, start(theta, task.support), hyper, batches, num_constant), task.query)

    return mean_gradient(query_loss, theta, hyper)


def of_learner(inner_optimizer=None, **arguments):
    """(loss, ∂/∂θ, the rest of the meta-gradient): with `optax.sgd(1)` outside, the difference of the parameters."""
    learner = jaxmeta.proto_maml(
        init_fn,
        embed_fn,
        num_ways=WAYS,
        inner_optimizer=adapt.sgd(RATE) if inner_optimizer is None else inner_optimizer,
        num_inner_steps=K,
        optimizer=optax.sgd(1.0),
        microbatch=N,  # left alone it is chosen, by a trace more
        **arguments,
    )
    state = learner.init(jax.random.key(0))
    after, metrics = jax.jit(learner.update)(KEY, state, TASKS)
    grads = jax.tree.map(jnp.subtract, state.meta_params, after.meta_params)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(state.meta_params.params.head))
    return metrics["loss"], grads.params.params, grads


STRATEGIES = {
    "auto": (adapt.auto(), 0),
    "exact": (adapt.exact(), 0),
    "mixed_mode": (adapt.mixed_mode(), 0),
    "segments": (adapt.mixed_mode(num_segments=2, save_gradients=True), 0),
    "forward_mode": (adapt.forward_mode(lambda path: "params/params/" in path), 0),
    "truncated": (adapt.truncated(1), K - 1),
    "first_order": (adapt.first_order(), K),
}


@functools.cache
def of_sgd(num_constant):
    return of_loop(theta(), (), reference.sgd(RATE), num_constant)


def theta():
    return init_fn(jax.random.key(0))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("exact", "segments", "forward_mode") else [])
        for name in STRATEGIES
    ],
)
def test_the_meta_gradient_is_that_of_a_loop_through_the_prototypes(name):
    """First order and truncated: the inner gradients are constants, the prototypes are not."""
    strategy, num_constant = STRATEGIES[name]
    value, grads, whole = of_learner(meta_gradient=strategy)
    expected_value, (expected, _) = of_sgd(num_constant)
    assert_close(value, expected_value)
    assert_close(grads, expected)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(whole.params.head))  # the head's place


def flat_start(support):
    """θ_0 as a function of θ, both as vectors, and what makes a pair of one."""
    _, unravel = ravel_pytree(start(theta(), support))
    return lambda theta: ravel_pytree(start(theta, support))[0], unravel


def test_reptile_goes_back_to_the_start_and_through_it():
    """The gradient of ½|θ_0(θ) − θ'|², with θ' a constant; it is not θ − θ', which has no head."""
    _, grads, _ = of_learner(meta_gradient=adapt.reptile())

    def half_square(theta, task):
        start_of, _ = flat_start(task.support)
        end = reference.adapt(loss, reference.sgd(RATE), start(theta, task.support), (), [task.support] * K)
        return jnp.sum((start_of(theta) - jax.lax.stop_gradient(ravel_pytree(end)[0])) ** 2) / 2

    assert_close(grads, mean_gradient(half_square, theta())[1][0])


@pytest.mark.slow
def test_an_implicit_gradient_is_that_of_the_solution_near_the_start():
    """(I + H/λ)⁻¹ ∇L'(φ) ∂θ_0/∂θ at φ, the minimum of L(φ) + λ/2 |φ − θ_0|², with the Hessian written out."""
    strength = 4.0
    learner = jaxmeta.proto_maml(
        init_fn,
        embed_fn,
        num_ways=WAYS,
        inner_optimizer=adapt.proximal(adapt.sgd(0.1), strength),
        num_inner_steps=100,
        meta_gradient=adapt.implicit(solver=adapt.conjugate_gradient(40)),
        optimizer=optax.sgd(1.0),
    )
    state = learner.init(jax.random.key(0))
    after, _ = jax.jit(learner.update)(KEY, state, TASKS)

    def by_hand(task):
        start_of, unravel = flat_start(task.support)
        theta_0, through_start = jax.vjp(start_of, theta())
        of = lambda batch: lambda phi: loss(unravel(phi), batch)
        whole = lambda phi: of(task.support)(phi) + strength / 2 * jnp.sum((phi - theta_0) ** 2)
        newton = lambda phi, _: (phi - jnp.linalg.solve(jax.hessian(whole)(phi), jax.grad(whole)(phi)), None)
        phi, _ = jax.lax.scan(newton, theta_0, None, length=20)
        matrix = jnp.eye(len(phi)) + jax.hessian(of(task.support))(phi) / strength
        return through_start(jnp.linalg.solve(matrix, jax.grad(of(task.query))(phi)))[0]

    expected = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.jit(jax.vmap(by_hand))(TASKS))
    assert_close(jax.tree.map(jnp.subtract, state.meta_params, after.meta_params).params.params, expected, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        adapt.evolution_strategy(num_pairs=2, std=0.1),
        adapt.persistent_evolution_strategy(num_truncations=2, num_pairs=2),
    ],
    ids=["evolution_strategy", "persistent"],
)
def test_evolution_judges_loops_from_the_starts_of_perturbed_parameters(strategy):
    """The same estimator, with the same key, around an inner loop that is written by hand."""
    _, _, grads = of_learner(meta_gradient=strategy)

    def inner(meta_params, sources, task, state=None):
        pair = start(meta_params.params.params, task.support) if state is None else state
        for _ in range(len(sources)):
            pair = jax.tree.map(lambda p, g: p - RATE * g, pair, jax.grad(loss)(pair, task.support))
        return adapt.Adapted(pair), pair

    outer = lambda adapted, task: (loss(adapted.params, task.query), {})
    zero = jnp.zeros(())
    meta_params = MetaParams(Adapted(theta(), AffineHead(zero, zero)))
    keys = jnp.stack([jax.random.split(key, 3)[0] for key in jax.random.split(KEY, N)])
    of_task = lambda key, task: strategy(inner, outer)(key, meta_params, jnp.arange(K), task)[1]
    found = jax.jit(jax.vmap(of_task))(keys, TASKS)
    assert_close(grads, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), found))


OPTIMIZERS = {
    "meta_sgd": (adapt.meta_sgd(RATE), reference.meta_sgd()),
    "lslr": (adapt.lslr(RATE, K), reference.lslr()),
    "adam": (adapt.from_optax(optax.adam(0.05, eps_root=1e-8)), reference.adam(0.05, eps_root=1e-8)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "lslr" else pytest.mark.slow) for name in OPTIMIZERS]
)
def test_any_inner_optimizer_steps_from_the_prototypes(name):
    """A learned rate is one for each parameter of the embedding, for all of W, and for all of b."""
    inner_optimizer, update = OPTIMIZERS[name]
    _, grads, whole = of_learner(inner_optimizer)
    rates = {"meta_sgd": lambda shape: jnp.full(shape, RATE), "lslr": lambda shape: jnp.full(K, RATE)}.get(name)
    hyper = () if rates is None else ({"w": rates((2, 4)), "scale": rates((4,))}, (rates(()), rates(())))
    _, (expected, expected_hyper) = of_loop(theta(), hyper, update)
    assert_close(grads, expected)
    if rates is not None:
        assert_close(jax.tree.leaves(whole.hyper), jax.tree.leaves(expected_hyper))


def test_the_head_alone_adapts_and_the_embedding_is_learned_through_it():
    _, grads, _ = of_learner(adapt.adapt_only(adapt.sgd(RATE), "head"))

    def query_loss(theta, task):
        of_head = lambda head, batch: loss((theta, head), batch)
        head = reference.adapt(of_head, reference.sgd(RATE), start(theta, task.support)[1], (), [task.support] * K)
        return of_head(head, task.query)

    assert_close(grads, mean_gradient(query_loss, theta())[1][0])


def test_values_of_each_step_go_together_with_a_start():
    """Those of the embedding; the head cannot have any, for its shape is the task's."""
    _, grads, whole = of_learner(adapt.per_step(adapt.sgd(RATE), "scale", K))

    def query_loss(w, scales, task):
        of = lambda k: lambda moving, batch: loss(({"w": moving[0], "scale": scales[k]}, moving[1]), batch)
        moving = (w, start({"w": w, "scale": jnp.full(4, 0.9)}, task.support)[1])
        for k in range(K):
            moving = reference.adapt(of(k), reference.sgd(RATE), moving, (), [task.support])
        return of(K)(moving, task.query)

    expected = mean_gradient(query_loss, theta()["w"], jnp.full((K + 1, 4), 0.9))[1]
    assert_close((grads["w"], whole.hyper.values.params["scale"]), expected)
    with pytest.raises(ValueError, match=r"inner_optimizer must start from what start_fn returns.*per_step"):
        of_learner(adapt.per_step(adapt.sgd(RATE), "head", K))


def test_a_frozen_embedding_is_a_number_and_the_head_adapts_all_the_same():
    for frozen in (lambda path: path == "w", {"w": True, "scale": False}):
        state = jax.eval_shape(jaxmeta.proto_maml(init_fn, embed_fn, num_ways=2, frozen=frozen).init, KEY)
        assert state.meta_params.params.params["w"] is None and state.meta_params.constants.params["scale"] is None
    _, grads, _ = of_learner(frozen="w")
    assert grads["w"] is None
    w = theta()["w"]

    def query_loss(scale, task):
        of = lambda moving, batch: loss(({"w": w, "scale": moving[0]}, moving[1]), batch)
        moving = (scale, start({"w": w, "scale": scale}, task.support)[1])
        return of(reference.adapt(of, reference.sgd(RATE), moving, (), [task.support] * K), task.query)

    assert_close(grads["scale"], mean_gradient(query_loss, theta()["scale"])[1][0])


@pytest.mark.parametrize(
    ("frozen", "message"), [("head", "chooses no parameter"), (lambda path: True, "leaves nothing")]
)
def test_what_is_frozen_is_a_part_of_the_embedding(frozen, message):
    with pytest.raises(ValueError, match=message):
        of_learner(frozen=frozen)


def test_without_a_step_it_is_the_prototypical_network():
    """An inner rate of 0: loss, gradient and predictions; and whatever the rate, before the first step."""
    still = of_learner(adapt.sgd(0.0))
    protonet = jaxmeta.protonet(init_fn, embed_fn, num_ways=WAYS, optimizer=optax.sgd(1.0))
    state = protonet.init(jax.random.key(0))
    after, metrics = jax.jit(protonet.update)(KEY, state, TASKS)
    expected = jax.tree.map(jnp.subtract, state.meta_params, after.meta_params).params
    assert_close(still[:2], (metrics["loss"], expected))
    curves = {}
    for name, learner in {
        "protonet": protonet,
        "proto_maml": jaxmeta.proto_maml(init_fn, embed_fn, num_ways=WAYS, inner_optimizer=adapt.sgd(RATE)),
    }.items():
        curves[name] = jax.jit(learner.evaluate)(KEY, learner.init(jax.random.key(0)).meta_params, one())
    before, uniform_and_after = curves["proto_maml"], curves["protonet"]
    assert_close(before["loss"][0], uniform_and_after["loss"][1])
    assert before["accuracy"][0] == uniform_and_after["accuracy"][1] and before["loss"][1] != before["loss"][0]


def test_what_adapt_returns_predicts_and_tasks_at_test_may_have_other_numbers_of_classes():
    learner = jaxmeta.proto_maml(
        init_fn, embed_fn, num_ways=5, num_eval_ways=WAYS, inner_optimizer=adapt.sgd(RATE), num_eval_steps=2
    )
    meta_params, task = learner.init(jax.random.key(0)).meta_params, one()
    params, head = jax.jit(learner.adapt)(KEY, meta_params, task)
    expected = reference.adapt(loss, reference.sgd(RATE), start(theta(), task.support), (), [task.support] * 2)
    assert_close((params, (head.weights, head.bias)), expected)
    curve = jax.jit(learner.evaluate)(KEY, meta_params, task)["accuracy"]
    logits = head(embed_fn(params, task.query[0]))
    assert curve.shape == (3,) and curve[-1] == jnp.mean(jnp.argmax(logits, axis=1) == task.query[1])
    learner.check(meta_params, task, True)
    wide = make_task(0, num_shots=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="class numbers from 0 to 2"):
        learner.check(meta_params, wide, True)


def test_what_else_the_support_set_says_is_of_the_embedding_that_has_adapted():
    conditioned = lambda params, support: params | {"scale": params["scale"] * jnp.mean(support[0])}
    learner, plain = (
        jaxmeta.proto_maml(init_fn, embed_fn, num_ways=WAYS, inner_optimizer=adapt.sgd(RATE), condition_fn=condition_fn)
        for condition_fn in (conditioned, None)
    )
    meta_params, (support, (x, labels), _) = plain.init(jax.random.key(0)).meta_params, one()
    found, curves, (params, head) = jax.jit(
        lambda task: (
            learner.adapt(KEY, meta_params, task),
            learner.evaluate(KEY, meta_params, task),
            plain.adapt(KEY, meta_params, task),
        )
    )(one())
    assert_close(tuple(found), (conditioned(params, support), head))
    log_p = jax.nn.log_softmax(head(embed_fn(conditioned(params, support), x)))
    assert_close(curves["loss"][-1], -jnp.mean(log_p[jnp.arange(len(labels)), labels]))


def test_a_class_that_the_task_does_not_have_is_never_predicted():
    """Its prototype would be 0, and a logit of 0 is more than most."""
    learner = jaxmeta.proto_maml(init_fn, embed_fn, num_ways=WAYS, inner_optimizer=adapt.sgd(RATE))
    (x, labels), (query_x, query_labels), _ = make_task(3, num_shots=(2, 2))
    support = Examples(x, labels, None, jnp.int32(2))
    meta_params = learner.init(jax.random.key(0)).meta_params
    task = Task(support, Examples(query_x, query_labels, None, jnp.int32(2)))
    params, head = jax.jit(learner.adapt)(KEY, meta_params, task)
    logits = head(embed_fn(params, query_x))
    assert jnp.all(logits[:, 2] == -jnp.inf) and jnp.all(jnp.isfinite(logits[:, :2]))
    narrow = jaxmeta.proto_maml(init_fn, embed_fn, num_ways=2, inner_optimizer=adapt.sgd(RATE))
    expected = jax.jit(narrow.adapt)(KEY, meta_params, Task((x, labels)))
    assert_close(logits[:, :2], expected.head(embed_fn(expected.params, query_x)))


# A start of the inner loop, of any learner.


def test_cavia_starts_its_context_at_zero_whatever_the_start_says_and_the_rest_from_there():
    def context_loss(params, batch):
        x, y = batch
        return jnp.mean((params["slope"] * x + params["context"] - y) ** 2), {}

    x, y = jnp.arange(4.0), jnp.arange(4.0) * 3 + 1
    task = Task((x, y), (x, y))
    learner = jaxmeta.maml(
        lambda key: {"slope": jnp.ones(()), "context": jnp.ones(())},
        context_loss,
        inner_optimizer=context_only(adapt.sgd(0.5)),
        start_fn=lambda params, support: {
            "slope": params["slope"] * jnp.mean(support[1]),
            "context": jnp.full((), 7.0),
        },
        optimizer=optax.sgd(1.0),
    )
    state = learner.init(jax.random.key(0))
    adapted = jax.jit(learner.adapt)(KEY, state.meta_params, task)
    slope = jnp.mean(y)
    assert_close((adapted["slope"], adapted["context"]), (slope, -jnp.mean(slope * x - y)))
    after, _ = jax.jit(learner.update)(KEY, state, jax.tree.map(lambda leaf: leaf[None], task))
    of_slope = lambda slope: jnp.mean((slope * jnp.mean(y) * x - jnp.mean(slope * jnp.mean(y) * x - y) - y) ** 2)
    assert_close(state.meta_params.params["slope"] - after.meta_params.params["slope"], jax.grad(of_slope)(1.0))
    assert after.meta_params.params["context"] == 1


def test_a_start_of_another_structure_is_refused():
    learner = jaxmeta.maml(
        lambda key: {"w": 1.0}, lambda params, batch: (params["w"] ** 2, {}), start_fn=lambda p, s: 1.0
    )
    with pytest.raises(ValueError, match="start_fn must return parameters of the structure of those it is given"):
        learner.adapt(KEY, learner.init(KEY).meta_params, Task(jnp.ones(2)))

"""What would go wrong in silence is an error before the learner compiles: labels, samplers, hidden state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import Task, TaskDistribution, adapt, evaluate, fit, nn
from jaxmeta.training import looks
from jaxmeta.training.evaluate import _evaluate_tasks
from jaxmeta.training.fit import _look_at_state, _run_chunk
from jaxmeta.training.looks import look_at_tasks

pytestmark = pytest.mark.usefixtures("strict_shapes")

NUM_CLASSES = 5
CLASSIFIER = lambda params, x: x @ params["w"]


def init_fn(key):
    return {"w": 0.1 * jax.random.normal(key, (3, NUM_CLASSES))}


def embed_fn(params, x):
    return x @ params["w"]


LOSS_FN = nn.cross_entropy(CLASSIFIER)
LEARNERS = {
    "maml": jaxmeta.maml(init_fn, LOSS_FN, num_inner_steps=2),
    "maml, minibatches": jaxmeta.maml(init_fn, LOSS_FN, batch_size=2),
    "reptile": jaxmeta.reptile(init_fn, LOSS_FN, num_inner_steps=2),
    "stochastic": jaxmeta.maml(init_fn, lambda params, batch, key: LOSS_FN(params, batch), stochastic=True),
    "per_step": jaxmeta.maml(init_fn, LOSS_FN, inner_optimizer=adapt.per_step(adapt.sgd(0.1), "w", num_inner_steps=1)),
    "protonet": jaxmeta.protonet(init_fn, embed_fn, num_ways=NUM_CLASSES),
    "ridge": jaxmeta.ridge(init_fn, embed_fn, num_ways=NUM_CLASSES),
}


def tasks_of(support, query):
    """Two examples of each of these labels."""

    def sample(key, data):
        def batch(key, labels):
            y = jnp.repeat(labels, 2)
            return jax.random.normal(key, (len(y), 3)), y

        support_key, query_key = jax.random.split(key)
        return Task(batch(support_key, data[0]), batch(query_key, data[1]))

    return TaskDistribution(sample, (jnp.array(support), jnp.array(query)))


RIGHT = list(range(NUM_CLASSES))
GOOD = tasks_of(RIGHT, RIGHT)


def train(learner, tasks, num_outer_steps=1):
    return fit(jax.random.key(0), learner, tasks, num_outer_steps=num_outer_steps, num_tasks=2, progress=False)


def judge(learner, tasks):
    meta_params = jax.jit(learner.init)(jax.random.key(0)).meta_params
    return evaluate(jax.random.key(1), learner, tasks, meta_params, num_tasks=2)


@pytest.mark.parametrize("wrong", [[1, 2, 3, 4, 5], [0, 1, 2, 3, -1]], ids=["from 1", "minus 1"])
@pytest.mark.parametrize("which", ["support", "query"])
@pytest.mark.parametrize("name", LEARNERS)
def test_labels_without_an_output_are_named_before_the_learner_compiles(name, which, wrong):
    programs = _run_chunk._cache_size(), _evaluate_tasks._cache_size()
    tasks = tasks_of(**{"support": RIGHT, "query": RIGHT, which: wrong})
    listed = ", ".join(map(str, sorted(wrong)))
    for run in (train, judge):
        with pytest.raises(ValueError, match=f"labels.* from 0 to 4, for there are 5 outputs, got {listed}"):
            run(LEARNERS[name], tasks)
    assert (_run_chunk._cache_size(), _evaluate_tasks._cache_size()) == programs


def look(learner, tasks, is_test=False):
    """What `fit` and `evaluate` do before they compile."""
    look_at_tasks("tasks", tasks, learner, jax.eval_shape(learner.init, jax.random.key(0)).meta_params, is_test=is_test)


@pytest.mark.parametrize("is_test", [False, True])
@pytest.mark.parametrize("name", LEARNERS)
def test_labels_that_have_outputs_are_good(name, is_test):
    """The control."""
    look(LEARNERS[name], GOOD, is_test)


def test_more_classes_while_training_than_at_test():
    learner = jaxmeta.protonet(init_fn, embed_fn, num_ways=NUM_CLASSES, num_eval_ways=2)
    look(learner, GOOD)
    look(learner, tasks_of([0, 1], [0, 1]), is_test=True)
    with pytest.raises(ValueError, match="from 0 to 1, for there are 2 outputs, got 0, 1, 2, 3, 4"):
        look(learner, GOOD, is_test=True)


def test_twenty_ways_of_few_shot_for_five_outputs():
    data = np.arange(120, dtype=np.float32).reshape(20, 2, 3)
    tasks = jaxmeta.tasks.few_shot(data, num_ways=20, num_shots=1, num_queries=1)
    with pytest.raises(ValueError, match=r"got 0, 1, 2, \.\.\., 18, 19: number the classes"):
        train(LEARNERS["maml"], tasks)


@pytest.mark.parametrize("name", ["maml", "protonet", "ridge"])
@pytest.mark.parametrize("which", ["support", "query"])
@pytest.mark.parametrize("wrong", [-1, NUM_CLASSES])
def test_a_label_that_is_not_known_gives_no_number(name, which, wrong):
    """Under a trace nothing can be named: the loss and the accuracy after adaptation are NaN, and no other class's."""
    learner = LEARNERS[name]
    meta_params = learner.init(jax.random.key(0)).meta_params
    x, y = jax.random.normal(jax.random.key(1), (NUM_CLASSES, 3)), jnp.arange(NUM_CLASSES)
    task = Task((x, y), (x, y))
    task = task._replace(**{which: (x, y.at[0].set(wrong))})
    metrics = jax.jit(learner.evaluate)(jax.random.key(2), meta_params, task)
    assert np.isnan(metrics["loss"][-1]) and np.isnan(metrics["accuracy"][-1])


def regression(draw_slope):
    def sample(key, data):
        slope = draw_slope(key)
        x = jnp.linspace(-1, 1, 4)[:, None]
        return Task((x, slope * x), (x, slope * x))

    return TaskDistribution(sample)


LINE = jaxmeta.maml(lambda key: jax.random.normal(key), nn.mean_squared_error(lambda w, x: w * x))
BAD_SAMPLERS = {
    "np.random": (lambda key: np.random.uniform(), "tasks.sample must be a pure function .*jax.random"),
    "np.random and the key": (
        lambda key: jax.random.uniform(key) + np.random.uniform(),
        "tasks.sample must be a pure function .*jax.random",
    ),
    "a constant": (lambda key: 2.0, r"tasks.sample must draw with jax.random .*say so: tasks.single\(task\)"),
}


@pytest.mark.parametrize("name", BAD_SAMPLERS)
def test_a_sampler_draws_with_its_key(name):
    draw, match = BAD_SAMPLERS[name]
    for run in (train, judge):
        with pytest.raises(ValueError, match=match):
            run(LINE, regression(draw))


def test_data_that_jax_would_wrap_around_is_refused():
    sample = lambda key, data: Task((jax.random.normal(key, (2, 1)), data), (jax.random.normal(key, (2, 1)), data))
    learner = jaxmeta.maml(lambda key: jnp.ones(()), nn.mean_squared_error(lambda params, x: params * x))
    distribution = TaskDistribution(sample, {"y": np.array([[1], [2**40]])})
    message = r"tasks.data\['y'\] must hold numbers that are int32s in jax, got 1099511627776 in int64"
    with pytest.raises(ValueError, match=message):
        jaxmeta.fit(jax.random.key(0), learner, distribution, num_outer_steps=1, num_tasks=1, progress=False)


def test_one_task_is_allowed_where_it_is_said():
    tasks = regression(lambda key: 2.0)
    at = lambda index, data: tasks.sample(None, data)
    single = jaxmeta.tasks.single(at(0, tasks.data))
    state, _ = train(LINE, single)
    assert evaluate(jax.random.key(1), LINE, single, state.meta_params).num_tasks == 1
    with pytest.raises(ValueError, match="tasks.sample must draw"):  # of two it is a mistake
        train(LINE, tasks._replace(at=at, size=2))
    with pytest.raises(ValueError, match="tasks.at must depend on the index, or all 2 tasks are one"):
        train(LINE, regression(jax.random.uniform)._replace(at=at, size=2))


@pytest.mark.parametrize(
    ("sample", "match"),
    [
        (lambda key: None, r"tasks.sample must be a function of \(key, data\), got one of \(key\): .*lambda key, data"),
        (lambda key, data, more: None, r"\(key, data\), got one of \(key, data, more\)"),
    ],
)
def test_a_sampler_takes_a_key_and_data(sample, match):
    for run in (train, judge):
        with pytest.raises(ValueError, match=match):
            run(LINE, TaskDistribution(sample))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"size": 2}, "must have both at and size"),
        ({"at": lambda index, data: None}, "must have both at and size"),
        (
            {"at": lambda index: None, "size": 2},
            r"tasks.at must be a function of \(index, data\), got one of \(index\)",
        ),
        ({"at": lambda index, data: None, "size": 0}, "tasks.size must be an integer >= 1, got 0"),
    ],
)
def test_a_finite_distribution_says_which_and_how_many(wrong, match):
    with pytest.raises(ValueError, match=match):
        train(LINE, regression(jax.random.uniform)._replace(**wrong))


def test_parameters_are_drawn_with_the_key():
    hidden = jaxmeta.maml(lambda key: jnp.asarray(np.random.normal()), nn.mean_squared_error(lambda w, x: w * x))
    with pytest.raises(ValueError, match="init_fn must be a pure function .*draw with jax.random"):
        train(hidden, regression(jax.random.uniform))
    constant = jaxmeta.maml(lambda key: jnp.ones(()), nn.mean_squared_error(lambda w, x: w * x))
    _look_at_state(jax.random.key(0), constant, None, num_outer_steps=1)  # the control: pretrained weights are right


def test_a_loss_does_not_draw_with_numpy():
    def loss_fn(params, batch):
        keep = np.random.uniform(size=batch[0].shape[1]) < 0.5
        return LOSS_FN(params, (batch[0] * keep.astype(np.float32)[None], batch[1]))

    with pytest.raises(ValueError, match="loss_fn must be a pure function"):
        train(jaxmeta.maml(init_fn, loss_fn), GOOD)


@pytest.mark.parametrize(("num_tasks", "num_seeds"), [(10**9, 1), (10**6, 1000)])
def test_what_cannot_fit_into_memory_is_refused_before_anything_is_allocated(num_tasks, num_seeds, monkeypatch):
    """A call with a zero too many hung. 8 bytes of a key, 4 of each number: 5 examples of 2, and 2 of the task."""
    monkeypatch.setattr(looks, "memory_bytes", lambda: 64 * 2**30)
    tasks = jaxmeta.tasks.sinusoid(num_shots=3, num_queries=2)
    with pytest.raises(ValueError, match=r"num_tasks must be .*half of the memory, got 1,.*: of 56 .* take 52\.2 GiB"):
        looks.look_at_size(num_tasks, tasks, num_seeds)
    monkeypatch.setattr(looks, "memory_bytes", lambda: 105 * 2**30)
    looks.look_at_size(num_tasks, tasks, num_seeds)

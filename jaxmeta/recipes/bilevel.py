"""Recipes of bilevel problems: hyperparameters, data weights and losses that are learned, while problems go on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta import adapt, nn, plotting
from jaxmeta.algorithms import bilevel
from jaxmeta.checks import check_integer, check_seed, check_share
from jaxmeta.recipes.experiment import Experiment, Outer, Recipe, Reference
from jaxmeta.tasks import single
from jaxmeta.training import evaluate
from jaxmeta.types import Batch, MetaLearner, MetaParams, Metrics, Params, PyTree, Task, TaskDistribution
from jaxmeta.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Bilevel(Outer):
    """The choices that every recipe of a bilevel problem has."""

    meta_gradient: Literal["exact", "mixed_mode", "implicit"] = "exact"
    """How a window of inner steps is differentiated; implicit is of the inner problem's solution, warm-started."""
    inner_learning_rate: float
    """The rate of gradient descent inside."""
    num_inner_steps: int
    """K, inner steps for each outer step."""
    num_eval_steps: int
    """Inner steps at test, from the beginning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("num_inner_steps", "num_eval_steps"):
            check_integer(field, getattr(self, field), minimum=1)

    def learner(self, init_fn: Callable, meta_init_fn: Callable, loss_fn: Callable, **others: Any) -> MetaLearner:
        given = {
            "inner_optimizer": adapt.sgd(self.inner_learning_rate),
            "num_inner_steps": self.num_inner_steps,
            "num_problems": self.num_tasks,
            "num_eval_steps": self.num_eval_steps,
            "meta_gradient": getattr(adapt, self.meta_gradient)(),
            "optimizer": self.outer_optimizer(),
        }
        return bilevel(init_fn, meta_init_fn, loss_fn, **{**given, **others})

    def protocol(self) -> str:
        return (
            f"{super().protocol()}; {self.meta_gradient} meta-gradient through "
            f"{counted(self.num_inner_steps, 'inner step')} of sgd {self.inner_learning_rate:g}, "
            f"{self.num_eval_steps} at test"
        )


# An L2 penalty for each feature


@dataclass(frozen=True, kw_only=True)
class Hyperparameters(Bilevel):
    """y = 1 with probability σ(w'x), x ~ N(0, I); w ~ N(0, 1) of the features that tell something, 0 of the others."""

    num_features: int = 50
    """Features."""
    num_informative: int = 10
    """Features that tell something, the first ones, the same in all data sets."""
    num_examples: int = 100
    """Examples of a training set."""
    num_queries: int = 100
    """Examples of a validation set."""
    num_eval_queries: int = 200
    """Examples of a test set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_informative <= self.num_features:
            raise ValueError(
                f"num_informative must be from 1 to num_features={self.num_features}, got {self.num_informative}"
            )

    def build(self) -> Experiment:
        learner = self.learner(
            lambda key, meta_params: jnp.zeros(self.num_features),
            lambda key: jnp.full(self.num_features, _logit(_FIRST_PENALTY)),
            lambda w, meta_params, batch: (_nll(w, batch) + 0.5 * jnp.sum(_penalty(meta_params) * w**2), {}),
            outer_loss_fn=lambda w, meta_params, batch: (_nll(w, batch), _classified(w, batch)),
        )
        sample = partial(_logistic, num_examples=self.num_examples, num_queries=self.num_queries)
        at_test = partial(_logistic, num_examples=self.num_examples, num_queries=self.num_eval_queries)
        scale = jnp.where(jnp.arange(self.num_features) < self.num_informative, 1.0, 0.0)
        test_tasks = TaskDistribution(at_test, scale)

        def references(key: jax.Array) -> dict[str, Reference]:
            of_one = {penalty: MetaParams(jnp.full(self.num_features, _logit(penalty))) for penalty in _GRID}
            judge = partial(evaluate, key, learner, test_tasks, num_tasks=self.num_eval_tasks)
            loss = {penalty: float(np.mean(judge(of).samples["loss"][:, -1])) for penalty, of in of_one.items()}
            best = min(loss, key=lambda penalty: loss[penalty])
            of_prior = MetaParams(jnp.where(scale > 0, _logit(1 / self.num_examples), _logit(0.999 * _MOST)))
            return {
                "one penalty, the best at test": Reference(learner, of_one[best]),
                "penalties of the prior": Reference(learner, of_prior),
            }

        def pictures(key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
            return {"penalties.png": _penalties(np.asarray(_penalty(meta_params.params)), self.num_informative, name)}

        sizes = f"{counted(self.num_examples, 'example')}, {self.num_informative} of {self.num_features} informative"
        protocol = f"logistic regression, {sizes}; {self.protocol()}"
        train_tasks = TaskDistribution(sample, scale)
        return Experiment(
            learner, train_tasks, test_tasks, "loss", protocol, pictures, adaptation="inner step", references=references
        )


_MOST, _FIRST_PENALTY = 10.0, 0.1  # gradient descent with a rate below 2 / (10 + 1) stays stable
_GRID = tuple(float(penalty) for penalty in np.logspace(-2.5, 0.5, 10))


def _penalty(meta_params: jax.Array) -> jax.Array:
    """λ of each feature, from 0 to `_MOST`."""
    return _MOST * jax.nn.sigmoid(meta_params)


def _logit(penalty: float) -> float:
    """What `_penalty` makes this penalty of."""
    return float(np.log(penalty / (_MOST - penalty)))


def _nll(w: jax.Array, batch: Batch) -> jax.Array:
    x, y = batch
    return jnp.mean(optax.sigmoid_binary_cross_entropy(x @ w, y))


def _classified(w: jax.Array, batch: Batch) -> Metrics:
    x, y = batch
    return {"loss": _nll(w, batch), "accuracy": jnp.mean((x @ w > 0) == (y > 0.5))}


def _logistic(key: jax.Array, scale: jax.Array, *, num_examples: int, num_queries: int) -> Task:
    w_key, x_key, y_key = jax.random.split(key, 3)
    w = scale * jax.random.normal(w_key, scale.shape)
    x = jax.random.normal(x_key, (num_examples + num_queries, len(scale)))
    y = jax.random.bernoulli(y_key, jax.nn.sigmoid(x @ w)).astype(x.dtype)
    return Task((x[:num_examples], y[:num_examples]), (x[num_examples:], y[num_examples:]))


def _penalties(penalty: np.ndarray, num_informative: int, name: str) -> "Figure":
    figure, (axes,) = plotting.figure(width=6.4, height=3.6)
    number = np.arange(1, len(penalty) + 1)
    for label, style in plotting.styles(["informative", "not informative"]).items():
        shown = (number <= num_informative) == (label == "informative")
        axes.plot(number[shown], penalty[shown], style.marker, color=style.color, label=label)
    axes.set(yscale="log", xlabel="feature", ylabel="learned penalty", title=f"{name}: the penalty of each feature")
    axes.legend(frameon=False)
    return figure


# A weight for each example, half of which have a wrong label


@dataclass(frozen=True, kw_only=True)
class DataCleaning(Bilevel):
    """x ~ N(μ_y, I) of ten classes y, μ ~ N(0, separation² I); an example's weight is σ(η_i), a linear classifier."""

    num_examples: int = 1000
    """Training examples."""
    num_queries: int = 500
    """Validation examples, whose labels are right."""
    num_eval_queries: int = 500
    """Examples of a test set; each is drawn anew, and the training set is one."""
    fraction_wrong: float = 0.5
    """Training labels that are another class's."""
    num_features: int = 20
    """Features."""
    separation: float = 0.8
    """Standard deviation of the class means, for noise of 1."""
    weight_decay: float = 1e-3
    """An L2 penalty inside."""
    data_seed: int = 0
    """Of the data set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed("data_seed", self.data_seed)
        if not 0 < self.fraction_wrong < 1:
            raise ValueError(
                f"fraction_wrong must be between 0 and 1, got {self.fraction_wrong:g}: the area under the ROC is of "
                "right labels and of wrong ones"
            )

    def build(self) -> Experiment:
        data = _mislabelled(jax.random.key(self.data_seed), self)
        learner = self.learner(
            lambda key, weights: {"w": jnp.zeros((self.num_features, _CLASSES)), "b": jnp.zeros(_CLASSES)},
            lambda key: jnp.zeros(self.num_examples),
            partial(_weighted_loss, self.weight_decay),
            outer_loss_fn=_cleaned,
        )

        def test_task(key: jax.Array, data: "_Mislabelled") -> Task:
            return data.task._replace(query=(*_of_classes(key, data.means, self.num_eval_queries), data.is_right))

        known = {
            "the right half alone": jnp.where(data.is_right, _SURE, -_SURE),
            "all alike": jnp.full(self.num_examples, _SURE),
        }
        references = {name: Reference(learner, MetaParams(weights)) for name, weights in known.items()}

        def pictures(key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
            return {"weights.png": _weights(meta_params.params, data.is_right, name)}

        protocol = (
            f"{_CLASSES} classes, {counted(self.num_examples, 'example')}, {self.fraction_wrong:.0%} of the labels "
            f"wrong; {self.protocol()}"
        )
        return Experiment(
            learner,
            single(data.task),
            TaskDistribution(test_task, data),
            "accuracy",
            protocol,
            pictures,
            references=lambda key: references,
        )


_CLASSES = 10
_SURE = 30.0  # σ of it is 1, of its negative 0


class _Mislabelled(NamedTuple):
    """The data set: the task of training, which labels are right, and the means of the classes."""

    task: Task
    is_right: jax.Array
    means: jax.Array


@partial(jax.jit, static_argnames="config")
def _mislabelled(key: jax.Array, config: DataCleaning) -> _Mislabelled:
    mean_key, support_key, query_key, wrong_key, class_key = jax.random.split(key, 5)
    means = config.separation * jax.random.normal(mean_key, (_CLASSES, config.num_features))
    x, y = _of_classes(support_key, means, config.num_examples)
    num_wrong = round(config.fraction_wrong * config.num_examples)
    is_right = jax.random.permutation(wrong_key, config.num_examples) >= num_wrong
    another = (y + jax.random.randint(class_key, y.shape, 1, _CLASSES)) % _CLASSES
    query = (*_of_classes(query_key, means, config.num_queries), is_right)
    return _Mislabelled(Task((x, jnp.where(is_right, y, another)), query), is_right, means)


def _of_classes(key: jax.Array, means: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    class_key, noise_key = jax.random.split(key)
    y = jax.random.randint(class_key, (number,), 0, _CLASSES)
    return means[y] + jax.random.normal(noise_key, (number, means.shape[1])), y


def _cross_entropies(params: Params, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each example, and whether it is classified right."""
    logits = x @ params["w"] + params["b"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y), jnp.argmax(logits, axis=-1) == y


def _weighted_loss(weight_decay: float, params: Params, weights: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    losses, _ = _cross_entropies(params, *batch)
    decay = 0.5 * weight_decay * optax.tree.norm(params, squared=True)
    return jnp.mean(jax.nn.sigmoid(weights) * losses) + decay, {}


def _cleaned(params: Params, weights: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    x, y, is_right = batch
    losses, are_right = _cross_entropies(params, x, y)
    loss = jnp.mean(losses)
    return loss, {"accuracy": jnp.mean(are_right), "roc": area_under_roc(weights, is_right), "loss": loss}


def area_under_roc(scores: jax.Array, is_positive: jax.Array) -> jax.Array:
    """The probability that a positive has a higher score than a negative, equal ones counting half.

    >>> area_under_roc(jnp.array([0.1, 0.4, 0.4, 0.9]), jnp.array([False, False, True, True])).item()
    0.875
    """
    ordered = jnp.sort(scores)
    rank = 0.5 * (jnp.searchsorted(ordered, scores, "left") + jnp.searchsorted(ordered, scores, "right") + 1)
    num_positive = jnp.sum(is_positive)
    above = jnp.sum(jnp.where(is_positive, rank, 0.0)) - 0.5 * num_positive * (num_positive + 1)
    return above / (num_positive * (len(scores) - num_positive))


def _weights(weights: jax.Array, is_right: jax.Array, name: str) -> "Figure":
    figure, (axes,) = plotting.figure(width=6.4, height=3.6)
    learned, labels = np.asarray(jax.nn.sigmoid(weights)), np.asarray(is_right)
    parts = {"right label": (learned[labels], plotting.RIGHT), "wrong label": (learned[~labels], plotting.WRONG)}
    for label, (shown, color) in parts.items():
        axes.hist(shown, bins=np.linspace(0, 1, 41).tolist(), color=color, alpha=0.6, label=label)
    roc = area_under_roc(weights, is_right)
    axes.set(xlabel="learned weight", ylabel="examples", title=f"{name}: area under the ROC {roc:.3f}")
    axes.legend(frameon=False)
    return figure


# A loss that is learned: the weights of auxiliary tasks, and a function of the residual


@dataclass(frozen=True, kw_only=True)
class LearnedLoss(Bilevel):
    """y = w'x + noise, w ~ N(0, I): a few labels, some far off; many of a related task and many of an unrelated one."""

    num_features: int = 10
    """Features."""
    num_shots: int = 20
    """Labels of the task itself."""
    num_auxiliary: int = 50
    """Labels of each of the two auxiliary tasks."""
    num_queries: int = 50
    """Queries, whose labels are without noise."""
    fraction_off: float = 0.2
    """Share of the labels of the task itself that are far off."""
    hidden: tuple[int, ...] = (16,)
    """Widths of the loss network's hidden layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("fraction_off", self.fraction_off)

    def build(self) -> Experiment:
        network = nn.MLP(self.hidden, activation=jnp.tanh)
        learner = self.learner(
            lambda key, meta_params: jnp.zeros(self.num_features),
            partial(_plain_loss, network),
            partial(_composed_loss, network),
            outer_loss_fn=lambda w, meta_params, batch: _judged_by_squares(w, batch),
            lifetime=self.num_inner_steps,
        )
        sample = partial(_with_auxiliaries, config=self)
        tasks = TaskDistribution(sample)

        def references(key: jax.Array) -> dict[str, Reference]:
            plain, none = _plain_loss(network, key), jnp.full(2, -_SURE)
            return {
                "no auxiliary": Reference(learner, MetaParams({**plain, "log_weights": none})),
                "weights of 1": Reference(learner, MetaParams(plain)),
            }

        def pictures(key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
            return {"loss.png": _losses(network, meta_params.params, name)}

        protocol = (
            f"linear regression, {counted(self.num_shots, 'shot')}, {self.fraction_off:.0%} of them far off, "
            f"{self.num_auxiliary} of each auxiliary task; {self.protocol()}"
        )
        return Experiment(learner, tasks, tasks, "mse", protocol, pictures, references=references)


_RELATED, _NOISE, _FAR = 0.3, 0.3, 5.0  # standard deviations: of how the related task differs, of labels, of those off


def _with_auxiliaries(key: jax.Array, data: PyTree, *, config: LearnedLoss) -> Task:
    """A support set of three pairs (x, y): the task's own, the related one's and the unrelated one's."""
    w_key, related_key, other_key, x_key, noise_key, off_key, far_key = jax.random.split(key, 7)
    w, difference, other = (jax.random.normal(key, (config.num_features,)) for key in (w_key, related_key, other_key))
    sizes = (config.num_shots, config.num_auxiliary, config.num_auxiliary, config.num_queries)
    x = [jax.random.normal(key, (n, len(w))) for key, n in zip(jax.random.split(x_key, 4), sizes, strict=True)]
    noise = [jax.random.normal(key, (n,)) for key, n in zip(jax.random.split(noise_key, 3), sizes[:3], strict=True)]
    is_off = jax.random.uniform(off_key, (config.num_shots,)) < config.fraction_off
    off = jnp.where(is_off, _FAR * jax.random.normal(far_key, is_off.shape), 0.0)
    teachers = (w, w + _RELATED * difference, other)
    own, *auxiliary = ((x, x @ w + _NOISE * e) for x, w, e in zip(x[:3], teachers, noise, strict=True))
    return Task(((own[0], own[1] + off), *auxiliary), (x[3], x[3] @ w))


def _plain_loss(network: nn.MLP, key: jax.Array) -> PyTree:
    """What is learned, where it starts: a network whose head is 0, and weights of 1."""
    params = network.init(key, jnp.ones((1, 1)))["params"]
    return {
        "log_weights": jnp.zeros(2),
        "network": {**params, "head": jax.tree.map(jnp.zeros_like, params["head"])},
    }


def _of_residual(network: nn.MLP, meta_params: PyTree, residual: jax.Array) -> jax.Array:
    """ρ(r) = r² σ(f(log(1 + r²))), which is r² / 2 where the network f is 0."""
    size = jnp.log1p(residual**2)
    score: Any = network.apply({"params": meta_params["network"]}, size[:, None])
    return jax.nn.sigmoid(score[:, 0]) * residual**2


def _composed_loss(network: nn.MLP, w: jax.Array, meta_params: PyTree, batch: Batch) -> tuple[jax.Array, Metrics]:
    (x, y), *auxiliary = batch
    others = jnp.stack([0.5 * jnp.mean((x @ w - y) ** 2) for x, y in auxiliary])
    own = jnp.mean(_of_residual(network, meta_params, x @ w - y))
    return own + jnp.exp(meta_params["log_weights"]) @ others, {}


def _judged_by_squares(w: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    x, y = batch
    mse = jnp.mean((x @ w - y) ** 2)
    return mse, {"mse": mse}


def _losses(network: nn.MLP, meta_params: PyTree, name: str) -> "Figure":
    figure, (left, right) = plotting.figure(2, width=4.2, height=3.2)
    residual = jnp.linspace(-10.0, 10.0, 201)
    curves = {"learned": _of_residual(network, meta_params, residual), "r² / 2": residual**2 / 2}
    for label, style in plotting.styles(curves).items():
        left.plot(residual, curves[label], linestyle=style.line, color=style.color, label=label)
    left.set(xlabel="residual r", ylabel="loss", title=f"{name}: the loss", ylim=(0, 15))
    left.legend(frameon=False)
    right.bar(["related", "unrelated"], np.exp(meta_params["log_weights"]), color=plotting.OWN.color)
    right.set(ylabel="learned weight", title="auxiliary tasks")
    return figure


_cleaning = DataCleaning(
    num_outer_steps=500,
    num_tasks=1,
    learning_rate=0.1,
    inner_learning_rate=2.0,
    num_inner_steps=10,
    num_eval_steps=50,
    num_eval_tasks=20,
)
_hyperparameters = Hyperparameters(
    num_outer_steps=1000,
    num_tasks=16,
    learning_rate=0.05,
    meta_gradient="implicit",
    inner_learning_rate=0.15,
    num_inner_steps=10,
    num_eval_steps=200,
    num_eval_tasks=200,
)
_learned_loss = LearnedLoss(
    num_outer_steps=1000,
    num_tasks=16,
    learning_rate=0.02,
    inner_learning_rate=0.1,
    num_inner_steps=50,
    num_eval_steps=50,
)

BILEVEL: dict[str, Recipe] = {
    "hyperparameters": Recipe(
        lambda: _hyperparameters,
        "an L2 penalty for each feature of a logistic regression, by the loss of validation sets",
        "Lorraine et al. 2020, https://arxiv.org/abs/1911.02590",
        "loss below that of the best single penalty",
        1,
    ),
    "data-cleaning": Recipe(
        lambda: _cleaning,
        "a weight for each training example, where half of the labels are wrong",
        "Franceschi et al. 2017, https://arxiv.org/abs/1703.01785",
        "area under the ROC of the weights .95, accuracy within .01 of training on the right half alone",
        1,
    ),
    "learned-loss": Recipe(
        lambda: _learned_loss,
        "the weights of auxiliary tasks and a function of the residual, learned as a loss",
        "Bechtle et al. 2021, https://arxiv.org/abs/1906.05374",
        "mse below that without auxiliary tasks, and with weights of 1",
        1,
    ),
}

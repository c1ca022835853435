"""Recipes of supervised tasks: regression and few-shot images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import adapt, nn, plotting, tasks
from jaxmeta.algorithms import maml, multi_step_weights, protonet, ridge
from jaxmeta.algorithms.cavia import context_only
from jaxmeta.checks import check_integer, check_number
from jaxmeta.recipes.experiment import Experiment, Outer, Recipe
from jaxmeta.types import Batch, InitFn, LossFn, MetaLearner, MetaParams, Params, TaskDistribution
from jaxmeta.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Supervised(Outer):
    """The choices that every supervised recipe has."""

    microbatch: int | None = None
    """Tasks computed at a time; chosen for the machine if None."""
    num_shots: int
    """Shots, examples to adapt to: of a task, or of each class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_shots", self.num_shots, minimum=1)


@dataclass(frozen=True, kw_only=True)
class GradientBased(Supervised):
    """The choices of an inner loop."""

    meta_gradient: Literal["auto", "exact", "mixed_mode", "first_order", "reptile", "implicit"] = "auto"
    """How the inner loop is differentiated; auto, exact and mixed_mode give the same gradient."""
    inner_optimizer: Literal["sgd", "meta_sgd", "lslr", "sgd_on_head", "sgd_on_context"] = "sgd"
    """How to step inside: one rate, a learned rate per parameter, a learned rate per layer and step (MAML++), only the
    last layer (ANIL), or only a context (CAVIA; the network needs one)."""
    inner_learning_rate: float
    """The inner learning rate; where rates are learned, their start."""
    proximal_strength: float = 0.0
    """λ, how strongly the inner loop is drawn back to where it started (iMAML)."""
    damping: float = 0.0
    """δ, of the linear system of the implicit meta-gradient: makes up for curvature below 0 (iMAML)."""
    num_annealing_steps: int | None = None
    """Outer steps over which the query losses after early inner steps lose their weight (MAML++); from the start only
    the last one counts if None."""
    num_inner_steps: int = 1
    """K, inner steps while training."""
    num_eval_steps: int = 10
    """Inner steps at test."""
    inner_batch_size: int | None = None
    """Shots that each inner step draws; all of them if None."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("damping", self.damping)
        if self.damping and self.meta_gradient != "implicit":
            raise ValueError(
                f"damping must be 0 with meta_gradient={self.meta_gradient!r}, got {self.damping:g}: it is that of "
                "meta_gradient='implicit', which solves a linear system"
            )

    def learner(self, init_fn: InitFn, loss_fn: LossFn, **overrides) -> MetaLearner:
        sgd = adapt.sgd(self.inner_learning_rate)
        if self.proximal_strength:
            sgd = adapt.proximal(sgd, self.proximal_strength)
        anneal = self.num_annealing_steps
        arguments = {
            "inner_optimizer": {
                "sgd": sgd,
                "meta_sgd": adapt.meta_sgd(self.inner_learning_rate),
                "lslr": adapt.lslr(self.inner_learning_rate, self.num_inner_steps),
                "sgd_on_head": adapt.adapt_only(sgd, "head"),
                "sgd_on_context": context_only(sgd),
            }[self.inner_optimizer],
            "num_inner_steps": self.num_inner_steps,
            "num_eval_steps": self.num_eval_steps,
            "batch_size": self.inner_batch_size,
            "loss_weights": None if anneal is None else multi_step_weights(self.num_inner_steps, anneal),
            "meta_gradient": getattr(adapt, self.meta_gradient)(**{"damping": self.damping} if self.damping else {}),
            "optimizer": self.outer_optimizer(),
            "microbatch": self.microbatch,
        }
        return maml(init_fn, loss_fn, **{**arguments, **overrides})

    def protocol(self) -> str:
        anneal, strength = self.num_annealing_steps, self.proximal_strength
        return (
            f"{super().protocol()}; {self.meta_gradient} meta-gradient through "
            f"{counted(self.num_inner_steps, 'inner step')} of {self.inner_optimizer} {self.inner_learning_rate:g}, "
            f"{self.num_eval_steps} at test"
            + (f"; drawn back with strength {strength:g}" if strength else "")
            + (f", damping {self.damping:g}" if self.damping else "")
            + (f"; judged after each step, annealed over {counted(anneal, 'outer step')}" if anneal else "")
        )


@dataclass(frozen=True, kw_only=True)
class Sinusoid(GradientBased):
    """y = A sin(x − φ), A ~ U(0.1, 5), φ ~ U(0, π), x ~ U(−5, 5); an MLP with relu."""

    num_queries: int = 10
    """Query examples of a task while training."""
    hidden: tuple[int, ...] = (40, 40)
    """Widths of the network's hidden layers."""
    num_context: int = 0
    """Context parameters, inputs of the network beside x; for sgd_on_context."""
    num_eval_queries: int = 100
    """Query examples of a test task."""
    num_eval_shots: int | None = None
    """Shots of a test task; as in training if None."""

    def build(self) -> Experiment:
        network = nn.MLP(self.hidden, num_context=self.num_context)
        init_fn = lambda key: network.init(key, jnp.ones((1, 1)))
        return _regression(self, init_fn, network.apply, nn.mean_squared_error, tasks.sinusoid, half_width=5.0)


@dataclass(frozen=True, kw_only=True)
class Linear(GradientBased):
    """y = a x + b + ε, a, b ~ N(0, 1), x ~ U(−1, 1), ε ~ N(0, noise²); a single linear unit."""

    noise: float = 0.3
    """Standard deviation of the noise."""
    num_queries: int = 10
    """Query examples of a task while training."""
    num_eval_queries: int = 100
    """Query examples of a test task."""
    num_eval_shots: int | None = None
    """Shots of a test task; as in training if None."""

    def build(self) -> Experiment:
        network = nn.MLP(())
        init_fn = lambda key: network.init(key, jnp.ones((1, 1)))
        family = lambda **counts: tasks.linear(noise=self.noise, **counts)
        return _regression(self, init_fn, network.apply, nn.mean_squared_error, family, half_width=1.0)


@dataclass(frozen=True, kw_only=True)
class Quadratic(Linear):
    """y = θ_0 + θ_1 x + θ_2 x² + ε, θ_i ~ N(0, 1), x ~ U(−1, 1); the model θ itself, the sum of squared errors."""

    noise: float = 0.0

    def build(self) -> Experiment:
        init_fn = lambda key: {"theta": jax.random.normal(key, (3,))}
        apply_fn = lambda params, x: jnp.concatenate([x**0, x, x**2], axis=-1) @ params["theta"][:, None]
        family = lambda **counts: tasks.quadratic(noise=self.noise, **counts)
        return _regression(self, init_fn, apply_fn, nn.sum_squared_error, family, half_width=1.0)


@dataclass(frozen=True, kw_only=True)
class Omniglot(Supervised):
    """N-way K-shot episodes of Omniglot's characters, with rotations by 90 degrees as classes; four convolutions."""

    data_dir: str | None = None
    """Folder with Omniglot's two zips or arrays; downloaded into a cache if None."""
    num_ways: int = 5
    """Classes of a task."""
    num_queries: int
    """Queries of each class while training."""
    num_filters: int = 64
    """Filters of each convolution."""
    num_eval_queries: int = 15
    """Queries of each class at test."""
    statistics: Literal["query", "support"] = "query"
    """Whose statistics normalise the queries: their own (transductive), or the support set's, so that a prediction does
    not depend on the other queries."""
    split_seed: int = 0
    """Chooses the 1,200 training and the 423 test characters."""

    def condition_fn(self, network: nn.Conv4) -> Callable[[Params, Batch], Params] | None:
        return nn.support_statistics(network.apply) if self.statistics == "support" else None


@dataclass(frozen=True, kw_only=True)
class GradientOmniglot(Omniglot, GradientBased):
    """Omniglot with an inner loop; the network's head has an output for each class."""

    num_eval_steps: int = 3
    """Inner steps at test."""

    def build(self) -> Experiment:
        network = nn.Conv4(self.num_ways, self.num_filters)
        condition_fn = self.condition_fn(network)
        learner = self.learner(_init_fn(network), nn.cross_entropy(network.apply), condition_fn=condition_fn)
        return _episodes(
            self, learner, network.apply, self.num_ways, f"after {counted(self.num_eval_steps, 'inner step')}"
        )


@dataclass(frozen=True, kw_only=True)
class ClosedFormOmniglot(Omniglot):
    """Omniglot with a head that is computed from the shots; the convolutions are an embedding."""

    head: Literal["prototypes", "ridge"] = "prototypes"
    """The nearest class mean, or ridge regression onto the labels."""
    num_ways: int = 60
    """Classes of a task while training; many make a better embedding."""
    num_eval_ways: int = 5
    """Classes of a test task."""

    def build(self) -> Experiment:
        network = nn.Conv4(None, self.num_filters)
        learner = {"prototypes": protonet, "ridge": ridge}[self.head](
            _init_fn(network),
            network.apply,
            num_ways=self.num_ways,
            num_eval_ways=self.num_eval_ways,
            condition_fn=self.condition_fn(network),
            optimizer=self.outer_optimizer(),
            microbatch=self.microbatch,
        )
        predict = lambda adapted, x: adapted.head(network.apply(adapted.params, x))
        return _episodes(self, learner, predict, self.num_eval_ways, f"with {self.head}")

    def protocol(self) -> str:
        return f"{super().protocol()}; {self.num_ways}-way while training, {self.head} as head"


def _regression(
    config: Sinusoid | Linear,
    init_fn: InitFn,
    apply_fn: Callable,
    loss: Callable[[Callable], LossFn],
    family: Callable[..., TaskDistribution],
    half_width: float,
) -> Experiment:
    """A regression experiment; its picture has three test tasks, before and after 1 and `num_eval_steps` steps."""
    loss_fn = loss(apply_fn)
    learner = config.learner(init_fn, loss_fn)
    num_eval_shots = config.num_shots if config.num_eval_shots is None else config.num_eval_shots
    train_tasks = family(num_shots=config.num_shots, num_queries=config.num_queries)
    test_tasks = family(num_shots=num_eval_shots, num_queries=config.num_eval_queries)
    steps = sorted({0, 1, config.num_eval_steps})

    def pictures(key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
        x = jnp.linspace(-half_width, half_width, 200)[:, None]
        samples = [test_tasks.sample(k, test_tasks.data) for k in jax.random.split(key, 3)]
        curves = [[apply_fn(meta_params.params, x)] for _ in samples]
        for num_steps in steps[1:]:
            adapt_to = config.learner(init_fn, loss_fn, num_eval_steps=num_steps).adapt
            for task, fits in zip(samples, curves, strict=True):
                fits.append(apply_fn(adapt_to(key, meta_params, task), x))
        figure = plotting.regression_adaptation(
            np.ravel(x),
            np.stack([np.ravel(task.info(x)) for task in samples]),
            [jax.tree.map(np.asarray, task.support) for task in samples],
            np.stack([[np.ravel(fit) for fit in fits] for fits in curves]),
            steps,
            f"{name}, {counted(num_eval_shots, 'shot')} of three test tasks",
        )
        return {"adaptation.png": figure}

    shots = counted(config.num_shots, "shot") + f", {num_eval_shots} at test" * (num_eval_shots != config.num_shots)
    noise = f", noise {config.noise:g}" if isinstance(config, Linear) else ""
    protocol = f"{type(config).__name__.lower()}, {shots}{noise}; {config.protocol()}"
    return Experiment(
        learner, train_tasks, test_tasks, "mse", protocol, pictures, eval_batch_size=config.microbatch or 100
    )


def _init_fn(network: nn.Conv4) -> InitFn:
    return lambda key: network.init(key, jnp.zeros((1, 28, 28), jnp.uint8))


def _episodes(
    config: GradientOmniglot | ClosedFormOmniglot,
    learner: MetaLearner,
    predict: Callable,
    num_eval_ways: int,
    adapted: str,
) -> Experiment:
    """An Omniglot experiment; `predict(what learner.adapt returns, images)` are logits. Its picture is a test task."""

    def episodes(split: str, num_ways: int, num_queries: int) -> TaskDistribution:
        return tasks.omniglot(
            split,
            data_dir=config.data_dir,
            seed=config.split_seed,
            num_ways=num_ways,
            num_shots=config.num_shots,
            num_queries=num_queries,
        )

    test_tasks = episodes("test", num_eval_ways, config.num_eval_queries)
    what = f"{num_eval_ways}-way {config.num_shots}-shot"

    def pictures(key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
        task = test_tasks.sample(key, test_tasks.data)
        params = learner.adapt(key, meta_params, task)
        predictions = np.asarray(jnp.argmax(predict(params, task.query[0]), axis=-1))
        support, query = jax.tree.map(np.asarray, (task.support, task.query))
        return {"episode.png": plotting.episode(support, query, predictions, f"{name}, {what}, {adapted}")}

    protocol = (
        f"{what} Omniglot, 28x28, {counted(config.num_filters, 'filter')}; trained on 1,100 characters and their "
        f"rotations with {counted(config.num_queries, 'query', 'queries')} a class, tested on 423 with "
        f"{config.num_eval_queries}; {config.protocol()}"
    )
    batch_norm = {
        "query": "statistics of the batch, at test those of the query set (transductive)",
        "support": "statistics of the batch, for queries those of the support set",
    }[config.statistics]
    train_tasks = episodes("train", config.num_ways, config.num_queries)
    return Experiment(
        learner,
        train_tasks,
        test_tasks,
        "accuracy",
        protocol,
        pictures,
        batch_norm=batch_norm,
        eval_batch_size=config.microbatch or 100,
        adaptation="inner step" if isinstance(config, GradientBased) else "fit of the head",
    )


_MAML = "Finn et al. 2017, https://arxiv.org/abs/1703.03400"
# Two inner steps, where the paper trains with one: after one, ten steps at test diverge for about one seed in six.
_sinusoid = Sinusoid(num_outer_steps=50_000, num_tasks=25, inner_learning_rate=0.01, num_inner_steps=2, num_shots=5)


def _omniglot() -> GradientOmniglot:
    """The paper's protocol on an accelerator; on a CPU one that fits into minutes. `train` prints which.

    The paper's inner rate of 0.4 is for a loss summed over the 5 classes: 2.0 for the mean.
    """
    paper = GradientOmniglot(num_outer_steps=60_000, num_tasks=32, num_shots=1, num_queries=1, inner_learning_rate=2.0)
    if jax.default_backend() != "cpu":
        return paper
    return replace(
        paper,
        num_outer_steps=6000,
        num_tasks=8,
        num_queries=5,
        inner_learning_rate=0.4,
        learning_rate=3e-3,
        schedule="cosine",
        microbatch=1,
    )


def _closed_form() -> ClosedFormOmniglot:
    """ProtoNet's episodes, 60-way with 5 queries, and MAML's network; the rate falls along a cosine.

    The paper's network pools where this one strides, four times as slow on a CPU.
    """
    is_cpu = jax.default_backend() == "cpu"
    return ClosedFormOmniglot(
        num_outer_steps=4000 if is_cpu else 20_000,
        num_tasks=1,
        num_shots=1,
        num_queries=5,
        learning_rate=3e-3,
        schedule="cosine",
        microbatch=1 if is_cpu else None,
    )


def _polynomial_figure(degree: int, config: Linear) -> str:
    _, mse = tasks.polynomial_optimum(degree, config.num_shots, config.noise)
    return f"mse {mse:.4f} after 1 step: the optimum, in closed form"


_reptile = replace(
    _sinusoid,
    meta_gradient="reptile",
    num_outer_steps=20_000,
    schedule="cosine",
    num_inner_steps=10,
    inner_batch_size=5,
    num_shots=25,
    num_eval_shots=5,
)
_cavia = replace(
    _sinusoid, inner_optimizer="sgd_on_context", num_context=5, inner_learning_rate=1.0, num_inner_steps=1, num_shots=10
)
_linear = Linear(
    num_outer_steps=3000,
    num_tasks=25,
    num_shots=10,
    num_eval_steps=1,
    num_eval_tasks=20_000,
    inner_learning_rate=round(tasks.polynomial_optimum(1, 10, 0.3)[0], 4),
    learning_rate=1e-2,
    schedule="cosine",
)
_quadratic = Quadratic(
    num_outer_steps=3000,
    num_tasks=25,
    num_shots=10,
    num_eval_steps=1,
    num_eval_tasks=20_000,
    inner_learning_rate=round(tasks.polynomial_optimum(2, 10, 0.0)[0] / 10, 4),
    learning_rate=1e-2,
    schedule="cosine",
)

SUPERVISED: dict[str, Recipe] = {
    "maml-sinusoid": Recipe(
        lambda: _sinusoid, "MAML on sinusoids, 5 shots", _MAML, "mse .67 / .35 after 1 / 10 steps", 1
    ),
    "maml-linear": Recipe(
        lambda: _linear, "MAML on noisy lines, one linear unit", _MAML, _polynomial_figure(1, _linear), 0.3
    ),
    "maml-quadratic": Recipe(
        lambda: _quadratic,
        "MAML on parabolas, where all has a closed form",
        _MAML,
        _polynomial_figure(2, _quadratic),
        0.5,
    ),
    "fomaml-sinusoid": Recipe(
        lambda: replace(_sinusoid, meta_gradient="first_order"),
        "first-order MAML on sinusoids, 5 shots",
        f"{_MAML}, section 5.2",
        "no figure in the paper; beside maml-sinusoid",
        1,
    ),
    "meta-sgd-sinusoid": Recipe(
        lambda: replace(_sinusoid, inner_optimizer="meta_sgd", num_inner_steps=1, num_eval_steps=1),
        "MAML that learns a rate for each parameter, one step",
        "Li et al. 2017, https://arxiv.org/abs/1707.09835",
        "below maml-sinusoid after 1 step",
        1,
    ),
    "reptile-sinusoid": Recipe(
        lambda: _reptile,
        "Reptile on sinusoids, 5 shots at test",
        "Nichol et al. 2018, https://arxiv.org/abs/1803.02999",
        "curves only in the paper; beside maml-sinusoid",
        1,
    ),
    "cavia-sinusoid": Recipe(
        lambda: _cavia,
        "CAVIA on sinusoids: only 5 inputs of the network adapt, 10 shots",
        "Zintgraf et al. 2019, https://arxiv.org/abs/1810.03642",
        "mse .19 after 1 step",
        1,
    ),
    "anil-omniglot": Recipe(
        lambda: replace(_omniglot(), inner_optimizer="sgd_on_head"),
        "MAML whose inner loop adapts the last layer only",
        "Raghu et al. 2019, https://arxiv.org/abs/1909.09157",
        "close to maml-omniglot (paper, 20-way 1-shot: .962)",
        6,
    ),
    "maml-omniglot": Recipe(
        _omniglot, "MAML on Omniglot, 5-way 1-shot", _MAML, "accuracy .987 (paper's protocol); .95 on a CPU", 6
    ),
    "maml++-omniglot": Recipe(
        lambda: replace(
            _omniglot(), inner_optimizer="lslr", num_inner_steps=3, num_annealing_steps=_omniglot().num_outer_steps // 3
        ),
        "MAML++: rates per layer and step, judged after each step at first",
        "Antoniou et al. 2019, https://arxiv.org/abs/1810.09502",
        "beside maml-omniglot, as it comes out",
        15,
    ),
    "imaml-omniglot": Recipe(
        lambda: replace(
            _omniglot(),
            meta_gradient="implicit",
            proximal_strength=2.0,
            inner_learning_rate=0.1,
            num_inner_steps=10,
            num_eval_steps=10,
            damping=2.2,  # α (∇²L + 24 I), the matrix of the authors' code
        ),
        "iMAML: the derivative of where the inner loop comes to rest",
        "Rajeswaran et al. 2019, https://arxiv.org/abs/1909.04630",
        "beside maml-omniglot, as it comes out",
        30,
    ),
    "protonet-omniglot": Recipe(
        _closed_form,
        "prototypical networks on Omniglot, 5-way 1-shot",
        "Snell et al. 2017, https://arxiv.org/abs/1703.05175",
        "accuracy .988 (paper); .96 on a CPU",
        6,
    ),
    "ridge-omniglot": Recipe(
        lambda: replace(_closed_form(), head="ridge", num_ways=20, num_outer_steps=2 * _closed_form().num_outer_steps),
        "ridge regression in a learned embedding (R2-D2), 5-way 1-shot",
        "Bertinetto et al. 2019, https://arxiv.org/abs/1805.08136",
        "close to protonet-omniglot",
        6,
    ),
}

"""Recipes of streams: a model that learns from what it has just read, and how to learn from it, meta-learned."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta import adapt, nn
from jaxmeta.algorithms import bilevel
from jaxmeta.checks import check_integer, check_number, check_share
from jaxmeta.recipes.experiment import Experiment, Outer, Recipe, Reference
from jaxmeta.training import evaluate, fit
from jaxmeta.types import Batch, MetaLearner, MetaParams, MetaState, Metrics, Params, PyTree, Task, TaskDistribution
from jaxmeta.words import counted


@dataclass(frozen=True, kw_only=True)
class Streams(Outer):
    """The choices that every recipe of streams has."""

    inner_learning_rate: float
    """The rate of gradient descent inside, where it starts: it is learned."""
    num_inner_steps: int
    """K, chunks of a window that is differentiated through, one inner step each."""
    num_chunks: int
    """Chunks of a stream, a multiple of K."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("num_inner_steps", "num_chunks"):
            check_integer(field, getattr(self, field), minimum=1)
        check_number("inner_learning_rate", self.inner_learning_rate, minimum=1e-12)
        if self.num_chunks % self.num_inner_steps:
            raise ValueError(
                f"num_chunks must be a multiple of num_inner_steps={self.num_inner_steps}, got {self.num_chunks}"
            )

    def inner_optimizer(self) -> adapt.InnerOptimizer:
        return adapt.from_optax(lambda log_rate: optax.sgd(jnp.exp(log_rate)), float(np.log(self.inner_learning_rate)))

    def learner(self, meta_init_fn: Callable, loss_fn: Callable, **others: Any) -> MetaLearner:
        """A problem begins by what is learned, and judges what it meets before it learns from it."""
        given = {
            "num_inner_steps": self.num_inner_steps,
            "inner_optimizer": self.inner_optimizer(),
            "num_problems": self.num_tasks,
            "lifetime": self.num_chunks,
            "judged": "met",
            "stream": True,
            "meta_gradient": adapt.exact(),
            "optimizer": self.outer_optimizer(),
        }
        return bilevel(lambda key, start: start, meta_init_fn, loss_fn, **{**given, **others})

    def at_the_best_rate(
        self, key: jax.Array, learner: MetaLearner, tasks: TaskDistribution, metric: str, start: Params
    ) -> Reference:
        """Adaptation from a start that nobody has trained to adapt, at the one of eight rates that is best at test."""
        rates = self.inner_learning_rate * 2.0 ** np.arange(-3, 5)
        of_rate = [MetaParams(start, jnp.log(jnp.float32(rate))) for rate in rates]
        reports = [evaluate(key, learner, tasks, of, num_tasks=self.num_eval_tasks) for of in of_rate]
        at_last = [np.mean(report.samples[metric][:, -1]) for report in reports]
        return Reference(learner, of_rate[int(np.nanargmin(at_last))])

    def protocol(self) -> str:
        return (
            f"{super().protocol()}; streams of {counted(self.num_chunks, 'chunk')}, windows of "
            f"{counted(self.num_inner_steps, 'inner step')} of sgd, whose rate is learned from "
            f"{self.inner_learning_rate:g} on"
        )


def _known(evaluate: Callable[[Task], Metrics]) -> Reference:
    """What learns nothing from other streams, as a learner for `evaluate`: it is told how they come about."""
    init = lambda key: MetaState(jnp.int32(0), MetaParams(()), (), jnp.int32(0))

    def none(*_: Any) -> Any:
        raise ValueError("learner must be one that learns: what is known has neither update nor adapt")

    return Reference(MetaLearner(init, none, none, lambda key, meta_params, task: evaluate(task)), MetaParams(()))


# A line that drifts


@dataclass(frozen=True, kw_only=True)
class Drift(Streams):
    """y = w_t'x + noise, x ~ N(0, I), w_{t+1} = μ + ρ (w_t − μ) + √(1 − ρ²) N(0, I), w_0 ~ N(μ, I); a linear model."""

    num_features: int = 10
    """Features."""
    num_examples: int = 4
    """Examples of a chunk."""
    noise: float = 0.5
    """Standard deviation of the noise."""
    memory: float = 0.99
    """ρ, in [0, 1], how much of w stays from chunk to chunk."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("memory", self.memory)

    def build(self) -> Experiment:
        mean = jax.random.normal(jax.random.key(0), (self.num_features,))  # μ, the same in every run
        squares = nn.mean_squared_error(lambda w, x: (x @ w)[:, None])
        learner_by = partial(
            self.learner, lambda key: jnp.zeros_like(mean), lambda w, meta_params, batch: squares(w, batch)
        )
        learner, tasks = learner_by(), TaskDistribution(partial(_drifting, config=self), mean)

        def references(key: jax.Array) -> dict[str, Reference]:
            return {
                "frozen at the mean": Reference(learner_by(inner_optimizer=adapt.sgd(0.0)), MetaParams(mean)),
                "adapted at its best rate": self.at_the_best_rate(key, learner, tasks, "mse", mean),
                "Kalman filter": _known(partial(_kalman_filter, config=self, mean=mean)),
            }

        protocol = (
            f"linear regression that drifts, {counted(self.num_examples, 'example')} a chunk, noise {self.noise:g}, "
            f"memory {self.memory:g}; {self.protocol()}"
        )
        return Experiment(
            learner, tasks, tasks, "mse", protocol, lambda *_: {}, adaptation="chunk read", references=references
        )


def _drifting(key: jax.Array, mean: jax.Array, *, config: Drift) -> Task:
    start_key, walk_key, x_key, noise_key = jax.random.split(key, 4)
    shape = (config.num_chunks, config.num_examples)

    def walk(w: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        return config.memory * w + jnp.sqrt(1 - config.memory**2) * step, w

    start = jax.random.normal(start_key, mean.shape)
    _, w = jax.lax.scan(walk, start, jax.random.normal(walk_key, (config.num_chunks, *mean.shape)))
    x = jax.random.normal(x_key, (*shape, *mean.shape))
    y = jnp.einsum("tbd,td->tb", x, mean[None] + w) + config.noise * jax.random.normal(noise_key, shape)
    return Task((x, y[..., None]), ())


def _kalman_filter(task: Task, *, config: Drift, mean: jax.Array) -> Metrics:
    """The least mean squared error before each chunk: recursive least squares that forgets just as the line drifts."""

    def step(belief: tuple[jax.Array, jax.Array], chunk: Batch) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        (w, cov), (x, y) = belief, chunk
        error = y[:, 0] - x @ w
        gain = jnp.linalg.solve(x @ cov @ x.T + config.noise**2 * jnp.eye(len(x)), x @ cov).T
        w, cov = w + gain @ error, cov - gain @ x @ cov
        forgotten = mean + config.memory * (w - mean), config.memory**2 * cov + (1 - config.memory**2) * jnp.eye(len(w))
        return forgotten, jnp.mean(error**2)

    _, mse = jax.lax.scan(step, (mean, jnp.eye(len(mean))), task.support)
    return {"mse": mse}


# A transformer that reads


@dataclass(frozen=True, kw_only=True)
class Reading(Streams):
    """Sequences of a Markov chain, each stream's own, rows ~ Dirichlet(concentration); a transformer sees one chunk."""

    num_tokens: int = 6
    """Tokens there are."""
    length: int = 8
    """Tokens of a chunk that are predicted."""
    concentration: float = 0.1
    """Of the chains' rows: the smaller, the more certain is what follows."""
    num_layers: int = 2
    """Blocks of the transformer, of which the last adapts."""
    width: int = 16
    """Width of the transformer."""

    def network(self) -> nn.Transformer:
        return nn.Transformer(
            num_outputs=self.num_tokens,
            max_length=self.length,
            num_tokens=self.num_tokens,
            num_layers=self.num_layers,
            width=self.width,
            num_heads=2 if self.width % 2 == 0 else 1,
        )

    def reader(self, inner_optimizer: adapt.InnerOptimizer) -> MetaLearner:
        network, tokens = self.network(), jnp.zeros((1, self.length), jnp.int32)
        last = adapt.adapt_only(inner_optimizer, f"block{self.num_layers - 1}")
        return self.learner(lambda key: network.init(key, tokens), partial(_next_token, network), inner_optimizer=last)

    def build(self) -> Experiment:
        learner, tasks = self.reader(self.inner_optimizer()), TaskDistribution(partial(_chain, config=self))

        def references(key: jax.Array) -> dict[str, Reference]:
            train = partial(fit, key, tasks=tasks, num_outer_steps=self.num_outer_steps, num_tasks=self.num_tasks)
            frozen = self.reader(adapt.sgd(0.0))
            meta_params = train(learner=frozen)[0].meta_params
            known = _known(partial(_counted_chain, concentration=self.concentration, num_tokens=self.num_tokens))
            return {
                "frozen": Reference(frozen, meta_params),
                "adapted at its best rate": self.at_the_best_rate(key, learner, tasks, "loss", meta_params.params),
                "Bayes-optimal": known,
            }

        protocol = (
            f"Markov chains of {counted(self.num_tokens, 'token')}, {self.length} a chunk; transformer of "
            f"{counted(self.num_layers, 'block')} of width {self.width}, the last adapts; {self.protocol()}"
        )
        return Experiment(
            learner, tasks, tasks, "loss", protocol, lambda *_: {}, adaptation="chunk read", references=references
        )


def _next_token(
    network: nn.Transformer, params: Params, meta_params: PyTree, batch: Batch
) -> tuple[jax.Array, Metrics]:
    """The cross-entropy of each token of a chunk given those before it, in nats."""
    tokens, following = batch
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(network.apply(params, tokens), following))
    return loss, {"loss": loss}


def _chain(key: jax.Array, data: PyTree, *, config: Reading) -> Task:
    """Chunks (tokens, the tokens that follow), [chunks, 1, length] each, of one sequence."""
    row_key, start_key, step_key = jax.random.split(key, 3)
    alphas = jnp.full(config.num_tokens, config.concentration)
    log_rows = jnp.log(jax.random.dirichlet(row_key, alphas, (config.num_tokens,)) + 1e-20)

    def step(token: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.random.categorical(key, log_rows[token]), token

    first = jax.random.randint(start_key, (), 0, config.num_tokens)
    keys = jax.random.split(step_key, config.num_chunks * config.length)
    last, tokens = jax.lax.scan(step, first, keys)
    following = jnp.append(tokens[1:], last)
    shape = (config.num_chunks, 1, config.length)
    return Task((tokens.reshape(shape), following.reshape(shape)), ())


def _counted_chain(task: Task, *, concentration: float, num_tokens: int) -> Metrics:
    """The mean loss of each chunk by the posterior of the chain's rows given all tokens before: the least there is."""
    tokens, following = (part.ravel() for part in task.support)

    def step(counts: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        token, after = pair
        row = counts[token] + concentration
        return counts.at[token, after].add(1.0), -jnp.log(row[after] / jnp.sum(row))

    _, losses = jax.lax.scan(step, jnp.zeros((num_tokens, num_tokens)), (tokens, following))
    return {"loss": jnp.mean(losses.reshape(len(task.support[0]), -1), axis=1)}


_drift = Drift(
    num_outer_steps=1000,
    num_tasks=16,
    learning_rate=0.03,
    inner_learning_rate=0.02,
    num_inner_steps=20,
    num_chunks=100,
    num_eval_tasks=200,
)
_reading = Reading(
    num_outer_steps=1000,
    num_tasks=8,
    learning_rate=3e-3,
    schedule="cosine",
    inner_learning_rate=0.1,
    num_inner_steps=16,
    num_chunks=16,
    num_eval_tasks=200,
)

STREAMS: dict[str, Recipe] = {
    "stream": Recipe(
        lambda: _drift,
        "online regression whose task drifts: the start and the rate are learned",
        "Kalman 1960, https://doi.org/10.1115/1.3662552",
        "mse below the frozen model's, not above that of its best rate; the best possible is the Kalman filter's",
        1,
    ),
    "stream-transformer": Recipe(
        lambda: _reading,
        "a causal transformer whose last block adapts while it reads: test-time training in small",
        "Sun et al. 2024, https://arxiv.org/abs/2407.04620",
        "loss below the frozen model's, and below that model's adapted at its best rate, by more than the interval",
        3,
    ),
}

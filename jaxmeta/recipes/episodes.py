"""What recipes of few-shot images share: the choices of an episode, and the experiment that is made of its tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import nn, plotting
from jaxmeta.nn.weights import apply_weighted, examples_of
from jaxmeta.recipes.experiment import Experiment
from jaxmeta.recipes.supervised import GradientBased, Supervised
from jaxmeta.types import Batch, MetaLearner, MetaParams, Params, TaskDistribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Episodes(Supervised):
    """N-way K-shot episodes of images."""

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

    def condition_fn(self, network: nn.Conv4) -> Callable[[Params, Batch], Params] | None:
        return nn.support_statistics(network.apply) if self.statistics == "support" else None

    def experiment(
        self,
        learner: MetaLearner,
        predict: Callable,
        train_tasks: TaskDistribution,
        test_tasks: TaskDistribution,
        title: str,
        protocol: str,
    ) -> Experiment:
        """`predict(what learner.adapt returns, images)` are logits. Its picture is a test task, under `title`."""

        def pictures(key: jax.Array, meta_params: MetaParams, name: str) -> "dict[str, Figure]":
            task = test_tasks.sample(key, test_tasks.data)
            params = learner.adapt(key, meta_params, task)
            x, _, weight, num_ways = examples_of("query", task.query)
            logits = nn.mask_logits(apply_weighted(predict, params, x, weight=weight), num_ways)
            predictions = np.asarray(jnp.argmax(logits, axis=-1))
            support, query = jax.tree.map(np.asarray, (task.support, task.query))
            return {"episode.png": plotting.episode(support, query, predictions, f"{name}, {title}")}

        batch_norm = {
            "query": "statistics of the batch, at test those of the query set (transductive)",
            "support": "statistics of the batch, for queries those of the support set",
        }[self.statistics]
        return Experiment(
            learner,
            train_tasks,
            test_tasks,
            "accuracy",
            f"{protocol}; {self.protocol()}",
            pictures,
            batch_norm=batch_norm,
            eval_batch_size=self.microbatch or 100,
            adaptation="inner step" if isinstance(self, GradientBased) else "fit of the head",
        )

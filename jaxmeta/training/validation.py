"""Validation while meta-training: the state that does best on tasks apart is the one that `fit` returns."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.checks import a_key, check_choice, check_distribution, check_integer, check_metrics, check_seed
from jaxmeta.training.evaluate import judge, num_test_tasks
from jaxmeta.training.looks import look_at_tasks
from jaxmeta.types import MetaLearner, MetaParams, MetaState, TaskDistribution
from jaxmeta.words import short


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How `fit` judges its state on tasks apart, to return the best one, and to end early where nothing gets better.

    Every time it is the same tasks with the same draws, whatever the key of `fit`, so that what differs is the state.

    >>> import jaxmeta
    >>> tasks = jaxmeta.tasks.sinusoid()
    >>> validation = Validation(tasks=tasks, metric="mse", best="lowest", every=500, patience=5)
    """

    tasks: TaskDistribution
    """p(T) at validation: neither those that are trained on nor those of the test. Of several sources, as those of
    `tasks.mixture`, it is the average over them that counts."""
    metric: str
    """What is judged by, a metric of `learner.evaluate`: its mean after the last unit of adaptation."""
    best: Literal["highest", "lowest"]
    """Whether a high metric is good, such as an accuracy or a return, or a low one, such as an error."""
    every: int = 1000
    """Outer steps between two validations, at least 1; the last step is validated too."""
    patience: int | None = None
    """Validations in a row without a better one after which the run ends; never if None."""
    num_tasks: int | None = None
    """Tasks of a validation, of each source; 600, or all of a finite distribution, if None."""
    batch_size: int = 100
    """Tasks evaluated at a time."""
    seed: int = 0
    """Of the tasks and of what adaptation draws, an integer from 0 to 2**32 − 1."""

    def __post_init__(self) -> None:
        check_distribution("tasks", self.tasks)
        if not isinstance(self.metric, str):
            raise ValueError(f"metric must be the name of a metric of learner.evaluate, got {short(self.metric)}")
        check_choice("best", self.best, ("highest", "lowest"))
        check_integer("every", self.every, minimum=1)
        if self.patience is not None:
            check_integer("patience", self.patience, minimum=1)
        num_test_tasks(self.tasks, self.num_tasks)
        check_integer("batch_size", self.batch_size, minimum=1)
        check_seed("seed", self.seed)


class Validator:
    """What `fit` carries from validation to validation: the curve, and the best state, a copy on the device."""

    def __init__(self, validation: Validation, learner: MetaLearner):
        self.validation, self.learner = validation, learner
        self.curve: dict[str, list[float]] = {}
        self.best: MetaState | None = None
        self.best_value = math.nan
        self.num_since = 0  # validations since the best

    def steps_until(self, step: int) -> int:
        """Outer steps from `step` to the next validation."""
        return self.validation.every - step % self.validation.every

    def is_due(self, step: int) -> bool:
        return step % self.validation.every == 0

    def __call__(self, state: MetaState) -> dict[str, np.ndarray]:
        """Judges a state; the metrics found, {"validation/name": scalar}."""
        asked = self.validation
        key = jax.random.key(asked.seed)
        report = judge(key, self.learner, asked.tasks, state.meta_params, asked.num_tasks, asked.batch_size)
        means = {name: summary["mean"][-1] for name, summary in report.metrics.items()}
        found = {name: math.nan if mean is None else mean for name, mean in means.items()}
        for name, value in {"step": int(state.step), **found}.items():
            self.curve.setdefault(name, []).append(value)
        value = found[asked.metric]
        is_better = value > self.best_value if asked.best == "highest" else value < self.best_value
        self.num_since += 1
        if is_better or (math.isnan(self.best_value) and not math.isnan(value)):
            self.best, self.best_value, self.num_since = jax.tree.map(jnp.copy, state), value, 0
        return {f"validation/{name}": np.array(value) for name, value in found.items()}

    def has_no_patience(self) -> bool:
        return self.validation.patience is not None and self.num_since >= self.validation.patience

    def chosen(self, state: MetaState) -> MetaState:
        """The best state, where the run ends with `state`, which is judged too if it is not yet."""
        if not self.curve or self.curve["step"][-1] != int(state.step):
            self(state)
        if self.best is None:
            warnings.warn(
                f"no validation had a finite {self.validation.metric}, for tasks diverged: this is the last state",
                stacklevel=3,
            )
        return state if self.best is None else self.best

    def progress(self) -> dict[str, Any]:
        """What there is to know beside the best state, of JSON's types."""
        return {"curve": self.curve, "best_value": self.best_value, "num_since": self.num_since}

    def resume(self, progress: dict[str, Any], best: MetaState | None) -> None:
        """Goes on from where `progress` and `best` were."""
        self.curve, self.best_value, self.num_since = (progress[name] for name in ("curve", "best_value", "num_since"))
        self.best = best

    def found(self) -> dict[str, np.ndarray]:
        return {name: np.array(values) for name, values in self.curve.items()}


def check_validation(
    validation: Validation, learner: MetaLearner, meta_params: MetaParams, num_seeds: int | None
) -> None:
    """What `fit` looks at before anything compiles."""
    if not isinstance(validation, Validation):
        raise ValueError(
            "validate must be a jaxmeta.training.Validation(tasks=tasks, metric='accuracy', best='highest'), got "
            f"{type(validation).__name__}"
        )
    if num_seeds is not None:
        raise ValueError(
            f"validate judges one run, but key holds {num_seeds} seeds, which would end at different steps: give fit "
            "one key, or leave validate out and evaluate each seed's state"
        )
    look_at_tasks("validate.tasks", validation.tasks, learner, meta_params, is_test=True)
    task = jax.eval_shape(validation.tasks.sample, a_key(), validation.tasks.data)
    metrics = jax.eval_shape(learner.evaluate, a_key(), meta_params, task)
    check_metrics("learner.evaluate", metrics, ndim=1)
    if validation.metric not in metrics:
        raise ValueError(
            f"validate.metric must be one of {', '.join(sorted(metrics))}, which learner.evaluate reports, got "
            f"{validation.metric!r}"
        )

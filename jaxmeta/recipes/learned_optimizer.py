"""The recipe of a learned optimizer: trained on images of half of the ten digits, judged on those of the other half."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta import adapt, nn
from jaxmeta.algorithms import bilevel
from jaxmeta.checks import check_integer
from jaxmeta.recipes.experiment import Experiment, Outer, Recipe, Reference
from jaxmeta.training import evaluate
from jaxmeta.types import MetaLearner, MetaParams, Task, TaskDistribution
from jaxmeta.words import counted

NUM_CLASSES = 10  # outputs of the network
TRAINED_ON, TESTED_ON = range(5), range(5, 10)  # digits
NUM_LEARNED_FROM, NUM_QUERIES = 120, 20  # images of each digit
RATES = np.logspace(-3.5, -0.5, 20)  # of Adam, from .0003 to .3


@dataclass(frozen=True, kw_only=True)
class LearnedOptimizer(Outer):
    """A network on 8 x 8 images of digits, trained by an optimizer that is learned."""

    num_units: int = 32
    """Units of the hidden layer of the network that is trained."""
    num_other_units: int = 128
    """Units of the other network that it is judged on, too."""
    inner_optimizer: Literal["learned_optimizer"] = "learned_optimizer"
    """How to step inside."""
    inner_learning_rate: float = 0.03
    """That of the Adam which the learned optimizer starts as, for a kernel of as many inputs as hidden units; that of
    another is in inverse proportion to its inputs."""
    inner_batch_size: int = 32
    """Images of an inner step."""
    num_eval_steps: int = 100
    """Inner steps at test, and those of a problem until it begins anew while training."""
    num_inner_steps: int = 10
    """K, inner steps of an outer step; but for exact, which takes the whole of a problem."""
    meta_gradient: Literal["exact", "truncated", "persistent_evolution_strategy"] = "exact"
    """How the inner loop is differentiated: exactly, of the whole of each problem; exactly within the K steps, and not
    beyond; or by persistent evolution."""
    noise: float = 0.3
    """Of the images that are trained on: each problem has noise of its own standard deviation, from 0 to this, so that
    some are harder than their digits are; pixels are from 0 to 1."""
    num_pairs: int = 4
    """Pairs of perturbed problems beside each, of persistent evolution."""
    std: float = 0.01
    """Standard deviation of their perturbations."""
    max_norm: float = 1.0
    """What a longer outer gradient is clipped to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("num_units", "num_other_units", "inner_batch_size", "num_eval_steps", "num_inner_steps"):
            check_integer(field, getattr(self, field), minimum=1)

    def build(self) -> Experiment:
        learned = adapt.learned_optimizer(self.inner_learning_rate, base_fan_in=self.num_units)
        wide = self._judged_on(self.num_other_units, learned)
        experiment = self._judged_on(self.num_units, learned)
        return experiment._replace(others={f"a network of {counted(self.num_other_units, 'hidden unit')}": wide})

    def _judged_on(self, num_units: int, inner_optimizer: adapt.InnerOptimizer) -> Experiment:
        """The experiment with a network of so many units."""
        tests = digits(TESTED_ON)
        adam = self._adam(num_units)
        return Experiment(
            self._learner(num_units, inner_optimizer),
            digits(TRAINED_ON, self.noise),
            tests,
            "loss",
            self.protocol(),
            lambda key, meta_params, name: {},
            eval_batch_size=50,
            references=lambda key: _best_of(key, adam, tests, self.num_eval_tasks),
        )

    def _learner(self, num_units: int, inner_optimizer: adapt.InnerOptimizer) -> MetaLearner:
        """Trained, and judged, on images that were not learned from."""
        network = nn.MLP((num_units,), num_outputs=NUM_CLASSES)
        cross_entropy = nn.cross_entropy(network.apply)
        is_exact = self.meta_gradient == "exact"
        return bilevel(
            lambda key, meta_params: network.init(key, jnp.ones((1, 64))),
            lambda key: (),
            lambda params, meta_params, batch: cross_entropy(params, batch),
            inner_optimizer=inner_optimizer,
            num_inner_steps=self.num_eval_steps if is_exact else self.num_inner_steps,
            num_problems=self.num_tasks,
            lifetime=self.num_eval_steps,
            batch_size=self.inner_batch_size,
            meta_gradient=self._meta_gradient(),
            optimizer=optax.chain(optax.clip_by_global_norm(self.max_norm), self.outer_optimizer()),
        )

    def _meta_gradient(self) -> adapt.MetaGradient:
        if self.meta_gradient != "persistent_evolution_strategy":
            return adapt.exact()
        return adapt.persistent_evolution_strategy(num_truncations=1, num_pairs=self.num_pairs, std=self.std)

    def _adam(self, num_units: int) -> dict[str, MetaLearner]:
        """Adam, at a constant rate and at one that falls to 0 at the end, whose rate is e to the hyperparameter."""
        falling = lambda log_rate: optax.cosine_decay_schedule(jnp.exp(log_rate), self.num_eval_steps)
        by_name: dict[str, Callable] = {
            "Adam at its best rate": lambda log_rate: optax.adam(jnp.exp(log_rate)),
            "Adam along a cosine": lambda log_rate: optax.adam(falling(log_rate)),
        }
        return {name: self._learner(num_units, adapt.from_optax(make, 0.0)) for name, make in by_name.items()}

    def protocol(self) -> str:
        gradient = {
            "persistent_evolution_strategy": f"{counted(self.num_pairs, 'pair')} of persistent evolution, std "
            f"{self.std:g}, windows of {counted(self.num_inner_steps, 'inner step')}",
            "truncated": f"exact gradients of windows of {counted(self.num_inner_steps, 'inner step')}",
            "exact": "exact gradients",
        }[self.meta_gradient]
        return (
            f"8x8 digits, 64-{self.num_units}-{NUM_CLASSES} network, {counted(self.num_eval_steps, 'inner step')} of "
            f"{counted(self.inner_batch_size, 'image')}; trained on the digits 0-4 with noise up to {self.noise:g}, "
            f"tested on 5-9 without, by the loss of images not learned from; {super().protocol()}, clipped to a norm "
            f"of {self.max_norm:g}; {gradient}"
        )


def digits(classes: Sequence[int], noise: float = 0.0) -> TaskDistribution:
    """Scikit-learn's 8 x 8 images of these digits, divided at random into those to learn from and queries, with labels
    at random among the outputs, and Gaussian noise whose standard deviation is from 0 to `noise`, of each task its own.

    Raises:
      ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("8x8 digits are scikit-learn's: pip install 'jaxmeta[digits]'") from error
    x, y = load_digits(return_X_y=True)
    count = min(np.sum(y == label) for label in classes)
    images = np.stack([x[y == label][:count] / 16 for label in classes]).astype(np.float32)
    return TaskDistribution(partial(_sample, noise=noise), images)


def _sample(key: jax.Array, images: jax.Array, *, noise: float) -> Task:
    order_key, label_key, std_key, noise_key = jax.random.split(key, 4)
    num_classes, num_images, _ = images.shape
    order = jax.random.permutation(order_key, num_images)  # of the images of each class
    labels = jax.random.permutation(label_key, NUM_CLASSES)[:num_classes]
    if noise:
        std = noise * jax.random.uniform(std_key)
        images = images + std * jax.random.normal(noise_key, images.shape)

    def examples(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        return images[:, chosen].reshape(-1, images.shape[-1]), jnp.repeat(labels, len(chosen))

    return Task(examples(order[:NUM_LEARNED_FROM]), examples(order[NUM_LEARNED_FROM:][:NUM_QUERIES]))


def _best_of(
    key: jax.Array, adam: dict[str, MetaLearner], tests: TaskDistribution, num_tasks: int
) -> dict[str, Reference]:
    """The best of the rates in hindsight: by the last loss on the very tasks, starts and batches of the test."""
    best = {}
    for name, learner in adam.items():
        at = [MetaParams((), jnp.log(jnp.float32(rate))) for rate in RATES]
        judged = [evaluate(key, learner, tests, rate, num_tasks=num_tasks, batch_size=50) for rate in at]
        losses = np.array([np.mean(report.samples["loss"][:, -1]) for report in judged])
        i = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
        best[name] = Reference(learner, at[i])
    return best


_learned = LearnedOptimizer(num_outer_steps=300, num_tasks=8, num_eval_tasks=300, schedule="cosine")

LEARNED_OPTIMIZER: dict[str, Recipe] = {
    "learned-optimizer": Recipe(
        lambda: _learned,
        "a learned optimizer for networks on 8x8 digits",
        "Metz et al. 2022, https://arxiv.org/abs/2203.11860",
        "loss below that of Adam at its best rate, on held-out digits and on a wider network",
        10,
    ),
}

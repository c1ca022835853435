"""Recipes of few-shot images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import nn, tasks
from jaxmeta.algorithms import protonet, ridge
from jaxmeta.recipes.episodes import Episodes
from jaxmeta.recipes.experiment import Experiment, Recipe, Reference
from jaxmeta.recipes.supervised import MAML, GradientBased
from jaxmeta.types import InitFn, MetaLearner, TaskDistribution
from jaxmeta.words import counted


class Source(NamedTuple):
    """How a protocol names the images: the set, what is trained on, what is tested on."""

    name: str
    trained_on: str
    tested_on: str


@dataclass(frozen=True, kw_only=True)
class SmallImages(Episodes):
    """Episodes of images of 28 x 28 pixels, of which there are splits; four convolutions."""

    def episodes(self, split: str, num_ways: int, num_queries: int) -> TaskDistribution:
        raise NotImplementedError

    def source(self) -> Source:
        raise NotImplementedError

    def references(self, key: jax.Array, num_ways: int) -> dict[str, Reference]:
        return {}

    def other_tests(self, num_ways: int) -> dict[str, TaskDistribution]:
        return {}


@dataclass(frozen=True, kw_only=True)
class GradientImages(SmallImages, GradientBased):
    """Images with an inner loop; the network's head has an output for each class."""

    num_eval_steps: int = 3
    """Inner steps at test."""

    def build(self) -> Experiment:
        network = nn.Conv4(self.num_ways, self.num_filters)
        condition_fn = self.condition_fn(network)
        learner = self.learner(_init_fn(network), nn.cross_entropy(network.apply), condition_fn=condition_fn)
        return _experiment(
            self, learner, network.apply, self.num_ways, f"after {counted(self.num_eval_steps, 'inner step')}"
        )


@dataclass(frozen=True, kw_only=True)
class ClosedFormImages(SmallImages):
    """Images with a head that is computed from the shots; the convolutions are an embedding."""

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
        return _experiment(self, learner, predict, self.num_eval_ways, f"with {self.head}")

    def protocol(self) -> str:
        return f"{super().protocol()}; {self.num_ways}-way while training, {self.head} as head"


@dataclass(frozen=True, kw_only=True)
class Omniglot(SmallImages):
    """Omniglot's characters, with rotations by 90 degrees as classes."""

    data_dir: str | None = None
    """Folder with Omniglot's two zips or arrays; downloaded into a cache if None."""
    split_seed: int = 0
    """Chooses the 1,200 training and the 423 test characters."""

    def episodes(self, split: str, num_ways: int, num_queries: int) -> TaskDistribution:
        return tasks.omniglot(
            split,
            data_dir=self.data_dir,
            seed=self.split_seed,
            num_ways=num_ways,
            num_shots=self.num_shots,
            num_queries=num_queries,
        )

    def source(self) -> Source:
        return Source("Omniglot", "1,100 characters and their rotations", "423")


@dataclass(frozen=True, kw_only=True)
class GradientOmniglot(GradientImages, Omniglot):
    """Omniglot with an inner loop."""


@dataclass(frozen=True, kw_only=True)
class ClosedFormOmniglot(ClosedFormImages, Omniglot):
    """Omniglot with a head that is computed from the shots."""


_HELD_OUT = "held-out scripts"


@dataclass(frozen=True, kw_only=True)
class Glyphs(SmallImages):
    """Characters that are rendered: tested on new ones of seen scripts, and on scripts that training has seen nothing
    of."""

    rotations: bool = True
    """Whether rotations by 90 degrees are classes of their own while training."""
    split_seed: int = 0
    """Chooses the characters to train on among those of seen scripts."""

    def episodes(self, split: str, num_ways: int, num_queries: int) -> TaskDistribution:
        return tasks.glyphs(
            split,
            seed=self.split_seed,
            num_ways=num_ways,
            num_shots=self.num_shots,
            num_queries=num_queries,
            rotations=self.rotations and split == "train",
        )

    def source(self) -> Source:
        rotations = " and their rotations" if self.rotations else ""
        return Source("glyphs (not Omniglot)", f"70% of the characters of six scripts{rotations}", "20%")

    def references(self, key: jax.Array, num_ways: int) -> dict[str, Reference]:
        init_fn = lambda key: {"scale": jnp.ones(())}
        embed_fn = lambda params, x: params["scale"] * x.reshape(len(x), -1) / 255
        pixels = protonet(init_fn, embed_fn, num_ways=num_ways)
        return {"nearest centroid in pixels": Reference(pixels, pixels.init(key).meta_params)}

    def other_tests(self, num_ways: int) -> dict[str, TaskDistribution]:
        return {_HELD_OUT: self.episodes("held_out", num_ways, self.num_eval_queries)}


@dataclass(frozen=True, kw_only=True)
class GradientGlyphs(GradientImages, Glyphs):
    """Glyphs with an inner loop."""


@dataclass(frozen=True, kw_only=True)
class ClosedFormGlyphs(ClosedFormImages, Glyphs):
    """Glyphs with a head that is computed from the shots."""


def _init_fn(network: nn.Conv4) -> InitFn:
    return lambda key: network.init(key, jnp.zeros((1, 28, 28), jnp.uint8))


def _experiment(
    config: GradientImages | ClosedFormImages,
    learner: MetaLearner,
    predict: Callable,
    num_eval_ways: int,
    adapted: str,
) -> Experiment:
    """An experiment on the set's own splits; see `Episodes.experiment`."""
    what, source = f"{num_eval_ways}-way {config.num_shots}-shot", config.source()
    protocol = (
        f"{what} {source.name}, 28x28, {counted(config.num_filters, 'filter')}; trained on {source.trained_on} "
        f"with {counted(config.num_queries, 'query', 'queries')} a class, tested on {source.tested_on} with "
        f"{config.num_eval_queries}"
    )
    experiment = config.experiment(
        learner,
        predict,
        config.episodes("train", config.num_ways, config.num_queries),
        config.episodes("test", num_eval_ways, config.num_eval_queries),
        f"{what}, {adapted}",
        protocol,
    )
    references = lambda key: config.references(key, num_eval_ways)
    return experiment._replace(references=references, other_tests=config.other_tests(num_eval_ways))


def _omniglot(num_ways: int = 5, num_shots: int = 1) -> GradientOmniglot:
    """The paper's protocol on an accelerator; on a CPU one that fits into minutes, half an hour for 20 classes. `train`
    prints which.

    The paper has settings for 5 and for 20 classes; fewer than 20 take those for 5. Its inner rates are for a loss
    summed over the classes: 0.4 for 5 of them and 0.1 for 20 are both 2.0 for the mean. Its code trains with as many
    queries of a class as shots. On a CPU one inner step while training: for 20 classes five of them, on a third of the
    tasks in the same time, ended at .86 in place of .93.
    """
    is_large = num_ways >= 20
    paper = GradientOmniglot(
        num_outer_steps=60_000,
        num_tasks=16 if is_large else 32,
        num_ways=num_ways,
        num_shots=num_shots,
        num_queries=num_shots,
        inner_learning_rate=2.0,
        num_inner_steps=5 if is_large else 1,
        num_eval_steps=5 if is_large else 3,
    )
    if jax.default_backend() != "cpu":
        return paper
    return replace(
        paper,
        num_outer_steps=8000 if is_large else 6000,
        num_tasks=8,
        num_queries=5,
        num_inner_steps=1,
        inner_learning_rate=0.4,
        learning_rate=3e-3,
        schedule="cosine",
        microbatch=1,
    )


def _imaml(num_ways: int = 5, num_shots: int = 1) -> GradientOmniglot:
    return replace(
        _omniglot(num_ways, num_shots),
        meta_gradient="implicit",
        proximal_strength=2.0,
        inner_learning_rate=0.1,
        num_inner_steps=10,
        num_eval_steps=10,
        damping=2.2,  # α (∇²L + 24 I), the matrix of the authors' code
    )


def _maml_plus_plus(num_ways: int = 5, num_shots: int = 1) -> GradientOmniglot:
    """Rates are learned of as many steps as are taken at test, and for a third of the run all of them are judged."""
    maml = _omniglot(num_ways, num_shots)
    return replace(
        maml,
        inner_optimizer="lslr",
        num_inner_steps=maml.num_eval_steps,
        num_annealing_steps=maml.num_outer_steps // 3,
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


_maml_glyphs = GradientGlyphs(
    num_outer_steps=6000,
    num_tasks=4,
    num_shots=1,
    num_queries=5,
    num_filters=32,
    inner_learning_rate=0.4,
    learning_rate=3e-3,
    schedule="cosine",
    microbatch=1,
)
_protonet_glyphs = ClosedFormGlyphs(
    num_outer_steps=2000,
    num_tasks=1,
    num_shots=1,
    num_queries=5,
    num_filters=32,
    learning_rate=3e-3,
    schedule="cosine",
    microbatch=1,
)

_BY = ("num_ways", "num_shots")

IMAGES: dict[str, Recipe] = {
    "anil-omniglot": Recipe(
        lambda num_ways=5, num_shots=1: replace(_omniglot(num_ways, num_shots), inner_optimizer="sgd_on_head"),
        "MAML whose inner loop adapts the last layer only",
        "Raghu et al. 2019, https://arxiv.org/abs/1909.09157",
        "close to maml-omniglot (paper, 20-way 1-shot: .962)",
        6,
        _BY,
    ),
    "maml-omniglot": Recipe(
        _omniglot, "MAML on Omniglot, 5-way 1-shot", MAML, "accuracy .987 (paper's protocol); .95 on a CPU", 6, _BY
    ),
    "maml++-omniglot": Recipe(
        _maml_plus_plus,
        "MAML++: rates per layer and step, judged after each step at first",
        "Antoniou et al. 2019, https://arxiv.org/abs/1810.09502",
        "beside maml-omniglot, as it comes out",
        15,
        _BY,
    ),
    "imaml-omniglot": Recipe(
        _imaml,
        "iMAML: the derivative of where the inner loop comes to rest",
        "Rajeswaran et al. 2019, https://arxiv.org/abs/1909.04630",
        "beside maml-omniglot, as it comes out",
        30,
        _BY,
    ),
    "maml-glyphs": Recipe(
        lambda: _maml_glyphs,
        "MAML on glyphs (not Omniglot; no download), 5-way 1-shot",
        MAML,
        "accuracy .85, on held-out scripts .80 (nearest centroid in pixels: .35, .32)",
        3,
    ),
    "protonet-glyphs": Recipe(
        lambda: _protonet_glyphs,
        "prototypical networks on glyphs (not Omniglot; no download), 5-way 1-shot",
        "Snell et al. 2017, https://arxiv.org/abs/1703.05175",
        "accuracy .94, on held-out scripts .91 (nearest centroid in pixels: .35, .32)",
        2,
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

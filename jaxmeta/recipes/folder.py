"""Recipes for one's own images: a folder for each class."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import numpy as np

from jaxmeta import nn, tasks
from jaxmeta.recipes.episodes import Episodes
from jaxmeta.recipes.experiment import Experiment, Recipe
from jaxmeta.recipes.supervised import MAML, GradientBased
from jaxmeta.tasks.folder import existing_folder, splits_of
from jaxmeta.tasks.images import Images
from jaxmeta.words import counted, short

_LAYOUT = (
    ": give --data-dir DIR, a folder that has a folder for each class, DIR/CLASS/IMAGE, or those of the splits, "
    "DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE"
)


@dataclass(frozen=True, kw_only=True)
class Folder(Episodes, GradientBased):
    """N-way K-shot episodes of one's own images; four convolutions, whose head has an output for each class."""

    data_dir: str | None = None
    """Your folder: DIR/CLASS/IMAGE, or DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE."""
    size: int
    """Sides of the square that images are scaled and cropped to, in pixels."""
    color: Literal["RGB", "L"] = "RGB"
    """Colours, or grey."""
    strided: bool = True
    """Convolutions of stride 2, MAML's network for Omniglot; else a max-pool after each, as for Mini-ImageNet."""
    split_seed: int = 0
    """Chooses the classes of the splits, where they have no folders: 64% to train, 16% left alone, 20% to test."""
    num_filters: int = 32
    """Filters of each convolution."""

    def build(self) -> Experiment:
        splits, read = self._splits()
        for split in ("train", "test"):
            self._check_ways(splits, split)
        train, test = (
            tasks.few_shot(splits[split], num_ways=self.num_ways, num_shots=self.num_shots, num_queries=num_queries)
            for split, num_queries in (("train", self.num_queries), ("test", self.num_eval_queries))
        )
        network = nn.Conv4(self.num_ways, self.num_filters, self.strided)
        image = np.zeros_like(next(iter(splits["train"].values()))[:1])
        learner = self.learner(
            lambda key: network.init(key, image),
            nn.cross_entropy(network.apply),
            condition_fn=self.condition_fn(network),
        )
        what = f"{self.num_ways}-way {self.num_shots}-shot"
        protocol = (
            f"{what} images of {self.data_dir}: {read}; {counted(self.num_filters, 'filter')}; "
            f"{counted(self.num_queries, 'query', 'queries')} a class to train, {self.num_eval_queries} at test"
        )
        title = f"{what}, after {counted(self.num_eval_steps, 'inner step')}"
        return self.experiment(learner, network.apply, train, test, title, protocol)

    def _splits(self) -> tuple[dict[str, Images], str]:
        """The images of each split, and what was read."""
        if self.data_dir is None:
            raise ValueError(f"data_dir must be your folder of images, got None{_LAYOUT}")
        root = existing_folder("data_dir", self.data_dir, _LAYOUT)
        read = partial(tasks.image_folder, root, size=self.size, color=self.color)
        if named := splits_of(root):
            if missing := [name for name in ("train", "test") if name not in named]:
                there = ", ".join(path.name for path in named.values())
                raise ValueError(f"data_dir {short(str(root))} has no folder {missing[0]} beside {there}{_LAYOUT}")
            train, test = (read(split=split) for split in ("train", "test"))
            return {"train": train, "test": test}, f"to train {train.summary()}; to test {test.summary()}"
        images = read()
        train, left, test = tasks.split_classes(images, seed=self.split_seed)
        counts = f"{len(train)} classes to train, {len(left)} left for validation, {len(test)} to test"
        return {"train": train, "validation": left, "test": test}, (
            f"{images.summary()}; {counts}, drawn by seed {self.split_seed}"
        )

    def _check_ways(self, splits: dict[str, Images], split: str) -> None:
        if self.num_ways > len(splits[split]):
            there = " + ".join(f"{len(part)} ({name})" for name, part in splits.items())
            raise ValueError(
                f"num_ways must be at most the {counted(len(splits[split]), 'class', 'classes')} of the split {split}, "
                f"got {self.num_ways}: there are {there}"
            )


def _folder() -> Folder:
    """On an accelerator MAML's protocol for Mini-ImageNet; on a CPU small images, and minutes."""
    paper = Folder(
        num_outer_steps=60_000,
        num_tasks=4,
        num_shots=1,
        num_queries=15,
        size=84,
        strided=False,
        inner_learning_rate=0.05,
        num_inner_steps=5,
    )
    if jax.default_backend() != "cpu":
        return paper
    return Folder(
        num_outer_steps=1000,
        num_tasks=4,
        num_shots=1,
        num_queries=5,
        num_eval_queries=5,
        size=42,
        inner_learning_rate=0.4,
        num_inner_steps=1,
        num_eval_steps=3,
        learning_rate=3e-3,
        schedule="cosine",
        microbatch=1,
    )


FOLDER: dict[str, Recipe] = {
    "maml-folder": Recipe(
        _folder,
        "MAML on your own images, 5-way 1-shot: --data-dir DIR, a folder for each class",
        MAML,
        "none, for it depends on your images; chance is .20",
        4,
    ),
}

"""What is learned from: distributions over tasks."""

from jaxmeta.tasks import augment, splits
from jaxmeta.tasks.all_classes import all_classes
from jaxmeta.tasks.benchmarks import cub, mini_imagenet, tiered_imagenet
from jaxmeta.tasks.cifar import cifar_fs, fc100, load_cifar100
from jaxmeta.tasks.class_splits import split_classes
from jaxmeta.tasks.few_shot import few_shot
from jaxmeta.tasks.fixed import fixed, single
from jaxmeta.tasks.folder import image_folder
from jaxmeta.tasks.glyphs import glyphs, load_glyphs
from jaxmeta.tasks.images import Images
from jaxmeta.tasks.mixture import mixture
from jaxmeta.tasks.omniglot import load_omniglot, omniglot
from jaxmeta.tasks.parts import split_tasks
from jaxmeta.tasks.regression import Polynomial, Sinusoid, linear, polynomial_optimum, quadratic, sinusoid

__all__ = [
    "Images",
    "Polynomial",
    "Sinusoid",
    "all_classes",
    "augment",
    "cifar_fs",
    "cub",
    "fc100",
    "few_shot",
    "fixed",
    "glyphs",
    "image_folder",
    "linear",
    "load_cifar100",
    "load_glyphs",
    "load_omniglot",
    "mini_imagenet",
    "mixture",
    "omniglot",
    "polynomial_optimum",
    "quadratic",
    "single",
    "sinusoid",
    "split_classes",
    "split_tasks",
    "splits",
    "tiered_imagenet",
]

"""What is learned from: distributions over tasks."""

from jaxmeta.tasks import splits
from jaxmeta.tasks.cifar import cifar_fs, fc100, load_cifar100
from jaxmeta.tasks.few_shot import few_shot
from jaxmeta.tasks.fixed import fixed
from jaxmeta.tasks.mixture import mixture
from jaxmeta.tasks.omniglot import load_omniglot, omniglot
from jaxmeta.tasks.parts import split_tasks
from jaxmeta.tasks.regression import Polynomial, Sinusoid, linear, polynomial_optimum, quadratic, sinusoid

__all__ = [
    "Polynomial",
    "Sinusoid",
    "cifar_fs",
    "fc100",
    "few_shot",
    "fixed",
    "linear",
    "load_cifar100",
    "load_omniglot",
    "mixture",
    "omniglot",
    "polynomial_optimum",
    "quadratic",
    "sinusoid",
    "split_tasks",
    "splits",
]

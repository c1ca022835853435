"""What is learned from: distributions over tasks."""

from jaxmeta.tasks.all_classes import all_classes
from jaxmeta.tasks.few_shot import few_shot
from jaxmeta.tasks.omniglot import load_omniglot, omniglot
from jaxmeta.tasks.regression import Polynomial, Sinusoid, linear, polynomial_optimum, quadratic, sinusoid

__all__ = [
    "Polynomial",
    "Sinusoid",
    "all_classes",
    "few_shot",
    "linear",
    "load_omniglot",
    "omniglot",
    "polynomial_optimum",
    "quadratic",
    "sinusoid",
]

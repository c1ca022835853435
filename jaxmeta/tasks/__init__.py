"""What is learned from: distributions over tasks."""

from jaxmeta.tasks.few_shot import few_shot
from jaxmeta.tasks.glyphs import glyphs, load_glyphs
from jaxmeta.tasks.omniglot import load_omniglot, omniglot
from jaxmeta.tasks.regression import Polynomial, Sinusoid, linear, polynomial_optimum, quadratic, sinusoid

__all__ = [
    "Polynomial",
    "Sinusoid",
    "few_shot",
    "glyphs",
    "linear",
    "load_glyphs",
    "load_omniglot",
    "omniglot",
    "polynomial_optimum",
    "quadratic",
    "sinusoid",
]

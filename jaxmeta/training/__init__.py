"""The outer loop around any meta-learner, and the protocol that judges it."""

from jaxmeta.training.evaluate import Report, evaluate
from jaxmeta.training.fit import fit

__all__ = ["Report", "evaluate", "fit"]

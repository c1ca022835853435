"""What recipes of supervised tasks share: the choices of an outer loop over them, and of an inner loop."""

from dataclasses import dataclass
from typing import Literal

from jaxmeta import adapt
from jaxmeta.algorithms import maml, multi_step_weights
from jaxmeta.algorithms.cavia import context_only
from jaxmeta.checks import check_integer
from jaxmeta.recipes.experiment import Outer
from jaxmeta.types import InitFn, LossFn, MetaLearner
from jaxmeta.words import counted

MAML = "Finn et al. 2017, https://arxiv.org/abs/1703.03400"


@dataclass(frozen=True, kw_only=True)
class Supervised(Outer):
    """The choices that every supervised recipe has."""

    microbatch: int | None = None
    """Tasks computed at a time; chosen for the machine if None."""
    num_shots: int
    """Shots, examples to adapt to: of a task, or of each class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_shots", self.num_shots, minimum=1)


@dataclass(frozen=True, kw_only=True)
class GradientBased(Supervised):
    """The choices of an inner loop."""

    meta_gradient: Literal["auto", "exact", "mixed_mode", "first_order", "reptile", "implicit"] = "auto"
    """How the inner loop is differentiated; auto, exact and mixed_mode give the same gradient."""
    inner_optimizer: Literal["sgd", "meta_sgd", "lslr", "sgd_on_head", "sgd_on_context"] = "sgd"
    """How to step inside: one rate, a learned rate per parameter, a learned rate per layer and step (MAML++), only the
    last layer (ANIL), or only a context (CAVIA; the network needs one)."""
    inner_learning_rate: float
    """The inner learning rate; where rates are learned, their start."""
    proximal_strength: float = 0.0
    """λ, how strongly the inner loop is drawn back to where it started (iMAML)."""
    damping: float = 0.0
    """δ, of the linear system of the implicit meta-gradient: makes up for curvature below 0 (iMAML)."""
    num_annealing_steps: int | None = None
    """Outer steps over which the query losses after early inner steps lose their weight (MAML++); from the start only
    the last one counts if None."""
    num_inner_steps: int = 1
    """K, inner steps while training."""
    num_eval_steps: int = 10
    """Inner steps at test."""
    inner_batch_size: int | None = None
    """Shots that each inner step draws; all of them if None."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping and self.meta_gradient != "implicit":
            raise ValueError(
                f"damping must be 0 with meta_gradient={self.meta_gradient!r}, got {self.damping:g}: it is that of "
                "meta_gradient='implicit', which solves a linear system"
            )

    def learner(self, init_fn: InitFn, loss_fn: LossFn, **overrides) -> MetaLearner:
        sgd = adapt.sgd(self.inner_learning_rate)
        if self.proximal_strength:
            sgd = adapt.proximal(sgd, self.proximal_strength)
        anneal = self.num_annealing_steps
        arguments = {
            "inner_optimizer": {
                "sgd": sgd,
                "meta_sgd": adapt.meta_sgd(self.inner_learning_rate),
                "lslr": adapt.lslr(self.inner_learning_rate, self.num_inner_steps),
                "sgd_on_head": adapt.adapt_only(sgd, "head"),
                "sgd_on_context": context_only(sgd),
            }[self.inner_optimizer],
            "num_inner_steps": self.num_inner_steps,
            "num_eval_steps": self.num_eval_steps,
            "batch_size": self.inner_batch_size,
            "loss_weights": None if anneal is None else multi_step_weights(self.num_inner_steps, anneal),
            "meta_gradient": getattr(adapt, self.meta_gradient)(**{"damping": self.damping} if self.damping else {}),
            "optimizer": self.outer_optimizer(),
            "microbatch": self.microbatch,
        }
        return maml(init_fn, loss_fn, **{**arguments, **overrides})

    def protocol(self) -> str:
        anneal, strength = self.num_annealing_steps, self.proximal_strength
        return (
            f"{super().protocol()}; {self.meta_gradient} meta-gradient through "
            f"{counted(self.num_inner_steps, 'inner step')} of {self.inner_optimizer} {self.inner_learning_rate:g}, "
            f"{self.num_eval_steps} at test"
            + (f"; drawn back with strength {strength:g}" if strength else "")
            + (f", damping {self.damping:g}" if self.damping else "")
            + (f"; judged after each step, annealed over {counted(anneal, 'outer step')}" if anneal else "")
        )

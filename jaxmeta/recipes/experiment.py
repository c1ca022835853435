"""What a recipe is made of: the choices that all outer loops share, and what training, evaluation and drawing need."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import jax
import numpy as np
import optax

from jaxmeta.checks import check_integer, check_number
from jaxmeta.rl import Transition
from jaxmeta.types import MetaLearner, MetaParams, TaskDistribution
from jaxmeta.words import counted, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Reference(NamedTuple):
    """What a result is compared with: another learner, judged on the same test tasks."""

    learner: MetaLearner
    meta_params: MetaParams


class Experiment(NamedTuple):
    """What a recipe's dataclass builds. `pictures` takes a key, meta-parameters and the recipe's name, for titles;
    `references` takes a key and gives what is judged beside the learner; `adaptation` is what the learner adapts by, of
    which there are K. `train_metric` is what the learning curve is of, where training cannot know `metric`.
    `other_tests` are more test tasks by name, on which learner and references are judged too; `others` are more
    experiments, of which the learner is given the same meta-parameters, such as one with another network."""

    learner: MetaLearner
    train_tasks: TaskDistribution
    test_tasks: TaskDistribution
    metric: str
    protocol: str
    pictures: Callable[[jax.Array, MetaParams, str], "dict[str, Figure]"]
    batch_norm: str | None = None
    eval_batch_size: int = 100
    adaptation: str = "inner step"
    references: Callable[[jax.Array], dict[str, Reference]] = lambda key: {}
    train_metric: str | None = None
    other_tests: Mapping[str, TaskDistribution] = {}
    others: Mapping[str, "Experiment"] = {}


class Recipe(NamedTuple):
    """A line of `jaxmeta list`. `minutes` are expected on a laptop, download and pictures included. `by` are the fields
    on which the other settings depend: `config` takes them, each with a default."""

    config: Callable[..., Any]
    description: str
    paper: str
    figure: str
    minutes: float
    by: tuple[str, ...] = ()

    def settings_for(self, config: Any) -> Any:
        """The recipe's own settings where the fields `by` are as in `config`."""
        return self.config(**{field: getattr(config, field) for field in self.by})


def from_dict(cls: type, content: dict[str, Any]) -> Any:
    """The dataclass that `dataclasses.asdict` made `content` of, and JSON kept, with the dataclasses in it.

    Raises:
      TypeError: a field is unknown or of another type, or one without a default is missing.

    >>> import dataclasses
    >>> from jaxmeta.rl.on_policy import PPO
    >>> from_dict(PPO, dataclasses.asdict(PPO(clip=0.1)))
    PPO(clip=0.1, num_epochs=1, num_minibatches=1)
    """
    types = get_type_hints(cls)
    return cls(**{name: _value_of(name, value, types.get(name, Any)) for name, value in content.items()})


def _value_of(name: str, value: Any, kind: Any) -> Any:
    """A value of JSON, which has no tuples, as the type of its field wants it."""
    parts, choices = get_args(kind), get_origin(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return from_dict(kind, value)  # type: ignore[arg-type]
    if choices in (Union, UnionType):
        for part in parts:
            with contextlib.suppress(TypeError):
                return _value_of(name, value, part)
    elif choices is Literal:
        if any(value == choice and type(value) is type(choice) for choice in parts):
            return value
    elif choices is tuple:
        many = parts[-1] is Ellipsis
        if isinstance(value, list) and (many or len(value) == len(parts)):
            kinds = parts[:1] * len(value) if many else parts
            return tuple(_value_of(name, entry, part) for entry, part in zip(value, kinds, strict=True))
    elif kind is Any or (isinstance(kind, type) and type(value) in _JSON_OF.get(kind, (kind,))):
        return value
    raise TypeError(f"{name} must be {getattr(kind, '__name__', kind)}, got {short(value)}")


_JSON_OF: dict[type, tuple[type, ...]] = {float: (float, int)}


@dataclass(frozen=True, kw_only=True)
class Outer:
    """The choices that every outer loop has."""

    num_outer_steps: int
    """Outer steps."""
    num_tasks: int
    """N, tasks of an outer step."""
    learning_rate: float = 1e-3
    """Outer learning rate, where it starts."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What becomes of the outer learning rate: it stays, or falls to 0 along a cosine."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """The outer optimizer; Reptile's paper has sgd."""
    num_eval_tasks: int = 600
    """Test tasks."""

    def __post_init__(self) -> None:
        for field in fields(self):  # of a recipe's own too, which says there what is narrower
            if field.type is float:
                check_number(field.name, getattr(self, field.name))
            elif field.type is int:
                check_integer(field.name, getattr(self, field.name), minimum=0)
        for name in ("num_outer_steps", "num_tasks"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("num_eval_tasks", self.num_eval_tasks, minimum=2)

    def num_optimizer_steps(self) -> int:
        """Of the whole run: what a schedule of the learning rate counts."""
        return self.num_outer_steps

    def outer_optimizer(self) -> optax.GradientTransformation:
        return self.optimizer_of(self.learning_rate, self.num_optimizer_steps())

    def optimizer_of(self, rate: float, num_steps: int) -> optax.GradientTransformation:
        """The recipe's, from a rate on, over so many steps."""
        schedule = optax.cosine_decay_schedule(rate, num_steps) if self.schedule == "cosine" else rate
        return getattr(optax, self.optimizer)(schedule)

    def rate(self) -> str:
        """The outer optimizer and its rate, as protocols say them."""
        return f"{self.optimizer} {self.learning_rate:g} ({self.schedule})"

    def protocol(self) -> str:
        return f"{counted(self.num_outer_steps, 'outer step')} of {counted(self.num_tasks, 'task')}, {self.rate()}"

    def build(self) -> Experiment:
        raise NotImplementedError


def paths_of(played: Transition) -> tuple[np.ndarray, np.ndarray]:
    """What was seen at the start and after each step, and which steps were played, for pictures.

    From episodes `[tasks, K + 1, T, ...]` what was seen is `[tasks, K + 1, T + 1, ...]`.
    """
    start = played.inputs.observation[:, :, :1]
    return np.concatenate([start, played.next_observation], axis=2), np.asarray(played.mask)

"""What `fit` returns beside the state: the metrics of every outer step, which show themselves in a line."""

from typing import Any

import jax
import numpy as np

from jaxmeta.words import counted, html_table


class History(dict[str, np.ndarray]):
    """{metric: [steps]}, of S seeds [S, steps]: a dict whose text is a line, and in a notebook a table.

    Attributes:
      validation: what `fit(..., validate=...)` found, {"step": [V], metric: [V]}, empty without; the metrics are means
        over the validation tasks after the last unit of adaptation.
      num_steps: outer steps that there are metrics of.

    >>> history = History({"loss": np.linspace(1, 0, 100), "is_finite": np.arange(100) > 4})
    >>> history
    History(100 outer steps, 5 skipped; loss 0.04545 over the last 10)
    >>> history["loss"].shape
    (100,)
    """

    validation: dict[str, np.ndarray]

    def __init__(self, metrics: Any = (), validation: dict[str, np.ndarray] | None = None):
        super().__init__(metrics)
        self.validation = {} if validation is None else validation

    @property
    def num_steps(self) -> int:
        return np.shape(next(iter(self.values())))[-1] if self else 0

    @property
    def num_skipped(self) -> int:
        """Outer steps that were not finite, of all seeds."""
        return int(np.sum(~np.asarray(self.get("is_finite", True))))

    def late(self) -> dict[str, float]:
        """The mean of each metric over the last tenth of the steps, and over seeds; what was skipped does not count."""
        is_finite = self.get("is_finite", np.array(True))
        means = {}
        for name in self.keys() - {"is_finite"}:
            values = np.where(is_finite, self[name], np.nan)[..., -self._num_late :]
            means[name] = float(np.nanmean(values)) if np.any(~np.isnan(values)) else float("nan")
        return dict(sorted(means.items()))

    @property
    def _num_late(self) -> int:
        return max(1, self.num_steps // 10)

    def _caption(self) -> str:
        skipped = f", {self.num_skipped:,} skipped" if self.num_skipped else ""
        shapes = {np.shape(values)[:-1] for values in self.values()} - {()}
        seeds = f" of {counted(shapes.pop()[0], 'seed')}" if shapes else ""
        return f"{counted(self.num_steps, 'outer step')}{seeds}{skipped}"

    def __repr__(self) -> str:
        if not self:
            return "History(0 outer steps)"
        means = ", ".join(f"{name} {mean:.4g}" for name, mean in self.late().items())
        judged = f"; {counted(len(self.validation['step']), 'validation')}" if self.validation else ""
        return f"History({self._caption()}; {means} over the last {self._num_late:,}{judged})"

    def _repr_html_(self) -> str:
        rows = ([name, f"{mean:.4g}"] for name, mean in self.late().items())
        return html_table(self._caption(), ["", f"mean of the last {self._num_late:,}"], rows)


jax.tree_util.register_pytree_node(
    History,
    lambda history: ((dict(history), history.validation), None),
    lambda _, parts: History(*parts),
)

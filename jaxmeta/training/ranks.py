"""Several learners on several sources: their ranks on each, and their mean, by which Meta-Dataset orders them."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxmeta.checks import check_choice
from jaxmeta.training.report import Report
from jaxmeta.words import html_table, short


class Ranks(NamedTuple):
    """What `mean_ranks` returns; `str(ranks)`, and what a notebook shows, is a table with the ranks in brackets.

    Attributes:
      learners: their names, L of them.
      sources: their names, S of them.
      metric: by which they are ranked.
      mean: [S, L], of the metric, NaN where a task diverged.
      ci95: [S, L], the interval is mean ± ci95.
      rank: [S, L], 1 is the best; those that share ranks have their average.
      mean_rank: {learner: the mean over sources}.
    """

    learners: tuple[str, ...]
    sources: tuple[str, ...]
    metric: str
    mean: np.ndarray
    ci95: np.ndarray
    rank: np.ndarray

    @property
    def mean_rank(self) -> dict[str, float]:
        return dict(zip(self.learners, self.rank.mean(axis=0).tolist(), strict=True))

    def _cells(self) -> list[list[str]]:
        lines = [[self.metric, *self.learners]]
        for source, *values in zip(self.sources, self.mean, self.ci95, self.rank, strict=True):
            said = (
                f"{m:.4f} ± {c:.4f} ({r:g})" if np.isfinite(m) else f"- ({r:g})"
                for m, c, r in zip(*values, strict=True)
            )
            lines.append([source, *said])
        return [*lines, ["mean rank", *(f"{rank:.4g}" for rank in self.mean_rank.values())]]

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        return "\n".join("  ".join(f"{x:>{width}}" for x, width in zip(line, widths, strict=True)) for line in cells)

    def __repr__(self) -> str:
        ordered = sorted(self.mean_rank.items(), key=lambda item: item[1])
        found = ", ".join(f"{name} {rank:.4g}" for name, rank in ordered)
        return f"Ranks({self.metric} on {len(self.sources)} sources; mean rank {found})"

    def _repr_html_(self) -> str:
        header, *lines = self._cells()
        return html_table("ranks in brackets", header, lines)


def mean_ranks(reports: Mapping[str, Report], metric: str, *, best: Literal["highest", "lowest"]) -> Ranks:
    """The mean over sources of each learner's rank there, where those that cannot be told apart share one.

    On each source the best mean, and all whose means do not differ from it significantly, take the next ranks and share
    their average; then the best of those that are left, and so on. Means m and n with 95% intervals ± a and ± b differ
    where the interval of their difference does not hold 0:

        |m − n| > √(a² + b²) = 1.96 √(σ_m² / N_m + σ_n² / N_n)

    So does the leaderboard of Meta-Dataset. It takes reports for independent: of two learners on the same tasks
    `Report.ahead_of` can tell more. A learner of which a task of a source diverged has no mean there, and is after all
    that have one.

    "Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples", Triantafillou et al. 2020,
    https://arxiv.org/abs/1903.03096; `compute_ranks` in "Leaderboard.ipynb" of
    https://github.com/google-research/meta-dataset

    Args:
      reports: {learner: what `evaluate` found of it on a `tasks.mixture`}, all of the same sources.
      metric: by which they are ranked, after the last unit of adaptation.
      best: whether a high one is good, such as an accuracy, or a low one, such as an error.

    Raises:
      ValueError: there are no reports, one is of no sources, of others or without the metric, or has a single task of a
        source, of which there is no interval.

    >>> def report(low, high):
    ...     return Report({"accuracy": np.array([[0.4], [0.6], low, high])}, sources=["ink", "ink", "birds", "birds"])
    >>> print(mean_ranks({"maml": report([0.1], [0.2]), "protonet": report([0.7], [0.8])}, "accuracy", best="highest"))
     accuracy                   maml               protonet
          ink  0.5000 ± 0.1960 (1.5)  0.5000 ± 0.1960 (1.5)
        birds    0.1500 ± 0.0980 (2)    0.7500 ± 0.0980 (1)
    mean rank                   1.75                   1.25
    """
    check_choice("best", best, ("highest", "lowest"))
    sources = _checked(reports, metric)
    found = [[report.of(source).metrics[metric] for report in reports.values()] for source in sources]
    mean, ci95 = (np.array([[of[name][-1] for of in row] for row in found], float) for name in ("mean", "ci95"))
    for source, is_unknown in zip(sources, np.any(np.isfinite(mean) & ~np.isfinite(ci95), axis=1), strict=True):
        if is_unknown:
            raise ValueError(f"reports must have two tasks of each source at least, got one of {source!r}")
    rank = np.array([_ranks(m if best == "highest" else -m, c) for m, c in zip(mean, ci95, strict=True)])
    return Ranks(tuple(reports), sources, metric, mean, ci95, rank)


def _ranks(mean: np.ndarray, ci95: np.ndarray) -> np.ndarray:
    """[L] of one source, where high means are good."""
    rank, mean = np.zeros(len(mean)), np.where(np.isfinite(mean), mean, -np.inf)
    is_left, num_ranked = np.ones(len(mean), bool), 0
    while is_left.any():
        best = np.argmax(np.where(is_left, mean, -np.inf)) if np.isfinite(mean[is_left]).any() else None
        is_next = is_left if best is None else is_left & (mean[best] - mean <= np.hypot(ci95, ci95[best]))
        num_next = int(is_next.sum())
        rank[is_next] = num_ranked + (num_next + 1) / 2
        is_left, num_ranked = is_left & ~is_next, num_ranked + num_next
    return rank


def _checked(reports: Any, metric: str) -> tuple[str, ...]:
    """The sources that all reports are of."""
    if not isinstance(reports, Mapping) or not reports:
        raise ValueError(f'reports must be a dictionary {{"learner": report}}, got {short(reports)}')
    sources: tuple[str, ...] = ()
    for name, report in reports.items():
        if not isinstance(report, Report):
            raise ValueError(f"reports[{name!r}] must be a Report, as evaluate returns it, got {short(report)}")
        if report.sources is None:
            raise ValueError(f"reports[{name!r}] must be of several sources: evaluate on a tasks.mixture of them")
        if not isinstance(metric, str) or metric not in report.samples:
            raise ValueError(f"metric must be one of {', '.join(report.samples)} for {name!r}, got {metric!r}")
        own = tuple(dict.fromkeys(report.sources))
        if sources and set(own) != set(sources):
            raise ValueError(f"reports must be of the same sources, got {short(sources)} and {short(own)} of {name!r}")
        sources = sources or own
    return sources

"""When a run has diverged: ten outer steps in a row that are not finite, however it is cut into chunks."""

import warnings
from collections.abc import Sequence

import numpy as np

from jaxmeta.words import counted

LIMIT = 10
_REMEDY = (
    "Lower the inner or the outer learning rate, clip the outer gradient (optax.clip_by_global_norm); an Adam inside "
    "needs eps_root > 0; a label without an output is NaN too; jax.config.update('jax_debug_nans', True) finds the "
    "operation."
)


class Watch:
    """Counts, for each seed, the outer steps in a row that were not finite; 0 after one that was."""

    def __init__(self, in_a_row: Sequence[int] = ()):
        self.in_a_row = np.array(in_a_row, int)

    def __call__(self, metrics: dict[str, np.ndarray], step: int) -> None:
        """Looks at a chunk that began after `step`; `is_finite` is `[chunk]`, of S seeds `[S, chunk]`.

        Raises:
          FloatingPointError: no seed has had a finite step for `LIMIT` in a row.
        """
        is_finite = np.atleast_2d(metrics.get("is_finite", np.array(True)))
        self.in_a_row = np.broadcast_to(self.in_a_row if self.in_a_row.size else 0, len(is_finite)).copy()
        if is_finite.all():
            self.in_a_row[:] = 0
            return
        were_dead = self.in_a_row >= LIMIT
        die = np.zeros_like(were_dead)
        for i, finite in enumerate(is_finite.T):
            self.in_a_row = np.where(finite, 0, self.in_a_row + 1)
            die |= self.in_a_row >= LIMIT
            if (last := self.in_a_row.min()) >= LIMIT:
                begin = step + i + 1 - last
                raise FloatingPointError(
                    f"no outer step after step {begin} was finite, {last} in a row: the run has diverged. {_REMEDY}"
                )
        warnings.warn(f"outer steps that were not finite are skipped, see state.num_skipped. {_REMEDY}", stacklevel=4)
        if (newly := np.flatnonzero(die & ~were_dead)).size:
            named = f"{counted(len(newly), 'seed')} of {len(is_finite)} diverged ({', '.join(map(str, newly))})"
            warnings.warn(
                f"{named}: {LIMIT} outer steps in a row or more were not finite up to step "
                f"{step + is_finite.shape[1]}. The others go on; leave out what did not learn: state.num_skipped",
                stacklevel=4,
            )

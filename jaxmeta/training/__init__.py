"""The outer loop around any meta-learner, the protocol that judges it, and states on disk.

A run, which goes on where it was if it is killed and started again:

    saved = Checkpointer("run")
    state, history = fit(key, learner, tasks, num_outer_steps=1000, num_tasks=16, checkpointer=saved)
    report = evaluate(test_key, learner, test_tasks, state.meta_params)
"""

from jaxmeta.training.callbacks import JsonLines, TensorBoard
from jaxmeta.training.checkpoint import Checkpointer, restore_state, save_state
from jaxmeta.training.evaluate import evaluate
from jaxmeta.training.fit import fit
from jaxmeta.training.history import History
from jaxmeta.training.ranks import Ranks, mean_ranks
from jaxmeta.training.report import Report
from jaxmeta.training.validation import Validation

__all__ = [
    "Checkpointer",
    "History",
    "JsonLines",
    "Ranks",
    "Report",
    "TensorBoard",
    "Validation",
    "evaluate",
    "fit",
    "mean_ranks",
    "restore_state",
    "save_state",
]

"""The outer loop around any meta-learner, the protocol that judges it, and states on disk.

A run, and how to go on with it:

    state, history = fit(key, learner, tasks, num_outer_steps=1000, num_tasks=16)
    save_state("run", int(state.step), state)  # later, or elsewhere:
    state = restore_state("run", jax.eval_shape(learner.init, key))
    state, history = fit(key, learner, tasks, num_outer_steps=2000, num_tasks=16, state=state)
    report = evaluate(test_key, learner, test_tasks, state.meta_params)
"""

from jaxmeta.training.checkpoint import restore_state, save_state
from jaxmeta.training.evaluate import evaluate
from jaxmeta.training.fit import fit
from jaxmeta.training.history import History
from jaxmeta.training.ranks import Ranks, mean_ranks
from jaxmeta.training.report import Report
from jaxmeta.training.validation import Validation

__all__ = ["History", "Ranks", "Report", "Validation", "evaluate", "fit", "mean_ranks", "restore_state", "save_state"]

"""The student's own loss on the labels."""

from __future__ import annotations

from .base import Batch, Term, TermOutput


class TaskTerm(Term):
    """The loss that the student's head computes, or `compute_loss_func`."""

    name = "task"
    of_samples = False  # it is weighed by its labels

    def __call__(self, batch: Batch) -> TermOutput | None:
        """See `Term`."""
        if batch.task is None:
            return None
        return TermOutput(self.config.task_weight * batch.task, {"task_loss": batch.task.detach()})

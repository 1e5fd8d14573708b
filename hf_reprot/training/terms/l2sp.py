"""`l2sp_weight`: decay toward the weights that training starts from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...losses.l2sp import L2SP
from .base import Batch, Term, TermContext, TermOutput

_FINGERPRINT = "l2sp.fingerprint"


class L2SPTerm(Term):
    """`L2SP` on the student's trainable weights, its heads left out."""

    name = "l2sp"
    of_samples = False  # no sample takes part

    def __init__(self, context: TermContext):
        super().__init__(context)
        self.loss = L2SP(context.student, exclude=context.heads)

    def __call__(self, batch: Batch) -> TermOutput:
        """See `Term`."""
        output = self.loss()
        logs = {"l2sp_loss": output.loss.detach(), **output.logs}
        return TermOutput(self.config.l2sp_weight * output.loss, logs)

    def state_dict(self) -> dict[str, Tensor]:
        """A fingerprint of the weights at the start."""
        return {_FINGERPRINT: self.loss.fingerprint()}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Compares the weights at the start with those of the checkpoint's run.

        Raises:
            ValueError: the run that wrote the checkpoint started from others.
        """
        if _FINGERPRINT not in state:
            return
        ours, theirs = self.loss.fingerprint(), state[_FINGERPRINT]
        if not torch.allclose(ours, theirs.to(ours), rtol=1e-6):
            raise ValueError(
                "l2sp_weight pulls toward the weights that training starts from, and the checkpoint's run started "
                "from others: build the student from the same start as before (not from the checkpoint) to resume"
            )

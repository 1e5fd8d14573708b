"""`bss_weight`: batch spectral shrinkage of the student's last representation."""

from __future__ import annotations

from ...features.activations import pooled_neurons
from ...features.architecture import last_layer
from ...losses.baselines.spectral import BatchSpectralShrinkage
from .base import Batch, Term, TermContext, TermOutput


class ShrinkageTerm(Term):
    """`BatchSpectralShrinkage`; no teacher takes part."""

    name = "bss"

    def __init__(self, context: TermContext):
        super().__init__(context)
        self.loss = BatchSpectralShrinkage(self.config.bss_k)
        self.layer = last_layer(context.student)
        self.student_layers = [self.layer]

    def __call__(self, batch: Batch) -> TermOutput:
        """See `Term`."""
        mask = batch.inputs.get("attention_mask")
        output = self.loss(pooled_neurons(batch.student[self.layer], tokens=self.config.ot_tokens, mask=mask))
        logs = {"bss_loss": output.loss.detach(), "bss_smallest": output.logs["smallest"]}
        return TermOutput(self.config.bss_weight * output.loss, logs)

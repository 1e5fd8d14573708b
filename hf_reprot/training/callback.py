"""What a transfer does at the moments that `Trainer` tells callbacks of."""

from __future__ import annotations

from transformers import TrainerCallback


class TransferCallback(TrainerCallback):
    """Calls the trainer back: callbacks are the only place between the backward pass and the optimiser's step.

    Args:
        trainer: The `OTTransferTrainer` that it belongs to.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """The trainer's own sums are at zero: those of the checkpoint take their place."""
        self.trainer._begin_window()
        self.trainer.forget_head()
        self.trainer._begin_compiling()
        self.trainer.transfer.on_train_begin(self.trainer.training_loop())  # nothing has moved the student yet

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        """Before the first micro-batch of a step."""
        self.trainer.transfer.on_step_begin(self.trainer.training_loop())

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """The gradient is complete, averaged over processes and clipped."""
        self.trainer.auxiliary.average(self.trainer.accelerator.num_processes)
        self.trainer._guard_gradient()

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        """The optimiser has made its step."""
        self.trainer.auxiliary.clear_gradients()

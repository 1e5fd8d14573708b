"""What a transfer does at the moments that `Trainer` tells callbacks of."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from .log_window import restore_window


class TransferCallback(TrainerCallback):
    """Hands the moments on: callbacks are the only place between the backward pass and the optimiser's step.

    Args:
        trainer: The `OTTransferTrainer` whose collaborators are called.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """The trainer's own sums are at zero: those of the checkpoint take their place."""
        trainer = self.trainer
        restored = trainer.checkpointer.restored or {}
        restore_window(trainer, trainer.log_window, restored)
        trainer.non_finite.load_state_dict(restored)
        trainer.gradient_guard.reset()
        trainer.head = None  # what was fitted belongs to the representation that there was
        trainer.session.begin_compiling([trainer.model, *(t.model for t in trainer.teachers)], trainer.accelerator)
        trainer.transfer.on_train_begin(trainer.training_loop())  # nothing has moved the student yet
        trainer.average.start()

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        """Before the first micro-batch of a step."""
        self.trainer.transfer.on_step_begin(self.trainer.training_loop())

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """The gradient is complete, averaged over processes and clipped."""
        self.trainer.auxiliary.average(self.trainer.accelerator.num_processes)
        self.trainer.guard_gradient()

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        """The optimiser has made its step."""
        self.trainer.auxiliary.clear_gradients()
        self.trainer.average.update()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """All checkpoints are written, and the best one is loaded where that was asked for."""
        self.trainer.average.settle()

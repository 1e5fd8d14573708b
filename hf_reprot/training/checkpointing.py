"""The methods of `Trainer` that save a run and go on with it."""

from __future__ import annotations

import contextlib
import os

import torch
from accelerate.utils import DynamoBackend
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from ..features.compiled import is_compiled, own_hooks
from ..models.student import portable_state_dict
from .checkpoint_files import (
    PROCESSES,
    check_weights,
    check_whole,
    explained_failure,
    has_plain_weights,
    last_whole_checkpoint,
    load_transfer_state,
    load_weights_strictly,
    save_transfer_state,
)
from .log_window import restore_window, window_state

# Older versions of transformers load an optimiser's state in CPU processes to "cpu:0", a place that torch cannot name.
torch.serialization.register_package(
    1000, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
)


class CheckpointingMixin:
    """For a trainer with an objective (`transfer`), a meter and a watch: saves and restores all of a transfer run."""

    _restored: dict[str, Tensor] | None = None
    _written = False

    def train(self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None):
        """As in `Trainer`. Resumes from whole checkpoints only: with True, from the last one that is.

        Where none of them is (the run was stopped while it wrote the first), it starts anew, with a warning.

        Raises:
            ValueError: the checkpoint is damaged, unfinished or of another model.
            OSError: a checkpoint could not be written; the earlier ones are as they were.
            FloatingPointError: losses or gradients were not finite again and again.
        """
        if str(resume_from_checkpoint).lower() == "true":  # as it comes from a command line
            resume_from_checkpoint = True
        if resume_from_checkpoint and not self._is_sharded():
            if isinstance(resume_from_checkpoint, bool):
                resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is not None:
                check_whole(resume_from_checkpoint)
        self._restored = None
        self.transfer.hang()
        with contextlib.ExitStack() as self._while_training:
            self._while_training.callback(lambda: self.transfer.close())  # the student is then a model like any other
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _begin_compiling(self) -> None:
        """Before the student's first pass: lets compiled code see the hooks."""
        models = [self.model, *(teacher.model for teacher in self.teachers)]
        plugin = getattr(self.accelerator.state, "dynamo_plugin", None)  # also of ACCELERATE_DYNAMO_BACKEND
        launched = plugin is not None and plugin.backend != DynamoBackend.NO
        self._while_training.enter_context(own_hooks(launched or any(map(is_compiled, models))))

    def _is_sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    # ---- saving ----

    def _save_checkpoint(self, model, trial) -> None:
        folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        self._written = False
        with explained_failure(folder, lambda: self._written, remove=self.args.should_save):
            super()._save_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._written = True
        super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        super()._save(output_dir, state_dict=portable_state_dict(model, state_dict))

    def _own_rank(self) -> int | None:
        """This process's number where its transfer state is its own; None where all processes hold the same."""
        return None if self.args.ot_global_batch else self.args.process_index

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = self.transfer.state_dict() | self._watch.state_dict()
        state |= window_state(self, self._meter, self.accelerator.gather)
        state[PROCESSES] = torch.tensor(self.args.world_size)
        if self._own_rank() is not None or self.args.should_save:
            os.makedirs(output_dir, exist_ok=True)  # the process that makes it may not have come so far
            save_transfer_state(output_dir, state, self._own_rank())

    # ---- loading ----

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self._restored = None
        if checkpoint is not None:
            self._restored = load_transfer_state(checkpoint, self._own_rank(), self.args.world_size)
        if self._restored is not None:  # first: of other companions, the optimiser could only say that numbers differ
            self.transfer.load_state_dict(self._restored)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is None:
            path = os.path.join(checkpoint, "scaler.pt")
            if os.path.isfile(path):
                raise ValueError(
                    f"the run that wrote {checkpoint} scaled its loss and this one does not: resume with fp16=True as "
                    "before, or delete scaler.pt there to go on in another precision"
                )
        super()._load_scaler(checkpoint)

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        epochs, steps = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None and self.state.global_step >= max_steps:
            return num_train_epochs, 0  # the run was at its end: the stock trainer would make one step more
        return epochs, steps

    def _begin_window(self) -> None:
        """Starts the sums for the log: from zero, or from where the checkpoint stood."""
        state = self._restored or {}
        restore_window(self, self._meter, state)
        self._watch.load_state_dict(state)
        self._guard.reset()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if not self._load_strictly(resume_from_checkpoint, model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_strictly(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_strictly(self, folder: str, model=None) -> bool:
        """Loads all weights or raises; False where the stock ways (sharded training, adapters) know better."""
        if self._is_sharded():
            return False
        check_weights(folder)  # the best model, too: its place is read from the checkpoint
        if not has_plain_weights(folder):
            return False
        student = self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)
        if isinstance(student, PreTrainedModel):
            load_weights_strictly(student, folder)
        else:
            student.load_state_dict(load_file(os.path.join(folder, SAFE_WEIGHTS_NAME)), strict=True)
        return True

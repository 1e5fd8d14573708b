"""Saves a transfer run and goes on with it: which checkpoint, its transfer state, its weights."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from ..config import OTTransferConfig
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

# Older versions of transformers load an optimiser's state in CPU processes to "cpu:0", a place that torch cannot name.
torch.serialization.register_package(
    1000, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
)


class Checkpointer:
    """What `Trainer` does not know of a checkpoint: whether it is whole, and the state of the transfer in it.

    Args:
        args: The settings.

    Attributes:
        restored: The transfer state of the checkpoint that the run goes on from; None for a new run.
        written: Whether all of the checkpoint at hand has been written: what fails then is its upload.
    """

    def __init__(self, args: OTTransferConfig):
        self.args = args
        self.restored: dict[str, Tensor] | None = None
        self.written = False

    def resume_from(self, asked: str | bool | None, *, sharded: bool) -> str | bool | None:
        """The folder of the checkpoint to resume from; None: the run starts anew.

        Args:
            asked: `resume_from_checkpoint` of `Trainer.train`: a folder, or True for the last one that is whole.
            sharded: Whether the student is spread over processes: such checkpoints have files of their own.

        Raises:
            ValueError: the checkpoint is damaged or unfinished.
        """
        self.restored = None
        if str(asked).lower() == "true":  # as it comes from a command line
            asked = True
        if asked and not sharded:
            folder = last_whole_checkpoint(str(self.args.output_dir)) if isinstance(asked, bool) else asked
            if folder is not None:
                check_whole(folder)
            return folder
        return asked

    # ---- saving ----

    @contextlib.contextmanager
    def writing(self, folder: str) -> Iterator[None]:
        """Inside, a checkpoint is written; a failure is explained in one line, and leaves nothing of it behind."""
        self.written = False
        with explained_failure(folder, lambda: self.written, remove=self.args.should_save):
            yield

    def _own_rank(self) -> int | None:
        """This process's number where its transfer state is its own; None where all processes hold the same."""
        return None if self.args.ot_global_batch else self.args.process_index

    def save_state(self, folder: str, state: Mapping[str, Tensor]) -> None:
        """Writes the transfer's state into a checkpoint, on the processes that have one to write."""
        if self._own_rank() is not None or self.args.should_save:
            os.makedirs(folder, exist_ok=True)  # the process that makes it may not have come so far
            whole = {**state, PROCESSES: torch.tensor(self.args.world_size)}
            save_transfer_state(folder, whole, self._own_rank())

    # ---- loading ----

    def load_state(self, folder: str | None) -> dict[str, Tensor] | None:
        """Reads the transfer's state of a checkpoint and keeps it as `restored`; None where there is none."""
        self.restored = None
        if folder is not None:
            self.restored = load_transfer_state(folder, self._own_rank(), self.args.world_size)
        return self.restored

    @staticmethod
    def check_scaler(folder: str | None, *, scales: bool) -> None:
        """Refuses the checkpoint of a run that scaled its loss, where this one does not.

        Args:
            folder: The checkpoint.
            scales: Whether this run scales its loss (fp16).

        Raises:
            ValueError: such a checkpoint.
        """
        if folder is not None and not scales and os.path.isfile(os.path.join(folder, "scaler.pt")):
            raise ValueError(
                f"the run that wrote {folder} scaled its loss and this one does not: resume with fp16=True as before, "
                "or delete scaler.pt there to go on in another precision"
            )

    @staticmethod
    def load_weights(student: nn.Module, folder: str | Path, *, sharded: bool) -> bool:
        """Loads all weights or raises; False where the stock ways (sharded training, adapters) know better.

        Args:
            student: The live student, unwrapped.
            folder: A checkpoint.
            sharded: Whether the student is spread over processes.

        Raises:
            ValueError: weights are missing, damaged, no safetensors or another model's.
        """
        if sharded:
            return False
        check_weights(folder)  # the best model, too: its place is read from the checkpoint
        if not has_plain_weights(folder):
            return False
        if isinstance(student, PreTrainedModel):
            load_weights_strictly(student, folder)
        else:
            student.load_state_dict(load_file(os.path.join(folder, SAFE_WEIGHTS_NAME)), strict=True)
        return True

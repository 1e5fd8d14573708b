"""`Trainer` with runs that are saved whole, resumed exactly and published with their card."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from torch import nn
from transformers import Trainer

from ..config import OTTransferConfig
from ..hub.paper import _paper
from ..hub.record import RunRecord
from ..models.student import portable_state_dict
from .average import StudentAverage
from .checkpointing import Checkpointer
from .log_window import Meter, window_state
from .non_finite import NonFiniteWatch
from .objective import TransferObjective
from .publishing import Publisher


class KeptTrainer(Trainer):
    """The overrides of `Trainer` that save, load and publish; `OTTransferTrainer` adds those that feed and train.

    Each calls `super()`, the checkpointer or the publisher, in the order that it states.

    Attributes:
        transfer: The terms of the loss.
        checkpointer, publisher, log_window, non_finite, average: What is called; made before `Trainer.__init__` by
            `_keep_with`.
        teacher_metrics: Of teachers that were evaluated on the evaluation data, by number: their metrics, named as the
            student's without `eval_`. The card shows them beside the student's.
        foreign_evaluations: Entries of the log that are about other data than `eval_dataset`.
    """

    _paper = _paper  # read by cards of the stock trainer
    args: OTTransferConfig
    hub_model_id: Any
    push_in_progress: Any
    transfer: TransferObjective
    teacher_metrics: dict[int, dict[str, float]] | None = None
    foreign_evaluations: tuple[dict[str, Any], ...] = ()

    def _keep_with(self, args: OTTransferConfig) -> None:
        self.log_window, self.non_finite = Meter(), NonFiniteWatch(args.ot_nonfinite_limit)
        self._meter = self.log_window  # its name in version 0.1
        self.checkpointer, self.publisher = Checkpointer(args), Publisher(args)
        self.average = StudentAverage(args.ema_decay, self.student)

    @property
    def is_sharded(self) -> bool:
        """Whether the student's weights are spread over processes."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def student(self, model: nn.Module | None = None) -> Any:
        """The student, or another model, without what DDP, FSDP and compilation put around it."""
        return self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)

    # ---- saving ----

    def _save_checkpoint(self, model, trial) -> None:
        folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        with self.checkpointer.writing(folder):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The weights (the average, where one is kept) as both libraries read them, then the record beside them."""
        with self.average.applied():
            super()._save(output_dir, state_dict=portable_state_dict(self.student(), state_dict))
        if self.args.should_save:
            folder = Path(str(output_dir if output_dir is not None else self.args.output_dir))
            self.publisher.accompany(folder, lambda final: self.collect_record(speeds=final), self.transfer.plans)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        window = window_state(self, self.log_window, self.accelerator.gather)
        state = self.transfer.state_dict() | self.non_finite.state_dict() | self.average.state_dict() | window
        self.checkpointer.save_state(output_dir, state)

    # ---- loading ----

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        state = self.checkpointer.load_state(checkpoint)
        if state is not None:  # first: of other auxiliary modules, the optimiser could only say that numbers differ
            self.transfer.load_state_dict(state)
            self.average.load_state_dict(state)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        self.checkpointer.check_scaler(checkpoint, scales=self.accelerator.scaler is not None)
        super()._load_scaler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self.checkpointer.load_weights(self.student(model), resume_from_checkpoint, sharded=self.is_sharded):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        self.average.forget()  # its weights are an average already
        if not self.checkpointer.load_weights(self.student(), best, sharded=self.is_sharded):
            super()._load_best_model()

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        epochs, steps = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None and self.state.global_step >= max_steps:
            return num_train_epochs, 0  # the run was at its end: the stock trainer would make one step more
        return epochs, steps

    # ---- logs and evaluation ----

    def evaluation_loop(self, *args: Any, **kwargs: Any):
        """As in `Trainer`, of the average where one is kept."""
        with self.average.applied():
            return super().evaluation_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`; a training entry gains every term and diagnostic, averaged over the window."""
        if "loss" in logs:
            logs.update(self.log_window.pop(self.accelerator.gather))
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `Trainer`. What is found on other data than `eval_dataset` of the trainer does not go on its card."""
        before = len(self.state.log_history)
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        own = self.eval_dataset
        known = eval_dataset is None or eval_dataset is own or isinstance(eval_dataset, str)
        if not known and not (isinstance(own, Mapping) and any(eval_dataset is part for part in own.values())):
            self.foreign_evaluations += tuple(self.state.log_history[before:])
        return metrics

    # ---- publishing ----

    def collect_record(self, model_name: str | None = None, *, speeds: bool = False) -> RunRecord:
        """Everything that is known of this run, for the card.

        Args:
            model_name: What the student is called; default: as its repository or its folder.
            speeds: Measure the speed of student and teachers, if that has not been done yet (a few seconds).
        """
        return self.publisher.record(self, model_name, speeds=speeds)

    def create_model_card(  # type: ignore[override]  # model_name comes first, and alone without a keyword
        self, model_name: str | None = None, **said: Any
    ) -> None:
        """Writes README.md, `transfer.json` and pictures into the output folder (on process 0).

        Args:
            model_name: What the student is called.
            said: As in `Trainer`: language, license, tags, finetuned_from ("scratch" for new random weights), tasks,
                dataset_tags, dataset. They go before what is found on the objects, from now on.

        Raises:
            TypeError: an argument that `Trainer.create_model_card` does not have.
        """
        self.publisher.say(said)
        if self.is_world_process_zero():
            record = self.collect_record(model_name, speeds=True)
            self.publisher.write_card(str(self.args.output_dir), record, self.transfer.plans)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository `hub_model_id` (on process 0).

        Raises:
            HubError: no network, no token, a token that may only read, ...: one line.
        """
        if self.is_world_process_zero():
            self.hub_model_id = self.publisher.make_repository(token, private)
            self.push_in_progress = None

    def push_to_hub(  # type: ignore[override]  # a future where it does not block
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Saves the student and its card, and pushes both in one commit; see `Trainer.push_to_hub`.

        Returns:
            The commit, or a future of it where `blocking` is False; None on other processes than the first.

        Raises:
            HubError: the push was refused. The student is in the output folder all the same.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(kwargs.pop("model_name", None), **kwargs)

        def repository() -> str:
            if self.hub_model_id is None:
                self.init_hf_repo(token=token, private=private)
            return str(self.hub_model_id)

        return self.publisher.push(
            repository,
            commit_message=commit_message,
            blocking=blocking,
            revision=revision,
            private=private,
            token=token,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """The checkpoint is whole; then its student is pushed in the background, where a push is due."""
        self.checkpointer.written = True
        running = getattr(self, "push_in_progress", None)
        if not self.is_world_process_zero() or not self.publisher.wants_checkpoint(running):
            return
        self.publisher.report_failures(running)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        about = (self.collect_record(), self.transfer.plans, self.state, running)
        self.push_in_progress = self.publisher.push_checkpoint(Path(checkpoint_folder), self.hub_model_id, *about)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self.publisher.report_failures(getattr(self, "push_in_progress", None))

"""What `OTTransferTrainer` does for the Hub: record and card beside the weights, pushes in one commit."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, SaveStrategy
from transformers.utils import PushInProgress

from ..hub.card import write_card
from ..hub.errors import HubError
from ..hub.facts import Speed
from ..hub.paper import _paper
from ..hub.push import make_repository, push_folder
from ..hub.record import RunRecord
from ..plots.maps import plan_figure
from ..plots.style import save_figure
from .checkpoint_files import PICKLES, remove_pickles
from .run_record import collect_record, measure_speeds, record_name

logger = logging.getLogger(__name__)

_SAID = ("language", "license", "tags", "finetuned_from", "tasks", "dataset_tags", "dataset", "dataset_args")


class PublishingMixin:
    """The methods of `Trainer` that write cards and push, for a trainer with teachers and an objective.

    Attributes:
        teacher_metrics: For teachers that were evaluated on the evaluation data, by number: their metrics, named as the
            student's without `eval_`. The card shows them beside the student's.
    """

    _paper = _paper
    _said: dict[str, Any] | None = None
    _speeds: dict[str | int, Speed] | None = None
    _pusher: HfApi | None = None
    teacher_metrics: dict[int, dict[str, float]] | None = None
    foreign_evaluations: tuple[dict[str, Any], ...] = ()

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `Trainer`. What is found on other data than `eval_dataset` of the trainer does not go on its card."""
        before = len(self.state.log_history)
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        own = self.eval_dataset
        known = eval_dataset is None or eval_dataset is own or isinstance(eval_dataset, str)
        if not known and not (isinstance(own, Mapping) and any(eval_dataset is part for part in own.values())):
            self.foreign_evaluations += tuple(self.state.log_history[before:])
        return metrics

    # ---- beside the weights ----

    def collect_record(self, model_name: str | None = None, *, speeds: bool = False) -> RunRecord:
        """Everything that is known of this run, for the card.

        Args:
            model_name: What the student is called; default: as its repository or its folder.
            speeds: Measure the speed of student and teachers, if that has not been done yet (a few seconds).
        """
        if speeds and self._speeds is None:
            self._speeds = measure_speeds(self)
        return collect_record(
            self,
            record_name(self, model_name),
            said=self._said or {},
            speeds=self._speeds or {},
            teacher_metrics=self.teacher_metrics or {},
        )

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        super()._save(output_dir, state_dict=state_dict)
        if self.args.should_save:
            folder = Path(output_dir if output_dir is not None else self.args.output_dir)
            remove_pickles(folder)
            final = not folder.name.startswith(PREFIX_CHECKPOINT_DIR)
            record = self.collect_record(speeds=final)
            self._write_record(folder, record, plans=final)
            if record.student.library == "peft" and final:
                write_card(RunRecord.load(folder), folder)  # in the place of the empty one that PEFT leaves there

    def create_model_card(self, model_name: str | None = None, **said: Any) -> None:
        """Writes README.md, `transfer.json` and pictures into the output folder (on process 0).

        Args:
            model_name: What the student is called.
            said: As in `Trainer`: language, license, tags, finetuned_from ("scratch" for new random weights), tasks,
                dataset_tags, dataset. They go before what is found on the objects, from now on.

        Raises:
            TypeError: an argument that `Trainer.create_model_card` does not have.
        """
        for name in said:
            if name not in _SAID:
                raise TypeError(f"create_model_card has no argument {name!r}: it takes model_name, {', '.join(_SAID)}")
        if self.is_world_process_zero():
            self._said = (self._said or {}) | {name: value for name, value in said.items() if value is not None}
            self._write_card(self.args.output_dir, model_name, speeds=True)

    def _write_card(self, folder: str | os.PathLike, model_name: str | None = None, *, speeds: bool = False) -> None:
        self._write_record(Path(folder), self.collect_record(model_name, speeds=speeds), plans=True)
        # What is read back is what `hf-reprot card` reads: free of tokens and places on this machine.
        write_card(RunRecord.load(folder), folder)

    def _write_record(self, folder: Path, record: RunRecord, *, plans: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        record.save(folder, (self.args.hub_token,))
        for pair, plan in zip(record.pairs, self.transfer.plans if plans else (), strict=False):
            if pair.picture is None:
                continue
            try:
                save_figure(plan_figure(plan, student=pair.student, teacher=pair.teacher), folder / pair.picture)
            except ValueError as error:  # a plan that is not finite
                logger.warning("The plan of %s is not drawn: %s", pair.student, error)

    # ---- pushing ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository `hub_model_id` (on process 0).

        Raises:
            HubError: no network, no token, a token that may only read, ...: one line.
        """
        if not self.is_world_process_zero():
            return
        self.hub_model_id = make_repository(
            self.args.hub_model_id or Path(self.args.output_dir).resolve().name,
            private=self.args.hub_private_repo if private is None else private,
            revision=self.args.hub_revision,
            token=token or self.args.hub_token,
        )
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
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

        def push() -> CommitInfo:
            try:
                if self.hub_model_id is None:
                    self.init_hf_repo(token=token, private=private)
                return push_folder(
                    self.args.output_dir,
                    self.hub_model_id,
                    private=self.args.hub_private_repo if private is None else private,
                    revision=revision or self.args.hub_revision,
                    commit_message=commit_message or "End of training",
                    token=token or self.args.hub_token,
                )
            except HubError as error:
                place = f"The trained student is safe in {self.args.output_dir}"
                raise HubError(f"{error}. {place}", error.status) from None

        return push() if blocking else HfApi().run_as_future(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes a checkpoint's student in the background, where the former push is done (or `hub_always_push`)."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self._report_failed_pushes()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # A second name for each file keeps it as it is now, whatever is rotated away or written anew during the push.
        waiting = Path(tempfile.mkdtemp(prefix="_push-", dir=self.args.output_dir))
        _link_files(Path(checkpoint_folder), waiting / "student")
        self._write_card(waiting / "student")
        with_state = self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
        if with_state:
            _link_files(Path(checkpoint_folder), waiting / "checkpoint")
        last = self.args.hub_strategy == HubStrategy.CHECKPOINT
        by_epoch = self.args.save_strategy == SaveStrategy.EPOCH
        place = f"epoch {int(self.state.epoch or 0)}" if by_epoch else f"step {self.state.global_step}"

        def push() -> CommitInfo:
            try:
                return push_folder(
                    waiting / "student",
                    self.hub_model_id,
                    private=self.args.hub_private_repo,
                    revision=self.args.hub_revision,
                    commit_message=f"Training in progress, {place}",
                    checkpoint=waiting / "checkpoint" if with_state else None,
                    checkpoint_path="last-checkpoint" if last else Path(checkpoint_folder).name,
                    token=self.args.hub_token,
                )
            finally:
                shutil.rmtree(waiting, ignore_errors=True)

        self._pusher = self._pusher or HfApi()  # one client runs its background jobs one after the other
        job = self._pusher.run_as_future(push)
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._report_failed_pushes()

    def _report_failed_pushes(self) -> None:
        """Says in the log that a background push failed: training goes on, and the next push sends everything."""
        running = getattr(self, "push_in_progress", None)
        for job in list(running.jobs) if running is not None else ():
            if job.done() and not job.cancelled() and job.exception() is not None:
                logger.warning("A push in the background failed: %s. The next one sends everything", job.exception())
                running.jobs.remove(job)


def _link_files(source: Path, target: Path) -> None:
    """A second name for every file of a folder, or a copy where the file system has no links."""
    for path in source.rglob("*"):
        if not path.is_file() or path.name in PICKLES:
            continue
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copy2(path, place)

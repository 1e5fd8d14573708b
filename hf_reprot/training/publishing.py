"""Record and card beside a student's weights, and pushes of both to the Hub, each in one commit."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from torch import Tensor
from transformers import Trainer, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, SaveStrategy
from transformers.utils import PushInProgress

from ..config import OTTransferConfig
from ..hub.card import write_card
from ..hub.errors import HubError
from ..hub.facts import Speed
from ..hub.push import make_repository, push_folder
from ..hub.record import RunRecord
from .checkpoint_files import PICKLES, remove_pickles
from .run_record import collect_record, measure_speeds, record_name

logger = logging.getLogger(__name__)

_SAID = ("language", "license", "tags", "finetuned_from", "tasks", "dataset_tags", "dataset", "dataset_args")


class Publisher:
    """Writes what stands beside the weights, and pushes folders.

    Args:
        args: The settings.
    """

    def __init__(self, args: OTTransferConfig):
        self.args = args
        self._said: dict[str, Any] = {}
        self._speeds: dict[str | int, Speed] | None = None
        self._client: HfApi | None = None

    # ---- beside the weights ----

    def say(self, said: Mapping[str, Any]) -> None:
        """Takes what someone says of the run, by the argument names of `Trainer.create_model_card`.

        Raises:
            TypeError: an argument that it does not have.
        """
        for name in said:
            if name not in _SAID:
                raise TypeError(f"create_model_card has no argument {name!r}: it takes model_name, {', '.join(_SAID)}")
        self._said |= {name: value for name, value in said.items() if value is not None}

    def record(self, trainer: Trainer, model_name: str | None = None, *, speeds: bool = False) -> RunRecord:
        """Everything that is known of a trainer's run.

        Args:
            trainer: An `OTTransferTrainer`.
            model_name: What the student is called; default: as its repository or its folder.
            speeds: Measure the speed of student and teachers, if that has not been done yet (a few seconds).
        """
        if speeds and self._speeds is None:
            self._speeds = measure_speeds(trainer)
        metrics = getattr(trainer, "teacher_metrics", None) or {}
        name = record_name(trainer, model_name)
        return collect_record(trainer, name, said=self._said, speeds=self._speeds or {}, teacher_metrics=metrics)

    def accompany(self, folder: Path, record: Callable[[bool], RunRecord], plans: Sequence[Tensor | None]) -> None:
        """Puts the record beside weights that have just been saved, and pictures of the plans beside final ones.

        Args:
            folder: Where the weights are.
            record: Gives the record, with speeds or without.
            plans: The transport plans, one a layer pair.
        """
        remove_pickles(folder)
        final = not folder.name.startswith(PREFIX_CHECKPOINT_DIR)
        found = record(final)
        self._write_record(folder, found, plans if final else ())
        if found.student.library == "peft" and final:
            write_card(RunRecord.load(folder), folder)  # in the place of the empty one that PEFT leaves there

    def write_card(self, folder: str | os.PathLike, record: RunRecord, plans: Sequence[Tensor | None]) -> None:
        """Writes README.md, `transfer.json` and pictures into a folder."""
        self._write_record(Path(folder), record, plans)
        # What is read back is what `hf-reprot card` reads: free of tokens and places on this machine.
        write_card(RunRecord.load(folder), folder)

    def _write_record(self, folder: Path, record: RunRecord, plans: Sequence[Tensor | None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        record.save(folder, (self.args.hub_token,))
        for pair, plan in zip(record.pairs, plans, strict=False):
            if pair.picture is None or plan is None:
                continue
            from ..plots.maps import plan_figure  # matplotlib, not before a picture is drawn
            from ..plots.style import save_figure

            try:
                save_figure(plan_figure(plan, student=pair.student, teacher=pair.teacher), folder / pair.picture)
            except ValueError as error:  # a plan that is not finite
                logger.warning("The plan of %s is not drawn: %s", pair.student, error)

    # ---- pushing ----

    def make_repository(self, token: str | None = None, private: bool | None = None) -> str:
        """Makes the repository `hub_model_id`, or one that is called as the output folder; its full name.

        Raises:
            HubError: no network, no token, a token that may only read, ...: one line.
        """
        return make_repository(
            self.args.hub_model_id or Path(str(self.args.output_dir)).resolve().name,
            private=self._private(private),
            revision=self.args.hub_revision,
            token=token or self.args.hub_token,
        )

    def push(
        self,
        repository: Callable[[], str],
        *,
        commit_message: str | None,
        blocking: bool = True,
        revision: str | None = None,
        private: bool | None = None,
        token: str | None = None,
    ) -> CommitInfo | Future[CommitInfo]:
        """Pushes the output folder.

        Args:
            repository: Gives the repository's name; it may have to be made first.
            commit_message, blocking, revision, private, token: As in `Trainer.push_to_hub`.

        Returns:
            The commit, or a future of it where `blocking` is False.

        Raises:
            HubError: the push was refused. The student is in the output folder all the same.
        """

        def pushed() -> CommitInfo:
            try:
                return push_folder(
                    str(self.args.output_dir),
                    repository(),
                    private=self._private(private),
                    revision=revision or self.args.hub_revision,
                    commit_message=commit_message or "End of training",
                    token=token or self.args.hub_token,
                )
            except HubError as error:
                place = f"The trained student is safe in {self.args.output_dir}"
                raise HubError(f"{error}. {place}", error.status) from None

        return pushed() if blocking else HfApi().run_as_future(pushed)

    def wants_checkpoint(self, running: PushInProgress | None) -> bool:
        """Whether a checkpoint is pushed: where the former push is done, or with `hub_always_push`."""
        if self.args.hub_strategy == HubStrategy.END:
            return False
        return self.args.hub_always_push or running is None or running.is_done()

    def push_checkpoint(
        self,
        folder: Path,
        repository: str,
        record: RunRecord,
        plans: Sequence[Tensor | None],
        state: TrainerState,
        running: PushInProgress | None,
    ) -> PushInProgress:
        """Pushes a checkpoint's student in the background.

        Args:
            folder: The checkpoint.
            repository: The repository's name.
            record: The record of the run as it is now.
            plans: The transport plans, one a layer pair.
            state: The trainer's state.
            running: Pushes that may be under way.
        """
        # A second name for each file keeps it as it is now, whatever is rotated away or written anew during the push.
        waiting = Path(tempfile.mkdtemp(prefix="_push-", dir=self.args.output_dir))
        _link_files(folder, waiting / "student")
        self.write_card(waiting / "student", record, plans)
        with_state = self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
        if with_state:
            _link_files(folder, waiting / "checkpoint")
        last = self.args.hub_strategy == HubStrategy.CHECKPOINT
        by_epoch = self.args.save_strategy == SaveStrategy.EPOCH
        place = f"epoch {int(state.epoch or 0)}" if by_epoch else f"step {state.global_step}"

        def pushed() -> CommitInfo:
            try:
                return push_folder(
                    waiting / "student",
                    repository,
                    private=self.args.hub_private_repo,
                    revision=self.args.hub_revision,
                    commit_message=f"Training in progress, {place}",
                    checkpoint=waiting / "checkpoint" if with_state else None,
                    checkpoint_path="last-checkpoint" if last else folder.name,
                    token=self.args.hub_token,
                )
            finally:
                shutil.rmtree(waiting, ignore_errors=True)

        self._client = self._client or HfApi()  # one client runs its background jobs one after the other
        job = self._client.run_as_future(pushed)
        running = running if running is not None else PushInProgress()
        jobs: Any = running.jobs
        jobs.append(job)
        return running

    @staticmethod
    def report_failures(running: PushInProgress | None) -> None:
        """Says in the log that a background push failed: training goes on, and the next push sends everything."""
        jobs: Any = running.jobs if running is not None else []
        for job in list(jobs):
            if not job.done():
                continue
            jobs.remove(job)  # only here: a job that fails meanwhile is reported the next time
            if not job.cancelled() and job.exception() is not None:
                logger.warning("A push in the background failed: %s. The next one sends everything", job.exception())

    def _private(self, private: bool | None) -> bool | None:
        return self.args.hub_private_repo if private is None else private


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

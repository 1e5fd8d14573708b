"""`Trainer` whose data are understood: columns found, labels checked, classes named, a head fitted to few of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from ..data.columns import TEACHER_PREFIX
from ..data.dataset_columns import is_transformed
from ..data.datasets import drawn_equally, leave_encoded
from ..data.hub_datasets import Dataset
from ..data.seeding import ReadingSeeds, unseeded
from ..models.classes import data_names
from ..models.head import HeadFit, linear_head
from ..models.modules import forward_parameters
from ..models.teacher import Teacher
from .classes import ClassNames, label_columns
from .head import FittedHead, chosen_columns, collator_for_columns, fit_everywhere, labelled_batches
from .kept_trainer import KeptTrainer
from .labels import checked_labels
from .mixed import mixing


class DataTrainer(KeptTrainer):
    """The overrides of `Trainer` that make batches, for the student and for its teachers.

    Attributes:
        teachers: The teachers.
        classes: Which class is which.
        seeds: What rows and batches of training data draw their random numbers from.
        head: A head that was fitted after training; None without.
    """

    teachers: Sequence[Teacher]
    classes: ClassNames
    seeds: ReadingSeeds
    head: FittedHead | None = None
    _signature_columns: Any

    @property
    def class_notes(self) -> tuple[str, ...]:
        """How the classes of data, student and teachers were brought together: sentences."""
        return self.classes.notes

    @property
    def head_fit(self) -> HeadFit | None:
        """How a head was fitted by `fit_head`; None without."""
        return self.head.fit if self.head is not None else None

    def _set_signature_columns_if_needed(self) -> None:
        known = self._signature_columns is not None
        super()._set_signature_columns_if_needed()
        if not known:
            own: list[str] = list(self._signature_columns or ())
            taken = [name for teacher in self.teachers for name in forward_parameters(teacher.model)[0]]
            read = [c for c in getattr(self.data_collator, "input_columns", ()) if c]
            self._signature_columns = [*own, *(TEACHER_PREFIX + name for name in (*own, *taken)), *read]

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        if not is_transformed(dataset):  # it makes its columns when a row is read: what it reads must not be removed
            dataset = super()._remove_unused_columns(dataset, description)
            dataset = leave_encoded(dataset, getattr(self.data_collator, "input_columns", (None,))[0])
        return self.seeds.rows_of(dataset, self.data_collator) if description == "Training" else dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(unseeded(train_dataset))

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`; labels that no loss can take are refused, and random draws follow from the seed."""
        own = self.train_dataset
        if not isinstance(own, Dataset):  # those are seeded when their columns have been chosen
            self.train_dataset = self.seeds.rows_of(own, self.data_collator)
        try:
            with self._collating(training=True):
                return super().get_train_dataloader()
        finally:
            self.train_dataset = own

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """As in `Trainer`; images are not augmented."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str) and isinstance(self.eval_dataset, Mapping):
            dataset = self.eval_dataset.get(dataset)
        with self.reading_columns_of(dataset), self._collating(evaluation=True):
            self._check_classes(dataset, "the evaluation data")
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """As in `Trainer`; images are not augmented."""
        with self.reading_columns_of(test_dataset), self._collating(evaluation=True):
            self._check_classes(test_dataset, "the test data")
            return super().get_test_dataloader(test_dataset)

    def _label_columns(self) -> list[str]:
        return label_columns(self.data_collator, self.label_names)

    def _check_classes(self, dataset: Any, title: str) -> None:
        self.classes.check(dataset, title, self.student(), self.train_dataset, self._label_columns())

    @contextlib.contextmanager
    def _collating(self, *, training: bool = False, evaluation: bool = False) -> Iterator[None]:
        """Inside, batches are looked at before they leave the host; for evaluation, images are not augmented."""
        own = collator = self.data_collator
        if evaluation and hasattr(collator, "for_evaluation"):
            collator = collator.for_evaluation()
        if training:
            collator = self.seeds.collator_of(collator)
        if self.compute_loss_func is None and not (training and self.args.task_weight == 0):
            collator = checked_labels(collator, self.student(), self.label_names)
        if training and not evaluation:
            collator = mixing(collator, self.args, self.student(), self.seeds, self.label_names)
        self.data_collator = collator
        try:
            yield
        finally:
            self.data_collator = own

    def _chosen_columns(self, dataset: Any) -> tuple[str | None, str | None]:
        return chosen_columns(dataset, self.data_collator, self.args.image_column, self.args.label_column)

    @contextlib.contextmanager
    def reading_columns_of(self, dataset: Any) -> Iterator[None]:
        """Inside, batches are made by the columns of this data set: the collator was made for the first one."""
        own, known = self.data_collator, self._signature_columns
        self.data_collator = collator_for_columns(own, dataset, self.student(), self._chosen_columns(dataset))
        if self.data_collator is not own:
            self._signature_columns = None  # which columns are kept follows from the collator
        try:
            yield
        finally:
            self.data_collator, self._signature_columns = own, known

    def fit_head(self, dataset: Any = None, samples: int | None = None) -> HeadFit:
        """Fits the student's head to labelled samples by logistic regression; the rest of it stays as it is.

        For a student that was taught without labels (`task_weight=0`) and is to do a task of which few samples are
        labelled. Samples are not augmented; the penalty is chosen by cross-validation. Classes without a sample are
        left out of what the head answers, and named in the log and on the card. With several processes, each runs its
        share of the samples, and all get the same head. What an evaluation found before is of another head: the card
        shows evaluations made afterwards.

        Args:
            dataset: Labelled samples, with columns of their own where images and labels are called otherwise than in
                `train_dataset`; None: `train_dataset`.
            samples: Fit to this many of them at most, equal shares of every class, drawn with `args.seed`.

        Raises:
            ValueError: no labels, one class only, a student without a linear head, one in an adapter that would not
                save it, or one whose weights are spread over processes.

        Example (needs the Hub):
            trainer = OTTransferTrainer(model=student, teacher_model="timm/resnet50.a1_in1k", train_dataset=images,
                                        args=OTTransferConfig(output_dir="student", task_weight=0.0), ...)
            trainer.train()
            trainer.fit_head(labelled)
            trainer.push_to_hub()
        """
        if self.is_sharded:
            raise ValueError(
                "a head is fitted to a whole student, and FSDP and DeepSpeed spread it: save it, and fit the head with "
                "hf_reprot.models.head.fit_head"
            )
        student = self.student()
        linear_head(student)  # before samples are read
        whole = self.train_dataset if dataset is None else dataset
        drawn = whole
        if samples is not None:
            drawn = drawn_equally(whole, samples, self.args.seed, self._chosen_columns(whole)[1])
        with self.reading_columns_of(drawn):
            self.classes.name_student(student, data_names(drawn, self._label_columns()), labelled=True)
            self._check_classes(drawn, "the labelled samples")
            loader = self.get_eval_dataloader(drawn)
            batches = labelled_batches(map(self._prepare_inputs, loader), self.label_names)
            with self.compute_loss_context_manager():
                fit = fit_everywhere(student, batches, self.accelerator.gather_for_metrics)
        self.head = FittedHead(fit, len(self.state.log_history), None if whole is self.train_dataset else whole)
        return fit

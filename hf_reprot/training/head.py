"""A head for a student that was taught without labels, fitted to the few samples that have one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from accelerate.utils import broadcast
from torch import Tensor

from ..data.collator import ImageCollator
from ..data.columns import columns_of_student
from ..data.dataset_columns import features_of, find_columns
from ..data.datasets import drawn_equally
from ..data.labels import read_labels
from ..models.head import HeadFit, fit_head, linear_head
from ..models.modules import class_names, some

logger = logging.getLogger(__name__)


class HeadMixin:
    """`fit_head` for a trainer."""

    head_fit: HeadFit | None = None
    head_fit_at: int | None = None  # entries of the log before
    head_data: Any = None

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
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "a head is fitted to a whole student, and FSDP and DeepSpeed spread it: save it, and fit the head with "
                "hf_reprot.models.head.fit_head"
            )
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        linear_head(student)  # before samples are read
        dataset = self.train_dataset if dataset is None else dataset
        whole = dataset
        if samples is not None:
            dataset = drawn_equally(dataset, samples, self.args.seed, self._columns_said(dataset)[1])
        with self.reading_columns_of(dataset):
            self.settle_head_classes(dataset)
            loader = self.get_eval_dataloader(dataset)
            with self.compute_loss_context_manager():
                fit = fit_head(student, self._labelled_batches(loader), self.accelerator.gather_for_metrics)
        self.head_fit, self.head_data = fit, None if whole is self.train_dataset else whole
        self.head_fit_at = len(self.state.log_history)
        _, layer = linear_head(student)
        for parameter in layer.parameters():  # another machine may have rounded otherwise
            parameter.data.copy_(broadcast(parameter.data, from_process=0))
        logger.info("The head was fitted to %s samples: %s", fit.samples, fit)
        if fit.absent:
            logger.warning(
                "%d of %d classes have no labelled sample, and the head never answers with them: %s",
                len(fit.absent),
                layer.out_features,
                some(fit.absent),
            )
        return fit

    def forget_head(self) -> None:
        """What was fitted belongs to the representation that there was."""
        self.head_fit = self.head_fit_at = self.head_data = None

    @contextlib.contextmanager
    def reading_columns_of(self, dataset: Any) -> Iterator[None]:
        """Inside, batches are made by the columns of this data set: the collator was made for the first one."""
        collator, known = self.data_collator, self._signature_columns
        found = find_columns(dataset, *self._columns_said(dataset)) if isinstance(collator, ImageCollator) else None
        if found is not None and (found.image, found.label) != collator.input_columns:
            student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            reader = read_labels(found, dataset, student, class_names(student)) if found.label is not None else None
            self.data_collator = collator.reading(found.image, found.label, reader)
            self._signature_columns = None  # which columns are kept follows from the collator
        try:
            yield
        finally:
            self.data_collator, self._signature_columns = collator, known

    def _columns_said(self, dataset: Any) -> tuple[str | None, str | None]:
        """The columns of images and labels that someone chose, or that were found for training, where they exist."""
        found = getattr(self.data_collator, "input_columns", (None, None))
        said = (self.args.image_column or found[0], self.args.label_column or found[1])
        features = features_of(dataset) or {}
        return tuple(column if column in features else None for column in said)

    def _labelled_batches(self, loader: Any) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for batch in loader:
            inputs = self._prepare_inputs(batch)
            labels = next((inputs[name] for name in self.label_names if inputs.get(name) is not None), None)
            if labels is None:
                raise ValueError(
                    f"the samples have no labels ({', '.join(self.label_names)}; columns: {', '.join(inputs)}): a head "
                    "needs them"
                )
            yield columns_of_student(inputs, self.label_names), labels

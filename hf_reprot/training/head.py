"""A head for a student that was taught without labels, fitted to the few samples that have one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from accelerate.utils import broadcast
from torch import Tensor

from ..data.columns import columns_of_student
from ..models.head import HeadFit, fit_head, linear_head

logger = logging.getLogger(__name__)


class HeadMixin:
    """`fit_head` for a trainer."""

    head_fit: HeadFit | None = None

    def fit_head(self, dataset: Any = None) -> HeadFit:
        """Fits the student's head to labelled samples by logistic regression; the rest of it stays as it is.

        For a student that was taught without labels (`task_weight=0`) and is to do a task of which few samples are
        labelled. Samples are not augmented; the penalty is chosen by cross-validation. With several processes, each
        runs its share of the samples, and all get the same head.

        Args:
            dataset: Labelled samples; None: `train_dataset`.

        Raises:
            ValueError: no labels, a class without a sample, a student without a linear head or one whose weights are
                spread over processes.

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
        loader = self.get_eval_dataloader(self.train_dataset if dataset is None else dataset)
        with self.compute_loss_context_manager():
            self.head_fit = fit_head(student, self._labelled_batches(loader), self.accelerator.gather_for_metrics)
        _, layer = linear_head(student)
        for parameter in layer.parameters():  # another machine may have rounded otherwise
            parameter.data.copy_(broadcast(parameter.data, from_process=0))
        logger.info("The head was fitted to %s samples: %s", self.head_fit.samples, self.head_fit)
        return self.head_fit

    def _labelled_batches(self, loader: Any) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for batch in loader:
            inputs = self._prepare_inputs(batch)
            labels = next((inputs[name] for name in self.label_names if inputs.get(name) is not None), None)
            if labels is None:
                raise ValueError(f"the samples have no labels ({', '.join(self.label_names)}): a head needs them")
            yield columns_of_student(inputs, self.label_names), labels

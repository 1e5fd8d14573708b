"""`OTTransferTrainer`: the Hugging Face Trainer with a transport term between a teacher's and the student's neurons."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, PreTrainedModel, Trainer
from transformers.training_args import ParallelMode

from .checkpoints import (
    has_plain_weights,
    load_transfer_state,
    load_weights_strictly,
    remove_pickles,
    save_transfer_state,
)
from .config import OTTransferConfig
from .data import ImageCollator, image_columns, is_transformed
from .matching import last_layer, match_pairs
from .meter import Meter
from .objective import TransferObjective, pair_name
from .probe import check_batch_size, check_pairs
from .student import as_student, portable_state_dict
from .teacher import Preprocessing, Teacher
from .watch import NonFiniteWatch

TEACHER_PREFIX = "teacher_"


class OTTransferTrainer(Trainer):
    """Trains a student on its task and, by optimal transport between neurons, toward a teacher's representation.

    Everything of `transformers.Trainer` works as it does there: callbacks, trackers, resuming, gradient accumulation,
    mixed precision, distributed runs, pushing to the Hub. The terms of the loss and diagnostics of the transport stand
    in the logs beside `loss`.

    With gradient accumulation, each micro-batch is matched on its own (and on all processes' samples where there are
    several); `plan_momentum` carries what was seen over micro-batches and steps.

    Args:
        model: The student: a transformers model with a head, a timm module (it is put inside transformers' wrapper), or
            a PEFT model.
        teacher_model: Where the representation comes from: a hub id ("org/name", "org/name@revision", "timm/name"), a
            local folder, an `nn.Module`, a `Teacher`, or a list of these. May be left out where `ot_weight` and
            `kd_weight` are 0. It is frozen, kept in evaluation mode and never saved.
        args: The settings.
        data_collator: As in `Trainer`. Left out, and with an image processor as `processing_class`, images become
            `pixel_values` by `ImageCollator`.
        train_dataset, eval_dataset, processing_class, model_init, compute_loss_func, compute_metrics, callbacks,
            optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics: as in `Trainer`. Columns whose names
            start with `teacher_` go to the teachers instead of their own counterparts (without the prefix).

    Raises:
        ValueError: settings, layers, widths or data that do not fit together, before any training.

    Example:
        >>> trainer = OTTransferTrainer(
        ...     model=student,
        ...     teacher_model="timm/resnet50.a1_in1k",
        ...     args=OTTransferConfig(output_dir="student", ot_weight=1.0),
        ...     train_dataset=train,
        ...     processing_class=processor,
        ... )  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    # Each term is the mean of its micro-batch: the Trainer divides by the number of accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        teacher_model: str | os.PathLike | nn.Module | Teacher | Sequence | None = None,
        args: OTTransferConfig | None = None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        **kwargs: Any,
    ):
        if args is None:
            args = OTTransferConfig(output_dir="tmp_trainer")
        if not isinstance(args, OTTransferConfig):
            raise TypeError(f"args must be an OTTransferConfig, got {type(args).__name__}: it holds the transfer's own")
        self.objective: TransferObjective | None = None
        self._meter, self._watch = Meter(), NonFiniteWatch(args.ot_nonfinite_limit)
        self.teachers = _load_teachers(teacher_model, args)
        if model is not None:
            model = as_student(model)
        if data_collator is None and isinstance(processing_class, BaseImageProcessor):
            data_collator = _image_collator(processing_class, train_dataset, eval_dataset)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self._check_launch()
        self.preprocessing = Preprocessing.of(processing_class) or Preprocessing.of(self.model)
        for teacher in self.teachers:
            teacher.model.to(self.args.device)
        self._build_objective()

    # ---- construction ----

    def _check_launch(self) -> None:
        """Refuses launches that would silently train something else than was asked for."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        seen = self.accelerator.num_processes
        if world != seen:
            raise ValueError(
                f"WORLD_SIZE is {world} but accelerate sees {seen} process(es): every process would train a model of "
                "its own. On CPUs start with `torchrun --nproc_per_node N script.py --use_cpu`"
            )
        if self.args.fsdp and not self.is_fsdp_enabled:
            raise ValueError("fsdp was asked for but is not active: FSDP needs accelerators; leave it out on CPUs")
        if self.args.n_gpu > 1 and self.args.parallel_mode == ParallelMode.NOT_DISTRIBUTED:
            raise ValueError(
                f"{self.args.n_gpu} GPUs are visible to one process, which would use nn.DataParallel: its replicas run "
                "in threads and cannot share taps. Start with `torchrun --nproc_per_node "
                f"{self.args.n_gpu} ...` or `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one GPU"
            )
        if self.args.l2sp_weight > 0 and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "l2sp_weight needs whole parameters on every process: it does not go with FSDP or DeepSpeed"
            )

    def _build_objective(self) -> None:
        """Resolves layers, hangs the taps, builds the losses and checks that everything fits together."""
        if self.objective is not None:
            self.objective.close()
        args = self.args
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        for teacher in self.teachers:
            teacher.check_frozen()
            teacher.check_not_shared(student)
        pairs = []
        if args.ot_weight > 0:
            models = [teacher.model for teacher in self.teachers]
            pairs = match_pairs(args.layer_pairs, student, models, positions=args.ot_positions)
        self.objective = TransferObjective(
            student, self.teachers, pairs, args, preprocessing=self.preprocessing, head=_head_path(student)
        )
        self._watch.names = [pair_name(pair, len(self.teachers)) for pair in pairs]
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        widths = [] if sharded else check_pairs(student, self.objective, args.device)
        sharing = self.accelerator.num_processes if args.ot_global_batch else 1
        check_batch_size(args, args.train_batch_size * sharing, widths)

    def call_model_init(self, trial=None) -> nn.Module:
        """A new student: its taps are hung anew."""
        model = as_student(super().call_model_init(trial))
        if self.objective is not None:
            self.model = model
            self._build_objective()
        return model

    # ---- data ----

    def _set_signature_columns_if_needed(self) -> None:
        known = self._signature_columns is not None
        super()._set_signature_columns_if_needed()
        if not known:
            self._signature_columns += [TEACHER_PREFIX + name for name in self._signature_columns]
            self._signature_columns += [c for c in getattr(self.data_collator, "input_columns", ()) if c]

    def _remove_unused_columns(self, dataset, description: str | None = None):
        # A transform makes its columns when a row is read: what it reads must not be removed before.
        return dataset if is_transformed(dataset) else super()._remove_unused_columns(dataset, description)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """As in `Trainer`; images are not augmented."""
        with self._evaluation_collator():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """As in `Trainer`; images are not augmented."""
        with self._evaluation_collator():
            return super().get_test_dataloader(test_dataset)

    @contextlib.contextmanager
    def _evaluation_collator(self) -> Iterator[None]:
        collator = self.data_collator
        self.data_collator = collator.for_evaluation() if hasattr(collator, "for_evaluation") else collator
        try:
            yield
        finally:
            self.data_collator = collator

    # ---- loss ----

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """One micro-batch. Every term is a mean over it, so the count of items over the whole step is left out."""
        loss = super().training_step(model, inputs, num_items_in_batch=None)
        self._watch.check()
        return loss

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """The weighted sum of the terms in training; the student's own loss in evaluation, where no teacher runs."""
        own = {name: value for name, value in inputs.items() if not name.startswith(TEACHER_PREFIX)}
        if not model.training:
            return super().compute_loss(model, own, return_outputs, num_items_in_batch)
        with self.objective.recording():
            task, outputs = self._task_loss(model, own)
        with self.accelerator.autocast():  # for the teachers; the transport itself leaves it again
            terms = self.objective(inputs, task, _logits(outputs, task is not None), self.current_ot_weight())
        self._meter.add(terms.logs)
        self._watch.record(terms.dropped)
        loss = terms.loss
        if self.compute_loss_func is not None and not hasattr(Trainer, "loss_is_scaled_for_ga"):
            loss = loss / self.current_gradient_accumulation_steps  # older Trainers leave custom losses unscaled
        return (loss, outputs) if return_outputs else loss

    def _task_loss(self, model, inputs: Mapping[str, Any]) -> tuple[Tensor | None, Any]:
        labels = [name for name in self.label_names if inputs.get(name) is not None]
        if self.args.task_weight == 0:
            return None, model(**{name: value for name, value in inputs.items() if name not in self.label_names})
        if not labels and not self.can_return_loss:
            raise ValueError(
                f"task_weight is {self.args.task_weight} but the batch has no labels (columns: "
                f"{', '.join(inputs)}; labels are looked for in: {', '.join(self.label_names)}). Give labels, or set "
                "task_weight=0 to train on the teacher alone"
            )
        return super().compute_loss(model, dict(inputs), return_outputs=True, num_items_in_batch=None)

    def current_ot_weight(self) -> float:
        """Weight of the transport term at this step, after the warm-up."""
        warmup = self.args.ot_warmup_steps
        if 0 < warmup < 1:
            warmup = warmup * max(self.state.max_steps, 1)
        return self.args.ot_weight * (min(1.0, self.state.global_step / warmup) if warmup > 0 else 1.0)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As in `Trainer`; columns meant for teachers are left out."""
        own = {name: value for name, value in inputs.items() if not name.startswith(TEACHER_PREFIX)}
        return super().prediction_step(model, own, prediction_loss_only, ignore_keys)

    # ---- logs ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`; a training entry gains every term and diagnostic, averaged over the window."""
        if "loss" in logs:
            logs.update(self._meter.pop(self.accelerator.gather))
        super().log(logs, start_time)

    # ---- checkpoints ----

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        super()._save(output_dir, state_dict=portable_state_dict(model, state_dict))
        if self.args.should_save:
            remove_pickles(output_dir or self.args.output_dir)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        super()._push_from_checkpoint(checkpoint_folder)
        remove_pickles(self.args.output_dir)

    def _own_rank(self) -> int | None:
        """This process's number where its transfer state is its own; None where all processes hold the same."""
        return None if self.args.ot_global_batch else self.args.process_index

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._own_rank() is not None or self.args.should_save:
            save_transfer_state(output_dir, self.objective.state_dict(), self._own_rank())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        state = load_transfer_state(checkpoint, self._own_rank()) if checkpoint is not None else None
        if state is not None:
            self.objective.load_state_dict(state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if not self._load_strictly(resume_from_checkpoint, model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_strictly(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_strictly(self, folder: str, model=None) -> bool:
        """Loads all weights or raises; False where the stock ways (sharded training, adapters) know better."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or not has_plain_weights(folder):
            return False
        student = self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)
        if not isinstance(student, PreTrainedModel):
            return False
        load_weights_strictly(student, folder)
        return True


def _load_teachers(teacher_model, args: OTTransferConfig) -> list[Teacher]:
    sources = teacher_model if isinstance(teacher_model, list | tuple) else [teacher_model]
    sources = [source for source in sources if source is not None]
    if not sources and (args.ot_weight > 0 or args.kd_weight > 0):
        raise ValueError(
            f"ot_weight={args.ot_weight} and kd_weight={args.kd_weight} ask for a teacher: give teacher_model, "
            "or set both to 0"
        )
    init_kwargs = args.teacher_model_init_kwargs or {}
    return [Teacher.load(source, dtype=args.teacher_dtype, init_kwargs=init_kwargs) for source in sources]


def _image_collator(processor: BaseImageProcessor, *datasets: Any) -> ImageCollator | None:
    """The collator for raw images; None where a data set brings `pixel_values` of its own."""
    for dataset in datasets:
        columns = image_columns(dataset)
        if columns is not None:
            image, label = columns
            return ImageCollator(processor, image_column=image, label_column=label)
    return None


def _head_path(student: nn.Module) -> str | None:
    """Path of the module that the representation before the head goes into; None for a model without a head."""
    layer = last_layer(student)
    return layer.removesuffix(":input") if layer.endswith(":input") else None


def _logits(outputs: Any, has_loss: bool) -> Tensor | None:
    """The logits among a model's outputs, which may be a mapping or a tuple."""
    if isinstance(outputs, Mapping):
        return outputs.get("logits")
    if isinstance(outputs, Tensor):
        return outputs
    return outputs[1] if has_loss else outputs[0]

"""`OTTransferTrainer`: the Hugging Face Trainer with a transport term between a teacher's and the student's neurons."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    BaseImageProcessor,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from .cache.checks import cached_teachers, check_data, check_layers
from .cache.collator import CachedCollator
from .config import OTTransferConfig
from .data.collator import AugmentationEpoch
from .data.columns import TEACHER_PREFIX, columns_of_student
from .data.datasets import is_transformed, leave_encoded
from .data.preprocessing import Preprocessing
from .data.tokens import TeacherTokenCollator, pad_token_of
from .features.architecture import head_paths
from .models.modules import forward_parameters
from .models.sharding import place_teachers
from .models.student import as_student
from .models.teacher import Teacher
from .training.adapters import check_head, still_modules
from .training.auxiliary import AuxiliaryModules
from .training.callback import TransferCallback
from .training.checkpoint_files import check_writable
from .training.checkpointing import CheckpointingMixin
from .training.checks import check_batch_size, check_launch, check_pairs, explained_single_samples, settle_ot_weight
from .training.classes import ClassesMixin
from .training.collating import check_not_empty, check_prepared, collator_for_images, columns_in_words
from .training.head import HeadMixin
from .training.log_window import Meter
from .training.non_finite import GradientGuard, NonFiniteWatch
from .training.objective import TransferObjective, logits_of
from .training.publishing import PublishingMixin
from .training.shares import Share, SharesMixin, of_share
from .training.teacher_logits import class_notes
from .training.teachers import load_teachers, pairs_of_teachers
from .training.terms.base import Batch, TrainingLoop
from .training.terms.transport import warmed_up

if TYPE_CHECKING:
    from .experimental.inverse.fit import InverseTransport


class OTTransferTrainer(
    CheckpointingMixin,
    PublishingMixin,
    HeadMixin,
    ClassesMixin,
    SharesMixin,
    Trainer,
):
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
            local folder, an `nn.Module`, a `Teacher`, or a list of these (several teachers: see below). Also a mapping
            {id, weight, classes, layers, samples, dtype, preprocessing, resize, license}. May be left out where no
            term reads it (`ot_weight`, `kd_weight` and `delta_weight` are 0, no `feature_loss`). It is frozen, kept in
            evaluation mode and never saved.
        args: The settings.
        data_collator: As in `Trainer`. Left out, and with an image processor as `processing_class`, images become
            `pixel_values` by `ImageCollator`; with a tokenizer, `teacher_input_ids` and the like are padded, too.
        teacher_features: A `FeatureCache`, its folder or its repository ("name/features@commit"), or a list of these,
            one for each teacher: features come from there, and no teacher is loaded. A cache that does not belong to
            the run (other data, views, layers, preprocessing) is refused; `teacher_model`, where given as well, says
            which teacher it must be of.
        learned_cost: With `ot_cost="learned"`, a fitted `InverseTransport` (or one for each layer pair) to use instead
            of learning one from the first batches.
        train_dataset, eval_dataset, processing_class, model_init, compute_loss_func, compute_metrics, callbacks,
            optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics: as in `Trainer`. Columns whose names
            start with `teacher_` go to the teachers instead of their own counterparts (without the prefix).

    Several teachers share each term that compares layers by their weights, whatever the number of their layers, and
    each sample's distillation of logits: where the labels take part, among those who know its class (`Teacher.classes`,
    found by name where they are not given); without, by how sure each is (`PartialDistillation`). The neurons of a
    teacher that knows only some classes are matched on the same samples (`Teacher.samples`), a `feature_loss` sees all.
    Losses in raw values (`ot_standardize=False`, "fitnet", "wkd") are divided by the mean variance of the teacher's
    neurons, so that scales are comparable. Terms stand apart in the logs (`ot_loss/NAME`, `kd_loss/NAME`) and on the
    card.

    Raises:
        ValueError: settings, layers, widths or data that do not fit together, before any training.

    Example (needs the Hub; `hf-reprot demo` runs without):
        trainer = OTTransferTrainer(
            model=student,
            teacher_model="timm/resnet50.a1_in1k",
            args=OTTransferConfig(output_dir="student", ot_weight=1.0),
            train_dataset=train,
            processing_class=processor,
        )
        trainer.train()
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
        learned_cost: InverseTransport | Sequence[InverseTransport] | None = None,
        teacher_features: Any = None,
        **kwargs: Any,
    ):
        if args is None:
            args = OTTransferConfig(output_dir="tmp_trainer")
        if not isinstance(args, OTTransferConfig):
            raise TypeError(f"args must be an OTTransferConfig, got {type(args).__name__}: it holds the transfer's own")
        self.transfer: TransferObjective | None = None
        self._meter, self._watch = Meter(), NonFiniteWatch(args.ot_nonfinite_limit)
        self._guard = GradientGuard(args.ot_nonfinite_limit)
        self.auxiliary = AuxiliaryModules(lambda: nn.ModuleDict() if self.transfer is None else self.transfer.auxiliary)
        if args.should_save and args.save_strategy != "no":
            check_writable(args.output_dir)
        if teacher_features is None:
            self.teachers = load_teachers(teacher_model, args, student=model)
        else:
            self.teachers = cached_teachers(teacher_features, teacher_model, args)
        self._given_cost = learned_cost
        if model is not None:
            model = as_student(model)
        check_not_empty(train_dataset=train_dataset, eval_dataset=eval_dataset)
        if data_collator is None:
            data_collator = self._default_collator(processing_class, args, model, train_dataset, eval_dataset, kwargs)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        check_launch(self)
        if teacher_features is not None:
            self.data_collator = CachedCollator(self.data_collator, [teacher.cache for teacher in self.teachers])
        self.preprocessing = (
            Preprocessing.of(processing_class)
            or Preprocessing.of(getattr(self.data_collator, "processor", None))
            or Preprocessing.size_of(self.model)  # who prepared the images did not say how
        )
        place_teachers(self)
        self.add_callback(TransferCallback(self))
        if hasattr(self.data_collator, "set_epoch"):
            self.add_callback(AugmentationEpoch(self.data_collator))
        self._build_objective()
        check_data(self)

    # ---- construction ----

    def _build_objective(self) -> None:
        """Resolves layers, registers hooks, builds the terms and checks that everything fits together."""
        if self.transfer is not None:
            self.transfer.close()
        args = self.args
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if args.task_weight > 0 or args.kd_weight > 0:
            check_head(student)
        self._still = still_modules(student)
        self._settle_classes(student)
        settle_ot_weight(args, student, self.teachers)
        for teacher in self.teachers:
            teacher.check_frozen()
            teacher.check_not_shared(student)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        pairs = []
        if args.compares_layers and not args.finds_layers:
            pairs = pairs_of_teachers(args, student, self.teachers)
            check_layers(pairs, self.teachers)
        self.transfer = TransferObjective(
            student,
            self.teachers,
            pairs,
            args,
            self.preprocessing,
            heads=head_paths(student),
            sharded=sharded,
            learned_cost=self._given_cost,
        )
        if args.kd_weight > 0:
            for note in class_notes(student, self.teachers):
                self._note(note)
        widths = [] if sharded else check_pairs(self.transfer, args.device)
        with torch.random.fork_rng():  # the order of the data does not depend on which losses have modules
            torch.manual_seed(args.seed)
            self.transfer.build_modules(widths, args.device)
        sharing = self.accelerator.num_processes if args.ot_global_batch else 1
        check_batch_size(args, args.train_batch_size * sharing, widths)
        if not self.is_in_train:
            self.transfer.close()

    def call_model_init(self, trial=None) -> nn.Module:
        """As in `Trainer`; a bare timm model is put inside transformers' wrapper."""
        return as_student(super().call_model_init(trial))

    def _hp_search_setup(self, trial) -> None:
        # Training has got its student from `model_init`, if there is one, and moved it; a search has set its values.
        super()._hp_search_setup(trial)
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if trial is not None or student is not self.transfer.student:
            self._build_objective()

    # ---- data ----

    def _default_collator(self, processing_class: Any, args: OTTransferConfig, model: Any, train, evaluation, others):
        """What makes batches where the user does not say; None: what `Trainer` takes."""
        if isinstance(processing_class, BaseImageProcessor):
            own_loss = others.get("compute_loss_func") is not None
            return collator_for_images(processing_class, args, model, train, evaluation, own_loss=own_loss)
        if isinstance(processing_class, PreTrainedTokenizerBase):
            pad = pad_token_of(self.teachers[0].model) if self.teachers else 0
            return TeacherTokenCollator(DataCollatorWithPadding(processing_class), pad)
        if processing_class is None:
            check_prepared(args, train)
        return None

    def _set_signature_columns_if_needed(self) -> None:
        known = self._signature_columns is not None
        super()._set_signature_columns_if_needed()
        if not known:
            taken = [name for teacher in self.teachers for name in forward_parameters(teacher.model)[0]]
            self._signature_columns += [TEACHER_PREFIX + name for name in (*self._signature_columns, *taken)]
            self._signature_columns += [c for c in getattr(self.data_collator, "input_columns", ()) if c]

    def _remove_unused_columns(self, dataset, description: str | None = None):
        if is_transformed(dataset):  # it makes its columns when a row is read: what it reads must not be removed
            return dataset
        dataset = super()._remove_unused_columns(dataset, description)
        return leave_encoded(dataset, getattr(self.data_collator, "input_columns", (None,))[0])

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`; labels that the student's loss cannot take are refused."""
        with self._collating(training=True):
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """As in `Trainer`; images are not augmented."""
        dataset = self._named_set(self.eval_dataset if eval_dataset is None else eval_dataset)
        with self.reading_columns_of(dataset), self._collating(evaluation=True):
            self._check_classes(dataset, "the evaluation data")
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """As in `Trainer`; images are not augmented."""
        with self.reading_columns_of(test_dataset), self._collating(evaluation=True):
            self._check_classes(test_dataset, "the test data")
            return super().get_test_dataloader(test_dataset)

    def _named_set(self, dataset: Any) -> Any:
        """A data set that is named by its key in `eval_dataset`."""
        return self.eval_dataset.get(dataset) if isinstance(dataset, str) else dataset

    @contextlib.contextmanager
    def _collating(self, *, training: bool = False, evaluation: bool = False) -> Iterator[None]:
        """Inside, batches are looked at before they leave the host; for evaluation, images are not augmented."""
        own = collator = self.data_collator
        if evaluation and hasattr(collator, "for_evaluation"):
            collator = collator.for_evaluation()
        self.data_collator = self._checked_labels(collator, training)
        try:
            yield
        finally:
            self.data_collator = own

    # ---- loss ----

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """One micro-batch. Every term is a mean over it; `compute_loss_func` gets the count over the whole step."""
        self._share = next(self._shares, Share())
        items = num_items_in_batch if self.compute_loss_func is not None else None
        with explained_single_samples():
            loss = super().training_step(model, inputs, items)
        self._watch.check()
        return loss

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """The weighted sum of the terms in training; the student's own loss in evaluation, where no teacher runs."""
        own = columns_of_student(inputs)
        if not model.training:
            return super().compute_loss(model, own, return_outputs, num_items_in_batch)
        for module in self._still:  # `Trainer` puts every module in training mode before each step
            module.training = False
        with self.transfer.recording():
            task, outputs = self._task_loss(model, own, num_items_in_batch)
        with self.accelerator.autocast():  # for the teachers; the transport itself leaves it again
            logits = logits_of(outputs, task is not None and self.compute_loss_func is None)
            facts = {"step": self.state.global_step, "steps": self.state.max_steps, "share": self._share}
            terms = self.transfer(self.transfer.batch(inputs, logits, task=task, **facts))
        self._meter.add(terms.logs)
        self._watch.record(terms.dropped, self.transfer.layers.names)
        loss = terms.loss
        if self.compute_loss_func is not None and not hasattr(Trainer, "loss_is_scaled_for_ga"):
            loss = loss / self.current_gradient_accumulation_steps  # older Trainers leave custom losses unscaled
        return (loss, outputs) if return_outputs else loss

    def _guard_gradient(self) -> None:
        """Drops a gradient that is not finite, and counts it in the logs."""
        if self.is_deepspeed_enabled or self.accelerator.scaler is not None:
            return  # they look after it themselves
        trained = self.auxiliary.beside(self.model)
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # inside of accelerate's
        dropped = self._guard.check(trained, optimizer=optimizer, sharded=self.is_fsdp_enabled)
        self._meter.add({"dropped_steps": dropped.to(self.args.device)})

    def _task_loss(self, model, inputs: Mapping[str, Any], items: Any = None) -> tuple[Tensor | None, Any]:
        labels = [name for name in self.label_names if inputs.get(name) is not None]
        if self.args.task_weight == 0:
            return None, model(**{name: value for name, value in inputs.items() if name not in self.label_names})
        if not labels and not self.can_return_loss:
            raise ValueError(
                f"task_weight is {self.args.task_weight} but the batch has no labels (columns of the batch: "
                f"{', '.join(inputs)}; labels are looked for in: {', '.join(self.label_names)}; the data set: "
                f"{columns_in_words(self.train_dataset)}). Give labels, or set task_weight=0 to train on the teacher "
                "alone"
            )
        if self.compute_loss_func is not None:
            return self._call_custom_loss(model, dict(inputs), items, self._share)
        loss, outputs = super().compute_loss(model, dict(inputs), return_outputs=True, num_items_in_batch=None)
        return of_share(loss, self._share.items), outputs

    def current_ot_weight(self) -> float:
        """Weight of the transport term at this step, after the warm-up."""
        return warmed_up(self.args, self.state.global_step, self.state.max_steps)

    # ---- around the steps ----

    def training_loop(self) -> TrainingLoop:
        """What the terms may ask of this trainer while it trains."""
        return TrainingLoop(
            model=self.model_wrapped,
            student=self.transfer.student,
            observe=self._observe,
            batches=self._first_batches,
            autocast=self.accelerator.autocast,
            device=self.args.device,
            seed=self.args.seed,
            step=self.state.global_step,
            batch_size=self.args.train_batch_size * self.accelerator.num_processes,
            label_names=self.label_names,
        )

    def _observe(self, inputs: Mapping[str, Any]) -> Batch:
        with self.accelerator.autocast():
            with self.transfer.recording():
                self.model_wrapped(**columns_of_student(inputs, self.label_names))
            return self.transfer.batch(inputs)

    def _first_batches(self, count: int, *, augmented: bool = True) -> Iterator[dict[str, Any]]:
        """The first batches of the training data, prepared."""
        with contextlib.nullcontext() if augmented else self._collating(training=True, evaluation=True):
            loader = self.get_train_dataloader()
        try:
            for batch in itertools.islice(loader, count):
                yield self._prepare_inputs(batch)
        finally:
            if hasattr(loader, "end"):  # accelerate's, which counts the loaders that are being read
                loader.end()

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """As in `Trainer`; the auxiliary modules of the terms get a parameter group of their own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        self.auxiliary.add_to(optimizer, self.args.weight_decay)
        return optimizer

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As in `Trainer`; columns meant for teachers are left out."""
        own = columns_of_student(inputs)
        return super().prediction_step(model, own, prediction_loss_only, ignore_keys)

    # ---- logs ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`; a training entry gains every term and diagnostic, averaged over the window."""
        if "loss" in logs:
            logs.update(self._meter.pop(self.accelerator.gather))
        super().log(logs, start_time)

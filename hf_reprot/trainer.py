"""`OTTransferTrainer`: the Hugging Face Trainer with a transport term between a teacher's and the student's neurons."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import has_length

from .cache.checks import cached_teachers, check_data, check_layers
from .cache.collator import CachedCollator
from .cache.teacher import CachedTeacher
from .config import OTTransferConfig
from .data.collator import AugmentationEpoch
from .data.columns import columns_of_student
from .data.mixing import MIXED
from .data.preprocessing import Preprocessing
from .data.seeding import ReadingSeeds, seed_of_data, warn_of_streams
from .features.architecture import head_paths
from .models.precision import in_training_precision
from .models.student import as_student
from .models.teacher import Teacher
from .settings.combinations import settle_method
from .training.adapters import check_head, still_modules
from .training.auxiliary import AuxiliaryModules
from .training.backbones import check_backbone, evaluated_columns, without_labels
from .training.callback import TransferCallback
from .training.checkpoint_files import check_writable
from .training.checks import check_batch_size, check_launch, check_pairs, explained_single_samples, settle_ot_weight
from .training.classes import ClassNames
from .training.collating import check_not_empty, collator_of_run, missing_labels
from .training.data_trainer import DataTrainer
from .training.default_metrics import settle_default_metrics
from .training.evaluation import RepresentationEvaluation, settle_best_metric
from .training.given_student import given_student
from .training.mixed import check_mixing, task_loss, with_plain_name
from .training.non_finite import GradientGuard
from .training.objective import TransferObjective, logits_of
from .training.session import TrainingSession
from .training.shares import Reads, Shares, of_share
from .training.teacher_images import ready_teachers
from .training.teacher_logits import class_notes
from .training.teachers import load_teachers, pairs_of_teachers
from .training.terms.base import Batch, TrainingLoop
from .training.terms.transport import warmed_up

if TYPE_CHECKING:
    from .experimental.inverse.fit import InverseTransport


class OTTransferTrainer(DataTrainer):
    """Trains a student on its task and, by optimal transport between neurons, toward a teacher's representation.

    Everything of `transformers.Trainer` works as it does there: callbacks, trackers, resuming, gradient accumulation,
    mixed precision, distributed runs, pushing to the Hub. The terms of the loss and diagnostics of the transport stand
    in the logs beside `loss`.

    With gradient accumulation, each micro-batch is matched on its own (and on all processes' samples where there are
    several); `plan_momentum` carries what was seen over micro-batches and steps.

    Args:
        model: The student: a transformers model with a head, a timm module (it is put inside transformers' wrapper), a
            PEFT model, or an image classifier's name ("org/name", a folder), loaded with a head for the data's classes.
        teacher_model: Where the representation comes from: a hub id ("org/name", "org/name@revision", "timm/name"), a
            local folder, an `nn.Module`, a `Teacher`, or a list of these (several teachers: see below). Also a mapping
            {id, weight, classes, layers, samples, dtype, preprocessing, resize, image_size, license}. May be left out
            where no term reads it (`ot_weight`, `kd_weight` and `delta_weight` are 0, no `feature_loss`). It is frozen,
            kept in evaluation mode and never saved.
        args: The settings.
        data_collator: As in `Trainer`. Left out, and with an image processor as `processing_class`, images become
            `pixel_values` by `ImageCollator`; with a tokenizer, `teacher_input_ids` and the like are padded, too.
        teacher_features: A `FeatureCache`, its folder or its repository ("name/features@commit"), or a list of these,
            one for each teacher: features come from there, and no teacher is loaded. A cache that does not belong to
            the run (other data, views, layers, preprocessing) is refused; `teacher_model`, where given as well, says
            which teacher it must be of.
        peft_config: A `PeftConfig`, which puts a new adapter on `model`, as in TRL.
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

    Attributes:
        transfer: The terms of the loss (`TransferObjective`).
        head_fit: How a head was fitted by `fit_head`; None without.
        teacher_metrics: Of teachers that were evaluated on the evaluation data, by number: their metrics, named as the
            student's without `eval_`. The card shows them beside the student's.

    Raises:
        ValueError: settings, layers, widths or data that do not fit together, before any training.

    Example (needs the Hub; `hf-reprot demo` runs without):
        trainer = OTTransferTrainer(
            model="google/efficientnet-b0",
            teacher_model="timm/resnet50.a1_in1k",
            args=OTTransferConfig(output_dir="student", ot_weight=1.0),
            train_dataset=train,
        )
        trainer.train()
    """

    # Each term is the mean of its micro-batch: the Trainer divides by the number of accumulation steps.
    loss_is_scaled_for_ga = False
    model: Any
    data_collator: Any

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str | os.PathLike | None = None,
        teacher_model: str | os.PathLike | nn.Module | Teacher | Sequence | None = None,
        args: OTTransferConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        learned_cost: InverseTransport | Sequence[InverseTransport] | None = None,
        teacher_features: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ):
        if args is None:
            args = OTTransferConfig(output_dir="tmp_trainer")
        if not isinstance(args, OTTransferConfig):
            raise TypeError(f"args must be an OTTransferConfig, got {type(args).__name__}: it holds the transfer's own")
        if args.should_save and args.save_strategy != "no":
            check_writable(str(args.output_dir))
        model, processing_class = given_student(model, processing_class, args, train_dataset, peft_config)
        self.teachers: Sequence[Teacher] = (
            load_teachers(teacher_model, args, student=model)
            if teacher_features is None
            else cached_teachers(teacher_features, teacher_model, args)
        )
        self._given_cost = learned_cost
        self._keep_with(args)
        self.gradient_guard = GradientGuard(args.ot_nonfinite_limit)
        self.classes = ClassNames(args, self.teachers)
        self.session = TrainingSession(lambda: self.transfer)
        self.auxiliary = AuxiliaryModules(self._auxiliary_modules)
        if model is not None:
            model = in_training_precision(as_student(model), args.student_dtype)
        check_not_empty(train_dataset=train_dataset, eval_dataset=eval_dataset)
        own_loss = kwargs.get("compute_loss_func") is not None
        about = (args, model, self.teachers, train_dataset, eval_dataset)
        data_collator = collator_of_run(data_collator, processing_class, *about, own_loss=own_loss)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.label_names = self.label_names or ["labels"]  # a backbone's `forward` names none, and data may have them
        check_launch(self)
        if teacher_features is not None:
            caches = [teacher.cache for teacher in self.teachers if isinstance(teacher, CachedTeacher)]
            self.data_collator = CachedCollator(self.data_collator, caches)
        self.preprocessing = (
            Preprocessing.of(processing_class)
            or Preprocessing.of(getattr(self.data_collator, "processor", None))
            or Preprocessing.size_of(self.student())  # who prepared the images did not say how
        )
        ready_teachers(self)
        self.shares = Shares(self.accelerator, self.label_names, args.device)
        self.add_callback(TransferCallback(self))
        self.seeds = ReadingSeeds(seed_of_data(args))
        augments = [self.data_collator] if hasattr(self.data_collator, "set_epoch") else []
        self.add_callback(AugmentationEpoch(self.seeds, *augments))
        warn_of_streams(train_dataset, saves=args.save_strategy != "no")
        self._build_objective()
        self.representation = RepresentationEvaluation(self)
        settle_best_metric(self)
        settle_default_metrics(self)
        check_data(self)

    # ---- construction ----

    def _build_objective(self) -> None:
        """Resolves layers, registers hooks, builds the terms and checks that everything fits together."""
        if hasattr(self, "transfer"):
            self.transfer.close()
        args, student = self.args, self.student()
        if args.task_weight > 0 or args.kd_weight > 0:
            check_head(student)
        check_backbone(args, student, self.compute_loss_func)
        self._still = still_modules(student)
        self.classes.settle(student, self.train_dataset, self.eval_dataset, self._label_columns())
        settle_method(args)  # a search may have set it after the config was checked
        settle_ot_weight(args, student, self.teachers)
        for teacher in self.teachers:
            teacher.check_frozen()
            teacher.check_not_shared(student)
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
            sharded=self.is_sharded,
            learned_cost=self._given_cost,
        )
        if args.kd_weight > 0:
            for note in class_notes(student, self.teachers):
                self.classes.note(note)
        check_mixing(args, student, self.teachers, self.transfer.known_classes, self.compute_loss_func)
        widths = [] if self.is_sharded else check_pairs(self.transfer, args.device)
        with torch.random.fork_rng():  # the order of the data does not depend on which terms have modules
            torch.manual_seed(args.seed)
            self.transfer.build_modules(widths, args.device)
        sharing = self.accelerator.num_processes if args.ot_global_batch else 1
        check_batch_size(args, args.train_batch_size * sharing, widths)
        if not self.is_in_train:
            self.transfer.close()

    def _auxiliary_modules(self) -> nn.ModuleDict:
        return self.transfer.auxiliary if hasattr(self, "transfer") else nn.ModuleDict()

    def call_model_init(self, trial=None) -> nn.Module:
        """As in `Trainer`; the student is made ready as one that is given as `model`."""
        return in_training_precision(as_student(super().call_model_init(trial)), self.args.student_dtype)

    def _hp_search_setup(self, trial) -> None:
        # Training has got its student from `model_init`, if there is one, and moved it; a search has set its values.
        super()._hp_search_setup(trial)
        if trial is not None or self.student() is not self.transfer.student:
            self._build_objective()

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As in `Trainer`; without samples repeated to fill up the last batch of an epoch."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        shifts = bool(getattr(self, "_loss_shifts_labels", False))
        counted = self.shares.take(batches, self.student(), shifts_labels=shifts)
        if counted is not None and (items is not None or self.args.mixes):
            items = self._get_num_items_in_batch(counted, device)
        return batches, items

    # ---- loss ----

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """One micro-batch. Every term is a mean over it; `compute_loss_func` gets the count over the whole step."""
        self.shares.next()
        items = num_items_in_batch if self.compute_loss_func is not None else None
        with explained_single_samples():
            loss = super().training_step(model, inputs, items)
        self.non_finite.check()
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
        logits = logits_of(outputs, task is not None and self.compute_loss_func is None)
        facts = {"step": self.state.global_step, "steps": self.state.max_steps, "share": self.shares.present}
        with self.accelerator.autocast():  # for the teachers; the transport itself leaves it again
            found = self.transfer(self.transfer.batch(inputs, logits, task=task, **facts))
        self.log_window.add(found.logs)
        self.non_finite.record(found.dropped, self.transfer.layers.names)
        loss = found.loss
        if self.compute_loss_func is not None and not hasattr(Trainer, "loss_is_scaled_for_ga"):
            loss = loss / self.current_gradient_accumulation_steps  # older Trainers leave custom losses unscaled
        return (loss, outputs) if return_outputs else loss

    def _task_loss(self, model, inputs: Mapping[str, Any], items: Any = None) -> tuple[Tensor | None, Any]:
        labels = [name for name in (*self.label_names, MIXED) if inputs.get(name) is not None]
        if self.args.task_weight == 0:
            return None, model(**without_labels(inputs, self.label_names))
        if not labels and not self.can_return_loss:
            raise missing_labels(self.args.task_weight, inputs, self.label_names, self.train_dataset)
        if self.compute_loss_func is not None:
            return self._custom_loss(model, with_plain_name(inputs), items)
        stock = functools.partial(super().compute_loss, return_outputs=True, num_items_in_batch=None)
        loss, outputs = task_loss(stock, model, inputs, self.args.label_smoothing_factor)
        return of_share(loss, self.shares.present.items), outputs

    def _custom_loss(self, model, inputs: dict[str, Any], items: Any) -> tuple[Tensor, Any]:
        """`compute_loss_func` on a batch, as what a mean over the micro-batch would be.

        Divided by `num_items_in_batch`, as documented, its sum over micro-batches is the mean; without a look at the
        number, the loss is taken for a mean over its micro-batch.
        """
        given: Any = self.compute_loss_func
        reads, share = Reads(items), self.shares.present
        self.compute_loss_func = reads.watching(given)
        try:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=items)
        finally:
            self.compute_loss_func = given
        if reads.seen:
            return loss * (0.0 if share.empty else getattr(self, "current_gradient_accumulation_steps", 1)), outputs
        if items is not None and self.args.average_tokens_across_devices:  # `Trainer` took it for the documented form
            loss = loss / (self.accelerator.num_processes // self.get_tp_size())
        return of_share(loss, share.items), outputs

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As in `Trainer`; columns meant for teachers are left out."""
        inputs = self._prepare_inputs(inputs)
        own = evaluated_columns(inputs, self.transfer.student, self.label_names)
        with self.representation.watching(inputs):
            return super().prediction_step(model, own, prediction_loss_only, ignore_keys)

    def evaluation_loop(self, dataloader, description, *args, **kwargs):
        """As in `Trainer`; an evaluation of a run without labels also measures the representation."""
        run = functools.partial(super().evaluation_loop, dataloader, description, *args, **kwargs)
        if description != "Evaluation":  # `predict`
            return run()
        samples = self.num_examples(dataloader) if has_length(dataloader) else None
        return self.representation.measured(run, samples, kwargs.get("metric_key_prefix", "eval"))

    def current_ot_weight(self) -> float:
        """Weight of the transport term at this step, after the warm-up."""
        return warmed_up(self.args, self.state.global_step, self.state.max_steps)

    # ---- around the steps ----

    def train(self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None):
        """As in `Trainer`. Resumes from whole checkpoints only: with True, from the last one that is.

        Where none of them is (the run was stopped while it wrote the first), it starts anew, with a warning.

        Raises:
            ValueError: the checkpoint is damaged, unfinished or of another model.
            OSError: a checkpoint could not be written; the earlier ones are as they were.
            FloatingPointError: losses or gradients were not finite again and again.
        """
        folder = self.checkpointer.resume_from(resume_from_checkpoint, sharded=self.is_sharded)
        with self.session.open():
            return super().train(folder, trial, ignore_keys_for_eval)

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

    def _first_batches(self, count: int, *, augmented: bool = True) -> Iterator[Mapping[str, Any]]:
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

    def guard_gradient(self) -> None:
        """Between the backward pass and the optimiser's step: drops a gradient that is not finite, and counts it."""
        if self.is_deepspeed_enabled or self.accelerator.scaler is not None:
            return  # they look after it themselves
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # inside of accelerate's
        trained = self.auxiliary.beside(self.model)
        dropped = self.gradient_guard.check(trained, optimizer=optimizer, sharded=self.is_fsdp_enabled)
        self.log_window.add({"dropped_steps": dropped.to(self.args.device)})

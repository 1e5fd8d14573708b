"""What an evaluation says of the representation itself, where no label teaches the student."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..cache.teacher import CachedTeacher
from ..data.dataset_columns import features_of, find_columns
from ..features.activations import pooled_neurons
from ..features.architecture import last_layer
from ..features.taps import Taps
from ..models.probing import FeatureQuality, measure_features
from .terms.transport import TransportTerm

__all__ = ["RepresentationEvaluation", "settle_best_metric"]

logger = logging.getLogger(__name__)

TEACHER_METRICS = ("teacher_knn_accuracy", "teacher_neighbour_purity", "teacher_probe_accuracy")

# Rows that features and neurons are kept of; of more, every second, third, ... one.
_SAMPLES, _NEURON_ROWS = 10_000, 16_384


class _Rows:
    """Rows that come batch by batch, thinned out evenly so that about `most` stay of `total`."""

    def __init__(self, most: int):
        self.most, self.seen = most, 0
        self.kept: list[tuple[Tensor, ...]] = []

    def add(self, rows: tuple[Tensor, ...], total: int | None) -> None:
        """Takes tables with the same rows; `total`: how many rows all batches have together, where that is known."""
        stride = 1 if total is None else max(1, -(-total // self.most))
        first = -self.seen % stride
        self.seen += len(rows[0])
        self.kept.append(tuple(table[first::stride].cpu() for table in rows))

    def tables(self) -> tuple[Tensor, ...] | None:
        return tuple(torch.cat(table) for table in zip(*self.kept, strict=True)) if self.kept else None


class RepresentationEvaluation:
    """Measures of the frozen student's representation, beside the teachers', taken while a trainer evaluates.

    On where the run trains without labels (or by `evaluate_representation`). Adds to the metrics of an evaluation:
    `ot_loss`, the transport term on the evaluation samples as one batch; and, where each sample has one class,
    `knn_accuracy`, `neighbour_purity` and `probe_accuracy` of what the student's head reads (see `measure_features`)
    and the teacher's as `teacher_knn_accuracy` and so on (of several, "/NAME" behind). A teacher's are measured once
    for the same data.

    Args:
        trainer: An `OTTransferTrainer`.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._known: dict[bytes, FeatureQuality | None] = {}  # of teachers
        self._batches: _Batches | None = None

    @property
    def active(self) -> bool:
        """Whether evaluations are measured."""
        wanted = self.trainer.args.evaluate_representation
        return self.trainer.args.task_weight == 0 if wanted is None else wanted

    def measured(self, evaluate: Callable[[], Any], samples: int | None, prefix: str) -> Any:
        """Runs an evaluation and adds the measures to its metrics.

        Args:
            evaluate: Runs the loop over all batches, with `watching` around each one.
            samples: Number of samples, where it is known.
            prefix: Of the metrics' names, without `_`.
        """
        if not self.active:
            return evaluate()
        student = self.trainer.transfer.student
        try:
            self._batches = _Batches(self.trainer, student, samples)
        except ValueError as error:  # a student whose last layer is not known
            logger.warning("The representation is not measured: %s", error)
            return evaluate()
        try:
            output = evaluate()
            found = self._measures(self._batches)
        finally:
            self._batches = None
        output.metrics.update({f"{prefix}_{name}": value for name, value in found.items()})
        return output

    @contextlib.contextmanager
    def watching(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Records the student's pass over one batch made inside, and runs the teachers on the batch."""
        if self._batches is None:
            yield
            return
        with self._batches.watching(inputs):
            yield

    def _measures(self, batches: _Batches) -> dict[str, float]:
        found = {}
        transport = batches.transport()
        if transport is not None:
            found["ot_loss"] = transport
        tables = batches.features.tables()
        if tables is None:
            return found
        labels, student, *teachers = tables
        quality = measure_features(student, labels)
        found |= quality.metrics() if quality is not None else {}
        names = self.trainer.transfer.layers.teacher_names
        for i, features in enumerate(teachers):
            behind = f"/{names[i]}" if len(names) > 1 else ""
            quality = self._teacher(i, features, labels)
            found |= {f"teacher_{k}{behind}": v for k, v in quality.metrics().items()} if quality is not None else {}
        return found

    def _teacher(self, number: int, features: Tensor, labels: Tensor) -> FeatureQuality | None:
        digest = hashlib.blake2b(f"{number} {tuple(features.shape)}".encode(), digest_size=16)
        for table in (labels, features.mean(1)):
            digest.update(table.contiguous().numpy().tobytes())
        key = digest.digest()
        if key not in self._known:
            self._known[key] = measure_features(features, labels)
        return self._known[key]


class _Batches:
    """What one evaluation has seen so far: features with labels, and the neurons of the layer pairs."""

    def __init__(self, trainer: Any, student: nn.Module, samples: int | None):
        self.trainer, self.samples = trainer, samples
        self.features = _Rows(_SAMPLES)
        self.taps = _closed(student)
        objective = trainer.transfer
        live = objective.teachers and not any(isinstance(t, CachedTeacher) for t in objective.teachers)
        self.teacher_taps = [_closed(teacher.model) for teacher in objective.teachers] if live else []
        transports = live and objective.pairs and objective.find(TransportTerm) is not None
        self.neurons = [_Rows(_NEURON_ROWS) for _ in objective.pairs] if transports else []

    @contextlib.contextmanager
    def watching(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        objective, trainer = self.trainer.transfer, self.trainer
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self.taps.recording())
            if self.neurons:
                stack.enter_context(objective.recording())
            yield
        (features,) = self._pooled([self.taps], inputs)
        tables = [features]
        layers: list[Any] = []
        if self.teacher_taps:
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(trainer.accelerator.autocast())
                for taps in self.teacher_taps:
                    stack.enter_context(taps.recording())
                layers, _ = objective.teach(inputs)
            tables += self._pooled(self.teacher_taps, inputs, teacher=True)
        labels = _classes(inputs, trainer.label_names, len(features))
        if labels is not None:
            rows = trainer.accelerator.gather_for_metrics((labels.to(features.device), *tables))
            self.features.add(rows, self.samples)
        if self.neurons:
            pairs = objective.layers.neurons(objective.student_taps.take(), layers, inputs)
            for kept, pair in zip(self.neurons, pairs, strict=True):
                self._keep_neurons(kept, pair, len(features))

    def _pooled(self, taps: list[Taps], inputs: Mapping[str, Any], teacher: bool = False) -> list[Tensor]:
        """(n, d) what each model's head reads."""
        mask = inputs.get("attention_mask")
        mask = inputs.get("teacher_attention_mask", mask) if teacher else mask
        tokens = self.trainer.args.ot_tokens
        layers = [next(iter(t.take().values())) for t in taps]
        return [pooled_neurons(layer, tokens=tokens, mask=mask).float() for layer in layers]

    def _keep_neurons(self, kept: _Rows, pair: tuple[Tensor, Tensor], samples: int) -> None:
        positions = len(pair[0]) // samples
        if positions * samples == len(pair[0]):  # sample by sample, so that repeated ones can be taken out
            shaped = tuple(table.float().unflatten(0, (samples, positions)) for table in pair)
            pair = tuple(table.flatten(0, 1) for table in self.trainer.accelerator.gather_for_metrics(shaped))
        kept.add(pair, None if self.samples is None else self.samples * positions)

    def transport(self) -> float | None:
        """The transport term, weighted over the layer pairs as in training, on all samples as one batch."""
        term = self.trainer.transfer.find(TransportTerm)
        tables = [table for rows in self.neurons if (table := rows.tables()) is not None]
        if term is None or not tables or len(tables) < len(self.neurons):
            return None
        device = self.trainer.args.device
        with torch.no_grad():
            return float(term.on([(student.to(device), teacher.to(device)) for student, teacher in tables]))


def _closed(model: nn.Module) -> Taps:
    """Taps on what a model's head reads, which hang only while they record."""
    taps = Taps(model, [last_layer(model)])
    taps.close()
    return taps


def _classes(inputs: Mapping[str, Any], names: list[str], samples: int) -> Tensor | None:
    """(n,) the class of every sample of a batch; None where it has none, or several."""
    found = next((inputs[name] for name in (*names, "labels") if isinstance(inputs.get(name), Tensor)), None)
    one = found is not None and found.shape == (samples,) and not found.is_floating_point()
    return found.long() if found is not None and one else None


def settle_best_metric(trainer: Any) -> None:
    """Puts a measure that there is in the place of `eval_loss`, where that says nothing or is not there.

    A student that is trained without labels and without logits has no loss of its own that tells how good it is.

    Raises:
        ValueError: the best checkpoint is asked for and nothing measures it.
    """
    args, data = trainer.args, trainer.eval_dataset
    by_loss = str(args.metric_for_best_model).removeprefix("eval_") == "loss"
    if not (args.load_best_model_at_end and by_loss) or args.task_weight > 0 or data is None:
        return
    sets = data if isinstance(data, Mapping) else {"": data}
    labelled = next((name for name, part in sets.items() if _has_labels(part, args)), None)
    if labelled is not None and args.kd_weight > 0:
        return  # its logits are trained, and their loss on the labels says how well
    live = trainer.teachers and not any(isinstance(t, CachedTeacher) for t in trainer.teachers)
    first = next(iter(sets))
    if trainer.representation.active and labelled is not None:
        metric = f"{labelled}_knn_accuracy".lstrip("_")
    elif trainer.representation.active and live and args.ot_weight > 0:
        metric = f"{first}_ot_loss".lstrip("_")
    else:
        raise ValueError(
            "load_best_model_at_end needs a metric, and nothing is measured on the evaluation data: give them labels, "
            "or set load_best_model_at_end=False"
        )
    args.metric_for_best_model, args.greater_is_better = metric, not metric.endswith("loss")
    logger.info("Without labels, the best checkpoint is the one with the best eval_%s.", metric)


def _has_labels(dataset: Any, args: Any) -> bool:
    features = features_of(dataset) or {}
    if any(name in features for name in ("labels", "label")):
        return True
    column = args.label_column if args.label_column in features else None
    found = find_columns(dataset, args.image_column if args.image_column in features else None, column)
    return found is not None and found.label is not None

"""How good a model's representation is on labelled images: what `hf-reprot evaluate` runs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers import BaseImageProcessor

from ..data.collator import ImageCollator
from ..data.dataset_columns import Columns, find_columns
from ..data.datasets import load_image_dataset
from ..data.labels import SINGLE, label_names, problem_of, read_labels
from ..features.architecture import last_layer
from ..features.tables import TappedModel, pooled_tables
from ..models.classes import pair_names, shown
from ..models.loading import explained, locate
from ..models.modules import class_count, class_names
from ..models.probing import measure_features
from ..models.processors import image_processor
from ..models.teacher import Teacher

__all__ = ["ModelEvaluation", "evaluate_model", "evaluation_table"]


@dataclass
class ModelEvaluation:
    """What one model reached.

    Attributes:
        model: Its hub id or folder.
        data, split: On which images.
        samples: How many.
        width: Number of neurons that its head reads.
        neighbours: k of the nearest neighbours.
        metrics: knn_accuracy, neighbour_purity, probe_accuracy, and accuracy where it has a head for the classes.
        notes: What was not measured, and why: sentences.
    """

    model: str
    data: str
    split: str | None
    samples: int
    width: int
    neighbours: int
    metrics: dict[str, float]
    notes: list[str] = field(default_factory=list)

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the numbers as JSON."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")
        return path


def evaluate_model(
    source: str | os.PathLike | nn.Module,
    dataset: Any,
    *,
    processor: BaseImageProcessor | None = None,
    split: str | None = None,
    samples: int | None = None,
    neighbours: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> ModelEvaluation:
    """k-NN accuracy, neighbour purity and a linear probe of a frozen model, and its accuracy where it has a head.

    Images go through the model's own image processor. The features are what its head reads, or its pooled features (see
    `hf_reprot.models.probing.measure_features`): the figures that a run without labels logs in its evaluations.

    Args:
        source: A hub id ("org/name", "org/name@revision", "timm/name"), a folder, or a module.
        dataset: A `datasets.Dataset` of images with one class each, or what `load_image_dataset` takes.
        processor: The image processor; needed for a module, else that of the source.
        split: Which split; None: test, validation, or the first.
        samples: Images at most, drawn with `seed`; None: all.
        neighbours: k; None: by the number of samples and classes.
        image_column, label_column: Columns, where they are not found by name and type.
        batch_size: Images in a forward pass.
        device: Where the model runs.
        seed: Draws the images.

    Raises:
        ValueError: a model or data that cannot be had; labels that are not one class an image, or a single class.
    """
    if samples is not None and samples < 3:
        raise ValueError(f"samples must be at least 3, got {samples}")
    images, name, part = _images(dataset, split, image_column, label_column)
    found = find_columns(images, image_column, label_column)
    if found is None:
        raise ValueError(f"{name} has no column of images")
    names = _class_names(images, found, name)
    if samples is not None and samples < len(images):
        images = images.shuffle(seed=seed).select(range(samples))
    model = Teacher.load(source).model.to(device)
    processor = processor or processor_of(source)
    collator = ImageCollator(processor, "none", found.image, found.label, read_labels(found, images))
    features, labels, logits = _run(model, images, collator, batch_size, device)
    quality = measure_features(features, labels, neighbours)
    if quality is None:
        raise ValueError(f"{name}: nearest neighbours and a probe need labelled images of two classes at least")
    metrics, notes = quality.metrics(), []
    if logits is not None:
        answers, note = _answers(model, logits, names)
        if answers is not None:
            known = labels >= 0
            metrics["accuracy"] = float((answers == labels)[known].double().mean())
        notes += [note] if note else []
    title = str(source) if isinstance(source, str | os.PathLike) else type(source).__name__
    return ModelEvaluation(title, name, part, quality.samples, features.shape[1], quality.neighbours, metrics, notes)


def evaluation_table(found: Sequence[ModelEvaluation]) -> Table:
    """Models side by side."""
    first = found[0]
    data = " ".join(filter(None, (first.data, first.split)))
    table = Table(title=f"{data}: {first.samples} labelled images, k = {first.neighbours}", title_justify="left")
    table.add_column("", no_wrap=True)
    for evaluation in found:
        table.add_column(evaluation.model, justify="right", overflow="fold")
    for name in dict.fromkeys(name for evaluation in found for name in evaluation.metrics):
        values = [evaluation.metrics.get(name) for evaluation in found]
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in values))
    table.add_row("neurons", *(str(evaluation.width) for evaluation in found))
    return table


def _images(dataset: Any, split: str | None, image: str | None, label: str | None) -> tuple[Any, str, str | None]:
    """The images, what they are called, and their split."""
    name = "the data set"
    if isinstance(dataset, str | os.PathLike):
        name = os.fspath(dataset)
        dataset = load_image_dataset(dataset, image_column=image, label_column=label)
    if hasattr(dataset, "keys"):
        if split is not None and split not in dataset:
            raise ValueError(f"{name} has no split {split!r}: it has {', '.join(dataset)}")
        split = split or next((n for n in ("test", "validation") if n in dataset), next(iter(dataset)))
        dataset = dataset[split]
    return dataset, name, split


def _class_names(images: Any, found: Columns | None, name: str) -> list[str]:
    if found is None:
        raise ValueError(f"{name} has no raw images: it has {', '.join(images.column_names)}")
    if found.label is None:
        raise ValueError(
            f"{name} has no labels ({found.reason}; its columns: {found.table}): nearest neighbours and a probe need "
            "them. Set label_column"
        )
    if problem_of(found) != SINGLE:
        raise ValueError(f"the labels in column {found.label!r} of {name} are not one class an image")
    return label_names(images, found.label)


def images_of(dataset: Any, image_column: str | None = None) -> tuple[Any, str, str]:
    """Images of a data set, labelled or not: the test split, validation, or the first.

    Returns:
        The images, what the data set is called, and the column of the images.
    """
    images, name, _ = _images(dataset, None, image_column, None)
    found = find_columns(images, image_column)
    if found is None:
        raise ValueError(f"{name} has no column of images")
    return images, name, found.image


def processor_of(source: Any) -> BaseImageProcessor:
    """The image processor of a model given by its hub id or folder.

    Raises:
        ValueError: it cannot be had.
    """
    if not isinstance(source, str | os.PathLike):
        raise ValueError("a module does not say how its images are prepared: give processor")
    with explained(os.fspath(source), {}, what="model's image processor"):
        place = locate(os.fspath(source), {}, what="model")
        return image_processor(place.path, revision=place.revision)


def _run(
    model: nn.Module, images: Any, collator: ImageCollator, batch_size: int, device: str | torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features (n, d), labels (n,) with -100 for none, and logits (n, classes) or None."""
    name, teacher = last_layer(model), Teacher(model)
    kept: list[tuple[Tensor, Tensor, Tensor | None]] = []
    with TappedModel(model, [name]) as tapped:
        for start in track(range(0, len(images), batch_size), description="reading images", transient=True):
            rows = [images[i] for i in range(start, min(start + batch_size, len(images)))]
            missing = [row[collator.label_column] in (None, -1) for row in rows]
            labelled = [row for row, absent in zip(rows, missing, strict=True) if not absent]
            if not labelled:
                continue
            batch = collator(labelled)
            inputs = {"pixel_values": batch["pixel_values"].to(device, teacher.dtype)}
            logits, layers = tapped.run(partial(teacher, inputs))
            (features,) = pooled_tables(layers, [name])
            answer = logits.float().cpu() if logits is not None and class_count(model) is not None else None
            kept.append((features.cpu(), batch["labels"], answer))
    if not kept:
        raise ValueError("no image has a label: nearest neighbours and a probe need them")
    tables, labels, told = zip(*kept, strict=True)
    answers = [logits for logits in told if logits is not None]
    return torch.cat(tables), torch.cat(labels), torch.cat(answers) if answers else None


def _answers(model: nn.Module, logits: Tensor, names: Sequence[str]) -> tuple[Tensor | None, str | None]:
    """The class of the data that a model answers with, -1 for none of them; or why that is not known."""
    own = class_names(model)
    if own is None:
        if logits.shape[1] == len(names):
            return logits.argmax(1), None
        return None, f"no accuracy: the model has {logits.shape[1]} classes without names, the data {len(names)}"
    columns = pair_names(own, names).columns
    if columns is None or all(column is None for column in columns):
        return None, f"no accuracy: the model's classes ({shown(own)}) are not the data's ({shown(names)})"
    places = torch.tensor([-1 if column is None else column for column in columns])
    return places[logits.argmax(1)], None

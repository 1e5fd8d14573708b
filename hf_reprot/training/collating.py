"""What makes batches of a data set of raw images where the user does not say: columns found, labels understood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import BaseImageProcessor, DataCollatorWithPadding, PreTrainedTokenizerBase

from ..config import OTTransferConfig
from ..data.collator import ImageCollator
from ..data.dataset_columns import Columns, features_of, find_columns, is_transformed, table_of
from ..data.dense import ColumnError, DetectionCollator, SegmentationCollator, box_column, mask_column
from ..data.hub_datasets import Dataset
from ..data.labels import read_labels
from ..data.tokens import TeacherTokenCollator, pad_token_of
from ..models.dense import DENSE
from ..models.modules import base_of, class_name, class_names, is_headless
from ..models.teacher import Teacher
from ..settings.augmentation import PLAIN
from .labels import check_maps

# Students whose labels are no classes: their images and targets go through a processor together.
_TARGETS = {"ForSemanticSegmentation": "masks", "ForObjectDetection": "boxes"}


def collator_of_run(given: Any, processing_class: Any, args: OTTransferConfig, *about: Any, own_loss: bool) -> Any:
    """What makes the batches of a run: what the user gave, or `default_collator`.

    Raises:
        ValueError: an augmentation that nothing carries out; or as `default_collator`.
    """
    collator = given if given is not None else default_collator(processing_class, args, *about, own_loss=own_loss)
    if args.augmentation not in (None, PLAIN, getattr(collator, "augmentation", PLAIN)):
        reason = "the run has no raw images that an image processor makes pixel_values of"
        if given is not None:
            reason = f"the data_collator makes the images ({getattr(collator, 'augmentation', type(given).__name__)})"
        raise ValueError(
            f"augmentation is {args.augmentation!r} and {reason}: give ImageCollator(processor, "
            f"augmentation={args.augmentation!r}) as data_collator, or leave augmentation out of the settings"
        )
    return collator


def default_collator(
    processing_class: Any,
    args: OTTransferConfig,
    student: Any,
    teachers: Sequence[Teacher],
    train: Any,
    evaluation: Any,
    *,
    own_loss: bool,
) -> Any:
    """What makes batches where the user does not say; None: what `Trainer` takes.

    Args:
        processing_class: The student's image processor or tokenizer, if there is one.
        args: The settings.
        student: The student; None where it is made later.
        teachers: The teachers.
        train, evaluation: The data sets, the latter one or a mapping of several.
        own_loss: Whether the user computes the loss.

    Raises:
        ValueError: raw images without a processor; or as `collator_for_images`.
    """
    if args.task_weight > 0 and not own_loss:
        check_maps(student, train)
    if isinstance(processing_class, BaseImageProcessor):
        return collator_for_images(processing_class, args, student, train, evaluation, own_loss=own_loss)
    if isinstance(processing_class, PreTrainedTokenizerBase):
        pad = pad_token_of(teachers[0].model) if teachers else 0
        return TeacherTokenCollator(cast(Any, DataCollatorWithPadding(processing_class)), pad)
    if processing_class is None:
        check_prepared(args, train)
    return None


def collator_for_images(
    processor: BaseImageProcessor,
    args: OTTransferConfig,
    student: Any,
    train: Any,
    evaluation: Any,
    *,
    own_loss: bool = False,
) -> ImageCollator | None:
    """The collator for raw images; None where a data set brings `pixel_values` of its own.

    Args:
        processor: The student's image processor.
        args: Names the columns, and says whether labels are needed.
        student: The student; None where it is made later.
        train, evaluation: The data sets, the latter one or a mapping of several.
        own_loss: Whether the user computes the loss.

    Raises:
        ValueError: columns that do not exist, labels that do not fit the student, none where the loss needs them.
    """
    kind = dense_kind(student)
    if kind is not None:
        return _dense_collator(kind, processor, args, train, evaluation)
    if student is not None and is_headless(student):
        student = None  # whatever the labels are, it learns nothing from them
    found = None
    for dataset in (train, evaluation):
        found = find_columns(dataset, args.image_column, args.label_column) if dataset is not None else None
        if found is not None:
            break
    if found is None:
        return None
    columns: dict[str, Any] = {
        "augmentation": args.augmentation or PLAIN,
        "image_column": found.image,
        "label_column": found.label,
    }
    needed = args.task_weight > 0 and not own_loss and train is not None
    if needed:
        check_label(found, student, args.task_weight)
    reader = None
    if found.label is not None:
        try:
            names = class_names(student) if student is not None else None
            reader = read_labels(found, dataset, student, names)
        except ValueError:
            if needed or args.label_column is not None:
                raise
            columns["label_column"] = None  # labels that no term needs
    return ImageCollator(processor, **columns, read_labels=reader)


def dense_kind(student: Any) -> str | None:
    """ "masks" or "boxes" for a student that answers with these; None for others."""
    name = class_name(base_of(student)) if student is not None else ""
    return next((kind for part, kind in _TARGETS.items() if part in name), None)


def _dense_collator(kind: str, processor: BaseImageProcessor, args: OTTransferConfig, *datasets: Any) -> Any:
    """The collator of images and masks or boxes; of images alone where no term needs the others."""
    for dataset in datasets:
        found = find_columns(dataset, args.image_column) if dataset is not None else None
        if found is None:
            continue
        columns, augmentation = features_of(dataset) or {}, args.augmentation or PLAIN
        try:
            if kind == "masks":
                target = mask_column(columns, found.image, args.label_column)
                return SegmentationCollator(processor, augmentation, found.image, target)
            return DetectionCollator(processor, augmentation, found.image, box_column(columns, args.label_column))
        except ColumnError:
            if args.task_weight > 0 or args.label_column is not None:
                raise
            return ImageCollator(processor, augmentation, found.image, None)
    return None


def check_prepared(args: OTTransferConfig, *datasets: Any) -> None:
    """Refuses raw images that nothing makes `pixel_values` of."""
    for dataset in datasets:
        if not isinstance(dataset, Dataset) or is_transformed(dataset):
            continue
        found = find_columns(dataset, args.image_column, args.label_column)
        if found is not None:
            raise ValueError(
                f"the data set holds raw images (column {found.image!r}; all: {found.table}), and nothing makes "
                "pixel_values of them: give the student's image processor as processing_class, such as "
                "AutoImageProcessor.from_pretrained(...), or TimmWrapperImageProcessor(student.config.pretrained_cfg)"
            )


def check_not_empty(**datasets: Any) -> None:
    """Refuses data sets without a row."""
    for name, dataset in datasets.items():
        splits = dataset if isinstance(dataset, Mapping) else {"": dataset}
        for split, data in splits.items():
            if hasattr(data, "__len__") and len(data) == 0:
                raise ValueError(f"{name}{f' {split!r}' if split else ''} is empty: it has no row")


def missing_labels(task_weight: float, batch: Mapping[str, Any], names: Sequence[str], dataset: Any) -> ValueError:
    """The error of a batch without labels.

    Args:
        task_weight: The setting, above 0.
        batch: The batch.
        names: Where labels are looked for.
        dataset: The training data.
    """
    return ValueError(
        f"task_weight is {task_weight} but the batch has no labels (columns of the batch: {', '.join(batch)}; labels "
        f"are looked for in: {', '.join(names)}; the data set: {columns_in_words(dataset)}). Give labels, or set "
        "task_weight=0 to train on the teacher alone"
    )


def columns_in_words(dataset: Any) -> str:
    """The columns of a data set with their types, where they are known."""
    features = features_of(dataset)
    return "not known" if features is None else table_of(features)


def check_label(found: Columns, student: Any, weight: float) -> None:
    """Refuses data without a column of labels, and students whose labels no column can hold.

    Raises:
        ValueError: with all columns and their types, and the setting that decides.
    """
    name = class_name(student) if student is not None else ""
    if any(part in name for part in DENSE):
        raise ValueError(
            f"{name} learns from masks or boxes, which its own processor has to make of the columns: {found.table}. "
            "Give a data_collator that does, or set task_weight=0 to train on the teacher alone"
        )
    if found.label is None:
        raise ValueError(
            f"task_weight is {weight} but the data set has no labels: {found.reason}. Its columns: {found.table}. Set "
            "label_column, or set task_weight=0 to train on the teacher alone"
        )

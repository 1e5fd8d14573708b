"""One training run from a YAML recipe and flags: data, student, teacher, trainer, results."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..config import OTTransferConfig
from ..data.collator import ImageCollator
from ..data.dataset_columns import Columns, find_columns
from ..data.datasets import load_image_dataset
from ..data.hub_datasets import Dataset
from ..data.labels import REGRESSION, SINGLE, label_names, problem_of
from ..models.modules import is_headless
from ..settings.parsing import given, parse_settings
from ..settings.recipe import Recipe
from ..trainer import OTTransferTrainer
from ..training.collating import check_label, collator_for_images
from ..utils.running import accuracy
from .head import check_head, fit_recipe_head, labelled_data
from .samples import columns_of, drawn_samples
from .students import dense_student, is_dense, is_new, json_object, student_and_processor, teacher_classes

logger = logging.getLogger(__name__)


def parse_recipe(arguments: Sequence[str], recipe_file: str | Path | None = None) -> tuple[Recipe, OTTransferConfig]:
    """Reads a recipe file and flags, which win over the file.

    Args:
        arguments: Flags, such as ["--ot_weight", "2"].
        recipe_file: YAML with the same names as the flags, without dashes.

    Raises:
        ValueError: the file is no mapping, or names a setting that does not exist (the nearest one is named).
            Or a flag that does not exist or does not parse.
    """
    try:
        return parse_settings(HfArgumentParser, OTTransferConfig, arguments, recipe_file)
    except (ImportError, OverflowError) as error:  # DeepSpeed that is not installed; a number that no machine has
        raise ValueError(f"the settings cannot be used here: {error}") from error


@dataclass
class RunResult:
    """What a run leaves: the trainer, the metrics of its last evaluation, and the folder of the student."""

    trainer: OTTransferTrainer
    metrics: dict[str, float]
    folder: Path

    def next_step(self) -> str | None:
        """The command that shares the student; None where the run has pushed it."""
        if self.trainer.args.push_to_hub:
            return None
        return shlex.join(["hf-reprot", "push", str(self.folder), f"YOUR_NAME/{self.folder.resolve().name}"])


@dataclass
class Prepared:
    """The student and the data of a recipe.

    Attributes:
        student, processor, collator: The student, its image processor, and what makes batches.
        train, evaluation: The data.
        names: What the student's classes are called; None for a backbone, and where only the student knows.
        labelled: What the head is fitted to, where that is not the training data.
    """

    student: Any
    processor: Any
    collator: ImageCollator | None
    train: Any
    evaluation: Any
    names: list[str] | None
    labelled: Any = None


def prepare(recipe: Recipe, config: OTTransferConfig) -> Prepared:
    """Loads the data of a recipe and makes its student.

    Raises:
        ValueError: data, a split or a student that do not exist or do not fit.
    """
    set_seed(config.seed)
    config.augmentation = config.augmentation or "flip"
    dense = is_dense(given("student", recipe.student))
    data = load_image_dataset(
        given("dataset", recipe.dataset),
        config=recipe.dataset_config,
        revision=recipe.dataset_revision,
        image_column=None if dense else config.image_column,
        label_column=None if dense else config.label_column,
        streaming=recipe.streaming,
    )
    if recipe.train_split not in data:
        raise ValueError(f"{recipe.dataset} has no split {recipe.train_split!r}: it has {', '.join(data)}")
    train = data[recipe.train_split]
    evaluation = _evaluation_split(data, recipe)
    if dense:
        train, evaluation = drawn_samples(train, evaluation, recipe, config.seed)
        return Prepared(*dense_student(recipe, config, train, evaluation), train, evaluation, None)
    own_label = config.label_column if config.task_weight > 0 or config.label_column in columns_of(train) else None
    found = find_columns(train, config.image_column, own_label)
    if found is None:
        raise ValueError(f"{recipe.dataset} has no raw images: it has {', '.join(columns_of(train))}")
    if config.task_weight > 0:
        check_label(found, None, config.task_weight)
    labelled, labels = labelled_data(recipe, config, data, found)
    names = _class_names(train if labelled is None else labelled, labels, recipe)
    needs_head = config.task_weight > 0 or config.kd_weight > 0 or recipe.fit_head
    if names is None and config.kd_weight > 0 and is_new(given("student", recipe.student)):
        names = teacher_classes(teachers_of(recipe))
    train, evaluation = drawn_samples(train, evaluation, recipe, config.seed)
    student, processor = student_and_processor(recipe, names, problem_of(labels), needs_head=needs_head)
    check_head(recipe, student)
    collator = collator_for_images(processor, config, student, train, evaluation)
    names = None if is_headless(student) else names
    return Prepared(student, processor, collator, train, evaluation, names, labelled)


def build_trainer(recipe: Recipe, config: OTTransferConfig) -> OTTransferTrainer:
    """The trainer of a recipe, checked and ready to train."""
    return _trainer(recipe, config, prepare(recipe, config))


def _trainer(recipe: Recipe, config: OTTransferConfig, prepared: Prepared) -> OTTransferTrainer:
    return OTTransferTrainer(
        model=prepared.student,
        teacher_model=teachers_of(recipe) or None,
        teacher_features=recipe.teacher_features or None,
        args=config,
        data_collator=prepared.collator,
        train_dataset=prepared.train,
        eval_dataset=prepared.evaluation,
        processing_class=prepared.processor,
        compute_metrics=_metrics(prepared),
    )


def _metrics(prepared: Prepared) -> Any:
    """Accuracy where each sample has one class; the student's loss tells of the others."""
    one_class = getattr(prepared.student.config, "problem_type", None) in (None, SINGLE)
    return accuracy if prepared.names is not None and one_class else None


def run_recipe(recipe: Recipe, config: OTTransferConfig) -> RunResult:
    """Trains, evaluates, saves the student with its card and, where asked, pushes."""
    prepared = prepare(recipe, config)
    trainer = _trainer(recipe, config, prepared)
    trainer.train(resume_from_checkpoint=_where_to_resume(config))
    if recipe.fit_head:
        fit_recipe_head(trainer, recipe, prepared.labelled)
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    if metrics:
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.save_state()
    if config.push_to_hub:
        trainer.push_to_hub()
    else:
        trainer.save_model()
        trainer.create_model_card()
    return RunResult(trainer, metrics, Path(str(config.output_dir)))


def _where_to_resume(config: OTTransferConfig) -> str | None:
    """The setting; None for "true" in a run without checkpoints: a loop of restarts begins somewhere."""
    asked = config.resume_from_checkpoint
    if str(asked).lower() == "true" and not any(Path(str(config.output_dir)).glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
        logger.warning("There is no checkpoint in %s yet: the run starts anew", config.output_dir)
        return None
    return asked


def _class_names(train: Any, found: Columns, recipe: Recipe) -> list[str] | None:
    """What the outputs of the student are called; None where the data do not tell, and the student has to."""
    if found.label is None:
        return None
    if problem_of(found) == REGRESSION:
        return [found.label]
    try:
        return label_names(train, found.label)
    except ValueError:
        if isinstance(train, Dataset) or is_new(given("student", recipe.student)):
            raise
        return None


def teachers_of(recipe: Recipe) -> list[str | dict[str, Any]]:
    """The teachers of a recipe, as the trainer takes them."""
    return [_teacher(given) for given in recipe.teacher]


def _teacher(given: str | dict[str, Any]) -> str | dict[str, Any]:
    """A teacher as the trainer takes it: mappings come as JSON from a command line."""
    return json_object("teacher", given) if isinstance(given, str) and given.lstrip().startswith("{") else given


def _evaluation_split(data, recipe: Recipe):
    if recipe.eval_split is not None:
        if recipe.eval_split not in data:
            raise ValueError(f"{recipe.dataset} has no split {recipe.eval_split!r}: it has {', '.join(data)}")
        if recipe.eval_split == recipe.head_split and recipe.head_dataset is None:
            raise ValueError(f"the head would be fitted to what it is evaluated on, the split {recipe.eval_split!r}")
        return data[recipe.eval_split]
    own = recipe.head_split if recipe.head_dataset is None else None  # what the head is fitted to says nothing of it
    return next((data[name] for name in ("validation", "test") if name in data and name != own), None)

"""One training run from a YAML recipe and flags: data, student, teacher, trainer, results."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import HfArgumentParser, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..config import OTTransferConfig
from ..data.collator import ImageCollator
from ..data.dataset_columns import Columns, find_columns
from ..data.datasets import load_image_dataset
from ..data.labels import REGRESSION, SINGLE, label_names, problem_of
from ..models.modules import is_headless
from ..trainer import OTTransferTrainer
from ..training.collating import check_label, collator_for_images
from ..utils.messages import did_you_mean
from ..utils.running import accuracy
from ..utils.strict_json import UnclearJson, check_json
from .head import check_head, fit_recipe_head, labelled_data
from .recipe_file import read_recipe_file
from .students import is_new, json_object, student_and_processor, teacher_classes

logger = logging.getLogger(__name__)


def _setting(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class Recipe:
    """What a run needs beside the settings of the trainer: which models and which data."""

    student: str | None = _setting(
        None,
        "The student: a hub id or a folder (its weights are the start), or the name of a timm architecture such as "
        "resnet18 (new random weights).",
    )
    teacher: list[str] = _setting(
        [],
        "One or several teachers: hub ids (org/name@revision) or folders, or mappings (JSON on the command line) of "
        "id, weight, classes (the student's, by name or number), layers, dtype, preprocessing, resize, image_size, "
        "license.",
    )
    teacher_features: list[str] = _setting(
        [],
        "One or several feature caches (`hf-reprot cache`) in the place of the teachers: folders, or repositories "
        "(name/features@revision).",
    )
    dataset: str | None = _setting(
        None, "A hub id, a folder of images (one subfolder per class), or a folder that save_to_disk wrote."
    )
    dataset_config: str | None = _setting(None, "Configuration of a data set from the Hub.")
    dataset_revision: str | None = _setting(None, "Revision of a data set from the Hub.")
    train_split: str = _setting("train", "Split to train on.")
    eval_split: str | None = _setting(None, "Split to evaluate on; default: validation or test, if it exists.")
    max_train_samples: int | None = _setting(None, "Maximum number of training samples, drawn with the run's seed.")
    max_eval_samples: int | None = _setting(None, "Maximum number of evaluation samples.")
    fit_head: bool = _setting(
        False, "After training, fit the head to labelled samples with everything else frozen: for task_weight 0."
    )
    head_dataset: str | None = _setting(
        None, "Labelled images that the head is fitted to, as dataset; default: those that were trained on."
    )
    head_split: str | None = _setting(
        None, "Split of head_dataset (default: train) or, without one, of dataset that the head is fitted to."
    )
    head_samples: int | None = _setting(
        None, "Maximum number of those samples to fit the head to, balanced over the classes."
    )
    image_size: int | None = _setting(None, "Image height and width of a new timm student.")
    student_head: bool | None = _setting(
        None,
        "Whether the student has a head for classes; default: where a term needs one, the training data have labels, "
        "or its checkpoint has one. Without, it is a backbone: task_weight 0, kd_weight 0.",
    )
    student_from_scratch: bool = _setting(False, "Use only the config of a hub student, randomly initialised.")
    student_model_args: str | None = _setting(None, "Arguments for timm.create_model of a new student, as JSON.")
    trust_remote_code: bool = _setting(False, "Run code that comes with the student's repository.")


def parse_recipe(arguments: Sequence[str], recipe_file: str | Path | None = None) -> tuple[Recipe, OTTransferConfig]:
    """Reads a recipe file and flags, which win over the file.

    Args:
        arguments: Flags, such as ["--ot_weight", "2"].
        recipe_file: YAML with the same names as the flags, without dashes.

    Raises:
        ValueError: the file is no mapping, or names a setting that does not exist (the nearest one is named).
            Or a flag that does not exist or does not parse.
    """
    kinds: Any = (Recipe, OTTransferConfig)
    parser = _Parser(kinds, prog="hf-reprot train", allow_abbrev=False)
    if recipe_file is not None:
        parser.set_defaults(**_read_recipe(Path(recipe_file)))
    for flag, argument in zip(["", *arguments], arguments, strict=False):
        name, _, value = argument.partition("=") if argument.startswith("--") else (flag, "", argument)
        if value.lstrip().startswith("{"):
            try:
                check_json(value)
            except UnclearJson as error:
                raise ValueError(f"{name} holds JSON that is unclear: {error}") from None
    try:
        recipe, config, rest = parser.parse_args_into_dataclasses(args=list(arguments), return_remaining_strings=True)
    except (ImportError, OverflowError) as error:  # DeepSpeed that is not installed; a number that no machine has
        raise ValueError(f"the settings cannot be used here: {error}") from error
    if rest:
        hint = did_you_mean(rest[0].split("=")[0], [f"--{name}" for name in _legal()])
        raise ValueError(f"{rest[0]} is no setting.{hint or ' --help lists all settings'}")
    for name in ("student", "dataset"):
        _given(name, getattr(recipe, name))
    return recipe, config


def _given(name: str, value: str | None) -> str:
    """A setting that a run cannot do without."""
    if value is None:
        raise ValueError(f"no {name} given: pass --{name} or name it in the recipe")
    return value


class _Parser(HfArgumentParser):
    """Raises where argparse prints its usage, which has a line for each of two hundred flags, and ends the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (--help lists all settings)")


def _legal() -> list[str]:
    return [f.name for f in (*fields(Recipe), *fields(OTTransferConfig)) if f.init]


def print_help(console: Console) -> None:
    """The settings of a recipe and of the transfer, with their defaults."""
    console.print("hf-reprot train [RECIPE.yaml] [--processes N] [--setting value ...]\n")
    own = {f.name: f for f in fields(OTTransferConfig)}
    groups = {"models and data": fields(Recipe), "transfer": [own[name] for name in OTTransferConfig.transfer_fields()]}
    for title, members in groups.items():
        table = Table("setting", "default", "what it is", title=title, title_justify="left")
        for f in members:
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            table.add_row(f"--{f.name}", str(default), f.metadata.get("help", ""))
        console.print(table)
    console.print("and every setting of transformers.TrainingArguments, such as --output_dir, --num_train_epochs,")
    console.print("--per_device_train_batch_size, --learning_rate, --bf16, --push_to_hub, --resume_from_checkpoint.")


def _read_recipe(path: Path) -> dict[str, Any]:
    types = get_type_hints(Recipe) | get_type_hints(OTTransferConfig)
    # One name stands for a list of one, and a layer pair may be a mapping.
    types |= {"layer_pairs": str | dict | list, "student_model_args": str | dict | None}
    types |= {"teacher_compile": str | bool | None}
    types["teacher"] = list[str | dict] | dict
    # transformers takes more than it says
    types |= dict.fromkeys(("fsdp", "resume_from_checkpoint"), str | bool | None)
    content = read_recipe_file(path, {name: types[name] for name in _legal()})
    # argparse takes strings apart by a setting's type; what YAML has parsed already is left as it is
    if isinstance(content.get("teacher"), str | dict):
        content["teacher"] = [content["teacher"]]
    if isinstance(content.get("teacher_features"), str):
        content["teacher_features"] = [content["teacher_features"]]
    if isinstance(content.get("layer_pairs"), str | dict):
        content["layer_pairs"] = [content["layer_pairs"]]
    if isinstance(content.get("student_model_args"), dict):
        content["student_model_args"] = json.dumps(content["student_model_args"])
    return content


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
    data = load_image_dataset(
        _given("dataset", recipe.dataset),
        config=recipe.dataset_config,
        revision=recipe.dataset_revision,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    if recipe.train_split not in data:
        raise ValueError(f"{recipe.dataset} has no split {recipe.train_split!r}: it has {', '.join(data)}")
    train = data[recipe.train_split]
    evaluation = _evaluation_split(data, recipe)
    own_label = config.label_column if config.task_weight > 0 or config.label_column in train.column_names else None
    found = find_columns(train, config.image_column, own_label)
    if found is None:
        raise ValueError(f"{recipe.dataset} has no raw images: it has {', '.join(train.column_names)}")
    if config.task_weight > 0:
        check_label(found, None, config.task_weight)
    labelled, labels = labelled_data(recipe, config, data, found)
    names = _class_names(train if labelled is None else labelled, labels, recipe)
    needs_head = config.task_weight > 0 or config.kd_weight > 0 or recipe.fit_head
    if names is None and config.kd_weight > 0 and is_new(_given("student", recipe.student)):
        names = teacher_classes(teachers_of(recipe))
    if recipe.max_train_samples is not None and recipe.max_train_samples < len(train):
        train = train.shuffle(seed=config.seed).select(range(recipe.max_train_samples))
    if evaluation is not None and recipe.max_eval_samples is not None and recipe.max_eval_samples < len(evaluation):
        evaluation = evaluation.shuffle(seed=config.seed).select(range(recipe.max_eval_samples))
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
        if isinstance(train, Dataset) or is_new(_given("student", recipe.student)):
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

"""What a training run needs beside the settings of the trainer."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.settings import setting as _setting


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
    streaming: bool = _setting(
        False, "Read the data set row by row in training, without storing it; the run's length is max_steps."
    )
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
    student_model_args: str | None = _setting(
        None, "Arguments for timm.create_model of a new student, or for the config of one with masks or boxes, as JSON."
    )
    trust_remote_code: bool = _setting(False, "Run code that comes with the student's repository.")

"""Students that answer with masks, boxes or depths, from the Hub or a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForDepthEstimation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..features.architecture import head_paths
from ..utils.safetensors_only import check_source
from .loading import check_fit, explained, locate
from .model_size import check_size

# What the names of such models' classes say; not all of them can be students.
DENSE = ("Segmentation", "ObjectDetection", "DepthEstimation")
_CLASSES = {
    "ForSemanticSegmentation": AutoModelForSemanticSegmentation,
    "ForObjectDetection": AutoModelForObjectDetection,
    "ForDepthEstimation": AutoModelForDepthEstimation,
}


def dense_task(architectures: Sequence[str] | None) -> str | None:
    """ "ForSemanticSegmentation", "ForObjectDetection" or "ForDepthEstimation", by a config's names; None: another."""
    return next((end for name in architectures or () for end in _CLASSES if str(name).endswith(end)), None)


def load_dense_student(
    source: str | os.PathLike, *, from_scratch: bool = False, trust_remote_code: bool = False, **changes: Any
) -> PreTrainedModel:
    """A segmentation, detection or depth model as a student: its weights are the start.

    Args:
        source: A hub id ("org/name", "org/name@revision") or a folder.
        from_scratch: Take the architecture only, with new random weights.
        trust_remote_code: Run code that comes with the repository.
        changes: What of its config is another, such as `num_labels`: a head of another size is new.

    Raises:
        ValueError: there is no such model, it answers with something else, has no safetensors weights or others than
            its config describes.
    """
    name = os.fspath(source)
    with explained(name, {}, what="student"):
        place = locate(name, {}, what="student")
        pinned = {} if place.revision is None else {"revision": place.revision}
        content = PreTrainedConfig.get_config_dict(place.path, **pinned)[0]
        task = dense_task(content.get("architectures"))
        if task is None:
            known = ", ".join(f"...{end}" for end in _CLASSES)
            asked = ", ".join(map(str, content.get("architectures") or ["unknown"]))
            raise ValueError(f"the student {name} is a {asked}, which this package does not train: legal are {known}")
        options = {**pinned, "trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(place.path, **options, **changes)
        if from_scratch:
            return _CLASSES[task].from_config(config, trust_remote_code=trust_remote_code)
        shapes = check_source(place.path, content, dict(options), what="student")
        check_size(_CLASSES[task], config, shapes, source=name)
        options |= {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        student, report = _CLASSES[task].from_pretrained(place.path, config=config, **options)
        check_fit(student, report, name=name, what="student", heads=[path for path in head_paths(student) if path])
        return student

"""Image processors of the Hub, also those whose files name a class of another version of transformers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import AutoConfig, BaseImageProcessor
from transformers.image_processing_base import ImageProcessingMixin

logger = logging.getLogger(__name__)

_NAMES = ("image_processor_type", "feature_extractor_type")


def image_processor(path: str, **options: Any) -> BaseImageProcessor:
    """The image processor of a checkpoint, as `AutoImageProcessor` loads it.

    Where its files name a class that the installed transformers does not have, it is the class of the model's family,
    with the settings of the files; a warning says so.

    Args:
        path: A folder or a hub id.
        options: What `from_pretrained` takes: revision, token, trust_remote_code, ...

    Raises:
        ValueError: it has none, or one of an unknown class and family.
        OSError: the files are not there or cannot be reached.
    """
    try:
        return transformers.AutoImageProcessor.from_pretrained(path, **options)
    except ValueError:
        found = _of_family(path, options)
        if found is None:
            raise
        return found


def _of_family(path: str, options: Mapping[str, Any]) -> BaseImageProcessor | None:
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING  # not before it is needed

    hub = {name: value for name, value in options.items() if name != "trust_remote_code"}
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(path, **hub)
        config = AutoConfig.from_pretrained(path, **options)
    except (OSError, ValueError):
        return None
    named = next((settings[name] for name in _NAMES if isinstance(settings.get(name), str)), None)
    if named is None or "auto_map" in settings or type(config) not in IMAGE_PROCESSOR_MAPPING:
        return None
    kinds: Any = IMAGE_PROCESSOR_MAPPING[type(config)]
    kinds = kinds.values() if isinstance(kinds, Mapping) else kinds
    kind = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseImageProcessor)), None)
    if kind is None:
        return None
    logger.warning(
        "The files of %s name the image processor %s, which this version of transformers does not have: %s is used, "
        "with their settings.",
        path,
        named,
        kind.__name__,
    )
    made = kind.from_dict({name: value for name, value in settings.items() if name not in _NAMES})
    return made[0] if isinstance(made, tuple) else made

"""Transfer the representation of a Hub teacher to a student by optimal transport between neurons.

Names are imported when they are first used, so that `hf_reprot.ot` and `hf_reprot.losses` work without transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from .config import OTTransferConfig
    from .data import ImageCollator, load_image_dataset
    from .losses import L2SP, LogitDistillation, RepresentationTransport
    from .ot.latent import LatentTransport
    from .student import create_timm_student, load_student, wrap_timm
    from .teacher import Teacher
    from .trainer import OTTransferTrainer
    from .training.replay import FeatureReplayCallback

_HOMES = {
    "FeatureReplayCallback": "training.replay",
    "L2SP": "losses",
    "ImageCollator": "data",
    "LatentTransport": "ot.latent",
    "LogitDistillation": "losses",
    "OTTransferConfig": "config",
    "OTTransferTrainer": "trainer",
    "RepresentationTransport": "losses",
    "Teacher": "teacher",
    "create_timm_student": "student",
    "load_image_dataset": "data",
    "load_student": "student",
    "wrap_timm": "student",
}

__all__ = [
    "L2SP",
    "FeatureReplayCallback",
    "ImageCollator",
    "LatentTransport",
    "LogitDistillation",
    "OTTransferConfig",
    "OTTransferTrainer",
    "RepresentationTransport",
    "Teacher",
    "create_timm_student",
    "load_image_dataset",
    "load_student",
    "wrap_timm",
]


__getattr__, __dir__ = lazy_names(__name__, _HOMES)

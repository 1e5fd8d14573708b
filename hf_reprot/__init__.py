"""Transfer the representation of a Hub teacher to a student by optimal transport between neurons.

Names are imported when they are first used, so that `hf_reprot.ot` and `hf_reprot.losses` work without transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .utils import moved
from .utils.lazy import lazy_names

if TYPE_CHECKING:
    from .config import OTTransferConfig
    from .data import ImageCollator, load_image_dataset
    from .experimental.latent import LatentTransport
    from .experimental.latent.replay import FeatureReplayCallback
    from .losses import L2SP, GaussianTransport, LogitDistillation, RepresentationTransport
    from .models.student import create_timm_student, load_student, wrap_timm
    from .models.teacher import Teacher
    from .trainer import OTTransferTrainer

__version__ = "0.2.0.dev0"

_HOMES = {
    "FeatureReplayCallback": "experimental.latent.replay",
    "GaussianTransport": "losses",
    "L2SP": "losses",
    "ImageCollator": "data",
    "LatentTransport": "experimental.latent",
    "LogitDistillation": "losses",
    "OTTransferConfig": "config",
    "OTTransferTrainer": "trainer",
    "RepresentationTransport": "losses",
    "Teacher": "models.teacher",
    "create_timm_student": "models.student",
    "load_image_dataset": "data",
    "load_student": "models.student",
    "wrap_timm": "models.student",
}

__all__ = [
    "L2SP",
    "FeatureReplayCallback",
    "GaussianTransport",
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

moved.install()

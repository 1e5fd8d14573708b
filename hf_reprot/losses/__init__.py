"""Losses for any PyTorch loop: each takes student and teacher tensors and returns a `LossOutput`."""

from .distillation import LogitDistillation
from .l2sp import L2SP
from .output import LossOutput
from .partial import PartialDistillation
from .running import RunningMoments
from .selection import NeuronSelection
from .topk import SoftKNNHead, soft_topk_loss
from .transport import RepresentationTransport

__all__ = [
    "L2SP",
    "LogitDistillation",
    "LossOutput",
    "NeuronSelection",
    "PartialDistillation",
    "RepresentationTransport",
    "RunningMoments",
    "SoftKNNHead",
    "soft_topk_loss",
]

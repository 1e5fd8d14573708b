"""Losses for any PyTorch loop: each takes student and teacher tensors and returns a `LossOutput`."""

from ..ot.moments import RunningMoments
from ..utils.moved import moved_name
from .common import LossOutput
from .distillation import LogitDistillation
from .gaussian import GaussianTransport
from .l2sp import L2SP
from .partial import PartialDistillation
from .transport import RepresentationTransport

__all__ = [
    "L2SP",
    "GaussianTransport",
    "LogitDistillation",
    "LossOutput",
    "PartialDistillation",
    "RepresentationTransport",
    "RunningMoments",
]


def __getattr__(name: str) -> object:
    return moved_name(__name__, name)

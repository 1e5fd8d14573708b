"""Baselines that transport is compared with: established losses on features and logits, by their papers' formulas."""

import importlib

from ...settings import names
from .alignment import LinearCKA, linear_cka
from .attention import AttentionTransfer
from .base import FeatureLoss
from .contrastive import ContrastiveDistillation
from .decoupled import DecoupledDistillation
from .delta import DELTA
from .fitnet import FitNet
from .redundancy import RedundancySuppression
from .relational import RelationalDistillation
from .selectivity import NeuronSelectivityTransfer
from .similarity import SimilarityPreserving
from .spectral import BatchSpectralShrinkage
from .wasserstein import GaussianWasserstein


def _class(place: str) -> type[FeatureLoss]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f".{module}", __name__), name)


# By the names that `feature_loss` takes.
FEATURE_LOSSES = {name: _class(place) for name, (place, _) in names.FEATURE_LOSSES.items()}

__all__ = [
    "DELTA",
    "FEATURE_LOSSES",
    "AttentionTransfer",
    "BatchSpectralShrinkage",
    "ContrastiveDistillation",
    "DecoupledDistillation",
    "FeatureLoss",
    "FitNet",
    "GaussianWasserstein",
    "LinearCKA",
    "NeuronSelectivityTransfer",
    "RedundancySuppression",
    "RelationalDistillation",
    "SimilarityPreserving",
    "linear_cka",
]

"""Baselines that transport is compared with: established losses on features and logits, by their papers' formulas."""

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

# By the names that `feature_loss` takes.
FEATURE_LOSSES: dict[str, type[FeatureLoss]] = {
    "fitnet": FitNet,
    "attention": AttentionTransfer,
    "nst": NeuronSelectivityTransfer,
    "rkd": RelationalDistillation,
    "similarity": SimilarityPreserving,
    "cka": LinearCKA,
    "crd": ContrastiveDistillation,
    "wkd": GaussianWasserstein,
    "rsd": RedundancySuppression,
}

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

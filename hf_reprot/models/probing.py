"""What a frozen representation is worth for telling classes: nearest neighbours and a linear probe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .head import cross_validated

__all__ = ["FeatureQuality", "default_neighbours", "measure_features", "nearest"]

MOST_NEIGHBOURS = 20
_TEMPERATURE = 0.07
_ROWS = 2048  # similarities at a time
# A probe is fitted at every evaluation: two halves and few strengths cost an eighth of what fitting a head does.
_STRENGTHS, _FOLDS = (1e-2, 1e-1, 1.0), 2
_UNLABELLED = -100


@dataclass(frozen=True)
class FeatureQuality:
    """How well classes can be read off features, with nothing of the model trained.

    Attributes:
        samples: Number of labelled samples.
        neighbours: k.
        knn_accuracy: Share of samples whose class their k nearest neighbours among the others vote for.
        neighbour_purity: Mean share of the k nearest neighbours that have the sample's class.
        probe_accuracy: Share of right answers of a logistic regression, fitted to one half of the samples and asked
            about the other, and the other way round; None where no class has two samples.
    """

    samples: int
    neighbours: int
    knn_accuracy: float
    neighbour_purity: float
    probe_accuracy: float | None

    def metrics(self) -> dict[str, float]:
        """The measures by name."""
        found = {"knn_accuracy": self.knn_accuracy, "neighbour_purity": self.neighbour_purity}
        return found | ({"probe_accuracy": self.probe_accuracy} if self.probe_accuracy is not None else {})


def default_neighbours(samples: int, classes: int) -> int:
    """k: half of a class's mean number of samples, from 1 to 20, so that a sample's own class can win the vote."""
    return max(1, min(MOST_NEIGHBOURS, samples // (2 * classes)))


def nearest(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest neighbours of every sample among the others, by cosine.

    Args:
        features: (n, d). What is not finite counts as 0.
        k: From 1 to n - 1.

    Returns:
        Similarities (n, k), the highest first, and row numbers (n, k).

    Raises:
        ValueError: a k that is not legal.
    """
    n = len(features)
    if not 1 <= k < n:
        raise ValueError(f"k must be from 1 to {n - 1} (the other samples), got {k}")
    unit = F.normalize(features.float().nan_to_num(0.0, 0.0, 0.0), dim=1)
    found = []
    for start in range(0, n, _ROWS):
        similar = unit[start : start + _ROWS] @ unit.T  # (rows, n)
        rows = torch.arange(len(similar), device=similar.device)
        similar[rows, rows + start] = -torch.inf  # itself
        found.append(similar.topk(k, dim=1))
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def measure_features(features: Tensor, labels: Tensor, k: int | None = None) -> FeatureQuality | None:
    """k-NN accuracy (leave-one-out), neighbour purity and the accuracy of a linear probe.

    Neighbours vote with the weight exp(similarity / 0.07), as in Wu et al., "Unsupervised Feature Learning via
    Non-Parametric Instance Discrimination" (CVPR 2018), and in DINO (Caron et al., ICCV 2021). The probe is the
    regression that `fit_head` uses, on features of one scale, with the penalty of three that is best on what is left
    out; on 5,000 samples at most.

    Args:
        features: (n, d), one row a sample.
        labels: (n,) whole numbers. -100 and -1: not known, and left out.
        k: Number of neighbours; None: `default_neighbours`.

    Returns:
        None where there are no two classes among the labelled samples, or fewer than three of these.

    Raises:
        ValueError: labels that are not one whole number a sample, or a k that is not legal.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> measure_features(features, torch.tensor([0, 0, 1, 1])).knn_accuracy
        1.0
    """
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels must be one whole number a sample, got {labels.dtype} of shape {tuple(labels.shape)} for "
            f"{len(features)} samples"
        )
    known = (labels != _UNLABELLED) & (labels != -1)
    features, labels = features[known], labels[known].to(features.device)
    classes, numbers = labels.unique(return_inverse=True)
    n, count = len(labels), len(classes)
    if count < 2 or n < 3:
        return None
    k = default_neighbours(n, count) if k is None else k
    similar, rows = nearest(features, k)
    theirs = numbers[rows]  # (n, k)
    votes = torch.zeros(n, count, dtype=torch.float64, device=features.device)
    # Less the highest, so that no weight overflows: a constant factor of a sample's votes.
    votes.scatter_add_(1, theirs, ((similar - similar[:, :1]).double() / _TEMPERATURE).exp())
    right = votes.argmax(1) == numbers
    purity = (theirs == numbers[:, None]).double().mean()
    probe = _probe(features.double().nan_to_num(0.0, 0.0, 0.0).cpu().numpy(), numbers.cpu().numpy(), count)
    return FeatureQuality(n, k, float(right.double().mean()), float(purity), probe)


def _probe(features: np.ndarray, numbers: np.ndarray, classes: int) -> float | None:
    targets = np.eye(classes)[numbers]
    return cross_validated(features, targets, strengths=_STRENGTHS, folds=_FOLDS)[1]

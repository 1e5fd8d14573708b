"""From cached features to what is fitted: checked, each once, in few dimensions, with the scales of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from ..semidiscrete import SemiDiscretePlan
from .neighbours import nearest_distances

# Draws that the typical gap between scores is taken from.
_GAP_DRAWS = 512


def checked(
    features: Tensor, labels: Tensor | None, held_out: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What `fit` is given, in float32 in one place; raises what it says."""
    for name, value in (("features", features), ("held_out", held_out)):
        if value is None and name == "held_out":
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = getattr(value, "dtype", type(value).__name__)
            raise TypeError(f"{name} must be a tensor of a floating point dtype, got {got}")
        if value.ndim != 2 or 0 in value.shape or value.shape[1] != features.shape[1]:
            raise ValueError(f"{name} must have shape (n, d), got {tuple(value.shape)}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} must be finite")
    if labels is not None:
        labels = torch.as_tensor(labels, device=features.device)
        if labels.is_floating_point() or labels.shape != features.shape[:1]:
            raise ValueError(
                f"labels must be {len(features)} whole numbers, got {tuple(labels.shape)} of {labels.dtype}"
            )
        labels = labels.long()
    held_out = None if held_out is None else held_out.detach().to(features.device, torch.float32)
    return features.detach().to(torch.float32), labels, held_out


def distinct(
    features: Tensor, index: Tensor, limit: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Features sorted by class, each once, with the share of its class: equal points would share one cell."""
    found, owners, weights = [], [], []
    for c in range(int(index.max()) + 1):
        part = features[index == c]
        if limit is not None and len(part) > limit:
            part = part[torch.randperm(len(part), generator=generator, device=part.device)[:limit]]
        part, counts = torch.unique(part, dim=0, return_counts=True)
        found.append(part)
        owners.append(index.new_full((len(part),), c))
        weights.append(counts / counts.sum())
    return torch.cat(found), torch.cat(owners), torch.cat(weights)


def project(features: Tensor, dimension: int | None) -> Tensor:
    """(n, k) The features in their first principal components."""
    centred = (features - features.mean(0)).double()
    n, d = centred.shape
    k = min(dimension or d, n, d)
    if k == d:
        return centred.to(features)
    if n < d:
        squares, directions = torch.linalg.eigh(centred @ centred.T)  # ascending
        return (directions[:, -k:] * squares[-k:].clamp_min(0).sqrt()).to(features)
    return (centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -k:]).to(features)


def gaps(plan: SemiDiscretePlan, generator: torch.Generator) -> Tensor:
    """(C,) Median gap between the best and the second best score; 1 for a class of one point."""
    if plan.points.shape[-2] == 1:
        return plan.offsets.new_ones(len(plan.offsets))
    noise = torch.randn(_GAP_DRAWS, plan.points.shape[-1], generator=generator, device=plan.points.device)
    gaps = []
    for c in range(len(plan.points)):
        top = (noise @ (plan.points[c] - plan.centre[c]).T + plan.offsets[c]).topk(2, dim=1).values
        gaps.append((top[:, 0] - top[:, 1]).median())
    return torch.stack(gaps).nan_to_num(1.0, 1.0, 1.0).clamp_min(1e-12)


def reach(features: Tensor, neighbours: int) -> Tensor:
    """() Median distance of a class's features to their neighbour of that rank, themselves not counted."""
    rank = min(neighbours + 1, len(features))
    return nearest_distances(features, features, rank).median()

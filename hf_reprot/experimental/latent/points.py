"""From cached features to what is fitted: checked, each once, in few dimensions, with the scales of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from .semidiscrete import SemiDiscretePlan

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


# Cells that are asked for each noise.
CELLS = 8


def mix(scores: Tensor, targets: Tensor, gap: Tensor, reach: Tensor, mixing: float) -> Tensor:
    """Points (m, d) for scores (m, n): that of the best cell, mixed with those of near cells whose points are near.

        T(z) = sum_j w_j y_j,   w_j ~ exp((s_j - s_best) / (mixing * gap))   over |y_j - y_best| <= reach

    A cell whose point lies far from the best one's takes no part, so that no bridge leads from mode to mode: the map
    still jumps where the points do. The idea is that of An et al. (AE-OT, ICLR 2020), who leave out facets by the
    angle between their cells' points; here the distance decides, and the weights come from the scores.

    Args:
        scores: (m, n), -inf for cells that cannot be drawn.
        targets: (n, d).
        gap: (m,) Typical gap between the best score and the second one.
        reach: (m,) Largest distance between points that are mixed.
        mixing: Blur in units of the gap; 0: no mixing.
    """
    if mixing == 0:
        return targets[scores.max(1).indices]
    top = scores.topk(min(CELLS, scores.shape[1]), dim=1)
    points = targets[top.indices]  # (m, cells, d)
    apart = (points - points[:, :1]).norm(dim=2)
    near = (apart <= reach[:, None]) & torch.isfinite(top.values)
    logits = (top.values - top.values[:, :1]) / (mixing * gap[:, None])
    weights = torch.softmax(torch.where(near, logits, -torch.inf), dim=1)
    return (weights[:, :, None] * points).sum(1)


# Entries of one table of distances.
_ENTRIES = 1 << 22


def nearest_distances(queries: Tensor, references: Tensor, rank: int = 1) -> Tensor:
    """(m,) Euclidean distance from each query (m, d) to its nearest reference (n, d), or to the `rank`-th nearest.

    From differences, not from |x|^2 + |y|^2 - 2xy, for the last step: a copy is at 0 to the last digit.

    Raises:
        ValueError: shapes that do not fit, or fewer references than `rank`.
    """
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1]:
        shapes = f"{tuple(queries.shape)} and {tuple(references.shape)}"
        raise ValueError(f"queries and references must be (m, d) and (n, d), got {shapes}")
    if not 1 <= rank <= len(references):
        raise ValueError(f"rank must be from 1 to the number of references, {len(references)}, got {rank}")
    centre = references.mean(0)
    queries, references = queries - centre, references - centre
    found = []
    for part in queries.split(max(_ENTRIES // len(references), 1)):
        # The product finds who is near; the difference says how near.
        near = torch.cdist(part, references).topk(rank, largest=False).indices[:, -1]
        found.append((part - references[near]).norm(dim=1))
    return torch.cat(found) if found else queries.new_zeros(0)


def neighbour_report(samples: Tensor, training: Tensor, held_out: Tensor | None = None) -> dict[str, float]:
    """What tells whether samples are copies: medians of distances to the nearest training and held-out features.

    Args:
        samples: (m, d).
        training: (n, d) Features that the generator was fitted on.
        held_out: (h, d) Features of the same law that it never saw; None: that half is left out.

    Returns:
        "sample_to_training", "copies" (share of samples that are a training feature, to 1e-5 of the typical distance
        between training features); with `held_out` also "sample_to_held_out", "held_out_to_training" (what fresh
        features have) and "ratio": the first over the last, 1 where samples are as far as fresh features, 0 for copies.
    """
    to_training = nearest_distances(samples, training)
    report = {"sample_to_training": to_training.median().item()}
    scale = (training - training.mean(0)).norm(dim=1).mean()
    report["copies"] = (to_training <= 1e-5 * scale).float().mean().item()
    if held_out is not None:
        report["sample_to_held_out"] = nearest_distances(samples, held_out).median().item()
        fresh = nearest_distances(held_out, training).median().item()
        report |= {"held_out_to_training": fresh, "ratio": report["sample_to_training"] / fresh if fresh > 0 else 0.0}
    return report

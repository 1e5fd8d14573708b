"""How near features lie to others: the memory of a generator, and what counts as near inside a class."""

from __future__ import annotations

import torch
from torch import Tensor

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

"""Layers to test with: rectified neurons driven by common factors, as a network's are."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_reprot.ot import neuron_cost


def layer(samples: int, neurons: int, *, factors: int = 12, seed: int = 0, mixing: int = 1) -> Tensor:
    """(samples, neurons) float64. `seed` draws the samples, `mixing` the neurons."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(samples, factors, generator=draw, dtype=torch.float64)
    weights = torch.Generator().manual_seed(1000 + mixing)
    mixed = hidden @ torch.randn(factors, neurons, generator=weights, dtype=torch.float64)
    noise = torch.randn(
        samples, neurons, generator=torch.Generator().manual_seed(7 * mixing + seed), dtype=torch.float64
    )
    return torch.relu(mixed + noise)


def cost_matrix(m: int, n: int, *, samples: int = 256, seed: int = 0, batch: int | None = None) -> Tensor:
    """(m, n), or (batch, m, n), standardised costs in float64."""
    if batch is not None:
        return torch.stack([cost_matrix(m, n, samples=samples, seed=seed + i) for i in range(batch)])
    return neuron_cost(layer(samples, m, seed=seed, mixing=1), layer(samples, n, seed=seed, mixing=2))


def weights(size: int, seed: int = 0) -> Tensor:
    """(size,) float64, positive, summing to 1, of different sizes."""
    w = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    return w / w.sum()

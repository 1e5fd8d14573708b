"""Keeps a gradient that is not finite away from the weights, and stops a run that has it again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


class GradientGuard:
    """Drops the gradient of a step where any of its numbers is not finite: the optimiser then changes nothing.

    Under DDP every process holds the same averaged gradient, and under FSDP the shards' verdicts are joined, so that
    all processes drop the same steps.

    Args:
        limit: Steps in a row after which `check` raises.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.streak = 0

    def check(self, model: nn.Module, *, sharded: bool = False) -> bool:
        """Call between the backward pass and the optimiser's step; returns whether the gradient was dropped.

        Args:
            model: The student.
            sharded: Each process holds a part of the gradient only: join the verdicts. Known by itself for DTensors.

        Raises:
            FloatingPointError: names parameters with such gradients.
        """
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        if not _any_lost(list(gradients.values()), sharded):
            self.streak = 0
            return False
        self.streak += 1
        if self.streak >= self.limit:
            lost = [name for name, gradient in gradients.items() if not torch.isfinite(_local(gradient)).all()]
            raise FloatingPointError(
                f"the gradient was not finite for {self.limit} steps in a row and was dropped each time; last in "
                f"{len(lost)} of {len(gradients)} parameters, among them {', '.join(lost[-3:])}. Lower the learning "
                "rate, train in bfloat16 or float32 rather than float16, or look for the layer or the sample that "
                "overflows"
            )
        for parameter in model.parameters():
            parameter.grad = None
        return True


def _any_lost(gradients: Sequence[Tensor], sharded: bool) -> bool:
    """Whether a number of a gradient is not finite; of sharded gradients, on any process."""
    sharded = sharded or any(isinstance(gradient, DTensor) for gradient in gradients)
    parts = [part for part in map(_local, gradients) if part.numel() > 0]
    lost = ~torch.isfinite(get_total_norm(parts, norm_type=math.inf)) if parts else torch.zeros((), dtype=torch.bool)
    if sharded and dist.is_initialized():
        everywhere = lost.float().to(gradients[0].device if gradients else lost.device)
        dist.all_reduce(everywhere, dist.ReduceOp.MAX)
        return bool(everywhere)
    return bool(lost)


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient

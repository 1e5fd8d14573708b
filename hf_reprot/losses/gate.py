"""Keeps what is not finite out of the gradient, without asking the device for an answer."""

from __future__ import annotations

import torch
from torch import Tensor


class GradientGate:
    """Lets a gradient through, or replaces it by 0, by a flag that may still fall after the forward pass.

    Multiplying a loss by 0 does not stop a NaN (0 * NaN is NaN), and testing values on the host stalls the device. The
    gate is the identity forward; backward it selects the gradient or zeros by the flag.
    """

    def __init__(self, device: torch.device):
        self.open = torch.ones((), dtype=torch.bool, device=device)

    def close_unless(self, condition: Tensor) -> None:
        """Closes the gate where the boolean scalar is False. A closed gate stays closed."""
        self.open = self.open & condition

    def __call__(self, x: Tensor) -> Tensor:
        return _Gated.apply(x, self)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gate: GradientGate) -> Tensor:
        ctx.gate = gate
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return torch.where(ctx.gate.open, gradient, torch.zeros((), dtype=gradient.dtype, device=gradient.device)), None

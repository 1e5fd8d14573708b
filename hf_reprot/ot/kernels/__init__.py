"""Sweeps as Triton kernels: imported only where Triton is, and used on CUDA (or in Triton's interpreter, by tests)."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

# A program holds whole rows: as many columns as fit into registers.
MOST_COLUMNS = 4096
# Kernels carry the potentials in float32 from sweep to sweep, good for marginals to about this L1 error.
FINEST_TOLERANCE = 3e-5


def runs_here(device: torch.device) -> bool:
    """Whether kernels can run on tensors of a device."""
    if importlib.util.find_spec("triton") is None:
        return False
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def takes(matrix: Tensor, tolerance: float) -> bool:
    """Whether the kernels are the best way to solve a batch (B, m, n) on an accelerator to a tolerance."""
    fits = matrix.shape[-1] <= MOST_COLUMNS and matrix.dtype == torch.float32 and tolerance >= FINEST_TOLERANCE
    return matrix.is_cuda and fits and runs_here(matrix.device)  # never in the interpreter


def refusal(matrix: Tensor) -> str | None:
    """Why the kernels cannot take a batch at all; None if they can."""
    if not runs_here(matrix.device):
        return f"backend='triton' needs Triton and a CUDA device, got a tensor on {matrix.device}"
    if matrix.dtype != torch.float32:
        return f"backend='triton' computes in float32, got costs in {matrix.dtype}"
    if matrix.shape[-1] > MOST_COLUMNS:
        return f"backend='triton' takes up to {MOST_COLUMNS} columns, got {matrix.shape[-1]}"
    return None

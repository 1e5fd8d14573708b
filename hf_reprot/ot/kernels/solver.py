"""Sinkhorn and proximal steps by Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernel import fill_kernel, marginal_error, scale_to_plan, starting_potentials, with_exact_rows
from ..solution import Limits, Solution
from .launch import run_sweeps


def sinkhorn_triton(
    matrix: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor,
    limits: Limits,
    g: Tensor | None = None,
    *,
    small: bool | None = None,
) -> Solution:
    """Solves a batch (B, m, n), float32; arguments as in `sinkhorn_host`. Never waits for the device, except in the
    first call of a shape with large pairs.

    Args:
        small: True: one program a pair; False: the whole device on every pair; None: by the size.
    """
    f, g = starting_potentials(matrix, g)
    f, g, inverse = f.contiguous().clone(), g.contiguous().clone(), 1 / epsilon
    error, sweeps = run_sweeps(
        matrix,
        a,
        b,
        f,
        g,
        inverse,
        tolerance=limits.tolerance,
        most=limits.max_iterations,
        accelerate=limits.accelerate,
        small=small,
    )
    plan = _plan(matrix, a, b, f, g, inverse)
    # Of what the kernels found only the worse is believed: their own error knows no rounding of the potentials.
    error = torch.maximum(error, marginal_error(plan, a, b))
    return Solution(plan, f, g, error, sweeps.long(), error <= 1.1 * limits.tolerance)


def _plan(matrix: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, inverse: Tensor) -> Tensor:
    kernel = fill_kernel(torch.empty_like(matrix), matrix, f, g, inverse)
    return with_exact_rows(scale_to_plan(kernel, a, b), a)


class ProximalBlock:
    """The steps of `hf_reprot.ot.proximal`: sweeps whose kernel grows sharper, then some whose kernel stays.

    In the potentials' own units a proximal step is a sweep at a smaller epsilon, so that it needs no kernel of its own.
    The steps are those of the loop in torch.
    """

    def __init__(self, matrix: Tensor, a: Tensor, b: Tensor, beta: Tensor):
        self.matrix, self.a, self.b, self.beta = matrix, a, b, beta

    def run(self, f: Tensor, g: Tensor, sharpness: Tensor, sharpen: Tensor, steps: int, polish: int):
        f, g = f.contiguous().clone(), g.contiguous().clone()
        run_sweeps(
            *(self.matrix, self.a, self.b, f, g, sharpness / self.beta, sharpen / self.beta),
            tolerance=-1,
            most=steps + polish,
            growing=steps,
        )
        inverse = (sharpness + steps * sharpen) / self.beta
        plan = _plan(self.matrix, self.a, self.b, f, g, inverse)
        landed = g - torch.where(self.b > 0, plan.sum(-2) / self.b, 1.0).log() / inverse[:, None]
        return plan, f, g, landed, marginal_error(plan, self.a, self.b)

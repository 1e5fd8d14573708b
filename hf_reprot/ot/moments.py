"""Moments of two layers' neurons over common samples: all that a ground cost between neurons needs to know of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# Rows that are centred at a time: with many positions as samples, no second copy of the activations is made.
_ROWS = 8192


@dataclass
class PairMoments:
    """Counts, means and centred second moments of student neurons S (n, d_s) and teacher neurons T (n, d_t).

    Attributes:
        count: () Number of samples; a float, since forgetting makes it fractional.
        mean_s: (d_s,) Means of the student's neurons.
        mean_t: (d_t,) Means of the teacher's neurons.
        var_s: (d_s,) (1/n) sum_k (S_ki - mean_i)^2.
        var_t: (d_t,) The same of the teacher.
        cov: (d_s, d_t) (1/n) sum_k (S_ki - mean_i) (T_kj - mean_j).
    """

    count: Tensor
    mean_s: Tensor
    mean_t: Tensor
    var_s: Tensor
    var_t: Tensor
    cov: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The moments by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def detach(self) -> PairMoments:
        """The same numbers without a gradient."""
        return PairMoments(**{name: value.detach() for name, value in self.tensors().items()})

    def zeros_like(self) -> PairMoments:
        """Moments of nothing, of the same widths."""
        return PairMoments(**{name: torch.zeros_like(value) for name, value in self.tensors().items()})

    def is_finite(self) -> Tensor:
        """() Whether every number is finite; stays on the device."""
        return torch.stack([torch.isfinite(value).all() for value in self.tensors().values()]).all()

    def where(self, condition: Tensor, other: PairMoments) -> PairMoments:
        """These moments where the boolean scalar holds, else the other ones."""
        theirs = other.tensors()
        return PairMoments(**{n: torch.where(condition, value, theirs[n]) for n, value in self.tensors().items()})

    def decayed(self, momentum: float) -> PairMoments:
        """The same moments resting on `momentum` times as many samples."""
        return PairMoments(**{**self.tensors(), "count": self.count * momentum})

    def merge(self, other: PairMoments) -> PairMoments:
        """The moments of both sets of samples together (Chan, Golub, LeVeque, 1979)."""
        count = self.count + other.count
        share = torch.where(count > 0, other.count / count.clamp_min(torch.finfo(count.dtype).tiny), 0.0)
        shift_s, shift_t = other.mean_s - self.mean_s, other.mean_t - self.mean_t
        between = share * (1 - share)
        return PairMoments(
            count,
            self.mean_s + share * shift_s,
            self.mean_t + share * shift_t,
            torch.lerp(self.var_s, other.var_s, share) + between * shift_s.square(),
            torch.lerp(self.var_t, other.var_t, share) + between * shift_t.square(),
            torch.lerp(self.cov, other.cov, share) + between * torch.outer(shift_s, shift_t),
        )


@torch.no_grad()
def pair_moments(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> PairMoments:
    """Moments of two layers over the same samples, without a gradient (see `attach`).

    The samples are centred before they are multiplied, since |x|^2 + |y|^2 - 2 x.y loses all digits at a large offset,
    and what rounding left in the mean is corrected for afterwards.

    Args:
        student: (n, d_s), any float dtype; half precision is computed in float32.
        teacher: (n, d_t).
        weights: (n,) How much each sample counts, from 0 to 1; None: 1. The count is then their sum. A sample of weight
            0 is as if it were not there, whatever its values.
    """
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    if weights is not None:
        return _weighted_moments(student, teacher, weights.to(dtype))
    n = student.shape[0]
    share = 1.0 / max(n, 1)
    mean_s, mean_t = student.sum(0, dtype=dtype) * share, teacher.sum(0, dtype=dtype) * share
    cov = student.new_zeros(student.shape[1], teacher.shape[1], dtype=dtype)
    var_s, var_t = torch.zeros_like(mean_s), torch.zeros_like(mean_t)
    rest_s, rest_t = torch.zeros_like(mean_s), torch.zeros_like(mean_t)
    half = _half_operands(student, teacher)
    for rows in _row_blocks(n):
        s, t = student[rows].to(dtype) - mean_s, teacher[rows].to(dtype) - mean_t
        _add_product(cov, s.t(), t, share, half)
        rest_s.add_(s.sum(0), alpha=share)
        rest_t.add_(t.sum(0), alpha=share)
        var_s.add_(s.square_().sum(0), alpha=share)
        var_t.add_(t.square_().sum(0), alpha=share)
    cov.addr_(rest_s, rest_t, alpha=-1)
    var_s = (var_s - rest_s.square()).clamp_min_(0)
    var_t = (var_t - rest_t.square()).clamp_min_(0)
    count = torch.full((), float(n), dtype=dtype, device=student.device)
    return PairMoments(count, mean_s + rest_s, mean_t + rest_t, var_s, var_t, cov)


def _weighted_moments(student: Tensor, teacher: Tensor, weights: Tensor) -> PairMoments:
    """As without weights. Only the weights' proportions count, and a row of weight 0 is not looked at."""
    count = weights.sum()
    share = weights / count.clamp_min(torch.finfo(weights.dtype).tiny)  # (n,)
    cov = weights.new_zeros(student.shape[1], teacher.shape[1])
    mean_s, mean_t = weights.new_zeros(student.shape[1]), weights.new_zeros(teacher.shape[1])
    var_s, var_t = torch.zeros_like(mean_s), torch.zeros_like(mean_t)
    rest_s, rest_t = torch.zeros_like(mean_s), torch.zeros_like(mean_t)
    half = _half_operands(student, teacher)
    blocks = list(_row_blocks(student.shape[0]))
    for mean, neurons in ((mean_s, student), (mean_t, teacher)):
        for rows in blocks:
            mean.add_(share[rows] @ _counted(neurons[rows].to(weights), weights[rows]))
    for rows in blocks:
        s, t = (
            _counted(neurons[rows].to(weights) - mean, weights[rows])
            for neurons, mean in ((student, mean_s), (teacher, mean_t))
        )
        w = share[rows]
        _add_product(cov, (w[:, None] * s).t(), t, 1.0, half)
        rest_s.add_(w @ s)
        rest_t.add_(w @ t)
        var_s.add_(w @ s.square_())
        var_t.add_(w @ t.square_())
    cov.addr_(rest_s, rest_t, alpha=-1)
    var_s = (var_s - rest_s.square()).clamp_min_(0)
    var_t = (var_t - rest_t.square()).clamp_min_(0)
    return PairMoments(count, mean_s + rest_s, mean_t + rest_t, var_s, var_t, cov)


def _counted(rows: Tensor, weights: Tensor) -> Tensor:
    """The rows (k, d), 0 where the weight (k,) is: 0 times what is not finite is no number."""
    return torch.where(weights[:, None] != 0, rows, 0.0)


def attach(
    moments: PairMoments,
    student: Tensor,
    teacher: Tensor,
    *,
    gradient_scale: float = 1.0,
    weights: Tensor | None = None,
) -> PairMoments:
    """Connects moments to the activations that they were computed from, so that gradients flow to these.

    The moments may be those of more samples than the activations given here (other processes hold the rest): the
    gradient is that of the whole in the local samples, and needs no exchange.

        dL/dS = (1/n) [ (T - mean_t) (dL/dcov)' + 2 (S - mean_s) diag(dL/dvar_s) + dL/dmean_s ]

    Args:
        moments: Without a gradient.
        student: (k, d_s) Local samples.
        teacher: (k, d_t) Local samples.
        gradient_scale: Factor of the gradient; the number of processes where gradients are averaged over them.
        weights: (k,) How much each local sample counted; None: 1. Row k of the gradient has it as a factor.
    """
    if not (student.requires_grad or teacher.requires_grad):
        return moments
    mean_s, mean_t, var_s, var_t, cov = _Attach.apply(
        student,
        teacher,
        moments.count,
        moments.mean_s,
        moments.mean_t,
        moments.var_s,
        moments.var_t,
        moments.cov,
        gradient_scale,
        weights,
    )
    return PairMoments(moments.count, mean_s, mean_t, var_s, var_t, cov)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, count, mean_s, mean_t, var_s, var_t, cov, gradient_scale, weights):
        ctx.save_for_backward(student, teacher, count, mean_s, mean_t, weights)
        ctx.gradient_scale = gradient_scale
        return tuple(x.view_as(x) for x in (mean_s, mean_t, var_s, var_t, cov))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_mean_s, d_mean_t, d_var_s, d_var_t, d_cov):
        student, teacher, count, mean_s, mean_t, weights = ctx.saved_tensors
        factor = ctx.gradient_scale / count.clamp_min(torch.finfo(count.dtype).tiny)
        d_student = d_teacher = None
        if ctx.needs_input_grad[0]:
            d_student = _gradient(student, teacher, mean_s, mean_t, d_mean_s, d_var_s, d_cov.t(), factor, weights)
        if ctx.needs_input_grad[1]:
            d_teacher = _gradient(teacher, student, mean_t, mean_s, d_mean_t, d_var_t, d_cov, factor, weights)
        return d_student, d_teacher, *[None] * 8


def _gradient(
    x: Tensor,
    y: Tensor,
    mean_x: Tensor,
    mean_y: Tensor,
    d_mean: Tensor,
    d_var: Tensor,
    d_cov: Tensor,
    factor: Tensor,
    weights: Tensor | None,
) -> Tensor:
    """Gradient in x (n, d_x), of the moments with y (n, d_y); `d_cov` is (d_y, d_x). One product of matrices."""
    # Strides of an expanded input must not reach the gradient: every row has one of its own.
    gradient = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    d_cov = d_cov * factor
    d_var, d_mean = 2 * factor * d_var, factor * d_mean
    half = _half_operands(x, y)
    for rows in _row_blocks(x.shape[0]):
        centred = x[rows].to(mean_x.dtype) - mean_x
        block = torch.addcmul(d_mean, centred, d_var)
        _add_product(block, y[rows].to(mean_y.dtype) - mean_y, d_cov, 1.0, half)
        if weights is not None:
            share = weights[rows].to(block)
            block = _counted(block * share[:, None], share)
        gradient[rows] = block.to(x.dtype)
    return gradient


def _half_operands(x: Tensor, y: Tensor) -> bool:
    """Whether products may have bfloat16 operands, summed up in float32: on CUDA, where both layers had no more digits
    to begin with. They are centred in float32 before."""
    return x.is_cuda and x.dtype == y.dtype == torch.bfloat16


def _add_product(out: Tensor, x: Tensor, y: Tensor, alpha: float, half: bool) -> None:
    """out += alpha x y, in place."""
    if half:
        out.add_(_half_product(x.bfloat16(), y.bfloat16()), alpha=alpha)
    else:
        out.addmm_(x, y, alpha=alpha)


def _half_product(x: Tensor, y: Tensor) -> Tensor:
    return torch.mm(x, y, out_dtype=torch.float32)


def _row_blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, _ROWS):
        yield slice(start, start + _ROWS)


class RunningMoments:
    """Exponentially forgetting moments of one layer pair.

    After each batch: running <- momentum * running (+) batch, where (+) merges two sets of samples exactly and
    `momentum *` scales the count of the old one. In a steady state the moments rest on n / (1 - momentum) samples:
    with n = 32 and momentum 0.95, on 640. Why it matters: among 2048 neurons, pure noise already shows a best
    |correlation| of 0.57 at n = 32, and of 0.11 at n = 1024.

    Args:
        momentum: In [0, 1). 0 keeps the last batch only.
    """

    def __init__(self, momentum: float):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        self.momentum = float(momentum)
        self.moments: PairMoments | None = None

    def update(self, batch: PairMoments, keep: Tensor | None = None) -> PairMoments:
        """Takes in one batch and returns the running moments, detached.

        Args:
            batch: The batch's moments, already merged over processes where there are several.
            keep: Boolean scalar tensor; where False the batch is left out (its values were not finite).
        """
        batch = batch.detach()
        if self.moments is None:
            # Start from nothing rather than from the batch, so that a batch to be left out leaves nothing behind.
            self.moments = batch.decayed(0.0)
        merged = self.moments.decayed(self.momentum).merge(batch)
        finite = merged.is_finite()  # the square of a shift may overflow where the shift does not
        self.moments = merged.where(finite if keep is None else keep & finite, self.moments)
        return self.moments

    def state_dict(self) -> dict[str, Tensor]:
        """The moments as tensors, for a checkpoint; empty before the first batch."""
        return {} if self.moments is None else self.moments.tensors()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        self.moments = PairMoments(**state) if state else None

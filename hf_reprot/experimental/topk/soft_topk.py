"""Which k of n: a differentiable answer by optimal transport between scores and the marks "in" and "out"."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ...ot.gradients import differentiable_plan
from ...ot.solve import solve

# Steps of the root finder. The first ones each leave a third of the error, at most log(2n); the others square it.
_SHRINK, _NEWTON = 4, 6
_SORTED_SWEEPS = 5_000


def soft_topk(scores: Tensor, k: int, epsilon: float, *, sorted: bool = False) -> Tensor:
    """Soft indicators of the k largest scores: between 0 and 1, summing to k, differentiable.

    Entropic transport carries n scores of weight 1/n each to the mark 1 (weight k/n) and the mark 0, at cost (score -
    mark)^2; A_i is n times what score i sends to 1. The costs of the two marks differ by 1 - 2 s_i, so that the plan
    has a closed form up to one number t:

        A_i = sigmoid((2 s_i + t) / eps),   t such that sum_i A_i = k
        dA/ds = (2/eps) (diag(w) - w w' / sum w),   w = A (1 - A)

    It is exact at every `epsilon`, needs no sweeps, and does not depend on an offset of the scores. Where the gap
    between the k-th and the next score is large beside `epsilon`, A is the hard indicator, and its gradient vanishes:
    `epsilon` against the scale of the scores is the knob that matters.

    With `sorted`, the marks are k, k - 1, ..., 0, the first k of weight 1/n: column j of the result tells which score
    is the (j + 1)-th largest. There is no closed form then; the plan comes from `solve` and its gradient from the
    optimality conditions, a k x k system. Sweeps grow in number as 1 / epsilon: at an `epsilon` far below the gaps
    between the scores the sums are right, but the columns may stay blurred.

    Args:
        scores: (..., n), any float dtype; half precision is computed in float32. Rows are problems of their own. -inf
            is never chosen, as long as k scores are finite.
        k: How many, from 1 to n.
        epsilon: Entropic strength, in units of that cost: halving it does what doubling the scores does.
        sorted: Tell the first from the second, ..., from the k-th.

    Returns:
        A (..., n); with `sorted`, (..., n, k), every column summing to 1. First derivatives only.

    Raises:
        TypeError: scores are not of a floating point dtype.
        ValueError: no scores, a `k` outside of 1..n, or an `epsilon` that is not above 0.

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.topk.soft_topk import soft_topk
        >>> soft_topk(torch.tensor([0.1, 0.9, 0.5, 0.4]), k=2, epsilon=0.01).round(decimals=3)
        tensor([0., 1., 1., 0.])
        >>> soft_topk(torch.tensor([0.1, 0.9, 0.5, 0.4]), k=2, epsilon=0.5).round(decimals=3)
        tensor([0.1870, 0.8490, 0.5320, 0.4320])

    References: the operator: Xie et al., "Differentiable Top-k with Optimal Transport", NeurIPS 2020 (the published
    code scales the cost by its largest entry in the whole batch and returns the smallest k; here a row stands for
    itself). Closed forms of this shape: Struski et al., "LapSum", 2025, arXiv 2503.06242.
    """
    check_topk(scores, k, epsilon)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if sorted:
        return _sorted_topk(scores, k, epsilon)
    return torch.sigmoid(topk_logits(scores, k, epsilon))


def topk_logits(scores: Tensor, k: int, epsilon: float) -> Tensor:
    """(2 s + t) / eps (..., n), of which `soft_topk` is the sigmoid: for losses that need its logarithm.

    Arguments as there, `scores` in float32 or float64. Where k is n, all are infinite.
    """
    if k == scores.shape[-1]:
        return torch.full_like(scores, torch.inf)
    return _TopkLogits.apply(scores, k, float(epsilon))


class _TopkLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: Tensor, k: int, epsilon: float) -> Tensor:
        ranked = scores.sort(dim=-1, descending=True).values
        last, next_one = ranked[..., k - 1 : k], ranked[..., k : k + 1]
        # Measured from the middle of the gap, where differences of floats are exact, t is of the size of log n.
        gap = (last - next_one).clamp_max(torch.finfo(scores.dtype).max)
        logits = (2 * (scores - last) + gap) / epsilon
        ranked = (2 * (ranked - last) + gap) / epsilon
        logits = logits - _threshold(ranked[..., :k], ranked[..., k:])
        ctx.save_for_backward(logits)
        ctx.epsilon = epsilon
        return logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_logits: Tensor):
        (logits,) = ctx.saved_tensors
        # w / sum w, also where every w has vanished
        log_w = F.logsigmoid(logits) + F.logsigmoid(-logits)
        share = torch.softmax(log_w, -1).nan_to_num(0.0)
        return (2 / ctx.epsilon) * (d_logits - share * d_logits.sum(-1, keepdim=True)), None, None


def _threshold(chosen: Tensor, others: Tensor) -> Tensor:
    """tau (..., 1) with sum sigmoid(x - tau) = k over both, for x measured from the middle of the gap between them.

    What the others take is what the chosen lack: h = log sum_others sigmoid(x - tau) - log sum_chosen sigmoid(tau - x)
    is 0. Its slope is -(mean of 1 - A over the others) - (mean of A over the chosen), which lies in [-2, -1] since
    every chosen A is at least every other; |h''| <= 1/2; and |tau| <= log(2n). So steps of h / 1.5 leave at most a
    third of the error each, and Newton's from an error e at most e^2 / 4: a fixed number of steps is enough, and the
    device is never asked.
    """
    tau = torch.zeros_like(chosen[..., :1])
    for step in range(_SHRINK + _NEWTON):
        taken, lacking = F.logsigmoid(others - tau), F.logsigmoid(tau - chosen)
        log_taken, log_lacking = taken.logsumexp(-1, keepdim=True), lacking.logsumexp(-1, keepdim=True)
        h = (log_taken - log_lacking).nan_to_num(0.0, 0.0, 0.0)  # k scores finite, all others -inf: nothing to balance
        if step < _SHRINK:
            tau = tau + h / 1.5
            continue
        free = ((taken - log_taken).exp() * torch.sigmoid(tau - others)).sum(-1, keepdim=True)
        held = ((lacking - log_lacking).exp() * torch.sigmoid(chosen - tau)).sum(-1, keepdim=True)
        tau = tau + h / (free + held).nan_to_num(1.0).clamp(1.0, 2.0)
    return tau


def _sorted_topk(scores: Tensor, k: int, epsilon: float) -> Tensor:
    n = scores.shape[-1]
    marks = torch.arange(k, 0 if k == n else -1, -1, dtype=scores.dtype, device=scores.device)
    weights = torch.full_like(marks, 1 / n).masked_fill_(marks == 0, (n - k) / n)
    # (s - mark)^2 less s^2 and mark^2, which do not depend on the match.
    centred = scores - scores.mean(-1, keepdim=True).detach()
    M = -2 * marks[:, None] * centred[..., None, :]  # (..., k + 1, n): the marks' sums are exact
    tolerance = 1e-12 if scores.dtype == torch.float64 else 1e-5  # close to what sums can be right to
    plan = solve(
        M.detach(), weights, None, epsilon=epsilon, tolerance=tolerance, max_iterations=_SORTED_SWEEPS, backend="torch"
    ).plan
    return n * differentiable_plan(M, plan, epsilon)[..., :k, :].mT


def check_topk(scores: Tensor, k: int, epsilon: float) -> None:
    """Raises what `soft_topk` says."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise TypeError(
            f"scores must be a tensor of a floating point dtype, got {getattr(scores, 'dtype', type(scores).__name__)}"
        )
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise ValueError(f"scores must have shape (..., n) with n at least 1, got {tuple(scores.shape)}")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= scores.shape[-1]:
        raise ValueError(f"k must be a whole number from 1 to the number of scores, {scores.shape[-1]}, got {k}")
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon must be a finite number above 0, got {epsilon}")

"""Whatever is handed in, the loss is finite and right, or the input is refused or flagged: never NaN, never a crash.

A quick share runs by default. The whole run: `HF_REPROT_HOSTILE_CASES=10000 pytest tests/losses/test_hostile.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hf_reprot.losses import RepresentationTransport, RunningMoments

CASES = int(os.environ.get("HF_REPROT_HOSTILE_CASES", "200"))
hostile = settings(
    max_examples=CASES, deadline=None, derandomize=CASES <= 200, suppress_health_check=list(HealthCheck), database=None
)

pytestmark = pytest.mark.timeout(300 + CASES // 5)

CONTENTS = ("normal", "constant", "zero", "duplicates", "offset", "half constant", "one outlier", "nan", "inf", "huge")
LAYOUTS = ("contiguous", "transposed", "strided", "expanded rows", "expanded neurons", "from an offset")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Side:
    content: str
    layout: str
    dtype: torch.dtype
    scale: float
    requires_grad: bool

    def make(self, n: int, d: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, d, generator=generator, dtype=torch.float64)
        if self.content == "constant":
            x = torch.full_like(x, 3.0)
        elif self.content == "zero":
            x = torch.zeros_like(x)
        elif self.content == "duplicates" and d:
            x = x[:, :1].repeat(1, d)
        elif self.content == "offset":
            x = x + 1e6
        elif self.content == "half constant":
            x[:, ::2] = -7.0
        elif self.content == "one outlier" and x.numel():
            x.view(-1)[0] = 1e4
        elif self.content in ("nan", "inf") and x.numel():
            x.view(-1)[-1] = float(self.content)
        elif self.content == "huge":
            x = x * 1e25
        return self._laid_out((x * self.scale).to(self.dtype)).requires_grad_(self.requires_grad)

    def _laid_out(self, x: torch.Tensor) -> torch.Tensor:
        n, d = x.shape
        if self.layout == "transposed":
            return x.t().contiguous().t()
        if self.layout == "strided":
            return torch.stack([x, torch.full_like(x, float("nan"))], dim=-1).flatten(1)[:, ::2]
        if self.layout == "expanded rows" and n:
            return x[:1].expand(n, d)
        if self.layout == "expanded neurons":
            return x[:, :1].expand(n, d)
        if self.layout == "from an offset":
            return torch.cat([torch.full((1, d), float("nan"), dtype=x.dtype), x])[1:]
        return x


sides = st.builds(
    Side,
    content=st.sampled_from(CONTENTS),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1.0, 1.0, 1.0, 1e-20, 1e-12, 1e-6, 1e6, 1e12, 1e20]),
    requires_grad=st.booleans(),
)
losses = st.fixed_dictionaries({
    "method": st.sampled_from(["sinkhorn", "sinkhorn", "proximal", "exact", "identity", "random", "independent"]),
    "standardize": st.booleans(),
    "debiased": st.booleans(),
    "dead_neurons": st.sampled_from(["keep", "ignore"]),
    "relative_epsilon": st.sampled_from([None, None, 1e-3, 0.1, 10.0]),
})  # fmt: skip


@hostile
@given(
    n=st.integers(0, 12),
    ds=st.integers(1, 8),
    dt=st.integers(1, 8),
    student=sides,
    teacher=sides,
    choices=losses,
    seed=st.integers(0, 1000),
)
@example(0, 1, 1, *[Side("normal", "contiguous", torch.float32, 1.0, True)] * 2, {"method": "sinkhorn"}, 0)
@example(8, 4, 4, *[Side("offset", "strided", torch.float32, 1.0, True)] * 2, {"method": "exact"}, 0)
@example(8, 4, 4, *[Side("normal", "contiguous", torch.float32, 1e20, True)] * 2, {"method": "sinkhorn"}, 0)
@example(8, 4, 4, *[Side("normal", "contiguous", torch.float32, 1e-20, True)] * 2, {"method": "sinkhorn"}, 0)
def test_finite_and_right_or_refused(n, ds, dt, student, teacher, choices, seed):
    choices = {**choices, "debiased": choices.get("debiased", False) and choices["method"] == "sinkhorn"}
    S, T = student.make(n, ds, seed), teacher.make(n, dt, seed + 1)
    before = S.detach().clone(), T.detach().clone()
    loss = RepresentationTransport(**choices)
    if choices["method"] == "identity" and ds != dt:
        with pytest.raises(ValueError, match="equal widths"):
            loss(S, T)
        return
    out = loss(S, T)
    assert_sound(out, S, T)
    assert torch.equal(S.nan_to_num(), before[0].nan_to_num())
    assert torch.equal(T.nan_to_num(), before[1].nan_to_num())
    finite = bool(torch.isfinite(S).all() and torch.isfinite(T).all())
    if not finite and n:
        assert out.logs["dropped"] == 1
    if finite and _is_moderate(S) and _is_moderate(T):
        assert out.logs["dropped"] == 0
        assert_right(out, choices, S, T)


def assert_sound(out, S, T):
    assert out.loss.shape == ()
    assert torch.isfinite(out.loss)
    assert all(torch.isfinite(value) for value in out.logs.values())
    assert out.plan.shape == (S.shape[1], T.shape[1])
    if out.logs["dropped"] == 0:
        assert (out.plan >= 0).all()
        assert out.plan.sum().item() == pytest.approx(1, abs=1e-3)
    else:
        assert out.loss == 0
    if out.loss.requires_grad:
        out.loss.backward()
    for side in (S, T):
        if side.grad is not None:
            # a gradient that its dtype cannot hold is the dtype's: 1 / deviation of 1e-12 in half precision
            held = side.grad.abs() < torch.finfo(side.dtype).max
            assert not side.grad.isnan().any()
            assert held.all() or side.dtype == torch.float16
            assert out.logs["dropped"] == 0 or (side.grad == 0).all()


def _is_moderate(x: torch.Tensor) -> bool:
    """Whether squares neither overflow nor vanish in float32."""
    largest = x.detach().abs().max().item() if x.numel() else 0.0
    return largest == 0 or 1e-10 < largest < 1e15


def assert_right(out, choices, S, T):
    """The value is that of the same layers in float64, whose costs are computed the plain way."""
    X, Y = S.detach().double(), T.detach().double()
    if len(X) < 2:
        return
    if choices.get("standardize", True):
        X, Y = _standardised(X), _standardised(Y)
    if X is None or Y is None:
        return
    M = (X[:, :, None] - Y[:, None, :]).square().mean(0)
    cost, mean = (out.plan.double() * M).sum().item(), M.mean().item()
    eps = torch.finfo(out.plan.dtype).eps
    mean_rounding = eps * max(X.abs().max(), Y.abs().max()).item()
    variance = (X.var(0, correction=0).max() + Y.var(0, correction=0).max()).item()
    slack = 2e-3 * mean + 4 * mean_rounding * (mean_rounding + mean**0.5) + 8 * eps * variance
    assert out.logs["cost"].item() == pytest.approx(cost, rel=2e-3, abs=slack + 1e-30)


def _standardised(x: torch.Tensor) -> torch.Tensor | None:
    """None where it is a matter of rounding, or of the range of float32, whether a neuron is constant."""
    deviation = x.std(0, correction=0)
    constant = (x == x[:1]).all(0)
    if bool((~constant & (deviation < (1e-4 * x.abs().amax(0)).clamp_min(1e-12))).any()):
        return None
    return torch.where(constant, 0.0, (x - x.mean(0)) / deviation.clamp_min(1e-300))


@hostile
@given(
    batches=st.lists(st.tuples(st.integers(0, 9), sides, sides), min_size=1, max_size=4),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    momentum=st.sampled_from([0.0, 0.5, 0.999]),
    standardize=st.booleans(),
)
def test_moments_that_are_carried_stay_finite(batches, widths, momentum, standardize):
    loss, running = RepresentationTransport(standardize=standardize), [RunningMoments(momentum)]
    for i, (n, student, teacher) in enumerate(batches):
        S, T = student.make(n, widths[0], i), teacher.make(n, widths[1], i + 7)
        S, T = S.detach().float().requires_grad_(), T.detach().float()
        out = loss.forward_pairs([(S, T)], running=running)[0]
        assert_sound(out, S, T)
        assert all(torch.isfinite(value).all() for value in running[0].state_dict().values())


@hostile
@given(
    n=st.integers(0, 9),
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), sides, sides), min_size=1, max_size=4),
    plans=st.lists(st.sampled_from(["none", "random", "zero"]), min_size=4, max_size=4),
)
def test_one_bad_pair_leaves_the_others_alone(n, sizes, plans):
    loss = RepresentationTransport()
    pairs = [(s.make(n, ds, i), t.make(n, dt, i + 5)) for i, (ds, dt, s, t) in enumerate(sizes)]
    made = {"none": lambda ds, dt: None, "random": torch.rand, "zero": torch.zeros}
    outside = [made[kind](s.shape[1], t.shape[1]) for kind, (s, t) in zip(plans, pairs, strict=False)]
    outs = loss.forward_pairs(pairs, plans=outside)
    for out, (S, T), plan in zip(outs, pairs, outside, strict=True):
        alone = loss(S.detach(), T.detach(), plan=plan)
        slack = 1e-6 * (1 + abs(alone.logs["cost"].item()))
        assert out.loss.item() == pytest.approx(alone.loss.item(), rel=1e-3, abs=slack)
        assert out.logs["dropped"] == alone.logs["dropped"]
        assert torch.isfinite(out.loss)

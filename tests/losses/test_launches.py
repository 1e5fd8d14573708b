"""How much a step asks of an accelerator, shown without one: launches, and waits of the host for a value."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_reprot.losses import RepresentationTransport
from hf_reprot.ot import kernels
from hf_reprot.ot.moments import RunningMoments
from tests.accelerator import Copies, Launches, playing_accelerator, without_waits  # noqa: F401


@pytest.fixture
def launches(monkeypatch):
    """Triton's kernels are counted instead of run: what they write stays as it was, which is enough here."""
    solver = pytest.importorskip("hf_reprot.ot.kernels.solver", reason="needs Triton", exc_type=ImportError)
    counter = Launches()

    class Kernel:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *arguments, **settings: counter.counts.update([self.name])

    for name in ("solve_pairs", "sweep_rows", "add_columns", "move"):
        monkeypatch.setattr(solver, name, Kernel(name))
    return counter


def pairs(count: int, device: str = "cpu", n: int = 64, widths: tuple[int, int] = (24, 40)):
    return [
        (torch.randn(n, widths[0], device=device, requires_grad=True), torch.randn(n, widths[1], device=device))
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [1, 12])
def test_equal_pairs_launch_what_one_does(count, launches):
    with FakeTensorMode():
        layers = pairs(count, "cuda", 256, (384, 384))
        with launches:
            outputs = RepresentationTransport().forward_pairs(layers)
    assert len(outputs) == count
    assert launches.counts["solve_pairs"] == 1
    assert launches.total <= 150, launches.counts.most_common()


def test_their_backward_too(launches, accelerator, monkeypatch):
    monkeypatch.setattr(kernels, "takes", lambda matrix, tolerance: True)
    outputs = RepresentationTransport().forward_pairs(pairs(12))
    with launches:
        torch.autograd.backward([output.loss for output in outputs])
    assert launches.total <= 60, launches.counts.most_common()


def test_padded_shapes_share_the_solver(launches):
    with FakeTensorMode():
        layers = [*pairs(3, "cuda"), *pairs(3, "cuda", widths=(20, 40)), *pairs(3, "cuda", n=96)]
        with launches:
            RepresentationTransport().forward_pairs(layers)
    assert launches.counts["solve_pairs"] == 1
    assert launches.total <= 350, launches.counts.most_common()


SETTINGS = [
    {},
    {"standardize": False, "dead_neurons": "ignore"},
    {"debiased": True},
    {"method": "proximal"},
    {"method": "random"},
    {"method": "independent"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("given", ["nothing", "running", "teacher_weights", "sample_weights"])
def test_no_step_waits_once_its_shapes_are_known(settings, given, accelerator):
    loss, layers = RepresentationTransport(**settings), [*pairs(2), *pairs(1, n=32)]
    more = {
        "nothing": {},
        "running": {"running": [RunningMoments(0.9) for _ in layers]},
        "teacher_weights": {"teacher_weights": [torch.full((40,), 1 / 40) for _ in layers]},
        "sample_weights": {"sample_weights": [torch.rand(len(student)) for student, _ in layers]},
    }[given]
    copies = Copies()
    for known in (False, False, False, True):  # the first calls of a shape may ask how many sweeps it takes
        with without_waits(copies, known):
            sum(output.loss for output in loss.forward_pairs(layers, **more)).backward()
    assert all(student.grad.abs().sum() > 0 for student, _ in layers)


WAITS = {
    "bool": lambda x: bool(x.sum() > 0),
    "item": lambda x: x.sum().item(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu"),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "a list": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "cholesky": lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(4)),
    "solve": lambda x: torch.linalg.solve(x @ x.mT + torch.eye(4), x),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_seen(name):
    x, copies = torch.ones(4, 4), Copies()
    with without_waits(copies, False):
        WAITS[name](x)
    with pytest.raises(AssertionError), without_waits(copies, True):
        WAITS[name](x)


def test_what_has_arrived_may_be_read():
    copies = Copies()
    with without_waits(copies, True):
        answer = torch.ones(2).to("cpu", non_blocking=True)
        assert answer.tolist() == [1.0, 1.0]
        torch.ones(3)[torch.tensor([0, 2])] += 1

"""How much a step asks of an accelerator, shown without one: launches, and waits of the host for a value."""

import importlib
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_reprot.losses import RepresentationTransport
from hf_reprot.ot import kernels
from hf_reprot.ot.moments import RunningMoments

# What starts nothing on a device: views, memory, questions.
_NAMES = """
    view _unsafe_view t transpose expand unsqueeze squeeze slice select detach alias as_strided permute split unbind
    split_with_sizes empty empty_like empty_strided new_empty diagonal lift_fresh _reshape_alias is_same_size device
    promote_types is_contiguous size stride layout is_pinned
"""
_FREE = set(_NAMES.split())
_READS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_assert_async"}


class Launches(TorchDispatchMode):
    """Counts what reaches the device by name, kernels of Triton's included; with `reads` off, refuses waits."""

    def __init__(self, reads: bool = True):
        super().__init__()
        self.counts, self.reads = Counter(), reads

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        assert self.reads or name not in _READS, function
        if name == "_to_copy":  # and nothing goes back and forth
            assert self.reads or (kwargs or {}).get("device") in (None, args[0].device), "a copy between devices"
        if name not in _FREE:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


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


@pytest.fixture
def accelerator(monkeypatch):
    """A CPU that plays an accelerator: autograd runs nothing on tensors of a device that is not there."""
    for module in ("solve", "solvers.kernel", "solvers.proximal", "solvers.units", "solvers.padding"):
        monkeypatch.setattr(importlib.import_module(f"hf_reprot.ot.{module}"), "on_host", lambda tensor: False)


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
    for reads in (True, True, True, False):  # the first calls of a shape may ask how many sweeps it takes
        with Launches(reads):
            sum(output.loss for output in loss.forward_pairs(layers, **more)).backward()
    assert all(student.grad.abs().sum() > 0 for student, _ in layers)


def test_a_wait_is_seen():
    with pytest.raises(AssertionError), Launches(reads=False):
        bool(torch.ones(()) > 0)

"""The solver and the losses on the device, against float64 on the CPU."""

import random

import pytest
import torch

from hf_reprot.losses import GaussianTransport, RepresentationTransport
from hf_reprot.ot import solve
from hf_reprot.ot.moments import RunningMoments
from tests.ot.problems import cost_matrix, layer, weights

from .places import DEVICE, ON_DEVICE, REHEARSED

pytestmark = ON_DEVICE
BACKEND = "auto" if REHEARSED else "triton"
SCALE = 8 if REHEARSED else 1
# Pairs, rows, columns: one program a pair, the whole device on a pair, widths that are no multiple of 16, the widest.
SHAPES = [
    (1, 1, 1),
    (12, 384, 384),
    (3, 100, 515),
    (1, 512, 2048),
    (2, 1000, 777),
    (1, 300, 4096),
    (1, 4096, 300),
]


def scaled(shape):
    return tuple(max(1, size // SCALE) for size in shape)


def random_problem(seed: int):
    draw = random.Random(seed)
    batch, m, n = draw.choice([1, 1, 2, 5]), draw.randint(1, 600 // SCALE), draw.randint(1, 1200 // SCALE)
    matrix = cost_matrix(m, n, samples=draw.choice([16, 200]), seed=seed, batch=batch)
    given = draw.random() < 0.5
    a, b = (weights(size, seed + i) if given else None for i, size in enumerate((m, n)))
    return matrix, a, b, draw.choice([0.02, 0.05, 0.2])


def on_device(*tensors):
    return [x if x is None else x.to(DEVICE, torch.float32) for x in tensors]


def agree(matrix, a, b, relative_epsilon, **settings):
    """The device's solution in float32 is that of float64 on the CPU."""
    exact = {"relative_epsilon": relative_epsilon, "tolerance": 1e-8, "max_iterations": 20_000}
    reference = solve(matrix, a, b, **exact)
    M, *given = on_device(matrix, a, b)
    M.requires_grad_()
    result = solve(
        M, *given, relative_epsilon=relative_epsilon, tolerance=1e-4, max_iterations=5000, backend=BACKEND, **settings
    )
    result.value.sum().backward()
    plan = result.plan.cpu().double()
    assert bool(result.converged.all())
    scale = reference.value.abs().clamp_min(1e-2 * matrix.mean((-2, -1)))
    assert ((result.value.detach().cpu() - reference.value) / scale).abs().max() < 1e-3
    assert (plan - reference.plan).norm() / reference.plan.norm() < 5e-3
    rows = torch.full(plan.shape[:-1], 1 / plan.shape[-2]).double() if a is None else a.expand(plan.shape[:-1])
    assert (plan.sum(-1) - rows).abs().max() < 1e-6
    assert torch.equal(M.grad, result.plan)


@pytest.mark.parametrize("seed", range(8))
def test_random_shapes(seed):
    agree(*random_problem(seed))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape):
    batch, m, n = scaled(shape)
    agree(cost_matrix(m, n, batch=batch), None, None, 0.05)


@pytest.mark.parametrize("shape", [(3, 40, 70), (1, 600, 900)], ids=str)
def test_proximal_steps(shape):
    batch, m, n = scaled(shape)
    matrix = cost_matrix(m, n, batch=batch)
    settings = {"method": "proximal", "tolerance": 1e-3, "max_iterations": 64}
    reference = solve(matrix, **settings)
    result = solve(matrix.to(DEVICE, torch.float32), backend=BACKEND, **settings)
    assert (result.cost.cpu() / reference.cost - 1).abs().max() < 1e-2


@pytest.mark.parametrize(
    "settings", [{}, {"debiased": True}, {"standardize": False, "dead_neurons": "ignore"}], ids=str
)
def test_from_activations_to_their_gradient(settings):
    pairs = [(layer(256, 48, mixing=3 * i), layer(256, 64 + 8 * (i // 2), mixing=3 * i + 1)) for i in range(4)]

    def gradients(device, dtype, tolerance):
        loss = RepresentationTransport(tolerance=tolerance, relative_epsilon=0.05, max_iterations=10_000, **settings)
        given = [(s.to(device, dtype, copy=True).requires_grad_(), t.to(device, dtype)) for s, t in pairs]
        outputs = loss.forward_pairs(given)
        torch.stack([output.loss for output in outputs]).sum().backward()
        return [s.grad.cpu().double() for s, _ in given], [output.loss.item() for output in outputs]

    theirs, values = gradients("cpu", torch.float64, 1e-8)
    ours, found = gradients(DEVICE, torch.float32, 1e-4)
    assert found == pytest.approx(values, rel=2e-3, abs=1e-4)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() / other.norm() < 1e-2


def test_pairs_of_different_shapes_in_one_call_are_those_of_calls_for_each():
    pairs = [
        on_device(layer(128, 30 + 7 * i, mixing=2 * i), layer(128, 50 + 9 * i, mixing=2 * i + 1)) for i in range(4)
    ]
    loss = RepresentationTransport(tolerance=1e-4, relative_epsilon=0.05)
    together = loss.forward_pairs(pairs)
    for pair, one in zip(pairs, together, strict=True):
        alone = loss(*pair)
        assert (one.plan - alone.plan).norm() / alone.plan.norm() < 1e-3
        assert one.loss.item() == pytest.approx(alone.loss.item(), rel=1e-4)


def test_half_precision_has_the_values_of_float32():
    """bfloat16 activations: products on the device take bfloat16 operands, sums are in float32."""
    s, t = (layer(512, width, mixing=width).bfloat16() for width in (48, 80))
    loss = RepresentationTransport(tolerance=1e-4, relative_epsilon=0.05)
    reference = loss(s.float(), t.float())
    ours = s.to(DEVICE).requires_grad_()
    found = loss(ours, t.to(DEVICE))
    found.loss.backward()
    assert found.loss.item() == pytest.approx(reference.loss.item(), rel=1e-2)
    assert ours.grad.dtype == torch.bfloat16
    assert bool(ours.grad.isfinite().all())


@pytest.mark.parametrize("widths", [(24, 60), (60, 24)])
def test_gaussian_transport(widths):
    s, t = (layer(256, width, mixing=width) for width in widths)
    ours = s.to(DEVICE, torch.float32).requires_grad_()
    theirs = s.clone().requires_grad_()
    found, reference = GaussianTransport()(ours, t.to(DEVICE, torch.float32)), GaussianTransport()(theirs, t)
    found.loss.backward()
    reference.loss.backward()
    assert found.loss.item() == pytest.approx(reference.loss.item(), rel=2e-3)
    assert (ours.grad.cpu() - theirs.grad).norm() / theirs.grad.norm() < 1e-2


@pytest.mark.skipif(REHEARSED, reason="only a device can be waited for")
@pytest.mark.parametrize(
    "make",
    [
        lambda: RepresentationTransport(),
        lambda: RepresentationTransport(debiased=True),
        lambda: RepresentationTransport(method="proximal"),
        lambda: RepresentationTransport(method="random"),
        lambda: GaussianTransport(),
    ],
    ids=["sinkhorn", "debiased", "proximal", "random", "gaussian"],
)
def test_nothing_waits_for_the_device_once_shapes_are_known(make):
    """The driver's own word for it: any synchronisation raises. The sweeps' budget reads a copy that has arrived."""
    loss = make()
    pairs = [on_device(layer(64, 24, mixing=1), layer(64, 40, mixing=2)) for _ in range(2)]
    running = [RunningMoments(0.9) for _ in pairs]
    for student, _ in pairs:
        student.requires_grad_()
    for known in (False, False, False, True):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if known else "default")
        try:
            for carried in (None, running):
                sum(output.loss for output in loss.forward_pairs(pairs, running=carried)).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")

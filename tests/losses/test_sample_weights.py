"""Weights that count samples: 1 is no weight, only proportions count, and 0 leaves a sample out."""

import pytest
import torch

from hf_reprot.losses import RepresentationTransport
from hf_reprot.ot.cost import varies
from hf_reprot.ot.moments import pair_moments

CONSTANTS = (0.3, 1.1, 6.0, -1000.3, 1e-20)
SETTINGS = [
    {},
    {"dead_neurons": "ignore"},
    {"standardize": False},
    {"debiased": True},
    {"method": "proximal"},
    {"method": "exact"},
    {"method": "identity"},
]


def layers(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Neurons of which some are constant over the samples, and not 0, and one is far from 0 beside its deviation."""
    draw = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(n, 12, generator=draw), torch.randn(n, 12, generator=draw)
    for column, value in enumerate(CONSTANTS):
        student[:, column] = value
        teacher[:, -1 - column] = value
    student[:, 6] += 300
    return student, teacher


def solved(student, teacher, weights, **settings):
    student = student.clone().requires_grad_()
    out = RepresentationTransport(**settings)(student, teacher, sample_weights=weights)
    out.loss.backward()
    return out, student.grad


def same(one, other, **settings):
    (out, gradient), (expected, of_expected) = one, other
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-4, atol=1e-5)
    largest = of_expected.abs().max()
    assert (gradient - of_expected).abs().max() <= 1e-3 * largest
    if settings.get("method") != "exact":  # whose optimum need not be unique: constant neurons are all alike
        torch.testing.assert_close(out.plan, expected.plan, rtol=0, atol=1e-3 * expected.plan.max().item())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("n", [64, 257])
@pytest.mark.parametrize("weight", [1.0, 0.3, 1e-6])
def test_one_weight_for_all_is_none(n, weight, settings):
    student, teacher = layers(n)
    with_weights = solved(student, teacher, torch.full((n,), weight), **settings)
    same(with_weights, solved(student, teacher, None, **settings), **settings)
    assert with_weights[0].logs["skipped"] == 0


@pytest.mark.parametrize("settings", SETTINGS[:4], ids=str)
def test_a_weight_of_zero_leaves_a_sample_out_whatever_it_holds(settings):
    student, teacher = layers(64)
    counted = torch.arange(64) % 3 != 0
    expected, gradient = solved(student[counted], teacher[counted], None, **settings)
    student[~counted], teacher[0], teacher[3:64:3] = torch.inf, torch.nan, 1e30
    out, found = solved(student, teacher, counted.float(), **settings)
    same((out, found[counted]), (expected, gradient))
    assert (found[~counted] == 0).all()
    assert out.logs["dropped"] == 0


@pytest.mark.parametrize("settings", SETTINGS[:4], ids=str)
def test_only_proportions_count_and_a_weight_of_two_is_a_sample_twice(settings):
    student, teacher = layers(48)
    times = torch.tensor([1, 2, 3]).repeat(16)
    twice = torch.repeat_interleave(torch.arange(48), times)
    repeated = student[twice].requires_grad_()
    expected = RepresentationTransport(**settings)(repeated, teacher[twice])
    expected.loss.backward()
    of_rows = torch.zeros_like(student).index_add(0, twice, repeated.grad)
    for scale in (1.0, 1 / 3, 1e-4):
        same(solved(student, teacher, scale * times, **settings), (expected, of_rows))


@pytest.mark.parametrize("n", [33, 64, 1568, 10_000])
def test_constant_neurons_do_not_vary_under_weights(n):
    student, teacher = layers(n)
    weights = torch.rand(n, generator=torch.Generator().manual_seed(1))
    moments = pair_moments(student, teacher, weights)
    living = torch.arange(12) >= len(CONSTANTS)
    assert varies(moments.mean_s, moments.var_s).tolist() == living.tolist()
    assert varies(moments.mean_t, moments.var_t).tolist() == living.flip(0).tolist()
    exact = pair_moments(student.double(), teacher.double(), weights.double())
    for name, found in moments.tensors().items():
        expected = getattr(exact, name)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("n", [1, 2])
def test_one_sample_that_counts_is_skipped_and_two_are_not(n):
    weights = torch.zeros(8)
    weights[:n] = 0.25
    student, teacher = torch.randn(8, 3, requires_grad=True), torch.randn(8, 4)
    out = RepresentationTransport()(student, teacher, sample_weights=weights)
    assert out.logs["skipped"] == (n == 1)
    assert (out.loss == 0) == (n == 1)

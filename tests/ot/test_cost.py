"""Ground costs and moments against direct formulas, at offsets and scales where shortcuts lose their digits."""

import pytest
import torch

from hf_reprot.ot import neuron_cost
from hf_reprot.ot.cost import cost_from_moments, varies
from hf_reprot.ot.moments import attach, pair_moments
from tests.ot.problems import layer


def _direct(s, t):
    return (s[:, :, None] - t[:, None, :]).square().mean(0)


def _z(x):
    return (x - x.mean(0)) / x.std(0, correction=0)


def test_raw_cost_is_the_mean_squared_difference():
    s, t = layer(50, 6) + 3, layer(50, 8, mixing=2) - 1
    assert torch.allclose(neuron_cost(s, t, standardize=False), _direct(s, t))


def test_standardised_cost_is_twice_one_minus_the_correlation():
    s, t = layer(50, 6), layer(50, 8, mixing=2)
    M = neuron_cost(s, t)
    assert torch.allclose(M, _direct(_z(s), _z(t)))
    correlation = torch.corrcoef(torch.cat([s, t], 1).t())[:6, 6:]
    assert torch.allclose(M, 2 * (1 - correlation))


def test_standardised_cost_is_blind_to_scale_and_offset_of_each_neuron():
    s, t = layer(50, 6), layer(50, 8, mixing=2)
    scale, offset = torch.logspace(-3, 3, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    assert torch.allclose(neuron_cost(s * scale + offset, t), neuron_cost(s, t), atol=1e-9)


def test_scaling_both_sides_scales_the_raw_cost_by_the_square():
    s, t = layer(50, 6), layer(50, 8, mixing=2)
    assert torch.allclose(neuron_cost(3 * s, 3 * t, standardize=False), 9 * neuron_cost(s, t, standardize=False))


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_offsets_cost_no_digits_in_float32(offset):
    s, t = layer(400, 6).float() + offset, layer(400, 8, mixing=2).float() + offset
    # the float32 inputs are the truth; the reference is computed from them in float64
    for standardize in (True, False):
        exact = neuron_cost(s.double(), t.double(), standardize=standardize)
        assert torch.allclose(neuron_cost(s, t, standardize=standardize).double(), exact, atol=2e-4 * exact.mean())


def test_constant_neurons_are_zero_after_standardisation():
    s, t = layer(30, 4), layer(30, 4, mixing=2)
    s[:, 1], t[:, 2] = 1e5, 0.0
    M = neuron_cost(s.float(), t.float())
    assert torch.isfinite(M).all()
    assert M[1, [0, 1, 3]].tolist() == pytest.approx([1, 1, 1])
    assert M[1, 2].item() == 0
    moments = pair_moments(s.float(), t.float())
    assert varies(moments.mean_s, moments.var_s).tolist() == [True, False, True, True]


@pytest.mark.parametrize("rows", [1, 5, 8192, 20_000])
def test_moments_over_blocks_of_rows(rows, monkeypatch):
    s, t = layer(20_000, 3)[:rows] * 2 + 5, layer(20_000, 4, mixing=2)[:rows]
    monkeypatch.setattr("hf_reprot.ot.moments.MOST_ROWS", 3 if rows < 100 else 8192)
    moments = pair_moments(s, t)
    assert torch.allclose(moments.mean_s, s.mean(0))
    assert torch.allclose(moments.var_t, t.var(0, correction=0))
    assert torch.allclose(moments.cov, (s - s.mean(0)).t() @ (t - t.mean(0)) / rows)
    assert moments.count.item() == rows


def test_merged_moments_are_those_of_all_samples():
    s, t = layer(100, 5) + 2, layer(100, 7, mixing=2)
    whole = pair_moments(s, t)
    merged = pair_moments(s[:13], t[:13]).merge(pair_moments(s[13:], t[13:]))
    for name, value in whole.tensors().items():
        assert torch.allclose(merged.tensors()[name], value), name
    nothing = whole.zeros_like().merge(whole)
    for name, value in whole.tensors().items():
        assert torch.allclose(nothing.tensors()[name], value), name


def test_decay_is_fewer_samples():
    whole = pair_moments(layer(10, 2), layer(10, 2, mixing=2))
    assert whole.decayed(0.5).count.item() == 5
    assert torch.equal(whole.decayed(0.5).cov, whole.cov)


@pytest.mark.parametrize("standardize", [True, False])
def test_the_gradient_is_autograds(standardize, monkeypatch):
    monkeypatch.setattr("hf_reprot.ot.moments.MOST_ROWS", 11)
    s, t = layer(40, 5).requires_grad_(), layer(40, 6, mixing=2).requires_grad_()
    weight = torch.randn(5, 6, dtype=torch.float64)
    (neuron_cost(s, t, standardize=standardize) * weight).sum().backward()
    ours = s.grad.clone(), t.grad.clone()
    s.grad = t.grad = None
    x, y = (_z(s), _z(t)) if standardize else (s, t)
    (_direct(x, y) * weight).sum().backward()
    assert torch.allclose(ours[0], s.grad)
    assert torch.allclose(ours[1], t.grad)


def test_bfloat16_operands_of_the_products_keep_the_digits_that_the_layers_had(monkeypatch):
    s, t = (layer(400, 12, mixing=i) + 3 for i in (1, 2))
    weight = torch.rand(12, 12)

    def cost_and_gradient():
        student = s.bfloat16().requires_grad_()
        M = neuron_cost(student, t.bfloat16())
        (M * weight).sum().backward()
        return M.detach(), student.grad.float()

    M, gradient = cost_and_gradient()
    # as on CUDA, where the product of bfloat16 matrices can be summed up in float32
    monkeypatch.setattr("hf_reprot.ot.moments._half_operands", lambda x, y: True)
    monkeypatch.setattr("hf_reprot.ot.moments._half_product", lambda x, y: x.float() @ y.float())
    half, half_gradient = cost_and_gradient()
    assert torch.allclose(half, M, atol=5e-3 * M.mean())
    assert (half_gradient - gradient).norm() < 1e-2 * gradient.norm()


def test_a_local_share_of_the_gradient_of_global_moments():
    s, t = layer(30, 4), layer(30, 5, mixing=2)
    whole = pair_moments(s, t)
    full = s.clone().requires_grad_()
    cost_from_moments(attach(whole, full, t)).sum().backward()
    part = s[:10].clone().requires_grad_()
    cost_from_moments(attach(whole, part, t[:10], gradient_scale=3.0)).sum().backward()
    assert torch.allclose(part.grad, 3 * full.grad[:10])


def test_expanded_and_strided_inputs():
    s, t = layer(1, 4).expand(30, 4), layer(30, 10, mixing=2)[:, ::2]
    s = s.requires_grad_()
    M = neuron_cost(s, t, standardize=False)
    assert torch.allclose(M, _direct(s, t))
    M.sum().backward()
    assert torch.isfinite(s.grad).all()


def test_inputs_that_are_no_layers():
    with pytest.raises(ValueError, match=r"student.*\(3,\)"):
        neuron_cost(torch.rand(3), torch.rand(3, 2))
    with pytest.raises(ValueError, match=r"4 samples.*5"):
        neuron_cost(torch.rand(4, 3), torch.rand(5, 2))
    with pytest.raises(ValueError, match="int64"):
        neuron_cost(torch.ones(4, 3, dtype=torch.long), torch.rand(4, 2))
    with pytest.raises(ValueError, match=r"unknown cost 'sqeuclid'.*Did you mean 'sqeuclidean'"):
        neuron_cost(torch.rand(4, 3), torch.rand(4, 2), cost="sqeuclid")

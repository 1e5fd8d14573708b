import pytest
import torch
from torch import nn

from hf_reprot.losses import L2SP


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def test_zero_at_the_start_and_squared_distance_after():
    model = _model()
    anchor = L2SP(model)
    assert anchor().loss.item() == 0.0
    with torch.no_grad():
        model[0].weight += 0.5  # 12 weights moved by 1/2: 12 / 4
    assert anchor().loss.item() == pytest.approx(3.0)
    assert anchor().logs["l2sp_distance"].item() == pytest.approx(3.0**0.5)


def test_gradient_is_twice_the_difference():
    model = _model()
    anchor = L2SP(model)
    with torch.no_grad():
        model[2].bias += torch.tensor([1.0, -2.0])
    anchor().loss.backward()
    assert torch.allclose(model[2].bias.grad, torch.tensor([2.0, -4.0]))


def test_head_and_frozen_parameters_are_left_alone():
    model = _model()
    model[0].bias.requires_grad_(False)
    anchor = L2SP(model, exclude=["2"])
    with torch.no_grad():
        model[2].weight += 1.0
        model[0].bias += 1.0
    assert anchor().loss.item() == 0.0


def test_nothing_of_it_enters_a_state_dict():
    assert L2SP(_model()).state_dict() == {}
    assert list(L2SP(_model()).parameters()) == []


def test_fingerprints_tell_starts_apart():
    model = _model()
    one = L2SP(model).fingerprint()
    assert torch.equal(one, L2SP(model).fingerprint())
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-3
    assert not torch.allclose(one, L2SP(model).fingerprint(), rtol=1e-6)


def test_unknown_names_and_nothing_left_are_errors():
    with pytest.raises(ValueError, match="head"):
        L2SP(_model(), exclude=["head"])
    with pytest.raises(ValueError, match="no parameter"):
        L2SP(_model(), exclude=["0", "2"])

import pytest
import torch
from torch import nn

from hf_reprot.training.guard import GradientGuard


def model_with(*gradients: float) -> nn.Module:
    model = nn.Sequential(*(nn.Linear(3, 1, bias=False) for _ in gradients))
    for layer, gradient in zip(model, gradients, strict=True):
        layer.weight.grad = torch.tensor([[1.0, gradient, 2.0]])
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_changes_no_weight(value):
    model = model_with(1.0, value)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    before = [p.detach().clone() for p in model.parameters()]
    assert GradientGuard(3).check(model)
    optimizer.step()  # not even by decay
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))


def test_a_large_gradient_goes_through():
    model = model_with(3e38, -3e38)  # whose squares are infinite
    assert not GradientGuard(1).check(model)
    assert model[0].weight.grad[0, 1] == 3e38


def test_again_and_again_raises_and_names_parameters():
    guard = GradientGuard(2)
    assert guard.check(model_with(1.0, float("nan")))
    assert not guard.check(model_with(1.0))
    assert guard.check(model_with(1.0, float("nan")))
    with pytest.raises(FloatingPointError, match=r"2 steps in a row .* 1 of 2 parameters, among them 1\.weight"):
        guard.check(model_with(1.0, float("nan")))


def test_nothing_to_look_at():
    assert not GradientGuard(1).check(nn.Linear(2, 2))

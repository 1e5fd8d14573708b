import copy

import pytest
import torch
from torch import nn

from hf_reprot.training.non_finite import GradientGuard
from tests.ot.test_no_stall import _NoReads
from tests.toy_models import vit
from tests.training.runs import make_trainer, training_logs


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


FUSED = [
    lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5, fused=True),
    lambda parameters: torch.optim.Adam(parameters, lr=0.1, amsgrad=True, fused=True),
]
OTHERS = [
    lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5),
    lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
]


@pytest.mark.parametrize("make", FUSED + OTHERS)
@pytest.mark.parametrize("spoiled", [(), (0,), (2,), (1, 2, 4)])
def test_weights_are_those_of_a_run_without_the_spoiled_steps(make, spoiled):
    ours, theirs = model_with(1.0, 2.0), model_with(1.0, 2.0)
    theirs.load_state_dict(ours.state_dict())
    optimizer, plain, guard = make(ours.parameters()), make(theirs.parameters()), GradientGuard(3)
    for step in range(6):
        gradients = [torch.randn(1, 3, generator=torch.Generator().manual_seed(step)) for _ in range(2)]
        for layer, gradient in zip(ours, gradients, strict=True):
            layer.weight.grad = gradient.clone()
        if step in spoiled:
            ours[1].weight.grad[0, 1] = torch.nan
        assert guard.check(ours, optimizer=optimizer).item() == (step in spoiled)
        optimizer.step()
        assert not hasattr(optimizer, "found_inf")  # whoever steps next is not held up
        if step not in spoiled:
            for layer, gradient in zip(theirs, gradients, strict=True):
                layer.weight.grad = gradient.clone()
            plain.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
        for name, value in plain.state[other].items():
            assert torch.equal(optimizer.state[mine][name], value), name


@pytest.mark.parametrize("make", FUSED)
def test_a_fused_optimiser_skips_without_a_word_to_the_host(make):
    model = model_with(1.0, float("nan"))
    optimizer, guard = make(model.parameters()), GradientGuard(5)
    before = copy.deepcopy(model.state_dict())
    with _NoReads():
        dropped = guard.check(model, optimizer=optimizer)
        optimizer.step()
    assert dropped.item() == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(AssertionError), _NoReads():  # the others have to ask
        guard.check(model, optimizer=OTHERS[0](model.parameters()))


def test_again_and_again_stops_a_fused_optimiser_too():
    guard, model = GradientGuard(2), model_with(1.0, float("nan"))
    optimizer = FUSED[0](model.parameters())
    guard.check(model, optimizer=optimizer)
    optimizer.step()
    guard.reset()  # as at the start of another run
    guard.check(model, optimizer=optimizer)
    optimizer.step()
    with pytest.raises(FloatingPointError, match=r"2 steps in a row .* 1 of 2 parameters, among them 1\.weight"):
        guard.check(model, optimizer=optimizer)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_in_training(tmp_path, optim, clip):
    student = vit()
    trainer = make_trainer(tmp_path, model=student, optim=optim, max_grad_norm=clip, max_steps=4, weight_decay=0.1)
    kept = {}

    def spoil(gradient):
        kept[trainer.state.global_step] = copy.deepcopy(student.state_dict())
        return gradient * (float("nan") if trainer.state.global_step == 1 else 1)

    student.classifier.weight.register_hook(spoil)
    trainer.train()
    assert [entry["dropped_steps"] for entry in training_logs(trainer)] == [0, 1, 0, 0]
    assert all(torch.equal(value, kept[2][name]) for name, value in kept[1].items())
    assert not all(torch.equal(value, kept[3][name]) for name, value in kept[2].items())
    assert all(torch.isfinite(value).all() for value in student.state_dict().values())

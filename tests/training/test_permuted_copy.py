"""A trained network against a copy of itself with permuted neurons: through taps and trainer, transport undoes it."""

import copy

import pytest
import timm
import torch
from torch import nn

from hf_reprot.features.activations import pair_neurons
from hf_reprot.features.taps import Taps
from hf_reprot.losses import RepresentationTransport
from tests.toy_models import Images, batch, vit
from tests.training.runs import make_trainer, training_logs


def _trained(model: nn.Module, forward) -> nn.Module:
    """A few steps on the images, so that the neurons have learnt something."""
    images = batch(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(10):
        loss = nn.functional.cross_entropy(forward(model, images["pixel_values"]), images["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def _permuted_cnn() -> tuple[nn.Module, nn.Module, str, torch.Tensor]:
    torch.manual_seed(0)
    teacher = timm.create_model("resnet10t", num_classes=3)
    teacher = _trained(teacher, lambda model, x: model(x))
    student = copy.deepcopy(teacher)
    block = student.layer2[0]
    order = torch.randperm(block.conv1.out_channels)
    with torch.no_grad():
        block.conv1.weight.copy_(block.conv1.weight[order])
        for values in (block.bn1.weight, block.bn1.bias, block.bn1.running_mean, block.bn1.running_var):
            values.copy_(values[order])
        block.conv2.weight.copy_(block.conv2.weight[:, order])
    return student, teacher, "layer2.0.act1", order


def _permuted_vit() -> tuple[nn.Module, nn.Module, str, torch.Tensor]:
    teacher = _trained(vit(), lambda model, x: model(pixel_values=x).logits)
    student = copy.deepcopy(teacher)
    path, up = next((n, m) for n, m in student.named_modules() if isinstance(m, nn.Linear) and m.out_features == 48)
    down = next(m for n, m in student.named_modules() if isinstance(m, nn.Linear) and m.in_features == 48)
    order = torch.randperm(48)
    with torch.no_grad():
        up.weight.copy_(up.weight[order])
        up.bias.copy_(up.bias[order])
        down.weight.copy_(down.weight[:, order])
    return student, teacher, path, order


@pytest.mark.parametrize("make", [_permuted_cnn, _permuted_vit])
def test_through_the_taps(make):
    student, teacher, layer, order = make()
    images = batch(32)["pixel_values"]
    layers = []
    for model in (student, teacher):
        taps = Taps(model, [layer])
        with torch.no_grad(), taps.recording():
            model(images)
        layers.append(taps.take()[layer])
        taps.close()
    neurons = pair_neurons(*layers, positions="all")
    out = RepresentationTransport(method="exact")(*neurons)
    assert out.loss.item() == pytest.approx(0, abs=1e-5)
    _assert_recovered(out.plan, order, neurons[1])


@pytest.mark.parametrize("make", [_permuted_cnn, _permuted_vit])
def test_through_the_trainer(tmp_path, make):
    student, teacher, layer, order = make()
    for module in student.modules():  # batch statistics stay as they are: both sides then see the same
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
            module.eval()
            module.train = lambda mode=True, module=module: module
    inputs = []
    teacher.register_forward_pre_hook(lambda _m, args, kw: inputs.append([*args, *kw.values()][0]), with_kwargs=True)
    trainer = make_trainer(
        tmp_path,
        model=student,
        teacher=teacher,
        data=Images(32),
        layer_pairs=[f"{layer}={layer}"],
        ot_method="exact",
        ot_positions="all",
        learning_rate=0.0,
        max_steps=1,
        per_device_train_batch_size=32,
    )
    inputs.clear()
    trainer.train()
    assert training_logs(trainer)[0]["ot_loss"] == pytest.approx(0, abs=1e-5)
    taps = Taps(teacher, [layer])
    with torch.no_grad(), taps.recording():
        teacher(inputs[0])
    (activation,) = taps.take().values()
    _assert_recovered(trainer.transfer.plans[0], order, pair_neurons(activation, activation, positions="all")[1])


def _assert_recovered(plan: torch.Tensor, order: torch.Tensor, teacher: torch.Tensor) -> None:
    """The plan is the permutation, up to dead neurons and duplicates."""
    distinct = teacher.std(0) > 1e-6
    correlation = torch.corrcoef(teacher.double().t()).nan_to_num().fill_diagonal_(0)
    distinct &= correlation.abs().amax(0) < 1 - 1e-6
    assert distinct.sum() > 0.7 * len(distinct)
    rows = distinct[order]
    assert (plan.argmax(1)[rows] == order[rows]).all()
    assert plan.amax(1)[rows].tolist() == pytest.approx([1 / len(order)] * int(rows.sum()), rel=1e-4)

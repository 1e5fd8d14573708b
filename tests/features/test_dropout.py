"""A head's dropout puts no noise into what is recorded before the head, whatever its form; the model is not changed."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from hf_reprot.features.activations import pooled_neurons
from hf_reprot.features.architecture import last_layer
from hf_reprot.features.taps import Taps
from tests.tiny_models import batch, transformers_model

# The dropout is a call inside forward (ResNet, MobileNetV3, LCNet), stands before a flatten (HGNet) or inside the
# head's own projection (VGG).
DROPPING = ("resnet10t", "mobilenetv3_small_050", "lcnet_050", "hgnetv2_b0", "starnet_s050", "vgg11")


def recorded(model, *args, **kwargs):
    taps = Taps(model, [last_layer(model)])
    with taps.recording():
        model(*args, **kwargs)
    (layer,) = taps.take().values()
    taps.close()
    return pooled_neurons(layer)


def only_dropout_trains(model):
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) or "DropPath" in type(module).__name__:
            module.eval()
    return model


def small(name):
    torch.manual_seed(0)
    if name == "vgg11":
        return timm.models.vgg.VGG([4, "M", 8, "M"], num_classes=3, mlp_ratio=0.01, drop_rate=0.5)
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    return timm.create_model(name, num_classes=3, drop_rate=0.5)


@pytest.mark.parametrize("name", DROPPING)
def test_timm_heads(name):
    model, x = only_dropout_trains(small(name)), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        noisy = [model(x) for _ in range(2)]
        found = recorded(model, x)
        model.eval()
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
    assert not torch.allclose(*noisy)  # there was a noise to leave out
    torch.testing.assert_close(found, expected)


class Called(nn.Module):
    """The same weights with every form of dropout between pooling and head."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.body = nn.Conv2d(3, 6, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.project = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.channels = nn.Dropout2d(0.5)
        self.in_place = nn.Dropout(0.5, inplace=True)
        self.fc = nn.Linear(5 if form in ("projected", "normed", "activated in place") else 6, 2)

    def forward(self, x):
        x = self.pool(self.body(x))
        if self.form == "function":
            x = F.dropout(x.flatten(1), 0.5, self.training)
        elif self.form == "flattened":
            x = torch.flatten(F.dropout(x, p=0.5, training=self.training), 1)
        elif self.form == "squeezed":
            x = F.dropout(x, 0.5, self.training)[:, :, 0, 0]
        elif self.form == "twice":
            x = F.dropout(F.dropout(x, 0.5, self.training).flatten(1), 0.5, self.training)
        elif self.form == "channels":
            x = self.channels(x).flatten(1)
        elif self.form == "in place":
            x = self.in_place(x.flatten(1))
        elif self.form == "torch":
            x = torch.dropout(x.flatten(1), 0.5, self.training)
        elif self.form == "projected":
            x = F.gelu(self.project(F.dropout(x.flatten(1), 0.5, self.training)))
        elif self.form == "normed":
            x = self.norm(self.project(F.dropout(x.flatten(1), 0.5, self.training)))
        else:
            x = F.relu(self.project(F.dropout(x.flatten(1), 0.5, self.training)), inplace=True)
        return self.fc(x)


FORMS = ("function", "flattened", "squeezed", "twice", "channels", "in place", "torch", "projected", "normed")
IMAGES = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def without(model, x):
    """What goes into `fc` where nothing is dropped."""
    calm = copy.deepcopy(model)
    calm.in_place.p = 0.0
    calm.channels.p = 0.0
    calm.training = False  # what is called inside forward; the batch norm goes on in training
    caught = []
    calm.fc.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    calm(x)
    return caught[0]


@pytest.mark.parametrize("form", [*FORMS, "activated in place"])
def test_every_form_of_dropout(form):
    model = Called(form).train()
    torch.testing.assert_close(recorded(model, IMAGES), without(model, IMAGES))


@pytest.mark.parametrize("form", [*FORMS, "activated in place"])
def test_the_model_is_not_changed(form):
    model, bare = Called(form).train(), Called(form).train()
    taps = Taps(model, [last_layer(model)])
    torch.manual_seed(3)
    with taps.recording():
        ours = model(IMAGES)
    after = torch.rand(4)
    torch.manual_seed(3)
    theirs = bare(IMAGES)
    assert torch.equal(after, torch.rand(4))  # as many random numbers were drawn
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    for (name, mine), other in zip(model.named_buffers(), bare.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, msg=name)  # running statistics count the batch once
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for mine, other in zip(model.parameters(), bare.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=0)


def test_the_gradient_is_that_of_the_values_without_noise():
    model = Called("projected").train()
    ours = torch.autograd.grad(recorded(model, IMAGES).square().sum(), [model.body.weight, model.project.weight])
    clean = model.project(model.pool(model.body(IMAGES)).flatten(1))
    theirs = torch.autograd.grad(F.gelu(clean).square().sum(), [model.body.weight, model.project.weight])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_dropout_of_the_body_stays():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.body(F.dropout(self.stem(x), 0.5, self.training)))

    model, x = Network().train(), torch.randn(5, 4)
    assert not torch.allclose(recorded(model, x), recorded(model, x))


def test_nothing_is_kept_after_the_pass():
    model = Called("projected").train()
    taps = Taps(model, [last_layer(model)])
    with taps.recording():
        model(IMAGES)
    taps.take()
    assert taps._store.dropout.pairs == []
    model(IMAGES)
    assert taps._store.dropout.pairs == []


@pytest.mark.parametrize("form", ["flattened", "projected"])
def test_compiled_models(form):
    model = Called(form).train()
    taps = Taps(model, [last_layer(model)])
    compiled = torch.compile(model, backend="aot_eager", dynamic=False)
    for step in range(3):
        with torch._dynamo.config.patch(error_on_recompile=step > 0), taps.recording():
            compiled(IMAGES)
        (layer,) = taps.take().values()
        torch.testing.assert_close(pooled_neurons(layer), without(model, IMAGES))


@pytest.mark.parametrize(("family", "kind"), [("MobileNetV2", "ForImageClassification"), ("ConvNext", "Sequential")])
def test_transformers_heads(family, kind):
    model = transformers_model(family, "ForImageClassification")
    if kind == "Sequential":
        model.classifier = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(20, 2))
    else:
        model.dropout.p = 0.5
    with torch.no_grad():
        expected = recorded(model.eval(), **batch(family))
        torch.testing.assert_close(recorded(only_dropout_trains(model), **batch(family)), expected)

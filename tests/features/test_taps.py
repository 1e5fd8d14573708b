"""What the taps record, when, and what they say when they cannot."""

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_reprot.features.taps import Taps, first_tensor

from ..tiny_models import batch, images, timm_model, transformers_model


class Network(nn.Module):
    """Two layers, a dropout and a head; `checkpointing` is None, "reentrant" or "plain"."""

    def __init__(self, dropout=0.0, checkpointing=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.GELU())
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(6, 2)
        self.checkpointing = checkpointing

    def forward(self, x):
        if self.checkpointing is None:
            x = self.body(x)
        else:
            x = checkpoint(lambda value: self.body(value), x, use_reentrant=self.checkpointing == "reentrant")
        return self.head(self.drop(x))


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def test_records_outputs_and_inputs_of_an_armed_pass_only():
    model = Network()
    taps = Taps(model, ["body", "head:input", "body.0"])
    model(X)
    with taps.recording():
        model(X)
    model(2 * X)
    taken = taps.take()
    torch.testing.assert_close(taken["body"].tensor, model.body(X))
    torch.testing.assert_close(taken["head:input"].tensor, model.body(X))
    torch.testing.assert_close(taken["body.0"].tensor, model.body[0](X))
    assert [taken[name].layout for name in taken] == ["nc"] * 3
    with pytest.raises(RuntimeError, match="recorded nothing"):
        taps.take()


def test_a_pass_that_was_not_taken_or_failed_is_forgotten():
    model = Network()
    taps = Taps(model, ["body"])
    with taps.recording():
        model(X)
    with pytest.raises(RuntimeError), taps.recording():
        model(X[:, :3])
    with taps.recording():
        model(2 * X)
    torch.testing.assert_close(taps.take()["body"].tensor, model.body(2 * X))


def test_nothing_is_kept_after_take():
    model = Network(dropout=0.5)
    taps = Taps(model, ["body", "head:input"])
    with taps.recording():
        model(X)
    kept = weakref.ref(taps.take()["body"].tensor)
    assert kept() is None


def test_closed_taps_leave_no_hook():
    model = Network()
    taps = Taps(model, ["body", "head:input"])
    taps.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_outputs_and_gradients_are_those_of_the_bare_model():
    model, bare = Network(), Network()
    bare.load_state_dict(model.state_dict())
    taps = Taps(model, ["body"])
    with taps.recording():
        output = model(X)
    (output.sum() + taps.take()["body"].tensor.square().sum()).backward()
    (bare(X).sum() + bare.body(X).square().sum()).backward()
    for ours, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_input_of_a_head_is_taken_before_its_dropout():
    model = Network(dropout=0.5).train()
    taps = Taps(model, ["head:input"])
    with taps.recording():
        model(X)
    torch.testing.assert_close(taps.take()["head:input"].tensor, model.body(X))


def test_text_heads_are_taken_before_their_dropout():
    model = transformers_model("Bert", "ForSequenceClassification", classifier_dropout=0.5).train()
    taps = Taps(model, ["classifier:input", "bert.pooler"])
    with taps.recording():
        model(**batch("Bert"))
    taken = taps.take()
    assert torch.equal(taken["classifier:input"].tensor, taken["bert.pooler"].tensor)


def test_two_calls_of_one_layer_are_an_error():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    taps = Taps(model := Twice(), ["layer"])
    with taps.recording():
        model(X)
    with pytest.raises(RuntimeError, match="layer was called 2 times"):
        taps.take()


def test_a_layer_that_was_not_called_is_named():
    model = transformers_model("ViT", "ForImageClassification")
    taps = Taps(model, ["vit.layers"])
    with taps.recording():
        model(**batch("ViT"))
    with pytest.raises(RuntimeError, match=r"vit\.layers recorded nothing.*ViTForImageClassification"):
        taps.take()


def test_a_layer_overwritten_in_place_is_an_error():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    taps = Taps(model, ["0"])
    with taps.recording():
        model(X)
    with pytest.raises(RuntimeError, match="0 was overwritten in place"):
        taps.take()
    taps = Taps(model, ["1"])
    with taps.recording():
        model(X)
    torch.testing.assert_close(taps.take()["1"].tensor, model[0](X).relu())


def test_frozen_layers_are_an_error_in_training_only():
    model = Network()
    model.body.requires_grad_(False)
    taps = Taps(model, ["body", "head"])
    with taps.recording():
        model(X)
    with pytest.raises(RuntimeError, match=r"no gradient can reach body.*frozen"):
        taps.take()
    with torch.no_grad(), taps.recording():
        model(X)
    assert not taps.take()["body"].tensor.requires_grad
    model.requires_grad_(False)  # a teacher, even where someone forgot no_grad
    with taps.recording():
        model(X)
    assert set(taps.take()) == {"body", "head"}


def test_reentrant_checkpointing_is_found_out():
    model = Network(checkpointing="reentrant")
    taps = Taps(model, ["body.0"])
    with taps.recording():
        model(X.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="reentrant"):
        taps.take()


def grads(model, tensor):
    return torch.autograd.grad(tensor.square().sum(), list(model.parameters()))


def assert_checkpointing_changes_nothing(model, taps, forward, switch):
    results = []
    for checkpointed in (False, True):
        switch(checkpointed)
        with taps.recording():
            forward()
        loss = sum(layer.tensor.square().sum() for layer in taps.take().values())
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        results.append([grad for grad in found if grad is not None])
        assert taps._store.caught == {}  # the second forward, inside the backward, was not recorded
    assert len(results[0]) == len(results[1]) > 0
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_plain_checkpointing():
    model = Network()
    taps = Taps(model, ["body", "head:input"])

    def switch(on):
        model.checkpointing = "plain" if on else None

    assert_checkpointing_changes_nothing(model, taps, lambda: model(X), switch)


@pytest.mark.parametrize("family", ["ViT", "Swin", "Bert"])
def test_checkpointing_of_transformers(family):
    kind = "ForSequenceClassification" if family == "Bert" else "ForImageClassification"
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0}
    model = transformers_model(family, kind, **off).train()
    layer = {"ViT": "vit.layers.1", "Swin": "swin.encoder.layers.1", "Bert": "bert.encoder.layer.0"}[family]
    taps = Taps(model, [layer, "classifier:input"])

    def switch(on):
        if on:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    assert_checkpointing_changes_nothing(model, taps, lambda: model(**batch(family)), switch)


@pytest.mark.parametrize(("name", "layer"), [("vit_tiny_patch16_224", "blocks.1"), ("resnet10t", "layer2")])
def test_checkpointing_of_timm_even_of_whole_stages(name, layer):
    model, x = timm_model(name), images(name)
    taps = Taps(model, [layer])
    assert_checkpointing_changes_nothing(model, taps, lambda: model(x), model.set_grad_checkpointing)


def test_a_stage_that_checkpointing_passes_over_is_named():
    class Stage(nn.Sequential):  # not a plain Sequential: its output need not be its last child's
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Stage(nn.Linear(4, 4)), nn.Linear(4, 2))
    taps = Taps(model, ["0"])
    with taps.recording():
        model[1](model[0][0](X))
    with pytest.raises(RuntimeError, match=r"0 recorded nothing.*set_grad_checkpointing.*layer1\.0"):
        taps.take()


def test_compiled_models_fire_the_taps():
    model = Network(dropout=0.5).train()
    taps = Taps(model, ["body", "head:input"])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(2):  # recording and not, traced and from the cache
        with taps.recording():
            compiled(X)
        taken = taps.take()
        for name in ("body", "head:input"):
            torch.testing.assert_close(taken[name].tensor, model.body(X))
        ours = grads(model.body, taken["head:input"].tensor)
        theirs = grads(model.body, model.body(X))
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other)
        compiled(X)
        assert taps._store.caught == {}


def test_compiled_models_are_not_compiled_again_and_again():
    model = Network()
    taps = Taps(model, ["body", "head:input"])
    compiled = torch.compile(model, backend="aot_eager", dynamic=False)
    for step in range(5):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            with taps.recording():
                compiled(X)
            taps.take()
            if step > 0:
                compiled(X)
        if step == 0:
            compiled(X)


def test_compiled_vision_transformer():
    model = transformers_model("ViT", "ForImageClassification")
    layers = ["vit.layers.1", "vit.layernorm", "classifier:input"]
    taps = Taps(model, layers)
    compiled = torch.compile(model, backend="aot_eager")
    with taps.recording():
        output = compiled(**batch("ViT"), output_hidden_states=False)
    taken = taps.take()
    with torch.no_grad():
        reference = model(**batch("ViT"), output_hidden_states=True)
    torch.testing.assert_close(taken["vit.layers.1"].tensor, reference.hidden_states[2])
    torch.testing.assert_close(model.classifier(taken["classifier:input"].tensor), output.logits)
    assert (taken["vit.layernorm"].prefix, taken["vit.layernorm"].grid) == (1, (4, 4))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_the_model_carry_no_taps(copied):
    model = Network()
    taps = Taps(model, ["body", "head:input"])
    with taps.recording():
        model(X)
        other = copied(model)  # in the midst of a pass, whose activations must not be copied along
        output = other(X)
    torch.testing.assert_close(output, model(X))
    hooks = [hook for module in other.modules() for hook in module._forward_hooks.values()]
    assert all(getattr(hook, "store", None) is None for hook in hooks)
    torch.testing.assert_close(taps.take()["body"].tensor, model.body(X))


def test_compiled_and_wrapped_names_are_those_of_the_bare_model():
    model = Network()
    compiled = torch.compile(model, backend="aot_eager")
    taps = Taps(compiled, ["_orig_mod.body", "module._orig_mod.head:input"])
    assert taps.model is model
    with taps.recording():
        compiled(X)
    assert set(taps.take()) == {"_orig_mod.body", "module._orig_mod.head:input"}


def test_an_unknown_layer_is_refused_at_construction():
    with pytest.raises(ValueError, match="'bodi' is no layer of the model"):
        Taps(Network(), ["bodi"])


def test_first_tensor():
    a, b = torch.zeros(1), torch.ones(1)
    assert first_tensor(a) is a
    assert first_tensor((None, (a, 3), b)) is a
    assert first_tensor({"loss": b, "last_hidden_state": a}) is a
    assert first_tensor({"logits": a, "other": b}) is a
    assert first_tensor((1, "x")) is None
    assert first_tensor(None) is None


def test_an_output_without_a_tensor():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x):
            return self.layer({"size": 3})

    taps = Taps(model := Odd(), ["layer"])
    with taps.recording():
        model(X)
    with pytest.raises(RuntimeError, match="gave no tensor"):
        taps.take()


def test_inputs_given_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(input=x)

    taps = Taps(model := Named(), ["head:input"])
    with torch.no_grad(), taps.recording():
        model(X)
    assert taps.take()["head:input"].tensor is X


def test_inference_mode():
    model = Network()
    taps = Taps(model, ["body"])
    with torch.inference_mode(), taps.recording():
        model(X)
    assert taps.take()["body"].tensor.shape == (5, 6)

"""Where a model's representation, stages and head are, against what the models say themselves."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification

from hf_reprot.features.activations import pair_neurons
from hf_reprot.features.architecture import block_layers, head_paths, last_layer, stage_layers
from hf_reprot.features.taps import Taps
from tests.tiny_models import CONFIGS, TEXT, TIMM, batch, images, timm_model, transformers_model


def capture(model, names, *args, **kwargs):
    taps = Taps(model, names)
    with torch.no_grad(), taps.recording():
        output = model(*args, **kwargs)
    taken = taps.take()
    taps.close()
    return taken, output


def pooled(activation, mask=None):
    return pair_neurons(activation, activation, mask=mask)[0]


def head_of(model):
    """The linear map that gives the logits, found by its width."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == model.config.num_labels]
    return linear[0]


@pytest.mark.parametrize("name", TIMM)
def test_timm_last_layer_is_what_goes_into_the_head(name):
    model, x = timm_model(name), images(name)
    layer = last_layer(model)
    taken, _ = capture(model, [layer], x)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(pooled(taken[layer]), expected)
    assert head_paths(model) == [layer.removesuffix(":input")]


@pytest.mark.parametrize("name", TIMM)
def test_timm_last_layer_without_a_head_is_what_the_model_returns(name):
    model, x = timm_model(name, num_classes=0), images(name)
    layer = last_layer(model)
    taken, output = capture(model, [layer], x)
    torch.testing.assert_close(pooled(taken[layer]), output)
    assert head_paths(model) == []


@pytest.mark.parametrize("name", TIMM)
def test_timm_last_layer_with_positions_holds_the_features(name):
    model, x = timm_model(name), images(name)
    layer = last_layer(model, "all")
    taken, _ = capture(model, [layer], x)
    with torch.no_grad():
        expected = model.forward_features(x)
    torch.testing.assert_close(taken[layer].tensor, expected)
    assert taken[layer].layout != "nc"


@pytest.mark.parametrize("name", TIMM)
def test_timm_stages_are_the_intermediates(name):
    model, x = timm_model(name), images(name)
    layers = stage_layers(model)
    assert len(layers) == 4
    taken, _ = capture(model, layers, x)
    with torch.no_grad():
        intermediates = model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")
    for layer, expected in zip(layers, intermediates[-4:], strict=True):
        tokens = "patches" if "l" in taken[layer].layout else "auto"
        mine, _ = pair_neurons(taken[layer], taken[layer], tokens=tokens)
        torch.testing.assert_close(mine, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [family for family in CONFIGS if family not in TEXT])
def test_image_classifiers_feed_their_head_with_the_last_layer(family):
    model = transformers_model(family, "ForImageClassification")
    layer = last_layer(model)
    taken, output = capture(model, [layer], **batch(family))
    head = head_of(model)
    torch.testing.assert_close(head(pooled(taken[layer])), output.logits)
    assert head_paths(model) == ["classifier"]


@pytest.mark.parametrize(
    ("family", "path", "heads"),
    [
        ("Bert", "classifier:input", ["classifier"]),
        ("DistilBert", "pre_classifier:input", ["pre_classifier", "classifier"]),
        ("Roberta", "classifier:input", ["classifier"]),
        ("GPT2", "score:input", ["score"]),
    ],
)
def test_text_classifiers_feed_their_head_with_the_last_layer(family, path, heads):
    model = transformers_model(family, "ForSequenceClassification")
    inputs = batch(family)
    assert last_layer(model) == path
    assert head_paths(model) == heads
    taken, output = capture(model, [path], **inputs)
    x = pooled(taken[path], inputs["attention_mask"])
    with torch.no_grad():
        if family == "DistilBert":
            logits = model.classifier(torch.relu(model.pre_classifier(x)))
        elif family == "Roberta":
            logits = model.classifier(x[:, None])  # its head takes the first token of a sequence
        else:
            logits = head_of(model)(x)
    torch.testing.assert_close(logits, output.logits)


@pytest.mark.parametrize("family", ["ViT", "DeiT", "Dinov2", "Dinov2WithRegisters", "Swin", "ResNet", "RegNet", "Bert"])
def test_backbones_end_in_their_last_hidden_state(family):
    model = transformers_model(family, "Model")
    layer = last_layer(model)
    taken, output = capture(model, [layer], **batch(family))
    torch.testing.assert_close(taken[layer].tensor, output.last_hidden_state)
    assert head_paths(model) == []


@pytest.mark.parametrize("family", ["Dinov2", "Beit", "Swin", "ResNet", "ConvNext", "MobileNetV2"])
def test_pooled_backbones_equal_their_own_pooling(family):
    model = transformers_model(family, "Model")
    layer = last_layer(model)
    taken, output = capture(model, [layer], **batch(family))
    torch.testing.assert_close(pooled(taken[layer]), output.pooler_output.flatten(1))


def test_a_text_backbone_is_the_mean_over_the_tokens_kept():
    model, inputs = transformers_model("Bert", "Model"), batch("Bert")
    layer = last_layer(model)
    taken, output = capture(model, [layer], **inputs)
    state = output.last_hidden_state
    expected = torch.stack([state[0].mean(0), state[1, :4].mean(0)])
    torch.testing.assert_close(pooled(taken[layer], inputs["attention_mask"]), expected)


@pytest.mark.parametrize("family", ["ViT", "Dinov2", "Beit", "ConvNext", "Swin", "Bert", "GPT2"])
def test_the_last_layer_with_positions_has_positions(family):
    kind = "ForSequenceClassification" if family in TEXT else "ForImageClassification"
    model = transformers_model(family, kind)
    layer = last_layer(model, "all")
    taken, _ = capture(model, [layer], **batch(family))
    assert taken[layer].layout != "nc"
    base = getattr(model, model.base_model_prefix)
    with torch.no_grad():
        expected = base(**batch(family)).last_hidden_state
    if family != "Beit":  # its backbone returns the same features
        torch.testing.assert_close(taken[layer].tensor, expected)


@pytest.mark.parametrize(
    ("family", "states"),
    [("ViT", [1, 2, 3]), ("ResNet", [1, 2, 3, 4]), ("ConvNext", [1, 2, 3, 4]), ("Bert", [1, 2])],
)
def test_stages_are_hidden_states(family, states):
    model = transformers_model(family, "Model")
    layers = stage_layers(model)
    taken, output = capture(model, layers, **batch(family), output_hidden_states=True)
    for layer, state in zip(layers, states, strict=False):
        torch.testing.assert_close(taken[layer].tensor, output.hidden_states[state])


def test_swin_stages_come_before_the_step_down():
    model = transformers_model("Swin", "Model")
    layers = stage_layers(model)
    taken, _ = capture(model, layers, **batch("Swin"))
    assert [tuple(taken[layer].tensor.shape) for layer in layers] == [(2, 256, 8), (2, 64, 16), (2, 16, 32)]
    assert [taken[layer].grid for layer in layers] == [(16, 16), (8, 8), (4, 4)]


def test_mobilenet_stages_end_where_the_resolution_changes():
    model = transformers_model("MobileNetV2", "Model")
    layers = stage_layers(model)
    taken, _ = capture(model, layers, pixel_values=torch.randn(2, 3, 64, 64))
    assert [taken[layer].tensor.shape[-1] for layer in layers] == [16, 8, 4, 2]


def test_a_plain_transformer_is_cut_into_quarters():
    model = transformers_model("ViT", "Model", num_hidden_layers=12)
    assert stage_layers(model) == ["layers.2", "layers.5", "layers.8", "layers.11"]
    model = transformers_model("ViT", "Model", num_hidden_layers=6)
    assert stage_layers(model) == ["layers.1", "layers.2", "layers.4", "layers.5"]
    assert block_layers(model) == [f"layers.{i}" for i in range(6)]


def test_blocks_of_a_residual_network():
    assert block_layers(timm_model("resnet10t")) == [f"layer{i}.0" for i in range(1, 5)]
    assert block_layers(transformers_model("ResNet", "ForImageClassification"))[0] == "resnet.encoder.stages.0.layers.0"


def wrapped(name):
    model = timm_model(name)
    config = TimmWrapperConfig(architecture=name, num_labels=5, model_args=dict(TIMM[name][0]))
    wrapper = TimmWrapperForImageClassification(config).eval()
    wrapper.timm_model = model
    return wrapper, model


def test_the_wrapper_of_timm_models():
    wrapper, model = wrapped("vit_tiny_patch16_224")
    assert last_layer(wrapper) == "timm_model.head:input"
    assert last_layer(wrapper, "all") == "timm_model.norm"
    assert head_paths(wrapper) == ["timm_model.head"]
    assert stage_layers(wrapper) == [f"timm_model.{layer}" for layer in stage_layers(model)]


def test_adapters_keep_their_prefix():
    peft = pytest.importorskip("peft")
    model = transformers_model("ViT", "ForImageClassification")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    adapted = peft.get_peft_model(model, settings)
    assert last_layer(adapted) == "base_model.model.classifier:input"
    assert last_layer(adapted, "all") == "base_model.model.vit.layernorm"
    assert stage_layers(adapted)[-1] == "base_model.model.vit.layers.3"
    assert head_paths(adapted) == ["base_model.model.classifier"]
    taps = Taps(adapted, ["classifier:input", "vit.layers.-1", "layers.0"])
    with taps.recording():
        adapted(**batch("ViT"))
    taken = taps.take()
    assert taken["classifier:input"].tensor.shape == (2, 24)
    assert taken["vit.layers.-1"].tensor.shape == (2, 17, 24)


def test_any_module_with_a_head_named_as_usual():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert last_layer(model) == "3:input"
    assert head_paths(model) == ["3"]

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
            self.layer2 = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU())
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(6, 2)

        def forward(self, x):
            return self.fc(self.avgpool(self.layer2(self.layer1(x))).flatten(1))

    model = Network()
    assert (last_layer(model), last_layer(model, "all")) == ("fc:input", "layer2")
    assert stage_layers(model) == ["layer1", "layer2"]


@pytest.mark.parametrize("name", ["readout", "classifier"])
def test_a_transformers_model_of_ones_own_ends_before_its_logits(name):
    class Config(PreTrainedConfig):
        model_type = "ones-own"

    class Own(PreTrainedModel):
        config_class = Config
        main_input_name = "pixel_values"

        def __init__(self, config):
            super().__init__(config)
            self.body = nn.Conv2d(3, 6, 3)
            setattr(self, name, nn.Linear(6, config.num_labels))
            self.post_init()

    model = Own(Config(num_labels=4))
    assert head_paths(model) == [name]
    assert last_layer(model) == f"{name}:input"
    assert last_layer(model, "all") == "body"
    features = Own(Config(num_labels=5))
    setattr(features, name, nn.Linear(6, 9))  # no logits: what it gives is a representation
    assert head_paths(features) == []


def test_what_is_not_known_is_said():
    with pytest.raises(ValueError, match="name the layer"):
        last_layer(nn.ReLU())
    with pytest.raises(ValueError, match="has no stages"):
        stage_layers(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="has no blocks"):
        block_layers(nn.Linear(2, 2))


@pytest.mark.parametrize(("name", "reads"), [("vit_tiny_patch16_224", True), ("beit_base_patch16_224", False)])
def test_the_class_token_stands_for_timm_models_that_read_it(name, reads):
    taken, _ = capture(timm_model(name), ["norm", "blocks.0"], images(name))
    assert (taken["norm"].reads_class, taken["blocks.0"].reads_class) == (reads, False)
    assert taken["norm"].prefix > 0


@pytest.mark.parametrize(("family", "reads"), [("ViT", True), ("Beit", False)])
def test_the_class_token_stands_for_transformers_models_that_read_it(family, reads):
    model = transformers_model(family, "ForImageClassification")
    layer = last_layer(model, "all")
    taken, _ = capture(model, [layer], **batch(family))
    assert (taken[layer].reads_class, taken[layer].prefix) == (reads, 1)


@pytest.mark.parametrize(("pooling", "reads"), [("cls", True), ("mean", False)])
def test_a_text_model_reads_its_class_token_as_its_config_says(pooling, reads):
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = ModernBertConfig(**sizes, num_attention_heads=2, classifier_pooling=pooling, pad_token_id=0)
    model = ModernBertForSequenceClassification(config)
    layer = last_layer(model, "all")
    ids = torch.randint(1, 40, (2, 5))
    taken, _ = capture(model, [layer], input_ids=ids, attention_mask=torch.ones_like(ids))
    assert taken[layer].reads_class == reads

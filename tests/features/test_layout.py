"""The meaning of axes, prefix tokens and grids, against what the models say themselves."""

import pytest
import timm
import torch
from torch import nn

from hf_reprot.features.activations import pair_neurons
from hf_reprot.features.architecture import stage_layers
from hf_reprot.features.layout import Tokens, layout_of, prefix_and_grid, tokens_of
from hf_reprot.features.paths import LayerName
from hf_reprot.features.taps import Taps
from tests.tiny_models import CONFIGS, TEXT, TIMM, batch, images, timm_model, transformers_model


def capture(model, names, *args, **kwargs):
    taps = Taps(model, names)
    with torch.no_grad(), taps.recording():
        model(*args, **kwargs)
    return taps.take()


def rows(x):
    """(n, c, h, w) -> (n * h * w, c)"""
    return torch.stack([x[i, :, j, k] for i in range(len(x)) for j in range(x.shape[2]) for k in range(x.shape[3])])


@pytest.mark.parametrize("name", TIMM)
def test_positions_of_timm_stages_are_those_of_the_intermediates(name):
    model, x = timm_model(name), images(name)
    layers = stage_layers(model)
    taken = capture(model, layers, x)
    with torch.no_grad():
        intermediates = model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")
    for layer, expected in zip(layers, intermediates[-4:], strict=True):
        mine, _ = pair_neurons(taken[layer], taken[layer], positions="all")
        torch.testing.assert_close(mine, rows(expected), rtol=1e-4, atol=1e-5)


def test_a_map_as_wide_as_it_is_large_is_read_from_the_modules():
    """Side, side and width all 16: shapes say nothing."""
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        embed_dim=16,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 2, 2),
        window_size=2,
        num_classes=5,
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = {"layers.0": "nhwc", "layers.0.blocks.0": "nhwc", "patch_embed": "nhwc", "patch_embed.proj": "nchw"}
    taken = capture(swin, list(expected), x)
    assert all(tuple(layer.tensor.shape) == (2, 16, 16, 16) for layer in taken.values())
    assert {name: layer.layout for name, layer in taken.items()} == expected

    convnext = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(16, 20, 24, 28), num_classes=5).eval()
    taken = capture(convnext, ["stages.0", "stages.0.blocks.0", "stages.0.blocks.0.mlp"], x)
    assert all(tuple(layer.tensor.shape)[1:3] == (16, 16) for layer in taken.values())
    assert taken["stages.0"].layout == taken["stages.0.blocks.0"].layout == "nchw"

    resnet = timm.create_model("resnet10t", num_classes=5).eval()
    taken = capture(resnet, ["act1", "layer1", "layer1.0.act2", "maxpool"], torch.randn(1, 3, 256, 256))
    assert tuple(taken["layer1"].tensor.shape) == (1, 64, 64, 64)
    assert {layer.layout for layer in taken.values()} == {"nchw"}


@pytest.mark.parametrize("family", ["ConvNext", "Segformer", "ResNet"])
def test_transformers_maps_of_equal_sides(family):
    model = transformers_model(family, "Model")
    layer = stage_layers(model)[0]
    taken = capture(model, [layer], **batch(family))
    assert tuple(taken[layer].tensor.shape) == (2, 8, 8, 8)
    assert taken[layer].layout == "nchw"


def test_the_user_has_the_last_word():
    model = timm_model("resnet10t")
    taken = capture(model, ["layer1:nhwc", "layer2:nchw"], images("resnet10t"))
    assert (taken["layer1:nhwc"].layout, taken["layer2:nchw"].layout) == ("nhwc", "nchw")
    with pytest.raises(ValueError, match="has not the axes nlc"):
        capture(model, ["layer1:nlc"], images("resnet10t"))


def test_axes_that_nothing_tells_apart_are_an_error():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x):
            return self.layer(x)

    model = Odd()
    with pytest.raises(ValueError, match=r"write layer:nchw or \.\.\.:nhwc"):
        capture(model, ["layer"], torch.randn(2, 4, 4, 4))
    assert capture(model, ["layer:nchw"], torch.randn(2, 4, 4, 4))["layer:nchw"].layout == "nchw"
    with pytest.raises(ValueError, match="expected 2 to 4 axes"):
        capture(model, ["layer"], torch.randn(2, 4, 4, 4, 4))


def test_sequences_with_channels_second():
    model = transformers_model("Swin", "ForImageClassification")
    taken = capture(model, ["swin.pooler:input", "swin.layernorm"], **batch("Swin"))
    assert taken["swin.pooler:input"].layout == "ncl"
    a, b = pair_neurons(taken["swin.pooler:input"], taken["swin.layernorm"], positions="all")
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("family", "prefix"),
    [("ViT", 1), ("DeiT", 2), ("Beit", 1), ("Dinov2", 1), ("Dinov2WithRegisters", 5), ("Swin", 0), ("Segformer", 0)],
)
@pytest.mark.parametrize("kind", ["Model", "ForImageClassification"])
def test_prefix_tokens_of_transformers(family, kind, prefix):
    model = transformers_model(family, kind)
    layers = [name for name, module in model.named_modules() if type(module).__name__ == f"{family}Layer"]
    if family == "Swin":
        layers = ["encoder.layers.2.blocks.0" if kind == "Model" else "swin.encoder.layers.2.blocks.0"]
    if family == "Segformer":
        layers = [name for name, _ in model.named_modules() if name.endswith("stages.2.blocks.0")]
    taken = capture(model, layers, **batch(family))
    for layer in taken.values():
        assert layer.prefix == prefix
        assert layer.grid[0] * layer.grid[1] + prefix == layer.tensor.shape[1]


@pytest.mark.parametrize(("name", "prefix"), [("vit_tiny_patch16_224", 1), ("vit_small_patch14_reg4_dinov2", 5)])
def test_prefix_tokens_of_timm(name, prefix):
    model = timm_model(name)
    side = model.patch_embed.grid_size
    layer = capture(model, ["blocks.0"], images(name))["blocks.0"]
    assert (layer.prefix, layer.grid) == (prefix, tuple(side))
    layer = capture(model, ["patch_embed"], images(name))["patch_embed"]
    assert (layer.prefix, layer.grid) == (0, tuple(side))


def test_distillation_token_and_blocks_before_the_class_token():
    deit = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2).eval()
    assert capture(deit, ["blocks.0"], torch.randn(1, 3, 32, 32))["blocks.0"].prefix == 2
    cait = timm.create_model("cait_xxs24_224", img_size=32, embed_dim=24, depth=1, num_heads=2).eval()
    taken = capture(cait, ["blocks.0", "norm"], torch.randn(1, 3, 32, 32))
    assert (taken["blocks.0"].prefix, taken["norm"].prefix) == (0, 1)


def test_images_that_are_not_square_and_not_of_the_usual_size():
    model = transformers_model("ViT", "Model")
    with torch.no_grad():
        taps = Taps(model, ["layers.0"])
        with taps.recording():
            model(torch.randn(1, 3, 16, 64), interpolate_pos_encoding=True)
    layer = taps.take()["layers.0"]
    assert (layer.tensor.shape[1], layer.prefix, layer.grid) == (17, 1, (2, 8))  # 16 patches, yet not 4 by 4
    model = timm_model("vit_tiny_patch16_224", dynamic_img_size=True)
    layer = capture(model, ["blocks.0"], torch.randn(1, 3, 32, 96))["blocks.0"]
    assert (layer.prefix, layer.grid) == (1, (2, 6))


@pytest.mark.parametrize("family", TEXT)
def test_texts_are_told_from_images(family):
    tokens = tokens_of(transformers_model(family, "ForSequenceClassification"), "")
    assert (tokens.modality, tokens.prefix) == ("text", 0)
    assert tokens.class_token == ("last" if family == "GPT2" else "first")


def test_texts_of_any_model():
    model = nn.Sequential(nn.Embedding(5, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    assert tokens_of(model, "1") == Tokens("text")
    layer = capture(model, ["1"], torch.tensor([[1, 2, 0], [1, 2, 3]]))["1"]
    mine, _ = pair_neurons(layer, layer, mask=torch.tensor([[1, 1, 0], [1, 1, 1]]))
    torch.testing.assert_close(mine[0], layer.tensor[0, :2].mean(0))


def test_every_image_model_knows_its_modality():
    for family in CONFIGS:
        if family not in TEXT:
            assert tokens_of(transformers_model(family, "Model"), "").modality == "image"


def test_a_model_of_both_kinds_is_read_tower_by_tower():
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(
        text_config=text | {"vocab_size": 50, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
        vision_config=text | {"image_size": 32, "patch_size": 8},
    )
    model = CLIPModel(config)
    assert tokens_of(model, "vision_model.encoder.layers.0") == Tokens(
        "image", 1, "first", (4, 4), True, "vision_model.embeddings.patch_embedding"
    )
    assert tokens_of(model, "text_model.encoder.layers.0").modality == "text"


def test_hiera_holds_its_patches_in_another_order():
    model = timm.create_model("hiera_tiny_224", embed_dim=8, stages=(1, 1, 1, 1), num_heads=1)
    tokens = tokens_of(model, "blocks.1")
    assert not tokens.in_rows
    assert prefix_and_grid(tokens, 784, None) == (0, None)


def test_prefix_and_grid():
    vit = Tokens(prefix=1, class_token="first", grid=(4, 4))
    assert prefix_and_grid(vit, 17, None) == (1, (4, 4))
    assert prefix_and_grid(vit, 16, None) == (0, (4, 4))
    assert prefix_and_grid(vit, 26, None) == (1, (5, 5))
    assert prefix_and_grid(vit, 9, (2, 4)) == (1, (2, 4))
    assert prefix_and_grid(vit, 14, None) == (1, None)  # dropped patches
    assert prefix_and_grid(vit, 14, (4, 4)) == (1, None)
    assert prefix_and_grid(vit, 18, None, prefix=2) == (2, (4, 4))
    assert prefix_and_grid(Tokens(grid=(16, 8)), 32, None) == (0, (8, 4))
    assert prefix_and_grid(Tokens(), 12, None) == (0, None)


def test_layout_of_two_axes():
    assert layout_of(nn.Linear(2, 2), LayerName("x"), torch.Size([3, 2])) == "nc"

"""A part of the sweep over architectures, and the models that once recorded nothing or had no grid."""

import pytest
import timm
import torch

from benchmarks.architectures import examine, study, table, timm_families
from hf_reprot.features.activations import pooled_neurons
from hf_reprot.features.architecture import head_paths, last_layer, stage_layers
from hf_reprot.features.taps import Taps

# One small model each; the image's side is the one that `study` finds.
QUICK = {
    "byobnet/test_byobnet": 4,
    "convnext/test_convnext": 4,
    "efficientnet/test_efficientnet": 5,
    "mobilenetv3/mobilenetv3_small_050": 5,
    "nfnet/test_nfnet": 4,
    "resnet/test_resnet": 4,
    "vision_transformer/test_vit": 4,
    "transformers/ViTForImageClassification": 2,
    "transformers/Swinv2ForImageClassification": 4,
    "transformers/LevitForImageClassificationWithTeacher": 3,
    "transformers/Dinov2WithRegistersForImageClassification": 2,
    "transformers/SiglipForImageClassification": 2,
}


@pytest.mark.parametrize("family", QUICK)
def test_quick_families(family):
    row = study(family, family.rpartition("/")[2])
    assert "error" not in row, row
    assert row["is_input"] is True
    assert row["no_noise"] is True
    assert row["shared"] == ""
    rows, _, columns = str(row["positions"]).partition(" x ")
    assert int(rows) > 0
    assert rows == columns
    assert f"`{row['model']}`" in table([row])


def test_the_sweep_covers_timm():
    families = timm_families()
    assert len(families) >= 150
    assert all(timm.is_model(name) for name in families.values())


@pytest.mark.parametrize("name", ["coat_tiny", "coat_lite_tiny", "crossvit_9_240"])
def test_timm_models_of_several_branches(name):
    torch.manual_seed(0)
    smaller = {"img_size": 64} if name.startswith("coat") else {}
    model = timm.create_model(name, num_classes=3, drop_rate=0.5, **smaller)
    side = 64 if smaller else 240
    row = examine(model, torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
    assert row["is_input"] is True
    assert row["no_noise"] is True
    assert row["stages"] == (3 if name.startswith("crossvit") else 4)
    assert row["positions"] == ("14 x 14" if name.startswith("crossvit") else "2 x 2")
    if name == "coat_tiny":
        assert row["shared"] != ""


def test_two_heads_side_by_side_are_fed_side_by_side():
    torch.manual_seed(0)
    model = timm.create_model("crossvit_9_240", num_classes=3).train()
    assert head_paths(model) == ["head.0", "head.1"]
    taps, x = Taps(model, [last_layer(model)]), torch.randn(2, 3, 240, 240)
    with taps.recording():
        output = model(x)
    assert taps.reached() == ["head:input"]
    both = pooled_neurons(taps.take()["head:input"])
    ours, theirs = both.split([128, 256], dim=1)
    torch.testing.assert_close((model.head[0](ours) + model.head[1](theirs)) / 2, output)
    bare = timm.create_model("crossvit_9_240", num_classes=0)
    assert (last_layer(bare), head_paths(bare)) == ("norm.1", [])


def test_dinov3_convnext_has_a_grid_behind_its_pooled_token():
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    torch.manual_seed(0)
    model = DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])).eval()
    for positions in ("pooled", "all"):
        layer = last_layer(model, positions)
        taps = Taps(model, [layer])
        with torch.no_grad(), taps.recording():
            output = model(torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0)))
        taken = taps.take()[layer]
        torch.testing.assert_close(taken.tensor, output.last_hidden_state)
        assert (taken.prefix, taken.grid) == (1, (3, 2))
        torch.testing.assert_close(pooled_neurons(taken), output.pooler_output)
        taps.close()
    assert stage_layers(model) == [f"model.stages.{i}" for i in range(4)]

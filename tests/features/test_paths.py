"""What a user may write for a layer, and what is said of what may not be written."""

import pytest
import torch
from torch import nn

from hf_reprot.features.paths import LayerName, core, resolve_path, unwrap
from tests.tiny_models import timm_model, transformers_model


@pytest.mark.parametrize("name", ["a.b", "a.b:input", "a:nhwc", "a:input:nchw:prefix2", "a:prefix0"])
def test_names_are_read_and_written_back(name):
    assert str(LayerName.parse(name)) == name


def test_parts_of_a_name():
    assert LayerName.parse("a.b:input:nlc:prefix5") == LayerName("a.b", True, "nlc", 5)
    assert LayerName.parse("a") == LayerName("a")


@pytest.mark.parametrize("name", ["a:inputs", "a:nwhc", "a:prefix", "a:"])
def test_options_that_do_not_exist(name):
    with pytest.raises(ValueError, match=r"cannot stand behind a layer's path\. Legal: input"):
        LayerName.parse(name)


@pytest.mark.parametrize(
    "path",
    [
        "vit.layers.3",
        "layers.3",
        "vit.layers.-1",
        "layers.-1",
        "module.vit.layers.3",
        "_orig_mod.vit.layers.3",
        "module._orig_mod.layers.-1",
        "vit.layers.3._checkpoint_wrapped_module",
    ],
)
def test_ways_to_write_a_path(path):
    assert resolve_path(transformers_model("ViT", "ForImageClassification"), path) == "vit.layers.3"


def test_a_module_that_is_called_module():
    model = nn.ModuleDict({"module": nn.Sequential(nn.Linear(2, 2))})
    assert resolve_path(model, "module.0") == "module.0"


def test_a_module_in_two_places_has_two_paths():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert (resolve_path(model, "0"), resolve_path(model, "2")) == ("0", "2")


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("vit.layer.3", "vit.layers.3"),
        ("vit.layers.12", "vit.layers.1"),
        ("vit.encoder.layer.0", "vit.layers.0"),
        ("clasifier", "classifier"),
        ("o_proj", "vit.layers.0.attention.o_proj"),
        ("attention.o_proj", "vit.layers.0.attention.o_proj"),
        ("layers.-9", "vit.layers.0"),
    ],
)
def test_the_nearest_paths_are_named(path, near):
    with pytest.raises(ValueError) as error:
        resolve_path(transformers_model("ViT", "ForImageClassification"), path, "student")
    message = str(error.value)
    assert f"{path!r} is no layer of the student (ViTForImageClassification)" in message
    assert near in message.split("Nearest: ")[1].split(", ")


def test_a_name_like_nothing_gets_the_top_of_the_model():
    with pytest.raises(ValueError, match="Nearest: conv1, bn1, act1"):
        resolve_path(timm_model("resnet10t"), "zzz")
    with pytest.raises(ValueError, match="is no layer"):
        resolve_path(timm_model("resnet10t"), "")


def test_unwrap():
    model = nn.Linear(2, 2)
    assert unwrap(torch.compile(model, backend="eager")) is model
    assert unwrap(model) is model


def test_core_of_a_bare_model():
    model = timm_model("resnet10t")
    assert core(model) == (model, "")

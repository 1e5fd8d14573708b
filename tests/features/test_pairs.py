"""What `layer_pairs` may be, and what is said of what it may not."""

import pytest
from torch import nn

from hf_reprot.features.pairs import LayerPair, match_pairs, resolve_layer

from ..tiny_models import timm_model, transformers_model


@pytest.fixture(scope="module")
def resnet():
    return timm_model("resnet10t")


@pytest.fixture(scope="module")
def vit():
    return transformers_model("ViT", "ForImageClassification")


@pytest.fixture(scope="module")
def swin():
    return transformers_model("Swin", "ForImageClassification")


@pytest.mark.parametrize("specs", ["last", ["last"], ("last",)])
def test_last(specs, resnet, vit):
    assert match_pairs(specs, resnet, [vit]) == [LayerPair("fc:input", "classifier:input")]


def test_last_with_positions(resnet, vit):
    assert match_pairs("last", resnet, [vit], "all") == [LayerPair("layer4", "vit.layernorm")]


def test_last_of_several_teachers(resnet, vit):
    assert match_pairs("last", resnet, [vit, resnet]) == [
        LayerPair("fc:input", "classifier:input", teacher_index=0),
        LayerPair("fc:input", "fc:input", teacher_index=1),
    ]


def test_stages(resnet, vit):
    assert match_pairs("stages", resnet, [vit]) == [LayerPair(f"layer{i + 1}", f"vit.layers.{i}") for i in range(4)]


def test_stages_of_unequal_number_go_by_depth(resnet, swin):
    stages = ["swin.encoder.layers.0.blocks.0", "swin.encoder.layers.1.blocks.0", "swin.encoder.layers.2"]
    assert match_pairs("stages", resnet, [swin]) == [
        LayerPair(ours, theirs) for ours, theirs in zip(["layer1", "layer3", "layer4"], stages, strict=True)
    ]
    assert [pair.teacher for pair in match_pairs("stages", swin, [resnet])] == ["layer1", "layer3", "layer4"]


def test_named_pairs(resnet, vit):
    pairs = match_pairs(
        [
            "layer4=vit.layers.3",
            " layer3 = layers.-2 @1",
            {"student": "layer2", "teacher": "vit.layernorm", "weight": 2, "teacher_index": 1},
            '{"student": "layer1", "teacher": "vit.layers.0", "weight": 0.5}',
        ],
        resnet,
        [vit, vit],
    )
    assert pairs == [
        LayerPair("layer4", "vit.layers.3"),
        LayerPair("layer3", "vit.layers.2", teacher_index=1),
        LayerPair("layer2", "vit.layernorm", 2.0, 1),
        LayerPair("layer1", "vit.layers.0", 0.5),
    ]


def test_one_pair_alone(resnet, vit):
    spec = {"student": "layer4", "teacher": "classifier:input"}
    assert match_pairs(spec, resnet, [vit]) == [LayerPair("layer4", "classifier:input")]
    assert match_pairs("layer4:nchw=vit.layernorm:prefix1", resnet, [vit]) == [
        LayerPair("layer4:nchw", "vit.layernorm:prefix1")
    ]


def test_aliases(resnet, vit):
    assert match_pairs("stage:-1=block:2", resnet, [vit]) == [LayerPair("layer4", "vit.layers.2")]
    assert match_pairs("layer3=last", resnet, [vit], "all") == [LayerPair("layer3", "vit.layernorm")]
    assert resolve_layer(resnet, "block:-1") == "layer4.0"
    with pytest.raises(ValueError, match=r"'block:4': the teacher \(ViT.*\) has 4 blocks, block:0 to block:3"):
        match_pairs("stage:0=block:4", resnet, [vit])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("auto", "finds all pairs by itself"),
        ("atuo", "Did you mean 'auto'"),
        ("stage", "Did you mean 'stages'"),
        ("lsat", "Did you mean 'last'"),
        ("layer4", 'a pair has two, as in "layer4=layer4"'),
        ("layer4=a=b", "more than one ="),
        ("layer4=", "has no teacher layer"),
        ("=vit.layers.0", "has no student layer"),
        ("layer4=vit.layers.0@2", r"teacher_index 2 .*legal, with 2 teacher\(s\): 0 to 1"),
        ("layer4=vit.layers.0@x", "expected a teacher's number"),
        ("layr4=vit.layers.0", r"'layr4' is no layer of the student.*layer4"),
        ("layer4=vit.leyers.0", r"'vit.leyers.0' is no layer of the teacher.*vit.layers.0"),
        ("layer4:output=vit.layers.0", "'output' cannot stand behind"),
        ({"student": "layer4"}, "has no teacher layer"),
        ({"student": "layer4", "teacher": 3}, "has no teacher layer"),
        ({"student": "layer4", "teacher": "last", "wieght": 1}, "Did you mean 'weight'"),
        ({"student": "layer4", "teacher": "last", "weight": 0}, "finite number above 0, got 0"),
        ({"student": "layer4", "teacher": "last", "weight": -1.0}, "finite number above 0, got -1"),
        ({"student": "layer4", "teacher": "last", "weight": float("nan")}, "finite number above 0, got nan"),
        ({"student": "layer4", "teacher": "last", "weight": float("inf")}, "finite number above 0, got inf"),
        ({"student": "layer4", "teacher": "last", "weight": "2"}, "finite number above 0, got '2'"),
        ({"student": "layer4", "teacher": "last", "teacher_index": -1}, "teacher_index -1"),
        ({"student": "layer4", "teacher": "last", "teacher_index": 0.0}, "teacher_index 0.0"),
        ({"student": "layer4", "teacher": "last", "teacher_index": True}, "teacher_index True"),
        ('{"student": "layer4"', "is no JSON"),
        (["layer4", "vit"], "is a list"),
        (None, "is a NoneType"),
    ],
)
def test_what_a_pair_may_not_be(spec, message, resnet, vit):
    with pytest.raises(ValueError, match=message):
        match_pairs([spec], resnet, [vit, vit])


def test_what_the_list_may_not_be(resnet, vit):
    with pytest.raises(ValueError, match="is empty"):
        match_pairs([], resnet, [vit])
    with pytest.raises(ValueError, match="twice"):
        match_pairs(["last", "fc:input=classifier:input"], resnet, [vit])
    with pytest.raises(ValueError, match="none was given"):
        match_pairs("last", resnet, [])
    with pytest.raises(ValueError, match="'pooled' or 'all'"):
        match_pairs("last", resnet, [vit], "every")
    with pytest.raises(ValueError, match="name the layer"):
        match_pairs("last", nn.ReLU(), [vit])


def test_pairs_cannot_be_changed():
    with pytest.raises(AttributeError):
        LayerPair("a", "b").weight = 2.0

"""Teachers of images that people use: whole CLIP and SigLIP models, NaFlex, DINOv3, C-RADIO, EUPE, other sizes."""

import json

import pytest
import timm
import torch
import transformers
from PIL import Image
from torch.testing import assert_close
from transformers import Siglip2ImageProcessor, ViTImageProcessor

from hf_reprot.data.preprocessing import Preprocessing
from hf_reprot.features.activations import pair_neurons
from hf_reprot.features.architecture import last_layer
from hf_reprot.models.processors import image_processor
from hf_reprot.models.teacher import Teacher

VISION = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGES = VISION | {"image_size": 32, "patch_size": 8}
NAFLEX = VISION | {"num_patches": 16, "patch_size": 8}
TEXT = VISION | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
HALVES = Preprocessing((0.5,) * 3, (0.5,) * 3, (16, 16))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test asks the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def whole(family: str, **vision):
    """A model of images and texts."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vision_config=IMAGES | vision, text_config=TEXT)
    return getattr(transformers, f"{family}Model")(config).eval()


def naflex():
    torch.manual_seed(0)
    config = transformers.Siglip2Config(vision_config=NAFLEX, text_config=TEXT)
    return transformers.Siglip2Model(config).eval()


def pixels(count: int = 2, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def recorded(teacher: Teacher, inputs, positions: str = "pooled"):
    """What the last layer gives."""
    name = last_layer(teacher.model, positions)
    taps = teacher.taps([name])
    with taps.recording():
        teacher(inputs)
    return taps.take()[name]


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_the_vision_side_of_a_whole_model_is_the_teacher(family):
    model = whole(family)
    teacher = Teacher(model)
    assert teacher.model is model.vision_model
    inputs = teacher.inputs_for({"pixel_values": pixels()})
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)  # its own size
    expected = model.vision_model(**inputs).last_hidden_state
    assert_close(recorded(teacher, inputs, "all").tensor, expected)


def test_a_size_that_the_vision_side_cannot_take_is_named():
    with pytest.raises(ValueError, match="Its own image size is 32 x 32"):
        Teacher(whole("CLIP"), resize=False).check_input({"pixel_values": pixels()})


def test_a_whole_model_without_a_vision_model_is_refused():
    from hf_reprot.models.vision import vision_side

    model = whole("CLIP")
    model.vision_model = torch.nn.Identity()
    with pytest.raises(ValueError, match="pass that module as teacher"):
        vision_side(model)


# ---- patches ----


@pytest.fixture(scope="module")
def naflex_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("naflex")
    naflex().save_pretrained(folder)
    Siglip2ImageProcessor(patch_size=8, max_num_patches=12).save_pretrained(folder)
    return folder


def test_naflex_gets_the_patches_that_its_own_processor_makes(naflex_folder):
    """Of the student's images, in their order: whole images, undone from the student's normalisation."""
    teacher = Teacher.load(naflex_folder)
    images = pixels(3, 16, 24)
    eight_bits = (images * 255).round().to(torch.uint8)
    student = (eight_bits / 255 - 0.5) / 0.5
    inputs = teacher.inputs_for({"pixel_values": student}, HALVES)
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=12)
    own = processor([Image.fromarray(i.permute(1, 2, 0).numpy()) for i in eight_bits], return_tensors="pt")
    height, width = own["spatial_shapes"][0].tolist()
    assert inputs["spatial_shapes"].tolist() == own["spatial_shapes"].tolist()
    assert inputs["pixel_values"].shape == (3, height * width, 192)  # no padding
    assert_close(inputs["pixel_values"], own["pixel_values"][:, : height * width], atol=0.02, rtol=0)  # 8 bits
    assert teacher.preprocessing.mean == (0.5, 0.5, 0.5)
    layer = recorded(teacher, inputs)
    assert layer.grid == (height, width)
    expected = teacher.model(**own).last_hidden_state[:, : height * width].mean(1)
    assert_close(pair_neurons(layer, layer)[0], expected, atol=0.05, rtol=0)


def test_patches_that_are_given_are_taken_and_padding_is_in_no_mean(naflex_folder):
    teacher = Teacher.load(naflex_folder)
    processor = teacher.patches.processor
    made = [processor(list(pixels(1, 16, width)), do_rescale=False, return_tensors="pt") for width in (16, 48)]
    batch = {f"teacher_{name}": torch.cat([m[name] for m in made]) for name in made[0]}
    inputs = teacher.inputs_for(batch | {"pixel_values": pixels()})
    layer = recorded(teacher, inputs)
    assert layer.grid is None
    alone = [recorded(teacher, teacher.inputs_for({f"teacher_{k}": v for k, v in m.items()})) for m in made]
    expected = torch.cat([pair_neurons(one, one)[0] for one in alone])
    assert_close(pair_neurons(layer, layer)[0], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="different grids of patches"):
        pair_neurons(layer, layer, positions="all")


def test_naflex_in_memory_and_values_that_nobody_knows(caplog):
    teacher = Teacher(naflex())
    inputs = teacher.inputs_for({"pixel_values": pixels(2, 16, 16)})
    assert "normalised is not known" in caplog.text
    resized = torch.nn.functional.interpolate(pixels(2, 16, 16), (32, 32), mode="bilinear", antialias=True)
    assert_close(inputs["pixel_values"][:, 0, :3], resized[:, :, 0, 0], atol=1e-5, rtol=0)
    teacher.set_image_size(24)
    assert teacher.inputs_for({"pixel_values": pixels()}, HALVES)["spatial_shapes"].tolist() == [[3, 3]] * 2


# ---- processors of another version ----


@pytest.mark.parametrize("kind", ["DINOv3ViTImageProcessorFast", "DINOv3ViTImageProcessorNext"])
def test_a_processor_class_of_another_version(tmp_path, kind):
    model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**IMAGES))
    model.save_pretrained(tmp_path)
    settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2] * 3, "size": {"height": 32, "width": 32}}
    settings |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "image_processor_type": kind}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    expected = Preprocessing((0.4, 0.5, 0.6), (0.2,) * 3, (32, 32))
    assert Teacher.load(tmp_path).preprocessing == expected
    assert Preprocessing.of(image_processor(str(tmp_path))) == expected


def test_a_processor_that_nothing_can_load_is_told(tmp_path, caplog):
    transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**IMAGES)).save_pretrained(tmp_path)
    settings = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert Teacher.load(tmp_path).preprocessing == Preprocessing(size=(32, 32))
    assert "cannot be loaded" in caplog.text


# ---- families ----


def test_dinov3_convnext_with_every_position():
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1] * 4)
    teacher = Teacher(transformers.DINOv3ConvNextModel(config))
    inputs = teacher.inputs_for({"pixel_values": pixels(2, 64, 96)})
    layer = recorded(teacher, inputs, "all")
    assert layer.grid == (2, 3)
    expected = teacher.model(**inputs).last_hidden_state[:, 1:]  # behind the mean over the positions
    assert_close(pair_neurons(layer, layer, positions="all")[0], expected.flatten(0, 1))


_SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "settings", "grid"),
    [
        ("naflexvit_base_patch16_radio_v3", _SMALL, (4, 6)),
        ("vit_base_patch16_radio_v3", _SMALL | {"img_size": (64, 96)}, (4, 6)),
        ("vit_tiny_patch16_dinov3_qkvb", _SMALL, (4, 6)),
        ("convnext_tiny", {"depths": (1,) * 4, "dims": (8, 12, 16, 20)}, (2, 3)),
    ],
    ids=["C-RADIO NaFlex", "C-RADIO", "EUPE ViT", "EUPE ConvNeXt"],
)
def test_recent_timm_teachers(name, settings, grid):
    torch.manual_seed(0)
    teacher = Teacher(timm.create_model(name, num_classes=0, **settings))
    inputs = teacher.inputs_for({"pixel_values": pixels(2, 64, 96)}, HALVES)
    layer = recorded(teacher, inputs, "all")
    assert (tuple(layer.tensor.shape[2:]) if layer.layout == "nchw" else layer.grid) == grid
    pooled = recorded(teacher, inputs).tensor
    assert_close(pooled, teacher.model(inputs["pixel_values"]))  # a model without a head gives what feeds it


# ---- another size ----


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_another_size_for_a_transformers_model(family):
    teacher = Teacher(whole(family), image_size=48)
    inputs = teacher.inputs_for({"pixel_values": pixels()})
    assert inputs["pixel_values"].shape == (2, 3, 48, 48)
    expected = teacher.model(inputs["pixel_values"], interpolate_pos_encoding=True).last_hidden_state
    assert recorded(teacher, inputs, "all").grid == (6, 6)
    assert expected.shape[1] == 36 + (family == "CLIP")


def test_another_size_for_a_timm_model_with_one_size():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, **_SMALL)
    teacher = Teacher(model, image_size=48)
    assert recorded(teacher, teacher.inputs_for({"pixel_values": pixels()}), "all").grid == (6, 6)
    teacher.check_frozen()


def test_a_size_that_cannot_be():
    with pytest.raises(ValueError, match=r"50 x 50 pixels: its patches have 8 x 8\. The next sizes are 48 and 56"):
        Teacher(whole("CLIP"), image_size=50)
    with pytest.raises(ValueError, match="takes 224 x 224 only"):
        Teacher(timm.create_model("levit_128s"), image_size=64)
    with pytest.raises(ValueError, match="above 0"):
        Teacher(whole("CLIP"), image_size=0)


def test_the_processor_may_be_given_as_preprocessing():
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.1] * 3)
    assert Teacher(whole("CLIP"), preprocessing=processor).preprocessing == Preprocessing.of(processor)


# ---- between uses ----


def test_a_parked_teacher_lies_at_home_but_for_its_passes():
    teacher = Teacher(whole("CLIP"))
    inputs = teacher.inputs_for({"pixel_values": pixels()})
    expected = teacher.model(**inputs).last_hidden_state
    home = [p.data_ptr() for p in teacher.model.parameters()]
    seen = []
    teacher.park("cpu")
    weight = teacher.model.embeddings.patch_embedding.weight
    teacher.model.embeddings.register_forward_pre_hook(lambda *_: seen.append(weight.data_ptr()))
    layer = recorded(teacher, inputs, "all")
    assert len(seen) == 1
    assert seen[0] != weight.data_ptr()  # a copy, where it runs
    assert [p.data_ptr() for p in teacher.model.parameters()] == home
    assert_close(layer.tensor, expected)


@pytest.mark.parametrize("make", [lambda: whole("CLIP"), lambda: timm.create_model("resnet10t"), naflex])
def test_a_batch_of_texts_is_refused(make):
    tokens = {"input_ids": torch.ones(2, 5, dtype=torch.long), "attention_mask": torch.ones(2, 5)}
    with pytest.raises(ValueError, match="sees images, and the batch has none: it has input_ids, attention_mask"):
        Teacher(make()).inputs_for(tokens)


@pytest.mark.parametrize("family", ["AltCLIP", "Blip", "CLIPSeg", "MetaClip2", "Owlv2"])
@pytest.mark.parametrize("positions", ["pooled", "all"])
def test_other_models_of_images_and_texts(family, positions):
    model = whole(family)
    teacher = Teacher(model)
    inputs = teacher.inputs_for({"pixel_values": pixels()})
    layer = recorded(teacher, inputs, positions)
    if positions == "all":
        assert layer.grid == (4, 4)
    pooled = pair_neurons(layer, layer)[0]
    assert pooled.shape == (2, 24)
    if positions == "pooled" and family != "Blip":
        assert_close(pooled, teacher.model(**inputs).pooler_output)


def test_a_classifier_around_a_vision_model_sees_its_own_size_or_another():
    torch.manual_seed(0)
    config = transformers.CLIPConfig(vision_config=IMAGES, text_config=TEXT, num_labels=3)
    teacher = Teacher(transformers.CLIPForImageClassification(config))
    batch = {"pixel_values": pixels()}
    assert teacher.inputs_for(batch)["pixel_values"].shape == (2, 3, 32, 32)
    teacher.check_input(batch)
    teacher.set_image_size(48)
    assert teacher(teacher.inputs_for(batch)).shape == (2, 3)
    assert recorded(teacher, teacher.inputs_for(batch), "all").grid == (6, 6)

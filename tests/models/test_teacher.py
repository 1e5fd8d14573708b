"""Teachers: frozen, loaded from anywhere, with inputs of their own, and clear errors."""

import copy
import logging

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from hf_reprot.data.preprocessing import Preprocessing
from hf_reprot.models.modules import check_not_shared
from hf_reprot.models.student import create_timm_student, portable_state_dict
from hf_reprot.models.teacher import Teacher

TOKEN = "hf_" + "aB3" * 11


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test asks the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def vit_config(**changes) -> ViTConfig:
    settings = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return ViTConfig(**(settings | {"image_size": 16, "patch_size": 8, "num_labels": 3} | changes))


def bert_config() -> BertConfig:
    return BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=2
    )


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    ViTForImageClassification(vit_config()).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.4] * 3).save_pretrained(folder)
    return folder


# ---- frozen ----


def test_a_module_is_frozen_in_place_and_said_so(caplog):
    model = timm.create_model("resnet10t")
    with caplog.at_level(logging.INFO, logger="hf_reprot"):
        teacher = Teacher.load(model)
    assert teacher.model is model
    assert not any(p.requires_grad for p in model.parameters())
    assert "frozen" in caplog.text


def test_it_stays_in_evaluation_mode():
    teacher = Teacher.load(timm.create_model("resnet10t", drop_rate=0.5))
    teacher.model.train()
    assert not teacher.model.training
    teacher.model.layer4.train()
    assert not teacher.model.layer4.training
    teacher.model.train()
    images = {"pixel_values": torch.randn(2, 3, 32, 32)}
    before = teacher.model.bn1.running_mean.clone()
    assert_close(teacher(images), teacher(images), atol=0, rtol=0)  # dropout would differ
    assert_close(teacher.model.bn1.running_mean, before, atol=0, rtol=0)


def test_it_is_no_module_and_stays_out_of_a_state_dict():
    teacher = Teacher(nn.Linear(2, 2))
    student = nn.Linear(2, 2)
    student.teacher = teacher
    assert set(student.state_dict()) == {"weight", "bias"}


def test_a_teacher_unfrozen_later_is_refused():
    teacher = Teacher(nn.Linear(2, 2))
    teacher.check_frozen()
    teacher.model.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"1 trainable parameter\(s\) \(weight\)"):
        teacher.check_frozen()


def test_weights_shared_with_the_student_are_refused_before_freezing():
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"shares weights with the student \(0.weight, 0.bias, 1.weight, \.\.\.\)"):
        Teacher.load(student, student=student)
    assert all(p.requires_grad for p in student.parameters())
    Teacher.load(copy.deepcopy(student), student=student).check_not_shared(student)


def test_shared_memory_counts_even_under_another_parameter():
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    student.weight = nn.Parameter(teacher.weight.data)
    with pytest.raises(ValueError, match=r"\(weight\)"):
        check_not_shared(student, teacher)
    stats = nn.BatchNorm1d(2)
    other = nn.BatchNorm1d(2)
    other.running_mean = stats.running_mean
    with pytest.raises(ValueError, match="running_mean"):
        check_not_shared(other, stats)


def test_outputs_can_enter_a_graph():
    logits = Teacher(nn.Linear(2, 2))({"x": torch.ones(1, 2)})
    weight = torch.ones(2, requires_grad=True)
    (logits * weight).sum().backward()  # an inference tensor would refuse
    assert_close(weight.grad, logits[0])


# ---- sources ----


def test_a_folder_with_a_head_gives_the_head_and_its_processor(vit_folder):
    teacher = Teacher.load(vit_folder)
    assert isinstance(teacher.model, ViTForImageClassification)
    assert teacher.preprocessing == Preprocessing((0.4,) * 3, (0.5,) * 3, (16, 16))
    assert (teacher.name, teacher.revision) == (str(vit_folder), None)
    original = ViTForImageClassification.from_pretrained(vit_folder).eval()
    images = torch.randn(2, 3, 16, 16)
    assert_close(teacher({"pixel_values": images}), original(images).logits)


def test_a_folder_without_a_head_gives_the_bare_model(tmp_path):
    ViTModel(vit_config(), add_pooling_layer=False).save_pretrained(tmp_path)
    teacher = Teacher.load(str(tmp_path))
    assert type(teacher.model) is ViTModel
    assert teacher.model.pooler is None  # the checkpoint has none: a random one would teach noise
    assert teacher({"pixel_values": torch.randn(1, 3, 16, 16)}) is None


def test_heads_that_give_no_class_logits_are_left_out(tmp_path):
    BertForMaskedLM(bert_config()).save_pretrained(tmp_path)
    assert type(Teacher.load(tmp_path).model) is BertModel


def test_of_clip_the_vision_model_is_loaded(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    vision = small | {"image_size": 16, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=small | {"vocab_size": 9}, vision_config=vision, projection_dim=4)).eval()
    clip.save_pretrained(tmp_path)
    teacher = Teacher.load(tmp_path)
    assert type(teacher.model) is CLIPVisionModel
    images = torch.randn(2, 3, 16, 16)
    expected = clip.vision_model(pixel_values=images).pooler_output
    assert_close(teacher.model(pixel_values=images).pooler_output, expected)


def test_text_classifiers_keep_their_head(tmp_path):
    BertForSequenceClassification(bert_config()).save_pretrained(tmp_path)
    teacher = Teacher.load(tmp_path)
    tokens = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2), "labels": torch.tensor([1])}
    assert teacher(teacher.inputs_for(tokens)).shape == (1, 2)


def test_timm_folders_load(tmp_path):
    student = create_timm_student("resnet10t", ["a", "b"], pretrained_cfg={"input_size": (3, 32, 32)}).eval()
    student.save_pretrained(tmp_path, state_dict=portable_state_dict(student))
    teacher = Teacher.load(tmp_path, dtype="bfloat16")
    assert teacher.dtype == torch.bfloat16
    assert teacher.preprocessing.size == (32, 32)
    teacher = Teacher.load(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert_close(teacher({"pixel_values": images}), student(images).logits)


def test_timm_own_export_loads_with_the_number_of_classes_in_its_arguments(tmp_path):
    model = timm.create_model("resnet10t", num_classes=3).eval()
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True, model_args={"num_classes": 3})
    images = torch.randn(2, 3, 32, 32)
    assert_close(Teacher.load(tmp_path)({"pixel_values": images}), model(images))


def test_a_teacher_is_returned_as_it_is():
    teacher = Teacher(nn.Linear(2, 2))
    assert Teacher.load(teacher) is teacher
    assert Teacher.load(teacher, dtype="float64").dtype == torch.float64


def test_weights_left_out_of_a_checkpoint_are_an_error(tmp_path):
    model = ViTForImageClassification(vit_config())
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("classifier")}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks weights for 2 parameter.*classifier.bias"):
        Teacher.load(tmp_path)


def test_pickled_weights_are_not_read(tmp_path, vit_folder):
    (tmp_path / "config.json").write_text((vit_folder / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no safetensors weights"):
        Teacher.load(tmp_path)
    with pytest.raises(ValueError, match="use_safetensors"):
        Teacher.load(vit_folder, init_kwargs={"use_safetensors": False})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("org/name", "neither a folder here nor in the cache"),
        ("org/name@v1", "'org/name' at revision 'v1'"),
        ("timm/resnet50", "Did you mean 'timm/resnet50"),
        ("resnet50", "Did you mean 'timm/resnet50"),
        ("a b/c", "no name of a teacher"),
        ("/no/such/folder", "there is no folder"),
    ],
)
def test_what_does_not_exist_is_named(source, message):
    with pytest.raises(ValueError, match=message) as caught:
        Teacher.load(source, init_kwargs={"token": TOKEN})
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_arguments(vit_folder, tmp_path):
    with pytest.raises(TypeError, match="got int"):
        Teacher.load(3)
    with pytest.raises(ValueError, match=r"'int9'.*bfloat16"):
        Teacher.load(vit_folder, dtype="int9")
    with pytest.raises(ValueError, match=r"no config\.json"):
        Teacher.load(tmp_path)
    with pytest.raises(ValueError, match="another one"):
        Teacher.load("org/name@v1", init_kwargs={"revision": "v2"})
    with pytest.raises(ValueError, match="resize=True"):
        Teacher(nn.Linear(1, 1), resize=True)


# ---- inputs ----


def test_labels_are_dropped_and_teacher_columns_come_alone():
    teacher = Teacher(BertForSequenceClassification(bert_config()))
    batch = {
        "input_ids": torch.tensor([[1, 2, 3]]),
        "attention_mask": torch.ones(1, 3),
        "labels": torch.tensor([0]),
        "teacher_input_ids": torch.tensor([[4, 5]]),
        "teacher_labels": torch.tensor([0]),
    }
    assert set(teacher.inputs_for({k: v for k, v in batch.items() if "teacher" not in k})) == {
        "input_ids",
        "attention_mask",
    }
    own = teacher.inputs_for(batch)
    assert set(own) == {"input_ids"}
    assert own["input_ids"].tolist() == [[4, 5]]


def test_pixel_values_are_renormalised_but_not_the_teachers_own():
    student = Preprocessing((0.5,) * 3, (0.5,) * 3, (32, 32))
    teacher = Teacher(timm.create_model("resnet10t"))
    raw = torch.rand(2, 3, 32, 32)
    given = {"pixel_values": (raw - 0.5) / 0.5}
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert_close(teacher.inputs_for(given, student)["pixel_values"], (raw - mean) / std, atol=1e-5, rtol=0)
    own = teacher.inputs_for(given | {"teacher_pixel_values": raw}, student)
    assert own["pixel_values"] is raw


def test_unknown_normalisation_is_warned_about_once(caplog):
    teacher = Teacher(timm.create_model("resnet10t"))
    images = {"pixel_values": torch.rand(1, 3, 32, 32)}
    for _ in range(2):
        assert teacher.inputs_for(images, None)["pixel_values"] is images["pixel_values"]
    assert caplog.text.count("normalised is not known") == 1


def test_images_are_resized_where_the_teacher_has_one_size():
    grey = {"pixel_values": torch.rand(2, 1, 8, 8)}
    source = Preprocessing((0.0,), (1.0,), (8, 8))
    vit = Teacher(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3))
    assert vit.inputs_for(grey, source)["pixel_values"].shape == (2, 3, 32, 32)
    assert vit(vit.inputs_for(grey, source)).shape == (2, 3)
    cnn = timm.create_model("resnet10t")
    assert Teacher(cnn).inputs_for(grey, source)["pixel_values"].shape == (2, 3, 8, 8)
    always = Teacher(cnn, preprocessing=Preprocessing(size=(24, 24)), resize=True)
    assert always.inputs_for(grey, source)["pixel_values"].shape == (2, 3, 24, 24)


def test_a_size_that_it_cannot_take_is_named():
    teacher = Teacher(ViTForImageClassification(vit_config()), resize=False)
    with pytest.raises(ValueError, match=r"pixel_values \(2, 3, 8, 8\).*Its own image size is 16 x 16"):
        teacher.check_input({"pixel_values": torch.randn(2, 3, 8, 8)})
    Teacher(ViTForImageClassification(vit_config())).check_input({"pixel_values": torch.randn(2, 3, 8, 8)})
    tiny = Teacher(ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])))
    with pytest.raises(ValueError, match=r"does not take what it gets \(pixel_values \(2, 5, 8, 8\)\)"):
        tiny.check_input({"pixel_values": torch.randn(2, 5, 8, 8)})


def test_tokens_of_another_tokenizer_are_named():
    teacher = Teacher(BertForSequenceClassification(bert_config()))
    with pytest.raises(ValueError, match=r"knows 20 tokens and gets number 20.*teacher_input_ids"):
        teacher.check_input({"input_ids": torch.tensor([[1, 20]])})
    with pytest.raises(ValueError, match="It reads text"):
        Teacher(BertForSequenceClassification(bert_config()), name="t").check_input(
            {"attention_mask": torch.ones(1, 2)}
        )


def test_inputs_are_cast_to_its_type():
    teacher = Teacher.load(ViTForImageClassification(vit_config()), dtype=torch.bfloat16)
    own = teacher.inputs_for({"pixel_values": torch.randn(1, 3, 16, 16)})
    assert own["pixel_values"].dtype == torch.bfloat16
    assert teacher(own).dtype == torch.bfloat16


def test_plain_modules_get_their_only_input():
    teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    logits = teacher(teacher.inputs_for({"pixel_values": torch.zeros(2, 3, 2, 2), "labels": torch.zeros(2)}))
    assert logits.shape == (2, 3)


def test_a_batch_with_nothing_for_it_is_an_error():
    with pytest.raises(ValueError, match="it has labels, the teacher takes"):
        Teacher(ViTForImageClassification(vit_config())).inputs_for({"labels": torch.zeros(2)})


def test_models_without_a_head_give_no_logits():
    assert Teacher(timm.create_model("resnet10t", num_classes=0))({"x": torch.randn(1, 3, 32, 32)}) is None

"""Students without a head: they train, with labels beside or without, and are saved as what they are."""

import copy

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModel, ViTImageProcessor, pipeline

from hf_reprot.hub.record import RunRecord
from hf_reprot.models.modules import class_count, is_headless
from hf_reprot.models.student import create_timm_student, load_student
from hf_reprot.training.backbones import features_of
from tests.tiny_models import transformers_model
from tests.toy_models import Images, resnet, vit
from tests.training.runs import make_trainer

SIDE = 32
WITHOUT = {"task_weight": 0.0, "ot_weight": 1.0, "max_steps": 1}
STUDENTS = {
    "ViTModel": lambda: transformers_model("ViT", "Model"),
    "Dinov2Model": lambda: transformers_model("Dinov2", "Model"),
    "ConvNextModel": lambda: transformers_model("ConvNext", "Model"),
    "Dinov2Backbone": lambda: transformers_model("Dinov2", "Backbone"),
    "ConvNextBackbone": lambda: transformers_model("ConvNext", "Backbone"),
    "SwinBackbone": lambda: transformers_model("Swin", "Backbone"),
    "TimmWrapperModel": lambda: create_timm_student("resnet10t", None, pretrained_cfg={"input_size": [3, SIDE, SIDE]}),
    "timm": lambda: timm.create_model("resnet10t", num_classes=0),
}


@pytest.mark.parametrize("name", list(STUDENTS))
def test_it_trains_and_opens_again(name, tmp_path):
    data, processor = Images(16, image=SIDE), ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    given = {"processing_class": processor}
    trainer = make_trainer(tmp_path, model=STUDENTS[name](), data=data, trainer=given, **WITHOUT)
    student = trainer.model
    assert is_headless(student)
    assert class_count(student) is None
    before = copy.deepcopy(student.state_dict())
    trainer.train()
    assert any(not torch.equal(value, before[key]) for key, value in student.state_dict().items())
    trainer.save_model()
    trainer.create_model_card()
    record, card = RunRecord.load(tmp_path), ModelCard.load(tmp_path / "README.md")
    assert (record.classes, record.task, record.job) == (None, "image-feature-extraction", "representation")
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert "| Classes |" not in card.text
    again = load_student(tmp_path, head=None).eval()
    assert type(again) is type(student)
    if not name.endswith("Backbone"):  # AutoBackbone asks the Hub, also about a folder
        assert type(AutoModel.from_pretrained(tmp_path)) is type(student)
    student.eval()
    with torch.no_grad():
        ours, theirs = (features_of(model(data.pixels)) for model in (student, again))
    torch.testing.assert_close(theirs, ours)
    assert f"{'AutoBackbone' if name.endswith('Backbone') else 'AutoModel'}.from_pretrained" in card.text
    if student.config.model_type == "timm_wrapper":
        model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(data.pixels), student(data.pixels).pooler_output)
        assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 0
        assert "num_classes=0" in card.text


def test_the_pipeline_extracts_features(tmp_path):
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    transformers_model("Dinov2", "Model").save_pretrained(tmp_path)
    trainer = make_trainer(
        tmp_path / "out",
        model=load_student(tmp_path, head=None),
        data=Images(16, image=SIDE),
        trainer={"processing_class": processor},
        **WITHOUT,
    )
    trainer.save_model()
    found = pipeline("image-feature-extraction", model=str(tmp_path / "out"))
    image = Image.new("RGB", (40, 50), "red")
    with torch.no_grad():
        own = trainer.model.eval()(**processor(image, return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(torch.tensor(found(image)), own)


def test_the_backbone_of_a_classifier_forgets_its_classes(tmp_path):
    model = vit(labels=3)
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    model.save_pretrained(tmp_path)
    backbone = load_student(tmp_path, ["a", "b"], head=False)
    assert type(backbone).__name__ == "ViTModel"
    assert "a" not in backbone.config.id2label.values()
    theirs = model.base_model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in backbone.state_dict().items())
    assert getattr(backbone, "pooler", None) is None  # it would be random


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "it has no head that answers .* Set task_weight=0"), ({"task_weight": 0.0, "kd_weight": 1.0}, "no logits")],
)
def test_terms_that_read_logits_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, model=resnet().base_model, **settings)

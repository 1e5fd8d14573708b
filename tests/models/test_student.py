"""Students load again: in transformers, in a pipeline and in timm, with the same logits."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BertConfig,
    BertForMaskedLM,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)

from hf_reprot.models.student import (
    as_student,
    create_timm_student,
    load_student,
    portable_state_dict,
    wrap_timm,
)

NAMES = ["cat", "dog", "fox"]


def save(student, folder) -> str:
    student.save_pretrained(folder, state_dict=portable_state_dict(student))
    return str(folder)


@pytest.mark.parametrize("architecture", ["resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_a_saved_student_loads_everywhere(architecture, tmp_path):
    student = create_timm_student(architecture, NAMES, pretrained_cfg={"input_size": (3, 32, 32)}).eval()
    folder = save(student, tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    pixels = AutoImageProcessor.from_pretrained(folder)(image)["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    with torch.no_grad():
        logits = student(pixels).logits
        loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
        assert_close(loaded(pixels).logits, logits)
        assert_close(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(pixels), logits)
    answers = pipeline("image-classification", model=folder)(image)
    assert loaded.config.id2label == dict(enumerate(NAMES))
    scores = {answer["label"]: answer["score"] for answer in answers}
    assert [scores[name] for name in NAMES] == pytest.approx(logits.softmax(-1)[0].tolist(), abs=1e-5)


def test_the_weights_have_timms_names(tmp_path):
    student = create_timm_student("resnet10t", NAMES)
    names = portable_state_dict(student)
    assert set(names) == set(timm.create_model("resnet10t", num_classes=3).state_dict())
    given = {"timm_model.a": torch.zeros(1)}
    assert set(portable_state_dict(student, given)) == {"a"}


def test_other_students_keep_their_names():
    other = nn.Linear(1, 1)
    assert portable_state_dict(other) is None
    assert set(portable_state_dict(other, {"timm_model.a": torch.zeros(1)})) == {"timm_model.a"}


def test_the_input_size_shapes_an_architecture_of_one_size():
    student = create_timm_student("vit_tiny_patch16_224", NAMES, pretrained_cfg={"input_size": (3, 32, 48)}, depth=1)
    assert student.timm_model.patch_embed.img_size == (32, 48)
    assert student.config.model_args == {"img_size": [32, 48], "depth": 1}
    assert student.config.pretrained_cfg["input_size"] == [3, 32, 48]


def test_the_config_records_the_size_that_the_model_has():
    student = create_timm_student("vit_tiny_patch16_224", NAMES, img_size=32, depth=1)
    assert student.config.pretrained_cfg["input_size"] == [3, 32, 32]
    with pytest.raises(ValueError, match=r"input_size is \(3, 64, 64\) but the model takes .* \(3, 32, 32\)"):
        create_timm_student("vit_tiny_patch16_224", NAMES, pretrained_cfg={"input_size": (3, 64, 64)}, img_size=32)


def test_grey_students(tmp_path):
    student = create_timm_student("resnet10t", NAMES, pretrained_cfg={"input_size": (1, 32, 32)}).eval()
    settings = student.config.pretrained_cfg
    assert settings["mean"] == pytest.approx([0.449], abs=1e-6)
    folder = save(student, tmp_path)
    pixels = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
        assert_close(loaded(pixels).logits, student(pixels).logits)


def test_new_weights_do_not_inherit_the_architectures_licence():
    assert "license" not in create_timm_student("resnet10t", NAMES).config.pretrained_cfg
    assert wrap_timm(timm.create_model("resnet10t", num_classes=3)).config.pretrained_cfg["license"] == "apache-2.0"


def test_the_wrapper_holds_the_module_itself():
    model = timm.create_model("resnet10t", num_classes=3)
    student = as_student(model)
    assert isinstance(student, TimmWrapperForImageClassification)
    assert student.timm_model is model
    assert not any(p.is_meta for p in student.parameters())
    assert student.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    pixels = torch.randn(2, 3, 32, 32)
    loss = student(pixels, labels=torch.tensor([0, 1])).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_what_is_no_bare_timm_model_is_left_alone():
    vit = ViTForImageClassification(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    wrapped = create_timm_student("resnet10t", NAMES)
    for model in (vit, wrapped, nn.Linear(1, 1)):
        assert as_student(model) is model
        with pytest.raises(TypeError, match="is no timm model"):
            wrap_timm(model)


def test_remembered_arguments_rebuild_a_bare_module(tmp_path):
    if not hasattr(timm.models, "get_model_args"):
        pytest.skip("this timm does not remember arguments")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=1, global_pool="avg").eval()
    folder = save(as_student(model), tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
        assert_close(loaded(pixels).logits, model(pixels))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"'resnet10x'.*Near: .*resnet10t"):
        create_timm_student("resnet10x", NAMES)
    with pytest.raises(ValueError, match="num_classes is set"):
        create_timm_student("resnet10t", NAMES, num_classes=3)
    with pytest.raises(ValueError, match="3 label names for a head of 4"):
        wrap_timm(timm.create_model("resnet10t", num_classes=4), NAMES)
    with pytest.raises(ValueError, match="3 label names for a head of 0 classes"):
        wrap_timm(timm.create_model("resnet10t", num_classes=0), NAMES)
    with pytest.raises(TypeError, match="Linear is no"):
        wrap_timm(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="other weights than the model has"):
        wrap_timm(timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2), NAMES, model_args={"depth": 1})


@pytest.mark.parametrize("kind", ["transformers", "timm"])
def test_a_pretrained_student_gets_a_head_for_its_labels(tmp_path, kind):
    if kind == "timm":
        start = create_timm_student("resnet10t", [f"old {i}" for i in range(7)])
        start.save_pretrained(tmp_path, state_dict=portable_state_dict(start))
    else:
        from tests.toy_models import vit

        start = vit(labels=7)
        start.save_pretrained(tmp_path)
    student = load_student(tmp_path, ["cat", "dog"])
    assert student.config.num_labels == 2
    head = [m for m in student.modules() if isinstance(m, torch.nn.Linear)][-1]
    assert head.out_features == 2
    same = [n for n, p in start.state_dict().items() if p.shape == student.state_dict()[n].shape]
    assert len(same) >= len(start.state_dict()) - 2
    assert all(torch.equal(start.state_dict()[n], student.state_dict()[n]) for n in same)
    student.save_pretrained(tmp_path / "new", state_dict=portable_state_dict(student))
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "new")
    assert list(again.config.id2label.values()) == ["cat", "dog"]
    assert again(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 2)


def test_a_student_from_nowhere(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nothing' to load a student from"):
        load_student(tmp_path / "nothing", ["a"], local_files_only=True)


def _edited(folder, edit):
    """The folder of a student, its weights changed."""
    weights = edit(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _start(kind, folder):
    from tests.toy_models import resnet, vit

    start = {"vit": vit, "resnet": resnet}[kind]() if kind != "timm" else create_timm_student("resnet10t", NAMES)
    save(start, folder)
    return folder


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])
def test_weights_that_do_not_fit_are_refused(tmp_path, kind):
    folder = _start(kind, tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    _edited(folder, lambda w: {f"other.{name}": value for name, value in w.items()})
    with pytest.raises(ValueError, match=r"lacks weights for .*which would be random"):
        load_student(folder)
    (folder / "model.safetensors").write_bytes(whole)
    norm = {"vit": "layernorm_before", "resnet": "embedder.normalization", "timm": "layer1.0.bn1"}[kind]
    _edited(folder, lambda w: {name: value for name, value in w.items() if norm not in name})
    with pytest.raises(ValueError, match=rf"lacks weights for .*{norm.split('.')[-1]}"):
        load_student(folder, NAMES)
    (folder / "model.safetensors").write_bytes(whole)
    if kind != "vit":  # the statistics of batch normalisation alone
        _edited(folder, lambda w: {name: value for name, value in w.items() if "running_var" not in name})
        with pytest.raises(ValueError, match="running_var"):
            load_student(folder)
        (folder / "model.safetensors").write_bytes(whole)
    endings = (".0.weight", "key.weight", "convolution.weight")
    inner = next(name for name in load_file(folder / "model.safetensors") if name.endswith(endings))
    _edited(folder, lambda w: w | {inner: torch.zeros(3, 3)})
    with pytest.raises(ValueError, match=r"have other shapes .*\(3, 3\) there"):
        load_student(folder, NAMES)


def test_layers_that_the_config_leaves_out_are_a_misfit_and_other_parts_are_not(tmp_path):
    folder = _start("vit", tmp_path)
    _edited(folder, lambda w: w | {"decoder.weight": torch.zeros(2, 2), "vit.pooler.dense.weight": torch.zeros(24, 24)})
    load_student(folder)
    _edited(folder, lambda w: w | {"vit.encoder.layer.2.output.dense.bias": torch.zeros(24)})
    with pytest.raises(ValueError, match=r"has 1 weight\(s\) more than ViTForImageClassification"):
        load_student(folder)


def test_a_new_head_is_said(tmp_path, caplog):
    folder = _start("vit", tmp_path)
    assert load_student(folder, NAMES).new_classes is None
    assert not caplog.records
    assert load_student(folder, ["cat", "dog"]).new_classes == 2
    assert "(classifier) is new, with random weights: the checkpoint's is for other classes" in caplog.text
    caplog.clear()
    _edited(folder, lambda w: {name: value for name, value in w.items() if "classifier" not in name})
    assert load_student(folder, NAMES).new_classes == len(NAMES)
    assert "is new, with random weights: the checkpoint has none" in caplog.text


@pytest.mark.parametrize("names", [[*NAMES, "new"], [NAMES[0], "new", *NAMES[2:]], NAMES[::-1]])
def test_the_classes_whose_rows_are_new_are_counted(tmp_path, names):
    save(load_student(_start("vit", tmp_path / "unnamed"), NAMES), tmp_path / "named")
    assert load_student(tmp_path / "named", names).new_classes == len(set(names) - set(NAMES))


DAMAGES = {
    "config is cut": lambda f: (f / "config.json").write_text('{"model_type": "vi'),
    "config is a list": lambda f: (f / "config.json").write_text("[]"),
    "config is empty": lambda f: (f / "config.json").write_bytes(b""),
    "config is binary": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
    "no config": lambda f: (f / "config.json").unlink(),
    "no such model": lambda f: _configured(f, model_type="nothing"),
    "no number": lambda f: _configured(f, hidden_size="wide"),
    "not divisible": lambda f: _configured(f, num_attention_heads=7),
    "no such activation": lambda f: _configured(f, hidden_act="nothing"),
    "no layers": lambda f: _configured(f, num_hidden_layers=None),
    "weights are cut": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
    "weights are empty": lambda f: (f / "model.safetensors").write_bytes(b""),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "many layers": lambda f: _configured(f, num_hidden_layers=10**9),
    "wide layers": lambda f: _configured(f, hidden_size=10**9),
    "large layers": lambda f: _configured(f, hidden_size=2**20, intermediate_size=2**22),
    "large images": lambda f: _configured(f, image_size=2**24),
    "many classes": lambda f: _configured(f, id2label=7),
}


def _configured(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_line(tmp_path, damage):
    folder = _start("vit", tmp_path)
    DAMAGES[damage](folder)
    with pytest.raises(ValueError) as caught:
        load_student(folder)
    assert "\n" not in str(caught.value)
    if damage not in ("weights are cut", "weights are empty", "no weights", "not divisible"):
        with pytest.raises(ValueError):
            load_student(folder, NAMES, from_scratch=True)


def test_a_timm_config_of_absurd_size(tmp_path):
    folder = _start("timm", tmp_path)
    for arguments in ({"layers": [10**9]}, {"width": 2.0, "stem_width": 10**9}):
        _configured(folder, model_args=arguments)
        with pytest.raises(ValueError, match="at most"):
            load_student(folder)


@pytest.mark.parametrize("architecture", ["mobilenetv3_small_050", "resnet10t", "vit_tiny_patch16_224"])
def test_new_weights_are_those_that_timm_draws(tmp_path, architecture):
    save(create_timm_student(architecture, NAMES), tmp_path)
    torch.manual_seed(3)
    ours = create_timm_student(architecture, ["a", "b"]).state_dict()
    torch.manual_seed(3)
    student = load_student(tmp_path, ["a", "b"], from_scratch=True)
    theirs = student.state_dict()
    assert student.config.id2label == {0: "a", 1: "b"}
    assert student.weights_from == "scratch"
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class Twice(nn.Module):
    """One layer under two names, which nothing declares."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first


def test_shared_weights_of_a_timm_model_load_again(tmp_path):
    """CoaT has one position encoding in all blocks of a stage; transformers refuses to save it."""
    student = create_timm_student("coat_tiny", NAMES, img_size=32, embed_dims=[16] * 4, serial_depths=[1] * 4).eval()
    weights = portable_state_dict(student)
    where = [tensor.untyped_storage().data_ptr() for tensor in weights.values()]
    assert len(set(where)) == len(where)
    folder = save(student, tmp_path)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = student(pixels).logits
        loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
        assert_close(loaded(pixels).logits, logits)
        assert_close(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(pixels), logits)


def test_shared_weights_of_any_module_are_parted():
    model = Twice()
    weights = portable_state_dict(model)
    assert weights["first.weight"].data_ptr() != weights["second.weight"].data_ptr()
    assert torch.equal(weights["first.weight"], model.first.weight)
    assert torch.equal(weights["second.weight"], model.first.weight)


def test_weights_that_a_model_declares_as_tied_stay_as_they_are():
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    assert portable_state_dict(BertForMaskedLM(config)) is None

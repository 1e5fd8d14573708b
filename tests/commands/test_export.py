"""A student as ONNX: the graph is the student, its figures stand on the card, and a push takes it along."""

import numpy as np
import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation, ViTImageProcessor

from hf_reprot.cli import main
from hf_reprot.commands.export import export_student
from hf_reprot.hub.contents import student_contents
from hf_reprot.hub.record import RunRecord
from tests.cache.samples import photos
from tests.hub.samples import record
from tests.toy_models import resnet

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def saved(folder, model, size=16):
    model.eval().save_pretrained(folder)
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


def onnx_names(folder):
    return [content.path_in_repo for content in student_contents(folder) if content.path_in_repo.endswith(".onnx")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = saved(tmp_path_factory.mktemp("student"), resnet())
    record().save(folder)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(folder), "--samples", "5"])
    assert ended.value.code == 0
    return folder


def test_the_graph_gives_the_students_outputs(exported):
    session = onnxruntime.InferenceSession(exported / "onnx" / "model.onnx")
    assert [i.name for i in session.get_inputs()] == ["pixel_values"]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    for batch in (1, 3):
        pixels = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            expected = resnet().eval()(pixels).logits
        (found,) = session.run(None, {"pixel_values": pixels.numpy()})
        assert np.abs(found - expected.numpy()).max() < 1e-4


def test_its_figures_stand_on_the_card_and_it_is_pushed(exported):
    (facts,) = RunRecord.load(exported).exports
    path = exported / "onnx" / "model.onnx"
    assert (facts.bytes, facts.images, facts.tolerance) == (path.stat().st_size, 5, 1e-3)
    assert 0 <= facts.difference < 1e-4
    assert facts.speed.batch_size == facts.torch_speed.batch_size == 5
    card = (exported / "README.md").read_text()
    assert f"`onnx/model.onnx`, {facts.bytes / 1e6:,.1f} MB, opset {facts.opset}; onnxruntime" in card
    assert f"{facts.speed.samples_per_second:,.0f} images a second" in card
    assert "\n- onnx\n" in card
    assert onnx_names(exported) == ["onnx/model.onnx"]


def test_another_file_in_its_place_is_not_pushed(exported, tmp_path):
    folder = saved(tmp_path, resnet())
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"a teacher's")
    assert onnx_names(folder) == []
    RunRecord.load(exported).save(folder)
    assert onnx_names(folder) == []  # the record is of other bytes


def test_a_graph_that_differs_is_refused_and_not_left(tmp_path):
    folder = saved(tmp_path / "student", resnet())
    photos(3).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"logits by .* of its largest number on 3 images, where 1e-12 is allowed"):
        export_student(folder, dataset=str(tmp_path / "data"), tolerance=1e-12)
    assert not list(folder.rglob("*.onnx"))


def test_what_cannot_be_exported(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path), "--format", "tflite"])
    assert ended.value.code == 2
    assert "unknown format 'tflite': choose one of 'onnx'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is no folder on this machine: say with --output where"):
        export_student("name/student")
    with pytest.raises(ValueError, match="samples must be at least 1 and tolerance above 0"):
        export_student(tmp_path, tolerance=0.0)


def test_a_dense_student_keeps_its_head(tmp_path):
    config = SegformerConfig(
        num_encoder_blocks=1,
        depths=[1],
        sr_ratios=[1],
        hidden_sizes=[8],
        patch_sizes=[3],
        strides=[2],
        num_attention_heads=[1],
        mlp_ratios=[1],
        decoder_hidden_size=8,
        num_labels=4,
    )
    folder = saved(tmp_path, SegformerForSemanticSegmentation(config))
    export_student(folder, samples=2)
    (output,) = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx").get_outputs()
    assert (output.name, output.shape[1]) == ("logits", 4)

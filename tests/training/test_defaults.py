"""What stands where the user gives nothing: accuracy, lines of the log, a student and an adapter by name."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessor

from hf_reprot import OTTransferConfig, OTTransferTrainer
from tests.toy_models import IMAGE, Images, resnet, vit
from tests.training.runs import make_config, make_trainer


def colours(count: int = 12) -> datasets.Dataset:
    """Images of one colour each, with its name."""
    names = ["blue", "green", "red", "white"]
    values = [(0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 255)]
    rows = [(Image.new("RGB", (IMAGE, IMAGE), values[i % 4]), i % 4) for i in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": [r[0] for r in rows], "label": [r[1] for r in rows]}, features=features)


def right_answers(trainer, data) -> float:
    trainer.model.eval()
    with torch.no_grad():
        answers = trainer.model(data.pixels).logits.argmax(-1)
    return (answers == data.labels).float().mean().item()


def test_accuracy_is_measured(tmp_path):
    data = Images(32, seed=3)
    trainer = make_trainer(tmp_path, eval_data=data, max_steps=1)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == pytest.approx(right_answers(trainer, data))
    predicted = trainer.predict(data)
    assert predicted.predictions.shape == (32, 3)  # logits, as ever
    assert predicted.metrics["test_accuracy"] == pytest.approx(metrics["eval_accuracy"])


def test_what_the_user_gives_is_taken(tmp_path):
    given = {"compute_metrics": lambda prediction: {"own": 1.0}}
    metrics = make_trainer(tmp_path, eval_data=Images(8), trainer=given).evaluate()
    assert metrics["eval_own"] == 1
    assert "eval_accuracy" not in metrics


class Targets(Images):
    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": torch.tensor([0.0, 1.0, 0.0])}


def test_no_accuracy_where_there_are_no_classes_or_nothing_taught_them(tmp_path):
    student = vit()
    student.config.problem_type = "multi_label_classification"
    trainer = make_trainer(tmp_path, model=student, data=Targets(8), eval_data=Targets(8), ot_weight=1.0)
    assert "eval_accuracy" not in trainer.evaluate()
    untaught = make_trainer(tmp_path, task_weight=0.0, ot_weight=1.0, data=Images(labelled=False), eval_data=Images(8))
    assert "eval_accuracy" not in untaught.evaluate()
    no_labels = make_trainer(tmp_path, eval_data=Images(8, labelled=False))
    assert "eval_accuracy" not in no_labels.evaluate()


def test_a_search_is_for_the_loss_as_ever(tmp_path):
    pytest.importorskip("optuna")
    given = {"model_init": lambda: vit()}
    trainer = make_trainer(
        tmp_path, model=False, trainer=given, eval_data=Images(8), eval_strategy="steps", eval_steps=1
    )
    seen = []
    trainer.log = lambda logs, *_: seen.append(logs)
    best = trainer.hyperparameter_search(lambda trial: {}, n_trials=1, direction="minimize", backend="optuna")
    losses = [logs["eval_loss"] for logs in seen if "eval_loss" in logs]
    assert best.objective == pytest.approx(losses[-1])


def test_a_line_of_the_log_every_ten_steps(tmp_path):
    assert OTTransferConfig(output_dir=str(tmp_path)).logging_steps == 10
    assert make_config(tmp_path, logging_steps=3).logging_steps == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("student")
    vit(labels=3).save_pretrained(path)
    ViTImageProcessor(size={"height": IMAGE, "width": IMAGE}).save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_student_by_its_name(tmp_path, folder, kind):
    trainer = OTTransferTrainer(
        model=kind(folder),
        teacher_model=resnet(seed=1),
        args=make_config(tmp_path, ot_weight=1.0, max_steps=1),
        train_dataset=colours(),
    )
    assert trainer.model.config.id2label == {0: "blue", 1: "green", 2: "red", 3: "white"}
    assert type(trainer.processing_class) is type(AutoImageProcessor.from_pretrained(folder))
    same = trainer.model.vit.layers[0].mlp.fc1 if hasattr(trainer.model.vit.layers[0].mlp, "fc1") else None
    if same is not None:
        assert torch.equal(same.weight.cpu(), vit().vit.layers[0].mlp.fc1.weight)
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["ot_loss"])


def test_a_student_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere"):
        OTTransferTrainer(
            model=str(tmp_path / "nowhere"), args=make_config(tmp_path, ot_weight=0.0), train_dataset=colours()
        )


def test_an_adapter_by_its_config(tmp_path, folder):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
    given = {"peft_config": config}
    trainer = make_trainer(tmp_path, model=vit(), trainer=given, max_steps=1)
    assert isinstance(trainer.model, peft.PeftModel)
    trainable = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "classifier" in name for name in trainable)
    with pytest.raises(ValueError, match="has an adapter already"):
        make_trainer(tmp_path, model=trainer.model, trainer=given)
    with pytest.raises(ValueError, match="peft_config needs a model"):
        make_trainer(tmp_path, model=False, trainer=given | {"model_init": lambda: vit()})


def test_raw_images_that_nothing_prepares(tmp_path):
    with pytest.raises(ValueError, match=r"raw images .*processing_class"):
        make_trainer(tmp_path, data=colours())


def test_more_classes_than_the_student_has(tmp_path):
    processor = ViTImageProcessor(size={"height": IMAGE, "width": IMAGE})
    with pytest.raises(ValueError, match=r"4 classes|num_labels=4"):
        make_trainer(tmp_path, data=colours(), trainer={"processing_class": processor})


def test_masks_for_a_student_that_answers_once_an_image(tmp_path):
    rows = {"pixel_values": np.zeros((4, 3, IMAGE, IMAGE), np.float32), "labels": np.zeros((4, 2, 2), np.int64)}
    masks = datasets.Dataset.from_dict(rows).with_format("torch")
    refusal = "ViTForImageClassification answers once a sample, and the column 'labels' holds list of list of int64"
    with pytest.raises(ValueError, match=refusal):
        make_trainer(tmp_path, data=masks)
    make_trainer(tmp_path, data=masks, task_weight=0.0)  # no label takes part

    class Masks(Images):  # tells nothing before its first batch
        def __getitem__(self, index):
            return {"pixel_values": self.pixels[index], "labels": torch.zeros(2, 2, dtype=torch.long)}

    with pytest.raises(ValueError, match=r"labels have the shape \(8, 2, 2\)"):
        make_trainer(tmp_path, data=Masks(8)).train()

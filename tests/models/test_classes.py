"""Which class of data, student and teacher is the same one: by name, whatever the order, or refused."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from transformers import ViTImageProcessor

from hf_reprot import Teacher, create_timm_student, load_student
from hf_reprot.models.classes import data_names, names_at_their_places, pair_names, plain_name
from hf_reprot.models.student import portable_state_dict
from tests.toy_models import resnet, vit
from tests.training.runs import make_trainer, training_logs

ANIMALS = ["cat", "dog", "bird"]


def named(model, names):
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    return model


def pictures(names, samples=12):
    """Images of one colour with a ClassLabel."""
    images = [PILImage.new("RGB", (16, 16), (20 * i, 250 - 20 * i, 90)) for i in range(samples)]
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"image": images, "label": [i % len(names) for i in range(samples)]}, features=features)


def prepared(folder, student, names, *, eval_names=None, teacher=None, **settings):
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    evaluation = pictures(eval_names) if eval_names is not None else None
    return make_trainer(
        folder, model=student, teacher=teacher, data=pictures(names), eval_data=evaluation,
        trainer={"processing_class": processor}, **{"ot_weight": 0.0} | settings,
    )  # fmt: skip


# ---- names ----


@pytest.mark.parametrize(
    ("one", "other"),
    [("Golden Retriever", "golden_retriever"), ("hot-dog", "Hot  Dog "), ("t-shirt", "T_Shirt"), ("Straße", "STRASSE")],
)
def test_how_a_name_is_written_does_not_count(one, other):
    assert plain_name(one) == plain_name(other)
    assert pair_names([one, "x"], ["x", other]).columns == [1, 0]


@pytest.mark.parametrize(
    ("theirs", "ours", "columns"),
    [
        (["dog", "cat", "bird"], ANIMALS, [1, 0, 2]),
        (["bird", "cat"], ANIMALS, [2, 0]),
        (["fox", "bird", "dog", "owl", "cat"], ANIMALS, [None, 2, 1, None, 0]),
        (["dog", "cat", "fox"], ANIMALS, None),  # some of either side only
        (["ant", "bee", "fly"], ANIMALS, None),
        (["0", "1", "2"], ANIMALS, [0, 1, 2]),  # they only count
        (["0", "1"], ["0", "1", "2"], None),  # of other lengths, numbers say nothing
        (["1", "0"], ["0", "1"], [1, 0]),
        (["-1", "1"], ["1", "-1"], [1, 0]),
        (["cat", "cat", "dog"], ANIMALS, None),  # twice
        (["crane", "owl", "crane"], ["crane", "owl", "crane"], [0, 1, 2]),  # the same list, though one stands twice
        (["a b", "a_b"], ["a_b", "a b"], [1, 0]),  # told apart where both are there
    ],
)
def test_pairs(theirs, ours, columns):
    assert pair_names(theirs, ours).columns == columns


def test_one_name_of_many_may_be_spelled_in_another_way():
    many = [f"kind of {chr(97 + i)}{chr(97 + j)}" for i in range(10) for j in range(10)]
    ours = [*many[:-1], "crane"]
    assert names_at_their_places([*many[:-1], "crane 2"], ours) == (99,)
    assert names_at_their_places([*many[:-1], "sofa"], ours) is None
    assert pair_names([*many[:-1], "sofa"], ours).columns is None
    assert names_at_their_places(["cat", "dog", "birds"], ANIMALS) is None  # of few, none may


def test_names_of_a_data_set():
    data = Dataset.from_dict(
        {"a": [0], "b": [[0, 1]], "c": [0]},
        features=Features({"a": Value("int64"), "b": List(ClassLabel(names=["x", "y"])), "c": ClassLabel(names=["z"])}),
    )  # fmt: skip
    assert data_names(data, ["missing", "a", "b", "c"]) == ["x", "y"]
    assert data_names(data, ["a", None]) is None
    assert data_names([1, 2], ["a"]) is None


# ---- data and student ----


@pytest.mark.parametrize("kind", ["transformers", "timm"])
def test_an_unnamed_student_takes_the_datas_names(tmp_path, kind):
    student = vit()
    if kind == "timm":
        student = create_timm_student("resnet10t", [f"LABEL_{i}" for i in range(3)])
    trainer = prepared(tmp_path, student, ANIMALS, teacher=resnet(seed=1))
    assert student.config.id2label == dict(enumerate(ANIMALS))
    assert student.config.label2id == {name: i for i, name in enumerate(ANIMALS)}
    assert trainer.class_notes == ("The student had no class names and takes the data's names: cat, dog, bird.",)
    trainer.save_model(tmp_path / "saved")
    assert load_student(tmp_path / "saved").config.id2label == dict(enumerate(ANIMALS))


@pytest.mark.parametrize("names", [["dog", "cat", "bird"], ["rose", "tulip", "daisy"], ["cat", "dog", "fish"]])
def test_a_student_of_other_names_is_refused(tmp_path, names):
    with pytest.raises(ValueError, match=f"Data: cat, dog, bird. Student: {', '.join(names)}.*load_student"):
        prepared(tmp_path, named(vit(), names), ANIMALS, teacher=resnet(seed=1))


def test_the_line_that_a_refusal_names_is_right(tmp_path):
    student, data = named(vit(), ["dog", "cat", "bird"]), pictures(ANIMALS)
    aligned = data.align_labels_with_mapping(student.config.label2id, "label")
    assert data_names(aligned, ["label"]) == ["dog", "cat", "bird"]


@pytest.mark.parametrize("names", [["Cat", "DOG ", "bird"], ["cat", "dog", "bird", "fish"], ["0", "1", "2"]])
def test_a_student_with_the_datas_names_at_their_places(tmp_path, names):
    student = named(vit(labels=len(names)), names)
    prepared(tmp_path, student, ANIMALS, teacher=resnet(seed=1)).train()
    assert list(student.config.id2label.values()) == names


def test_evaluation_data_with_other_numbers_are_refused(tmp_path):
    moved = ["bird", "dog", "cat"]
    with pytest.raises(ValueError, match=r"classes of eval_dataset .*another order.*Data: bird, dog, cat"):
        prepared(tmp_path, vit(), ANIMALS, eval_names=moved, teacher=resnet(seed=1))
    trainer = prepared(tmp_path, vit(), ANIMALS, teacher=resnet(seed=1))
    for use in (trainer.evaluate, trainer.predict, trainer.fit_head):
        with pytest.raises(ValueError, match="another order"):
            use(pictures(moved))
    with pytest.raises(ValueError, match="the student has 3 classes"):
        prepared(tmp_path, vit(), [*ANIMALS, "fish"], teacher=resnet(seed=1))


def test_without_labels_their_names_do_not_matter_to_training(tmp_path):
    student = named(vit(), ["rose", "tulip", "daisy"])
    trainer = prepared(tmp_path, student, ANIMALS, teacher=resnet(seed=1), task_weight=0.0, ot_weight=1.0)
    with pytest.raises(ValueError, match="contradict"):
        trainer.evaluate(pictures(ANIMALS))


# ---- teachers ----


def kd_of_first_step(tmp_path, teacher, **settings):
    student = named(vit(), ANIMALS)
    settings = {"kd_weight": 1.0, "ot_weight": 0.0, "max_steps": 1, "train_sampling_strategy": "sequential"} | settings
    trainer = make_trainer(tmp_path, model=student, teacher=teacher, **settings)
    trainer.train()
    return trainer, training_logs(trainer)[0]


def moved_head(model, order, names):
    """The same model with its outputs, and their names, in another order."""
    layer = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    layer.weight.data, layer.bias.data = layer.weight.data[order], layer.bias.data[order]
    return named(model, [names[i] for i in order])


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_the_order_of_a_teachers_classes_changes_nothing(tmp_path, problem):
    losses = []
    for order in ([0, 1, 2], [2, 0, 1]):
        teacher = moved_head(resnet(3, seed=1), order, ["Cat", "dog", "BIRD"])
        teacher.config.problem_type = problem
        trainer, entry = kd_of_first_step(tmp_path, teacher, task_weight=0.0)
        losses.append([entry["kd_loss"], entry["kd_agreement"], entry["grad_norm"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert "by name, in another order" in trainer.class_notes[-1]


def test_a_teacher_of_more_classes_is_heard_on_those_of_the_student(tmp_path):
    """Its answers among them are its softmax over them alone."""
    teacher = named(resnet(5, seed=1), ["owl", "bird", "cat", "fox", "dog"])
    trainer, entry = kd_of_first_step(tmp_path, teacher, task_weight=0.0, kd_temperature=1.0, learning_rate=0.0)
    x = next(iter(trainer.get_train_dataloader()))["pixel_values"]
    trainer.model.eval()
    with torch.no_grad():
        p = teacher(x).logits[:, [2, 4, 1]].softmax(-1)
        q = trainer.model(x).logits.softmax(-1)
    assert entry["kd_loss"] == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-4)


@pytest.mark.parametrize("names", [["dog", "cat", "fish"], ["rose", "tulip", "daisy"], ["cat", "fish"]])
def test_a_teacher_of_other_names_is_refused_where_its_logits_teach(tmp_path, names):
    student, teacher = named(vit(), ANIMALS), named(resnet(len(names), seed=1), names)
    with pytest.raises(ValueError, match=f"Teacher: {', '.join(names)}. Student: cat, dog, bird.*classes="):
        make_trainer(tmp_path, model=student, teacher=teacher, kd_weight=1.0)
    trainer = make_trainer(tmp_path, model=student, teacher=teacher)  # its representation teaches
    assert trainer.transfer.known_classes == [None]
    said = Teacher(teacher, classes=["Dog", "cat", None][: len(names)] if len(names) == 3 else ["cat", None])
    assert make_trainer(tmp_path, model=student, teacher=said, kd_weight=1.0).transfer.known_classes[0][-1] is None


def test_a_student_that_logits_alone_teach_is_called_as_the_teacher(tmp_path):
    student, teacher = vit(), named(resnet(3, seed=1), ANIMALS)
    trainer = make_trainer(tmp_path, model=student, teacher=teacher, kd_weight=1.0, task_weight=0.0)
    assert list(student.config.id2label.values()) == ANIMALS
    assert "takes the teacher's names" in trainer.class_notes[0]
    student = vit()
    make_trainer(tmp_path, model=student, teacher=teacher, kd_weight=1.0)  # labels say what the outputs mean
    assert student.config.id2label[0] == "LABEL_0"


# ---- load_student ----


def saved(folder, kind, names):
    torch.manual_seed(3)
    student = create_timm_student("resnet10t", names) if kind == "timm" else named(vit(labels=len(names)), names)
    student.save_pretrained(folder, state_dict=portable_state_dict(student))
    return rows_of(student)


def rows_of(student):
    layer = [m for m in student.modules() if isinstance(m, torch.nn.Linear)][-1]
    return torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], 1)


@pytest.mark.parametrize("kind", ["transformers", "timm"])
@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["bird", "Cat", "dog"], {0: 2, 1: 0, 2: 1}),
        (["rose", "cat", "tulip"], {1: 0}),
        (["rose", "tulip", "daisy"], {}),
        (["cat", "dog", "bird"], {0: 0, 1: 1, 2: 2}),
        (["fish", "BIRD"], {1: 2}),
        (["fish", "bird", "cow", "cat"], {1: 2, 3: 0}),
        (["0", "1", "2"], {}),
    ],
)
def test_rows_of_a_head_go_where_their_names_go(tmp_path, kind, names, kept):
    old = saved(tmp_path, kind, ANIMALS)
    student = load_student(tmp_path, names)
    new = rows_of(student)
    assert list(student.config.id2label.values()) == names
    assert len(new) == len(names)
    for i, row in enumerate(new):
        weight = row[:-1]
        same = [j for j in range(3) if torch.equal(weight, old[j, :-1])]
        assert same == ([kept[i]] if i in kept else []), (i, same)
        if i in kept:
            assert torch.equal(row, old[kept[i]])
    student.save_pretrained(tmp_path / "new", state_dict=portable_state_dict(student))
    again = load_student(tmp_path / "new")
    assert torch.equal(rows_of(again), new)
    assert list(again.config.id2label.values()) == names


def test_a_head_without_names_keeps_its_rows(tmp_path):
    old = saved(tmp_path, "transformers", ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert torch.equal(rows_of(load_student(tmp_path, ANIMALS)), old)

"""Several teachers: their shares, the classes that each knows, scales that are comparable, logs, card, resuming."""

import copy
import json

import pytest
import torch

from hf_reprot import OTTransferConfig, Teacher
from hf_reprot.commands.train import parse_recipe
from hf_reprot.features.pairs import LayerPair
from hf_reprot.hub.card import render_card
from hf_reprot.losses import RepresentationTransport
from hf_reprot.losses.baselines import FEATURE_LOSSES
from hf_reprot.training.teachers import load_teachers, pair_shares, teacher_names, teacher_variance
from tests.toy_models import Images, resnet, vit
from tests.training.runs import make_config, make_trainer, training_logs, weights_of

ANIMALS = ["cat", "cow", "dog"]


def named(model, names):
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    return model


def two(**changes):
    """A teacher of cow and cat, and one of dog and cow."""
    return [
        Teacher(resnet(2, seed=1), name="org/first", classes=[1, 0], **changes),
        Teacher(resnet(2, seed=2), name="org/second", classes=[2, 1]),
    ]


# ---- shares, names, scales ----


def test_a_teacher_with_more_layers_has_no_larger_share():
    pairs = [LayerPair("a", "x", 3.0), LayerPair("b", "y"), LayerPair("b", "z", teacher_index=1)]
    assert pair_shares(pairs, [1.0, 1.0]) == [0.375, 0.125, 0.5]
    assert pair_shares(pairs[:2], [5.0, 1.0]) == [0.75, 0.25]


def test_logs_weights_and_names(tmp_path):
    first, second = two(weight=3.0)
    pairs = ["last", "vit.layers.0=resnet.encoder.stages.0"]
    trainer = make_trainer(tmp_path, teacher=[first, second], layer_pairs=pairs, kd_weight=0.5, feature_loss="fitnet")
    trainer.train()
    for entry in training_logs(trainer):
        for term in ("ot_loss", "feature_loss"):
            ours = 0.75 * entry[f"{term}/first"] + 0.25 * entry[f"{term}/second"]
            # the second pair is the first teacher's alone
            assert entry[term] == pytest.approx(ours, rel=1e-5)
        apart = (
            entry["ot_loss/classifier:input=classifier:input@0"],
            entry["ot_loss/vit.layers.0=resnet.encoder.stages.0@0"],
        )
        assert entry["ot_loss/first"] == pytest.approx(sum(apart) / 2, rel=1e-5)
        kd = [entry[f"kd_heard/{n}"] * entry[f"kd_loss/{n}"] for n in ("first", "second")]
        assert entry["kd_loss"] == pytest.approx(sum(kd), rel=1e-5)
        assert entry["kd_heard/first"] + entry["kd_heard/second"] == pytest.approx(1)
    assert teacher_names([Teacher(resnet()), Teacher(resnet(), name="a/b")]) == ["ResNetForImageClassification", "b"]


def test_raw_values_of_a_louder_teacher_count_no_more(tmp_path):
    """Its term is in units of its own variance, and the other teacher's stays as it was."""
    entries = []
    for c in (1.0, 1e3):
        teacher = Teacher(resnet(seed=2), name="org/loud")
        teacher.model.resnet.encoder.stages[-1].register_forward_hook(lambda m, a, out, c=c: out * c)
        trainer = make_trainer(tmp_path, teacher=[Teacher(resnet(seed=1), name="quiet"), teacher], **RAW)
        trainer.train()
        entries.append(training_logs(trainer)[0])
    plain, loud = entries
    assert plain["ot_loss/quiet"] == pytest.approx(loud["ot_loss/quiet"], rel=1e-6)
    assert loud["ot_loss"] == pytest.approx((loud["ot_loss/quiet"] + loud["ot_loss/loud"]) / 2, rel=1e-5)
    # beside values a thousand times as large, the student's own vanish: any plan costs the teacher's mean square
    _, features = representations(trainer, first_images())
    square = features.square().mean() / features.var(0, correction=0).mean()
    assert loud["ot_loss/loud"] == pytest.approx(square.item(), rel=2e-2)


def test_a_single_teacher_in_raw_values_is_as_it_was(tmp_path):
    trainer = make_trainer(tmp_path, **RAW)
    student, teacher = representations(trainer, first_images())
    trainer.train()
    expected = RepresentationTransport(standardize=False)(student, teacher).loss
    assert training_logs(trainer)[0]["ot_loss"] == pytest.approx(expected.item(), rel=1e-5)


RAW = {"ot_standardize": False, "max_steps": 1, "train_sampling_strategy": "sequential"}


def first_images():
    data = Images()
    return torch.stack([data[i]["pixel_values"] for i in range(8)])


def representations(trainer, images):
    """What goes into the heads of a student's copy and of the last teacher."""
    caught = []
    for model in (copy.deepcopy(trainer.model), trainer.teachers[-1].model):
        hook = model.classifier.register_forward_hook(lambda m, a, out: caught.append(a[0].detach().flatten(1)))
        with torch.no_grad():
            model(images)
        hook.remove()
    return caught


@pytest.mark.parametrize("name", sorted(FEATURE_LOSSES))
def test_which_rivals_speak_in_units_of_the_teacher(name):
    torch.manual_seed(0)
    kind = FEATURE_LOSSES[name]
    shape = (16, 6, 9) if kind.input_kind == "maps" else (16, 6)
    student, teacher = torch.randn(*shape), torch.randn(*shape)
    loss = kind.for_widths(6, 6)
    quiet, loud = loss(student, teacher).loss, loss(student, 100 * teacher).loss
    if kind.in_teacher_units:
        ratio = teacher_variance(100 * teacher, False) / teacher_variance(teacher, False)
        assert ratio == pytest.approx(1e4, rel=1e-4)
        assert 0.1 < loud / ratio / quiet < 10
    elif kind.learned:  # through its projector
        assert 0.1 < loud / quiet < 10
    else:
        torch.testing.assert_close(loud, quiet, rtol=1e-3, atol=1e-5)


# ---- classes ----


def test_classes_are_found_by_name(tmp_path):
    student = named(vit(3), ANIMALS)
    teachers = [named(resnet(2, seed=1), ["Dog", "cat"]), named(resnet(3, seed=2), ["dog", "cow", "cat"])]
    trainer = make_trainer(tmp_path, model=student, teacher=teachers, kd_weight=1.0, max_steps=1, ot_weight=0.0)
    assert trainer.transfer.known_classes == [[2, 0], [2, 1, 0]]
    assert make_trainer(tmp_path, model=named(vit(3), ANIMALS)).transfer.known_classes == [None]
    trainer.train()
    assert training_logs(trainer)[0]["kd_heard/ResNetForImageClassification@0"] > 0


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "dogg"], "no class 'dogg' .*Did you mean 'dog'"),
        ([0, 3], r"no class 3 \(the student has 0 to 2\)"),
        (["cat", 0], "the same class"),
        ([0, 1, 2], "has 2 outputs and 3 classes are given"),
        ([0], "has 2 outputs and 1 classes are given"),
    ],
)
def test_classes_that_do_not_fit(tmp_path, classes, message):
    teacher = Teacher(resnet(2), classes=classes)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, model=named(vit(3), ANIMALS), teacher=teacher, kd_weight=1.0)


def test_a_teacher_of_other_classes_and_no_word_of_it(tmp_path):
    settings = {"kd_weight": 1.0}
    with pytest.raises(ValueError, match=r"2 classes and the student 3.*classes=\[\.\.\.\]"):
        make_trainer(tmp_path, teacher=[resnet(2)], **settings)
    other = Teacher(resnet(2, seed=2), classes=[])
    trainer = make_trainer(tmp_path, teacher=[resnet(seed=1), other], **settings)
    trainer.train()
    assert "kd_loss/ResNetForImageClassification@0" in training_logs(trainer)[0]
    assert "kd_loss/ResNetForImageClassification@1" not in training_logs(trainer)[0]
    with pytest.raises(ValueError, match="names no classes"):
        make_trainer(tmp_path, teacher=Teacher(resnet(2), classes=["cat", "dog"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0}, "above 0, got 0"),
        ({"weight": -1.0}, "above 0, got -1.0"),
        ({"weight": True}, "above 0, got True"),
        ({"weight": float("inf")}, "finite"),
        ({"classes": "cat"}, "must be a list"),
        ({"classes": [0.5]}, "must be a list"),
        ({"classes": ["cat", "cat"]}, "'cat' twice"),
        ({"layers": []}, "are empty"),
        ({"layers": "auto"}, "layer_pairs of the run"),
    ],
)
def test_a_part_that_no_teacher_can_play(settings, message):
    with pytest.raises(ValueError, match=message):
        Teacher(resnet(), **settings)
    with pytest.raises(ValueError, match=message):
        Teacher.load(resnet(), **settings)


@pytest.mark.parametrize("positions", ["pooled", "all"])
def test_neurons_are_matched_on_a_teachers_own_samples(tmp_path, positions):
    pair = "vit.layers.0=resnet.encoder.stages.0"
    settings = {"ot_positions": positions, "layer_pairs": pair, "max_steps": 1, "task_weight": 1.0}
    settings["train_sampling_strategy"] = "sequential"
    teacher = Teacher(resnet(2, seed=1), classes=[2, 0])
    trainer = make_trainer(tmp_path, teacher=teacher, **settings)
    images, labels = first_images(), torch.tensor([int(Images()[i]["labels"]) for i in range(8)])
    with trainer.transfer.recording():
        trainer.model.train()(images)
    layers, _ = trainer.transfer.teach({"pixel_values": images})
    ((s, t),) = trainer.transfer.layers.neurons(trainer.transfer.student_taps.take(), layers, {})
    own = (labels != 1).repeat_interleave(len(s) // 8)
    expected = RepresentationTransport()(s[own], t[own]).loss
    trainer.train()
    assert training_logs(trainer)[0]["ot_loss"] == pytest.approx(expected.item(), rel=1e-4)
    teacher.take_part(samples="all")
    on_all = make_trainer(tmp_path, teacher=teacher, **settings)
    on_all.train()
    entry = training_logs(on_all)[0]
    assert entry["ot_loss"] == pytest.approx(RepresentationTransport()(s, t).loss.item(), rel=1e-4)


def test_labels_gate_only_where_the_task_takes_part(tmp_path):
    heard = []
    for task in (1.0, 0.0):
        trainer = make_trainer(tmp_path, teacher=two(), kd_weight=1.0, ot_weight=0.0, task_weight=task, max_steps=1)
        trainer.train()
        heard.append(training_logs(trainer)[0]["kd_heard/first"])
    whole = 8 * heard[0]  # cat and dog have one teacher each, a sample of cow is shared
    assert whole == pytest.approx(round(2 * whole) / 2)
    assert heard[1] != pytest.approx(heard[0])


# ---- layers, mappings, recipes ----


def test_each_teacher_has_its_layers(tmp_path):
    first, second = Teacher(resnet(seed=1)), Teacher(resnet(seed=2), layers="vit.layers.0=resnet.encoder.stages.0")
    trainer = make_trainer(tmp_path, teacher=[first, second])
    assert trainer.transfer.pairs == [
        LayerPair("classifier:input", "classifier:input"),
        LayerPair("vit.layers.0", "resnet.encoder.stages.0", teacher_index=1),
    ]
    assert trainer.transfer.shares == [0.5, 0.5]
    with pytest.raises(ValueError, match="say it in one place"):
        make_trainer(tmp_path, teacher=[first, second], layer_pairs=["last", "vit.layers.1=resnet.encoder.stages.0@1"])


def test_from_mappings_and_recipes(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        resnet(2, seed=seed).save_pretrained(tmp_path / name)
    text = f"""
student: resnet10t
dataset: digits
output_dir: {tmp_path}
teacher:
  - {{id: {tmp_path}/a, weight: 2, classes: [cat, dog], preprocessing: {{mean: [0, 0, 0], std: [1, 1, 1]}}}}
  - {tmp_path}/b
"""
    (tmp_path / "run.yaml").write_text(text)
    recipe, _ = parse_recipe([], tmp_path / "run.yaml")
    teachers = load_teachers(recipe.teacher, OTTransferConfig(output_dir=str(tmp_path), use_cpu=True), None)
    assert [t.weight for t in teachers] == [2.0, 1.0]
    assert teachers[0].classes == ("cat", "dog")
    assert teachers[0].preprocessing.std == (1, 1, 1)
    flag = json.dumps({"id": str(tmp_path / "a"), "classes": [0, 2]})
    recipe, _ = parse_recipe(["--student", "x", "--dataset", "y", "--output_dir", "z", "--teacher", flag, "org/b"])
    assert [json.loads(recipe.teacher[0]), recipe.teacher[1]] == [
        {"id": str(tmp_path / "a"), "classes": [0, 2]},
        "org/b",
    ]
    (tmp_path / "run.yaml").write_text("teacher: {id: org/a, trust_remote_code: true}\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        parse_recipe([], tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"id": "org/a", "wieght": 2}, "Did you mean 'weight'"),
        ({"weight": 2}, "has no id"),
        ({"id": "org/a", "preprocessing": {"men": [0]}}, "'men' is not known"),
    ],
)
def test_mappings_that_say_nothing(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        load_teachers([source], make_config(tmp_path), None)


def test_one_teacher_twice(tmp_path):
    teacher = Teacher(resnet())
    with pytest.raises(ValueError, match="given twice"):
        make_trainer(tmp_path, teacher=[teacher, teacher])
    with pytest.raises(TypeError, match="'resize' cannot be changed"):
        Teacher.load(teacher, resize=False)


# ---- card, resuming ----


def test_the_card_tells_them_apart(tmp_path):
    first, second = two(weight=3.0)
    first.license, second.license = "cc-by-nc-4.0", "apache-2.0"
    second.take_part(layers=["last", "vit.layers.0=resnet.encoder.stages.0"])
    trainer = make_trainer(tmp_path, model=named(vit(3), ANIMALS), teacher=[first, second], kd_weight=1.0)
    card = render_card(trainer.collect_record("student"))
    assert (
        "| [org/first](https://huggingface.co/org/first) | 0.75 | 2: cow, cat | `classifier:input` | cc-by-nc-4.0 |"
        in card
    )
    assert "| 0.25 | 2: dog, cow | `classifier:input`, `resnet.encoder.stages.0` | apache-2.0 |" in card
    assert "The licence of the teacher org/first (cc-by-nc-4.0) forbids commercial use." in card
    alone = make_trainer(tmp_path, kd_weight=1.0)
    assert "What each teacher taught" not in render_card(alone.collect_record("student"))


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    settings = {"kd_weight": 1.0, "plan_momentum": 0.9, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make_trainer(tmp_path / "whole", teacher=two(weight=2.0), **settings)
    whole.train()
    again = make_trainer(tmp_path / "again", teacher=two(weight=2.0), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, value in weights_of(whole.model).items():
        assert torch.equal(value, again.model.state_dict()[name]), name

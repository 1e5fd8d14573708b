"""The losses that transport is compared with, in the trainer."""

import copy

import pytest
import torch

from hf_reprot import OTTransferTrainer
from hf_reprot.features.activations import pair_maps, pair_neurons
from hf_reprot.features.taps import Taps
from hf_reprot.losses.baselines import DELTA, FEATURE_LOSSES, BatchSpectralShrinkage, DecoupledDistillation
from hf_reprot.training.terms.feature import FeatureTerm
from tests.toy_models import Images, convnext, resnet, vit
from tests.training.runs import make_config, make_trainer, training_logs, weights_of
from tests.training.test_text import Texts
from tests.training.test_text import _student as text_student
from tests.training.test_text import _teacher as text_teacher

NAMES = list(FEATURE_LOSSES)
MAPS = [name for name, kind in FEATURE_LOSSES.items() if kind.input_kind == "maps"]


def first_batch(samples=8):
    """What a run that draws its samples in order sees in the first step."""
    data = Images()
    return torch.utils.data.default_collate([data[i] for i in range(samples)])


PAIRS = ["vit.layers.0=resnet.encoder.stages.0", "vit.layers.1=resnet.encoder.stages.1"]


@pytest.mark.parametrize("name", NAMES)
def test_alone_on_the_layer_pairs(tmp_path, name):
    student = vit()
    before = weights_of(student)
    trainer = make_trainer(
        tmp_path, model=student, feature_loss=name, feature_weight=0.3, ot_weight=0.0, layer_pairs=PAIRS
    )
    trainer.train()
    for entry in training_logs(trainer):
        assert entry["loss"] == pytest.approx(entry["task_loss"] + 0.3 * entry["feature_loss"], rel=1e-4)
        each = [entry[f"feature_loss/{pair}"] for pair in PAIRS]
        assert entry["feature_loss"] == pytest.approx(sum(each) / 2, rel=1e-5)
        assert not any(key.startswith("ot_") for key in entry)
        assert entry["dropped_steps"] == 0
    assert any(not torch.equal(value, before[key]) for key, value in weights_of(student).items())


@pytest.mark.parametrize(
    ("name", "positions"), [(n, p) for n in NAMES for p in ("pooled", "all") if (n, p) != ("crd", "all")]
)
def test_the_value_of_the_first_step(tmp_path, name, positions):
    """By the loss itself on what taps record: tables, tables of positions, maps, or flattened maps."""
    student, teacher, pair = vit(), resnet(seed=1).eval(), PAIRS[1]
    reference = copy.deepcopy(student)
    trainer = make_trainer(
        tmp_path,
        model=student,
        teacher=teacher,
        max_steps=1,
        feature_loss=name,
        ot_weight=0.0,
        ot_positions=positions,
        layer_pairs=[pair],
        train_sampling_strategy="sequential",
    )
    loss = copy.deepcopy(trainer.transfer.find(FeatureTerm).losses[0])
    trainer.train()
    sides = []
    for model, layer in zip((reference, teacher), pair.split("="), strict=True):
        taps = Taps(model, [layer])
        with torch.no_grad(), taps.recording():
            model(first_batch()["pixel_values"])
        sides.append(taps.take()[layer])
        taps.close()
    if loss.input_kind == "maps":
        expected = loss(*pair_maps(*sides))
    elif loss.input_kind == "samples" and positions == "all":
        expected = loss(*(x.flatten(1) for x in pair_maps(*sides)))
    else:
        expected = loss(*pair_neurons(*sides, positions=positions))
    assert training_logs(trainer)[0]["feature_loss"] == pytest.approx(expected.loss.item(), rel=1e-4)


def test_last_is_the_last_layer_with_positions_where_maps_are_seen(tmp_path):
    for name in NAMES:
        trainer = make_trainer(tmp_path, feature_loss=name, ot_weight=0.0)
        (pair,) = trainer.transfer.pairs
        assert (pair.student == "classifier:input") == (name not in MAPS)
    trainer = make_trainer(
        tmp_path, model=vit(), teacher=copy.deepcopy(vit()), delta_weight=1.0, ot_weight=0.0, feature_loss="fitnet"
    )
    assert trainer.transfer.pairs[0].student != "classifier:input"


def test_beside_transport_with_weighted_pairs(tmp_path):
    ours, theirs = PAIRS[0].split("=")
    pairs = [{"student": ours, "teacher": theirs, "weight": 3.0}, PAIRS[1]]
    trainer = make_trainer(tmp_path, feature_loss="attention", feature_weight=2.0, ot_weight=0.5, layer_pairs=pairs)
    trainer.train()
    for entry in training_logs(trainer):
        terms = entry["task_loss"] + 0.5 * entry["ot_loss"] + 2 * entry["feature_loss"]
        assert entry["loss"] == pytest.approx(terms, rel=1e-4)
        each = [entry[f"feature_loss/{pair}"] for pair in PAIRS]
        assert entry["feature_loss"] == pytest.approx(0.75 * each[0] + 0.25 * each[1], rel=1e-4)


def test_a_weight_of_0_is_the_run_without(tmp_path):
    runs = []
    for settings in ({}, {"feature_loss": "fitnet", "feature_weight": 0.0}):
        trainer = make_trainer(tmp_path, ot_weight=0.0, **settings)
        trainer.train()
        assert trainer.transfer.pairs == []
        assert "feature_loss" not in training_logs(trainer)[0]
        runs.append(weights_of(trainer.model))
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_without_labels(tmp_path):
    trainer = make_trainer(
        tmp_path, data=Images(labelled=False), task_weight=0.0, ot_weight=0.0, feature_loss="rkd", max_steps=2
    )
    trainer.train()
    entry = training_logs(trainer)[0]
    assert entry["loss"] == pytest.approx(entry["feature_loss"], rel=1e-5)
    assert entry["feature_loss"] == pytest.approx(entry["feature_distance"] + 2 * entry["feature_angle"], rel=1e-4)


def test_text_layers_are_pooled_by_their_mask(tmp_path):
    values = []
    for padding in (0, 3):
        trainer = make_trainer(
            tmp_path,
            model=text_student(),
            teacher=text_teacher(),
            data=Texts(padding),
            feature_loss="cka",
            bss_weight=0.1,
            ot_weight=0.0,
            layer_pairs="stages",
            max_steps=1,
        )
        trainer.train()
        values.append(training_logs(trainer)[0]["loss"])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    with pytest.raises(ValueError, match="not for texts"):
        make_trainer(
            tmp_path, model=text_student(), teacher=text_teacher(), data=Texts(), feature_loss="nst", ot_weight=0.0
        )


# ---- decoupled distillation ----


def test_decoupled_distillation(tmp_path):
    student, teacher, inputs = vit(), resnet(seed=1).eval(), first_batch()
    settings = {"kd_weight": 0.5, "kd_method": "dkd", "dkd_alpha": 0.7, "dkd_beta": 3.0, "kd_temperature": 4.0}
    with torch.no_grad():
        logits = student(inputs["pixel_values"]).logits, teacher(inputs["pixel_values"]).logits
    expected = DecoupledDistillation(0.7, 3.0, 4.0)(*logits, inputs["labels"])
    trainer = make_trainer(
        tmp_path, model=student, teacher=teacher, ot_weight=0.0, train_sampling_strategy="sequential", **settings
    )
    trainer.train()
    entry = training_logs(trainer)[0]
    assert entry["kd_loss"] == pytest.approx(expected.loss.item(), rel=1e-4)
    assert entry["kd_loss"] == pytest.approx(0.7 * entry["kd_target"] + 3 * entry["kd_others"], rel=1e-4)
    assert entry["loss"] == pytest.approx(entry["task_loss"] + 0.5 * entry["kd_loss"], rel=1e-4)
    assert "kd_agreement" in entry


# ---- fine-tuning ----


@pytest.mark.parametrize("make", [vit, convnext])
def test_delta_holds_a_copy_where_it_started(tmp_path, make):
    def moved(folder, weight):
        teacher = make(seed=1)
        trainer = make_trainer(
            folder,
            model=copy.deepcopy(teacher),
            teacher=teacher,
            delta_weight=weight,
            ot_weight=0.0,
            layer_pairs="stages",
            max_steps=8,
        )
        trainer.train()
        logs = training_logs(trainer)
        assert logs[0]["delta_loss"] == pytest.approx(0, abs=1e-8)
        for entry in logs:
            assert entry["loss"] == pytest.approx(entry["task_loss"] + weight * entry["delta_loss"], rel=1e-4)
        return logs[-1]["delta_loss"]

    assert moved(tmp_path, 3.0) < 0.5 * moved(tmp_path, 1e-6)


def test_delta_is_the_distance_of_maps(tmp_path):
    teacher = convnext()
    student = copy.deepcopy(teacher)
    trainer = make_trainer(
        tmp_path, model=student, teacher=teacher, delta_weight=1.0, ot_weight=0.0, max_steps=2, layer_pairs="last"
    )
    trainer.train()
    (pair,) = trainer.transfer.pairs
    sides = []
    for model in (student, teacher):
        taps = Taps(model, [pair.student])
        with torch.no_grad(), taps.recording():
            model.eval()(first_batch()["pixel_values"])
        sides.append(taps.take()[pair.student].tensor.flatten(2))
        taps.close()
    by_hand = 0.5 * (sides[0] - sides[1]).square().mean(2).sum(1).mean()
    assert DELTA()(*sides).loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert by_hand > 0


def test_shrinkage_needs_no_teacher(tmp_path):
    student = vit()
    reference, inputs = copy.deepcopy(student), first_batch()
    trainer = OTTransferTrainer(
        model=student,
        args=make_config(tmp_path, ot_weight=0.0, bss_weight=0.1, bss_k=2, train_sampling_strategy="sequential"),
        train_dataset=Images(),
    )
    trainer.train()
    taps = Taps(reference, ["classifier:input"])
    with torch.no_grad(), taps.recording():
        reference(inputs["pixel_values"])
    expected = BatchSpectralShrinkage(2)(taps.take()["classifier:input"].tensor).loss.item()
    entry = training_logs(trainer)[0]
    assert entry["bss_loss"] == pytest.approx(expected, rel=1e-3)
    assert entry["loss"] == pytest.approx(entry["task_loss"] + 0.1 * entry["bss_loss"], rel=1e-4)


# ---- a user's mistakes ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_loss": "fitnets"}, "Did you mean 'fitnet'"),
        ({"feature_loss": "fitnet", "feature_weight": -1.0}, "feature_weight must be a finite number at least 0"),
        ({"feature_loss": "attention", "layer_pairs": "classifier:input=classifier:input"}, "pooled, of shape"),
        ({"feature_loss": "wkd", "layer_pairs": "classifier:input=last"}, r"classifier:input \(student\) is pooled"),
        ({"feature_loss": "crd", "ot_positions": "all"}, "ot_positions='pooled'"),
        ({"feature_loss": "cka", "per_device_train_batch_size": 1, "ot_weight": 0.0}, "batch_size to 2"),
        ({"kd_method": "dkl"}, "choose one of 'kl', 'dkd'"),
        ({"kd_method": "dkd", "kd_weight": 1.0, "task_weight": 0.0}, "kd_method='kl'"),
        ({"dkd_beta": float("inf")}, "dkd_beta"),
        ({"delta_weight": 1.0}, "copy of the teacher"),
        ({"delta_weight": -1.0}, "delta_weight"),
        ({"bss_weight": float("nan")}, "bss_weight"),
        ({"bss_k": 0}, "bss_k must be a finite number at least 1"),
    ],
)
def test_settings(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **settings)


def test_delta_with_a_student_that_is_no_copy(tmp_path):
    settings = {"teacher": vit(seed=1), "delta_weight": 1.0, "ot_weight": 0.0}
    with pytest.raises(ValueError, match=r"differs from vit\.layers\.0 by 1[0-9][0-9]% of its length"):
        make_trainer(tmp_path, model=vit(seed=2), layer_pairs="stages", **settings)
    with pytest.raises(ValueError, match=r"maps of \(28, 16\) \(channels, positions\)"):
        make_trainer(tmp_path, model=vit(width=28), **settings)
    # The size of a ResNet's images is not known before training: its shapes are looked at in the first step.
    trainer = make_trainer(tmp_path, model=resnet(widths=(8, 16)), **settings | {"teacher": resnet()})
    with pytest.raises(ValueError, match="started as a copy"):
        trainer.train()
    with pytest.raises(ValueError, match="ask for a teacher"):
        OTTransferTrainer(
            model=vit(), args=make_config(tmp_path, ot_weight=0.0, delta_weight=1.0), train_dataset=Images()
        )


def test_identity_of_unequal_widths_matters_to_transport_only(tmp_path):
    make_trainer(tmp_path, feature_loss="fitnet", ot_weight=0.0, ot_method="identity")
    with pytest.raises(ValueError, match="24 student and 12 teacher neurons"):
        make_trainer(tmp_path, feature_loss="fitnet", ot_weight=1.0, ot_method="identity")


def test_a_projector_without_known_widths(tmp_path):
    """A student whose inputs are not known before training."""
    student = vit()
    student.main_input_name = "something_else"
    with pytest.raises(ValueError, match="feature_loss='fitnet' has a projector"):
        make_trainer(tmp_path, model=student, feature_loss="fitnet", ot_weight=0.0)
    trainer = make_trainer(tmp_path, model=student, feature_loss="similarity", ot_weight=0.0)
    trainer.train()
    assert training_logs(trainer)[0]["feature_loss"] > 0

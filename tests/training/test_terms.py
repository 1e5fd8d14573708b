"""The loss of a training step: its terms, their weights, and gradient accumulation."""

import copy

import pytest
import torch

from hf_reprot import OTTransferConfig
from hf_reprot.features.taps import Taps
from hf_reprot.losses import LogitDistillation, RepresentationTransport
from hf_reprot.training.terms.transport import TransportTerm
from tests.toy_models import Images, convnext, resnet, timm_vit, vit
from tests.training.runs import make_trainer, training_logs, weights_of

WEIGHTS = {"task_weight": 0.7, "ot_weight": 2.0, "kd_weight": 0.5, "l2sp_weight": 0.01}
CLASSES = ("cat", "dog", "owl")
TERMS = {"task_weight": "task_loss", "ot_weight": "ot_loss", "kd_weight": "kd_loss", "l2sp_weight": "l2sp_loss"}


def test_terms_are_logged_and_add_up_to_the_loss(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3, **WEIGHTS)
    trainer.train()
    for entry in training_logs(trainer):
        assert entry["loss"] == pytest.approx(sum(w * entry[TERMS[name]] for name, w in WEIGHTS.items()), rel=1e-4)
        for name in ("ot_cost", "ot_marginal_error", "ot_iterations", "ot_plan_entropy", "kd_agreement", "ot_weight"):
            assert name in entry
        assert entry["ot_dropped"] == entry["ot_skipped"] == 0
        assert entry["ot_marginal_error"] <= 1e-3


def test_terms_are_averaged_over_the_logging_window(tmp_path):
    each = make_trainer(tmp_path, max_steps=4, logging_steps=1)
    pairs = make_trainer(tmp_path, max_steps=4, logging_steps=2)
    each.train()
    pairs.train()
    for i, entry in enumerate(training_logs(pairs)):
        for name in ("loss", "ot_loss", "task_loss", "ot_iterations"):
            mean = sum(e[name] for e in training_logs(each)[2 * i : 2 * i + 2]) / 2
            assert entry[name] == pytest.approx(mean, rel=1e-4)


def test_each_layer_pair_has_a_line_of_its_own(tmp_path):
    trainer = make_trainer(tmp_path, layer_pairs=["last", "vit.layers.0=resnet.encoder.stages.0"])
    trainer.train()
    entry = training_logs(trainer)[0]
    values = [value for name, value in entry.items() if name.startswith("ot_loss/")]
    assert "ot_loss/vit.layers.0=resnet.encoder.stages.0" in entry
    assert entry["ot_loss"] == pytest.approx(sum(values) / 2, rel=1e-5)


def test_pairs_are_weighted(tmp_path):
    pairs = [
        {"student": "last", "teacher": "last", "weight": 3.0},
        {"student": "layers.0", "teacher": "encoder.stages.0"},
    ]
    trainer = make_trainer(tmp_path, layer_pairs=pairs)
    trainer.train()
    entry = training_logs(trainer)[0]
    last, first = (next(v for k, v in entry.items() if k.startswith("ot_loss/") and part in k) for part in ("cl", "0"))
    assert entry["ot_loss"] == pytest.approx(0.75 * last + 0.25 * first, rel=1e-5)


def _by_hand(student, teacher, data, settings):
    """Mean over micro-batches of the loss, differentiated."""
    taps, teacher_taps = Taps(student, ["classifier:input"]), Taps(teacher, ["classifier:input"])
    transport, distillation = RepresentationTransport(), LogitDistillation(2.0)
    total = 0.0
    for micro in data:
        with taps.recording():
            outputs = student(**micro)
        with torch.no_grad(), teacher_taps.recording():
            logits = teacher(micro["pixel_values"]).logits
        s, t = taps.take()["classifier:input"].tensor, teacher_taps.take()["classifier:input"].tensor
        loss = outputs.loss + settings["ot_weight"] * transport(s.flatten(1), t.flatten(1)).loss
        total = total + (loss + settings["kd_weight"] * distillation(outputs.logits, logits).loss) / len(data)
    total.backward()
    return total.item()


@pytest.mark.parametrize("make", [vit, convnext])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_a_step_is_the_mean_over_its_micro_batches(tmp_path, make, accumulation):
    """For a model whose forward takes loss keywords and for one whose forward does not."""
    settings = {"ot_weight": 0.5, "kd_weight": 0.3}
    student, teacher, data = make(), resnet(seed=1).eval(), Images(16)
    reference = copy.deepcopy(student)
    trainer = make_trainer(
        tmp_path,
        model=student,
        teacher=teacher,
        data=data,
        max_steps=1,
        per_device_train_batch_size=16 // accumulation,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        **settings,
    )
    trainer.train()
    size = 16 // accumulation
    micro = [torch.utils.data.default_collate([data[i] for i in range(k, k + size)]) for k in range(0, 16, size)]
    loss = _by_hand(reference, teacher, micro, settings)
    assert training_logs(trainer)[0]["loss"] == pytest.approx(loss, rel=1e-4)
    for (name, ours), theirs in zip(student.named_parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs - 1e-2 * theirs.grad, atol=1e-6), name


def test_a_custom_loss_and_accumulation(tmp_path):
    def twice(outputs, labels, num_items_in_batch=None):
        return 2 * torch.nn.functional.cross_entropy(outputs.logits, labels)

    def run(folder, accumulation):
        model = vit()
        trainer = make_trainer(
            folder,
            model=model,
            max_steps=1,
            ot_weight=0.0,
            kd_weight=0.0,
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=16 // accumulation,
            train_sampling_strategy="sequential",
            trainer={"compute_loss_func": twice},
        )
        trainer.train()
        return weights_of(model)

    whole, parts = run(tmp_path / "a", 1), run(tmp_path / "b", 4)
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], atol=1e-6), name


def test_label_smoothing_reaches_the_task_loss_only(tmp_path):
    plain, smooth = (make_trainer(tmp_path, max_steps=1, label_smoothing_factor=s) for s in (0.0, 0.2))
    plain.train()
    smooth.train()
    (a,), (b,) = training_logs(plain), training_logs(smooth)
    assert a["ot_loss"] == pytest.approx(b["ot_loss"], rel=1e-5)
    assert a["task_loss"] != pytest.approx(b["task_loss"], rel=1e-3)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("make", [vit, timm_vit])
def test_training_on_the_teacher_alone(tmp_path, make, labelled):
    student = make()
    before = weights_of(student)
    trainer = make_trainer(
        tmp_path, model=student, data=Images(labelled=labelled), task_weight=0.0, kd_weight=1.0, max_steps=3
    )
    trainer.train()
    assert "task_loss" not in training_logs(trainer)[0]
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_without_labels_the_error_says_what_to_do(tmp_path):
    trainer = make_trainer(tmp_path, data=Images(labelled=False))
    with pytest.raises(ValueError, match="task_weight=0"):
        trainer.train()


@pytest.mark.parametrize(("warmup", "expected"), [(2, [0.0, 1.0, 2.0, 2.0]), (0.5, [0.0, 1.0, 2.0, 2.0])])
def test_the_transport_weight_warms_up(tmp_path, warmup, expected):
    trainer = make_trainer(tmp_path, max_steps=4, ot_weight=2.0, ot_warmup_steps=warmup)
    trainer.train()
    assert [entry["ot_weight"] for entry in training_logs(trainer)] == pytest.approx(expected)
    entry = training_logs(trainer)[0]
    assert entry["loss"] == pytest.approx(entry["task_loss"], rel=1e-4)


def test_transport_brings_the_student_nearer(tmp_path):
    trainer = make_trainer(
        tmp_path, max_steps=60, per_device_train_batch_size=32, task_weight=0.0, optim="adamw_torch", learning_rate=3e-3
    )
    trainer.train()
    logs = training_logs(trainer)
    assert logs[-1]["ot_cost"] < 0.5 * logs[0]["ot_cost"]


def test_a_plan_from_moments_carried_over_steps(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4, plan_momentum=0.9, per_device_train_batch_size=4)
    trainer.train()
    count = trainer.transfer.find(TransportTerm).running[0].moments.count.item()
    assert count == pytest.approx(4 * (1 + 0.9 + 0.81 + 0.729))
    assert training_logs(trainer)[-1]["ot_marginal_error"] <= 1e-3


@pytest.mark.parametrize(
    ("settings", "names", "weight"),
    [
        ({}, CLASSES, 10.0),
        ({}, ("ant", "bee", "fly"), 1.0),
        ({}, None, 1.0),
        ({"kd_weight": 0.5}, None, 10.0),
        ({"task_weight": 0.0}, None, 10.0),
        ({"ot_weight": 3.0}, CLASSES, 3.0),
    ],
)
def test_the_weight_that_is_left_out_depends_on_what_the_teacher_knows(tmp_path, settings, names, weight):
    student, teacher = vit(), vit(seed=1)
    for model, classes in ((student, CLASSES), (teacher, names)):
        if classes is not None:
            model.config.id2label = dict(enumerate(classes))
    trainer = make_trainer(tmp_path, model=student, teacher=teacher, **{"ot_weight": None} | settings)
    assert trainer.args.ot_weight == weight


def test_transport_between_gaussians(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2, ot_method="gaussian", ot_weight=2.0, plan_momentum=0.9)
    trainer.train()
    for entry in training_logs(trainer):
        assert entry["loss"] == pytest.approx(entry["task_loss"] + 2 * entry["ot_loss"], rel=1e-4)
        assert 0 < entry["ot_cost"] < 2
        assert entry["ot_dropped"] == entry["ot_skipped"] == 0
    assert trainer.transfer.plans[0].sum().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ot_cost", "learned"),
        ("ot_standardize", False),
        ("ot_epsilon", 0.1),
        ("ot_dead_neurons", "ignore"),
        ("select_k", 0.5),
    ],
)
def test_what_transport_between_gaussians_does_not_go_with(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"does not go with .*({name}|gaussian)"):
        OTTransferConfig(output_dir=str(tmp_path), ot_method="gaussian", **{name: value})

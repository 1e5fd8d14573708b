"""What trains along with the student and is no part of it, by the projector of a FitNet."""

import copy
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from hf_reprot.features.taps import Taps
from hf_reprot.losses.baselines import FitNet
from tests.toy_models import Images, resnet, vit
from tests.training.runs import make_trainer, training_logs, weights_of
from tests.training.test_resume import assert_same_run, reshuffled

FITNET = {"feature_loss": "fitnet", "ot_weight": 0.0, "layer_pairs": "stages"}
NAMES = [f"feature.{i}.projector.{part}" for i in range(2) for part in ("weight", "bias")]


def projectors(trainer):
    return weights_of(trainer.transfer.auxiliary)


def test_they_have_a_group_in_the_optimiser(tmp_path):
    trainer = make_trainer(tmp_path, weight_decay=0.3, optim="adamw_torch", **FITNET)
    optimizer = trainer.create_optimizer()
    assert list(projectors(trainer)) == NAMES
    group = optimizer.param_groups[-1]
    modules = list(trainer.transfer.auxiliary.parameters())
    assert [id(p) for p in group["params"]] == [id(p) for p in modules]
    assert group["weight_decay"] == 0.3
    assert group["lr"] == trainer.args.learning_rate
    held = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert len(held) == len(set(held)) == len(list(trainer.model.parameters())) + len(modules)
    trainer.create_optimizer()  # a second call adds nothing
    assert len(optimizer.param_groups) == 3


def test_a_users_optimiser_gains_the_group(tmp_path):
    student = vit()
    own = torch.optim.SGD(student.parameters(), lr=0.1)
    trainer = make_trainer(tmp_path, model=student, trainer={"optimizers": (own, None)}, **FITNET)
    start = projectors(trainer)
    trainer.train()
    assert len(own.param_groups) == 2
    assert all(not torch.equal(value, start[name]) for name, value in projectors(trainer).items())


def _by_hand(student, teacher, projector, data, steps, size):
    """Plain SGD on task loss and FitNet together, gradients cleared between steps."""
    taps, teacher_taps = Taps(student, ["classifier:input"]), Taps(teacher, ["classifier:input"])
    parameters = [*student.parameters(), *projector.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-2)
    for step in range(steps):
        batch = torch.utils.data.default_collate([data[i] for i in range(step * size, (step + 1) * size)])
        with taps.recording():
            task = student(**batch).loss
        with torch.no_grad(), teacher_taps.recording():
            teacher(batch["pixel_values"])
        s, t = taps.take()["classifier:input"].tensor, teacher_taps.take()["classifier:input"].tensor
        optimizer.zero_grad()
        (task + 0.5 * projector(s, t.flatten(1)).loss).backward()
        optimizer.step()
    taps.close()
    teacher_taps.close()


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_they_train_as_by_hand(tmp_path, accumulation):
    """Their gradients are cleared after every step and summed over micro-batches, like the student's."""
    student, teacher, data = vit(), resnet(seed=1).eval(), Images(48)
    reference = copy.deepcopy(student)
    trainer = make_trainer(
        tmp_path,
        model=student,
        teacher=teacher,
        data=data,
        max_steps=3,
        per_device_train_batch_size=16 // accumulation,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        feature_loss="fitnet",
        feature_weight=0.5,
        ot_weight=0.0,
    )
    projector = copy.deepcopy(trainer.transfer.auxiliary["feature"][0])
    assert isinstance(projector, FitNet)
    trainer.train()
    _by_hand(reference, teacher, projector, data, steps=3, size=16)
    for name, value in projector.state_dict().items():
        assert torch.allclose(trainer.transfer.auxiliary["feature"][0].state_dict()[name], value, atol=1e-5), name
    for name, value in reference.state_dict().items():
        assert torch.allclose(student.state_dict()[name], value, atol=1e-5), name
    assert all(p.grad is None for p in trainer.transfer.auxiliary.parameters())


def test_a_resumed_run_ends_where_a_whole_one_does(tmp_path):
    settings = {
        "max_steps": 7,
        "logging_steps": 2,
        "save_steps": 3,
        "save_strategy": "steps",
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        **FITNET,
    }
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", model=reshuffled(vit()), **settings)
    with torch.random.fork_rng():
        reshuffled(resumed.transfer.auxiliary)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_run(resumed, whole)
    for name, value in projectors(whole).items():
        assert torch.equal(projectors(resumed)[name], value), name


def test_they_are_in_the_checkpoint_and_not_in_the_student(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2, **FITNET)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    state = load_file(tmp_path / "checkpoint-2" / "transfer_state.safetensors")
    for name, value in projectors(trainer).items():
        assert torch.equal(state[f"auxiliary.{name}"], value), name
    make_trainer(tmp_path, ot_weight=0.0).save_model(str(tmp_path / "plain"))
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    for folder in ("checkpoint-2", "student"):
        assert load_file(tmp_path / folder / "model.safetensors").keys() == plain.keys()


def test_a_checkpoint_with_the_former_names_resumes(tmp_path):
    """Earlier versions called them companions in the checkpoint's state."""
    settings = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "optim": "adamw_torch", **FITNET}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    path = tmp_path / "whole" / "checkpoint-2" / "transfer_state.safetensors"
    former = {re.sub("^auxiliary[.]", "companions.", name): value for name, value in load_file(path).items()}
    assert {f"companions.{name}" for name in NAMES} <= set(former)
    save_file(former, path)
    resumed = make_trainer(tmp_path / "resumed", model=reshuffled(vit()), **settings)
    with torch.random.fork_rng():
        reshuffled(resumed.transfer.auxiliary)
    resumed.train(resume_from_checkpoint=str(path.parent))
    for name, value in projectors(whole).items():
        assert torch.equal(projectors(resumed)[name], value), name


def test_other_modules_than_the_checkpoints(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=2, **FITNET).train()
    checkpoint = str(tmp_path / "checkpoint-2")
    for settings in ({"feature_loss": "crd", "ot_weight": 0.0, "layer_pairs": "stages"}, {"ot_weight": 1.0}):
        trainer = make_trainer(tmp_path / "other", max_steps=3, **settings)
        with pytest.raises(ValueError, match=r"feature\.0\.projector\.bias.*resume with the settings"):
            trainer.train(resume_from_checkpoint=checkpoint)
    make_trainer(tmp_path / "none", save_strategy="steps", save_steps=2, ot_weight=1.0).train()
    trainer = make_trainer(tmp_path / "other", max_steps=3, **FITNET)
    with pytest.raises(ValueError, match=r"feature\.0\.projector\.bias.*resume with the settings"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "none" / "checkpoint-2"))


class _Drawn(Images):
    """Remembers which samples were asked for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.order: list[int] = []

    def __getitem__(self, index):
        self.order.append(index)
        return super().__getitem__(index)


def test_the_order_of_the_data_is_that_without_them(tmp_path):
    orders, states = [], []
    for feature_loss in (None, "fitnet", "crd"):
        data = _Drawn()
        torch.manual_seed(5)
        trainer = make_trainer(tmp_path, data=data, feature_loss=feature_loss, ot_weight=0.0, max_steps=4)
        states.append(torch.get_rng_state())
        trainer.train()
        orders.append(data.order)
    assert len(orders[0]) >= 32
    assert orders[0] == orders[1] == orders[2]
    assert torch.equal(states[0], states[1])


def test_the_same_seed_builds_the_same_ones(tmp_path):
    def built(seed):
        torch.rand(seed)  # whatever was drawn before
        return projectors(make_trainer(tmp_path, seed=seed, **FITNET))

    first, again, other = built(3), built(3), built(4)
    assert all(torch.equal(first[name], again[name]) for name in NAMES)
    assert not torch.equal(first[NAMES[0]], other[NAMES[0]])


class _Kept(TrainerCallback):
    def __init__(self):
        self.weights = []
        self.trainer = None

    def on_step_end(self, args, state, control, **kwargs):
        self.weights.append(weights_of(self.trainer.model) | projectors(self.trainer))


def test_a_gradient_that_is_not_finite_in_one_of_them_changes_nothing(tmp_path):
    kept = _Kept()
    trainer = make_trainer(tmp_path, max_steps=3, trainer={"callbacks": [kept]}, **FITNET)
    kept.trainer = trainer

    def poison(gradient):
        return gradient * (float("nan") if trainer.state.global_step == 1 else 1.0)

    next(trainer.transfer.auxiliary.parameters()).register_hook(poison)
    trainer.train()
    assert [entry["dropped_steps"] for entry in training_logs(trainer)] == [0, 1, 0]
    first, second, third = kept.weights
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(second[NAMES[0]], third[NAMES[0]])
    assert all(torch.isfinite(value).all() for value in third.values())

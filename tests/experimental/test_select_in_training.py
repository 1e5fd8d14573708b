"""`select_k`: which teacher neurons carry the mass, learned while the student is trained."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_reprot.experimental.topk.selection import NeuronSelection
from hf_reprot.experimental.topk.training import SelectiveTransport
from tests.toy_models import Images, vit
from tests.training.runs import make_trainer, training_logs, weights_of
from tests.training.test_resume import assert_same_run, reshuffled

SELECT = {"select_k": 3, "max_steps": 4, "optim": "adamw_torch"}


class Planted(nn.Module):
    """32 neurons in random order: 8 that the labels are made of, and dead, noisy, doubled and irrelevant ones."""

    def __init__(self, seed: int = 0, classes: int = 6):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(768, 32, generator=draw))[0]  # pixels to 32 coordinates of variance 1
        self.register_buffer("to_task", basis[:, :16] @ torch.randn(16, 8, generator=draw))
        self.register_buffer("to_rest", basis[:, 16:] @ torch.randn(16, 8, generator=draw))
        self.register_buffer("to_noise", 50 * basis[:, 16:] @ torch.randn(16, 6, generator=draw))
        self.register_buffer("to_class", torch.randn(8, classes, generator=draw))
        self.register_buffer("order", torch.randperm(32, generator=draw))
        self.neurons, self.head = nn.Identity(), nn.Linear(32, classes).requires_grad_(False)

    def planted(self) -> list[int]:
        return (self.order < 8).nonzero().flatten().tolist()

    def labels(self, pixels: torch.Tensor) -> torch.Tensor:
        h = torch.relu(pixels.flatten(1) @ self.to_task)
        return (((h - h.mean(0)) / h.std(0)) @ self.to_class).argmax(1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = pixel_values.flatten(1)
        rest = torch.relu(x @ self.to_rest)
        dead, doubled = torch.zeros(len(x), 5, device=x.device), rest[:, :1].expand(-1, 5)
        noise = torch.sin(x @ self.to_noise)
        h = torch.cat([torch.relu(x @ self.to_task), 6 * rest, 6 * noise, 6 * doubled, dead], 1)[:, self.order]
        return self.head(self.neurons(h))


def planted_trainer(folder, seed: int = 0, **settings):
    teacher, data = Planted(seed).eval(), Images(1500, seed=seed)
    data.labels = teacher.labels(data.pixels)
    settings = {
        "max_steps": 150,
        "per_device_train_batch_size": 64,
        "optim": "adamw_torch",
        "learning_rate": 2e-3,
        "seed": seed,
        "logging_steps": 50,
        "layer_pairs": ["last=neurons"],
        "select_k": 0.25,
        **settings,
    }
    student = vit(width=16, labels=6, layers=1, seed=seed)
    return make_trainer(folder, model=student, teacher=teacher, data=data, **settings), teacher


def recall(trainer, teacher) -> float:
    (found,) = trainer.transfer.find(SelectiveTransport).selected().values()
    return len(set(found) & set(teacher.planted())) / 8


def test_finds_the_planted_neurons(tmp_path):
    trainer, teacher = planted_trainer(tmp_path)
    trainer.train()
    assert recall(trainer, teacher) >= 0.95
    # What the spread of the neurons says points elsewhere: this is no easy prey.
    with torch.no_grad():
        teacher.neurons.register_forward_hook(lambda _m, _i, out: spread.append(out.var(0)))
        spread = []
        teacher(trainer.train_dataset.pixels[:500])
    assert len(set(spread[0].topk(8).indices.tolist()) & set(teacher.planted())) <= 2
    logs = training_logs(trainer)
    assert "select_loss" in logs[0]
    assert "select_loss" not in logs[-1]  # the read-out goes when the choice is made
    assert logs[-1]["select_mass"] == pytest.approx(1)
    plan = trainer.transfer.plans[0]
    assert (plan.sum(0) > 0).sum() == 8
    assert plan.sum(0).max() == pytest.approx(1 / 8, rel=0.05)


def test_weights_sharpen_and_sum_to_one():
    select = NeuronSelection(20, 5)
    with torch.no_grad():
        select.scores.copy_(torch.randn(20, generator=torch.Generator().manual_seed(0)))
    mass = []
    for progress in (0.0, 0.4, 0.7, 0.99, 1.0):
        weights = select.weights(progress).detach()
        assert weights.sum() == pytest.approx(1, abs=1e-6)
        mass.append(weights.topk(5).values.sum().item())
    assert mass[0] == mass[1]
    assert mass == sorted(mass)
    assert mass[0] < 0.9 < 0.99 < mass[3]
    assert select.chosen.tolist() == sorted(select.scores.topk(5).indices.tolist())
    with torch.no_grad():
        select.scores.neg_()  # too late
    assert select.weights(1.0).nonzero().flatten().tolist() == select.chosen.tolist()


def test_the_scale_of_the_scores_does_not_matter():
    few, many = NeuronSelection(10, 3), NeuronSelection(10, 3)
    with torch.no_grad():
        few.scores.copy_(torch.linspace(0, 1e-4, 10))
        many.scores.copy_(torch.linspace(5, 100, 10))
    assert torch.allclose(few.weights(0.6), many.weights(0.6), atol=1e-4)
    torch.testing.assert_close(NeuronSelection(10, 3).weights(0.0).detach(), torch.full((10,), 0.1))


@pytest.mark.parametrize("by", ["task", "transport"])
def test_the_scores_learn_from_what_they_are_told_to(tmp_path, by):
    trainer = make_trainer(tmp_path, select_by=by, **{**SELECT, "max_steps": 2, "select_until": 1.0})
    trainer.train()
    (module,) = trainer.transfer.find(SelectiveTransport).selections
    assert module.scores.abs().max() > 0
    assert (module.readout is None) == (by == "transport")
    assert ("select_loss" in training_logs(trainer)[0]) == (by == "task")
    assert not any("selection" in name for name, _ in trainer.model.named_parameters())


@pytest.mark.parametrize("by", ["task", "transport"])
@pytest.mark.parametrize("at", [2, 4])
def test_resumes_exactly(tmp_path, by, at):
    """In the middle of the choice, and after it."""
    settings = {
        **{"select_k": 3, "select_by": by, "max_steps": 6, "optim": "adamw_torch", "save_strategy": "steps"},
        **{"save_steps": 2, "logging_steps": 2, "plan_momentum": 0.9 if by == "task" else 0.0},
    }
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", model=reshuffled(vit()), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{at}"))
    assert_same_run(resumed, whole)
    assert resumed.transfer.find(SelectiveTransport).selected() == whole.transfer.find(SelectiveTransport).selected()
    state = load_file(tmp_path / "whole" / f"checkpoint-{at}" / "transfer_state.safetensors")
    assert (state["auxiliary.selection.0.chosen"] >= 0).all() == (at == 4)


@pytest.mark.parametrize("dead", ["keep", "ignore"])
def test_dead_neurons_carry_nothing_and_are_not_chosen(tmp_path, dead):
    """Half of the neurons are to be chosen: some that are worse than the average, but none of the dead."""
    trainer, teacher = planted_trainer(
        tmp_path, select_by="transport", select_k=20, ot_dead_neurons=dead, max_steps=40, logging_steps=1
    )
    dead_ones = (teacher.order >= 27).nonzero().flatten().tolist()
    trainer.train()
    plan = trainer.transfer.plans[0]
    assert plan.sum().item() == pytest.approx(1, rel=1e-4)
    assert (plan[:, dead_ones] == 0).all()
    (chosen,) = trainer.transfer.find(SelectiveTransport).selected().values()
    assert not set(chosen) & set(dead_ones)


def test_pairs_of_one_teacher_layer_share_the_choice(tmp_path):
    pairs = ["vit.layers.0=resnet.encoder.stages.1", "vit.layers.1=resnet.encoder.stages.1", "last=encoder.stages.0"]
    trainer = make_trainer(tmp_path, layer_pairs=pairs, **SELECT)
    trainer.train()
    chosen = trainer.transfer.find(SelectiveTransport).selected()
    assert sorted(chosen) == ["resnet.encoder.stages.0", "resnet.encoder.stages.1"]
    assert all(len(found) == 3 for found in chosen.values())


def test_without_selection_nothing_changes(tmp_path):
    trainer = make_trainer(tmp_path)
    assert trainer.transfer.find(SelectiveTransport) is None
    trainer.train()
    with_it = make_trainer(tmp_path, **{**SELECT, "max_steps": 2, "ot_weight": 1e-12, "optim": "sgd"})
    with_it.train()
    without = make_trainer(tmp_path, ot_weight=0.0)
    without.train()
    for name, value in weights_of(without.model).items():
        assert torch.allclose(value, with_it.model.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"select_k": 12}, "asks for 12 of the 12 neurons"),
        ({"select_k": 2.5}, "whole number of neurons or a share"),
        ({"select_k": 0}, "whole number of neurons or a share"),
        ({"select_k": 3, "select_by": "luck"}, "select_by"),
        ({"select_k": 3, "select_until": 0.0}, "select_until"),
        ({"select_k": 3, "ot_weight": 0.0}, "ot_weight=0.0"),
        ({"select_k": 3, "ot_method": "random"}, "ot_method='random'"),
        ({"select_k": 3, "select_by": "transport", "ot_method": "proximal"}, "ot_method='proximal'"),
        ({"select_k": 3, "select_by": "transport", "plan_momentum": 0.9}, "plan_momentum=0.9"),
        ({"select_k": 3, "ot_positions": "all"}, "ot_positions='all'"),
        ({"select_k": 3, "ot_cost": "learned"}, "ot_cost='learned'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, settings, match):
    with pytest.raises(ValueError, match=match):
        make_trainer(tmp_path, **settings)


def test_without_labels_the_error_says_what_to_do(tmp_path):
    trainer = make_trainer(tmp_path, data=Images(labelled=False), task_weight=0.0, **SELECT)
    with pytest.raises(ValueError, match="select_by='transport'"):
        trainer.train()
    make_trainer(tmp_path, data=Images(labelled=False), task_weight=0.0, select_by="transport", **SELECT).train()

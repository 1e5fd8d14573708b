"""`ot_cost="learned"`: learned before the first step, frozen since, and the same after a resume."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from hf_reprot.experimental.inverse import learned_cost
from hf_reprot.experimental.inverse.fit import InverseTransport
from hf_reprot.experimental.inverse.learned_cost import LearnedCostTransport
from hf_reprot.experimental.inverse.neurons import learn_neuron_cost, neuron_cost_of
from hf_reprot.ot import neuron_cost, solve
from tests.toy_models import Images, resnet, vit
from tests.training.runs import make_config, make_trainer, training_logs, weights_of

LEARNED = {"ot_cost": "learned", "ot_weight": 1.0}


def factors(samples=200, seed=0):
    return torch.randn(samples, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- between neurons ----


def test_copies_of_neurons_find_their_originals():
    """In another order, scale and offset, and with noise."""
    teacher = factors()
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    student = 3 * teacher[:, order] + 0.5 * factors(seed=1) - 2
    cost = neuron_cost_of(learn_neuron_cost(student.float(), teacher.float()))
    assert torch.equal(solve(cost, method="exact").plan.argmax(1), order)
    assert cost.mean(0).abs().max() < 1e-12 > cost.mean(1).abs().max()


def test_under_a_strong_penalty_it_is_the_correlation():
    student, teacher = torch.relu(factors() @ torch.randn(6, 9).double()), factors()
    A = learn_neuron_cost(student, teacher, regularisation=1e4).ground.A.detach()
    correlation = 1 - neuron_cost(student, teacher) / 2
    torch.testing.assert_close(1e4 * A, correlation, rtol=0, atol=2e-3)


def test_a_learned_cost_sees_through_what_neurons_share():
    """Every student neuron holds one teacher neuron and, louder, what all of them share with all teacher neurons."""
    common, own, noise = factors(400)[:, :1], factors(400, seed=1), factors(400, seed=2)
    teacher, student = own + 2 * common, own + 2 * common + 0.1 * noise
    learned = neuron_cost_of(learn_neuron_cost(student, teacher, regularisation=0.1))
    plain = neuron_cost(student, teacher)

    def contrast(cost):  # what the right match is below the others, in units of their spread
        others = cost[~torch.eye(6, dtype=torch.bool)]
        return ((others.mean() - cost.diagonal().mean()) / others.std()).item()

    assert torch.equal(solve(learned, method="exact").plan.argmax(1), torch.arange(6))
    assert contrast(learned) > 2
    assert plain[~torch.eye(6, dtype=torch.bool)].mean() < 0.6  # correlated above 0.7 with all of them


def test_neurons_that_are_constant_get_nothing():
    student, teacher = factors(), factors()
    student[:, 2] = 7.0
    A = learn_neuron_cost(student, teacher).ground.A
    assert A[2].abs().max() == 0
    assert torch.isfinite(A).all()


def test_other_costs_compare_no_neurons():
    x = factors(30)
    with pytest.raises(ValueError, match="this one was not fitted"):
        neuron_cost_of(InverseTransport())
    with pytest.raises(ValueError, match="this one is mahalanobis"):
        neuron_cost_of(InverseTransport("mahalanobis", regularisation=0.1).fit(x, x + 0.1 * factors(30, seed=1)))


# ---- in the trainer ----


class KeepStart(TrainerCallback):
    """The student and the generators before the first step."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.weights = weights_of(model)  # buffers, too
        self.draws = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()


def _by_hand(student, teacher, data, regularisation=1.0):
    from hf_reprot.features.taps import Taps

    batch = torch.utils.data.default_collate([data[i] for i in range(len(data))])
    taps, teacher_taps = Taps(student, ["classifier:input"]), Taps(teacher, ["classifier:input"])
    with torch.no_grad(), taps.recording(), teacher_taps.recording():
        student(batch["pixel_values"]), teacher(batch["pixel_values"])
    s, t = (x.take()["classifier:input"].tensor.flatten(1) for x in (taps, teacher_taps))
    return neuron_cost_of(learn_neuron_cost(s, t, regularisation=regularisation)), s, t


def test_the_cost_of_the_first_batches_gives_the_plan_of_all_steps(tmp_path):
    student, teacher, data = vit(), resnet(seed=1).eval(), Images(32)
    cost, s, t = _by_hand(student, teacher, data)
    plan = solve(cost.float(), relative_epsilon=learned_cost.RELATIVE_EPSILON["sinkhorn"]).plan
    trainer = make_trainer(
        tmp_path,
        model=student,
        teacher=teacher,
        data=data,
        max_steps=3,
        per_device_train_batch_size=32,
        train_sampling_strategy="sequential",
        **LEARNED,
    )
    trainer.train()
    torch.testing.assert_close(trainer.transfer.find(LearnedCostTransport).costs[0], cost.float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(trainer.transfer.plans[0], plan, rtol=0.02, atol=1e-5)
    logs = training_logs(trainer)
    assert logs[0]["ot_loss"] == pytest.approx((plan * neuron_cost(s, t)).sum().item(), rel=1e-3)
    assert logs[-1]["ot_loss"] < logs[0]["ot_loss"]


def test_learning_leaves_the_run_as_it_was(tmp_path):
    """Running averages, generators and the order of the data: a run without any weight on the term is the same."""
    starts, ends = [], []
    for i, settings in enumerate((LEARNED, {})):
        keep = KeepStart()
        trainer = make_trainer(
            tmp_path / str(i),
            model=resnet(widths=(8, 10)),  # with batch normalisation
            max_steps=3,
            **{**settings, "ot_weight": 1e-30},
            trainer={"callbacks": [keep]},
        )
        trainer.train()
        starts.append(keep)
        ends.append(weights_of(trainer.model))
    for name, value in starts[0].weights.items():
        assert torch.equal(value, starts[1].weights[name]), name
        torch.testing.assert_close(ends[0][name], ends[1][name], msg=name)
    assert torch.equal(starts[0].draws[0], starts[1].draws[0])
    assert starts[0].draws[1:] == starts[1].draws[1:]


def test_resumes_with_the_same_cost(tmp_path):
    settings = {**LEARNED, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", model=vit(seed=5), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(
        resumed.transfer.find(LearnedCostTransport).costs[0], whole.transfer.find(LearnedCostTransport).costs[0]
    )
    for name, value in weights_of(whole.model).items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    other = make_trainer(tmp_path / "other", **{**settings, "ot_cost": "sqeuclidean"})
    other.train()
    with pytest.raises(ValueError, match="learned costs of 0 layer pairs and this run has 1"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "other" / "checkpoint-2"))


def test_several_pairs_and_every_position(tmp_path, monkeypatch):
    monkeypatch.setattr(learned_cost, "_MOST_SAMPLES", 100)
    pairs = ["vit.layers.0=resnet.encoder.stages.0", "vit.layers.1=resnet.encoder.stages.1"]
    trainer = make_trainer(tmp_path, layer_pairs=pairs, ot_positions="all", cost_fit_steps=2, **LEARNED)
    trainer.train()
    assert [tuple(plan.shape) for plan in trainer.transfer.find(LearnedCostTransport).learned_plans] == [
        (24, 8),
        (24, 12),
    ]
    for plan in trainer.transfer.plans:
        torch.testing.assert_close(plan.sum(1), torch.full((24,), 1 / 24))


def test_what_is_not_finite_is_not_learned_from(tmp_path):
    rows = torch.arange(12.0).view(6, 2)
    rows[3, 1] = torch.nan
    student, teacher = learned_cost._finite_rows(rows, rows.clone().nan_to_num(), 100)
    assert len(student) == len(teacher) == 5
    assert len(learned_cost._finite_rows(rows, rows, 3)[0]) == 3
    assert torch.isfinite(student).all()


def test_a_cost_that_is_given_is_taken(tmp_path):
    cost = learn_neuron_cost(torch.randn(80, 24), torch.randn(80, 12))
    trainer = make_trainer(tmp_path, ot_method="exact", trainer={"learned_cost": cost}, **LEARNED)
    expected = solve(neuron_cost_of(cost).float(), method="exact").plan
    trainer.train()
    torch.testing.assert_close(trainer.transfer.plans[0], expected)
    for given, settings, message in (
        (cost, {"ot_cost": "sqeuclidean"}, "learned_cost was given, but ot_cost='sqeuclidean'"),
        ([cost, cost], LEARNED, "2 costs for 1 layer pairs"),
        (learn_neuron_cost(torch.randn(9, 5), torch.randn(9, 12)), LEARNED, "between 5 student and 12 teacher neurons"),
        (InverseTransport(), LEARNED, "was not fitted"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, trainer={"learned_cost": given}, **settings)


def test_no_loss_before_anything_was_learned(tmp_path):
    trainer = make_trainer(tmp_path, **LEARNED)
    with pytest.raises(RuntimeError, match=r"when train\(\) begins"):
        trainer.training_step(trainer.model.train(), torch.utils.data.default_collate([Images()[i] for i in range(4)]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ot_method": "identity"}, "'sinkhorn' or 'proximal' or 'exact'"),
        ({"ot_method": "random"}, "a control has a plan without any cost"),
        ({"ot_debiased": True}, "ot_debiased=True"),
        ({"ot_standardize": False}, "neurons on one scale"),
        ({"ot_dead_neurons": "ignore"}, "ot_dead_neurons='ignore'"),
        ({"plan_momentum": 0.9}, "plan_momentum=0.9 .*: set plan_momentum to 0, or ot_cost='sqeuclidean'"),
        ({"cost_fit_steps": 0}, "cost_fit_steps must be a finite number at least 1"),
        ({"cost_regularisation": 0.0}, "cost_regularisation must be a finite number above 0"),
        ({"ot_cost": "learnt"}, "Did you mean 'learned'"),
    ],
)
def test_what_it_does_not_go_with(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path, **{**LEARNED, **settings})


def test_modes_and_buffers_come_back():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).eval()
    model[1].train()
    before = weights_of(model)
    with learned_cost.as_in_training(model):
        assert model[0].training
        model(torch.randn(5, 3) + 4)
        assert not torch.equal(model[0].running_mean, before["0.running_mean"])
    assert (model.training, model[0].training, model[1].training) == (False, False, True)
    for name, value in weights_of(model).items():
        assert torch.equal(value, before[name])

"""Matching layers by transport: copies are found, narrowness does not mislead, and the models stay as they were."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_reprot.features.matching import LayerPlan, candidate_layers, layer_costs, match_layers, plan_layers
from tests.tiny_models import timm_model
from tests.toy_models import batch, resnet, vit


class MLP(nn.Sequential):
    """Six layers of changing width, with random weights that keep their inputs apart."""

    def __init__(self, widths=(24, 16, 24, 20, 16, 24), seed=0):
        torch.manual_seed(seed)
        sizes = [20, *widths]
        blocks = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in zip(sizes, widths, strict=False)]
        for block in blocks:
            nn.init.orthogonal_(block[0].weight, gain=1.5)
        super().__init__(*blocks)


def permuted(model):
    model = copy.deepcopy(model)
    for i, block in enumerate(model):
        order = torch.randperm(block[0].out_features)
        for parameter in block[0].parameters():
            parameter.data = parameter.data[order]
        if i + 1 < len(model):
            model[i + 1][0].weight.data = model[i + 1][0].weight.data[:, order]
    return model


def names(model):
    return [str(i) for i in range(len(model))]


def matched(student, teacher, ours=None, samples=400, **settings):
    x = torch.randn(samples, 20, generator=torch.Generator().manual_seed(1))
    return match_layers(
        student, teacher, x.split(100), student_layers=ours or names(student), teacher_layers=names(teacher), **settings
    )


def test_a_permuted_copy_is_the_diagonal():
    teacher = MLP()
    found = matched(permuted(teacher), teacher)
    torch.testing.assert_close(found.plan, torch.eye(6) / 6)
    assert found.value < 0.02
    assert found.depth_correlation == pytest.approx(1)
    assert found.entropy == pytest.approx(0)
    assert found.cost[~torch.eye(6, dtype=torch.bool)].min() > 0.3
    assert [(p.student, p.teacher) for p in found.pairs()] == [(str(i), str(i)) for i in range(6)]


def test_three_of_six_layers_in_another_order_find_their_own():
    teacher = MLP()
    found = matched(permuted(teacher), teacher, ours=["4", "0", "3"])
    entries = found.plan * 18
    torch.testing.assert_close(entries, entries.round(), rtol=0, atol=1e-4)  # 3/18 each, or nothing
    assert set(entries.round().flatten().tolist()) == {0.0, 3.0}
    assert all(found.plan[i, j] > 0 for i, j in enumerate([4, 0, 3]))


def test_chance_takes_away_what_favours_wide_layers():
    """Noise against noise: the raw cost falls with the width of the teacher's layer, the relative one does not."""
    draw = torch.Generator().manual_seed(0)
    student = [torch.randn(64, 24, generator=draw)]
    teacher = [torch.randn(64, width, generator=draw) for width in (4, 24, 200)]
    costs = layer_costs(student, teacher)
    assert (costs.cost[0].diff() < -0.05).all()
    torch.testing.assert_close(costs.relative(), torch.ones(1, 3).double(), rtol=0, atol=0.1)


def test_what_cannot_be_compared_costs_chance():
    x = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    spoiled = x.clone()
    spoiled[3, 2] = torch.nan
    costs = layer_costs([x, torch.ones(32, 5)], [x, spoiled])
    relative = costs.relative()
    assert relative[0, 0] < 1e-2
    assert relative[0, 1] == relative[1, 0] == relative[1, 1] == 1


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10_000), st.sampled_from(["exact", "sinkhorn"]))
@settings(max_examples=25, deadline=None)
def test_every_layer_carries_its_share(ls, lt, seed, method):
    cost = torch.rand(ls, lt, generator=torch.Generator().manual_seed(seed))
    found = plan_layers(cost, method=method)
    torch.testing.assert_close(found.plan.sum(1), torch.full((ls,), 1 / ls), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.plan.sum(0), torch.full((lt,), 1 / lt), rtol=0, atol=1e-5)
    if method == "exact":
        assert (found.plan > 0).sum() <= ls + lt - 1
    kept = found.sparse(2)
    assert ((kept.plan > 0).sum(1) <= 2).all()
    torch.testing.assert_close(kept.plan.sum(1), found.plan.sum(1))
    # The plan of an exact problem costs least: no worse than any pairing by depth or at random.
    assert found.value <= float((cost / (ls * lt)).sum()) + 1e-3


def test_additive_preferences_do_not_move_the_plan():
    """A layer that is near to all others takes no more than its share, where greedy takes it every time."""
    cost = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.5
    cost.fill_diagonal_(0.4)
    hub = cost.clone()
    hub[:, 2] -= 0.3
    assert torch.equal(plan_layers(hub).plan, plan_layers(cost).plan)
    assert plan_layers(hub).greedy() == [2] * 5


def test_order_prior_and_keep():
    reversed_ = 1 - torch.eye(4).flip(1) * 0.2
    assert plan_layers(reversed_).depth_correlation == pytest.approx(-1)
    assert plan_layers(reversed_, order_prior=10).depth_correlation == pytest.approx(1)
    assert torch.equal(plan_layers(reversed_, order_prior=10).cost, reversed_)
    wide = plan_layers(torch.zeros(2, 6), order_prior=1.0)
    assert wide.plan.gt(0).sum(1).tolist() == [3, 3]
    assert wide.depth_correlation == pytest.approx((3 / 35**0.5) * 3**0.5, abs=1e-3)  # of i and [j > 2]
    kept = plan_layers(torch.zeros(2, 6), order_prior=1.0, keep=1)
    assert kept.plan.max(1).values.tolist() == [0.5, 0.5]
    assert plan_layers(torch.rand(4, 4), method="sinkhorn", relative_epsilon=1.0).entropy > 0.5


def test_depth_correlation_of_one_layer_is_unknown():
    assert LayerPlan(torch.ones(1, 2) / 2, torch.zeros(1, 2), ["a"], ["b", "c"]).depth_correlation != 0


def test_other_architectures_and_nothing_is_changed():
    student, teacher = vit(layers=3).train(), resnet().eval()
    before = copy.deepcopy(teacher.state_dict())
    rows = batch(24)
    data = [({"pixel_values": rows["pixel_values"]}, {"pixel_values": rows["pixel_values"]})]
    found = match_layers(student, teacher, data)
    assert found.student_layers == [*(f"vit.layers.{i}" for i in range(3)), "classifier:input"]
    assert found.teacher_layers[-1] == "classifier:input"
    assert tuple(found.plan.shape) == (4, len(found.teacher_layers))
    assert student.training
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not [m for m in [*student.modules(), *teacher.modules()] if m._forward_hooks or m._forward_pre_hooks]


def test_candidates_of_deep_models_are_spread():
    model = timm_model("vit_tiny_patch16_224")
    assert candidate_layers(model, most=2) == ["blocks.1", "blocks.3", "head:input"]
    assert len(candidate_layers(model, "stages")) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_layers(torch.full((2, 2), torch.nan)), "finite matrix"),
        (lambda: plan_layers(torch.zeros(2)), "finite matrix"),
        (lambda: plan_layers(torch.zeros(2, 2), ["a"], ["b", "c"]), "1 and 2 names"),
        (lambda: plan_layers(torch.zeros(2, 2), order_prior=-1), "order_prior"),
        (lambda: plan_layers(torch.zeros(2, 2), keep=0), "keep must be at least 1"),
        (lambda: plan_layers(torch.zeros(2, 2), method="exakt"), "Did you mean 'exact'"),
        (lambda: matched(MLP(), MLP(), samples=1), "two samples"),
        (lambda: match_layers(MLP(), MLP(), [], student_layers="0", teacher_layers="0"), "two samples"),
        (lambda: match_layers(MLP(), MLP(), [], student_layers=["00"], teacher_layers="0"), "'00' is no layer"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

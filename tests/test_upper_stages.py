"""Fine-tuning on cached features: what is trained, what the baselines are, choice and tables."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression

from studies import heads, pretrained, upper_stages
from studies.grid import Results
from tests.test_study import made_up

PLAN = upper_stages.Plan(
    name="tiny",
    title="A tiny plan",
    networks=["mobilenet-v2"],
    data=[{"name": "made-up", "size": 8, "labels": [6]}],
    seeds=2,
    steps=3,
    batch_size=4,
)


@pytest.fixture
def upstairs(monkeypatch):
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv2_035", num_classes=0).eval()
    monkeypatch.setattr(upper_stages, "trunk", lambda name: network)
    monkeypatch.setattr(upper_stages.images, "load", made_up)
    return upper_stages.Upstairs(PLAN)


def test_cached_maps_give_the_networks_representation(upstairs):
    parts, classes = upstairs.parts("mobilenet-v2", 0, 0)
    network, images = upstairs.network("mobilenet-v2"), made_up()
    pixels = pretrained.normalised(images.train.both_views(), "mobilenet-v2")
    with torch.no_grad():
        expected = network(pixels).unflatten(0, (24, 2))
        upper = upper_stages.Upper(network, classes).eval()
        ours = upper.body(parts["train"].maps.flatten(0, 1)).unflatten(0, (24, 2))
    torch.testing.assert_close(parts["train"].features, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_lp_ft_starts_at_the_probe_and_wise_ft_is_half_way(upstairs):
    result = upstairs.run("mobilenet-v2", 0, "LP-FT", 12, 0, rate=0.0, weight=0.0)
    parts, _ = upstairs.parts("mobilenet-v2", 0, 0)
    train, rows = parts["train"], upper_stages.few_of_each(parts["train"].labels.numpy(), 12, 0)
    probe = LogisticRegression(C=1.0, max_iter=2000).fit(train.features[rows, 0].numpy(), train.labels[rows].numpy())
    expected = probe.score(parts["test"].features[:, 0].numpy(), parts["test"].labels.numpy())
    for way in ("linear probe", "WiSE-FT", "LP-FT"):  # nothing is learned at a rate of 0
        assert result[f"{way}:test"] == pytest.approx(expected)


def test_two_classes_have_two_logits_of_the_probe():
    features, labels = torch.randn(20, 3).numpy(), (torch.arange(20) % 2).numpy()
    probe, head = LogisticRegression().fit(features, labels), torch.nn.Linear(3, 2)
    upper_stages._copy_probe(probe, head)
    probabilities = head(torch.from_numpy(features)).softmax(-1).detach().numpy()
    assert probabilities == pytest.approx(probe.predict_proba(features), abs=1e-5)


@pytest.mark.parametrize("way", ["fine-tuning", "LP-FT, norms only", "LP-FT + Gaussian transport"])
def test_what_is_trained(upstairs, way):
    network = upstairs.network("mobilenet-v2")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    upper = upper_stages.Upper(network, 2)
    start = {name: value.clone() for name, value in upper.state_dict().items()}
    parts, _ = upstairs.parts("mobilenet-v2", 0, 0)
    upstairs._train(upper, parts["train"], torch.arange(8), upper_stages.WAYS[way], 1e-2, 1.0, 0)
    moved = {name for name, value in upper.state_dict().items() if not torch.equal(value, start[name])}
    assert not any("running" in name for name in moved)
    assert {"head.weight", "head.bias"} <= moved
    convolutions = {name for name, p in upper.named_parameters() if p.ndim == 4}
    assert bool(moved & convolutions) == (way != "LP-FT, norms only")
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_every_class_has_its_turn():
    labels = torch.tensor([0] * 10 + [1] * 3 + [2]).numpy()
    rows = upper_stages.few_of_each(labels, 7, seed=0)
    assert len(set(rows.tolist())) == 7
    assert sorted(labels[rows]) == [0, 0, 0, 1, 1, 1, 2]


def test_a_plan_runs_once_and_prints(upstairs, tmp_path, monkeypatch):
    plan = dataclasses.replace(PLAN, ways=["LP-FT", "LP-FT + L2-SP"], seeds=1, steps=1)
    upstairs.plan = plan
    monkeypatch.setattr(upper_stages, "Upstairs", lambda plan: upstairs)
    results = Results(tmp_path / "tiny.jsonl", upper_stages.KEY)
    upper_stages.run(plan, results)
    assert len(results.where(phase="final")) == 2
    count = len(results.lines)
    upper_stages.run(plan, Results(results.path, upper_stages.KEY))
    assert len(Results(results.path, upper_stages.KEY).lines) == count
    text = upper_stages.report(plan, results)
    for way in (*upper_stages.BESIDE, *plan.ways):
        assert text.count(f"| {way} |") == 1


def test_a_fitted_head_stands_beside_fixed_penalties():
    draw = np.random.default_rng(0)
    labels = np.arange(40) % 2
    features = draw.normal(size=(40, 3)) * [1, 1, 100] + 6 * labels[:, None] * [1, 0, 0]
    found = heads.accuracies(features[:20], labels[:20], 2, (features[20:], labels[20:]))
    assert set(found) == {heads.OURS, heads.PROBE, "the same on standardised features"}
    assert found[heads.OURS] >= 0.85  # the loud neuron says nothing

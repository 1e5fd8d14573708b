"""Layers of two models against each other, on the embedded images."""

import copy
import json

import pytest
import torch

from hf_reprot.commands.compare import compare_models
from hf_reprot.data.digits import load_digits_dataset
from tests.toy_models import resnet, vit


@pytest.fixture(scope="module")
def digits():
    return load_digits_dataset()["test"]


def test_a_model_is_closest_to_itself_layer_by_layer(digits):
    model = vit(layers=3)
    found = compare_models(model, copy.deepcopy(model), digits, samples=64)
    assert found.a_layers == found.b_layers
    assert len(found.a_layers) == 4
    for match in found.closest():
        assert match.a == match.b
        assert match.cost == pytest.approx(0, abs=1e-2)
        assert match.identity == pytest.approx(0, abs=1e-4)
        assert match.cka == pytest.approx(1, abs=1e-4)
        assert match.shuffled > 0.3
        assert match.random > 1
    table = found.table()
    assert table.row_count == 4


def test_permuted_neurons_are_found_where_identity_is_blind(digits):
    student, teacher = resnet(widths=(8, 12)), resnet(widths=(8, 12))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))

    def permute(_module, _args, output):
        return output[:, order]

    student.resnet.encoder.stages[1].register_forward_hook(permute)
    path = "resnet.encoder.stages.1"
    found = compare_models(student, teacher, digits, samples=64, layers=([path], [path]))
    (match,) = found.matches
    assert match.cost < 0.05 < match.identity
    plan = found.plans[path, path]
    alive = plan.amax(1) > 0.9 / 12
    assert (plan.argmax(1) == order)[alive].all()
    chance = found.chance_plans[path, path]  # beside it in the picture: images that do not belong together
    assert chance.shape == plan.shape
    assert float((chance * plan).sum()) < 0.5 * float((plan * plan).sum())


def test_different_architectures_and_files(digits, tmp_path):
    found = compare_models(vit(), resnet(), digits, samples=40, layers="stages", positions="all")
    assert found.values("cost").shape == (len(found.a_layers), len(found.b_layers))
    assert ((found.values("cka") >= 0) & (found.values("cka") <= 1)).all()
    assert (found.values("cost") <= found.values("independent") + 1e-3).all()
    files = found.save(tmp_path / "out")
    assert {f.name for f in files} == {"comparison.json", "transport.png", "cka.png", "plan.png", "layers.png"}
    assert json.loads(files[0].read_text())["matches"][0]["cost"] > 0


def test_mistakes(digits):
    with pytest.raises(ValueError, match="Did you mean 'blocks'"):
        compare_models(vit(), vit(), digits, layers="block")
    with pytest.raises(ValueError, match="no split 'dev'"):
        compare_models(vit(), vit(), "digits", split="dev")
    with pytest.raises(ValueError, match="samples"):
        compare_models(vit(), vit(), digits, samples=1)

"""A model's layers on a batch, as tables of neurons."""

import pytest
import torch
from torch import nn

from hf_reprot.features.architecture import block_layers, last_layer, named_layers, stage_layers
from hf_reprot.features.tables import TappedModel, pooled_tables


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.ReLU(), nn.Linear(3, 2))


def test_layers_in_evaluation_mode_without_gradients_and_the_model_as_it_was():
    model, x = network().train(), torch.randn(5, 4)
    model[2].eval()
    with TappedModel(model, ["2", "0"]) as tapped:
        outputs, caught = tapped.run(lambda: model(x))
        assert not outputs.requires_grad
        tables = pooled_tables(caught, ["0", "2"])
    hidden = x @ model[0].weight.T + model[0].bias
    torch.testing.assert_close(tables[0], hidden)
    torch.testing.assert_close(tables[1], hidden.clamp_min(0))  # no dropout
    torch.testing.assert_close(outputs, hidden.clamp_min(0) @ model[3].weight.T + model[3].bias)
    assert [module.training for module in model] == [True, True, False, True]
    assert not any(module._forward_hooks for module in model)


class Declared(nn.Module):
    """A module whose tree says nothing, and which says itself what its layers are."""

    def __init__(self) -> None:
        super().__init__()
        self.named_layers = {"last": ["b:input"], "last, all positions": ["a"], "blocks": ["a", "b"]}


def test_a_module_that_declares_its_layers_is_not_searched():
    model = Declared()
    assert (last_layer(model), last_layer(model, "all"), block_layers(model)) == ("b:input", "a", ["a", "b"])
    with pytest.raises(ValueError, match="Declared declares no layers 'stages'"):
        stage_layers(model)
    assert named_layers(model) == model.named_layers

"""Two layers as maps over the same positions."""

import pytest
import torch

from hf_reprot.features.activations import Activation, pair_maps, pair_neurons, pooled_neurons
from hf_reprot.features.layout import Tokens


def test_grids_meet_at_the_coarser_one():
    student, teacher = torch.randn(2, 3, 8, 4), torch.randn(2, 5, 4, 4)
    s, t = pair_maps(Activation(student, "nchw"), Activation(teacher.permute(0, 2, 3, 1), "nhwc"))
    assert torch.allclose(s, student.unflatten(2, (4, 2)).mean(3).flatten(2), atol=1e-6)
    assert torch.equal(t, teacher.flatten(2))


def test_the_patches_of_a_transformer_are_positions():
    """Class token first, a grid of 2 x 3 behind."""
    tokens = torch.randn(2, 7, 5)
    student = Activation(tokens, "nlc", tokens=Tokens("image"), prefix=1, grid=(2, 3))
    teacher = torch.randn(2, 4, 2, 3)
    s, t = pair_maps(student, Activation(teacher, "nchw"))
    assert torch.equal(s, tokens[:, 1:].transpose(1, 2))
    assert torch.equal(t, teacher.flatten(2))


def test_they_hold_what_pair_neurons_gives():
    student, teacher = (Activation(torch.randn(3, c, 6, 6), "nchw") for c in (4, 5))
    for maps, rows in zip(pair_maps(student, teacher), pair_neurons(student, teacher, positions="all"), strict=True):
        assert torch.equal(maps.transpose(1, 2).flatten(0, 1), rows)


def test_layers_without_positions():
    pooled, maps = Activation(torch.randn(2, 3), "nc", "head"), Activation(torch.randn(2, 3, 4, 4), "nchw", "body")
    with pytest.raises(ValueError, match=r"head \(teacher\) is pooled, of shape \(2, 3\)"):
        pair_maps(maps, pooled)
    with pytest.raises(ValueError, match="same batch"):
        pair_maps(maps, Activation(torch.randn(3, 3, 4, 4), "nchw"))


def test_pooled_neurons_are_a_side_of_a_pair():
    layer = Activation(torch.randn(2, 3, 4, 4), "nchw")
    assert torch.equal(pooled_neurons(layer), pair_neurons(layer, layer)[0])
    with pytest.raises(ValueError, match="tokens must be one of"):
        pooled_neurons(layer, tokens="cls")

"""Two layers' activations as tables with the same samples."""

import pytest
import torch
from torch import nn

from hf_reprot.features.activations import Activation, pair_neurons
from hf_reprot.features.layout import Tokens

VIT = Tokens(prefix=1, class_token="first")
TEXT = Tokens(modality="text", class_token="first")
CAUSAL = Tokens(modality="text", class_token="last")
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def maps(n=3, c=5, h=4, w=4):
    """The same map in the three layouts that can hold it."""
    x = randn(n, c, h, w)
    return (
        Activation(x, "nchw"),
        Activation(x.permute(0, 2, 3, 1).contiguous(), "nhwc"),
        Activation(x.flatten(2).transpose(1, 2).contiguous(), "nlc", grid=(h, w)),
        Activation(x.flatten(2), "ncl", grid=(h, w)),
    )


def vit(n=3, d=6, grid=(4, 4), prefix=1, reads_class=False, name="vit"):
    tokens = Tokens(prefix=prefix, class_token="first" if prefix else None)
    x = randn(n, prefix + grid[0] * grid[1], d)
    return Activation(x, "nlc", name, tokens, prefix, grid, reads_class)


def text(d=6, tokens=TEXT, reads_class=False, length=4):
    return Activation(randn(3, length, d), "nlc", "text", tokens, reads_class=reads_class)


def test_vectors_pass_as_they_are():
    a, b = randn(3, 4), randn(3, 7)
    s, t = pair_neurons(Activation(a, "nc"), Activation(b, "nc"))
    assert s is a
    assert t is b


def test_maps_are_averaged_in_every_layout():
    layouts = maps()
    expected = layouts[0].tensor.mean((2, 3))
    for layer in layouts:
        torch.testing.assert_close(pair_neurons(layer, layer)[0], expected)
        assert layer.width == 5


def test_every_position_in_every_layout():
    first, *others = maps()
    expected = torch.stack([first.tensor[n, :, i, j] for n in range(3) for i in range(4) for j in range(4)])
    for layer in (first, *others):
        s, t = pair_neurons(first, layer, positions="all")
        assert torch.equal(s, expected)
        assert torch.equal(t, expected)


def test_half_precision_means_are_summed_in_float32():
    x = randn(2, 3, 32, 32).bfloat16()
    s, _ = pair_neurons(Activation(x, "nchw"), Activation(x, "nchw"))
    assert s.dtype == torch.float32
    torch.testing.assert_close(s, x.double().mean((2, 3)).float())
    mask = torch.ones(2, 64)
    layer = Activation(randn(2, 64, 5).bfloat16(), "nlc", tokens=TEXT)
    with torch.autocast("cpu", torch.bfloat16):
        s, _ = pair_neurons(layer, layer, mask=mask)
    torch.testing.assert_close(s, layer.tensor.double().mean(1).float())


def test_tokens_of_a_vision_transformer_pooled():
    layer = vit(prefix=3)
    x = layer.tensor
    expected = {"auto": x[:, 3:].mean(1), "patches": x[:, 3:].mean(1), "class": x[:, 0], "all": x.mean(1)}
    for tokens, value in expected.items():
        torch.testing.assert_close(pair_neurons(layer, layer, tokens=tokens)[0], value)


def test_auto_is_the_class_token_where_the_head_reads_it():
    layer = vit(reads_class=True)
    assert torch.equal(pair_neurons(layer, vit())[0], layer.tensor[:, 0])
    torch.testing.assert_close(pair_neurons(layer, vit())[1], vit().tensor[:, 1:].mean(1))
    s, _ = pair_neurons(layer, layer, positions="all")
    torch.testing.assert_close(s, layer.tensor[:, 1:].flatten(0, 1))


def test_a_class_token_that_is_not_there():
    with pytest.raises(ValueError, match="swin has no class token"):
        pair_neurons(vit(), vit(prefix=0, name="swin"), tokens="class")
    layer = Activation(randn(3, 16, 6), "nlc", "patch_embed", VIT, 0, (4, 4))
    with pytest.raises(ValueError, match="patch_embed has no class token"):
        pair_neurons(layer, layer, tokens="class")


def test_class_tokens_need_no_positions():
    s, t = pair_neurons(vit(), vit(grid=(2, 2), d=9), positions="all", tokens="class")
    assert s.shape == (3, 6)
    assert t.shape == (3, 9)


def test_grids_meet_at_the_coarser_one():
    student, teacher = vit(grid=(4, 4)), Activation(randn(3, 7, 2, 2), "nchw")
    s, t = pair_neurons(student, teacher, positions="all")
    x = student.tensor[:, 1:].reshape(3, 4, 4, 6)
    quarters = [
        x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1)) for n in range(3) for i in (0, 1) for j in (0, 1)
    ]
    torch.testing.assert_close(s, torch.stack(quarters))
    assert torch.equal(t, teacher.tensor.permute(0, 2, 3, 1).reshape(12, 7))


def test_grids_that_cross_are_averaged_on_both_sides():
    wide, tall = Activation(randn(1, 1, 2, 6), "nchw"), Activation(randn(1, 1, 4, 3), "nchw")
    s, t = pair_neurons(wide, tall, positions="all")
    torch.testing.assert_close(s, wide.tensor.reshape(2, 3, 2).mean(2).reshape(6, 1))
    torch.testing.assert_close(t, tall.tensor.reshape(2, 2, 3).mean(1).reshape(6, 1))


def test_a_swin_on_the_grid_of_a_convolution():
    swin = Activation(randn(2, 4, 4, 6), "nhwc")
    s, t = pair_neurons(swin, Activation(randn(2, 5, 4, 4), "nchw"), positions="all")
    assert s.shape == (32, 6)
    assert t.shape == (32, 5)
    assert torch.equal(s, swin.tensor.reshape(32, 6))


def test_all_tokens_of_two_transformers_alike():
    s, t = pair_neurons(vit(), vit(d=9), positions="all", tokens="all")
    assert torch.equal(s, vit().tensor.flatten(0, 1))
    assert torch.equal(t, vit(d=9).tensor.flatten(0, 1))
    with pytest.raises(ValueError, match="use 'patches'"):
        pair_neurons(vit(), vit(prefix=2), positions="all", tokens="all")
    s, t = pair_neurons(vit(), vit(prefix=2), positions="all")
    assert s.shape == t.shape == (48, 6)


def test_unknown_grids():
    def unknown(length, prefix=1):
        return Activation(randn(2, length, 6), "nlc", "naflex", VIT, prefix, None)

    s, _ = pair_neurons(unknown(11), unknown(11), positions="all")
    assert s.shape == (20, 6)
    with pytest.raises(ValueError, match="11 tokens of naflex have no known grid"):
        pair_neurons(unknown(11), unknown(17), positions="all")
    with pytest.raises(ValueError, match="no known grid"):
        pair_neurons(unknown(11), unknown(11, prefix=2), positions="all")
    with pytest.raises(ValueError, match="no known grid"):
        pair_neurons(Activation(randn(2, 5, 3, 3), "nchw"), unknown(11), positions="all")


def test_texts_pooled_over_the_tokens_kept():
    layer = text()
    expected = torch.stack([layer.tensor[0, :3].mean(0), layer.tensor[1, 0], layer.tensor[2].mean(0)])
    for mask in (MASK, MASK.bool(), MASK.float()):
        torch.testing.assert_close(pair_neurons(layer, layer, mask=mask)[0], expected)
    torch.testing.assert_close(pair_neurons(layer, layer)[0], layer.tensor.mean(1))


def test_padding_without_numbers_is_kept_out():
    """What stands at padded positions has no say, not even infinite numbers: a weight of 0 would make NaN of them."""
    layer = text()
    layer.tensor = layer.tensor.masked_fill(MASK[:, :, None] == 0, float("inf"))
    for positions in ("pooled", "all"):
        s, _ = pair_neurons(layer, layer, positions=positions, mask=MASK)
        assert s.isfinite().all()


def test_the_class_token_of_a_text():
    first = text(reads_class=True)
    assert torch.equal(pair_neurons(first, first, mask=MASK)[0], first.tensor[:, 0])
    last = text(tokens=CAUSAL, reads_class=True)
    expected = torch.stack([last.tensor[0, 2], last.tensor[1, 0], last.tensor[2, 3]])
    assert torch.equal(pair_neurons(last, last, mask=MASK)[0], expected)
    assert torch.equal(pair_neurons(last, last)[0], last.tensor[:, -1])
    left = MASK.flip(1)
    assert torch.equal(pair_neurons(last, last, mask=left)[0], last.tensor[:, -1])


def test_padding_is_dropped_on_both_sides_alike():
    student, teacher = text(), text(d=9)
    s, t = pair_neurons(student, teacher, positions="all", mask=MASK)
    keep = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert torch.equal(s, torch.stack([student.tensor[i, j] for i, j in keep]))
    assert torch.equal(t, torch.stack([teacher.tensor[i, j] for i, j in keep]))
    s, _ = pair_neurons(student, teacher, positions="all")
    assert s.shape == (12, 6)


def test_texts_of_other_lengths_go_together_pooled_only():
    with pytest.raises(ValueError, match="same tokenisation"):
        pair_neurons(text(), text(length=5), positions="all", mask=MASK)
    with pytest.raises(ValueError, match=r"mask has the shape \(3, 4\), but text has \(3, 5\)"):
        pair_neurons(text(), text(length=5), mask=MASK)
    s, t = pair_neurons(text(), text(length=5))
    assert s.shape == t.shape == (3, 6)


def test_a_mask_leaves_images_alone():
    s, _ = pair_neurons(vit(), vit(), mask=MASK)
    torch.testing.assert_close(s, vit().tensor[:, 1:].mean(1))


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match=r"3 samples.*2"):
        pair_neurons(vit(), vit(n=2))
    with pytest.raises(ValueError, match=r"head:input \(teacher\) has the shape"):
        pair_neurons(vit(), Activation(randn(3, 4), "nc", "head:input"), positions="all")
    with pytest.raises(ValueError, match="cannot pair the positions of a text"):
        pair_neurons(text(), vit(), positions="all")
    with pytest.raises(ValueError, match="positions must be one of"):
        pair_neurons(vit(), vit(), positions="some")
    with pytest.raises(ValueError, match="tokens must be one of"):
        pair_neurons(vit(), vit(), tokens="cls")


@pytest.mark.parametrize("positions", ["pooled", "all"])
def test_gradients_reach_the_layer(positions):
    weight = nn.Parameter(torch.ones(()))
    layer = vit()
    layer.tensor = layer.tensor * weight
    s, _ = pair_neurons(layer, Activation(randn(3, 4, 2, 2), "nchw"), positions=positions)
    s.sum().backward()
    assert weight.grad.abs() > 0

"""What is in a cache: the numbers of the teacher, found by content, in any order."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_reprot.cache import CacheError, FeatureCache
from hf_reprot.cache.keys import content_hash
from tests.cache.samples import build, mlp, photos, processor
from tests.toy_models import Images, batch, resnet, vit

ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def _by_hand(model, pixels, layer, pool):
    """The output of a module, without any of the package's taps."""
    caught = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, a, out: caught.append(out))
    with torch.no_grad():
        logits = model.eval()(pixels).logits
    handle.remove()
    return pool(caught[0] if isinstance(caught[0], torch.Tensor) else caught[0][0]), logits


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_pooled_rows_are_the_teachers(tmp_path, dtype):
    cache = build(tmp_path, dtype=dtype)
    pixels = batch(32)["pixel_values"]
    name = next(iter(cache.layers))
    expected, logits = _by_hand(resnet(seed=1), pixels, name, lambda x: x.mean((2, 3)))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    found = cache.read(cache.keys_of({"pixel_values": pixels[order]}))
    assert found[name].dtype == getattr(torch, dtype)
    for value, reference in ((found[name], expected[order]), (found["logits"], logits[order])):
        error = (value.float() - reference).abs()
        assert (error <= ROUNDING[dtype] * reference.abs() + 1e-6).all()
    if dtype != "float32":
        assert not torch.equal(found[name].float(), expected[order])  # close, not equal


def test_positions_are_kept_whole(tmp_path):
    cache = build(tmp_path, vit(seed=2), positions=True, layers="last")
    (name,) = cache.layers
    pixels = batch(32)["pixel_values"][:8]
    expected, _ = _by_hand(vit(seed=2), pixels, name, lambda x: x)
    found = cache.read(cache.keys_of({"pixel_values": pixels}))[name]
    torch.testing.assert_close(found, expected)
    layer = cache.layers[name].activation(found)
    assert (layer.layout, layer.prefix, layer.grid) == ("nlc", 1, (4, 4))


def test_rows_do_not_depend_on_shards_or_batches(tmp_path):
    one = build(tmp_path / "one", shard_rows=32, batch_size=8)
    other = build(tmp_path / "other", shard_rows=5, batch_size=3)
    assert len(other.manifest.shards) == 7
    keys = one.keys_of(batch(32))
    for a, b in zip(one.read(keys).values(), other.read(keys).values(), strict=True):
        torch.testing.assert_close(a, b)
    assert one.digest != other.digest


def test_the_same_build_gives_the_same_bytes(tmp_path):
    assert build(tmp_path / "a").digest == build(tmp_path / "b").digest


def test_duplicate_images_are_one_row_to_a_reader(tmp_path):
    rows = [Images(4)[i] for i in (0, 1, 0, 2, 0)]
    cache = build(tmp_path, data=rows, shard_rows=2)
    found = cache.read(cache.keys_of({"pixel_values": torch.stack([row["pixel_values"] for row in rows])}))
    assert all(torch.equal(value[0], value[2]) and torch.equal(value[0], value[4]) for value in found.values())


def test_an_unknown_row_is_no_neighbour(tmp_path):
    cache = build(tmp_path)
    pixels = batch(32)["pixel_values"][:8]
    pixels[3, 0, 0, 0] = torch.nextafter(pixels[3, 0, 0, 0], torch.tensor(9.0))  # the last bit of one number
    found = cache.find(cache.keys_of({"pixel_values": pixels}))
    assert (found[3], (np.delete(found, 3) >= 0).all()) == (-1, True)
    with pytest.raises(KeyError, match="key 3 is not in the cache"):
        cache.read(cache.keys_of({"pixel_values": pixels}))
    with pytest.raises(ValueError, match="no tensor 'pixel_values'"):
        cache.keys_of({"labels": torch.zeros(2)})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=20), st.binary(min_size=16, max_size=16))
def test_lookup_agrees_with_a_dictionary(keys, other):
    cache = object.__new__(FeatureCache)  # the index alone
    table = np.frombuffer(b"".join(keys), dtype="S16")
    cache._order = np.argsort(table, kind="stable")
    cache._keys = table[cache._order]
    known = {}
    for i, key in enumerate(keys):
        known.setdefault(key, i)
    asked = [*keys, other, bytes(16), b"\xff" * 16]
    assert cache.find(asked).tolist() == [known.get(key, -1) for key in asked]


def test_hashes_tell_shape_and_type_from_values():
    x = torch.arange(4, dtype=torch.int32)
    different = [x, x.view(2, 2), x.view(torch.float32), x.long(), x + 1]
    assert len({content_hash(value) for value in different}) == len(different)
    assert content_hash("ab", "c") != content_hash("a", "bc")
    assert content_hash(x.view(2, 2).t()) == content_hash(x.view(2, 2).t().contiguous())


def test_a_pickled_cache_maps_its_files_again(tmp_path):
    cache = build(tmp_path / "c")
    copy = pickle.loads(pickle.dumps(cache))
    keys = cache.keys_of(batch(32))
    assert all(torch.equal(a, b) for a, b in zip(cache.read(keys).values(), copy.read(keys).values(), strict=True))
    text = pickle.dumps(cache)
    for file in (tmp_path / "c").iterdir():
        file.unlink()
    build(tmp_path / "c", resnet(seed=5))
    with pytest.raises(CacheError, match="has changed since it was opened"):
        pickle.loads(text)


def test_values_that_a_type_cannot_hold_are_refused(tmp_path):
    teacher = mlp()
    with torch.no_grad():
        teacher[1].weight *= 1e6
    with pytest.raises(ValueError, match=r"2 has values up to .*float16 cannot hold.*bfloat16"):
        build(tmp_path / "half", teacher, layers=["2"], dtype="float16")
    build(tmp_path / "wide", teacher, layers=["2"], dtype="bfloat16")


def test_images_go_through_the_processor(tmp_path):
    data, made = photos(6), processor()
    cache = build(tmp_path, data=data, processor=made)
    pixels = made([row["image"] for row in data], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = resnet(seed=1).eval()(pixels).logits
    torch.testing.assert_close(cache.read(cache.keys_of({"pixel_values": pixels}))["logits"], expected)
    with pytest.raises(ValueError, match="give the student's image processor"):
        build(tmp_path / "none", data=data)


def test_a_build_says_whether_order_changes_bits(tmp_path, monkeypatch):
    assert build(tmp_path / "a").settings.bitwise

    class ByPlace(nn.Module):
        """Rounds a row by where it stands."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 3)

        def forward(self, pixel_values):
            return self.head(pixel_values.mean((2, 3))) + 1e-7 * torch.arange(len(pixel_values))[:, None]

    assert not build(tmp_path / "b", ByPlace(), layers=["head"]).settings.bitwise

"""A cache that is not what was written is refused, and the message names the file."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_reprot.cache import CacheError, FeatureCache
from hf_reprot.cache.manifest import Manifest, digest_of, read_json, write_json
from tests.cache.samples import build
from tests.toy_models import batch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "c"
    build(folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**31), st.integers(0, 7), st.integers(0, 3))
def test_one_flipped_bit_anywhere_is_found(whole, place, bit, shard):
    path = sorted(whole.glob("*.safetensors"))[shard]
    content = bytearray(path.read_bytes())
    before = bytes(content)
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        with pytest.raises(CacheError, match=f"the shard {path.name} "):
            FeatureCache(whole)
    finally:
        path.write_bytes(before)
    FeatureCache(whole)


def test_a_bit_that_flips_later_is_found_when_the_row_is_read(copy):
    cache = FeatureCache(copy)
    keys = cache.keys_of(batch(32))
    found = cache.find(keys)
    path = copy / cache.manifest.shards[1].file
    shard = cache._shards[1]
    values = next(iter(shard.features.values()))
    offset = values.__array_interface__["data"][0] - shard._map.__array_interface__["data"][0]
    with path.open("r+b") as file:  # the first number of the shard's row 2
        file.seek(offset + 2 * values[0].nbytes)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    damaged = 8 + 2
    fine = [key for key, row in zip(keys, found, strict=True) if row != damaged]
    cache.read(fine)
    with pytest.raises(CacheError, match=rf"row 2 of the shard {path.name} is damaged"):
        cache.read(keys)


@pytest.mark.parametrize(("cut", "word"), [(1, "truncated"), (5000, "truncated"), (-7, "too long")])
def test_a_file_of_another_size(copy, cut, word):
    path = sorted(copy.glob("*.safetensors"))[-1]
    content = path.read_bytes()
    path.write_bytes(content[:-cut] if cut > 0 else content + bytes(-cut))
    with pytest.raises(CacheError, match=f"{path.name} is {word}"):
        FeatureCache(copy, verify=False)


def test_files_that_are_missing_or_swapped(copy):
    first, second = sorted(copy.glob("*.safetensors"))[:2]
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    with pytest.raises(CacheError, match=f"{first.name} is damaged"):
        FeatureCache(copy)
    first.unlink()
    with pytest.raises(CacheError, match=f"{first.name} is missing"):
        FeatureCache(copy)


def test_a_manifest_that_was_changed(copy):
    path = copy / "manifest.json"
    content = json.loads(path.read_text())
    content["settings"]["teacher"]["name"] = "someone/else"
    path.write_text(json.dumps(content))
    with pytest.raises(CacheError, match="was changed: its digest does not fit"):
        FeatureCache(copy)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(CacheError, match=r"manifest\.json is damaged"):
        FeatureCache(copy)
    content["settings"]["format"] = 99
    path.write_text(json.dumps(content))
    with pytest.raises(CacheError, match="was written by a later hf_reprot"):
        FeatureCache(copy)
    path.unlink()
    with pytest.raises(CacheError, match=r"unfinished build \(4 of 4 shards are whole\)"):
        FeatureCache(copy)
    shutil.rmtree(copy)
    with pytest.raises(CacheError, match="is no feature cache"):
        FeatureCache(copy)


def test_a_manifest_of_an_earlier_version_lacks_fields(copy):
    path = copy / "manifest.json"
    content = json.loads(path.read_text())
    del content["settings"]["teacher"]["cache"]
    content["digest"] = digest_of(content)
    path.write_text(json.dumps(content))
    assert FeatureCache(copy).digest == content["digest"]


def test_a_manifest_cannot_name_files_outside(copy):
    path = copy / "manifest.json"
    content = json.loads(path.read_text())
    content["shards"][0]["file"] = "../" + content["shards"][0]["file"]
    path.write_text(json.dumps(content))
    with pytest.raises(CacheError, match="digest does not fit"):
        FeatureCache(copy)
    manifest = read_json(path, Manifest)
    manifest.digest = manifest.computed_digest()
    write_json(path, manifest)
    with pytest.raises(CacheError, match="does not list the 4 shards"):
        FeatureCache(copy)


def test_the_same_build_mends_what_is_damaged(copy, whole):
    digest = FeatureCache(copy).digest
    broken, gone = sorted(copy.glob("*.safetensors"))[1:3]
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    gone.unlink()
    kept = sorted(copy.glob("*.safetensors"))[0]
    before = kept.stat().st_mtime_ns
    mended = build(copy)
    assert mended.digest == digest
    assert FeatureCache(copy).digest == digest
    assert kept.stat().st_mtime_ns == before
    assert torch.equal(
        mended.read(mended.keys_of(batch(32)))["logits"],
        FeatureCache(whole).read(mended.keys_of(batch(32)))["logits"],
    )

"""Builds that are killed, share a folder, run out of room, or are asked for something else than before."""

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from torch import nn

from hf_reprot.cache import CacheError, FeatureCache
from hf_reprot.cache.builder import claim
from tests.cache.samples import build, mlp, photos, processor
from tests.toy_models import Images, batch, resnet, vit

FORK = multiprocessing.get_context("fork")  # a child of this process has no minute of imports to make


class Slow(nn.Module):
    """A teacher that takes its time and writes down every pass that it makes."""

    def __init__(self, passes: Path, pause: float):
        super().__init__()
        self.inner, self.passes, self.pause = mlp(), passes, pause

    def forward(self, pixel_values):
        time.sleep(self.pause)
        with self.passes.open("a") as file:
            file.write("pass\n")
        return self.inner(pixel_values)


def _slow(folder: Path, passes: Path, pause: float = 0.0, **environment: str) -> FeatureCache:
    torch.set_num_threads(1)
    os.environ.update(environment)
    return build(folder, Slow(passes, pause), Images(48), layers=["inner.2"], batch_size=4, shard_rows=8)


def _start(*arguments: Any, **environment: str) -> multiprocessing.Process:
    process = FORK.Process(target=_slow, args=arguments, kwargs=environment)
    process.start()
    return process


def _shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("view*.safetensors"))


def _passes(file: Path) -> list[str]:
    return file.read_text().split() if file.is_file() else []


def test_a_killed_build_goes_on_and_computes_no_whole_shard_twice(tmp_path):
    folder, passes = tmp_path / "c", tmp_path / "passes"
    process = _start(folder, passes, 0.1)
    deadline = time.monotonic() + 60
    while len(_shards(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    whole = _shards(folder)
    assert 2 <= len(whole) < 6
    with pytest.raises(CacheError, match=rf"unfinished build \({len(whole)} of 6 shards are whole\): run the same"):
        FeatureCache(folder)
    before = {name: (folder / name).stat().st_mtime_ns for name in whole}
    passes.unlink()
    cache = _slow(folder, passes)
    assert {name: (folder / name).stat().st_mtime_ns for name in whole} == before
    # 4 passes to look at the first batch and its order, 2 for each shard that was not whole
    assert len(_passes(passes)) == 4 + 2 * (6 - len(whole))
    assert cache.digest == _slow(tmp_path / "other", tmp_path / "more").digest  # as if nothing had happened
    left = sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")
    assert left == ["manifest.json", "settings.json", *_shards(folder)]


def test_two_processes_share_the_shards(tmp_path):
    files = [tmp_path / "0", tmp_path / "1"]
    both = [_start(tmp_path / "c", file, 0.1, RANK=str(i), WORLD_SIZE="2") for i, file in enumerate(files)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    worked = [len(_passes(file)) - 4 for file in files]
    assert sum(worked) == 2 * 6  # every shard once
    assert min(worked) > 0
    cache = FeatureCache(tmp_path / "c")
    assert len(cache) == 48
    with torch.no_grad():
        expected = mlp()(batch(48)["pixel_values"])
    torch.testing.assert_close(cache.read(cache.keys_of(batch(48)))["logits"], expected)


def test_a_shard_that_another_process_holds_is_waited_for(tmp_path):
    build(tmp_path / "c")
    (first, *_) = _shards(tmp_path / "c")
    for path in ((tmp_path / "c" / first), (tmp_path / "c" / "manifest.json")):
        path.unlink()
    lock = tmp_path / "c" / f".{first}.lock"
    held = FORK.Event()
    holder = FORK.Process(target=_hold, args=(lock, held))
    holder.start()
    assert held.wait(60)
    with claim(lock) as mine:
        assert not mine
    os.kill(holder.pid, signal.SIGKILL)  # whoever held it is gone: the shard is ours
    holder.join()
    assert len(build(tmp_path / "c")) == 32


def _hold(lock: Path, held: Any) -> None:
    with claim(lock) as mine:
        assert mine
        held.set()
        time.sleep(60)


def test_another_build_in_the_folder_is_refused_by_what_differs(tmp_path):
    build(tmp_path, vit(seed=2))
    refused = {
        r"dtype is float32 there and float16 here": {"dtype": "float16"},
        r"positions is False there and True here": {"positions": True},
        r"tokens is auto there and patches here": {"tokens": "patches"},
        r"layers\[0\]\.name is .* there and .* here": {"layers": "last"},
        r"weights is .* there and .* here": {"teacher": vit(seed=3)},
        r"data\.samples is 32 there and 24 here": {"data": Images(24)},
        r"sample is .* there and .* here": {"data": Images(32, seed=1)},
        r"batch_size is 8 there and 4 here": {"batch_size": 4},
        r"shard_rows is 8 there and 16 here": {"shard_rows": 16},
        r"classes is 3 there and None here": {"logits": False},
    }
    for message, options in refused.items():
        with pytest.raises(CacheError, match=f"holds a build with other settings: .*{message}"):
            build(tmp_path, **{"teacher": vit(seed=2), **options})
    build(tmp_path, vit(seed=2))


def test_what_cannot_be_built(tmp_path):
    with pytest.raises(ValueError, match="the data set is empty"):
        build(tmp_path, data=[])
    with pytest.raises(ValueError, match="has no numbered rows"):
        build(tmp_path, data=IterableDataset.from_generator(lambda: iter([{"pixel_values": 0}])))
    with pytest.raises(ValueError, match=r"dtype.*'float16'"):
        build(tmp_path, dtype="float15")
    with pytest.raises(ValueError, match=r"no layer of the teacher.*Nearest: .*stages\.1"):
        build(tmp_path, layers=["resnet.encoder.stages.11"])
    with pytest.raises(ValueError, match="has no stages that are known"):
        build(tmp_path, mlp())
    with pytest.raises(ValueError, match="must be at least 1"):
        build(tmp_path, shard_rows=0)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file.* cannot be written to \(.*\): choose another folder"):
        build(tmp_path / "file" / "c")


def test_augmentations_that_cannot_be_repeated(tmp_path):
    from hf_reprot.data.collator import ImageCollator

    data, crops = photos(6), ImageCollator(processor(), augmentation="crop+flip")
    with pytest.raises(ValueError, match="makes another view in every epoch: say how many epochs"):
        build(tmp_path, data=data, collator=crops)
    with pytest.raises(ValueError, match="epochs must be a whole number above 0"):
        build(tmp_path, data=data, collator=crops, epochs=0)
    assert len(build(tmp_path, data=data, collator=crops, epochs=3)) == 18

    class Cutout:
        augmentation = "cutout"

    with pytest.raises(ValueError, match="'cutout' of Cutout follows from nothing that can be repeated"):
        build(tmp_path / "b", data=data, collator=Cutout())


def _limited(folder: Path, answer: Any) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))  # a shard has more, the settings less
    try:
        build(folder, mlp(), layers=["2"], shard_rows=32)
    except OSError as error:
        answer.send(str(error))


def test_a_write_that_fails_leaves_what_is_whole(tmp_path):
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_limited, args=(tmp_path / "c", theirs))
    process.start()
    assert ours.poll(60)
    message = ours.recv()
    process.join()
    assert "a shard could not be written to" in message
    assert "0 of 1 shards are whole and stay. Make room and run the same build again" in message
    assert not list((tmp_path / "c").glob("*.safetensors"))
    assert not list((tmp_path / "c").glob(".*.part"))
    assert len(build(tmp_path / "c", mlp(), layers=["2"], shard_rows=32)) == 32


def test_too_little_room_is_seen_before_the_first_shard(tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1000))
    with pytest.raises(OSError, match=r"is too small: the cache needs about .* GB, and 0\.00 GB are left"):
        build(tmp_path)
    assert not (tmp_path / "settings.json").exists()


def test_workers_give_the_same_cache(tmp_path):
    data = photos(12)
    alone = build(tmp_path / "a", data=data, processor=processor())
    helped = build(tmp_path / "b", data=data, processor=processor(), num_workers=2)
    assert alone.digest == helped.digest


def test_nothing_of_this_machine_is_written_down(tmp_path):
    resnet(seed=1).save_pretrained(tmp_path / "teacher")
    cache = build(tmp_path / "c", str(tmp_path / "teacher"))
    assert cache.settings.teacher.name == "teacher"
    assert str(tmp_path) not in (tmp_path / "c" / "manifest.json").read_text()

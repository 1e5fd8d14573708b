"""Rows and batches that draw random numbers draw what follows from seed, epoch and row alone."""

import pickle
import random

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2
from transformers import TrainerCallback

from hf_reprot.data.seeding import ReadingSeeds, SeededCollator, SeededRows, may_draw
from tests.toy_models import IMAGE, Images
from tests.training.runs import make_trainer, training_logs, weights_of


class Noisy(Images):
    """Rows with numbers of all three generators."""

    def __getitem__(self, index):
        noise = torch.rand(()) + np.random.rand() + random.random()
        row = super().__getitem__(index)
        return row | {"pixel_values": row["pixel_values"] + noise.float()}


def transformed():
    """A data set whose rows are augmented by torchvision when they are read."""
    images = Images(24)
    table = {"pixels": images.pixels.tolist(), "label": images.labels.tolist()}
    data = datasets.Dataset.from_dict(table)
    augment = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomResizedCrop(IMAGE, scale=(0.5, 1)), v2.RandomErasing()])

    def read(rows):
        pixels = [augment(torch.tensor(image)) for image in rows["pixels"]]
        return {"pixel_values": pixels, "labels": rows["label"]}

    data.set_transform(read)
    return data


def mixing(rows):
    """A collator that draws: one number for the whole batch."""
    batch = torch.utils.data.default_collate(rows)
    share = torch.rand(())
    batch["pixel_values"] = share * batch["pixel_values"] + (1 - share) * batch["pixel_values"].flip(0)
    return batch


def test_a_row_follows_from_seed_epoch_and_index():
    seeds = ReadingSeeds(1)
    rows = SeededRows(Noisy(), seeds)
    first = [rows[i]["pixel_values"] for i in (0, 1)]
    assert torch.equal(rows[0]["pixel_values"], first[0])
    plain = Images()
    noise = [f - plain[i]["pixel_values"] for i, f in enumerate(first)]
    assert (noise[0] - noise[1]).abs().max() > 1e-3
    for epoch, seed in ((1, 1), (0, 2)):
        seeds.set_epoch(epoch, seed)
        assert (rows[0]["pixel_values"] - first[0]).abs().max() > 1e-3
    seeds.set_epoch(0, 1)
    assert torch.equal(rows[1]["pixel_values"], first[1])


def test_other_draws_go_on_as_if_nothing_had_been_read():
    def draws(read):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        if read:
            SeededRows(Noisy(), ReadingSeeds())[3]
        return torch.rand(()).item(), np.random.rand(), random.random()

    assert draws(True) == draws(False)


def test_rows_that_are_read_together_and_by_workers():
    rows = SeededRows(Subset(Noisy(), range(8)), ReadingSeeds())
    assert hasattr(rows, "__getitems__")
    assert not hasattr(SeededRows(Noisy(), ReadingSeeds()), "__getitems__")
    batches = [
        [b["pixel_values"] for b in DataLoader(data, batch_size=4, num_workers=workers)]
        for data in (rows, pickle.loads(pickle.dumps(rows)))
        for workers in (0, 2)
    ]
    for other in batches[1:]:
        assert torch.equal(torch.cat(other), torch.cat(batches[0]))
    assert rows.indices == range(8)  # what else the data set has


def test_a_batch_follows_from_its_rows():
    seeds = ReadingSeeds()
    data, collate = SeededRows(Images(), seeds), SeededCollator(mixing, seeds)

    def batch(*indices):
        return collate([data[i] for i in indices])["pixel_values"]

    first = batch(0, 1)
    batch(2, 3)
    assert torch.equal(batch(0, 1), first)
    seeds.set_epoch(1)
    assert not torch.equal(batch(0, 1), first)


def test_which_data_may_draw():
    assert may_draw(Noisy())
    assert may_draw(transformed())
    assert not may_draw(datasets.Dataset.from_dict({"a": [1]}))
    assert not may_draw(datasets.Dataset.from_dict({"a": [1]}).to_iterable_dataset())
    assert not may_draw([1, 2])


class Stop(TrainerCallback):
    """Gives up in the middle of an epoch, right after a checkpoint and with the next batch fetched."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("make", "workers", "collator"),
    [(transformed, 0, None), (transformed, 2, None), (Noisy, 0, None), (Images, 0, mixing)],
)
def test_a_run_that_was_killed_ends_like_one_that_was_not(tmp_path, make, workers, collator):
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "dataloader_num_workers": workers}

    def run(folder, callbacks=(), resume=None):
        given = {"data_collator": collator, "callbacks": list(callbacks)}
        trainer = make_trainer(tmp_path / folder, data=make(), trainer=given, **settings)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", [Stop()])
    resumed = run("killed", resume=True)
    assert training_logs(resumed) == training_logs(whole)
    ends = weights_of(resumed.model)
    assert all(torch.equal(value, ends[name]) for name, value in weights_of(whole.model).items())
    assert resumed.train_dataset is not None
    assert not isinstance(resumed.train_dataset, SeededRows)


def test_streamed_data_are_warned_about(tmp_path, caplog):
    data = datasets.Dataset.from_dict({"pixel_values": [[0.0]], "labels": [0]}).to_iterable_dataset()
    make_trainer(tmp_path, data=data, save_strategy="steps")
    assert "The training data are streamed" in caplog.text
    caplog.clear()
    make_trainer(tmp_path, data=data)
    assert "The training data are streamed" not in caplog.text

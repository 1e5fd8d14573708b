"""Mixup and CutMix of batches: torchvision's images and labels, and the cross-entropy of what comes out."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.transforms import v2

from hf_reprot.data.mixing import MIXED, MixingCollator, mixed_cross_entropy
from hf_reprot.data.seeding import ReadingSeeds
from tests.toy_models import Images

DATA = Images(8)
ROWS = [DATA[i] for i in range(8)]
PLAIN = torch.utils.data.default_collate(ROWS)


def collator(mixup=0.4, cutmix=0.0, classes=3, collate=torch.utils.data.default_collate, epoch=0):
    seeds = ReadingSeeds()
    seeds.set_epoch(epoch, seed=5)
    return MixingCollator(collate, mixup, cutmix, seeds, classes)


def test_mixup_mixes_neighbours_and_their_labels_alike():
    batch = collator()(ROWS)
    assert "labels" not in batch
    share = (batch["pixel_values"][0] - PLAIN["pixel_values"][-1]) / (
        PLAIN["pixel_values"][0] - PLAIN["pixel_values"][-1]
    )
    lam = share.median()
    assert 0 < lam < 1
    pixels, labels = PLAIN["pixel_values"], F.one_hot(PLAIN["labels"], 3).float()
    assert_close(batch["pixel_values"], lam * pixels + (1 - lam) * pixels.roll(1, 0), atol=1e-5, rtol=1e-5)
    assert_close(batch[MIXED], lam * labels + (1 - lam) * labels.roll(1, 0), atol=1e-5, rtol=1e-5)


def test_cutmix_exchanges_boxes_by_their_area():
    found = [collator(0.0, 1.0, epoch=epoch)(ROWS) for epoch in range(6)]
    for batch in found:
        ours = (batch["pixel_values"] == PLAIN["pixel_values"]).all(1).flatten(1).float().mean(1)  # share of the pixels
        theirs = (batch["pixel_values"] == PLAIN["pixel_values"].roll(1, 0)).all(1).flatten(1).float().mean(1)
        assert_close(ours + theirs, torch.ones(8))
        labels = F.one_hot(PLAIN["labels"], 3).float()
        assert_close(batch[MIXED], ours[:, None] * labels + theirs[:, None] * labels.roll(1, 0))
    assert len({float(batch[MIXED].max(1).values.min()) for batch in found}) > 1


def test_what_is_drawn_follows_from_seed_epoch_and_images():
    both = collator(0.4, 1.0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = both(ROWS)
    assert torch.equal(torch.get_rng_state(), before)
    assert_close(both(ROWS), first, atol=0, rtol=0)
    assert not torch.equal(collator(0.4, 1.0, epoch=1)(ROWS)["pixel_values"], first["pixel_values"])
    kinds = set()
    for epoch in range(12):
        batch = collator(0.4, 1.0, epoch=epoch)(ROWS)
        same = (batch["pixel_values"] == PLAIN["pixel_values"]) | (
            batch["pixel_values"] == PLAIN["pixel_values"].roll(1, 0)
        )
        kinds.add(bool(same.all()))
    assert kinds == {True, False}  # one of the two for each batch


def test_other_labels():
    several = [{**row, "labels": F.one_hot(row["labels"], 3).float()} for row in ROWS]
    batch = collator()(several)
    assert_close(batch["labels"], collator()(ROWS)[MIXED])
    assert MIXED not in batch
    free = collator(classes=None)(ROWS)  # labels take no part
    assert torch.equal(free["labels"], PLAIN["labels"])
    assert_close(free["pixel_values"], batch["pixel_values"])
    assert not torch.equal(
        collator(classes=None)([{"pixel_values": r["pixel_values"]} for r in ROWS])["pixel_values"],
        PLAIN["pixel_values"],
    )
    half = [{**row, "labels": row["labels"] if i % 2 else torch.tensor(-100)} for i, row in enumerate(ROWS)]
    shares = collator()(half)[MIXED]
    assert_close(shares.sum(), torch.tensor(4.0))
    with pytest.raises(ValueError, match=r"the labels are float32 \(8,\).*Set both to 0"):
        collator()([{**row, "labels": torch.tensor(0.5)} for row in ROWS])
    with pytest.raises(ValueError, match=r"the labels are int64 \(8, 2, 2\)"):
        collator()([{**row, "labels": torch.zeros(2, 2).long()} for row in ROWS])
    with pytest.raises(ValueError, match=r"the batch has none: input_ids"):
        collator()([{"input_ids": torch.zeros(3)}] * 2)
    with pytest.raises(ValueError, match=r"the column teacher_pixel_values would stay"):
        collator()([{**row, "teacher_pixel_values": row["pixel_values"]} for row in ROWS])


def test_cross_entropy_of_shares():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 3, 3, 2, 1])
    hard = F.one_hot(labels, 4).float()
    for smoothing in (0.0, 0.1):
        theirs = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        assert_close(mixed_cross_entropy(logits, hard, smoothing), theirs)
        _, soft = v2.MixUp(alpha=1.0)(torch.zeros(6, 1, 2, 2), hard)
        theirs = F.cross_entropy(logits, soft, label_smoothing=smoothing)
        assert_close(mixed_cross_entropy(logits, soft, smoothing), theirs)
    labels[:3] = -100
    known = hard * (labels != -100)[:, None]
    assert_close(mixed_cross_entropy(logits, known), F.cross_entropy(logits, labels))
    assert mixed_cross_entropy(logits, torch.zeros(6, 4)) == 0

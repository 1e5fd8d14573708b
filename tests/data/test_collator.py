"""Batches of raw images: what the processor makes of them, augmentation, and rows that are wrong."""

import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch.testing import assert_close
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Siglip2ImageProcessor,
    TimmWrapperImageProcessor,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
    set_seed,
)

from hf_reprot.data.collator import AugmentationEpoch, ImageCollator
from hf_reprot.data.datasets import leave_encoded
from hf_reprot.data.digits import load_digits_dataset


def processor(size: int = 8) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": size, "width": size}, do_resize=True)


def picture(value: int = 100, size: tuple[int, int] = (8, 8)) -> PILImage.Image:
    return PILImage.new("RGB", size, (value, value // 2, 0))


def noise(seed: int, size: tuple[int, int] = (12, 10)) -> PILImage.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PILImage.fromarray(pixels)


def test_a_batch_is_what_the_processor_makes():
    rows = [{"image": noise(i), "label": i, "other": "x"} for i in range(3)]
    batch = ImageCollator(processor())(rows)
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["labels"].tolist() == [0, 1, 2]
    assert_close(batch["pixel_values"], processor()([r["image"] for r in rows], return_tensors="pt")["pixel_values"])


def test_other_processors_and_columns():
    timm_processor = TimmWrapperImageProcessor({"input_size": (1, 16, 16), "mean": (0.5,), "std": (0.5,)})
    collator = ImageCollator(timm_processor, image_column="photo", label_column=None)
    assert collator.input_columns == ("photo", None)
    batch = collator([{"photo": noise(0), "label": 1}, {"photo": noise(1).convert("RGBA"), "label": 1}])
    assert batch["pixel_values"].shape == (2, 1, 16, 16)
    assert "labels" not in batch


def test_flips_happen_half_of_the_time_and_mirror():
    collator = ImageCollator(processor(), "flip")
    rows = [{"image": noise(i), "label": 0} for i in range(200)]
    plain = collator.for_evaluation()(rows)["pixel_values"]
    assert_close(plain, processor()([row["image"] for row in rows], return_tensors="pt")["pixel_values"])
    torch.manual_seed(0)
    found = collator(rows)["pixel_values"]
    same = (found == plain).flatten(1).all(1)
    mirrored = (found == plain.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 70 < mirrored.sum() < 130
    torch.manual_seed(0)
    assert_close(collator(rows)["pixel_values"], found, atol=0, rtol=0)
    assert collator.augmentation == "flip"


def test_crops_show_a_part():
    corners = PILImage.new("L", (100, 100))
    corners.putdata([x + y for y in range(100) for x in range(100)])  # a ramp: its range tells the part
    grey = ViTImageProcessor(size={"height": 100, "width": 100}, image_mean=[0.0], image_std=[1 / 255], resample=0)
    collator = ImageCollator(grey, "crop+flip")
    pixels = collator([{"image": corners, "label": 0} for _ in range(64)])["pixel_values"].round()[:, 0]
    widths = (pixels[:, 0, -1] - pixels[:, 0, 0]).abs() + 1
    heights = pixels[:, -1, 0] - pixels[:, 0, 0] + 1
    area = widths * heights / 100**2
    assert area.min() >= 0.45
    assert area.max() > 0.8
    assert area.std() > 0.05
    assert len(set(pixels[:, 0, 0].tolist())) > 20  # the place varies
    ratio = widths / heights
    assert ratio.min() > 0.7
    assert ratio.max() < 1.45
    assert ratio.std() > 0.05


def test_after_set_epoch_only_seed_epoch_and_pixels_count():
    rows = [{"image": noise(i), "label": 0} for i in range(32)]
    collator = ImageCollator(processor(), "crop+flip")
    collator.set_epoch(3, seed=1)
    whole = collator(rows)["pixel_values"]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    resumed = pickle.loads(pickle.dumps(ImageCollator(processor(), "crop+flip")))
    resumed.set_epoch(3, seed=1)
    assert_close(resumed(rows[20:])["pixel_values"], whole[20:], atol=0, rtol=0)
    assert torch.equal(torch.get_rng_state(), state)
    for epoch, seed in ((4, 1), (3, 2)):
        resumed.set_epoch(epoch, seed=seed)
        assert not torch.equal(resumed(rows)["pixel_values"], whole)


def test_workers_see_the_epoch():
    rows = [{"image": noise(i), "label": 0} for i in range(8)]
    collator = ImageCollator(processor(), "crop+flip")
    collator.set_epoch(0)
    loader = torch.utils.data.DataLoader(rows, 4, collate_fn=collator, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        collator.set_epoch(epoch)
        found = torch.cat([batch["pixel_values"] for batch in loader])
        assert_close(found, collator(rows)["pixel_values"], atol=0, rtol=0)


def test_damaged_images_are_named(tmp_path):
    picture(size=(64, 64)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    files = [str(tmp_path / "good.png"), str(tmp_path / "bad.png")]
    data = Dataset.from_dict(
        {"image": files, "label": [4, 7]}, features=Features({"image": Image(), "label": Value("int64")})
    )
    encoded = leave_encoded(data, "image")
    with pytest.raises(ValueError, match=r"row 1 of the batch \(file .*bad\.png, label 7\) cannot be decoded"):
        ImageCollator(processor())([encoded[0], encoded[1]])
    with pytest.raises(ValueError, match=r"row 0 of the batch \(label 1\) is no image but NoneType"):
        ImageCollator(processor())([{"image": None, "label": 1}])
    with pytest.raises(ValueError, match=r"no column 'image'.*have photo"):
        ImageCollator(processor())([{"photo": picture()}])
    assert leave_encoded([1], "image") == [1]
    assert leave_encoded(data, None) is data


def test_labels_that_are_missing_or_no_numbers():
    collator = ImageCollator(processor())
    assert "labels" not in collator([{"image": picture(), "label": -1}, {"image": picture(), "label": None}])
    with pytest.raises(ValueError, match="row 1 of the batch has no label"):
        collator([{"image": picture(), "label": 0}, {"image": picture(), "label": None}])
    with pytest.raises(ValueError, match=r"no numbers \('cat'"):
        collator([{"image": picture(), "label": "cat"}])


def test_teacher_columns_come_along_unless_images_are_changed():
    rows = [{"image": picture(), "label": 0, "teacher_pixel_values": np.ones((3, 2, 2), dtype=np.float32)}] * 2
    assert ImageCollator(processor())(rows)["teacher_pixel_values"].shape == (2, 3, 2, 2)
    with pytest.raises(ValueError, match="not the column teacher_pixel_values"):
        ImageCollator(processor(), "flip")(rows)


def test_unknown_augmentation():
    with pytest.raises(ValueError, match=r"'flop'.*'crop\+flip'.*Did you mean 'flip'"):
        ImageCollator(processor(), "flop")


def test_a_resumed_run_sees_the_same_images(tmp_path):
    digits = load_digits_dataset()["train"].select(range(24))

    def train(folder: str, resume: str | None = None) -> dict[str, torch.Tensor]:
        set_seed(0)
        model = ResNetForImageClassification(
            ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], num_labels=10)
        )
        collator = ImageCollator(processor(), "crop+flip")
        args = TrainingArguments(
            str(tmp_path / folder),
            num_train_epochs=2,
            per_device_train_batch_size=6,
            save_steps=3,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = Trainer(
            model, args, data_collator=collator, train_dataset=digits, callbacks=[AugmentationEpoch(collator)]
        )
        trainer.train(resume_from_checkpoint=resume)
        return model.state_dict()

    whole = train("whole")
    for step in (3, 6):  # within the first epoch, and within the second
        resumed = train("resumed", str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_close(resumed, whole, atol=0, rtol=0)


def test_a_processor_that_makes_patches_is_refused():
    with pytest.raises(ValueError, match="Siglip2ImageProcessor makes patches"):
        ImageCollator(Siglip2ImageProcessor())

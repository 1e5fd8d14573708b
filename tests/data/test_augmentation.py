"""Augmentation by name and by callable: what it does to images, that it follows from seed, epoch and image alone."""

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch.testing import assert_close
from torchvision.transforms import v2
from transformers import TimmWrapperImageProcessor, ViTImageProcessor

from hf_reprot.data.collator import ImageCollator
from hf_reprot.data.seeding import seeded
from hf_reprot.settings.augmentation import AUGMENTATIONS, check_augmentation

SIZE = 16


def processor(**changes) -> ViTImageProcessor:
    settings = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.5]}
    return ViTImageProcessor(**{**settings, **changes})


def noise(seed: int, size: tuple[int, int] = (24, 20)) -> PILImage.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PILImage.fromarray(pixels)


ROWS = [{"image": noise(i), "label": i} for i in range(6)]
POLICIES = [name for name in AUGMENTATIONS if name != "none"]


def at(collator, epoch, seed=0):
    collator = copy.deepcopy(collator)
    collator.set_epoch(epoch, seed=seed)
    return collator


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("name", [*POLICIES, "random-resized-crop+flip+randaugment+random-erasing"])
def test_what_happens_follows_from_seed_epoch_and_image(name, grey):
    one = TimmWrapperImageProcessor({"input_size": (1, SIZE, SIZE), "mean": (0.5,), "std": (0.5,)})
    collator = ImageCollator(one if grey else processor(), name)
    plain = collator.for_evaluation()(ROWS)["pixel_values"]
    assert plain.shape == (6, 1 if grey else 3, SIZE, SIZE)
    first = at(collator, 1)(ROWS)["pixel_values"]
    assert first.shape == plain.shape
    assert not torch.equal(first, plain)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = at(collator, 1)(ROWS[::-1])["pixel_values"].flip(0)  # whatever their order
    assert torch.equal(torch.get_rng_state(), before)  # and other draws are as they were
    assert_close(again, first, atol=0, rtol=0)
    for other in (at(collator, 2), at(collator, 1, seed=1)):
        assert not torch.equal(other(ROWS)["pixel_values"], first)


def test_policies_are_torchvisions():
    collator = at(ImageCollator(processor(), "randaugment"), 3, seed=5)
    found = collator(ROWS)["pixel_values"]
    number = collator._number(ROWS[0]["image"])
    with seeded("image", number):
        theirs = v2.RandAugment()(ROWS[0]["image"])
    assert_close(found[0], processor()(theirs, return_tensors="pt")["pixel_values"][0])


def test_a_resized_crop_has_its_final_size_and_is_only_normalised():
    """A processor that would resize to 24 and cut 16 out of it: of a crop, nothing more is cut away."""
    cuts = {"input_size": (3, SIZE, SIZE), "crop_pct": 16 / 24, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.5)}
    collator = at(ImageCollator(TimmWrapperImageProcessor(cuts), "random-resized-crop"), 0)
    found = collator(ROWS[:2])["pixel_values"]
    with seeded("image", collator._number(ROWS[1]["image"])):
        part = v2.RandomResizedCrop((SIZE, SIZE), interpolation=v2.InterpolationMode.BICUBIC)(ROWS[1]["image"])
    values = torch.from_numpy(np.array(part)).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
    assert_close(found[1], (values - mean) / std, atol=1e-5, rtol=1e-5)


def test_erased_parts_have_the_mean():
    pixels = at(ImageCollator(processor(), "random-erasing"), 0)([{"image": noise(i)} for i in range(40)])
    erased = (pixels["pixel_values"] == 0).all(1).flatten(1).float().mean(1)
    assert 8 < (erased > 0.01).sum() < 32  # half of the time
    assert erased.max() > 0.1


def test_callables():
    mirror = ImageCollator(processor(), v2.RandomHorizontalFlip(p=1.0))
    assert mirror.augmentation == "RandomHorizontalFlip(p=1.0)"
    plain = mirror.for_evaluation()(ROWS)["pixel_values"]
    assert_close(mirror(ROWS)["pixel_values"], plain.flip(-1), atol=0.02, rtol=0.02)
    as_bytes = ImageCollator(processor(), v2.Compose([v2.PILToTensor(), v2.RandomHorizontalFlip(p=1.0)]))
    assert_close(as_bytes(ROWS)["pixel_values"], plain.flip(-1), atol=0.02, rtol=0.02)
    whole = v2.Compose([v2.Resize((8, 8)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    found = ImageCollator(processor(), whole)(ROWS)["pixel_values"]
    assert_close(found[2], whole(ROWS[2]["image"]).as_subclass(torch.Tensor), atol=0, rtol=0)
    jitter = ImageCollator(processor(), lambda image: image.rotate(90 * np.random.randint(4)))
    assert "0x" not in jitter.augmentation
    assert_close(at(jitter, 1)(ROWS)["pixel_values"], at(jitter, 1)(ROWS)["pixel_values"], atol=0, rtol=0)
    pickle.loads(pickle.dumps(mirror))(ROWS)  # workers that are spawned
    with pytest.raises(ValueError, match=r"gives ndarray of an image: legal is a PIL image or a tensor"):
        ImageCollator(processor(), np.asarray)(ROWS)
    with pytest.raises(ValueError, match=r"several kinds: \(3, 20, 24\), \(3, 8, 8\)"):
        ImageCollator(processor(), v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]))(
            [*ROWS, {"image": noise(9, (8, 8)), "label": 0}]
        )


def test_names():
    assert check_augmentation("Random_Resized_Crop + flip+colour-jitter") == "random-resized-crop+flip+color-jitter"
    for asked, told in {
        "randagument": r"unknown augmentation 'randagument'.*joined by '\+'.*Did you mean 'randaugment'",
        "flip+flip": "names 'flip' twice",
        "none+flip": "'none' among others",
        "crop+random-resized-crop": "two crops",
    }.items():
        with pytest.raises(ValueError, match=told):
            ImageCollator(processor(), asked)
    with pytest.raises(TypeError, match="names or a callable"):
        ImageCollator(processor(), 3)
    free = ViTImageProcessor(do_resize=False)
    with pytest.raises(ValueError, match=r"processor that makes images of one size.*augmentation='crop'"):
        ImageCollator(free, "random-resized-crop")

"""Processors and models say how their pixel values were made, and images go from one convention to another."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import (
    CLIPImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    ResNetConfig,
    ResNetModel,
    TimmWrapperImageProcessor,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from hf_reprot.data.preprocessing import Preprocessing, convert_images, fixed_image_size, image_channels

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = {"height": 16, "width": 16}


def test_a_processor_tells_mean_std_and_size():
    processor = ViTImageProcessor(size={"height": 8, "width": 12}, image_mean=IMAGENET[0], image_std=IMAGENET[1])
    assert Preprocessing.of(processor) == Preprocessing(*IMAGENET, (8, 12))


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({"do_normalize": False}, 0.0, 1.0),
        ({"do_normalize": False, "do_rescale": False}, 0.0, 1 / 255),
        ({"do_rescale": False}, 0.5 / 255, 0.5 / 255),
        ({"rescale_factor": 1 / 127.5}, 0.25, 0.25),
    ],
)
def test_mean_and_std_are_in_units_of_the_full_range(settings, mean, std):
    found = Preprocessing.of(ViTImageProcessor(size=SIZE, **settings))
    assert found.mean == pytest.approx((mean,) * 3, abs=1e-6)
    assert found.std == pytest.approx((std,) * 3, rel=1e-5)


def test_a_second_normalisation_and_swapped_channels_are_seen():
    twice = Preprocessing.of(EfficientNetImageProcessor(size=SIZE, do_center_crop=False, image_std=[0.4] * 3))
    assert twice.std == pytest.approx((0.16,) * 3, rel=1e-4)
    assert Preprocessing.of(MobileViTImageProcessor()).bgr


def test_a_size_that_follows_the_image_is_none():
    assert Preprocessing.of(CLIPImageProcessor(do_center_crop=False)).size is None
    assert Preprocessing.of(CLIPImageProcessor(crop_size=SIZE, size={"shortest_edge": 20})).size == (16, 16)


def test_grey_processors_have_one_channel():
    assert Preprocessing.of(ViTImageProcessor(size=SIZE, image_mean=[0.5], image_std=[0.25])).mean == (0.5,)
    timm_grey = TimmWrapperImageProcessor({"input_size": (1, 16, 16), "mean": (0.5,), "std": (0.25,)})
    assert Preprocessing.of(timm_grey) == Preprocessing((0.5,), (0.25,), (16, 16))


def test_timm_models_tell_and_others_tell_their_size():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    assert Preprocessing.of(vit) == Preprocessing((0.5,) * 3, (0.5,) * 3, (32, 32))
    assert Preprocessing.of(_vit(24)) == Preprocessing(size=(24, 24))
    assert Preprocessing.of(torch.nn.Linear(1, 1)) is None
    assert Preprocessing.of("text") is None
    assert Preprocessing.of(None) is None


def test_which_models_take_one_size_only():
    assert fixed_image_size(timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=1)) == (32, 48)
    assert fixed_image_size(timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, depth=1)) is None
    assert fixed_image_size(timm.create_model("resnet10t")) is None
    assert fixed_image_size(_vit(24)) == (24, 24)
    assert fixed_image_size(ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1]))) is None
    assert image_channels(timm.create_model("resnet10t", in_chans=1)) == 1


@pytest.mark.parametrize("swap", [False, True])
def test_converted_images_are_what_the_other_processor_makes(swap):
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    first = ViTImageProcessor(size=SIZE, do_resize=False)
    second = ViTImageProcessor(size=SIZE, do_resize=False, image_mean=IMAGENET[0], image_std=IMAGENET[1])
    if swap:
        second = MobileViTImageProcessor(do_resize=False, do_center_crop=False, size=SIZE, crop_size=SIZE)
    image = Image.fromarray(array)
    pixels, expected = (p(image, return_tensors="pt")["pixel_values"] for p in (first, second))
    assert not torch.allclose(pixels, expected, atol=0.1)
    source, target = Preprocessing.of(first), Preprocessing.of(second)
    assert_close(convert_images(pixels, source, target), expected, atol=1e-5, rtol=0)
    assert_close(convert_images(expected, target, source), pixels, atol=1e-5, rtol=0)


def test_grey_images_become_rgb_and_sizes_change():
    grey = torch.rand(2, 1, 8, 8)
    source, target = Preprocessing((0.0,), (1.0,), (8, 8)), Preprocessing(*IMAGENET, (16, 16))
    found = convert_images(grey, source, target, size=(16, 16), channels=3)
    assert found.shape == (2, 3, 16, 16)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    values = found * std + mean
    assert_close(values[:, 0], values[:, 2], atol=1e-5, rtol=0)
    assert_close(values.mean((1, 2, 3)), grey.mean((1, 2, 3)), atol=0.02, rtol=0)
    assert_close(convert_images(grey, None, None, channels=3), grey.expand(-1, 3, -1, -1))


def test_unknown_normalisation_leaves_the_values():
    images = torch.rand(1, 3, 4, 4)
    assert convert_images(images, None, Preprocessing(*IMAGENET)) is images
    assert convert_images(images, Preprocessing(size=(4, 4)), Preprocessing(*IMAGENET)) is images


def test_half_precision_stays():
    images = torch.rand(1, 3, 4, 4).bfloat16()
    found = convert_images(images, Preprocessing((0.0,) * 3, (1.0,) * 3), Preprocessing(*IMAGENET), size=(8, 8))
    assert found.dtype == torch.bfloat16


def _vit(size: int) -> ViTModel:
    return ViTModel(
        ViTConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            image_size=size,
            patch_size=8,
        )
    )

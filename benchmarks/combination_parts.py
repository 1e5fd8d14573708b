"""Tiny teachers, students and data for `benchmarks.combinations`: random weights, images of 16 pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset, load_from_disk
from PIL import Image as PILImage
from transformers import BaseImageProcessor, SegformerImageProcessor, ViTImageProcessor

from hf_reprot.cache import FeatureCache
from hf_reprot.data.datasets import load_image_dataset
from hf_reprot.models.student import create_timm_student

SIDE, ROWS, NAMES = 16, 12, ["a", "b", "c"]
SINGLE, MULTI = "single_label_classification", "multi_label_classification"
# What a student learns, and its `problem_type`.
TASKS = {
    "classification": SINGLE,
    "multi-label": MULTI,
    "regression": "regression",
    "segmentation": None,
    "no labels, then a head": SINGLE,
}
LABEL_FREE, DENSE = "no labels, then a head", "segmentation"
_SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_VIT = _SMALL | {"image_size": SIDE, "patch_size": 4}
_TEXT = _SMALL | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}


class Skip(Exception):
    """There is no such combination: the reason."""


def seeded(make: Callable[..., Any], *args: Any, seed: int = 0, **settings: Any) -> Any:
    """A model with the random weights of a seed."""
    torch.manual_seed(seed)
    return make(*args, **settings).eval()


def outputs_of(task: str) -> int:
    """Number of the student's outputs."""
    return 1 if task == "regression" else len(NAMES)


def head_settings(task: str) -> dict[str, Any]:
    """What a config of transformers is told of the head."""
    names = ["label"] if task == "regression" else NAMES
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": TASKS[task],
    }


# ---- teachers ----


def _classifier(text: bool) -> Any:
    if text:
        return seeded(
            transformers.BertForSequenceClassification, transformers.BertConfig(**_TEXT, num_labels=3), seed=1
        )
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return seeded(transformers.ResNetForImageClassification, config, seed=1)


def _backbone(text: bool) -> Any:
    if text:
        return seeded(transformers.BertModel, transformers.BertConfig(**_TEXT), seed=2)
    return seeded(transformers.ViTModel, transformers.ViTConfig(**_VIT), seed=2)


def _timm(text: bool) -> Any:
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    return seeded(timm.create_model, "vit_tiny_patch16_224", num_classes=3, seed=3, **settings)


def _clip(text: bool) -> Any:
    config = transformers.CLIPConfig(vision_config=_VIT | {"image_size": 32, "patch_size": 8}, text_config=_TEXT)
    return seeded(transformers.CLIPModel, config, seed=4)


def _dinov2(text: bool) -> Any:
    return seeded(transformers.Dinov2Model, transformers.Dinov2Config(**_VIT), seed=5)


def _dinov3(text: bool) -> Any:
    return seeded(transformers.DINOv3ViTModel, transformers.DINOv3ViTConfig(**_VIT, num_register_tokens=2), seed=6)


def _naflex(text: bool) -> Any:
    config = transformers.Siglip2VisionConfig(**_SMALL, num_patches=16, patch_size=8)
    return seeded(transformers.Siglip2VisionModel, config, seed=7)


TEACHERS: dict[str, Callable[[bool], Any]] = {
    "classifier (transformers)": _classifier,
    "backbone (transformers)": _backbone,
    "timm": _timm,
    "CLIP, whole": _clip,
    "DINOv2": _dinov2,
    "DINOv3": _dinov3,
    "SigLIP2 NaFlex": _naflex,
    "two teachers": lambda text: [_classifier(text), _backbone(text)],
    "from a cache": _classifier,
}
CACHED = "from a cache"

# ---- students ----


def _new(task: str, _: Path) -> Any:
    if task == DENSE:
        config = transformers.SegformerConfig(
            hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2], sr_ratios=[1] * 4,
            decoder_hidden_size=16, num_labels=3,
        )  # fmt: skip
        return seeded(transformers.SegformerForSemanticSegmentation, config)
    return seeded(transformers.ViTForImageClassification, transformers.ViTConfig(**_VIT, **head_settings(task)))


def _pretrained(task: str, folder: Path) -> Any:
    """The name of a folder; of a dense model, which a name does not say how to load, the model."""
    place = folder / f"student of {task}"
    if not place.exists():
        _new(task, folder).save_pretrained(place)
        processor().save_pretrained(place)
    return transformers.SegformerForSemanticSegmentation.from_pretrained(place) if task == DENSE else str(place)


def _timm_student(task: str, _: Path) -> Any:
    names = ["label"] if task == "regression" else NAMES
    settings = {"img_size": SIDE, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
    size = {"input_size": [3, SIDE, SIDE]}
    torch.manual_seed(0)
    student = create_timm_student("vit_tiny_patch16_224", names, pretrained_cfg=size, **settings)
    student.config.problem_type = TASKS[task]
    return student


def _text_student(task: str, _: Path) -> Any:
    if task == DENSE:
        raise Skip("a text has no masks")
    config = transformers.BertConfig(**_TEXT, **head_settings(task))
    return seeded(transformers.BertForSequenceClassification, config)


STUDENTS: dict[str, Callable[[str, Path], Any]] = {
    "new (transformers)": _new,
    "pretrained, by name": _pretrained,
    "timm": _timm_student,
    "backbone without a head": lambda *_: seeded(transformers.ViTModel, transformers.ViTConfig(**_VIT)),
    "LoRA": _new,
    "text": _text_student,
}
TEXT, HEADLESS, LORA = "text", "backbone without a head", "LoRA"


def adapter(task: str) -> Any:
    """The config of a new adapter."""
    from peft import LoraConfig

    if task == DENSE:
        return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["decode_head"])
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])


def processor(task: str = "classification") -> BaseImageProcessor:
    """The image processor of students: the same for images, and of segmentation for masks as well."""
    size = {"height": SIDE, "width": SIDE}
    if task == DENSE:
        halves = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        return SegformerImageProcessor(size=size, do_reduce_labels=False, **halves)
    return ViTImageProcessor(size=size)


# ---- data ----

DATA = ("in memory", "folder", "parquet", "streaming")


class Data:
    """The same rows in each form, and the cache of their images.

    Args:
        folder: Where files go.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        generator = np.random.default_rng(0)
        self.pixels = generator.integers(0, 256, (ROWS, SIDE, SIDE, 3), dtype=np.uint8)
        self.masks = generator.integers(0, 3, (ROWS, SIDE, SIDE), dtype=np.uint8)
        self.tokens = generator.integers(3, 50, (ROWS, 8))
        self._made: dict[tuple[str, str, bool], Any] = {}

    def _labels(self, task: str, text: bool) -> tuple[list[Any], Any]:
        numbers = [i % 3 for i in range(ROWS)]
        if task == "regression":
            return [float(n) for n in numbers], Value("float32")
        if task == "multi-label" and text:
            return [[float(n == k) for k in range(3)] for n in numbers], List(Value("float32"))
        if task == "multi-label":
            return [[n, (n + 1) % 3] for n in numbers], List(ClassLabel(names=NAMES))
        return numbers, ClassLabel(names=NAMES)

    def rows(self, task: str, text: bool) -> Dataset:
        """In memory: images and labels; of segmentation, prepared tensors and masks; of texts, tokens."""
        if task == DENSE and not text:
            made = processor()([PILImage.fromarray(p) for p in self.pixels], return_tensors="np")["pixel_values"]
            return Dataset.from_dict({"pixel_values": made, "labels": self.masks.astype(np.int64)}).with_format("torch")
        labels, feature = self._labels(task, text)
        if text:
            columns: dict[str, Any] = {"input_ids": self.tokens.tolist(), "attention_mask": np.ones_like(self.tokens)}
            if task != LABEL_FREE:
                columns["labels"] = labels
            return Dataset.from_dict(columns)
        columns = {"image": [PILImage.fromarray(p) for p in self.pixels], "label": labels}
        return Dataset.from_dict(columns, features=Features({"image": Image(), "label": feature}))

    def raw(self, task: str) -> Dataset:
        """Images and, in the column beside them, labels or masks."""
        if task != DENSE:
            return self.rows(task, text=False)
        columns = {"image": self.pixels, "annotation": self.masks}
        columns = {name: [PILImage.fromarray(value) for value in values] for name, values in columns.items()}
        return Dataset.from_dict(columns, features=Features({"image": Image(), "annotation": Image()}))

    def form(self, form: str, task: str, text: bool) -> Any:
        """The training data of a cell."""
        key = (form, task, text)
        if key not in self._made:
            self._made[key] = self._form(form, task, text)
        return self._made[key]

    def _form(self, form: str, task: str, text: bool) -> Any:
        if form == "in memory":
            return self.rows(task, text)
        raw = self.rows(task, text) if text else self.raw(task)
        if form == "streaming":
            return raw.to_iterable_dataset()
        place = self.folder / f"{task}, {'text' if text else 'images'}"
        if form == "parquet":
            raw.to_parquet(str(place) + ".parquet")
            if text:
                cache = str(self.folder / "hf")
                return load_dataset("parquet", data_files=str(place) + ".parquet", cache_dir=cache)["train"]
            return load_image_dataset(str(place) + ".parquet")["train"]
        if text or task == DENSE:
            raw.save_to_disk(place)
            return load_from_disk(str(place))
        return load_image_dataset(self._image_folder(place, task))["train"]

    def _image_folder(self, place: Path, task: str) -> str:
        """One subfolder a class, or the labels in a table of metadata."""
        labels, _ = self._labels(task, text=False)
        lines = []
        for i, (pixels, label) in enumerate(zip(self.pixels, labels, strict=True)):
            name = f"{i:02}.png" if TASKS[task] != SINGLE else f"{NAMES[label]}/{i:02}.png"
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            PILImage.fromarray(pixels).save(place / name)
            if task == "multi-label":
                label = [float(k in label) for k in range(3)]  # a table without types: one number a class
            lines.append(json.dumps({"file_name": name, "label": label}))
        if TASKS[task] != SINGLE:
            (place / "metadata.jsonl").write_text("\n".join(lines))
        return str(place)

    @cached_property
    def _image_cache(self) -> FeatureCache:
        rows = self.rows("classification", text=False)
        return self._cache(rows, "images", False, processor=processor())

    @cached_property
    def _text_cache(self) -> FeatureCache:
        rows = self.rows(LABEL_FREE, text=True).with_format("torch")
        return self._cache(rows, "text", True)

    def _cache(self, rows: Any, name: str, text: bool, **options: Any) -> FeatureCache:
        options |= {"batch_size": 4, "progress": False, "device": "cpu", "dtype": "float32"}
        return FeatureCache.build(TEACHERS[CACHED](text), rows, self.folder / f"cache of {name}", **options)

    def cache(self, text: bool) -> FeatureCache:
        """The teacher's features of these rows; images are the same whatever the labels."""
        return self._text_cache if text else self._image_cache

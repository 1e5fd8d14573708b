"""Students of the families whose checkpoints the stock Trainer loads almost nothing of, and of some others."""

from __future__ import annotations

from tests.tiny_models import CONFIGS, transformers_model
from tests.toy_models import IMAGE, convnext, resnet, timm_vit

_DROP = {"hidden_dropout_prob": 0.1}
_SMALL_IMAGES = {"sr_ratios": [1, 1, 1, 1]}
_SMALL = {"num_labels": 3, "num_hidden_layers": 2, "image_size": IMAGE, "patch_size": 4}

FAMILIES = {
    "ViT": lambda: transformers_model("ViT", "ForImageClassification", **_SMALL, **_DROP),
    "DeiT": lambda: transformers_model("DeiT", "ForImageClassification", **_SMALL, **_DROP),
    "Dinov2": lambda: transformers_model("Dinov2", "ForImageClassification", **_SMALL, drop_path_rate=0.1),
    "Beit": lambda: transformers_model("Beit", "ForImageClassification", **_SMALL, **_DROP),
    "Swin": lambda: transformers_model("Swin", "ForImageClassification", num_labels=3, image_size=IMAGE, **_DROP),
    "Segformer": lambda: transformers_model("Segformer", "ForImageClassification", num_labels=3, **_SMALL_IMAGES),
    "ResNet": resnet,
    "ConvNext": convnext,
    "timm ViT": timm_vit,
}

assert set(FAMILIES) - {"timm ViT"} <= set(CONFIGS)

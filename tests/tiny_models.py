"""Tiny models of timm and transformers with random weights, and a batch that each of them takes."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
import transformers
from torch import Tensor, nn

_VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
_FOUR_STAGES = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
_TEXT = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}

CONFIGS: dict[str, Callable] = {
    "ViT": lambda: transformers.ViTConfig(**_VIT),
    "DeiT": lambda: transformers.DeiTConfig(**_VIT),
    "Beit": lambda: transformers.BeitConfig(**_VIT),
    "Dinov2": lambda: transformers.Dinov2Config(**_VIT),
    "Dinov2WithRegisters": lambda: transformers.Dinov2WithRegistersConfig(**_VIT),
    "Swin": lambda: transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=2
    ),
    "ResNet": lambda: transformers.ResNetConfig(embedding_size=8, layer_type="basic", **_FOUR_STAGES),
    "ConvNext": lambda: transformers.ConvNextConfig(**_FOUR_STAGES),
    "MobileNetV2": lambda: transformers.MobileNetV2Config(depth_multiplier=0.25),
    "RegNet": lambda: transformers.RegNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], groups_width=8
    ),
    "Segformer": lambda: transformers.SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2]
    ),
    "Bert": lambda: transformers.BertConfig(**_TEXT),
    "Roberta": lambda: transformers.RobertaConfig(**_TEXT),
    "DistilBert": lambda: transformers.DistilBertConfig(vocab_size=50, dim=24, n_layers=2, n_heads=2, hidden_dim=32),
    "GPT2": lambda: transformers.GPT2Config(
        vocab_size=50, n_embd=24, n_layer=2, n_head=2, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
}
TEXT = ("Bert", "Roberta", "DistilBert", "GPT2")

# Name -> (arguments of timm.create_model, side of the images).
TIMM: dict[str, tuple[dict, int]] = {
    "resnet10t": ({}, 64),
    "vit_tiny_patch16_224": ({"img_size": 64, "embed_dim": 24, "depth": 4, "num_heads": 2}, 64),
    "vit_small_patch14_reg4_dinov2": ({"img_size": 28, "embed_dim": 24, "depth": 4, "num_heads": 2}, 28),
    "beit_base_patch16_224": ({"img_size": 32, "embed_dim": 24, "depth": 4, "num_heads": 2}, 32),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4), "window_size": 2},
        64,
    ),
    "mobilenetv3_small_050": ({}, 64),
    "efficientnet_lite0": ({}, 64),
    "convnext_atto": ({"depths": (1, 1, 1, 1)}, 64),
}


def transformers_model(family: str, kind: str, **changes) -> nn.Module:
    """For example ("ViT", "ForImageClassification")."""
    torch.manual_seed(0)
    config = CONFIGS[family]()
    config.update(changes)
    return getattr(transformers, family + kind)(config).eval()


def batch(family: str, n: int = 2) -> dict[str, Tensor]:
    """A batch for a transformers model; the second text is padded."""
    generator = torch.Generator().manual_seed(1)
    if family in TEXT:
        mask = torch.ones(n, 7, dtype=torch.long)
        mask[1:, 4:] = 0
        tokens = torch.randint(3, 50, (n, 7), generator=generator)
        return {"input_ids": tokens.masked_fill(mask == 0, 0), "attention_mask": mask}
    return {"pixel_values": torch.randn(n, 3, 32, 32, generator=generator)}


def timm_model(name: str, num_classes: int = 5, **changes) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=num_classes, **(TIMM[name][0] | changes)).eval()


def images(name: str, n: int = 2) -> Tensor:
    side = TIMM[name][1]
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))

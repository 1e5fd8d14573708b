"""What a vision or text model of timm or transformers is made of: head, representation, blocks, stages.

Everything is read from the module tree and the config; nothing is run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import nn

from .paths import core, path_of

_HEADS = ("classifier", "cls_classifier", "score", "head", "heads", "fc", "last_linear", "logits_proj")
_POOLS = ("global_pool", "avgpool", "pool", "pooler")
# Modules of a timm model between pooling and head, or beside the main path.
_ASIDE = (
    "fc_norm",
    "attn_pool",
    "aggregate",
    "head_drop",
    "head_dist",
    "aux_head",
    "pre_logits",
    "flatten",
    "drop",
    "dropout",
)
# Families that pool before they normalise: their last layer with positions is the encoder.
_NORM_AFTER_POOLING = (
    *("convnext", "convnextv2", "clip", "clip_vision_model", "chinese_clip_vision_model", "altclip_vision_model"),
    *("clipseg_vision_model", "metaclip_2", "metaclip_2_vision_model", "owlvit_vision_model", "owlv2_vision_model"),
)
_NORM_TWICE = ("blip_vision_model",)  # of the tokens and of the pooled one: it is not one layer


def is_timm(model: nn.Module) -> bool:
    """Whether a module was made by timm (and is not inside transformers' wrapper)."""
    return callable(getattr(model, "get_classifier", None)) and hasattr(model, "num_classes")


def timm_settings(model: nn.Module) -> Mapping[str, Any] | None:
    """The `pretrained_cfg` of a model that `timm.create_model` made; None for any other, transformers' wrapper too."""
    settings = getattr(model, "pretrained_cfg", None)
    return settings if isinstance(settings, Mapping) else None


def is_transformers(model: nn.Module) -> bool:
    """Whether a module is a transformers model."""
    return hasattr(model, "config") and isinstance(getattr(model, "base_model_prefix", None), str)


@runtime_checkable
class DeclaresLayers(Protocol):
    """A module that says itself which of its layers the names of this file stand for, so that its tree is not searched.

    Attributes:
        named_layers: Paths of the layers by "last", "last, all positions", "stages" and "blocks", as far as it has
            them.
    """

    named_layers: Mapping[str, Sequence[str]]


def named_layers(model: nn.Module) -> dict[str, list[str]]:
    """Which layers "last", "last, all positions", "stages" and "blocks" stand for in a model, where it has them."""
    found = {}
    names: dict[str, Callable[[], list[str]]] = {
        "last": lambda: [last_layer(model)],
        "last, all positions": lambda: [last_layer(model, "all")],
        "stages": lambda: stage_layers(model),
        "blocks": lambda: block_layers(model),
    }
    for name, ask in names.items():
        try:
            found[name] = ask()
        except ValueError:  # a model of an unknown family: layers are named by path
            continue
    return found


def _declared(model: DeclaresLayers, name: str) -> list[str]:
    if name not in model.named_layers:
        raise ValueError(f"{type(model).__name__} declares no layers {name!r}: name the layer by its path")
    return list(model.named_layers[name])


def config_of(model: Any) -> Any:
    """The config of a transformers model or its like; None where a module has none.

    `nn.Module` declares every attribute to be a tensor or a module: read configs through this.
    """
    return getattr(model, "config", None)


def base_model(model: nn.Module) -> tuple[nn.Module, str]:
    """The backbone of a transformers model and its path in it ("" where the model is a backbone itself)."""
    # A backbone's own child can bear the name that the family gives to backbones: only models with a head have one.
    has_head = any(isinstance(getattr(model, head, None), nn.Module) for head in _HEADS)
    if not has_head and not any(re.search("For[A-Z]|LMHead", cls.__name__) for cls in type(model).__mro__):
        return model, ""
    name: str = getattr(model, "base_model_prefix", "")
    if name and isinstance(getattr(model, name, None), nn.Module):
        return getattr(model, name), name + "."
    inner = [(child, f"{path}.") for path, child in model.named_children() if is_transformers(child)]
    return inner[0] if len(inner) == 1 else (model, "")


def head_paths(model: nn.Module) -> list[str]:
    """Paths of the modules between the representation and the logits, in the order in which they are called.

    Several for a head of several layers (DistilBERT's `pre_classifier` and `classifier`) and for two heads side by side
    (a distilled DeiT). Empty for a model without a head, or whose head was taken out (an identity).
    """
    inner, start = core(model)
    heads = _timm_heads(inner) if is_timm(inner) else _heads(inner)
    lists = {path: module for path, module in heads if isinstance(module, nn.ModuleList)}
    heads = [
        (f"{path}.{name}" if path in lists else path, part)
        for path, module in heads
        for name, part in (lists[path].named_children() if path in lists else [("", module)])
    ]
    return [start + path for path, module in heads if not _is_empty(module)]


def _timm_heads(model: Any) -> list[tuple[str, nn.Module]]:
    try:
        found = model.get_classifier()
    except AttributeError:  # some models look for a part of the head that they have replaced by an identity
        return []
    modules = found if isinstance(found, tuple | list) else [found]
    paths = [(path_of(module, model), module) for module in modules if isinstance(module, nn.Module)]
    return [(path, module) for path, module in paths if path]


def _heads(model: nn.Module) -> list[tuple[str, nn.Module]]:
    if is_transformers(model):
        base, _ = base_model(model)
        if base is not model:
            beside = [(name, child) for name, child in model.named_children() if child is not base]
            return [(name, child) for name, child in beside if _has_parameters(child) and not _is_norm(child)]
        # A model of one's own without a backbone inside: the layer that gives as many values as there are classes.
        children = list(model.named_children())
        likely = [(name, child) for name, child in children if name in _HEADS] + children[-1:]
        classes = getattr(config_of(model), "num_labels", None)
        own = [name for name, child in likely if isinstance(child, nn.Linear) and child.out_features == classes]
        return [(name, model.get_submodule(name)) for name in own[:1]]
    named = [(name, getattr(model, name)) for name in _HEADS if isinstance(getattr(model, name, None), nn.Module)]
    if named:
        return named[:1]
    children = list(model.named_children())
    return children[-1:] if children and isinstance(children[-1][1], nn.Linear) else []


def last_layer(model: nn.Module, positions: str = "pooled") -> str:
    """The layer that holds a model's representation.

    Args:
        model: The unwrapped model, of timm or transformers, or any module with a head named as usual.
        positions: "pooled": what goes into the head, `path:input`, where there is a head, else the final features.
            "all": the last layer that still has positions (before pooling).

    Raises:
        ValueError: the model is of no known make.
    """
    if isinstance(model, DeclaresLayers):
        return _declared(model, "last" if positions == "pooled" else "last, all positions")[0]
    inner, start = core(model)
    if positions == "all":
        return start + _last_with_positions(inner)
    if is_timm(inner):
        heads = _timm_heads(inner)  # a head taken out is an identity that is still called: its input is the features
        called = [path for path, module in heads if not _is_list_without_heads(module)]
        if called:
            return f"{start}{called[0]}:input"
    paths = head_paths(model)
    return f"{paths[0]}:input" if paths else start + _last_with_positions(inner, normalised=True)


def _last_with_positions(model: nn.Module, normalised: bool = False) -> str:
    """Path of the last layer before pooling; with `normalised`, of the final norm even where it comes after."""
    if is_transformers(model) and not is_timm(model):
        base, start = base_model(model)
        return start + _last_of_backbone(base, normalised)
    heads = _timm_heads(model) if is_timm(model) else _heads(model)
    tops = {path.split(".")[0] for path, _ in heads}
    found = None
    for name, child in model.named_children():
        if name in tops or name in _POOLS or "AdaptivePool" in type(child).__name__ or _is_adaptive_pool(child):
            break
        if name not in _ASIDE and not _is_dropout(child):
            found = _last_element(name, child) or found
    if found is None:
        raise ValueError(f"the last layer of {type(model).__name__} is not known: name the layer")
    return found


def _last_of_backbone(base: nn.Module, normalised: bool) -> str:
    children = [(name, child) for name, child in base.named_children() if not _is_empty(child)]
    family = getattr(config_of(base), "model_type", "")
    late = (normalised or family not in _NORM_AFTER_POOLING) and family not in _NORM_TWICE
    norms = [name for name, child in children if _is_norm(child) and not name.startswith("pre")]
    if norms and late:
        return norms[-1]
    pooler = dict(children).get("pooler")
    if normalised and pooler is not None and _only_normalises(pooler):
        return "pooler"  # BEiT: the mean over the patches, then the norm that the backbone itself left out
    found, heads = None, {*_HEADS, *(path for path, _ in _heads(base))}
    for name, child in children:
        if name.startswith("pooler") or name in heads or "Rotary" in type(child).__name__ or _is_dropout(child):
            continue
        if not (_is_norm(child) and not late):
            found = _last_element(name, child) or found
    if found is None:
        raise ValueError(f"the last layer of {type(base).__name__} is not known: name the layer")
    return found


def _last_element(path: str, module: nn.Module) -> str | None:
    """A list is never called: its last element is."""
    while isinstance(module, nn.ModuleList | nn.ModuleDict):
        if len(module) == 0:
            return None
        name, module = list(module.named_children())[-1]
        path = f"{path}.{name}"
    return path


def block_layers(model: nn.Module) -> list[str]:
    """Paths of the blocks of the main path, in order: a transformer's layers, a network's residual blocks.

    Raises:
        ValueError: no list of blocks was found.
    """
    if isinstance(model, DeclaresLayers):
        return _declared(model, "blocks")
    inner, start = core(model)
    lists = _lists(inner)
    if len(lists) == 1:
        lists = [(f"{lists[0][0]}.{name}", child) for name, child in lists[0][1].named_children()]
    blocks = [path for stage, module in lists for path in _blocks_of(stage, module)]
    if not blocks:
        raise ValueError(f"{type(inner).__name__} has no blocks that are known: name the layer by its path")
    return [start + path for path in blocks]


def stage_layers(model: nn.Module) -> list[str]:
    """The last layer of each stage, in order, four at most.

    A stage is what stands between two changes of resolution, for convolutional networks and hierarchical transformers;
    for plain transformers, a quarter of the depth.

    Raises:
        ValueError: no stages were found.
    """
    if isinstance(model, DeclaresLayers):
        return _declared(model, "stages")
    inner, start = core(model)
    stages = _timm_stages(inner) if is_timm(inner) else []
    stages = stages or _stages(inner)
    if not stages:
        raise ValueError(f'{type(inner).__name__} has no stages that are known: name layers instead of "stages"')
    return [start + path for path in stages]


def _timm_stages(model: nn.Module) -> list[str]:
    info = getattr(model, "feature_info", None)
    info = list(info) if isinstance(info, list | tuple) else []
    known = dict(model.named_modules())
    info = [entry for entry in info if entry.get("module") in known]
    paths = list(dict.fromkeys(entry["module"] for entry in info))
    if len(paths) < 2:
        return []
    if len(paths) < len(info):  # several features of one module, which do not tell its stages
        found = _stages(model)
        if len(found) > len(paths):
            return found
    if len({entry["reduction"] for entry in info}) == 1:
        return quarters(paths)
    return [_last_element(path, known[path]) or path for path in paths[-4:]]


def _stages(model: nn.Module) -> list[str]:
    lists = _lists(model)
    if len(lists) != 1 or not isinstance(lists[0][1], nn.ModuleList):
        return [_last_element(path, module) or path for path, module in lists][-4:]
    path, elements = lists[0][0], list(lists[0][1])
    if len(elements) <= 4 and any(_inner_list(element) is not None for element in elements):
        # Where a stage ends in the step down to the next one, its own features are those of its last block.
        return [_last_block(f"{path}.{i}", element) for i, element in enumerate(elements)]
    paths = [_last_element(f"{path}.{i}", element) or f"{path}.{i}" for i, element in enumerate(elements)]
    if isinstance(elements[0], nn.ModuleList):
        return paths[-4:]
    starts = [i for i, element in enumerate(elements) if i > 0 and _is_strided(element)]
    if not starts:
        return quarters(paths)
    return [paths[i] for i in [start - 1 for start in starts] + [len(paths) - 1]][-4:]


def quarters(items: list[str]) -> list[str]:
    """The last of each of four equal parts; all where there are fewer than four."""
    parts = min(4, len(items))
    return spread(items, parts)


def spread(items: Sequence[str], count: int) -> list[str]:
    """The last item of each of `count` equal parts of a list that has at least as many; halves go up."""
    return [items[(2 * (i + 1) * len(items) + count) // (2 * count) - 1] for i in range(count)]


def _lists(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The lists that hold the main path: one list of blocks or stages, or several children named as stages."""
    if is_transformers(model) and not is_timm(model):
        base, start = base_model(model)
    else:
        base, start = model, ""
    numbered = [
        (name, child)
        for name, child in base.named_children()
        if re.fullmatch(r"(layer|stage|block|s|serial_blocks)_?\d", name)
    ]
    if len(numbered) > 1:
        return numbered
    outermost: list[tuple[str, nn.Module]] = []
    for name, module in base.named_modules():
        inside = any(name.startswith(other + ".") for other, _ in outermost)
        if name and not inside and isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            outermost.append((start + name, module))
    outermost.sort(key=lambda entry: -sum(p.numel() for p in entry[1].parameters()))
    return outermost[:1]


def _blocks_of(path: str, module: nn.Module) -> list[str]:
    """The blocks of a stage; the module itself where it is a block."""
    if not isinstance(module, nn.Sequential | nn.ModuleList):
        inner = _inner_list(module)
        if inner is None:
            return [path]
        path, module = f"{path}.{inner}", module.get_submodule(inner)
    return [f"{path}.{name}" for name, _ in module.named_children()]


def _inner_list(stage: nn.Module) -> str | None:
    """Name of the list of blocks inside a stage."""
    lists = [(n, c) for n, c in stage.named_children() if isinstance(c, nn.ModuleList | nn.Sequential) and len(c) > 0]
    named = [n for n, _ in lists if n in ("blocks", "layers", "layer")]
    return named[0] if named else None


def _last_block(path: str, stage: nn.Module) -> str:
    inner = _inner_list(stage)
    if inner is None:
        return path
    steps_down = any(isinstance(getattr(stage, name, None), nn.Module) for name in ("downsample", "subsample"))
    last = len(list(stage.get_submodule(inner).children())) - 1
    return f"{path}.{inner}.{last}" if steps_down else path


def _is_strided(module: nn.Module) -> bool:
    return any(isinstance(conv, nn.Conv2d) and max(conv.stride) > 1 for conv in module.modules())


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and not list(module.children())


def _only_normalises(pooler: nn.Module) -> bool:
    has_norm = any(_is_norm(module) for module in pooler.children())
    return has_norm and not any(isinstance(module, nn.Linear) for module in pooler.modules())


def _is_dropout(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d)


def _is_adaptive_pool(module: nn.Module) -> bool:
    return isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d | nn.AdaptiveAvgPool1d)


def _is_list_without_heads(module: nn.Module) -> bool:
    """A list of identities is passed over, where one identity is called."""
    return isinstance(module, nn.ModuleList) and all(_is_empty(part) for part in module)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_empty(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity)

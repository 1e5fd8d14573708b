"""What `last`, `stages` and every position give, for one small model of each family of timm and transformers.

    python -m benchmarks.architectures --minutes 20     # goes on where it stopped; writes docs/architectures.md

Random weights. For each model: whether "last" is what the head is given (timm: `forward_head(pre_logits=True)`;
transformers: the head applied to it gives the logits), whether it is the same in training with a dropout of 0.5 in
front of the head, how many stages are found and give a tensor, whether the last positions have a known grid, and
whether tensors are shared, which transformers cannot save.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn

from hf_reprot.features.activations import Activation, pooled_neurons
from hf_reprot.features.architecture import head_paths, last_layer, stage_layers
from hf_reprot.features.taps import Taps

LARGEST = 60e6  # parameters
SIZES = (64, 128, None)  # sides of the images that are tried; None: the architecture's own
_WORDS = (
    "atto",
    "femto",
    "pico",
    "nano",
    "zepto",
    "pop",
    "test",
    "xxs",
    "xx",
    "micro",
    "mini",
    "xs",
    "tiny",
    "050",
    "small",
)
_TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "projection_dim": 16,
    "image_size": 64,
    "patch_size": 16,
    "embed_dim": 24,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 2,
    "num_labels": 3,
    "vocab_size": 64,
}
_DROPOUTS = ("classifier_dropout", "classifier_dropout_prob", "dropout_rate", "hidden_dropout_prob")
_NOT_ALONE = ("shieldgemma2", "perceiver", "imagegpt", "timm_wrapper")  # take more than images


def timm_families() -> dict[str, str]:
    """One small architecture for each family: what names share up to their first number."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_models():
        bare = name.removeprefix("tf_").removeprefix("test_")
        words = re.match(r"[a-z]+(?:_?(?:v|lite|x|plus)\d?)?(?:_[a-z]{4,})?", bare)
        found[f"{timm.models._registry._model_to_module[name]}/{words[0] if words else bare}"].append(name)
    seen: dict[str, int] = defaultdict(int)
    order: dict[str, int] = {}
    for family in sorted(found, key=lambda family: min(map(_rank, found[family]))):
        module = family.partition("/")[0]
        order[family], seen[module] = seen[module], seen[module] + 1
    # One of each of timm's files comes first, then the smallest: a sweep that is stopped has seen some of each.
    smallest = {family: min(names, key=_rank) for family, names in found.items()}
    return dict(sorted(smallest.items(), key=lambda entry: (min(order[entry[0]], 1), _rank(entry[1]))))


def _rank(name: str) -> tuple[int, int, int]:
    words = [i for i, word in enumerate(_WORDS) if word in name]
    numbers = [int(n) for n in re.findall(r"\d+", name)]
    return min(words, default=len(_WORDS)), sum(numbers), len(name)


def transformers_classes() -> dict[str, type]:
    """Every image classifier of transformers, and the backbones that have none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as named

    found: dict[str, type] = {}
    for kind, names in named.items():
        for name in names if isinstance(names, tuple) else (names,):
            if kind not in _NOT_ALONE:
                found[f"transformers/{name}"] = getattr(transformers, name)
    for name in ("DINOv3ConvNextModel", "DINOv3ViTModel", "CLIPVisionModel", "SiglipVisionModel", "ViTMAEModel"):
        found[f"transformers/{name}"] = getattr(transformers, name)
    return found


def tiny_config(cls: type) -> Any:
    """The class's own default, a transformer's sizes made small; those of networks with stages are small enough."""
    config = cls.config_class()
    for part in (config, getattr(config, "vision_config", None), getattr(config, "text_config", None)):
        if hasattr(part, "hidden_sizes") or hasattr(part, "depths"):
            continue  # a network with stages
        for name, value in _TINY.items():
            old = getattr(part, name, None)
            if isinstance(old, int) and not isinstance(old, bool):
                setattr(part, name, value)
    for name in _DROPOUTS[:3]:
        if hasattr(config, name):
            setattr(config, name, 0.5)
    config.num_labels = 3
    return config


def make(family: str, name: str) -> Iterator[tuple[nn.Module, Tensor]]:
    """The model with a dropout of 0.5 in front of its head, and images for it, at each size that may do."""
    if family.startswith("transformers/"):
        cls = getattr(transformers, name)
        config = tiny_config(cls)
        with torch.device("meta"):
            refuse_large(cls(config))
        vision = getattr(config, "vision_config", config)
        own = getattr(vision, "image_size", 64)
        for side in dict.fromkeys((64, own if isinstance(own, int) else own[0], 224, 256)):
            # Anew for each size: Swin makes its windows smaller for good when it sees a small image.
            yield cls(config), torch.randn(2, getattr(vision, "num_channels", 3), side, side)
        return
    with torch.device("meta"):
        refuse_large(timm.create_model(name))
    for side in SIZES:
        fixed = {} if side is None else {"img_size": side}
        for more in ({"drop_rate": 0.5, **fixed}, {"drop_rate": 0.5}, {}):
            try:
                model = timm.create_model(name, num_classes=3, **more)
            except (TypeError, ValueError, AssertionError, RuntimeError):
                continue
            yield model, torch.randn(2, *((3, side, side) if side else model.pretrained_cfg["input_size"]))
            break


def refuse_large(model: nn.Module) -> None:
    """Raises for a model above the bound."""
    count = sum(p.numel() for p in model.parameters())
    if count > LARGEST:
        raise OverflowError(f"the smallest has {count / 1e6:.0f} M parameters")


def recorded(model: nn.Module, layers: list[str], images: Tensor) -> tuple[dict[str, Activation], Any]:
    """Layers of one pass without gradients, and the pass's output."""
    taps = Taps(model, layers)
    try:
        with torch.no_grad(), taps.recording():
            output = model(images)
        return taps.take(), output
    finally:
        taps.close()


def before_head(model: nn.Module, images: Tensor, output: Any, last: Tensor) -> bool | None:
    """Whether a tensor is what the head is given; None where the model does not tell."""
    with torch.no_grad():
        if hasattr(model, "forward_head"):
            expected = model.forward_head(model.forward_features(images), pre_logits=True)
            return expected.shape == last.shape and torch.allclose(expected, last, rtol=1e-3, atol=1e-4)
        if hasattr(output, "logits"):
            heads = [model.get_submodule(path)(last) for path in head_paths(model)]
            return torch.allclose(sum(heads) / len(heads), output.logits, rtol=1e-3, atol=1e-4)
        pooled = getattr(output, "pooler_output", None)
        return None if pooled is None else torch.allclose(pooled.flatten(1), last, rtol=1e-3, atol=1e-4)


def noise_only_before_head(model: nn.Module) -> nn.Module:
    """Training mode for a head's dropout alone: no batch statistics, no dropped paths, no dropout of the body."""
    model.train()
    last, body = last_layer(model, "all"), True
    for path, module in model.named_modules():
        body = body and not path.startswith(last)
        kind = type(module).__name__
        if "Norm" in kind or "DropPath" in kind or (body and isinstance(module, nn.Dropout)):
            module.eval()
    return model


def shared_tensors(model: nn.Module) -> str:
    """Names of tensors that share memory; empty where none do."""
    held: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel() and (other := held.setdefault(tensor.data_ptr(), name)) != name:
            return f"{other} and {name}"
    return ""


def examine(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """One row of the table."""
    last = last_layer(model)
    model.eval()
    taken, output = recorded(model, [last], images)
    calm = pooled_neurons(taken[last])
    row: dict[str, Any] = {"last": last, "width": calm.shape[1], "is_input": before_head(model, images, output, calm)}
    noisy, _ = recorded(noise_only_before_head(model), [last], images)
    row["no_noise"] = torch.allclose(pooled_neurons(noisy[last]), calm, rtol=1e-3, atol=1e-4)
    model.eval()
    for word, find in (("stages", stage_layers), ("positions", lambda m: [last_layer(m, "all")])):
        try:
            layers = find(model)
            found, _ = recorded(model, layers, images)
            if word == "stages":
                row[word] = len(found)
            else:
                layer = found[layers[0]]
                shape = {"nchw": layer.tensor.shape[2:], "nhwc": layer.tensor.shape[1:3]}.get(layer.layout, layer.grid)
                row[word] = "no grid" if shape is None else f"{shape[0]} x {shape[1]}"
        except (ValueError, RuntimeError) as error:
            row[word] = " ".join(str(error).split())[:80]
    row["shared"] = shared_tensors(model)
    row["parameters"] = sum(p.numel() for p in model.parameters())
    return row


def study(family: str, name: str) -> dict[str, Any]:
    """One row, of the smallest images that the model takes."""
    reason = "no image size was taken"
    try:
        for model, images in make(family, name):
            try:
                torch.manual_seed(0)
                model.eval()
                with torch.no_grad():
                    model(images)
            except Exception as error:  # whatever a model raises on a size that it does not take
                reason = " ".join(str(error).split())[:80]
                continue
            return {"family": family, "model": name, "side": images.shape[-1]} | examine(model, images)
    except Exception as error:  # one model must not end the sweep; its row says why
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
    return {"family": family, "model": name, "error": reason}


def table(rows: list[dict[str, Any]]) -> str:
    """The page."""
    good = [row for row in rows if "error" not in row]
    yes = {True: "yes", False: "**no**", None: "not told"}
    lines = [
        "# Architectures",
        "",
        "Written by `python -m benchmarks.architectures`: one small model with random weights for each family, torch "
        f"{torch.__version__.split('+')[0]}, timm {timm.__version__}, transformers {transformers.__version__}. "
        f"{sum(not row['family'].startswith('transformers/') for row in good)} models of timm, "
        f"{sum(row['family'].startswith('transformers/') for row in good)} of transformers.",
        "",
        '"Last" is the layer that `layer_pairs="last"` takes. "Head\'s input": it is what the head is given in '
        "evaluation (timm's `pre_logits`; in transformers, the head applied to it gives the logits; without a head, "
        'the pooled output). "No noise": the same in training with a dropout of 0.5 in front of the head. "Stages": '
        'how many `layer_pairs="stages"` takes. "Positions": the grid of `ot_positions="all"` at the image size given.',
        "",
        "`cpubone` and `ViTMAEModel` still differ from run to run in training: the first has dropout of its own in the "
        "body and the second draws masks; neither was followed further. A model that takes no `drop_rate` is built "
        "without it. Families that were not reached in the time given are not listed.",
        "",
        "| model | M parameters | side | last | neurons | head's input | no noise | stages | positions | shared |",
        "|---|--:|--:|---|--:|---|---|---|---|---|",
    ]
    for row in good:
        cells = [f"`{row['model']}`", f"{row['parameters'] / 1e6:.1f}", row["side"], f"`{row['last']}`", row["width"]]
        cells += [yes[row["is_input"]], yes[row["no_noise"]], row["stages"], row["positions"], row["shared"] or "none"]
        lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    lines += ["", "Not examined:", ""]
    lines += [f"- `{row['model']}`: {row['error']}" for row in rows if "error" in row]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=inspect.cleandoc(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=Path, default=Path("runs/architectures.jsonl"), help="what is done already")
    parser.add_argument("--page", type=Path, default=Path("docs/architectures.md"))
    parser.add_argument("--minutes", type=float, default=20.0, help="stops after this time")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows.exists() else []
    rows = list({row["family"]: row for row in rows}.values())
    done = {row["family"] for row in rows if "OverflowError" in row.get("error", "OverflowError")}
    end = time.monotonic() + 60 * args.minutes
    wanted = {family: cls.__name__ for family, cls in transformers_classes().items()} | timm_families()
    for i, (family, name) in enumerate(wanted.items()):
        if family in done or time.monotonic() > end:
            continue
        rows = [row for row in rows if row["family"] != family]  # an error is tried again
        rows.append(study(family, name))
        with args.rows.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(f"{i + 1}/{len(wanted)}", json.dumps(rows[-1]), flush=True)
    rows.sort(key=lambda row: (not row["family"].startswith("transformers/"), row["family"]))
    args.page.write_text(table(rows))


if __name__ == "__main__":
    main()

"""A fitted generator as files: safetensors, settings as JSON, and a card that says what it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .card import public

CONFIG, WEIGHTS = "config.json", "latent.safetensors"
_FORMAT = 1
SETTINGS = ("dimension", "mixing", "neighbours", "jitter", "max_points", "steps", "seed")
# Name -> axes: n features of width d, noise of k dimensions, C classes.
_AXES = {
    "features": "nd",
    "points": "nk",
    "offsets": "n",
    "weights": "n",
    "class_index": "n",
    "classes": "C",
    "class_weights": "C",
    "gap": "C",
    "reach": "C",
}
_WHOLE = ("class_index", "classes")


@dataclass
class SavedLatent:
    """What the files of a `LatentTransport` hold: its settings, what was fitted, and what is known of it."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    labelled: bool
    report: dict[str, float]
    about: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Writes `latent.safetensors` and `config.json`."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config: dict[str, Any] = {"model_type": "latent_transport", "format": _FORMAT, "labelled": self.labelled}
        config |= {"settings": self.settings, "report": self.report}
        config |= {"about": {name: public(value) for name, value in self.about.items()}}
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, source: str, device: str | torch.device, **options: Any) -> SavedLatent:
        """Reads the files from a folder or the Hub; names, shapes, dtypes and ranges are checked.

        Args:
            source: A folder or a hub id.
            device: Where the tensors go.
            options: Of `hf_hub_download`.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, of something else, or of a later version.
        """
        folder = Path(source)
        if not folder.is_dir():
            folder = Path(hf_hub_download(source, CONFIG, **options)).parent
            hf_hub_download(source, WEIGHTS, **options)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{source} holds no {name}: it is no saved LatentTransport")
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS, device=str(device))
        except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            raise ValueError(f"{source} is damaged: {error}") from error
        _check_config(config, source)
        _check_tensors(tensors, source)
        return cls(config["settings"], tensors, config["labelled"], config["report"], config["about"])


def _check_config(config: Any, source: str) -> None:
    kinds = {"settings": dict, "report": dict, "about": dict, "labelled": bool, "format": int}
    if not isinstance(config, dict) or config.get("model_type") != "latent_transport":
        raise ValueError(f"{source} is no saved LatentTransport: its {CONFIG} says otherwise")
    wrong = [name for name, kind in kinds.items() if not isinstance(config.get(name), kind)]
    if wrong or set(config["settings"]) - set(SETTINGS):
        raise ValueError(f"{source}: {CONFIG} has no valid {', '.join(wrong) or 'settings'}")
    if config["format"] > _FORMAT:
        raise ValueError(f"{source} was saved by a newer version (format {config['format']}): update hf_reprot")


def _check_tensors(tensors: dict[str, Tensor], source: str) -> None:
    if set(tensors) != set(_AXES):
        raise ValueError(f"{source}: {WEIGHTS} holds {sorted(tensors)}, not {sorted(_AXES)}")
    sizes: dict[str, int] = {}
    for name, axes in _AXES.items():
        tensor = tensors[name]
        if tensor.ndim != len(axes) or tensor.dtype != (torch.int64 if name in _WHOLE else torch.float32):
            raise ValueError(f"{source}: {name} is {tensor.dtype} {tuple(tensor.shape)}")
        for axis, size in zip(axes, tensor.shape, strict=True):
            if sizes.setdefault(axis, size) != size or size == 0:
                raise ValueError(f"{source}: {name} of shape {tuple(tensor.shape)} does not fit the others")
        if name not in _WHOLE and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{source}: {name} is not finite")
    # A class without a cell could be drawn and not be mapped.
    present = torch.unique(tensors["class_index"])
    if not torch.equal(present, torch.arange(sizes["C"], device=present.device)):
        raise ValueError(f"{source}: class_index names other classes than the {sizes['C']} there are")
    if sizes["C"] > 1 and not bool((tensors["classes"].diff() > 0).all()):
        raise ValueError(f"{source}: classes are not in order")

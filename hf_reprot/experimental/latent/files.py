"""A fitted generator as files: safetensors, settings as JSON, and a card that says what it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .card import latent_card, public

CONFIG, WEIGHTS = "config.json", "latent.safetensors"
_FORMAT = 1
_SETTINGS = ("dimension", "mixing", "neighbours", "jitter", "max_points", "steps", "seed")
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


class LatentFiles(ModelHubMixin, library_name="hf_reprot", tags=["features", "optimal-transport"]):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` of a `LatentTransport`, those of huggingface_hub.

    A push is one commit of `latent.safetensors`, `config.json` and a README.md with the nearest-neighbour figures. A
    README.md that lies in a folder already is kept. What is loaded is checked: names, shapes, dtypes and ranges.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        self._check_fitted()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors.items()}
        save_file(tensors, save_directory / WEIGHTS, metadata={"format": "pt"})
        config = {"model_type": "latent_transport", "format": _FORMAT, "labelled": self._labelled}
        config |= {"settings": {name: getattr(self, name) for name in _SETTINGS}}
        config |= {"report": self.report, "about": {name: public(value) for name, value in self.about.items()}}
        (save_directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str | torch.device = "cpu", **options: Any):
        """`map_location`: the device that the features come to."""
        folder = Path(model_id)
        if not folder.is_dir():
            known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            options = {name: options[name] for name in known if name in options}
            folder = Path(hf_hub_download(model_id, CONFIG, **options)).parent
            hf_hub_download(model_id, WEIGHTS, **options)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{model_id} holds no {name}: it is no saved LatentTransport")
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS, device=str(map_location))
        except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            raise ValueError(f"{model_id} is damaged: {error}") from error
        _check_config(config, model_id)
        _check_tensors(tensors, model_id)
        loaded = cls(**config["settings"])
        loaded.report, loaded.about, loaded._labelled = config["report"], config["about"], config["labelled"]
        loaded._tensors = tensors
        return loaded

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """As huggingface_hub's; the card names the repository."""
        card = dict(options.pop("model_card_kwargs", None) or {})
        return super().push_to_hub(repo_id, model_card_kwargs={"repository": repo_id, **card}, **options)

    def generate_model_card(self, *, repository: str = "your-name/latent") -> ModelCard:
        """The card: what the file holds, what it was made from, and how near to the training features it draws."""
        held = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return latent_card(held, self.labels, settings, self.report, self.about, repository)


def _check_config(config: Any, source: str) -> None:
    kinds = {"settings": dict, "report": dict, "about": dict, "labelled": bool, "format": int}
    if not isinstance(config, dict) or config.get("model_type") != "latent_transport":
        raise ValueError(f"{source} is no saved LatentTransport: its {CONFIG} says otherwise")
    wrong = [name for name, kind in kinds.items() if not isinstance(config.get(name), kind)]
    if wrong or set(config["settings"]) - set(_SETTINGS):
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

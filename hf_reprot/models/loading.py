"""Pretrained models from the Hub or a folder: the commit, the right class, every weight, and only safetensors."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from ..data.preprocessing import Preprocessing

# Heads that give logits for a class; any other checkpoint is loaded without its head.
_HEADS = {
    "ForImageClassification": AutoModelForImageClassification,
    "ForImageClassificationWithTeacher": AutoModelForImageClassification,
    "ForSequenceClassification": AutoModelForSequenceClassification,
}
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "subfolder", "token")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
_FIRST_PROCESS_ONLY = "FSDP_CPU_RAM_EFFICIENT_LOADING"
_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")
LEGAL = 'a hub id ("org/name", "org/name@revision", "timm/name") or a folder'


@dataclass
class Pretrained:
    """A loaded model: `name` (hub id or folder), `revision` (the commit; None for a folder)."""

    model: nn.Module
    name: str
    revision: str | None
    preprocessing: Preprocessing | None


def load_pretrained(source: str, *, dtype: torch.dtype | str | None = None, options: dict[str, Any]) -> Pretrained:
    """Loads a checkpoint of transformers or timm, with its head where it has one that gives logits for a class.

    Of a model of images and texts, such as CLIP, the vision model is loaded.

    Args:
        source: A hub id, with or without "@revision", or a folder.
        dtype: Data type of the weights; None: the checkpoint's.
        options: Keyword arguments for `from_pretrained`.

    Raises:
        ValueError: it does not exist, cannot be reached, holds no safetensors weights, or they do not fill the model.
    """
    options = dict(options)
    if options.pop("use_safetensors", True) is False:
        raise ValueError("use_safetensors=False is not possible for a teacher: pickled weights can run code when read")
    for prefix in _PREFIXES:  # timm's way to write a source
        source = source.removeprefix(prefix)
    folder = Path(source).expanduser()
    try:
        if folder.is_dir():
            _check_folder(folder)
            return _load(str(folder), source, None, dtype, options)
        if folder.is_absolute() or source.startswith((".", "~")):
            raise ValueError(f"there is no folder {source!r} to load a teacher from. Legal is {LEGAL}")
        repo, revision = _split_revision(source, options.pop("revision", None))
        revision = _commit(repo, revision, options)
        return _load(repo, repo, revision, dtype, options)
    except ValueError as error:
        raise ValueError(_without_tokens(str(error), options)) from error.__cause__
    except Exception as error:  # the libraries raise many kinds; to a user each means that this source does not load
        reason = _without_tokens(_one_line(error), options)
        raise ValueError(f"the teacher {source!r} cannot be loaded: {reason}") from None


def _load(path: str, name: str, revision: str | None, dtype: torch.dtype | str | None, options: dict) -> Pretrained:
    hub = {k: options[k] for k in _HUB_OPTIONS if k in options} | ({"revision": revision} if revision else {})
    trust = {"trust_remote_code": bool(options.pop("trust_remote_code", False))}
    if dtype is None:
        dtype = options.pop("dtype", None) or options.pop("torch_dtype", None)
    changes = {k: v for k, v in options.items() if k not in _HUB_OPTIONS}
    config, rest = AutoConfig.from_pretrained(path, return_unused_kwargs=True, **hub, **trust, **changes)
    rest = {k: v for k, v in rest.items() if k in changes} | hub | trust
    if dtype is not None:
        rest["dtype"] = dtype
    refuse_pickles(config.to_dict(), source=path)
    mend_timm(config)
    auto_class = _auto_class(config)
    vision = getattr(config, "vision_config", None)
    if auto_class is AutoModel and isinstance(vision, PreTrainedConfig):
        config = vision  # of a model of images and texts (CLIP, SigLIP), the half that sees
    model = _fill(auto_class, path, name, config, rest)
    return Pretrained(model, name, revision, _preprocessing(path, model, hub | trust))


def _fill(auto_class: Any, path: str, name: str, config: PreTrainedConfig, options: dict[str, Any]) -> nn.Module:
    """The model with every weight from the checkpoint: weights left at random would teach noise."""

    def read(**more: Any) -> tuple[nn.Module, list[str]]:
        with _on_every_process():
            model, report = auto_class.from_pretrained(
                path, config=config, use_safetensors=True, output_loading_info=True, **options, **more
            )
        return model, sorted(report.get("missing_keys") or ())

    model, missing = read()
    if missing and all("pooler" in key.split(".") for key in missing):
        model, missing = read(add_pooling_layer=False)  # the checkpoint has none, so the model gets none
    if missing:
        raise ValueError(
            f"the teacher {name!r} lacks weights for {len(missing)} parameter(s) of {type(model).__name__} "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}), which would be random. Load the model "
            "that the weights are for, and pass the module"
        )
    return model


@contextlib.contextmanager
def _on_every_process() -> Iterator[None]:
    """With FSDP's `cpu_ram_efficient_loading`, transformers loads weights on the first process only, and the student's
    preparation for training sends them to the others. A teacher is not trained: it would stay empty there."""
    before = os.environ.get(_FIRST_PROCESS_ONLY)
    if before is not None:
        os.environ[_FIRST_PROCESS_ONLY] = "false"
    try:
        yield
    finally:
        if before is not None:
            os.environ[_FIRST_PROCESS_ONLY] = before


def _auto_class(config: PreTrainedConfig) -> Any:
    for architecture in getattr(config, "architectures", None) or ():
        for ending, auto_class in _HEADS.items():
            if architecture.endswith(ending):
                return auto_class
        return AutoModel
    if config.model_type == "timm_wrapper":  # timm's own checkpoints name no class, only the number of classes
        return AutoModelForImageClassification if config.num_labels > 0 else AutoModel
    return AutoModel


def refuse_pickles(config: Any, *, source: str) -> None:
    """Refuses a config that has timm read a file of its own while it makes the model: older versions unpickle it.

    Args:
        config: The content of a config.json.
        source: What it belongs to, for the message.

    Raises:
        ValueError: it names such a file, wherever in it.
    """
    left = [config]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            if value.get("checkpoint_path"):
                raise ValueError(
                    f"the config of {source!r} asks for weights from {str(value['checkpoint_path'])!r}, which may run "
                    "code when they are read: only safetensors beside the config are. Take checkpoint_path out of it "
                    "if you trust the rest"
                )
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value


def mend_timm(config: PreTrainedConfig) -> None:
    """timm's own export writes the number of classes twice, and the wrapper then cannot build the model."""
    arguments = getattr(config, "model_args", None)
    if isinstance(arguments, dict):
        arguments.pop("num_classes", None)


def _preprocessing(path: str, model: nn.Module, options: dict[str, Any]) -> Preprocessing | None:
    known = Preprocessing.of(model)
    if getattr(model, "main_input_name", None) != "pixel_values" or (known is not None and known.normalises):
        return known
    try:
        return Preprocessing.of(AutoImageProcessor.from_pretrained(path, **options)) or known
    except (OSError, ValueError, ImportError, KeyError):  # the checkpoint came without one
        return known


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ValueError(f"{folder} holds an adapter: load the whole model with PEFT and pass the module")
        raise ValueError(f"{folder} holds no config.json: it is no folder of a transformers or timm model")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{config} is not readable JSON") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{config} is no JSON object")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} holds no safetensors weights, and others are not read: save them with save_pretrained first"
        )


def _split_revision(source: str, option: str | None) -> tuple[str, str | None]:
    repo, _, revision = source.partition("@")
    if revision and option and revision != option:
        raise ValueError(f"the teacher {source!r} names a revision, and init_kwargs another one ({option!r}): give one")
    return repo, revision or option or None


def commit_of(repo: str, revision: str) -> str | None:
    """The commit that a branch or tag of a model stands for: from the cache, else from the Hub.

    Raises:
        ValueError: no such repository or revision, or it cannot be reached.
    """
    return _commit(repo, revision, {})


def _commit(repo: str, revision: str | None, options: dict[str, Any]) -> str | None:
    """The commit that a revision stands for, so that config, weights and processor are of one state.

    Raises:
        ValueError: no such repository or revision, or it cannot be reached.
    """
    at = f" at revision {revision!r}" if revision else ""
    offline = (
        f"the teacher {repo!r}{at} is neither a folder here nor in the cache, and the Hub cannot be reached. Legal is "
        f"{LEGAL}"
    )
    try:
        hub = {k: v for k, v in options.items() if k in _HUB_OPTIONS and k != "proxies"}
        path = hf_hub_download(repo, "config.json", revision=revision, **hub)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no name of a teacher. Legal is {LEGAL}{_nearest(repo)}") from error
    except GatedRepoError as error:
        raise ValueError(
            f"the teacher {repo!r} is gated: accept its terms on the Hub and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"the teacher {repo!r} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"the teacher {repo!r} is neither a folder here nor a model on the Hub (or it is private, and you are not "
            f"logged in). Legal is {LEGAL}{_nearest(repo)}"
        ) from error
    except LocalEntryNotFoundError as error:  # before EntryNotFoundError, which it is a kind of
        raise ValueError(offline + _nearest(repo)) from error
    except EntryNotFoundError as error:
        raise ValueError(f"the teacher {repo!r}{at} has no config.json: it is no transformers or timm model") from error
    except Exception as error:  # no network, a proxy, a server in trouble
        raise ValueError(f"{offline} ({type(error).__name__})") from error
    found = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", str(path))
    return found[1] if found else revision


def _nearest(repo: str) -> str:
    """A hint for the name of a timm architecture, which is no hub id."""
    name = repo.split("/")[-1].split(".")[0]
    if not timm.is_model(name):
        return ""
    pretrained = timm.list_pretrained(f"{name}.*")
    return f". Did you mean 'timm/{pretrained[0]}'?" if pretrained else ""


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{text[:300]}{'...' if len(text) > 300 else ''}" or type(error).__name__


def _without_tokens(text: str, options: Mapping[str, Any]) -> str:
    token = options.get("token")
    if isinstance(token, str) and token:
        text = text.replace(token, "<token>")
    return _TOKEN.sub("<token>", text)

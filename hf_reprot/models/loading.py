"""Pretrained models from the Hub or a folder: pinned to a commit, with every weight, from safetensors only."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BaseImageProcessor,
    PreTrainedConfig,
)

from ..data.preprocessing import Preprocessing
from ..utils.hub_ids import split_revision, without_prefix
from ..utils.hub_tokens import without_tokens
from ..utils.lazy import late_module
from ..utils.safetensors_only import check_options, check_source
from .model_size import check_numbers, check_size
from .processors import image_processor
from .vision import takes_patches, vision_config

logger = logging.getLogger(__name__)

timm = late_module("timm")

# Heads that give logits for a class; any other checkpoint is loaded without its head.
_HEADS = {
    "ForImageClassification": AutoModelForImageClassification,
    "ForImageClassificationWithTeacher": AutoModelForImageClassification,
    "ForSequenceClassification": AutoModelForSequenceClassification,
}
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "subfolder", "token")
_FIRST_PROCESS_ONLY = "FSDP_CPU_RAM_EFFICIENT_LOADING"
LEGAL = 'a hub id ("org/name", "org/name@revision", "timm/name") or a folder'


@dataclass
class Pretrained:
    """A loaded model: `name` (hub id or folder), `revision` (the commit; None for a folder), `preprocessing` (its image
    processor itself, where what it takes are no images of one size)."""

    model: nn.Module
    name: str
    revision: str | None
    preprocessing: Preprocessing | BaseImageProcessor | None


def load_pretrained(source: str, *, dtype: torch.dtype | str | None = None, options: dict[str, Any]) -> Pretrained:
    """Loads a transformers or timm checkpoint, with its classification head if it has one.

    Of a model of images and texts, such as CLIP, the vision model is loaded.

    Args:
        source: A hub id, with or without "@revision", or a folder.
        dtype: Data type of the weights; None: the checkpoint's.
        options: Keyword arguments for `from_pretrained`.

    Raises:
        ValueError: it does not exist, cannot be reached, holds no safetensors weights, or they do not fill the model.
    """
    options = dict(options)
    with explained(source, options, what="teacher"):
        check_options(options)
        place = locate(source, options, what="teacher")
        options.pop("revision", None)
        return _load(place.path, place.name, place.revision, dtype, options)


@dataclass
class Place:
    """Where a checkpoint lies: `path` is a folder or a hub id, `name` the same as it was written, `revision` the commit
    in a repository (None for a folder)."""

    path: str
    name: str
    revision: str | None


def locate(source: str, options: Mapping[str, Any], *, what: str) -> Place:
    """The folder, or the repository and the commit in it, that a source stands for.

    Args:
        source: A hub id, with or without "@revision", or a folder.
        options: Keyword arguments for `from_pretrained`; `revision` may be among them.
        what: What a message calls it: "teacher" or "student".

    Raises:
        ValueError: it does not exist, cannot be reached, or is no folder of a model.
    """
    source = without_prefix(source)
    folder = Path(source).expanduser()
    if folder.is_dir():
        _check_folder(folder / (options.get("subfolder") or ""))
        return Place(str(folder), source, None)
    if folder.is_absolute() or source.startswith((".", "~")):
        raise ValueError(f"there is no folder {source!r} to load a {what} from. Legal is {LEGAL}")
    setting = "init_kwargs" if what == "teacher" else "revision="
    repo, revision = split_revision(source, options.get("revision"), title=f"the {what}", setting=setting)
    return Place(repo, repo, _commit(repo, revision, options, what))


@contextlib.contextmanager
def explained(source: str, options: Mapping[str, Any], *, what: str) -> Iterator[None]:
    """Turns whatever the libraries raise while a source is loaded into a `ValueError` of one line without tokens."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_without_tokens(" ".join(str(error).split()), options)) from error.__cause__
    except Exception as error:  # the libraries raise many kinds; to a user each means that this source does not load
        reason = _without_tokens(_one_line(error), options)
        raise ValueError(f"the {what} {source!r} cannot be loaded: {reason}") from None


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
    content = config.to_dict()
    check_numbers(content, source=name)
    shapes = check_source(path, content, rest, what="teacher")
    rest.pop("use_safetensors", None)
    mend_timm(config)
    auto_class = _auto_class(config)
    vision = vision_config(config)
    if auto_class is AutoModel and vision is not None:
        config = vision  # of a model of images and texts (CLIP, SigLIP), the half that sees
    check_size(auto_class, config, shapes, source=name)
    model = _fill(auto_class, path, name, config, rest)
    return Pretrained(model, name, revision, _preprocessing(path, model, hub | trust))


def _fill(auto_class: Any, path: str, name: str, config: PreTrainedConfig, options: dict[str, Any]) -> nn.Module:
    """The model with every weight from the checkpoint: weights left at random would teach noise."""

    def read(**more: Any) -> tuple[nn.Module, Mapping[str, Any]]:
        with _on_every_process():
            return auto_class.from_pretrained(
                path, config=config, use_safetensors=True, output_loading_info=True, **options, **more
            )

    model, report = read()
    missing = report.get("missing_keys") or ()
    if missing and all("pooler" in key.split(".") for key in missing):
        model, report = read(add_pooling_layer=False)  # the checkpoint has none, so the model gets none
    check_fit(model, report, name=name, what="teacher")
    return model


def check_fit(
    model: nn.Module, report: Mapping[str, Any], *, name: str, what: str, heads: Sequence[str] = ()
) -> list[str]:
    """Refuses weights that are not those of the model: what they leave out would be random.

    Whole parts that only the checkpoint has (a decoder, a text model, another head) are no misfit.

    Args:
        model: The loaded model.
        report: What `from_pretrained` says with `output_loading_info=True`.
        name: What a message calls the source.
        what: "teacher" or "student".
        heads: Paths of modules that may be new.

    Returns:
        Names of the parameters of `heads` that are new.

    Raises:
        ValueError: parameters or statistics without weights, weights of another shape, or weights for layers that the
            model would have to have.
    """

    def new(key: str) -> bool:
        return bool(heads) and (any(key.startswith(f"{head}.") for head in heads) or "pooler" in key.split("."))

    missing = sorted(report.get("missing_keys") or ())
    shapes = {key: (tuple(there), tuple(here)) for key, there, here in report.get("mismatched_keys") or ()}
    lacking = [key for key in missing if not new(key)]
    if lacking:
        raise ValueError(
            f"the {what} {name!r} lacks weights for {len(lacking)} parameter(s) of {type(model).__name__} "
            f"({', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}), which would be random. Load the model "
            "that the weights are for, and pass the module"
        )
    other = [f"{key} is {there} there and {here} here" for key, (there, here) in sorted(shapes.items()) if not new(key)]
    if other:
        raise ValueError(
            f"weights of the {what} {name!r} have other shapes than {type(model).__name__} ({'; '.join(other[:3])}"
            f"{'; ...' if len(other) > 3 else ''}): its config is not that of the weights"
        )
    surplus = sorted(key for key in report.get("unexpected_keys") or () if _is_of(model, key))
    if surplus:
        raise ValueError(
            f"the {what} {name!r} has {len(surplus)} weight(s) more than {type(model).__name__} takes "
            f"({', '.join(surplus[:3])}{', ...' if len(surplus) > 3 else ''}): its config is not that of the weights"
        )
    return sorted({*missing, *shapes})


def _is_of(model: nn.Module, key: str) -> bool:
    """Whether a weight without a place would belong into a part that the model has: into a layer, or a list of layers.

    A part that the model has nothing of (the deepest module on the way is neither) was left out on purpose.
    """
    module = model
    for part in key.split(".")[:-1]:
        inner = dict(module.named_children()).get(part)
        if inner is None:
            break
        module = inner
    numbered = isinstance(module, nn.ModuleList | nn.Sequential)
    return module is not model and (numbered or any(True for _ in module.parameters(recurse=False)))


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
        return AutoModelForImageClassification if (config.num_labels or 0) > 0 else AutoModel
    return AutoModel


def mend_timm(config: PreTrainedConfig) -> None:
    """timm's own export writes the number of classes twice, and the wrapper then cannot build the model."""
    arguments = getattr(config, "model_args", None)
    if isinstance(arguments, dict):
        arguments.pop("num_classes", None)


def _preprocessing(path: str, model: nn.Module, options: dict[str, Any]) -> Preprocessing | BaseImageProcessor | None:
    known = Preprocessing.of(model)
    if getattr(model, "main_input_name", None) != "pixel_values" or (known is not None and known.normalises):
        return known
    try:
        processor = image_processor(path, **options)
    except OSError:  # the checkpoint came without one
        return known
    except (ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        logger.warning(
            "The image processor of the teacher %s cannot be loaded (%s): the teacher gets the student's values as "
            "they are. Give Teacher(..., preprocessing=Preprocessing(mean=..., std=..., size=...)).",
            path,
            reason,
        )
        return known
    return processor if takes_patches(model) else Preprocessing.of(processor) or known


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


def commit_of(repo: str, revision: str) -> str | None:
    """The commit that a branch or tag of a model stands for: from the cache, else from the Hub.

    Raises:
        ValueError: no such repository or revision, or it cannot be reached.
    """
    return _commit(repo, revision, {}, "teacher")


def _commit(repo: str, revision: str | None, options: Mapping[str, Any], what: str) -> str | None:
    """The commit that a revision stands for, so that config, weights and processor are of one state.

    Raises:
        ValueError: no such repository or revision, or it cannot be reached.
    """
    at = f" at revision {revision!r}" if revision else ""
    offline = (
        f"the {what} {repo!r}{at} is neither a folder here nor in the cache, and the Hub cannot be reached. Legal is "
        f"{LEGAL}"
    )
    try:
        hub = {k: v for k, v in options.items() if k in _HUB_OPTIONS and k != "proxies"}
        path = hf_hub_download(repo, "config.json", revision=revision, **hub)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no name of a {what}. Legal is {LEGAL}{_nearest(repo)}") from error
    except GatedRepoError as error:
        raise ValueError(
            f"the {what} {repo!r} is gated: accept its terms on the Hub and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"the {what} {repo!r} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"the {what} {repo!r} is neither a folder here nor a model on the Hub (or it is private, and you are not "
            f"logged in). Legal is {LEGAL}{_nearest(repo)}"
        ) from error
    except LocalEntryNotFoundError as error:  # before EntryNotFoundError, which it is a kind of
        raise ValueError(offline + _nearest(repo)) from error
    except EntryNotFoundError as error:
        raise ValueError(f"the {what} {repo!r}{at} has no config.json: it is no transformers or timm model") from error
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
    return without_tokens(text, "<token>")

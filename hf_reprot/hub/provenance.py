"""Where models and data came from, how big they are, under which licence: facts, found on the objects themselves."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, constants, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, validate_repo_id
from torch import nn

from ..features.architecture import config_of, timm_settings
from ..models.modules import base_of, class_name, is_headless, stated_license
from ..utils.hub_ids import split_revision
from .facts import DataFacts, ModelFacts, Start
from .foreign import text_of
from .licenses import License
from .privacy import folder_name

logger = logging.getLogger(__name__)

# What a head does, by the end of its class's name; the Hub's pipeline tags.
_TASKS = {
    "ForImageClassification": "image-classification",
    "ForImageClassificationWithTeacher": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForSemanticSegmentation": "image-segmentation",
    "ForObjectDetection": "object-detection",
    "ForAudioClassification": "audio-classification",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
# .../datasets/owner___name/config/version/commit/file.arrow: how `datasets` lays out its cache
_CACHE_LAYOUT = re.compile(
    r"(?:^|/)(?:(?P<owner>[^/]+)___)?(?P<name>[^/]+)/[^/]+/[^/]+/(?P<commit>[0-9a-f]{40})/[^/]+$"
)


def start_of(model: nn.Module, declared: str | None = None) -> Start:
    """Where the weights of a student started.

    Args:
        model: The unwrapped student.
        declared: What its maker says: "scratch", "org/name", "org/name@revision" or a folder. It wins over what the
            model shows.
    """
    if declared == "scratch":
        return Start("scratch")
    if declared is not None:
        return _start(*split_revision(declared))
    adapter = _adapter_config(model)
    if adapter is not None:
        base = getattr(adapter, "base_model_name_or_path", None)
        if base:
            return _start(base, getattr(adapter, "revision", None))
        model = base_of(model)
    config = config_of(model)
    name = getattr(config, "_name_or_path", None)
    if not name or not _was_loaded(model):
        return Start()
    start = _start(name, getattr(config, "_commit_hash", None))
    if start.kind == "hub" and start.name and start.revision is None:
        start.revision = _cached_commit(start.name)
    start.license = start.license or License.of(stated_license(model))
    return start


def model_facts(model: nn.Module, name: str | None = None, **known: Any) -> ModelFacts:
    """Architecture, library and size of a model; `known` fills the other fields."""
    inner: Any = base_of(model) if _adapter_config(model) is not None else model
    config = config_of(inner)
    architecture, library = class_name(inner), "torch"
    if architecture.startswith("TimmWrapper"):
        architecture, library = text_of(config.architecture) or architecture, "timm"
    elif (settings := timm_settings(inner)) is not None:
        architecture, library = text_of(settings.get("architecture")) or architecture, "timm"
    elif hasattr(config, "model_type"):
        library = "transformers"
    if inner is not model:
        library = "peft"
    # `ds_numel`: the whole size of a parameter that DeepSpeed has sharded
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    return ModelFacts(name or architecture, architecture, library, parameters, **known)


def teacher_facts(teacher: Any) -> ModelFacts:
    """The facts of a `Teacher`: its name as hub id or folder name, its revision, its licence."""
    if getattr(teacher, "facts", None) is not None:  # of a feature cache, which recorded them
        return teacher.facts
    origin, name = _origin(teacher.name) if teacher.name else ("unrecorded", class_name(teacher.model))
    revision = teacher.revision if origin == "hub" else None
    stated = getattr(teacher, "license", None)
    license = License.of(stated) if stated else None
    if license is None and origin == "hub":
        license = hub_license(name, revision)
    elif license is None and origin == "folder":
        license = folder_license(teacher.name)
    return model_facts(
        teacher.model,
        name,
        origin=origin,
        revision=revision,
        license=license or License.of(stated_license(teacher.model)),
    )


def data_facts(dataset: Any) -> DataFacts | None:
    """What a data set tells of itself; for other kinds than `datasets.Dataset`, its class and its size."""
    if dataset is None:
        return None
    samples = len(dataset) if hasattr(dataset, "__len__") else None
    info = getattr(dataset, "info", None)
    if info is None or not hasattr(info, "dataset_name"):
        return DataFacts(_title(dataset), samples)
    split = str(dataset.split) if getattr(dataset, "split", None) is not None else None
    repo, revision = _dataset_repo(dataset)
    license = License.of(info.license)
    if license is None and repo is not None:
        license = hub_license(repo, revision, "dataset")
    given, config = text_of(info.dataset_name), text_of(info.config_name)
    name = repo or (folder_name(given) if given else None) or "data made in memory"
    config = config if config != "default" else None
    return DataFacts(name, samples, repo, config, revision, split, license)


def _title(dataset: Any) -> str:
    """A folder of torchvision's by its name, also below `Subset`; other data sets by their class."""
    whole = dataset
    while type(whole).__name__ == "Subset":
        whole = whole.dataset
    folder = any(kind.__name__ == "DatasetFolder" for kind in type(whole).__mro__)
    return folder_name(str(whole.root)) if folder else type(whole).__name__


def task_of(model: nn.Module) -> str | None:
    """The Hub's pipeline tag for a model; None where its class does not tell."""
    inner = base_of(model)
    name = class_name(inner)
    if is_headless(inner) and getattr(inner, "main_input_name", None) == "pixel_values":
        return "image-feature-extraction"
    return next((task for ending, task in _TASKS.items() if name.endswith(ending)), None)


@functools.lru_cache(maxsize=256)
def hub_license(repo: str, revision: str | None = None, repo_type: str = "model") -> License | None:
    """The licence that a repository's card states: from the cache, else from the Hub; None where neither tells."""
    try:
        cached = try_to_load_from_cache(repo, "README.md", revision=revision, repo_type=repo_type)
        if isinstance(cached, str):
            found = _card_license(cached)
            if found is not None:
                return found
        api = HfApi()
        ask = api.dataset_info if repo_type == "dataset" else api.model_info
        data: Any = ask(repo, revision=revision, timeout=5).card_data or {}
        return License.of(data.get("license"), data.get("license_name"), data.get("license_link"))
    except Exception as error:  # offline, private, gone: a licence that cannot be had is a warning on the card
        logger.debug("The licence of %s cannot be had: %s", repo, type(error).__name__)
        return None


def folder_license(folder: str | Path) -> License | None:
    """The licence that the card in a folder states."""
    card = Path(folder).expanduser() / "README.md"
    return _card_license(card) if card.is_file() else None


def _card_license(path: str | Path) -> License | None:
    try:
        data = ModelCard.load(Path(path), ignore_metadata_errors=True).data
    except Exception as error:  # a card by someone else, with whatever it holds
        logger.debug("A card cannot be read: %s", type(error).__name__)
        return None
    return License.of(data.get("license"), data.get("license_name"), data.get("license_link"))


def _start(name: str, revision: str | None = None) -> Start:
    kind, title = _origin(name)
    if kind == "folder":
        return Start("folder", title, None, folder_license(name))
    if kind == "hub":
        revision = _commit_of(title, revision)
        return Start("hub", title, revision, hub_license(title, revision))
    return Start()


def _commit_of(repo: str, revision: str | None) -> str | None:
    """The commit that a revision stands for, from the cache that the weights were loaded through.

    Without a revision, the cache tells only where it holds a single commit; the revision itself where it does not tell.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    cache = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    reference = cache / "refs" / (revision or "main")
    commits = [path.name for path in cache.glob("snapshots/*")]
    if reference.is_file() and (revision is not None or len(commits) == 1):
        return reference.read_text().strip()
    return revision


def _origin(name: str) -> tuple[str, str]:
    """("folder", its name) | ("hub", id) | ("unrecorded", name): a folder that exists wins, as in `from_pretrained`."""
    if Path(name).expanduser().exists() or Path(name).is_absolute() or name.startswith((".", "~")):
        return "folder", folder_name(name)
    repo, _ = split_revision(name)
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return "unrecorded", folder_name(name)
    return ("hub", repo) if "/" in repo else ("unrecorded", repo)


def _adapter_config(model: nn.Module) -> Any | None:
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping) or not configs:
        return None
    active = getattr(model, "active_adapter", None)
    return configs.get(active if isinstance(active, str) else None) or next(iter(configs.values()))


def _cached_commit(repo: str) -> str | None:
    """The commit that `from_pretrained` has just read from the cache: newer versions leave no trace in the config."""
    path = try_to_load_from_cache(repo, "config.json")
    commit = Path(path).parent.name if isinstance(path, str) else ""
    return commit if _COMMIT.fullmatch(commit) else None


def _was_loaded(model: nn.Module) -> bool:
    """Whether `from_pretrained` filled the model: a config alone has a name, too, but brings no weights."""
    return hasattr(model, "_weight_conversions") or any(
        getattr(p, "_is_hf_initialized", False) for p in model.parameters()
    )


def _dataset_repo(dataset: Any) -> tuple[str | None, str | None]:
    """Hub id and commit of a data set, from where `datasets` cached it."""
    for entry in getattr(dataset, "cache_files", None) or ():
        path = str(entry.get("filename", "")).replace("\\", "/")
        found = _CACHE_LAYOUT.search(path)
        if found is not None:
            owner, name = found["owner"], found["name"]
            return (f"{owner}/{name}" if owner else name), found["commit"]
    return None, None

"""Students that `Trainer` can train and that, once saved, load in both transformers and timm."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from ..data.preprocessing import fixed_image_size, image_channels
from ..features.architecture import head_paths, is_timm, timm_settings
from ..features.compiled import in_place
from ..utils.lazy import late_module
from ..utils.messages import nearest
from ..utils.safetensors_only import check_config, check_options, check_source
from .class_rows import settle_rows
from .classes import name_classes
from .loading import Place, check_fit, explained, locate, mend_timm
from .model_size import check_memory, check_numbers, check_size
from .modules import class_count, names_of_config, some
from .shared_tensors import shared_undeclared

if TYPE_CHECKING:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TimmWrapperModel

timm = late_module("timm")

logger = logging.getLogger(__name__)

TIMM_PREFIX = "timm_model."
_HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder")

# What timm and transformers read of a `pretrained_cfg`: enough to rebuild the input pipeline, nothing of a download.
_INPUT_FIELDS = (
    "input_size",
    "fixed_input_size",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "mean",
    "std",
    "pool_size",
    "first_conv",
    "classifier",
    "license",
)


def create_timm_student(
    architecture: str,
    label_names: Sequence[str] | None,
    *,
    pretrained_cfg: Mapping[str, Any] | None = None,
    **model_args: Any,
) -> TimmWrapperForImageClassification | TimmWrapperModel:
    """A timm model with new random weights, inside the wrapper that makes it a transformers model.

    Args:
        architecture: timm's name of the model, such as "resnet18".
        label_names: Names of the classes, in the order of the logits; None: a backbone without a head
            (`num_classes=0`).
        pretrained_cfg: Changes to the architecture's input settings (`input_size` (channels, height, width), `mean`,
            `std`). An architecture that is made for one image size is made for this one.
        model_args: What `timm.create_model` takes besides the number of classes, such as `img_size` or `depth`. It is
            kept in the student's config, so that the student loads again.

    Raises:
        ValueError: timm has no such architecture (the nearest ones are named), or a `model_args` that the wrapper sets.
    """
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models(), 3, cutoff=0.5)
        raise ValueError(f"timm has no architecture {architecture!r}. Near: {', '.join(near) or 'none'}")
    for reserved in ("num_classes", "pretrained", "checkpoint_path"):
        if reserved in model_args:
            raise ValueError(f"{reserved} is set by the label names and the weights: leave it out of model_args")
    changes = dict(pretrained_cfg or {})
    model_args = _input_args(architecture, changes) | model_args
    model = timm.create_model(architecture, num_classes=len(label_names or ()), **model_args)
    changes.setdefault("license", None)  # the architecture states one for weights that this student does not have
    student = wrap_timm(model, label_names, pretrained_cfg=changes, model_args=model_args)
    _declare_scratch(student)
    return student


def load_student(
    source: str | os.PathLike,
    label_names: Sequence[str] | None = None,
    *,
    head: bool | None = True,
    from_scratch: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """A model from the Hub or a folder as a student: its weights are the start, its head is made for the labels.

    Args:
        source: A hub id ("org/name", "org/name@revision", "timm/name") or a folder.
        label_names: Class names, in the order of the logits. The head's rows of classes that it has by name
            (case, blanks, `_` and `-` do not count) are moved to their places, those of all others are new; a head
            whose classes have no names (LABEL_0, ...) keeps its rows if it has as many. None: the classes that the
            model has.
        head: Whether it is a classifier. False: the bare backbone, `AutoModel`, or `AutoBackbone` where the checkpoint
            is one. None: as the checkpoint has it.
        from_scratch: Take the architecture only, with new random weights.
        options: What `from_pretrained` takes.

    Raises:
        ValueError: there is no such model; it has no safetensors weights, or others than its config describes (only the
            head may be of another size, or missing: it is new then, which a warning says); or it does not load.
    """
    name, given = os.fspath(source), dict(options)
    if label_names is not None and head is not False:
        numbered = dict(enumerate(label_names))
        # The number, too: a timm config looks at it alone, and would keep the old head under new names.
        options |= {"num_labels": len(numbered), "id2label": numbered, "label2id": {n: i for i, n in numbered.items()}}
    with explained(name, options, what="student"):
        check_options(options)
        place = locate(name, options, what="student")
        options.pop("revision", None)
        pinned = {} if place.revision is None else {"revision": place.revision}
        return _load_student(place, label_names, head, from_scratch, options | pinned, given | pinned)


def _load_student(
    place: Place,
    label_names: Sequence[str] | None,
    head: bool | None,
    from_scratch: bool,
    options: dict[str, Any],
    given: dict[str, Any],
) -> PreTrainedModel:
    hub = {name: options[name] for name in _HUB_OPTIONS if name in options}
    content = PreTrainedConfig.get_config_dict(place.path, **hub)[0] | {
        name: value for name, value in options.items() if name in ("model_args", "architecture", "transformers_weights")
    }
    check_numbers(content, source=place.name)
    if not (_has_classifier(content) if head is None else head):
        label_names, options, auto_class = None, dict(given), _backbone_class(content)
    else:
        auto_class = AutoModelForImageClassification
    if from_scratch:
        check_config(content, source=place.name)
        config, _ = AutoConfig.from_pretrained(place.path, return_unused_kwargs=True, **options)
        mend_timm(config)  # of a folder that timm itself wrote
        _forget_classes(config, auto_class)
        check_memory(auto_class, config, source=place.name)
        if isinstance(config, transformers.TimmWrapperConfig):
            # transformers' wrapper would give every convolution the same variance, whatever its size
            classes = config.num_labels if auto_class is AutoModelForImageClassification else 0
            args = config.model_args or {}
            bare = timm.create_model(config.architecture, False, num_classes=classes, **args)
            student: Any = _wrapped(bare, config)
        else:
            trust = options.get("trust_remote_code", False)
            student = auto_class.from_config(config, trust_remote_code=trust)
        _declare_scratch(student)
    else:
        shapes = check_source(place.path, content, options, what="student")
        options.pop("use_safetensors", None)
        again = {name: options[name] for name in (*_HUB_OPTIONS, "trust_remote_code") if name in options}
        config, rest = AutoConfig.from_pretrained(place.path, return_unused_kwargs=True, **options)
        mend_timm(config)
        _forget_classes(config, auto_class)
        check_size(auto_class, config, shapes, source=place.name)
        rest = {name: value for name, value in rest.items() if name in options} | again
        rest |= {"config": config, "use_safetensors": True, "output_loading_info": True}
        # AutoBackbone itself loads from the Hub alone
        loads: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)] if auto_class is AutoBackbone else auto_class
        student, report = loads.from_pretrained(place.path, ignore_mismatched_sizes=True, **rest)
        missing = report.get("missing_keys") or ()
        if auto_class is AutoModel and missing and all("pooler" in key.split(".") for key in missing):
            # The checkpoint has none, so the student gets none.
            student, report = AutoModel.from_pretrained(place.path, add_pooling_layer=False, **rest)
        heads = [path for path in head_paths(student) if path]
        new = check_fit(student, report, name=place.name, what="student", heads=heads)
        head_is_new = any(key.startswith(f"{path}.") for key in new for path in heads)
        student.new_classes = class_count(student) if head_is_new else None  # for the card
        had_none = head_is_new and not report.get("mismatched_keys")
        if new:
            logger.warning(
                "The head of the student %s (%s) is new, with random weights: %s",
                place.name,
                some(heads),
                "the checkpoint's is for other classes" if report.get("mismatched_keys") else "the checkpoint has none",
            )
    if label_names is not None:
        name_classes(student, label_names)
        if not from_scratch:
            fresh = _settle_head(student, place, label_names, given)
            if fresh is not None and not had_none:
                student.new_classes = len(fresh)
    return student


def _has_classifier(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has a head for classes, by its config.json."""
    if content.get("model_type", "timm_wrapper") == "timm_wrapper":  # timm's own says how many classes there are
        return bool(content.get("num_classes", True))
    names = content.get("architectures") or ["ForImageClassification"]
    return any("ForImageClassification" in name for name in names)


def _backbone_class(content: Mapping[str, Any]) -> Any:
    return AutoBackbone if any(n.endswith("Backbone") for n in content.get("architectures") or ()) else AutoModel


def _forget_classes(config: PreTrainedConfig, auto_class: Any) -> None:
    """A backbone has no classes, whatever its checkpoint was trained on before."""
    if auto_class is AutoModelForImageClassification:
        return
    if config.model_type == "timm_wrapper":
        config.num_labels = 0
        config.label_names = []
    elif names_of_config(config) is not None:
        config.num_labels = 2  # what transformers writes where nothing is said


def _settle_head(
    student: PreTrainedModel, place: Place, names: Sequence[str], options: dict[str, Any]
) -> list[str] | None:
    """Makes sure that every row of the head stands under the name of its own class; see `settle_rows`."""
    trust = options.get("trust_remote_code", False)
    hub = {name: options[name] for name in _HUB_OPTIONS if name in options}
    options = {name: value for name, value in options.items() if name != "use_safetensors"}
    config = AutoConfig.from_pretrained(place.path, trust_remote_code=trust, **hub)
    mend_timm(config)

    def make(config: PreTrainedConfig) -> PreTrainedModel:
        return AutoModelForImageClassification.from_config(config, trust_remote_code=trust)

    def load() -> PreTrainedModel:
        return AutoModelForImageClassification.from_pretrained(
            place.path, config=config, use_safetensors=True, **options
        )

    return settle_rows(student, names, names_of_config(config), make, load, place.name)


def wrap_timm(
    model: nn.Module,
    label_names: Sequence[str] | None = None,
    *,
    pretrained_cfg: Mapping[str, Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> TimmWrapperForImageClassification | TimmWrapperModel:
    """Puts a timm module, weights and all, inside `TimmWrapperForImageClassification`; a backbone, `TimmWrapperModel`.

    The wrapper shares the module's parameters. The config records what both libraries need to load the student.

    Args:
        model: A module made by `timm.create_model`, with a head or without (`num_classes=0`).
        label_names: Names of the classes; None: LABEL_0, LABEL_1, ... A backbone has none.
        pretrained_cfg: Changes to the module's own input settings.
        model_args: The arguments, besides the number of classes, that the module was made with; None: those that the
            module remembers (timm 1.0.31 and later), else none.

    Raises:
        TypeError: not a timm module.
        ValueError: a number of names that is not the head's number of classes, an `input_size` that the
            module does not take, or a module that `architecture` and `model_args` do not rebuild.
    """
    own = timm_settings(model)
    if own is None or not is_timm(model):
        raise TypeError(f"{type(model).__name__} is no timm model: it has no pretrained_cfg and num_classes")
    classes: int = max(getattr(model, "num_classes", 0), 0)
    names = list(label_names) if label_names is not None else [f"LABEL_{i}" for i in range(classes)]
    if len(names) != classes:
        raise ValueError(f"{len(names)} label names for a head of {classes} classes")
    settings = dict(own) | dict(pretrained_cfg or {})
    settings |= _own_input(model, settings, stated="input_size" in (pretrained_cfg or {}))
    if model_args is None:
        model_args = _remembered_args(model)
    config = transformers.TimmWrapperConfig(
        architecture=settings.get("architecture") or own["architecture"],
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        model_args={
            name: _plain(value) for name, value in model_args.items()
        },  # never None: timm reads it as a dictionary
    )
    config.pretrained_cfg = {k: _plain(settings[k]) for k in _INPUT_FIELDS if settings.get(k) is not None}
    config.label_names = names
    return _wrapped(model, config)


def _wrapped(model: nn.Module, config: TimmWrapperConfig) -> TimmWrapperForImageClassification | TimmWrapperModel:
    with torch.device("meta"):  # the wrapper builds a module of its own first: give it no memory
        try:
            headed = getattr(model, "num_classes", 0) > 0
            kind = transformers.TimmWrapperForImageClassification if headed else transformers.TimmWrapperModel
            wrapper = kind(copy.deepcopy(config))
        except TypeError as error:
            raise ValueError(
                f"timm cannot rebuild {config.architecture} from model_args={config.model_args}: {error}"
            ) from error
    ours = {name: p.shape for name, p in model.state_dict().items()}
    theirs = {name: p.shape for name, p in wrapper.timm_model.state_dict().items()}
    if ours != theirs:
        different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise ValueError(
            f"timm rebuilds {config.architecture} with other weights than the model has ({', '.join(different[:3])}): "
            "pass as model_args what the model was created with (img_size, depth, ...), so that the student loads again"
        )
    wrapper.timm_model = model
    return wrapper


def as_student(model: nn.Module) -> nn.Module:
    """The model itself, or, for a bare timm module, the model in the wrapper that the Trainer can train and save.

    What went through `torch.compile` comes back compiled in place.
    """
    model = in_place(model)
    if (
        is_timm(model)
        and timm_settings(model) is not None
        and "labels" not in inspect.signature(model.forward).parameters
    ):
        return wrap_timm(model)
    return model


def portable_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor] | None:
    """The weights of a student as both libraries read them: without the wrapper's prefix for a timm student.

    Tensors that lie in one memory and that the model does not declare as tied (timm's CoaT uses one position encoding
    in all blocks of a stage) get a copy each: safetensors refuses them otherwise.

    Returns None for any other model where no state dict is given: its own `save_pretrained` knows best.
    """
    if state_dict is None and hasattr(model, "peft_config"):
        return None  # PEFT writes the adapter alone, and parts what is shared itself
    weights = model.state_dict() if state_dict is None else state_dict
    shared = shared_undeclared(model, weights)
    if not isinstance(model, transformers.TimmWrapperPreTrainedModel) and state_dict is None and not shared:
        return None
    parted = {name: tensor.clone() if name in shared else tensor for name, tensor in weights.items()}
    if isinstance(model, transformers.TimmWrapperPreTrainedModel):
        return {name.removeprefix(TIMM_PREFIX): tensor for name, tensor in parted.items()}
    return parted


def _declare_scratch(student: Any) -> None:
    """For the card: nothing of a module tells random weights from loaded ones."""
    student.weights_from = "scratch"


def _input_args(architecture: str, pretrained_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What makes an architecture for the images that its settings name."""
    if "input_size" not in pretrained_cfg:
        return {}
    channels, height, width = pretrained_cfg["input_size"]
    known = timm.get_pretrained_cfg(architecture)  # None for an architecture that never had weights
    found = {} if channels == 3 else {"in_chans": channels}
    if known is not None and known.fixed_input_size:
        found["img_size"] = height if height == width else (height, width)
    return found


def _own_input(model: nn.Module, settings: Mapping[str, Any], stated: bool) -> dict[str, Any]:
    """The input settings that follow from the module itself: both libraries scale images by what is written there."""
    size = tuple(settings.get("input_size") or (3, 224, 224))
    fixed = fixed_image_size(model)
    actual = (image_channels(model) or size[0], *(fixed or size[-2:]))
    if stated and actual != size:
        raise ValueError(f"input_size is {size} but the model takes (channels, height, width) = {actual}")
    found: dict[str, Any] = {"input_size": actual, "fixed_input_size": fixed is not None}
    for name in ("mean", "std"):
        values = settings.get(name)
        if values is not None and len(values) != actual[0]:  # timm's are for RGB
            found[name] = (sum(values) / len(values),) * actual[0]
    return found


def _remembered_args(model: nn.Module) -> dict[str, Any]:
    recall = getattr(timm.models, "get_model_args", None)
    known = recall(model) if recall is not None else {}
    # num_classes follows from the labels, and the wrapper refuses it here
    return {name: value for name, value in known.items() if name not in ("num_classes", "pretrained")}


def _plain(value: Any) -> Any:
    """JSON's idea of a value: tuples become lists."""
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value

"""`Teacher`: a frozen model whose representation and logits a student learns from."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor

from ..data.columns import TEACHER_PREFIX
from ..data.preprocessing import Preprocessing, convert_images, fixed_image_size, image_channels
from ..features.architecture import config_of
from ..features.compiled import is_compiled
from ..features.taps import LayerRecorder, Taps
from ..utils.messages import check_choice
from .loading import load_pretrained
from .modules import check_not_shared, class_name, forward_parameters, names_of, some, stated_license
from .precision import teacher_dtype
from .spec import PARTS, SAMPLES, check_classes, check_layers, check_weight
from .vision import Parking, Patches, accept_image_size, check_images, takes_patches, vision_side, without_padding

logger = logging.getLogger(__name__)

# What the student's batch may hold for its loss: no model needs it for its representation.
_TARGETS = ("start_positions", "end_positions")
_IMAGES = "pixel_values"
_PLAIN = Preprocessing((0.0,) * 3, (1.0,) * 3)  # values in [0, 1]


class Teacher:
    """A frozen model with its own input pipeline.

    Of a whole model of images and texts (`CLIPModel`, `SiglipModel`) the vision model is the teacher. A model that
    takes patches (SigLIP2 NaFlex) gets them from its own image processor, which sees the student's images.

    It is deliberately not an `nn.Module`, so that it cannot end up in a student's state dict.

    The model is frozen *in place*: its parameters stop requiring gradients and it is put into evaluation mode.
    `teacher.model` always returns it in evaluation mode, even if `train()` was called on it in between.

    Args:
        model: A transformers or timm model, or any module whose `forward` takes the images (or the batch's inputs by
            their names).
        name: Hub id or folder that it came from.
        revision: Commit on the Hub that it came from.
        license: Licence of its weights.
        preprocessing: The `pixel_values` that it expects, or its image processor. None: read from the model.
        resize: None: images are resized only if the model accepts a single size. True: always to the size in
            `preprocessing`. False: never.
        image_size: Side of the images that it is given, in pixels, or (height, width), whatever size it was made for:
            see `set_image_size`. None: as `resize` says.
        weight: Its relative weight among several teachers, above 0, in the terms that compare layers and in each
            sample's logit distillation.
        classes: The student's classes that it knows, by name or number, in the order of its own outputs; None in the
            place of an output that the student has no class for. Left out: found by the names of the classes, or else
            all of them in the same order. An empty list: its logits are left out of distillation.
        layers: Its own layer pairs, as `layer_pairs` of the config, which they replace for this teacher.
        samples: Of a teacher that knows only some classes, the samples on which its neurons are matched: "own" (of its
            classes where labels take part; without labels, beside other teachers, each as much as its logits are
            heard there) or "all".

    Raises:
        TypeError: not a module.
        ValueError: an `image_size` that the model cannot take, `resize=True` without a known size, a `weight` that is
            not above 0, a class twice, an empty list of layers.

    Example:
        >>> teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
        >>> logits = teacher({"pixel_values": torch.zeros(2, 3, 2, 2)})
        >>> logits.shape, logits.requires_grad
        (torch.Size([2, 3]), False)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str | None = None,
        revision: str | None = None,
        license: str | None = None,
        preprocessing: Preprocessing | BaseImageProcessor | None = None,
        resize: bool | None = None,
        image_size: int | tuple[int, int] | None = None,
        weight: float = 1.0,
        classes: Sequence[str | int | None] | None = None,
        layers: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None,
        samples: str = "own",
    ):
        if not isinstance(model, nn.Module):
            raise TypeError(f"a teacher must be a torch.nn.Module, got {type(model).__name__}")
        if model.training or any(parameter.requires_grad for parameter in model.parameters()):
            logger.info("The teacher %s is frozen and put into evaluation mode.", name or type(model).__name__)
        model = vision_side(model)
        self._model = model.requires_grad_(False).eval()
        self.name = name
        self.revision = revision
        self.license = license or stated_license(model)
        processor = preprocessing if isinstance(preprocessing, BaseImageProcessor) else None
        self.patches = Patches(model, processor) if takes_patches(model) else None
        if self.patches is not None and preprocessing is None:
            preprocessing = self.patches.processor
        self.preprocessing = Preprocessing.of(model if preprocessing is None else preprocessing)
        self.size = self._size(resize)
        self.image_size: tuple[int, int] | None = None
        self._extra: dict[str, Any] = {}
        self._parking: Parking | None = None
        if image_size is not None:
            self.set_image_size(image_size)
        self.channels = image_channels(model) or (self.preprocessing.channels if self.preprocessing else None)
        self._warned = False
        self.take_part(weight=weight, classes=classes, layers=layers, samples=samples)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike | nn.Module | Teacher,
        *,
        dtype: str | torch.dtype | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
        student: nn.Module | None = None,
        **settings: Any,
    ) -> Teacher:
        """Loads a teacher from the Hub, a folder or a module.

        A checkpoint whose config names a classification head is loaded with it, any other one as the bare model, and of
        a model of images and texts (CLIP) the vision model. Only safetensors weights are read, and code that comes with
        a repository runs only with `init_kwargs={"trust_remote_code": True}`.

        Args:
            source: A hub id ("org/name", "org/name@revision", "timm/name"), a folder in the layout of transformers or
                timm, a module (which is frozen in place), or a `Teacher` (which is returned).
            dtype: Data type of the weights, such as "bfloat16"; None: that of the checkpoint. A module or a `Teacher`
                is cast in place.
            init_kwargs: Keyword arguments for `from_pretrained`, where `source` is a hub id or a folder.
            student: Refuse a `source` that shares weights with this model, before it is frozen.
            settings: What the class takes beside the model: weight, classes, layers, samples, preprocessing, resize,
                image_size, license. Of a `Teacher`, the first four are changed in place.

        Raises:
            TypeError: `source` is none of these.
            ValueError: no such repository, revision or folder; no safetensors weights; weights that do not fill the
                model; an unknown `dtype`.
        """
        dtype = teacher_dtype(dtype)
        if isinstance(source, nn.Module | Teacher):
            model = source if isinstance(source, nn.Module) else source.model
            if student is not None:
                check_not_shared(student, model)
            teacher = source if isinstance(source, Teacher) else cls(source, **settings)
            if teacher is source:
                teacher.take_part(**settings)
            if isinstance(dtype, torch.dtype):
                teacher.model.to(dtype)
            return teacher
        if not isinstance(source, str | os.PathLike):
            raise TypeError(
                f"a teacher must be a hub id, a folder, a torch.nn.Module or a Teacher, got {type(source).__name__}"
            )
        loaded = load_pretrained(os.fspath(source), dtype=dtype, options=dict(init_kwargs or {}))
        found = {"name": loaded.name, "revision": loaded.revision, "preprocessing": loaded.preprocessing}
        return cls(loaded.model, **found | settings)

    def set_image_size(self, size: int | tuple[int, int]) -> None:
        """Has it see images of this size, in pixels: a side, or (height, width).

        Position embeddings are interpolated: by transformers' models at every call, by timm's once, in place. A model
        that takes patches (NaFlex) gets as many as such an image has.

        Raises:
            ValueError: not above 0, no multiple of the model's patches, or a model that takes one size only.
        """
        height, width = (size, size) if isinstance(size, int) else size
        self._extra = accept_image_size(self._model, (height, width), self.title)
        self.image_size = self.size = (height, width)
        if self.patches is not None:
            self.patches.count = (height // self.patches.side) * (width // self.patches.side)
            self.size = None  # its processor brings images to whole patches

    def compile(self, backend: str = "inductor") -> None:
        """Compiles the model in place, as `model.compile(backend=...)` does, unless it is compiled."""
        if not is_compiled(self._model):
            self._model.compile(backend=backend)

    def park(self, device: torch.device | str) -> None:
        """Keeps its weights on the CPU, and brings them to a device only while it runs."""
        self._parking = Parking(self._model, torch.device(device))

    def take_part(self, **settings: Any) -> None:
        """Changes its role among several teachers: weight, classes, layers, samples (see the class).

        Raises:
            TypeError: another setting: the others are for the class, with a module.
            ValueError: values that the class refuses, too.
        """
        for name in settings:
            if name not in PARTS:
                raise TypeError(f"{name!r} cannot be changed of a Teacher that exists (can be: {', '.join(PARTS)})")
        if "weight" in settings:
            self.weight = check_weight(settings["weight"])
        if "classes" in settings:
            self.classes = check_classes(settings["classes"])
        if "layers" in settings:
            self.layers = check_layers(settings["layers"])
        if "samples" in settings:
            check_choice("samples", settings["samples"], SAMPLES)
            self.samples = settings["samples"]

    @property
    def model(self) -> nn.Module:
        """The module, in evaluation mode."""
        if any(module.training for module in self._model.modules()):
            self._model.eval()
        return self._model

    @property
    def title(self) -> str:
        """Its name in messages: the hub id or folder, else the class."""
        return self.name or class_name(self._model)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of its weights."""
        return next((p.dtype for p in self._model.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        first = next(self._model.parameters(), None)
        return self._parking.device if self._parking else first.device if first is not None else torch.device("cpu")

    def __repr__(self) -> str:
        revision = f"@{self.revision[:8]}" if self.revision else ""
        return f"Teacher({self.title}{revision})"

    def __call__(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Runs the model, without gradients, on what `inputs_for` gave.

        Returns:
            The logits; None for a model without a head.
        """
        model = self.model
        with (
            self._parking or contextlib.nullcontext(),
            torch.no_grad(),
        ):  # not inference mode: what taps record here becomes a constant of an autograd function
            names, anything = forward_parameters(model)
            if set(inputs) - set(self._extra) <= set(names) or anything:
                outputs = model(**inputs)
            else:
                outputs = model(*inputs.values())
        return _logits(outputs, model)

    def taps(self, layers: Sequence[str]) -> LayerRecorder:
        """Taps on some of its layers, named as in `Taps`."""
        return Taps(self._model, layers)

    def inputs_for(self, inputs: Mapping[str, Any], preprocessing: Preprocessing | None = None) -> dict[str, Any]:
        """The teacher's inputs, from a batch of the student.

        Columns named `teacher_<name>` are meant for the teacher and are passed on as `<name>`, as they are. Where there
        are such columns, nothing else of the batch is passed on: a mask of the student's tokens says nothing about the
        teacher's. Otherwise the student's own columns are taken, labels left out, and `pixel_values` are brought to the
        teacher's normalisation, number of channels, size (where the teacher has one) and data type.

        Args:
            inputs: The batch, as the student gets it plus the columns for teachers.
            preprocessing: How the student's `pixel_values` were made; None: not known, they are taken as they are.

        Raises:
            ValueError: the batch has nothing that the teacher takes.
        """
        names, anything = forward_parameters(self._model)
        columns = {
            name: value
            for name, value in inputs.items()
            if "label" not in name and name not in _TARGETS and value is not None
        }
        own = {k.removeprefix(TEACHER_PREFIX): v for k, v in columns.items() if k.startswith(TEACHER_PREFIX)}
        shared = {k: v for k, v in columns.items() if not k.startswith(TEACHER_PREFIX)}
        check_images(self._model, own or shared, self.title)
        # What was made for the teacher comes alone
        taken = {k: v for k, v in own.items() if k in names} or {k: v for k, v in shared.items() if k in names}
        if not taken:  # a plain module, which calls its input what it likes
            taken = own if anything else dict(list(own.items())[:1])
            taken = taken or (shared if anything else dict(list(shared.items())[:1]))
        if not taken:
            raise ValueError(
                f"the batch has nothing that the teacher {self.title} takes: it has "
                f"{', '.join(inputs) or 'no columns'}, the teacher takes {', '.join(names)}"
            )
        if _IMAGES in taken and not own:
            taken |= self._converted(taken[_IMAGES], preprocessing)
        if self.patches is not None:
            taken = without_padding(taken)
        return {name: self._cast(value) for name, value in taken.items()} | self._extra

    def check_input(self, inputs: Mapping[str, Any], preprocessing: Preprocessing | None = None) -> None:
        """Runs the teacher once, to see whether it takes a batch.

        Args:
            inputs, preprocessing: As in `inputs_for`.

        Raises:
            ValueError: it does not; the message names what it was given.
        """
        own = self.inputs_for(inputs, preprocessing)
        self._check_tokens(own)
        try:
            self(own)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model raises on a shape that it cannot take
            given = ", ".join(f"{k} {tuple(v.shape)}" for k, v in own.items() if isinstance(v, Tensor))
            size = self.preprocessing.size if self.preprocessing is not None else None
            if _IMAGES in own and size is not None and tuple(own[_IMAGES].shape[-2:]) != size:
                hint = f" Its own image size is {size[0]} x {size[1]}: give Teacher(..., resize=True), or images of it."
            elif "input_ids" in names_of(self._model) and "input_ids" not in own:
                hint = " It reads text: give its tokens in a column teacher_input_ids."
            else:
                hint = ""
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"the teacher {self.title} does not take what it gets ({given}): {reason.rstrip('.')}.{hint}"
            ) from error

    def check_frozen(self) -> None:
        """Refuses a teacher that someone unfroze.

        Raises:
            ValueError: it has parameters that require gradients (named).
        """
        free = [name for name, parameter in self._model.named_parameters() if parameter.requires_grad]
        if free:
            raise ValueError(
                f"the teacher {self.title} has {len(free)} trainable parameter(s) ({some(free)}): a teacher is "
                "frozen. Call requires_grad_(False) on it, or give the trainer a copy"
            )

    def check_not_shared(self, student: nn.Module) -> None:
        """Refuses a student that holds weights of this teacher: see `check_not_shared` of this module."""
        check_not_shared(student, self._model, self.title)

    def _check_tokens(self, inputs: Mapping[str, Any]) -> None:
        tokens = inputs.get("input_ids")
        vocabulary = getattr(config_of(self._model), "vocab_size", None)
        # Looked up before the model runs: on a GPU, an index that does not exist takes the whole process down.
        if isinstance(tokens, Tensor) and isinstance(vocabulary, int) and tokens.numel() and tokens.max() >= vocabulary:
            raise ValueError(
                f"the teacher {self.title} knows {vocabulary} tokens and gets number {int(tokens.max())}: it has "
                "another tokenizer than the student. Give its own tokens in the columns teacher_input_ids and "
                "teacher_attention_mask"
            )

    def _size(self, resize: bool | None) -> tuple[int, int] | None:
        known = self.preprocessing.size if self.preprocessing is not None else None
        if resize is None:
            return fixed_image_size(self._model)
        if resize and known is None:
            raise ValueError(
                f"resize=True but the image size of the teacher {self.title} is not known: give "
                "preprocessing=Preprocessing(size=(height, width))"
            )
        return known if resize else None

    def _converted(self, images: Any, preprocessing: Preprocessing | None) -> dict[str, Any]:
        if not isinstance(images, Tensor) or images.dim() != 4:
            return {_IMAGES: images}
        known = self.preprocessing is not None and self.preprocessing.normalises
        told = preprocessing is not None and preprocessing.normalises
        if known and not told and not self._warned:
            self._warned = True
            logger.warning(
                "How the student's pixel_values were normalised is not known: the teacher %s gets them as they are. "
                "Give the student's image processor as processing_class, or a column teacher_pixel_values.",
                self.title,
            )
        if self.patches is not None:
            plain = convert_images(images, preprocessing, _PLAIN if told else None)
            return self.patches(plain, normalise=told)
        size, channels = self.size, self.channels
        return {_IMAGES: convert_images(images, preprocessing, self.preprocessing, size=size, channels=channels)}

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(self.dtype)
        return value


def _logits(outputs: Any, model: nn.Module) -> Tensor | None:
    if isinstance(outputs, Mapping):
        return outputs.get("logits")
    if isinstance(outputs, tuple | list):
        outputs = outputs[0] if outputs else None
    headless = getattr(model, "num_classes", None) == 0  # a timm model without a head gives pooled features
    return outputs if isinstance(outputs, Tensor) and outputs.dim() == 2 and not headless else None

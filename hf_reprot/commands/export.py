"""A student as an ONNX graph, checked against the student itself: what `hf-reprot export` runs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedConfig

from ..data.collator import ImageCollator
from ..hub.card import rebuild_card
from ..hub.facts import ExportFacts, Speed
from ..hub.record import RECORD_FILE, RunRecord
from ..hub.speed import measure_speed
from ..models.dense import dense_task, load_dense_student
from ..models.loading import explained, locate
from ..models.teacher import Teacher
from .evaluate import images_of, processor_of

__all__ = ["FILE", "export_student"]

FILE = "onnx/model.onnx"
TOLERANCE = 1e-3
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_OUTPUTS_AT_MOST = 8
_LARGE = 1_800_000_000  # bytes: a protocol buffer holds 2 GB


def export_student(
    source: str | os.PathLike,
    folder: str | os.PathLike | None = None,
    *,
    dataset: Any = None,
    samples: int = 16,
    tolerance: float = TOLERANCE,
    opset: int | None = None,
    image_column: str | None = None,
) -> ExportFacts:
    """Writes a student of images as ONNX, and compares it with the student on real images.

    The graph takes `pixel_values` (batch, channels, height, width), any batch, as the student's image processor makes
    them, in float32, and gives the student's outputs by their names (`logits`, ...). It lies where the Hub's
    libraries look for it, in `onnx/model.onnx` beside the weights. Size, speed and the comparison go into the record
    of the run, if there is one, and onto its card; a push of the folder takes the file along.

    Args:
        source: A student's folder, or a hub id.
        folder: Where `onnx/model.onnx` goes; None: the student's own folder.
        dataset: Images to compare on, as `load_image_dataset` takes them; None: cut-outs of the two photographs that
            come with scikit-learn.
        samples: How many images.
        tolerance: The largest difference between the outputs of both that is allowed, relative to the largest number of
            that output.
        opset: Version of ONNX's operators; None: torch's choice.
        image_column: Column of the images, where it is not found by name and type.

    Returns:
        What was measured.

    Raises:
        ValueError: the extra `onnx` is not installed; the student is an adapter, takes no images, or has no graph that
            torch can export; the graph gives other numbers (nothing is left behind then).
    """
    _check_installed()
    if samples < 1 or not tolerance > 0:
        raise ValueError(f"samples must be at least 1 and tolerance above 0, got {samples} and {tolerance}")
    if folder is None:
        if not Path(source).is_dir():
            raise ValueError(f"{source} is no folder on this machine: say with --output where onnx/model.onnx goes")
        folder = source
    model = _load(os.fspath(source)).float().eval()
    if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
        raise ValueError(f"{source} takes {model.main_input_name}: only students of images are exported")
    pixels = _pixels(processor_of(source), dataset, samples, image_column)
    return _export(model, pixels, Path(folder), tolerance, opset)


def _load(source: str) -> nn.Module:
    """The student with its head, whatever the head is for."""
    with explained(source, {}, what="student"):
        place = locate(source, {}, what="student")
        pinned = {} if place.revision is None else {"revision": place.revision}
        content = PreTrainedConfig.get_config_dict(place.path, **pinned)[0]
    return load_dense_student(source) if dense_task(content.get("architectures")) else Teacher.load(source).model


def _export(model: nn.Module, pixels: Tensor, folder: Path, tolerance: float, opset: int | None) -> ExportFacts:
    with torch.no_grad():
        names = _output_names(model(pixel_values=pixels[:1]))
        outputs = _Outputs(model, names)
        expected = outputs(pixels)
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name("_model.onnx")
    try:
        used = _write(outputs, pixels, names, waiting, opset)
        session = _session(waiting)
        found = session.run(names, {"pixel_values": pixels.numpy()})
        differences = {n: _difference(a.numpy(), b) for n, a, b in zip(names, expected, found, strict=True)}
        name, difference = max(differences.items(), key=lambda item: item[1])
        if not difference <= tolerance:  # not a number, either
            raise ValueError(
                f"the ONNX graph differs from the student: {name} by {difference:.2g} of its largest number on "
                f"{len(pixels)} images, where {tolerance:g} is allowed. Try another --opset, or a larger --tolerance"
            )
        waiting.replace(path)
    finally:
        waiting.unlink(missing_ok=True)
    facts = ExportFacts(
        file=FILE,
        bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        opset=used,
        images=len(pixels),
        tolerance=tolerance,
        difference=difference,
        runtime=f"onnxruntime {importlib.metadata.version('onnxruntime')}",
        speed=_speed(lambda x: session.run(names, {"pixel_values": x["pixel_values"].numpy()}), pixels),
        torch_speed=_speed(lambda x: model(**x), pixels),
    )
    _record(folder, facts)
    return facts


class _Outputs(nn.Module):
    """A model with its outputs in a tuple."""

    def __init__(self, model: nn.Module, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        found = self.model(pixel_values=pixel_values, return_dict=True)
        return tuple(found[name] for name in self.names)


def _output_names(outputs: Any) -> list[str]:
    named = outputs.items() if isinstance(outputs, Mapping) else ()
    names = [name for name, value in named if isinstance(value, Tensor) and value.dim() > 0][:_OUTPUTS_AT_MOST]
    if not names:
        raise ValueError("the student gives no tensors by name: give it as a model of transformers, or wrapped for it")
    return names


def _write(outputs: nn.Module, pixels: Tensor, names: list[str], path: Path, opset: int | None) -> int:
    """Writes the graph; the version of its operators."""
    import onnx

    size = sum(weight.numel() * weight.element_size() for weight in outputs.state_dict().values())
    if size > _LARGE:
        raise ValueError(f"the student's weights take {size / 1e9:.1f} GB, and a single ONNX file holds 2 GB at most")
    example = pixels[:2] if len(pixels) > 1 else pixels.repeat(2, 1, 1, 1)  # of one image, the batch would be fixed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                outputs,
                (example,),
                str(path),
                input_names=["pixel_values"],
                output_names=names,
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch's exporter has many kinds
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(f"torch cannot export the student: {reason}") from error
    return int(onnx.load(str(path)).opset_import[0].version)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as the student runs beside it
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference, relative to the largest number."""
    if expected.shape != found.shape:
        return float("inf")
    return float(np.abs(expected - found).max() / max(float(np.abs(expected).max()), 1e-12))


def _speed(forward: Any, pixels: Tensor) -> Speed:
    return measure_speed(forward, {"pixel_values": pixels})


def _pixels(processor: BaseImageProcessor, dataset: Any, samples: int, image_column: str | None) -> Tensor:
    if dataset is None:
        rows: list[Any] = [{"image": image} for image in _photographs(samples)]
        return ImageCollator(processor, label_column=None)(rows)["pixel_values"]
    images, name, column = images_of(dataset, image_column)
    if len(images) < 1:
        raise ValueError(f"{name} holds no image")
    rows = [images[i] for i in range(min(samples, len(images)))]
    return ImageCollator(processor, image_column=column, label_column=None)(rows)["pixel_values"]


def _photographs(count: int) -> list[Image.Image]:
    """Cut-outs of the photographs that scikit-learn brings along."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    places = np.random.default_rng(0)
    found = []
    for i in range(count):
        photograph, side = photographs[i % len(photographs)], int(places.integers(160, 400))
        left, top = (int(places.integers(0, edge - side)) for edge in photograph.size)
        found.append(photograph.crop((left, top, left + side, top + side)))
    return found


def _record(folder: Path, facts: ExportFacts) -> None:
    """Into the record of the run and onto its card, where there is one."""
    if not (folder / RECORD_FILE).is_file():
        return
    record = RunRecord.load(folder)
    record.exports = [facts]
    record.save(folder)
    rebuild_card(folder)


def _check_installed() -> None:
    missing = []
    for name in _PACKAGES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise ValueError(f"an export needs {', '.join(missing)}: pip install 'hf-reprot[onnx]'")

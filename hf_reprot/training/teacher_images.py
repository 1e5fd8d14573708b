"""Teachers made ready for a run: where they lie, the size of the images that they see, whether they are compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..cache.teacher import CachedTeacher
from ..config import OTTransferConfig
from ..data.preprocessing import Preprocessing, image_channels
from ..features.activations import Activation
from ..features.architecture import last_layer
from ..features.tables import evaluating
from ..features.taps import Taps
from ..hub.speed import dummy_batch
from ..models.sharding import place_teachers
from ..models.teacher import Teacher
from ..utils.messages import check_choice


def ready_teachers(trainer: Any) -> None:
    """Places, resizes and compiles the teachers of a trainer as its settings say.

    Raises:
        ValueError: as `place_teachers` and `settle_image_sizes`, or a backend that `torch.compile` does not have.
    """
    args = trainer.args
    place_teachers(trainer)
    settle_image_sizes(args, trainer.student(), trainer.teachers, trainer.preprocessing)
    if args.teacher_compile is None:
        return
    from torch._dynamo import list_backends  # seconds

    check_choice("teacher_compile", args.teacher_compile, list_backends(exclude_tags=()))
    for teacher in trainer.teachers:
        teacher.compile(args.teacher_compile)


def settle_image_sizes(
    args: OTTransferConfig, student: nn.Module, teachers: Sequence[Teacher], preprocessing: Preprocessing | None
) -> None:
    """Brings every teacher that has no size of its own to `teacher_image_size`.

    With "auto", it is the size at which a teacher's last layer with positions has as many, in height and width, as the
    student's: no position is averaged away when all of them are compared.

    Raises:
        ValueError: a teacher that cannot see images of that size, or, with "auto", models whose grids are not known or
            cannot be made equal.
    """
    wanted = args.teacher_image_size
    open_ones = [t for t in teachers if t.image_size is None and not isinstance(t, CachedTeacher)]
    if wanted is None or not open_ones:
        return
    if wanted != "auto":
        for teacher in open_ones:
            teacher.set_image_size(int(wanted))
        return
    size = preprocessing.size if preprocessing is not None else None
    channels = image_channels(student) or (preprocessing.channels if preprocessing is not None else None) or 3
    inputs = dummy_batch(student, size, channels, 2)
    if inputs is None or "pixel_values" not in inputs:
        raise ValueError(
            "teacher_image_size='auto' runs the student on an image of its own size, which is not known: give its "
            "image processor as processing_class, or the size in pixels"
        )
    with evaluating(student):
        grid = _grid(student, lambda: student(**inputs))
    for teacher in open_ones:
        _match_grid(teacher, grid, inputs, preprocessing)


def _match_grid(
    teacher: Teacher, grid: tuple[int, int], inputs: Mapping[str, Any], preprocessing: Preprocessing | None
) -> None:
    seen = teacher.inputs_for(inputs, preprocessing)
    if teacher.patches is not None:
        theirs = tuple(seen["spatial_shapes"][0].tolist())
        size = tuple(length * teacher.patches.side for length in grid)
    else:
        theirs = _grid(teacher.model, lambda: teacher(seen))
        size = tuple(round(n * side / there) for n, side, there in zip(grid, _size(seen), theirs, strict=True))
    if theirs != grid:
        teacher.set_image_size((size[0], size[1]))
        seen = teacher.inputs_for(inputs, preprocessing)
        theirs = _grid(teacher.model, lambda: teacher(seen))
    if theirs != grid:
        raise ValueError(
            f"teacher_image_size='auto': at {size[0]} x {size[1]} pixels the teacher {teacher.title} has {theirs[0]} x "
            f"{theirs[1]} positions, and the student {grid[0]} x {grid[1]}: give a size in pixels, or leave it out"
        )


def _size(seen: Mapping[str, Any]) -> tuple[int, int]:
    height, width = seen["pixel_values"].shape[-2:]
    return height, width


def _grid(model: nn.Module, run: Any) -> tuple[int, int]:
    """(height, width) of the last layer with positions."""
    name = last_layer(model, "all")
    taps = Taps(model, [name])
    taps.close()
    with torch.no_grad(), taps.recording():
        run()
    found = _positions(taps.take()[name])
    if found is None:
        raise ValueError(
            f"teacher_image_size='auto' compares grids, and {name} of {type(model).__name__} has none that is known: "
            "give a size in pixels"
        )
    return found


def _positions(layer: Activation) -> tuple[int, int] | None:
    if layer.layout in ("nchw", "nhwc"):
        start = layer.layout.index("h")
        return layer.tensor.shape[start], layer.tensor.shape[start + 1]
    return layer.grid

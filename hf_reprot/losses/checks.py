"""What every loss asks of the two sides that it compares."""

from __future__ import annotations

from torch import Tensor


def check_sides(student: Tensor, teacher: Tensor, shape: str, dimensions: int) -> None:
    """Refuses tensors that cannot be compared sample by sample.

    Args:
        student, teacher: What a loss is given.
        shape: Their legal shape, in words.
        dimensions: How many dimensions that is.

    Raises:
        ValueError: another number of dimensions, or different numbers of samples.
        TypeError: not of a floating point dtype.
    """
    for side, x in (("student", student), ("teacher", teacher)):
        if x.ndim != dimensions:
            raise ValueError(f"{side} must have shape {shape}, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"{side} must be of a floating point dtype, got {x.dtype}")
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"student has {student.shape[0]} samples and teacher {teacher.shape[0]}: "
            "row k of both must come from the same sample"
        )

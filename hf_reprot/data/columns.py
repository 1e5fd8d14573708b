"""Which columns of a batch are the student's and which the teachers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Columns of a batch whose names begin so are meant for teachers.
TEACHER_PREFIX = "teacher_"


def columns_of_student(inputs: Mapping[str, Any], but: Sequence[str] = ()) -> dict[str, Any]:
    """What a batch holds for the student, without the columns for teachers and those named in `but`."""
    return {n: value for n, value in inputs.items() if not n.startswith(TEACHER_PREFIX) and n not in but}

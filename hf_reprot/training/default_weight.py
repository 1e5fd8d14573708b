"""The weight of transport where none is given: it depends on what the teacher knows."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from ..config import OTTransferConfig
from ..modules import class_names
from ..roles import columns_by_name
from ..teacher import Teacher

logger = logging.getLogger("hf_reprot")

KNOWS_TASK, OTHERWISE = 10.0, 1.0  # docs/study.md: the best of 2 to 250, and of 0.08 to 50


def settle_ot_weight(args: OTTransferConfig, student: nn.Module, teachers: Sequence[Teacher]) -> None:
    """Puts a number where `ot_weight` was left open.

    In the study of this package (docs/study.md) 10 was the best weight, or level with it, wherever the teacher knew the
    task or no label took part; where a teacher that never saw the task stands beside the task's loss, 1 or less was.

    Args:
        args: The settings; `ot_weight` is set if it is None.
        student: The student, unwrapped.
        teachers: Its teachers.
    """
    if args.ot_weight is not None:
        return
    knows = trains_on_teacher_task(args, student, teachers)
    args.ot_weight = KNOWS_TASK if knows else OTHERWISE
    if teachers:
        reason = "the teacher knows the task" if knows else "nothing says that the teacher knows the task"
        logger.info("ot_weight is %g: %s. Give ot_weight to choose it.", args.ot_weight, reason)


def trains_on_teacher_task(args: OTTransferConfig, student: nn.Module, teachers: Sequence[Teacher]) -> bool:
    """Whether the student learns what a teacher knows: no labels, its logits, or classes that both have by name."""
    if args.task_weight == 0 or args.kd_weight > 0:
        return True
    ours = class_names(student)
    return any(teacher.classes or _shares_classes(class_names(teacher.model), ours) for teacher in teachers)


def _shares_classes(theirs: Sequence[str] | None, ours: Sequence[str] | None) -> bool:
    return theirs is not None and ours is not None and columns_by_name(theirs, ours) is not None

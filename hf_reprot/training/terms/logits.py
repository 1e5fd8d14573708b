"""`kd_weight`: distillation of the teachers' logits."""

from __future__ import annotations

from .base import Batch, Term, TermContext, TermOutput

_NO_LOGITS = "kd_weight is above 0 but the student has no logits: give a student with a head, or set kd_weight=0"


class LogitTerm(Term):
    """`LogitDistillation`, or with `kd_method="dkd"` `DecoupledDistillation`, from one or several teachers."""

    name = "logits"
    needs = frozenset({"logits"})
    of_samples = False  # its own log is weighed, too

    def __init__(self, context: TermContext):
        super().__init__(context)
        self.teachers = context.teachers
        self.logits = context.logits

    def __call__(self, batch: Batch) -> TermOutput:
        """See `Term`."""
        if batch.logits is None:
            raise ValueError(_NO_LOGITS)
        loss, logs = self.logits(batch.logits, batch.teacher_logits, batch.inputs, batch.labelled)
        weight = self.config.kd_weight * batch.share.samples
        return TermOutput(weight * loss, logs | {"kd_loss": batch.share.samples * logs["kd_loss"]})

    def check(self, batch: Batch) -> None:
        """Refuses teachers whose logits do not fit the student's.

        Raises:
            ValueError: no head, or another number of classes.
        """
        student, found = batch.logits, batch.teacher_logits
        if student is None:
            raise ValueError(_NO_LOGITS)
        count = student.shape[-1]
        for i, (teacher, logits) in enumerate(zip(self.teachers, found, strict=True)):
            outputs = self.logits.outputs(i, count)
            if logits is None and all(other is None for other in found):
                raise ValueError(f"kd_weight is above 0 but teacher {teacher.title} has no head: set kd_weight=0")
            if outputs is None or logits is None:
                continue
            if teacher.classes is not None and logits.shape[-1] != outputs:
                raise ValueError(
                    f"the teacher {teacher.title} has {logits.shape[-1]} outputs and {outputs} classes are given: give "
                    "one for each output, in their order (None for an output that the student has no class for)"
                )
            if logits.shape != (*student.shape[:-1], outputs):
                raise ValueError(
                    f"kd_weight is above 0 but teacher {teacher.title} has {logits.shape[-1]} classes and the student "
                    f"{count}: set kd_weight=0 or use a teacher of the student's task; or say which of the student's "
                    "classes its outputs stand for (Teacher.load(..., classes=[...]); an empty list leaves its logits "
                    "out)"
                )

"""Settings about the models: what the student is trained in and what is kept of it, how teachers are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.messages import check_choice
from ..utils.settings import setting as _setting
from .precision import STUDENT_DTYPES


@dataclass
class ModelSettings:
    """The settings of `OTTransferConfig` that are about models; it says what they mean."""

    student_dtype: str | None = _setting(
        None, 'Data type to train in; left out: float32 if it is half; "auto": its own.'
    )
    teacher_model_init_kwargs: dict | str | None = _setting(
        None, "Keyword arguments for from_pretrained of a teacher given by name (JSON on the command line)."
    )
    teacher_dtype: str | None = _setting(None, 'Data type to load teachers in, such as "bfloat16".')
    teacher_sharded: bool = _setting(
        False, "Shard each teacher's weights over all processes; every forward pass gathers them block by block."
    )
    ema_decay: float | None = _setting(
        None, "Keep an exponential moving average of the student's weights: it is evaluated, saved and pushed."
    )

    def check_model_settings(self) -> None:
        """Refuses values that these settings cannot have.

        Raises:
            ValueError: such a value.
        """
        check_choice("student_dtype", "auto" if self.student_dtype is None else self.student_dtype, STUDENT_DTYPES)
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), such as 0.999, got {self.ema_decay}")

"""Settings about the models: what the student is trained in and what is kept of it, how teachers are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..utils.messages import check_choice
from ..utils.settings import setting as _setting
from .names import STUDENT_DTYPES


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
    teacher_image_size: int | str | None = _setting(
        None, 'Side of the images that teachers see, in pixels, or "auto": so that both grids are equal.'
    )
    teacher_compile: str | None = _setting(None, 'Compile teachers with this backend of torch.compile ("inductor").')
    teacher_offload: bool = _setting(False, "Keep teachers on the CPU, and on the device only while they run.")
    teacher_sharded: bool = _setting(
        False, "Shard each teacher's weights over all processes; every forward pass gathers them block by block."
    )
    ema_decay: float | None = _setting(
        None, "Keep an exponential moving average of the student's weights: it is evaluated, saved and pushed."
    )

    def check_model_settings(self) -> None:
        """Refuses values that these settings cannot have, and brings numbers and words given as text into their types.

        Raises:
            ValueError: such a value.
        """
        size: Any = self.teacher_image_size
        number = int(size) if str(size).isdecimal() and not isinstance(size, bool) else 0
        if size not in (None, "auto") and number < 1:
            raise ValueError(f'teacher_image_size must be a number of pixels or "auto", got {size!r}')
        self.teacher_image_size = number or size
        said = {"true": "inductor", "false": None, "none": None}
        self.teacher_compile = said.get(str(self.teacher_compile).lower(), self.teacher_compile)
        check_choice("student_dtype", "auto" if self.student_dtype is None else self.student_dtype, STUDENT_DTYPES)
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), such as 0.999, got {self.ema_decay}")

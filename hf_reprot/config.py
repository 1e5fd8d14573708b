"""Every setting of a transfer run: `transformers.TrainingArguments` and what transport adds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from transformers import TrainingArguments

from .settings.data import DataSettings
from .settings.models import ModelSettings
from .settings.transfer import TransferSettings


@dataclass
class OTTransferConfig(TransferSettings, TrainingArguments):
    """Settings of `OTTransferTrainer`: those of `transformers.TrainingArguments`, and of `TransferSettings`.

    The loss of a step is

        task_weight * task + ot_weight * (weighted mean over layer pairs of W) + kd_weight * KD + l2sp_weight * L2-SP
        + feature_weight * (weighted mean over layer pairs of feature_loss) + delta_weight * DELTA + bss_weight * BSS

    `TransferSettings` says what each setting is; docs/how-to/settings.md, which to choose for which job.

    Raises:
        ValueError: a value that is not legal, or settings that do not go together.
    """

    # A list-valued field that a string may stand for, as in `layer_pairs="last"`.
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "teacher_model_init_kwargs"]  # noqa: RUF012

    def __post_init__(self):
        super().__post_init__()
        self.check()

    @classmethod
    def transfer_fields(cls) -> list[str]:
        """Names of the settings that this class adds to `TrainingArguments`."""
        inherited = {f.name for f in fields(TrainingArguments)}
        own = [f.name for f in fields(cls) if f.name not in inherited]  # those of a room of their own come last
        grouped = [f.name for group in (ModelSettings, DataSettings) for f in fields(group)]
        return [*(name for name in own if name not in grouped), *grouped]

    def transfer_settings(self) -> dict[str, Any]:
        """The settings that this class adds, by name: what a card or a log shows of a run."""
        return {name: getattr(self, name) for name in self.transfer_fields()}

"""Every setting of a transfer run: `transformers.TrainingArguments` and what transport adds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from .choices import check_choice
from .losses.transport import DEAD_NEURONS
from .ot.cost import COSTS
from .ot.solve import METHODS

POSITIONS = ("pooled", "all")
TOKENS = ("auto", "class", "patches", "all")


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata={"help": help, **metadata})
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class OTTransferConfig(TrainingArguments):
    """Settings of `OTTransferTrainer`: those of `transformers.TrainingArguments`, and the ones below.

    The loss of a step is

        task_weight * task + ot_weight * (weighted mean over layer pairs of W) + kd_weight * KD + l2sp_weight * L2-SP

    > Parameters that weigh the terms

        task_weight: Weight of the student's own loss on the labels. 0 trains without labels.
        ot_weight: Weight of the transport term.
        ot_warmup_steps: Steps over which the transport weight rises linearly from 0; a number below 1 is a share of
            all steps.
        kd_weight: Weight of logit distillation.
        kd_temperature: Temperature of logit distillation.
        l2sp_weight: Weight of the decay toward the pretrained weights.

    > Parameters that choose what is compared

        layer_pairs: "last", "stages", or a list of "student_layer=teacher_layer" or of
            {student, teacher, weight, teacher_index}.
        ot_positions: "pooled" (one sample an image or text) or "all" (every position is a sample).
        ot_tokens: Which tokens of a transformer: "auto", "class", "patches" or "all".

    > Parameters that control the transport

        ot_method, ot_cost, ot_standardize, ot_relative_epsilon, ot_epsilon, ot_debiased, ot_tolerance,
        ot_max_iterations, ot_dead_neurons: as in `RepresentationTransport`.
        plan_momentum: 0 solves the plan on the batch; above 0 on moments carried over steps.
        ot_global_batch: Match neurons on the samples of all processes.
        ot_nonfinite_limit: Steps in a row with a non-finite transport term after which training stops with an error.

    > Parameters that control the teacher

        teacher_model_init_kwargs: Keyword arguments for `from_pretrained` of a teacher given by name.
        teacher_dtype: Data type in which a teacher is loaded.
    """

    task_weight: float = _setting(1.0, "Weight of the student's own loss on the labels; 0 trains without labels.")
    ot_weight: float = _setting(1.0, "Weight of the transport term.")
    ot_warmup_steps: float = _setting(
        0, "Steps over which the transport weight rises linearly from 0; below 1: a share of all steps."
    )
    kd_weight: float = _setting(0.0, "Weight of logit distillation (KL at kd_temperature).")
    kd_temperature: float = _setting(2.0, "Temperature of logit distillation.")
    l2sp_weight: float = _setting(0.0, "Weight of ||w - w0||^2 to the weights that training starts from (L2-SP).")

    layer_pairs: list[str] = _setting(
        ["last"],
        'Layers to match: "last" (the representation before the head), "stages", or student=teacher, each a module '
        'path (as in "layer4=vit.layers.11"), "stage:i" or "block:i". Behind a path, ":input" takes what goes into the '
        'module, and ":nchw", ":nhwc" or ":prefixN" says what its axes are where the model does not show it.',
    )
    ot_positions: str = _setting(
        "pooled", 'Samples: "pooled" (one an image or text) or "all" (every position).', choices=list(POSITIONS)
    )
    ot_tokens: str = _setting(
        "auto",
        'Tokens of a transformer: "auto" (the class token where the layer feeds a head that reads it, else the '
        'patches), "class", "patches" or "all".',
        choices=list(TOKENS),
    )

    ot_method: str = _setting(
        "sinkhorn",
        'How neurons are matched: "sinkhorn", "proximal", "exact", or a control: "identity", "random", "independent".',
        choices=list(METHODS),
    )
    ot_cost: str = _setting("sqeuclidean", "Ground cost between two neurons.", choices=list(COSTS))
    ot_standardize: bool = _setting(True, "Bring every neuron to zero mean and unit variance before comparing.")
    ot_relative_epsilon: float | None = _setting(
        None, "Entropic (proximal) strength in units of the pair's mean cost; default 0.01 (0.2)."
    )
    ot_epsilon: float | None = _setting(None, "The same in units of the cost; overrides ot_relative_epsilon.")
    ot_debiased: bool = _setting(False, "Use the Sinkhorn divergence: the value less half of the two self terms.")
    ot_tolerance: float = _setting(1e-3, "L1 error of the marginals at which the solver stops.")
    ot_max_iterations: int = _setting(1000, "Sweeps of the solver at most.")
    ot_dead_neurons: str = _setting(
        "keep", '"keep", or "ignore": neurons constant over the samples get weight 0.', choices=list(DEAD_NEURONS)
    )
    plan_momentum: float = _setting(
        0.0, "0: the plan comes from the batch; in (0, 1): from moments carried over steps with this momentum."
    )
    ot_global_batch: bool = _setting(True, "Match neurons on the samples of all processes, not on each one's own.")
    ot_nonfinite_limit: int = _setting(
        10, "Steps in a row with a non-finite transport term after which training stops with an error."
    )

    teacher_model_init_kwargs: dict | str | None = _setting(
        None, "Keyword arguments for from_pretrained of a teacher given by name (JSON on the command line)."
    )
    teacher_dtype: str | None = _setting(None, 'Data type in which a teacher is loaded, such as "bfloat16".')

    # A list-valued field that a string may stand for, as in `layer_pairs="last"`.
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "teacher_model_init_kwargs"]  # noqa: RUF012

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.layer_pairs, str | dict):
            self.layer_pairs = [self.layer_pairs]
        if not self.layer_pairs:
            raise ValueError('layer_pairs is empty: give "last", "stages" or a list of student=teacher paths')
        for name in ("task_weight", "ot_weight", "kd_weight", "l2sp_weight", "ot_warmup_steps"):
            self._check_number(name, low=0)
        self._check_number("kd_temperature", low=0, open_low=True)
        self._check_number("ot_tolerance", low=0, open_low=True)
        for name in ("ot_relative_epsilon", "ot_epsilon"):
            if getattr(self, name) is not None:
                self._check_number(name, low=0, open_low=True)
        for name in ("ot_max_iterations", "ot_nonfinite_limit"):
            self._check_number(name, low=1)
        if not 0 <= self.plan_momentum < 1:
            raise ValueError(f"plan_momentum must lie in [0, 1), got {self.plan_momentum}")
        check_choice("ot_positions", self.ot_positions, POSITIONS)
        check_choice("ot_tokens", self.ot_tokens, TOKENS)
        check_choice("ot_method", self.ot_method, METHODS)
        check_choice("ot_cost", self.ot_cost, COSTS)
        check_choice("ot_dead_neurons", self.ot_dead_neurons, DEAD_NEURONS)
        if self.ot_debiased and self.ot_method != "sinkhorn":
            raise ValueError(f"ot_debiased needs ot_method='sinkhorn', got ot_method={self.ot_method!r}")
        if self.ot_positions == "all" and self.ot_tokens == "class":
            raise ValueError("ot_tokens='class' is one sample an image: it goes with ot_positions='pooled'")
        if self.task_weight == self.ot_weight == self.kd_weight == 0:
            raise ValueError("task_weight, ot_weight and kd_weight are all 0: nothing is left to learn from")

    def _check_number(self, name: str, *, low: float, open_low: bool = False) -> None:
        value = getattr(self, name)
        legal = "above" if open_low else "at least"
        if not math.isfinite(value) or value < low or (open_low and value == low):
            raise ValueError(f"{name} must be a finite number {legal} {low}, got {value}")

    def transport_settings(self) -> dict[str, Any]:
        """The keyword arguments of `RepresentationTransport` that these settings describe."""
        return {
            "cost": self.ot_cost,
            "standardize": self.ot_standardize,
            "method": self.ot_method,
            "relative_epsilon": self.ot_relative_epsilon,
            "epsilon": self.ot_epsilon,
            "debiased": self.ot_debiased,
            "tolerance": self.ot_tolerance,
            "max_iterations": self.ot_max_iterations,
            "dead_neurons": self.ot_dead_neurons,
            "global_batch": self.ot_global_batch,
        }

    @classmethod
    def transfer_fields(cls) -> list[str]:
        """Names of the settings that this class adds to `TrainingArguments`."""
        inherited = {f.name for f in fields(TrainingArguments)}
        return [f.name for f in fields(cls) if f.name not in inherited]

    def transfer_settings(self) -> dict[str, Any]:
        """The settings that this class adds, by name: what a card or a log shows of a run."""
        return {name: getattr(self, name) for name in self.transfer_fields()}

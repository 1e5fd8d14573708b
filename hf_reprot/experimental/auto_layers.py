"""`layer_pairs="auto"`: layer pairs found by transport between layers, before the first step and anew since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ..config import OTTransferConfig
from ..data.columns import columns_of_student
from ..features.matching import LayerCosts, LayerPlan, candidate_layers, layer_costs, plan_layers
from ..features.pairs import LayerPair
from ..features.paths import unwrap
from ..features.tables import TappedModel, pooled_tables
from ..features.taps import Taps
from ..losses.collective import gather_rows, world_size
from ..training.terms.base import Batch, TermContext, TermOutput, TrainingLoop
from ..training.terms.transport import TransportTerm
from .inverse.learned_cost import as_in_training, unchanged_generators

# Blocks of a model that are compared, at most: those of deeper ones at even distances.
MOST_BLOCKS = 12
_PREFIX = "layers."


class AutoLayers:
    """The plans between the student's layers and each teacher's, and the pairs that follow from them.

    Experimental. The plan of a student with new random weights follows noise (its depth correlation was near 0 in
    `studies/experimental/distil_auto_layers.py`, with a prior on the order 0.98), and neither taught better there than
    pairs picked by hand; `layer_pairs="last"` taught best. Where both sides are trained, layers do find each other
    (`studies/experimental/match_layers.py`).

    Args:
        config: The settings.
        student: The unwrapped student.
        teachers: The teachers' modules.

    Raises:
        ValueError: a model whose blocks are not known.
    """

    def __init__(self, config: OTTransferConfig, student: nn.Module, teachers: Sequence[nn.Module]):
        self.config = config
        models = [unwrap(student), *map(unwrap, teachers)]
        self.student_layers, *self.teacher_layers = (
            candidate_layers(model, positions=config.ot_positions, most=MOST_BLOCKS) for model in models
        )
        self.plans: list[LayerPlan] = []

    def first_pairs(self) -> list[LayerPair]:
        """The last layers of both sides: what stands there until the first plan."""
        return [LayerPair(self.student_layers[-1], names[-1], 1.0, i) for i, names in enumerate(self.teacher_layers)]

    def pairs(self) -> list[LayerPair]:
        """The pairs that carry mass in the plans; every teacher counts the same."""
        return [pair for i, plan in enumerate(self.plans) for pair in plan.pairs(i)]

    def keep_reached(self, reached: Sequence[str]) -> None:
        """Leaves out the student's layers that no gradient can reach (everything up to them is frozen).

        Raises:
            ValueError: none would be left.
        """
        kept = [name for name in self.student_layers if name in reached]
        if not kept:
            raise ValueError(
                'layer_pairs="auto": no gradient can reach any of the student\'s layers, so that transport would train '
                "nothing: unfreeze some, or set ot_weight=0"
            )
        self.student_layers = kept

    def solve(self, student: Sequence[Tensor], teachers: Sequence[Sequence[Tensor]]) -> None:
        """Makes the plans anew. Collective: all processes get the plans of the first one.

        Args:
            student: Tables (n, d) of the student's candidate layers, of all processes' samples.
            teachers: The same of each teacher.
        """
        config, plans = self.config, []
        for tables, names in zip(teachers, self.teacher_layers, strict=True):
            shape = (2, len(self.student_layers), len(names))
            found = torch.zeros(shape, dtype=torch.float64, device=student[0].device)
            if world_size() == 1 or dist.get_rank() == 0:
                costs = layer_costs(student, tables)
                found.copy_(torch.stack([costs.cost, costs.chance]))
            if world_size() > 1:
                dist.broadcast(found, 0)
            cost = LayerCosts(*found.cpu()).relative()
            plans.append(
                plan_layers(
                    cost, self.student_layers, names, order_prior=config.layer_order_prior, keep=config.layer_keep
                )
            )
        self.plans = plans

    def logs(self) -> dict[str, float]:
        """What a line of the log shows of the plans: means over the teachers."""
        numbers = ("value", "entropy", "depth_correlation")
        means = {name: torch.tensor([getattr(plan, name) for plan in self.plans]).nanmean() for name in numbers}
        return {f"layers_{name}": float(mean) for name, mean in means.items() if torch.isfinite(mean)}

    def state_dict(self) -> dict[str, Tensor]:
        """The plans and which of the student's layers take part, for a checkpoint; empty before the first plan."""
        state: dict[str, Tensor] = {}
        for i, plan in enumerate(self.plans):
            state |= {f"{_PREFIX}{i}.plan": plan.plan, f"{_PREFIX}{i}.cost": plan.cost}
        if self.plans:
            names = "\n".join(self.student_layers).encode()
            state[f"{_PREFIX}student"] = torch.frombuffer(bytearray(names), dtype=torch.uint8)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            ValueError: the checkpoint holds no plans, or those of other layers.
        """
        if f"{_PREFIX}student" not in state:
            raise ValueError(
                'layer_pairs="auto", but the checkpoint holds no plan between layers: resume with the layer_pairs that '
                "it was written with, or start a new run"
            )
        names = bytes(state[f"{_PREFIX}student"].tolist()).decode().split("\n")
        plans = []
        for i, theirs in enumerate(self.teacher_layers):
            plan, cost = (state.get(f"{_PREFIX}{i}.{part}") for part in ("plan", "cost"))
            known = plan is not None and tuple(plan.shape) == (len(names), len(theirs))
            if plan is None or cost is None or not known or not set(names) <= set(self.student_layers):
                raise ValueError(
                    'layer_pairs="auto": the checkpoint holds a plan between other layers: resume with the student and '
                    "the teachers that it was written with, or start a new run"
                )
            plans.append(LayerPlan(plan.cpu(), cost.cpu(), names, theirs))
        self.student_layers, self.plans = names, plans


class AutoLayersTransport(TransportTerm):
    """Transport between layer pairs that are found by transport between layers.

    The samples that layers are measured on are read once, when training begins, and kept: unaugmented images, the same
    after a resume. The student runs on them as in training, without gradients; its buffers and the global RNG state are
    restored.

    Attributes:
        auto: The candidates and the present plans between layers.
    """

    def __init__(self, context: TermContext):
        if context.sharded:
            raise ValueError(
                'layer_pairs="auto" runs the bare student to measure its layers, which FSDP and DeepSpeed do not '
                'allow: train with DDP, or name the pairs ("last", "stages", student=teacher)'
            )
        self.auto = AutoLayers(context.config, context.student, [teacher.model for teacher in context.teachers])
        context.layers.replace(self.auto.first_pairs())
        super().__init__(context)
        self.teachers, self.preprocessing = context.teachers, context.preprocessing
        self._batches: list[Mapping[str, Any]] = []
        self._teacher_tables: list[list[Tensor]] = []

    def __call__(self, batch: Batch) -> TermOutput | None:
        """See `Term`."""
        output = super().__call__(batch)
        if output is not None:
            output.logs |= {name: output.loss.new_full((), value) for name, value in self.auto.logs().items()}
        return output

    def on_train_begin(self, loop: TrainingLoop) -> None:
        """Reads the samples and runs the teachers."""
        count = -(-self.config.layer_samples // loop.batch_size)
        with unchanged_generators():
            torch.manual_seed(loop.seed)  # the same batches after a resume
            self._batches = list(loop.batches(count, augmented=False))
        if not self._batches:
            raise ValueError('layer_pairs="auto" needs training data to look at, and the data loader gave no batch')
        self._teacher_tables = []
        for teacher, names in zip(self.teachers, self.auto.teacher_layers, strict=True):
            parts = []
            with TappedModel(teacher.model, names) as tapped:
                for inputs in self._batches:
                    with loop.autocast():
                        _, caught = tapped.run(partial(teacher, teacher.inputs_for(dict(inputs), self.preprocessing)))
                    mask = inputs.get("teacher_attention_mask", inputs.get("attention_mask"))
                    parts.append(pooled_tables(caught, names, self.config.ot_tokens, mask))
            self._teacher_tables.append(_joined(parts))

    def on_step_begin(self, loop: TrainingLoop) -> None:
        """The first plan between layers, or one that is due."""
        auto = self.auto
        if auto.plans and loop.step % self.config.layer_refresh_steps:
            return
        if not auto.plans:
            auto.keep_reached(self._reached_layers(loop))
        auto.solve(self._student_tables(loop), self._teacher_tables)
        self._take_plans()

    def _take_plans(self) -> None:
        """The pairs of the present plans; from now on, all of the student's candidates are recorded."""
        self.student_layers, self.layer_plans = self.auto.student_layers, self.auto.plans
        self.layers.replace(self.auto.pairs())

    def _reached_layers(self, loop: TrainingLoop) -> list[str]:
        taps = Taps(loop.student, self.auto.student_layers)
        with unchanged_generators(), as_in_training(loop.student), torch.enable_grad(), taps.recording():
            loop.student(**columns_of_student(self._batches[0], loop.label_names))
        reached = taps.reached()
        taps.close()
        return reached

    def _student_tables(self, loop: TrainingLoop) -> list[Tensor]:
        student, names, parts = loop.student, self.auto.student_layers, []
        taps = Taps(student, list(names))
        with unchanged_generators(), as_in_training(student):
            torch.manual_seed(loop.seed)
            for inputs in self._batches:
                with torch.no_grad(), taps.recording(), loop.autocast():
                    student(**columns_of_student(inputs, loop.label_names))
                parts.append(pooled_tables(taps.take(), names, self.config.ot_tokens, inputs.get("attention_mask")))
        taps.close()
        return _joined(parts)

    def state_dict(self) -> dict[str, Tensor]:
        """The plans between layers, and the carried moments."""
        return self.auto.state_dict() | super().state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Restores what `state_dict` gave.

        Raises:
            ValueError: the checkpoint holds no plans, or those of other layers.
        """
        self.auto.load_state_dict(state)
        self._take_plans()
        super().load_state_dict(state, device)


def _joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """(n, d) of each layer from the tables of each batch, with all processes' samples in the order of one process."""
    return [torch.cat([gather_rows(batch) for batch in layer]) for layer in zip(*parts, strict=True)]

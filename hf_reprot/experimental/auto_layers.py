"""`layer_pairs="auto"`: layer pairs found by transport between layers, before the first step and anew since."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ..config import OTTransferConfig
from ..data.columns import columns_of_student
from ..features.matching import LayerCosts, LayerPlan, candidate_layers, layer_costs, plan_layers, pooled_tables
from ..features.pairs import LayerPair
from ..features.paths import unwrap
from ..features.taps import Taps
from ..losses.collective import gather_rows, world_size
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
        state = {}
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
            if not known or not set(names) <= set(self.student_layers):
                raise ValueError(
                    'layer_pairs="auto": the checkpoint holds a plan between other layers: resume with the student and '
                    "the teachers that it was written with, or start a new run"
                )
            plans.append(LayerPlan(plan.cpu(), cost.cpu(), names, theirs))
        self.student_layers, self.plans = names, plans


class AutoLayersMixin:
    """For a trainer with an objective (`transfer`): measures its layers and gives it the pairs that were found.

    The samples that layers are measured on are read once, when training begins, and kept: unaugmented images, the same
    after a resume. The student runs on them as in training, without gradients and with its buffers and every random
    generator as they were before after it.
    """

    _layer_batches: list[dict[str, Any]]
    _teacher_tables: list[list[Tensor]]

    def _prepare_layers(self) -> None:
        """Reads the samples and runs the teachers, when training begins."""
        auto = self.transfer.layers
        if auto is None:
            return
        processes = self.accelerator.num_processes
        count = -(-self.args.layer_samples // (self.args.train_batch_size * processes))
        with unchanged_generators(), self._collating(training=True, evaluation=True):
            torch.manual_seed(self.args.seed)  # the same batches after a resume
            loader = self.get_train_dataloader()
            try:
                self._layer_batches = [self._prepare_inputs(batch) for batch in itertools.islice(loader, count)]
            finally:
                if hasattr(loader, "end"):  # accelerate's, which counts the loaders that are being read
                    loader.end()
        if not self._layer_batches:
            raise ValueError('layer_pairs="auto" needs training data to look at, and the data loader gave no batch')
        self._teacher_tables = []
        for teacher, names in zip(self.transfer.teachers, auto.teacher_layers, strict=True):
            taps, parts = Taps(teacher.model, names), []
            for inputs in self._layer_batches:
                with torch.no_grad(), taps.armed(), self.accelerator.autocast():
                    teacher(teacher.inputs_for(dict(inputs), self.transfer.preprocessing))
                mask = inputs.get("teacher_attention_mask", inputs.get("attention_mask"))
                parts.append(pooled_tables(taps.take(), names, self.args.ot_tokens, mask))
            taps.close()
            self._teacher_tables.append(_joined(parts))

    def _refresh_layers(self) -> None:
        """At the beginning of a step: the first plan, or one that is due."""
        auto = self.transfer.layers
        if auto is None or (auto.plans and self.state.global_step % self.args.layer_refresh_steps):
            return
        if not auto.plans:
            auto.keep_reached(self._reached_layers(auto.student_layers))
        auto.solve(self._student_tables(auto.student_layers), self._teacher_tables)
        self._take_layers()

    def _take_layers(self) -> None:
        """Gives the objective the pairs of the present plans."""
        before = self.transfer.pairs
        self.transfer.set_pairs(self.transfer.layers.pairs())
        if [(p.student, p.teacher) for p in before] != [(p.student, p.teacher) for p in self.transfer.pairs]:
            self._watch.load_state_dict({})  # counts of other pairs
        self._watch.names = self.transfer.pair_names()

    def _student_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return columns_of_student(inputs, self.label_names)

    def _reached_layers(self, names: Sequence[str]) -> list[str]:
        student, taps = self.transfer.student, Taps(self.transfer.student, list(names))
        with unchanged_generators(), as_in_training(student), torch.enable_grad(), taps.armed():
            student(**self._student_inputs(self._layer_batches[0]))
        reached = taps.reached()
        taps.close()
        return reached

    def _student_tables(self, names: Sequence[str]) -> list[Tensor]:
        student, parts = self.transfer.student, []
        taps = Taps(student, list(names))
        with unchanged_generators(), as_in_training(student):
            torch.manual_seed(self.args.seed)
            for inputs in self._layer_batches:
                with torch.no_grad(), taps.armed(), self.accelerator.autocast():
                    student(**self._student_inputs(inputs))
                parts.append(pooled_tables(taps.take(), names, self.args.ot_tokens, inputs.get("attention_mask")))
        taps.close()
        return _joined(parts)


def _joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """(n, d) of each layer from the tables of each batch, with all processes' samples in the order of one process."""
    return [torch.cat([gather_rows(batch) for batch in layer]) for layer in zip(*parts, strict=True)]

"""`select_k`: the teacher neurons that carry the mass of the transport, learned while the student is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...training.labels import labels_of
from ...training.terms.base import Batch, TermContext
from ...training.terms.transport import Marginals, TransportTerm
from .selection import NeuronSelection

_COST_OF_DEAD = 4.0  # the largest cost between two standardised neurons


class SelectiveTransport(TransportTerm):
    """Transport to the few neurons of each teacher layer that learned scores choose.

    Attributes:
        selections: One `NeuronSelection` for each teacher layer among the pairs.
    """

    reads_neurons = True

    def __init__(self, context: TermContext):
        super().__init__(context)
        layers = [(pair.teacher_index, pair.teacher) for pair in self.layers.pairs]
        self.teacher_layers = sorted(set(layers))
        self.of_pair = [self.teacher_layers.index(layer) for layer in layers]
        self.selections: list[NeuronSelection] = []
        self._classes = getattr(getattr(context.student, "config", None), "num_labels", None)

    def modules(self, widths: Sequence[tuple[int, int]], device: torch.device) -> Mapping[str, nn.Module]:
        """Makes the selections.

        Raises:
            ValueError: the widths or the classes are not known, or `select_k` asks for more neurons than there are.
        """
        if self.teacher_layers and not widths:
            raise ValueError(
                "select_k needs to know the widths of the layers before training: they are not known of a sharded "
                "student, nor of one whose inputs are not known. Set select_k=None"
            )
        classes = None
        if self.config.select_by == "task":
            classes = self._classes
            if not classes:
                raise ValueError(
                    "select_by='task' reads the labels out of the teacher's neurons, and the student's config does not "
                    "say how many there are (num_labels): use select_by='transport'"
                )
        width = {layer: dt for layer, (_, dt) in zip(self.of_pair, widths, strict=True)}
        self.selections = [
            NeuronSelection(width[i], self._count(width[i], path), classes)
            for i, (_, path) in enumerate(self.teacher_layers)
        ]
        return {"selection": nn.ModuleList(self.selections)}

    def _count(self, width: int, path: str) -> int:
        asked = self.config.select_k or 0
        count = max(1, round(asked * width)) if asked < 1 else int(asked)
        if count >= width:
            raise ValueError(
                f"select_k={asked} asks for {count} of the {width} neurons of the teacher's layer {path}: the most "
                f"that is a selection is {width - 1}, or a share below 1"
            )
        return count

    def marginals(self, neurons: Sequence[tuple[Tensor, Tensor]], batch: Batch) -> Marginals:
        """The weights of the teacher neurons, and the terms that the scores are learned by."""
        share = batch.progress / self.config.select_until
        weights, terms = [module.weights(share) for module in self.selections], []
        k = torch.stack([w.detach().topk(m.k).values.sum() for w, m in zip(weights, self.selections, strict=True)])
        logs = {"select_mass": k.mean()}
        teacher = {i: t for i, (_, t) in zip(self.of_pair, neurons, strict=True)}
        if share < 1:
            dead = [m.dead_weight(teacher[i], weights[i]) for i, m in enumerate(self.selections)]
            terms.append(_COST_OF_DEAD * torch.stack(dead).mean())
            logs["select_dead"] = torch.stack(dead).mean().detach()
        if self.config.select_by == "task":
            if share < 1:
                labels = labels_of(batch.inputs, "select_by='task'", "select_by='transport'")
                outputs = [m(teacher[i], labels, weights[i]) for i, m in enumerate(self.selections)]
                loss = batch.share.samples * torch.stack([output.loss for output in outputs]).mean()
                terms.append(loss)
                logs["select_loss"] = loss.detach()
                logs["select_accuracy"] = torch.stack([output.logs["accuracy"] for output in outputs]).mean()
            # The transport would rather have what is easiest to match.
            weights = [w.detach() for w in weights]
        return Marginals(teacher_weights=[weights[i] for i in self.of_pair], losses=terms, logs=logs)

    def selected(self) -> dict[str, list[int]]:
        """The neurons of each teacher layer that lead at the moment, or have been chosen, in ascending order."""
        found = {}
        for (index, path), module in zip(self.teacher_layers, self.selections, strict=True):
            chosen: Any = module.chosen
            over = bool((chosen >= 0).all())
            best = chosen if over else module.scores.detach().topk(module.k).indices.sort().values
            found[path if index == 0 else f"{path}@{index}"] = best.tolist()
        return found

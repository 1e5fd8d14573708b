"""Modules that train along with the student and are no part of it: projectors, learned scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch import distributed as dist


class CompanionsMixin:
    """For a trainer with an objective (`transfer`) whose `companions` have parameters of their own.

    They are in the optimiser and in the checkpoint's transfer state; the saved student knows nothing of them.
    """

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """As in `Trainer`; companions get a parameter group of their own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        added = [p for p in self._companion_parameters() if id(p) not in held]
        if added:
            optimizer.add_param_group({"params": added, "weight_decay": self.args.weight_decay})
        return optimizer

    def _companion_parameters(self) -> list[nn.Parameter]:
        companions = self.transfer.companions if self.transfer is not None else nn.ModuleDict()
        return [p for p in companions.parameters() if p.requires_grad]

    def _average_companions(self) -> None:
        """Averages the companions' gradients over processes, as DDP does the student's."""
        parameters = self._companion_parameters()
        if not parameters or self.accelerator.num_processes == 1:
            return
        # A process on which one took no part counts with 0, so that all send the same.
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        flat /= self.accelerator.num_processes
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def _zero_companions(self) -> None:
        """`Trainer` clears the gradients of its model only."""
        for parameter in self._companion_parameters():
            parameter.grad = None


def check_companions(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Refuses a checkpoint of a run that trained other modules along with its student.

    Args:
        ours: State of this run's companions.
        theirs: State of the checkpoint's.

    Raises:
        ValueError: names or shapes differ.
    """
    shapes = [{name: tuple(value.shape) for name, value in side.items()} for side in (ours, theirs)]
    if shapes[0] == shapes[1]:
        return
    name = min(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name))
    here, there = (str(side[name]) if name in side else "nothing" for side in shapes)
    raise ValueError(
        f"the checkpoint's run trained other modules along with its student: {name} is {there} there and {here} here: "
        "resume with the settings that it had (feature_loss, layer_pairs, ...)"
    )

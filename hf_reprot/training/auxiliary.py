"""Modules that train along with the student and are no part of it: projectors, learned scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch import distributed as dist


class AuxiliaryModules:
    """Trains an objective's auxiliary modules: they are in the optimiser, and the saved student knows nothing of them.

    Args:
        modules: Gives the modules as they are now: an objective may be built anew.
    """

    def __init__(self, modules: Callable[[], nn.ModuleDict]):
        self._modules = modules

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that train."""
        return [p for p in self._modules().parameters() if p.requires_grad]

    def beside(self, student: nn.Module) -> nn.Module:
        """The student and the modules as one, for a look at all gradients; the student alone where there are none."""
        modules = self._modules()
        return nn.ModuleDict({"student": student, "auxiliary": modules}) if len(modules) else student

    def add_to(self, optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
        """Gives the modules a parameter group of their own, where the optimiser has them not."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        added = [p for p in self.parameters() if id(p) not in held]
        if added:
            optimizer.add_param_group({"params": added, "weight_decay": weight_decay})

    def average(self, processes: int) -> None:
        """Averages the modules' gradients over processes, as DDP does the student's."""
        parameters = self.parameters()
        if not parameters or processes == 1:
            return
        # A process on which one took no part counts with 0, so that all send the same.
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        flat /= processes
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def clear_gradients(self) -> None:
        """`Trainer` clears the gradients of its model only."""
        for parameter in self.parameters():
            parameter.grad = None


def check_modules(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Refuses a checkpoint of a run that trained other modules along with its student.

    Args:
        ours: State of this run's auxiliary modules.
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

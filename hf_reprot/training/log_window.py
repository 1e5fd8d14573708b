"""Averages of named scalars over a logging window, kept on the device until someone asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import Trainer

SUMMED = ("ot_dropped", "ot_skipped", "dropped_steps")  # counts: their sum over the window says more than their mean


class Meter:
    """Adds up scalars step by step; `pop` gives the window's means (sums for counts) and starts the next window."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}

    def add(self, logs: Mapping[str, Tensor]) -> None:
        """Adds one step's detached scalars."""
        for name, value in logs.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.steps[name] = self.steps.get(name, 0) + 1

    def pop(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The window's values, averaged over processes.

        Args:
            gather: Collective that takes (k,) of this process to (processes * k,); the same names on every process.
        """
        if not self.sums:
            return {}
        names = sorted(self.sums)
        mine = torch.stack([self.sums[n] / (1 if n in SUMMED else self.steps[n]) for n in names])
        means = gather(mine).view(-1, len(names)).mean(0).tolist()
        self.sums, self.steps = {}, {}
        return dict(zip(names, means, strict=True))


_PREFIX = "window."


def window_state(trainer: Trainer, meter: Meter, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What a resumed run needs for its first line of the log to be that of a run that was not stopped.

    Args:
        trainer: A trainer in training.
        meter: Sums of the terms since the last line.
        gather: Collective that takes (k,) of this process to (processes * k,). The means over processes are kept: a
            line of the log shows nothing else.
    """
    names = sorted(meter.sums)
    mine = torch.stack([trainer._tr_loss.float(), *(meter.sums[name].to(trainer._tr_loss.device) for name in names)])
    means = gather(mine).view(-1, len(mine)).mean(0).cpu()
    state = {f"{_PREFIX}last_logged": torch.tensor(trainer._globalstep_last_logged), f"{_PREFIX}loss": means[0]}
    for name, value in zip(names, means[1:], strict=True):
        state[f"{_PREFIX}sum.{name}"] = value
        state[f"{_PREFIX}steps.{name}"] = torch.tensor(meter.steps[name])
    return {name: value.clone() for name, value in state.items()}


def restore_window(trainer: Trainer, meter: Meter, state: Mapping[str, Tensor]) -> None:
    """Puts back what `window_state` gave, once the trainer has started its own sums from zero."""
    device = trainer._tr_loss.device
    meter.sums, meter.steps = {}, {}
    if f"{_PREFIX}loss" not in state:
        return
    for name, value in state.items():
        if name.startswith(f"{_PREFIX}sum."):
            meter.sums[name.removeprefix(f"{_PREFIX}sum.")] = value.to(device)
        elif name.startswith(f"{_PREFIX}steps."):
            meter.steps[name.removeprefix(f"{_PREFIX}steps.")] = int(value)
    loss = state[f"{_PREFIX}loss"]
    trainer._tr_loss = loss.to(trainer._tr_loss)
    trainer._total_loss_scalar = -loss.item()  # `train_loss` is of the steps of this call
    trainer._globalstep_last_logged = int(state[f"{_PREFIX}last_logged"])

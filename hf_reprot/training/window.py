"""The logging window that a checkpoint falls into: what was summed since the last line of the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import Trainer

from .meter import Meter

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

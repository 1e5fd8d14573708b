"""Keeps a gradient that is not finite away from the weights, and stops a run that has it again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Adam, AdamW, Optimizer


class GradientGuard:
    """Drops the gradient of a step where any of its numbers is not finite: the optimiser then changes nothing.

    Under DDP every process holds the same averaged gradient, and under FSDP the shards' verdicts are joined, so that
    all processes drop the same steps.

    A fused Adam or AdamW (the Trainer's default) skips a step by a flag on the device, as it does for loss scaling: the
    host then waits for nothing. For other optimisers the host asks the device once a step and takes the gradient away.

    Args:
        limit: Steps in a row after which `check` raises; with the flag on CUDA, a step later.
    """

    def __init__(self, limit: int):
        self._streak = Streak(limit)

    def reset(self) -> None:
        """Starts the count of steps anew."""
        self._streak.reset()

    def check(self, model: nn.Module, *, optimizer: Optimizer | None = None, sharded: bool = False) -> Tensor:
        """Call between the backward pass and the optimiser's step.

        Args:
            model: The student.
            optimizer: The optimiser that makes the step.
            sharded: Each process holds a part of the gradient only: join the verdicts. Known by itself for DTensors.

        Returns:
            () 1.0 where the gradient was dropped, 0.0 where not, on the gradients' device.

        Raises:
            FloatingPointError: names parameters with such gradients.
        """
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        sharded = sharded or any(isinstance(gradient, DTensor) for gradient in gradients.values())
        lost = _any_lost(list(gradients.values()), sharded).float()
        self._streak.record(lost.reshape(1))
        if self._streak.reached():
            self._stop(gradients)
        if not sharded and optimizer is not None and _skips_by_flag(optimizer):
            _skip_next_step(optimizer, lost)
        elif lost:
            for parameter in model.parameters():
                parameter.grad = None
        return lost

    def _stop(self, gradients: Mapping[str, Tensor]) -> None:
        lost = [name for name, gradient in gradients.items() if not torch.isfinite(_local(gradient)).all()]
        where = ""
        if lost:
            where = f"last in {len(lost)} of {len(gradients)} parameters, among them {', '.join(lost[-3:])}. "
        raise FloatingPointError(
            f"the gradient was not finite for {self._streak.limit} steps in a row and was dropped each time; {where}"
            "Lower the learning rate, train in bfloat16 or float32 rather than float16, or look for the layer or the "
            "sample that overflows"
        )


def _skips_by_flag(optimizer: Optimizer) -> bool:
    # A fused SGD with momentum leaves its buffers unset where the very first step is skipped.
    return isinstance(optimizer, Adam | AdamW) and all(group.get("fused") for group in optimizer.param_groups)


def _skip_next_step(optimizer: Any, flag: Tensor) -> None:
    """The fused kernels leave weights, moments and the count of steps alone where `found_inf` is not 0."""
    optimizer.found_inf = flag

    def forget(*_: object) -> None:
        handle.remove()
        del optimizer.found_inf

    handle = optimizer.register_step_post_hook(forget)


def _any_lost(gradients: Sequence[Tensor], sharded: bool) -> Tensor:
    """() Whether a number of a gradient is not finite; of sharded gradients, on any process."""
    parts = [part for part in map(_local, gradients) if part.numel() > 0]
    lost = ~torch.isfinite(get_total_norm(parts, norm_type=math.inf)) if parts else torch.zeros((), dtype=torch.bool)
    if sharded and dist.is_initialized():
        everywhere = lost.float().to(gradients[0].device if gradients else lost.device)
        dist.all_reduce(everywhere, dist.ReduceOp.MAX)
        return everywhere > 0
    return lost


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


class Streak:
    """Counts steps in a row for several things at once.

    The count stays on the device. On CUDA the host looks at a copy that was started one step earlier or more: what it
    learns is late by a step, and costs nothing.

    Args:
        limit: Steps in a row that `reached` looks for.

    Example:
        >>> streak = Streak(limit=2)
        >>> for happened in ([1.0, 0.0], [1.0, 1.0]):
        ...     streak.record(torch.tensor(happened))
        >>> streak.reached()
        [0]
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.count: Tensor | None = None
        self._copy: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def record(self, happened: Tensor) -> None:
        """Takes in one step: (k,) 1 where it happened, 0 where not."""
        if self.count is None or self.count.shape != happened.shape:
            self.count = torch.zeros_like(happened)
        self.count = (self.count.to(happened) + 1) * happened
        if self.count.is_cuda:
            if self._arrived is not None and not self._arrived.query():
                return  # the former copy is still under way: look at it first
            self._copy = self.count.to("cpu", non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._copy = self.count

    def reached(self) -> list[int]:
        """Which of the k have come to the limit, as far as the host knows."""
        if self._copy is None or (self._arrived is not None and not self._arrived.query()):
            return []
        return [i for i, count in enumerate(self._copy.tolist()) if count >= self.limit]

    def reset(self, count: Tensor | None = None) -> None:
        """Starts from (k,) counts, or from none."""
        self.count, self._copy, self._arrived = count, None, None


class NonFiniteWatch:
    """Counts, for each layer pair, the steps in a row whose term was dropped.

    Args:
        limit: Steps in a row after which `check` raises.
    """

    def __init__(self, limit: int):
        self.names: list[str] = []
        self._streak = Streak(limit)

    def record(self, dropped: Tensor | None, names: Sequence[str] = ()) -> None:
        """Takes in one step.

        Args:
            dropped: 1 for each pair (pairs,) whose term was dropped, 0 for the others; None: there is no such term.
            names: What the pairs are called. Other pairs than those of the step before are counted from 0.
        """
        if names and self.names and list(names) != self.names:
            self._streak.reset()
        self.names = list(names) or self.names
        if dropped is not None:
            self._streak.record(dropped)

    def state_dict(self) -> dict[str, Tensor]:
        """The counts, for a checkpoint."""
        return {} if self._streak.count is None else {"watch.streak": self._streak.count}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` gave; from an empty one, starts anew."""
        self._streak.reset(state.get("watch.streak"))

    def check(self) -> None:
        """Raises where a pair has been dropped too often.

        Raises:
            FloatingPointError: names the layer pairs.
        """
        lost = self._streak.reached()
        if lost:
            names = ", ".join(self.names[i] if i < len(self.names) else f"number {i}" for i in lost)
            raise FloatingPointError(
                f"the activations of layer pair {names} were not finite for {self._streak.limit} steps in a row: the "
                "transport term was left out each time. Lower the learning rate, train in bfloat16 or float32 rather "
                "than float16, or look for the layer that overflows"
            )

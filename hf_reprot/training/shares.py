"""How much of a step's means each micro-batch holds: accumulation, uneven batches and repeated samples, made exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from transformers.trainer_pt_utils import find_batch_size

from ..data.mixing import MIXED, counted_labels

# Tasks whose loss is a mean over every number of the labels: none of them is left out.
_EVERY_NUMBER = ("regression", "multi_label_classification")


@dataclass(frozen=True)
class Share:
    """What to multiply the means of one process's micro-batch by.

    The trainer divides the sum over micro-batches by their number, and DDP the sum over processes by theirs; multiplied
    by their shares, what comes out is the mean over the whole step.

    Attributes:
        items: For the task's own loss: a mean over labels that are not ignored.
        samples: For means over samples.
        empty: The micro-batch holds nothing but samples repeated to fill up the last batch of an epoch.
    """

    items: Tensor | float = 1.0
    samples: Tensor | float = 1.0
    empty: bool = False


class Shares:
    """Weighs micro-batches by what they hold, for terms that are means over a micro-batch.

    With several processes, the last batch of an epoch is filled up with samples from its beginning. They are taken out
    again, or weigh nothing on a process that has no others, so that the step is that of one process. (A process left
    with one real sample keeps the others where the student has batch normalisation, which cannot do with one.)

    Args:
        accelerator: It knows the processes, and where the epoch ends.
        label_names: Columns of the labels.
        device: Where the counts are reduced.

    Attributes:
        present: The share of the present micro-batch.
    """

    def __init__(self, accelerator: Accelerator, label_names: Sequence[str], device: torch.device):
        self.accelerator, self.label_names, self.device = accelerator, label_names, device
        self.present = Share()
        self._coming: Iterator[Share] = iter(())  # of the micro-batches that are still to come

    def next(self) -> None:
        """Goes on to the next micro-batch."""
        self.present = next(self._coming, Share())

    def take(
        self, batches: list[Any], model: nn.Module, *, shifts_labels: bool = False
    ) -> list[Mapping[str, Any]] | None:
        """Takes the micro-batches of a step; samples that fill up the last one are removed from the list's last.

        Args:
            batches: The micro-batches; changed in place.
            model: The student.
            shifts_labels: Whether its loss is on the labels without the first.

        Returns:
            What the labels are to be counted on, where samples were removed or mixed; or else None.
        """
        real = self._real_samples(batches)
        empty = [False] * len(batches)
        if real is not None:  # the same verdict on every process
            size = find_batch_size(batches[-1])
            real = size if real == 1 and _normalises_batches(model) else real
            if real == 0:
                empty[-1] = True
            elif real < size:
                batches[-1] = _first(batches[-1], real, size)
        config = getattr(self.accelerator.unwrap_model(model), "config", None)
        self._coming = iter(self._of(batches, empty, config, shifts_labels))
        counted = counted_labels(batches)
        if real is None:
            return counted

        def no_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
            return {name: batch[name][:0] for name in self.label_names if name in batch}

        return [no_labels(batch) if e else batch for batch, e in zip(counted or batches, empty, strict=True)]

    def _of(
        self, batches: Sequence[Mapping[str, Any]], empty: Sequence[bool], config: Any, shifts_labels: bool
    ) -> list[Share]:
        processes = self.accelerator.num_processes
        if len(batches) * processes <= 1:
            return [Share()] * len(batches)

        def numbers(batch: Mapping[str, Any]) -> Tensor:
            found = _counts(batch, self.label_names, config, shifts_labels)
            return torch.stack([torch.as_tensor(n, device=self.device) for n in found])

        nothing = torch.zeros(2, dtype=torch.int64, device=self.device)
        counts = torch.stack([nothing if e else numbers(b) for b, e in zip(batches, empty, strict=True)])
        counts = counts.double()  # (micro-batches, 2): labels and samples
        whole = counts.sum(0)
        if processes > 1:
            dist.all_reduce(whole)
        shares = (counts * (len(batches) * processes) / whole.clamp_min(1)).float()
        return [Share(row[0], row[1], e) for row, e in zip(shares, empty, strict=True)]

    def _real_samples(self, batches: Sequence[Any]) -> int | None:
        """How many samples of this process's last batch stand there for the first time; None: all, or not known."""
        state, processes = self.accelerator.gradient_state, self.accelerator.num_processes
        if processes == 1 or not batches or not state.end_of_dataloader or state.remainder <= 0:
            return None
        if not isinstance(batches[-1], Mapping):
            return None
        size, left = find_batch_size(batches[-1]), state.remainder
        loader = state.active_dataloader
        if isinstance(loader, DataLoaderShard):
            try:
                whole = getattr(loader.batch_sampler, "batch_sampler", loader.batch_sampler)
                left = len(whole.sampler) % loader.total_batch_size  # it may draw more, or fewer, than there are
                if loader.total_batch_size != size * processes or left == 0:
                    return None
            except (AttributeError, TypeError):  # streamed data, samplers without a length
                return None
        return min(max(left - self.accelerator.process_index * size, 0), size)


def of_share(loss: Tensor, share: Tensor | float) -> Tensor:
    """A micro-batch's mean times its share: 0 without any label, where a mean is not a number."""
    if isinstance(share, Tensor):
        share = share.to(loss.device)
        return torch.where(share > 0, loss * share, torch.zeros_like(loss))
    return loss * share


class Reads(TorchFunctionMode):
    """Sees whether a number takes part in what is computed inside."""

    def __init__(self, number: Any):
        super().__init__()
        self.number = number
        # A plain number leaves no trace: taken for the documented form.
        self.seen = number is not None and not isinstance(number, Tensor)

    def watching(self, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The call, watched."""

        def watched(*args: Any, **kwargs: Any) -> Tensor:
            with self:
                return call(*args, **kwargs)

        return watched

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.seen and self.number is not None:
            flat = [x for a in (*args, *kwargs.values()) for x in (a if isinstance(a, list | tuple) else (a,))]
            self.seen = any(x is self.number for x in flat)
        return func(*args, **kwargs)


def _counts(
    batch: Mapping[str, Any], label_names: Sequence[str], config: Any, shifts_labels: bool
) -> tuple[Tensor | int, int]:
    """(labels that the task's mean is over, samples) of a batch."""
    samples = find_batch_size(batch) or 0
    if MIXED in batch:
        return batch[MIXED].sum(), samples
    labels = next((batch[name] for name in label_names if batch.get(name) is not None), None)
    if not isinstance(labels, Tensor):
        return samples, samples
    if labels.is_floating_point() or getattr(config, "problem_type", None) in _EVERY_NUMBER:
        return labels.numel(), samples
    if isinstance(batch.get("shift_labels"), Tensor):
        labels = batch["shift_labels"]
    elif shifts_labels:
        labels = labels[..., 1:]
    maps = labels.dim() > 2  # segmentation has a number of its own for pixels that are left out
    ignored = getattr(config, "semantic_loss_ignore_index", None) if maps else None
    return labels.ne(-100 if ignored is None else ignored).sum(), samples


def _first(batch: Mapping[str, Any], count: int, size: int) -> Mapping[str, Any]:
    """The first samples of a batch."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[:count] if value.dim() > 0 and len(value) == size else value
        if isinstance(value, Mapping):
            return {name: cut(inner) for name, inner in value.items()}
        return value[:count] if isinstance(value, list | tuple) and len(value) == size else value

    kind: Any = type(batch)
    return kind({name: cut(value) for name, value in batch.items()})


def _normalises_batches(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())

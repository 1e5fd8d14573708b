"""How much of a step's means each micro-batch holds: accumulation, uneven batches and repeated samples, made exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from transformers import Trainer
from transformers.trainer_pt_utils import find_batch_size

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


class SharesMixin:
    """For a trainer whose terms are means over a micro-batch: weighs micro-batches by what they hold.

    With several processes, the last batch of an epoch is filled up with samples from its beginning. They are taken out
    again, or weigh nothing on a process that has no others, so that the step is that of one process. (A process left
    with one real sample keeps the others where the student has batch normalisation, which cannot do with one.)
    """

    _shares: Iterator[Share] = iter(())  # of the micro-batches that are still to come
    _share = Share()  # of the present one

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As in `Trainer`; without samples repeated to fill up the last batch of an epoch."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        real = _real_samples(self, batches)
        empty = [False] * len(batches)
        if real is not None:  # the same verdict on every process
            size = find_batch_size(batches[-1])
            real = size if real == 1 and _normalises_batches(self.model) else real
            if real == 0:
                empty[-1] = True
            elif real < size:
                batches[-1] = _first(batches[-1], real, size)
            if items is not None:
                counted = [{"labels": b["labels"][:0]} if e else b for b, e in zip(batches, empty, strict=True)]
                items = self._get_num_items_in_batch(counted, device)
        self._shares = iter(self._shares_of(batches, empty))
        return batches, items

    def _shares_of(self, batches: Sequence[Mapping[str, Any]], empty: Sequence[bool]) -> list[Share]:
        processes = self.accelerator.num_processes
        if len(batches) * processes <= 1:
            return [Share()] * len(batches)
        counts = torch.stack(
            [
                torch.stack([torch.as_tensor(n, device=self.args.device) for n in _counts(self, batch)])
                if not nothing
                else torch.zeros(2, dtype=torch.int64, device=self.args.device)
                for batch, nothing in zip(batches, empty, strict=True)
            ]
        ).double()  # (micro-batches, 2): labels and samples
        whole = counts.sum(0)
        if processes > 1:
            dist.all_reduce(whole)
        shares = (counts * (len(batches) * processes) / whole.clamp_min(1)).float()
        return [Share(*row, nothing) for row, nothing in zip(shares, empty, strict=True)]

    def _call_custom_loss(self, model, inputs, items, share: Share) -> tuple[Tensor, Any]:
        """`compute_loss_func` on a batch, as what a mean over the micro-batch would be.

        Divided by `num_items_in_batch`, as documented, its sum over micro-batches is the mean; without a look at the
        number, the loss is taken for a mean over its micro-batch.
        """
        given, reads = self.compute_loss_func, _Reads(items)

        def watched(*args, **kwargs):
            with reads:
                return given(*args, **kwargs)

        self.compute_loss_func = watched
        try:
            loss, outputs = Trainer.compute_loss(self, model, inputs, True, items)
        finally:
            self.compute_loss_func = given
        if reads.seen:
            return loss * (0.0 if share.empty else getattr(self, "current_gradient_accumulation_steps", 1)), outputs
        if items is not None and self.args.average_tokens_across_devices:  # `Trainer` took it for the documented form
            loss = loss / (self.accelerator.num_processes // self.get_tp_size())
        return of_share(loss, share.items), outputs


def of_share(loss: Tensor, share: Tensor | float) -> Tensor:
    """A micro-batch's mean times its share: 0 without any label, where a mean is not a number."""
    if isinstance(share, Tensor):
        share = share.to(loss.device)
        return torch.where(share > 0, loss * share, torch.zeros_like(loss))
    return loss * share


class _Reads(TorchFunctionMode):
    """Sees whether a number takes part in what is computed inside."""

    def __init__(self, number: Any):
        super().__init__()
        self.number = number
        # A plain number leaves no trace: taken for the documented form.
        self.seen = number is not None and not isinstance(number, Tensor)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.seen and self.number is not None:
            flat = [x for a in (*args, *kwargs.values()) for x in (a if isinstance(a, list | tuple) else (a,))]
            self.seen = any(x is self.number for x in flat)
        return func(*args, **kwargs)


def _counts(trainer: Trainer, batch: Mapping[str, Any]) -> tuple[Tensor | int, int]:
    """(labels that the task's mean is over, samples) of a batch."""
    samples = find_batch_size(batch) or 0
    labels = next((batch[name] for name in trainer.label_names if batch.get(name) is not None), None)
    if not isinstance(labels, Tensor):
        return samples, samples
    config = getattr(trainer.accelerator.unwrap_model(trainer.model), "config", None)
    if labels.is_floating_point() or getattr(config, "problem_type", None) in _EVERY_NUMBER:
        return labels.numel(), samples
    if isinstance(batch.get("shift_labels"), Tensor):
        labels = batch["shift_labels"]
    elif getattr(trainer, "_loss_shifts_labels", False):
        labels = labels[..., 1:]
    maps = labels.dim() > 2  # segmentation has a number of its own for pixels that are left out
    ignored = getattr(config, "semantic_loss_ignore_index", None) if maps else None
    return labels.ne(-100 if ignored is None else ignored).sum(), samples


def _real_samples(trainer: Trainer, batches: Sequence[Any]) -> int | None:
    """How many samples of this process's last batch stand there for the first time; None: all, or not known."""
    state, processes = trainer.accelerator.gradient_state, trainer.accelerator.num_processes
    if processes == 1 or not batches or not state.end_of_dataloader or state.remainder <= 0:
        return None
    if not isinstance(batches[-1], Mapping):
        return None
    size, left = find_batch_size(batches[-1]), state.remainder
    loader = state.active_dataloader
    if isinstance(loader, DataLoaderShard):
        try:
            whole = getattr(loader.batch_sampler, "batch_sampler", loader.batch_sampler)
            left = len(whole.sampler) % loader.total_batch_size  # a sampler may draw more, or fewer, than there are
            if loader.total_batch_size != size * processes or left == 0:
                return None
        except (AttributeError, TypeError):  # streamed data, samplers without a length
            return None
    return min(max(left - trainer.accelerator.process_index * size, 0), size)


def _first(batch: Mapping[str, Any], count: int, size: int) -> Mapping[str, Any]:
    """The first samples of a batch."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[:count] if value.dim() > 0 and len(value) == size else value
        if isinstance(value, Mapping):
            return {name: cut(inner) for name, inner in value.items()}
        return value[:count] if isinstance(value, list | tuple) and len(value) == size else value

    return type(batch)({name: cut(value) for name, value in batch.items()})


def _normalises_batches(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())

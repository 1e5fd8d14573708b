"""How fast a model is, on the machine at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .facts import Speed

_LEAST_PASSES = 3


def measure_speed(
    forward: Callable[[Mapping[str, Any]], Any],
    inputs: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    seconds: float = 0.5,
) -> Speed:
    """The speed of forward passes without gradients, as the median over passes after a first one that is not counted.

    Args:
        forward: Runs the model, in evaluation mode, on the inputs.
        inputs: A batch by name; the first tensor in it tells the number of samples, their shape and the device.
        dtype: Data type of the weights, for the record.
        seconds: Time to spend; three passes are made in any case.
    """
    batch = next(value for value in inputs.values() if isinstance(value, Tensor))
    durations: list[float] = []
    with torch.no_grad():
        forward(inputs)
        _wait(batch.device)
        end = time.perf_counter() + seconds
        while len(durations) < _LEAST_PASSES or time.perf_counter() < end:
            start = time.perf_counter()
            forward(inputs)
            _wait(batch.device)
            durations.append(time.perf_counter() - start)
    median = sorted(durations)[len(durations) // 2]
    return Speed(
        samples_per_second=len(batch) / median,
        batch_size=len(batch),
        input=shape_text(batch.shape[1:]) + ("" if batch.is_floating_point() else " tokens"),
        device=device_name(batch.device),
        dtype=str(dtype).removeprefix("torch."),
    )


def dummy_batch(
    model: nn.Module, size: tuple[int, int] | None, channels: int, samples: int
) -> dict[str, Tensor] | None:
    """Random inputs for a model of transformers, on its device; None where it is not known what it takes.

    Args:
        model: The model.
        size: Height and width of its images.
        channels: Their channels.
        samples: How many.
    """
    weights = next((p for p in model.parameters() if p.is_floating_point()), None)
    main = getattr(model, "main_input_name", None)
    if weights is None:
        return None
    generator = torch.Generator().manual_seed(0)  # the run's own random numbers are left alone
    if main == "pixel_values" and size is not None:
        images = torch.randn(samples, channels, *size, generator=generator)
        return {"pixel_values": images.to(weights.device, weights.dtype)}
    if main == "input_ids":
        vocabulary = getattr(model.config, "vocab_size", 2)
        tokens = torch.randint(0, vocabulary, (samples, 128), generator=generator).to(weights.device)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return None


def device_name(device: torch.device) -> str:
    """A device as a reader knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"a CPU with {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else device.type


def shape_text(shape: Any) -> str:
    """A shape such as "3 x 224 x 224"."""
    return " x ".join(str(int(size)) for size in shape)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()

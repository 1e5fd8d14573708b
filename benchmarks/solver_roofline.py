"""How near our kernels come to what the device can do: only on CUDA.

For each kernel, the time that its bytes would take at the bandwidth of a large copy, or its floating point operations
at the device's peak, whichever is longer, over the time it took. Costs that stay in the L2 cache are read faster than
that copy reads memory: a share above 100 % says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from .solver_peers import ours
from .solver_problems import Problem

# For an entry of the costs in a sweep: two additions, a scaling, an exponential, and two multiply-adds for the sums.
_FLOPS = 8
_CORES = 128  # float32 units of a multiprocessor of sm_86 to sm_90, each a multiply-add a cycle; sm_80 has 64


@dataclass
class Peak:
    """What a device can do: bytes and floating point operations a second."""

    bandwidth: float
    flops: float

    def share(self, size: float, flops: float, seconds: float) -> float:
        """The least time that the work could take over the time that it took."""
        return max(size / self.bandwidth, flops / self.flops) / seconds


def kernel_work(name: str, batch: int, m: int, n: int, sweeps: float, launches: int, parts: int = 128):
    """(bytes, flops) of one of our kernels in one solution; None for others.

    Args:
        name: As a profiler writes it.
        batch: Pairs (B, m, n), float32.
        m: Rows. n: Columns.
        sweeps: Over all pairs on average.
        launches: Of this kernel.
        parts: Programs that a large pair's rows are spread over.
    """
    entries = batch * m * n
    if name.startswith("solve_pairs"):  # all sweeps in one launch, and each reads the costs
        return 4 * entries * sweeps, _FLOPS * entries * sweeps
    if name.startswith("sweep_rows"):  # pairs that are done are skipped
        return 4 * (entries + batch * parts * n) * min(launches, sweeps), _FLOPS * entries * min(launches, sweeps)
    if name.startswith("add_columns"):
        return 4 * batch * parts * n * min(launches, sweeps), batch * parts * n * min(launches, sweeps)
    return None


def copy_rate(device: str, numbers: int = 1 << 28) -> float:
    """Bytes a second, read and written, of a copy of float32 numbers."""
    source = torch.empty(numbers, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / seconds_of(lambda: target.copy_(source), device)


def product_rate(device: str, dtype: torch.dtype, n: int = 8192) -> float:
    """Floating point operations a second of a product of two random matrices (n, n)."""
    left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * n**3 / seconds_of(lambda: torch.mm(left, right, out=out), device)


def seconds_of(run: Callable[[], object], device: str, times: int = 5) -> float:
    """Median seconds of one run, after one that does not count."""
    taken = []
    for _ in range(times + 1):
        synchronise(device)
        begin = time.perf_counter()
        run()
        synchronise(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def synchronise(device: str) -> None:
    """Waits for all that a device has been asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


def measured_peak() -> Peak:
    """Of the current CUDA device."""
    properties = torch.cuda.get_device_properties(0)
    clock = 1e3 * getattr(properties, "clock_rate", 1_700_000)  # kHz
    return Peak(copy_rate("cuda"), 2 * _CORES * properties.multi_processor_count * clock)


def roofline(problem: Problem, peak: Peak, console: Console) -> None:
    """Prints what each of our kernels took, and its share of what the device can do."""
    run = ours(problem)
    for _ in range(4):
        run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    from hf_reprot.ot import solve

    sweeps = float(solve(problem.costs, epsilon=problem.epsilon).iterations.double().mean())
    table = Table(title=f"{problem.name}: kernels of one solution, {peak.bandwidth / 1e12:.2f} TB/s at most")
    for heading in ("kernel", "launches", "microseconds", "share of the roofline"):
        table.add_column(heading, justify="left" if heading == "kernel" else "right")
    for event in sorted(profile.key_averages(), key=lambda event: -event.device_time_total):
        work = kernel_work(event.key, *problem.costs.shape, sweeps, event.count)
        seconds = 1e-6 * event.device_time_total
        if seconds:
            share = "-" if work is None else f"{peak.share(*work, seconds):.0%}"
            table.add_row(event.key[:40], str(event.count), f"{1e6 * seconds:.1f}", share)
    console.print(table)

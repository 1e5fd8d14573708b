"""Measures what the transport term of a step costs, beside what the formulas of docs/scale.md say.

    python -m benchmarks.scale
    torchrun --nproc_per_node 2 -m benchmarks.scale --use_cpu

Prints a table in Markdown: one row for each problem, the medians of several steps (forward and backward of
`RepresentationTransport` on random activations), of the first process.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import distributed as dist

from hf_reprot.losses import RepresentationTransport
from hf_reprot.losses.collective import bytes_per_merge, merge_over_processes, world_size
from hf_reprot.ot.moments import pair_moments


@dataclass
class Problem:
    """Samples of one process, neurons on both sides, layer pairs."""

    n: int
    ds: int
    dt: int
    pairs: int = 1


PROBLEMS = (
    Problem(32, 512, 512),
    Problem(128, 512, 512),
    Problem(512, 512, 512),
    Problem(2048, 512, 512),
    Problem(128, 256, 256),
    Problem(128, 512, 2048),
    Problem(128, 512, 512, pairs=4),
    Problem(128, 2048, 2048),
)


def flops(problem: Problem, sweeps: float) -> float:
    """Of one step and process: two products of matrices, one forward and one backward, and two of vectors a sweep."""
    matrix = problem.ds * problem.dt
    return problem.pairs * matrix * (4 * problem.n + 4 * sweeps)


def activations(problem: Problem, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Neurons of both sides that share what lies behind them, as those of trained networks do."""
    made = []
    for i in range(problem.pairs):
        generator = torch.Generator().manual_seed(i)
        causes = torch.randn(problem.n, 64, generator=generator)
        student, teacher = (
            causes @ torch.randn(64, d, generator=generator) + torch.randn(problem.n, d, generator=generator)
            for d in (problem.ds, problem.dt)
        )
        made.append((student.to(device).requires_grad_(), teacher.to(device)))
    return made


def median_ms(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of the time of a call, the first two not counted, in milliseconds."""
    times = []
    for _ in range(repeats + 2):
        _finish(device)
        start = time.perf_counter()
        call()
        _finish(device)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[2:])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(problem: Problem, device: torch.device, repeats: int) -> dict[str, float]:
    """Times, sweeps, flops, bytes over the wire and memory of one problem."""
    loss, pairs = RepresentationTransport(), activations(problem, device)
    outs = []

    def step():
        outs[:] = loss.forward_pairs(pairs)
        sum(out.loss for out in outs).backward()

    def exchange():
        merge_over_processes(moments)

    before = _memory(device)
    whole = median_ms(step, device, repeats)
    memory = _memory(device) - before
    with torch.no_grad():
        moments = [pair_moments(student, teacher) for student, teacher in pairs]
    sweeps = torch.stack([out.logs["iterations"] for out in outs]).mean().item()
    work = flops(problem, sweeps)
    return {
        "ms": whole,
        "exchange ms": median_ms(exchange, device, repeats) if world_size() > 1 else 0.0,
        "sweeps": sweeps,
        "Gflop": work / 1e9,
        "Gflop/s": work / 1e9 / (whole / 1e3),
        "MB sent": bytes_per_merge([(problem.ds, problem.dt)] * problem.pairs) / 1e6 if world_size() > 1 else 0.0,
        "MB memory": memory / 1e6,
    }


def _memory(device: torch.device) -> float:
    """Most that was ever in use: of the device, or of the process, which grows in jumps and never shrinks."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """The table on standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--use_cpu", action="store_true", help="Leave GPUs alone.")
    parser.add_argument("--repeats", type=int, default=7, help="Steps that are timed.")
    parser.add_argument("--problems", type=int, default=len(PROBLEMS), help="Only the first so many problems.")
    options = parser.parse_args()
    gpu = torch.cuda.is_available() and not options.use_cpu
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if gpu else "gloo")
    rows = [(problem, measure(problem, device, options.repeats)) for problem in PROBLEMS[: options.problems]]
    if world_size() == 1 or dist.get_rank() == 0:
        where = torch.cuda.get_device_name(device) if gpu else f"CPU, {torch.get_num_threads()} thread(s)"
        print(f"{where}; processes: {world_size()}; torch {torch.__version__}\n")
        names = list(rows[0][1])
        print("| n | d_s | d_t | pairs | " + " | ".join(names) + " |")
        print("|---" * (4 + len(names)) + "|")
        for problem, found in rows:
            numbers = " | ".join(f"{found[name]:.3g}" for name in names)
            print(f"| {problem.n} | {problem.ds} | {problem.dt} | {problem.pairs} | {numbers} |")
    if world_size() > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

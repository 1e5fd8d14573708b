"""Sinkhorn on CUDA with the launches of a chunk of sweeps recorded as a CUDA graph, and replayed.

Not measured on a device yet, therefore only used where `backend="graph"` asks for it.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from .kernel import starting_potentials
from .sinkhorn_device import CHUNK, Chunks, run_chunks, sinkhorn_device
from .solution import Limits, Solution

# Kinds of calls whose graphs are kept. Each holds two matrices of costs.
_KEPT = 16

Replay = Callable[[], None]


def refusal(device: torch.device, method: str) -> str | None:
    """Why a method cannot be recorded on a device; None if it can."""
    if method != "sinkhorn":
        return f"backend='graph' runs method='sinkhorn' only, got {method!r}; use backend='auto'"
    return None if device.type == "cuda" else f"backend='graph' needs a CUDA device, got a tensor on {device}"


def capture(launch: Callable[[], None], warm_up: Callable[[], None]) -> Replay:
    """Records what `launch` starts on the current device.

    Args:
        launch: Runs on memory that stays, and asks the device nothing.
        warm_up: Run before on the stream that records, so that libraries have made their workspaces.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        warm_up()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads (those that pin memory, say) may go on with calls that a recording thread may not make.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        launch()
    return graph.replay


class GraphSolver:
    """Keeps, for each kind of call, its memory and the recorded launches.

    Args:
        capture: What records (see `capture`).
        kept: Kinds of calls remembered; the one that was used longest ago goes first.
    """

    def __init__(self, capture: Callable[[Callable[[], None], Callable[[], None]], Replay] = capture, kept=_KEPT):
        self._capture, self._kept = capture, kept
        self._recorded: OrderedDict[Hashable, _Recorded | None] = OrderedDict()
        # One memory for all calls of a kind: what two threads launch may not be mixed.
        self._lock = threading.Lock()

    def solve(self, matrix: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, limits: Limits, g: Tensor | None = None):
        """Arguments and `Solution` as in `sinkhorn_device`, which takes over where nothing can be recorded: while the
        caller records, or where recording failed before."""
        key = (tuple(matrix.shape), matrix.dtype, matrix.device, _stream(matrix), limits.tolerance, limits.accelerate)
        with self._lock, torch.cuda.device_of(matrix):
            recorded = None if _recording(matrix) else self._find(key, matrix, a, b, epsilon, limits)
            if recorded is not None:
                f, g = starting_potentials(matrix, g)
                recorded.chunks.restart(matrix, a, b, epsilon, f, g)
                return _copied(run_chunks(recorded.chunks, recorded.run, limits))
        return sinkhorn_device(matrix, a, b, epsilon, limits, g)

    def __len__(self) -> int:
        return len(self._recorded)

    def _find(self, key: Hashable, *call) -> _Recorded | None:
        if key not in self._recorded:
            try:
                self._recorded[key] = _Recorded(*call, self._capture)
            except RuntimeError as error:
                warnings.warn(f"no CUDA graph of Sinkhorn's sweeps, which go on without: {error}", stacklevel=4)
                self._recorded[key] = None
        self._recorded.move_to_end(key)
        if len(self._recorded) > self._kept:
            self._recorded.popitem(last=False)
        return self._recorded[key]


class _Recorded:
    """Memory for one kind of call, with its first chunk of sweeps and its later ones."""

    def __init__(self, matrix: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, limits: Limits, capture):
        f, g = starting_potentials(matrix, None)
        self.chunks = Chunks(matrix.clone(), a.clone(), b.clone(), epsilon.clone(), f, g, limits)

        def warm_up() -> None:
            self.chunks.run(CHUNK, True)
            self.chunks.run(CHUNK, False)

        self._replays = {
            first: capture(lambda first=first: self.chunks.run(CHUNK, first), warm_up) for first in (True, False)
        }

    def run(self, count: int, first: bool) -> None:
        """As `Chunks.run`."""
        if count == CHUNK:
            self._replays[first]()
        else:  # the few sweeps that are left under a limit
            self.chunks.run(count, first)


def _copied(solution: Solution) -> Solution:
    """The solution in memory of its own: the next call writes over the recorded one."""
    return Solution(*(getattr(solution, n).clone() for n in ("plan", "f", "g", "error", "iterations", "converged")))


def _recording(matrix: Tensor) -> bool:
    return matrix.is_cuda and torch.cuda.is_current_stream_capturing()


def _stream(matrix: Tensor) -> int | None:
    return torch.cuda.current_stream(matrix.device).cuda_stream if matrix.is_cuda else None


sinkhorn_graph = GraphSolver().solve

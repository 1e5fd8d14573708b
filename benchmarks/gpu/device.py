"""What the device is, and what it can do at most."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ..solver_roofline import copy_rate, product_rate, seconds_of
from .results import Results
from .sizes import Sizes
from .time_box import Box

ROOT = Path(__file__).parents[2]
_PACKAGES = ("torch", "triton", "transformers", "timm", "accelerate")
_LAUNCHES = 1000


def is_there(device: str) -> bool:
    """Whether torch can use it."""
    return device == "cpu" or torch.cuda.is_available()


def facts(device: str, commit: str | None = None) -> dict[str, Any]:
    """What every table rests on: card, driver, versions, commit.

    Args:
        device: "cuda" or "cpu".
        commit: Of the code; None: git is asked.
    """
    found: dict[str, Any] = {"device": device}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name,
            "capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "memory GiB": round(card.total_memory / 2**30, 1),
            "L2 MiB": round(getattr(card, "L2_cache_size", 0) / 2**20, 1) or None,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "not known",
            "CUDA": torch.version.cuda,
        }
    else:
        found["card"] = "none: a rehearsal"
    found |= {"processor threads": os.cpu_count(), "Python": platform.python_version()}
    found |= {name: _version(name) for name in _PACKAGES}
    found["commit"] = commit or _output("git", "rev-parse", "--short", "HEAD") or "not known"
    return found


def measure(results: Results, sizes: Sizes, box: Box) -> None:
    """Ceilings: what a copy, a product and a launch take at least."""
    table = "Ceilings"
    results.row("device", table, what="copy, TB/s read and written", value=copy_rate(sizes.device, sizes.copied) / 1e12)
    for dtype, tf32, name in (
        (torch.float32, False, "float32"),
        (torch.float32, True, "TF32"),
        (torch.bfloat16, False, "bfloat16"),
    ):
        former = torch.backends.cuda.matmul.allow_tf32
        try:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            rate = product_rate(sizes.device, dtype, sizes.product)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = former
        results.row("device", table, what=f"product in {name}, TFLOP/s", value=rate / 1e12)
    small = torch.zeros(1, device=sizes.device)

    def launches() -> None:
        for _ in range(_LAUNCHES):
            small.add_(1)

    seconds = seconds_of(launches, sizes.device) / _LAUNCHES
    results.row("device", table, what="an operation on one number, from Python, µs", value=1e6 * seconds)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""

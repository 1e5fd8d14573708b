"""Starts commands the way a user does, with an environment that depends on nothing outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_LAUNCHERS = ("ACCELERATE_", "MASTER_", "WORLD_SIZE", "RANK", "LOCAL_RANK", "TORCHELASTIC_", "FSDP_")


def start(*command: str, timeout: float = 800) -> subprocess.CompletedProcess:
    """Runs `python -m ...` in the root of the repository."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHERS)}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout
    )


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess:
    """`torchrun --nproc_per_node 2 ...` on a free port."""
    return start("torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}", *arguments)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

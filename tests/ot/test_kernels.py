"""Triton's kernels: right in the interpreter, and taken by the compiler; neither needs a GPU.

HF_REPROT_KERNEL_SHAPES=200 sets how many random shapes the ways are compared on.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_reprot.ot import kernels, solve

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


def test_every_way_ends_at_the_float64_reference():
    shapes = os.environ.get("HF_REPROT_KERNEL_SHAPES", "4")
    command = [sys.executable, "-W", "ignore", "-m", "tests.ot.interpreted", shapes]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert run.returncode == 0, run.stdout + run.stderr


def test_kernels_compile_for_three_architectures_and_are_those_of_the_table():
    """Without a device; none spills registers."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kernels", "--check", "docs/evidence/speed.md"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_kernel_that_changed_is_seen():
    from benchmarks.kernels import Compiled, faults, table

    good = [Compiled("sweep 4", "sm_90", 90, 0, 64, 1000), Compiled("sweep 4", "sm_80", 90, 0, 64, 1000)]
    text = table(good)
    assert list(faults(good, text)) == []
    worse = [good[0]._replace(instructions=1101), good[1]._replace(spilled=8), good[0]._replace(kernel="move 4")]
    assert list(faults(worse, text)) == [
        "sweep 4, sm_90: 1101 instructions, 1000 in the table",
        "sweep 4, sm_80: 8 bytes of registers are spilled",
        "move 4, sm_90: not in the table",
    ]
    older = text.replace("Triton ", "Triton 0.")
    assert list(faults(worse[:1], older)) == []  # another compiler, other instructions


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a device")
def test_a_forced_backend_says_what_it_needs():
    assert not kernels.takes(torch.rand(1, 3, 3), 1e-3)
    with pytest.raises(ValueError, match=r"backend='triton' needs Triton and a CUDA device.*cpu"):
        solve(torch.rand(3, 3), backend="triton")
    with pytest.raises(ValueError, match=r"backend 'tritn'.*Did you mean 'triton'"):
        solve(torch.rand(3, 3), backend="tritn")
    forced, automatic = (solve(torch.eye(4), backend=backend).plan for backend in ("torch", "auto"))
    assert torch.equal(forced, automatic)


def test_absent_triton_is_no_error(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not kernels.runs_here(torch.device("cuda"))
    assert "needs Triton" in kernels.refusal(torch.rand(1, 3, 3))

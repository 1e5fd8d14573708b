"""Where the tests marked `cuda` run: on the device, or, with HF_REPROT_REHEARSE=1, their bodies on the CPU."""

from __future__ import annotations

import os

import pytest
import torch

REHEARSED = os.environ.get("HF_REPROT_REHEARSE") == "1"
DEVICE = "cpu" if REHEARSED else "cuda"
ON_DEVICE = [
    pytest.mark.cuda,
    pytest.mark.skipif(not (REHEARSED or torch.cuda.is_available()), reason="needs a CUDA device"),
]

"""Folders of students that were never trained."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.hub.samples import record


def student_folder(folder: Path, *, values: int = 16) -> Path:
    """A folder as a run leaves it: weights, config, record; `values` numbers as weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"fc.weight": torch.arange(values, dtype=torch.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architecture": "resnet18"}')
    record().save(folder)
    return folder

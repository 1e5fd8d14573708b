"""A small training to its end on real images: teacher, student, and the student loaded again."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset
from torch.utils.data import default_collate as stacked

from hf_reprot import OTTransferConfig, OTTransferTrainer, create_timm_student, load_student

from ..training import timm_model
from .results import Results
from .sizes import Sizes
from .time_box import Box

_IMAGE = 32
_BATCH = 64
_NAMES = [str(digit) for digit in range(10)]
_TABLE = "Handwritten digits (1,797 images at 32 px, 300 of them for the test)"


def measure(results: Results, sizes: Sizes, box: Box) -> None:
    """A teacher is trained, a student learns from it with transport and logits, and is saved and loaded."""
    torch.manual_seed(0)
    images, labels = digits()
    train = images[300 : 300 + sizes.images], labels[300 : 300 + sizes.images]
    test = images[:300], labels[:300]
    begin = time.perf_counter()
    teacher = _teacher(sizes, *train)
    facts = {"model": sizes.small_teacher, "learned from": "labels", "epochs": sizes.epochs}
    results.row(
        "training",
        _TABLE,
        **facts,
        accuracy=_accuracy(teacher, *test),
        seconds=time.perf_counter() - begin,
        loaded=None,
    )
    student = create_timm_student(sizes.small_student, _NAMES, pretrained_cfg={"input_size": [3, _IMAGE, _IMAGE]})
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        trainer = OTTransferTrainer(
            model=student,
            teacher_model=teacher,
            args=OTTransferConfig(
                output_dir=folder, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=10,
                use_cpu=sizes.device == "cpu", bf16=sizes.half, num_train_epochs=sizes.epochs, learning_rate=2e-3,
                per_device_train_batch_size=_BATCH, kd_weight=1.0, ot_weight=1.0, plan_momentum=0.9, seed=0,
            ),
            train_dataset=TensorDataset(*train),
            data_collator=_collate,
        )  # fmt: skip
        trainer.train()
        seconds = time.perf_counter() - begin
        trainer.save_model(folder)
        ours = trainer.model.eval()
        loaded = load_student(Path(folder)).to(sizes.device).eval()
        apart = _logits(loaded, test[0]) - _logits(ours, test[0])
        dropped = sum(line.get("ot_dropped", 0) + line.get("dropped_steps", 0) for line in trainer.state.log_history)
        facts = {"model": sizes.small_student, "learned from": "labels, logits, transport", "epochs": sizes.epochs}
        results.row(
            "training",
            _TABLE,
            **facts,
            accuracy=_accuracy(ours, *test),
            seconds=seconds,
            loaded=f"logits differ by {float(apart.abs().max()):.1e}",
        )
        if dropped or not bool((apart.abs() < 1e-3).all()):
            raise RuntimeError(f"{dropped:.0f} terms or steps were dropped; the loaded student must be the saved one")


def digits() -> tuple[Tensor, Tensor]:
    """(1797, 3, 32, 32) from -1 to 1 and (1797,), in a random order; scikit-learn brings them."""
    found = load_digits()
    grey = functional.interpolate(torch.tensor(found.images).float()[:, None] / 8 - 1, size=_IMAGE, mode="bilinear")
    order = torch.randperm(len(grey), generator=torch.Generator().manual_seed(0))
    return grey[order].expand(-1, 3, -1, -1).contiguous(), torch.tensor(found.target)[order]


def _teacher(sizes: Sizes, images: Tensor, labels: Tensor) -> nn.Module:
    model = timm_model(sizes.small_teacher, _IMAGE).to(sizes.device).train()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(sizes.epochs):
        for rows in torch.randperm(len(images)).split(_BATCH):
            loss = functional.cross_entropy(model(images[rows].to(sizes.device)), labels[rows].to(sizes.device))
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    return model.eval().requires_grad_(False)


def _collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    images, labels = stacked(rows)
    return {"pixel_values": images, "labels": labels}


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    outputs = model(images.to(next(model.parameters()).device))
    return getattr(outputs, "logits", outputs).float().cpu()


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((_logits(model, images).argmax(-1) == labels).float().mean())

"""The main job on real images, with nothing to download: what `hf-reprot demo` runs."""

from __future__ import annotations

import copy
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.progress import Progress
from rich.table import Table
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset, Subset
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from ..config import OTTransferConfig
from ..data.digits import load_digits_dataset
from ..plots.charts import accuracy_figure, curves_figure
from ..plots.maps import plan_figure
from ..plots.style import save_figure
from ..trainer import OTTransferTrainer
from ..utils.running import accuracy, quiet

IMAGE = 16
EARLIER = 5  # a pretrained student was trained on the digits below this

METHODS: dict[str, dict[str, Any]] = {
    "no transfer": {"ot_weight": 0.0},
    "logit distillation": {"ot_weight": 0.0, "kd_weight": 1.0, "kd_temperature": 2.0},
    "independent coupling": {"ot_weight": 2.0, "ot_method": "independent"},
    "fixed random pairing": {"ot_weight": 2.0, "ot_method": "random"},
    "transport": {"ot_weight": 2.0},
}
STARTS = ("new", "pretrained")
KEPT = ("new", "transport")  # the student that is saved


@dataclass
class DemoResult:
    """The results of a demo.

    Attributes:
        accuracies: Test accuracies by (start, method), one per seed.
        teacher: The teacher's test accuracy.
        labels: Labelled images of a student.
        seconds: Of the whole demo.
        student: Folder of a student, as `AutoModelForImageClassification.from_pretrained` loads it.
        pictures: Files.
    """

    accuracies: dict[tuple[str, str], list[float]]
    teacher: float
    labels: int
    seconds: float
    student: Path
    pictures: list[Path] = field(default_factory=list)

    def table(self) -> Table:
        """Mean and standard deviation over seeds, and the paired difference to no transfer."""
        seeds = len(next(iter(self.accuracies.values())))
        title = (
            f"Test accuracy (%), {self.labels} labels, mean ± deviation over {seeds} seeds; teacher {self.teacher:.1%}"
        )
        table = Table("method", *(f"student {start}" for start in STARTS), *("against no transfer",) * 2, title=title)
        for method in dict.fromkeys(method for _, method in self.accuracies):
            cells = [spread(self.accuracies[start, method]) for start in STARTS]
            gains = [
                spread(np.subtract(self.accuracies[start, method], self.accuracies[start, "no transfer"]), sign=True)
                for start in STARTS
            ]
            table.add_row(method, *cells, *(gains if method != "no transfer" else ["", ""]))
        return table

    def reading(self) -> str:
        """The table's answer to the question that matters: does the optimal coupling pay off?"""
        lines = []
        for start in STARTS:
            gain = np.subtract(self.accuracies[start, "transport"], self.accuracies[start, "fixed random pairing"])
            better = int((gain > 0).sum())
            lines.append(
                f"Optimal coupling against a fixed random pairing, student {start}: {spread(gain, sign=True)} points, "
                f"ahead in {better} of {len(gain)} seeds."
            )
        return "\n".join([*lines, f"Took {self.seconds:.0f} s."])


def spread(values: Sequence[float] | np.ndarray, *, sign: bool = False) -> str:
    """Shares as "mean ± deviation", in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):{'+' if sign else ''}.1f} ± {100 * deviation:.1f}"


def run_demo(
    folder: str | Path,
    *,
    seeds: int = 5,
    labels: int = 60,
    steps: int = 100,
    methods: Mapping[str, Mapping[str, Any]] = METHODS,
) -> DemoResult:
    """Trains a teacher on handwritten digits, then smaller students of another architecture on few labels.

    Every method trains the same students, from new random weights and from weights of an earlier training, on the same
    images with the same seeds.

    Args:
        folder: Where the pictures and a trained student go.
        seeds: Runs of each method.
        labels: Labelled images that a student sees.
        steps: Training steps of each run.
        methods: Settings of `OTTransferConfig` by name; "no transfer", "fixed random pairing" and "transport" must be
            among them.
    """
    folder = Path(folder)
    began = time.perf_counter()
    data = {name: _Pixels(split) for name, split in load_digits_dataset().items()}
    if not 10 <= labels <= len(data["train"]) - 10:
        raise ValueError(f"labels must be at least 10 and at most {len(data['train']) - 10}, got {labels}")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    if missing := {"no transfer", "fixed random pairing", "transport"} - set(methods):
        raise ValueError(f"methods must hold {', '.join(sorted(missing))}, which all others are compared with")
    accuracies: dict[tuple[str, str], list[float]] = {(s, m): [] for s in STARTS for m in methods}
    kept: OTTransferTrainer | None = None
    with quiet(), Progress() as progress:
        bar = progress.add_task("teacher", total=steps * 2 + seeds * (steps + len(accuracies) * steps))
        run = _Run(folder / "runs", data["test"], progress, bar)
        teacher = _teacher()
        trained = run(teacher, data["train"], 0, 2 * steps, {"ot_weight": 0.0, "learning_rate": 3e-3}, "teacher")
        teacher_accuracy = trained.evaluate()["eval_accuracy"]
        for seed in range(seeds):
            few = Subset(data["train"], _balanced(data["train"].labels, labels, seed))
            for start in STARTS:
                student = _student(seed) if start == "new" else _pretrained_student(run, data["train"], seed, steps)
                for method, settings in methods.items():
                    title = f"seed {seed}, {start}: {method}"
                    trainer = run(copy.deepcopy(student), few, seed, steps, settings, title, teacher)
                    accuracies[start, method].append(trainer.evaluate()["eval_accuracy"])
                    if (start, method) == KEPT and seed == 0:
                        kept = trainer
        progress.update(bar, description="done", completed=progress.tasks[0].total)
        if kept is None:
            raise RuntimeError(f"no run was kept: {KEPT} is none of those made")
        student_folder = _save(kept, folder)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    pictures = _draw(kept, accuracies, folder)
    return DemoResult(accuracies, teacher_accuracy, labels, time.perf_counter() - began, student_folder, pictures)


class _Run:
    """Trains one model, with the same settings for all but what a method changes."""

    def __init__(self, folder: Path, test: Dataset, progress: Progress, bar: Any):
        self.folder, self.test, self.progress, self.bar = folder, test, progress, bar

    def __call__(
        self,
        model: torch.nn.Module,
        data: Dataset,
        seed: int,
        steps: int,
        settings: Mapping[str, Any],
        title: str,
        teacher: torch.nn.Module | None = None,
    ) -> OTTransferTrainer:
        self.progress.update(self.bar, description=title)
        defaults = {
            "per_device_train_batch_size": 64,
            "per_device_eval_batch_size": 512,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 10,
            "logging_steps": max(1, steps // 20),
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": torch.cuda.is_available(),
        }
        config = OTTransferConfig(output_dir=str(self.folder), max_steps=steps, seed=seed, **{**defaults, **settings})
        trainer = OTTransferTrainer(
            model=model,
            teacher_model=teacher if config.compares_layers or config.kd_weight > 0 else None,
            args=config,
            train_dataset=data,
            eval_dataset=self.test,
            processing_class=_processor(),
            compute_metrics=accuracy,
            callbacks=[_Advance(self.progress, self.bar)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        return trainer


class _Advance(TrainerCallback):
    def __init__(self, progress: Progress, bar: Any):
        self.progress, self.bar = progress, bar

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.progress.advance(self.bar)


class _Pixels(Dataset):
    """Images that went through the processor once, since no run changes them."""

    def __init__(self, split: Any):
        self.pixels = _processor()([image.convert("RGB") for image in split["image"]], return_tensors="pt")
        self.labels = torch.tensor(split["label"])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels["pixel_values"][index], "labels": self.labels[index]}


def _teacher() -> torch.nn.Module:
    torch.manual_seed(0)
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64, 96], depths=[1, 1, 1], layer_type="basic", **_names(range(10))
        )
    )


def _student(seed: int, classes: int = 10) -> ViTForImageClassification:
    torch.manual_seed(seed)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            image_size=IMAGE,
            patch_size=4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **_names(range(classes)),
        )
    )


def _pretrained_student(run: _Run, data: _Pixels, seed: int, steps: int) -> ViTForImageClassification:
    """A student that learnt a related task before: the digits 0 to 4, with all their labels. Its head is new."""
    earlier = _student(1000 + seed, classes=EARLIER)
    some = Subset(data, (data.labels < EARLIER).nonzero().flatten().tolist())
    run(earlier, some, seed, steps, {"ot_weight": 0.0}, f"seed {seed}: earlier training")
    student = _student(seed)
    student.base_model.load_state_dict(earlier.base_model.state_dict())
    return student


def _names(classes: Sequence[int]) -> dict[str, Any]:
    return {"id2label": {i: str(i) for i in classes}, "label2id": {str(i): i for i in classes}}


def _processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": IMAGE, "width": IMAGE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _balanced(labels: torch.Tensor, count: int, seed: int) -> list[int]:
    """Numbers of `count` images, with equal shares of every class."""
    rows, _ = train_test_split(np.arange(len(labels)), train_size=count, stratify=labels.numpy(), random_state=seed)
    return rows.tolist()


def _save(trainer: OTTransferTrainer, folder: Path) -> Path:
    """Saves the student, and loads it again as a stranger would."""
    target = folder / "student"
    trainer.save_model(str(target))
    AutoModelForImageClassification.from_pretrained(target)
    return target


def _draw(
    trainer: OTTransferTrainer, accuracies: Mapping[tuple[str, str], Sequence[float]], folder: Path
) -> list[Path]:
    if trainer.transfer is None:
        raise RuntimeError("the run that was kept has no teacher: there is no plan to draw")
    plan = plan_figure(trainer.transfer.plans[0], student="the student", teacher="the teacher")
    curves = curves_figure(trainer.state.log_history)
    methods = dict.fromkeys(method for _, method in accuracies)
    bars = accuracy_figure({start: {m: accuracies[start, m] for m in methods} for start in STARTS})
    figures = {"plan.png": plan, "curves.png": curves, "accuracy.png": bars}
    return [save_figure(figure, folder / name) for name, figure in figures.items() if figure is not None]

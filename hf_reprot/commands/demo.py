"""Two jobs on real images, with nothing to download: what `hf-reprot demo` runs."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.progress import Progress
from rich.table import Table
from torch import nn
from torch.utils.data import Dataset, Subset
from transformers import AutoModelForImageClassification, TrainerCallback

from ..config import OTTransferConfig
from ..data.digits import load_digits_dataset
from ..trainer import OTTransferTrainer
from ..utils.running import accuracy, quiet
from .demo_parts import Pixels, balanced_rows, narrow_cnn, new_teacher, processor, small_vit
from .demo_report import draw_pictures, write_report

PLAIN, CONTROL, OURS = "no transfer", "random pairing (control)", "transport"
_LOGITS = {"ot_weight": 0.0, "kd_weight": 1.0, "kd_temperature": 4.0}
_FITNET = {"ot_weight": 0.0, "feature_loss": "fitnet"}


@dataclass(frozen=True)
class Job:
    """One job of the demo.

    Attributes:
        title: What a table calls it.
        student: Makes a student, by seed.
        methods: Settings of `OTTransferConfig` by name, on the same students, images and seeds.
        label_free: Each method but "no transfer" learns from all images without a label, and a head is then fitted to
            the labelled ones.
    """

    title: str
    student: Callable[[int], nn.Module]
    methods: Mapping[str, Mapping[str, Any]]
    label_free: bool = False


JOBS = {
    "label-free": Job(
        "CNN to ViT: no labels, then a head",
        small_vit,
        {
            PLAIN: {"ot_weight": 0.0},
            "logits": _LOGITS,
            "FitNet": _FITNET,
            CONTROL: {"ot_method": "random"},
            OURS: {},  # by default that between Gaussians, where there are no labels
        },
        label_free=True,
    ),
    "labels": Job(
        "CNN to narrow CNN: beside the labels",
        narrow_cnn,
        {
            PLAIN: {"ot_weight": 0.0},
            "logits": _LOGITS,
            "FitNet": _FITNET | {"ot_positions": "all"},
            CONTROL: {"ot_method": "random", "ot_positions": "all"},
            OURS: {"ot_positions": "all"},
        },
    ),
}
KEPT = "label-free"  # the job whose student by transport, of the first seed, is saved
DRAWN = "labels"  # the job whose plan is drawn: there neurons are matched one by one


@dataclass
class DemoResult:
    """The results of a demo.

    Attributes:
        jobs: The jobs, by name.
        accuracies: Test accuracies by (job, method), one per seed.
        teacher: The teacher's test accuracy.
        labels: Labelled images of a student.
        images: Images that the teacher saw with labels, and students without.
        seconds: Of the whole demo.
        student: Folder of a student, as `AutoModelForImageClassification.from_pretrained` loads it.
        report: A page that shows everything, in one file.
        pictures: Files.
        kept: The job of that student.
        ours: The method that all others are compared with.
    """

    jobs: Mapping[str, Job]
    accuracies: dict[tuple[str, str], list[float]]
    teacher: float
    labels: int
    images: int
    seconds: float
    student: Path
    report: Path | None = None
    pictures: list[Path] = field(default_factory=list)
    kept: str = KEPT
    ours: str = OURS

    @property
    def seeds(self) -> int:
        """Runs of each method."""
        return len(next(iter(self.accuracies.values())))

    def gains(self, job: str, method: str, over: str) -> np.ndarray:
        """Accuracy of a method less that of another, seed by seed."""
        return np.subtract(self.accuracies[job, method], self.accuracies[job, over])

    def rows(self) -> list[dict[str, Any]]:
        """For each job "title", "columns" and "rows": mean and deviation over seeds, and the paired differences."""
        tables = []
        for name, job in self.jobs.items():
            rows = []
            for method in job.methods:
                gain = spread(self.gains(name, method, PLAIN), sign=True) if method != PLAIN else ""
                ours = spread(self.gains(name, OURS, method), sign=True) if method != OURS else ""
                rows.append([method, spread(self.accuracies[name, method]), gain, ours])
            columns = ["method", "accuracy", f"over {PLAIN}", "transport over it"]
            tables.append({"title": job.title, "columns": columns, "rows": rows})
        return tables

    def tables(self) -> list[Table]:
        """The rows of each job, for a terminal."""
        found = []
        for content in self.rows():
            table = Table(*content["columns"], title=content["title"], title_justify="left")
            for row in content["rows"]:
                table.add_row(*row)
            found.append(table)
        return found

    def reading(self) -> list[str]:
        """What the tables say of the questions that matter: is it worth it, and is it the optimal match that is?"""
        lines = []
        for name, job in self.jobs.items():
            rivals = [method for method in job.methods if method not in (OURS, CONTROL)]
            best = max(rivals, key=lambda method: statistics.fmean(self.accuracies[name, method]))
            lines.append(
                f"{job.title}: transport against the best other method ({best}) {self._against(name, best)}; against "
                f"its control {self._against(name, CONTROL)}."
            )
        return lines

    def _against(self, job: str, method: str) -> str:
        gain = self.gains(job, OURS, method)
        return f"{spread(gain, sign=True)} points, ahead in {int((gain > 0).sum())} of {len(gain)} seeds"


def spread(values: Sequence[float] | np.ndarray, *, sign: bool = False) -> str:
    """Shares as "mean ± deviation", in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):{'+' if sign else ''}.1f} ± {100 * deviation:.1f}"


def run_demo(
    folder: str | Path, *, seeds: int = 2, labels: int = 60, steps: int = 100, jobs: Mapping[str, Job] = JOBS
) -> DemoResult:
    """Trains a teacher on handwritten digits, then smaller students on few labels, in two jobs and by several methods.

    Every method trains the same students on the same images with the same seeds, and nothing is tuned: transport has
    the settings that the study recommends for the job, with its default weight, logits and FitNet have theirs, and the
    control has those of transport with a fixed random pairing.

    Args:
        folder: Where the report, its pictures and a trained student go.
        seeds: Runs of each method.
        labels: Labelled images that a student sees.
        steps: Training steps of each run.
        jobs: By name. "label-free" must be among them, and each must hold "no transfer", "random pairing (control)"
            and "transport", with which the others are compared.
    """
    folder = Path(folder)
    began = time.perf_counter()
    splits = load_digits_dataset()
    data = {name: Pixels(split) for name, split in splits.items()}
    if not 10 <= labels <= len(data["train"]) - 10:
        raise ValueError(f"labels must be at least 10 and at most {len(data['train']) - 10}, got {labels}")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    for name, job in jobs.items():
        if missing := {PLAIN, CONTROL, OURS} - set(job.methods):
            raise ValueError(
                f"the methods of {name} must hold {', '.join(sorted(missing))}, which others are compared with"
            )
    accuracies: dict[tuple[str, str], list[float]] = {(n, m): [] for n, job in jobs.items() for m in job.methods}
    kept: dict[tuple[str, str], OTTransferTrainer] = {}
    with quiet(), _progress(steps * (2 + seeds * len(accuracies))) as tell:
        run = _Run(folder / "runs", data["test"], tell)
        tell("teacher", 0)
        teacher = new_teacher()
        trained = run(teacher, data["train"], 0, 2 * steps, {"ot_weight": 0.0})
        teacher_accuracy = trained.evaluate()["eval_accuracy"]
        for seed in range(seeds):
            few = Subset(data["train"], balanced_rows(data["train"].labels, labels, seed))
            for name, job in jobs.items():
                for method, settings in job.methods.items():
                    tell(f"seed {seed}, {job.title}: {method}", 0)
                    free = job.label_free and method != PLAIN
                    given = {**settings, "task_weight": 0.0} if free else settings
                    trainer = run(job.student(seed), data["train"] if free else few, seed, steps, given, teacher)
                    if free:
                        trainer.fit_head(few)
                    accuracies[name, method].append(trainer.evaluate()["eval_accuracy"])
                    if seed == 0 and method in (PLAIN, OURS):
                        kept[name, method] = trainer
        student = _save(kept[KEPT, OURS], folder)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    by_title = {job.title: {m: accuracies[name, m] for m in job.methods} for name, job in jobs.items()}
    drawn = kept[DRAWN if DRAWN in jobs else KEPT, OURS]
    pictures = draw_pictures(folder, by_title, drawn, teacher, splits["test"], data["test"])
    seconds = time.perf_counter() - began
    result = DemoResult(jobs, accuracies, teacher_accuracy, labels, len(data["train"]), seconds, student)
    result.pictures = pictures
    students = {method: kept[KEPT, method].model for method in (PLAIN, OURS)}
    result.report = write_report(folder, result, teacher, students, splits["test"], data["test"])
    return result


class _Run:
    """Trains one model, with the same settings for all but what a method changes."""

    def __init__(self, folder: Path, test: Dataset, tell: Callable[[str | None, int], None]):
        self.folder, self.test, self.tell = folder, test, tell

    def __call__(
        self,
        model: nn.Module,
        data: Dataset,
        seed: int,
        steps: int,
        settings: Mapping[str, Any],
        teacher: nn.Module | None = None,
    ) -> OTTransferTrainer:
        defaults = {
            "per_device_train_batch_size": 64,
            "per_device_eval_batch_size": 512,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 10,
            "logging_steps": max(1, steps // 20),
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "evaluate_representation": False,
            "dataloader_pin_memory": torch.cuda.is_available(),
        }
        config = OTTransferConfig(output_dir=str(self.folder), max_steps=steps, seed=seed, **{**defaults, **settings})
        trainer = OTTransferTrainer(
            model=model,
            teacher_model=teacher if config.compares_layers or config.kd_weight > 0 else None,
            args=config,
            train_dataset=data,
            eval_dataset=self.test,
            processing_class=processor(),
            compute_metrics=accuracy,
            callbacks=[_Advance(self.tell)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        return trainer


class _Advance(TrainerCallback):
    def __init__(self, tell: Callable[[str | None, int], None]):
        self.tell = tell

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.tell(None, 1)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str | None, int], None]]:
    """What is told of the progress: a bar in a terminal; else a line for every tenth of the steps, on standard error.

    Yields a function of what is done now (None: the same as before) and the number of steps since the last call.
    """
    if sys.stdout.isatty():
        with Progress() as progress:
            bar = progress.add_task("demo", total=total)
            yield lambda title, steps: progress.update(bar, advance=steps, description=title)
            progress.update(bar, description="done", completed=total)
        return
    began, done, said, now = time.perf_counter(), 0, -1, ""

    def tell(title: str | None, steps: int) -> None:
        nonlocal done, said, now
        now, done = title or now, done + steps
        if done * 10 // total > said:
            said = done * 10 // total
            print(f"{done / total:4.0%}  {time.perf_counter() - began:4.0f} s  {now}", file=sys.stderr, flush=True)

    yield tell


def _save(trainer: OTTransferTrainer, folder: Path) -> Path:
    """Saves the student, and loads it again as a stranger would."""
    target = folder / "student"
    trainer.save_model(str(target))
    AutoModelForImageClassification.from_pretrained(target)
    return target

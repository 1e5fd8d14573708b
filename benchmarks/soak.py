"""What a long life leaves behind: memory, threads, files and hooks, over many steps, trainers, evaluations, trials.

    python -m benchmarks.soak
    python -m benchmarks.soak --steps 300 --trainers 10 --evaluations 20 --trials 0

Each phase is measured about thirty times. The first third is warm-up (allocators fill their pools, libraries load what
they need); after it, resident memory must not grow by more than `--slack-mib` from the second third to the last, the
others must not grow at all, and no hook may be left on student or teacher. Exit status 1 where one does.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import TensorDataset
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)

from hf_reprot import OTTransferConfig, OTTransferTrainer

_SAMPLES = 30
_CLASSES, _IMAGE = 3, 16


@dataclass(frozen=True)
class Reading:
    """What the process holds at one moment.

    Attributes:
        memory: Resident memory in MiB.
        threads, files: Of the process, as the system counts them.
        tensors: Tensors that Python still reaches.
        hooks: On student and teacher.
    """

    memory: float
    threads: int
    files: int
    tensors: int
    hooks: int

    @classmethod
    def of(cls, *models: nn.Module) -> Reading:
        """Now, after a collection of garbage."""
        gc.collect()
        process = psutil.Process()
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        memory = process.memory_info().rss / 2**20
        return cls(memory, process.num_threads(), process.num_fds(), tensors, sum(map(count_hooks, models)))


def count_hooks(model: nn.Module) -> int:
    """Hooks on all modules of a model."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def growth(readings: Sequence[Reading]) -> dict[str, float]:
    """How much each number grew from the second third of the readings to the last third, by their medians.

    Args:
        readings: In order; at least 3.

    Example:
        >>> growth([Reading(m, 1, 5, 100, 0) for m in (50, 90, 92, 95, 95, 96)])["memory"]
        2.0
    """
    third = len(readings) // 3
    second, last = readings[third : len(readings) - third], readings[len(readings) - third :]
    return {
        name: statistics.median(getattr(r, name) for r in last) - statistics.median(getattr(r, name) for r in second)
        for name in Reading.__dataclass_fields__
    }


def verdict(readings: Sequence[Reading], slack: float, left: int = 0) -> str:
    """What grew, in words; "flat" where nothing did.

    Args:
        readings: Of one phase, in order.
        slack: How many MiB the resident memory may grow by.
        left: Hooks that are left when the phase is over.
    """
    grown = growth(readings)
    found = [name for name, by in grown.items() if by > (slack if name == "memory" else 0)]
    return ", ".join(f"{name} +{grown[name]:g}" for name in found) + (f" {left} hooks left" if left else "") or "flat"


# ---- the four phases ----


class Soak:
    """One student, one teacher, and what is done with them again and again.

    Args:
        folder: Where runs write.
        workers: Processes that read the data.
    """

    def __init__(self, folder: str, workers: int = 0):
        self.folder, self.workers = folder, workers
        torch.manual_seed(0)
        widths = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
        self.teacher: nn.Module = ResNetForImageClassification(ResNetConfig(**widths, num_labels=_CLASSES))
        self.student = self.new_student()
        self.data = _Rows(torch.randn(64, 3, _IMAGE, _IMAGE), torch.randint(0, _CLASSES, (64,)))
        self.readings: list[Reading] = []

    def new_student(self, trial: object = None) -> nn.Module:
        """A tiny ViT with random weights, the one that is watched from now on."""
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        config = ViTConfig(**sizes, image_size=_IMAGE, patch_size=4, num_labels=_CLASSES)
        self.student = ViTForImageClassification(config)
        return self.student

    def read(self) -> None:
        """Measures."""
        self.readings.append(Reading.of(self.student, self.teacher))

    def trainer(self, steps: int, *, made_anew: bool = False) -> OTTransferTrainer:
        """A trainer of the student, with all terms that hold something over steps."""
        args = OTTransferConfig(
            output_dir=self.folder,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=max(steps // 10, 1),
            max_steps=steps,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=32,
            dataloader_num_workers=self.workers,
            learning_rate=1e-4,
            ot_weight=1.0,
            kd_weight=0.5,
            l2sp_weight=0.01,
            plan_momentum=0.9,
            layer_pairs=["last", "stages"],
        )
        return OTTransferTrainer(
            model=None if made_anew else self.student,
            model_init=self.new_student if made_anew else None,
            teacher_model=self.teacher,
            args=args,
            train_dataset=self.data,
            eval_dataset=self.data,
        )

    def steps(self, count: int) -> None:
        """One long run."""
        trainer = self.trainer(count)
        trainer.add_callback(_EverySteps(self.read, max(count // _SAMPLES, 1)))
        trainer.train()

    def trainers(self, count: int) -> None:
        """Trainers that are made, train a step and are dropped."""
        self._repeat(count, lambda: self.trainer(1).train())

    def evaluations(self, count: int) -> None:
        """One trainer that evaluates."""
        self._repeat(count, self.trainer(1).evaluate)

    def trials(self, count: int) -> None:
        """A search for hyperparameters with optuna: a new student a trial."""
        trainer = self.trainer(2, made_anew=True)
        trainer.add_callback(_AfterRuns(self.read))

        def space(trial):
            return {"ot_weight": trial.suggest_float("ot_weight", 0.1, 10.0, log=True)}

        trainer.hyperparameter_search(space, n_trials=count, direction="minimize", backend="optuna")

    def _repeat(self, count: int, act: Callable[[], object]) -> None:
        every = max(count // _SAMPLES, 1)
        for i in range(count):
            act()
            if i % every == 0:
                self.read()


class _Rows(TensorDataset):
    def __getitem__(self, index):
        pixels, label = super().__getitem__(index)
        return {"pixel_values": pixels, "labels": label}


class _EverySteps(TrainerCallback):
    def __init__(self, act: Callable[[], None], every: int):
        self.act, self.every = act, every

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.act()


class _AfterRuns(TrainerCallback):
    def __init__(self, act: Callable[[], None]):
        self.act = act

    def on_train_end(self, args, state, control, **kwargs):
        self.act()


# ---- the table ----


def run(soak: Soak, phase: str, count: int, slack: float) -> tuple[list[str], bool]:
    """One phase: its line of the table, and whether it was flat."""
    soak.readings.clear()
    getattr(soak, phase)(count)
    left = Reading.of(soak.student, soak.teacher).hooks
    found = verdict(soak.readings, slack, left)
    first, last = soak.readings[len(soak.readings) // 3], soak.readings[-1]
    values = [f"{first.memory:.0f} -> {last.memory:.0f}"]
    values += [f"{getattr(first, n)} -> {getattr(last, n)}" for n in ("threads", "files", "tensors")]
    return [phase, str(count), *values, str(left), found], found == "flat"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the phases and prints their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="Steps of one run (default 3000; 0 leaves it out).")
    parser.add_argument("--trainers", type=int, default=50, help="Trainers made and dropped (default 50).")
    parser.add_argument("--evaluations", type=int, default=200, help="Evaluations by one trainer (default 200).")
    parser.add_argument("--trials", type=int, default=20, help="Trials of a search; needs optuna (default 20).")
    parser.add_argument("--workers", type=int, default=0, help="Processes that read the data (default 0).")
    parser.add_argument("--slack-mib", type=float, default=8.0, help="Growth of memory that is let pass (default 8).")
    args = parser.parse_args(argv)
    counts = {name: getattr(args, name) for name in ("steps", "trainers", "evaluations", "trials")}
    for name, count in counts.items():
        if count < 0 or 0 < count < 3:
            parser.error(f"--{name} must be 0 or at least 3, got {count}: growth is seen from one third to the next")
    table = Table("phase", "times", "memory (MiB)", "threads", "files", "tensors", "hooks left", "verdict")
    flat = True
    gc.collect()
    gc.freeze()  # what the libraries hold is not looked through again and again
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(folder, args.workers)
        for phase, count in counts.items():
            if count:
                line, well = run(soak, phase, count, args.slack_mib)
                table.add_row(*line)
                flat &= well
    gc.unfreeze()
    Console(width=130).print(table)
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())

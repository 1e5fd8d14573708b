"""A training step with and without transport, beside what it is compared with; the most memory that each holds."""

from __future__ import annotations

import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_reprot import OTTransferConfig, OTTransferTrainer, create_timm_student

from ..solver_roofline import synchronise
from ..training import CASES, Parts, Step, timm_model
from .results import Results
from .sizes import Sizes
from .time_box import Box

_TEMPERATURE = 2.0
_CLASSES = [f"class {i}" for i in range(10)]


class Whole(Step):
    """Whole steps of one student on one batch, in several ways."""

    def __init__(self, options: Namespace, batch: int, layers: str, positions: str):
        super().__init__(options, batch, layers, positions)
        self.images = torch.randn(batch, 3, options.image, options.image, device=options.device)
        self.labels = torch.randint(10, (batch,), device=options.device)

    def alone(self) -> None:
        """The student on its labels."""
        with self._autocast():
            loss = functional.cross_entropy(self.student(self.images), self.labels)
        self._update(loss)

    def distilled(self) -> None:
        """Logit distillation, as one writes it by hand."""
        with self._autocast():
            with torch.no_grad():
                theirs = self.teacher(self.images)
            ours = self.student(self.images)
            loss = functional.cross_entropy(ours, self.labels) + distillation(ours, theirs)
        self._update(loss)

    def transported(self) -> None:
        """Transport of the layer pairs in the place of the logits."""
        with self._autocast():
            with torch.no_grad(), self.teacher_taps.recording():
                self.teacher(self.images)
            with self.student_taps.recording():
                loss = functional.cross_entropy(self.student(self.images), self.labels)
        theirs, ours = self.teacher_taps.take(), self.student_taps.take()
        outputs = self.transport.forward_pairs(self.neurons(ours, theirs))
        self._update(loss + torch.stack([output.loss for output in outputs]).mean())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.options.device, torch.bfloat16, enabled=self.options.bfloat16)

    def _update(self, loss: Tensor) -> None:
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """() KL of the softened logits, times the temperature's square."""
    ours, theirs = (functional.log_softmax(x.float() / _TEMPERATURE, -1) for x in (student, teacher))
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * _TEMPERATURE**2


def measure(results: Results, sizes: Sizes, box: Box) -> None:
    """The cases of the first teacher, then the same step in the Trainer, then the other teachers."""
    first, *others = sizes.teachers
    work: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
    for case in sizes.cases[:1]:
        work += [(_case, (first, case, batch)) for batch in sizes.batches]
    work += [(_in_trainer, (first, batch)) for batch in sizes.batches]
    for case in sizes.cases[1:]:
        work += [(_case, (first, case, batch)) for batch in sizes.batches]
    work += [(_case, (teacher, case, batch)) for teacher in others for case in sizes.cases for batch in sizes.batches]
    slowest = 0.0
    for one, arguments in work:
        if box.left < 1.2 * slowest:
            results.note("steps", f"No time was left for {', '.join(map(str, arguments))}.")
            continue
        begin = time.monotonic()
        try:
            one(results, sizes, *arguments)
        except torch.OutOfMemoryError as error:
            results.note("steps", f"{', '.join(map(str, arguments))}: {str(error).splitlines()[0]}")
        if sizes.device == "cuda":
            torch.cuda.empty_cache()
        slowest = max(slowest, time.monotonic() - begin)


def _case(results: Results, sizes: Sizes, teacher: str, case: str, batch: int) -> None:
    options = Namespace(
        teacher=teacher, student=sizes.student, image=sizes.image, device=sizes.device, bfloat16=sizes.half,
        tolerance=1e-3, clock="wall",
    )  # fmt: skip
    step = Whole(options, batch, **CASES[case])
    ways = {"alone": step.alone, "logits": step.distilled, "transport": step.transported}
    times = in_turn(ways, sizes.device, sizes.turns)
    parts = Parts()
    for _ in range(1 + sizes.turns):
        step.run(parts)
    shares = [
        x / (x + y + z) for x, y, z in zip(parts.transport[1:], parts.teacher[1:], parts.student[1:], strict=True)
    ]
    memory = {name: peak_gib(run, sizes.device) for name, run in ways.items()}
    results.row(
        "steps",
        f"{sizes.student} at {sizes.image} px, {_precision(sizes)}, loops written by hand; ms a step",
        **{
            "teacher": teacher,
            "transport of": case,
            "pairs": len(step.pairs),
            "batch": batch,
            "student alone": 1e3 * times["alone"],
            "with logit distillation": 1e3 * times["logits"],
            "with transport instead": 1e3 * times["transport"],
            "transport / logits": times["transport"] / times["logits"],
            "transport alone, ms": 1e3 * statistics.median(parts.transport[1:]),
            "its share": f"{statistics.median(shares):.1%}",
            "sweeps": statistics.median(parts.sweeps[1:]),
            "GiB: alone": memory["alone"],
            "GiB: logits": memory["logits"],
            "GiB: transport": memory["transport"],
        },
    )


def _in_trainer(results: Results, sizes: Sizes, teacher: str, batch: int) -> None:
    """The same step in `Trainer`: distillation in a subclass of one method; ours with it; ours with transport."""
    torch.manual_seed(0)
    model = timm_model(teacher, sizes.image).to(sizes.device).eval().requires_grad_(False)
    steps = 1 + sizes.warm + 2 * sizes.turns
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "logits, by hand": (_Distilling, {}),
        "logits": (OTTransferTrainer, {"kd_weight": 1.0, "ot_weight": 0.0}),
        "transport and logits": (OTTransferTrainer, {"kd_weight": 1.0, "ot_weight": 1.0}),
    }
    taken = {}
    for name, (kind, settings) in ways.items():
        student = create_timm_student(sizes.student, _CLASSES)
        with tempfile.TemporaryDirectory() as folder:
            taken[name] = _trainer_step(kind, folder, student, model, batch, steps, sizes, settings)
    for name, seconds in taken.items():
        results.row(
            "steps",
            f"{sizes.student} at {sizes.image} px, {_precision(sizes)}, in `Trainer` (last layer); ms a step",
            **{"teacher": teacher, "batch": batch, "loss beside the labels": name, "step": 1e3 * seconds},
            **{"/ by hand": seconds / taken["logits, by hand"]},
        )


class _Distilling(Trainer):
    """Logit distillation, as one writes it into `Trainer`."""

    def __init__(self, *args: Any, teacher_model: torch.nn.Module, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.teacher = teacher_model

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        with torch.no_grad(), self.accelerator.autocast():
            theirs = self.teacher(inputs["pixel_values"])
        loss = outputs.loss + distillation(outputs.logits, theirs)
        return (loss, outputs) if return_outputs else loss


class _Timing(TrainerCallback):
    """When each step began, once the device had done all before."""

    def __init__(self, device: str):
        self.device = device
        self.times: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        synchronise(self.device)
        self.times.append(time.perf_counter())


class _Numbers(Dataset):
    """Rows that only count: the batch lies on the device already."""

    def __init__(self, rows: int):
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"labels": index % 10}


def _trainer_step(
    kind: Any, folder: str, student, teacher, batch: int, steps: int, sizes: Sizes, settings: Mapping[str, Any]
) -> float:
    ready = {
        "pixel_values": torch.randn(batch, 3, sizes.image, sizes.image, device=sizes.device),
        "labels": torch.randint(10, (batch,), device=sizes.device),
    }
    config: Any = OTTransferConfig if kind is OTTransferTrainer else TrainingArguments
    timing = _Timing(sizes.device)
    trainer = kind(
        model=student,
        teacher_model=teacher,
        args=config(
            output_dir=folder, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=sizes.device == "cpu",
            per_device_train_batch_size=batch, max_steps=steps, logging_steps=steps, bf16=sizes.half,
            dataloader_pin_memory=False, **settings,
        ),
        train_dataset=_Numbers(batch * steps),
        data_collator=lambda rows: dict(ready),
        callbacks=[timing],
    )  # fmt: skip
    trainer.train()
    gaps = [later - sooner for sooner, later in zip(timing.times, timing.times[1:], strict=False)]
    return statistics.median(gaps[sizes.warm :])


def _precision(sizes: Sizes) -> str:
    return "bfloat16" if sizes.half else "float32"


def in_turn(ways: Mapping[str, Callable[[], None]], device: str, turns: int) -> dict[str, float]:
    """Median seconds of each; all take turns, and the first runs do not count."""
    for run in ways.values():
        for _ in range(3 if device == "cuda" else 1):
            run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, run in ways.items():
            synchronise(device)
            begin = time.perf_counter()
            for _ in range(2):
                run()
            synchronise(device)
            times[name].append((time.perf_counter() - begin) / 2)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def peak_gib(run: Callable[[], None], device: str) -> float | None:
    """Most memory that torch held on a CUDA device during a run, models included, in GiB."""
    if device != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30

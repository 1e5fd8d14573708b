"""Which teacher goes with which student, task and data: every combination, trained for two steps.

    python -m benchmarks.combinations --minutes 20     # goes on where it stopped; writes docs/combinations.md

Tiny models with random weights. A cell trains for two steps, evaluates, saves, is loaded again by transformers (and
PEFT) and gives the same outputs; or it is refused when the trainer is made, by an error of one line.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import logging
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification

from benchmarks.combination_parts import (
    CACHED,
    DATA,
    DENSE,
    HEADLESS,
    LABEL_FREE,
    LORA,
    STUDENTS,
    TASKS,
    TEACHERS,
    TEXT,
    Data,
    Skip,
    adapter,
    processor,
)
from hf_reprot import OTTransferConfig, OTTransferTrainer
from hf_reprot.utils.running import quiet

TRAINS, REFUSED, FAILS, NONE = "trains", "refused", "fails", "none"


@dataclass(frozen=True, order=True)
class Cell:
    """One combination."""

    teacher: str
    student: str
    task: str
    data: str


def cells() -> list[Cell]:
    """All of them, one form of data after the other: a sweep that is stopped has seen every model and task."""
    everything = itertools.product(DATA, TEACHERS, STUDENTS, TASKS)
    return [Cell(teacher, student, task, data) for data, teacher, student, task in everything]


def make_trainer(cell: Cell, data: Data, folder: Path) -> OTTransferTrainer:
    """The trainer of a cell."""
    text = cell.student == TEXT
    student = STUDENTS[cell.student](cell.task, data.folder)
    train = data.form(cell.data, cell.task, text)
    config = OTTransferConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        task_weight=0.0 if cell.task == LABEL_FREE else 1.0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        dataloader_pin_memory=False,
    )
    more: dict[str, Any] = {"teacher_features": data.cache(text)} if cell.teacher == CACHED else {}
    if cell.student == LORA:
        more["peft_config"] = adapter(cell.task)
    if not text and not (cell.task == DENSE and cell.data == "in memory"):
        more["processing_class"] = processor(cell.task)
    return OTTransferTrainer(
        model=student,
        teacher_model=None if cell.teacher == CACHED else TEACHERS[cell.teacher](text),
        args=config,
        train_dataset=train,
        eval_dataset=train,
        **more,
    )


def run(cell: Cell, data: Data) -> dict[str, Any]:
    """What becomes of a cell."""
    folder = Path(tempfile.mkdtemp(dir=data.folder))
    start = time.perf_counter()
    try:
        result, why = _run(cell, data, folder)
    except Exception as error:  # one cell must not end the sweep; its row says why
        result, why = FAILS, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return asdict(cell) | {"result": result, "why": why, "seconds": round(time.perf_counter() - start, 2)}


def _run(cell: Cell, data: Data, folder: Path) -> tuple[str, str]:
    try:
        trainer = make_trainer(cell, data, folder)
    except Skip as reason:
        return NONE, str(reason)
    except ValueError as error:
        lines = str(error).strip().splitlines()
        return (REFUSED, lines[0]) if len(lines) == 1 else (FAILS, f"an error of {len(lines)} lines: {lines[0]}")
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    said = [entry["ot_loss"] for entry in trainer.state.log_history if "ot_loss" in entry]
    if len(said) != 2 or not all(math.isfinite(loss) for loss in said):
        return FAILS, f"the transport's loss was {said}"
    labelled = cell.task == LABEL_FREE and cell.student not in (HEADLESS, TEXT)
    if labelled:
        trainer.fit_head(data.rows("classification", text=False))
    metrics = trainer.evaluate()
    wanted = "eval_accuracy" if labelled or cell.task == "classification" else "eval_loss"
    wanted = "eval_ot_loss" if cell.task == LABEL_FREE and not labelled else wanted
    if wanted not in metrics and not (cell.teacher == CACHED and cell.task == LABEL_FREE):
        return FAILS, f"the evaluation lacks {wanted}: it has {', '.join(metrics)}"
    saved = folder / "checkpoint-2"  # as a checkpoint: without measured speeds and pictures
    trainer.save_model(str(saved))
    difference = reloaded_difference(cell, trainer, saved)
    if difference > 1e-5:
        return FAILS, f"loaded again, its outputs differ by {difference:.2g}"
    return TRAINS, "a head is not fitted" if cell.task == LABEL_FREE and not labelled else ""


def reloaded_difference(cell: Cell, trainer: Any, folder: Path) -> float:
    """The greatest difference between the outputs of the student and of what its folder is loaded as."""
    student = trainer.student().eval()
    if cell.student == LORA:
        from peft import PeftModel

        base = STUDENTS[cell.student](cell.task, folder)
        again: Any = PeftModel.from_pretrained(base, folder)
    else:
        again = _auto_class(cell).from_pretrained(folder)
    batch = next(iter(trainer.get_eval_dataloader()))
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask") if name in batch}
    with torch.no_grad():
        ours, theirs = student(**inputs), again.eval()(**inputs)
    return float((ours[0] - theirs[0]).abs().max())


def _auto_class(cell: Cell) -> Any:
    if cell.student == TEXT:
        return AutoModelForSequenceClassification
    if cell.student == HEADLESS:
        return AutoModel
    dense = cell.task == DENSE
    return transformers.AutoModelForSemanticSegmentation if dense else transformers.AutoModelForImageClassification


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The page."""
    found = {Cell(*(row[name] for name in ("teacher", "student", "task", "data"))): row for row in rows}
    counts = {kind: sum(row["result"] == kind for row in rows) for kind in (TRAINS, REFUSED, FAILS)}
    lines = [
        "# Combinations",
        "",
        f"Written by `python -m benchmarks.combinations` (torch {torch.__version__.split('+')[0]}, timm "
        f"{timm.__version__}, transformers {transformers.__version__}), with tiny models of random weights. Each cell "
        "is trained for two steps, evaluated, saved, loaded again by transformers (and PEFT) and gives the same "
        "outputs, or it is refused when the trainer is made, by an error of one line. "
        f"{counts[TRAINS]} cells train, {counts[REFUSED]} are refused, {counts[FAILS]} fail; "
        f"{len(cells()) - len(rows)} were not run. A part of them is run again with the tests.",
        "",
        f"Data: {', '.join(DATA)}; where a cell names none, it is the same with all of them. Images of segmentation in "
        "memory are prepared tensors with masks, in the other forms images with a column of masks.",
        "",
    ]
    reasons: dict[str, int] = {}
    for task in TASKS:
        lines += [f"## {task[0].upper()}{task[1:]}", "", f"| teacher | {' | '.join(STUDENTS)} |"]
        lines += ["|---" * (len(STUDENTS) + 1) + "|"]
        for teacher in TEACHERS:
            made = [_summary(found, teacher, student, task, reasons) for student in STUDENTS]
            lines.append(f"| {teacher} | {' | '.join(made)} |")
        lines.append("")
    lines += ["## Why", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(lines) + "\n"


def _summary(found: dict[Cell, Any], teacher: str, student: str, task: str, reasons: dict[str, int]) -> str:
    """One cell of the page: what becomes of each form of data, those of one fate together."""
    fates: dict[str, list[str]] = {}
    for data in DATA:
        row = found.get(Cell(teacher, student, task, data))
        fates.setdefault("not run" if row is None else _fate(row, reasons), []).append(data)
    if len(fates) == 1 and len(fates[min(fates)]) == len(DATA):
        return min(fates)
    return "; ".join(f"{fate}: {', '.join(data)}" for fate, data in fates.items())


def _fate(row: dict[str, Any], reasons: dict[str, int]) -> str:
    if row["result"] == NONE:
        return "-"
    if not row["why"]:
        return "trains"
    number = reasons.setdefault(row["why"], len(reasons) + 1)
    return f"{'**fails**' if row['result'] == FAILS else row['result']} ({number})"


def fates_on(page: str, cell: Cell) -> str:
    """What a page says of a cell."""
    section = page.split(f"## {cell.task[0].upper()}{cell.task[1:]}\n")[1].split("\n## ")[0]
    line = next(line for line in section.splitlines() if line.startswith(f"| {cell.teacher} |"))
    said = line.strip("| ").split(" | ")[1 + list(STUDENTS).index(cell.student)]
    for part in said.split("; "):
        fate, _, forms = part.partition(": ")
        if cell.data in forms.split(", "):
            return fate
    return said  # of every form


def main() -> None:
    parser = argparse.ArgumentParser(description=inspect.cleandoc(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=Path, default=Path("runs/combinations.jsonl"), help="what is done already")
    parser.add_argument("--page", type=Path, default=Path("docs/combinations.md"))
    parser.add_argument("--minutes", type=float, default=20.0, help="stops after this time")
    parser.add_argument("--part", default="1/1", help="the cells of one of several processes, such as 1/2")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows.exists() else []
    order = cells()
    kept = {tuple(row[n] for n in ("teacher", "student", "task", "data")): row for row in rows}
    end = time.monotonic() + 60 * args.minutes
    which, parts = map(int, args.part.split("/"))
    folder = Path(tempfile.mkdtemp())
    try:
        data = Data(folder)
        for cell in order[which - 1 :: parts]:
            key = (cell.teacher, cell.student, cell.task, cell.data)
            if time.monotonic() > end:
                break
            if key in kept and kept[key]["result"] != FAILS:
                continue
            with quiet():
                logging.disable(logging.WARNING)
                kept[key] = run(cell, data)
                logging.disable(logging.NOTSET)
            with args.rows.open("a") as file:
                file.write(json.dumps(kept[key]) + "\n")
            print(json.dumps(kept[key]), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    args.page.write_text(table(list(kept.values())))


if __name__ == "__main__":
    main()

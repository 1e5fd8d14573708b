"""The metadata of a card, as the Hub's validation takes it."""

from __future__ import annotations

import re

from huggingface_hub import EvalResult, ModelCardData

from .markdown import slug
from .record import RunRecord

_TAGS = ("hf_reprot", "optimal-transport", "knowledge-distillation")
_REPO_ID = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}", re.ASCII)


def card_metadata(record: RunRecord) -> ModelCardData:
    """The metadata of the card, as the Hub's validation takes it."""
    tags = [*_TAGS] if record.teachers else ["hf_reprot"]
    tags += [f"teacher:{teacher.name}" for teacher in record.teachers if teacher.origin == "hub"]
    if record.student.library == "timm":
        tags += ["timm", "transformers"]  # the same repository loads in both
    data = ModelCardData(
        language=record.language or None,
        library_name=_library(record),
        pipeline_tag=record.task,
        tags=[*tags, *(tag for tag in record.tags if tag not in tags)],
        datasets=_hub_datasets(record) or None,
        metrics=[name for name in _metric_names(record) if name != "loss"] or None,
        **(record.license.metadata() if record.license is not None else {}),
    )
    if record.start.kind == "hub" and record.start.name:
        data.base_model = record.start.name
        data["base_model_relation"] = "adapter" if record.student.library == "peft" else "finetune"
    results = _eval_results(record)
    if results:
        data.model_name = record.name
        data.eval_results = results
    return data


def _library(record: RunRecord) -> str | None:
    return record.student.library if record.student.library in ("transformers", "timm", "peft") else None


def _hub_datasets(record: RunRecord) -> list[str]:
    return [data.repo for data in record.data_sets() if data.repo is not None and _REPO_ID.fullmatch(data.repo)]


def _metric_names(record: RunRecord) -> list[str]:
    return list(dict.fromkeys(name for evaluation in record.evaluations for name in evaluation.metrics))


def _eval_results(record: RunRecord) -> list[EvalResult]:
    """One result a data set: the Hub takes results of the same data set, configuration and split for one."""
    if record.task is None:
        return []
    results: list[EvalResult] = []
    taken: set[tuple] = set()
    for evaluation in record.evaluations:
        data, split = evaluation.data, evaluation.data.split
        name, kind = data.name, data.repo or slug(data.name)
        if data.part is not None:
            name = f"{name} ({data.part})"
            split = data.part if (kind, data.config, split) in taken else split
        taken.add((kind, data.config, split))
        results += [
            EvalResult(
                task_type=record.task,
                task_name=record.task.replace("-", " ").capitalize(),
                dataset_type=kind,
                dataset_name=name,
                dataset_config=data.config,
                dataset_split=split,
                dataset_revision=data.revision,
                metric_type=metric,
                metric_name=metric.replace("_", " ").capitalize(),
                metric_value=value,
            )
            for metric, value in evaluation.metrics.items()
        ]
    return results

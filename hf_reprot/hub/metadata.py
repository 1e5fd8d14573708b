"""The metadata of a card, as the Hub's validation takes it."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .foreign import repo_of, revision_of, text_of, word_of
from .markdown import slug
from .record import Job, RunRecord

_TAGS = ("hf_reprot", "optimal-transport")
# What the field calls a job; a student that learnt a representation has no teacher's answers distilled into it.
_OF_JOB = {
    Job.DISTILLATION: "knowledge-distillation",
    Job.TRANSFER: "transfer-learning",
    Job.FINE_TUNING: "transfer-learning",
    Job.REPRESENTATION: "representation-learning",
    Job.REPRESENTATION_AND_HEAD: "representation-learning",
}


def card_metadata(record: RunRecord) -> ModelCardData:
    """The metadata of the card, as the Hub's validation takes it."""
    tags = [*_TAGS, *filter(None, [_OF_JOB.get(Job(record.job))])] if record.teachers else ["hf_reprot"]
    tags += [
        f"teacher:{teacher.name}" for teacher in record.teachers if teacher.origin == "hub" and repo_of(teacher.name)
    ]
    if record.student.library == "timm":
        tags += ["timm", "transformers"]  # the same repository loads in both
    tags += ["onnx"] if record.exports else []
    terms: dict[str, Any] = record.license.metadata() if record.license is not None else {}
    data = ModelCardData(
        language=[code for code in record.language if word_of(code)] or None,
        library_name=_library(record),
        pipeline_tag=word_of(record.task),
        tags=list(dict.fromkeys([*tags, *(tag for tag in map(text_of, record.tags) if tag is not None)])),
        datasets=_hub_datasets(record) or None,
        metrics=[name for name in map(text_of, _metric_names(record)) if name not in ("loss", None)] or None,
        **terms,
    )
    if record.start.kind == "hub" and repo_of(record.start.name):
        data.base_model = record.start.name
        data["base_model_relation"] = "adapter" if record.student.library == "peft" else "finetune"
    results = _eval_results(record)
    if results:
        data.model_name = text_of(record.name) or "student"
        data.eval_results = results
    return data


def _library(record: RunRecord) -> str | None:
    return record.student.library if record.student.library in ("transformers", "timm", "peft") else None


def _hub_datasets(record: RunRecord) -> list[str]:
    return [data.repo for data in record.data_sets() if data.repo is not None and repo_of(data.repo) is not None]


def _metric_names(record: RunRecord) -> list[str]:
    return list(dict.fromkeys(name for evaluation in record.evaluations for name in evaluation.metrics))


def _eval_results(record: RunRecord) -> list[EvalResult]:
    """One result per data set: the Hub takes results of the same data set, configuration and split for one."""
    if record.task is None or word_of(record.task) is None:
        return []
    results: list[EvalResult] = []
    taken: set[tuple] = set()
    for evaluation in record.evaluations:
        data, split = evaluation.data, evaluation.data.split
        name, kind = text_of(data.name) or "data", repo_of(data.repo) or slug(data.name)
        if data.part is not None:
            name = f"{name} ({text_of(data.part)})"
            split = text_of(data.part) if (kind, data.config, split) in taken else split
        taken.add((kind, data.config, split))
        results += [
            EvalResult(
                task_type=record.task,
                task_name=record.task.replace("-", " ").capitalize(),
                dataset_type=kind,
                dataset_name=name,
                dataset_config=text_of(data.config),
                dataset_split=text_of(split),
                dataset_revision=revision_of(data.revision),
                metric_type=text_of(metric) or "metric",
                metric_name=(text_of(metric) or "metric").replace("_", " ").capitalize(),
                metric_value=value,
            )
            for metric, value in evaluation.metrics.items()
        ]
    return results

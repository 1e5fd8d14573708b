"""What the template of a card shows, section by section."""

from __future__ import annotations

import functools
from typing import Any

from ..models.head import HeadFit
from ..settings.groups import default_of
from ..settings.transfer import TransferSettings
from ..utils.settings import settings_of_loss, weight_counts, weights_of_terms
from .facts import ExportFacts, ModelFacts
from .foreign import url_of
from .licenses import License
from .markdown import (
    cell,
    code,
    data_link,
    data_title,
    duration,
    link,
    model_link,
    origin_link,
    parameter_count,
    plain,
    score,
    setting_value,
    start_link,
    start_sentence,
    upper,
)
from .paper import _paper
from .record import Job, RunRecord

_SHOWN = 20  # classes of a teacher
_PROBLEMS = {
    "multi_label_classification": " (several labels per sample: each by its own yes or no)",
    "regression": " (numbers, not classes)",
}
_KL = "KL of the logits at kd_temperature"
_DIVERGENCES = {
    "multi_label_classification": "KL of each class's yes or no at kd_temperature (mean over the classes)",
    "regression": "squared difference of the outputs",
}
_UNSEEN_SETTINGS = ("layer_pairs", "teacher_model_init_kwargs")  # resolved and private, in this order


def transports(record: RunRecord) -> bool:
    """Whether transport between neurons took part."""
    return bool(record.pairs and record.transfer.get("ot_weight"))


def opening(record: RunRecord) -> str:
    """What the student is, in a sentence or two."""
    student = f"{cell(record.student.architecture)} with {parameter_count(record.student.parameters)} parameters"
    if not record.teachers:
        return f"{student}, trained with hf_reprot without a teacher."
    teachers = " and ".join(model_link(teacher) for teacher in record.teachers)
    gaussian = record.transfer.get("ot_method") == "gaussian"
    method = f"[optimal transport between neurons]({_paper['url']})"
    how = "neurons of both are matched by what they compute on the data, whatever their order and number"
    if gaussian:
        how = "the best rotation of the student's neurons onto the teacher's, by what they compute on the data"
    if not record.pairs:
        return f"{student}, trained with hf_reprot on the logits of {teachers}."
    if not transports(record):
        return f"{student}. In training, its layers were pulled toward those of {teachers} by the loss given below."
    if record.job in (Job.REPRESENTATION, Job.REPRESENTATION_AND_HEAD):
        then = (
            f" A head was then fitted to {record.head.samples:,} labelled samples." if record.head is not None else ""
        )
        return f"{student}. It learnt the representation of {teachers} without labels, by {method}: {how}.{then}"
    return f"{student}. In training, its representation was pulled toward that of {teachers} by {method}: {how}."


def result_columns(record: RunRecord) -> list[str]:
    """Heads of the columns of `result_rows`."""
    if not record.teacher_scores():
        return ["Student"]
    return ["Student", *(["Teacher"] if len(record.teachers) == 1 else [t.name for t in record.teachers])]


def result_rows(record: RunRecord) -> list[dict[str, Any]]:
    """One row per data set and metric."""
    rows = []
    for evaluation in record.evaluations:
        for name, value in evaluation.metrics.items():
            theirs = evaluation.teacher_scores(name, record.teachers) if record.teacher_scores() else []
            teachers = [score(value) for value in theirs]
            facts = evaluation.data
            data = cell(" ".join(filter(None, (facts.name, facts.split, facts.part and f"({facts.part})"))))
            rows.append({"data": data, "metric": name, "scores": [score(value), *teachers]})
    return rows


def model_rows(record: RunRecord) -> list[dict[str, str]]:
    """Teachers and student side by side."""
    role = "Teacher" if len(record.teachers) == 1 else "Teacher {}"
    rows = [_model_row(role.format(i + 1), t, origin_link(t)) for i, t in enumerate(record.teachers)]
    return [*rows, _model_row("**Student**", record.student, start_link(record), record.license)]


def _model_row(role: str, model: ModelFacts, origin: str, license: License | None = None) -> dict[str, str]:
    license = license or model.license
    return {
        "role": role,
        "architecture": model.architecture,
        "origin": origin,
        "parameters": parameter_count(model.parameters),
        "speed": f"{model.speed.samples_per_second:,.0f} a second" if model.speed is not None else "not measured",
        "license": license.title if license is not None else "not known",
    }


def teacher_rows(record: RunRecord) -> list[dict[str, str]]:
    """What each of several teachers taught; one that knows only some classes has a row, too, if it is alone."""
    if len(record.teachers) < 2 and not any(teacher.classes for teacher in record.teachers):
        return []
    rows = []
    for i, teacher in enumerate(record.teachers):
        layers = [f"`{code(pair.teacher)}`" for pair in record.pairs if pair.teacher_index == i]
        rows.append(
            {
                "teacher": model_link(teacher),
                "share": f"{teacher.share:.3g}" if teacher.share is not None else "1",
                "classes": _known(teacher.classes, bool(record.transfer.get("kd_weight"))),
                "layers": ", ".join(layers) or "none",
                "license": cell(teacher.license.title) if teacher.license is not None else "not known",
            }
        )
    return rows


def _known(classes: list[str] | None, logits: bool) -> str:
    """The classes of a teacher; without its logits, nothing says that it knows any."""
    if classes is None:
        return "all" if logits else ""
    shown = ", ".join(cell(name) for name in classes[:_SHOWN])
    return f"{len(classes)}: {shown}{', ...' if len(classes) > _SHOWN else ''}" if classes else "none"


def speed_sentence(record: RunRecord) -> str:
    """One sentence on how the speeds were measured; empty where none was."""
    measured = [model.speed for model in (*record.teachers, record.student) if model.speed is not None]
    if not measured:
        return ""
    last = measured[-1]
    inputs = sorted({speed.input for speed in measured})
    return (
        f"Speed: forward passes in evaluation mode, batches of {last.batch_size}, inputs of "
        f"{cell(' and '.join(inputs))}, {cell(last.dtype)}, on {cell(last.device)}."
    )


def fact_rows(record: RunRecord) -> list[tuple[str, str]]:
    """What the run was: names and values."""
    rows = [("Job", Job(record.job).sentence), ("Student's weights started", start_sentence(record))]
    for i, teacher in enumerate(record.teachers):
        title = "Teacher" if len(record.teachers) == 1 else f"Teacher {i + 1}"
        rows.append((title, f"{model_link(teacher)}, {cell(teacher.architecture)}, frozen"))
        if teacher.cache is not None:
            rows.append((f"{title}'s features", f"from a cache: {cell(teacher.cache)}"))
    if record.train_data is not None:
        rows.append(("Trained on", data_link(record.train_data)))
    rows += [("Evaluated on", data_link(evaluation.data)) for evaluation in record.evaluations]
    if record.input is not None:
        rows.append(("Input", cell(record.input)))
    if record.classes is not None:
        rows.append(("Classes", f"{record.classes}{_PROBLEMS.get(record.problem_type or '', '')}"))
    if record.class_notes:
        rows.append(("Names of classes", cell(" ".join(record.class_notes))))
    if record.hardware is not None:
        rows.append(("Hardware", cell(record.hardware)))
    if record.step is not None:
        time = f" in {duration(record.seconds)}" if record.seconds is not None else ""
        rows.append(("Optimiser steps", f"{record.step:,}{time}"))
    if record.head is not None:
        rows.append(("Head", _head_sentence(record, record.head)))
    return rows + [("ONNX", _export_sentence(facts)) for facts in record.exports]


def _export_sentence(facts: ExportFacts) -> str:
    """What an export is and how it compares."""
    speed = ""
    if facts.speed is not None:
        beside = f" ({facts.torch_speed.samples_per_second:,.0f} in PyTorch)" if facts.torch_speed is not None else ""
        speed = (
            f"; {facts.speed.samples_per_second:,.0f} images a second{beside}, batches of {facts.speed.batch_size}, on "
            f"{cell(facts.speed.device)}"
        )
    return (
        f"`{code(facts.file)}`, {facts.bytes / 1e6:,.1f} MB, opset {facts.opset}; {cell(facts.runtime)} gives the "
        f"student's outputs to {facts.difference:.1g} of the largest on {facts.images} images (allowed: "
        f"{facts.tolerance:.1g}){speed}"
    )


def _head_sentence(record: RunRecord, fit: HeadFit) -> str:
    """How the head was fitted."""
    found = ""
    if fit.accuracy is not None:
        found = f", accuracy there {fit.accuracy:.3f} (cross-validation)"
    elif fit.error is not None:
        found = f", root mean squared error there {fit.error:.3g} (cross-validation)"
    method = "ridge regression" if fit.error is not None else "logistic regression"
    data = f" of {data_link(record.head_data)}" if record.head_data is not None else ""
    return f"afterwards, by {method} on {fit.samples:,} labelled samples{data}{found}"


def loss_formula(record: RunRecord) -> str:
    """The loss, with the terms that took part."""
    terms = []
    for weight, said in weights_of_terms(TransferSettings).items():
        if not record.transfer.get(weight) or not weight_counts(TransferSettings, weight, record.transfer):
            continue
        if said.get("needs") == "layers" and not record.pairs:
            continue
        text = said["term"].format_map({name: code(str(value)) for name, value in record.transfer.items()})
        terms.append(f"{weight} * {_divergence(record) if weight == 'kd_weight' else text}")
    return f"`loss = {' + '.join(terms)}`"


def _divergence(record: RunRecord) -> str:
    """What is compared of the logits: it follows from what the student's outputs are."""
    decoupled = ", label and other classes apart" if record.transfer.get("kd_method") == "dkd" else ""
    return f"{_DIVERGENCES.get(record.problem_type or '', _KL)}{decoupled}"


def split_settings(record: RunRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the loss and of the transport: those that differ from their defaults, and the others."""
    shown = {n: v for n, v in record.transfer.items() if n not in _UNSEEN_SETTINGS}
    of_loss = [name for name in settings_of_loss(TransferSettings) if name in shown]
    if not transports(record):  # how neurons would be matched
        shown = {name: shown[name] for name in of_loss}
    if not record.layer_plans:  # nothing was searched for
        shown = {n: v for n, v in shown.items() if not n.startswith("layer_")}
    defaults = {name: default_of(field) for name, field in TransferSettings.__dataclass_fields__.items()}
    ordered = {name: shown[name] for name in dict.fromkeys([*of_loss, *shown])}
    changed = {n: v for n, v in ordered.items() if n not in defaults or v != defaults[n]}
    return changed, {n: v for n, v in ordered.items() if n not in changed}


def setting_table(settings: dict[str, Any]) -> str:
    """Settings as a table, with what they mean where they are this package's own."""
    meanings = _meanings()
    wide = any(name in meanings for name in settings)
    lines = ["| Setting | Value | |", "|---|---|---|"] if wide else ["| Setting | Value |", "|---|---|"]
    for name, value in settings.items():
        line = f"| `{code(name)}` | {setting_value(value)} |"
        lines.append(line + f" {cell(meanings.get(name, ''))} |" if wide else line)
    return "\n".join(lines) if settings else ""


@functools.cache
def _meanings() -> dict[str, str]:
    return {name: field.metadata.get("help", "") for name, field in TransferSettings.__dataclass_fields__.items()}


def limits(record: RunRecord) -> list[str]:
    """Limitations of the student."""
    limits = []
    if record.evaluations:
        where = ", ".join(dict.fromkeys(cell(evaluation.data.name) for evaluation in record.evaluations))
        limits.append(f"It was evaluated on {where} only: its performance on other data is unknown.")
    else:
        since = " since its head was fitted" if record.head is not None else ""
        limits.append(f"It was not evaluated{since}: its performance is unknown.")
    if record.head is not None and record.head.absent:
        absent = ", ".join(cell(name) for name in record.head.absent[:_SHOWN])
        more = ", ..." if len(record.head.absent) > _SHOWN else ""
        limits.append(f"It never predicts a class without a labelled sample: {absent}{more}.")
    if record.job == Job.REPRESENTATION and record.classes is not None:
        limits.append("Its head was not trained: its predictions are meaningless until one is fitted.")
    if record.teachers:
        distilled = "A distilled student" if record.job == Job.DISTILLATION else "A student"
        limits.append(
            f"{distilled} inherits the teacher's errors and biases, and those of the data that the teacher was "
            "trained on."
        )
    if transports(record):
        limits.append(
            "A low transport cost says that neurons of student and teacher can be matched on the training data, not "
            "that the student is as good as the teacher."
        )
    if record.train_data is not None and record.train_data.samples is not None and record.train_data.samples < 10_000:
        limits.append(f"It was trained on only {record.train_data.samples:,} samples.")
    return limits


def licence_sentences(record: RunRecord) -> list[str]:
    """The licences of everything that went into the student."""

    def said(license: License | None) -> str:
        if license is None:
            return "not known"
        url = license.link if url_of(license.link) is not None else None
        return link(license.title, url) if url is not None else plain(license.title)

    sentences = [f"The student: {said(record.license)}."]
    if record.start.kind in ("hub", "folder"):
        sentences.append(f"The weights it started from ({start_link(record)}): {said(record.start.license)}.")
    sentences += [f"The teacher {model_link(teacher)}: {said(teacher.license)}." for teacher in record.teachers]
    for data in record.data_sets():
        sentences.append(f"{upper(data_title(data, data_link(data, split=False)))}: {said(data.license)}.")
    return sentences


def compared_models(record: RunRecord) -> list[dict[str, Any]]:
    """What `comparison_figure` takes: teachers first."""
    student = record.evaluations[0].metrics if record.evaluations else {}
    titles = ["teacher"] if len(record.teachers) == 1 else [f"teacher {i + 1}" for i in range(len(record.teachers))]
    models = [*((f"{title}: {t.architecture}", t, t.metrics) for title, t in zip(titles, record.teachers, strict=True))]
    models.append((f"student: {record.student.architecture}", record.student, student))
    return [
        {
            "name": name,
            "parameters": model.parameters,
            "samples_per_second": model.speed.samples_per_second if model.speed is not None else None,
            "accuracy": metrics.get("accuracy"),
        }
        for name, model, metrics in models
    ]

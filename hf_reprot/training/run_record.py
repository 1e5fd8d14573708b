"""From a trainer's own objects to the `RunRecord` of its run: nothing here is told, everything is found."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..cache.teacher import CachedTeacher
from ..data.preprocessing import image_channels
from ..features.tables import evaluating
from ..hub.card import LAYERS, PLAN
from ..hub.facts import DataFacts, ModelFacts, Speed, Start
from ..hub.foreign import text_of
from ..hub.licenses import License
from ..hub.provenance import data_facts, model_facts, start_of, task_of, teacher_facts
from ..hub.record import Evaluation, Job, LayerPlanFacts, PairFacts, RunRecord, thinned_log
from ..hub.speed import device_name, dummy_batch, measure_speed, shape_text
from ..models.modules import class_count, class_names
from ..models.problems import stated_problem
from ..models.sharding import is_sharded
from .checks import trains_on_teacher_task
from .evaluation import TEACHER_METRICS

logger = logging.getLogger(__name__)

_SPEED_SAMPLES = 16
_PLAN_PICTURES = 4  # of pairs that were found, the heaviest: there may be dozens
_SOFTWARE = ("hf-reprot", "torch", "transformers", "timm", "datasets", "accelerate", "huggingface-hub", "POT", "peft")
_NOT_METRICS = ("_runtime", "_per_second", "_model_preparation_time", "_jit_compilation_time")
_TRAINING = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
)


def collect_record(
    trainer: Any,
    name: str,
    *,
    said: Mapping[str, Any],
    speeds: Mapping[str | int, Speed],
    teacher_metrics: Mapping[int, Mapping[str, float]],
) -> RunRecord:
    """Everything that is known of a trainer's run.

    Args:
        trainer: An `OTTransferTrainer`.
        name: What the student is called.
        said: What someone said of the run, by the argument names of `Trainer.create_model_card`; it goes before what
            is found.
        speeds: What `measure_speeds` gave.
        teacher_metrics: Metrics of teachers on the evaluation data, by the teacher's number.
    """
    args, student, log = trainer.args, student_of(trainer), trainer.state.log_history
    start = start_of(student, said.get("finetuned_from") or getattr(student, "weights_from", None))
    start.new_classes = getattr(student, "new_classes", None)
    record = RunRecord(
        name=name,
        student=model_facts(student, speed=speeds.get("student")),
        start=start,
        repo_id=trainer.hub_model_id,
        task=next(iter(listed(said.get("tasks"))), None) or task_of(student),
        license=License.of(said.get("license")) or start.license,
        classes=class_count(student),
        problem_type=stated_problem(student),
        class_notes=list(trainer.class_notes),
        input=_input(trainer),
        teachers=[teacher_facts(teacher) for teacher in trainer.teachers],
        pairs=_pair_facts(trainer),
        layer_plans=_layer_plan_facts(trainer),
        train_data=_data_facts(trainer.train_dataset, said),
        evaluations=evaluations_of(trainer, said),
        transfer=args.transfer_settings() | _augmentation(trainer.data_collator),
        training=_training_settings(args, trainer.accelerator.num_processes),
        seeds={"seed": args.seed} | ({"data_seed": args.data_seed} if args.data_seed is not None else {}),
        versions=_versions(),
        hardware=_hardware(trainer),
        step=trainer.state.global_step,
        head=trainer.head_fit,
        head_data=_head_data(trainer),
        seconds=next((entry["train_runtime"] for entry in reversed(log) if "train_runtime" in entry), None),
        history=thinned_log(entry for entry in log if not is_foreign(entry, trainer)),
        tags=[*listed(said.get("tags")), *listed(getattr(student, "model_tags", None))],
        language=listed(said.get("language")),
    )
    record.job = _job(record, trainer)
    for i, teacher in enumerate(record.teachers):
        teacher.speed = speeds.get(i)
        teacher.metrics = dict(teacher_metrics.get(i, {}))
        if len(record.teachers) > 1:
            teacher.share = trainer.transfer.teacher_weights[i] / sum(trainer.transfer.teacher_weights)
        teacher.classes = _known_classes(student, trainer.transfer.known_classes[i])
    return record


def _augmentation(collator: Any) -> dict[str, Any]:
    """What the collator does, whoever made it."""
    done = getattr(collator, "augmentation", None)
    return {"augmentation": done} if isinstance(done, str) else {}


def _known_classes(student: nn.Module, columns: list[int | None] | None) -> list[str] | None:
    """What the classes of a teacher are called; None for all of the student's."""
    if columns is None:
        return None
    names, found = class_names(student), [c for c in columns if c is not None]
    if len(found) == class_count(student):
        return None
    return [names[c] if names is not None else str(c) for c in found]


def measure_speeds(trainer: Any) -> dict[str | int, Speed]:
    """Speeds of the student ("student") and the teachers (by number) on dummy inputs of the student's size.

    Empty where it is not known what the student takes, or where its weights are spread over processes.
    """
    speeds: dict[str | int, Speed] = {}
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return speeds
    student = student_of(trainer)
    try:
        size = getattr(trainer.preprocessing, "size", None)
        batch = dummy_batch(student, size, _channels(trainer), _SPEED_SAMPLES)
        if batch is None:
            return speeds
        dtype = next(p.dtype for p in student.parameters() if p.is_floating_point())
        with evaluating(student):
            speeds["student"] = measure_speed(lambda inputs: student(**inputs), batch, dtype=dtype)
        for i, teacher in enumerate(trainer.teachers):
            if is_sharded(teacher.model) or isinstance(teacher, CachedTeacher):
                continue  # the other processes would have to run it, too
            inputs = teacher.inputs_for(batch, trainer.preprocessing)
            speeds[i] = measure_speed(teacher, inputs, dtype=teacher.dtype)
    except Exception as error:  # a number on a card is not worth a trained student
        logger.warning("The speed was not measured: %s: %s", type(error).__name__, error)
    return speeds


def student_of(trainer: Any) -> nn.Module:
    """The student, unwrapped."""
    return trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)


def listed(value: str | list[str] | None) -> list[str]:
    """None, one or several texts, as a list; what is no text is left out."""
    values = [] if value is None else [value] if isinstance(value, str) else list(value)
    return [text for text in map(text_of, values) if text is not None]


def _job(record: RunRecord, trainer: Any) -> Job:
    start, args = record.start, trainer.args
    if not record.teachers:
        return Job.NO_TEACHER
    if args.task_weight == 0 and record.head is not None:
        return Job.REPRESENTATION_AND_HEAD
    if start.kind in ("hub", "folder") and any(_is_start(teacher, start) for teacher in record.teachers):
        return Job.FINE_TUNING
    if args.task_weight == args.kd_weight == 0:
        return Job.REPRESENTATION
    same_task = trains_on_teacher_task(args, student_of(trainer), trainer.teachers)
    return Job.DISTILLATION if same_task else Job.TRANSFER


def _is_start(teacher: ModelFacts, start: Start) -> bool:
    return (teacher.origin, teacher.name) == (start.kind, start.name)


def _input(trainer: Any) -> str | None:
    size = getattr(trainer.preprocessing, "size", None)
    return shape_text((_channels(trainer), *size)) if size is not None else None


def _channels(trainer: Any) -> int:
    return image_channels(student_of(trainer)) or getattr(trainer.preprocessing, "channels", None) or 3


def _pair_facts(trainer: Any) -> list[PairFacts]:
    pairs, plans = trainer.transfer.pairs, trainer.transfer.plans
    drawn = set(range(len(pairs)))
    if trainer.args.finds_layers:
        drawn = set(sorted(drawn, key=lambda i: -pairs[i].weight)[:_PLAN_PICTURES])
    facts = []
    for i, pair in enumerate(pairs):
        ours, theirs = tuple(plans[i].shape) if i < len(plans) else (None, None)
        share = trainer.transfer.shares[i]
        picture = PLAN.format(i + 1) if i in drawn else None
        facts.append(PairFacts(pair.student, pair.teacher, pair.teacher_index, share, ours, theirs, picture))
    return facts


def _layer_plan_facts(trainer: Any) -> list[LayerPlanFacts]:
    plans = trainer.transfer.layer_plans
    return [
        LayerPlanFacts(
            plan.student_layers, plan.teacher_layers, plan.plan.tolist(), plan.cost.tolist(), i, LAYERS.format(i + 1)
        )
        for i, plan in enumerate(plans)
    ]


def _data_facts(dataset: Any, said: Mapping[str, Any]) -> DataFacts | None:
    facts = data_facts(dataset)
    if facts is not None and facts.repo is None:
        facts.repo = next(iter(listed(said.get("dataset_tags"))), None)
        facts.name = next(iter(listed(said.get("dataset"))), None) or facts.repo or facts.name
    return facts


def _head_data(trainer: Any) -> DataFacts | None:
    """The data of the head where it is none of the others."""
    fitted = trainer.head.data if trainer.head is not None else None
    facts, trained = data_facts(fitted), data_facts(trainer.train_dataset)
    same = facts is not None and trained is not None and (facts.name, facts.split) == (trained.name, trained.split)
    return None if same else facts


def evaluations_of(trainer: Any, said: Mapping[str, Any]) -> list[Evaluation]:
    """What was measured on the run's evaluation data, of the weights at hand: one result a data set, named.

    What `evaluate(other_data)` found is kept out: the trainer knows which entries of its log those are.
    """
    metrics = {
        key.removeprefix("eval_"): float(value)
        for key, value in _final_evaluation(trainer).items()
        if key.startswith("eval_") and not key.endswith(_NOT_METRICS) and isinstance(value, int | float)
    }
    if not metrics:
        return []
    if not isinstance(trainer.eval_dataset, Mapping):
        data = _data_facts(trainer.eval_dataset, said) or DataFacts("data that was not recorded", None)
        return [_evaluation(data, metrics, trainer)]
    found, names = [], sorted(trainer.eval_dataset, key=len, reverse=True)
    for name, dataset in trainer.eval_dataset.items():
        own = {
            key.removeprefix(f"{name}_"): value
            for key, value in metrics.items()  # of "val" and "val_hard", the longer name has the metric
            if next((other for other in names if key.startswith(f"{other}_")), None) == name
        }
        if own:
            data = _data_facts(dataset, said) or DataFacts(name, None)
            named = {"part": name} if data.repo is not None else {"name": name}
            found.append(_evaluation(dataclasses.replace(data, **named), own, trainer))
    return found


def _evaluation(data: DataFacts, metrics: dict[str, float], trainer: Any) -> Evaluation:
    """The metrics of the student, and those of its teachers, apart."""
    names = trainer.transfer.layers.teacher_names
    measured = [name for name in metrics if name.partition("/")[0] in TEACHER_METRICS]
    theirs = {name.removeprefix("teacher_"): metrics[name] for name in measured}
    behind = [f"/{name}" for name in names] if len(names) > 1 else [""]
    teachers = [{k.removesuffix(end): v for k, v in theirs.items() if k.endswith(end)} for end in behind]
    own = {name: value for name, value in metrics.items() if name not in measured}
    return Evaluation(data, own, teachers if theirs else [])


def _final_evaluation(trainer: Any) -> dict[str, Any]:
    """The log entries that describe the weights at hand, as one: the latest evaluation, or that of the best checkpoint
    where it was loaded at the end and nothing was evaluated since. A head that was fitted afterwards leaves only what
    was evaluated since."""
    log = trainer.state.log_history
    end = max((i for i, entry in enumerate(log) if "train_runtime" in entry), default=len(log))
    fitted = trainer.head.entries if trainer.head is not None else 0  # before, the student had another head
    before, after = _evaluated(log[fitted:end], trainer), _evaluated(log[max(end, fitted) :], trainer)
    best = trainer.state.best_global_step
    if not after and end < len(log) and trainer.args.load_best_model_at_end and best:
        before = [entry for entry in before if entry.get("step") == best] or before
    merged: dict[str, Any] = {}
    for entry in after or before:  # several data sets are logged one after the other
        merged = merged | entry if entry.get("step") == merged.get("step") else dict(entry)
    return merged


def _evaluated(log: list[dict[str, Any]], trainer: Any) -> list[dict[str, Any]]:
    return [entry for entry in log if any(key.startswith("eval_") for key in entry) and not is_foreign(entry, trainer)]


def is_foreign(entry: dict[str, Any], trainer: Any) -> bool:
    """Whether an entry of the log is of an evaluation on other data than the run's."""
    return any(entry is other for other in trainer.foreign_evaluations)


def _training_settings(args: Any, processes: int) -> dict[str, Any]:
    settings = {name: getattr(args, name) for name in _TRAINING if hasattr(args, name)}
    settings = {name: getattr(value, "value", value) for name, value in settings.items()}
    if settings.get("max_steps", -1) <= 0:
        settings.pop("max_steps", None)
    else:
        settings.pop("num_train_epochs", None)
    settings["processes"] = processes
    settings["whole_batch_size"] = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    settings["precision"] = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    return settings


def _hardware(trainer: Any) -> str:
    count = trainer.accelerator.num_processes
    return f"{count} process{'es, each' if count > 1 else ''} on {device_name(trainer.args.device)}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def record_name(trainer: Any, model_name: str | None = None) -> str:
    """What the student is called: as someone said, as its repository, or as its folder."""
    repository = (trainer.hub_model_id or trainer.args.hub_model_id or "").split("/")[-1]
    return model_name or repository or Path(trainer.args.output_dir).resolve().name

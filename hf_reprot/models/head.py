"""A linear head on a frozen representation, fitted to labelled samples and written into the student."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..features.architecture import config_of, head_paths
from ..features.paths import core
from ..features.tables import evaluating
from .modules import class_count, class_names, some
from .regression import Linear, best_constant, fit_linear, mean_loss, standardiser

__all__ = ["HeadFit", "cross_validated", "fit_head", "linear_head", "task_form", "write_head"]

# Inverse strengths of the penalty that are tried, and how many samples are enough to choose among them.
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FOLDS, _TRIED_ON = 5, 5000
_UNTOLD = 1.0  # the strength where cross-validation cannot tell
_NEVER = 10.0  # how far below the others' mean a class without a sample answers
_UNLABELLED = -100  # what losses ignore

CLASSES, LABELS, VALUES = "single_label_classification", "multi_label_classification", "regression"
_LOSSES = {CLASSES: "softmax", LABELS: "bernoulli", VALUES: "squared"}


@dataclass(frozen=True)
class HeadFit:
    """What a head was fitted on, and how well it fits.

    Attributes:
        samples: Number of labelled samples.
        strength: Inverse strength of the penalty (scikit-learn's C).
        accuracy: Share of correct predictions in cross-validation at that strength (with several labels per sample: of
            correct yes-or-no predictions); None where no class has two samples, and for regression.
        error: For regression, the root mean squared error in cross-validation.
        absent: Classes without a labelled sample, by name or number: the head never predicts them.
    """

    samples: int
    strength: float
    accuracy: float | None
    error: float | None = None
    absent: list[str] = field(default_factory=list)


def fit_head(
    student: nn.Module,
    batches: Iterable[tuple[Mapping[str, Any], Tensor]],
    together: Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]] | None = None,
) -> HeadFit:
    """Fits the last linear layer of a student to labelled samples; nothing else of it changes.

    Logistic regression on standardised features, with a penalty chosen by cross-validation: with few labels this is
    more reliable than a few more training steps. A student with several labels per sample gets one regression per
    class, a student that predicts values gets ridge regression (`config.problem_type`, as transformers reads it).

    Args:
        student: With a head for the classes, on the device of the batches. In a PEFT student, the head must be one of
            the adapter's `modules_to_save`.
        batches: (inputs of the student, labels), each sample once. Labels: (batch,) whole numbers, or (batch, outputs)
            of 0 and 1 or of values. A label of -100 is ignored.
        together: Gathers the (features, labels) of a batch from all processes; None: one process.

    Returns:
        What the head was fitted on, and which classes had no sample.

    Raises:
        ValueError: the student has no single linear head, or one that would not be saved; labels that do not fit it.
    """
    _, layer = linear_head(student)
    features, labels = _collect(student, layer, batches, together)
    return write_head(layer, features, labels, class_names(student), task_form(student, labels))


def task_form(student: nn.Module, labels: np.ndarray) -> str:
    """The `problem_type` of a student, by transformers' rules where its config leaves it open.

    Args:
        student: The student.
        labels: (n,) or (n, outputs).
    """
    config = config_of(core(student)[0]) or config_of(student)
    stated = getattr(config, "problem_type", None)
    if stated in _LOSSES:
        return stated
    if class_count(student) == 1:
        return VALUES
    return CLASSES if labels.ndim == 1 else LABELS


# ---- the layer ----


def linear_head(student: nn.Module) -> tuple[str, nn.Linear]:
    """Path and module of the linear layer that gives a student's logits.

    In a PEFT student it is the copy that the active adapter trains and saves.

    Raises:
        ValueError: there is none, there are two side by side (a distilled DeiT), or it is no part of a PEFT adapter.
    """
    paths = head_paths(student)
    if not paths:
        raise ValueError(_headless(student))
    layers = [
        (f"{path}.{name}".rstrip("."), module)
        for path in paths
        for name, module in student.get_submodule(path).named_modules()
        if isinstance(module, nn.Linear)
    ]
    adapted = bool(getattr(student, "peft_config", None))
    if adapted:
        saved = [(path, module) for path, module in layers if _is_saved(student, path)]
        if not saved:
            raise ValueError(_outside_adapter(student, paths[-1]))
        layers = saved
    if not layers:
        raise ValueError(
            f"{type(student).__name__} has no linear layer that gives the logits: its head is {some(paths)}"
        )
    path, layer = layers[-1]
    twins = [name for name, other in layers[:-1] if other.weight.shape == layer.weight.shape]
    if twins:
        raise ValueError(f"{type(student).__name__} has several heads side by side ({some([*twins, path])})")
    return path, layer


def _is_saved(student: nn.Module, path: str) -> bool:
    """Whether a layer belongs to the copy of a module that the active adapter runs and saves."""
    before, found, after = f".{path}.".rpartition(".modules_to_save.")
    if not found:
        return False
    wrapper = student.get_submodule(before.strip("."))
    active = list(getattr(wrapper, "active_adapters", ()))
    return not getattr(wrapper, "disable_adapters", False) and after.split(".")[0] in active[:1]


def _outside_adapter(student: nn.Module, path: str) -> str:
    name = path.rpartition(".")[2]
    for part in path.split("."):  # of a head inside a module of its own (timm's head.fc), the whole is saved
        if part not in ("base_model", "model", "timm_model"):
            name = part
            break
    return (
        f"the head {name!r} is no part of the active adapter: what is fitted would be lost when the adapter is saved. "
        f'Make the adapter with modules_to_save=["{name}"], as in LoraConfig(..., modules_to_save=["{name}"])'
    )


def _headless(student: nn.Module) -> str:
    inner = core(student)[0]
    title = type(inner).__name__
    if hasattr(inner, "num_classes"):
        return f"{title} has no head to fit: make it with num_classes=N, the number of classes"
    if type(student).__name__.startswith(("Sequential", "Module")) or not hasattr(inner, "config"):
        return f"{title} has no linear layer that gives the logits: its head is not known"
    return (
        f"{title} has no head to fit: save the student, load it with a new head by "
        'AutoModelForImageClassification.from_pretrained("FOLDER", num_labels=N), and give it to '
        "hf_reprot.models.head.fit_head, or train with that class from the start"
    )


# ---- the samples ----


def _collect(student: nn.Module, layer: nn.Linear, batches, together) -> tuple[np.ndarray, np.ndarray]:
    """What goes into a layer, and the labels, of every sample; the student runs in evaluation mode."""
    caught: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, given: caught.append(given[0].detach()))
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    try:
        with evaluating(student), torch.no_grad():
            for inputs, answer in batches:
                student(**inputs)
                if len(caught) != 1 or caught[0].dim() != 2 or answer.dim() not in (1, 2):
                    shapes = ", ".join(str(tuple(x.shape)) for x in caught) or "nothing"
                    raise ValueError(f"a head is fitted to one row per sample; this one gets {shapes}")
                both = (caught.pop().float(), answer)
                both = both if together is None else together(both)
                rows.append(both[0].cpu())
                labels.append(both[1].cpu())
    finally:
        handle.remove()
    if not rows:
        raise ValueError("there is no sample to fit a head to")
    return torch.cat(rows).double().numpy(), torch.cat(labels).numpy()


# ---- the fit ----


def write_head(
    layer: nn.Linear, features: np.ndarray, labels: np.ndarray, names: list[str] | None, form: str = CLASSES
) -> HeadFit:
    """Fits (n, d) features to n labels, and writes the weights into the layer.

    Args:
        layer: The layer.
        features: What goes into it.
        labels: (n,) whole numbers, or (n, outputs) of 0 and 1 or of values. -100 (or NaN): not known.
        names: Names of the classes.
        form: The `problem_type`: which regression.

    Raises:
        ValueError: features that are not finite, labels that do not fit the layer, or a single class.
    """
    features = np.asarray(features, dtype=np.float64)
    if not np.isfinite(features).all():
        raise ValueError("the student's features are not finite: there is nothing to fit a head to")
    features, targets, kept = _targets(layer.out_features, features, labels, names, form)
    bias = layer.bias is not None
    strength, accuracy, error = cross_validated(features, targets, form, bias=bias)
    head = _every_output(_fitted(features, targets, form, [strength], bias)[0], kept, layer.out_features, form)
    absent = np.setdiff1d(np.arange(layer.out_features), kept).tolist()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight))
        if bias:
            layer.bias.copy_(torch.from_numpy(head.bias))
    return HeadFit(len(features), strength, accuracy, error, [_named(c, names) for c in absent])


def _targets(outputs: int, features: np.ndarray, labels: np.ndarray, names: list[str] | None, form: str):
    """The samples with a label, what each output shall give, and the outputs that can be learned.

    Returns:
        (features (n, d), targets (n, len(kept)), kept).
    """
    if form != CLASSES:
        labels = np.asarray(labels, dtype=np.float64).reshape(len(labels), -1)
        labels = np.where(labels == _UNLABELLED, np.nan, labels)
        known = ~np.isnan(labels).all(1)
    elif labels.ndim == 1:
        known = labels != _UNLABELLED
    else:
        raise ValueError(f"labels must be one whole number per sample, got {labels.shape[1]} columns")
    features, labels = features[known], labels[known]
    if not len(labels):
        raise ValueError("no sample has a label: there is nothing to fit a head to")
    check = {CLASSES: _classes, LABELS: _several_labels, VALUES: _values}[form]
    return features, *check(labels, outputs, names)


def _classes(labels: np.ndarray, outputs: int, names: list[str] | None) -> tuple[np.ndarray, np.ndarray]:
    found = np.unique(labels)
    if not np.issubdtype(labels.dtype, np.integer) or found.min() < 0 or found.max() >= outputs:
        raise ValueError(f"labels must be whole numbers from 0 to {outputs - 1}, got {found.min()} to {found.max()}")
    if len(found) < 2:
        only = _named(found[0], names)
        raise ValueError(f"all labelled samples are of one class ({only}): a head needs two classes at least")
    return (labels[:, None] == found).astype(np.float64), found


def _several_labels(labels: np.ndarray, outputs: int, names: list[str] | None) -> tuple[np.ndarray, np.ndarray]:
    _check_width(labels, outputs)
    if not np.isin(labels[~np.isnan(labels)], (0, 1)).all():
        raise ValueError("labels of several classes per sample must be 0 or 1 for each class")
    kept = np.flatnonzero((labels == 1).any(0))
    if not len(kept):
        raise ValueError("no sample has any of the classes: there is nothing to fit a head to")
    return labels[:, kept], kept


def _values(labels: np.ndarray, outputs: int, names: list[str] | None) -> tuple[np.ndarray, np.ndarray]:
    _check_width(labels, outputs)
    if np.isinf(labels).any():
        raise ValueError("labels of a regression must be finite numbers")
    kept = np.flatnonzero(~np.isnan(labels).all(0))
    return labels[:, kept], kept


def _check_width(labels: np.ndarray, outputs: int) -> None:
    if labels.shape[1] != outputs:
        raise ValueError(f"labels must have a column for each of {outputs} outputs, got {labels.shape[1]}")


def _fitted(
    features: np.ndarray, targets: np.ndarray, form: str, strengths: Sequence[float], bias: bool
) -> list[Linear]:
    """The heads for features as they come, one a strength."""
    mean, scale = standardiser(features, centre=bias)
    scaled = (features - mean) / scale
    level: Any = 0.0
    spread: Any = 1.0
    if form == VALUES:  # a strength shall mean the same for dollars and cents
        level = np.nan_to_num(np.nanmean(targets, 0)) if bias else 0.0
        spread = np.nan_to_num(np.nanstd(targets, 0))
        spread = np.where(spread > 0, spread, 1.0)
        targets = (targets - level) / spread
    two = form == CLASSES and targets.shape[1] == 2  # one row that says how much more the second is
    loss = "bernoulli" if two else _LOSSES[form]
    heads = []
    for head in fit_linear(scaled, targets[:, 1:] if two else targets, loss, strengths, bias=bias):
        weight, offset = (head.weight.T * spread).T / scale, head.bias * spread
        offset = offset + level - weight @ mean
        if two:
            weight, offset = np.concatenate([-weight, weight]) / 2, np.concatenate([-offset, offset]) / 2
        heads.append(Linear(weight, offset))
    return heads


def _every_output(head: Linear, kept: np.ndarray, outputs: int, form: str) -> Linear:
    """A head with a row for every output: those of classes without a sample are never the best."""
    level = head.weight.mean(0) if form == CLASSES else np.zeros(head.weight.shape[1])
    offset = (head.bias.mean() if form == CLASSES else 0.0) - (0.0 if form == VALUES else _NEVER)
    weight, bias = np.tile(level, (outputs, 1)), np.full(outputs, offset)
    weight[kept], bias[kept] = head.weight, head.bias
    return Linear(weight, bias)


def _named(number: int, names: list[str] | None) -> str:
    return names[number] if names else str(number)


# ---- the penalty ----


def cross_validated(
    features: np.ndarray,
    targets: np.ndarray,
    form: str = CLASSES,
    *,
    bias: bool = True,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = _FOLDS,
) -> tuple[float, float | None, float | None]:
    """The strength that is best on samples left out, and how good it is there.

    Args:
        features: (n, d).
        targets: (n, k): one-hot classes, 0 and 1, or values.
        form: The `problem_type`.
        bias: Whether the regression has one.
        strengths: Inverse strengths of the penalty that are tried.
        folds: How many parts are left out in turn, at most.

    Returns:
        (strength, accuracy or None, root mean squared error or None); strength 1 where nothing can be left out, and
        where no strength does better on what is left out than the frequencies of the classes.
    """
    if len(features) > _TRIED_ON:
        few = np.random.default_rng(0).permutation(len(features))[:_TRIED_ON]
        features, targets = features[few], targets[few]
    parts = _folds(targets, form, folds)
    if not parts:
        return _UNTOLD, None, None
    answers = {strength: np.full(targets.shape, np.nan) for strength in {*strengths, _UNTOLD}}
    for out in parts:
        kept = np.setdiff1d(np.arange(len(targets)), out)
        tried = sorted(answers)
        heads = _fitted(features[kept], targets[kept], form, tried, bias)
        for strength, head in zip(tried, heads, strict=True):
            answers[strength][out] = head(features[out])
    out = np.concatenate(parts)
    losses = {strength: mean_loss(answers[strength][out], targets[out], _LOSSES[form]) for strength in strengths}
    best = min(strengths, key=lambda strength: losses[strength])
    constant = np.tile(best_constant(targets[out], _LOSSES[form], bias), (len(out), 1))
    if losses[best] >= mean_loss(constant, targets[out], _LOSSES[form]):
        best = _UNTOLD  # no feature helped: the least of all weights would win by saying nothing
    found, wanted = answers[best][out], targets[out]
    if form == VALUES:
        return best, None, float(np.sqrt(np.nanmean((found - wanted) ** 2)))
    right = found.argmax(1) == wanted.argmax(1) if form == CLASSES else ((found > 0) == (wanted > 0))[~np.isnan(wanted)]
    return best, float(right.mean()), None


def _folds(targets: np.ndarray, form: str, most: int) -> list[np.ndarray]:
    """Numbers of the samples that are left out, part by part; the only sample of a class never is."""
    order = np.random.default_rng(0).permutation(len(targets))
    if form == CLASSES:
        labels = targets.argmax(1)
        counts = np.bincount(labels)
        order = order[counts[labels[order]] > 1]
        if not len(order):
            return []
        order = order[np.argsort(labels[order], kind="stable")]  # one class after the other, dealt out in turn
        folds = min(most, int(counts[counts > 1].min()))
    else:
        folds = min(most, len(order))
    return [order[i::folds] for i in range(folds)] if folds > 1 else []

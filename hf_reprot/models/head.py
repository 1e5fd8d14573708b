"""A linear head on a representation that stays as it is: logistic regression, written into the student."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..features.architecture import head_paths
from .modules import class_names, some
from .student import evaluating

__all__ = ["HeadFit", "fit_head", "linear_head"]

# Inverse strengths of the penalty that are tried, and how many samples are enough to choose among them.
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FOLDS, _TRIED_ON, _STEPS = 5, 5000, 1000


@dataclass(frozen=True)
class HeadFit:
    """What a head was fitted on.

    Attributes:
        samples: Number of labelled samples.
        strength: Inverse strength of the penalty (scikit-learn's C).
        accuracy: Mean over the folds of cross-validation at that strength; None where a class has one sample only.
    """

    samples: int
    strength: float
    accuracy: float | None


def fit_head(
    student: nn.Module,
    batches: Iterable[tuple[Mapping[str, Any], Tensor]],
    together: Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]] = tuple,
) -> HeadFit:
    """Fits the last linear layer of a student to labelled samples; nothing else of it changes.

    Logistic regression on standardised features, with a penalty chosen by cross-validation: with few labels this is
    right where a few more steps of training are not.

    Args:
        student: With a head for the classes, on the device of the batches.
        batches: (inputs of the student, labels), each sample once.
        together: Brings the (features, labels) of a batch of all processes together.

    Raises:
        ValueError: the student has no single linear head, or a class has no sample.
    """
    _, layer = linear_head(student)
    features, labels = _collect(student, layer, batches, together)
    return write_head(layer, features, labels, class_names(student))


def linear_head(student: nn.Module) -> tuple[str, nn.Linear]:
    """Path and module of the linear layer that gives a student's logits.

    Raises:
        ValueError: there is none, or there are two side by side (a distilled DeiT).
    """
    paths = head_paths(student)
    layers = [
        (f"{path}.{name}".rstrip("."), module)
        for path in paths
        for name, module in student.get_submodule(path).named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not layers:
        what = f"its head is {some(paths)}" if paths else "its head is not known"
        raise ValueError(f"{type(student).__name__} has no linear layer that gives the logits: {what}")
    path, layer = layers[-1]
    twins = [name for name, other in layers[:-1] if other.weight.shape == layer.weight.shape]
    if twins:
        raise ValueError(f"{type(student).__name__} has several heads side by side ({some([*twins, path])})")
    return path, layer


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
                if len(caught) != 1 or caught[0].dim() != 2 or answer.dim() != 1:
                    shapes = ", ".join(str(tuple(x.shape)) for x in caught) or "nothing"
                    raise ValueError(f"a head is fitted to one row a sample; this one gets {shapes}")
                both = together((caught.pop().float(), answer))
                rows.append(both[0].cpu())
                labels.append(both[1].cpu())
    finally:
        handle.remove()
    if not rows:
        raise ValueError("there is no sample to fit a head to")
    return torch.cat(rows).double().numpy(), torch.cat(labels).numpy()


def write_head(layer: nn.Linear, features: np.ndarray, labels: np.ndarray, names: list[str] | None) -> HeadFit:
    """Fits (n, d) features to n labels, and writes the weights into the layer.

    Raises:
        ValueError: features that are not finite, labels that are no classes of the layer, or a class without a sample.
    """
    _check(layer.out_features, features, labels, names)
    strength, accuracy = _choose(features, labels, layer.bias is not None)
    model = _regression(strength, layer.bias is not None).fit(features, labels)
    scaler, regression = model[0], model[1]
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - (weight @ scaler.mean_ if scaler.with_mean else 0.0)
    if len(weight) == 1:  # two classes: one row that says how much more the second is
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))
    return HeadFit(len(labels), strength, accuracy)


def _regression(strength: float, bias: bool):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        StandardScaler(with_mean=bias), LogisticRegression(C=strength, fit_intercept=bias, max_iter=_STEPS)
    )


def _choose(features: np.ndarray, labels: np.ndarray, bias: bool) -> tuple[float, float | None]:
    """The strength with the best likelihood on samples left out, and the accuracy there."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    if len(labels) > _TRIED_ON:
        few = np.random.default_rng(0).permutation(len(labels))[:_TRIED_ON]
        features, labels = features[few], labels[few]
    folds = min(_FOLDS, np.unique(labels, return_counts=True)[1].min())
    if folds < 2:
        return 1.0, None
    parts = StratifiedKFold(int(folds), shuffle=True, random_state=0)

    def score(strength: float, scoring: str) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # near enough to choose by
            tried = cross_val_score(_regression(strength, bias), features, labels, cv=parts, scoring=scoring)
        return float(tried.mean())

    best = max(STRENGTHS, key=lambda strength: score(strength, "neg_log_loss"))
    return best, score(best, "accuracy")


def _check(classes: int, features: np.ndarray, labels: np.ndarray, names: list[str] | None) -> None:
    if not np.isfinite(features).all():
        raise ValueError("the student's features are not finite: there is nothing to fit a head to")
    found = np.unique(labels)
    if not np.issubdtype(labels.dtype, np.integer) or found.min() < 0 or found.max() >= classes:
        raise ValueError(f"labels must be whole numbers from 0 to {classes - 1}, got {found.min()} to {found.max()}")
    absent = [names[c] if names else str(c) for c in range(classes) if c not in found]
    if absent:
        raise ValueError(f"{len(absent)} of {classes} classes have no labelled sample: {some(absent)}")

"""Penalised linear regression on fixed features, solved to the optimum: classes, multiple labels, values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..utils.messages import check_choice

__all__ = ["LOSSES", "Linear", "best_constant", "fit_linear", "mean_loss", "objective", "standardiser"]

LOSSES = ("softmax", "bernoulli", "squared")
# A neuron that hardly moves on a few samples may move on others: no deviation counts for less than this share.
_FLOOR = 0.3
_TOLERANCE, _STEPS = 5e-4, 2000


@dataclass(frozen=True)
class Linear:
    """Scores of features x (n, d) are `x @ weight.T + bias`: `weight` (k, d), `bias` (k,)."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Scores (n, k) of features (n, d)."""
        return features @ self.weight.T + self.bias


def standardiser(features: np.ndarray, centre: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale (d,) that bring neurons to a common size, without trusting the deviations of a few samples.

    A deviation is taken for no smaller than 0.3 of the root mean square of all of them. On a handful of samples most
    neurons of a network with rectifiers are nearly silent: divided by what little they moved, they would be blown up to
    the size of the others on new samples, as noise.

    Args:
        features: (n, d).
        centre: Whether the mean is taken off; without, deviations are still those about the mean.
    """
    deviation = features.std(0)
    typical = float(np.sqrt(np.mean(deviation**2)))
    scale = np.maximum(deviation, _FLOOR * typical)
    return (features.mean(0) if centre else np.zeros(features.shape[1])), np.where(scale > 0, scale, 1.0)


def objective(
    weight: np.ndarray, bias: np.ndarray, features: np.ndarray, targets: np.ndarray, loss: str, strength: float
) -> float:
    """What `fit_linear` minimises: sum of losses + |weight|^2 / (2 strength), over the number of samples.

    Args:
        weight, bias: (k, d) and (k,).
        features, targets: As in `fit_linear`.
        loss: One of `LOSSES`.
        strength: Inverse strength of the penalty.
    """
    penalty = float((weight**2).sum()) / (2 * strength * len(features))
    return mean_loss(features @ weight.T + bias, targets, loss) + penalty


def mean_loss(scores: np.ndarray, targets: np.ndarray, loss: str) -> float:
    """The loss of scores (n, k), over the number of samples."""
    return _LOSSES[loss](scores, targets)[0]


def fit_linear(
    features: np.ndarray, targets: np.ndarray, loss: str, strengths: Sequence[float], *, bias: bool = True
) -> list[Linear]:
    """Minimises the objective to 1e-3 of its value, and of what the features are worth.

    L-BFGS on the principal axes, until a bound says so.

    The objective is strongly convex in the weights, so that |gradient|^2 / (2 curvature) bounds what is left to gain.
    (scikit-learn's LogisticRegression stops by the size of the gradient alone: under a weak penalty that is early.)

    Args:
        features: (n, d), as `standardiser` scales them.
        targets: (n, k): one-hot classes ("softmax"), 0 or 1 for each class ("bernoulli"), or values ("squared"). NaN:
            not known, and left out.
        loss: One of `LOSSES`.
        strengths: Inverse strengths of the penalty (scikit-learn's C), above 0.
        bias: Whether there is one; it is not penalised.

    Returns:
        One solution per strength.

    Raises:
        ValueError: an unknown loss.
    """
    check_choice("loss", loss, LOSSES)
    axes, sizes = _principal_axes(features)
    table, found, start = features @ axes, [], None
    for strength in strengths:
        start = _descend(table, sizes, targets, loss, 1 / (strength * len(features)), bias, start)
        found.append(Linear(start.weight @ axes.T, start.bias))
    return found


def _descend(
    table: np.ndarray,
    sizes: np.ndarray,
    targets: np.ndarray,
    loss: str,
    penalty: float,
    bias: bool,
    start: Linear | None,
) -> Linear:
    """The minimum for samples given along their principal axes, which reach `sizes` far."""
    from scipy.optimize import minimize

    (samples, width), outputs = table.shape, targets.shape[1]
    # Steps of equal length along axes of equal curvature: exact for squared error, near for the others.
    stretch = 1 / np.sqrt(_CURVATURE[loss] * sizes**2 / samples + penalty)
    evaluate = _LOSSES[loss]
    flat = evaluate(np.tile(best_constant(targets, loss, bias), (samples, 1)), targets)[0]
    left = {"gain": np.inf, "value": np.inf}

    def value_and_gradient(at: np.ndarray) -> tuple[float, np.ndarray]:
        weight = at[: outputs * width].reshape(outputs, width) * stretch
        value, pull = evaluate(table @ weight.T + (at[outputs * width :] if bias else 0.0), targets)
        gradient = pull.T @ table + penalty * weight
        value += penalty / 2 * float((weight**2).sum())
        lift = pull.sum(0) if bias else np.zeros(0)
        # No bound holds for the bias, which is not penalised: that it is off by 10 is assumed.
        left["gain"] = float((gradient**2).sum()) / (2 * penalty) + 10 * float(np.abs(lift).sum())
        left["value"] = value
        return value, np.concatenate([(gradient * stretch).ravel(), lift])

    def stop_where_done(intermediate_result: Any) -> None:
        # Under a strong penalty the weights gain next to nothing over none at all, and still give the answers.
        if left["gain"] <= _TOLERANCE * min(left["value"], max(flat - left["value"], 0.0)):
            raise StopIteration

    begin = np.zeros(outputs * width + (outputs if bias else 0))
    if start is not None:
        begin[: outputs * width] = (start.weight / stretch).ravel()
        begin[outputs * width :] = start.bias[: outputs if bias else 0]
    options = {"maxiter": _STEPS, "maxfun": 2 * _STEPS, "maxcor": 20, "ftol": 0.0, "gtol": 1e-12}
    done = minimize(value_and_gradient, begin, jac=True, method="L-BFGS-B", callback=stop_where_done, options=options).x
    weight = done[: outputs * width].reshape(outputs, width) * stretch
    return Linear(weight, done[outputs * width :] if bias else np.zeros(outputs))


def _principal_axes(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal axes (d, r) that span the samples, and how far these reach along each: the optimum lies in there."""
    samples, width = features.shape
    if samples < width:
        _, sizes, axes = np.linalg.svd(features, full_matrices=False)
        return axes.T, sizes
    squares, axes = np.linalg.eigh(features.T @ features)
    return axes, np.sqrt(np.maximum(squares, 0.0))


def best_constant(targets: np.ndarray, loss: str, bias: bool) -> np.ndarray:
    """The scores (k,) that are best without any feature."""
    if not bias:
        return np.zeros(targets.shape[1])
    known = ~np.isnan(targets)
    share = np.where(known, targets, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    if loss == "squared":
        return share
    share = np.clip(share, 1e-12, 1 - 1e-12)
    return np.log(share) if loss == "softmax" else np.log(share) - np.log1p(-share)


def _softmax(scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    top = scores.max(1, keepdims=True)
    shares = np.exp(scores - top)
    total = shares.sum(1, keepdims=True)
    value = float((np.log(total) + top).sum() - (scores * targets).sum())
    return value / len(scores), (shares / total - targets) / len(scores)


def _bernoulli(scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    known = ~np.isnan(targets)
    wanted = np.where(known, targets, 0.0)
    value = float((np.logaddexp(0.0, scores) - scores * wanted)[known].sum())
    chance = np.exp(-np.logaddexp(0.0, -scores))
    return value / len(scores), np.where(known, chance - wanted, 0.0) / len(scores)


def _squared(scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    left = np.where(np.isnan(targets), 0.0, scores - targets)
    return float((left**2).sum()) / (2 * len(scores)), left / len(scores)


_LOSSES = {"softmax": _softmax, "bernoulli": _bernoulli, "squared": _squared}
_CURVATURE = {"softmax": 0.1, "bernoulli": 0.1, "squared": 1.0}

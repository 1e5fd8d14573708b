"""Charts of a run: the curves of training, teacher against student, accuracy by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from .style import COLOURS, DASHES, HATCHES, MARKERS, new_figure, number_text, short

# Terms of the loss in a training log, and what they are called.
TERMS = {
    "loss": "whole loss",
    "task_loss": "task",
    "ot_loss": "transport",
    "kd_loss": "logit distillation",
    "l2sp_loss": "L2-SP",
    "feature_loss": "features",
    "delta_loss": "DELTA",
    "bss_loss": "spectral shrinkage",
}


def curves_figure(history: Sequence[Mapping[str, float]], *, title: str | None = None) -> Figure | None:
    """Curves of training: on the left every term of the loss as it was logged (before its weight), on the right the
    evaluation, where there are two of them or more: one is a number, no curve. None where there is nothing to draw.

    Args:
        history: Log entries with "step", as in `TrainerState.log_history`.
        title: Heading.
    """
    terms = {label: _series(history, name) for name, label in TERMS.items()}
    terms = {label: points for label, points in terms.items() if points}
    measured = _evaluation_series(history)
    panels = [panel for panel in (terms, measured) if panel]
    if not panels:
        return None
    figure, axes = new_figure(3.6, len(panels))
    axes = [axes] if len(panels) == 1 else list(axes)
    for place, panel in zip(axes, panels, strict=True):
        for i, (name, points) in enumerate(panel.items()):
            steps, values = zip(*points, strict=True)
            place.plot(
                steps,
                values,
                label=name,
                color=COLOURS[i % len(COLOURS)],
                linestyle=DASHES[i % len(DASHES)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=4.5,
                markevery=max(1, len(points) // 8),
            )
        place.set_xlabel("optimiser step")
        place.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        place.grid(alpha=0.3)
        place.legend(fontsize=8.5, framealpha=0.85)
        _make_readable(place, panel)
    for place, panel in zip(axes, panels, strict=True):
        place.set_title("Terms of the loss in training" if panel is terms else "On the evaluation data")
    if title is not None:
        figure.suptitle(title)
    return figure


def comparison_figure(models: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Figure | None:
    """Teacher against student: one panel a quantity, one bar a model. None where nothing was measured for two models.

    Args:
        models: For each model "name" and any of "parameters", "samples_per_second", "accuracy" (0 to 1).
        title: Heading.

    Example:
        >>> figure = comparison_figure([
        ...     {"name": "teacher", "parameters": 25_600_000, "accuracy": 0.81},
        ...     {"name": "student", "parameters": 11_700_000, "accuracy": 0.79},
        ... ])
    """
    quantities = {
        "parameters": ("Parameters (millions)", lambda v: v / 1e6),
        "samples_per_second": ("Speed (samples a second)", lambda v: v),
        "accuracy": ("Accuracy (%)", lambda v: 100 * v),
    }
    shown = [key for key in quantities if sum(model.get(key) is not None for model in models) >= 2]
    if not shown:
        return None
    figure, axes = new_figure(0.5 * len(models) + 1.1, len(shown))
    axes = [axes] if len(shown) == 1 else list(axes)
    for place, key in zip(axes, shown, strict=True):
        heading, scale = quantities[key]
        values = [scale(model[key]) if model.get(key) is not None else 0.0 for model in models]
        for i, (model, value) in enumerate(zip(models, values, strict=True)):
            known = model.get(key) is not None
            place.barh(
                i,
                value,
                color=COLOURS[0] if i == len(models) - 1 else "#c9b458",
                hatch=HATCHES[0] if i == len(models) - 1 else HATCHES[1],
                edgecolor="white" if i == len(models) - 1 else "#5a4a00",
                height=0.66,
            )
            place.text(value, i, f" {number_text(value)}" if known else " not measured", va="center", fontsize=9)
        place.set_yticks(range(len(models)), [short(str(m["name"]), 22) for m in models] if place is axes[0] else [])
        place.invert_yaxis()
        place.set_xlim(0, max(*values, 1e-12) * 1.3)
        place.set_title(heading, fontsize=10)
        place.xaxis.set_major_locator(FixedLocator([0, 50, 100]) if key == "accuracy" else MaxNLocator(4))
        place.spines[["top", "right"]].set_visible(False)
    if title is not None:
        figure.suptitle(title)
    return figure


def accuracy_figure(groups: Mapping[str, Mapping[str, Sequence[float]]], *, title: str | None = None) -> Figure:
    """Accuracy by method: a dot per run, a bar at the mean, one panel a group of runs.

    Args:
        groups: For each group, by its title, the shares of right answers of every method, one per seed.
        title: Heading.
    """
    methods = list(next(iter(groups.values())))
    figure, panels = new_figure(0.45 * len(methods) + 1.6, len(groups))
    panels = np.atleast_1d(panels)
    for panel, (name, runs) in zip(panels, groups.items(), strict=True):
        for row, method in enumerate(methods):
            values = 100 * np.asarray(runs[method])
            colour = COLOURS[row % len(COLOURS)]
            panel.plot(values, np.full(len(values), row), MARKERS[row % len(MARKERS)], color=colour, alpha=0.5, ms=5)
            panel.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colour, lw=2.5)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("test accuracy (%)")
        panel.set_yticks(range(len(methods)), methods if panel is panels[0] else [""] * len(methods))
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
    if title:
        figure.suptitle(title)
    return figure


def _series(history: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[name]) for entry in history if name in entry and "step" in entry]


def _evaluation_series(history: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """Curves of the evaluation: shares such as accuracy where there are any, else the loss."""
    skip = ("_runtime", "_per_second", "_model_preparation_time")
    names = dict.fromkeys(n for entry in history for n in entry if n.startswith("eval_") and not n.endswith(skip))
    shares = [n for n in names if not n.endswith("loss") and all(0 <= v <= 1 for _, v in _series(history, n))]
    chosen = shares or [n for n in names if n.endswith("loss")]
    curves = {name.removeprefix("eval_").replace("_", " "): _series(history, name) for name in chosen[:6]}
    return {name: points for name, points in curves.items() if len(dict(points)) > 1}


def _make_readable(axes: Any, panel: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """A logarithmic axis where the terms differ by orders of magnitude, else one that starts at 0."""
    values = [value for points in panel.values() for _, value in points]
    if min(values) > 0 and max(values) / min(values) > 50:
        axes.set_yscale("log")
    if min(values) >= 0 and axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)

"""Pictures of a transfer: the plan, the map of layers, the curves of training, teacher against student.

Every function gives a matplotlib `Figure` without touching matplotlib's global state. They are made for a width of 800
pixels, as in a README, and tell apart by brightness, markers and hatches what they tell apart by colour.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

_WIDTH = 8.0  # inches, shown at 100 pixels an inch
_PIXELS_PER_INCH = 160  # sharp on dense screens, too
_COLOURS = ("#00204c", "#b8860b", "#5b6f8f", "#d95f02", "#1b7f79", "#7b3294", "#666666", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", "-.", ":")
_HATCHES = ("", "///", "...", "xxx")
_CELLS = 192

# Terms of the loss in a training log, and what they are called.
TERMS = {
    "loss": "whole loss",
    "task_loss": "task",
    "ot_loss": "transport",
    "kd_loss": "logit distillation",
    "l2sp_loss": "L2-SP",
}


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Writes a figure as PNG, making the folders above it. The same figure gives the same bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
    return path


def plan_figure(
    plan: Any,
    *,
    student: str = "student layer",
    teacher: str = "teacher layer",
    title: str | None = None,
) -> Figure:
    """Heat map of a coupling between student neurons (rows) and teacher neurons (columns).

    The neurons of the wider side are sorted by their best partner, so that a sharp matching shows as a line from corner
    to corner and a blurred one as an even field; those without a partner that stands out come last. Colours tell how
    many times the mass is that of the plan which spreads every neuron evenly. Wide layers are summed into blocks.

    Args:
        plan: (d_s, d_t), nonnegative.
        student, teacher: Names for the axes.
        title: Heading.

    Raises:
        ValueError: not a matrix, or one without mass.
    """
    plan = _matrix(plan, "plan")
    if plan.min() < 0 or plan.sum() <= 0:
        raise ValueError("a plan has no negative entry, and a positive one")
    ordered = sorted_plan(plan)
    even = plan.sum(1)[:, None] * plan.sum(0)[None, :]
    even = even[_order(plan)]
    blocks, expected = _blocks(ordered), _blocks(even)
    times = np.divide(blocks, expected, out=np.zeros_like(blocks), where=expected > 0)
    top = max(float(times.max()), 2.0)
    floor = min(0.1, 1 / top)

    rows, columns = blocks.shape
    height = float(np.clip(6.2 * plan.shape[0] / plan.shape[1], 2.2, 6.2))
    figure, axes = _figure(height + 1.2)
    image = axes.imshow(
        np.clip(times, floor, None),
        cmap="cividis",
        norm=LogNorm(floor, top),
        aspect="auto",
        interpolation="nearest",
        extent=(0, plan.shape[1], plan.shape[0], 0),
    )
    wider = "student" if plan.shape[0] > plan.shape[1] else "teacher"
    if plan.shape[0] == plan.shape[1]:
        wider = "student"
    axes.set_xlabel(f"{plan.shape[1]} neurons of {teacher}" + (", sorted" if wider == "teacher" else ""))
    axes.set_ylabel(f"{plan.shape[0]} neurons of {student}" + (", sorted" if wider == "student" else ""))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_title(title or "Which student neuron goes with which teacher neuron")
    bar = figure.colorbar(image, ax=axes, extend="min", pad=0.02, format=FuncFormatter(lambda v, _: f"{v:g}"))
    bar.set_label("mass, as a multiple of an even spread")
    if (rows, columns) != plan.shape:
        axes.text(1.0, 1.01, f"shown in {rows} x {columns} blocks", transform=axes.transAxes, ha="right", fontsize=8)
        axes.set_title(axes.get_title(), pad=18)
    return figure


def sorted_plan(plan: np.ndarray) -> np.ndarray:
    """A plan (d_s, d_t) with the neurons of its wider side sorted as in `plan_figure`."""
    return plan[_order(plan)]


def layer_map_figure(
    values: Any,
    student_layers: Sequence[str],
    teacher_layers: Sequence[str],
    *,
    label: str = "transport cost",
    lower_is_closer: bool = True,
    title: str | None = None,
) -> Figure:
    """Heat map over pairs of layers; the closest column of each row is framed and dotted.

    Args:
        values: (rows, columns); NaN where a pair was not compared.
        student_layers, teacher_layers: Names of the rows and of the columns.
        label: What the values are.
        lower_is_closer: False for similarities, such as CKA.
        title: Heading.

    Raises:
        ValueError: names that do not fit the values.
    """
    values = _matrix(values, "values", finite=False)
    if values.shape != (len(student_layers), len(teacher_layers)):
        raise ValueError(
            f"values must have shape {(len(student_layers), len(teacher_layers))}, as many as there are names, "
            f"got {values.shape}"
        )
    rows, columns = values.shape
    figure, axes = _figure(float(np.clip(0.45 * rows + 2.0, 3.0, 9.0)))
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap="cividis_r" if lower_is_closer else "cividis",
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_xticks(range(columns), [_short(name) for name in teacher_layers], rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(rows), [_short(name) for name in student_layers], fontsize=8)
    small = rows <= 16 and columns <= 12
    for i in range(rows):
        if not np.isfinite(values[i]).any():
            continue
        best = int(np.nanargmin(values[i]) if lower_is_closer else np.nanargmax(values[i]))
        axes.add_patch(_frame(best, i))
        if not small:
            axes.plot(best, i, marker="o", markersize=3, color="white", markeredgecolor="black")
        for j in range(columns) if small else ():
            if np.isfinite(values[i, j]):
                dark = image.cmap(image.norm(values[i, j]))[:3]
                bright = np.dot(dark, (0.299, 0.587, 0.114)) > 0.5
                axes.text(
                    j,
                    i,
                    f"{values[i, j]:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="black" if bright else "white",
                    fontweight="bold" if j == best else "normal",
                )
    axes.set_title(title or f"{label[:1].upper()}{label[1:]} between layers (framed: the closest of each row)")
    figure.colorbar(image, ax=axes, pad=0.02).set_label(label)
    return figure


def curves_figure(history: Sequence[Mapping[str, float]], *, title: str | None = None) -> Figure | None:
    """Curves of training: on the left every term of the loss as it was logged (before its weight), on the right the
    evaluation. None where the log holds nothing to draw.

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
    figure, axes = _figure(3.6, len(panels))
    axes = [axes] if len(panels) == 1 else list(axes)
    for place, panel in zip(axes, panels, strict=True):
        for i, (name, points) in enumerate(panel.items()):
            steps, values = zip(*points, strict=True)
            place.plot(
                steps,
                values,
                label=name,
                color=_COLOURS[i % len(_COLOURS)],
                linestyle=_DASHES[i % len(_DASHES)],
                marker=_MARKERS[i % len(_MARKERS)],
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
    figure, axes = _figure(0.5 * len(models) + 1.1, len(shown))
    axes = [axes] if len(shown) == 1 else list(axes)
    for place, key in zip(axes, shown, strict=True):
        heading, scale = quantities[key]
        values = [scale(model[key]) if model.get(key) is not None else 0.0 for model in models]
        for i, (model, value) in enumerate(zip(models, values, strict=True)):
            known = model.get(key) is not None
            place.barh(
                i,
                value,
                color=_COLOURS[0] if i == len(models) - 1 else "#c9b458",
                hatch=_HATCHES[0] if i == len(models) - 1 else _HATCHES[1],
                edgecolor="white" if i == len(models) - 1 else "#5a4a00",
                height=0.66,
            )
            place.text(value, i, f" {_number(value)}" if known else " not measured", va="center", fontsize=9)
        place.set_yticks(range(len(models)), [_short(str(m["name"]), 22) for m in models] if place is axes[0] else [])
        place.invert_yaxis()
        place.set_xlim(0, max(*values, 1e-12) * 1.3)
        place.set_title(heading, fontsize=10)
        place.xaxis.set_major_locator(FixedLocator([0, 50, 100]) if key == "accuracy" else MaxNLocator(4))
        place.spines[["top", "right"]].set_visible(False)
    if title is not None:
        figure.suptitle(title)
    return figure


def accuracy_figure(groups: Mapping[str, Mapping[str, Sequence[float]]], *, title: str | None = None) -> Figure:
    """Accuracy by method: a dot a run, a bar at the mean, one panel a group of runs.

    Args:
        groups: For each group ("student new", ...) the shares of right answers of every method, one a seed.
        title: Heading.
    """
    methods = list(next(iter(groups.values())))
    figure, panels = _figure(0.45 * len(methods) + 1.6, len(groups))
    panels = np.atleast_1d(panels)
    for panel, (name, runs) in zip(panels, groups.items(), strict=True):
        for row, method in enumerate(methods):
            values = 100 * np.asarray(runs[method])
            colour = _COLOURS[row % len(_COLOURS)]
            panel.plot(values, np.full(len(values), row), _MARKERS[row % len(_MARKERS)], color=colour, alpha=0.5, ms=5)
            panel.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colour, lw=2.5)
        panel.set_title(f"student {name}")
        panel.set_xlabel("test accuracy (%)")
        panel.set_yticks(range(len(methods)), methods if panel is panels[0] else [""] * len(methods))
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
    if title:
        figure.suptitle(title)
    return figure


def _figure(height: float, columns: int = 1):
    figure = Figure(figsize=(_WIDTH, height), dpi=_PIXELS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _matrix(values: Any, name: str, *, finite: bool = True) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} must be a matrix, got shape {values.shape}")
    if finite and not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite")
    return values


def _order(plan: np.ndarray) -> tuple:
    """Index that sorts the wider side (the rows of a square plan) by the best partner, in the other side's order.

    Neurons without a partner that stands out (dead ones, above all) come last.
    """
    rows = plan.shape[0] >= plan.shape[1]
    wide = plan if rows else plan.T
    mass = wide.sum(1)
    even = wide.sum(0) / wide.sum()
    share = np.divide(wide, mass[:, None], out=np.tile(even, (len(wide), 1)), where=mass[:, None] > 0)
    best = share.argmax(1)
    partner = share.max(1)
    undecided = partner < min(3 * even.max(), 0.5 * (1 + even.max()))
    order = np.lexsort((best, undecided))
    return (order,) if rows else (slice(None), order)


def _blocks(values: np.ndarray, cells: int = _CELLS) -> np.ndarray:
    """Sums over blocks, so that at most `cells` rows and columns are left."""
    for axis in (0, 1):
        size = values.shape[axis]
        if size > cells:
            starts = np.arange(cells) * size // cells
            values = np.add.reduceat(values, starts, axis=axis)
    return values


def _series(history: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[name]) for entry in history if name in entry and "step" in entry]


def _evaluation_series(history: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """Curves of the evaluation: shares such as accuracy where there are any, else the loss."""
    skip = ("_runtime", "_per_second", "_model_preparation_time")
    names = dict.fromkeys(n for entry in history for n in entry if n.startswith("eval_") and not n.endswith(skip))
    shares = [n for n in names if not n.endswith("loss") and all(0 <= v <= 1 for _, v in _series(history, n))]
    chosen = shares or [n for n in names if n.endswith("loss")]
    return {name.removeprefix("eval_").replace("_", " "): _series(history, name) for name in chosen[:6]}


def _make_readable(axes: Any, panel: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """A logarithmic axis where the terms differ by orders of magnitude; a point alone gets room around it."""
    values = [value for points in panel.values() for _, value in points]
    if min(values) > 0 and max(values) / min(values) > 50:
        axes.set_yscale("log")
    if min(values) >= 0 and axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)


def _frame(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="black", linewidth=1.6)


def _short(name: str, length: int = 26) -> str:
    return name if len(name) <= length else "…" + name[1 - length :]


def _number(value: float) -> str:
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 3)}f}"

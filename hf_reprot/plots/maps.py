"""Heat maps: the plan between neurons, and numbers or a plan between layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .style import new_figure, short

_CELLS = 192


def plan_figure(
    plan: Any,
    *,
    chance: Any = None,
    student: str = "student layer",
    teacher: str = "teacher layer",
    title: str | None = None,
) -> Figure:
    """Heat map of a coupling between student neurons (rows) and teacher neurons (columns), beside one of chance.

    The neurons of the wider side are sorted by their best partner, so that a sharp matching shows as a line from corner
    to corner and a blurred one as an even field; those without a partner that stands out come last. A sorted plan of
    noise shows a line, too, which is why the plan of samples that do not belong together goes beside it: what the left
    panel has and the right one has not is what the layers share. Colours tell how many times the mass is that of the
    plan which spreads every neuron evenly, on one scale for both. Wide layers are summed into blocks.

    Args:
        plan: (d_s, d_t), nonnegative.
        chance: (d_s, d_t), the plan of the same neurons with the teacher's samples shuffled; None: no second panel.
        student, teacher: Names for the axes.
        title: Heading.

    Raises:
        ValueError: not a matrix, or one without mass; a `chance` of another shape.
    """
    plans = [_matrix(plan, "plan")] + ([_matrix(chance, "chance")] if chance is not None else [])
    for shown in plans:
        if shown.min() < 0 or shown.sum() <= 0:
            raise ValueError("a plan has no negative entry, and a positive one")
    if plans[-1].shape != plans[0].shape:
        raise ValueError(f"chance must have the plan's shape {plans[0].shape}, got {plans[-1].shape}")
    times = [_times_even(shown) for shown in plans]
    top = max(2.0, *(float(t.max()) for t in times))
    floor = min(0.1, 1 / top)

    rows, columns = plans[0].shape
    height = float(np.clip(6.2 * rows / columns / len(plans), 2.2, 6.2))
    figure, axes = new_figure(height + 1.2, len(plans))
    panels = np.atleast_1d(axes)
    for panel, values in zip(panels, times, strict=True):
        image = panel.imshow(
            np.clip(values, floor, None),
            cmap="cividis",
            norm=LogNorm(floor, top),
            aspect="auto",
            interpolation="nearest",
            extent=(0, columns, rows, 0),
        )
        panel.set_xlabel(f"{columns} neurons of {teacher}" + (", sorted" if columns > rows else ""))
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[0].set_ylabel(f"{rows} neurons of {student}" + (", sorted" if rows >= columns else ""))
    heading = title or "Which student neuron goes with which teacher neuron"
    if len(plans) > 1:
        panels[0].set_title("The plan", fontsize=10)
        panels[1].set_title("Chance: the same, samples shuffled", fontsize=10)
        figure.suptitle(heading)
    else:
        panels[0].set_title(heading)
    bar = figure.colorbar(image, ax=list(panels), extend="min", pad=0.02, format=FuncFormatter(lambda v, _: f"{v:g}"))
    bar.set_label("mass, as a multiple of an even spread")
    if times[0].shape != plans[0].shape:
        text = f"shown in {times[0].shape[0]} x {times[0].shape[1]} blocks"
        panels[-1].text(1.0, 1.01, text, transform=panels[-1].transAxes, ha="right", fontsize=8)
        for panel in panels:
            panel.set_title(panel.get_title(), pad=18)
    return figure


def _times_even(plan: np.ndarray) -> np.ndarray:
    """A plan, sorted and in blocks, as multiples of the plan that spreads every neuron evenly."""
    even = (plan.sum(1)[:, None] * plan.sum(0)[None, :])[_order(plan)] / plan.sum()
    blocks, expected = _blocks(sorted_plan(plan)), _blocks(even)
    return np.divide(blocks, expected, out=np.zeros_like(blocks), where=expected > 0)


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
    figure, axes = new_figure(float(np.clip(0.45 * rows + 2.0, 3.0, 9.0)))
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap="cividis_r" if lower_is_closer else "cividis",
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_xticks(range(columns), [short(name) for name in teacher_layers], rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(rows), [short(name) for name in student_layers], fontsize=8)
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


def layer_plan_figure(
    plan: Any,
    cost: Any,
    student_layers: Sequence[str],
    teacher_layers: Sequence[str],
    *,
    title: str | None = None,
) -> Figure:
    """A matching of layers: the cost of every pair as a heat map, the pairs that carry mass framed, with their share.

    Args:
        plan: (rows, columns), nonnegative, as `LayerPlan.plan`.
        cost: (rows, columns), as `LayerPlan.cost`.
        student_layers, teacher_layers: Names of the rows and of the columns.
        title: Heading.

    Raises:
        ValueError: shapes or names that do not fit each other.
    """
    plan, cost = _matrix(plan, "plan"), _matrix(cost, "cost")
    if not plan.shape == cost.shape == (len(student_layers), len(teacher_layers)):
        raise ValueError(
            f"plan and cost must have shape {(len(student_layers), len(teacher_layers))}, as many as there are names, "
            f"got {plan.shape} and {cost.shape}"
        )
    rows, columns = plan.shape
    figure, axes = new_figure(float(np.clip(0.45 * rows + 2.0, 3.0, 9.0)))
    image = axes.imshow(cost, cmap="cividis_r", aspect="auto", interpolation="nearest")
    axes.set_xticks(range(columns), [short(name) for name in teacher_layers], rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(rows), [short(name) for name in student_layers], fontsize=8)
    shares = plan / plan.sum(1, keepdims=True)
    for i, j in zip(*np.nonzero(plan > 0), strict=True):
        axes.add_patch(_frame(j, i))
        bright = np.dot(image.cmap(image.norm(cost[i, j]))[:3], (0.299, 0.587, 0.114)) > 0.5
        text = {"ha": "center", "va": "center", "fontsize": 7.5, "color": "black" if bright else "white"}
        axes.text(j, i, f"{shares[i, j]:.0%}", **text)
    axes.set_title(title or "Which layers go together (framed: with its share of the row's layer)")
    figure.colorbar(image, ax=axes, pad=0.02).set_label("cost, as a multiple of chance")
    return figure


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


def _frame(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="black", linewidth=1.6)

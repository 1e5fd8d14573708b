"""What matched neurons respond to."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .style import new_figure


def responses_figure(
    images: Any,
    student: Any,
    teacher: Any,
    plan: Any,
    *,
    pairs: int = 4,
    shown: int = 8,
    title: str | None = None,
) -> Figure:
    """The images that matched neurons respond to most: on the left the student's neuron, on the right its partner.

    The pairs shown are the best: those whose responses correlate most, each neuron once, among the partners that the
    plan gives each student neuron. The correlation is over all images. Where the plan matches well, a row shows images
    of one kind on both sides.

    Args:
        images: (samples, height, width), grey.
        student: (samples, d_s) responses.
        teacher: (samples, d_t) responses to the same images.
        plan: (d_s, d_t), nonnegative.
        pairs: How many pairs.
        shown: How many images of each neuron.
        title: Heading.

    Raises:
        ValueError: shapes that do not fit together.
    """
    images, student, teacher, plan = (np.asarray(values, dtype=float) for values in (images, student, teacher, plan))
    if not len(images) == len(student) == len(teacher) or plan.shape != (student.shape[1], teacher.shape[1]):
        raise ValueError(
            f"{len(images)} images, responses of shapes {student.shape} and {teacher.shape}, a plan of shape "
            f"{plan.shape}: they do not fit together"
        )
    chosen = best_pairs(student, teacher, plan)[:pairs]
    figure, axes = new_figure(0.62 * len(chosen) + 0.9, 2, rows=len(chosen))
    for row, (i, j, correlation) in zip(np.atleast_2d(axes), chosen, strict=True):
        for panel, responses, name in (
            (row[0], student[:, i], f"student {i}"),
            (row[1], teacher[:, j], f"teacher {j}"),
        ):
            top = np.argsort(-responses, kind="stable")[:shown]
            panel.imshow(np.concatenate(list(images[top]), axis=1), cmap="gray", interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        row[1].set_xlabel(f"correlation {correlation:.2f}", fontsize=9)
    np.atleast_2d(axes)[0][0].set_title(f"The {shown} images that excite it most", fontsize=10)
    np.atleast_2d(axes)[0][1].set_title("The same for its partner", fontsize=10)
    figure.suptitle(title or "Matched neurons respond to the same images")
    return figure


def best_pairs(student: np.ndarray, teacher: np.ndarray, plan: np.ndarray) -> list[tuple[int, int, float]]:
    """Student neuron, partner in the plan, and correlation, the best first.

    Each teacher neuron comes once; constant neurons are left out.

    Args:
        student, teacher: (samples, d_s) and (samples, d_t).
        plan: (d_s, d_t).
    """
    found = []
    for i, j in enumerate(plan.argmax(1)):
        if student[:, i].std() > 0 and teacher[:, j].std() > 0:
            found.append((i, int(j), float(np.corrcoef(student[:, i], teacher[:, j])[0, 1])))
    found.sort(key=lambda pair: -pair[2])
    seen: set[int] = set()
    return [pair for pair in found if not (pair[1] in seen or seen.add(pair[1]))]  # type: ignore[func-returns-value]

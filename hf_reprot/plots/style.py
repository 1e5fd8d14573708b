"""What all pictures share: size, colours, and names that fit."""

from __future__ import annotations

import math
import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_WIDTH = 8.0  # inches, shown at 100 pixels an inch
_PIXELS_PER_INCH = 160  # sharp on dense screens, too
COLOURS = ("#00204c", "#b8860b", "#5b6f8f", "#d95f02", "#1b7f79", "#7b3294", "#666666", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
HATCHES = ("", "///", "...", "xxx")


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Writes a figure as PNG, making the folders above it. The same figure gives the same bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
    return path


def new_figure(height: float, columns: int = 1, rows: int = 1):
    """A figure as wide as a README and `height` inches high, and its axes (an array of several)."""
    figure = Figure(figsize=(_WIDTH, height), dpi=_PIXELS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def short(name: str, length: int = 26) -> str:
    """The end of a name that is too long for an axis."""
    return name if len(name) <= length else "…" + name[1 - length :]


def number_text(value: float) -> str:
    """A number to three digits."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 3)}f}"

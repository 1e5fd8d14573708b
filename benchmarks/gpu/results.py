"""What was found, on disk as soon as it is known: JSON, and the same as Markdown."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

JSON, MARKDOWN = "results.json", "results.md"


class Results:
    """Facts about the device, and of each part its tables, its notes and how it ended.

    Args:
        folder: Made if it is not there.
        facts: Name -> value.
        console: Where rows are printed as well.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], console: Console | None = None):
        self.folder, self.console = folder, console or Console(quiet=True)
        self.data: dict[str, Any] = {"facts": dict(facts), "parts": {}}
        folder.mkdir(parents=True, exist_ok=True)
        self.save()

    def row(self, part: str, table: str, **cells: Any) -> None:
        """Adds a row to a table of a part."""
        self._part(part)["tables"].setdefault(table, []).append(cells)
        self.console.print(f"{part}: {table}: " + ", ".join(f"{name} {shown(cell)}" for name, cell in cells.items()))
        self.save()

    def note(self, part: str, text: str) -> None:
        """Adds a line to a part."""
        self._part(part)["notes"].append(text)
        self.console.print(f"{part}: {text}", markup=False)
        self.save()

    def end(self, part: str, how: str, seconds: float) -> None:
        """Says how a part ended: "done", "out of time", or "failed: ..."."""
        self._part(part).update(ended=how, seconds=round(seconds, 1))
        self.console.print(f"{part}: {how}, {seconds:.0f} s", markup=False)
        self.save()

    @property
    def failed(self) -> bool:
        """Whether a part failed, or a test of one."""
        tables = [rows for part in self.data["parts"].values() for rows in part["tables"].values()]
        tests = any(row.get("result") == "failed" for rows in tables for row in rows)
        return tests or any(part["ended"].startswith("failed") for part in self.data["parts"].values())

    def save(self) -> None:
        """Writes both files, each whole or not at all."""
        for name, text in ((JSON, json.dumps(self.data, indent=1)), (MARKDOWN, markdown(self.data))):
            path = self.folder / f"{name}.part"
            path.write_text(text, "utf-8")
            os.replace(path, self.folder / name)

    def _part(self, name: str) -> dict[str, Any]:
        return self.data["parts"].setdefault(name, {"tables": {}, "notes": [], "ended": "cut off", "seconds": None})


def markdown(data: Mapping[str, Any], level: int = 2) -> str:
    """All results.

    Args:
        data: As `Results.data`.
        level: Of the parts' headings.
    """
    lines = [", ".join(f"{name} {value}" for name, value in data["facts"].items()) + ".", ""]
    for name, part in data["parts"].items():
        seconds = "" if part["seconds"] is None else f", {part['seconds']:.0f} s"
        lines += [f"{'#' * level} {name.capitalize()} ({part['ended']}{seconds})", ""]
        for title, rows in part["tables"].items():
            lines += [f"{title}:", "", *table(rows), ""]
        for note in part["notes"]:
            lines += [note if "\n" not in note else f"```text\n{note}\n```", ""]
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as lines of a Markdown table; the columns are those of any row, in order."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([shown(row.get(name)) for name in columns] for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def shown(cell: Any) -> str:
    """A number to three digits; "-" for what was not measured."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 1000 else f"{cell:.0f}"
    return str(cell).replace("|", "/").replace("\n", " ")

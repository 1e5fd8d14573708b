"""What was measured, as a section of the docs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .device import ROOT
from .results import JSON, markdown, shown, table

DOCS = ROOT / "docs" / "evidence" / "speed.md"
BEGIN, END = "<!-- gpu: python -m benchmarks.gpu --report -->", "<!-- end of gpu -->"
NOT_MEASURED = "not measured"


def write_report(folder: Path, docs: Path) -> None:
    """Writes the results of a GPU between the marks of a page.

    Raises:
        ValueError: there are no results, they are of a rehearsal, or the page has no marks.
    """
    path = folder / JSON
    if not path.is_file():
        raise ValueError(f"{path} is not there: python -m benchmarks.gpu --out {folder} writes it, on a GPU")
    data = json.loads(path.read_text("utf-8"))
    if data["facts"]["device"] != "cuda":
        raise ValueError(f"{path} is of a rehearsal on the CPU: such figures stay out of the docs")
    page = docs.read_text("utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{docs} needs {BEGIN} and {END} once each, where the section is to stand")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    docs.write_text(f"{before}{BEGIN}\n\n{section(data)}\n\n{END}{after}", "utf-8")


def section(data: Mapping[str, Any] | None) -> str:
    """What stands between the marks; without data, what is not measured."""
    lines = table(headline(data))
    if data is not None:
        lines = [*lines, "", markdown(data, level=3).strip()]
    return "\n".join(lines)


def headline(data: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """The figures that are asked for first; those that a run did not come to are not measured."""
    tables = {
        (part, title): rows
        for part, found in (data or {"parts": {}})["parts"].items()
        for title, rows in found["tables"].items()
    }

    def cell(part: str, title: str, column: str, **where: Any) -> Any:
        for (of, name), rows in tables.items():
            if of == part and re.match(title, name):
                for row in rows:
                    if all(row.get(key) == value for key, value in where.items()):
                        return row.get(column)
        return None

    tests = [row["result"] for (part, _), rows in tables.items() if part == "checks" for row in rows]
    of_pairs, step = r"12x384x384, relative epsilon 0\.01", r".*loops written by hand"
    batch_64, batch_256 = ({"teacher": "vit_small_patch16_224", "batch": size} for size in (64, 256))
    found = {
        "copy, TB/s": cell("device", "Ceilings", "value", what="copy, TB/s read and written"),
        "tests marked `cuda` that pass": f"{tests.count('passed')} of {len(tests)}" if tests else None,
        "12 x 384 x 384, forward and backward, ms": cell("solver", of_pairs, "ms", solver="hf_reprot"),
        "the same by POT `ot.batch`, times ours": cell("solver", of_pairs, "times ours", solver="POT ot.batch log"),
        "transport's share of a step, ViT-S to ResNet-18, last layer, batch 64": cell(
            "steps", step, "its share", **batch_64, **{"transport of": "last layer"}
        ),
        "the same, four stages, batch 256": cell("steps", step, "its share", **batch_256, **{"transport of": "stages"}),
        "step with transport and logits / logits by hand, in `Trainer`, batch 64": cell(
            "steps", ".*in `Trainer`", "/ by hand", **batch_64, **{"loss beside the labels": "transport and logits"}
        ),
        "a student trained, saved and loaded": cell("training", ".*", "loaded", **{"epochs": 8, "model": "resnet10t"}),
    }
    card = NOT_MEASURED if data is None else data["facts"].get("card", NOT_MEASURED)
    return [
        {"figure": name, "on a GPU" if data is None else f"on {card}": NOT_MEASURED if value is None else shown(value)}
        for name, value in found.items()
    ]
